//! The scheduling rules once more, as plainly as possible: one loop turn per step, one record per sequence, no
//! prefixes. Slow, and obviously what `engine` documents.

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
}

impl Sequence {
    fn blocks(&self) -> u64 {
        self.computed.div_ceil(16)
    }

    fn target(&self) -> u64 {
        self.input + self.generated
    }
}

pub(crate) fn run(config: EngineConfig, step_time: Affine, work: &[(u64, u32, u32)]) -> Vec<EngineEvent> {
    let mut arrivals = Vec::new();
    let mut at = 0;
    for (id, &(gap, input, output)) in (0..).zip(work) {
        at += gap;
        let (input, output) = (u64::from(input), u64::from(output));
        arrivals.push((at, Sequence { id, input, output, generated: 0, computed: 0, decoding: false }));
    }
    let (mut now, mut next) = (0, 0);
    let (mut waiting, mut running): (Vec<Sequence>, Vec<Sequence>) = (Vec::new(), Vec::new());
    let mut events = Vec::new();
    while next < arrivals.len() || !waiting.is_empty() || !running.is_empty() {
        if waiting.is_empty() && running.is_empty() {
            // An idle engine starts with the first request; others of the same instant join the next step.
            now = arrivals[next].0.max(now);
            waiting.push(arrivals[next].1.clone());
            next += 1;
        }
        let (mut preempted, chunks) = (false, &mut Vec::<(u64, u64)>::new());
        // Decoding first.
        loop {
            let needed: u64 = running.iter().filter(|it| it.decoding && it.computed % 16 == 0).count() as u64;
            let used: u64 = running.iter().map(Sequence::blocks).sum();
            if used + needed <= config.kv_blocks {
                break;
            }
            preempt(&mut running, &mut waiting);
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
            if fits(&config, &running, chunks, running[index].id, running[index].computed, tokens) {
                chunks.push((running[index].id, tokens));
                budget -= tokens;
                index += 1;
            } else if chunks.is_empty() && decodes == 0 && running.len() > 1 {
                preempt(&mut running, &mut waiting);
                preempted = true;
            } else {
                break;
            }
        }
        while !preempted && budget > 0 && (running.len() as u32) < config.max_num_seqs && !waiting.is_empty()
        {
            let tokens = waiting[0].target().min(budget);
            if !fits(&config, &running, chunks, waiting[0].id, 0, tokens) {
                break;
            }
            chunks.push((waiting[0].id, tokens));
            budget -= tokens;
            running.push(waiting.remove(0));
        }
        let mut batch = Batch { decodes, ..Batch::default() };
        batch.decode_context = running.iter().filter(|it| it.decoding).map(|it| it.computed).sum();
        for &(id, tokens) in chunks.iter() {
            let sequence = running.iter().find(|it| it.id == id).unwrap();
            batch.prefill_tokens += tokens;
            batch.prefill_pairs_twice += tokens * (2 * sequence.computed + tokens);
        }
        let end = now + step_time.step_time(&batch).0;
        finish_step(&mut running, chunks, end, &mut events);
        // Whoever arrived up to the end of the step waits for the next one.
        while next < arrivals.len() && arrivals[next].0 <= end {
            waiting.push(arrivals[next].1.clone());
            next += 1;
        }
        now = end;
    }
    events
}

fn preempt(running: &mut Vec<Sequence>, waiting: &mut Vec<Sequence>) {
    let mut last = running.pop().unwrap();
    (last.computed, last.decoding) = (0, false);
    waiting.insert(0, last);
}

/// Whether a chunk fits beside what runs, what is scheduled and what decoding needs in this step.
fn fits(
    config: &EngineConfig,
    running: &[Sequence],
    chunks: &[(u64, u64)],
    id: u64,
    computed: u64,
    tokens: u64,
) -> bool {
    let scheduled =
        |it: &Sequence| chunks.iter().find(|(id, _)| *id == it.id).map_or(0, |(_, tokens)| *tokens);
    let used: u64 = running
        .iter()
        .filter(|it| it.id != id)
        .map(|it| {
            if it.decoding {
                (it.computed + 1).div_ceil(16)
            } else {
                (it.computed + scheduled(it)).div_ceil(16)
            }
        })
        .sum();
    used + (computed + tokens).div_ceil(16) <= config.kv_blocks
}

fn finish_step(running: &mut Vec<Sequence>, chunks: &[(u64, u64)], end: u64, events: &mut Vec<EngineEvent>) {
    let at = SimTime(end);
    for sequence in running.iter_mut().filter(|it| it.decoding) {
        sequence.computed += 1;
        sequence.generated += 1;
        if sequence.generated == sequence.output {
            events.push(EngineEvent::Finished { id: sequence.id, at });
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
            running.remove(index);
        }
    }
}
