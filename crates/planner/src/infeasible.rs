//! When nothing meets the targets: why, and the least that would help.

use std::fmt;

use boute_perf::FitError;
use boute_spec::plan::Objective;

use crate::assemble::{certified_quality, floor_value};
use crate::deployment::{Effort, Goal, Limits};
use crate::problem::Problem;
use crate::problem::Progress;
use crate::routing::Route;
use crate::search::Search;

/// One way to make the problem solvable.
#[derive(Debug, Clone, PartialEq)]
pub struct Relaxation {
    /// What to change: `budget`, `stock`, `floor`, `slo`, `gpus`.
    pub change: &'static str,
    /// In words, with numbers.
    pub text: String,
}

/// Nothing meets the targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Infeasible {
    /// Why.
    pub reason: String,
    /// What would help, each on its own; the cheapest first.
    pub relaxations: Vec<Relaxation>,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no plan meets the targets: {}", self.reason)?;
        if self.relaxations.is_empty() {
            return Ok(());
        }
        write!(f, "\n  help: any one of these would do:")?;
        self.relaxations.iter().try_for_each(|relaxation| write!(f, "\n  - {}", relaxation.text))
    }
}

/// No configuration fits any GPU.
pub(crate) fn nothing_fits(misfits: &[FitError]) -> Infeasible {
    let text = misfits.last().map(ToString::to_string).unwrap_or_default();
    Infeasible {
        reason: format!("no model fits the GPUs on offer ({text})"),
        relaxations: vec![Relaxation {
            change: "gpus",
            text: "offer GPUs with more memory, or narrower weights".into(),
        }],
    }
}

/// A baseline found nothing; the default strategy may.
pub(crate) fn no_baseline(strategy: crate::strategies::Strategy) -> Infeasible {
    Infeasible {
        reason: format!("`{strategy}` finds no fleet within the stock and the budget"),
        relaxations: Vec::new(),
    }
}

/// Not even the best model can be promised to keep the floor.
pub(crate) fn no_route(problem: &Problem, routes: &[Route]) -> Infeasible {
    let mean = |route: &&Route| route.stats.quality;
    let best = routes.iter().max_by(|a, b| mean(a).total_cmp(&mean(b)));
    let (mean, bound) = best.map_or((0.0, 0.0), |best| (mean(&best), certified_quality(problem, best)));
    let reason = format!(
        "the quality floor of {:.4} cannot be certified; the best policy scores {mean:.4}, and on this many queries no \
         more than {bound:.4} can be promised",
        floor_value(problem).unwrap_or_default()
    );
    let text = format!("lower the floor to {:.4}", (bound * 1e4).floor() / 1e4);
    let more = "give more queries in the validation part of the quality data, or a lower `confidence`";
    Infeasible {
        reason,
        relaxations: vec![
            Relaxation { change: "floor", text },
            Relaxation { change: "confidence", text: more.into() },
        ],
    }
}

/// Routes there are, but no fleet: which constraint is to blame.
pub(crate) fn no_fleet(
    search: &Search<'_>,
    routes: &[Route],
    limits: &Limits,
    progress: Progress<'_>,
) -> Infeasible {
    let problem = search.problem;
    let cheapest = |limits: &Limits| {
        search.sweep(routes, limits, Goal::Cost, Effort::Sketch, progress).map(|(choice, _)| choice)
    };
    let mut relaxations = Vec::new();
    let money = |usd: f64| (usd * 100.0).ceil() / 100.0;
    if problem.budget.is_some()
        && let Some(choice) = cheapest(&Limits { budget: None, ..limits.clone() })
    {
        let text = format!("raise the budget to ${:.2}/h", money(choice.fleet.value));
        relaxations.push((choice.fleet.value, Relaxation { change: "budget", text }));
    }
    let unstocked = Limits { stock: vec![None; limits.stock.len()], ..limits.clone() };
    if limits.stock.iter().any(Option::is_some)
        && let Some(choice) = cheapest(&unstocked)
    {
        let missing: Vec<String> = problem
            .offers
            .iter()
            .enumerate()
            .filter_map(|(offer, on_offer)| {
                let replicas = choice.fleet.replicas.iter();
                let used: f64 =
                    replicas.map(|(column, count)| column.gpus_on(offer) * f64::from(*count)).sum();
                let stock = f64::from(on_offer.stock?);
                (used > stock).then(|| format!("{} {} instead of {}", used, on_offer.gpu.name, stock))
            })
            .collect();
        let text = format!("more stock: {}, at ${:.2}/h", missing.join(", "), money(choice.fleet.value));
        relaxations.push((choice.fleet.value, Relaxation { change: "stock", text }));
    }
    if problem.objective == Objective::MinCost && problem.floor.is_some() {
        let free: Vec<Route> =
            routes.iter().map(|route| Route { admissible: true, ..route.clone() }).collect();
        let best = free
            .iter()
            .filter_map(|route| Some((route, search.fleet(route, limits, Goal::Cost, Effort::Sketch)?)))
            .max_by(|a, b| a.0.stats.quality.total_cmp(&b.0.stats.quality));
        if let Some((route, fleet)) = best {
            let bound = certified_quality(problem, route);
            let text = format!(
                "lower the floor to {:.4}, at ${:.2}/h",
                (bound * 1e4).floor() / 1e4,
                money(fleet.value)
            );
            relaxations.push((fleet.value, Relaxation { change: "floor", text }));
        }
    }
    relaxations.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut relaxations: Vec<Relaxation> =
        relaxations.into_iter().map(|(_, relaxation)| relaxation).collect();
    relaxations.extend(looser_limits(search));
    Infeasible { reason: blame(problem.budget, limits), relaxations }
}

fn blame(budget: Option<f64>, limits: &Limits) -> String {
    let stock = if limits.stock.iter().any(Option::is_some) { "the stock" } else { "these GPUs" };
    let budget = budget.map(|budget| format!(" and a budget of ${budget:.2}/h")).unwrap_or_default();
    format!("with {stock}{budget} no fleet carries {:.2} req/s within the latency promises", limits.rate)
}

/// Promises that some model cannot keep even when idle, with what it can.
fn looser_limits(search: &Search<'_>) -> Vec<Relaxation> {
    let problem = search.problem;
    let fractions = vec![1.0 / problem.models.len() as f64; problem.models.len()];
    let levels = search.table.levels(&fractions);
    let mut relaxations = Vec::new();
    for (index, target) in problem.slo.iter().enumerate() {
        for (model, of_model) in problem.models.iter().enumerate() {
            let idle =
                |(at, _): (usize, &crate::candidates::Candidate)| Some(levels[at].first()?.reached_s[index]);
            let of = search.candidates.iter().enumerate().filter(|(_, candidate)| candidate.model == model);
            let best = of.filter_map(idle).fold(f64::INFINITY, f64::min);
            if best.is_finite() && best > target.limit_s.get() {
                let text = format!(
                    "loosen {target}: `{}` reaches {best:.2}s at best on these GPUs, even when idle; or offer faster ones",
                    of_model.id
                );
                relaxations.push(Relaxation { change: "slo", text });
            }
        }
    }
    relaxations
}
