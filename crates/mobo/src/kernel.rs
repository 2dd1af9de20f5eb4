//! Covariance functions: Matérn-5/2 over groups of coordinates, in sums and products.
//!
//! ```text
//! r²  = Σ_j (x_j − x'_j)² / ℓ_j²            a categorical coordinate counts 1/ℓ_j² where it differs
//! m   = (1 + s + s²/3) e⁻ˢ,   s = √5 r      one per group (Rasmussen & Williams 2006, eq. 4.17)
//! k   = Σ_t w_t Π_{g ∈ t} m_g               the terms of a Structure; w = 1 where there is one term
//! ∂m/∂r² = −(5/6) (1 + s) e⁻ˢ
//! ```
//! Sums and products of kernels are kernels (same, section 4.2.4); `k_a + k_b + φ k_a k_b` keeps what two groups of variables do
//! alone apart from what they do together.
#![expect(
    clippy::inline_always,
    reason = "vector code is made where these are inlined into a dispatched closure"
)]

use faer::Mat;
use serde::{Deserialize, Serialize};

use crate::linalg::{add_scaled, dot, weighted_squares};

/// Which coordinates act together: groups of coordinates, and terms that multiply the kernels of some groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Coordinates of each group; every coordinate is in exactly one.
    pub groups: Vec<Vec<usize>>,
    /// Groups of each term.
    pub terms: Vec<Vec<usize>>,
}

impl Structure {
    /// One kernel over all `dimensions`.
    pub fn joint(dimensions: usize) -> Self {
        Self { groups: vec![(0..dimensions).collect()], terms: vec![vec![0]] }
    }

    /// Every group alone, and every pair of groups together: `Σ k_a + Σ φ k_a k_b`.
    pub fn additive_with_interactions(groups: Vec<Vec<usize>>) -> Self {
        let count = groups.len();
        let alone = (0..count).map(|group| vec![group]);
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| vec![a, b]));
        Self { terms: alone.chain(pairs).collect(), groups }
    }

    /// Whether every one of `dimensions` coordinates is in one group and every group in a term.
    pub(crate) fn covers(&self, dimensions: usize) -> bool {
        let mut coordinates: Vec<usize> = self.groups.iter().flatten().copied().collect();
        coordinates.sort_unstable();
        let used = |group| self.terms.iter().any(|term| term.contains(&group));
        coordinates.into_iter().eq(0..dimensions)
            && (0..self.groups.len()).all(used)
            && self.terms.iter().flatten().all(|group| *group < self.groups.len())
            && self.terms.iter().all(|term| !term.is_empty())
    }
}

/// What is fitted: one length scale per coordinate, one weight per term, the variance of the noise. Outputs are standardised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HyperParameters {
    /// ℓ, per coordinate.
    pub length_scales: Vec<f64>,
    /// w, per term; `[1]` for one term.
    pub weights: Vec<f64>,
    /// Variance of the observation noise.
    pub noise: f64,
}

/// A covariance function with its parameters.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Which coordinates act together.
    pub structure: Structure,
    /// Per coordinate, whether only equality matters.
    pub categorical: Vec<bool>,
    /// Length scales, weights, noise.
    pub hyper: HyperParameters,
}

/// Covariances of one point with many, and what their derivatives need.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// k, per point.
    pub values: Vec<f64>,
    /// m and ∂m/∂r², per group and point.
    groups: Vec<(Vec<f64>, Vec<f64>)>,
}

impl Kernel {
    /// k(x, x).
    pub fn variance(&self) -> f64 {
        self.hyper.weights.iter().sum()
    }

    /// The covariances of `x` with all rows of `points`.
    pub fn row(&self, x: &[f64], points: &Mat<f64>, row: &mut Row) {
        pulp::Arch::new().dispatch(|| self.row_of(|coordinate| x[coordinate], points, 0, row));
    }

    /// The covariances of row `at` of `points` with the rows after it: a column of the lower triangle.
    #[inline(always)]
    pub fn row_below(&self, at: usize, points: &Mat<f64>, row: &mut Row) {
        self.row_of(|coordinate| points[(at, coordinate)], points, at + 1, row);
    }

    #[inline(always)]
    fn row_of(&self, x: impl Fn(usize) -> f64, points: &Mat<f64>, from: usize, row: &mut Row) {
        let count = points.nrows() - from;
        row.groups.resize_with(self.structure.groups.len(), Default::default);
        for (group, (value, slope)) in self.structure.groups.iter().zip(&mut row.groups) {
            value.clear();
            value.resize(count, 0.0);
            slope.resize(count, 0.0);
            for &coordinate in group {
                let inverse = 1.0 / self.hyper.length_scales[coordinate];
                let others = &points.col_as_slice(coordinate)[from..];
                let own = x(coordinate);
                if self.categorical[coordinate] {
                    let apart = inverse * inverse;
                    for (sum, other) in value.iter_mut().zip(others) {
                        *sum += if *other == own { 0.0 } else { apart };
                    }
                } else {
                    for (sum, other) in value.iter_mut().zip(others) {
                        let gap = (own - other) * inverse;
                        *sum += gap * gap;
                    }
                }
            }
            matern(value, slope);
        }
        row.values.clear();
        row.values.resize(count, 0.0);
        for (term, weight) in self.structure.terms.iter().zip(&self.hyper.weights) {
            add_product(term, None, *weight, &row.groups, &mut row.values);
        }
    }

    /// ∂k/∂r² of one group, per point.
    #[inline(always)]
    fn slope(&self, group: usize, row: &Row) -> Vec<f64> {
        let (_, slope) = &row.groups[group];
        if self.structure.terms.len() == 1 && self.structure.groups.len() == 1 {
            return slope.iter().map(|slope| slope * self.hyper.weights[0]).collect();
        }
        let mut out = vec![0.0; slope.len()];
        for (term, weight) in self.structure.terms.iter().zip(&self.hyper.weights) {
            if term.contains(&group) {
                add_product(term, Some(group), *weight, &row.groups, &mut out);
            }
        }
        out.iter_mut().zip(slope).for_each(|(out, slope)| *out *= slope);
        out
    }

    /// The slope in a group's distance to each point, times the point's weight.
    #[inline]
    fn pull(&self, group: usize, row: &Row, weights: &[f64]) -> Vec<f64> {
        let mut pull = self.slope(group, row);
        pull.iter_mut().zip(weights).for_each(|(pull, weight)| *pull *= weight);
        pull
    }

    /// gradient += Σᵢ weightᵢ ∂k(x, pointᵢ)/∂x, for the points of `row`. Categorical coordinates have none.
    pub fn add_gradient(
        &self,
        x: &[f64],
        points: &Mat<f64>,
        row: &Row,
        weights: &[f64],
        gradient: &mut [f64],
    ) {
        for (group, coordinates) in self.structure.groups.iter().enumerate() {
            let pull = self.pull(group, row, weights);
            let total: f64 = pull.iter().sum();
            for &coordinate in coordinates {
                if !self.categorical[coordinate] {
                    let towards = dot(&pull, &points.col_as_slice(coordinate)[..pull.len()]);
                    let scale = 2.0 / self.hyper.length_scales[coordinate].powi(2);
                    gradient[coordinate] += scale * (x[coordinate] * total - towards);
                }
            }
        }
    }

    /// gradient += Σᵢ weightᵢ ∂k(row `at`, pointᵢ)/∂(ln ℓ, ln w) over the points after `at`; weights of terms come after length
    /// scales.
    #[inline(always)]
    pub fn add_hyper_gradient(
        &self,
        at: usize,
        points: &Mat<f64>,
        row: &Row,
        weights: &[f64],
        gradient: &mut [f64],
    ) {
        for (group, coordinates) in self.structure.groups.iter().enumerate() {
            let pull = self.pull(group, row, weights);
            for &coordinate in coordinates {
                let others = &points.col_as_slice(coordinate)[at + 1..];
                let own = points[(at, coordinate)];
                let sum = if self.categorical[coordinate] {
                    pull.iter().zip(others).map(|(pull, other)| if *other == own { 0.0 } else { *pull }).sum()
                } else {
                    weighted_squares(&pull, others, own)
                };
                gradient[coordinate] -= 2.0 * sum / self.hyper.length_scales[coordinate].powi(2);
            }
        }
        if self.structure.terms.len() > 1 {
            let first = self.hyper.length_scales.len();
            for (term, groups) in self.structure.terms.iter().enumerate() {
                let mut product = vec![0.0; weights.len()];
                add_product(groups, None, self.hyper.weights[term], &row.groups, &mut product);
                gradient[first + term] += dot(&product, weights);
            }
        }
    }
}

/// out += weight × product of the kernels of `term`'s groups, but for `without`.
#[inline(always)]
fn add_product(
    term: &[usize],
    without: Option<usize>,
    weight: f64,
    groups: &[(Vec<f64>, Vec<f64>)],
    out: &mut [f64],
) {
    let mut factors = term.iter().filter(|group| Some(**group) != without);
    match (factors.next(), factors.next(), term.len()) {
        (None, ..) => out.iter_mut().for_each(|out| *out += weight),
        (Some(&one), None, _) => add_scaled(out, weight, &groups[one].0),
        _ => {
            let kept: Vec<usize> = term.iter().copied().filter(|group| Some(*group) != without).collect();
            for (at, out) in out.iter_mut().enumerate() {
                *out += weight * kept.iter().map(|group| groups[*group].0[at]).product::<f64>();
            }
        }
    }
}

/// Turns r² into m, and writes ∂m/∂r².
#[inline(always)]
fn matern(squares: &mut [f64], slopes: &mut [f64]) {
    for (value, slope) in squares.iter_mut().zip(slopes) {
        let s = (5.0 * *value).sqrt();
        let decay = exp_of_minus(s);
        *value = (1.0 + s + s * s * (1.0 / 3.0)) * decay;
        *slope = (-5.0 / 6.0) * (1.0 + s) * decay;
    }
}

/// e⁻ˢ for s ≥ 0 within 2 units in the last place, branch-free so that a loop of it becomes vector code; 0 beyond 700.
///
/// e⁻ˢ = 2ᵏ eᶠ with |f| ≤ ln 2 / 2 and the Taylor polynomial of degree 13; k is rounded by adding 1.5 · 2⁵².
#[inline(always)]
fn exp_of_minus(s: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = -s.min(700.0);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let f = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut sum = 1.0 / 6_227_020_800.0;
    for inverse in INVERSE_FACTORIALS {
        sum = sum * f + inverse;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if s > 700.0 { 0.0 } else { sum * power }
}

/// 1/12!, 1/11!, …, 1/0!.
const INVERSE_FACTORIALS: [f64; 13] = [
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_the_librarys() {
        for step in 0..70_000 {
            let s = f64::from(step) * 0.01;
            let (got, want) = (exp_of_minus(s), (-s).exp());
            assert!((got / want - 1.0).abs() < 5e-16, "{s}: {got} {want}");
        }
        assert_eq!(exp_of_minus(1e6), 0.0);
    }
}
