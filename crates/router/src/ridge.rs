//! Regularised least squares on sparse rows, by dual coordinate descent.
//!
//! Minimises `½‖w‖² + (C/2)·Σ_i (y_i − w·x_i)²`; the step of one dual variable is exact:
//! `Δα = (y − w·x − α/C) / (‖x‖² + 1/C)`. Source: Ho, Lin, "Large-scale linear support vector regression", JMLR 13, 2012,
//! section 3.2, with ε = 0.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::logistic::Row;

const SWEEPS: usize = 15;

/// The weights for `columns` columns, fitted to `targets`; `cost` is C.
pub(crate) fn fit(
    rows: &[&Row],
    targets: &[f32],
    columns: usize,
    cost: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<f32> {
    let mut weights = vec![0.0_f64; columns];
    let mut duals = vec![0.0_f64; rows.len()];
    let norms: Vec<f64> = rows.iter().map(|row| row.iter().map(|(_, x)| f64::from(x * x)).sum()).collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    for _ in 0..SWEEPS {
        order.shuffle(rng);
        for &at in &order {
            let guess: f64 =
                rows[at].iter().map(|&(column, x)| weights[column as usize] * f64::from(x)).sum();
            let step = (f64::from(targets[at]) - guess - duals[at] / cost) / (norms[at] + 1.0 / cost);
            duals[at] += step;
            for &(column, x) in rows[at] {
                weights[column as usize] += step * f64::from(x);
            }
        }
    }
    weights.into_iter().map(|weight| weight as f32).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_line_is_found() {
        let rows: Vec<Row> = (0..50).map(|at| vec![(0, at as f32 / 50.0), (1, 1.0)]).collect();
        let targets: Vec<f32> = rows.iter().map(|row| 3.0 * row[0].1 - 1.0).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let weights = fit(&rows.iter().collect::<Vec<_>>(), &targets, 2, 100.0, &mut rng);
        assert!((weights[0] - 3.0).abs() < 0.05 && (weights[1] + 1.0).abs() < 0.05, "{weights:?}");
    }
}
