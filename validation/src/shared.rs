//! The one step time that both schedulers are given.

use aisimulate_core::TimingModel;
use anyhow::Result;
use boute_perf::{Batch, StepTime};
use boute_sim::LinearStepTime;
use boute_spec::units::SimTime;

/// `aisimulate-core` asks for the prompts' share of a step by the number of chunks and their mean lengths in whole
/// tokens, for the decoding sequences' share by their number and total length, and adds the two up. So do we here.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) prompts: LinearStepTime,
    pub(crate) answers: LinearStepTime,
}

impl Shared {
    fn prefill(&self, chunks: u64, mean_length: u64, mean_prefix: u64) -> SimTime {
        let new = mean_length.saturating_sub(mean_prefix);
        if chunks * new == 0 {
            return SimTime::ZERO;
        }
        self.prompts.step_time(&Batch {
            prefill_tokens: chunks * new,
            prefill_pairs_twice: chunks * new * (2 * mean_prefix + new),
            ..Batch::default()
        })
    }

    /// `length` counts the token that is being computed, too.
    fn decode(&self, decodes: u64, length: u64) -> SimTime {
        if decodes == 0 {
            return SimTime::ZERO;
        }
        self.answers.step_time(&Batch { decodes, decode_context: length, ..Batch::default() })
    }
}

impl StepTime for Shared {
    fn step_time(&self, batch: &Batch) -> SimTime {
        let mean = |total: u64| total.checked_div(batch.prefill_chunks).unwrap_or_default();
        let prefill = self.prefill(
            batch.prefill_chunks,
            mean(batch.prefill_context + batch.prefill_tokens),
            mean(batch.prefill_context),
        );
        prefill + self.decode(batch.decodes, batch.decode_context + batch.decodes)
    }

    fn decode_time(&self, decodes: u64, context: u64, steps: u64) -> SimTime {
        self.answers.decode_time(decodes, context + decodes, steps)
    }
}

impl TimingModel for Shared {
    fn predict_prefill_ms(&self, batch_size: usize, mean_isl: usize, mean_prefix: usize) -> Result<f64> {
        Ok(self.prefill(batch_size as u64, mean_isl as u64, mean_prefix as u64).millis())
    }

    fn predict_decode_ms(&self, batch_size: usize, active: usize, _: usize, _: usize) -> Result<f64> {
        Ok(self.decode(batch_size as u64, active as u64).millis())
    }

    fn prefill_batch_validation_can_fail(&self) -> bool {
        false
    }

    fn prefill_prediction_can_fail(&self) -> bool {
        false
    }
}
