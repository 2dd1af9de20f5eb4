//! The mix of queries, as far as the router's scores show it: what a gateway's log of decisions says, against what the planning
//! queries would give under the same policy.
//!
//! Where the mix has shifted, the plan is made on a part of the queries that has the mix as it is now. A query of cell c
//! (model that answers, tenth of its predicted score) stays with probability
//! ```text
//! min(observed share of c / expected share of c, 4) / the largest of these
//! ```
//! If the score tells all that has shifted (covariate shift in the score), what stays is a sample of the new mix, drawn by
//! rejection, so that certificates hold as they stand, with fewer queries.

use std::collections::BTreeMap;

use boute_router::ScoredQueries;
use boute_router::decide::{Decider, UnknownModel};
use boute_spec::policy::RoutingPolicy;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, QualityInputs};

/// Cells of the predicted score.
const CELLS: u32 = 10;
/// A cell is raised at most this many times, or few queries would be left.
const MOST_WEIGHT: f64 = 4.0;
/// Fewest queries that certify anything.
const FEWEST_QUERIES: usize = 100;
/// A distance below this changes no plan worth the name.
const LEAST_DISTANCE: f64 = 0.1;
/// Standard deviations of chance that a shift must be beyond.
const DEVIATIONS: f64 = 3.0;

/// How many decisions fell into each cell: the model chosen, and the tenth of its predicted score.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScoreMix(BTreeMap<String, Vec<u64>>);

impl ScoreMix {
    /// Counts a decision for `model`, whose predicted score is `score`.
    pub fn count(&mut self, model: &str, score: f32) {
        let cells = self.0.entry(model.to_owned()).or_insert_with(|| vec![0; CELLS as usize]);
        cells[cell(score)] += 1;
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (model, theirs) in &other.0 {
            let ours = self.0.entry(model.clone()).or_insert_with(|| vec![0; CELLS as usize]);
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        }
    }

    /// What `queries` would give under `policy`.
    ///
    /// # Errors
    /// If the policy names another model.
    pub fn expected(queries: &ScoredQueries, policy: &RoutingPolicy) -> Result<Self, UnknownModel> {
        let mut mix = Self::default();
        decided(queries, policy)?.for_each(|(model, score)| mix.count(model, score));
        Ok(mix)
    }

    /// Decisions counted.
    pub fn total(&self) -> u64 {
        self.0.values().flatten().sum()
    }

    fn share(&self, model: &str, cell: usize) -> f64 {
        let count = self.0.get(model).map_or(0, |cells| cells[cell]);
        count as f64 / self.total().max(1) as f64
    }

    /// Cells that either of two has counts in.
    fn cells<'a>(&'a self, other: &'a Self) -> Vec<(&'a str, usize)> {
        let mut cells: Vec<(&str, usize)> = [self, other]
            .into_iter()
            .flat_map(|mix| &mix.0)
            .flat_map(|(model, counts)| (0..counts.len()).map(move |at| (model.as_str(), at, counts[at])))
            .filter(|(_, _, count)| *count > 0)
            .map(|(model, at, _)| (model, at))
            .collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    }

    /// Whether this is another mix than `expected`: their total variation distance is beyond a tenth and beyond what chance gives.
    ///
    /// The distance of two samples of one mix is about `Σ_c √(2·p_c·(1/n + 1/m)/π)/2` in the mean (each difference of shares
    /// is normal), with a standard deviation of at most `√(1/n + 1/m)/2`.
    pub fn shifted(&self, expected: &Self) -> bool {
        let (n, m) = (self.total() as f64, expected.total() as f64);
        if n < 1.0 || m < 1.0 {
            return false;
        }
        let cells = self.cells(expected);
        let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            cells.iter().map(|(model, at)| of(self.share(model, *at), expected.share(model, *at))).sum()
        };
        let distance = sum(&|a, b| (a - b).abs()) / 2.0;
        let variance = 1.0 / n + 1.0 / m;
        let chance = sum(&|a, b| (a + b).sqrt()) * (variance / std::f64::consts::PI).sqrt() / 2.0;
        distance > LEAST_DISTANCE && distance > chance + DEVIATIONS * variance.sqrt() / 2.0
    }

    /// The queries of `problem` in this mix, which came about under `policy`. `None` if too few would be left, or the policy is not
    /// one of the problem's models.
    pub fn applied_to(&self, problem: &Problem, policy: &RoutingPolicy) -> Option<QualityInputs> {
        let quality = problem.quality.as_ref()?;
        let expected = Self::expected(&quality.planning, policy).ok()?;
        let keep = |queries: &ScoredQueries, stream: u64| {
            self.resampled(queries, &expected, policy, problem.seed ^ stream)
        };
        let (planning, held_out) = (keep(&quality.planning, 1)?, keep(&quality.held_out, 2)?);
        Some(QualityInputs { planning, held_out, ..quality.clone() })
    }

    fn resampled(
        &self,
        queries: &ScoredQueries,
        expected: &Self,
        policy: &RoutingPolicy,
        seed: u64,
    ) -> Option<ScoredQueries> {
        let weight = |(model, score): (&str, f32)| {
            let at = cell(score);
            let expected = expected.share(model, at);
            if expected > 0.0 { (self.share(model, at) / expected).min(MOST_WEIGHT) } else { 0.0 }
        };
        let weights: Vec<f64> = decided(queries, policy).ok()?.map(weight).collect();
        let largest = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut kept = weights.iter().map(|weight| rng.random::<f64>() * largest < *weight);
        let left = queries.only(|_| kept.next().unwrap_or(false));
        (left.len() >= FEWEST_QUERIES).then_some(left)
    }
}

/// Which model answers each query under `policy`, and its predicted score.
fn decided<'a>(
    queries: &'a ScoredQueries,
    policy: &RoutingPolicy,
) -> Result<impl Iterator<Item = (&'a str, f32)>, UnknownModel> {
    let decider = Decider::new(policy, &queries.models)?;
    Ok((0..queries.len()).map(move |query| {
        let scores = queries.predicted(query);
        let model = decider.decide(scores).model;
        (queries.models[model].as_str(), scores[model])
    }))
}

fn cell(score: f32) -> usize {
    ((f64::from(score) * f64::from(CELLS)) as usize).min(CELLS as usize - 1)
}
