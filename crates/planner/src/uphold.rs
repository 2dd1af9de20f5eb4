//! From what a strategy picks on the table to what simulation upholds.
//!
//! A choice is simulated whole on the planning and on the verification traffic. Where a promise breaks, the table was
//! optimistic:
//! - `min_cost`: the model most to blame (whose share of late requests exceeds the table's the most) is planned for more
//!   load, and the strategy chooses again; once a choice holds, the last step is halved once.
//! - `max_rate`: the rate is lowered until it holds, by bisection to [`CLOSE`].
//!
//! The default strategy then asks the cheap ones too, and keeps whatever is better *when simulated*.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use boute_spec::file::Robust;
use boute_spec::outcome::RequestOutcome;
use boute_spec::plan::{Deployment, ModelShare, Objective};
use boute_spec::slo::SloTarget;
use rayon::prelude::*;

use crate::assemble::{deployment, shares};
use crate::deployment::{Fleet, Goal, Limits};
use crate::problem::{Problem, Progress, Step};
use crate::routing::Route;
use crate::search::{Choice, Search};
use crate::verify::{FleetRun, Traffic, broken, holds, reached_s, simulate_fleet, simulate_unless_doomed};

/// Choices simulated before giving up.
const MOST_REPAIRS: u32 = 12;
/// Margins raised before another fleet must have come.
const MOST_RAISES: u32 = 40;
/// A model to blame is planned for between these parts more load than before.
const STEPS: (f64, f64) = (0.02, 0.12);
/// How exactly the rate of a fleet is found.
const CLOSE: f64 = 0.01;
/// A rate is sought up or down from what the table promises in steps of this part of it, each this many times the last.
const RATE_STEP: f64 = 0.04;
const LONGER: f64 = 1.5;
/// It is not sought below this part of what the table promises, nor expected above that.
const RATES: (f64, f64) = (0.5, 1.5);

/// A choice, simulated.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) choice: Choice,
    pub(crate) bound: Option<f64>,
    /// Requests per second of the simulations.
    pub(crate) rate: f64,
    /// Per model, how many times its load the fleet was solved for.
    pub(crate) margins: Vec<f64>,
    pub(crate) deployment: Deployment,
    pub(crate) planned: FleetRun,
    pub(crate) verified: FleetRun,
    /// Both windows again, with what the plan must stand, one thing at a time.
    pub(crate) stressed: Vec<FleetRun>,
    pub(crate) repairs: u32,
}

/// What a strategy picks under limits, with what bounds it if it proves one.
pub(crate) type Choose<'a> = &'a dyn Fn(&Limits) -> Option<(Choice, Option<f64>)>;

impl Attempt {
    pub(crate) fn new(
        search: &Search<'_>,
        routes: &[Route],
        choice: Choice,
        bound: Option<f64>,
        rate: f64,
        limits: &Limits,
    ) -> Self {
        let fractions = &routes[choice.route].stats.fractions;
        let deployment = deployment(search.candidates, &choice.fleet, fractions, rate);
        Self::of_deployment(search, routes, choice, deployment, bound, rate, &limits.margins)
    }

    /// The same for a deployment that is there already.
    pub(crate) fn of_deployment(
        search: &Search<'_>,
        routes: &[Route],
        choice: Choice,
        deployment: Deployment,
        bound: Option<f64>,
        rate: f64,
        margins: &[f64],
    ) -> Self {
        let simulation = Simulation::new(search, &routes[choice.route], &deployment, rate);
        let (planned, verified) = simulation.windows();
        let stressed = simulation.stressed();
        let margins = margins.to_vec();
        Self { choice, bound, rate, margins, deployment, planned, verified, stressed, repairs: 0 }
    }

    /// The same if it keeps every promise on the traffic as it is; if not, nothing more is simulated.
    pub(crate) fn if_kept(
        search: &Search<'_>,
        routes: &[Route],
        choice: Choice,
        deployment: Deployment,
        rate: f64,
        margins: &[f64],
    ) -> Option<Self> {
        let simulation = Simulation::new(search, &routes[choice.route], &deployment, rate);
        let (planned, verified) = simulation.windows();
        if ![&planned, &verified].into_iter().all(|run| kept(search.problem, run)) {
            return None;
        }
        let (stressed, margins) = (simulation.stressed(), margins.to_vec());
        Some(Self { choice, bound: None, rate, margins, deployment, planned, verified, stressed, repairs: 0 })
    }

    /// An attempt that holds; the hardest runs are made first, and no others if they break a promise.
    pub(crate) fn if_it_holds(
        search: &Search<'_>,
        routes: &[Route],
        choice: &Choice,
        bound: Option<f64>,
        rate: f64,
        limits: &Limits,
    ) -> Option<Self> {
        let hardest = Hardest::stood(search, routes, choice, rate)?;
        Self::of_hardest(hardest, search, routes, choice, bound, limits)
    }

    /// The same once the hardest runs are made.
    fn of_hardest(
        Hardest { rate, deployment, stressed }: Hardest,
        search: &Search<'_>,
        routes: &[Route],
        choice: &Choice,
        bound: Option<f64>,
        limits: &Limits,
    ) -> Option<Self> {
        let simulation = Simulation::new(search, &routes[choice.route], &deployment, rate);
        let as_it_is = simulation.as_it_is();
        let [planned, verified] =
            simulation.unless_broken(&[(as_it_is.clone(), false), (as_it_is, true)])?.try_into().ok()?;
        let (choice, margins) = (choice.clone(), limits.margins.clone());
        Some(Self { choice, bound, rate, margins, deployment, planned, verified, stressed, repairs: 0 })
    }

    /// Whether every promise was kept in every run and every model has its replicas. A highest rate must also be one that can go
    /// on; traffic as it is may swell and fall.
    pub(crate) fn holds(&self, problem: &Problem) -> bool {
        enough_replicas(problem, &self.deployment) && self.runs().all(|run| kept(problem, run))
    }

    /// Whether every promise is kept on the traffic as it is, with nothing more to stand.
    pub(crate) fn holds_as_it_is(&self, problem: &Problem) -> bool {
        kept(problem, &self.planned) && kept(problem, &self.verified)
    }

    fn runs(&self) -> impl Iterator<Item = &FleetRun> {
        [&self.planned, &self.verified].into_iter().chain(&self.stressed)
    }

    /// What is optimised, less is better.
    pub(crate) fn badness(&self, problem: &Problem) -> f64 {
        if problem.objective == Objective::MaxRate { -self.rate } else { self.choice.fleet.usd_per_hour() }
    }

    /// The model most to blame, and how many times more of its load to plan for.
    fn to_blame(&self, search: &Search<'_>, route: &Route) -> (usize, f64) {
        let problem = search.problem;
        let mut blame = vec![0.0_f64; problem.models.len()];
        let mut worst = 1.0_f64;
        for run in self.runs() {
            for target in broken(problem, run) {
                let at = problem.slo.iter().position(|it| it == target).unwrap_or_default();
                let promised = late_by_table(&self.choice.fleet, route, at);
                let happened = late(problem, run, target);
                for ((blame, happened), promised) in blame.iter_mut().zip(happened).zip(promised) {
                    *blame = blame.max(happened - promised);
                }
                worst = worst.max(reached_s(problem, run, target) / target.limit_s.get());
            }
        }
        let culprit = (0..blame.len()).max_by(|a, b| blame[*a].total_cmp(&blame[*b])).unwrap_or_default();
        (culprit, 1.0 + ((worst - 1.0) / 2.0).clamp(STEPS.0, STEPS.1))
    }
}

/// A choice at a rate, in the hardest runs.
struct Hardest {
    rate: f64,
    deployment: Deployment,
    stressed: Vec<FleetRun>,
}

impl Hardest {
    /// `None` if it has too few replicas, or once a promise breaks.
    fn stood(search: &Search<'_>, routes: &[Route], choice: &Choice, rate: f64) -> Option<Self> {
        let route = &routes[choice.route];
        let deployment = deployment(search.candidates, &choice.fleet, &route.stats.fractions, rate);
        let simulation = Simulation::new(search, route, &deployment, rate);
        let enough = enough_replicas(search.problem, &deployment);
        let stressed = enough.then(|| simulation.unless_broken(&simulation.hard())).flatten()?;
        Some(Self { rate, deployment, stressed })
    }
}

fn enough_replicas(problem: &Problem, deployment: &Deployment) -> bool {
    let mut replicas: BTreeMap<&str, u32> = BTreeMap::new();
    for group in &deployment.groups {
        *replicas.entry(&group.model).or_default() += group.replicas;
    }
    replicas.into_values().all(|replicas| replicas >= problem.robust.min_replicas)
}

fn kept(problem: &Problem, run: &FleetRun) -> bool {
    match problem.objective {
        Objective::MaxRate => holds(problem, run),
        _ => broken(problem, run).is_empty(),
    }
}

/// The simulations of a deployment at a rate.
struct Simulation<'a> {
    problem: &'a Problem,
    route: &'a Route,
    deployment: &'a Deployment,
    shares: Vec<ModelShare>,
    rate: f64,
}

impl<'a> Simulation<'a> {
    fn new(search: &Search<'a>, route: &'a Route, deployment: &'a Deployment, rate: f64) -> Self {
        let problem = search.problem;
        Self { problem, route, deployment, shares: shares(problem, route), rate }
    }

    fn run(&self, held_out: bool, stress: &Stress) -> FleetRun {
        self.on(held_out, stress, |deployment, traffic| {
            let Route { policy, cascade, .. } = self.route;
            simulate_fleet(self.problem, deployment, policy, cascade.as_ref(), &self.shares, traffic)
        })
    }

    /// `simulate` on a window.
    fn on<R>(&self, held_out: bool, stress: &Stress, simulate: impl Fn(&Deployment, Traffic<'_>) -> R) -> R {
        let problem = self.problem;
        let trace = if held_out { &problem.verification_trace } else { &problem.planning_trace };
        let rate = self.rate * stress.faster;
        let trace = if rate == problem.rate { trace } else { &trace.at_rate(rate) };
        let queries = problem.quality.as_ref().map(|at| if held_out { &at.held_out } else { &at.planning });
        simulate(&stress.deployment, Traffic { trace, queries, stretch: stress.longer })
    }

    /// On the planning and on the verification window.
    fn windows(&self) -> (FleetRun, FleetRun) {
        let as_it_is = self.as_it_is();
        rayon::join(|| self.run(false, &as_it_is), || self.run(true, &as_it_is))
    }

    /// On both windows with what the plan must stand.
    fn stressed(&self) -> Vec<FleetRun> {
        self.hard().par_iter().map(|(stress, held_out)| self.run(*held_out, stress)).collect()
    }

    /// Runs under stresses, each on the second window or the first; `None` once one breaks a promise.
    fn unless_broken(&self, runs: &[(Stress, bool)]) -> Option<Vec<FleetRun>> {
        let doomed = AtomicBool::new(false);
        let run = |(stress, held_out): &(Stress, bool)| {
            let run = self.on(*held_out, stress, |deployment, traffic| {
                let (Route { policy, cascade, .. }, shares) = (self.route, &self.shares);
                let cascade = cascade.as_ref();
                simulate_unless_doomed(self.problem, deployment, policy, cascade, shares, traffic, &doomed)
            });
            let run = run.filter(|run| kept(self.problem, run));
            doomed.fetch_or(run.is_none(), Ordering::Relaxed);
            run
        };
        runs.par_iter().map(run).collect()
    }

    fn as_it_is(&self) -> Stress {
        Stress { deployment: self.deployment.clone(), faster: 1.0, longer: 1.0 }
    }

    /// What the plan must stand, one thing at a time, each on both windows (whether the second).
    fn hard(&self) -> Vec<(Stress, bool)> {
        let Robust { rate: faster, lengths: longer, lost_replicas, .. } = self.problem.robust;
        let mut stresses = Vec::new();
        if faster > 1.0 {
            stresses.push(Stress { faster, ..self.as_it_is() });
        }
        if longer > 1.0 {
            stresses.push(Stress { longer, ..self.as_it_is() });
        }
        if lost_replicas > 0 {
            let models = self.route.policy.models();
            let losses = models.into_iter().map(|model| self.deployment.without(model, lost_replicas));
            stresses.extend(losses.map(|deployment| Stress { deployment, ..self.as_it_is() }));
        }
        stresses.into_iter().flat_map(|stress| [(stress.clone(), false), (stress, true)]).collect()
    }
}

/// Something that a plan must stand.
#[derive(Clone)]
struct Stress {
    /// What is left of the fleet.
    deployment: Deployment,
    /// The rate is so many times the plan's.
    faster: f64,
    /// Prompts and answers are so many times as long.
    longer: f64,
}

/// Share of all requests that are over the limit of `target`, per model.
fn late(problem: &Problem, run: &FleetRun, target: &SloTarget) -> Vec<f64> {
    let mut counts = vec![0.0; problem.models.len()];
    let over = |outcome: &&RequestOutcome| outcome.metric_s(target.metric) > target.limit_s.get();
    for outcome in run.requests.iter().filter(over) {
        counts[outcome.model as usize] += 1.0 / run.requests.len() as f64;
    }
    counts
}

/// The same as the table has it.
fn late_by_table(fleet: &Fleet, route: &Route, target: usize) -> Vec<f64> {
    let fractions = &route.stats.fractions;
    let of = |model: usize, part: fn(&crate::deployment::Column, usize) -> f64| -> f64 {
        let replicas = fleet.replicas.iter().filter(|(column, _)| column.model == model);
        replicas.map(|(column, count)| column.rate * f64::from(*count) * part(column, target)).sum()
    };
    (0..fractions.len())
        .map(|model| {
            let carried = of(model, |_, _| 1.0);
            if carried > 0.0 {
                fractions[model] * of(model, |column, at| column.over[at]) / carried
            } else {
                0.0
            }
        })
        .collect()
}

/// What one strategy needs to have its choices upheld.
pub(crate) struct Upholder<'a> {
    pub(crate) search: &'a Search<'a>,
    pub(crate) routes: &'a [Route],
    pub(crate) goal: Goal,
    pub(crate) progress: Progress<'a>,
    /// What part of a rate that the table promises is expected to hold, where an earlier plan has shown it.
    upheld: Option<f64>,
    /// Routes and fleets whose highest rate is known: what several strategies choose is simulated once.
    tried: RefCell<BTreeSet<(usize, BTreeMap<usize, u32>)>>,
}

impl<'a> Upholder<'a> {
    pub(crate) const fn new(
        search: &'a Search<'a>,
        routes: &'a [Route],
        goal: Goal,
        progress: Progress<'a>,
    ) -> Self {
        Self { search, routes, goal, progress, upheld: None, tried: RefCell::new(BTreeSet::new()) }
    }

    /// The same, looking for rates from this part of what the table promises on.
    pub(crate) fn expecting(self, upheld: Option<f64>) -> Self {
        Self { upheld, ..self }
    }

    fn problem(&self) -> &Problem {
        self.search.problem
    }

    fn stopped(&self, repairs: u32) -> bool {
        let message = "verifying by simulation".into();
        (self.progress)(&Step { message, done: u64::from(repairs), total: u64::from(MOST_REPAIRS) })
    }

    /// The best that `choose` comes to when simulated, better than `than` if that is given. `None` if it chooses nothing (at all,
    /// or nothing better); an attempt that does not hold if nothing does.
    pub(crate) fn uphold(&self, choose: Choose<'_>, than: Option<&Attempt>) -> Option<Attempt> {
        let limits = self.search.limits(self.problem().rate);
        match self.goal {
            Goal::Cost => {
                let than = than.map(|than| than.badness(self.problem()));
                let better = |value: f64| than.is_none_or(|than| value < than - 1e-9);
                let (choice, bound) = choose(&limits).filter(|(choice, _)| better(choice.fleet.value))?;
                self.cheapest_that_holds(choose, choice, bound, &limits, than)
            }
            Goal::Rate => {
                let (choice, bound) = choose(&limits)?;
                self.rate_that_holds(&choice, bound, &limits, than.map(|than| than.rate))
            }
        }
    }

    /// Another choice in the place of an attempt's, simulated at the same rate.
    pub(crate) fn instead(&self, attempt: &Attempt, choice: Choice) -> Attempt {
        let limits = Limits { margins: attempt.margins.clone(), ..self.search.limits(attempt.rate) };
        let other = Attempt::new(self.search, self.routes, choice, attempt.bound, attempt.rate, &limits);
        Attempt { repairs: attempt.repairs, ..other }
    }

    fn cheapest_that_holds(
        &self,
        choose: Choose<'_>,
        choice: Choice,
        bound: Option<f64>,
        limits: &Limits,
        than: Option<f64>,
    ) -> Option<Attempt> {
        let rate = self.problem().rate;
        let attempt = |choice, bound, limits: &Limits, repairs| {
            let attempt = Attempt::new(self.search, self.routes, choice, bound, rate, limits);
            Attempt { repairs, ..attempt }
        };
        // Half of the step from one attempt to margins that were enough.
        let shorter = |before: &Attempt, enough: &[f64], than: f64| {
            let between = before.margins.iter().zip(enough).map(|(a, b)| (a * b).sqrt()).collect();
            let limits = Limits { margins: between, ..limits.clone() };
            let (choice, _) = choose(&limits).filter(|(choice, _)| choice.fleet.value < than - 1e-9)?;
            let shorter = attempt(choice, bound, &limits, before.repairs + 2);
            shorter.holds(self.problem()).then_some(shorter)
        };
        let mut last = attempt(choice, bound, limits, 0);
        let mut before: Option<Attempt> = None;
        while !last.holds(self.problem()) && last.repairs < MOST_REPAIRS && !self.stopped(last.repairs) {
            let Some((choice, limits)) = self.other_choice(choose, &last, limits) else { break };
            if let Some(than) = than.filter(|than| choice.fleet.value >= than - 1e-9) {
                return shorter(&last, &limits.margins, than);
            }
            let next = attempt(choice, bound, &limits, last.repairs + 1);
            before = Some(std::mem::replace(&mut last, next));
        }
        if let Some(before) = before.filter(|_| last.holds(self.problem()) && !self.stopped(last.repairs))
            && let Some(shorter) = shorter(&before, &last.margins, last.choice.fleet.value)
        {
            last = shorter;
        }
        Some(last)
    }

    /// What `choose` picks once the margin of the model most to blame is high enough that it is another fleet. `None` if there
    /// is none.
    fn other_choice(&self, choose: Choose<'_>, last: &Attempt, limits: &Limits) -> Option<(Choice, Limits)> {
        let (culprit, step) = last.to_blame(self.search, &self.routes[last.choice.route]);
        let mut margins = last.margins.clone();
        for _ in 0..MOST_RAISES {
            margins[culprit] *= step;
            let limits = Limits { margins: margins.clone(), ..limits.clone() };
            let (choice, _) = choose(&limits)?;
            if choice.route != last.choice.route || choice.fleet.counts() != last.choice.fleet.counts() {
                return Some((choice, limits));
            }
        }
        None
    }

    /// The choice at the highest rate at which it holds; `None` if that is not above `than`.
    fn rate_that_holds(
        &self,
        choice: &Choice,
        bound: Option<f64>,
        limits: &Limits,
        than: Option<f64>,
    ) -> Option<Attempt> {
        if !self.tried.borrow_mut().insert((choice.route, choice.fleet.counts())) {
            return None;
        }
        let (search, routes, promised) = (self.search, self.routes, choice.fleet.value);
        let whole = |hardest| Attempt::of_hardest(hardest, search, routes, choice, bound, limits);
        // What holds in the hardest runs nearly always holds as it is: that is simulated once, at the rate found.
        let stood = |rate| Hardest::stood(search, routes, choice, rate);
        let (mut low, best) = self.highest_rate(promised, than, stood)?;
        let mut attempt = None;
        if let Some((hardest, tried)) = best {
            attempt = whole(hardest).map(|whole| (whole, tried));
            if attempt.is_none() {
                (low, attempt) = self.highest_rate(promised, than, |rate| stood(rate).and_then(whole))?;
            }
        }
        let at_low = || (Attempt::new(search, routes, choice.clone(), bound, low, limits), 0);
        let (attempt, repairs) = attempt.or_else(|| than.is_none().then(at_low))?;
        Some(Attempt { repairs, ..attempt })
    }

    /// The highest rate at which something `holds`, with what that gives and how many other rates were tried before: nothing if
    /// it holds at none. `None` if that is not above `than`.
    fn highest_rate<T>(
        &self,
        promised: f64,
        than: Option<f64>,
        holds: impl Fn(f64) -> Option<T>,
    ) -> Option<(f64, Option<(T, u32)>)> {
        let least = RATES.0 * promised;
        let (mut low, mut high) = (least, f64::INFINITY);
        let expected = promised * self.upheld.unwrap_or(1.0);
        let mut rate = than.map_or(expected, |than| than * (1.0 + CLOSE));
        if rate >= RATES.1 * promised {
            return None;
        }
        let mut step = RATE_STEP;
        let mut best = None;
        let mut tried = 0;
        while high - low > CLOSE * low && !self.stopped(tried) {
            if let Some(held) = holds(rate) {
                low = rate;
                best = Some((held, tried));
            } else if best.is_none() && than.is_some() {
                return None;
            } else {
                high = rate;
            }
            tried += 1;
            rate = match (&best, high.is_finite()) {
                (Some(_), false) if self.upheld.is_some() && low * (1.0 + step) < expected => expected,
                (Some(_), false) => low * (1.0 + step),
                (None, _) if rate * (1.0 - step) > least => rate * (1.0 - step),
                _ => f64::midpoint(low, high),
            };
            step *= LONGER;
        }
        Some((low, best))
    }
}
