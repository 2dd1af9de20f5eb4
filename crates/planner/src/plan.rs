//! The whole of it: from a problem to a checked plan.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};

use boute_spec::outcome::Outcome;
use boute_spec::plan::{Bound, Objective, Plan, ReplicaGroup, Verification};
use boute_spec::policy::RoutingPolicy;
use rayon::prelude::*;

use crate::assemble::{Parts, assemble, floor_on};
use crate::candidates::{Candidate, candidates};
use crate::database::Database;
use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::infeasible::{Infeasible, no_baseline, no_fleet, no_route, nothing_fits};
use crate::neighbours::{binding, front_around};
use crate::problem::{Problem, Progress, Step};
use crate::resume::{again, improved, same_inputs};
use crate::routing::{Route, routes};
use crate::search::{Choice, Search};
use crate::strategies::Strategy;
use crate::strategies::blackbox::EVALUATIONS;
use crate::table::{LengthMix, Table};
use crate::uphold::{Attempt, Upholder};

/// Every so many routes one point of the front that the `pareto` objective chooses from.
const FRONT_STRIDE: usize = 5;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing meets the targets.
    #[error("{0}")]
    Infeasible(Infeasible),
    /// A plan to go on from that was made from something else.
    #[error("the earlier plan is of another problem: {0}")]
    OtherProblem(String),
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

/// A problem with what all strategies share: candidates, their table, and routes.
pub struct Prepared<'a> {
    problem: &'a Problem,
    candidates: Vec<Candidate>,
    table: Table,
    routes: Vec<Route>,
}

impl<'a> Prepared<'a> {
    /// Simulates what the database lacks, and certifies the routes.
    ///
    /// # Errors
    /// If no strategy can have a plan, with what would help; if stopped.
    pub fn new(problem: &'a Problem, database: &Database, progress: Progress<'_>) -> Result<Self, PlanError> {
        Self::with_table_of(problem, problem, LengthMix::ByRoute, &[], database, progress)
    }

    /// The same with the table of `measured`: this problem at another rate and on other traffic of like lengths, whose table is
    /// in the database already. Configurations of `kept` groups stay, whatever dominates them.
    pub(crate) fn with_table_of(
        measured: &Problem,
        problem: &'a Problem,
        length_mix: LengthMix,
        kept: &[ReplicaGroup],
        database: &Database,
        progress: Progress<'_>,
    ) -> Result<Self, PlanError> {
        let (candidates, misfits) = candidates(measured);
        if candidates.is_empty() {
            return Err(PlanError::Infeasible(nothing_fits(&misfits)));
        }
        let (candidates, table) = Table::build(measured, candidates, length_mix, kept, database, progress)
            .ok_or(PlanError::Stopped)?;
        let routes = routes(problem, &table.usd_per_query(problem, &candidates));
        if !routes.iter().any(|route| route.admissible) {
            return Err(PlanError::Infeasible(no_route(problem, &routes)));
        }
        Ok(Self { problem, candidates, table, routes })
    }

    /// Adds a route, and gives its index.
    pub(crate) fn add_route(&mut self, route: Route) -> usize {
        self.routes.push(route);
        self.routes.len() - 1
    }

    /// The same with those candidates only that `keep` keeps.
    pub(crate) fn with_candidates(&self, keep: impl Fn(&Candidate) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.candidates.len()).filter(|at| keep(&self.candidates[*at])).collect();
        let candidates = kept.iter().map(|at| self.candidates[*at].clone()).collect();
        Self { problem: self.problem, candidates, table: self.table.only(&kept), routes: self.routes.clone() }
    }

    /// The same with those routes only that `keep` keeps.
    pub(crate) fn with_routes(&self, keep: impl Fn(&RoutingPolicy) -> bool) -> Self {
        let mut routes = self.routes.clone();
        for route in &mut routes {
            route.admissible &= keep(&route.policy);
        }
        let (candidates, table) = (self.candidates.clone(), self.table.clone());
        Self { problem: self.problem, candidates, table, routes }
    }

    pub(crate) const fn problem(&self) -> &'a Problem {
        self.problem
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The searches over it.
    pub fn search(&self) -> Search<'_> {
        let disaggregate = self.candidates.iter().any(|candidate| candidate.prefill.is_some());
        Search { problem: self.problem, candidates: &self.candidates, table: &self.table, disaggregate }
    }

    /// The routes, admissible or not.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The plan of a strategy and how it did on the verification traffic, without front and shadow prices.
    ///
    /// # Errors
    /// If it finds none.
    pub fn draft(&self, strategy: Strategy, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        let search = self.search();
        finish(self.attempt(&search, strategy, None, progress)?, &search, self, strategy, None)
    }

    /// What the exact plan on the table comes to when it is simulated, without repairs.
    pub(crate) fn unrepaired(&self, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        let search = self.search();
        let limits = search.limits(self.problem.rate);
        let chosen = choose(&search, &self.routes, Strategy::Exact, &limits, progress);
        let (choice, bound) = chosen
            .ok_or_else(|| PlanError::Infeasible(no_fleet(&search, &self.routes, &limits, progress)))?;
        let rate = match goal_of(self.problem.objective) {
            Goal::Cost => self.problem.rate,
            Goal::Rate => choice.fleet.value,
        };
        let attempt = Attempt::new(&search, &self.routes, choice, bound, rate, &limits);
        finish(attempt, &search, self, Strategy::Exact, None)
    }

    /// The same with them, where the strategy proves something.
    ///
    /// # Errors
    /// If it finds none.
    pub fn plan(&self, strategy: Strategy, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        self.improve(strategy, None, progress)
    }

    /// The same where `earlier`, a plan of this problem, is the one to beat: it comes back, with the new bound, where nothing does.
    ///
    /// # Errors
    /// If there is no plan, or the earlier one is of another problem.
    pub fn improve(
        &self,
        strategy: Strategy,
        earlier: Option<&Plan>,
        progress: Progress<'_>,
    ) -> Result<(Plan, Outcome), PlanError> {
        let search = self.search();
        let around = matches!(strategy, Strategy::Default | Strategy::Exact).then_some(progress);
        finish(self.attempt(&search, strategy, earlier, progress)?, &search, self, strategy, around)
    }

    /// What a strategy comes to. Those that prove something are then asked whether disaggregated replicas make a better plan,
    /// so that one that allows them is never worse than one that does not.
    pub(crate) fn attempt(
        &self,
        search: &Search<'_>,
        strategy: Strategy,
        earlier: Option<&Plan>,
        progress: Progress<'_>,
    ) -> Result<Attempt, PlanError> {
        let without = Search { disaggregate: false, ..*search };
        let found = self.attempt_on(&without, strategy, earlier, progress);
        if !search.disaggregate || !matches!(strategy, Strategy::Default | Strategy::Exact) {
            return found;
        }
        let attempt = match found {
            Err(PlanError::Infeasible(_)) => return self.attempt_on(search, strategy, None, progress),
            // What bounds fewer candidates bounds nothing here.
            found => Attempt { bound: None, ..found? },
        };
        let upholder = Upholder::new(search, &self.routes, goal_of(self.problem.objective), progress);
        let chosen = |limits: &Limits| choose(search, &self.routes, strategy, limits, progress);
        let best = improved(&upholder, strategy, attempt, &chosen);
        let optimises = matches!(self.problem.objective, Objective::MinCost | Objective::MaxRate);
        let mut used = best.choice.fleet.replicas.iter();
        if strategy == Strategy::Default
            && optimises
            && used.any(|(column, _)| self.candidates[column.candidate].prefill.is_some())
        {
            return Ok(self.best_quality_of(search, &upholder, best));
        }
        Ok(best)
    }

    fn attempt_on(
        &self,
        search: &Search<'_>,
        strategy: Strategy,
        earlier: Option<&Plan>,
        progress: Progress<'_>,
    ) -> Result<Attempt, PlanError> {
        let problem = self.problem;
        let goal = goal_of(problem.objective);
        let upholder = Upholder::new(search, &self.routes, goal, progress);
        let first = OnceCell::new();
        let chosen = |limits: &Limits| self.choose(search, strategy, limits, &first, progress);
        let found = match earlier {
            None => upholder.uphold(&chosen, None),
            Some(plan) => Some(improved(&upholder, strategy, again(plan, search, &self.routes)?, &chosen)),
        };
        let mut best = found.ok_or_else(|| {
            let limits = search.limits(problem.rate);
            PlanError::Infeasible(match strategy {
                Strategy::Default | Strategy::Exact => no_fleet(search, &self.routes, &limits, progress),
                baseline => no_baseline(baseline),
            })
        })?;
        // Where the table is right, nothing on it beats the exact plan; where it is not, another plan may.
        let optimises = matches!(problem.objective, Objective::MinCost | Objective::MaxRate);
        if strategy == Strategy::Default && optimises && (goal == Goal::Rate || best.repairs > 0) {
            let routes = if goal == Goal::Cost { self.spread(search, &best) } else { Vec::new() };
            let value = best.choice.fleet.value;
            let proven = best.bound.is_some_and(|bound| (value - bound).abs() <= PROVEN * value);
            // A search by sampling takes longest, and over the table a proven plan is the better one.
            let sampled = (goal == Goal::Cost || !proven).then_some(Strategy::Boute);
            let strategies = ALTERNATIVES.into_iter().chain(sampled).map(Other::Strategy);
            let asked: Vec<Other> = strategies.chain(routes.into_iter().map(Other::Route)).collect();
            let total = asked.len() as u64;
            let choose_as = |other: Other, limits: &Limits| match other {
                Other::Strategy(other) => choose(search, &self.routes, other, limits, progress),
                Other::Route(route) => {
                    let fleet = search.fleet(&self.routes[route], limits, goal, Effort::Sketch)?;
                    Some((Choice { route, fleet }, None))
                }
            };
            // What each picks first does not depend on how the others do.
            let limits = search.limits(problem.rate);
            let done = AtomicU64::new(0);
            let stopped = || {
                let (message, done) = ("asking other plans".into(), done.fetch_add(1, Ordering::Relaxed));
                progress(&Step { message, done: done.min(total), total })
            };
            let pick = |other: &Other| if stopped() { None } else { choose_as(*other, &limits) };
            let picked: Vec<_> = asked.par_iter().map(pick).collect();
            for (other, picked) in asked.into_iter().zip(picked) {
                if stopped() {
                    break;
                }
                let than = best.holds(problem).then_some(&best);
                let chosen = |limits: &Limits| {
                    if search.unrepaired(limits) { picked.clone() } else { choose_as(other, limits) }
                };
                if let Some(attempt) = upholder.uphold(&chosen, than)
                    && attempt.holds(problem)
                {
                    best = Attempt { bound: best.bound, ..attempt };
                }
            }
        }
        if strategy == Strategy::Default && optimises {
            best = self.best_quality_of(search, &upholder, best);
        }
        Ok(best)
    }

    /// The same fleet under the admissible route of the highest certified quality that it carries: quality that costs
    /// nothing.
    fn best_quality_of(&self, search: &Search<'_>, upholder: &Upholder<'_>, best: Attempt) -> Attempt {
        let certified = |route: usize| {
            self.routes[route].certified.map_or(f64::NEG_INFINITY, |certified| certified.lower_bound)
        };
        let (fleet, goal) = (&best.choice.fleet, upholder.goal);
        let counts = fleet.counts();
        // A fleet that was chosen for its rate is to lose nothing of it.
        let needed = match goal {
            Goal::Cost => best.rate * search.limits(best.rate).margins[0],
            Goal::Rate => fleet.value,
        };
        let mut better: Vec<Choice> = (0..self.routes.len())
            .into_par_iter()
            .filter(|route| {
                self.routes[*route].admissible && certified(*route) > certified(best.choice.route)
            })
            .filter_map(|route| {
                let carried = search.assess(&self.routes[route], &counts)?;
                let value = if goal == Goal::Cost { fleet.value } else { carried.value };
                (carried.value >= needed).then_some(Choice { route, fleet: Fleet { value, ..carried } })
            })
            .collect();
        better.sort_by(|a, b| certified(b.route).total_cmp(&certified(a.route)));
        let stride = better.len().div_ceil(BETTER_ROUTES).max(1);
        for choice in better.into_iter().step_by(stride) {
            let attempt = upholder.instead(&best, choice);
            if attempt.holds(self.problem) {
                return attempt;
            }
        }
        best
    }

    /// Admissible routes, spread over those whose relaxation promises more than `best` is.
    fn spread(&self, search: &Search<'_>, best: &Attempt) -> Vec<usize> {
        let limits = search.limits(self.problem.rate);
        let value = best.choice.fleet.value;
        let promising: Vec<usize> = (0..self.routes.len())
            .into_par_iter()
            .filter(|route| self.routes[*route].admissible)
            .filter(|route| {
                let relaxed = search.fleet(&self.routes[*route], &limits, Goal::Cost, Effort::Relaxed);
                relaxed.is_some_and(|fleet| fleet.value < value - 1e-9)
            })
            .collect();
        let stride = promising.len().div_ceil(OTHER_ROUTES).max(1);
        promising.into_iter().rev().step_by(stride).collect()
    }

    /// What a strategy picks. A search by sampling is made once: where simulation contradicts it, its route and its kinds of
    /// replicas stay, and the cheapest counts of them are found for the raised margins.
    fn choose(
        &self,
        search: &Search<'_>,
        strategy: Strategy,
        limits: &Limits,
        first: &OnceCell<Option<Choice>>,
        progress: Progress<'_>,
    ) -> Option<(Choice, Option<f64>)> {
        if strategy.black_box().is_none() {
            return choose(search, &self.routes, strategy, limits, progress);
        }
        let sampled = || choose(search, &self.routes, strategy, limits, progress).map(|(choice, _)| choice);
        let first = first.get_or_init(sampled).as_ref()?;
        if search.unrepaired(limits) {
            return Some((first.clone(), None));
        }
        let mut allowed = vec![false; self.candidates.len()];
        first.fleet.replicas.iter().for_each(|(column, _)| allowed[column.candidate] = true);
        let limits = Limits { allowed, ..limits.clone() };
        let fleet = search.fleet(&self.routes[first.route], &limits, Goal::Cost, Effort::Proof)?;
        Some((Choice { route: first.route, fleet }, None))
    }
}

/// Finds the plan.
///
/// # Errors
/// If nothing meets the targets, with what would help; if stopped before anything was found.
pub fn plan(
    problem: &Problem,
    strategy: Strategy,
    database: &Database,
    progress: Progress<'_>,
) -> Result<Plan, PlanError> {
    Prepared::new(problem, database, progress)?.plan(strategy, progress).map(|(plan, _)| plan)
}

/// Goes on from `earlier`, a plan of the same problem: finds a better one, or proves more of that one.
///
/// # Errors
/// As [`plan`], and if `earlier` is of another problem.
pub fn resume(
    problem: &Problem,
    strategy: Strategy,
    earlier: &Plan,
    database: &Database,
    progress: Progress<'_>,
) -> Result<Plan, PlanError> {
    same_inputs(problem, earlier).map_err(PlanError::OtherProblem)?;
    Prepared::new(problem, database, progress)?
        .improve(strategy, Some(earlier), progress)
        .map(|(plan, _)| plan)
}

/// Plans by each strategy in turn.
///
/// # Errors
/// If no strategy can have a plan; if stopped.
pub fn compare(
    problem: &Problem,
    strategies: &[Strategy],
    database: &Database,
    progress: Progress<'_>,
) -> Result<Vec<StrategyResult>, PlanError> {
    let prepared = Prepared::new(problem, database, progress)?;
    Ok(strategies
        .iter()
        .map(|&strategy| match prepared.plan(strategy, progress) {
            Ok((plan, outcome)) => StrategyResult { strategy, plan: Ok(plan), outcome: Some(outcome) },
            Err(error) => StrategyResult { strategy, plan: Err(error.to_string()), outcome: None },
        })
        .collect())
}

/// What the default strategy asks beside the exact plan.
#[derive(Debug, Clone, Copy)]
enum Other {
    Strategy(Strategy),
    /// The cheapest fleet for this route.
    Route(usize),
}

/// Routes of better quality that are simulated on a plan's fleet, at most.
const BETTER_ROUTES: usize = 6;
/// Routes that the default strategy asks where the exact plan did not hold, at most.
const OTHER_ROUTES: usize = 12;
/// A plan is proven if no other is better by more than this part.
const PROVEN: f64 = 0.01;
/// Strategies that it asks.
const ALTERNATIVES: [Strategy; 8] = [
    Strategy::Sequential,
    Strategy::Alternating,
    Strategy::RoutingProportional,
    Strategy::RoutingUniform,
    Strategy::Homogeneous,
    Strategy::HeterogeneousSingle,
    Strategy::Cascadia,
    Strategy::Agh,
];

/// The goal of the sweep for an objective.
pub(crate) fn goal_of(objective: Objective) -> Goal {
    if objective == Objective::MaxRate { Goal::Rate } else { Goal::Cost }
}

/// The route and fleet that a strategy picks, and what bounds its value if it proves one.
pub(crate) fn choose(
    search: &Search<'_>,
    routes: &[Route],
    strategy: Strategy,
    limits: &Limits,
    progress: Progress<'_>,
) -> Option<(Choice, Option<f64>)> {
    let objective = search.problem.objective;
    let goal = goal_of(objective);
    let unproven = match strategy {
        Strategy::Default | Strategy::Exact => {
            let (choice, bound) = match objective {
                Objective::MinCost | Objective::MaxRate => {
                    search.sweep(routes, limits, goal, Effort::Proof, progress)?
                }
                Objective::MaxQuality => search.best_quality(routes, limits, progress)?,
                Objective::Pareto => return Some((knee(search, routes, limits)?, None)),
            };
            return Some((choice, Some(bound)));
        }
        Strategy::Homogeneous => search.homogeneous(routes, limits, goal),
        Strategy::HeterogeneousSingle => search.heterogeneous_single(routes, limits, goal),
        Strategy::RoutingUniform => search.uniform(routes, limits, goal),
        Strategy::RoutingProportional => search.proportional(routes, limits, goal),
        Strategy::Sequential => search.sequential(routes, limits, goal),
        Strategy::Alternating => search.alternating(routes, limits, goal),
        Strategy::Cascadia => search.cascadia(routes, limits, goal),
        Strategy::Agh => search.agh(routes, limits, goal),
        Strategy::Random | Strategy::Nsga2 | Strategy::Qnehvi | Strategy::Boute => {
            search.trail(strategy.black_box()?, routes, limits, goal, EVALUATIONS, progress).choice
        }
    };
    Some((unproven?, None))
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

/// The attempt as a plan; with its front and what binds if `around`.
pub(crate) fn finish(
    attempt: Attempt,
    search: &Search<'_>,
    ground: &Prepared<'_>,
    strategy: Strategy,
    around: Option<Progress<'_>>,
) -> Result<(Plan, Outcome), PlanError> {
    let problem = search.problem;
    let route = &ground.routes[attempt.choice.route];
    let quality = attempt.verified.outcome.quality.unwrap_or_default();
    let floor_kept = floor_on(problem, |quality| &quality.held_out).is_none_or(|floor| quality >= floor);
    let verification = Verification {
        passed: attempt.holds(problem) && floor_kept,
        requests: attempt.verified.outcome.completed,
        quality,
        queries: problem.quality.as_ref().map_or(0, |at| at.held_out.len() as u64),
        repairs: attempt.repairs,
    };
    let (front, binding) = around.map_or_else(Default::default, |progress| {
        progress(&Step { message: "drawing the front".into(), done: 0, total: 1 });
        rayon::join(
            || front_around(&attempt, search, &ground.routes),
            || binding(&attempt, search, &ground.routes),
        )
    });
    let bound = attempt.bound.map(|bound| stated_bound(&attempt, problem, bound, route));
    let plan = assemble(Parts {
        problem,
        candidates: &ground.candidates,
        table: &ground.table,
        strategy,
        route,
        fleet: &attempt.choice.fleet,
        deployment: attempt.deployment,
        rate: attempt.rate,
        planned: &attempt.planned.outcome,
        verification,
        bound,
        front,
        binding,
    })?;
    Ok((plan, attempt.verified.outcome))
}

fn stated_bound(attempt: &Attempt, problem: &Problem, bound: f64, route: &Route) -> Bound {
    let (of, short) = match problem.objective {
        Objective::MaxRate => ("max_rate", bound - attempt.rate),
        Objective::MaxQuality => ("quality", bound - route.stats.quality),
        _ => ("cost_usd_per_hour", attempt.choice.fleet.value - bound),
    };
    Bound { of: of.into(), value: bound, gap: short.max(0.0) / bound.abs().max(1e-9) }
}
