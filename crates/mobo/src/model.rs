//! One Gaussian process per output, on standardised values.

use faer::Mat;
use rayon::prelude::*;

use crate::design::mix;
use crate::fit::{Observations, condition, fit};
use crate::gp::Gp;
use crate::kernel::{HyperParameters, Structure};
use crate::study::{Evaluation, Noise, Outcome, Problem};
use crate::transform::Standard;

/// Models of all outputs.
///
/// Objectives come first, then constraints in units in which feasible is ≥ 0, then, if an evaluation has failed, whether one works, as
/// a constraint that is 1 where it did and −1 where it did not.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) outputs: Vec<Gp>,
    /// Places of the evaluations that worked, on which objectives and constraints are modelled.
    pub(crate) worked: Vec<usize>,
    /// Standardised objectives of the evaluations that worked.
    pub(crate) objectives: Vec<Vec<f64>>,
    /// Units of each objective.
    pub(crate) standards: Vec<Standard>,
    /// Whether values are known only up to noise.
    pub(crate) noisy: bool,
}

/// Fitted noise variance of a standardised output from which on its observations are not taken as exact.
const NOISY: f64 = 1e-3;

/// Targets of one output and their noise.
struct Targets {
    points: Mat<f64>,
    values: Vec<f64>,
    known_noise: Vec<f64>,
}

impl Models {
    /// Models of `evaluations` at `coordinates`, and their parameters: those of `fits`, or fitted from them on if `refit`.
    ///
    /// `None` if nothing has worked or numbers are beyond arithmetic.
    pub(crate) fn fit(
        problem: &Problem,
        evaluations: &[Evaluation],
        coordinates: &[Vec<f64>],
        fits: &[HyperParameters],
        refit: bool,
    ) -> Option<(Self, Vec<HyperParameters>)> {
        let worked: Vec<usize> =
            (0..evaluations.len()).filter(|at| evaluations[*at].outcome.is_some()).collect();
        let outcomes: Vec<&Outcome> = evaluations.iter().filter_map(|it| it.outcome.as_ref()).collect();
        let points = rows(&worked, coordinates);
        let mut standards = Vec::new();
        let mut targets: Vec<Targets> = (0..problem.outputs())
            .map(|output| {
                let (standard, targets) = targets_of(problem, output, &outcomes, &points);
                standards.push(standard);
                targets
            })
            .collect();
        if worked.len() < evaluations.len() {
            let all: Vec<usize> = (0..evaluations.len()).collect();
            targets.push(Targets {
                points: rows(&all, coordinates),
                values: evaluations.iter().map(|it| if it.outcome.is_some() { 1.0 } else { -1.0 }).collect(),
                known_noise: vec![f64::NAN; evaluations.len()],
            });
        }
        let structure =
            problem.structure.clone().unwrap_or_else(|| Structure::joint(problem.space.dimensions()));
        let categorical = problem.space.categorical();
        let random = usize::from(evaluations.len() <= 150);
        let fitted: Option<Vec<(Gp, HyperParameters)>> = targets
            .par_iter()
            .enumerate()
            .map(|(output, targets)| {
                let observations = Observations {
                    points: &targets.points,
                    targets: &targets.values,
                    known_noise: &targets.known_noise,
                    noisy: problem.noise == Noise::Fitted || output >= problem.outputs(),
                };
                let previous = fits.get(output);
                let seed = mix(problem.seed ^ mix((evaluations.len() * 64 + output) as u64));
                let hyper = match previous {
                    Some(previous) if !refit => previous.clone(),
                    _ => fit(&structure, &categorical, observations, previous, random, seed),
                };
                Some((condition(&structure, &categorical, observations, hyper.clone())?, hyper))
            })
            .collect();
        let (outputs, hypers): (Vec<Gp>, Vec<HyperParameters>) = fitted?.into_iter().unzip();
        let uncertain = |output: usize| {
            let fitted = hypers[output].noise > NOISY;
            let known = |noise: &f64| if noise.is_nan() { fitted } else { *noise > NOISY };
            targets[output].known_noise.iter().any(known)
        };
        let noisy = (0..problem.outputs()).any(uncertain);
        let objectives = (0..worked.len())
            .map(|row| targets[..problem.objectives].iter().map(|targets| targets.values[row]).collect())
            .collect();
        standards.truncate(problem.objectives);
        Some((Self { outputs, worked, objectives, standards, noisy }, hypers))
    }
}

fn rows(places: &[usize], coordinates: &[Vec<f64>]) -> Mat<f64> {
    let dimensions = coordinates.first().map_or(0, Vec::len);
    Mat::from_fn(places.len(), dimensions, |i, j| coordinates[places[i]][j])
}

/// Standardised targets of an output; a constraint is scaled but keeps its zero.
fn targets_of(
    problem: &Problem,
    output: usize,
    outcomes: &[&Outcome],
    points: &Mat<f64>,
) -> (Standard, Targets) {
    let transform = problem.transform(output);
    let raw: Vec<f64> = outcomes.iter().map(|outcome| outcome.output(output)).collect();
    // Every outcome was checked to be in the domain when it was told.
    let changed: Vec<f64> = raw.iter().map(|y| transform.apply(*y).unwrap_or(0.0)).collect();
    let standard = Standard::of(&changed);
    let zero = if output < problem.objectives { 0.0 } else { standard.apply(0.0) };
    let values = changed.iter().map(|y| standard.apply(*y) - zero).collect();
    let variance = |outcome: &&Outcome, y: &f64| match &outcome.variances {
        Some(variances) => standard.variance(variances[output] * transform.slope(*y).powi(2)),
        None => f64::NAN,
    };
    let known_noise = outcomes.iter().zip(&raw).map(|(outcome, y)| variance(outcome, y)).collect();
    (standard, Targets { points: points.clone(), values, known_noise })
}
