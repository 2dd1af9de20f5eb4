//! The scheduling rules once more, as plainly as possible: one loop turn per step, one record per sequence and per idle
//! block, no shared prefixes. Slow, and obviously what `engine` documents.

use boute_perf::{Batch, StepTime};
use boute_sim::{EngineConfig, EngineEvent};
use boute_spec::units::SimTime;

use crate::Affine;

#[derive(Clone)]
struct Sequence {
    id: u64,
    input: u64,
    output: u64,
    /// Answer tokens delivered.
    generated: u64,
    /// Tokens in the cache.
    computed: u64,
    /// Whether its prompt (and what was lost) is in the cache.
    decoding: bool,
    /// Whether its prompt was computed elsewhere, and it has not run yet.
    received: bool,
}

impl Sequence {
    fn target(&self) -> u64 {
        self.input + self.generated
    }
}

/// Requests for which `received` come with their prompt and first answer token.
pub(crate) fn run(
    config: EngineConfig,
    step_time: Affine,
    work: &[(u64, u32, u32)],
    received: fn(u64) -> bool,
) -> Vec<EngineEvent> {
    let mut arrivals = Vec::new();
    let mut at = 0;
    for (id, &(gap, input, output)) in (0..).zip(work) {
        at += gap;
        let (input, output) = (u64::from(input), u64::from(output));
        let received = received(id);
        let generated = u64::from(received);
        arrivals
            .push((at, Sequence { id, input, output, generated, computed: 0, decoding: false, received }));
    }
    let (mut now, mut next) = (0, 0);
    let (mut waiting, mut running): (Vec<Sequence>, Vec<Sequence>) = (Vec::new(), Vec::new());
    let mut events = Vec::new();
    // Full blocks that nobody holds, by their last owner, the least recently used first.
    let mut idle: Vec<u64> = Vec::new();
    while next < arrivals.len() || !waiting.is_empty() || !running.is_empty() {
        if waiting.is_empty() && running.is_empty() {
            // An idle engine starts with the first request; others of the same instant join the next step.
            now = arrivals[next].0.max(now);
            waiting.push(arrivals[next].1.clone());
            next += 1;
        }
        let (mut preempted, chunks) = (false, &mut Vec::<(u64, u64)>::new());
        // Decoding first.
        while blocks_of_step(&running, &[]) > config.kv_blocks {
            preempt(&config, &mut running, &mut waiting, &mut idle);
            preempted = true;
        }
        let decodes = running.iter().filter(|it| it.decoding).count() as u64;
        let mut budget = u64::from(config.max_num_batched_tokens) - decodes;
        let mut index = 0;
        while index < running.len() && budget > 0 {
            if running[index].decoding {
                index += 1;
                continue;
            }
            let tokens = (running[index].target() - running[index].computed).min(budget);
            chunks.push((running[index].id, tokens));
            if blocks_of_step(&running, chunks) <= config.kv_blocks {
                budget -= tokens;
                index += 1;
                continue;
            }
            chunks.pop();
            // Whoever is preempted is the last; begun prompts before it have their chunks.
            preempt(&config, &mut running, &mut waiting, &mut idle);
            preempted = true;
        }
        forget(&config, &mut idle, blocks_of_step(&running, chunks));
        while !preempted && budget > 0 && (running.len() as u32) < config.max_num_seqs && !waiting.is_empty()
        {
            let mut sequence = waiting[0].clone();
            if blocks_of_step(&running, chunks) + sequence.target().div_ceil(16) > config.kv_blocks {
                break;
            }
            waiting.remove(0);
            if sequence.received {
                (sequence.computed, sequence.decoding, sequence.received) = (sequence.input, true, false);
                budget -= 1;
                running.push(sequence);
                forget(&config, &mut idle, blocks_of_step(&running, chunks));
                continue;
            }
            // What is left of its own blocks from before a preemption.
            let left = idle.iter().filter(|owner| **owner == sequence.id).count() as u64;
            idle.retain(|owner| *owner != sequence.id);
            sequence.computed = 16 * left;
            let tokens = (sequence.target() - sequence.computed).min(budget);
            chunks.push((sequence.id, tokens));
            budget -= tokens;
            running.push(sequence);
            forget(&config, &mut idle, blocks_of_step(&running, chunks));
        }
        let decodes = running.iter().filter(|it| it.decoding).count() as u64;
        let mut batch = Batch { decodes, ..Batch::default() };
        batch.decode_context = running.iter().filter(|it| it.decoding).map(|it| it.computed).sum();
        for &(id, tokens) in chunks.iter() {
            let sequence = running.iter().find(|it| it.id == id).unwrap();
            batch.prefill_tokens += tokens;
            batch.prefill_pairs_twice += tokens * (2 * sequence.computed + tokens);
        }
        let end = now + step_time.step_time(&batch).0;
        finish_step(&config, &mut running, &mut idle, chunks, end, &mut events);
        // Whoever arrived up to the end of the step waits for the next one.
        while next < arrivals.len() && arrivals[next].0 <= end {
            waiting.push(arrivals[next].1.clone());
            next += 1;
        }
        now = end;
    }
    events
}

/// Blocks that what runs has after this step's tokens.
fn blocks_of_step(running: &[Sequence], chunks: &[(u64, u64)]) -> u64 {
    let scheduled = |it: &Sequence| {
        let chunk = chunks.iter().find(|(id, _)| *id == it.id).map_or(0, |(_, tokens)| *tokens);
        if it.decoding { 1 } else { chunk }
    };
    running.iter().map(|it| (it.computed + scheduled(it)).div_ceil(16)).sum()
}

/// Idle blocks make room for blocks in use.
fn forget(config: &EngineConfig, idle: &mut Vec<u64>, used: u64) {
    let room = (config.kv_blocks - used) as usize;
    idle.drain(..idle.len().saturating_sub(room));
}

fn let_go(config: &EngineConfig, sequence: &Sequence, idle: &mut Vec<u64>) {
    if config.prefix_caching {
        idle.extend((0..sequence.computed / 16).map(|_| sequence.id));
    }
}

fn preempt(
    config: &EngineConfig,
    running: &mut Vec<Sequence>,
    waiting: &mut Vec<Sequence>,
    idle: &mut Vec<u64>,
) {
    let mut last = running.pop().unwrap();
    let_go(config, &last, idle);
    (last.computed, last.decoding) = (0, false);
    waiting.insert(0, last);
}

fn finish_step(
    config: &EngineConfig,
    running: &mut Vec<Sequence>,
    idle: &mut Vec<u64>,
    chunks: &[(u64, u64)],
    end: u64,
    events: &mut Vec<EngineEvent>,
) {
    let at = SimTime(end);
    for sequence in running.iter_mut().filter(|it| it.decoding) {
        sequence.computed += 1;
        sequence.generated += 1;
        if sequence.generated == sequence.output {
            events.push(EngineEvent::Finished { id: sequence.id, at });
            let_go(config, sequence, idle);
        }
    }
    running.retain(|it| !it.decoding || it.generated < it.output);
    for &(id, tokens) in chunks {
        let index = running.iter().position(|it| it.id == id).unwrap();
        let sequence = &mut running[index];
        sequence.computed += tokens;
        if sequence.computed < sequence.target() {
            continue;
        }
        sequence.decoding = true;
        sequence.generated += 1;
        if sequence.generated == 1 {
            events.push(EngineEvent::FirstToken { id, at });
        }
        if sequence.generated == sequence.output {
            events.push(EngineEvent::Finished { id, at });
            let_go(config, sequence, idle);
            running.remove(index);
        }
    }
}
