//! A fleet: the router and the balancing of production before engines of several kinds, on virtual time.

use boute_perf::StepTime;
use boute_router::balance::{ReplicaLoad, ReplicaSpeed, RequestSize, least_expected_finish};
use boute_router::decide::Decider;
use boute_spec::outcome::RequestOutcome;
use boute_spec::units::SimTime;

use crate::engine::{Engine, EngineConfig, EngineEvent, EngineRequest};

/// One replica of the fleet.
#[derive(Debug, Clone)]
pub struct ReplicaSpec<T> {
    /// Index of the model it runs.
    pub model: usize,
    /// Limits of its engine.
    pub config: EngineConfig,
    /// Its cost model.
    pub step_time: T,
    /// What the balancer knows of its speed.
    pub speed: ReplicaSpeed,
    /// What a request takes outside the engine.
    pub request_time: SimTime,
    /// Answer length the balancer expects: the model's mean.
    pub expected_output_tokens: u32,
}

/// A request to the fleet.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Arrival; requests come in order of arrival.
    pub arrival: SimTime,
    /// Predicted score per model, in the decider's order.
    pub scores: &'a [f32],
    /// Prompt tokens, at least 1.
    pub input_tokens: u32,
    /// Answer tokens per model, each at least 1.
    pub output_tokens: &'a [u32],
    /// Prefix ids, see [`EngineRequest::hash_ids`].
    pub hash_ids: &'a [u64],
}

/// What happened to the requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Simulation {
    /// Answered requests, in order of their last token.
    pub outcomes: Vec<RequestOutcome>,
    /// For each answered request, in the same order, its index in the input.
    pub requests: Vec<usize>,
    /// Requests that no replica could take.
    pub failed: u64,
    /// Sequences preempted, over all replicas.
    pub preemptions: u64,
}

struct Replica<T> {
    spec: ReplicaSpec<T>,
    engine: Engine<T>,
    load: ReplicaLoad,
}

#[derive(Clone, Copy)]
struct Pending {
    outcome: RequestOutcome,
    expected: u32,
}

/// Sends `requests` through router, balancer and engines until all are answered.
///
/// # Panics
/// If the decider names a model index beyond `output_tokens`.
pub fn simulate<'a, T: StepTime + Clone>(
    replicas: Vec<ReplicaSpec<T>>,
    decider: &Decider,
    requests: impl IntoIterator<Item = Request<'a>>,
) -> Simulation {
    let mut fleet: Vec<Replica<T>> = replicas
        .into_iter()
        .map(|spec| {
            let engine = Engine::new(spec.config, spec.step_time.clone());
            Replica { spec, engine, load: ReplicaLoad::default() }
        })
        .collect();
    let mut pending: Vec<Pending> = Vec::new();
    let mut simulation = Simulation::default();
    let mut events = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        for replica in &mut fleet {
            settle(replica, request.arrival, &mut events, &mut pending, &mut simulation);
        }
        let model = decider.decide(request.scores).model;
        let output_tokens = request.output_tokens[model];
        let outcome = RequestOutcome {
            model: model as u32,
            replica: u32::MAX,
            arrival: request.arrival,
            input_tokens: request.input_tokens,
            output_tokens,
            ttft: SimTime::ZERO,
            e2e: SimTime::ZERO,
        };
        pending.push(Pending { outcome, expected: 0 });
        if !place(&mut fleet, model, index, &request, &mut pending[index]) {
            simulation.failed += 1;
        }
    }
    for replica in &mut fleet {
        settle(replica, SimTime::MAX, &mut events, &mut pending, &mut simulation);
        simulation.preemptions += replica.engine.preemptions();
    }
    in_order_of_end(&mut simulation);
    simulation
}

/// Lets a replica work until `until` and books what happened.
fn settle<T: StepTime>(
    replica: &mut Replica<T>,
    until: SimTime,
    events: &mut Vec<EngineEvent>,
    pending: &mut [Pending],
    simulation: &mut Simulation,
) {
    if replica.engine.next_event().is_none_or(|next| next > until) {
        return;
    }
    replica.engine.advance(until, events);
    let extra = replica.spec.request_time;
    for event in events.drain(..) {
        match event {
            EngineEvent::FirstToken { id, at } => {
                let Pending { outcome, .. } = &mut pending[id as usize];
                outcome.ttft = at.since(outcome.arrival) + extra;
                replica.load.waiting_prompt_tokens -= u64::from(outcome.input_tokens);
            }
            EngineEvent::Finished { id, at } => {
                let Pending { outcome, expected } = &mut pending[id as usize];
                outcome.e2e = at.since(outcome.arrival) + extra;
                replica.load.in_flight -= 1;
                replica.load.expected_answer_tokens -= u64::from(*expected);
                simulation.outcomes.push(*outcome);
                simulation.requests.push(id as usize);
            }
        }
    }
}

/// Gives a request to the replica that is expected to finish it first; false if there is none that can.
fn place<T: StepTime>(
    fleet: &mut [Replica<T>],
    model: usize,
    index: usize,
    request: &Request<'_>,
    pending: &mut Pending,
) -> bool {
    let candidates = fleet.iter().enumerate().filter(|(_, replica)| replica.spec.model == model);
    let expected = |replica: &Replica<T>| replica.spec.expected_output_tokens;
    let Some(answer_tokens) = candidates.clone().map(|(_, replica)| expected(replica)).next() else {
        return false;
    };
    let size = RequestSize { prompt_tokens: request.input_tokens, answer_tokens };
    let Some(chosen) =
        least_expected_finish(candidates.map(|(at, replica)| (at, &replica.load, &replica.spec.speed)), size)
    else {
        return false;
    };
    let replica = &mut fleet[chosen];
    let engine_request = EngineRequest {
        id: index as u64,
        input_tokens: request.input_tokens,
        output_tokens: request.output_tokens[model],
        hash_ids: request.hash_ids.into(),
    };
    if replica.engine.submit(request.arrival, engine_request).is_err() {
        return false;
    }
    replica.load.in_flight += 1;
    replica.load.waiting_prompt_tokens += u64::from(request.input_tokens);
    replica.load.expected_answer_tokens += u64::from(answer_tokens);
    pending.outcome.replica = chosen as u32;
    pending.expected = answer_tokens;
    true
}

/// Replicas settle one after the other; the outcome is ordered by time, then by request.
fn in_order_of_end(simulation: &mut Simulation) {
    let mut order: Vec<usize> = (0..simulation.outcomes.len()).collect();
    let end = |at: usize| simulation.outcomes[at].arrival + simulation.outcomes[at].e2e;
    order.sort_by_key(|&at| (end(at), simulation.requests[at]));
    simulation.outcomes = order.iter().map(|&at| simulation.outcomes[at]).collect();
    simulation.requests = order.iter().map(|&at| simulation.requests[at]).collect();
}
