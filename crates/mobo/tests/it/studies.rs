//! Whole studies: what is asked, what is refused, and that nothing stalls.

use boute_mobo::nsga2::nsga2;
use boute_mobo::{
    Domain, Error, Gain, Linear, Noise, Outcome, Point, Problem, Space, StopReason, StopRules, Structure,
    Study, Transform, Value, random_points, sobol_points,
};

fn reals(count: usize) -> Space {
    Space::new(vec![Domain::Real { low: 0.0, high: 1.0 }; count], vec![]).unwrap()
}

fn mixed() -> Space {
    Space::new(
        vec![
            Domain::Real { low: -2.0, high: 3.0 },
            Domain::Integer { low: 1, high: 40 },
            Domain::Ordered { levels: 5 },
            Domain::Categorical { count: 3 },
            Domain::Simplex { parts: 3 },
        ],
        vec![Linear { terms: vec![(0, 0, 1.0), (1, 0, 0.1), (4, 1, 2.0)], at_most: 3.0 }],
    )
    .unwrap()
}

fn numbers(point: &[Value]) -> Vec<f64> {
    point
        .iter()
        .flat_map(|value| match value {
            Value::Real(x) => vec![*x],
            Value::Integer(x) => vec![*x as f64],
            Value::Choice(at) => vec![*at as f64],
            Value::Shares(shares) => shares.clone(),
        })
        .collect()
}

fn outcome(objectives: Vec<f64>, constraints: Vec<f64>) -> Outcome {
    Outcome { objectives, constraints, variances: None }
}

/// Two objectives that pull the mean coordinate apart.
fn two(point: &Point) -> Outcome {
    let x = numbers(point);
    let spread: f64 = x[1..].iter().map(|x| (x - 0.4).powi(2)).sum();
    outcome(vec![x[0] + spread, (1.0 - x[0]).powi(2) + spread], vec![])
}

fn advance(study: &mut Study, evaluations: usize, q: usize, evaluate: impl Fn(&Point) -> Outcome) {
    while study.evaluations().len() < evaluations {
        let asked = study.ask(q).unwrap();
        let told = asked.iter().map(|candidate| (candidate.id, Some(evaluate(&candidate.point)))).collect();
        study.tell(told).unwrap();
    }
}

#[test]
fn a_study_beats_a_design_of_the_same_size() {
    let mut problem = Problem::new(reals(3), 2, 0);
    problem.reference = Some(vec![1.5, 1.5]);
    let mut study = Study::new(problem.clone()).unwrap();
    advance(&mut study, 30, 1, two);
    let mut design = Study::new(problem).unwrap();
    for point in sobol_points(&reals(3), 0, 30, 0).unwrap() {
        let values = two(&point);
        design.tell_at(point, Some(values)).unwrap();
    }
    assert!(
        study.hypervolume() > design.hypervolume() + 0.1,
        "{} {}",
        study.hypervolume(),
        design.hypervolume()
    );
}

#[test]
fn stopping_and_resuming_gives_the_same_bytes_on_any_number_of_threads() {
    let mut problem = Problem::new(mixed(), 2, 1);
    problem.initial = Some(6);
    problem.seed = 11;
    let evaluate = |point: &Point| {
        let x = numbers(point);
        outcome(vec![x[0] * x[0] + x[3], (x[1] - 7.0).abs() + x[4]], vec![x[5] - 0.05])
    };
    let on = |threads: usize, resumed: bool| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut study = Study::new(problem.clone()).unwrap();
            while study.evaluations().len() < 14 {
                let count = study.evaluations().len() + 1;
                advance(&mut study, count, 2, evaluate);
                let text = serde_json::to_string(&study).unwrap();
                if resumed {
                    study = serde_json::from_str(&text).unwrap();
                }
            }
            serde_json::to_string(&study).unwrap()
        })
    };
    let plain = on(1, false);
    assert_eq!(plain, on(1, true), "resumed");
    assert_eq!(plain, on(3, false), "three threads");
}

#[test]
fn every_point_lies_in_the_space_and_meets_the_known_constraints() {
    let space = mixed();
    let meets = |point: &Point| {
        let x = numbers(point);
        assert!(space.encode(point).is_ok(), "{point:?}");
        assert!(x[0] + 0.1 * x[1] + 2.0 * x[5] <= 3.0 + 1e-9, "{point:?}");
    };
    sobol_points(&space, 0, 100, 3).unwrap().iter().for_each(meets);
    random_points(&space, 100, 3).unwrap().iter().for_each(meets);
    let mut problem = Problem::new(space.clone(), 2, 0);
    problem.initial = Some(8);
    let mut study = Study::new(problem).unwrap();
    advance(&mut study, 20, 3, |point| {
        let x = numbers(point);
        outcome(vec![-x[0] - x[1], x[3] + x[4] - x[2]], vec![])
    });
    study.evaluations().iter().for_each(|evaluation| meets(&evaluation.point));
    let mut seen = Vec::new();
    nsga2(&space, 10, 50, 1, |points| {
        seen.extend(points.iter().cloned());
        points
            .iter()
            .map(|point| Some(outcome(vec![numbers(point)[0], -numbers(point)[1]], vec![])))
            .collect()
    })
    .unwrap();
    assert_eq!(seen.len(), 50);
    seen.iter().for_each(meets);
}

#[test]
fn constraints_that_leave_a_sliver_or_nothing() {
    let sliver = |at_most| {
        Space::new(
            vec![Domain::Real { low: 0.0, high: 1.0 }; 6],
            vec![Linear { terms: (0..6).map(|at| (at, 0, 1.0)).collect(), at_most }],
        )
        .unwrap()
    };
    let points = sobol_points(&sliver(0.01), 0, 20, 0).unwrap();
    assert_eq!(points.len(), 20);
    assert!(points.iter().all(|point| numbers(point).iter().sum::<f64>() <= 0.01 + 1e-9));
    assert_eq!(sobol_points(&sliver(-1.0), 0, 1, 0), Err(Error::Empty));
}

#[test]
fn bad_numbers_are_refused_and_change_nothing_or_are_recorded_as_failed() {
    let mut study = Study::new(Problem::new(reals(2), 2, 1)).unwrap();
    let asked = study.ask(2).unwrap();
    let before = serde_json::to_string(&study).unwrap();
    let good = outcome(vec![1.0, 2.0], vec![0.5]);
    for (bad, message) in [
        (
            outcome(vec![f64::NAN, 0.0], vec![0.0]),
            "objective 0 is NaN; tell finite numbers, or tell the evaluation as failed",
        ),
        (
            outcome(vec![0.0, f64::INFINITY], vec![0.0]),
            "objective 1 is inf; tell finite numbers, or tell the evaluation as failed",
        ),
        (
            outcome(vec![0.0, 1.0], vec![f64::NEG_INFINITY]),
            "constraint 0 is -inf; tell finite numbers, or tell the evaluation as failed",
        ),
        (outcome(vec![0.0], vec![0.0]), "objective: 1 given, 2 expected"),
    ] {
        let error =
            study.tell(vec![(asked[0].id, Some(good.clone())), (asked[1].id, Some(bad))]).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(study.tell(vec![(99, None)]), Err(Error::UnknownCandidate(99)));
    assert_eq!(
        study.tell(vec![(asked[0].id, None), (asked[0].id, None)]),
        Err(Error::UnknownCandidate(asked[0].id))
    );
    assert_eq!(serde_json::to_string(&study).unwrap(), before);
    study.tell(vec![(asked[0].id, Some(good)), (asked[1].id, None)]).unwrap();
    assert_eq!(study.evaluations().len(), 2);
    assert_eq!(study.front(), [0]);
}

#[test]
fn where_evaluations_fail_is_learnt() {
    let mut study = Study::new(Problem::new(reals(2), 2, 0)).unwrap();
    while study.evaluations().len() < 40 {
        let candidate = study.ask(1).unwrap().remove(0);
        let works = numbers(&candidate.point)[1] > 0.25;
        let told = works.then(|| two(&candidate.point));
        study.tell(vec![(candidate.id, told)]).unwrap();
    }
    let late = &study.evaluations()[20..];
    let failed = late.iter().filter(|evaluation| evaluation.outcome.is_none()).count();
    assert!(failed <= 5, "{failed} of the last 20 failed");
}

/// Runs a study that must neither panic nor stall, and must ask only for points of its space.
fn survives(
    space: Space,
    objectives: usize,
    constraints: usize,
    q: usize,
    evaluate: impl Fn(&Point) -> Option<Outcome>,
) -> Study {
    let mut problem = Problem::new(space, objectives, constraints);
    problem.initial = Some(4);
    let mut study = Study::new(problem).unwrap();
    while study.evaluations().len() < 12 {
        let asked = study.ask(q).unwrap();
        let told = asked.iter().map(|candidate| (candidate.id, evaluate(&candidate.point))).collect();
        study.tell(told).unwrap();
    }
    study
}

#[test]
fn awkward_values_do_not_stop_a_study() {
    survives(reals(2), 2, 0, 1, |_| Some(outcome(vec![3.0, 3.0], vec![])));
    survives(reals(2), 2, 1, 1, |point| Some(outcome(two(point).objectives, vec![-1.0 - numbers(point)[0]])));
    survives(reals(2), 2, 0, 1, |_| None);
    survives(reals(2), 2, 0, 2, |point| {
        let x = numbers(point);
        Some(outcome(vec![1e-6 * x[0], 1e6 * (1.0 - x[0]) * x[1]], vec![]))
    });
    survives(reals(1), 1, 0, 1, |point| Some(outcome(vec![1e300 * (numbers(point)[0] - 0.3)], vec![])));
    survives(reals(2), 5, 0, 1, |point| {
        let x = numbers(point);
        Some(outcome(vec![x[0], x[1], 1.0 - x[0], 1.0 - x[1], (x[0] - x[1]).abs()], vec![]))
    });
}

#[test]
fn a_finite_space_is_exhausted_before_a_point_comes_again() {
    let space =
        Space::new(vec![Domain::Categorical { count: 3 }, Domain::Integer { low: 0, high: 2 }], vec![])
            .unwrap();
    let study = survives(space, 2, 0, 1, |point| {
        let x = numbers(point);
        Some(outcome(vec![x[0] + x[1], 2.0 - x[1] + x[0]], vec![]))
    });
    let mut points: Vec<Vec<f64>> = study.evaluations().iter().map(|it| numbers(&it.point)).collect();
    points.sort_by(|a, b| a.partial_cmp(b).unwrap());
    points.dedup();
    assert!(points.len() >= 8, "{} of 9 points in 12 evaluations", points.len());
}

#[test]
fn duplicates_one_point_and_two_thousand() {
    let mut problem = Problem::new(reals(2), 2, 0);
    problem.initial = Some(1);
    let mut study = Study::new(problem.clone()).unwrap();
    let point = vec![Value::Real(0.5), Value::Real(0.5)];
    study.tell_at(point.clone(), Some(two(&point))).unwrap();
    assert_eq!(study.ask(1).unwrap().len(), 1);
    for _ in 0..10 {
        study.tell_at(point.clone(), Some(two(&point))).unwrap();
    }
    assert_eq!(study.ask(2).unwrap().len(), 2);
    let mut large = Study::new(problem).unwrap();
    for point in sobol_points(&reals(2), 0, 2_000, 1).unwrap() {
        let values = two(&point);
        large.tell_at(point, Some(values)).unwrap();
    }
    assert_eq!(large.ask(1).unwrap().len(), 1);
}

#[test]
fn more_than_twenty_dimensions_are_searched_in_a_trust_region() {
    let mut problem = Problem::new(reals(30), 2, 0);
    problem.initial = Some(20);
    problem.reference = Some(vec![12.0, 12.0]);
    let mut study = Study::new(problem).unwrap();
    advance(&mut study, 20, 1, two);
    let before = study.hypervolume();
    advance(&mut study, 45, 5, two);
    assert!(study.hypervolume() > before * 1.05, "{} {before}", study.hypervolume());
}

#[test]
fn noise_is_told_apart_from_signal() {
    // A dice thrown by the point itself: not smooth, not repeatable in the model's eyes.
    let dice = |x: &[f64]| (x.iter().map(|x| (x * 1e4).sin() * 43_758.547).sum::<f64>()).fract() - 0.5;
    let mut problem = Problem::new(reals(2), 2, 0);
    problem.reference = Some(vec![1.5, 1.5]);
    let mut study = Study::new(problem.clone()).unwrap();
    advance(&mut study, 30, 2, |point| {
        let x = numbers(point);
        let mut values = two(point);
        values.objectives[0] += 0.1 * dice(&x);
        values
    });
    assert!(study.hypervolume() > 1.0);
    problem.noise = Noise::None;
    let mut known = Study::new(problem).unwrap();
    advance(&mut known, 20, 1, |point| Outcome { variances: Some(vec![1e-2, 0.0]), ..two(point) });
    assert!(known.hypervolume() > 1.0);
}

#[test]
fn transforms_and_structure_are_used() {
    let mut problem = Problem::new(reals(4), 2, 0);
    problem.transforms = vec![Transform::Log, Transform::Logit];
    problem.structure = Some(Structure::additive_with_interactions(vec![vec![0, 1], vec![2, 3]]));
    problem.reference = Some(vec![100.0, 0.99]);
    let mut study = Study::new(problem.clone()).unwrap();
    advance(&mut study, 16, 1, |point| {
        let x = numbers(point);
        outcome(vec![(4.0 * x[0] + x[2]).exp(), 0.05 + 0.9 * (1.0 - x[0]) * (1.0 - x[3] * 0.5)], vec![])
    });
    assert!(study.hypervolume() > 0.0);
    let asked = study.ask(1).unwrap().remove(0);
    let error = study.tell(vec![(asked.id, Some(outcome(vec![-1.0, 0.5], vec![])))]).unwrap_err();
    assert_eq!(error, Error::Transform { at: 0, value: -1.0 });
    problem.reference = Some(vec![-1.0, 0.5]);
    assert_eq!(Study::new(problem).unwrap_err(), Error::Transform { at: 0, value: -1.0 });
}

#[test]
fn an_earlier_study_is_begun_from() {
    let mut earlier = Study::new(Problem::new(reals(2), 2, 0)).unwrap();
    advance(&mut earlier, 12, 1, two);
    let mut next = Study::new(Problem::new(reals(2), 2, 0)).unwrap();
    next.begin_from(&earlier).unwrap();
    let front = earlier.front();
    let asked = next.ask(front.len()).unwrap();
    for (candidate, at) in asked.iter().zip(front) {
        assert_eq!(candidate.point, earlier.evaluations()[at].point);
    }
}

#[test]
fn rules_stop_a_study() {
    let mut problem = Problem::new(reals(2), 2, 0);
    problem.initial = Some(4);
    problem.reference = Some(vec![2.0, 2.0]);
    let mut study = Study::new(problem).unwrap();
    advance(&mut study, 10, 1, |_| outcome(vec![1.0, 1.0], vec![]));
    let reached = |rules: StopRules, elapsed_s| rules.reached(&study, elapsed_s);
    assert_eq!(reached(StopRules::default(), 1e9), None);
    assert_eq!(
        reached(StopRules { evaluations: Some(10), ..Default::default() }, 0.0),
        Some(StopReason::Evaluations)
    );
    assert_eq!(
        reached(StopRules { seconds: Some(5.0), ..Default::default() }, 5.0),
        Some(StopReason::Seconds)
    );
    assert_eq!(
        reached(StopRules { stable_for: Some(6), ..Default::default() }, 0.0),
        Some(StopReason::StableFor)
    );
    assert_eq!(reached(StopRules { stable_for: Some(7), ..Default::default() }, 0.0), None);
    let gain = Some(Gain { over: 5, below: 1e-3 });
    assert_eq!(reached(StopRules { gain, ..Default::default() }, 0.0), Some(StopReason::Gain));
}

#[test]
fn a_space_or_problem_that_makes_no_sense_is_refused() {
    let refused = |domain| Space::new(vec![domain], vec![]).unwrap_err().to_string();
    assert_eq!(
        refused(Domain::Real { low: 1.0, high: 1.0 }),
        "variable 0: `low` 1 must be below `high` 1, both finite"
    );
    assert!(refused(Domain::Integer { low: 3, high: 2 }).contains("`low` 3 must not be above `high` 2"));
    assert!(refused(Domain::Integer { low: i64::MIN, high: i64::MAX }).contains("2^52"));
    assert!(refused(Domain::Categorical { count: 0 }).contains("at least one value"));
    assert!(refused(Domain::Simplex { parts: 1 }).contains("at least two parts"));
    assert!(Space::new(vec![], vec![]).is_err());
    assert!(Study::new(Problem::new(reals(1), 0, 0)).is_err());
    let mut problem = Problem::new(reals(2), 2, 0);
    problem.structure = Some(Structure { groups: vec![vec![0]], terms: vec![vec![0]] });
    assert!(Study::new(problem).unwrap_err().to_string().contains("every coordinate"));
}

#[test]
fn nsga2_finds_what_a_design_does_not() {
    let space = reals(4);
    let mut best = f64::INFINITY;
    nsga2(&space, 20, 400, 3, |points| {
        points
            .iter()
            .map(|point| {
                let values = two(point);
                best = best.min(values.objectives.iter().sum());
                Some(values)
            })
            .collect()
    })
    .unwrap();
    let design: f64 = sobol_points(&space, 0, 400, 3)
        .unwrap()
        .iter()
        .map(|point| two(point).objectives.iter().sum::<f64>())
        .fold(f64::INFINITY, f64::min);
    assert!(best < design, "{best} {design}");
}
