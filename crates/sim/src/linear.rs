//! A step time that is linear in a few features of the batch, so that another simulator's cost model (or a regression on
//! an engine's own log) can be replayed.
//!
//! ```text
//! t = Σ cᵢ·termᵢ
//! ```
//! | term | meaning | from [`Batch`] |
//! |---|---|---|
//! | `1` | every step | |
//! | `T` | tokens computed: prompt tokens and one per decoding sequence | `prefill_tokens + decodes` |
//! | `max(T-n,0)` | tokens beyond n | |
//! | `A` | Σ over prompt chunks of n·(k + n/2), n tokens after k computed ones | `prefill_pairs_twice / 2` |
//! | `K` | Σ of the decoding sequences' KV lengths | `decode_context` |
//! | `D>0`, `P>0` | 1 if any sequence decodes, if any prompt token is computed | |
//!
//! Source: the batch-cost surrogate fitted to Vidur's steps (microsoft/vidur), whose coefficients are in
//! `crates/sim/tests/data/vidur_8b_step_time.json`.
//!
//! Everything but `K` is rounded to a picosecond once per step; the slope in `K` is a whole number of picoseconds per
//! token, so that a stretch of decode steps is an arithmetic series and exact.

use boute_perf::{Batch, StepTime};
use boute_spec::units::SimTime;
use serde::Deserialize;

/// In a second.
const PICOSECONDS: f64 = 1e12;

/// Why a linear step time cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidStepTime {
    /// Not JSON of the right form.
    #[error("{0}\n  help: the file is {{\"basis\": [\"1\", \"T\", …], \"seconds\": [c0, c1, …]}}")]
    Json(String),
    /// A term we do not know.
    #[error(
        "`{0}` in `basis` is not a term of a step\n  help: the terms are 1, T, A, K, D>0, P>0 and max(T-n,0) with a whole n"
    )]
    UnknownTerm(String),
    /// A term twice.
    #[error("`{0}` occurs twice in `basis`\n  help: add its two coefficients up")]
    Repeated(String),
    /// Terms and coefficients do not pair up.
    #[error(
        "`basis` has {terms} terms, `seconds` {coefficients}\n  help: give one coefficient for each term"
    )]
    Unpaired {
        /// Length of `basis`.
        terms: usize,
        /// Length of `seconds`.
        coefficients: usize,
    },
    /// Some step would end before it begins.
    #[error(
        "a step of {prefill_tokens} prompt tokens and {decodes} decoding sequences would take {seconds} s\n  help: the \
         coefficients must give more than 0 s for every step that the limits allow"
    )]
    NoTime {
        /// Prompt tokens of such a step.
        prefill_tokens: u64,
        /// Its decoding sequences.
        decodes: u64,
        /// What the formula gives at least.
        seconds: f64,
    },
}

/// What a step can hold at most; see [`LinearStepTime::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens in one step.
    pub tokens: u64,
    /// Sequences in one step.
    pub seqs: u64,
    /// Tokens of the longest prompt and answer.
    pub context: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    basis: Vec<String>,
    seconds: Vec<f64>,
}

/// A linear step time; coefficients in seconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LinearStepTime {
    constant: f64,
    per_token: f64,
    /// (n, coefficient) of `max(T-n,0)`.
    beyond: Vec<(u64, f64)>,
    per_pair: f64,
    per_context: f64,
    any_decode: f64,
    any_prefill: f64,
}

impl LinearStepTime {
    /// Reads `{"basis": […], "seconds": […]}`.
    ///
    /// # Errors
    /// If the text is not that, or has a term that is unknown or occurs twice, or a coefficient too many or few.
    pub fn parse(text: &str) -> Result<Self, InvalidStepTime> {
        let draft: Draft =
            serde_json::from_str(text).map_err(|error| InvalidStepTime::Json(error.to_string()))?;
        let Draft { basis, seconds } = draft;
        if basis.len() != seconds.len() {
            return Err(InvalidStepTime::Unpaired { terms: basis.len(), coefficients: seconds.len() });
        }
        let mut step_time = Self::default();
        for (index, (term, coefficient)) in basis.iter().zip(seconds).enumerate() {
            if basis[..index].contains(term) {
                return Err(InvalidStepTime::Repeated(term.clone()));
            }
            let of_term = match term.as_str() {
                "1" => &mut step_time.constant,
                "T" => &mut step_time.per_token,
                "A" => &mut step_time.per_pair,
                "K" => &mut step_time.per_context,
                "D>0" => &mut step_time.any_decode,
                "P>0" => &mut step_time.any_prefill,
                other => {
                    let n = other.strip_prefix("max(T-").and_then(|rest| rest.strip_suffix(",0)"));
                    let n = n.and_then(|n| n.parse().ok());
                    step_time
                        .beyond
                        .push((n.ok_or_else(|| InvalidStepTime::UnknownTerm(term.clone()))?, 0.0));
                    let last = step_time.beyond.len() - 1;
                    &mut step_time.beyond[last].1
                }
            };
            *of_term = coefficient;
        }
        Ok(step_time)
    }

    /// Whether every step within `limits` takes some time. The formula is linear between the knots of `T`, so its least
    /// value for each kind of step lies at a knot, and at one end of `A` and of `K`.
    ///
    /// # Errors
    /// With a step that ends before it begins.
    pub fn check(&self, limits: StepLimits) -> Result<(), InvalidStepTime> {
        let knots = [1, 2, limits.seqs, limits.tokens].into_iter().chain(self.beyond.iter().map(|(n, _)| *n));
        for tokens in knots.filter(|tokens| (1..=limits.tokens).contains(tokens)) {
            for (prefill_tokens, decodes) in [(tokens, 0), (0, tokens), (tokens - 1, 1)] {
                let batch = Batch {
                    prefill_tokens,
                    decodes,
                    prefill_pairs_twice: if self.per_pair < 0.0 {
                        2 * prefill_tokens * limits.context
                    } else {
                        0
                    },
                    ..Batch::default()
                };
                let context =
                    if self.per_context < 0.0 { decodes.min(1) * limits.seqs * limits.context } else { 0 };
                let seconds = self.base_s(&batch) + self.per_context * context as f64;
                // Not so, too, if sums of huge coefficients are no number.
                let takes_time = seconds * PICOSECONDS >= 1.0;
                if decodes <= limits.seqs && !takes_time {
                    return Err(InvalidStepTime::NoTime { prefill_tokens, decodes, seconds });
                }
            }
        }
        Ok(())
    }

    /// Seconds of everything but the decoding sequences' contexts.
    fn base_s(&self, batch: &Batch) -> f64 {
        let tokens = batch.prefill_tokens + batch.decodes;
        let flag = |set: bool, seconds: f64| if set { seconds } else { 0.0 };
        self.constant
            + self.per_token * tokens as f64
            + self.beyond.iter().map(|(n, each)| each * tokens.saturating_sub(*n) as f64).sum::<f64>()
            + self.per_pair * batch.prefill_pairs_twice as f64 / 2.0
            + flag(batch.decodes > 0, self.any_decode)
            + flag(batch.prefill_tokens > 0, self.any_prefill)
    }

    /// `steps` successive steps, the first of them `batch`, in which each decoding sequence grows by a token a step.
    fn total(&self, batch: &Batch, steps: u64) -> SimTime {
        let base = (self.base_s(batch) * PICOSECONDS).round() as i128;
        let slope = (self.per_context * PICOSECONDS).round() as i128;
        let (first, decodes, steps) =
            (i128::from(batch.decode_context), i128::from(batch.decodes), i128::from(steps));
        let contexts = first * steps + decodes * steps * (steps - 1) / 2;
        let total = base.saturating_mul(steps).saturating_add(slope.saturating_mul(contexts));
        SimTime(u64::try_from(total.max(0)).unwrap_or(u64::MAX))
    }
}

impl StepTime for LinearStepTime {
    fn step_time(&self, batch: &Batch) -> SimTime {
        self.total(batch, 1)
    }

    fn decode_time(&self, decodes: u64, context: u64, steps: u64) -> SimTime {
        self.total(&Batch { decodes, decode_context: context, ..Batch::default() }, steps)
    }
}
