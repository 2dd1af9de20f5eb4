//! The gateway's log of decisions, read as it is written: requests, and the mix of queries.

use boute_planner::mix::ScoreMix;
use boute_spec::units::SimTime;
use boute_spec::workload::TraceRequest;
use serde::Deserialize;

/// A line of the log, as far as we need it.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: f64,
    pub(crate) input_length: u32,
    pub(crate) output_length: u32,
    decision: Decision,
}

#[derive(Debug, Deserialize)]
struct Decision {
    model: String,
    reason: String,
    score: Option<f32>,
}

impl Line {
    /// `None` for a line that is none of the log.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// Counts it in a mix, if the policy decided.
    pub(crate) fn count(&self, mix: &mut ScoreMix) {
        if let Some(score) = self.decision.score.filter(|_| self.decision.reason == "policy") {
            mix.count(&self.decision.model, score);
        }
    }

    /// The request; `None` for one that came to nothing.
    pub(crate) fn request(&self) -> Option<TraceRequest> {
        (self.input_length > 0 && self.output_length > 0).then(|| TraceRequest {
            arrival: SimTime::from_seconds(self.timestamp * 1e-3),
            input_tokens: self.input_length,
            output_tokens: self.output_length,
            ..TraceRequest::default()
        })
    }
}

/// Requests in order of arrival, from time zero. Counted from the Unix epoch they would not fit into simulated time.
pub(crate) fn in_order(lines: &[Line]) -> Vec<TraceRequest> {
    let first = lines.iter().map(|line| line.timestamp).min_by(f64::total_cmp).unwrap_or_default();
    let mut requests: Vec<TraceRequest> = lines
        .iter()
        .filter_map(|line| {
            let arrival = SimTime::from_seconds((line.timestamp - first) * 1e-3);
            Some(TraceRequest { arrival, ..line.request()? })
        })
        .collect();
    requests.sort_by_key(|request| request.arrival);
    requests
}
