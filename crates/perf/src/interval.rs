//! How far off a prediction may be: quantiles of held-out residuals.
//!
//! A residual is measured/predicted of a series (model, GPU, engine, precision) that the constants were not fitted to. For
//! a replica of some [`Kind`] the residuals of all series count, those of the same kind most: a weight of [`ALIKE`] for each
//! of engine, GPU and source that agrees, and none across classes; within a series all rows together count as one. The
//! interval runs from the 10th to the 90th percentile of the weighted residuals, always around 1 (localised conformal
//! prediction: Guan, "Localized conformal prediction", Biometrika 110, 2023, without its finite-sample correction).

use std::collections::BTreeMap;

use boute_spec::catalog::Source;
use serde::{Deserialize, Serialize};

/// Share of measurements inside an interval.
pub const CONFIDENCE: f64 = 0.8;
/// Weight of a residual for each property that it shares: at 2 the intervals cover what they promise of series that are
/// held out (`cargo xtask bench perf`); at 5 they are a tenth too narrow, without it they are too wide.
const ALIKE: f64 = 2.0;

/// Where [`CONFIDENCE`] of the measurements lie, as multiples of the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// TTFT: low and high.
    pub ttft: [f64; 2],
    /// TPOT: low and high.
    pub tpot: [f64; 2],
}

impl Spread {
    /// When nothing runs that could be off.
    pub const UNKNOWN: Self = Self { ttft: [1.0, 1.0], tpot: [1.0, 1.0] };

    /// From the lower of the lows to the higher of the highs.
    #[must_use]
    pub fn widest(self, other: Self) -> Self {
        let of = |a: [f64; 2], b: [f64; 2]| [a[0].min(b[0]), a[1].max(b[1])];
        Self { ttft: of(self.ttft, other.ttft), tpot: of(self.tpot, other.tpot) }
    }
}

/// What a prediction's error depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind<'a> {
    /// `dense` or `moe`.
    pub class: &'a str,
    /// Name of the engine.
    pub engine: &'a str,
    /// Name of the system whose kernels are used.
    pub gpu: &'a str,
    /// Whether they were measured on this GPU type (fitted) or taken over from another (assumed).
    pub source: Source,
}

/// One held-out measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut<'a> {
    /// Its kind.
    pub kind: Kind<'a>,
    /// Its series.
    pub series: &'a str,
    /// Measured/predicted TTFT.
    pub ttft: f64,
    /// Measured/predicted TPOT.
    pub tpot: f64,
}

/// The interval for predictions of `kind`; `None` without residuals of its class.
pub fn spread<'a>(kind: Kind<'_>, residuals: impl IntoIterator<Item = &'a HeldOut<'a>>) -> Option<Spread> {
    let near: Vec<&HeldOut<'_>> = residuals.into_iter().filter(|it| it.kind.class == kind.class).collect();
    let mut rows_of: BTreeMap<&str, f64> = BTreeMap::new();
    for it in &near {
        *rows_of.entry(it.series).or_default() += 1.0;
    }
    let weights: Vec<f64> = near
        .iter()
        .map(|it| {
            let alike =
                [it.kind.engine == kind.engine, it.kind.gpu == kind.gpu, it.kind.source == kind.source];
            let factor: f64 = alike.into_iter().map(|same| if same { ALIKE } else { 1.0 }).product();
            factor / rows_of[it.series]
        })
        .collect();
    let of = |residual: fn(&HeldOut<'_>) -> f64| {
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let mut sorted: Vec<(f64, f64)> =
            near.iter().map(|it| residual(it)).zip(weights.iter().copied()).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        Some([quantile(&sorted, tail)?.min(1.0), quantile(&sorted, 1.0 - tail)?.max(1.0)])
    };
    Some(Spread { ttft: of(|it| it.ttft)?, tpot: of(|it| it.tpot)? })
}

/// The least value that at least `share` of the weight does not exceed.
fn quantile(sorted: &[(f64, f64)], share: f64) -> Option<f64> {
    let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
    let mut below = 0.0;
    let at = sorted.iter().find(|(_, weight)| {
        below += weight;
        below >= share * total
    });
    at.or(sorted.last()).map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_counts_more() {
        let kind = |gpu| Kind { class: "dense", engine: "vllm", gpu, source: Source::Fitted };
        let of = |gpu, series, ratio| HeldOut { kind: kind(gpu), series, ttft: ratio, tpot: 1.0 };
        let mut residuals: Vec<HeldOut<'_>> =
            (0..9).map(|i| of("a", "a", 1.0 + f64::from(i) / 100.0)).collect();
        residuals.extend((0..9).map(|i| of("b", "b", 2.0 + f64::from(i) / 100.0)));
        let at = |gpu| spread(kind(gpu), &residuals).unwrap().ttft;
        assert_eq!(at("a"), [1.0, 2.06]);
        assert_eq!(at("b"), [1.0, 2.07]);
        assert_eq!(spread(Kind { class: "moe", ..kind("a") }, &residuals), None);
    }
}
