//! Disaggregated replicas: where they win, that they cost nothing where they do not, and that who did not ask has none.

use boute_planner::{Database, Problem, Question, Strategy, Verdict, explain, plan, resume};
use boute_spec::catalog::Catalog;
use boute_spec::plan::{Objective, Plan, PlanDraft};
use boute_spec::slo::{Metric, Percentile};
use boute_spec::units::SimTime;
use boute_spec::workload::{Trace, TraceRequest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{offer, problem, quiet, slo};

/// Long prompts, short answers.
fn documents(seed: u64) -> Trace {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    let requests = (0..1200).map(|_| {
        at += -(1.0 - rng.random::<f64>()).ln();
        TraceRequest {
            arrival: SimTime::from_seconds(at),
            input_tokens: rng.random_range(3000..8000),
            output_tokens: rng.random_range(20..60),
            ..TraceRequest::default()
        }
    });
    Trace::new(requests.collect()).unwrap().at_rate(6.0)
}

/// One model, a tail of TPOT that a prompt in between breaks, and few GPUs of the cheaper type.
fn tight(disaggregate: bool) -> Problem {
    let catalog = Catalog::builtin();
    Problem {
        models: vec![catalog.model("llama-3.1-8b").unwrap().clone()],
        offers: vec![offer("L40S", 0.86, Some(4)), offer("H100-SXM", 2.4, Some(32))],
        planning_trace: documents(1),
        verification_trace: documents(2),
        rate: 6.0,
        slo: vec![slo(Metric::Tpot, Percentile::P99, 0.02), slo(Metric::Ttft, Percentile::P95, 3.0)],
        quality: None,
        floor: None,
        disaggregate,
        ..problem(Objective::MinCost)
    }
}

fn planned(problem: &Problem, strategy: Strategy, database: &Database) -> Plan {
    plan(problem, strategy, database, &quiet).unwrap()
}

fn cost(plan: &Plan) -> f64 {
    plan.predicted.cost_usd_per_hour.get()
}

fn disaggregated(plan: &Plan) -> usize {
    plan.deployment.groups.iter().filter(|group| group.disaggregated.is_some()).count()
}

#[test]
fn two_gpu_types_share_the_work_where_the_tail_is_tight_and_prompts_are_long() {
    let database = Database::in_memory();
    let whole = planned(&tight(false), Strategy::Default, &database);
    let split = planned(&tight(true), Strategy::Default, &database);
    assert_eq!((disaggregated(&whole), disaggregated(&split)), (0, split.deployment.groups.len()));
    assert!(cost(&split) < 0.8 * cost(&whole), "{} {}", cost(&split), cost(&whole));
    assert!(whole.verification.passed && split.verification.passed);
    let bound = split.bound.as_ref().unwrap();
    assert!(bound.value <= cost(&split) + 1e-9 && bound.gap < 0.05, "{bound:?}");

    // Both stocks hold, and the rent is that of all GPUs.
    let gpus = |name: &str| -> u32 {
        let of = |group: &boute_spec::plan::ReplicaGroup| -> u32 {
            let own = group.instances().into_iter().filter(|it| it.gpu == name);
            own.map(|it| it.gpus()).sum::<u32>() * group.replicas
        };
        split.deployment.groups.iter().map(of).sum()
    };
    let (small, large) = (gpus("L40S"), gpus("H100-SXM"));
    assert!((1..=4).contains(&small) && (1..=32).contains(&large), "{small} {large}");
    assert!((cost(&split) - f64::from(small) * 0.86 - f64::from(large) * 2.4).abs() < 1e-6);
    assert_eq!(split.gpus.len(), 2);

    // The same bytes again, from a database that knows everything and from one that knows nothing; and from the file.
    let bytes = split.to_json_pretty();
    assert_eq!(planned(&tight(true), Strategy::Default, &database).to_json_pretty(), bytes);
    assert_eq!(planned(&tight(true), Strategy::Default, &Database::in_memory()).to_json_pretty(), bytes);
    assert_eq!(Plan::parse("plan.json", &bytes), Ok(split.clone()));
    let resumed = resume(&tight(true), Strategy::Default, &split, &database, &quiet).unwrap();
    assert!(cost(&resumed) <= cost(&split) + 1e-9);

    let question = Question { why_not: Some("llama-3.1-8b on L40S".into()), sensitivity: true };
    let explained = explain(&tight(true), &split, &question, &database, &quiet).unwrap();
    assert!(explained.summary.contains(" that prefill for "), "{}", explained.summary);
    assert_eq!(explained.why_not.unwrap().verdict, Verdict::InPlan);
    let without = explained.runners_up.iter().find(|it| it.kind.contains("without disaggregation")).unwrap();
    assert!(without.difference.unwrap() > 0.2 * cost(&split), "{without:?}");
    let dearer = explained.sensitivity.iter().find(|it| it.change == "price of L40S +20%").unwrap();
    assert!((dearer.value.unwrap() - cost(&split) - 0.2 * 0.86 * f64::from(small)).abs() < 1e-6);
}

#[test]
fn who_may_disaggregate_never_pays_more() {
    let database = Database::in_memory();
    let whole = problem(Objective::MinCost);
    let both = Problem { disaggregate: true, ..whole.clone() };
    let (off, on) =
        (planned(&whole, Strategy::Default, &database), planned(&both, Strategy::Default, &database));
    assert!(cost(&on) <= cost(&off) + 1e-9, "{} {}", cost(&on), cost(&off));
    assert!(on.verification.passed && off.verification.passed);
    // More candidates have no higher optimum.
    assert!(on.bound.as_ref().unwrap().value <= cost(&off) + 1e-9);
    // The baselines are what they were.
    for strategy in [Strategy::Sequential, Strategy::Homogeneous] {
        let draft = |problem: &Problem| PlanDraft::from(planned(problem, strategy, &database));
        assert_eq!(draft(&whole), draft(&both), "{strategy}");
    }
}

#[test]
fn a_split_may_be_the_only_way_and_takes_what_is_in_stock() {
    let mut problem = tight(true);
    let allow = |problem: &mut Problem, stock: [u32; 2]| {
        problem.offers.iter_mut().zip(stock).for_each(|(offer, stock)| offer.stock = Some(stock));
    };
    allow(&mut problem, [2, 2]);
    let database = Database::in_memory();
    let plan_of = |problem: &Problem| plan(problem, Strategy::Default, &database, &quiet);
    assert!(plan_of(&Problem { disaggregate: false, ..problem.clone() }).is_err());
    let split = plan_of(&problem).unwrap();
    assert_eq!(disaggregated(&split), 1);
    allow(&mut problem, [1, 1]);
    assert!(plan_of(&problem).is_err(), "nothing carries it");
}
