//! Blocks that nobody holds but whose content stays in the KV cache until the room is needed, in order of last use.
//!
//! As in vLLM every full block stays when its sequence ends or is preempted, and the blocks least recently used are
//! taken first, whether anybody will ask for them again or not. Two things can come back: *units*, named prefixes of
//! prompts, which several sequences may hold at once, and the blocks that a preempted sequence *parks*, for itself.

use std::collections::BTreeMap;

/// Tokens of one shared unit: traces name prefixes by blocks of 512 tokens.
pub(crate) const UNIT_TOKENS: u64 = 512;
/// KV blocks of one unit.
pub(crate) const UNIT_BLOCKS: u64 = UNIT_TOKENS / boute_perf::memory::BLOCK_TOKENS;

#[derive(Debug)]
struct Unit {
    holders: u32,
    /// Time of last use, as a count; key of `idle` while nobody holds it.
    used: u64,
}

/// What nobody holds.
#[derive(Debug)]
enum Idle {
    Unit(u64),
    Blocks(u64),
}

/// A place among the idle blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Units by id, and idle blocks. An id names the whole prefix up to its unit, so that a chain of ids is a chain of
/// prefixes.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    units: BTreeMap<u64, Unit>,
    /// By last use.
    idle: BTreeMap<u64, Idle>,
    idle_blocks: u64,
    held_units: u64,
    uses: u64,
}

impl PrefixCache {
    /// Blocks that are known and not held.
    pub(crate) fn idle_blocks(&self) -> u64 {
        self.idle_blocks
    }

    /// Units that running sequences hold.
    pub(crate) fn held_units(&self) -> u64 {
        self.held_units
    }

    /// Units of the longest known prefix of `ids`, and how many of them are held.
    pub(crate) fn known(&self, ids: &[u64]) -> (usize, u64) {
        let known = ids.iter().map_while(|id| self.units.get(id));
        known.fold((0, 0), |(units, held), unit| (units + 1, held + u64::from(unit.holders > 0)))
    }

    /// Holds units that are known.
    pub(crate) fn hold(&mut self, ids: &[u64]) {
        for id in ids {
            let Some(unit) = self.units.get_mut(id) else { continue };
            if unit.holders == 0 {
                self.idle.remove(&unit.used);
                self.idle_blocks -= UNIT_BLOCKS;
                self.held_units += 1;
            }
            unit.holders += 1;
        }
    }

    /// Adds a unit, held once; false if it is there already (computed by another sequence meanwhile).
    pub(crate) fn offer(&mut self, id: u64) -> bool {
        let new = !self.units.contains_key(&id);
        if new {
            self.units.insert(id, Unit { holders: 1, used: 0 });
            self.held_units += 1;
        }
        new
    }

    /// Lets go of `ids`; a prefix is forgotten after what builds on it, so the last unit is the oldest.
    pub(crate) fn release(&mut self, ids: &[u64]) {
        for id in ids.iter().rev() {
            let Some(unit) = self.units.get_mut(id) else { continue };
            unit.holders -= 1;
            if unit.holders == 0 {
                self.held_units -= 1;
                self.idle_blocks += UNIT_BLOCKS;
                self.uses += 1;
                unit.used = self.uses;
                self.idle.insert(self.uses, Idle::Unit(*id));
            }
        }
    }

    /// Keeps the content of `blocks` blocks that were let go of.
    pub(crate) fn park(&mut self, blocks: u64) -> Ticket {
        self.uses += 1;
        if blocks > 0 {
            self.idle.insert(self.uses, Idle::Blocks(blocks));
            self.idle_blocks += blocks;
        }
        Ticket(self.uses)
    }

    /// What is left of parked blocks; the last ones are forgotten first.
    pub(crate) fn parked(&self, ticket: Ticket) -> u64 {
        match self.idle.get(&ticket.0) {
            Some(Idle::Blocks(blocks)) => *blocks,
            _ => 0,
        }
    }

    /// Takes what is left of parked blocks back.
    pub(crate) fn unpark(&mut self, ticket: Ticket) -> u64 {
        let blocks = self.parked(ticket);
        self.idle.remove(&ticket.0);
        self.idle_blocks -= blocks;
        blocks
    }

    /// Forgets at least `blocks` idle blocks, or all.
    pub(crate) fn evict(&mut self, blocks: u64) {
        let mut wanted = blocks;
        while wanted > 0
            && let Some(mut oldest) = self.idle.first_entry()
        {
            let gone = match oldest.get_mut() {
                Idle::Blocks(left) if *left > wanted => {
                    *left -= wanted;
                    wanted
                }
                Idle::Blocks(left) => {
                    let gone = *left;
                    oldest.remove();
                    gone
                }
                Idle::Unit(id) => {
                    self.units.remove(id);
                    oldest.remove();
                    UNIT_BLOCKS
                }
            };
            self.idle_blocks -= gone;
            wanted = wanted.saturating_sub(gone);
        }
    }
}
