//! What happened, simulated or measured: one format for both, in vLLM's flat keys.

use serde::{Deserialize, Serialize};

use crate::slo::{Metric, Percentile, SloTarget};
use crate::units::SimTime;

/// How an outcome came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeSource {
    /// By the simulator.
    Simulated,
    /// Over HTTP.
    Measured,
}

/// One finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestOutcome {
    /// Index of the model that answered.
    pub model: u32,
    /// Index of the replica that answered.
    pub replica: u32,
    /// When it arrived.
    pub arrival: SimTime,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Answer tokens.
    pub output_tokens: u32,
    /// Arrival to first token.
    pub ttft: SimTime,
    /// Arrival to last token.
    pub e2e: SimTime,
}

impl RequestOutcome {
    /// The timed value of `metric`, in seconds.
    pub fn metric_s(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Ttft => self.ttft.seconds(),
            Metric::E2e => self.e2e.seconds(),
            Metric::Tpot if self.output_tokens < 2 => 0.0,
            Metric::Tpot => self.e2e.since(self.ttft).seconds() / f64::from(self.output_tokens - 1),
        }
    }
}

/// A share of an outcome that belongs to one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOutcome {
    /// Model id.
    pub model: String,
    /// Requests it answered.
    pub completed: u64,
    /// Share of all answered requests.
    pub load_fraction: f64,
    /// 95th percentile of TTFT.
    pub p95_ttft_ms: f64,
    /// 95th percentile of E2E.
    pub p95_e2el_ms: f64,
}

/// A summary of many requests. Keys and definitions of vLLM's `bench serve` (times in milliseconds, `e2el` is E2E),
/// then ours. Percentiles interpolate linearly between order statistics, as numpy does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Simulated or measured.
    pub source: OutcomeSource,
    /// First arrival to last completion, in seconds (virtual seconds where time was scaled).
    pub duration: f64,
    /// Requests answered in full.
    pub completed: u64,
    /// Requests that failed or were refused.
    pub failed: u64,
    /// Prompt tokens of the answered requests.
    pub total_input_tokens: u64,
    /// Answer tokens.
    pub total_output_tokens: u64,
    /// Answered requests per second.
    pub request_throughput: f64,
    /// Answered requests per second that kept every promise.
    pub request_goodput: f64,
    /// Answer tokens per second.
    pub output_throughput: f64,
    /// Prompt and answer tokens per second.
    pub total_token_throughput: f64,
    /// TTFT.
    pub mean_ttft_ms: f64,
    /// TTFT.
    pub median_ttft_ms: f64,
    /// TTFT.
    pub p90_ttft_ms: f64,
    /// TTFT.
    pub p95_ttft_ms: f64,
    /// TTFT.
    pub p99_ttft_ms: f64,
    /// TPOT.
    pub mean_tpot_ms: f64,
    /// TPOT.
    pub median_tpot_ms: f64,
    /// TPOT.
    pub p90_tpot_ms: f64,
    /// TPOT.
    pub p95_tpot_ms: f64,
    /// TPOT.
    pub p99_tpot_ms: f64,
    /// E2E.
    pub mean_e2el_ms: f64,
    /// E2E.
    pub median_e2el_ms: f64,
    /// E2E.
    pub p90_e2el_ms: f64,
    /// E2E.
    pub p95_e2el_ms: f64,
    /// E2E.
    pub p99_e2el_ms: f64,
    /// Mean score of the answers; `None` where scores are not known.
    pub quality: Option<f64>,
    /// Share of requests that kept every promise.
    pub slo_attainment: f64,
    /// Per model.
    pub models: Vec<ModelOutcome>,
}

/// The `share` quantile of ascending `sorted` values, linearly interpolated; 0 for none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

impl Outcome {
    /// Summarises finished `requests` (and the number that `failed`) against the promises in `slo`.
    /// `models` names the models by index; `quality` is the mean score of the answers, if known.
    pub fn summarise(
        source: OutcomeSource,
        requests: &[RequestOutcome],
        failed: u64,
        models: &[String],
        slo: &[SloTarget],
        quality: Option<f64>,
    ) -> Self {
        let start = requests.iter().map(|request| request.arrival).min().unwrap_or_default();
        let end = requests.iter().map(|request| request.arrival + request.e2e).max().unwrap_or_default();
        let duration = end.since(start).seconds();
        let per_second = |count: f64| if duration > 0.0 { count / duration } else { 0.0 };
        let sorted = |metric: Metric, model: Option<u32>| {
            let mut values: Vec<f64> = requests
                .iter()
                .filter(|request| model.is_none_or(|index| request.model == index))
                .map(|request| request.metric_s(metric) * 1e3)
                .collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let [ttft, tpot, e2e] = Metric::ALL.map(|metric| sorted(metric, None));
        let kept = requests.iter().filter(|request| keeps(request, models, slo)).count();
        let input: u64 = requests.iter().map(|request| u64::from(request.input_tokens)).sum();
        let output: u64 = requests.iter().map(|request| u64::from(request.output_tokens)).sum();
        let models = (0..)
            .zip(models)
            .map(|(index, model)| {
                let e2e = sorted(Metric::E2e, Some(index));
                ModelOutcome {
                    model: model.clone(),
                    completed: e2e.len() as u64,
                    load_fraction: e2e.len() as f64 / requests.len().max(1) as f64,
                    p95_ttft_ms: quantile(&sorted(Metric::Ttft, Some(index)), 0.95),
                    p95_e2el_ms: quantile(&e2e, 0.95),
                }
            })
            .collect();
        Self {
            source,
            duration,
            completed: requests.len() as u64,
            failed,
            total_input_tokens: input,
            total_output_tokens: output,
            request_throughput: per_second(requests.len() as f64),
            request_goodput: per_second(kept as f64),
            output_throughput: per_second(output as f64),
            total_token_throughput: per_second((input + output) as f64),
            mean_ttft_ms: mean(&ttft),
            median_ttft_ms: quantile(&ttft, 0.50),
            p90_ttft_ms: quantile(&ttft, 0.90),
            p95_ttft_ms: quantile(&ttft, 0.95),
            p99_ttft_ms: quantile(&ttft, 0.99),
            mean_tpot_ms: mean(&tpot),
            median_tpot_ms: quantile(&tpot, 0.50),
            p90_tpot_ms: quantile(&tpot, 0.90),
            p95_tpot_ms: quantile(&tpot, 0.95),
            p99_tpot_ms: quantile(&tpot, 0.99),
            mean_e2el_ms: mean(&e2e),
            median_e2el_ms: quantile(&e2e, 0.50),
            p90_e2el_ms: quantile(&e2e, 0.90),
            p95_e2el_ms: quantile(&e2e, 0.95),
            p99_e2el_ms: quantile(&e2e, 0.99),
            quality,
            slo_attainment: kept as f64 / (requests.len() as u64 + failed).max(1) as f64,
            models,
        }
    }

    /// One percentile of one metric, in milliseconds.
    pub fn percentile_ms(&self, metric: Metric, percentile: Percentile) -> f64 {
        use Percentile::{P50, P90, P95, P99};
        match (metric, percentile) {
            (Metric::Ttft, P50) => self.median_ttft_ms,
            (Metric::Ttft, P90) => self.p90_ttft_ms,
            (Metric::Ttft, P95) => self.p95_ttft_ms,
            (Metric::Ttft, P99) => self.p99_ttft_ms,
            (Metric::Tpot, P50) => self.median_tpot_ms,
            (Metric::Tpot, P90) => self.p90_tpot_ms,
            (Metric::Tpot, P95) => self.p95_tpot_ms,
            (Metric::Tpot, P99) => self.p99_tpot_ms,
            (Metric::E2e, P50) => self.median_e2el_ms,
            (Metric::E2e, P90) => self.p90_e2el_ms,
            (Metric::E2e, P95) => self.p95_e2el_ms,
            (Metric::E2e, P99) => self.p99_e2el_ms,
        }
    }
}

/// Whether `request` stays within every limit that applies to it.
fn keeps(request: &RequestOutcome, models: &[String], slo: &[SloTarget]) -> bool {
    slo.iter()
        .filter(|target| {
            target.model.as_ref().is_none_or(|model| models.get(request.model as usize) == Some(model))
        })
        .all(|target| request.metric_s(target.metric) <= target.limit_s.get())
}
