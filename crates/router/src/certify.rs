//! Quality floors that hold with a stated probability: lower confidence bounds on a mean, valid for any sample size.
//!
//! - All values 0 or 1: the exact binomial bound (Clopper, Pearson, Biometrika 26, 1934).
//! - Values in [0, 1]: the betting bound (Waudby-Smith, Ramdas, "Estimating means of bounded random variables by
//!   betting", JRSS B 86, 2024): if the mean were m, the capital `Π(1 + λ_t(x_t − m))` with bets `λ_t ≥ 0` fixed before `x_t`
//!   is seen would exceed 1/δ with probability at most δ; so every m at which it does is rejected.
//!
//! A policy is chosen from a path of policies that begins at the safe end: each is tested at level δ, and the walk stops
//! at the first that fails. The chance that the last one accepted misses the floor is then at most δ, however long the
//! path (fixed-sequence testing; Angelopoulos et al., "Learn then test", 2021).

use statrs::function::beta::beta_reg;

use crate::queries::ScoredQueries;

/// A promise about the mean score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FloorRule {
    /// At least this.
    Absolute(f64),
    /// At least this share of what one model (index) would score on the same queries.
    Relative {
        /// The share.
        share: f64,
        /// Index of the model.
        model: usize,
    },
}

/// Whether a promise holds, and with what margin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certified {
    /// Whether it holds at the asked confidence.
    pub holds: bool,
    /// Lower bound of the tested mean: the score, or the score less the share of the reference model's.
    pub lower_bound: f64,
    /// The tested mean on the sample.
    pub mean: f64,
}

/// A lower bound on the mean of what `values` (each in [0, 1]) were drawn from: the truth is below it with probability at
/// most `delta`. 0 for no values.
pub fn lower_bound(values: &[f64], delta: f64) -> f64 {
    if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        let ones = values.iter().filter(|value| **value == 1.0).count();
        binomial_lower_bound(ones, values.len(), delta)
    } else {
        betting_lower_bound(values, delta)
    }
}

/// p such that at least `ones` of `count` has probability `delta`: `I_p(ones, count − ones + 1) = δ`.
fn binomial_lower_bound(ones: usize, count: usize, delta: f64) -> f64 {
    if ones == 0 {
        return 0.0;
    }
    let (a, b) = (ones as f64, (count - ones) as f64 + 1.0);
    bisect(|p| beta_reg(a, b, p) < delta)
}

fn betting_lower_bound(values: &[f64], delta: f64) -> f64 {
    bisect(|mean| wealth_exceeds(values, mean, delta))
}

/// Whether betting against "the mean is `mean`" ever multiplies the capital by 1/δ.
fn wealth_exceeds(values: &[f64], mean: f64, delta: f64) -> bool {
    let count = values.len() as f64;
    let target = (1.0 / delta).ln();
    let (mut log_wealth, mut sum, mut squares) = (0.0, 0.5, 0.25);
    for (seen, value) in (1..).zip(values) {
        // The bet uses the past only: a variance estimate that starts at 1/4.
        let variance = squares / f64::from(seen);
        let bet = (2.0 * target / (variance * count)).sqrt().min(0.75 / mean.max(1e-9));
        log_wealth += (bet * (value - mean)).ln_1p();
        if log_wealth >= target {
            return true;
        }
        sum += value;
        let average = sum / f64::from(seen + 1);
        squares += (value - average) * (value - average);
    }
    false
}

/// The largest p in [0, 1] below which `rejected` is true, to 1e-9; it is true up to some p and false from there.
fn bisect(rejected: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 1e-9 {
        let middle = f64::midpoint(low, high);
        if rejected(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Tests one policy, given by the model that answers each query.
pub fn floor_holds(queries: &ScoredQueries, assignment: &[usize], rule: FloorRule, delta: f64) -> Certified {
    let scores = || assignment.iter().enumerate().map(|(query, model)| queries.actual(query, *model));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    match rule {
        FloorRule::Absolute(floor) => {
            let values: Vec<f64> = scores().collect();
            let bound = lower_bound(&values, delta);
            Certified { holds: bound >= floor, lower_bound: bound, mean: mean(&values) }
        }
        FloorRule::Relative { share, model } => {
            // score − share·reference lies in [−share, 1]; mapped to [0, 1].
            let map = |(query, score): (usize, f64)| {
                (score - share * queries.actual(query, model) + share) / (1.0 + share)
            };
            let values: Vec<f64> = scores().enumerate().map(map).collect();
            let back = |value: f64| value * (1.0 + share) - share;
            let bound = back(lower_bound(&values, delta));
            Certified { holds: bound >= 0.0, lower_bound: bound, mean: back(mean(&values)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_binomial_bound_is_the_tabulated_one() {
        // One-sided 95 % Clopper-Pearson: scipy.stats.beta.ppf(0.05, k, n - k + 1), SciPy 1.x.
        for (ones, count, want) in
            [(10, 10, 0.741_134_4), (8, 10, 0.493_098_5), (560, 1000, 0.533_574_1), (1, 100, 0.000_512_8)]
        {
            assert!(
                (binomial_lower_bound(ones, count, 0.05) - want).abs() < 2e-6,
                "{ones}/{count}: {}",
                binomial_lower_bound(ones, count, 0.05)
            );
        }
        assert_eq!(lower_bound(&[0.0; 5], 0.05), 0.0);
        assert_eq!(lower_bound(&[], 0.05), 0.0);
    }

    #[test]
    fn bounds_cover_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (draw, truth) in [(None, 0.6), (Some(()), 0.5)] {
            let misses = (0..400)
                .filter(|_| {
                    let values: Vec<f64> = (0..200)
                        .map(|_| match draw {
                            None => f64::from(u8::from(rng.random::<f64>() < truth)),
                            Some(()) => rng.random::<f64>(),
                        })
                        .collect();
                    lower_bound(&values, 0.05) > truth
                })
                .count();
            assert!(misses <= 32, "{misses} of 400, expected at most 20 ± 3 standard errors");
        }
    }

    #[test]
    fn betting_is_close_to_the_normal_bound() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let values: Vec<f64> = (0..2000).map(|_| 0.4 + 0.2 * rng.random::<f64>()).collect();
        let mean = values.iter().sum::<f64>() / 2000.0;
        let bound = lower_bound(&values, 0.05);
        // 1.645 standard errors are 0.0021.
        assert!(bound < mean && bound > mean - 0.006, "{bound} {mean}");
    }
}
