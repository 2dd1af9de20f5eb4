//! What lies around a plan: other divisions of the load, and what one more unit of each scarce thing is worth.

use boute_router::certify::FloorRule;
use boute_spec::plan::{Binding, FrontPoint};
use boute_spec::workload::Trace;
use rayon::prelude::*;

use crate::assemble::{deployment, front, in_words, max_rate, shares};
use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::plan::goal_of;
use crate::routing::{Route, admit};
use crate::search::{Choice, Search};
use crate::uphold::Attempt;
use crate::verify::{Traffic, simulate_fleet};

/// Points of the front, about.
const FRONT_POINTS: usize = 20;
/// Requests that a point of the front is simulated on.
const FRONT_REQUESTS: usize = 2_000;
/// Divisions within this part of the best may become it when there is one more unit of something.
const NEAR: f64 = 0.1;

/// Other divisions of the load with their cheapest (or fastest) fleets, admissible or not; none that the table has for better
/// than the plan in all and that simulation refuses.
pub(crate) fn front_around(attempt: &Attempt, search: &Search<'_>, routes: &[Route]) -> Vec<FrontPoint> {
    let problem = search.problem;
    // The same margins as the plan's, so that its neighbours are no more daring than itself.
    let limits = Limits { margins: attempt.margins.clone(), ..search.limits(attempt.rate) };
    let goal = goal_of(problem.objective);
    let requests = problem.planning_trace.requests().len().min(FRONT_REQUESTS);
    let trace = problem.planning_trace.window(0..requests).at_rate(attempt.rate);
    let stride = routes.len().div_ceil(FRONT_POINTS);
    let chosen = &routes[attempt.choice.route];
    let others: Vec<usize> =
        (0..routes.len()).filter(|route| route % stride == 0 && *route != attempt.choice.route).collect();
    let mut points: Vec<FrontPoint> = others
        .par_iter()
        .filter_map(|&at| {
            let fleet = search.fleet(&routes[at], &limits, goal, Effort::Sketch)?;
            // Whoever sees a better plan beside this one asks why it is not the plan: because it breaks a promise.
            let better = routes[at].stats.quality > chosen.stats.quality
                && goal.sign() * fleet.value <= goal.sign() * attempt.choice.fleet.value + 1e-9;
            let choice = Choice { route: at, fleet };
            if better {
                Attempt::if_it_holds(search, routes, &choice, None, attempt.rate, &limits)?;
            }
            Some(point(search, &routes[at], &choice.fleet, &trace, attempt.rate, false))
        })
        .collect();
    points.push(point(search, chosen, &attempt.choice.fleet, &trace, attempt.rate, true));
    front(problem.objective, points)
}

fn point(
    search: &Search<'_>,
    route: &Route,
    fleet: &Fleet,
    trace: &Trace,
    rate: f64,
    chosen: bool,
) -> FrontPoint {
    let problem = search.problem;
    let deployment = deployment(search.candidates, fleet, &route.stats.fractions, rate);
    let queries = problem.quality.as_ref().map(|at| &at.planning);
    let shares = shares(problem, route);
    let traffic = Traffic { trace, queries, stretch: 1.0 };
    let run = simulate_fleet(problem, &deployment, &route.policy, route.cascade.as_ref(), &shares, traffic);
    FrontPoint {
        cost_usd_per_hour: deployment.usd_per_hour(),
        quality: route.stats.quality,
        max_rate: max_rate(problem, search.candidates, search.table, fleet, route),
        e2e_p95_ms: run.outcome.p95_e2el_ms,
        load_fractions: route.stats.fractions.clone(),
        fleet: in_words(&deployment),
        chosen,
    }
}

/// What one more unit of each scarce thing is worth: shadow prices, by solving the relaxation again, in which a part of a
/// replica can be rented. So they do not hang on where whole replicas happen to fit. Divisions that are far from the best
/// are left out: a unit so dear that one of them became the best would be worth a little more still.
pub(crate) fn binding(attempt: &Attempt, search: &Search<'_>, routes: &[Route]) -> Vec<Binding> {
    let problem = search.problem;
    let goal = goal_of(problem.objective);
    let limits = Limits { margins: attempt.margins.clone(), ..search.limits(problem.rate) };
    let best = |routes: &[Route], limits: &Limits| Some(search.relaxed(routes, limits, goal).first()?.1);
    let relaxed = search.relaxed(routes, &limits, goal);
    let Some(&(_, base)) = relaxed.first() else { return Vec::new() };
    let is_near = |value: f64| (value - base).abs() <= NEAR * base;
    let near: Vec<Route> = relaxed
        .iter()
        .filter(|(_, value)| is_near(*value))
        .map(|(route, _)| routes[*route].clone())
        .collect();
    let value = |limits: &Limits| best(&near, limits);
    let mut changes: Vec<(String, String, Option<f64>)> = Vec::new();
    for (offer, on_offer) in problem.offers.iter().enumerate() {
        let Some(stock) = on_offer.stock else { continue };
        let mut more = limits.clone();
        more.stock[offer] = Some(stock + 1);
        let name = &on_offer.gpu.name;
        changes.push((format!("stock {name}"), format!("+1 {name}"), value(&more)));
    }
    if let Some(budget) = problem.budget {
        let more = Limits { budget: Some(budget + 1.0), ..limits.clone() };
        changes.push(("budget".into(), "+$1/h".into(), value(&more)));
    }
    let looser = Limits { looser: true, ..limits.clone() };
    changes.push(("latency".into(), "+10% on every limit".into(), value(&looser)));
    if let (Some(rule), Some(quality)) = (problem.floor, &problem.quality) {
        let lower = match rule {
            FloorRule::Absolute(floor) => FloorRule::Absolute((floor - 0.01).max(0.0)),
            FloorRule::Relative { share, model } => {
                FloorRule::Relative { share: (share - 0.01).max(0.0), model }
            }
        };
        let mut under_lower = routes.to_vec();
        admit(&mut under_lower, &quality.planning, lower);
        for (route, before) in under_lower.iter_mut().zip(routes) {
            route.admissible &= !before.admissible;
        }
        let better = |value: f64| if goal == Goal::Cost { value.min(base) } else { value.max(base) };
        let value = best(&under_lower, &limits).map_or(base, better);
        changes.push(("floor".into(), "-0.01".into(), Some(value)));
    }
    changes
        .into_iter()
        .filter_map(|(constraint, unit, value)| {
            let worth = value? - base;
            let text = match goal {
                Goal::Cost => format!("{constraint}: {unit} → {}${:.2}/h", sign(worth), worth.abs()),
                Goal::Rate => {
                    format!("{constraint}: {unit} → {}{:.2} req/s", sign(worth), worth.abs())
                }
            };
            (-goal.sign() * worth > WORTH_SAYING).then_some(Binding { constraint, unit, worth, text })
        })
        .collect()
}

/// A change that is worth less than this, in $/h or req/s, binds nothing.
const WORTH_SAYING: f64 = 5e-3;

const fn sign(value: f64) -> &'static str {
    if value < 0.0 { "−" } else { "+" }
}
