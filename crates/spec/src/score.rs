//! What plans are worth, cell by cell of a comparison: the lines of `results.jsonl`.

use serde::{Deserialize, Serialize};

use crate::outcome::OutcomeSource;
use crate::plan::Objective;

/// What a plan is worth on traffic and queries that nothing about it was chosen on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Where times and rates come from.
    pub source: OutcomeSource,
    /// Rent.
    pub cost_usd_per_hour: f64,
    /// Requests per second that the plan was made for.
    pub rate: f64,
    /// Whether all promises hold at `rate`.
    pub rate_met: bool,
    /// The largest rate at which they do, in requests per second; 0 if none was found.
    pub max_rate: f64,
    /// 95th percentile of TTFT at `rate`.
    pub p95_ttft_ms: f64,
    /// 95th percentile of TPOT at `rate`.
    pub p95_tpot_ms: f64,
    /// 95th percentile of E2E at `rate`.
    pub p95_e2el_ms: f64,
    /// Mean score on the held-out queries; `None` without quality data.
    pub quality: Option<f64>,
    /// Lower end of its 95 % interval.
    pub quality_low: Option<f64>,
    /// Floor to judge `quality` by; `None` if there is none.
    pub floor: Option<f64>,
    /// Whether the floor holds at the lower end of the interval.
    pub floor_met: bool,
    /// Whether the mean is at or above the floor.
    pub floor_met_by_mean: bool,
}

/// A cell of a comparison, by the names of its levels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellName {
    /// Traffic.
    pub trace: String,
    /// Models.
    pub models: String,
    /// GPUs on offer.
    pub gpus: String,
    /// Objective and its limit.
    pub goal: String,
    /// Quality floor.
    pub floor: String,
    /// Latency limit.
    pub slo: String,
    /// Seed.
    pub seed: u64,
}

impl CellName {
    /// Dimensions and their levels.
    pub fn levels(&self) -> [(&'static str, &str); 6] {
        [
            ("trace", &self.trace),
            ("models", &self.models),
            ("gpus", &self.gpus),
            ("goal", &self.goal),
            ("floor", &self.floor),
            ("slo", &self.slo),
        ]
    }
}

impl std::fmt::Display for CellName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { trace, models, gpus, goal, floor, slo, seed } = self;
        write!(f, "{trace}, {models}, {gpus}, {goal}, floor {floor}, slo {slo}, seed {seed}")
    }
}

/// What one strategy came to in one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    /// The cell.
    pub cell: CellName,
    /// What was optimised.
    pub objective: Objective,
    /// The strategy.
    pub strategy: String,
    /// What its plan is worth; `None` if it found none.
    pub score: Option<Score>,
    /// Its fleet in words, or why there is none.
    pub fleet: String,
    /// How far from the optimum over the table the plan can be, where the strategy proves it.
    pub gap: Option<f64>,
    /// Wall-clock times, which differ from run to run.
    pub seconds: Seconds,
}

/// Wall-clock times of one result.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seconds {
    /// What all strategies of the cell share: candidates, table and routes.
    pub shared: f64,
    /// The strategy's own planning, with its verification and repairs.
    pub planning: f64,
    /// Scoring.
    pub scoring: f64,
}
