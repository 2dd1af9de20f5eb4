//! The black-box searches: what they find holds, and the structured one comes close to the exact plan.

use boute_planner::deployment::{Effort, Goal, Limits};
use boute_planner::routing::Route;
use boute_planner::search::{Choice, Search};
use boute_planner::strategies::blackbox::{BlackBox, EVALUATIONS, Trail};
use boute_planner::{Database, Prepared, Problem, Step};
use boute_spec::plan::Objective;

use crate::{problem, quiet};

const ALL: [BlackBox; 4] = [BlackBox::Random, BlackBox::Nsga2, BlackBox::Qnehvi, BlackBox::Boute];

/// Calls `check` with a search over the small problem, its routes and its limits.
fn with_search(change: impl Fn(&mut Problem), check: impl Fn(&Search<'_>, &[Route], &Limits)) {
    let mut problem = problem(Objective::MinCost);
    problem.budget = Some(40.0);
    change(&mut problem);
    let prepared = Prepared::new(&problem, &Database::in_memory(), &quiet).unwrap();
    let search = prepared.search();
    check(&search, prepared.routes(), &search.limits(problem.rate));
}

fn holds(search: &Search<'_>, routes: &[Route], limits: &Limits, goal: Goal, choice: &Choice) {
    let route = &routes[choice.route];
    assert!(route.admissible);
    let fleet = &choice.fleet;
    assert!(fleet.usd_per_hour() <= 40.0 + 1e-6 && fleet.replicas.iter().all(|(_, count)| *count > 0));
    for (offer, stock) in limits.stock.iter().enumerate() {
        let used = fleet.replicas.iter().filter(|(column, _)| column.offer == offer);
        let used: f64 = used.map(|(column, count)| column.gpus * f64::from(*count)).sum();
        assert!(stock.is_none_or(|stock| used <= f64::from(stock)));
    }
    let counts = fleet.replicas.iter().map(|(column, count)| (column.candidate, *count)).collect();
    let carried = |model: usize| -> f64 {
        let of_model = fleet.replicas.iter().filter(|(column, _)| column.model == model);
        of_model.map(|(column, count)| column.rate * f64::from(*count)).sum()
    };
    let rate = if goal == Goal::Cost { limits.rate } else { fleet.value };
    for (model, fraction) in route.stats.fractions.iter().enumerate() {
        assert!(carried(model) >= fraction * rate * (1.0 - 1e-6), "{}", carried(model));
    }
    if goal == Goal::Cost {
        assert!((fleet.value - fleet.usd_per_hour()).abs() < 1e-9);
    }
    assert!(search.assess(route, &counts).is_some());
}

#[test]
fn what_is_found_keeps_every_promise() {
    with_search(
        |_| {},
        |search, routes, limits| {
            for goal in [Goal::Cost, Goal::Rate] {
                for strategy in ALL {
                    let Trail { evaluations, choice } =
                        search.trail(strategy, routes, limits, goal, 40, &quiet);
                    let found: Vec<f64> = evaluations.into_iter().filter(|value| !value.is_nan()).collect();
                    assert!(found.is_sorted_by(|a, b| if goal == Goal::Cost { a >= b } else { a <= b }));
                    assert_eq!(found.is_empty(), choice.is_none(), "{strategy:?}");
                    if let Some(choice) = choice {
                        holds(search, routes, limits, goal, &choice);
                    }
                }
            }
        },
    );
}

#[test]
fn the_structured_search_comes_close_to_the_exact_plan() {
    with_search(
        |_| {},
        |search, routes, limits| {
            let (exact, _) = search.sweep(routes, limits, Goal::Cost, Effort::Proof, &quiet).unwrap();
            let trail = search.trail(BlackBox::Boute, routes, limits, Goal::Cost, EVALUATIONS, &quiet);
            let found = trail.choice.unwrap();
            let ratio = found.fleet.value / exact.fleet.value;
            assert!(ratio <= 1.02, "{ratio}");
        },
    );
}

#[test]
fn a_search_is_repeatable_and_can_be_stopped() {
    with_search(
        |_| {},
        |search, routes, limits| {
            let trail = |done: u64| {
                let stop = move |step: &Step| step.done >= done;
                search.trail(BlackBox::Boute, routes, limits, Goal::Cost, 30, &stop)
            };
            let (whole, again, short) = (trail(100), trail(100), trail(5));
            let bits =
                |trail: &Trail| trail.evaluations.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&whole), bits(&again));
            assert_eq!(bits(&short), bits(&whole)[..5]);
            assert!(short.choice.is_some());
        },
    );
}

#[test]
fn one_model_without_quality_data_or_limits_is_a_problem_too() {
    let alone = |problem: &mut Problem| {
        problem.models.truncate(1);
        (problem.quality, problem.floor) = (None, None);
    };
    with_search(alone, |search, routes, limits| {
        for strategy in ALL {
            let choice = search.trail(strategy, routes, limits, Goal::Cost, 60, &quiet).choice;
            holds(search, routes, limits, Goal::Cost, &choice.unwrap());
        }
    });
}
