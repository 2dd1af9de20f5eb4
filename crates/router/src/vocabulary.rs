//! The words training has seen in at least three conversations, and how rare they are.

use std::collections::BTreeMap;

/// A word is known if it occurs in this many conversations.
pub(crate) const FEWEST_DOCUMENTS: u32 = 3;
const NONE: u32 = u32::MAX;

/// Known words: hash → row of the weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vocabulary {
    /// Hashes, ascending; a word's place is its row.
    pub(crate) hashes: Vec<u32>,
    /// Conversations each occurs in.
    pub(crate) documents: Vec<u32>,
    /// Conversations there were.
    pub(crate) all: u32,
    /// Open addressing: (hash, row).
    index: Vec<(u32, u32)>,
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
        let size = (2 * hashes.len()).next_power_of_two();
        let mut index = vec![(0, NONE); size];
        for (row, hash) in (0..).zip(&hashes) {
            let mut at = *hash as usize & (size - 1);
            while index[at].1 != NONE {
                at = (at + 1) & (size - 1);
            }
            index[at] = (*hash, row);
        }
        Self { hashes, documents, all, index }
    }

    /// The row of a known word.
    pub(crate) fn row(&self, hash: u32) -> Option<usize> {
        let mask = self.index.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let (known, row) = self.index[at];
            if row == NONE {
                return None;
            }
            if known == hash {
                return Some(row as usize);
            }
            at = (at + 1) & mask;
        }
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
