//! Fitting the parameters of a Gaussian process: the mode of the posterior, by gradients, from several starts.
//!
//! ```text
//! ln p(y | θ) = −½ (y−c)ᵀK⁻¹(y−c) − ½ ln|K| − n/2 ln 2π                            (R&W eq. 5.8)
//! ∂/∂θ        = ½ tr((ααᵀ − K⁻¹) ∂K/∂θ),  α = K⁻¹(y−c)                             (R&W eq. 5.9)
//! ℓ ~ LogNormal(√2 + ½ ln d, √3)                                                   (Hvarfner et al. 2024, section 4)
//! ```
//! The constant c is at its optimum for every θ, so that its derivative drops out. The prior of ℓ is that of Hvarfner, Hellsten and
//! Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions", ICML 2024, with the constants that `BoTorch` ≥ 0.12
//! uses; as there, the mode is that of the density over ℓ, not over ln ℓ.

use faer::Mat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::gp::{Gp, generalised_mean};
use crate::kernel::{HyperParameters, Kernel, Row, Structure};
use crate::lbfgsb::{Limits, minimise};
use crate::linalg::InverseFactor;

/// ½ ln 2π.
const HALF_LN_2PI: f64 = crate::normal::LN_SQRT_2PI;
/// Bounds of a length scale; coordinates lie in the unit cube.
const LENGTH_SCALES: (f64, f64) = (0.025, 1e3);
/// Bounds of the noise variance of a standardised output.
const NOISE: (f64, f64) = (1e-6, 1.0);
/// Mean and standard deviation of ln noise: wide, because a computation may have none and a measurement much.
const LN_NOISE: (f64, f64) = (-12.0, 3.0);
/// Bounds of the weight of a term.
const WEIGHTS: (f64, f64) = (1e-3, 1e2);
/// Observations that parameters are fitted to; of more, an even selection.
pub const MOST_FITTED: usize = 400;

/// Observations of one standardised output.
#[derive(Debug, Clone, Copy)]
pub struct Observations<'a> {
    /// One row per observation; coordinates in the unit cube.
    pub points: &'a Mat<f64>,
    /// Zero mean, unit variance.
    pub targets: &'a [f64],
    /// Known variance of each observation; NaN where it is unknown.
    pub known_noise: &'a [f64],
    /// Whether what is unknown is fitted; otherwise it is taken as none.
    pub noisy: bool,
}

impl Observations<'_> {
    /// Noise variances of all observations when the fitted variance is `fitted`.
    pub fn noise(&self, fitted: f64) -> Vec<f64> {
        self.known_noise
            .iter()
            .map(|known| if known.is_nan() { fitted } else { known.max(NOISE.0) })
            .collect()
    }

    fn fits_noise(&self) -> bool {
        self.noisy && self.known_noise.iter().any(|known| known.is_nan())
    }
}

/// The log posterior density (up to a constant) of parameters and its gradient.
pub struct Posterior<'a> {
    structure: &'a Structure,
    categorical: &'a [bool],
    observations: Observations<'a>,
    rows: Vec<Row>,
}

impl<'a> Posterior<'a> {
    /// Over the parameters of `structure` on `observations`.
    pub fn new(structure: &'a Structure, categorical: &'a [bool], observations: Observations<'a>) -> Self {
        let rows = vec![Row::default(); observations.points.nrows()];
        Self { structure, categorical, observations, rows }
    }

    fn weight_count(&self) -> usize {
        if self.structure.terms.len() > 1 { self.structure.terms.len() } else { 0 }
    }

    /// Parameters as the vector that is searched: ln ℓ, ln w (if several terms), ln noise (if fitted).
    pub fn pack(&self, hyper: &HyperParameters) -> Vec<f64> {
        let weights = hyper.weights.iter().take(self.weight_count());
        let noise = self.observations.fits_noise().then_some(&hyper.noise);
        hyper.length_scales.iter().chain(weights).chain(noise).map(|value| value.ln()).collect()
    }

    /// The inverse of [`Self::pack`].
    pub fn unpack(&self, packed: &[f64]) -> HyperParameters {
        let d = self.categorical.len();
        let count = self.weight_count();
        let weights = match count {
            0 => vec![1.0],
            _ => packed[d..d + count].iter().map(|value| value.exp()).collect(),
        };
        HyperParameters {
            length_scales: packed[..d].iter().map(|value| value.exp()).collect(),
            weights,
            noise: packed.get(d + count).map_or(NOISE.0, |value| value.exp()),
        }
    }

    fn bounds(&self) -> (Vec<f64>, Vec<f64>) {
        let noise = self.observations.fits_noise().then_some(NOISE);
        let all: Vec<(f64, f64)> = std::iter::repeat_n(LENGTH_SCALES, self.categorical.len())
            .chain(std::iter::repeat_n(WEIGHTS, self.weight_count()))
            .chain(noise)
            .collect();
        all.iter().map(|(low, high)| (low.ln(), high.ln())).unzip()
    }

    /// −ln p(y | θ) and its gradient by the packed parameters, without priors.
    pub fn negative_log_likelihood(&mut self, packed: &[f64], gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        let hyper = self.unpack(packed);
        let noise = self.observations.noise(hyper.noise);
        let kernel =
            Kernel { structure: self.structure.clone(), categorical: self.categorical.to_vec(), hyper };
        let points = self.observations.points;
        let n = points.nrows();
        let mut matrix = Mat::zeros(n, n);
        pulp::Arch::new().dispatch(|| {
            for (at, row) in self.rows.iter_mut().enumerate() {
                kernel.row_below(at, points, row);
                let column = &mut matrix.col_as_slice_mut(at)[at..];
                column[0] = kernel.variance() + noise[at];
                column[1..].copy_from_slice(&row.values);
            }
        });
        let Some((factor, _)) = InverseFactor::new(&matrix) else { return f64::INFINITY };
        let targets = self.observations.targets;
        let mean = generalised_mean(&factor, targets);
        let residuals: Vec<f64> = targets.iter().map(|target| target - mean).collect();
        let alpha = factor.solve(&residuals);
        let inverse = factor.lower_of_inverse();
        let mut diagonal = vec![0.0; n];
        pulp::Arch::new().dispatch(|| {
            for (at, row) in self.rows.iter().enumerate() {
                let column = &inverse.col_as_slice(at)[at..];
                diagonal[at] = alpha[at] * alpha[at] - column[0];
                let weights: Vec<f64> = alpha[at + 1..]
                    .iter()
                    .zip(&column[1..])
                    .map(|(other, inverse)| inverse - alpha[at] * other)
                    .collect();
                kernel.add_hyper_gradient(at, points, row, &weights, gradient);
            }
        });
        let d = self.categorical.len();
        let trace: f64 = diagonal.iter().sum();
        for (term, weight) in kernel.hyper.weights.iter().enumerate().take(self.weight_count()) {
            gradient[d + term] -= 0.5 * trace * weight;
        }
        if self.observations.fits_noise() {
            let unknown =
                self.observations.known_noise.iter().zip(&diagonal).filter(|(known, _)| known.is_nan());
            let trace: f64 = unknown.map(|(_, diagonal)| diagonal).sum();
            gradient[d + self.weight_count()] -= 0.5 * trace * kernel.hyper.noise;
        }
        0.5 * crate::linalg::dot(&residuals, &alpha) + 0.5 * factor.ln_determinant() + n as f64 * HALF_LN_2PI
    }

    /// Minus the log posterior density, up to a constant, and its gradient.
    pub fn negative_log_posterior(&mut self, packed: &[f64], gradient: &mut [f64]) -> f64 {
        let mut value = self.negative_log_likelihood(packed, gradient);
        let mut add = |at: usize, mean: f64, deviation: f64, over_logarithm: bool| {
            let z = (packed[at] - mean) / deviation;
            let jacobian = if over_logarithm { 0.0 } else { 1.0 };
            value += 0.5 * z * z + jacobian * packed[at];
            gradient[at] += z / deviation + jacobian;
        };
        for coordinate in 0..self.categorical.len() {
            add(coordinate, self.location(coordinate), 3.0_f64.sqrt(), false);
        }
        let d = self.categorical.len();
        for term in 0..self.weight_count() {
            add(d + term, -(self.weight_count() as f64).ln(), 1.0, true);
        }
        if self.observations.fits_noise() {
            add(d + self.weight_count(), LN_NOISE.0, LN_NOISE.1, true);
        }
        value
    }

    /// Location of the length-scale prior: d counts the coordinates that act together.
    fn location(&self, coordinate: usize) -> f64 {
        let group = self.structure.groups.iter().find(|group| group.contains(&coordinate));
        let together = group.map_or(1, Vec::len);
        2.0_f64.sqrt() + 0.5 * (together as f64).ln()
    }

    /// The mode of the priors.
    fn prior_mode(&self) -> HyperParameters {
        let length_scales =
            (0..self.categorical.len()).map(|coordinate| (self.location(coordinate) - 3.0).exp()).collect();
        let terms = self.structure.terms.len();
        HyperParameters { length_scales, weights: vec![1.0 / terms as f64; terms], noise: 1e-4 }
    }

    /// Parameters a random distance from the mode of the priors.
    fn random(&self, rng: &mut ChaCha8Rng) -> HyperParameters {
        let mut hyper = self.prior_mode();
        hyper.length_scales.iter_mut().for_each(|scale| *scale *= rng.random_range(-1.2_f64..1.2).exp());
        hyper
    }
}

/// The parameters of highest posterior density found from `previous` (if any), the mode of the priors and `random` random starts.
pub fn fit(
    structure: &Structure,
    categorical: &[bool],
    observations: Observations,
    previous: Option<&HyperParameters>,
    random: usize,
    seed: u64,
) -> HyperParameters {
    let selected = Selection::of(observations);
    let mut posterior = Posterior::new(structure, categorical, selected.observations());
    let (lower, upper) = posterior.bounds();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut starts: Vec<HyperParameters> = previous.cloned().into_iter().collect();
    starts.push(posterior.prior_mode());
    starts.extend((0..random).map(|_| posterior.random(&mut rng)));
    let limits = Limits { iterations: 60, gradient: 1e-4, decrease: 1e-6 };
    let best = starts
        .iter()
        .map(|start| {
            let packed = posterior.pack(start);
            minimise(&packed, &lower, &upper, limits, |p, g| posterior.negative_log_posterior(p, g))
        })
        .min_by(|a, b| a.1.total_cmp(&b.1));
    match best {
        Some((packed, value)) if value.is_finite() => posterior.unpack(&packed),
        _ => posterior.prior_mode(),
    }
}

/// A process with these parameters on all `observations`.
pub fn condition(
    structure: &Structure,
    categorical: &[bool],
    observations: Observations,
    hyper: HyperParameters,
) -> Option<Gp> {
    let noise = observations.noise(hyper.noise);
    let kernel = Kernel { structure: structure.clone(), categorical: categorical.to_vec(), hyper };
    Gp::new(kernel, observations.points.clone(), observations.targets.to_vec(), noise)
}

/// At most [`MOST_FITTED`] observations, evenly over their order, the last ones included.
struct Selection<'a> {
    whole: Observations<'a>,
    part: Option<(Mat<f64>, Vec<f64>, Vec<f64>)>,
}

impl<'a> Selection<'a> {
    fn of(whole: Observations<'a>) -> Self {
        let n = whole.targets.len();
        let part = (n > MOST_FITTED).then(|| {
            let chosen: Vec<usize> = (1..=MOST_FITTED).map(|at| at * n / MOST_FITTED - 1).collect();
            let points =
                Mat::from_fn(chosen.len(), whole.points.ncols(), |i, j| whole.points[(chosen[i], j)]);
            let pick = |values: &[f64]| chosen.iter().map(|at| values[*at]).collect::<Vec<_>>();
            (points, pick(whole.targets), pick(whole.known_noise))
        });
        Self { whole, part }
    }

    fn observations(&self) -> Observations<'_> {
        match &self.part {
            Some((points, targets, known_noise)) => {
                Observations { points, targets, known_noise, noisy: self.whole.noisy }
            }
            None => self.whole,
        }
    }
}
