//! The divisions of the load worth considering, with their quality, and which of them keep the floor.
//!
//! They lie on paths, each from "everything to the best model" down to "everything to the cheapest", over a subset of the models:
//! for two models in steps of one per cent of the load; for more along `λ_m = t·price_m`, t growing, the price being what a
//! query costs on the model's cheapest replica. Where costs add over queries these are the cheapest assignments of each
//! quality (Lagrange). The floor is tested along a path and the walk stops at the first failure (fixed-sequence testing),
//! at level (1 − confidence) divided by the number of paths (Bonferroni): so the chance that an accepted policy misses the
//! floor on unseen queries is at most 1 − confidence, whichever of them the planner picks.

use boute_router::ScoredQueries;
use boute_router::certify::{Answers, Certified, FloorRule, floor_holds};
use boute_router::decide::Decider;
use boute_router::policy::{PolicyStats, assign, evaluate, policy_for_fractions};
use boute_spec::policy::{CascadePolicy, ModelPenalty, RoutingPolicy};
use rayon::prelude::*;

use crate::cascade;
use crate::problem::Problem;

/// Steps of the path for two models.
const PATH_STEPS: usize = 100;
/// Prices tried along a path of more, before those that change next to nothing are left out.
const PRICES: usize = 120;
/// Two neighbours on such a path differ in at least this much of the load.
const STRIDE: f64 = 0.02;
/// Up to this many models every subset has its path; beyond, pairs and all together have.
const MOST_SUBSETS: usize = 5;

/// One division of the load.
#[derive(Debug, Clone)]
pub struct Route {
    /// The rule.
    pub policy: RoutingPolicy,
    /// Which answers are asked for again.
    pub cascade: Option<CascadePolicy>,
    /// Shares and quality on the planning queries, in the order of the problem's models. Of a cascade, what is asked again counts
    /// in the shares, which then sum to more than 1, and not in the quality.
    pub stats: PolicyStats,
    /// Which model answers each planning query.
    pub assignment: Vec<usize>,
    /// The path it lies on.
    pub path: usize,
    /// Level at which the floor is tested.
    pub delta: f64,
    /// The test of the floor; `None` without a floor.
    pub certified: Option<Certified>,
    /// Whether the planner may use it.
    pub admissible: bool,
}

impl Route {
    /// Share of the queries that a model (index) answers, none of them a second time.
    pub fn answered(&self, model: usize) -> f64 {
        match self.assignment.len() {
            0 => self.stats.fractions[model],
            all => self.assignment.iter().filter(|answers| **answers == model).count() as f64 / all as f64,
        }
    }
}

/// All divisions, path by path, each path's safest first. `usd_per_query` prices the models; one that runs nowhere has none.
///
/// # Panics
/// Never: policies are made of the problem's own models.
pub fn routes(problem: &Problem, usd_per_query: &[Option<f64>]) -> Vec<Route> {
    let Some(quality) = &problem.quality else { return vec![only_model(problem)] };
    let queries = &quality.planning;
    let paths = paths(queries, usd_per_query);
    let delta = (1.0 - problem.confidence) / paths.len().max(1) as f64;
    let mut routes: Vec<Route> = paths
        .into_par_iter()
        .enumerate()
        .flat_map_iter(|(path, policies)| policies.into_iter().map(move |policy| (path, policy)))
        .map(|(path, policy)| {
            let decider = Decider::new(&policy, &queries.models).expect("the policy is made of these models");
            let assignment = assign(&decider, queries);
            let stats = evaluate(&assignment, queries);
            let policy = without_idle(policy, &stats, &queries.models);
            let cascade = cascade::of(problem, &policy, &assignment);
            let stats = cascade::with_load(problem, cascade.as_ref(), stats);
            Route { policy, cascade, stats, assignment, path, delta, certified: None, admissible: true }
        })
        .collect();
    thin(&mut routes, problem.models.len());
    if let Some(rule) = problem.floor {
        admit(&mut routes, queries, rule);
    }
    routes
}

/// The same policy without models that answer no planning query: nothing would run them.
fn without_idle(policy: RoutingPolicy, stats: &PolicyStats, models: &[String]) -> RoutingPolicy {
    let RoutingPolicy::Utility { mut penalties } = policy else { return policy };
    penalties.retain(|penalty| {
        models.iter().zip(&stats.fractions).any(|(id, fraction)| *id == penalty.model && *fraction > 0.0)
    });
    match &penalties[..] {
        [only] => RoutingPolicy::Constant { model: only.model.clone() },
        _ => RoutingPolicy::Utility { penalties },
    }
}

/// Leaves out neighbours on a path of three and more models that are the same but for a few queries.
fn thin(routes: &mut Vec<Route>, models: usize) {
    if models <= 2 {
        return;
    }
    routes.dedup_by(|next, last| {
        let moved = next.stats.fractions.iter().zip(&last.stats.fractions).map(|(a, b)| (a - b).abs());
        next.path == last.path && moved.sum::<f64>() / 2.0 < STRIDE
    });
}

/// Tests `rule` along every path and marks what keeps it.
pub fn admit(routes: &mut [Route], queries: &ScoredQueries, rule: FloorRule) {
    routes.par_iter_mut().for_each(|route| {
        let answers = Answers::of(&route.policy, &queries.models, &route.assignment);
        let certified = floor_holds(queries, answers, rule, route.delta);
        route.admissible = certified.holds;
        route.certified = Some(certified);
    });
    for path in routes.chunk_by_mut(|a, b| a.path == b.path) {
        let kept = path.iter().take_while(|route| route.admissible).count();
        path[kept..].iter_mut().for_each(|route| route.admissible = false);
    }
}

/// Without quality data the first model answers everything.
fn only_model(problem: &Problem) -> Route {
    let models = problem.models.len();
    let alone = |value: f64| (0..models).map(|model| if model == 0 { value } else { 0.0 }).collect();
    Route {
        policy: RoutingPolicy::Constant { model: problem.models[0].id.clone() },
        cascade: None,
        stats: PolicyStats { fractions: alone(1.0), quality: 0.0, quality_by_model: alone(0.0) },
        assignment: Vec::new(),
        path: 0,
        delta: 1.0 - problem.confidence,
        certified: None,
        admissible: true,
    }
}

/// Policies per path.
fn paths(queries: &ScoredQueries, usd_per_query: &[Option<f64>]) -> Vec<Vec<RoutingPolicy>> {
    let running: Vec<usize> = (0..queries.models.len()).filter(|at| usd_per_query[*at].is_some()).collect();
    let mean = |model: usize| -> f64 { (0..queries.len()).map(|query| queries.actual(query, model)).sum() };
    let by_quality = |models: &[usize]| -> Vec<usize> {
        let mut models = models.to_vec();
        models.sort_by(|a, b| mean(*b).total_cmp(&mean(*a)).then(a.cmp(b)));
        models
    };
    let price = |model: usize| usd_per_query[model].unwrap_or_default();
    match running[..] {
        [] => Vec::new(),
        [only] => vec![vec![constant(queries, only)]],
        [_, _] if queries.models.len() == 2 => vec![by_shares(queries, &by_quality(&running))],
        _ => subsets(&running).iter().map(|subset| by_prices(queries, &by_quality(subset), price)).collect(),
    }
}

fn constant(queries: &ScoredQueries, model: usize) -> RoutingPolicy {
    RoutingPolicy::Constant { model: queries.models[model].clone() }
}

/// From the better of two models to the other, in equal steps of the load.
fn by_shares(queries: &ScoredQueries, models: &[usize]) -> Vec<RoutingPolicy> {
    let share_of_other = |step: usize| step as f64 / PATH_STEPS as f64;
    let policy = |share: f64| {
        let fractions: Vec<f64> =
            (0..2).map(|model| if model == models[0] { 1.0 - share } else { share }).collect();
        policy_for_fractions(queries, &fractions)
    };
    (0..=PATH_STEPS).into_par_iter().map(|step| policy(share_of_other(step))).collect()
}

/// From the best of `models` to the cheapest, with growing prices.
fn by_prices(queries: &ScoredQueries, models: &[usize], price: impl Fn(usize) -> f64) -> Vec<RoutingPolicy> {
    let prices: Vec<f64> = models.iter().map(|model| price(*model)).collect();
    let dearest = prices.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut sorted = prices.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let narrowest =
        sorted.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 0.0).fold(dearest, f64::min);
    // Scores lie in [0, 1]: beyond this the cheapest model answers everything.
    let (least, most) = (1e-3, (1.1 * dearest / narrowest).min(100.0));
    let at = |step: usize| least * f64::powf(most / least, step as f64 / (PRICES - 1) as f64);
    let priced = (0..PRICES).map(at).map(|t| {
        let penalties = models.iter().zip(&prices).map(|(model, price)| ModelPenalty {
            model: queries.models[*model].clone(),
            lambda: t * price / dearest,
        });
        RoutingPolicy::Utility { penalties: penalties.collect() }
    });
    let cheapest = models.iter().copied().min_by(|a, b| price(*a).total_cmp(&price(*b)));
    let ends = cheapest.map(|model| constant(queries, model));
    [constant(queries, models[0])].into_iter().chain(priced).chain(ends).collect()
}

/// The subsets of two and more models that have a path.
fn subsets(models: &[usize]) -> Vec<Vec<usize>> {
    let every = || {
        (1_usize..1 << models.len())
            .map(|mask| (0..models.len()).filter(|at| mask >> at & 1 == 1).map(|at| models[at]).collect())
            .collect::<Vec<Vec<usize>>>()
    };
    if models.len() <= MOST_SUBSETS {
        return every().into_iter().filter(|subset| subset.len() > 1).collect();
    }
    let pairs = models.iter().enumerate().flat_map(|(at, a)| models[at + 1..].iter().map(|b| vec![*a, *b]));
    pairs.chain([models.to_vec()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_models_have_every_subset_and_many_have_pairs() {
        assert_eq!(subsets(&[0, 2, 3]), [vec![0, 2], vec![0, 3], vec![2, 3], vec![0, 2, 3]]);
        assert_eq!(subsets(&(0..10).collect::<Vec<_>>()).len(), 46);
    }
}
