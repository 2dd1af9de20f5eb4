//! A memory of bounded size: two generations, of which the older is forgotten when the younger is full.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Values by the hash of what they belong to.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    generation: usize,
    young: BTreeMap<u64, V>,
    old: BTreeMap<u64, V>,
}

impl<V> Recent<V> {
    /// Keeps the last `generation` values, and up to as many before them.
    pub(crate) fn new(generation: usize) -> Self {
        Self { generation, young: BTreeMap::new(), old: BTreeMap::new() }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.young.get_mut(&key).or_else(|| self.old.get_mut(&key))
    }

    pub(crate) fn insert(&mut self, key: u64, value: V) {
        if self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

/// A key for it.
pub(crate) fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut recent = Recent::new(10);
        (0..=20).for_each(|key| recent.insert(key, key));
        assert_eq!([0, 9, 10, 20].map(|key| recent.get(key).copied()), [None, None, Some(10), Some(20)]);
        assert!(recent.young.len() <= 10 && recent.old.len() <= 10);
        *recent.get_mut(10).unwrap() = 5;
        assert_eq!(recent.get(10), Some(&5));
        assert_ne!(hash((1, "a")), hash((2, "a")));
    }
}
