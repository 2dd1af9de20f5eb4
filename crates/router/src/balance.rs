//! Which replica of the chosen model answers: the balancing of production, run by the simulator too.

/// What the balancer knows of one replica. Kept by whoever sends requests: credited when one is sent, debited when
/// it is done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReplicaLoad {
    /// Requests sent and not finished.
    pub in_flight: u32,
    /// Prompt tokens of requests whose first token has not come.
    pub waiting_prompt_tokens: u64,
    /// Answer tokens still expected from the requests in flight.
    pub expected_answer_tokens: u64,
}

/// How fast a replica is, by the planner's calibrated model; equal replicas have equal speeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaSpeed {
    /// Prompt tokens per second when it does nothing else.
    pub prompt_tokens_per_s: f64,
    /// Answer tokens per second of all sequences together at its planned load.
    pub answer_tokens_per_s: f64,
    /// Seconds per answer token of one sequence at its planned load.
    pub seconds_per_answer_token: f64,
}

/// The request to place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSize {
    /// Prompt tokens, counted or estimated.
    pub prompt_tokens: u32,
    /// Answer tokens, expected.
    pub answer_tokens: u32,
}

/// Expected seconds from now until `request` would be finished on a replica: the prompts ahead and its own, then its
/// answer, slowed by the answers that share the replica beyond the planned load.
pub fn expected_finish_s(load: &ReplicaLoad, speed: &ReplicaSpeed, request: RequestSize) -> f64 {
    let prompts = load.waiting_prompt_tokens as f64 + f64::from(request.prompt_tokens);
    let answers = load.expected_answer_tokens as f64 + f64::from(request.answer_tokens);
    let prefill_s = prompts / speed.prompt_tokens_per_s;
    let alone_s = f64::from(request.answer_tokens) * speed.seconds_per_answer_token;
    let shared_s = answers / speed.answer_tokens_per_s;
    prefill_s + alone_s.max(shared_s)
}

/// The replica with the least expected finishing time; ties go to fewer requests in flight, then to the first.
/// `None` if there is no replica.
pub fn least_expected_finish<'a>(
    replicas: impl Iterator<Item = (usize, &'a ReplicaLoad, &'a ReplicaSpeed)>,
    request: RequestSize,
) -> Option<usize> {
    replicas
        .map(|(index, load, speed)| (expected_finish_s(load, speed, request), load.in_flight, index))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)))
        .map(|(_, _, index)| index)
}
