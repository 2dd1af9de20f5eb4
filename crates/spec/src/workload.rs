//! What comes in: arrivals with lengths, and queries with the quality of each model's answer.

use serde::{Deserialize, Serialize};

use crate::units::SimTime;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TraceRequest {
    /// Arrival, from the start of the trace.
    pub arrival: SimTime,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Answer tokens.
    pub output_tokens: u32,
    /// Prefix-cache block ids (Mooncake: one per 512 prompt tokens); empty if not recorded.
    pub hash_ids: Box<[u64]>,
    /// The prompt text, if recorded.
    pub prompt: Option<Box<str>>,
    /// The conversation it belongs to, if recorded.
    pub session_id: Option<Box<str>>,
}

/// Arrivals in order of time, at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    requests: Vec<TraceRequest>,
}

/// Why arrivals are not a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrace {
    /// No request at all.
    #[error("the trace is empty")]
    Empty,
    /// A request arrives before its predecessor.
    #[error("request {index} arrives before request {}", index - 1)]
    OutOfOrder {
        /// Zero-based index of the request.
        index: usize,
    },
    /// A request has no prompt or no answer tokens.
    #[error("request {index} has no {what} tokens")]
    NoTokens {
        /// Zero-based index of the request.
        index: usize,
        /// `input` or `output`.
        what: &'static str,
    },
}

impl Trace {
    /// Checks order and lengths.
    ///
    /// # Errors
    /// If `requests` is empty, out of order, or has a request without tokens.
    pub fn new(requests: Vec<TraceRequest>) -> Result<Self, InvalidTrace> {
        if requests.is_empty() {
            return Err(InvalidTrace::Empty);
        }
        for (index, request) in requests.iter().enumerate() {
            if index > 0 && request.arrival < requests[index - 1].arrival {
                return Err(InvalidTrace::OutOfOrder { index });
            }
            if request.input_tokens == 0 {
                return Err(InvalidTrace::NoTokens { index, what: "input" });
            }
            if request.output_tokens == 0 {
                return Err(InvalidTrace::NoTokens { index, what: "output" });
            }
        }
        Ok(Self { requests })
    }

    /// The requests, in order of arrival.
    pub fn requests(&self) -> &[TraceRequest] {
        &self.requests
    }

    /// Mean arrival rate in requests per second over the span of the trace; infinite if all arrive at once.
    pub fn rate_per_second(&self) -> f64 {
        let span = self.requests[self.requests.len() - 1].arrival.since(self.requests[0].arrival);
        (self.requests.len() - 1).max(1) as f64 / span.seconds()
    }

    /// Requests `range` of the trace, moved to start at time zero.
    ///
    /// # Panics
    /// If `range` is empty or out of bounds.
    #[must_use]
    pub fn window(&self, range: std::ops::Range<usize>) -> Self {
        let start = self.requests[range.start].arrival;
        let requests = self.requests[range]
            .iter()
            .map(|request| TraceRequest { arrival: request.arrival.since(start), ..request.clone() })
            .collect();
        Self { requests }
    }

    /// The same requests at `rate` requests per second on average: all gaps are scaled by one factor.
    #[must_use]
    pub fn at_rate(&self, rate_per_second: f64) -> Self {
        let factor = self.rate_per_second() / rate_per_second;
        let start = self.requests[0].arrival;
        let scale = |at: SimTime| SimTime::from_seconds(at.since(start).seconds() * factor);
        let requests = self
            .requests
            .iter()
            .map(|request| TraceRequest { arrival: scale(request.arrival), ..request.clone() })
            .collect();
        Self { requests }
    }
}

/// Which part of the quality data a query belongs to: a scorer is trained and calibrated on one part, the policy chosen
/// and certified on the second, and quality reported on the third.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trains and calibrates the scorer.
    Train,
    /// Chooses and certifies the policy.
    Validation,
    /// Reports.
    Test,
}

/// One query and how each model answered it.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Unique id.
    pub id: String,
    /// The text.
    pub prompt: String,
    /// Kind of task; empty if not given.
    pub task: String,
    /// Part of the data it belongs to.
    pub split: Split,
    /// Prompt tokens, if counted.
    pub prompt_tokens: Option<u32>,
    /// Score in [0, 1] per model, in the order of [`QualityData::models`].
    pub scores: Vec<f32>,
    /// Answer tokens per model, in the same order; 0 where not recorded.
    pub output_tokens: Vec<u32>,
}

/// Per-query quality of several models on the same queries.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityData {
    /// Model ids.
    pub models: Vec<String>,
    /// Queries that every model in `models` answered.
    pub queries: Vec<Query>,
}

impl QualityData {
    /// The queries of one split, in order.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Query> {
        self.queries.iter().filter(move |query| query.split == split)
    }
}
