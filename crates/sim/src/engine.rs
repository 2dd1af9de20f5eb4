//! One replica: a continuous-batching engine with vLLM V1's scheduling rules. It owns no clock: whoever drives it says
//! what time it is.
//!
//! Each step has a budget of tokens. Running sequences decode first, one token each; then prompts that were begun go
//! on; then waiting prompts are admitted in order of arrival, until the budget, the sequences or the KV blocks end.
//! Prompts are computed in chunks; one is admitted when there is room for all of it. The first token comes at the end of
//! the step that completes the prompt. When a running sequence needs a block and none is free, the sequence admitted last
//! is preempted: it lets all its blocks go and is computed again later, but for what the cache still has. A request that
//! arrives during a step joins the next one.
//!
//! A request whose prompt was computed elsewhere ([`Engine::receive`]) waits in the same queue for room for its prompt's
//! KV cache, and decodes from the step on that admits it. Preempted, it is computed anew like any other.
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

use crate::prefix::{PrefixCache, Ticket, UNIT_BLOCKS, UNIT_TOKENS};

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

    /// Whether a request can run.
    ///
    /// # Errors
    /// If its prompt and answer are larger than the whole KV cache.
    pub fn admits(&self, input_tokens: u32, output_tokens: u32) -> Result<(), Refused> {
        let needed_blocks = (u64::from(input_tokens) + u64::from(output_tokens)).div_ceil(BLOCK_TOKENS);
        if needed_blocks > self.kv_blocks {
            return Err(Refused { needed_blocks, kv_blocks: self.kv_blocks });
        }
        Ok(())
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
    /// After a preemption: the units it held, and its own blocks that may still be in the cache behind them.
    parked: Option<(usize, Ticket)>,
    /// Whether its KV cache has come from another engine, and is still to be put in this one's.
    received: bool,
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

/// What a waiting sequence finds in the cache, and what it needs.
#[derive(Debug, Default)]
struct Admission {
    /// Shared units that it can stand behind.
    units: usize,
    /// Its own blocks from before a preemption.
    unpark: Option<Ticket>,
    /// Blocks that must be free or idle: all of its prompt but what others hold.
    blocks: u64,
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
        self.queue(now, request, false)
    }

    /// Takes a request at `now` whose prompt and first answer token another engine has computed: it goes on with the second
    /// token, of at least 2. Its prefix ids are not looked at: nothing of its prompt is computed here.
    ///
    /// # Errors
    /// If the request is larger than the whole KV cache.
    pub fn receive(&mut self, now: SimTime, mut request: EngineRequest) -> Result<(), Refused> {
        request.hash_ids = Box::default();
        self.queue(now, request, true)
    }

    fn queue(&mut self, now: SimTime, request: EngineRequest, received: bool) -> Result<(), Refused> {
        self.config.admits(request.input_tokens, request.output_tokens)?;
        self.now = self.now.max(now);
        let id = request.id;
        let sequence = Sequence {
            request,
            generated: u64::from(received),
            computed: 0,
            blocks: 0,
            units: 0,
            parked: None,
            received,
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
        let run = sequence.decoding_since.map_or(0, |since| self.counter + self.progress(self.now).0 - since);
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

    /// Makes `needed` blocks free by forgetting what nobody holds; whether that was possible.
    fn make_room(&mut self, needed: u64) -> bool {
        let available = self.available_blocks();
        if needed > available {
            return false;
        }
        self.prefix.evict((needed + self.prefix.idle_blocks()).saturating_sub(available));
        true
    }

    /// Blocks that are free or could be made free.
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

    /// Whether a waiting sequence could be admitted now.
    fn admissible(&self, slot: usize) -> bool {
        (self.running.len() as u64) < u64::from(self.config.max_num_seqs)
            && self.admission(slot).blocks <= self.available_blocks()
    }

    /// The decode stretch in flight at `time`: how many of its steps have ended, when the last of them did, and when the
    /// next one ends.
    fn progress(&self, time: SimTime) -> (u64, SimTime, SimTime) {
        let Some(InFlight { start, end, work: Work::Decode { context, steps } }) = &self.in_flight else {
            return (0, SimTime::ZERO, SimTime::MAX);
        };
        let (mut low, mut high) = ((0, *start), (*steps, *end));
        if *end <= time {
            return (*steps, *end, *end);
        }
        // Steps take nearly the same time each, so interpolation finds the place in two or three evaluations.
        while high.0 - low.0 > 1 {
            let share = time.since(low.1).0 as f64 / high.1.since(low.1).0.max(1) as f64;
            let guess = low.0 + (share * (high.0 - low.0) as f64) as u64;
            let middle = guess.clamp(low.0 + 1, high.0 - 1);
            let at = *start + self.step_time.decode_time(self.decodes, *context, middle);
            if at <= time {
                low = (middle, at);
            } else {
                high = (middle, at);
            }
        }
        (low.0, low.1, high.1)
    }

    /// Ends a decode stretch at the end of the step that `now` falls into.
    fn cut(&mut self, now: SimTime) {
        let (done, at, next) = self.progress(now);
        if let Some(InFlight { end, work: Work::Decode { steps, .. }, .. }) = &mut self.in_flight {
            (*steps, *end) = if at == now && done > 0 { (done, at) } else { ((done + 1).min(*steps), next) };
        }
    }

    /// Schedules the next step or stretch, if there is anything to do.
    fn begin(&mut self) {
        let preemptions = self.preemptions;
        while self.decodes > 0 && !self.make_room(self.decode_blocks(1)) {
            self.preempt_last();
        }
        let chunks = self.schedule_prompts(preemptions);
        let preempted = self.preemptions > preemptions;
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

    /// Prompt chunks of the next step; blocks are taken for them. Nobody is admitted in a step that has preempted, that is
    /// had more than `preemptions` when it began.
    fn schedule_prompts(&mut self, preemptions: u64) -> Vec<(usize, u64)> {
        let mut budget = u64::from(self.config.max_num_batched_tokens).saturating_sub(self.decodes);
        let mut chunks = Vec::new();
        let mut index = 0;
        while index < self.prefilling.len() && budget > 0 {
            let slot = self.prefilling[index];
            if let Some(tokens) = self.next_chunk(slot, budget) {
                budget -= tokens;
                chunks.push((slot, tokens));
                index += 1;
            } else {
                // The sequence admitted last gives way: this one, or a later one, which has no chunk yet.
                self.preempt_last();
            }
        }
        while self.preemptions == preemptions
            && budget > 0
            && self.running.len() < self.config.max_num_seqs as usize
            && let Some(&slot) = self.waiting.front()
        {
            let admission = self.admission(slot);
            if admission.blocks + self.decode_blocks(1) > self.available_blocks() {
                break;
            }
            self.waiting.pop_front();
            self.admit(slot, admission);
            if self.place_received(slot) {
                budget -= 1;
                continue;
            }
            let Some(tokens) = self.next_chunk(slot, budget) else { break };
            budget -= tokens;
            chunks.push((slot, tokens));
        }
        chunks
    }

    /// Takes the blocks for the next chunk of a begun prompt, as much of it as the budget allows, and shares its whole
    /// units; `None` if there are too few blocks beside those that decoding needs.
    fn next_chunk(&mut self, slot: usize, budget: u64) -> Option<u64> {
        let available = self.available_blocks().saturating_sub(self.decode_blocks(1));
        let sequence = self.sequence(slot);
        let tokens = (sequence.prompt_tokens() - sequence.computed).min(budget);
        let own_tokens = sequence.computed + tokens - sequence.units as u64 * UNIT_TOKENS;
        let needed = own_tokens.div_ceil(BLOCK_TOKENS) - sequence.blocks;
        if needed > available {
            return None;
        }
        sequence.blocks += needed;
        self.make_room(needed);
        self.used_blocks += needed;
        if self.config.prefix_caching {
            self.offer_prefix(slot, tokens);
        }
        Some(tokens)
    }

    /// What a waiting sequence finds in the cache, and what it needs: room for all of its prompt.
    fn admission(&self, slot: usize) -> Admission {
        let Some(sequence) = &self.slots[slot] else { return Admission::default() };
        let blocks = sequence.prompt_tokens().div_ceil(BLOCK_TOKENS);
        if !self.config.prefix_caching {
            return Admission { units: 0, unpark: None, blocks };
        }
        // The last token is computed in any case.
        let whole = (sequence.prompt_tokens() - 1) / UNIT_TOKENS;
        let ids = &sequence.request.hash_ids[..sequence.request.hash_ids.len().min(whole as usize)];
        let (units, held) = self.prefix.known(ids);
        let unpark = sequence.parked.filter(|(behind, _)| *behind == units).map(|(_, ticket)| ticket);
        Admission { units, unpark, blocks: blocks - held * UNIT_BLOCKS }
    }

    /// Lets a waiting sequence run, behind what it finds in the cache.
    fn admit(&mut self, slot: usize, Admission { units, unpark, .. }: Admission) {
        self.admissions += 1;
        let admission = self.admissions;
        let blocks = unpark.map_or(0, |ticket| self.prefix.unpark(ticket));
        self.used_blocks += blocks;
        let sequence = self.slots[slot].as_mut().expect("a waiting sequence is there");
        self.prefix.hold(&sequence.request.hash_ids[..units]);
        sequence.units = units;
        sequence.blocks = blocks;
        sequence.computed = units as u64 * UNIT_TOKENS + blocks * BLOCK_TOKENS;
        sequence.parked = None;
        sequence.admission = admission;
        self.running.insert(admission, slot);
        self.prefilling.push(slot);
    }

    /// Puts the KV cache of an admitted sequence that came with it in place, so that it decodes; whether it has come with one.
    fn place_received(&mut self, slot: usize) -> bool {
        let sequence = self.sequence(slot);
        if !std::mem::take(&mut sequence.received) {
            return false;
        }
        sequence.computed = u64::from(sequence.request.input_tokens);
        let blocks = sequence.computed.div_ceil(BLOCK_TOKENS);
        sequence.blocks = blocks;
        self.make_room(blocks);
        self.used_blocks += blocks;
        self.start_decoding(slot);
        // Its next token is computed in this step.
        self.make_room(self.decode_blocks(1));
        true
    }

    /// A sequence whose prompt is computed decodes from the next step on. Returns the tokens it has still to give.
    fn start_decoding(&mut self, slot: usize) -> u64 {
        self.prefilling.retain(|other| *other != slot);
        let counter = self.counter;
        let sequence = self.sequence(slot);
        sequence.decoding_since = Some(counter);
        let left = u64::from(sequence.request.output_tokens) - sequence.generated;
        let (computed, admission) = (sequence.computed, sequence.admission);
        self.decodes += 1;
        self.context += computed;
        let class = self.class_of(computed);
        self.classes[class] += 1;
        self.endings.push(Reverse((counter + left, admission, slot)));
        left
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
        if sequence.computed < sequence.prompt_tokens() {
            self.drop_cancelled();
            return;
        }
        let sequence = self.sequence(slot);
        sequence.generated += 1;
        let (id, first, cancelled) = (sequence.request.id, sequence.generated == 1, sequence.cancelled);
        let left = self.start_decoding(slot);
        if first && !cancelled {
            events.push(EngineEvent::FirstToken { id, at });
        }
        if left == 0 || cancelled {
            self.finish(slot, at, events);
        }
    }

    /// Shares the whole units of a prompt that are computed when `tokens` more are: its own blocks become the cache's.
    /// As in vLLM, whoever is scheduled later in the same step finds them.
    fn offer_prefix(&mut self, slot: usize, tokens: u64) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let computed = (sequence.computed + tokens).min(u64::from(sequence.request.input_tokens));
        let whole = ((computed / UNIT_TOKENS) as usize).min(sequence.request.hash_ids.len());
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

    /// Gives all blocks and shared units of a sequence back; what they hold stays in the cache for now.
    fn release(&mut self, slot: usize) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        self.used_blocks -= sequence.blocks;
        if self.config.prefix_caching {
            // Units are shared while they are computed; who is cancelled meanwhile has computed less.
            let own_tokens = sequence.computed.saturating_sub(sequence.units as u64 * UNIT_TOKENS);
            sequence.parked = Some((sequence.units, self.prefix.park(own_tokens / BLOCK_TOKENS)));
        }
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
