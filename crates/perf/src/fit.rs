//! Robust least squares in a box: what turns measurements into constants.

/// Steps of the outer iteration, at most.
const MOST_STEPS: usize = 60;
/// Relative step of the numerical derivative.
const NUDGE: f64 = 1e-4;

/// Where to search: a start, and bounds for every parameter.
#[derive(Debug, Clone)]
pub struct Search {
    /// Where to begin.
    pub start: Vec<f64>,
    /// Least values.
    pub lower: Vec<f64>,
    /// Greatest values.
    pub upper: Vec<f64>,
    /// The block of residuals that a parameter acts on; none if on all. Parameters of different blocks are nudged
    /// together (Curtis, Powell, Reid, IMA J. 13, 1974).
    pub blocks: Vec<Option<usize>>,
}

impl Search {
    /// A search in which every parameter acts on all residuals.
    pub fn new(start: Vec<f64>, lower: Vec<f64>, upper: Vec<f64>) -> Self {
        let blocks = vec![None; start.len()];
        Self { start, lower, upper, blocks }
    }

    /// Sets of parameters that can be nudged together: no residual sees two of them.
    fn together(&self) -> Vec<Vec<usize>> {
        let mut sets: Vec<Vec<usize>> = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let apart = |set: &&mut Vec<usize>| {
                block.is_some() && set.iter().all(|&j| self.blocks[j].is_some() && self.blocks[j] != *block)
            };
            match sets.iter_mut().find(apart) {
                Some(set) => set.push(i),
                None => sets.push(vec![i]),
            }
        }
        sets
    }
}

/// One deviation, and how much it counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Residual {
    /// Prediction less measurement.
    pub value: f64,
    /// Weight.
    pub weight: f64,
    /// Which block of residuals it is in.
    pub block: usize,
}

/// The parameters that minimise `Σ wᵢ ρ(rᵢ)` with the soft-L1 loss `ρ(r) = 2s²(√(1 + (r/s)²) − 1)`, by
/// Levenberg–Marquardt with reweighting and projection onto the box. Deterministic.
///
/// `residuals` appends its residuals, always as many and of the same weights, for the given parameters.
///
/// Sources: Marquardt, SIAM J. 11(2), 1963; Triggs et al., "Bundle Adjustment", 2000 (reweighting).
pub fn least_squares(
    search: &Search,
    scale: f64,
    mut residuals: impl FnMut(&[f64], &mut Vec<Residual>),
) -> Vec<f64> {
    let n = search.start.len();
    let width: Vec<f64> = (0..n).map(|i| search.upper[i] - search.lower[i]).collect();
    let mut at = search.start.clone();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    residuals(&at, &mut here);
    let mut cost = loss(&here, scale);
    let mut damping = 1e-3;
    let mut jacobian: Vec<Vec<f64>> = vec![Vec::new(); n];
    let sets = search.together();
    for _ in 0..MOST_STEPS {
        for set in &sets {
            let mut nudged = at.clone();
            for &i in set {
                let step = NUDGE * width[i];
                nudged[i] += if at[i] + step <= search.upper[i] { step } else { -step };
            }
            there.clear();
            residuals(&nudged, &mut there);
            for &i in set {
                // Per share of the box, so that parameters of all units are damped alike.
                let per_share = width[i] / (nudged[i] - at[i]);
                let seen = |r: &Residual| search.blocks[i].is_none_or(|block| block == r.block);
                jacobian[i].clear();
                jacobian[i].extend(there.iter().zip(&here).map(|(there, here)| {
                    if seen(here) { (there.value - here.value) * per_share } else { 0.0 }
                }));
            }
        }
        let weights: Vec<f64> =
            here.iter().map(|r| r.weight / (1.0 + (r.value / scale).powi(2)).sqrt()).collect();
        let values: Vec<f64> = here.iter().map(|r| r.value).collect();
        let dot = |x: &[f64], y: &[f64]| -> f64 {
            x.iter().zip(y).zip(&weights).map(|((x, y), w)| x * y * w).sum()
        };
        let normal: Vec<Vec<f64>> =
            (0..n).map(|i| (0..n).map(|j| dot(&jacobian[i], &jacobian[j])).collect()).collect();
        let slope: Vec<f64> = (0..n).map(|i| dot(&jacobian[i], &values)).collect();
        let mut improved = false;
        for _ in 0..12 {
            let Some(step) = damped_step(&normal, &slope, damping) else {
                damping *= 10.0;
                continue;
            };
            let next: Vec<f64> = (0..n)
                .map(|i| (at[i] - step[i] * width[i]).clamp(search.lower[i], search.upper[i]))
                .collect();
            there.clear();
            residuals(&next, &mut there);
            let next_cost = loss(&there, scale);
            if next_cost < cost {
                improved = cost - next_cost > 1e-7 * cost;
                (at, cost) = (next, next_cost);
                std::mem::swap(&mut here, &mut there);
                damping = (damping * 0.3).max(1e-9);
                break;
            }
            damping *= 4.0;
        }
        if !improved {
            break;
        }
    }
    at
}

fn loss(residuals: &[Residual], scale: f64) -> f64 {
    let of = |r: &Residual| r.weight * 2.0 * scale * scale * ((1.0 + (r.value / scale).powi(2)).sqrt() - 1.0);
    residuals.iter().map(of).sum()
}

/// Solves `(N + damping·(diag N + ε)) x = g` by Cholesky; `None` if it is not positive definite.
fn damped_step(normal: &[Vec<f64>], slope: &[f64], damping: f64) -> Option<Vec<f64>> {
    let n = slope.len();
    let mut lower = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let extra = if i == j { damping * (normal[i][i] + 1e-6) + 1e-12 } else { 0.0 };
            let sum: f64 = normal[i][j] + extra - (0..j).map(|k| lower[i][k] * lower[j][k]).sum::<f64>();
            if i == j {
                if sum <= 0.0 || !sum.is_finite() {
                    return None;
                }
                lower[i][i] = sum.sqrt();
            } else {
                lower[i][j] = sum / lower[j][j];
            }
        }
    }
    let mut x = slope.to_vec();
    for i in 0..n {
        x[i] = (x[i] - (0..i).map(|k| lower[i][k] * x[k]).sum::<f64>()) / lower[i][i];
    }
    for i in (0..n).rev() {
        x[i] = (x[i] - (i + 1..n).map(|k| lower[k][i] * x[k]).sum::<f64>()) / lower[i][i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_outliers_is_found() {
        let points: Vec<(f64, f64)> = (0..50)
            .map(|x| (f64::from(x), if x % 10 == 0 { 500.0 } else { 3.0 + 2.0 * f64::from(x) }))
            .collect();
        let search = Search::new(vec![0.0, 0.0], vec![-10.0, -10.0], vec![10.0, 10.0]);
        let found = least_squares(&search, 0.1, |p, out| {
            out.extend(points.iter().map(|(x, y)| Residual {
                value: p[0] + p[1] * x - y,
                weight: 1.0,
                block: 0,
            }));
        });
        assert!((found[0] - 3.0).abs() < 0.05 && (found[1] - 2.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn blocks_are_fitted_at_once() {
        let measured = [3.0, 5.0, 9.0];
        let search = Search {
            blocks: vec![None, Some(0), Some(1), Some(2)],
            ..Search::new(vec![0.0; 4], vec![-10.0; 4], vec![10.0; 4])
        };
        assert_eq!(search.together(), [vec![0], vec![1, 2, 3]]);
        let found = least_squares(&search, 1.0, |p, out| {
            out.push(Residual { value: p[0] - 1.0, weight: 100.0, block: 3 });
            out.extend((0..3).map(|i| Residual {
                value: p[0] + p[1 + i] - measured[i],
                weight: 1.0,
                block: i,
            }));
        });
        assert!(found.iter().zip([1.0, 2.0, 4.0, 8.0]).all(|(x, want)| (x - want).abs() < 1e-3), "{found:?}");
    }

    #[test]
    fn the_box_holds() {
        let search = Search::new(vec![0.5], vec![0.0], vec![1.0]);
        let found = least_squares(&search, 1.0, |p, out| {
            out.push(Residual { value: p[0] - 7.0, weight: 1.0, block: 0 });
        });
        assert_eq!(found, [1.0]);
    }
}
