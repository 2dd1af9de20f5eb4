//! The divisions of the load worth considering, with their quality, and which of them keep the floor.
//!
//! Two models: a path of 101 policies from "everything to the better model" down in steps of one per cent. The floor is
//! tested along it at level 1 − confidence and the walk stops at the first failure (fixed-sequence testing), so the chance
//! that an accepted policy misses the floor on unseen queries is at most 1 − confidence, whichever of them the planner
//! picks. Three and more models: a grid over the simplex, each point tested at that level divided by the number of points
//! (Bonferroni), with the same promise.

use boute_router::ScoredQueries;
use boute_router::certify::{Certified, FloorRule, floor_holds};
use boute_router::decide::Decider;
use boute_router::policy::{PolicyStats, assign, evaluate, policy_for_fractions};
use boute_spec::policy::RoutingPolicy;
use rayon::prelude::*;

use crate::problem::Problem;

/// Steps of the path for two models.
const PATH_STEPS: usize = 100;
/// Grid points for three and more models, about.
const GRID_POINTS: usize = 70;

/// One division of the load.
#[derive(Debug, Clone)]
pub struct Route {
    /// The rule.
    pub policy: RoutingPolicy,
    /// Shares and quality on the planning queries, in the order of the problem's models.
    pub stats: PolicyStats,
    /// Which model answers each planning query.
    pub assignment: Vec<usize>,
    /// Level at which the floor is tested.
    pub delta: f64,
    /// The test of the floor; `None` without a floor.
    pub certified: Option<Certified>,
    /// Whether the planner may use it.
    pub admissible: bool,
}

/// All divisions, safest first.
///
/// # Panics
/// Never: policies are made of the problem's own models.
pub fn routes(problem: &Problem) -> Vec<Route> {
    let Some(quality) = &problem.quality else { return vec![only_model(problem)] };
    let queries = &quality.planning;
    let fractions = fractions(queries);
    let alpha = 1.0 - problem.confidence;
    let on_path = problem.models.len() <= 2;
    let delta = if on_path { alpha } else { alpha / fractions.len() as f64 };
    let mut routes: Vec<Route> = fractions
        .par_iter()
        .map(|fractions| {
            let policy = policy_for_fractions(queries, fractions);
            let decider = Decider::new(&policy, &queries.models).expect("the policy is made of these models");
            let assignment = assign(&decider, queries);
            let stats = evaluate(&assignment, queries);
            Route { policy, stats, assignment, delta, certified: None, admissible: true }
        })
        .collect();
    if let Some(rule) = problem.floor {
        admit(&mut routes, queries, rule, on_path);
    }
    routes
}

/// Tests `rule` and marks what keeps it.
pub fn admit(routes: &mut [Route], queries: &ScoredQueries, rule: FloorRule, on_path: bool) {
    routes.par_iter_mut().for_each(|route| {
        let certified = floor_holds(queries, &route.assignment, rule, route.delta);
        route.admissible = certified.holds;
        route.certified = Some(certified);
    });
    if on_path {
        let kept = routes.iter().take_while(|route| route.admissible).count();
        for route in &mut routes[kept..] {
            route.admissible = false;
        }
    }
}

/// Without quality data the first model answers everything.
fn only_model(problem: &Problem) -> Route {
    let models = problem.models.len();
    let alone = |value: f64| (0..models).map(|model| if model == 0 { value } else { 0.0 }).collect();
    Route {
        policy: RoutingPolicy::Constant { model: problem.models[0].id.clone() },
        stats: PolicyStats { fractions: alone(1.0), quality: 0.0, quality_by_model: alone(0.0) },
        assignment: Vec::new(),
        delta: 1.0 - problem.confidence,
        certified: None,
        admissible: true,
    }
}

/// Shares per model, the best model's first.
fn fractions(queries: &ScoredQueries) -> Vec<Vec<f64>> {
    let models = queries.models.len();
    let mean = |model: usize| -> f64 { (0..queries.len()).map(|query| queries.actual(query, model)).sum() };
    let best = (0..models).max_by(|a, b| mean(*a).total_cmp(&mean(*b))).unwrap_or_default();
    let mut points = match models {
        1 => vec![vec![1.0]],
        2 => (0..=PATH_STEPS)
            .map(|step| {
                let share = step as f64 / PATH_STEPS as f64;
                (0..2).map(|model| if model == best { 1.0 - share } else { share }).collect()
            })
            .collect(),
        _ => simplex(models, grid_steps(models)),
    };
    points.sort_by(|a: &Vec<f64>, b| b[best].total_cmp(&a[best]));
    points
}

fn grid_steps(models: usize) -> usize {
    let points = |steps: usize| (1..models).fold(1.0, |points, k| points * (steps + k) as f64 / k as f64);
    (2..=20).take_while(|steps| points(*steps) <= GRID_POINTS as f64).last().unwrap_or(2)
}

/// All vectors of `parts` multiples of 1/`steps` that sum to 1.
fn simplex(parts: usize, steps: usize) -> Vec<Vec<f64>> {
    fn fill(parts: usize, left: usize, steps: usize, prefix: &mut Vec<f64>, points: &mut Vec<Vec<f64>>) {
        if parts == 1 {
            let last = [prefix.as_slice(), &[left as f64 / steps as f64]].concat();
            points.push(last);
            return;
        }
        for taken in 0..=left {
            prefix.push(taken as f64 / steps as f64);
            fill(parts - 1, left - taken, steps, prefix, points);
            prefix.pop();
        }
    }
    let mut points = Vec::new();
    fill(parts, steps, steps, &mut Vec::new(), &mut points);
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_covers_the_simplex() {
        let points = simplex(3, 4);
        assert_eq!(points.len(), 15);
        assert!(points.iter().all(|point| (point.iter().sum::<f64>() - 1.0).abs() < 1e-12));
        assert!(grid_steps(3) >= 10 && grid_steps(10) >= 2);
    }
}
