//! The planner on small problems: exact against enumeration, the same bytes for the same seed, and a clear no.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod autopilot;
mod blackbox;
mod cascade;
mod classical;
mod disaggregate;
mod explain;
mod replan;

use std::sync::atomic::AtomicBool;

use boute_planner::candidates::candidates;
use boute_planner::deployment::{Column, Effort, Goal, Limits, solve};
use boute_planner::verify::{Traffic, broken, simulate_fleet, simulate_unless_doomed};
use boute_planner::{
    Database, GpuOffer, PlanError, Prepared, Problem, QualityInputs, Step, Strategy, compare, plan,
};
use boute_router::ScoredQueries;
use boute_router::certify::FloorRule;
use boute_spec::catalog::Catalog;
use boute_spec::file::{Lengths, Robust};
use boute_spec::plan::{ModelShare, Objective};
use boute_spec::slo::{Metric, Percentile, SloTarget};
use boute_spec::units::{Seconds, SimTime};
use boute_spec::workload::{Query, Split, Trace, TraceRequest};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn slo(metric: Metric, percentile: Percentile, limit_s: f64) -> SloTarget {
    SloTarget { metric, percentile, limit_s: Seconds::new(limit_s).unwrap(), model: None }
}

fn trace(seed: u64, rate: f64) -> Trace {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    let requests = (0..1500)
        .map(|_| {
            at += -(1.0 - rng.random::<f64>()).ln();
            TraceRequest {
                arrival: SimTime::from_seconds(at),
                input_tokens: rng.random_range(100..1500),
                output_tokens: rng.random_range(20..300),
                ..TraceRequest::default()
            }
        })
        .collect();
    Trace::new(requests).unwrap().at_rate(rate)
}

/// Queries whose difficulty is known up to noise: the small model is right on easy ones.
fn queries(seed: u64, count: usize) -> ScoredQueries {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut queries = ScoredQueries::new(vec!["llama-3.1-8b".into(), "llama-3.1-70b".into()]);
    for id in 0..count {
        let ease: f64 = rng.random();
        let (small, large) = (0.1 + 0.7 * ease, 0.5 + 0.4 * ease);
        let mut draw = |p: f64| if rng.random::<f64>() < p { 1.0 } else { 0.0 };
        let query = Query {
            id: id.to_string(),
            prompt: String::new(),
            task: String::new(),
            split: Split::Test,
            prompt_tokens: Some(200 + id as u32 % 700),
            scores: vec![draw(small), draw(large)],
            output_tokens: vec![220, 200],
        };
        queries.push(&query, [small as f32, large as f32].into_iter(), 0.0);
    }
    queries
}

/// A GPU type that is always there.
fn offer(gpu: &str, usd_per_gpu_hour: f64, stock: Option<u32>) -> GpuOffer {
    GpuOffer { gpu: Catalog::builtin().gpu(gpu).unwrap().clone(), usd_per_gpu_hour, stock, available: 1.0 }
}

fn problem(objective: Objective) -> Problem {
    let catalog = Catalog::builtin();
    Problem {
        models: ["llama-3.1-8b", "llama-3.1-70b"].map(|id| catalog.model(id).unwrap().clone()).into(),
        offers: vec![offer("L40S", 0.9, Some(16)), offer("H100-SXM", 3.0, Some(16))],
        planning_trace: trace(1, 12.0),
        verification_trace: trace(2, 12.0),
        rate: 12.0,
        lengths: Lengths::Trace,
        slo: vec![slo(Metric::E2e, Percentile::P95, 20.0), slo(Metric::Ttft, Percentile::P95, 2.0)],
        quality: Some(QualityInputs {
            planning: queries(3, 1500),
            held_out: queries(4, 1500),
            router_digest: "0".into(),
            router_file: "router.json".into(),
        }),
        floor: Some(FloorRule::Absolute(0.55)),
        confidence: 0.95,
        cascade: None,
        objective,
        budget: None,
        robust: Robust::NOTHING,
        disaggregate: false,
        seed: 0,
        inputs: Vec::new(),
        tool_version: "test".into(),
    }
}

fn quiet(_: &Step) -> bool {
    false
}

fn infeasible(problem: &Problem) -> String {
    match plan(problem, Strategy::Default, &Database::in_memory(), &quiet) {
        Err(PlanError::Infeasible(why)) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_default_plan_keeps_every_promise_and_beats_the_baselines() {
    let problem = problem(Objective::MinCost);
    let results = compare(&problem, &Strategy::ALL, &Database::in_memory(), &quiet).unwrap();
    let cost = |strategy: Strategy| {
        let result = results.iter().find(|result| result.strategy == strategy).unwrap();
        result.plan.as_ref().map_or(f64::INFINITY, |plan| plan.predicted.cost_usd_per_hour.get())
    };
    let default = results[0].plan.as_ref().unwrap();
    assert!(default.verification.passed, "{:?}", default.verification);
    assert!(default.predicted.quality_certified >= 0.55);
    assert!(default.verification.quality >= 0.55);
    let certificate = default.routing.certificate.as_ref().unwrap();
    assert_eq!(certificate.safe_model, "llama-3.1-70b");
    // Each model's own share of the queries keeps what is vouched for of it, on queries that nothing has seen.
    let reference = &certificate.reference;
    for share in &default.routing.models {
        let at = reference.models.iter().position(|model| *model == share.model).unwrap();
        let (least, mean) = (reference.groups[0].at_least[at], share.quality.get());
        assert!(least < mean && least > mean - 0.1, "{}: {least} {mean}", share.model);
    }
    assert!(default.bound.as_ref().unwrap().gap < 0.05);
    for strategy in [Strategy::Homogeneous, Strategy::RoutingUniform, Strategy::RoutingProportional] {
        assert!(
            cost(Strategy::Default) <= cost(strategy) + 1e-6,
            "{strategy}: {} > {}",
            cost(Strategy::Default),
            cost(strategy)
        );
    }
    assert_eq!(cost(Strategy::Default), cost(Strategy::Exact));
}

#[test]
fn a_simulation_is_given_up_only_if_it_breaks_a_promise() {
    let problem = problem(Objective::MinCost);
    let plan = plan(&problem, Strategy::Default, &Database::in_memory(), &quiet).unwrap();
    let queries = &problem.quality.as_ref().unwrap().planning;
    let shares: Vec<_> = problem
        .model_ids()
        .iter()
        .map(|id| {
            let own = plan.routing.models.iter().find(|share| share.model == *id);
            ModelShare { model: id.clone(), ..own.unwrap_or(&plan.routing.models[0]).clone() }
        })
        .collect();
    let (mut kept, mut given_up) = (0, 0);
    for step in 0..16 {
        let trace = problem.planning_trace.at_rate(6.0 + 2.0 * f64::from(step));
        let traffic = Traffic { trace: &trace, queries: Some(queries), stretch: 1.0 };
        let (deployment, policy) = (&plan.deployment, &plan.routing.policy);
        let whole = simulate_fleet(&problem, deployment, policy, None, &shares, traffic);
        let doomed = AtomicBool::new(false);
        if let Some(run) =
            simulate_unless_doomed(&problem, deployment, policy, None, &shares, traffic, &doomed)
        {
            assert_eq!(run, whole);
            kept += usize::from(broken(&problem, &run).is_empty());
        } else {
            assert!(doomed.into_inner() && !broken(&problem, &whole).is_empty());
            given_up += 1;
        }
    }
    assert!(kept > 2 && given_up > 2, "{kept} kept, {given_up} given up");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let problem = problem(Objective::MinCost);
    let bytes =
        || plan(&problem, Strategy::Default, &Database::in_memory(), &quiet).unwrap().to_json_pretty();
    assert_eq!(bytes(), bytes());
}

#[test]
fn every_objective_has_a_plan() {
    for objective in [Objective::MaxRate, Objective::MaxQuality, Objective::Pareto] {
        let mut problem = problem(objective);
        problem.budget = Some(30.0);
        let plan = plan(&problem, Strategy::Default, &Database::in_memory(), &quiet).unwrap();
        assert!(plan.predicted.cost_usd_per_hour.get() <= 30.0 + 1e-6, "{objective:?}");
        assert!(plan.verification.quality > 0.5, "{objective:?}");
        if objective == Objective::MaxRate {
            assert!(plan.predicted.rate.get() > 12.0, "{}", plan.predicted.rate);
        }
    }
}

#[test]
fn lengths_can_come_from_the_queries() {
    let mut problem = problem(Objective::MinCost);
    problem.lengths = Lengths::Quality;
    let plan = plan(&problem, Strategy::Default, &Database::in_memory(), &quiet).unwrap();
    assert!(plan.verification.passed);
    assert_eq!(
        plan.routing.models.iter().map(|share| share.output_length_scale).sum::<f64>(),
        plan.routing.models.len() as f64
    );
}

#[test]
fn a_no_says_what_would_help() {
    let mut dear = problem(Objective::MinCost);
    dear.budget = Some(3.0);
    let text = infeasible(&dear);
    assert!(text.contains("raise the budget to $"), "{text}");

    let mut high = problem(Objective::MinCost);
    high.floor = Some(FloorRule::Absolute(0.9));
    let text = infeasible(&high);
    assert!(
        text.contains("the quality floor of 0.9000 cannot be certified")
            && text.contains("lower the floor to 0."),
        "{text}"
    );

    let mut scarce = problem(Objective::MinCost);
    scarce.offers[0].stock = Some(1);
    scarce.offers[1].stock = Some(1);
    let text = infeasible(&scarce);
    assert!(text.contains("more stock: "), "{text}");

    let mut hasty = problem(Objective::MinCost);
    hasty.slo = vec![slo(Metric::E2e, Percentile::P95, 0.05)];
    let text = infeasible(&hasty);
    assert!(text.contains("loosen e2e_p95") && text.contains("at best"), "{text}");

    let mut tiny = problem(Objective::MinCost);
    tiny.offers.truncate(1);
    tiny.offers[0].gpu = Catalog::builtin().gpu("T4").unwrap().clone();
    tiny.models.remove(0);
    tiny.quality = None;
    tiny.floor = None;
    let text = infeasible(&tiny);
    assert!(text.contains("no model fits the GPUs on offer"), "{text}");
}

#[test]
fn stopping_early_keeps_nothing_half_done() {
    let problem = problem(Objective::MinCost);
    assert!(matches!(
        plan(&problem, Strategy::Default, &Database::in_memory(), &|_| true),
        Err(PlanError::Stopped)
    ));
}

#[test]
fn one_model_needs_no_quality_data() {
    let mut problem = problem(Objective::MinCost);
    problem.models.truncate(1);
    problem.quality = None;
    problem.floor = None;
    let plan = plan(&problem, Strategy::Default, &Database::in_memory(), &quiet).unwrap();
    assert_eq!(plan.routing.models.len(), 1);
    assert!(plan.routing.router.is_empty());
}

#[test]
fn configurations_respect_memory() {
    let (fitting, misfits) = candidates(&problem(Objective::MinCost));
    assert!(fitting.iter().any(|candidate| candidate.model == 1 && candidate.gpus() == 4));
    assert!(fitting.iter().all(|candidate| candidate.model == 0 || candidate.gpus() > 1));
    assert!(!misfits.is_empty());
}

/// Two models, two promises, two offers; a handful of columns.
fn small_programmes() -> impl proptest::strategy::Strategy<Value = (Vec<Column>, f64, Vec<Option<u32>>)> {
    let other = prop::option::of(1_u32..3);
    let column = (0_usize..2, 0_usize..2, 1_u32..3, other, 1.0_f64..4.0, 0.0_f64..0.09);
    (prop::collection::vec(column, 3..6), 0.3_f64..0.7, 2_u32..7, 2_u32..7).prop_map(
        |(columns, share, a, b)| {
            let columns = columns
                .into_iter()
                .enumerate()
                .map(|(candidate, (model, offer, gpus, other, rate, over))| Column {
                    candidate,
                    model,
                    offer,
                    gpus: f64::from(gpus),
                    other: other.map(|gpus| (1 - offer, f64::from(gpus))),
                    usd_per_hour: f64::from(gpus) * [1.0, 2.7][offer]
                        + f64::from(other.unwrap_or_default()) * [2.7, 1.0][offer],
                    available: 1.0,
                    rate,
                    over: vec![over, over / 3.0],
                })
                .collect();
            (columns, share, vec![Some(a), Some(b)])
        },
    )
}

/// The cheapest by trying everything.
fn enumerate(problem: &Problem, columns: &[Column], fractions: &[f64], limits: &Limits) -> Option<f64> {
    fn visit(
        at: usize,
        counts: &mut Vec<u32>,
        columns: &[Column],
        check: &dyn Fn(&[u32]) -> Option<f64>,
        best: &mut Option<f64>,
    ) {
        if at == columns.len() {
            if let Some(cost) = check(counts) {
                *best = Some(best.map_or(cost, |best| best.min(cost)));
            }
            return;
        }
        for count in 0..=7 {
            counts.push(count);
            visit(at + 1, counts, columns, check, best);
            counts.pop();
        }
    }
    let check = |counts: &[u32]| {
        let sum = |of: &dyn Fn(&Column) -> f64| -> f64 {
            columns.iter().zip(counts).map(|(column, count)| of(column) * f64::from(*count)).sum()
        };
        // Each model's load goes to its replicas with the smallest tails first; here one promise's tail is a multiple of the
        // other's, so the order is the same for both.
        let mut over = [0.0; 2];
        let mut carried = true;
        for (model, fraction) in fractions.iter().enumerate() {
            let mut left = fraction * limits.rate;
            let mut of: Vec<(&Column, u32)> =
                columns.iter().zip(counts.iter().copied()).filter(|(it, _)| it.model == model).collect();
            of.sort_by(|a, b| a.0.over[0].total_cmp(&b.0.over[0]));
            for (column, count) in of {
                let load = left.min(column.rate * f64::from(count));
                left -= load;
                (0..2).for_each(|at| over[at] += load * column.over[at]);
            }
            carried &= left <= 1e-9;
        }
        let tails = problem
            .slo
            .iter()
            .zip(over)
            .all(|(target, over)| over <= (1.0 - target.percentile.share()) * limits.rate + 1e-9);
        let stocked = (0..2).all(|offer| {
            limits.stock[offer].is_none_or(|stock| sum(&|it| it.gpus_on(offer)) <= f64::from(stock))
        });
        (carried && tails && stocked).then(|| sum(&|it| it.usd_per_hour))
    };
    let mut best = None;
    visit(0, &mut Vec::new(), columns, &check, &mut best);
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_exact_fleet_is_the_best_of_all((columns, share, stock) in small_programmes()) {
        let problem = problem(Objective::MinCost);
        let limits = Limits { rate: 5.0, budget: None, stock, looser: false, allowed: Vec::new(), beat: None, margins: vec![1.0; 2], required: Vec::new() };
        let fractions = [1.0 - share, share];
        let solved = solve(&problem, &columns, &fractions, &limits, Goal::Cost, Effort::Proof);
        let enumerated = enumerate(&problem, &columns, &fractions, &limits);
        prop_assert_eq!(solved.is_ok(), enumerated.is_some());
        if let (Ok(solved), Some(best)) = (solved, enumerated) {
            prop_assert!((solved.value - best).abs() <= 1e-6, "{}, not {best}", solved.value);
            prop_assert!(solved.bound <= best + 1e-6, "{} > {best}", solved.bound);
        }
    }
}

#[test]
fn a_robust_plan_costs_more_and_stands_more() {
    let plain = problem(Objective::MinCost);
    let mut robust = plain.clone();
    robust.robust = Robust { rate: 1.2, lengths: 1.1, lost_replicas: 1, min_replicas: 3 };
    let [plain_plan, robust_plan] =
        [&plain, &robust].map(|it| plan(it, Strategy::Default, &Database::in_memory(), &quiet).unwrap());
    assert!(robust_plan.verification.passed);
    let cost = |plan: &boute_spec::plan::Plan| plan.predicted.cost_usd_per_hour.get();
    assert!(cost(&robust_plan) > cost(&plain_plan));
    for share in &robust_plan.routing.models {
        let own = robust_plan.deployment.groups.iter().filter(|group| group.model == share.model);
        assert!(own.map(|group| group.replicas).sum::<u32>() >= 3);
    }
}

#[test]
fn spot_capacity_is_worth_what_is_there_of_it() {
    let mut problem = problem(Objective::MinCost);
    problem.models.truncate(1);
    problem.quality = None;
    problem.floor = None;
    let rate_of = |problem: &Problem| {
        let prepared = Prepared::new(problem, &Database::in_memory(), &quiet).unwrap();
        let limits = prepared.search().limits(problem.rate);
        prepared.search().relaxed(prepared.routes(), &limits, Goal::Cost)[0].1
    };
    let firm = rate_of(&problem);
    problem.offers.iter_mut().for_each(|offer| offer.available = 0.8);
    let spot = rate_of(&problem);
    assert!((spot / firm - 1.25).abs() < 0.02, "{spot} {firm}");
}
