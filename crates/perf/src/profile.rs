//! A model of a replica corrected by measurements of the engine itself: about ten points are enough.
//!
//! What is corrected has a physical meaning, so that the correction carries over to loads (and degrees of parallelism) that
//! were not measured, and the laws of the model (more work never takes less time) hold by construction:
//!
//! | constant | meaning | unit |
//! |---|---|---|
//! | compute | time at a compute limit over the model's: divides the GPU's peak rates | – |
//! | bandwidth | time at a memory limit over the model's: divides the GPU's peak bandwidth | – |
//! | step | what the engine adds to each step, in place of the calibrated constant | µs |
//! | request | what a request takes outside the steps, in place of the calibrated constant | ms |
//!
//! They minimise the soft-L1 loss of ln(predicted/measured) over the TPOT and, weighted less, the TTFT of all points, drawn to the
//! uncorrected model: where the points do not tell two constants apart, the model decides. The error *after* is honest: each
//! point is predicted by the fit to the others (leave-one-out), and these residuals r make the interval
//! exp(± t·√(1 + 1/n)·rms(r)), t the 90th percentile of Student's t with n − 1 degrees of freedom; it is never narrower
//! than the standard error of the points themselves. Source of the interval: the textbook prediction interval for a new
//! observation, here in logarithms.

use boute_spec::catalog::Gpu;
use boute_spec::outcome::quantile;
use serde::{Deserialize, Serialize};

use crate::calibration::{Calibration, EngineOverhead};
use crate::fit::{Residual, Search, least_squares};
use crate::interval::{CONFIDENCE, Spread};
use crate::{ClosedLoop, ReplicaConfig, ReplicaModel, ServingEstimate};

/// Errors (logarithms) beyond this pull with constant force only.
const LOSS_SCALE: f64 = 0.1;
/// TTFT is worth this much of TPOT: how clients queue is modelled far less well than how long a step takes, and must not
/// bend what the steps tell.
const TTFT_WEIGHT: f64 = 0.1;
/// How strongly a constant is held to the uncorrected model: like this many measured values.
const PRIOR_WEIGHT: f64 = 3.0;
/// Compute and bandwidth: how far (in logarithms) is far, and the bounds.
const FACTOR: (f64, [f64; 2]) = (0.3, [-0.7, 11.5]);
/// Microseconds per step: how far is far, and the upper bound.
const STEP_US: (f64, f64) = (1000.0, 50_000.0);
/// Milliseconds per request: how far is far, and the upper bound.
const REQUEST_MS: (f64, f64) = (30.0, 3000.0);

/// How fast an engine was measured to be, relative to the model of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Time at a compute limit, over the model's.
    pub compute: f64,
    /// Time at a memory limit, over the model's.
    pub bandwidth: f64,
    /// What the engine adds to each step, in microseconds.
    pub step_us: f64,
    /// What a request takes outside the steps, in milliseconds.
    pub request_ms: f64,
}

/// One measured load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point<'a> {
    /// What was measured.
    pub config: &'a ReplicaConfig,
    /// Its clients.
    pub load: ClosedLoop,
    /// Mean time to first token.
    pub ttft_s: f64,
    /// Mean time per output token after the first.
    pub tpot_s: f64,
}

impl Point<'_> {
    /// What the model says at `speed`, or as it is.
    pub fn estimate(&self, speed: Option<Speed>, calibration: &Calibration) -> ServingEstimate {
        let config = ReplicaConfig { speed, ..self.config.clone() };
        ReplicaModel::whether_or_not_it_fits(&config, calibration).closed_loop(&self.load)
    }

    /// ln(predicted/measured) of TTFT and TPOT.
    fn residuals(&self, speed: Option<Speed>, calibration: &Calibration) -> [f64; 2] {
        let predicted = self.estimate(speed, calibration);
        [(predicted.ttft_s / self.ttft_s).ln(), (predicted.tpot_s / self.tpot_s).ln()]
    }
}

impl Speed {
    /// The constants that fit `points` best.
    pub fn fit(points: &[Point<'_>], calibration: &Calibration) -> Self {
        let engine = points
            .first()
            .map_or(calibration.engine.vllm, |point| calibration.engine.of(point.config.backend));
        let [low, high] = FACTOR.1;
        let prior = [0.0, 0.0, engine.step_us, engine.request_ms];
        let far = [FACTOR.0, FACTOR.0, STEP_US.0, REQUEST_MS.0];
        // Hardware far from the model of it, such as a CPU: from there no derivative points to the right speed.
        let off = |at: &[f64; 2]| {
            let speed = Self::of(&[at[0], at[1], prior[2], prior[3]]);
            points
                .iter()
                .flat_map(|point| point.residuals(Some(speed), calibration))
                .map(f64::abs)
                .sum::<f64>()
        };
        let steps = || (0..high as u32).step_by(2).map(f64::from);
        let grid = steps().flat_map(|compute| steps().map(move |bandwidth| [compute, bandwidth]));
        let [compute, bandwidth] = grid.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or_default();
        let start = vec![compute, bandwidth, prior[2], prior[3]];
        let search = Search::new(start, vec![low, low, 0.0, 0.0], vec![high, high, STEP_US.1, REQUEST_MS.1]);
        let found = least_squares(&search, LOSS_SCALE, |p, out| {
            let speed = Self::of(p);
            for point in points {
                let [ttft, tpot] = point.residuals(Some(speed), calibration);
                out.push(Residual { value: ttft, weight: TTFT_WEIGHT, block: 0 });
                out.push(Residual { value: tpot, weight: 1.0, block: 0 });
            }
            // Only TTFT tells what a request takes outside the steps.
            let weights = [1.0, 1.0, 1.0, TTFT_WEIGHT].map(|weight| weight * PRIOR_WEIGHT);
            for (((x, prior), far), weight) in p.iter().zip(prior).zip(far).zip(weights) {
                // Near the model held to it, far from it free.
                let value = ((x - prior) / far).asinh() * LOSS_SCALE;
                out.push(Residual { value, weight, block: 0 });
            }
        });
        Self::of(&found)
    }

    fn of(p: &[f64]) -> Self {
        Self { compute: p[0].exp(), bandwidth: p[1].exp(), step_us: p[2], request_ms: p[3] }
    }

    /// The GPU at this speed.
    pub(crate) fn of_gpu(self, gpu: &Gpu) -> Gpu {
        let slower = |flops: f64| flops / self.compute;
        Gpu {
            bf16_flops: slower(gpu.bf16_flops),
            fp8_flops: gpu.fp8_flops.map(slower),
            fp4_flops: gpu.fp4_flops.map(slower),
            bandwidth_bytes_per_s: gpu.bandwidth_bytes_per_s / self.bandwidth,
            ..gpu.clone()
        }
    }

    /// The engine at this speed.
    pub(crate) const fn of_engine(self, engine: EngineOverhead) -> EngineOverhead {
        EngineOverhead { step_us: self.step_us, request_ms: self.request_ms, ..engine }
    }
}

/// Median |predicted/measured − 1|.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MedianError {
    /// Of the time to first token.
    pub ttft: f64,
    /// Of the time per output token.
    pub tpot: f64,
}

/// A fit, and how good it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// The constants.
    pub speed: Speed,
    /// Where 80 % of further measurements lie, as multiples of the prediction.
    pub spread: Spread,
    /// Error of the uncorrected model.
    pub before: MedianError,
    /// Error at points that were left out of the fit, one at a time.
    pub after: MedianError,
}

impl Fit {
    /// Fits `points` and judges the fit. `repeatability` is the relative standard error of a point's TTFT and TPOT: no
    /// interval is narrower.
    pub fn new(points: &[Point<'_>], calibration: &Calibration, repeatability: [f64; 2]) -> Self {
        let before: Vec<_> = points.iter().map(|point| point.residuals(None, calibration)).collect();
        let left_out = |index: usize| {
            let others: Vec<_> = [&points[..index], &points[index + 1..]].concat();
            points[index].residuals(Some(Speed::fit(&others, calibration)), calibration)
        };
        let after: Vec<_> = (0..points.len()).map(left_out).collect();
        let interval = |which: usize| {
            let n = after.len().max(1) as f64;
            let rms = (after.iter().map(|r| r[which].powi(2)).sum::<f64>() / n).sqrt();
            let width = (student((n - 1.0).max(1.0)) * (1.0 + 1.0 / n).sqrt() * rms)
                .max(NORMAL * repeatability[which]);
            [(-width).exp(), width.exp()]
        };
        Self {
            speed: Speed::fit(points, calibration),
            spread: Spread { ttft: interval(0), tpot: interval(1) },
            before: MedianError::of(&before),
            after: MedianError::of(&after),
        }
    }
}

impl MedianError {
    fn of(residuals: &[[f64; 2]]) -> Self {
        let median = |which: usize| {
            let mut errors: Vec<f64> = residuals.iter().map(|r| (r[which].exp() - 1.0).abs()).collect();
            errors.sort_by(f64::total_cmp);
            errors.get(errors.len() / 2).copied().unwrap_or_default()
        };
        Self { ttft: median(0), tpot: median(1) }
    }
}

/// The 90th percentile of the normal distribution: [`CONFIDENCE`] lies inside ± this.
const NORMAL: f64 = 1.281_551_6;
const _: () = assert!(CONFIDENCE == 0.8);

/// The 90th percentile of Student's t, within 4 % for one degree of freedom and 0.1 % from four (Abramowitz and Stegun,
/// 26.7.5).
fn student(degrees: f64) -> f64 {
    let z = NORMAL;
    let powers = [z, z.powi(3), z.powi(5), z.powi(7)];
    let term = |c: [f64; 4], by: f64| c.iter().zip(powers).map(|(c, p)| c * p).sum::<f64>() / by;
    z + term([1.0, 1.0, 0.0, 0.0], 4.0 * degrees)
        + term([3.0, 16.0, 5.0, 0.0], 96.0 * degrees.powi(2))
        + term([-15.0, 17.0, 19.0, 3.0], 384.0 * degrees.powi(3))
}

/// Mean and quantiles of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

impl Summary {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let at = |share| quantile(&values, share);
        (!values.is_empty()).then(|| Self { mean, p50: at(0.5), p95: at(0.95) })
    }
}

/// One measured load in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredPoint {
    /// Mean prompt tokens, as the engine counts.
    pub prompt_tokens: u32,
    /// Mean answer tokens.
    pub answer_tokens: u32,
    /// Clients of the closed loop.
    pub clients: u32,
    /// Requests answered.
    pub requests: u32,
    /// Requests failed.
    pub failed: u32,
    /// Time to first token.
    pub ttft_s: Summary,
    /// Time per output token after the first.
    pub tpot_s: Summary,
}

/// `profile.json`: what was measured of an engine, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Of the file format.
    pub version: u32,
    /// Of the tool.
    pub tool_version: String,
    /// Seconds since 1970.
    pub measured_at_unix_s: u64,
    /// Id of the model.
    pub model: String,
    /// Catalogue name of the GPU type.
    pub gpu: String,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline parallelism.
    pub pp: u32,
    /// The engine, and its version where it tells.
    pub engine: String,
    /// Tokens its KV cache holds, where it tells.
    pub kv_cache_tokens: Option<u64>,
    /// Share of the prompt tokens that its prefix cache had, where it tells: near zero if the measurement is sound.
    pub prefix_cache_share: Option<f64>,
    /// How fast it is.
    pub speed: Speed,
    /// Where 80 % of measurements lie, as multiples of the prediction at this speed.
    pub spread: Spread,
    /// Error of the uncorrected model at the points.
    pub error_before: MedianError,
    /// Error at the points when each is left out of the fit.
    pub error_after: MedianError,
    /// What was measured.
    pub points: Vec<MeasuredPoint>,
}

impl Profile {
    /// Of the file format.
    pub const VERSION: u32 = 1;

    /// What is wrong with a file that has the right fields, if anything.
    pub fn problem(&self) -> Option<String> {
        let Speed { compute, bandwidth, step_us, request_ms } = self.speed;
        if self.version != Self::VERSION {
            return Some(format!("version {} is not {}", self.version, Self::VERSION));
        }
        let factor = |x: f64| (FACTOR.1[0].exp()..=FACTOR.1[1].exp()).contains(&x);
        [
            ("compute", factor(compute)),
            ("bandwidth", factor(bandwidth)),
            ("step_us", (0.0..=STEP_US.1).contains(&step_us)),
            ("request_ms", (0.0..=REQUEST_MS.1).contains(&request_ms)),
        ]
        .into_iter()
        .find(|(_, good)| !good)
        .map(|(key, _)| format!("`speed.{key}` is out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_t_is_that_of_the_tables() {
        for (degrees, want, within) in [(1.0, 3.078, 0.04), (4.0, 1.533, 0.001), (9.0, 1.383, 0.001)] {
            assert!((student(degrees) / want - 1.0_f64).abs() < within, "{degrees}: {}", student(degrees));
        }
    }

    #[test]
    fn values_are_summarised() {
        let summary = Summary::of((1..=20).rev().map(f64::from).collect()).unwrap();
        assert_eq!(summary, Summary { mean: 10.5, p50: 10.5, p95: 19.05 });
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
