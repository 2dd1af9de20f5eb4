//! Why a plan is as it is: what binds, what comes next, why not something else, and what if things were otherwise.
//!
//! Everything is solved again on the performance table, with the load the plan was made for; nothing is verified by
//! simulation of whole fleets, so a difference says what the table says.

use std::fmt::Write as _;

use boute_perf::{FitError, ReplicaConfig};
use boute_spec::plan::{Binding, Objective, PlanDraft};
use boute_spec::workload::{Trace, TraceRequest};
use rayon::prelude::*;
use serde::Serialize;

use crate::assemble::{certified_quality, deployment, floor_value, in_words};
use crate::candidates::{Candidate, candidates};
use crate::database::Database;
use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::plan::{PlanError, Prepared, goal_of};
use crate::problem::{GpuOffer, Problem, Progress};
use crate::routing::Route;
use crate::search::{Choice, Search};
use crate::standing::Standing;
use crate::uphold::Attempt;

/// Another division of the load moves at least this share of it.
const OTHER_DIVISION: f64 = 0.05;
/// A price that would have to change by more than this part is not worth naming.
const FARTHEST_PRICE: f64 = 0.5;
/// By how much rate, lengths and prices change.
const CHANGES: [f64; 2] = [0.8, 1.2];

/// Why a plan cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The problem has no plan at all.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan uses what the problem lacks.
    #[error("the plan does not belong to this spec: {0}")]
    OtherProblem(String),
    /// `--why-not` names nothing of the problem.
    #[error("{0}")]
    Unknown(String),
}

/// What to explain beyond the plan itself.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// `MODEL on GPU`, `MODEL on N×GPU`, `MODEL` or `GPU`: why the plan has none of it.
    pub why_not: Option<String>,
    /// Whether to solve again with other rates, lengths and prices.
    pub sensitivity: bool,
}

/// A plan on the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alternative {
    /// In words.
    pub fleet: String,
    /// Per model of the spec, in its order.
    pub load_fractions: Vec<f64>,
    /// Rent.
    pub cost_usd_per_hour: f64,
    /// Mean score on the planning queries.
    pub quality: f64,
    /// What is optimised, in the unit of the explanation.
    pub value: f64,
}

/// The best plan of another kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunnerUp {
    /// How it differs.
    pub kind: String,
    /// The plan; `None` if there is none of this kind.
    pub plan: Option<Alternative>,
    /// Its value minus the plan's.
    pub difference: Option<f64>,
    /// What would have to change for it to be as good, where one price can do that; or that simulation speaks against it.
    pub takes: Option<String>,
}

/// Whether something could be in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    InPlan,
    /// At a price.
    Possible,
    /// No plan has it.
    Impossible,
}

/// Why the plan does not use something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhyNot {
    /// What was asked for.
    pub asked: String,
    /// In short.
    pub verdict: Verdict,
    /// The best plan with at least one such replica.
    pub plan: Option<Alternative>,
    /// Its value minus the plan's: the price of forcing it in.
    pub difference: Option<f64>,
    /// What would have to change for it to be as good, where one price can do that.
    pub takes: Option<String>,
    /// What speaks against it.
    pub reasons: Vec<String>,
}

/// Things are otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// What changes.
    pub change: String,
    /// The best plan then; `None` if nothing meets the targets.
    pub optimum: Option<Alternative>,
    /// Whether the present fleet and routing keep all promises, by the table.
    pub holds: bool,
    /// The value of the present plan then.
    pub value: Option<f64>,
    /// How much worse than the optimum the present plan is, where it holds.
    pub regret: Option<f64>,
}

/// Why a plan is as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The plan and why this routing, in words.
    pub summary: String,
    /// Unit of all values: `$/h`, `req/s`, or `score`.
    pub unit: &'static str,
    /// The plan, on the table.
    pub plan: Alternative,
    /// What binds, with shadow prices.
    pub binding: Vec<Binding>,
    /// The best plans of other kinds, best first.
    pub runners_up: Vec<RunnerUp>,
    /// The answer to `why_not`.
    pub why_not: Option<WhyNot>,
    /// The answers to `sensitivity`.
    pub sensitivity: Vec<Scenario>,
}

/// Explains `plan`, which was made from `problem` or from something close to it.
///
/// # Errors
/// If the problem has no plan, the plan uses what the problem lacks, or `why_not` names nothing of it.
pub fn explain(
    problem: &Problem,
    plan: &PlanDraft,
    question: &Question,
    database: &Database,
    progress: Progress<'_>,
) -> Result<Explanation, ExplainError> {
    let wanted = question.why_not.as_deref().map(|text| Wanted::parse(text, problem)).transpose()?;
    let prepared = Prepared::new(problem, database, progress)?;
    let margins = margins(&prepared, plan, progress)?;
    let search = prepared.search();
    let standing = Standing::find(plan, &search, prepared.routes()).map_err(ExplainError::OtherProblem)?;
    let limits = Limits { margins, ..search.limits(problem.rate) };
    let ground = Ground { search, routes: prepared.routes(), standing, limits, progress };
    let fleet = ground.standing.fleet(&ground.search, &ground.limits.margins);
    let fleet = fleet.ok_or_else(|| {
        ExplainError::OtherProblem("by the table its fleet keeps the promises at no rate".into())
    })?;
    let here = Found { route: &ground.standing.route, fleet };
    let mut present = ground.alternative(&here);
    present.value = ground.present_value(Some(&here.fleet));
    Ok(Explanation {
        summary: summary(problem, plan),
        unit: ground.unit(),
        binding: plan.binding.clone(),
        runners_up: ground.runners_up(&present),
        why_not: wanted.map(|wanted| ground.why_not(&wanted, &present)),
        sensitivity: if question.sensitivity { ground.sensitivity(plan, database)? } else { Vec::new() },
        plan: present,
    })
}

/// The load that the plan was finally made for: where simulation contradicted the table, the plan is made once more.
fn margins(prepared: &Prepared<'_>, plan: &PlanDraft, progress: Progress<'_>) -> Result<Vec<f64>, PlanError> {
    let search = prepared.search();
    let problem = search.problem;
    if plan.verification.repairs == 0 || goal_of(problem.objective) == Goal::Rate {
        return Ok(search.limits(problem.rate).margins);
    }
    let strategy = plan.strategy.parse().unwrap_or(crate::strategies::Strategy::Default);
    Ok(prepared.attempt(&search, strategy, None, progress)?.margins)
}

/// The plan in a sentence, and why this routing.
fn summary(problem: &Problem, plan: &PlanDraft) -> String {
    let shares: Vec<String> = plan
        .routing
        .models
        .iter()
        .map(|share| format!("{:.0}% of the queries to {}", share.load_fraction.get() * 100.0, share.model))
        .collect();
    let mut text = format!(
        "{} at {}: {}, {}.",
        in_words(&plan.deployment),
        plan.predicted.cost_usd_per_hour,
        shares.join(" and "),
        plan.predicted.rate
    );
    if problem.quality.is_some() {
        let kept = plan.targets.floor.map_or_else(String::new, |floor| {
            format!(
                "; at least {:.4} with {:.0}% confidence, above the floor of {:.4}",
                plan.predicted.quality_certified,
                plan.targets.confidence.get() * 100.0,
                floor.get()
            )
        });
        let _ = write!(text, " This division scores {:.4}{kept}.", plan.predicted.quality.value);
    }
    if let Some(bound) = &plan.bound {
        let gap = bound.gap * 100.0;
        let _ = write!(text, " No plan over the same table is more than {gap:.2}% better.");
    }
    if !plan.verification.passed {
        text += " Simulated on other traffic, it did NOT keep every promise.";
    }
    text
}

/// A route with its fleet.
struct Found<'r> {
    route: &'r Route,
    fleet: Fleet,
}

/// A problem with a plan standing on it.
struct Ground<'a> {
    search: Search<'a>,
    routes: &'a [Route],
    standing: Standing,
    /// With the margins of the plan.
    limits: Limits,
    progress: Progress<'a>,
}

impl Ground<'_> {
    fn objective(&self) -> Objective {
        self.search.problem.objective
    }

    fn unit(&self) -> &'static str {
        match self.objective() {
            Objective::MinCost | Objective::Pareto => "$/h",
            Objective::MaxRate => "req/s",
            Objective::MaxQuality => "score",
        }
    }

    /// How much worse `value` is than `than`.
    fn worse(&self, value: f64, than: f64) -> f64 {
        if self.unit() == "$/h" { value - than } else { than - value }
    }

    fn alternative(&self, found: &Found<'_>) -> Alternative {
        let problem = self.search.problem;
        let stats = &found.route.stats;
        Alternative {
            fleet: in_words(&deployment(
                self.search.candidates,
                &found.fleet,
                &stats.fractions,
                problem.rate,
            )),
            load_fractions: stats.fractions.clone(),
            cost_usd_per_hour: found.fleet.usd_per_hour(),
            quality: stats.quality,
            value: match self.objective() {
                Objective::MaxQuality => stats.quality,
                _ => found.fleet.value,
            },
        }
    }

    /// The value of the plan here; `fleet` is its fleet on this table.
    fn present_value(&self, fleet: Option<&Fleet>) -> f64 {
        match self.objective() {
            Objective::MinCost | Objective::Pareto => self.standing.usd_per_hour(&self.search),
            Objective::MaxRate => fleet.map_or(0.0, |fleet| fleet.value),
            Objective::MaxQuality => self.standing.route.stats.quality,
        }
    }

    /// The best of `routes` under `limits`.
    fn best<'r>(&self, routes: &'r [Route], limits: &Limits) -> Option<Found<'r>> {
        let search = &self.search;
        let choice = match self.objective() {
            Objective::MinCost | Objective::MaxRate => {
                let goal = goal_of(self.objective());
                search.sweep(routes, limits, goal, Effort::Sketch, self.progress)?.0
            }
            Objective::MaxQuality => search.best_quality(routes, limits, self.progress)?.0,
            // The knee is where it is by the whole front; what can be asked is what the same quality costs otherwise.
            Objective::Pareto => {
                let least = self.standing.route.stats.quality;
                let good: Vec<Route> = routes
                    .iter()
                    .map(|route| Route {
                        admissible: route.admissible && route.stats.quality >= least,
                        ..route.clone()
                    })
                    .collect();
                search.sweep(&good, limits, Goal::Cost, Effort::Sketch, self.progress)?.0
            }
        };
        Some(Found { route: &routes[choice.route], fleet: choice.fleet })
    }

    fn allowing(&self, allowed: impl Fn(&Candidate) -> bool) -> Limits {
        Limits { allowed: self.search.candidates.iter().map(allowed).collect(), ..self.limits.clone() }
    }

    /// The best plans without one of the pairs in use, on one GPU type, and with another division.
    fn runners_up(&self, present: &Alternative) -> Vec<RunnerUp> {
        let problem = self.search.problem;
        let mut kinds: Vec<(String, Limits, Vec<Route>)> = Vec::new();
        let pair = |it: &Candidate| (it.model, it.offer, it.prefill_offer());
        let used: Vec<&Candidate> =
            self.standing.counts.keys().map(|at| &self.search.candidates[*at]).collect();
        let mut pairs: Vec<_> = used.iter().map(|candidate| pair(candidate)).collect();
        pairs.dedup();
        for (model, offer, prefill) in pairs {
            let gpu = |offer: usize| &problem.offers[offer].gpu.name;
            let on = prefill.map_or_else(
                || gpu(offer).clone(),
                |it| format!("{} that prefill for {}", gpu(it), gpu(offer)),
            );
            let limits = self.allowing(|candidate| pair(candidate) != (model, offer, prefill));
            let kind = format!("without {} on {on}", problem.models[model].id);
            kinds.push((kind, limits, self.routes.to_vec()));
        }
        if used.iter().any(|candidate| candidate.prefill.is_some()) {
            let limits = self.allowing(|candidate| candidate.prefill.is_none());
            kinds.push(("without disaggregation".into(), limits, self.routes.to_vec()));
        }
        for (offer, on_offer) in problem.offers.iter().enumerate().filter(|_| problem.offers.len() > 1) {
            let limits = self.allowing(|candidate| candidate.gpus_on(offer) == candidate.gpus());
            kinds.push((format!("{} alone", on_offer.gpu.name), limits, self.routes.to_vec()));
        }
        for (model, of_model) in problem.models.iter().enumerate().filter(|_| problem.models.len() > 1) {
            let share = self.standing.route.stats.fractions[model];
            let more = |route: &&Route| route.stats.fractions[model] >= share + OTHER_DIVISION;
            let routes: Vec<Route> = self.routes.iter().filter(more).cloned().collect();
            if !routes.is_empty() {
                kinds.push((format!("more queries to {}", of_model.id), self.limits.clone(), routes));
            }
        }
        let runner_up = |(kind, limits, routes): (String, Limits, Vec<Route>)| {
            let found = self.best(&routes, &limits);
            let plan = found.as_ref().map(|found| self.alternative(found));
            let difference = plan.as_ref().map(|plan| plan.value - present.value);
            let takes = found.and_then(|found| {
                self.broken(&found, difference?).or_else(|| self.takes(&found.fleet, difference?))
            });
            RunnerUp { kind, plan, difference, takes }
        };
        let mut all: Vec<RunnerUp> = kinds.into_par_iter().map(runner_up).collect();
        let same = |plan: &Alternative| {
            (&plan.fleet, &plan.load_fractions) == (&present.fleet, &present.load_fractions)
        };
        all.retain(|it| !it.plan.as_ref().is_some_and(same));
        let worse = |it: &RunnerUp| {
            it.plan.as_ref().map_or(f64::INFINITY, |plan| self.worse(plan.value, present.value))
        };
        all.sort_by(|a, b| worse(a).total_cmp(&worse(b)));
        // One plan may be the best of several kinds.
        all.dedup_by(|next, last| {
            let same = next.plan.is_some() && next.plan == last.plan;
            if same {
                last.kind = format!("{}; {}", last.kind, next.kind);
            }
            same
        });
        all
    }

    /// What speaks against a plan that the table has for no dearer: simulation.
    fn broken(&self, found: &Found<'_>, dearer: f64) -> Option<String> {
        if self.unit() != "$/h" || dearer > 1e-9 {
            return None;
        }
        let choice = Choice { route: 0, fleet: found.fleet.clone() };
        let (routes, rate) = (std::slice::from_ref(found.route), self.search.problem.rate);
        let held = Attempt::if_it_holds(&self.search, routes, &choice, None, rate, &self.limits);
        held.is_none().then(|| "simulated, it breaks a promise".into())
    }

    /// The least change of one GPU type's price, relative to it, that makes a fleet as cheap as the plan's.
    fn takes(&self, fleet: &Fleet, dearer: f64) -> Option<String> {
        if self.unit() != "$/h" || dearer <= 0.0 {
            return None;
        }
        let problem = self.search.problem;
        let mut more = vec![0.0; problem.offers.len()];
        for (offer, more) in more.iter_mut().enumerate() {
            for (column, count) in &fleet.replicas {
                *more += column.gpus_on(offer) * f64::from(*count);
            }
            for (at, count) in &self.standing.counts {
                *more -= f64::from(self.search.candidates[*at].gpus_on(offer) * count);
            }
        }
        let changes = problem.offers.iter().zip(more).filter(|(_, more)| *more != 0.0);
        let prices = changes.map(|(offer, more)| (offer, offer.usd_per_gpu_hour - dearer / more));
        let change = |(offer, price): &(&GpuOffer, f64)| (price / offer.usd_per_gpu_hour - 1.0).abs();
        let near = prices.filter(|at| change(at) <= FARTHEST_PRICE);
        let (offer, price) = near.min_by(|a, b| change(a).total_cmp(&change(b)))?;
        Some(format!(
            "as cheap if {} cost ${price:.2}/h instead of ${:.2}/h",
            offer.gpu.name, offer.usd_per_gpu_hour
        ))
    }

    fn why_not(&self, wanted: &Wanted, present: &Alternative) -> WhyNot {
        let all = self.search.candidates.iter().enumerate();
        let required: Vec<usize> = all.filter(|(_, it)| wanted.is(it)).map(|(at, _)| at).collect();
        let mut answer = WhyNot {
            asked: wanted.text.clone(),
            verdict: Verdict::Impossible,
            plan: None,
            difference: None,
            takes: None,
            reasons: Vec::new(),
        };
        if required.iter().any(|at| self.standing.counts.contains_key(at)) {
            answer.verdict = Verdict::InPlan;
            return answer;
        }
        answer.reasons = self.against(wanted, &required);
        let limits = Limits { required, ..self.limits.clone() };
        let forced = |limits: &Limits| {
            if limits.required.is_empty() { None } else { self.best(self.routes, limits) }
        };
        if let Some(found) = forced(&limits) {
            let plan = self.alternative(&found);
            answer.verdict = Verdict::Possible;
            answer.difference = Some(plan.value - present.value);
            answer.takes = self.takes(&found.fleet, plan.value - present.value);
            answer.plan = Some(plan);
        } else if answer.reasons.is_empty() {
            let stock = vec![None; limits.stock.len()];
            let free = forced(&Limits { budget: None, stock, ..limits });
            answer.reasons.push(free.map_or_else(
                || "no fleet with it keeps the promises".into(),
                |found| {
                    let plan = self.alternative(&found);
                    format!(
                        "it breaks the budget or the stock: the best such plan is {} at ${:.2}/h",
                        plan.fleet, plan.cost_usd_per_hour
                    )
                },
            ));
        }
        answer
    }

    /// What speaks against candidates, each on its own.
    fn against(&self, wanted: &Wanted, required: &[usize]) -> Vec<String> {
        let problem = self.search.problem;
        let mut reasons: Vec<String> = Vec::new();
        if required.is_empty() {
            reasons.extend(self.dominated(wanted).or_else(|| misfit(problem, wanted)));
            return reasons;
        }
        let of = |at: &usize| &self.search.candidates[*at];
        let fewest = required.iter().map(|at| of(at).gpus()).min().unwrap_or_default();
        if !required.iter().any(|at| of(at).in_stock(problem)) {
            let names: Vec<String> = required.iter().map(|at| of(at).config.gpu.name.clone()).collect();
            let name = names.first().cloned().unwrap_or_default();
            reasons.push(format!("no stock: a replica takes {fewest} {name} at least"));
        }
        reasons.extend(self.too_slow(required));
        if let Some(model) = wanted.model {
            let mut with = self.routes.iter().filter(|route| route.stats.fractions[model] > 0.0);
            if !with.clone().any(|route| route.admissible)
                && let Some(best) = with.by_ref().max_by(|a, b| a.stats.quality.total_cmp(&b.stats.quality))
            {
                reasons.push(format!(
                    "it breaks the floor: of the divisions in which {} answers, the best can be promised to score {:.4}, \
                     not {:.4}",
                    problem.models[model].id,
                    certified_quality(problem, best),
                    floor_value(problem).unwrap_or_default()
                ));
            }
        }
        reasons
    }

    /// The promises that each of these candidates breaks even when next to idle.
    fn too_slow(&self, required: &[usize]) -> Vec<String> {
        let problem = self.search.problem;
        let models = problem.models.len();
        let levels = self.search.table.levels(&vec![1.0 / models as f64; models]);
        let slow = |(index, target): (usize, &boute_spec::slo::SloTarget)| {
            let idle = |at: &usize| Some((*at, levels[*at].first()?.reached_s[index]));
            let (at, reached) = required.iter().filter_map(idle).min_by(|a, b| a.1.total_cmp(&b.1))?;
            (reached > target.limit_s.get()).then(|| {
                format!(
                    "it breaks {target} even alone: {} reaches {reached:.2}s",
                    named(&self.search.candidates[at])
                )
            })
        };
        problem.slo.iter().enumerate().filter_map(slow).collect()
    }

    fn dominated(&self, wanted: &Wanted) -> Option<String> {
        let (candidate, by) = self.search.table.dominated.iter().find(|(it, _)| wanted.is(it))?;
        Some(format!(
            "{} is dominated by {}: that one takes no more GPUs, carries as much on each and is as fast alone",
            named(candidate),
            named(by)
        ))
    }

    /// Other rates, lengths and prices.
    fn sensitivity(&self, plan: &PlanDraft, database: &Database) -> Result<Vec<Scenario>, PlanError> {
        let problem = self.search.problem;
        let mut scenarios = Vec::new();
        for factor in CHANGES.into_iter().filter(|_| self.objective() != Objective::MaxRate) {
            let limits = Limits { rate: factor * self.limits.rate, ..self.limits.clone() };
            scenarios.push(self.scenario(change("rate", factor), &limits));
        }
        for factor in CHANGES {
            let other = with_longer_answers(problem, factor);
            let prepared = match Prepared::new(&other, database, self.progress) {
                Ok(prepared) => prepared,
                Err(PlanError::Infeasible(_)) => {
                    scenarios.push(nothing(change("answers", factor)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let search = prepared.search();
            let Ok(standing) = Standing::find(plan, &search, prepared.routes()) else {
                scenarios.push(nothing(change("answers", factor)));
                continue;
            };
            let limits = Limits { margins: self.limits.margins.clone(), ..search.limits(other.rate) };
            let ground =
                Ground { search, routes: prepared.routes(), standing, limits, progress: self.progress };
            scenarios.push(ground.scenario(change("answers", factor), &ground.limits));
        }
        for (offer, on_offer) in problem.offers.iter().enumerate() {
            for factor in CHANGES {
                let mut candidates = self.search.candidates.to_vec();
                for candidate in &mut candidates {
                    let gpus = f64::from(candidate.gpus_on(offer));
                    candidate.usd_per_hour += (factor - 1.0) * on_offer.usd_per_gpu_hour * gpus;
                }
                let search = Search { candidates: &candidates, ..self.search };
                let (standing, limits) = (self.standing.clone(), self.limits.clone());
                let ground = Ground { search, standing, limits, ..*self };
                let name = format!("price of {}", on_offer.gpu.name);
                scenarios.push(ground.scenario(change(&name, factor), &ground.limits));
            }
        }
        Ok(scenarios)
    }

    fn scenario(&self, change: String, limits: &Limits) -> Scenario {
        let optimum = self.best(self.routes, limits).map(|found| self.alternative(&found));
        let fleet = self.standing.fleet(&self.search, &limits.margins);
        let value = self.present_value(fleet.as_ref());
        let affordable =
            limits.budget.is_none_or(|budget| self.standing.usd_per_hour(&self.search) <= budget);
        let carries = fleet.is_some_and(|fleet| {
            self.objective() == Objective::MaxRate || fleet.value >= limits.rate * (1.0 - 1e-6)
        });
        let holds = affordable && carries && self.standing.route.admissible;
        let regret = optimum.as_ref().filter(|_| holds).map(|best| self.worse(value, best.value).max(0.0));
        Scenario { change, optimum, holds, value: Some(value), regret }
    }
}

fn change(what: &str, factor: f64) -> String {
    format!("{what} {:+.0}%", (factor - 1.0) * 100.0)
}

/// Nothing is known of the plan, and nothing better is there.
const fn nothing(change: String) -> Scenario {
    Scenario { change, optimum: None, holds: false, value: None, regret: None }
}

/// The problem with all answers `factor` times as long.
fn with_longer_answers(problem: &Problem, factor: f64) -> Problem {
    let scaled = |tokens: u32| (f64::from(tokens) * factor).round().max(1.0) as u32;
    let trace = |trace: &Trace| {
        let requests = trace
            .requests()
            .iter()
            .map(|request| TraceRequest { output_tokens: scaled(request.output_tokens), ..request.clone() });
        // Arrivals are as they were, so this is a trace.
        Trace::new(requests.collect()).unwrap_or_else(|_| trace.clone())
    };
    let mut other = problem.clone();
    other.planning_trace = trace(&problem.planning_trace);
    other.verification_trace = trace(&problem.verification_trace);
    for queries in other.quality.iter_mut().flat_map(|at| [&mut at.planning, &mut at.held_out]) {
        let recorded = queries.output_tokens.iter_mut().filter(|tokens| **tokens > 0);
        recorded.for_each(|tokens| *tokens = scaled(*tokens));
    }
    other
}

/// A candidate in words.
fn named(candidate: &Candidate) -> String {
    let engine =
        |config: &ReplicaConfig| format!("{} at TP {} × PP {}", config.gpu.name, config.tp, config.pp);
    let on = candidate.prefill.as_ref().map_or_else(
        || engine(&candidate.config),
        |it| {
            let (prefill, decode) = (engine(&it.config), engine(&candidate.config));
            format!("{} of {prefill} that prefill for {} of {decode}", it.instances, it.decode_instances)
        },
    );
    format!("{} on {on}", candidate.config.model.id)
}

/// Why no configuration fits, by the one that comes nearest.
fn misfit(problem: &Problem, wanted: &Wanted) -> Option<String> {
    let names = |model: &str, gpu: &str, gpus: u32| {
        wanted.model.is_none_or(|at| problem.models[at].id == model)
            && wanted.offer.is_none_or(|at| problem.offers[at].gpu.name == gpu)
            && wanted.gpus.is_none_or(|count| count == gpus)
    };
    let short = |misfit: &FitError| match misfit {
        FitError::OutOfMemory { model, gpu, tp, pp, need_gib, have_gib, .. } => {
            names(model, gpu, tp * pp).then_some(need_gib - have_gib)
        }
        FitError::Parallelism { model, gpu, tp, pp, .. } => {
            names(model, gpu, tp * pp).then_some(f64::INFINITY)
        }
    };
    let (_, misfits) = candidates(problem);
    let all = misfits.iter().filter_map(|misfit| Some((short(misfit)?, misfit)));
    all.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, misfit)| misfit.to_string())
}

/// What `why_not` asks for.
#[derive(Debug)]
struct Wanted {
    text: String,
    model: Option<usize>,
    offer: Option<usize>,
    /// GPUs of one replica.
    gpus: Option<u32>,
}

impl Wanted {
    fn parse(text: &str, problem: &Problem) -> Result<Self, ExplainError> {
        let model = |name: &str| problem.models.iter().position(|model| model.id == name);
        let offer =
            |name: &str| problem.offers.iter().position(|offer| offer.gpu.name.eq_ignore_ascii_case(name));
        let parts: Vec<&str> = text.split(" on ").map(str::trim).collect();
        let (named_model, named_gpu) = match parts[..] {
            [model_name, gpu] => (Some(model_name), Some(gpu)),
            [name] if model(name).is_some() => (Some(name), None),
            _ => (None, Some(text.trim())),
        };
        let (count, gpu_name) = named_gpu.map_or((None, None), |gpu| {
            let counted = gpu.split_once('×').or_else(|| gpu.split_once('x'));
            let counted = counted.and_then(|(count, name)| Some((count.trim().parse().ok()?, name.trim())));
            counted.map_or((None, Some(gpu)), |(count, name)| (Some(count), Some(name)))
        });
        let unknown = |what: &str| {
            let list = |names: Vec<&str>| names.join(", ");
            ExplainError::Unknown(format!(
                "`{what}` is neither a model nor a GPU type of the spec\n  help: models: {}; GPU types: {}; ask for \
                 `MODEL`, `GPU`, `MODEL on GPU` or `MODEL on 4×GPU`",
                list(problem.models.iter().map(|model| model.id.as_str()).collect()),
                list(problem.offers.iter().map(|offer| offer.gpu.name.as_str()).collect()),
            ))
        };
        Ok(Self {
            text: text.into(),
            model: named_model.map(|name| model(name).ok_or_else(|| unknown(name))).transpose()?,
            offer: gpu_name.map(|name| offer(name).ok_or_else(|| unknown(name))).transpose()?,
            gpus: count,
        })
    }

    fn is(&self, candidate: &Candidate) -> bool {
        self.model.is_none_or(|model| model == candidate.model)
            && self.offer.is_none_or(|offer| candidate.gpus_on(offer) > 0)
            && self.gpus.is_none_or(|gpus| gpus == candidate.gpus())
    }
}
