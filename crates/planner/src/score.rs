//! How good a plan is, on traffic and queries that nothing about it was chosen on.
//!
//! The plan was made on one window of the trace and repaired on a second; it is scored on a third, with the held-out
//! queries, by simulating the whole fleet:
//! - whether all promises hold at the rate that was planned for;
//! - the largest rate at which they do, found by scaling the window's arrivals: bisection to 1 %. At that rate no request
//!   is lost, and the backlog does not grow over the last two thirds of the arrivals;
//! - quality with its 95 % interval (normal approximation of a mean over queries), against the floor. The floor is kept
//!   strictly if the lower end of the interval is at or above it. A floor relative to a model is judged by the interval of
//!   the difference, query by query.

use std::collections::BTreeMap;

use boute_router::ScoredQueries;
use boute_router::certify::FloorRule;
use boute_router::decide::Decider;
use boute_router::policy::assign;
use boute_spec::plan::{Deployment, ModelShare, Objective, Plan, Routing};
use boute_spec::policy::{CascadePolicy, RoutingPolicy};
use boute_spec::score::Score;
use boute_spec::units::SimTime;
use boute_spec::workload::{Trace, TraceRequest};
use rayon::prelude::*;

use crate::candidates::{Candidate, candidates, share_for};
use crate::problem::Problem;
use crate::verify::{FleetRun, Traffic, broken, holds, simulate_fleet};

/// Two-sided 95 % of the normal distribution.
const Z_95: f64 = 1.959_964;
/// Ratio of the rates between which the largest rate is known at last.
const RATE_STEP: f64 = 1.01;
/// First step up or down from the expected rate; it is squared each time, until the answer is bracketed.
const FIRST_STEP: f64 = 1.15;
/// Steps up or down at most.
const MOST_STEPS: u32 = 6;
/// Requests on which an unloaded replica is timed, and the seconds between them.
const UNLOADED_REQUESTS: usize = 1_000;
const UNLOADED_GAP_S: f64 = 1e4;

/// Scores plans of one problem. Equal fleets with equal policies are simulated once.
#[derive(Debug)]
pub struct Scoring<'a> {
    problem: &'a Problem,
    window: &'a Trace,
    known: BTreeMap<String, Score>,
}

impl<'a> Scoring<'a> {
    /// On the traffic of `window`.
    pub const fn new(problem: &'a Problem, window: &'a Trace) -> Self {
        Self { problem, window, known: BTreeMap::new() }
    }

    /// What `plan` is worth; at the problem's rate, or for `max_rate` at the plan's own. `None` if `stop` says so.
    pub fn score(&mut self, plan: &Plan, stop: &dyn Fn() -> bool) -> Option<Score> {
        let rate = match self.problem.objective {
            Objective::MaxRate => plan.predicted.rate.get(),
            _ => self.problem.rate,
        };
        let key = format!("{rate} {:?} {:?}", plan.deployment, plan.routing.policy);
        if let Some(score) = self.known.get(&key) {
            return Some(score.clone());
        }
        let fleet = Fleet::new(self.problem, plan);
        let run = fleet.run(&self.window.at_rate(rate));
        // A plan that its own planner could not uphold is not saved by a kinder window.
        let rate_met = plan.verification.passed && broken(self.problem, &run).is_empty();
        let max_rate = max_rate(rate, holds(self.problem, &run), |rate| {
            if stop() {
                return None;
            }
            Some(holds(self.problem, &fleet.run(&self.window.at_rate(rate))))
        })?;
        let quality = Quality::of(self.problem, &plan.routing.policy);
        let margin = quality.as_ref().and_then(|quality| quality.margin);
        let score = Score {
            source: run.outcome.source,
            cost_usd_per_hour: plan.deployment.usd_per_hour(),
            rate,
            rate_met,
            max_rate,
            p95_ttft_ms: run.outcome.p95_ttft_ms,
            p95_tpot_ms: run.outcome.p95_tpot_ms,
            p95_e2el_ms: run.outcome.p95_e2el_ms,
            quality: quality.as_ref().map(|quality| quality.mean),
            quality_low: quality.as_ref().map(|quality| quality.low),
            floor: margin.map(|margin| margin.floor),
            floor_met: margin.is_none_or(|margin| margin.low >= 0.0),
            floor_met_by_mean: margin.is_none_or(|margin| margin.mean >= 0.0),
        };
        self.known.insert(key, score.clone());
        Some(score)
    }
}

/// A plan's fleet, ready to be simulated on any traffic.
struct Fleet<'a> {
    problem: &'a Problem,
    deployment: &'a Deployment,
    policy: &'a RoutingPolicy,
    cascade: Option<&'a CascadePolicy>,
    shares: Vec<ModelShare>,
}

impl<'a> Fleet<'a> {
    fn new(problem: &'a Problem, plan: &'a Plan) -> Self {
        let share = |id: String| {
            let known = plan.routing.models.iter().find(|share| share.model == id);
            known.cloned().unwrap_or_else(|| share_for(id, 1.0, 1.0))
        };
        let shares = problem.model_ids().into_iter().map(share).collect();
        let Routing { policy, cascade, .. } = &plan.routing;
        Self { problem, deployment: &plan.deployment, policy, cascade: cascade.as_ref(), shares }
    }

    fn run(&self, trace: &Trace) -> FleetRun {
        let queries = self.problem.quality.as_ref().map(|quality| &quality.held_out);
        let traffic = Traffic { trace, queries, stretch: 1.0 };
        simulate_fleet(self.problem, self.deployment, self.policy, self.cascade, &self.shares, traffic)
    }
}

/// The largest rate that `holds`, to [`RATE_STEP`], searched from `expected`; 0 if even a small part of it does not hold.
/// `None` as soon as `holds` gives none.
fn max_rate(
    expected: f64,
    holds_at_expected: bool,
    mut holds: impl FnMut(f64) -> Option<bool>,
) -> Option<f64> {
    let (mut low, mut high) = (expected, expected);
    let mut step = if holds_at_expected { FIRST_STEP } else { 1.0 / FIRST_STEP };
    let mut bracketed = false;
    for _ in 0..MOST_STEPS {
        let next = if holds_at_expected { low * step } else { high * step };
        let held = holds(next)?;
        *(if held { &mut low } else { &mut high }) = next;
        bracketed = held != holds_at_expected;
        if bracketed {
            break;
        }
        step *= step;
    }
    if !bracketed {
        return Some(if holds_at_expected { low } else { 0.0 });
    }
    while high / low > RATE_STEP {
        let middle = (low * high).sqrt();
        *(if holds(middle)? { &mut low } else { &mut high }) = middle;
    }
    Some(low)
}

/// Quality of a policy on the held-out queries.
struct Quality {
    mean: f64,
    /// Lower end of the 95 % interval.
    low: f64,
    /// `None` without a floor.
    margin: Option<Margin>,
}

/// Quality less floor, query by query.
#[derive(Clone, Copy)]
struct Margin {
    floor: f64,
    mean: f64,
    /// Lower end of the 95 % interval.
    low: f64,
}

impl Quality {
    /// `None` without quality data.
    fn of(problem: &Problem, policy: &RoutingPolicy) -> Option<Self> {
        let queries = &problem.quality.as_ref()?.held_out;
        let decider = Decider::new(policy, &queries.models).expect("the policy is made of these models");
        let answered_by = assign(&decider, queries).into_iter().enumerate();
        let scores: Vec<f64> = answered_by.map(|(query, model)| queries.actual(query, model)).collect();
        let (mean, low) = interval(&scores);
        let margin = problem.floor.map(|rule| {
            let floors: Vec<f64> = (0..scores.len()).map(|query| floor_of(rule, queries, query)).collect();
            let margins: Vec<f64> = scores.iter().zip(&floors).map(|(score, floor)| score - floor).collect();
            let (mean, low) = interval(&margins);
            Margin { floor: interval(&floors).0, mean, low }
        });
        Some(Self { mean, low, margin })
    }
}

/// What one query must score so that all together keep the floor.
fn floor_of(rule: FloorRule, queries: &ScoredQueries, query: usize) -> f64 {
    match rule {
        FloorRule::Absolute(floor) => floor,
        FloorRule::Relative { share, model } => share * queries.actual(query, model),
    }
}

/// Mean, and the lower end of its two-sided 95 % interval.
fn interval(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, mean - Z_95 * (variance / count).sqrt())
}

/// The 95th percentile of E2E that the fastest replica of the largest model (by weights) reaches when requests come one at
/// a time, in seconds. Where no replica of it fits the GPUs on offer, of the largest model that does; `None` if none does.
pub fn unloaded_e2e_p95_s(problem: &Problem) -> Option<f64> {
    let (candidates, _) = candidates(problem);
    let stocked = |candidate: &&Candidate| candidate.in_stock(problem);
    let size = |candidate: &Candidate| candidate.config.model.shape.parameters();
    let largest = candidates.iter().filter(stocked).max_by(|a, b| size(a).total_cmp(&size(b)))?.model;
    let alone = alone(&problem.planning_trace);
    candidates
        .par_iter()
        .filter(|candidate| candidate.model == largest && stocked(candidate))
        .map(|candidate| unloaded_s(problem, candidate, &alone))
        .min_by(f64::total_cmp)
}

fn unloaded_s(problem: &Problem, candidate: &Candidate, alone: &Trace) -> f64 {
    let deployment = Deployment { groups: vec![candidate.group(1, 0.0)] };
    let policy = RoutingPolicy::Constant { model: candidate.config.model.id.clone() };
    let shares: Vec<ModelShare> = problem.model_ids().into_iter().map(|id| share_for(id, 1.0, 1.0)).collect();
    let queries = problem.quality.as_ref().map(|quality| &quality.planning);
    let traffic = Traffic { trace: alone, queries, stretch: 1.0 };
    simulate_fleet(problem, &deployment, &policy, None, &shares, traffic).outcome.p95_e2el_ms / 1e3
}

/// Requests of `trace`, evenly chosen, so far apart that none meets another.
fn alone(trace: &Trace) -> Trace {
    let stride = trace.requests().len().div_ceil(UNLOADED_REQUESTS);
    let requests = trace.requests().iter().step_by(stride).enumerate().map(|(index, request)| TraceRequest {
        arrival: SimTime::from_seconds(index as f64 * UNLOADED_GAP_S),
        ..request.clone()
    });
    Trace::new(requests.collect()).expect("a part of a trace, in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_rate_is_found_from_anywhere_in_few_simulations() {
        for truth in [0.02, 0.5, 9.3, 10.0, 10.4, 14.0, 700.0] {
            let mut tried = 0;
            let holds = |rate: f64| {
                tried += 1;
                Some(rate <= truth)
            };
            let found = max_rate(10.0, truth >= 10.0, holds).unwrap();
            assert!(found <= truth && truth < found * RATE_STEP, "{truth}: {found}");
            if (7.0..15.0).contains(&truth) {
                assert!(tried <= 9, "{truth}: {tried}");
            }
        }
        assert_eq!(max_rate(10.0, false, |_| Some(false)), Some(0.0));
        assert_eq!(max_rate(10.0, true, |_| None), None);
    }

    #[test]
    fn intervals_are_those_of_a_mean() {
        let (mean, low) = interval(&[0.0, 1.0, 1.0, 1.0].repeat(100));
        assert_eq!(mean, 0.75);
        // 1.96 · √(0.75 · 0.25 / 400)
        assert!((mean - low - 0.0424).abs() < 2e-4, "{low}");
        assert_eq!(interval(&[]).0, 0.0);
    }
}
