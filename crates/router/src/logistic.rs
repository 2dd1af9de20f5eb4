//! Regularised logistic regression on sparse rows, by dual coordinate descent.
//!
//! Minimises `½‖w‖² + Σ_i c_i · ln(1 + exp(−y_i w·x_i))` through its dual, one coordinate at a time, each by a safeguarded
//! Newton step. Source: Yu, Huang, Lin, "Dual coordinate descent methods for logistic regression and maximum entropy
//! models", Machine Learning 85, 2011, algorithm 5. A fractional target s counts as a positive row of weight s and a
//! negative one of weight 1 − s.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Sweeps over all rows.
const SWEEPS: usize = 25;
const NEWTON_STEPS: usize = 20;

/// A row: (column, value).
pub(crate) type Row = Vec<(u32, f32)>;

/// The weights for `columns` columns, fitted to rows with targets in [0, 1]; `cost` is C.
pub(crate) fn fit(
    rows: &[&Row],
    targets: &[f32],
    columns: usize,
    cost: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<f32> {
    let mut weights = vec![0.0_f64; columns];
    let mut duals: Vec<Dual> = Vec::new();
    for (row, target) in targets.iter().enumerate() {
        for (sign, share) in [(1.0, f64::from(*target)), (-1.0, 1.0 - f64::from(*target))] {
            if share > 0.0 {
                duals.push(Dual { row, sign, bound: cost * share, value: 0.001 * cost * share });
            }
        }
    }
    let norms: Vec<f64> = rows.iter().map(|row| row.iter().map(|(_, x)| f64::from(x * x)).sum()).collect();
    for dual in &duals {
        add(&mut weights, rows[dual.row], dual.sign * dual.value);
    }
    for _ in 0..SWEEPS {
        duals.shuffle(rng);
        for dual in &mut duals {
            let row = rows[dual.row];
            let score: f64 = row.iter().map(|&(column, x)| weights[column as usize] * f64::from(x)).sum();
            let before = dual.value;
            dual.improve(norms[dual.row], dual.sign * score);
            add(&mut weights, row, dual.sign * (dual.value - before));
        }
    }
    weights.into_iter().map(|weight| weight as f32).collect()
}

fn add(weights: &mut [f64], row: &Row, factor: f64) {
    if factor != 0.0 {
        for &(column, x) in row {
            weights[column as usize] += factor * f64::from(x);
        }
    }
}

/// One dual variable, strictly inside (0, bound).
struct Dual {
    row: usize,
    sign: f64,
    bound: f64,
    value: f64,
}

impl Dual {
    /// Minimises `½a(z − α)² + b(z − α) + z ln z + (c − z) ln(c − z)` over z, with a = ‖x‖² and b = y w·x, in whichever of
    /// z and c − z is the smaller at the minimum, since Newton's method is safe there.
    fn improve(&mut self, a: f64, b: f64) {
        let c = self.bound;
        let mirrored = 0.5 * a * (c - 2.0 * self.value) + b < 0.0;
        let (old, b) = if mirrored { (c - self.value, -b) } else { (self.value, b) };
        let mut z = if c - old < 0.5 * c { 0.1 * old } else { old };
        for _ in 0..NEWTON_STEPS {
            let slope = a * (z - old) + b + (z / (c - z)).ln();
            if slope.abs() < 1e-8 {
                break;
            }
            let next = z - slope / (a + c / (z * (c - z)));
            z = if next <= 0.0 { 0.1 * z } else { next.min(c * (1.0 - 1e-12)) };
        }
        self.value = if mirrored { c - z } else { z };
    }
}

/// `1 / (1 + e^(−x))`.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Platt's calibration: (a, b) such that `sigmoid(a·score + b)` is the target's probability, by Newton's method on the
/// cross-entropy with a weak pull of a to 1 and of b to 0.
pub(crate) fn platt(scores: &[f64], targets: &[f32]) -> (f64, f64) {
    const PULL: f64 = 1e-3;
    let (mut a, mut b) = (1.0, 0.0);
    for _ in 0..50 {
        let (mut ga, mut gb) = (PULL * (a - 1.0), PULL * b);
        let (mut haa, mut hab, mut hbb) = (PULL, 0.0, PULL);
        for (score, target) in scores.iter().zip(targets) {
            let p = sigmoid(a * score + b);
            let (residual, spread) = (p - f64::from(*target), p * (1.0 - p));
            ga += residual * score;
            gb += residual;
            haa += spread * score * score;
            hab += spread * score;
            hbb += spread;
        }
        let determinant = haa * hbb - hab * hab;
        let (da, db) = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        a -= da;
        b -= db;
        if da.abs() + db.abs() < 1e-10 {
            break;
        }
    }
    // A scorer that ranks the wrong way round is worth nothing: fall back to the mean.
    if a > 0.0 && a.is_finite() && b.is_finite() { (a, b) } else { (0.0, logit_of_mean(targets)) }
}

/// The log odds of the mean of `targets`, kept finite by half a target of ½ either way.
pub(crate) fn logit_of_mean(targets: &[f32]) -> f64 {
    let sum: f64 = targets.iter().map(|target| f64::from(*target)).sum();
    let mean = (sum + 0.5) / (targets.len() as f64 + 1.0);
    (mean / (1.0 - mean)).ln()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    #[test]
    fn the_optimum_has_no_gradient() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let rows: Vec<Row> = (0..200)
            .map(|_| (0..5).map(|column| (column, (rng.next_u32() % 1000) as f32 / 500.0 - 1.0)).collect())
            .collect();
        let targets: Vec<f32> =
            rows.iter().map(|row| if row[0].1 + row[1].1 > 0.3 { 0.9 } else { 0.2 }).collect();
        let weights = fit(&rows.iter().collect::<Vec<_>>(), &targets, 5, 0.7, &mut rng);
        for column in 0..5 {
            let pull: f64 = rows
                .iter()
                .zip(&targets)
                .map(|(row, target)| {
                    let score: f64 = row.iter().map(|&(at, x)| f64::from(weights[at as usize] * x)).sum();
                    0.7 * (sigmoid(score) - f64::from(*target)) * f64::from(row[column].1)
                })
                .sum();
            assert!((f64::from(weights[column]) + pull).abs() < 1e-3, "{column}");
        }
    }

    #[test]
    fn platt_finds_the_scale() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let scores: Vec<f64> = (0..5000).map(|at| f64::from(at) / 1000.0 - 2.5).collect();
        let targets: Vec<f32> = scores
            .iter()
            .map(|score| if rng.random::<f64>() < sigmoid(2.0 * score - 0.5) { 1.0 } else { 0.0 })
            .collect();
        let (a, b) = platt(&scores, &targets);
        assert!((a - 2.0).abs() < 0.2 && (b + 0.5).abs() < 0.2, "{a} {b}");
    }
}
