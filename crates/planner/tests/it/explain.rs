//! Explanations agree with the planner, and an interrupted plan goes on where it stopped.

use std::sync::atomic::{AtomicU64, Ordering};

use boute_planner::{Database, ExplainError, Question, Step, Strategy, Verdict, explain, plan, resume};
use boute_planner::{PlanError, Problem};
use boute_router::certify::FloorRule;
use boute_spec::catalog::Catalog;
use boute_spec::plan::Objective;

use super::{problem, quiet};

fn asked(why_not: &str) -> Question {
    Question { why_not: Some(why_not.into()), sensitivity: false }
}

/// Small enough that a test may solve it a dozen times.
fn small() -> Problem {
    let mut problem = problem(Objective::MinCost);
    problem.offers.push(boute_planner::GpuOffer {
        gpu: Catalog::builtin().gpu("T4").unwrap().clone(),
        usd_per_gpu_hour: 0.6,
        stock: Some(4),
        available: 1.0,
    });
    problem
}

#[test]
fn a_plan_is_explained() {
    let problem = small();
    let database = Database::in_memory();
    let plan = plan(&problem, Strategy::Exact, &database, &quiet).unwrap();
    let cost = plan.predicted.cost_usd_per_hour.get();
    let question = Question { why_not: Some("llama-3.1-70b on T4".into()), sensitivity: true };
    let explained = explain(&problem, &plan, &question, &database, &quiet).unwrap();
    assert!((explained.plan.value - cost).abs() < 1e-6, "{} {cost}", explained.plan.value);
    assert!(explained.summary.contains("% of the queries to llama-3.1-"), "{}", explained.summary);

    // The best of another kind is no better than the proven optimum allows.
    assert!(explained.runners_up.len() >= 3, "{:?}", explained.runners_up);
    let bound = plan.bound.as_ref().unwrap().value;
    for other in &explained.runners_up {
        let Some(alternative) = &other.plan else { continue };
        assert!(alternative.value >= bound - 1e-6, "{other:?}");
        assert!((other.difference.unwrap() - (alternative.value - cost)).abs() < 1e-6);
        let here = (&explained.plan.fleet, &explained.plan.load_fractions);
        assert_ne!((&alternative.fleet, &alternative.load_fractions), here);
        for kind in other.kind.split("; ") {
            if let Some(name) = kind.strip_suffix(" alone") {
                assert!(alternative.fleet.split(" + ").all(|group| group.ends_with(name)), "{other:?}");
            }
            if let Some(pair) = kind.strip_prefix("without ") {
                let (model, gpu) = pair.split_once(" on ").unwrap();
                let uses = |group: &str| group.contains(model) && group.ends_with(gpu);
                assert!(!alternative.fleet.split(" + ").any(uses), "{other:?}");
            }
        }
    }

    // What does not fit is said with its memory.
    let why = explained.why_not.unwrap();
    assert_eq!(why.verdict, Verdict::Impossible);
    assert!(why.reasons[0].contains("GiB"), "{why:?}");

    let scenario = |change: &str| explained.sensitivity.iter().find(|it| it.change == change).unwrap();
    assert_eq!(explained.sensitivity.len(), 4 + 2 * problem.offers.len());
    assert!(scenario("rate -20%").holds && !scenario("rate +20%").holds);
    let optimum = |change: &str| scenario(change).optimum.as_ref().unwrap().value;
    assert!(optimum("rate -20%") <= cost + 1e-6 && optimum("rate -20%") < optimum("rate +20%"));
    assert!(optimum("answers -20%") < optimum("answers +20%"));
    assert!(scenario("answers -20%").holds);
    let regret = scenario("rate -20%").regret.unwrap();
    assert!((regret - (cost - optimum("rate -20%"))).abs() < 1e-6);
    // A cheaper GPU never makes the best plan dearer.
    for on_offer in &problem.offers {
        let cheaper = scenario(&format!("price of {} -20%", on_offer.gpu.name));
        assert!(cheaper.optimum.as_ref().unwrap().value <= cost * 1.01, "{cheaper:?}");
    }
}

#[test]
fn forcing_something_in_has_a_price_or_a_reason() {
    let problem = small();
    let database = Database::in_memory();
    let plan = plan(&problem, Strategy::Exact, &database, &quiet).unwrap();
    let cost = plan.predicted.cost_usd_per_hour.get();
    let used = |model: &str, gpu: &str| {
        plan.deployment.groups.iter().any(|group| group.model == model && group.gpu == gpu)
    };
    for model in ["llama-3.1-8b", "llama-3.1-70b"] {
        for gpu in ["L40S", "H100-SXM"] {
            let question = asked(&format!("{model} on {gpu}"));
            let why = explain(&problem, &plan, &question, &database, &quiet).unwrap().why_not.unwrap();
            if used(model, gpu) {
                assert_eq!(why.verdict, Verdict::InPlan);
                continue;
            }
            assert_eq!(why.verdict, Verdict::Possible, "{why:?}");
            let forced = why.plan.unwrap();
            let group = |group: &str| group.contains(model) && group.ends_with(gpu);
            assert!(forced.fleet.split(" + ").any(group), "{}", forced.fleet);
            assert!((why.difference.unwrap() - (forced.cost_usd_per_hour - cost)).abs() < 1e-6);
            assert!(why.difference.unwrap() > -0.01 * cost);
        }
    }

    let about = |problem: &Problem, what: &str| {
        let why = explain(problem, &plan, &asked(what), &database, &quiet).unwrap().why_not.unwrap();
        (why.verdict, why.reasons.join("; "))
    };
    // An 8B model on eight GPUs is dominated by fewer.
    let (verdict, why) = about(&problem, "llama-3.1-8b on 8×L40S");
    assert!(verdict == Verdict::Impossible && why.contains("is dominated by"), "{why}");
    // A small model that may not answer anything at all.
    let mut high = problem.clone();
    high.floor = Some(FloorRule::Absolute(0.6795));
    let large_alone = boute_planner::plan(&high, Strategy::Exact, &database, &quiet).unwrap();
    let why =
        explain(&high, &large_alone, &asked("llama-3.1-8b"), &database, &quiet).unwrap().why_not.unwrap();
    assert_eq!(why.verdict, Verdict::Impossible);
    assert!(why.reasons.join("; ").contains("it breaks the floor"), "{why:?}");

    let unknown = explain(&problem, &plan, &asked("gpt-4 on L40S"), &database, &quiet);
    assert!(matches!(&unknown, Err(ExplainError::Unknown(text)) if text.contains("`gpt-4` is neither")));
    let mut without = problem.clone();
    let gpu = plan.deployment.groups[0].gpu.clone();
    without.offers.retain(|offer| offer.gpu.name != gpu);
    let other = explain(&without, &plan, &Question::default(), &database, &quiet);
    assert!(matches!(other, Err(ExplainError::OtherProblem(_))));
}

#[test]
fn a_plan_that_was_stopped_goes_on() {
    let problem = problem(Objective::MinCost);
    let database = Database::in_memory();
    let whole = plan(&problem, Strategy::Default, &database, &quiet).unwrap();
    let searching = |step: &Step| !step.message.contains("replica configurations");
    // Stopped at once after the table, in the search and at its end: a plan with its gap each time.
    let after = |steps: u64| {
        let seen = AtomicU64::new(0);
        plan(&problem, Strategy::Default, &database, &|step| {
            searching(step) && seen.fetch_add(1, Ordering::Relaxed) >= steps
        })
        .unwrap()
    };
    let value = |plan: &boute_spec::plan::Plan| plan.predicted.cost_usd_per_hour.get();
    let bound = |plan: &boute_spec::plan::Plan| plan.bound.clone().unwrap();
    for stop in [0, 1, 3] {
        let early = after(stop);
        assert!(bound(&early).value <= value(&whole) + 1e-6);
        let on = resume(&problem, Strategy::Default, &early, &database, &quiet).unwrap();
        assert!(on.verification.passed);
        assert!(!early.verification.passed || value(&on) <= value(&early) + 1e-6);
        assert!(bound(&on).value >= bound(&early).value - 1e-9);
        assert!(value(&on) <= value(&whole) * 1.01, "{} {}", value(&on), value(&whole));
    }

    // Nothing better than the whole plan: it comes back, even if the search is stopped at once.
    for stop in [false, true] {
        let again =
            resume(&problem, Strategy::Default, &whole, &database, &|step| stop && searching(step)).unwrap();
        assert_eq!(again.deployment, whole.deployment);
        assert!(bound(&again).value >= bound(&whole).value - 1e-9);
    }
    let mut other = problem.clone();
    other.offers[0].usd_per_gpu_hour *= 2.0;
    other.offers[1].usd_per_gpu_hour *= 2.0;
    let refused = resume(&other, Strategy::Default, &whole, &database, &quiet);
    assert!(matches!(&refused, Err(PlanError::OtherProblem(why)) if why.contains("/h now")), "{refused:?}");
    other = problem.clone();
    other.seed = 7;
    let refused = resume(&other, Strategy::Default, &whole, &database, &quiet);
    assert!(
        matches!(&refused, Err(PlanError::OtherProblem(why)) if why.contains("seed 0, not 7")),
        "{refused:?}"
    );
}

/// A shelf that counts what it is given.
struct Counting(std::sync::Arc<AtomicU64>);

impl boute_planner::Shelf for Counting {
    fn read(&self, _: &str) -> Option<String> {
        None
    }
    fn write(&self, _: &str, _: &str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_measured_before_a_stop_is_kept() {
    let kept = std::sync::Arc::new(AtomicU64::new(0));
    let database = Database::on(Box::new(Counting(std::sync::Arc::clone(&kept))));
    let seen = AtomicU64::new(0);
    let stopped = plan(&problem(Objective::MinCost), Strategy::Default, &database, &|_| {
        seen.fetch_add(1, Ordering::Relaxed) >= 4
    });
    assert!(matches!(stopped, Err(PlanError::Stopped)));
    assert!(kept.load(Ordering::Relaxed) > 0);
}
