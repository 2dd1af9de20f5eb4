//! Which replica has seen which beginnings of prompts: a guess at the prefix caches of the engines.
//!
//! A prompt is cut into blocks; the hash of a block covers all before it. The longest run of known blocks tells which
//! replica was last sent that beginning. Other balancers keep a tree of all texts; hashes need no text and little memory.

use std::sync::{Mutex, PoisonError};

use crate::recent::Recent;

/// Bytes of a block, about 256 tokens.
const BLOCK: usize = 1 << 10;
/// Blocks of one prompt that are looked at.
const MOST_BLOCKS: usize = 64;
/// Blocks of one generation of [`Recent`].
const GENERATION: usize = 1 << 15;

/// A replica, by an identity that outlives plans.
pub(crate) type ReplicaId = u64;

/// What was sent where.
#[derive(Debug)]
pub(crate) struct Affinity(Mutex<Recent<ReplicaId>>);

impl Default for Affinity {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(GENERATION)))
    }
}

/// The blocks of one prompt.
#[derive(Debug)]
pub(crate) struct Blocks {
    hashes: Vec<u64>,
    /// Of a session: everything it said before counts as seen.
    session: Option<u64>,
}

impl Blocks {
    /// Of a prompt for `model`, and of the session it belongs to, if any.
    pub(crate) fn new(model: &str, text: &str, session: Option<&str>) -> Self {
        let start = fnv(FNV_START, model.as_bytes());
        let mut hash = start;
        let (blocks, _) = text.as_bytes().as_chunks::<BLOCK>();
        let hashes = blocks.iter().take(MOST_BLOCKS).map(|block| {
            hash = fnv(hash, block);
            hash
        });
        Self { hashes: hashes.collect(), session: session.map(|session| !fnv(start, session.as_bytes())) }
    }

    /// Whether there is anything to remember.
    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty() && self.session.is_none()
    }
}

impl Affinity {
    /// The replica that has seen most of the prompt's beginning, and how much of its `prompt_tokens` that is.
    pub(crate) fn seen(&self, blocks: &Blocks, prompt_tokens: u32) -> Option<(ReplicaId, u32)> {
        if blocks.is_empty() {
            return None;
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(replica) = blocks.session.and_then(|session| known.get(session).copied()) {
            return Some((replica, prompt_tokens));
        }
        let run: Vec<ReplicaId> =
            blocks.hashes.iter().map_while(|block| known.get(*block).copied()).collect();
        let replica = *run.last()?;
        // What a later one was sent, the earlier parts of it included, is what it has.
        let tokens = (run.len() * BLOCK / 4) as u32;
        Some((replica, tokens.min(prompt_tokens)))
    }

    /// The prompt was sent to `replica`.
    pub(crate) fn sent(&self, blocks: &Blocks, replica: ReplicaId) {
        if blocks.is_empty() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks.hashes.iter().copied().chain(blocks.session) {
            known.insert(block, replica);
        }
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over words of eight bytes, with a shift so that high bits reach low ones.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ (mixed >> 32)
    };
    let hash = words.iter().fold(start, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(mix(hash, bytes.len() as u64), |hash, byte| mix(hash, u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_beginning_counts() {
        let affinity = Affinity::default();
        let text = "x".repeat(3 * BLOCK);
        let turn = |text: &str| Blocks::new("m", text, None);
        assert_eq!(affinity.seen(&turn(&text), 1000), None);
        affinity.sent(&turn(&text), 7);
        let longer = format!("{text}{}", "y".repeat(2 * BLOCK));
        assert_eq!(affinity.seen(&turn(&longer), 2000), Some((7, 768)));
        assert_eq!(
            affinity.seen(&Blocks::new("other", &longer, None), 2000),
            None,
            "caches are of one model"
        );
        affinity.sent(&turn(&longer), 8);
        assert_eq!(affinity.seen(&turn(&longer), 2000), Some((8, 1280)));
        assert!(turn("short").is_empty());
    }

    #[test]
    fn a_session_stays() {
        let affinity = Affinity::default();
        let said = |session| Blocks::new("m", "hi", Some(session));
        affinity.sent(&said("a"), 3);
        assert_eq!((affinity.seen(&said("a"), 9), affinity.seen(&said("b"), 9)), (Some((3, 9)), None));
    }
}
