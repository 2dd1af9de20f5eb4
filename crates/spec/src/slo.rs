//! Latency promises.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

/// What is timed. Definitions as in vLLM's `bench serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Time to the first token.
    Ttft,
    /// (E2E − TTFT) / (output tokens − 1): the first token is not counted. 0 for one-token answers.
    Tpot,
    /// Time to the last token.
    E2e,
}

impl Metric {
    /// All metrics, in the order of a request's life.
    pub const ALL: [Self; 3] = [Self::Ttft, Self::Tpot, Self::E2e];

    /// As in file keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2e => "e2e",
        }
    }
}

/// Which share of the requests must keep the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Percentile {
    /// Median.
    P50,
    /// 90 %.
    P90,
    /// 95 %.
    P95,
    /// 99 %.
    P99,
}

impl Percentile {
    /// All of them, ascending.
    pub const ALL: [Self; 4] = [Self::P50, Self::P90, Self::P95, Self::P99];

    /// Share of requests at or below the limit.
    pub const fn share(self) -> f64 {
        match self {
            Self::P50 => 0.50,
            Self::P90 => 0.90,
            Self::P95 => 0.95,
            Self::P99 => 0.99,
        }
    }

    /// As in file keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

/// One promise: this percentile of this metric stays within the limit, over all requests or those of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SloTarget {
    /// What is timed.
    pub metric: Metric,
    /// Which percentile.
    pub percentile: Percentile,
    /// The limit.
    pub limit_s: Seconds,
    /// Only requests answered by this model; all requests if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl SloTarget {
    /// The key in `boute.yaml`: `e2e_p95`.
    pub fn key(&self) -> String {
        format!("{}_{}", self.metric.name(), self.percentile.name())
    }
}

impl fmt::Display for SloTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ≤ {}", self.key(), self.limit_s)?;
        self.model.as_ref().map_or(Ok(()), |model| write!(f, " ({model})"))
    }
}

/// A metric and a percentile, read from a key such as `e2e_p95`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SloKey(pub Metric, pub Percentile);

impl FromStr for SloKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (metric, percentile) = text.split_once('_').ok_or(())?;
        let metric = Metric::ALL.into_iter().find(|known| known.name() == metric).ok_or(())?;
        let percentile = Percentile::ALL.into_iter().find(|known| known.name() == percentile).ok_or(())?;
        Ok(Self(metric, percentile))
    }
}
