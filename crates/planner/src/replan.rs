//! Planning again for a fleet that runs, when rate, lengths, queries, prices or stock are not what they were: stay, route
//! otherwise on the same fleet, or move to another.
//!
//! The fleet that runs is judged on the traffic as it is; a fleet to move to must also stand what the spec asks (5 % more
//! traffic unless told otherwise). Between the two lies the band in which nothing is done. A move that only saves must be
//! better by a stated part and pay for itself within a stated time, without being short of capacity on the way.

use std::collections::BTreeMap;

use boute_spec::file::Lengths;
use boute_spec::plan::{Deployment, Objective, Plan, PlanDraft, ReplicaGroup};
use boute_spec::units::{RequestsPerSecond, UsdPerHour};
use boute_spec::workload::{Trace, TraceRequest};
use serde::{Deserialize, Serialize};

use crate::assemble::{certified_quality, deployment, floor_value, in_words};
use crate::candidates::Candidate;
use crate::database::Database;
use crate::deployment::{Fleet, Goal, Limits};
use crate::infeasible::no_fleet;
use crate::mix::ScoreMix;
use crate::moving::{Moving, Terms, gpus_of};
use crate::plan::{PlanError, Prepared, choose, finish, goal_of};
use crate::problem::{Problem, Progress};
use crate::resume::improved;
use crate::search::{Choice, Search};
use crate::standing::Standing;
use crate::strategies::Strategy;
use crate::table::LengthMix;
use crate::uphold::{Attempt, Upholder};
use crate::verify::{broken, reached_s};

/// Divisions of the load that are simulated on the fleet that runs, at most.
const OTHER_ROUTES: usize = 6;
/// Mean lengths within this part of each other are the same: one table serves both.
const SAME_LENGTHS: f64 = 0.1;
/// Fewest requests of a window.
const FEWEST_REQUESTS: usize = 50;
/// One request in so many may be left out for its length.
const MOST_LEFT_OUT: usize = 500;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing.
    Stay,
    /// The same fleet with another division of the load: instant.
    ReRoute,
    /// Another fleet.
    Move,
}

/// A plan in brief.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Brief {
    /// The fleet in words.
    pub fleet: String,
    /// Rent at today's prices.
    pub usd_per_hour: f64,
    /// Rate that it is for.
    pub rate: f64,
    /// Score that holds with the spec's confidence on the queries as they are.
    pub quality_certified: f64,
    /// Whether it keeps every promise on the traffic as it is.
    pub holds: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replan {
    /// What to do.
    pub answer: Answer,
    /// Why.
    pub why: Vec<String>,
    /// What runs, as far as it can still run.
    pub now: Brief,
    /// The best other plan; `None` if what runs is the best.
    pub best: Option<Brief>,
    /// Rent that the answer saves.
    pub saving_usd_per_hour: f64,
    /// Hours until the move has paid for itself; `None` without a saving.
    pub pay_back_h: Option<f64>,
    /// The way to the best other plan, if it has another fleet.
    pub moving: Option<Moving>,
    /// The plan to go on with, if it is another.
    #[serde(skip)]
    pub plan: Option<Plan>,
    /// The mix of decisions to be expected from here on.
    #[serde(skip)]
    pub mix: Option<ScoreMix>,
}

/// Takes GPUs that are lost out of the stock.
pub fn lose(problem: &mut Problem, lost: &BTreeMap<String, u32>) {
    for offer in &mut problem.offers {
        let gone = lost.get(&offer.gpu.name).copied().unwrap_or_default();
        offer.stock = offer.stock.map(|stock| stock.saturating_sub(gone));
    }
}

/// What of a fleet can run within the stock, which GPUs may have been lost from: whoever runs it starts the replicas of lost GPUs again
/// on others of the type, as far as there are any. Of each type the replicas of the largest group go first.
#[must_use]
pub fn within_stock(fleet: &Deployment, problem: &Problem) -> Deployment {
    let mut left = fleet.clone();
    for offer in &problem.offers {
        let gpu = &offer.gpu.name;
        let on_it = |group: &ReplicaGroup| gpus_of(group).get(gpu).copied().unwrap_or_default();
        while offer.stock.is_some_and(|stock| left.groups.iter().map(on_it).sum::<u32>() > stock) {
            let groups = left.groups.iter_mut().filter(|group| on_it(group) > 0);
            let Some(group) = groups.max_by_key(|group| group.replicas) else { break };
            *group = group.with_replicas(group.replicas - 1);
        }
    }
    left.groups.retain(|group| group.replicas > 0);
    left
}

/// Rent per hour of a fleet at the problem's prices.
#[must_use]
pub fn rent(fleet: &Deployment, problem: &Problem) -> f64 {
    let gpus = fleet.groups.iter().flat_map(gpus_of);
    let usd = |gpu: &str| {
        let offer = problem.offers.iter().find(|offer| offer.gpu.name == gpu);
        offer.map_or(0.0, |offer| offer.usd_per_gpu_hour)
    };
    gpus.map(|(gpu, count)| usd(&gpu) * f64::from(count)).sum()
}

/// The problem of the spec with the traffic of late at `rate`: the first half of `recent` to plan on, the second to verify on. Without
/// enough requests the spec's own traffic stays, at that rate. The few requests that are longer than any in the spec's traffic are
/// left out: no engine of the fleet takes them.
#[must_use]
pub fn as_of_late(spec: &Problem, recent: &[TraceRequest], rate: f64) -> Problem {
    let [first, second] = [&spec.planning_trace, &spec.verification_trace].map(longest);
    let fits = |request: &&TraceRequest| length(request) <= first.max(second);
    let fitting: Vec<TraceRequest> = recent.iter().filter(fits).cloned().collect();
    let few = recent.len() - fitting.len() <= recent.len() / MOST_LEFT_OUT;
    let requests = if few { fitting } else { recent.to_vec() };
    let halves = (requests.len() >= 2 * FEWEST_REQUESTS).then(|| Trace::new(requests).ok()).flatten();
    let (planning, verification) = halves.map_or_else(
        || (spec.planning_trace.clone(), spec.verification_trace.clone()),
        |trace| {
            let count = trace.requests().len();
            (trace.window(0..count / 2), trace.window(count / 2..count))
        },
    );
    Problem {
        planning_trace: planning.at_rate(rate),
        verification_trace: verification.at_rate(rate),
        rate,
        ..spec.clone()
    }
}

const fn length(request: &TraceRequest) -> u32 {
    request.input_tokens.saturating_add(request.output_tokens)
}

fn longest(trace: &Trace) -> u32 {
    trace.requests().iter().map(length).max().unwrap_or_default()
}

/// Whether the table of `measured` serves `other`: what a replica of any model gets is as long in the mean, and no request is longer.
///
/// Where it does not, `other` is what to measure, and to keep for the questions to come: its table is simulated once.
#[must_use]
pub fn serves(measured: &Problem, other: &Problem) -> bool {
    if measured.lengths != other.lengths {
        return false;
    }
    let near = |(a, b): (f64, f64)| (a - b).abs() <= SAME_LENGTHS * b;
    let means = mean_lengths(measured).into_iter().zip(mean_lengths(other));
    let longest_of =
        |problem: &Problem| longest(&problem.planning_trace).max(longest(&problem.verification_trace));
    // Lengths of the trace are nothing to queries that bring their own.
    let as_long = other.lengths == Lengths::Quality || longest_of(other) <= longest_of(measured);
    as_long && means.into_iter().all(near)
}

/// A problem on the traffic and the queries of `measured`, whose table serves it.
pub(crate) fn on_traffic_of(measured: &Problem, problem: &Problem) -> Problem {
    Problem {
        planning_trace: measured.planning_trace.clone(),
        verification_trace: measured.verification_trace.clone(),
        rate: measured.rate,
        quality: measured.quality.clone(),
        ..problem.clone()
    }
}

/// Mean tokens of prompts, then of each model's answers.
fn mean_lengths(problem: &Problem) -> Vec<f64> {
    let mean = |count: usize, tokens: &dyn Fn(usize) -> u32| {
        (0..count).map(|at| f64::from(tokens(at))).sum::<f64>() / count.max(1) as f64
    };
    let models = 0..problem.models.len();
    if let Some(quality) = problem.quality.as_ref().filter(|_| problem.lengths == Lengths::Quality) {
        let queries = &quality.planning;
        let prompt = mean(queries.len(), &|query| queries.prompt_tokens[query]);
        let answer = |model| mean(queries.len(), &|query| queries.output_tokens(query, model));
        return [prompt].into_iter().chain(models.map(answer)).collect();
    }
    let (requests, scales) = (problem.planning_trace.requests(), problem.output_scales());
    let prompt = mean(requests.len(), &|at| requests[at].input_tokens);
    let answer = mean(requests.len(), &|at| requests[at].output_tokens);
    [prompt].into_iter().chain(models.map(|model| scales[model] * answer)).collect()
}

/// What to do about `running`, for the `problem` as it is now. `measured` is the problem whose table is in the database: that of the spec,
/// or one that was asked about before. It is used where it [`serves`], and everything is verified on the traffic of `problem`. Lost GPUs
/// are those that its stock lacks (see [`lose`] and [`within_stock`]).
///
/// # Errors
/// If nothing meets the targets any more; if stopped.
pub fn replan(
    measured: &Problem,
    problem: &Problem,
    running: &Plan,
    terms: &Terms,
    database: &Database,
    progress: Progress<'_>,
) -> Result<Replan, PlanError> {
    let table_of = if serves(measured, problem) { &on_traffic_of(measured, problem) } else { problem };
    let mut left = PlanDraft::clone(running);
    left.deployment = within_stock(&running.deployment, problem);
    let kept = &left.deployment.groups;
    let mut prepared =
        Prepared::with_table_of(table_of, problem, LengthMix::ByRoute, kept, database, progress)?;
    let standing = Standing::find(&left, &prepared.search(), prepared.routes());
    let standing = standing.map(|standing| {
        let known = prepared.routes().iter().position(|route| route.policy == standing.route.policy);
        let route = known.unwrap_or_else(|| prepared.add_route(standing.route.clone()));
        (standing, route)
    });
    let search = prepared.search();
    Replanning { problem, prepared: &prepared, search: &search, planned: running, running: &left, progress }
        .answer(standing, terms)
}

struct Replanning<'a> {
    problem: &'a Problem,
    prepared: &'a Prepared<'a>,
    search: &'a Search<'a>,
    /// What was planned.
    planned: &'a PlanDraft,
    /// What is left of it.
    running: &'a PlanDraft,
    progress: Progress<'a>,
}

impl Replanning<'_> {
    fn answer(
        &self,
        standing: Result<(Standing, usize), String>,
        terms: &Terms,
    ) -> Result<Replan, PlanError> {
        let mut why = Vec::new();
        let (mut now, mut rerouted, mut present) = (self.unknown(), None, None);
        match standing {
            Err(missing) => why.push(format!("what runs cannot stay: {missing}")),
            Ok((standing, route)) => {
                present = self.attempt(&standing, route);
                now.usd_per_hour = standing.usd_per_hour(self.search);
                now.quality_certified = certified_quality(self.problem, &self.prepared.routes()[route]);
                why.extend(self.complaints(present.as_ref(), route));
                now.holds = why.is_empty();
                if !now.holds {
                    rerouted = self.rerouted(&standing, route);
                    present = None;
                } else if self.running.deployment != self.planned.deployment {
                    // The same routing, on what is left: the gateway has to be told.
                    rerouted = present.take();
                }
            }
        }
        let kept = rerouted.as_ref().or(present.as_ref());
        let best = self.best(kept)?;
        let other = best.as_ref().filter(|best| kept.is_none_or(|kept| !same_fleet(kept, best)));
        let moving = other.map(|best| self.way_to(best, terms));
        let saving = other.map_or(0.0, |best| now.usd_per_hour - best.deployment.usd_per_hour());
        let pay_back_h = moving
            .as_ref()
            .filter(|_| saving > 0.0)
            .map(|moving| moving.seconds / 3600.0 + (moving.usd / saving).max(0.0));
        let answer = match (kept, other, &moving) {
            (None, Some(best), _) => {
                why.push(format!(
                    "no division of the load keeps the promises on what runs; {} does",
                    in_words(&best.deployment)
                ));
                Answer::Move
            }
            (Some(kept), Some(best), Some(moving)) => {
                let worth = self.worth(kept, best, moving, pay_back_h, terms);
                let moves = worth.is_ok();
                why.push(worth.unwrap_or_else(|why| why));
                if moves {
                    Answer::Move
                } else if rerouted.is_some() {
                    Answer::ReRoute
                } else {
                    Answer::Stay
                }
            }
            _ if rerouted.is_some() => Answer::ReRoute,
            _ => {
                why.push("what runs keeps every promise, and nothing better was found".into());
                Answer::Stay
            }
        };
        if answer == Answer::ReRoute {
            let how = if now.holds { "the same division" } else { "another division" };
            why.push(format!("{how} of the load keeps every promise on what runs"));
        }
        let chosen = match answer {
            Answer::Stay => None,
            Answer::ReRoute => rerouted.as_ref(),
            Answer::Move => other,
        };
        let plan = chosen.map(|attempt| self.plan(attempt)).transpose()?;
        let policy = plan.as_ref().map_or(&self.running.routing.policy, |plan| &plan.routing.policy);
        let queries = self.problem.quality.as_ref().map(|quality| &quality.planning);
        let mix = queries.and_then(|queries| ScoreMix::expected(queries, policy).ok());
        let best = other.map(|attempt| self.brief(attempt));
        let saving_usd_per_hour = if answer == Answer::Move { saving } else { 0.0 };
        Ok(Replan { answer, why, now, best, saving_usd_per_hour, pay_back_h, moving, plan, mix })
    }

    fn unknown(&self) -> Brief {
        Brief {
            fleet: in_words(&self.running.deployment),
            usd_per_hour: self.running.deployment.usd_per_hour(),
            rate: self.rate(),
            quality_certified: 0.0,
            holds: false,
        }
    }

    /// Requests per second that what runs must carry.
    fn rate(&self) -> f64 {
        match goal_of(self.problem.objective) {
            Goal::Cost => self.problem.rate,
            Goal::Rate => self.running.predicted.rate.get(),
        }
    }

    /// How many times its load a new fleet must stand; what runs need not.
    fn asked(&self) -> f64 {
        self.search.limits(self.problem.rate).margins.first().copied().unwrap_or(1.0)
    }

    /// The fleet that runs under a route, simulated; `None` if by the table it keeps the promises at no rate.
    fn attempt(&self, standing: &Standing, route: usize) -> Option<Attempt> {
        let (choice, deployment, margins) = self.under(standing, route)?;
        let routes = self.prepared.routes();
        Some(Attempt::of_deployment(self.search, routes, choice, deployment, None, self.rate(), &margins))
    }

    /// The same, if it keeps every promise.
    fn attempt_if_kept(&self, standing: &Standing, route: usize) -> Option<Attempt> {
        let (choice, deployment, margins) = self.under(standing, route)?;
        Attempt::if_kept(self.search, self.prepared.routes(), choice, deployment, self.rate(), &margins)
    }

    /// The fleet that runs under a route, with the margins that it is assessed with.
    fn under(&self, standing: &Standing, route: usize) -> Option<(Choice, Deployment, Vec<f64>)> {
        let routes = self.prepared.routes();
        let standing = Standing { route: routes[route].clone(), counts: standing.counts.clone() };
        let margins = self.search.limits(self.problem.rate).margins;
        let fleet = standing.fleet(self.search, &margins)?;
        let usd = standing.usd_per_hour(self.search);
        let value = if goal_of(self.problem.objective) == Goal::Cost { usd } else { fleet.value };
        let planned =
            deployment(self.search.candidates, &fleet, &standing.route.stats.fractions, self.rate());
        let deployment = self.repriced(&planned);
        Some((Choice { route, fleet: Fleet { value, ..fleet } }, deployment, margins))
    }

    /// The groups that run, at today's prices and with the loads of `planned`.
    fn repriced(&self, planned: &Deployment) -> Deployment {
        let candidate =
            |group: &_| self.search.candidates.iter().find(|candidate: &&Candidate| candidate.is_of(group));
        let groups = self.running.deployment.groups.iter().map(|group| {
            let mut group = group.clone();
            if let Some(candidate) = candidate(&group) {
                let usd = candidate.usd_per_hour * f64::from(group.replicas);
                group.usd_per_hour = UsdPerHour::new(usd).unwrap_or_default();
                let load = planned.groups.iter().find(|planned| candidate.is_of(planned));
                let load =
                    load.map_or(RequestsPerSecond::default(), |planned| planned.planned_rate_per_replica);
                group.planned_rate_per_replica = load;
            }
            group
        });
        Deployment { groups: groups.collect() }
    }

    /// What is wrong with what runs; nothing if it keeps every promise.
    fn complaints(&self, present: Option<&Attempt>, route: usize) -> Vec<String> {
        let mut why = Vec::new();
        let route = &self.prepared.routes()[route];
        if let (false, Some(floor)) = (route.admissible, floor_value(self.problem)) {
            why.push(format!("the floor of {floor:.3} is no longer certified for what is routed now"));
        }
        let Some(present) = present else {
            why.push("by the table what runs keeps the promises at no rate".into());
            return why;
        };
        if let Some(budget) =
            self.problem.budget.filter(|budget| present.deployment.usd_per_hour() > budget * (1.0 + 1e-9))
        {
            why.push(format!(
                "it costs ${:.2}/h now, over the budget of ${budget:.2}/h",
                present.deployment.usd_per_hour()
            ));
        }
        for run in [&present.planned, &present.verified] {
            if run.outcome.failed > 0 {
                why.push(format!("{} requests are lost", run.outcome.failed));
            }
        }
        // The worse of the two windows.
        let mut worst: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for run in [&present.planned, &present.verified] {
            for target in broken(self.problem, run) {
                let reached = reached_s(self.problem, run, target);
                let known = worst.entry(target.key()).or_insert((reached, target.limit_s.get()));
                known.0 = known.0.max(reached);
            }
        }
        why.extend(worst.iter().map(|(target, (reached, limit))| {
            format!("{target} reaches {reached:.2} s; {limit:.2} s is promised")
        }));
        if why.is_empty() && !present.holds_as_it_is(self.problem) {
            why.push("requests pile up".into());
        }
        why.dedup();
        why
    }

    /// The same fleet with the division of the best certified quality that keeps the promises.
    fn rerouted(&self, standing: &Standing, present: usize) -> Option<Attempt> {
        let routes = self.prepared.routes();
        let certified = |route: &usize| certified_quality(self.problem, &routes[*route]);
        let mut able: Vec<usize> = (0..routes.len())
            .filter(|route| routes[*route].admissible && *route != present)
            .filter(|route| {
                let carried = self.search.assess(&routes[*route], &standing.counts);
                carried.is_some_and(|fleet| fleet.value * self.asked() >= self.rate())
            })
            .collect();
        able.sort_by(|a, b| certified(b).total_cmp(&certified(a)).then(a.cmp(b)));
        let stride = able.len().div_ceil(OTHER_ROUTES).max(1);
        able.into_iter().step_by(stride).find_map(|route| self.attempt_if_kept(standing, route))
    }

    /// The part that simulation has upheld of the rate that the table promises of what was planned.
    fn upheld(&self) -> Option<f64> {
        let standing = Standing::find(self.planned, self.search, self.prepared.routes()).ok()?;
        let promised = self.search.assess(&standing.route, &standing.counts)?.value;
        Some((self.planned.predicted.rate.get() / promised).min(1.0))
    }

    /// The best plan that holds, if it is not `kept` itself.
    fn best(&self, kept: Option<&Attempt>) -> Result<Option<Attempt>, PlanError> {
        let (problem, search, routes) = (self.problem, self.search, self.prepared.routes());
        let upholder = Upholder::new(search, routes, goal_of(problem.objective), self.progress);
        let upholder = upholder.expecting(self.upheld());
        let chosen = |limits: &Limits| choose(search, routes, Strategy::Exact, limits, self.progress);
        if let Some(kept) = kept.filter(|kept| kept.holds(problem)) {
            return Ok(Some(improved(&upholder, Strategy::Exact, kept.clone(), &chosen)));
        }
        let found = upholder.uphold(&chosen, None);
        // Where the table was optimistic, another strategy's plan may be the cheaper one.
        let doubtful = |found: &Attempt| upholder.goal == Goal::Cost && found.repairs > 0;
        let found = match found {
            Some(found) if !found.holds(problem) || doubtful(&found) => {
                Some(self.prepared.attempt(search, Strategy::Default, None, self.progress)?)
            }
            found => found,
        };
        match found.filter(|found| found.holds(problem)) {
            None if kept.is_none() => {
                let limits = search.limits(problem.rate);
                Err(PlanError::Infeasible(no_fleet(search, routes, &limits, self.progress)))
            }
            found => Ok(found),
        }
    }

    /// The move to an attempt from what runs.
    fn way_to(&self, best: &Attempt, terms: &Terms) -> Moving {
        let stock = self.problem.offers.iter().map(|offer| (offer.gpu.name.clone(), offer.stock)).collect();
        let from = self.repriced(&self.running.deployment);
        let drain_s = self.running.predicted.e2e.p99.value_ms * 1e-3;
        Moving::between(&from, &best.deployment, &self.problem.models, &stock, drain_s, terms)
    }

    /// Whether moving from something that holds is worth it, and why (not).
    fn worth(
        &self,
        kept: &Attempt,
        best: &Attempt,
        moving: &Moving,
        pay_back_h: Option<f64>,
        terms: &Terms,
    ) -> Result<String, String> {
        let quality = |attempt: &Attempt| self.prepared.routes()[attempt.choice.route].stats.quality;
        let (usd, better_usd) = (kept.deployment.usd_per_hour(), best.deployment.usd_per_hour());
        let gain = match self.problem.objective {
            Objective::MinCost | Objective::Pareto => (usd - better_usd) / usd,
            Objective::MaxRate => best.rate / kept.rate - 1.0,
            Objective::MaxQuality => quality(best) / quality(kept).max(1e-9) - 1.0,
        };
        let gained = format!("{} would be better by {:.1} %", in_words(&best.deployment), 100.0 * gain);
        if !terms.least_gain.is_finite() {
            return Err(format!("{gained}, but no move that only saves is to be made"));
        }
        if gain < terms.least_gain {
            return Err(format!(
                "{gained}, less than the {:.1} % that a move must bring",
                100.0 * terms.least_gain
            ));
        }
        if let Some(hours) = pay_back_h.filter(|hours| *hours > terms.horizon_h) {
            return Err(format!(
                "{gained}, but moving pays back after {hours:.1} h, later than {:.1} h",
                terms.horizon_h
            ));
        }
        let route = &self.prepared.routes()[kept.choice.route];
        let carried = self.search.assess(route, &kept.choice.fleet.counts()).map_or(0.0, |fleet| fleet.value);
        let headroom = carried * self.asked() / self.rate();
        if moving.least_capacity < 1.0 && moving.least_capacity * headroom < 1.0 {
            let part = 100.0 * moving.least_capacity;
            return Err(format!(
                "{gained}, but while moving only {part:.0} % of a model's capacity would be there"
            ));
        }
        let paid =
            pay_back_h.map_or(String::new(), |hours| format!(", paid back after {:.0} min", 60.0 * hours));
        Ok(format!("{gained}{paid}"))
    }

    fn brief(&self, attempt: &Attempt) -> Brief {
        Brief {
            fleet: in_words(&attempt.deployment),
            usd_per_hour: attempt.deployment.usd_per_hour(),
            rate: attempt.rate,
            quality_certified: certified_quality(self.problem, &self.prepared.routes()[attempt.choice.route]),
            holds: attempt.holds_as_it_is(self.problem),
        }
    }

    /// An attempt as a plan that keeps what of the old one is not planned.
    fn plan(&self, attempt: &Attempt) -> Result<Plan, PlanError> {
        let (plan, _) = finish(attempt.clone(), self.search, self.prepared, Strategy::Exact, None)?;
        let mut draft = PlanDraft::clone(&plan);
        let runs = |model: &String| plan.deployment.groups.iter().any(|group| group.model == *model);
        draft.routing.fallback = self.running.routing.fallback.clone();
        draft.routing.fallback.retain(|model, _| runs(model));
        draft.routing.fallback.values_mut().for_each(|others| others.retain(runs));
        Ok(Plan::try_from(draft)?)
    }
}

fn same_fleet(a: &Attempt, b: &Attempt) -> bool {
    a.choice.fleet.counts() == b.choice.fleet.counts() && (a.rate - b.rate).abs() < 1e-9
}
