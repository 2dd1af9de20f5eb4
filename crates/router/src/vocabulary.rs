//! The words training has seen in at least three conversations, and how rare they are.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A word is known if it occurs in this many conversations.
pub(crate) const FEWEST_DOCUMENTS: u32 = 3;
/// Words that are compared at once from the start of a bucket.
const NEAR: usize = 8;

/// `1 + ln n` for small n, which are nearly all.
static FREQUENCIES: LazyLock<[f32; 64]> =
    LazyLock::new(|| std::array::from_fn(|times| 1.0 + (times as f32).ln()));

/// The sub-linear weight of a word that occurs so often.
pub(crate) fn frequency(times: u32) -> f32 {
    FREQUENCIES.get(times as usize).copied().unwrap_or_else(|| 1.0 + (times as f32).ln())
}

/// Known words: hash → row of the weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vocabulary {
    /// Hashes, ascending; a word's place is its row.
    pub(crate) hashes: Vec<u32>,
    /// Conversations each occurs in.
    pub(crate) documents: Vec<u32>,
    /// Conversations there were.
    pub(crate) all: u32,
    /// Where the hashes with the same highest bits begin; one to two words have a bucket.
    buckets: Vec<u32>,
    /// Bits of a hash below those of its bucket.
    shift: u32,
}

impl Vocabulary {
    /// Of conversations given by the distinct hashes of each.
    pub(crate) fn of<'a>(conversations: impl Iterator<Item = &'a [(u32, u32)]>) -> Self {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        let mut all = 0;
        for terms in conversations {
            all += 1;
            for (hash, _) in terms {
                *counts.entry(*hash).or_default() += 1;
            }
        }
        let kept = counts.into_iter().filter(|(_, count)| *count >= FEWEST_DOCUMENTS);
        let (hashes, documents) = kept.unzip();
        Self::new(hashes, documents, all)
    }

    pub(crate) fn new(hashes: Vec<u32>, documents: Vec<u32>, all: u32) -> Self {
        let shift = 32 - hashes.len().max(2).ilog2();
        let start = |bucket| hashes.partition_point(|hash| hash >> shift < bucket) as u32;
        let buckets = (0..=u32::MAX >> shift).map(start).collect();
        Self { hashes, documents, all, buckets, shift }
    }

    /// The row of a known word.
    pub(crate) fn row(&self, hash: u32) -> Option<usize> {
        let (row, is_known) = self.find(hash);
        is_known.then_some(row)
    }

    /// The row of a word, or where it would be, and whether it is known.
    #[inline]
    fn find(&self, hash: u32) -> (usize, bool) {
        let start = self.buckets[(hash >> self.shift) as usize] as usize;
        if let Some(near) = self.hashes[start..].first_chunk::<NEAR>() {
            let before: usize = near.iter().map(|known| usize::from(*known < hash)).sum();
            if before < NEAR {
                return (start + before, near[before] == hash);
            }
        }
        self.search(start, hash)
    }

    /// The same for a word that lies far behind the start of its bucket. Seldom, so kept out of the way of the others.
    #[cold]
    fn search(&self, start: usize, hash: u32) -> (usize, bool) {
        let found = self.hashes[start..].binary_search(&hash);
        (start + found.unwrap_or_else(|place| place), found.is_ok())
    }

    /// Sorts the words of a conversation, (hash, times), into known ones, (row, times), and the times of others. Most of the
    /// time of a decision is spent here, on places of the tables that are in no cache. No branch depends on whether a word is
    /// known, which the processor could only guess, so that it looks at many places at once.
    pub(crate) fn sort(&self, terms: &[(u32, u32)], known: &mut Vec<(u32, u32)>, unknown: &mut Vec<u32>) {
        known.resize(terms.len(), (0, 0));
        unknown.resize(terms.len(), 0);
        let mut found = 0;
        for (at, &(hash, times)) in terms.iter().enumerate() {
            let (row, is_known) = self.find(hash);
            // The next word overwrites the one of both that does not count.
            known[found] = (row as u32, times);
            unknown[at - found] = times;
            found += usize::from(is_known);
        }
        known.truncate(found);
        unknown.truncate(terms.len() - found);
    }

    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Smoothed inverse document frequency, as scikit-learn's: `ln((1 + N)/(1 + n)) + 1`.
    pub(crate) fn idf(&self, row: usize) -> f32 {
        self.idf_of(self.documents[row])
    }

    /// The same of a word that is not known.
    pub(crate) fn idf_unknown(&self) -> f32 {
        self.idf_of(0)
    }

    fn idf_of(&self, documents: u32) -> f32 {
        ((1.0 + self.all as f32) / (1.0 + documents as f32)).ln() + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_found_and_no_others() {
        let spread: Vec<u32> = (0..1000_u32).map(|at| at * 4_294_967).collect();
        // All in one bucket.
        let crowded: Vec<u32> = (0..1000).map(|at| 7 + 3 * at).collect();
        for hashes in [spread, crowded, vec![5, u32::MAX], vec![0], vec![]] {
            let vocabulary = Vocabulary::new(hashes.clone(), vec![3; hashes.len()], 9);
            for (row, hash) in hashes.iter().enumerate() {
                assert_eq!(vocabulary.row(*hash), Some(row));
                for other in [hash.wrapping_sub(1), hash.wrapping_add(1)] {
                    assert_eq!(vocabulary.row(other), hashes.binary_search(&other).ok());
                }
            }
            assert_eq!(vocabulary.row(1 << 31), None);
        }
    }
}
