//! A fleet: the router and the balancing of production before engines of several kinds, on virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use boute_perf::StepTime;
use boute_router::balance::{Balancing, Candidate, ReplicaLoad, ReplicaSpeed, RequestSize, pick};
use boute_router::decide::Decider;
use boute_spec::outcome::RequestOutcome;
use boute_spec::units::SimTime;
use boute_spec::workload::TraceRequest;

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

impl<T> ReplicaSpec<T> {
    /// The only replica, of the only model: there is nothing to balance, and nothing but its engine takes time.
    pub const fn alone(config: EngineConfig, step_time: T) -> Self {
        let speed = ReplicaSpeed {
            prompt_tokens_per_s: 1.0,
            answer_tokens_per_s: 1.0,
            seconds_per_answer_token: 1.0,
        };
        Self { model: 0, config, step_time, speed, request_time: SimTime::ZERO, expected_output_tokens: 1 }
    }
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

/// With the trace's lengths, for whichever model there is.
impl<'a> From<&'a TraceRequest> for Request<'a> {
    fn from(request: &'a TraceRequest) -> Self {
        Self {
            arrival: request.arrival,
            scores: &[],
            input_tokens: request.input_tokens,
            output_tokens: std::slice::from_ref(&request.output_tokens),
            hash_ids: &request.hash_ids,
        }
    }
}

/// What happened to the requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Simulation {
    /// Answered requests, in order of their last token.
    pub outcomes: Vec<RequestOutcome>,
    /// Requests that no replica could take.
    pub failed: u64,
    /// Sequences preempted, over all replicas.
    pub preemptions: u64,
}

/// What a simulation counts besides the outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests that no replica could take.
    pub failed: u64,
    /// Sequences preempted, over all replicas.
    pub preemptions: u64,
}

/// Sends `requests` through router, balancer and engines as they arrive (an open loop) until all are answered.
///
/// # Panics
/// If the decider names a model index beyond `output_tokens`.
pub fn simulate<'a, T: StepTime + Clone>(
    replicas: Vec<ReplicaSpec<T>>,
    decider: &Decider,
    requests: impl IntoIterator<Item = Request<'a>>,
) -> Simulation {
    simulate_balanced(replicas, decider, Balancing::default(), requests)
}

/// [`simulate`] with another balancing than ours, to compare.
///
/// # Panics
/// If the decider names a model index beyond `output_tokens`.
pub fn simulate_balanced<'a, T: StepTime + Clone>(
    replicas: Vec<ReplicaSpec<T>>,
    decider: &Decider,
    balancing: Balancing,
    requests: impl IntoIterator<Item = Request<'a>>,
) -> Simulation {
    let mut outcomes = Vec::new();
    let fleet = Fleet { balancing, ..Fleet::new(replicas) };
    let Totals { failed, preemptions } = run(fleet, decider, requests, |_, outcome| outcomes.push(outcome));
    Simulation { outcomes, failed, preemptions }
}

/// [`simulate`] for long traces: hands each outcome to `done`, with the request's index in the input, in order of the
/// last tokens; keeps only what is in flight.
///
/// # Panics
/// If the decider names a model index beyond `output_tokens`.
pub fn simulate_each<'a, T: StepTime + Clone>(
    replicas: Vec<ReplicaSpec<T>>,
    decider: &Decider,
    requests: impl IntoIterator<Item = Request<'a>>,
    done: impl FnMut(usize, RequestOutcome),
) -> Totals {
    run(Fleet::new(replicas), decider, requests, done)
}

fn run<'a, T: StepTime + Clone>(
    mut fleet: Fleet<T>,
    decider: &Decider,
    requests: impl IntoIterator<Item = Request<'a>>,
    mut done: impl FnMut(usize, RequestOutcome),
) -> Totals {
    let mut failed = 0;
    for (index, request) in requests.into_iter().enumerate() {
        fleet.advance(request.arrival, &mut done);
        failed += u64::from(!fleet.send(decider, index, &request));
    }
    fleet.advance(SimTime::MAX, &mut done);
    Totals { failed, preemptions: fleet.preemptions() }
}

/// A closed loop: `clients` clients each send their next request when their last one is answered, the first at time
/// zero, until `requests` (whose arrivals are not looked at) are used up. Hands out outcomes as [`simulate_each`] does.
///
/// # Panics
/// If the decider names a model index beyond `output_tokens`.
pub fn simulate_closed_loop<'a, T: StepTime + Clone>(
    replicas: Vec<ReplicaSpec<T>>,
    decider: &Decider,
    clients: usize,
    requests: impl IntoIterator<Item = Request<'a>>,
    mut done: impl FnMut(usize, RequestOutcome),
) -> Totals {
    let mut fleet = Fleet::new(replicas);
    let mut requests = requests.into_iter().enumerate();
    let mut failed = 0;
    let mut ready: BinaryHeap<_> = std::iter::repeat_n(Reverse(SimTime::ZERO), clients).collect();
    loop {
        // Whatever ends up to the next sending may let another client send earlier.
        while let Some(next) = fleet.next_event()
            && ready.peek().is_none_or(|Reverse(send)| next <= *send)
        {
            fleet.advance(next, &mut |index, outcome: RequestOutcome| {
                ready.push(Reverse(outcome.arrival + outcome.e2e));
                done(index, outcome);
            });
        }
        let Some(Reverse(now)) = ready.pop() else { break };
        let Some((index, request)) = requests.next() else { continue };
        if !fleet.send(decider, index, &Request { arrival: now, ..request }) {
            failed += 1;
            ready.push(Reverse(now));
        }
    }
    Totals { failed, preemptions: fleet.preemptions() }
}

struct Replica<T> {
    spec: ReplicaSpec<T>,
    engine: Engine<T>,
    load: ReplicaLoad,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Pending {
    index: usize,
    outcome: RequestOutcome,
    expected: u32,
}

/// Replicas in virtual time. A request in flight is known to its engine by its place in `pending`.
struct Fleet<T> {
    balancing: Balancing,
    replicas: Vec<Replica<T>>,
    /// Next event of each replica; [`SimTime::MAX`] while it is idle.
    next: Vec<SimTime>,
    pending: Vec<Pending>,
    free: Vec<usize>,
    events: Vec<EngineEvent>,
    candidates: Vec<Candidate>,
}

impl<T: StepTime + Clone> Fleet<T> {
    fn new(specs: Vec<ReplicaSpec<T>>) -> Self {
        let replicas: Vec<_> = specs
            .into_iter()
            .map(|spec| {
                let engine = Engine::new(spec.config, spec.step_time.clone());
                Replica { spec, engine, load: ReplicaLoad::default() }
            })
            .collect();
        let next = vec![SimTime::MAX; replicas.len()];
        Self {
            balancing: Balancing::default(),
            replicas,
            next,
            pending: Vec::new(),
            free: Vec::new(),
            events: Vec::new(),
            candidates: Vec::new(),
        }
    }

    fn preemptions(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.engine.preemptions()).sum()
    }

    fn next_event(&self) -> Option<SimTime> {
        self.next.iter().min().copied().filter(|next| *next < SimTime::MAX)
    }

    /// Lets everything up to and including `until` happen, in order of time and then of replicas.
    fn advance(&mut self, until: SimTime, done: &mut impl FnMut(usize, RequestOutcome)) {
        while let Some(next) = self.next_event().filter(|next| *next <= until) {
            for at in 0..self.replicas.len() {
                if self.next[at] == next {
                    self.settle(at, next, done);
                }
            }
        }
    }

    /// Lets a replica work until `now` and books what happened.
    fn settle(&mut self, at: usize, now: SimTime, done: &mut impl FnMut(usize, RequestOutcome)) {
        let replica = &mut self.replicas[at];
        replica.engine.advance(now, &mut self.events);
        self.next[at] = replica.engine.next_event().unwrap_or(SimTime::MAX);
        let extra = replica.spec.request_time;
        for event in self.events.drain(..) {
            match event {
                EngineEvent::FirstToken { id, at } => {
                    let Pending { outcome, .. } = &mut self.pending[id as usize];
                    outcome.ttft = at.since(outcome.arrival) + extra;
                    replica.load.waiting_prompt_tokens -= u64::from(outcome.input_tokens);
                }
                EngineEvent::Finished { id, at } => {
                    let Pending { index, mut outcome, expected } = self.pending[id as usize];
                    outcome.e2e = at.since(outcome.arrival) + extra;
                    replica.load.in_flight -= 1;
                    replica.load.expected_answer_tokens -= u64::from(expected);
                    self.free.push(id as usize);
                    done(index, outcome);
                }
            }
        }
    }

    /// Gives a request to the replica that is expected to finish it first; false if there is none that can.
    fn send(&mut self, decider: &Decider, index: usize, request: &Request<'_>) -> bool {
        let model = decider.decide(request.scores).model;
        let of_model = self.replicas.iter().enumerate().filter(|(_, replica)| replica.spec.model == model);
        self.candidates.clear();
        self.candidates.extend(of_model.map(|(index, replica)| Candidate {
            index,
            load: replica.load,
            speed: replica.spec.speed,
            cached_tokens: 0,
        }));
        let Some(first) = self.candidates.first() else { return false };
        let expected = self.replicas[first.index].spec.expected_output_tokens;
        let size = RequestSize { prompt_tokens: request.input_tokens, answer_tokens: expected };
        let Some(chosen) = pick(self.balancing, &self.candidates, size, index as u64) else { return false };
        let id = self.free.last().copied().unwrap_or(self.pending.len());
        let replica = &mut self.replicas[chosen];
        let engine_request = EngineRequest {
            id: id as u64,
            input_tokens: request.input_tokens,
            output_tokens: request.output_tokens[model],
            hash_ids: request.hash_ids.into(),
        };
        if replica.engine.submit(request.arrival, engine_request).is_err() {
            return false;
        }
        self.next[chosen] = replica.engine.next_event().unwrap_or(SimTime::MAX);
        replica.load.in_flight += 1;
        replica.load.waiting_prompt_tokens += u64::from(request.input_tokens);
        replica.load.expected_answer_tokens += u64::from(expected);
        let outcome = RequestOutcome {
            model: model as u32,
            replica: chosen as u32,
            arrival: request.arrival,
            input_tokens: request.input_tokens,
            output_tokens: request.output_tokens[model],
            ttft: SimTime::ZERO,
            e2e: SimTime::ZERO,
        };
        let pending = Pending { index, outcome, expected };
        if self.free.pop().is_some() {
            self.pending[id] = pending;
        } else {
            self.pending.push(pending);
        }
        true
    }
}
