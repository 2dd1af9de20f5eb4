//! Gaussian-process regression of one standardised output.
//!
//! ```text
//! posterior mean      μ(x) = c + kᵀ K⁻¹ (y − c),        c = 1ᵀK⁻¹y / 1ᵀK⁻¹1
//! posterior variance  v(x) = k(x, x) − |L⁻¹ k|²,        K = k(X, X) + noise = L Lᵀ
//! ```
//! Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 2.1 and section 2.7 (the constant mean with
//! a flat prior, its uncertainty left out as `BoTorch` does).
//!
//! One process can hold several vectors of targets on the same inputs (*scenarios*): variances are shared, means are not.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::kernel::{Kernel, Row};
use crate::linalg::{InverseFactor, dot, leave_vectors, semidefinite_factor};

/// Smallest variance added to a point whose value is taken as exact, relative to the variance of the process.
pub const EXACT: f64 = 1e-8;

/// A Gaussian process conditioned on observations.
#[derive(Debug, Clone)]
pub struct Gp {
    kernel: Kernel,
    points: Mat<f64>,
    noise: Vec<f64>,
    factor: InverseFactor,
    mean: f64,
    targets: Vec<Vec<f64>>,
    /// K⁻¹ (y − c), per scenario.
    weights: Vec<Vec<f64>>,
}

/// Room for one evaluation, kept between evaluations.
#[derive(Debug, Default)]
pub struct Scratch {
    row: Row,
    half: Vec<f64>,
}

impl Gp {
    /// Conditions `kernel` on `targets` observed at the rows of `points` with the given noise variances.
    ///
    /// `None` if a number is not finite.
    pub fn new(kernel: Kernel, points: Mat<f64>, targets: Vec<f64>, noise: Vec<f64>) -> Option<Self> {
        let factor = factor(&kernel, &points, &noise)?;
        let mean = generalised_mean(&factor, &targets);
        Some(Self::with_targets(kernel, points, noise, factor, mean, vec![targets]))
    }

    fn with_targets(
        kernel: Kernel,
        points: Mat<f64>,
        noise: Vec<f64>,
        factor: InverseFactor,
        mean: f64,
        targets: Vec<Vec<f64>>,
    ) -> Self {
        let weigh = |targets: &Vec<f64>| {
            factor.solve(&targets.iter().map(|target| target - mean).collect::<Vec<_>>())
        };
        let weights = targets.iter().map(weigh).collect();
        Self { kernel, points, noise, factor, mean, targets, weights }
    }

    /// The covariance function.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Mean and variance of the function (without noise) at `x`, in the first scenario.
    pub fn predict(&self, x: &[f64]) -> (f64, f64) {
        let mut means = [0.0];
        let variance = self.evaluate(x, &mut means, &mut Scratch::default());
        (means[0], variance)
    }

    /// Means at `x`, one per scenario (as many as `means` has room for), and the variance, which is above zero.
    pub fn evaluate(&self, x: &[f64], means: &mut [f64], scratch: &mut Scratch) -> f64 {
        self.kernel.row(x, &self.points, &mut scratch.row);
        let covariances = &scratch.row.values;
        scratch.half = self.factor.half_solve(covariances);
        for (mean, weights) in means.iter_mut().zip(&self.weights) {
            *mean = self.mean + dot(covariances, weights);
        }
        self.clip(self.kernel.variance() - dot(&scratch.half, &scratch.half))
    }

    /// Adds to `gradient` the sum over scenarios of `by_mean` ∂μ/∂x, and `by_variance` ∂v/∂x, at the `x` just evaluated with
    /// `scratch`.
    pub fn add_gradient(
        &self,
        x: &[f64],
        scratch: &Scratch,
        by_mean: &[f64],
        by_variance: f64,
        gradient: &mut [f64],
    ) {
        let mut pull = self.factor.half_solve_transposed(&scratch.half);
        for pull in &mut pull {
            *pull *= -2.0 * by_variance;
        }
        for (weights, by_mean) in self.weights.iter().zip(by_mean) {
            crate::linalg::add_scaled(&mut pull, *by_mean, weights);
        }
        self.kernel.add_gradient(x, &self.points, &scratch.row, &pull, gradient);
    }

    /// Means (scenario × row) and variances of the function at the rows of `queries`.
    pub fn evaluate_many(&self, queries: &Mat<f64>) -> (Mat<f64>, Vec<f64>) {
        let cross = self.cross(queries);
        let half = self.factor.half_solve_many(&cross);
        let squares = |column| dot(half.col_as_slice(column), half.col_as_slice(column));
        let variances =
            (0..queries.nrows()).map(|column| self.clip(self.kernel.variance() - squares(column))).collect();
        (self.means(&cross), variances)
    }

    /// Means (scenario × row) and covariance of the function at the rows of `queries`.
    pub fn joint(&self, queries: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
        let cross = self.cross(queries);
        let half = self.factor.half_solve_many(&cross);
        let prior = covariance(&self.kernel, queries);
        let count = queries.nrows();
        let reduced = |i: usize, j: usize| prior[(i, j)] - dot(half.col_as_slice(i), half.col_as_slice(j));
        let lower = Mat::from_fn(count, count, |i, j| if i >= j { reduced(i, j) } else { 0.0 });
        (self.means(&cross), Mat::from_fn(count, count, |i, j| lower[(i.max(j), i.min(j))]))
    }

    fn means(&self, cross: &Mat<f64>) -> Mat<f64> {
        let weights = Mat::from_fn(self.weights.len(), cross.nrows(), |s, i| self.weights[s][i]);
        let mut means = Mat::from_fn(self.weights.len(), cross.ncols(), |_, _| self.mean);
        matmul(means.as_mut(), Accum::Add, weights.as_ref(), cross.as_ref(), 1.0, Par::Seq);
        leave_vectors();
        means
    }

    /// Covariances of the points with `queries`, one column each.
    fn cross(&self, queries: &Mat<f64>) -> Mat<f64> {
        let mut cross = Mat::zeros(self.points.nrows(), queries.nrows());
        let mut row = Row::default();
        for at in 0..queries.nrows() {
            let x: Vec<f64> = (0..queries.ncols()).map(|coordinate| queries[(at, coordinate)]).collect();
            self.kernel.row(&x, &self.points, &mut row);
            cross.col_as_slice_mut(at).copy_from_slice(&row.values);
        }
        cross
    }

    fn clip(&self, variance: f64) -> f64 {
        variance.max(1e-12 * self.kernel.variance())
    }

    /// The process given its own values at some places, one scenario per row of `normals`.
    ///
    /// The places are the training points `resampled` (whose noisy observations are replaced: given the value of the function they
    /// carry no more information) and the rows of `added`. Values are drawn jointly from the posterior; `normals` has a standard
    /// normal per place. Returns the process and the values (scenario × place).
    pub fn given_samples(
        &self,
        resampled: &[usize],
        added: &Mat<f64>,
        normals: &[Vec<f64>],
    ) -> Option<(Self, Mat<f64>)> {
        let dimensions = self.points.ncols();
        let places = Mat::from_fn(resampled.len() + added.nrows(), dimensions, |i, j| {
            if i < resampled.len() { self.points[(resampled[i], j)] } else { added[(i - resampled.len(), j)] }
        });
        let (means, covariance) = self.joint(&places);
        let root = semidefinite_factor(&covariance);
        let values = Mat::from_fn(normals.len(), places.nrows(), |s, place| {
            let spread: f64 = (0..=place).map(|k| root[(place, k)] * normals[s][k]).sum();
            means[(0, place)] + spread
        });
        let exact = EXACT * self.kernel.variance();
        let n = self.points.nrows();
        let points = Mat::from_fn(n + added.nrows(), dimensions, |i, j| {
            if i < n { self.points[(i, j)] } else { added[(i - n, j)] }
        });
        let mut noise = self.noise.clone();
        for at in resampled {
            noise[*at] = exact;
        }
        noise.resize(n + added.nrows(), exact);
        let targets = (0..normals.len())
            .map(|s| {
                let mut targets = self.targets[0].clone();
                resampled.iter().enumerate().for_each(|(place, at)| targets[*at] = values[(s, place)]);
                targets.extend((0..added.nrows()).map(|row| values[(s, resampled.len() + row)]));
                targets
            })
            .collect();
        let factor = if resampled.is_empty() {
            self.factor_with(added, exact)
        } else {
            factor(&self.kernel, &points, &noise)?
        };
        let gp = Self::with_targets(self.kernel.clone(), points, noise, factor, self.mean, targets);
        Some((gp, values))
    }

    /// The process with one more observation and the same parameters. O(n²).
    #[must_use]
    pub fn with_observation(&self, x: &[f64], target: f64, noise: f64) -> Self {
        let added = Mat::from_fn(1, x.len(), |_, j| x[j]);
        let factor = self.factor_with(&added, noise);
        let n = self.points.nrows();
        let points = Mat::from_fn(n + 1, x.len(), |i, j| if i < n { self.points[(i, j)] } else { x[j] });
        let targets: Vec<f64> = self.targets[0].iter().copied().chain([target]).collect();
        let noise = self.noise.iter().copied().chain([noise]).collect();
        let mean = generalised_mean(&factor, &targets);
        Self::with_targets(self.kernel.clone(), points, noise, factor, mean, vec![targets])
    }

    fn factor_with(&self, added: &Mat<f64>, noise: f64) -> InverseFactor {
        let cross = self.cross(added);
        let among = covariance(&self.kernel, added);
        (0..added.nrows()).fold(self.factor.clone(), |factor, row| {
            let before = (0..row).map(|earlier| among[(row, earlier)]);
            let off: Vec<f64> = cross.col_as_slice(row).iter().copied().chain(before).collect();
            factor.with_row(&off, self.kernel.variance() + noise)
        })
    }
}

/// The mean that generalised least squares gives a constant.
pub(crate) fn generalised_mean(factor: &InverseFactor, targets: &[f64]) -> f64 {
    let ones = factor.half_solve(&vec![1.0; targets.len()]);
    let half = factor.half_solve(targets);
    let weight = dot(&ones, &ones);
    if weight > 0.0 { dot(&ones, &half) / weight } else { 0.0 }
}

/// The lower triangle of the covariance among the rows of `points`, without noise.
pub(crate) fn covariance(kernel: &Kernel, points: &Mat<f64>) -> Mat<f64> {
    let n = points.nrows();
    let mut matrix = Mat::zeros(n, n);
    let mut row = Row::default();
    pulp::Arch::new().dispatch(|| {
        for at in 0..n {
            kernel.row_below(at, points, &mut row);
            let column = &mut matrix.col_as_slice_mut(at)[at..];
            column[0] = kernel.variance();
            column[1..].copy_from_slice(&row.values);
        }
    });
    matrix
}

fn factor(kernel: &Kernel, points: &Mat<f64>, noise: &[f64]) -> Option<InverseFactor> {
    let mut matrix = covariance(kernel, points);
    noise.iter().enumerate().for_each(|(at, noise)| matrix[(at, at)] += noise);
    Some(InverseFactor::new(&matrix)?.0)
}
