//! What clients of one replica see, in closed form: a fixed number of them, each sending its next request when the last
//! is answered.
//!
//! ```text
//! D    = min(C, KV tokens / (prompt + answer/2))
//! TPOT = mean step(D, n prompts), n = (D/g − 1)/answer between its two nearest whole numbers
//! TTFT = request + max₃(first, launch) + step(D)/2 + burst·(D/g − 1)/2·x + r/(2(1 − r))·x + (C − D)/D·answer·TPOT + slot
//! ```
//! | symbol | meaning | unit |
//! |---|---|---|
//! | C, D | clients, sequences that run at once | – |
//! | g | attention data parallelism | – |
//! | x | what a prompt adds to a step of D decoding sequences | s |
//! | first, launch | the prompt alone, and the least time in which its kernels can be launched; max₃ is the 3-norm | s |
//! | burst | share of requests that arrive with the first, all at once | – |
//! | r | share of time spent on prompts, (D/g − 1)·x/(answer·TPOT + first): an M/D/1 queue for the prompts; a client finds the others there, not itself | – |
//! | slot | engines that keep a slot until the next request ends: a share of answer·TPOT/D | s |
//!
//! Between two tokens of one sequence the others start (D/g − 1)/answer requests. Clients beyond D wait until a sequence
//! ends. Sources: M/D/1 waiting time, Kleinrock, "Queueing Systems", 1975; constants fitted (see
//! [`crate::Calibration`]).

use serde::Serialize;

use crate::model::StepParts;
use crate::{Batch, ReplicaModel};

/// The prompt queue is never taken to be fuller than this.
const FULLEST: f64 = 0.9;

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClosedLoop {
    /// Tokens of every prompt.
    pub prompt_tokens: u32,
    /// Tokens of every answer.
    pub answer_tokens: u32,
    /// Clients, over the whole replica.
    pub clients: f64,
}

/// What they see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServingEstimate {
    /// Mean time to first token.
    pub ttft_s: f64,
    /// Where it goes.
    pub ttft: TtftParts,
    /// Mean time per output token after the first.
    pub tpot_s: f64,
    /// Sequences that run at once.
    pub running: f64,
    /// A step in which they all decode.
    pub decode: StepParts,
    /// A step that computes one prompt per group of attention and nothing else.
    pub prompt: StepParts,
    /// What a prompt adds to a step of decoding sequences.
    pub prompt_s: f64,
}

/// Where the time to first token goes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct TtftParts {
    /// Protocol and tokenising.
    pub request_s: f64,
    /// The prompt itself, launches included.
    pub prompt_s: f64,
    /// The running step.
    pub step_s: f64,
    /// Prompts of others: the initial burst, and those that arrive meanwhile.
    pub others_s: f64,
    /// Until there is room in the KV cache and in the batch.
    pub room_s: f64,
}

impl TtftParts {
    /// All together.
    pub fn total_s(&self) -> f64 {
        self.request_s + self.prompt_s + self.step_s + self.others_s + self.room_s
    }
}

impl ReplicaModel {
    /// Estimates a closed loop; about a microsecond.
    pub fn closed_loop(&self, load: &ClosedLoop) -> ServingEstimate {
        let groups = self.groups();
        let (prompt, answer) = (u64::from(load.prompt_tokens.max(1)), f64::from(load.answer_tokens.max(1)));
        let context = prompt as f64 + answer / 2.0;
        let most = (self.memory().kv_cache_tokens as f64 / context).max(groups as f64);
        let clients = load.clients.max(1.0);
        let running = clients.min(most);
        let per_group = (running / groups as f64).max(1.0);
        let decodes = (running.round() as u64).max(1);
        let decoding =
            Batch { decodes, decode_context: (decodes as f64 * context) as u64, ..Batch::default() };
        // One prompt on every group of attention.
        let alone = Batch {
            prefill_tokens: prompt * groups,
            prefill_chunks: groups,
            prefill_pairs_twice: prompt * prompt * groups,
            prefill_ends: groups,
            ..Batch::default()
        };
        let with_prompts = |prompts: u64| Batch {
            decodes,
            decode_context: decoding.decode_context,
            prefill_tokens: alone.prefill_tokens * prompts,
            prefill_chunks: alone.prefill_chunks * prompts,
            prefill_pairs_twice: alone.prefill_pairs_twice * prompts,
            prefill_ends: alone.prefill_ends * prompts,
            ..Batch::default()
        };
        let decode = self.parts(&decoding);
        let step_s = decode.total_s();
        let with_one_s = self.parts(&with_prompts(1)).total_s();
        let prompt_s = (with_one_s - step_s).max(1e-6);
        // Prompts in a step, on average: some steps have one more than the others.
        let prompts = (per_group - 1.0) / answer;
        let (fewer, more) = (prompts.floor(), prompts.fract());
        let (fewer_s, more_s) = if fewer < 1.0 {
            (step_s, with_one_s)
        } else {
            let of = |prompts: f64| self.parts(&with_prompts(prompts as u64)).total_s();
            (of(fewer), of(fewer + 1.0))
        };
        let tpot_s = (1.0 - more) * fewer_s + more * more_s;
        let prompt = self.parts(&alone);
        let first_s = three_norm(prompt.total_s(), self.launch_s());
        let engine = self.engine();
        let busy = ((per_group - 1.0) * prompt_s / (answer * tpot_s + first_s)).min(FULLEST);
        let ttft = TtftParts {
            request_s: engine.request_ms * 1e-3,
            prompt_s: first_s,
            step_s: if per_group > 1.0 { step_s / 2.0 } else { 0.0 },
            others_s: (engine.burst * (per_group - 1.0) / 2.0 + busy / (2.0 * (1.0 - busy))) * prompt_s,
            room_s: ((clients - running) / running + engine.slot_wait / per_group.max(2.0)) * answer * tpot_s,
        };
        ServingEstimate { ttft_s: ttft.total_s(), ttft, tpot_s, running, decode, prompt, prompt_s }
    }
}

/// `(x³ + y³)^(1/3)`: at least max(x, y), at most 1.26 times that.
fn three_norm(x: f64, y: f64) -> f64 {
    (x * x * x + y * y * y).cbrt()
}
