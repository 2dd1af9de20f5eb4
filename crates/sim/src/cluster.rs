//! A fleet: the router and the balancing of production before engines of several kinds, on virtual time.
//!
//! A replica is one engine, or is disaggregated: a prompt goes to the prefill engine with the fewest prompt tokens to
//! compute, which gives the first token; its KV cache then moves to the decode engine with the fewest answer tokens to give.
//! A prefill engine sends one KV cache after the other. Its own copy is let go of when the prompt is computed, and the
//! decode engine's blocks are taken when the copy has come: both a transfer's length early or late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

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
    /// Where prompts are computed by other engines: `config` and `step_time` are then of one that decodes.
    pub disaggregated: Option<Disaggregation<T>>,
}

/// How a replica computes prompts and answers on different engines.
#[derive(Debug, Clone)]
pub struct Disaggregation<T> {
    /// Engines that decode, at least 1.
    pub decode_instances: u32,
    /// Engines that compute prompts, at least 1.
    pub prefill_instances: u32,
    /// Limits of one that computes prompts.
    pub config: EngineConfig,
    /// Its cost model.
    pub step_time: T,
    /// Time in which the KV cache of one prompt token moves from it to one that decodes.
    pub transfer_time: SimTime,
}

impl<T> ReplicaSpec<T> {
    /// The only replica, of the only model: there is nothing to balance, and nothing but its engine takes time.
    pub const fn alone(config: EngineConfig, step_time: T) -> Self {
        let speed = ReplicaSpeed {
            prompt_tokens_per_s: 1.0,
            answer_tokens_per_s: 1.0,
            seconds_per_answer_token: 1.0,
        };
        Self {
            model: 0,
            config,
            step_time,
            speed,
            request_time: SimTime::ZERO,
            expected_output_tokens: 1,
            disaggregated: None,
        }
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
    /// In a cascade: index of the model that is asked again once an answer is there.
    pub again: Option<usize>,
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
            again: None,
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

/// A replica, and where its engines are.
struct Replica<T> {
    spec: ReplicaSpec<T>,
    load: ReplicaLoad,
    /// Those that requests are sent to.
    first: Range<usize>,
    /// Those that go on with them; empty if not disaggregated.
    second: Range<usize>,
}

/// An engine and its place in the fleet.
struct Member<T> {
    engine: Engine<T>,
    /// Index of its replica.
    replica: usize,
    /// Tokens it is still to work on: prompts of one that prefills, expected answers of one that decodes. Not kept for the
    /// only engine of a replica.
    backlog: u64,
    /// When the last KV cache will have left it.
    sent: SimTime,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Pending {
    index: usize,
    outcome: RequestOutcome,
    expected: u32,
    /// What it takes outside of engines.
    outside: SimTime,
    /// The model that is asked again, and the tokens of its answer.
    again: Option<(usize, u32)>,
}

/// Replicas in virtual time. A request in flight is known to its engine by its place in `pending`.
struct Fleet<T> {
    balancing: Balancing,
    replicas: Vec<Replica<T>>,
    members: Vec<Member<T>>,
    /// Next event of each engine; [`SimTime::MAX`] while it is idle.
    next: Vec<SimTime>,
    /// KV caches on their way: when each arrives, and whose it is.
    transfers: BinaryHeap<Reverse<(SimTime, usize)>>,
    pending: Vec<Pending>,
    /// Answered, and to be asked again now.
    answered: Vec<Pending>,
    free: Vec<usize>,
    events: Vec<EngineEvent>,
    candidates: Vec<Candidate>,
}

impl<T: StepTime + Clone> Fleet<T> {
    fn new(specs: Vec<ReplicaSpec<T>>) -> Self {
        let mut members = Vec::new();
        let mut replicas = Vec::new();
        for (replica, spec) in specs.into_iter().enumerate() {
            let mut add = |count: u32, config: EngineConfig, step_time: &T| {
                let from = members.len();
                members.extend((0..count).map(|_| Member {
                    engine: Engine::new(config, step_time.clone()),
                    replica,
                    backlog: 0,
                    sent: SimTime::ZERO,
                }));
                from..members.len()
            };
            let (first, second) = match &spec.disaggregated {
                None => (add(1, spec.config, &spec.step_time), 0..0),
                Some(it) => (
                    add(it.prefill_instances, it.config, &it.step_time),
                    add(it.decode_instances, spec.config, &spec.step_time),
                ),
            };
            replicas.push(Replica { spec, load: ReplicaLoad::default(), first, second });
        }
        Self {
            balancing: Balancing::default(),
            next: vec![SimTime::MAX; members.len()],
            replicas,
            members,
            transfers: BinaryHeap::new(),
            pending: Vec::new(),
            answered: Vec::new(),
            free: Vec::new(),
            events: Vec::new(),
            candidates: Vec::new(),
        }
    }

    fn preemptions(&self) -> u64 {
        self.members.iter().map(|member| member.engine.preemptions()).sum()
    }

    fn next_event(&self) -> Option<SimTime> {
        let engines = self.next.iter().min().copied().filter(|next| *next < SimTime::MAX);
        engines.into_iter().chain(self.transfers.peek().map(|Reverse((at, _))| *at)).min()
    }

    /// Lets everything up to and including `until` happen, in order of time and then of engines.
    fn advance(&mut self, until: SimTime, done: &mut impl FnMut(usize, RequestOutcome)) {
        while let Some(next) = self.next_event().filter(|next| *next <= until) {
            for at in 0..self.members.len() {
                if self.next[at] == next {
                    self.settle(at, next, done);
                }
            }
            while let Some(first) = self.answered.pop() {
                if !self.ask_again(next, &first) {
                    done(first.index, first.outcome);
                }
            }
            while let Some(Reverse((_, id))) = self.transfers.peek().copied().filter(|it| it.0.0 == next) {
                self.transfers.pop();
                self.hand_over(next, id);
            }
        }
    }

    /// Lets an engine work until `now` and books what happened.
    fn settle(&mut self, at: usize, now: SimTime, done: &mut impl FnMut(usize, RequestOutcome)) {
        let member = &mut self.members[at];
        member.engine.advance(now, &mut self.events);
        self.next[at] = member.engine.next_event().unwrap_or(SimTime::MAX);
        let replica = &mut self.replicas[member.replica];
        for event in self.events.drain(..) {
            match event {
                EngineEvent::FirstToken { id, at } => {
                    let Pending { outcome, outside, .. } = &mut self.pending[id as usize];
                    outcome.ttft = at.since(outcome.arrival) + *outside;
                    replica.load.waiting_prompt_tokens -= u64::from(outcome.input_tokens);
                }
                EngineEvent::Finished { id, at: end } => {
                    let Pending { index, mut outcome, expected, outside, again } = self.pending[id as usize];
                    if let Some(it) = &replica.spec.disaggregated {
                        let prefills = replica.first.contains(&at);
                        member.backlog -= u64::from(if prefills { outcome.input_tokens } else { expected });
                        if prefills && outcome.output_tokens > 1 {
                            let tokens = u64::from(outcome.input_tokens);
                            let time = SimTime(it.transfer_time.0.saturating_mul(tokens));
                            member.sent = end.max(member.sent) + time;
                            self.transfers.push(Reverse((member.sent, id as usize)));
                            continue;
                        }
                    }
                    outcome.e2e = end.since(outcome.arrival) + outside;
                    replica.load.in_flight -= 1;
                    replica.load.expected_answer_tokens -= u64::from(expected);
                    self.free.push(id as usize);
                    if again.is_some() {
                        self.answered.push(Pending { index, outcome, expected, outside, again });
                    } else {
                        done(index, outcome);
                    }
                }
            }
        }
    }

    /// A KV cache has come: the request goes on where there is least to do.
    fn hand_over(&mut self, now: SimTime, id: usize) {
        let Pending { outcome, expected, .. } = self.pending[id];
        let replica = &self.replicas[outcome.replica as usize];
        let Some(chosen) = self.least_backlog(replica.second.clone()) else { return };
        let RequestOutcome { input_tokens, output_tokens, .. } = outcome;
        let request = EngineRequest { id: id as u64, input_tokens, output_tokens, hash_ids: Box::default() };
        let member = &mut self.members[chosen];
        member.backlog += u64::from(expected);
        let taken = member.engine.receive(now, request);
        debug_assert!(taken.is_ok(), "what cannot be decoded is not sent");
        self.next[chosen] = member.engine.next_event().unwrap_or(SimTime::MAX);
    }

    /// The first of some engines with the least to do.
    fn least_backlog(&self, among: Range<usize>) -> Option<usize> {
        among.min_by_key(|at| self.members[*at].backlog)
    }

    /// Gives a request to the model that is decided on; false if it has no replica that can take it.
    fn send(&mut self, decider: &Decider, index: usize, request: &Request<'_>) -> bool {
        let model = decider.decide(request.scores).model;
        let outcome = RequestOutcome {
            model: model as u32,
            replica: 0,
            arrival: request.arrival,
            input_tokens: request.input_tokens,
            output_tokens: request.output_tokens[model],
            ttft: SimTime::ZERO,
            e2e: SimTime::ZERO,
        };
        let again = request.again.map(|second| (second, request.output_tokens[second]));
        let pending = Pending { index, outcome, expected: 0, outside: SimTime::ZERO, again };
        self.ask(request.arrival, pending, request.hash_ids)
    }

    /// Asks the second model of a cascade; its answer counts from the arrival of the query. What it has seen of the prompt is
    /// not known.
    fn ask_again(&mut self, now: SimTime, first: &Pending) -> bool {
        let Some((model, output_tokens)) = first.again else { return false };
        let outcome = RequestOutcome { model: model as u32, output_tokens, ..first.outcome };
        self.ask(now, Pending { outcome, again: None, ..*first }, &[])
    }

    /// Gives a request to the replica of its model that is expected to finish it first; false if there is none that can.
    fn ask(&mut self, now: SimTime, mut pending: Pending, hash_ids: &[u64]) -> bool {
        let RequestOutcome { model, input_tokens, output_tokens, .. } = pending.outcome;
        let model = model as usize;
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
        let size = RequestSize { prompt_tokens: input_tokens, answer_tokens: expected };
        let turn = pending.index as u64;
        let Some(chosen) = pick(self.balancing, &self.candidates, size, turn) else { return false };
        let Some(at) = self.least_backlog(self.replicas[chosen].first.clone()) else { return false };
        let id = self.free.last().copied().unwrap_or(self.pending.len());
        let (replica, member) = (&mut self.replicas[chosen], &mut self.members[at]);
        let mut request =
            EngineRequest { id: id as u64, input_tokens, output_tokens, hash_ids: hash_ids.into() };
        if replica.spec.disaggregated.is_some() {
            if replica.spec.config.admits(input_tokens, output_tokens).is_err() {
                return false;
            }
            request.output_tokens = 1;
        }
        if member.engine.submit(now, request).is_err() {
            return false;
        }
        if replica.spec.disaggregated.is_some() {
            member.backlog += u64::from(input_tokens);
        }
        self.next[at] = member.engine.next_event().unwrap_or(SimTime::MAX);
        replica.load.in_flight += 1;
        replica.load.waiting_prompt_tokens += u64::from(input_tokens);
        replica.load.expected_answer_tokens += u64::from(expected);
        pending.expected = expected;
        pending.outside += replica.spec.request_time;
        pending.outcome.replica = chosen as u32;
        if self.free.pop().is_some() {
            self.pending[id] = pending;
        } else {
            self.pending.push(pending);
        }
        true
    }
}
