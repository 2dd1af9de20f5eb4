//! The whole of it: from a problem to a checked plan.

use boute_spec::outcome::Outcome;
use boute_spec::plan::{Binding, Bound, Deployment, FrontPoint, Objective, Plan, Verification};
use rayon::prelude::*;

use crate::assemble::{Parts, assemble, deployment, floor_value, front, in_words, max_rate, shares};
use crate::candidates::{Candidate, candidates};
use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::infeasible::{Infeasible, no_baseline, no_fleet, no_route, nothing_fits};
use crate::problem::{Problem, Progress, Step};
use crate::routing::{Route, admit, routes};
use crate::search::{Choice, Search};
use crate::strategies::Strategy;
use crate::table::Table;
use crate::verify::{FleetRun, broken, simulate_fleet};

/// When simulation contradicts the table, plan for this much more load than before.
const REPAIR: f64 = 1.04;
/// Repairs before giving up.
const MOST_REPAIRS: u32 = 12;
/// Every so many routes one point of the front.
const FRONT_STRIDE: usize = 5;
/// Requests that a point of the front is simulated on.
const FRONT_REQUESTS: usize = 2_000;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing meets the targets.
    #[error("{0}")]
    Infeasible(Infeasible),
    /// Told to stop before anything was found.
    #[error("stopped before a plan was found")]
    Stopped,
    /// The planner made something that is no plan.
    #[error(transparent)]
    Invalid(#[from] boute_spec::plan::InvalidPlan),
}

/// What one strategy came to.
#[derive(Debug, Clone)]
pub struct StrategyResult {
    /// The strategy.
    pub strategy: Strategy,
    /// Its plan, or why there is none.
    pub plan: Result<Plan, String>,
    /// The plan simulated on the verification window and held-out queries.
    pub outcome: Option<Outcome>,
}

/// What all strategies share.
struct Ground {
    candidates: Vec<Candidate>,
    table: Table,
    routes: Vec<Route>,
}

impl Ground {
    fn prepare(problem: &Problem, progress: Progress<'_>) -> Result<Self, PlanError> {
        let (candidates, misfits) = candidates(problem);
        if candidates.is_empty() {
            return Err(PlanError::Infeasible(nothing_fits(&misfits)));
        }
        let table = Table::build(problem, &candidates, progress).ok_or(PlanError::Stopped)?;
        let routes = routes(problem);
        if !routes.iter().any(|route| route.admissible) {
            return Err(PlanError::Infeasible(no_route(&routes, floor_value(problem))));
        }
        Ok(Self { candidates, table, routes })
    }
}

/// Finds the plan.
///
/// # Errors
/// If nothing meets the targets, with what would help; if stopped before anything was found.
pub fn plan(problem: &Problem, strategy: Strategy, progress: Progress<'_>) -> Result<Plan, PlanError> {
    let ground = Ground::prepare(problem, progress)?;
    plan_on(problem, &ground, strategy, progress).map(|(plan, _)| plan)
}

/// One problem, made ready for any strategy: all have the same candidates, table, routes and evaluator.
pub struct Comparison<'a> {
    problem: &'a Problem,
    ground: Ground,
}

impl<'a> Comparison<'a> {
    /// Does what all strategies share.
    ///
    /// # Errors
    /// If no strategy can have a plan; if stopped.
    pub fn prepare(problem: &'a Problem, progress: Progress<'_>) -> Result<Self, PlanError> {
        Ok(Self { problem, ground: Ground::prepare(problem, progress)? })
    }

    /// Plans by one strategy; with the plan, what verification saw.
    ///
    /// # Errors
    /// If it finds nothing that meets the targets; if stopped before anything was found.
    pub fn run(&self, strategy: Strategy, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        plan_on(self.problem, &self.ground, strategy, progress)
    }
}

/// Plans by each strategy in turn.
///
/// # Errors
/// If no strategy can have a plan; if stopped.
pub fn compare(
    problem: &Problem,
    strategies: &[Strategy],
    progress: Progress<'_>,
) -> Result<Vec<StrategyResult>, PlanError> {
    let comparison = Comparison::prepare(problem, progress)?;
    Ok(strategies
        .iter()
        .map(|&strategy| match comparison.run(strategy, progress) {
            Ok((plan, outcome)) => StrategyResult { strategy, plan: Ok(plan), outcome: Some(outcome) },
            Err(error) => StrategyResult { strategy, plan: Err(error.to_string()), outcome: None },
        })
        .collect())
}

fn plan_on(
    problem: &Problem,
    ground: &Ground,
    strategy: Strategy,
    progress: Progress<'_>,
) -> Result<(Plan, Outcome), PlanError> {
    let search = Search { problem, candidates: &ground.candidates, table: &ground.table };
    let mut margin = 1.0;
    let mut best: Option<Attempt> = None;
    for repairs in 0..=MOST_REPAIRS {
        let limits = search.limits(problem.rate * margin);
        // The fastest fleet may be none at all: then nothing carries any load within the limits.
        let found = choose(&search, &ground.routes, strategy, &limits, progress)
            .filter(|(choice, _)| !choice.fleet.replicas.is_empty());
        let Some((choice, bound)) = found else {
            if best.is_some() || repairs > 0 {
                break;
            }
            let infeasible = match strategy {
                Strategy::Default | Strategy::Exact => no_fleet(&search, &ground.routes, &limits, progress),
                baseline => no_baseline(baseline),
            };
            return Err(PlanError::Infeasible(infeasible));
        };
        let attempt = Attempt::new(&search, &ground.routes, choice, bound, margin, repairs);
        let passed = attempt.broken.is_empty();
        best = Some(attempt);
        if passed || progress(&repair_step(repairs)) {
            break;
        }
        margin *= REPAIR;
    }
    let attempt = best.ok_or(PlanError::Stopped)?;
    attempt.into_plan(&search, ground, strategy, progress)
}

fn repair_step(repairs: u32) -> Step {
    let message = "verifying by simulation".into();
    Step { message, done: u64::from(repairs), total: u64::from(MOST_REPAIRS) }
}

/// The goal of the sweep for an objective.
fn goal_of(objective: Objective) -> Goal {
    if objective == Objective::MaxRate { Goal::Rate } else { Goal::Cost }
}

/// The route and fleet that a strategy picks, and what bounds its value if it proves one.
fn choose(
    search: &Search<'_>,
    routes: &[Route],
    strategy: Strategy,
    limits: &Limits,
    progress: Progress<'_>,
) -> Option<(Choice, Option<f64>)> {
    let objective = search.problem.objective;
    let goal = goal_of(objective);
    match strategy {
        Strategy::Homogeneous => search.homogeneous(routes, limits, goal).map(|choice| (choice, None)),
        Strategy::RoutingUniform => search.uniform(routes, limits).map(|choice| (choice, None)),
        Strategy::RoutingProportional => {
            search.proportional(routes, limits, goal).map(|choice| (choice, None))
        }
        Strategy::HeterogeneousSingle => {
            search.heterogeneous_single(routes, limits, goal, progress).map(|choice| (choice, None))
        }
        Strategy::Sequential => {
            search.sequential(routes, limits, goal, progress).map(|choice| (choice, None))
        }
        Strategy::Alternating => {
            search.alternating(routes, limits, goal, progress).map(|choice| (choice, None))
        }
        Strategy::Cascadia => search.cascadia(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Agh => search.agh(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Random => search.random(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Nsga2 => search.nsga2(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Qnehvi => search.qnehvi(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Boute => search.boute(routes, limits, goal, progress).map(|choice| (choice, None)),
        Strategy::Default | Strategy::Exact => match objective {
            Objective::MinCost | Objective::MaxRate => search
                .sweep(routes, limits, goal, Effort::Proof, progress)
                .map(|(choice, bound)| (choice, Some(bound))),
            Objective::MaxQuality => {
                let choice = search.best_quality(routes, limits, progress)?;
                let bound = routes[choice.route].stats.quality;
                Some((choice, Some(bound)))
            }
            Objective::Pareto => knee(search, routes, limits).map(|choice| (choice, None)),
        },
    }
}

/// The admissible point of the cost–quality front farthest from the line between its ends: where more quality begins to
/// cost much.
fn knee(search: &Search<'_>, routes: &[Route], limits: &Limits) -> Option<Choice> {
    let choices: Vec<Choice> = (0..routes.len())
        .into_par_iter()
        .filter(|route| routes[*route].admissible && route % FRONT_STRIDE == 0)
        .filter_map(|route| {
            Some(Choice { route, fleet: search.fleet(&routes[route], limits, Goal::Cost, Effort::Sketch)? })
        })
        .collect();
    let point = |choice: &Choice| (choice.fleet.value, routes[choice.route].stats.quality);
    let first = choices.iter().map(point).min_by(|a, b| a.0.total_cmp(&b.0))?;
    let last = choices.iter().map(point).max_by(|a, b| a.1.total_cmp(&b.1))?;
    let gain = |(cost, quality): (f64, f64)| {
        (quality - first.1) / (last.1 - first.1).max(1e-9) - (cost - first.0) / (last.0 - first.0).max(1e-9)
    };
    choices.into_iter().max_by(|a, b| gain(point(a)).total_cmp(&gain(point(b))))
}

/// A choice, simulated.
struct Attempt {
    choice: Choice,
    bound: Option<f64>,
    rate: f64,
    /// How much more load than asked for the fleet was solved for.
    margin: f64,
    deployment: Deployment,
    planned: FleetRun,
    verified: FleetRun,
    broken: Vec<String>,
    repairs: u32,
}

impl Attempt {
    fn new(
        search: &Search<'_>,
        routes: &[Route],
        choice: Choice,
        bound: Option<f64>,
        margin: f64,
        repairs: u32,
    ) -> Self {
        let problem = search.problem;
        let route = &routes[choice.route];
        let rate = match problem.objective {
            Objective::MaxRate => rate_of(search, route, &choice.fleet) / margin,
            _ => problem.rate,
        };
        let deployment = deployment(search.candidates, &choice.fleet, &route.stats.fractions, rate);
        let shares = shares(problem, route);
        let run = |held_out: bool| {
            let trace = if held_out { &problem.verification_trace } else { &problem.planning_trace };
            let trace = if rate == problem.rate { trace } else { &trace.at_rate(rate) };
            let queries =
                problem.quality.as_ref().map(|at| if held_out { &at.held_out } else { &at.planning });
            simulate_fleet(problem, &deployment, &route.policy, &shares, trace, queries)
        };
        let (planned, verified) = rayon::join(|| run(false), || run(true));
        let broken = [&planned, &verified]
            .into_iter()
            .flat_map(|run| broken(problem, run))
            .map(ToString::to_string)
            .collect();
        Self { choice, bound, rate, margin, deployment, planned, verified, broken, repairs }
    }

    fn into_plan(
        self,
        search: &Search<'_>,
        ground: &Ground,
        strategy: Strategy,
        progress: Progress<'_>,
    ) -> Result<(Plan, Outcome), PlanError> {
        let problem = search.problem;
        let route = &ground.routes[self.choice.route];
        let quality = self.verified.outcome.quality.unwrap_or_default();
        let floor_kept = floor_value_held_out(problem).is_none_or(|floor| quality >= floor);
        let verification = Verification {
            passed: self.broken.is_empty() && floor_kept,
            requests: self.verified.outcome.completed,
            quality,
            queries: problem.quality.as_ref().map_or(0, |at| at.held_out.len() as u64),
            repairs: self.repairs,
        };
        let proves = matches!(strategy, Strategy::Default | Strategy::Exact);
        let (points, binding) = if proves {
            (self.front(search, ground, progress), self.binding(search, ground, progress))
        } else {
            (Vec::new(), Vec::new())
        };
        let bound = self.bound.map(|bound| self.stated_bound(problem, bound, route));
        let plan = assemble(Parts {
            problem,
            candidates: &ground.candidates,
            table: &ground.table,
            strategy,
            route,
            fleet: &self.choice.fleet,
            deployment: self.deployment,
            rate: self.rate,
            planned: &self.planned.outcome,
            verification,
            bound,
            front: points,
            binding,
        })?;
        Ok((plan, self.verified.outcome))
    }

    fn stated_bound(&self, problem: &Problem, bound: f64, route: &Route) -> Bound {
        let (of, value) = match problem.objective {
            Objective::MaxRate => ("max_rate", self.choice.fleet.value),
            Objective::MaxQuality => ("quality", route.stats.quality),
            _ => ("cost_usd_per_hour", self.choice.fleet.value),
        };
        Bound { of: of.into(), value: bound, gap: (value - bound).abs() / bound.abs().max(1e-9) }
    }

    /// Other divisions of the load with their cheapest (or fastest) fleets, admissible or not.
    fn front(&self, search: &Search<'_>, ground: &Ground, progress: Progress<'_>) -> Vec<FrontPoint> {
        let problem = search.problem;
        // The same margin as the plan's, so that its neighbours are no more daring than itself.
        let limits = search.limits(self.rate * self.margin);
        let goal = goal_of(problem.objective);
        let requests = problem.planning_trace.requests().len().min(FRONT_REQUESTS);
        let trace = problem.planning_trace.window(0..requests).at_rate(self.rate);
        let others: Vec<usize> = (0..ground.routes.len())
            .filter(|route| route % FRONT_STRIDE == 0 && *route != self.choice.route)
            .collect();
        progress(&Step { message: "drawing the front".into(), done: 0, total: 1 });
        let mut points: Vec<FrontPoint> = others
            .par_iter()
            .filter_map(|&at| {
                let route = &ground.routes[at];
                let fleet = search.fleet(route, &limits, goal, Effort::Sketch)?;
                Some(point(search, route, &fleet, &trace, self.rate, false))
            })
            .collect();
        let chosen = &ground.routes[self.choice.route];
        points.push(point(search, chosen, &self.choice.fleet, &trace, self.rate, true));
        front(problem.objective, points)
    }

    /// What one more unit of each scarce thing is worth, by solving again on the table.
    fn binding(&self, search: &Search<'_>, ground: &Ground, progress: Progress<'_>) -> Vec<Binding> {
        let problem = search.problem;
        let goal = goal_of(problem.objective);
        let limits = search.limits(problem.rate * self.margin);
        let value = |routes: &[Route], limits: &Limits| {
            search.sweep(routes, limits, goal, Effort::Sketch, progress).map(|(choice, _)| choice.fleet.value)
        };
        let Some(base) = value(&ground.routes, &limits) else { return Vec::new() };
        let mut changes: Vec<(String, String, Option<f64>)> = Vec::new();
        for (offer, on_offer) in problem.offers.iter().enumerate() {
            let Some(stock) = on_offer.stock else { continue };
            let mut more = limits.clone();
            more.stock[offer] = Some(stock + 1);
            let name = &on_offer.gpu.name;
            changes.push((format!("stock {name}"), format!("+1 {name}"), value(&ground.routes, &more)));
        }
        if let Some(budget) = problem.budget {
            let more = Limits { budget: Some(budget + 1.0), ..limits.clone() };
            changes.push(("budget".into(), "+$1/h".into(), value(&ground.routes, &more)));
        }
        let looser = Limits { looser: true, ..limits.clone() };
        changes.push(("latency".into(), "+10% on every limit".into(), value(&ground.routes, &looser)));
        if let (Some(rule), Some(quality)) = (problem.floor, &problem.quality) {
            use boute_router::certify::FloorRule;
            let lower = match rule {
                FloorRule::Absolute(floor) => FloorRule::Absolute((floor - 0.01).max(0.0)),
                FloorRule::Relative { share, model } => {
                    FloorRule::Relative { share: (share - 0.01).max(0.0), model }
                }
            };
            let mut routes = ground.routes.clone();
            admit(&mut routes, &quality.planning, lower, problem.models.len() <= 2);
            changes.push(("floor".into(), "-0.01".into(), value(&routes, &limits)));
        }
        let (unit_of_value, better) = if goal == Goal::Cost { ("$/h", -1.0) } else { ("req/s", 1.0) };
        changes
            .into_iter()
            .filter_map(|(constraint, unit, value)| {
                let worth = value? - base;
                let text = match goal {
                    Goal::Cost => format!("{constraint}: {unit} → {}${:.2}/h", sign(worth), worth.abs()),
                    Goal::Rate => {
                        format!("{constraint}: {unit} → {}{:.2} {unit_of_value}", sign(worth), worth.abs())
                    }
                };
                (worth * better > 1e-6).then_some(Binding { constraint, unit, worth, text })
            })
            .collect()
    }
}

const fn sign(value: f64) -> &'static str {
    if value < 0.0 { "−" } else { "+" }
}

/// The rate that a fleet carries: what all models together can, each at its share.
fn rate_of(search: &Search<'_>, route: &Route, fleet: &Fleet) -> f64 {
    let fractions = &route.stats.fractions;
    let carried = |model: usize| -> f64 {
        let of_model = fleet.replicas.iter().filter(|(column, _)| column.model == model);
        of_model.map(|(column, count)| column.rate * f64::from(*count)).sum()
    };
    (0..search.problem.models.len())
        .filter(|model| fractions[*model] > 0.0)
        .map(|model| carried(model) / fractions[model])
        .fold(f64::INFINITY, f64::min)
}

fn point(
    search: &Search<'_>,
    route: &Route,
    fleet: &Fleet,
    trace: &boute_spec::workload::Trace,
    rate: f64,
    chosen: bool,
) -> FrontPoint {
    let problem = search.problem;
    let deployment = deployment(search.candidates, fleet, &route.stats.fractions, rate);
    let queries = problem.quality.as_ref().map(|at| &at.planning);
    let shares = shares(problem, route);
    let run = simulate_fleet(problem, &deployment, &route.policy, &shares, trace, queries);
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

/// The floor to judge held-out quality by: a relative floor by the model's mean on those queries.
fn floor_value_held_out(problem: &Problem) -> Option<f64> {
    use boute_router::certify::FloorRule;
    match (problem.floor?, &problem.quality) {
        (FloorRule::Relative { share, model }, Some(quality)) => {
            let queries = &quality.held_out;
            let sum: f64 = (0..queries.len()).map(|query| queries.actual(query, model)).sum();
            Some(share * sum / queries.len().max(1) as f64)
        }
        (FloorRule::Absolute(floor), _) => Some(floor),
        (FloorRule::Relative { .. }, None) => None,
    }
}
