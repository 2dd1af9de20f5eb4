//! Step time of one replica: its kernels, communication, and the engine's overhead.
//!
//! ```text
//! step  = m-th part of the batch through all L layers, + (p − 1) sends, + output head, + engine
//! layer = projections + attention + feed-forward + 2 all-reduces + elementwise + rest
//! ```
//! | symbol | meaning |
//! |---|---|
//! | L, p | layers, pipeline stages |
//! | m | micro-batches in flight: min(p, sequences) |
//!
//! The kernels and their forms: [`crate::kernels`]. A mixture of experts reads the experts that its tokens touch and computes
//! those they use; with attention data parallelism each group of GPUs has its own sequences and all share the experts, after an
//! exchange of tokens. Latent attention reads one compressed vector per token. A windowed layer reads at most `window` tokens
//! per sequence. A layer of linear attention reads and writes a state per sequence instead. Pipeline stages each work on one
//! micro-batch, so a step over the whole batch takes as long as one micro-batch takes through all layers.
//!
//! By construction no kernel is faster than peak compute or bandwidth, and more work never takes less time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use boute_spec::catalog::{LinearAttention, ModelShape, Source};
use boute_spec::units::SimTime;

use serde::Serialize;

use crate::calibration::{Calibration, EngineOverhead, KernelSet, Stack};
use crate::kernels::{ACTIVATION_BYTES, ExpertShape, Experts, Hardware, Matrix, ceil};
use crate::memory::{FitError, MemoryFit, divide, kv_bytes_per_layer, kv_shards, memory_fit};
use crate::{Batch, ReplicaConfig, StepTime};

/// Share of peak compute and bandwidth that the recurrence of linear attention reaches (assumed).
const RECURRENCE_EFFICIENCY: f64 = 0.3;
/// Up to so many decoding sequences the time of a step is kept: vLLM's default limit of sequences on a large GPU.
const KNOWN_DECODES: usize = 1024 + 1;
/// The recurrence's state is kept in 32 bits.
const STATE_BYTES: f64 = 4.0;

/// Where the seconds of a step go, by what bounds them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepParts {
    /// Kernels bound by compute.
    pub compute_s: f64,
    /// Kernels bound by reading weights and activations.
    pub bandwidth_s: f64,
    /// Reading the KV cache of decoding sequences.
    pub kv_s: f64,
    /// All-reduces, exchanges and sends.
    pub communication_s: f64,
    /// Launches, fixed times of kernels, and the engine.
    pub overhead_s: f64,
}

impl StepParts {
    /// All together.
    pub fn total_s(&self) -> f64 {
        self.compute_s + self.bandwidth_s + self.kv_s + self.communication_s + self.overhead_s
    }

    /// The largest part, in a word.
    pub fn binding(&self) -> &'static str {
        [
            (self.compute_s, "compute"),
            (self.bandwidth_s, "bandwidth"),
            (self.kv_s, "KV cache"),
            (self.communication_s, "communication"),
            (self.overhead_s, "overhead"),
        ]
        .into_iter()
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or("overhead", |(_, name)| name)
    }

    #[inline]
    fn add(&mut self, times: f64, cost: crate::kernels::Cost) {
        self.compute_s += times * cost.compute_s;
        self.bandwidth_s += times * cost.bandwidth_s;
        self.overhead_s += times * cost.fixed_s;
    }
}

/// A layer of linear attention.
#[derive(Debug, Clone, Copy)]
struct Recurrence {
    layers: f64,
    projections: [Matrix; 2],
    /// Seconds per decoding sequence: its state in and out.
    sequence_s: f64,
    /// Seconds per prompt token.
    token_s: f64,
}

/// Layers with experts.
#[derive(Debug, Clone, Copy)]
struct ExpertLayers {
    layers: f64,
    routed: Experts,
    shared: [Matrix; 2],
    /// Choosing the experts.
    choice: Matrix,
    /// Two exchanges of tokens between ranks: fixed seconds, and seconds per token.
    exchange: (f64, f64),
}

/// The cost model of one replica.
#[derive(Debug, Clone)]
pub struct ReplicaModel {
    layers: f64,
    attention_layers: f64,
    windowed_layers: f64,
    dense_layers: f64,
    projections: [Matrix; 4],
    dense: [Matrix; 2],
    experts: Option<ExpertLayers>,
    recurrence: Option<Recurrence>,
    head: Matrix,
    /// Seconds per query-key pair (twice counted) in one layer.
    pair_s: f64,
    /// Seconds per token of prefilled context in one layer.
    context_s: f64,
    /// Seconds per prompt token in one layer: queries, keys, values, outputs in and out of memory.
    prompt_token_s: f64,
    prefill_t0_s: f64,
    decode_t0_s: f64,
    /// Seconds per decoding sequence in one layer, beside reading its cache.
    sequence_s: f64,
    /// Picoseconds per token of decoding context in one layer.
    decoding_context_ps: f64,
    window: u64,
    /// One all-reduce by the engine's own kernel and by NCCL: fixed seconds, and seconds per token. The faster one is used.
    all_reduce: [(f64, f64); 2],
    /// Seconds per token and layer of norms, activation functions and rotary embedding.
    elementwise_s: f64,
    /// Seconds of sends: fixed, per token.
    sends: (f64, f64),
    overhead_s: f64,
    stages: u64,
    groups: u64,
    launch_s: f64,
    engine: EngineOverhead,
    memory: MemoryFit,
    source: Source,
    /// Picoseconds of [`Self::base`] of a step in which so many sequences decode and nothing else happens, 0 where not yet
    /// asked for: a simulation asks for few of them, and for each thousands of times.
    decode_base_ps: Arc<[AtomicU64]>,
}

impl ReplicaModel {
    /// The model of a replica.
    ///
    /// # Errors
    /// If the replica does not fit.
    pub fn new(config: &ReplicaConfig, calibration: &Calibration) -> Result<Self, FitError> {
        Ok(Self::with_memory(config, calibration, memory_fit(config)?))
    }

    /// The model of a replica that is known to run, whatever our estimate of its memory says.
    pub(crate) fn whether_or_not_it_fits(config: &ReplicaConfig, calibration: &Calibration) -> Self {
        Self::with_memory(config, calibration, divide(config))
    }

    /// A measured speed corrects peaks and overheads, never the memory.
    fn with_memory(config: &ReplicaConfig, calibration: &Calibration, memory: MemoryFit) -> Self {
        let engine = calibration.engine.of(config.backend);
        let Some(speed) = config.speed else { return Self::of(config, calibration, engine, memory) };
        let config = ReplicaConfig { gpu: speed.of_gpu(&config.gpu), speed: None, ..config.clone() };
        Self::of(&config, calibration, speed.of_engine(engine), memory)
    }

    fn of(
        config: &ReplicaConfig,
        calibration: &Calibration,
        engine: EngineOverhead,
        memory: MemoryFit,
    ) -> Self {
        let ReplicaConfig { model, gpu, tp, pp, dp, .. } = config;
        let shape = &model.shape;
        let kernels = calibration.kernels(model, gpu);
        let stack = calibration.stack;
        let t = f64::from(*tp);
        let hidden = f64::from(shape.hidden);
        let bandwidth = gpu.bandwidth_bytes_per_s;
        let layer = |inputs: f64, outputs: f64| {
            let (mut gemm, hardware) = kernels.gemm;
            gemm.quantise *= engine.quantise;
            gemm.matrix(&hardware, inputs, outputs, model.precision.bytes_per_weight())
        };
        let wide = |inputs: f64, outputs: f64| kernels.head.0.matrix(&kernels.head.1, inputs, outputs, 2.0);
        let ffn = |width: f64| [layer(hidden, 2.0 * width / t), layer(width / t, hidden)];
        let attention = AttentionCost::of(config, &kernels);
        let windowed =
            shape.sliding_window.as_ref().map_or(0, |window| window.layers.min(shape.attention_layers()));
        let (send, link) = if config.gpus() <= gpu.gpus_per_node {
            (calibration.send.in_node.constants, gpu.link_bytes_per_s)
        } else {
            (calibration.send.across_nodes.constants, gpu.network_bytes_per_s)
        };
        let send_s = |bytes: f64| f64::from(pp - 1) * send.seconds(bytes, link);
        let experts = shape.moe.as_ref().map(|_| {
            let choice = wide(hidden, f64::from(shape.moe.as_ref().map_or(0, |moe| moe.experts)));
            let shared = ffn(f64::from(shape.moe.as_ref().map_or(0, |moe| moe.shared_ffn)));
            expert_layers(config, &kernels, &stack, choice, shared)
        });
        let moe_layers = experts.map_or(0.0, |experts| experts.layers);
        Self {
            layers: f64::from(shape.layers),
            attention_layers: f64::from(shape.attention_layers()),
            windowed_layers: f64::from(windowed),
            dense_layers: f64::from(shape.dense_layers()),
            projections: projections(shape, t, layer),
            dense: ffn(f64::from(shape.ffn)),
            experts,
            recurrence: shape
                .linear_attention
                .as_ref()
                .map(|linear| recurrence(linear, hidden, t, &kernels.head.1, layer)),
            head: wide(hidden, f64::from(shape.vocab) / t),
            pair_s: attention.pair_s,
            context_s: attention.context_s,
            prompt_token_s: attention.prompt_token_s,
            prefill_t0_s: kernels.prefill.t0_us * 1e-6,
            decode_t0_s: kernels.decode.t0_us * 1e-6,
            sequence_s: kernels.decode.head_ns * 1e-9 * f64::from(shape.heads) / t,
            decoding_context_ps: attention.decoding_context_s * 1e12 / f64::from(*dp),
            window: shape.sliding_window.as_ref().map_or(u64::MAX, |window| u64::from(window.window)),
            all_reduce: all_reduces(*tp, hidden, &kernels, &stack),
            elementwise_s: stack.elementwise * elementwise_elements(shape, t) * ACTIVATION_BYTES / bandwidth,
            sends: (send_s(0.0), send_s(ACTIVATION_BYTES * hidden) - send_s(0.0)),
            overhead_s: 1e-6
                * (engine.step_us
                    + f64::from(shape.layers) * stack.layer_us
                    + moe_layers * stack.expert_layer_us),
            stages: u64::from(*pp),
            groups: u64::from(*dp),
            launch_s: 1e-3
                * (f64::from(shape.dense_layers()) * stack.layer_launch_ms
                    + moe_layers * engine.expert_layer_launch_ms),
            engine,
            memory,
            source: kernels.source,
            decode_base_ps: (0..KNOWN_DECODES).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// How the memory is divided.
    pub const fn memory(&self) -> MemoryFit {
        self.memory
    }

    /// Whether the kernels were measured on this GPU type.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// What the engine adds.
    pub(crate) const fn engine(&self) -> &EngineOverhead {
        &self.engine
    }

    /// Groups of attention data parallelism.
    pub(crate) const fn groups(&self) -> u64 {
        self.groups
    }

    /// The least time in which a prompt's first step can be launched.
    pub(crate) const fn launch_s(&self) -> f64 {
        self.launch_s
    }

    /// What a request takes outside the engine's steps: protocol and tokenising.
    pub fn request_time(&self) -> SimTime {
        SimTime::from_seconds(self.engine.request_ms * 1e-3)
    }

    /// Where the seconds of one step go.
    pub fn parts(&self, batch: &Batch) -> StepParts {
        let mut parts = self.base(batch);
        let (slope, window_slope, inside) = self.context_slopes(batch);
        let context =
            slope.saturating_mul(batch.decode_context).saturating_add(window_slope.saturating_mul(inside));
        parts.kv_s += context as f64 * 1e-12;
        parts
    }

    fn base_ps(&self, batch: &Batch) -> u64 {
        let asked = || (self.base(batch).total_s() * 1e12).ceil() as u64;
        let known = self.decode_base_ps.get(batch.decodes as usize);
        let Some(known) = known.filter(|_| batch.prefill_tokens == 0) else { return asked() };
        // Two threads that ask at once find the same.
        let mut base_ps = known.load(Ordering::Relaxed);
        if base_ps == 0 {
            base_ps = asked();
            known.store(base_ps, Ordering::Relaxed);
        }
        base_ps
    }

    /// Everything but decode attention's reading of the context.
    fn base(&self, batch: &Batch) -> StepParts {
        let split = (self.micro_batches(batch) * self.groups) as f64;
        let all_tokens = (batch.prefill_tokens + batch.decodes) as f64;
        let tokens = all_tokens / split;
        let sampled = (batch.prefill_ends + batch.decodes) as f64 / split;
        let mut parts = StepParts::default();
        for matrix in &self.projections {
            parts.add(self.attention_layers, matrix.cost(tokens));
        }
        for matrix in &self.dense {
            parts.add(self.dense_layers, matrix.cost(tokens));
        }
        if let Some(experts) = &self.experts {
            parts.add(experts.layers, experts.routed.cost(tokens * self.groups as f64));
            parts.add(experts.layers, experts.choice.cost(tokens));
            for matrix in &experts.shared {
                parts.add(experts.layers, matrix.cost(tokens));
            }
            parts.communication_s += experts.layers * (experts.exchange.0 + experts.exchange.1 * tokens);
        }
        if let Some(recurrence) = &self.recurrence {
            for matrix in &recurrence.projections {
                parts.add(recurrence.layers, matrix.cost(tokens));
            }
            parts.bandwidth_s += recurrence.layers * recurrence.sequence_s * batch.decodes as f64 / split;
            parts.compute_s += recurrence.layers * recurrence.token_s * batch.prefill_tokens as f64 / split;
        }
        if batch.prefill_tokens > 0 {
            self.add_prefill_attention(&mut parts, batch, split);
        }
        if batch.decodes > 0 {
            let sequences = batch.decodes as f64 / split;
            parts.overhead_s += self.attention_layers * (self.decode_t0_s + self.sequence_s * sequences);
        }
        let (send_s, send_token_s) = self.sends;
        let [own, nccl] = self.all_reduce.map(|(fixed_s, token_s)| fixed_s + token_s * tokens);
        parts.communication_s += self.layers * 2.0 * own.min(nccl) + send_s + send_token_s * tokens;
        parts.bandwidth_s += self.layers * self.elementwise_s * tokens;
        parts.add(1.0, self.head.cost(sampled));
        parts.overhead_s += self.overhead_s;
        parts
    }

    fn add_prefill_attention(&self, parts: &mut StepParts, batch: &Batch, split: f64) {
        let pairs = batch.prefill_pairs_twice as f64;
        let inside = pairs.min(2.0 * batch.prefill_tokens as f64 * self.window as f64);
        let full_layers = self.attention_layers - self.windowed_layers;
        parts.compute_s += self.pair_s * (full_layers * pairs + self.windowed_layers * inside) / split;
        let (context, tokens) = (batch.prefill_context as f64, batch.prefill_tokens as f64);
        let traffic_s = self.context_s * context + self.prompt_token_s * tokens;
        parts.bandwidth_s += self.attention_layers * traffic_s / split;
        parts.overhead_s += self.attention_layers * self.prefill_t0_s;
    }

    /// Picoseconds per token of decoding context without and with window, and the tokens inside the window.
    fn context_slopes(&self, batch: &Batch) -> (u64, u64, u64) {
        let of =
            |layers: f64| ceil(self.decoding_context_ps * layers / self.micro_batches(batch) as f64) as u64;
        let inside = batch.decode_context.min(batch.decodes.saturating_mul(self.window));
        (of(self.attention_layers - self.windowed_layers), of(self.windowed_layers), inside)
    }

    fn micro_batches(&self, batch: &Batch) -> u64 {
        (batch.prefill_chunks + batch.decodes).clamp(1, self.stages)
    }

    /// Prompt tokens per second when nothing else runs, in prompts of `tokens`.
    pub fn prompt_tokens_per_s(&self, tokens: u32) -> f64 {
        let n = u64::from(tokens.max(1));
        let batch = Batch {
            prefill_tokens: n,
            prefill_chunks: 1,
            prefill_pairs_twice: n * n,
            prefill_ends: 1,
            ..Batch::default()
        };
        n as f64 / self.step_time(&batch).seconds()
    }

    /// Seconds of one step in which `decodes` sequences with `context` tokens each decode.
    pub fn decode_step_s(&self, decodes: u64, context: u64) -> f64 {
        let batch = Batch { decodes, decode_context: decodes * context, ..Batch::default() };
        self.step_time(&batch).seconds()
    }
}

impl StepTime for ReplicaModel {
    fn step_time(&self, batch: &Batch) -> SimTime {
        let base = SimTime(self.base_ps(batch));
        let (slope, window_slope, inside) = self.context_slopes(batch);
        SimTime(
            base.0
                .saturating_add(slope.saturating_mul(batch.decode_context))
                .saturating_add(window_slope.saturating_mul(inside)),
        )
    }

    fn decode_time(&self, decodes: u64, context: u64, steps: u64) -> SimTime {
        if steps == 0 {
            return SimTime::ZERO;
        }
        let batch = Batch { decodes, ..Batch::default() };
        let base = self.step_time(&batch).0;
        let (slope, window_slope, _) = self.context_slopes(&batch);
        // Σ over steps of the context, and of the context inside the window: arithmetic series.
        let series = |first: u64, count: u64| {
            u128::from(first) * u128::from(count)
                + u128::from(decodes) * u128::from(count) * u128::from(count.saturating_sub(1)) / 2
        };
        let limit = decodes.saturating_mul(self.window);
        let below = if context > limit { 0 } else { steps.min((limit - context) / decodes.max(1) + 1) };
        let inside = series(context, below) + u128::from(limit) * u128::from(steps - below);
        let total = u128::from(base) * u128::from(steps)
            + u128::from(slope) * series(context, steps)
            + u128::from(window_slope) * inside;
        SimTime(u64::try_from(total).unwrap_or(u64::MAX))
    }
}

/// The attention's projections: into queries, keys and values, and out of the heads. Latent attention compresses first,
/// on every GPU, and expands per head.
fn projections(shape: &ModelShape, t: f64, matrix: impl Fn(f64, f64) -> Matrix) -> [Matrix; 4] {
    let (hidden, heads) = (f64::from(shape.hidden), f64::from(shape.heads));
    let none = || matrix(0.0, 0.0);
    let Some(mla) = &shape.mla else {
        let width = f64::from(shape.head_dim);
        let into = (heads + 2.0 * f64::from(shape.kv_heads)) * width;
        return [matrix(hidden, into / t), matrix(heads * width / t, hidden), none(), none()];
    };
    let (rope, nope) = (f64::from(mla.rope_head_dim), f64::from(mla.nope_head_dim));
    let (value, rank) = (f64::from(mla.value_head_dim), f64::from(mla.kv_lora_rank));
    let query_rank = f64::from(mla.q_lora_rank);
    let query_inputs = if mla.q_lora_rank == 0 { hidden } else { query_rank };
    [
        matrix(hidden, query_rank + rank + rope),
        matrix(query_inputs, heads * (nope + rope) / t),
        matrix(rank, heads * (nope + value) / t),
        matrix(heads * value / t, hidden),
    ]
}

/// All-reduces of one token's activations over `tp` GPUs, by the engine's kernel and by NCCL: fixed seconds, and seconds per
/// token.
fn all_reduces(tp: u32, hidden: f64, kernels: &KernelSet, stack: &Stack) -> [(f64, f64); 2] {
    if tp == 1 {
        return [(0.0, 0.0); 2];
    }
    let (t, size) = (f64::from(tp), collective_index(tp));
    [kernels.all_reduce[size], kernels.nccl[size]].map(|collective| {
        let fixed_s = collective.reduce_s(t, 0.0);
        (fixed_s * stack.all_reduce_alpha, collective.reduce_s(t, ACTIVATION_BYTES * hidden) - fixed_s)
    })
}

/// Collectives are measured over 2, 4 and 8 GPUs.
fn collective_index(gpus: u32) -> usize {
    gpus.ilog2().clamp(1, 3) as usize - 1
}

fn recurrence(
    linear: &LinearAttention,
    hidden: f64,
    t: f64,
    on: &Hardware,
    matrix: impl Fn(f64, f64) -> Matrix,
) -> Recurrence {
    let out = f64::from(linear.value_heads * linear.value_dim);
    let state = linear.state() / t;
    Recurrence {
        layers: f64::from(linear.layers),
        projections: [matrix(hidden, linear.projected() / t), matrix(out / t, hidden)],
        sequence_s: 2.0 * STATE_BYTES * state / (on.bandwidth_bytes_per_s * RECURRENCE_EFFICIENCY.sqrt()),
        token_s: 6.0 * state / (on.peak_flops * RECURRENCE_EFFICIENCY),
    }
}

fn expert_layers(
    config: &ReplicaConfig,
    kernels: &KernelSet,
    stack: &Stack,
    choice: Matrix,
    shared: [Matrix; 2],
) -> ExpertLayers {
    let ReplicaConfig { model, tp, dp, ep, .. } = config;
    let (moe, shape) = (model.shape.moe.as_ref().expect("asked for its experts"), &model.shape);
    let ranks = f64::from((*ep).clamp(1, tp * dp));
    let (mut gemm, hardware) = kernels.experts;
    gemm.skew *= stack.expert_skew;
    let hidden = f64::from(shape.hidden);
    let used = f64::from(moe.experts_per_token.min(moe.experts));
    let dims = ExpertShape {
        hidden,
        ffn: f64::from(moe.expert_ffn) * ranks / f64::from(tp * dp),
        experts: f64::from(moe.experts.max(1)),
        used,
        ranks,
    };
    let routed =
        gemm.experts(&hardware, &dims, model.experts().bytes_per_weight()).slowed(stack.expert_compute);
    let exchange = if *dp > 1 {
        // A token goes once to every rank that has any of its experts, in their precision, and comes back in 16 bits.
        let reached = ranks * (1.0 - (1.0 - 1.0 / ranks).powf(used));
        let there = model.experts().bytes_per_weight().min(ACTIVATION_BYTES);
        let bytes = reached * hidden * (there + ACTIVATION_BYTES) / 2.0;
        let collective = kernels.exchange[collective_index(ranks as u32)];
        let token_s = collective.exchange_s(ranks, bytes) - collective.exchange_s(ranks, 0.0);
        (2.0 * stack.exchange_us * 1e-6, 2.0 * token_s)
    } else {
        (0.0, 0.0)
    };
    ExpertLayers { layers: f64::from(shape.layers - shape.dense_layers()), routed, shared, choice, exchange }
}

/// Elements per token and layer that norms, activation functions and rotary embedding move, on one GPU.
fn elementwise_elements(shape: &ModelShape, t: f64) -> f64 {
    let ffn = shape.moe.as_ref().map_or(shape.ffn, |moe| moe.expert_ffn * moe.experts_per_token);
    let heads = f64::from((shape.heads + shape.kv_heads) * shape.head_dim);
    6.0 * f64::from(shape.hidden) + (3.0 * f64::from(ffn) + 2.0 * heads) / t
}

/// Seconds of attention in one layer on one GPU.
#[expect(clippy::struct_field_names, reason = "the unit is the last word of the name")]
struct AttentionCost {
    /// Per query-key pair (twice counted).
    pair_s: f64,
    /// Per token of prefilled context.
    context_s: f64,
    /// Per prompt token.
    prompt_token_s: f64,
    /// Per token of decoding context.
    decoding_context_s: f64,
}

impl AttentionCost {
    fn of(config: &ReplicaConfig, kernels: &KernelSet) -> Self {
        let ReplicaConfig { model, gpu, tp, .. } = config;
        let shape = &model.shape;
        let heads = f64::from(shape.heads) / f64::from(*tp);
        let kv_heads = f64::from(shape.kv_heads) / f64::from((*tp).min(shape.kv_heads));
        let compute = gpu.bf16_flops * kernels.prefill.mfu;
        let (prefill_width, decode_width) = match &shape.mla {
            None => (2 * shape.head_dim, 2 * shape.head_dim),
            // Prefill expands keys and values; decode works on the compressed vector.
            Some(mla) => (
                mla.nope_head_dim + mla.rope_head_dim + mla.value_head_dim,
                2 * mla.kv_lora_rank + mla.rope_head_dim,
            ),
        };
        let kv = kv_bytes_per_layer(shape, model.kv_bytes_per_element) / f64::from(kv_shards(shape, *tp));
        let read_s = kv / (gpu.bandwidth_bytes_per_s * kernels.decode.bandwidth);
        let width = f64::from(prefill_width) / 2.0;
        let moved = width * ACTIVATION_BYTES * 2.0 * (heads + kv_heads);
        Self {
            pair_s: heads * f64::from(prefill_width) / compute,
            context_s: read_s,
            prompt_token_s: kernels.prefill.traffic * moved / gpu.bandwidth_bytes_per_s,
            decoding_context_s: read_s.max(2.0 * heads * f64::from(decode_width) / compute),
        }
    }
}
