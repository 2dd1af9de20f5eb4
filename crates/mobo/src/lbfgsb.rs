//! Minimises a smooth function in a box: L-BFGS-B (Byrd, Lu, Nocedal, Zhu, "A limited memory algorithm for bound constrained
//! optimization", SIAM J. Sci. Comput. 16, 1995).
//!
//! The generalised Cauchy point and the subspace step are the paper's. The limited-memory matrix is written out densely, because
//! here a function value costs far more than the square of the dimension.

use faer::Mat;

use crate::linalg::{InverseFactor, dot};

/// Pairs of steps remembered.
const MEMORY: usize = 10;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Iterations.
    pub iterations: usize,
    /// Largest entry of the projected gradient.
    pub gradient: f64,
    /// Decrease of the value in one iteration, relative to max(|f|, 1).
    pub decrease: f64,
}

/// Minimises `f` from `start` within `[lower, upper]`; `f` writes its gradient. Values that are not finite count as too high.
///
/// Returns the best point and its value.
pub fn minimise(
    start: &[f64],
    lower: &[f64],
    upper: &[f64],
    limits: Limits,
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> (Vec<f64>, f64) {
    let bounds = Bounds { lower, upper };
    let mut x: Vec<f64> = start.iter().enumerate().map(|(i, x)| bounds.clamp(i, *x)).collect();
    let mut gradient = vec![0.0; x.len()];
    let mut value = f(&x, &mut gradient);
    let mut pairs: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
    let mut next_gradient = gradient.clone();
    for _ in 0..limits.iterations {
        if !value.is_finite() || bounds.projected_gradient(&x, &gradient) <= limits.gradient {
            break;
        }
        let direction = direction(&x, &gradient, &bounds, &pairs);
        let slope = dot(&gradient, &direction);
        if slope >= 0.0 {
            if pairs.is_empty() {
                break;
            }
            pairs.clear();
            continue;
        }
        let first =
            if pairs.is_empty() { 1.0_f64.min(1.0 / dot(&direction, &direction).sqrt()) } else { 1.0 };
        let Some((next, next_value)) =
            backtrack(&x, value, &direction, slope, first, &bounds, &mut next_gradient, &mut f)
        else {
            if pairs.is_empty() {
                break;
            }
            pairs.clear();
            continue;
        };
        let step: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        if dot(&step, &change) > 1e-10 * dot(&change, &change).max(f64::MIN_POSITIVE) {
            pairs.push((step, change));
            if pairs.len() > MEMORY {
                pairs.remove(0);
            }
        }
        let decrease = value - next_value;
        (x, value) = (next, next_value);
        gradient.copy_from_slice(&next_gradient);
        if decrease <= limits.decrease * value.abs().max(1.0) {
            break;
        }
    }
    (x, value)
}

struct Bounds<'a> {
    lower: &'a [f64],
    upper: &'a [f64],
}

impl Bounds<'_> {
    fn clamp(&self, i: usize, x: f64) -> f64 {
        x.max(self.lower[i]).min(self.upper[i])
    }

    fn projected_gradient(&self, x: &[f64], gradient: &[f64]) -> f64 {
        (0..x.len()).map(|i| (self.clamp(i, x[i] - gradient[i]) - x[i]).abs()).fold(0.0, f64::max)
    }
}

/// The matrix of the quadratic model: BFGS updates of θI with the remembered pairs.
fn model(pairs: &[(Vec<f64>, Vec<f64>)], n: usize) -> Mat<f64> {
    let theta = pairs.last().map_or(1.0, |(s, y)| dot(y, y) / dot(s, y));
    let mut b = Mat::from_fn(n, n, |i, j| if i == j { theta } else { 0.0 });
    for (s, y) in pairs {
        let bs: Vec<f64> = (0..n).map(|i| dot(b.col_as_slice(i), s)).collect();
        let (sbs, sy) = (dot(s, &bs), dot(s, y));
        for j in 0..n {
            for i in 0..n {
                b[(i, j)] += y[i] * y[j] / sy - bs[i] * bs[j] / sbs;
            }
        }
    }
    b
}

/// From `x` to the minimiser of the quadratic model over the box: Cauchy point, then a step in the free variables.
fn direction(x: &[f64], gradient: &[f64], bounds: &Bounds, pairs: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
    let n = x.len();
    let b = model(pairs, n);
    let times = |v: &[f64]| -> Vec<f64> { (0..n).map(|i| dot(b.col_as_slice(i), v)).collect() };
    let (mut z, fixed) = cauchy_point(x, gradient, bounds, times);
    let free: Vec<usize> = (0..n).filter(|i| !fixed[*i]).collect();
    let bz = times(&z);
    let residual: Vec<f64> = free.iter().map(|i| -(gradient[*i] + bz[*i])).collect();
    let reduced = Mat::from_fn(free.len(), free.len(), |i, j| b[(free[i], free[j])]);
    let Some((factor, _)) = InverseFactor::new(&reduced) else { return z };
    let step = factor.solve(&residual);
    let mut share = 1.0_f64;
    for (i, step) in free.iter().zip(&step) {
        let at = x[*i] + z[*i];
        let room = if *step > 0.0 { bounds.upper[*i] - at } else { bounds.lower[*i] - at };
        if *step != 0.0 {
            share = share.min((room / step).max(0.0));
        }
    }
    for (i, step) in free.iter().zip(&step) {
        z[*i] += share * step;
    }
    z
}

/// The first local minimiser of the model along the projected gradient (relative to `x`), and which variables are at a bound there.
fn cauchy_point(
    x: &[f64],
    gradient: &[f64],
    bounds: &Bounds,
    times: impl Fn(&[f64]) -> Vec<f64>,
) -> (Vec<f64>, Vec<bool>) {
    let n = x.len();
    let breakpoint = |i: usize| match gradient[i] {
        g if g < 0.0 => (x[i] - bounds.upper[i]) / g,
        g if g > 0.0 => (x[i] - bounds.lower[i]) / g,
        _ => f64::INFINITY,
    };
    let breakpoints: Vec<f64> = (0..n).map(breakpoint).collect();
    let mut order: Vec<usize> = (0..n).filter(|i| breakpoints[*i] > 0.0).collect();
    order.sort_by(|a, b| breakpoints[*a].total_cmp(&breakpoints[*b]));
    let mut fixed: Vec<bool> = breakpoints.iter().map(|t| *t <= 0.0).collect();
    let mut d: Vec<f64> = (0..n).map(|i| if fixed[i] { 0.0 } else { -gradient[i] }).collect();
    let mut z = vec![0.0; n];
    let mut before = 0.0;
    for next in order.iter().map(Some).chain([None]) {
        let (bd, bz) = (times(&d), times(&z));
        let slope = dot(gradient, &d) + dot(&d, &bz);
        let curvature = dot(&d, &bd);
        if slope >= 0.0 || curvature <= 0.0 {
            break;
        }
        let best = -slope / curvature;
        let room = next.map_or(f64::INFINITY, |i| breakpoints[*i] - before);
        let length = best.min(room);
        z.iter_mut().zip(&d).for_each(|(z, d)| *z += length * d);
        let Some(&i) = next.filter(|_| room <= best) else { break };
        z[i] = if gradient[i] < 0.0 { bounds.upper[i] - x[i] } else { bounds.lower[i] - x[i] };
        d[i] = 0.0;
        fixed[i] = true;
        before = breakpoints[i];
    }
    (z, fixed)
}

/// A step along `direction` with sufficient decrease, shortened by quadratic interpolation; `None` if there is none.
#[expect(clippy::too_many_arguments, reason = "the state of one iteration, used once")]
fn backtrack(
    x: &[f64],
    value: f64,
    direction: &[f64],
    slope: f64,
    first: f64,
    bounds: &Bounds,
    next_gradient: &mut [f64],
    f: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Option<(Vec<f64>, f64)> {
    let mut length = first;
    for _ in 0..25 {
        let next: Vec<f64> = (0..x.len()).map(|i| bounds.clamp(i, x[i] + length * direction[i])).collect();
        let next_value = f(&next, next_gradient);
        if next_value.is_finite() && next_value <= value + 1e-4 * length * slope {
            return Some((next, next_value));
        }
        let curved = -slope * length / (2.0 * ((next_value - value) / length - slope));
        length = if curved.is_finite() { curved.clamp(0.1 * length, 0.5 * length) } else { 0.1 * length };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { iterations: 500, gradient: 1e-9, decrease: 0.0 };

    fn rosenbrock(x: &[f64], gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        (0..x.len() - 1)
            .map(|i| {
                let (a, b) = (1.0 - x[i], x[i + 1] - x[i] * x[i]);
                gradient[i] += -2.0 * a - 400.0 * x[i] * b;
                gradient[i + 1] += 200.0 * b;
                a * a + 100.0 * b * b
            })
            .sum()
    }

    #[test]
    fn the_valley_of_rosenbrock_is_walked_to_its_end() {
        let (x, value) = minimise(&[-1.2; 6], &[-5.0; 6], &[5.0; 6], LIMITS, rosenbrock);
        assert!(value < 1e-12, "{value} at {x:?}");
    }

    #[test]
    fn a_bound_that_binds_is_met_exactly() {
        let (x, _) = minimise(&[0.1, 0.1], &[0.0, 0.0], &[0.5, 5.0], LIMITS, rosenbrock);
        assert_eq!(x[0], 0.5);
        assert!((x[1] - 0.25).abs() < 1e-8, "{x:?}");
    }

    #[test]
    fn a_function_that_is_not_finite_ends_the_search() {
        let (x, _) = minimise(&[0.3], &[0.0], &[1.0], LIMITS, |_, _| f64::NAN);
        assert_eq!(x, [0.3]);
    }
}
