//! Planning again: stay, route otherwise, or move, each when it should be.

use std::collections::BTreeMap;

use boute_planner::mix::ScoreMix;
use boute_planner::moving::{Stage, Step, Terms};
use boute_planner::replan::{Answer, Replan, lose, replan};
use boute_planner::{Database, Problem, Strategy, plan};
use boute_router::certify::FloorRule;
use boute_router::decide::Decider;
use boute_router::policy::{assign, evaluate};
use boute_spec::plan::{Objective, Plan, ReplicaGroup};

use super::{problem, quiet, trace};

struct Scene {
    problem: Problem,
    database: Database,
    plan: Plan,
}

fn scene() -> Scene {
    standing(1.05)
}

/// A plan that stands this many times the rate.
fn standing(rate: f64) -> Scene {
    let (mut problem, database) = (problem(Objective::MinCost), Database::in_memory());
    problem.rate = 40.0;
    problem.offers[0].stock = Some(128);
    (problem.planning_trace, problem.verification_trace) = (trace(1, 40.0), trace(2, 40.0));
    problem.floor = Some(FloorRule::Absolute(0.6));
    problem.robust.rate = rate;
    let plan = plan(&problem, Strategy::Exact, &database, &quiet).unwrap();
    Scene { problem, database, plan }
}

impl Scene {
    fn asked(&self, lost: &[(&str, u32)], change: impl FnOnce(&mut Problem)) -> Replan {
        let lost: BTreeMap<String, u32> = lost.iter().map(|(gpu, lost)| ((*gpu).to_owned(), *lost)).collect();
        let mut now = self.problem.clone();
        change(&mut now);
        lose(&mut now, &lost);
        replan(&self.problem, &now, &self.plan, &Terms::default(), &self.database, &quiet).unwrap()
    }

    fn at_rate(&self, factor: f64, seed: u64) -> Replan {
        let rate = factor * self.problem.rate;
        self.asked(&[], |now| {
            now.rate = rate;
            now.planning_trace = trace(seed, rate);
            now.verification_trace = trace(seed + 100, rate);
        })
    }
}

#[test]
fn a_fleet_stays_through_noise_and_moves_when_the_rate_does() {
    let scene = scene();
    let cost = scene.plan.predicted.cost_usd_per_hour.get();
    for (seed, factor) in (10..16).zip([1.0, 0.99, 1.01, 1.0, 0.98, 1.02]) {
        let answer = scene.at_rate(factor, seed);
        assert_eq!(answer.answer, Answer::Stay, "{factor}: {:?}", answer.why);
        assert!(answer.plan.is_none() && (answer.now.usd_per_hour - cost).abs() < 1e-6);
    }

    let half = scene.at_rate(0.4, 20);
    assert_eq!(half.answer, Answer::Move, "{:?}", half.why);
    let plan = half.plan.as_ref().unwrap();
    assert!(plan.verification.passed && half.saving_usd_per_hour > 0.05 * cost);
    assert!((cost - plan.deployment.usd_per_hour() - half.saving_usd_per_hour).abs() < 1e-6);
    assert!(half.pay_back_h.unwrap() < 4.0);

    let more = scene.at_rate(1.8, 30);
    assert_eq!(more.answer, Answer::Move, "{:?}", more.why);
    assert!(!more.now.holds && more.saving_usd_per_hour < 0.0 && more.plan.unwrap().verification.passed);

    // A saving that does not last is none.
    let terms = Terms { horizon_h: 0.001, ..Terms::default() };
    let mut now = scene.problem.clone();
    now.rate *= 0.4;
    (now.planning_trace, now.verification_trace) = (trace(20, now.rate), trace(120, now.rate));
    let short = replan(&scene.problem, &now, &scene.plan, &terms, &scene.database, &quiet);
    let short = short.unwrap();
    assert_eq!(short.answer, Answer::Stay);
    assert!(short.why.iter().any(|why| why.contains("pays back after")), "{:?}", short.why);
}

#[test]
fn what_is_new_runs_before_anything_old_stops() {
    let scene = scene();
    let answer = scene.asked(&[], |now| now.offers[0].usd_per_gpu_hour *= 10.0);
    assert_eq!(answer.answer, Answer::Move, "{:?}", answer.why);
    let moving = answer.moving.unwrap();
    assert_eq!(moving.least_capacity, 1.0);
    let at = |wanted: fn(&Step) -> bool| moving.steps.iter().position(wanted).unwrap();
    let (start, swap) = (at(|it| matches!(it, Step::Start { .. })), at(|it| *it == Step::SwapRoutes));
    assert!(start < at(|it| matches!(it, Step::Wait { .. })) && start < swap);
    assert!(
        swap < at(|it| matches!(it, Step::Drain { .. })) && swap < at(|it| matches!(it, Step::Stop { .. }))
    );
    // The last fleet is the plan's.
    let mut fleets = moving.stages.iter().filter_map(|stage| match stage {
        Stage::Fleet { deployment } => Some(deployment),
        _ => None,
    });
    let groups = |groups: &[ReplicaGroup]| -> BTreeMap<String, u32> {
        groups.iter().map(|group| (group.id.clone(), group.replicas)).collect()
    };
    let last = fleets.next_back().unwrap();
    assert_eq!(groups(&last.groups), groups(&answer.plan.unwrap().deployment.groups));
    // Both are paid for while weights are loaded, which costs money but less than the saving brings within hours.
    assert!(moving.usd > 0.0 && moving.seconds > 180.0);
}

#[test]
fn lost_gpus_are_replaced_within_what_is_left() {
    let scene = scene();
    let group = scene.plan.deployment.groups.iter().max_by_key(|group| group.gpus()).unwrap();
    let uses = |plan: &Plan| -> u32 {
        plan.deployment.groups.iter().filter(|it| it.gpu == group.gpu).map(ReplicaGroup::gpus).sum()
    };
    // As long as others of the type are free, nothing is missing.
    let free = 16 - uses(&scene.plan);
    assert_eq!(scene.asked(&[(&group.gpu, free)], |_| {}).answer, Answer::Stay);
    let answer = scene.asked(&[(&group.gpu, free + 1)], |_| {});
    assert_eq!(answer.answer, Answer::Move, "{:?}", answer.why);
    assert!(uses(&answer.plan.unwrap()) < uses(&scene.plan));
}

#[test]
fn a_shift_to_harder_queries_is_answered_by_routing_alone() {
    let scene = standing(1.8);
    let quality = scene.problem.quality.as_ref().unwrap();
    let policy = &scene.plan.routing.policy;
    let expected = ScoreMix::expected(&quality.planning, policy).unwrap();
    // The same mix on other queries is no shift; half of the easy ones gone is one.
    let other = ScoreMix::expected(&quality.held_out, policy).unwrap();
    assert!(!other.shifted(&expected));
    let mut number = 0;
    let harder = quality.held_out.only(|query| {
        number += 1;
        quality.held_out.predicted(query)[0] < 0.45 || number % 2 == 0
    });
    let observed = ScoreMix::expected(&harder, policy).unwrap();
    assert!(observed.shifted(&expected));

    let as_it_is = observed.applied_to(&scene.problem, policy).unwrap();
    let again = ScoreMix::expected(&as_it_is.planning, policy).unwrap();
    assert!(!again.shifted(&observed), "the planning queries have the observed mix");
    let answer = scene.asked(&[], |now| {
        now.quality = Some(as_it_is.clone());
    });
    assert_eq!(answer.answer, Answer::ReRoute, "{:?}", answer.why);
    let plan = answer.plan.unwrap();
    assert_eq!(plan.deployment.usd_per_hour(), scene.plan.deployment.usd_per_hour());
    let quality_of = |policy: &_| {
        let decider = Decider::new(policy, &harder.models).unwrap();
        evaluate(&assign(&decider, &harder), &harder).quality
    };
    assert!(quality_of(&plan.routing.policy) > quality_of(policy));
    assert!(plan.predicted.quality_certified >= 0.6 - 1e-9);
}
