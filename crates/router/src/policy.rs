//! Policies by load fraction: the planner searches over shares of the load, not over raw thresholds.

use boute_spec::policy::{ModelPenalty, RoutingPolicy};

use crate::decide::Decider;
use crate::queries::ScoredQueries;

/// Rounds of the search for three and more penalties; it settles within some ten.
const ROUNDS: usize = 200;

/// What a policy does to some queries.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyStats {
    /// Share of the queries per model.
    pub fractions: Vec<f64>,
    /// Mean score of the answers.
    pub quality: f64,
    /// Mean score of each model's own answers; 0 for a model without any.
    pub quality_by_model: Vec<f64>,
}

/// The policy under which each model answers its share of `queries`: λ is the vector of quantiles of the predicted
/// advantage, up to ties. A model with share 0 is left out; a model with share 1 answers everything.
///
/// For two models λ is one quantile of `ŝ_large − ŝ_small`. For more, each `λ_m` in turn is set to the quantile of
/// `ŝ_m − max_{j≠m}(ŝ_j − λ_j)` that gives m its share, until all shares hold: coordinate ascent on the dual of the
/// assignment problem, whose optimum has the best predicted quality among all assignments with these shares.
///
/// # Panics
/// If `fractions` is not one share per model, or no share is positive, or there is no query.
pub fn policy_for_fractions(queries: &ScoredQueries, fractions: &[f64]) -> RoutingPolicy {
    assert_eq!(fractions.len(), queries.models.len(), "one share per model");
    assert!(!queries.is_empty(), "shares need queries");
    let used: Vec<usize> = (0..fractions.len()).filter(|model| fractions[*model] > 0.0).collect();
    if let [only] = used[..] {
        return RoutingPolicy::Constant { model: queries.models[only].clone() };
    }
    assert!(!used.is_empty(), "no share is positive");
    let mut lambda = vec![0.0_f32; fractions.len()];
    // With two models one penalty decides; the first stays at zero.
    let free = &used[1..];
    for _ in 0..ROUNDS {
        let before = lambda.clone();
        for &model in free {
            lambda[model] = penalty_for(queries, &used, &lambda, model, fractions[model]);
        }
        if lambda == before || free.len() == 1 {
            break;
        }
    }
    let penalties = used
        .iter()
        .map(|&model| ModelPenalty { model: queries.models[model].clone(), lambda: f64::from(lambda[model]) })
        .collect();
    RoutingPolicy::Utility { penalties }
}

/// The λ of `model` that gives it `share`, the others' being fixed: between two neighbouring advantages, so that rounding
/// decides nothing.
fn penalty_for(queries: &ScoredQueries, used: &[usize], lambda: &[f32], model: usize, share: f64) -> f32 {
    let mut advantages: Vec<f32> = (0..queries.len())
        .map(|query| {
            let scores = queries.predicted(query);
            let best =
                used.iter().filter(|other| **other != model).map(|other| scores[*other] - lambda[*other]);
            scores[model] - best.fold(f32::NEG_INFINITY, f32::max)
        })
        .collect();
    advantages.sort_unstable_by(|a, b| b.total_cmp(a));
    let count = ((share * advantages.len() as f64).round() as usize).clamp(1, advantages.len() - 1);
    f32::midpoint(advantages[count - 1], advantages[count])
}

/// Steps of a path.
const PATH_STEPS: usize = 100;

/// Policies from "everything to `best`" to "everything to the cheapest", each cheaper than the one before: for two models
/// in steps of one per cent of the load, for more along `λ_m = t·cost_m` with t growing. Chosen by predictions alone.
///
/// # Panics
/// If `costs` is not one per model, or there is no query.
pub fn path(queries: &ScoredQueries, best: usize, costs: &[f64]) -> Vec<RoutingPolicy> {
    let models = queries.models.len();
    assert_eq!(costs.len(), models, "one cost per model");
    if models == 2 {
        let share = |step: usize| step as f64 / PATH_STEPS as f64;
        let fractions =
            |step| [0, 1].map(|model| if model == best { 1.0 - share(step) } else { share(step) });
        return (0..=PATH_STEPS).map(|step| policy_for_fractions(queries, &fractions(step))).collect();
    }
    let constant = |model: usize| RoutingPolicy::Constant { model: queries.models[model].clone() };
    let dearest = costs.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let priced = (0..PATH_STEPS).map(|step| {
        let price = 1e-3 * 1e4_f64.powf(step as f64 / (PATH_STEPS - 1) as f64) / dearest;
        let penalty =
            |(model, cost): (&String, &f64)| ModelPenalty { model: model.clone(), lambda: price * cost };
        RoutingPolicy::Utility { penalties: queries.models.iter().zip(costs).map(penalty).collect() }
    });
    let cheapest = (0..models).min_by(|a, b| costs[*a].total_cmp(&costs[*b])).unwrap_or(best);
    [constant(best)].into_iter().chain(priced).chain([constant(cheapest)]).collect()
}

/// Which model answers each query.
pub fn assign(decider: &Decider, queries: &ScoredQueries) -> Vec<usize> {
    (0..queries.len()).map(|query| decider.decide(queries.predicted(query)).model).collect()
}

/// What an assignment comes to.
pub fn evaluate(assignment: &[usize], queries: &ScoredQueries) -> PolicyStats {
    let models = queries.models.len();
    let (mut counts, mut sums) = (vec![0_u32; models], vec![0.0; models]);
    for (query, &model) in assignment.iter().enumerate() {
        counts[model] += 1;
        sums[model] += queries.actual(query, model);
    }
    let all = assignment.len().max(1) as f64;
    PolicyStats {
        fractions: counts.iter().map(|count| f64::from(*count) / all).collect(),
        quality: sums.iter().sum::<f64>() / all,
        quality_by_model: counts
            .iter()
            .zip(&sums)
            .map(|(count, sum)| sum / f64::from((*count).max(1)))
            .collect(),
    }
}

/// Quality when the second model answers a share 0, 1/`steps`, …, 1 of the queries, for two models.
///
/// # Panics
/// If there are not two models, or no query.
pub fn quality_curve(queries: &ScoredQueries, steps: usize) -> Vec<(f64, f64)> {
    (0..=steps)
        .map(|step| {
            let share = step as f64 / steps as f64;
            let policy = policy_for_fractions(queries, &[1.0 - share, share]);
            let decider = Decider::new(&policy, &queries.models).expect("the policy is made of these models");
            (share, evaluate(&assign(&decider, queries), queries).quality)
        })
        .collect()
}
