//! Plans whose answers may be asked for again.

use boute_planner::{Database, Problem, Strategy, plan};
use boute_router::ScoredQueries;
use boute_router::certify::FloorRule;
use boute_spec::plan::{Objective, Plan};
use boute_spec::slo::{Metric, Percentile};

use crate::{problem, quiet, slo};

/// The small model's answer is long where it is wrong.
fn telling(mut queries: ScoredQueries) -> ScoredQueries {
    for query in 0..queries.len() {
        queries.output_tokens[2 * query] = if queries.actual(query, 0) > 0.0 { 150 } else { 600 };
    }
    queries
}

fn planned(cascade: Option<f64>, tells: bool) -> Plan {
    let mut problem = Problem {
        cascade,
        slo: vec![slo(Metric::E2e, Percentile::P95, 30.0)],
        floor: Some(FloorRule::Absolute(0.48)),
        ..problem(Objective::MinCost)
    };
    if let Some(quality) = problem.quality.as_mut().filter(|_| tells) {
        quality.planning = telling(quality.planning.clone());
        quality.held_out = telling(quality.held_out.clone());
    }
    plan(&problem, Strategy::Exact, &Database::in_memory(), &quiet).unwrap()
}

/// Requests per second that the replicas of a model are planned to take.
fn rate_of(plan: &Plan, model: &str) -> f64 {
    let groups = plan.deployment.groups.iter().filter(|group| group.model == model);
    groups.map(|group| group.planned_rate_per_replica.get() * f64::from(group.replicas)).sum()
}

#[test]
fn the_larger_model_is_sized_for_second_answers() {
    let plan = planned(Some(0.1), true);
    let cascade = plan.routing.cascade.clone().unwrap();
    assert_eq!((&*cascade.from, &*cascade.to), ("llama-3.1-8b", "llama-3.1-70b"));
    assert!((0.02..=0.1).contains(&cascade.max_share.get()) && cascade.min_gain > 0.0, "{cascade:?}");
    let share = |model: &str| {
        plan.routing.models.iter().find(|share| share.model == model).unwrap().load_fraction.get()
    };
    let rate = plan.predicted.rate.get();
    let (small, large) = (share("llama-3.1-8b"), share("llama-3.1-70b"));
    assert!((rate_of(&plan, "llama-3.1-8b") / (small * rate) - 1.0).abs() < 1e-6);
    assert!(
        (rate_of(&plan, "llama-3.1-70b") / ((large + cascade.max_share.get()) * rate) - 1.0).abs() < 1e-6
    );
    assert!(plan.verification.passed);
    assert_eq!(Plan::parse("plan.json", &plan.to_json_pretty()), Ok(plan));
}

#[test]
fn there_is_no_cascade_that_is_not_shown_to_be_worth_it() {
    // Fifteen answers, and their length tells nothing.
    let plan = planned(Some(0.01), false);
    assert_eq!((plan.routing.models.len(), plan.routing.cascade.clone()), (2, None));
}
