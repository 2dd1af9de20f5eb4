//! The whole fleet on real traffic: same router, same balancing, every token.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use boute_router::ScoredQueries;
use boute_router::cascade::{Answer, Budget, Cascade};
use boute_router::decide::Decider;
use boute_router::policy::{assign, evaluate};
use boute_sim::{Request, fleet, simulate_each};
use boute_spec::outcome::{Outcome, OutcomeSource, RequestOutcome, quantile};
use boute_spec::plan::{Deployment, ModelShare};
use boute_spec::policy::{CascadePolicy, RoutingPolicy};
use boute_spec::slo::SloTarget;
use boute_spec::workload::Trace;

use crate::problem::Problem;

/// The backlog grows if, over the last two thirds of the arrivals, more than this share of their number piles up. One third
/// would take the swell of real traffic, under which more are served at once, for a fleet that cannot follow.
const BACKLOG: f64 = 0.05;

/// What a simulated fleet did.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetRun {
    /// The summary.
    pub outcome: Outcome,
    /// Every answered request; its model is an index into the problem's.
    pub requests: Vec<RequestOutcome>,
}

/// Traffic to simulate.
#[derive(Debug, Clone, Copy)]
pub struct Traffic<'a> {
    /// When requests come, and how long they are where queries do not say.
    pub trace: &'a Trace,
    /// What is asked: each request is joined to one by the seed.
    pub queries: Option<&'a ScoredQueries>,
    /// Prompts and answers are so many times as long.
    pub stretch: f64,
}

/// Simulates `deployment` under `policy` and its `cascade`, if it has one. Quality is that of all queries under the policy. `shares` are in the order of the
/// problem's models.
///
/// # Panics
/// If a group does not fit or the policy names an unknown model: candidates fit, policies are made of the models.
pub fn simulate_fleet(
    problem: &Problem,
    deployment: &Deployment,
    policy: &RoutingPolicy,
    cascade: Option<&CascadePolicy>,
    shares: &[ModelShare],
    traffic: Traffic<'_>,
) -> FleetRun {
    simulate_while(problem, deployment, policy, cascade, shares, traffic, |_| true)
}

/// The same, `None` as soon as so many requests are late that a promise is broken whatever follows, or once `doomed`, which is
/// set then, is set by another run.
///
/// # Panics
/// As [`simulate_fleet`].
pub fn simulate_unless_doomed(
    problem: &Problem,
    deployment: &Deployment,
    policy: &RoutingPolicy,
    cascade: Option<&CascadePolicy>,
    shares: &[ModelShare],
    traffic: Traffic<'_>,
    doomed: &AtomicBool,
) -> Option<FleetRun> {
    let most = traffic.trace.requests().len();
    // A quantile of at most `most` values lies above the limit if more values than these do.
    let spare = |target: &SloTarget| {
        let last = most.saturating_sub(1);
        last - (target.percentile.share() * last as f64).floor() as usize
    };
    let mut spare: Vec<usize> = problem.slo.iter().map(spare).collect();
    let hopeful = |outcome: &RequestOutcome| {
        for (target, spare) in problem.slo.iter().zip(&mut spare) {
            let concerned = problem.concerns(target, outcome.model as usize);
            if concerned && outcome.metric_s(target.metric) > target.limit_s.get() {
                match spare.checked_sub(1) {
                    Some(left) => *spare = left,
                    None => doomed.store(true, Ordering::Relaxed),
                }
            }
        }
        !doomed.load(Ordering::Relaxed)
    };
    let run = simulate_while(problem, deployment, policy, cascade, shares, traffic, hopeful);
    (!doomed.load(Ordering::Relaxed)).then_some(run)
}

/// No more requests come once `go_on` says no to what became of one.
fn simulate_while(
    problem: &Problem,
    deployment: &Deployment,
    policy: &RoutingPolicy,
    cascade: Option<&CascadePolicy>,
    shares: &[ModelShare],
    Traffic { trace, queries, stretch }: Traffic<'_>,
    mut go_on: impl FnMut(&RequestOutcome) -> bool,
) -> FleetRun {
    let gpus: Vec<_> = problem.offers.iter().map(|offer| offer.gpu.clone()).collect();
    let replicas = fleet::replicas(deployment, &problem.models, &gpus, shares).expect("candidates fit");
    let ids = problem.model_ids();
    let decider = Decider::new(policy, &ids).expect("the policy is made of these models");
    let scales = problem.output_scales();
    let joined = queries.map(|queries| (queries, problem.join(trace, queries)));
    let models = problem.models.len();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let longer = |tokens: u32| (f64::from(tokens) * stretch).round() as u32;
    for (index, request) in trace.requests().iter().enumerate() {
        let query = joined.as_ref().map(|(queries, joined)| (*queries, joined[index]));
        // The prompt is the same for every model.
        inputs.push(longer(problem.tokens(request, query, 0, 1.0).0));
        outputs
            .extend((0..models).map(|model| longer(problem.tokens(request, query, model, scales[model]).1)));
    }
    let cascade = cascade.and_then(|cascade| Cascade::new(cascade, &ids));
    let mut budget = Budget::default();
    let going_on = Cell::new(true);
    let coming = trace.requests().iter().enumerate().take_while(|_| going_on.get());
    let coming = coming.map(|(index, request)| Request {
        arrival: request.arrival,
        scores: joined.as_ref().map_or(&[], |(queries, joined)| queries.predicted(joined[index])),
        input_tokens: inputs[index],
        output_tokens: &outputs[index * models..(index + 1) * models],
        hash_ids: &request.hash_ids,
        again: cascade.as_ref().zip(joined.as_ref()).and_then(|(cascade, (queries, joined))| {
            budget.earn(cascade.max_share);
            let [from, to] = cascade.models;
            let decided = decider.decide(queries.predicted(joined[index])).model;
            let doubted = |answer: &Answer| decided == from && cascade.worth(answer).is_some();
            let answer = Answer::of(queries, joined[index], cascade.models).filter(doubted);
            answer.filter(|_| budget.spend()).map(|_| to)
        }),
    });
    let mut requests = Vec::with_capacity(trace.requests().len());
    let totals = simulate_each(replicas, &decider, coming, |_, outcome| {
        going_on.set(going_on.get() && go_on(&outcome));
        requests.push(outcome);
    });
    let quality = queries.map(|queries| evaluate(&assign(&decider, queries), queries).quality);
    let outcome =
        Outcome::summarise(OutcomeSource::Simulated, &requests, totals.failed, &ids, &problem.slo, quality);
    FleetRun { outcome, requests }
}

/// What `run` reached of `target`, in seconds.
pub fn reached_s(problem: &Problem, run: &FleetRun, target: &SloTarget) -> f64 {
    let of = |outcome: &&RequestOutcome| problem.concerns(target, outcome.model as usize);
    let mut values: Vec<f64> = run.requests.iter().filter(of).map(|it| it.metric_s(target.metric)).collect();
    // All that the quantile looks at: what stands at its place in order, and the next.
    let at = (target.percentile.share() * values.len().saturating_sub(1) as f64) as usize;
    if at < values.len() {
        let (_, _, above) = values.select_nth_unstable_by(at, f64::total_cmp);
        if !above.is_empty() {
            above.select_nth_unstable_by(0, f64::total_cmp);
        }
    }
    quantile(&values, target.percentile.share())
}

/// Promises that `run` breaks; a lost request breaks all.
pub fn broken<'a>(problem: &'a Problem, run: &FleetRun) -> Vec<&'a SloTarget> {
    problem
        .slo
        .iter()
        .filter(|target| run.outcome.failed > 0 || reached_s(problem, run, target) > target.limit_s.get())
        .collect()
}

/// Whether `run` keeps every promise and could go on: no promise broken, no request lost, no backlog that grows.
pub fn holds(problem: &Problem, run: &FleetRun) -> bool {
    broken(problem, run).is_empty() && !backlog_grows(&run.requests)
}

/// Whether requests pile up over the last two thirds of the arrivals: by the least-squares line through the number being served,
/// seen at each arrival. Chance alone moves that number in a short window by about the root of the arrivals.
pub fn backlog_grows(requests: &[RequestOutcome]) -> bool {
    let mut arrivals: Vec<f64> = requests.iter().map(|request| request.arrival.seconds()).collect();
    let mut ends: Vec<f64> =
        requests.iter().map(|request| (request.arrival + request.e2e).seconds()).collect();
    arrivals.sort_unstable_by(f64::total_cmp);
    ends.sort_unstable_by(f64::total_cmp);
    let last: Vec<(f64, f64)> = (arrivals.len() / 3..arrivals.len())
        .map(|index| {
            let ended = ends.partition_point(|end| *end <= arrivals[index]);
            (arrivals[index], (index + 1 - ended) as f64)
        })
        .collect();
    let (Some(first), Some(end)) = (last.first(), last.last()) else { return false };
    let count = last.len() as f64;
    slope(&last) * (end.0 - first.0) > (BACKLOG * count).max(2.0 * count.sqrt())
}

/// Slope of the least-squares line; 0 if all points stand above each other.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), at| (x + at.0 / count, y + at.1 / count));
    let (xy, xx) = points
        .iter()
        .fold((0.0, 0.0), |(xy, xx), at| (xy + (at.0 - x) * (at.1 - y), xx + (at.0 - x) * (at.0 - x)));
    if xx > 0.0 { xy / xx } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use boute_spec::units::SimTime;

    use super::*;

    fn run(e2e_s: impl Fn(usize) -> f64) -> Vec<RequestOutcome> {
        let request = |index| RequestOutcome {
            model: 0,
            replica: 0,
            arrival: SimTime::from_seconds(index as f64 * 0.1),
            input_tokens: 1,
            output_tokens: 1,
            ttft: SimTime::from_seconds(0.1),
            e2e: SimTime::from_seconds(e2e_s(index)),
        };
        (0..900).map(request).collect()
    }

    #[test]
    fn a_growing_backlog_is_seen_and_a_burst_is_not() {
        assert!(!backlog_grows(&run(|_| 5.0)), "long answers, as many end as come");
        assert!(!backlog_grows(&run(|index| if index > 890 { 9.0 } else { 1.0 })), "a burst at the end");
        assert!(backlog_grows(&run(|index| 0.2 * index as f64)), "each waits longer than the one before");
    }
}
