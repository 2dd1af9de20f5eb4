//! The next point, given models and what is pending.

use faer::Mat;

use crate::acquisition::Acquisition;
use crate::design::{mix, sobol_normals};
use crate::error::Error;
use crate::model::Models;
use crate::pareto::{non_dominated, spread_out};
use crate::search::{Effort, Region, Search};
use crate::study::{Study, infer_reference};
use crate::trust::TrustRegion;

/// Joint draws of what is uncertain about the front.
const SCENARIOS: usize = 32;
/// Good points from which the search starts.
const ELITES: usize = 32;
/// Standard deviations by which a noisy point may be better or worse than its mean, in choosing those that may be on the front.
const DOUBT: f64 = 2.5;

/// Coordinates of the next point.
pub(crate) fn propose(
    study: &Study,
    models: &Models,
    trust: Option<&TrustRegion>,
    seed: u64,
) -> Result<Vec<f64>, Error> {
    let problem = study.problem();
    let encode = |candidate: &crate::study::Candidate| problem.space.encode(&candidate.point);
    let pending: Vec<Vec<f64>> = study.pending().iter().map(encode).collect::<Result<_, _>>()?;
    let given = Given::new(study, models, &pending, seed);
    let acquisition = Acquisition::new(given.outputs, &given.fronts, &given.reference);
    let region = match trust {
        Some(trust) => {
            trust.region(&problem.space, &given.elites, &models.outputs[0].kernel().hyper.length_scales)
        }
        None => Region::whole(&problem.space),
    };
    let mut taken = pending;
    if !models.noisy {
        taken.extend(study.coordinates().iter().cloned());
    }
    let elites = if trust.is_some() { &given.elites[..given.elites.len().min(1)] } else { &given.elites };
    let search = Search {
        space: &problem.space,
        acquisition: &acquisition,
        region: &region,
        elites,
        taken: &taken,
        effort: effort(study.evaluations().len()),
        seed,
    };
    Ok(search.run())
}

/// Less is spent where every value costs more.
fn effort(observations: usize) -> Effort {
    match observations {
        0..=150 => Effort { points: 512, starts: 4, iterations: 50 },
        151..=600 => Effort { points: 256, starts: 3, iterations: 40 },
        _ => Effort { points: 128, starts: 2, iterations: 20 },
    }
}

/// What the acquisition is made of: models and fronts, one scenario each, in standard units.
struct Given {
    outputs: Vec<crate::gp::Gp>,
    fronts: Vec<Vec<Vec<f64>>>,
    reference: Vec<f64>,
    /// Coordinates of the best evaluated points.
    elites: Vec<Vec<f64>>,
}

impl Given {
    fn new(study: &Study, models: &Models, pending: &[Vec<f64>], seed: u64) -> Self {
        let problem = study.problem();
        let evaluations = study.evaluations();
        let feasible: Vec<bool> = (models.worked.iter())
            .map(|at| evaluations[*at].outcome.as_ref().is_some_and(crate::study::Outcome::is_feasible))
            .collect();
        let reference = reference(study, models, &feasible);
        let elites = elites(study, models, &feasible);
        let resampled = if models.noisy { doubtful(study, models) } else { Vec::new() };
        let certain: Vec<usize> = if models.noisy {
            Vec::new()
        } else {
            (0..feasible.len()).filter(|row| feasible[*row]).collect()
        };
        let known: Vec<Vec<f64>> = certain.iter().map(|row| models.objectives[*row].clone()).collect();
        if pending.is_empty() && resampled.is_empty() {
            let front = front_of(&known, problem.objectives, 1);
            return Self { outputs: models.outputs.clone(), fronts: vec![front], reference, elites };
        }
        let added = Mat::from_fn(pending.len(), problem.space.dimensions(), |i, j| pending[i][j]);
        let drawn: Vec<_> = (models.outputs.iter().enumerate())
            .map(|(output, gp)| {
                // Whether an evaluation works was seen without noise.
                let resampled = if output < problem.outputs() { resampled.as_slice() } else { &[] };
                let normals =
                    sobol_normals(SCENARIOS, resampled.len() + pending.len(), mix(seed ^ output as u64));
                gp.given_samples(resampled, &added, &normals)
            })
            .collect();
        let Some(drawn) = drawn.into_iter().collect::<Option<Vec<_>>>() else {
            let front = front_of(&known, problem.objectives, 1);
            return Self { outputs: models.outputs.clone(), fronts: vec![front], reference, elites };
        };
        let (outputs, values): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
        let fronts = (0..SCENARIOS)
            .map(|s| {
                let holds = |place: usize| {
                    values[problem.objectives..problem.outputs()]
                        .iter()
                        .all(|values| values[(s, place)] >= 0.0)
                };
                let objectives = |place: usize| -> Vec<f64> {
                    values[..problem.objectives].iter().map(|values| values[(s, place)]).collect()
                };
                let places = resampled.len() + pending.len();
                let drawn = (0..places).filter(|place| holds(*place)).map(objectives);
                let all: Vec<Vec<f64>> = known.iter().cloned().chain(drawn).collect();
                front_of(&all, problem.objectives, SCENARIOS)
            })
            .collect();
        Self { outputs, fronts, reference, elites }
    }
}

/// The front of `points`, thinned where its boxes would be too many: their number grows with a power of it beyond three objectives.
fn front_of(points: &[Vec<f64>], objectives: usize, scenarios: usize) -> Vec<Vec<f64>> {
    let most = match objectives {
        0..=2 => 1_000,
        3 => 200,
        4 => 60,
        _ => 24,
    };
    let most = if scenarios > 1 { (most / 4).max(16) } else { most };
    let front: Vec<Vec<f64>> = non_dominated(points).into_iter().map(|at| points[at].clone()).collect();
    spread_out(&front, most)
}

/// The reference in standard units; inferred from what is feasible, or from everything.
fn reference(study: &Study, models: &Models, feasible: &[bool]) -> Vec<f64> {
    let problem = study.problem();
    if let Some(reference) = &problem.reference {
        let standard = |(at, y): (usize, &f64)| {
            models.standards[at].apply(problem.transform(at).apply(*y).unwrap_or(*y))
        };
        return reference.iter().enumerate().map(standard).collect();
    }
    let chosen: Vec<Vec<f64>> = (models.objectives.iter().zip(feasible))
        .filter(|(_, feasible)| **feasible)
        .map(|(objectives, _)| objectives.clone())
        .collect();
    let points = if chosen.is_empty() { &models.objectives } else { &chosen };
    let front: Vec<Vec<f64>> = non_dominated(points).into_iter().map(|at| points[at].clone()).collect();
    infer_reference(&front).unwrap_or_else(|| vec![0.0; problem.objectives])
}

/// Coordinates of the front, in order of the first objective; of the least infeasible points if nothing is feasible.
fn elites(study: &Study, models: &Models, feasible: &[bool]) -> Vec<Vec<f64>> {
    let rows: Vec<usize> = (0..feasible.len()).filter(|row| feasible[*row]).collect();
    let points: Vec<Vec<f64>> = rows.iter().map(|row| models.objectives[*row].clone()).collect();
    let mut front: Vec<usize> = non_dominated(&points).into_iter().map(|at| rows[at]).collect();
    if front.is_empty() {
        let lacking = |row: &usize| -> f64 {
            let outcome = study.evaluations()[models.worked[*row]].outcome.as_ref();
            outcome.map_or(f64::INFINITY, |outcome| {
                outcome.constraints.iter().map(|slack| (-slack).max(0.0)).sum()
            })
        };
        front = (0..feasible.len()).collect();
        front.sort_by(|a, b| lacking(a).total_cmp(&lacking(b)));
        front.truncate(ELITES / 4);
    } else {
        front.sort_by(|a, b| models.objectives[*a][0].total_cmp(&models.objectives[*b][0]));
        let count = front.len();
        front = (0..count.min(ELITES)).map(|at| front[at * count / count.min(ELITES)]).collect();
    }
    front.into_iter().map(|row| study.coordinates()[models.worked[row]].clone()).collect()
}

/// Rows that may be on the front: those that, seen with favour, no point seen with disfavour dominates.
fn doubtful(study: &Study, models: &Models) -> Vec<usize> {
    let problem = study.problem();
    let rows = models.worked.len();
    let points =
        Mat::from_fn(rows, problem.space.dimensions(), |i, j| study.coordinates()[models.worked[i]][j]);
    let predictions: Vec<_> =
        models.outputs[..problem.outputs()].iter().map(|gp| gp.evaluate_many(&points)).collect();
    let bound = |output: usize, row: usize, sign: f64| {
        let (means, variances) = &predictions[output];
        means[(0, row)] + sign * DOUBT * variances[row].sqrt()
    };
    let objectives = |row: usize, sign: f64| -> Vec<f64> {
        (0..problem.objectives).map(|output| bound(output, row, sign)).collect()
    };
    let surely =
        |row: &usize| (problem.objectives..problem.outputs()).all(|output| bound(output, *row, -1.0) >= 0.0);
    let possibly =
        |row: &usize| (problem.objectives..problem.outputs()).all(|output| bound(output, *row, 1.0) >= 0.0);
    let worst: Vec<Vec<f64>> = (0..rows).filter(surely).map(|row| objectives(row, 1.0)).collect();
    let worst: Vec<Vec<f64>> = non_dominated(&worst).into_iter().map(|at| worst[at].clone()).collect();
    (0..rows)
        .filter(possibly)
        .filter(|row| {
            let best = objectives(*row, -1.0);
            !worst.iter().any(|other| crate::pareto::dominates(other, &best))
        })
        .collect()
}
