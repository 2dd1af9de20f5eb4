//! The few matrix operations a Gaussian process needs, on `faer`, always on one thread so that a sum has one order.
#![expect(
    clippy::inline_always,
    reason = "vector code is made where these are inlined into a dispatched closure"
)]

use std::hint::black_box;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, Par, Spec};

/// Lanes of a sum: the order of additions is fixed and a compiler can use vector registers.
const LANES: usize = 8;

/// The lower factor L of `matrix` = L Lᵀ, whose lower triangle is read; the strict upper triangle is garbage.
/// `None` if a pivot is not positive.
fn factor(mut matrix: Mat<f64>) -> Option<Mat<f64>> {
    let scratch = cholesky_in_place_scratch::<f64>(matrix.nrows(), Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    cholesky_in_place(
        matrix.as_mut(),
        LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    let finite = (0..matrix.nrows()).all(|at| matrix[(at, at)].is_finite());
    finite.then_some(matrix)
}

/// The inverse of a lower triangular matrix; zero above the diagonal.
fn inverse_of_lower(lower: &Mat<f64>) -> Mat<f64> {
    let mut inverse = Mat::zeros(lower.nrows(), lower.nrows());
    invert_lower_triangular(inverse.as_mut(), lower.as_ref(), Par::Seq);
    leave_vectors();
    inverse
}

/// A symmetric positive definite matrix K = L Lᵀ, kept as L⁻¹: products with it are fast and variances stay positive.
#[derive(Debug, Clone)]
pub struct InverseFactor {
    inverse: Mat<f64>,
    ln_determinant: f64,
}

impl InverseFactor {
    /// Factors `matrix` (its lower triangle), adding to the diagonal `10⁻¹⁰`, `10⁻⁹`, … times its mean until that works.
    ///
    /// Returns the factor and what was added. `None` if entries are not finite.
    pub fn new(matrix: &Mat<f64>) -> Option<(Self, f64)> {
        let n = matrix.nrows();
        let mean = (0..n).map(|at| matrix[(at, at)]).sum::<f64>() / n.max(1) as f64;
        let jitters = std::iter::once(0.0).chain((-10..=0).map(|power| mean * 10_f64.powi(power)));
        jitters.into_iter().find_map(|jitter| {
            let mut attempt = matrix.clone();
            (0..n).for_each(|at| attempt[(at, at)] += jitter);
            let lower = factor(attempt)?;
            let ln_determinant = 2.0 * (0..n).map(|at| lower[(at, at)].ln()).sum::<f64>();
            Some((Self { inverse: inverse_of_lower(&lower), ln_determinant }, jitter))
        })
    }

    /// ln |K|.
    pub fn ln_determinant(&self) -> f64 {
        self.ln_determinant
    }

    /// L⁻¹ b.
    pub fn half_solve(&self, b: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; b.len()];
        pulp::Arch::new().dispatch(|| {
            for (column, value) in b.iter().enumerate() {
                add_scaled(&mut out[column..], *value, &self.inverse.col_as_slice(column)[column..]);
            }
        });
        out
    }

    /// L⁻ᵀ b.
    pub fn half_solve_transposed(&self, b: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; b.len()];
        pulp::Arch::new().dispatch(|| {
            for (column, out) in out.iter_mut().enumerate() {
                *out = dot(&self.inverse.col_as_slice(column)[column..], &b[column..]);
            }
        });
        out
    }

    /// K⁻¹ b.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        self.half_solve_transposed(&self.half_solve(b))
    }

    /// L⁻¹ B for a matrix B with many columns.
    pub fn half_solve_many(&self, b: &Mat<f64>) -> Mat<f64> {
        let mut out = Mat::zeros(b.nrows(), b.ncols());
        triangular::matmul(
            out.as_mut(),
            BlockStructure::Rectangular,
            Accum::Replace,
            self.inverse.as_ref(),
            BlockStructure::TriangularLower,
            b.as_ref(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        leave_vectors();
        out
    }

    /// The lower triangle of K⁻¹ = L⁻ᵀ L⁻¹.
    pub fn lower_of_inverse(&self) -> Mat<f64> {
        let n = self.inverse.nrows();
        let mut out = Mat::zeros(n, n);
        triangular::matmul(
            out.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            self.inverse.transpose(),
            BlockStructure::TriangularUpper,
            self.inverse.as_ref(),
            BlockStructure::TriangularLower,
            1.0,
            Par::Seq,
        );
        leave_vectors();
        out
    }

    /// The factor of K with one row more: `off` its covariances with the rows before, `diagonal` its own. O(n²).
    ///
    /// The new pivot is kept above 10⁻¹⁰ of the diagonal, as escalating jitter would.
    #[must_use]
    pub fn with_row(&self, off: &[f64], diagonal: f64) -> Self {
        let n = self.inverse.nrows();
        let half = self.half_solve(off);
        let pivot = (diagonal - dot(&half, &half)).max(1e-10 * diagonal).sqrt();
        let below = self.half_solve_transposed(&half);
        let inverse = Mat::from_fn(n + 1, n + 1, |row, column| match (row == n, column == n) {
            (false, false) => self.inverse[(row, column)],
            (true, false) => -below[column] / pivot,
            (true, true) => 1.0 / pivot,
            (false, true) => 0.0,
        });
        Self { inverse, ln_determinant: self.ln_determinant + 2.0 * pivot.ln() }
    }
}

/// The lower Cholesky factor of a covariance that may be singular, zero above the diagonal: pivots below `10⁻¹²` of the largest
/// diagonal count as zero.
pub fn semidefinite_factor(matrix: &Mat<f64>) -> Mat<f64> {
    let n = matrix.nrows();
    let floor = 1e-12 * (0..n).map(|at| matrix[(at, at)]).fold(f64::MIN_POSITIVE, f64::max);
    let mut lower = Mat::<f64>::zeros(n, n);
    for column in 0..n {
        let pivot = matrix[(column, column)] - (0..column).map(|k| lower[(column, k)].powi(2)).sum::<f64>();
        if pivot <= floor {
            continue;
        }
        let root = pivot.sqrt();
        lower[(column, column)] = root;
        for row in column + 1..n {
            let inner: f64 = (0..column).map(|k| lower[(row, k)] * lower[(column, k)]).sum();
            lower[(row, column)] = (matrix[(row, column)] - inner) / root;
        }
    }
    lower
}

/// To be called after `faer`, whose products end with the upper halves of the vector registers in use: on Intel's processors every
/// scalar instruction then waits for them, and a step of the search took up to ten times as long. What is compiled for vectors here
/// leaves them free.
pub(crate) fn leave_vectors() {
    let (mut sums, ones) = ([0.0; 64], [1.0; 64]);
    let (sums, ones) = (black_box(&mut sums[..]), black_box(&ones[..]));
    pulp::Arch::new().dispatch(|| add_scaled(sums, black_box(1.0), ones));
    black_box(sums);
}

/// Σ aᵢ bᵢ.
#[inline(always)]
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Σ wᵢ (xᵢ − centre)².
#[inline(always)]
pub fn weighted_squares(weights: &[f64], x: &[f64], centre: f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (w_chunks, x_chunks) = (weights.chunks_exact(LANES), x.chunks_exact(LANES));
    let rest: f64 = (w_chunks.remainder().iter().zip(x_chunks.remainder()))
        .map(|(w, x)| w * (x - centre) * (x - centre))
        .sum();
    for (w, x) in w_chunks.zip(x_chunks) {
        for lane in 0..LANES {
            let gap = x[lane] - centre;
            lanes[lane] += w[lane] * gap * gap;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// out += scale · a.
#[inline(always)]
pub fn add_scaled(out: &mut [f64], scale: f64, a: &[f64]) {
    for (out, a) in out.iter_mut().zip(a) {
        *out += scale * a;
    }
}
