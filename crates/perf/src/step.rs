//! What one engine step computes, and the port through which its duration is asked for.

use boute_spec::units::SimTime;

/// The work of one engine step, as sums over its sequences: all that a cost model needs, in constant space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batch {
    /// Prompt tokens computed in this step.
    pub prefill_tokens: u64,
    /// Sequences with a prompt chunk in this step.
    pub prefill_chunks: u64,
    /// Twice the query-key pairs of the chunks: Σ n·(2k + n) for a chunk of n tokens after k computed ones (causal).
    pub prefill_pairs_twice: u64,
    /// Σ k: tokens of context that the chunks read from the KV cache.
    pub prefill_context: u64,
    /// Chunks that end their prompt, and so sample a token.
    pub prefill_ends: u64,
    /// Sequences that decode one token.
    pub decodes: u64,
    /// Σ of the decoding sequences' context lengths.
    pub decode_context: u64,
}

/// How long an engine step takes. Pure: the same batch gives the same time. Never zero.
///
/// One of the two traits that cross crate borders: the simulator runs on this crate's cost model, on another
/// simulator's, or on a test's.
pub trait StepTime {
    /// Duration of one step.
    fn step_time(&self, batch: &Batch) -> SimTime;

    /// Duration of `steps` successive steps in which the same `decodes` sequences, whose contexts sum to `context`
    /// at the first step, each decode one token per step. Exactly the sum of the single [`Self::step_time`]s, and
    /// increasing in `steps`; implementations give it in closed form.
    fn decode_time(&self, decodes: u64, context: u64, steps: u64) -> SimTime {
        (0..steps)
            .map(|step| {
                let batch = Batch { decodes, decode_context: context + step * decodes, ..Batch::default() };
                self.step_time(&batch)
            })
            .fold(SimTime::ZERO, |sum, time| sum + time)
    }
}
