//! Prompt prefixes that stay in the KV cache after their sequence has ended, forgotten in order of last use.

use std::collections::BTreeMap;

/// Tokens of one shared unit: traces name prefixes by blocks of 512 tokens.
pub(crate) const UNIT_TOKENS: u64 = 512;
/// KV blocks of one unit.
pub(crate) const UNIT_BLOCKS: u64 = UNIT_TOKENS / boute_perf::memory::BLOCK_TOKENS;

#[derive(Debug)]
struct Unit {
    holders: u32,
    /// Time of last use, as a count; key of `unused` while nobody holds it.
    used: u64,
}

/// Units by id. An id names the whole prefix up to its unit, so that a chain of ids is a chain of prefixes.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    units: BTreeMap<u64, Unit>,
    /// Last use → id, of units without holder.
    unused: BTreeMap<u64, u64>,
    uses: u64,
}

impl PrefixCache {
    /// Units in the cache.
    pub(crate) fn units(&self) -> u64 {
        self.units.len() as u64
    }

    /// Units that running sequences hold.
    pub(crate) fn held_units(&self) -> u64 {
        (self.units.len() - self.unused.len()) as u64
    }

    /// Holds the longest known prefix of `ids`; how many units that is.
    pub(crate) fn hold(&mut self, ids: &[u64]) -> usize {
        let known = ids.iter().take_while(|id| self.units.contains_key(id)).count();
        for id in &ids[..known] {
            if let Some(unit) = self.units.get_mut(id) {
                if unit.holders == 0 {
                    self.unused.remove(&unit.used);
                }
                unit.holders += 1;
            }
        }
        known
    }

    /// Adds a unit, held once; false if it is there already (computed by another sequence meanwhile).
    pub(crate) fn offer(&mut self, id: u64) -> bool {
        let new = !self.units.contains_key(&id);
        if new {
            self.units.insert(id, Unit { holders: 1, used: 0 });
        }
        new
    }

    /// Lets go of `ids`; a prefix is forgotten after what builds on it, so the last unit is the oldest.
    pub(crate) fn release(&mut self, ids: &[u64]) {
        for id in ids.iter().rev() {
            let Some(unit) = self.units.get_mut(id) else { continue };
            unit.holders -= 1;
            if unit.holders == 0 {
                self.uses += 1;
                unit.used = self.uses;
                self.unused.insert(self.uses, *id);
            }
        }
    }

    /// Forgets the unit that was not used for longest; false if all are held.
    pub(crate) fn evict(&mut self) -> bool {
        let Some((_, id)) = self.unused.pop_first() else { return false };
        self.units.remove(&id);
        true
    }
}
