//! From a route and a fleet to a checked plan with its predictions.

use std::collections::BTreeMap;

use boute_mobo::pareto::non_dominated;
use boute_perf::interval::{CONFIDENCE, Spread};
use boute_router::certify::{FloorRule, lower_bound};
use boute_router::{ScoredQueries, monitor};
use boute_spec::catalog::Source;
use boute_spec::certificate::Certificate;
use boute_spec::outcome::Outcome;
use boute_spec::plan::{
    Binding, Bound, Deployment, FrontPoint, Instances, Interval, InvalidPlan, ModelShare, Objective,
    PLAN_VERSION, Plan, PlanDraft, Predicted, PredictedMs, PredictedPercentiles, Routing, Targets,
    Verification,
};
use boute_spec::policy::RoutingPolicy;
use boute_spec::slo::{Metric, Percentile};
use boute_spec::units::{Fraction, RequestsPerSecond, UsdPerHour};

use crate::candidates::Candidate;
use crate::deployment::Fleet;
use crate::problem::{Problem, QualityInputs};
use crate::routing::Route;
use crate::strategies::Strategy;
use crate::table::{Table, source_of, spread_of};

/// The fleet as groups: levels of one candidate are merged, its replicas share the model's load in proportion to what the
/// levels were meant to carry.
pub fn deployment(candidates: &[Candidate], fleet: &Fleet, fractions: &[f64], rate: f64) -> Deployment {
    let mut planned: BTreeMap<usize, (u32, f64)> = BTreeMap::new();
    let mut carried = vec![0.0; fractions.len()];
    for (column, count) in &fleet.replicas {
        let entry = planned.entry(column.candidate).or_default();
        entry.0 += count;
        entry.1 += column.rate * f64::from(*count);
        carried[column.model] += column.rate * f64::from(*count);
    }
    let groups = planned
        .into_iter()
        .map(|(candidate, (count, capacity))| {
            let candidate = &candidates[candidate];
            let load = fractions[candidate.model] * rate * capacity / carried[candidate.model];
            candidate.group(count, load / f64::from(count))
        })
        .collect();
    Deployment { groups }
}

/// What each model does under a route; in the order of the problem's models.
pub fn shares(problem: &Problem, route: &Route) -> Vec<ModelShare> {
    let scales = problem.output_scales();
    (0..problem.models.len())
        .map(|model| {
            let (prompt, answer) = mean_tokens(problem, route, model, scales[model]);
            let fraction = |value: f64| Fraction::new(value.clamp(0.0, 1.0)).unwrap_or_default();
            ModelShare {
                model: problem.models[model].id.clone(),
                load_fraction: fraction(route.answered(model)),
                quality: fraction(route.stats.quality_by_model[model]),
                output_length_scale: scales[model],
                mean_prompt_tokens: prompt,
                mean_answer_tokens: answer,
            }
        })
        .collect()
}

/// Mean prompt and answer of what a model is routed.
fn mean_tokens(problem: &Problem, route: &Route, model: usize, scale: f64) -> (f64, f64) {
    let requests = problem.planning_trace.requests();
    let lengths: Vec<(u32, u32)> = match (&problem.quality, problem.lengths) {
        (Some(quality), boute_spec::file::Lengths::Quality) => (0..quality.planning.len())
            .filter(|query| route.assignment[*query] == model)
            .map(|query| problem.tokens(&requests[0], Some((&quality.planning, query)), model, scale))
            .collect(),
        _ => requests.iter().map(|request| problem.tokens(request, None, model, scale)).collect(),
    };
    let count = lengths.len().max(1) as f64;
    let (prompt, answer) = lengths
        .iter()
        .fold((0.0, 0.0), |(prompt, answer), at| (prompt + f64::from(at.0), answer + f64::from(at.1)));
    (prompt / count, answer / count)
}

/// The largest rate at which this deployment keeps all promises, by the table: every replica's load grows alike.
pub fn max_rate(
    problem: &Problem,
    candidates: &[Candidate],
    table: &Table,
    fleet: &Fleet,
    route: &Route,
) -> f64 {
    let fractions = &route.stats.fractions;
    let levels = table.levels(fractions);
    let mut carried = vec![0.0; fractions.len()];
    for (column, count) in &fleet.replicas {
        carried[column.model] += column.rate * f64::from(*count);
    }
    let holds = |rate: f64| {
        let mut over = vec![0.0; problem.slo.len()];
        for (column, count) in &fleet.replicas {
            let load = column.rate * fractions[column.model] * rate / carried[column.model];
            let Some(at_load) = interpolate(&levels[column.candidate], load) else { return false };
            for (sum, share) in over.iter_mut().zip(at_load) {
                *sum += share * load * f64::from(*count);
            }
        }
        problem.slo.iter().zip(&over).all(|(target, over)| {
            let part = target.model.as_ref().map_or(1.0, |id| {
                candidates
                    .iter()
                    .find(|candidate| candidate.config.model.id == *id)
                    .map_or(0.0, |candidate| fractions[candidate.model])
            });
            *over <= (1.0 - target.percentile.share()) * part * rate + 1e-9
        })
    };
    let (mut low, mut high) = (0.0, 100.0 * problem.rate);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Shares over the limits at a load between the levels; `None` beyond the last.
fn interpolate(levels: &[crate::table::Level], load: f64) -> Option<Vec<f64>> {
    let above = levels.iter().position(|level| level.sustained && level.rate >= load * (1.0 - 1e-9))?;
    let upper = &levels[above];
    let Some(lower) = above.checked_sub(1).map(|below| &levels[below]) else {
        return Some(upper.over.clone());
    };
    let part = (load - lower.rate) / (upper.rate - lower.rate);
    Some(
        lower
            .over
            .iter()
            .zip(&upper.over)
            .map(|(low, high)| low + part.clamp(0.0, 1.0) * (high - low))
            .collect(),
    )
}

/// All that a plan is made of.
pub struct Parts<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// Configurations.
    pub candidates: &'a [Candidate],
    /// The table.
    pub table: &'a Table,
    /// The strategy.
    pub strategy: Strategy,
    /// The chosen route.
    pub route: &'a Route,
    /// The chosen fleet.
    pub fleet: &'a Fleet,
    /// The fleet as groups.
    pub deployment: Deployment,
    /// Rate the plan is for.
    pub rate: f64,
    /// On the traffic it was planned on.
    pub planned: &'a Outcome,
    /// On other traffic and held-out queries.
    pub verification: Verification,
    /// Distance from the optimum.
    pub bound: Option<Bound>,
    /// Other plans.
    pub front: Vec<FrontPoint>,
    /// What binds.
    pub binding: Vec<Binding>,
}

/// The checked plan.
///
/// # Errors
/// If the parts do not hold together, which would be a fault of the planner.
pub fn assemble(parts: Parts<'_>) -> Result<Plan, InvalidPlan> {
    let Parts { problem, route, fleet, .. } = parts;
    let all_shares = shares(problem, route);
    let chosen = route.policy.models();
    let shares: Vec<ModelShare> =
        chosen.iter().filter_map(|id| all_shares.iter().find(|share| share.model == *id).cloned()).collect();
    let constant = matches!(route.policy, RoutingPolicy::Constant { .. });
    let router = problem.quality.as_ref().filter(|_| !constant);
    let cost = parts.deployment.usd_per_hour();
    let tokens: f64 = shares
        .iter()
        .map(|share| share.load_fraction.get() * (share.mean_prompt_tokens + share.mean_answer_tokens))
        .sum();
    let source =
        fleet.replicas.iter().map(|(column, _)| source_of(&parts.candidates[column.candidate])).max();
    let source = source.unwrap_or(Source::Assumed);
    let spreads = fleet.replicas.iter().map(|(column, _)| spread_of(&parts.candidates[column.candidate]));
    let spread = spreads.reduce(Spread::widest).unwrap_or(Spread::UNKNOWN);
    let times = |metric: Metric| percentiles(parts.planned, metric, source, spread);
    let max_rate = max_rate(problem, parts.candidates, parts.table, fleet, route).max(parts.rate);
    let rate_of = |rate: f64| RequestsPerSecond::new(rate).unwrap_or_default();
    let uses = |group_uses: &dyn Fn(&boute_spec::plan::ReplicaGroup) -> bool| {
        parts.deployment.groups.iter().any(group_uses)
    };
    let draft = PlanDraft {
        version: PLAN_VERSION,
        tool_version: problem.tool_version.clone(),
        seed: problem.seed,
        strategy: parts.strategy.name().into(),
        targets: targets(problem),
        inputs: problem.inputs.clone(),
        models: problem
            .models
            .iter()
            .filter(|model| uses(&|group| group.model == model.id))
            .cloned()
            .collect(),
        gpus: problem
            .offers
            .iter()
            .map(|offer| &offer.gpu)
            .filter(|gpu| uses(&|group| group.instances().iter().any(|it| it.gpu == gpu.name)))
            .cloned()
            .collect(),
        routing: Routing {
            policy: route.policy.clone(),
            router_digest: router.map(|quality| quality.router_digest.clone()).unwrap_or_default(),
            router: router.map(|quality| quality.router_file.clone()).unwrap_or_default(),
            models: shares,
            fallback: BTreeMap::new(),
            certificate: certificate(problem, route),
            cascade: route.cascade.clone(),
        },
        predicted: Predicted {
            cost_usd_per_hour: UsdPerHour::new(cost).unwrap_or_default(),
            rate: rate_of(parts.rate),
            max_rate: rate_of(max_rate),
            usd_per_million_tokens: cost / (parts.rate * tokens * 3600.0) * 1e6,
            ttft: times(Metric::Ttft),
            tpot: times(Metric::Tpot),
            e2e: times(Metric::E2e),
            quality: quality_interval(problem, route),
            quality_certified: certified_quality(problem, route),
        },
        deployment: parts.deployment,
        verification: parts.verification,
        bound: parts.bound,
        front: parts.front,
        binding: parts.binding,
    };
    Plan::try_from(draft)
}

/// What the floor rests on: the planning queries, divided as the route divides them. Each model's mean is vouched for with a
/// part of the error that the floor's own test may have.
fn certificate(problem: &Problem, route: &Route) -> Option<Certificate> {
    let queries = &problem.quality.as_ref().filter(|_| route.certified.is_some_and(|it| it.holds))?.planning;
    let models = route.policy.models();
    let chosen = (0..queries.models.len()).filter(|model| models.contains(&queries.models[*model].as_str()));
    let total = |model: usize| -> f64 { (0..queries.len()).map(|query| queries.actual(query, model)).sum() };
    let safe = chosen.max_by(|a, b| total(*a).total_cmp(&total(*b)))?;
    let delta = route.delta / models.len() as f64;
    let answered = |query: usize, model: usize| route.assignment[query] == model;
    let reference = monitor::reference(queries, answered, &[], |_| None, delta);
    Some(Certificate { safe_model: queries.models[safe].clone(), reference })
}

fn targets(problem: &Problem) -> Targets {
    Targets {
        objective: problem.objective,
        slo: problem.slo.clone(),
        floor: floor_value(problem).and_then(Fraction::new),
        confidence: Fraction::new(problem.confidence).unwrap_or_default(),
        budget_usd_per_hour: problem.budget.and_then(UsdPerHour::new),
    }
}

/// The floor as a score: a relative floor by the model's mean on the planning queries.
pub fn floor_value(problem: &Problem) -> Option<f64> {
    floor_on(problem, |quality| &quality.planning)
}

/// The same by the model's mean on the queries that are picked.
pub(crate) fn floor_on(problem: &Problem, pick: fn(&QualityInputs) -> &ScoredQueries) -> Option<f64> {
    match (problem.floor?, &problem.quality) {
        (FloorRule::Absolute(floor), _) => Some(floor),
        (FloorRule::Relative { share, model }, Some(quality)) => {
            let queries = pick(quality);
            let sum: f64 = (0..queries.len()).map(|query| queries.actual(query, model)).sum();
            Some(share * sum / queries.len().max(1) as f64)
        }
        (FloorRule::Relative { .. }, None) => None,
    }
}

/// E2E consists mostly of TPOT, and is as far off.
fn percentiles(outcome: &Outcome, metric: Metric, source: Source, spread: Spread) -> PredictedPercentiles {
    let [low, high] = if metric == Metric::Ttft { spread.ttft } else { spread.tpot };
    let at = |percentile| {
        let value_ms = outcome.percentile_ms(metric, percentile);
        PredictedMs {
            value_ms,
            low_ms: value_ms * low,
            high_ms: value_ms * high,
            confidence: CONFIDENCE,
            source,
        }
    };
    PredictedPercentiles { p50: at(Percentile::P50), p95: at(Percentile::P95), p99: at(Percentile::P99) }
}

/// Scores of the answers on the planning queries.
fn scores(problem: &Problem, route: &Route) -> Vec<f64> {
    let Some(quality) = &problem.quality else { return Vec::new() };
    route.assignment.iter().enumerate().map(|(query, model)| quality.planning.actual(query, *model)).collect()
}

/// Mean on the planning queries ± the normal 95 % interval.
fn quality_interval(problem: &Problem, route: &Route) -> Interval {
    let scores = scores(problem, route);
    let count = scores.len().max(1) as f64;
    let value = route.stats.quality;
    let variance = scores.iter().map(|score| (score - value) * (score - value)).sum::<f64>() / count;
    let half = 1.96 * (variance / count).sqrt();
    Interval { value, low: (value - half).max(0.0), high: (value + half).min(1.0), confidence: 0.95 }
}

/// The score that holds with the spec's confidence. Under a relative floor the tested quantity is the difference to the
/// share of the reference model's score, so what holds is the floor plus the certified part of that difference.
pub(crate) fn certified_quality(problem: &Problem, route: &Route) -> f64 {
    match (problem.floor, route.certified, floor_value(problem)) {
        (Some(FloorRule::Relative { .. }), Some(certified), Some(floor)) => floor + certified.lower_bound,
        _ => lower_bound(&scores(problem, route), route.delta),
    }
}

/// A fleet in words.
pub fn in_words(deployment: &Deployment) -> String {
    let groups: Vec<String> = deployment
        .groups
        .iter()
        .map(|group| {
            let gpus = |it: &Instances<'_>| match (it.tp, it.pp) {
                (1, 1) => it.gpu.to_owned(),
                (tp, 1) => format!("{tp}×{}", it.gpu),
                (tp, pp) => format!("{tp}×{pp}×{}", it.gpu),
            };
            let on = match &group.instances()[..] {
                [prefill, decode] => format!(
                    "{} of {} that prefill for {} of {}",
                    prefill.count,
                    gpus(prefill),
                    decode.count,
                    gpus(decode)
                ),
                engines => engines.iter().map(gpus).collect(),
            };
            format!("{}× {} on {on}", group.replicas, group.model)
        })
        .collect();
    groups.join(" + ")
}

/// The points that no other beats: in cost and quality, or in rate and quality where the rate was optimised. The chosen
/// one stays.
pub fn front(objective: Objective, mut points: Vec<FrontPoint>) -> Vec<FrontPoint> {
    let price = |point: &FrontPoint| match objective {
        Objective::MaxRate => -point.max_rate,
        _ => point.cost_usd_per_hour,
    };
    let coordinates: Vec<Vec<f64>> = points.iter().map(|point| vec![price(point), -point.quality]).collect();
    let kept = non_dominated(&coordinates);
    let mut index = 0;
    points.retain(|point| {
        let keep = point.chosen || kept.contains(&index);
        index += 1;
        keep
    });
    points.sort_by(|a, b| {
        a.cost_usd_per_hour.total_cmp(&b.cost_usd_per_hour).then(a.quality.total_cmp(&b.quality))
    });
    points
}
