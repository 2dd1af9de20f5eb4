//! One replica: a continuous-batching engine with vLLM V1's scheduling rules. It owns no clock: whoever drives it says
//! what time it is.
//!
//! Each step has a budget of tokens. Running sequences decode first, one token each; then prompts that were begun go
//! on; then waiting prompts are admitted in order of arrival, until the budget, the sequences or the KV blocks end.
//! Prompts are computed in chunks. The first token comes at the end of the step that completes the prompt. When a
//! decoding sequence needs a block and none is free, the sequence admitted last is preempted: it gives all its blocks
//! back and is recomputed later. A request that arrives during a step joins the next one.
//!
//! **Skipping ahead.** While only decoding happens, nothing changes until a sequence ends or the blocks run out, so the
//! whole stretch is one event whose length [`StepTime::decode_time`] gives in closed form; an arrival cuts it at the
//! end of the step it falls into. The cost is that of the requests, not of their tokens. To make this possible
//! progress is kept once for all: a counter of decode steps. A decoding sequence is known by the count at which it
//! ends, and by the class of its length modulo the block size, which tells at which counts it needs a new block.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use boute_perf::memory::BLOCK_TOKENS;
use boute_perf::{Batch, StepTime};
use boute_spec::plan::EngineFlags;
use boute_spec::units::SimTime;

use crate::prefix::{PrefixCache, UNIT_BLOCKS, UNIT_TOKENS};

/// Limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences that run at once, at most.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, at most; at least `max_num_seqs`.
    pub max_num_batched_tokens: u32,
    /// KV cache, in blocks of 16 tokens.
    pub kv_blocks: u64,
    /// Whether prompt prefixes are reused.
    pub prefix_caching: bool,
}

impl EngineConfig {
    /// From a plan's flags and the tokens its KV cache holds.
    pub fn new(flags: &EngineFlags, kv_cache_tokens: u64) -> Self {
        Self {
            max_num_seqs: flags.max_num_seqs.max(1),
            max_num_batched_tokens: flags.max_num_batched_tokens.max(flags.max_num_seqs).max(1),
            kv_blocks: kv_cache_tokens / BLOCK_TOKENS,
            prefix_caching: flags.enable_prefix_caching,
        }
    }
}

/// A request to an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineRequest {
    /// Unique among the requests in the engine.
    pub id: u64,
    /// Prompt tokens, at least 1.
    pub input_tokens: u32,
    /// Answer tokens, at least 1.
    pub output_tokens: u32,
    /// Ids of the prompt's blocks of 512 tokens, each naming the whole prefix up to it; empty if not known.
    pub hash_ids: Box<[u64]>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEvent {
    /// The first token of an answer.
    FirstToken {
        /// Request.
        id: u64,
        /// When.
        at: SimTime,
    },
    /// The last token of an answer.
    Finished {
        /// Request.
        id: u64,
        /// When.
        at: SimTime,
    },
}

/// A request can never run: its prompt and answer are larger than the whole KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("prompt and answer need {needed_blocks} KV blocks, the replica has {kv_blocks}")]
pub struct Refused {
    /// Blocks it would need at its end.
    pub needed_blocks: u64,
    /// Blocks there are.
    pub kv_blocks: u64,
}

#[derive(Debug)]
struct Sequence {
    request: EngineRequest,
    /// Answer tokens delivered before the current decode run (or prefill).
    generated: u64,
    /// Tokens in the KV cache before the current decode run.
    computed: u64,
    /// Blocks of its own.
    blocks: u64,
    /// Shared prefix units held, and those it has offered to share.
    units: usize,
    /// Order of admission; larger is later.
    admission: u64,
    /// Decode counter when decoding began; `None` while the prompt is computed.
    decoding_since: Option<u64>,
    cancelled: bool,
}

impl Sequence {
    /// Tokens to compute before the next token comes: the prompt, and after a preemption the answer so far.
    fn prompt_tokens(&self) -> u64 {
        u64::from(self.request.input_tokens) + self.generated
    }
}

#[derive(Debug)]
enum Work {
    /// One step with prompt chunks: (sequence, tokens).
    Mixed { chunks: Vec<(usize, u64)> },
    /// Steps in which all decode.
    Decode { context: u64, steps: u64 },
}

#[derive(Debug)]
struct InFlight {
    start: SimTime,
    end: SimTime,
    work: Work,
}

/// The engine of one replica.
#[derive(Debug)]
pub struct Engine<T> {
    config: EngineConfig,
    step_time: T,
    now: SimTime,
    slots: Vec<Option<Sequence>>,
    free_slots: Vec<usize>,
    by_id: BTreeMap<u64, usize>,
    waiting: VecDeque<usize>,
    /// Admission order → sequence.
    running: BTreeMap<u64, usize>,
    /// Begun prompts, in order of admission.
    prefilling: Vec<usize>,
    admissions: u64,
    /// Decode steps so far.
    counter: u64,
    /// (counter at the last token, admission, slot); entries of preempted or cancelled sequences are stale.
    endings: BinaryHeap<Reverse<(u64, u64, usize)>>,
    decodes: u64,
    /// Σ tokens in the KV cache of decoding sequences.
    context: u64,
    /// Decoding sequences by (tokens in the cache − counter) mod 16.
    classes: [u64; BLOCK_TOKENS as usize],
    used_blocks: u64,
    prefix: PrefixCache,
    in_flight: Option<InFlight>,
    preemptions: u64,
}

impl<T: StepTime> Engine<T> {
    /// An idle engine at time zero.
    pub fn new(config: EngineConfig, step_time: T) -> Self {
        Self {
            config,
            step_time,
            now: SimTime::ZERO,
            slots: Vec::new(),
            free_slots: Vec::new(),
            by_id: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            prefilling: Vec::new(),
            admissions: 0,
            counter: 0,
            endings: BinaryHeap::new(),
            decodes: 0,
            context: 0,
            classes: [0; BLOCK_TOKENS as usize],
            used_blocks: 0,
            prefix: PrefixCache::default(),
            in_flight: None,
            preemptions: 0,
        }
    }

    /// Takes a request at `now`, to which the engine must have been advanced.
    ///
    /// # Errors
    /// If the request is larger than the whole KV cache.
    pub fn submit(&mut self, now: SimTime, request: EngineRequest) -> Result<(), Refused> {
        let tokens = u64::from(request.input_tokens) + u64::from(request.output_tokens);
        let needed_blocks = tokens.div_ceil(BLOCK_TOKENS);
        if needed_blocks > self.config.kv_blocks {
            return Err(Refused { needed_blocks, kv_blocks: self.config.kv_blocks });
        }
        self.now = self.now.max(now);
        let id = request.id;
        let sequence = Sequence {
            request,
            generated: 0,
            computed: 0,
            blocks: 0,
            units: 0,
            admission: 0,
            decoding_since: None,
            cancelled: false,
        };
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(sequence);
        self.by_id.insert(id, slot);
        let alone = self.waiting.is_empty();
        self.waiting.push_back(slot);
        if self.in_flight.is_none() {
            self.begin();
        } else if alone && self.admissible(slot) {
            self.cut(now);
        }
        Ok(())
    }

    /// Drops a request; its blocks come free at the end of the running step. Whether it was there.
    pub fn cancel(&mut self, now: SimTime, id: u64) -> bool {
        let Some(slot) = self.by_id.remove(&id) else { return false };
        self.now = self.now.max(now);
        if let Some(at) = self.waiting.iter().position(|waiting| *waiting == slot) {
            self.waiting.remove(at);
            self.slots[slot] = None;
            self.free_slots.push(slot);
        } else {
            if let Some(sequence) = &mut self.slots[slot] {
                sequence.cancelled = true;
            }
            self.cut(now);
        }
        true
    }

    /// The next time at which a token of interest comes (a first or a last one), or work changes, if nothing is
    /// submitted; `None` when idle.
    pub fn next_event(&self) -> Option<SimTime> {
        self.in_flight.as_ref().map(|work| work.end)
    }

    /// Lets everything up to and including `until` happen; appends what happened, in order.
    pub fn advance(&mut self, until: SimTime, events: &mut Vec<EngineEvent>) {
        while let Some(work) = self.in_flight.take_if(|work| work.end <= until) {
            self.now = work.end;
            self.complete(work, events);
            self.begin();
        }
        self.now = self.now.max(until);
    }

    /// Answer tokens of a request by the time advanced to; `None` if it is not in the engine.
    pub fn generated(&self, id: u64) -> Option<u32> {
        let sequence = self.slots[*self.by_id.get(&id)?].as_ref()?;
        let run = sequence.decoding_since.map_or(0, |since| self.counter + self.steps_done(self.now) - since);
        let total = (sequence.generated + run).min(u64::from(sequence.request.output_tokens));
        u32::try_from(total).ok()
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Share of the KV cache that running sequences hold.
    pub fn kv_usage(&self) -> f64 {
        (self.used_blocks + self.prefix.held_units() * UNIT_BLOCKS) as f64
            / self.config.kv_blocks.max(1) as f64
    }

    /// Sequences that lost their blocks so far.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    fn sequence(&mut self, slot: usize) -> &mut Sequence {
        self.slots[slot].as_mut().expect("a slot in a queue holds a sequence")
    }

    fn free_blocks(&self) -> u64 {
        self.config.kv_blocks - self.used_blocks - self.prefix.units() * UNIT_BLOCKS
    }

    /// Makes `needed` blocks free by forgetting unused prefixes; whether that was possible.
    fn make_room(&mut self, needed: u64) -> bool {
        while self.free_blocks() < needed {
            if !self.prefix.evict() {
                return false;
            }
        }
        true
    }

    /// Blocks that could be made free.
    fn available_blocks(&self) -> u64 {
        self.config.kv_blocks - self.used_blocks - self.prefix.held_units() * UNIT_BLOCKS
    }

    /// New blocks that decoding needs in the next `steps` steps.
    fn decode_blocks(&self, steps: u64) -> u64 {
        let (cycles, rest) = (steps / BLOCK_TOKENS, steps % BLOCK_TOKENS);
        let partial: u64 = (0..rest).map(|step| self.classes[self.class_that_needs(step)]).sum();
        cycles * self.decodes + partial
    }

    /// The class whose members need a block `step` steps from now: their length is then a multiple of 16.
    fn class_that_needs(&self, step: u64) -> usize {
        let phase = (self.counter + step) % BLOCK_TOKENS;
        ((BLOCK_TOKENS - phase) % BLOCK_TOKENS) as usize
    }

    fn class_of(&self, computed: u64) -> usize {
        ((computed % BLOCK_TOKENS + BLOCK_TOKENS - self.counter % BLOCK_TOKENS) % BLOCK_TOKENS) as usize
    }

    /// Whether the first chunk of a waiting sequence could be scheduled now.
    fn admissible(&self, slot: usize) -> bool {
        let Some(sequence) = &self.slots[slot] else { return false };
        let tokens = sequence.prompt_tokens().min(u64::from(self.config.max_num_batched_tokens));
        (self.running.len() as u64) < u64::from(self.config.max_num_seqs)
            && self.available_blocks() >= tokens.div_ceil(BLOCK_TOKENS).min(1)
    }

    /// Steps of the decode stretch in flight that have ended by `time`.
    fn steps_done(&self, time: SimTime) -> u64 {
        let Some(InFlight { start, work: Work::Decode { context, steps }, .. }) = &self.in_flight else {
            return 0;
        };
        let by = |steps| *start + self.step_time.decode_time(self.decodes, *context, steps) <= time;
        largest(*steps, by)
    }

    /// Ends a decode stretch at the end of the step that `now` falls into.
    fn cut(&mut self, now: SimTime) {
        let done = self.steps_done(now);
        let Some(InFlight { start, end, work: Work::Decode { context, steps } }) = &mut self.in_flight else {
            return;
        };
        let reached = *start + self.step_time.decode_time(self.decodes, *context, done) == now && done > 0;
        *steps = if reached { done } else { (done + 1).min(*steps) };
        *end = *start + self.step_time.decode_time(self.decodes, *context, *steps);
    }

    /// Schedules the next step or stretch, if there is anything to do.
    fn begin(&mut self) {
        let mut preempted = false;
        while self.decodes > 0 && !self.make_room(self.decode_blocks(1)) {
            self.preempt_last();
            preempted = true;
        }
        let chunks = self.schedule_prompts(preempted);
        let work = if chunks.is_empty() {
            if self.decodes == 0 {
                return;
            }
            // Who was preempted may come back in the next step; who waits for blocks or a place waits for an ending.
            let steps = if preempted { 1 } else { self.stretch() };
            Work::Decode { context: self.context, steps }
        } else {
            Work::Mixed { chunks }
        };
        let time = match &work {
            Work::Mixed { chunks } => self.step_time.step_time(&self.batch(chunks)),
            Work::Decode { context, steps } => self.step_time.decode_time(self.decodes, *context, *steps),
        };
        self.in_flight = Some(InFlight { start: self.now, end: self.now + time, work });
    }

    /// Prompt chunks of the next step; blocks are taken for them.
    fn schedule_prompts(&mut self, mut preempted: bool) -> Vec<(usize, u64)> {
        let mut budget = u64::from(self.config.max_num_batched_tokens).saturating_sub(self.decodes);
        let mut reserved = self.decode_blocks(1);
        let mut chunks = Vec::new();
        let mut index = 0;
        while index < self.prefilling.len() && budget > 0 {
            let slot = self.prefilling[index];
            let tokens = self.chunk_fit(slot, budget, reserved);
            if tokens > 0 {
                self.take_chunk(slot, tokens);
                budget -= tokens;
                chunks.push((slot, tokens));
                index += 1;
            } else if chunks.is_empty() && self.decodes == 0 && self.running.len() > 1 {
                // Begun prompts block each other: the last one gives way.
                self.preempt_last();
                preempted = true;
                reserved = self.decode_blocks(1);
            } else {
                break;
            }
        }
        while !preempted && budget > 0 && (self.running.len() as u64) < u64::from(self.config.max_num_seqs) {
            let Some(&slot) = self.waiting.front() else { break };
            self.reuse_prefix(slot);
            let tokens = self.chunk_fit(slot, budget, reserved);
            if tokens == 0 {
                self.release(slot);
                break;
            }
            self.waiting.pop_front();
            self.admissions += 1;
            let admission = self.admissions;
            self.sequence(slot).admission = admission;
            self.running.insert(admission, slot);
            self.prefilling.push(slot);
            self.take_chunk(slot, tokens);
            budget -= tokens;
            chunks.push((slot, tokens));
        }
        chunks
    }

    /// Tokens of the sequence's prompt that budget and blocks allow, `reserved` blocks being promised to decoding.
    fn chunk_fit(&mut self, slot: usize, budget: u64, reserved: u64) -> u64 {
        let available = self.available_blocks().saturating_sub(reserved);
        let sequence = self.sequence(slot);
        let covered = sequence.blocks * BLOCK_TOKENS + sequence.units as u64 * UNIT_TOKENS;
        let room = covered.saturating_sub(sequence.computed) + available * BLOCK_TOKENS;
        let wanted = (sequence.prompt_tokens() - sequence.computed).min(budget);
        // vLLM takes the whole chunk or nothing.
        if room >= wanted { wanted } else { 0 }
    }

    /// Blocks for the next `tokens` tokens of a prompt.
    fn take_chunk(&mut self, slot: usize, tokens: u64) {
        let sequence = self.sequence(slot);
        let shared = sequence.units as u64 * UNIT_TOKENS;
        let needed = (sequence.computed + tokens - shared).div_ceil(BLOCK_TOKENS) - sequence.blocks;
        sequence.blocks += needed;
        let room = self.make_room(needed);
        debug_assert!(room, "the chunk was fitted to the room");
        self.used_blocks += needed;
    }

    /// Starts a waiting sequence behind the longest prefix that is in the cache; the last block is recomputed.
    fn reuse_prefix(&mut self, slot: usize) {
        if !self.config.prefix_caching {
            return;
        }
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let whole = (sequence.prompt_tokens() - 1) / UNIT_TOKENS;
        let ids = &sequence.request.hash_ids[..sequence.request.hash_ids.len().min(whole as usize)];
        sequence.units = self.prefix.hold(ids);
        sequence.computed = sequence.units as u64 * UNIT_TOKENS;
    }

    fn batch(&self, chunks: &[(usize, u64)]) -> Batch {
        let mut batch = Batch { decodes: self.decodes, decode_context: self.context, ..Batch::default() };
        for &(slot, tokens) in chunks {
            let Some(sequence) = &self.slots[slot] else { continue };
            batch.prefill_tokens += tokens;
            batch.prefill_chunks += 1;
            batch.prefill_pairs_twice += tokens * (2 * sequence.computed + tokens);
            batch.prefill_context += sequence.computed;
            batch.prefill_ends += u64::from(sequence.computed + tokens == sequence.prompt_tokens());
        }
        batch
    }

    /// Steps until a sequence ends or the blocks run out, at least 1.
    fn stretch(&mut self) -> u64 {
        let next = loop {
            match self.endings.peek() {
                Some(Reverse((count, admission, slot))) if self.is_decoding(*admission, *slot) => {
                    break *count;
                }
                Some(_) => {
                    self.endings.pop();
                }
                None => break self.counter + 1,
            }
        };
        let available = self.available_blocks();
        largest(next - self.counter, |steps| self.decode_blocks(steps) <= available).max(1)
    }

    fn is_decoding(&self, admission: u64, slot: usize) -> bool {
        let sequence = self.slots[slot].as_ref();
        sequence.is_some_and(|sequence| sequence.admission == admission && sequence.decoding_since.is_some())
    }

    /// Applies what a step or stretch did.
    fn complete(&mut self, in_flight: InFlight, events: &mut Vec<EngineEvent>) {
        let at = in_flight.end;
        let (steps, chunks) = match in_flight.work {
            Work::Mixed { chunks } => (1, chunks),
            Work::Decode { steps, .. } => (steps, Vec::new()),
        };
        if self.decodes > 0 {
            let needed = self.decode_blocks(steps);
            let room = self.make_room(needed);
            debug_assert!(room, "a stretch ends before the blocks do");
            self.used_blocks += needed;
            self.counter += steps;
            self.context += steps * self.decodes;
            self.end_sequences(at, events);
        }
        for (slot, tokens) in chunks {
            self.complete_chunk(slot, tokens, at, events);
        }
    }

    /// Ends the decoding sequences whose last token has come, and those that were cancelled.
    fn end_sequences(&mut self, at: SimTime, events: &mut Vec<EngineEvent>) {
        while let Some(&Reverse((count, admission, slot))) = self.endings.peek() {
            if count > self.counter {
                break;
            }
            self.endings.pop();
            if !self.is_decoding(admission, slot) {
                continue;
            }
            self.finish(slot, at, events);
        }
        self.drop_cancelled();
    }

    /// A decoding or just prefilled sequence has its last token.
    fn finish(&mut self, slot: usize, at: SimTime, events: &mut Vec<EngineEvent>) {
        self.stop_running(slot);
        self.release(slot);
        if let Some(sequence) = self.slots[slot].take()
            && !sequence.cancelled
        {
            self.by_id.remove(&sequence.request.id);
            events.push(EngineEvent::Finished { id: sequence.request.id, at });
        }
        self.free_slots.push(slot);
    }

    /// Removes cancelled sequences; called at the end of a step.
    fn drop_cancelled(&mut self) {
        let cancelled = |slot: &usize| self.slots[*slot].as_ref().is_some_and(|sequence| sequence.cancelled);
        if self.by_id.len() == self.running.len() + self.waiting.len() {
            return;
        }
        let gone: Vec<usize> = self.running.values().copied().filter(cancelled).collect();
        for slot in gone {
            self.finish(slot, self.now, &mut Vec::new());
        }
    }

    fn complete_chunk(&mut self, slot: usize, tokens: u64, at: SimTime, events: &mut Vec<EngineEvent>) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        sequence.computed += tokens;
        let complete = sequence.computed == sequence.prompt_tokens();
        if self.config.prefix_caching {
            self.offer_prefix(slot);
        }
        if !complete {
            self.drop_cancelled();
            return;
        }
        self.prefilling.retain(|other| *other != slot);
        let counter = self.counter;
        let sequence = self.sequence(slot);
        sequence.generated += 1;
        sequence.decoding_since = Some(counter);
        let (id, first, cancelled) = (sequence.request.id, sequence.generated == 1, sequence.cancelled);
        let left = u64::from(sequence.request.output_tokens) - sequence.generated;
        let (computed, admission) = (sequence.computed, sequence.admission);
        self.decodes += 1;
        self.context += computed;
        let class = self.class_of(computed);
        self.classes[class] += 1;
        if first && !cancelled {
            events.push(EngineEvent::FirstToken { id, at });
        }
        if left == 0 || cancelled {
            self.finish(slot, at, events);
        } else {
            self.endings.push(Reverse((counter + left, admission, slot)));
        }
    }

    /// Shares the whole units of a prompt computed so far: its own blocks become the cache's.
    fn offer_prefix(&mut self, slot: usize) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let whole = (sequence.computed.min(u64::from(sequence.request.input_tokens)) / UNIT_TOKENS) as usize;
        let whole = whole.min(sequence.request.hash_ids.len());
        while sequence.units < whole && self.prefix.offer(sequence.request.hash_ids[sequence.units]) {
            sequence.units += 1;
            sequence.blocks -= UNIT_BLOCKS;
            self.used_blocks -= UNIT_BLOCKS;
        }
    }

    /// Takes a sequence out of the running ones, its decode progress written down.
    fn stop_running(&mut self, slot: usize) {
        let counter = self.counter;
        let sequence = self.sequence(slot);
        let admission = sequence.admission;
        if let Some(since) = sequence.decoding_since.take() {
            let run = counter - since;
            sequence.generated += run;
            let before = sequence.computed;
            sequence.computed += run;
            let computed = sequence.computed;
            // Blocks taken while decoding were counted in the total only.
            sequence.blocks += computed.div_ceil(BLOCK_TOKENS) - before.div_ceil(BLOCK_TOKENS);
            self.decodes -= 1;
            self.context -= computed;
            let class = self.class_of(computed);
            self.classes[class] -= 1;
        }
        self.running.remove(&admission);
        self.prefilling.retain(|other| *other != slot);
    }

    /// Gives all blocks and shared units of a sequence back.
    fn release(&mut self, slot: usize) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        self.used_blocks -= sequence.blocks;
        self.prefix.release(&sequence.request.hash_ids[..sequence.units]);
        (sequence.blocks, sequence.units, sequence.computed) = (0, 0, 0);
    }

    /// Preempts the sequence admitted last: it waits in front, to be recomputed.
    fn preempt_last(&mut self) {
        let Some((_, &slot)) = self.running.last_key_value() else { return };
        self.stop_running(slot);
        self.release(slot);
        self.waiting.push_front(slot);
        self.preemptions += 1;
    }
}

/// The largest n in 0..=`limit` for which `holds`, which is true up to some n and false from there; 0 if for none.
fn largest(limit: u64, holds: impl Fn(u64) -> bool) -> u64 {
    if holds(limit) {
        return limit;
    }
    let (mut low, mut high) = (0, limit);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
