//! Step time of one replica: a soft roofline per kernel, communication, and the engine's overhead.
//!
//! ```text
//! step  = m-th part of the batch through all L layers, + (p − 1) sends, + engine
//! layer = Σ GEMM + prefill attention + decode attention + 2 all-reduces + rest
//! GEMM  = t0 + ((F/(peak·mfu))^q + (B/(bandwidth·eff))^q)^(1/q),  F = 2·k·n·T/t,  B = w·k·n/t + 2·T·(k + n/t)
//! prefill attention = t0 + max(F/(peak·mfu), B/(bandwidth·eff)),  F = a·(d_qk + d_v)·Σ n(2k + n)/t
//! decode attention  = t0 + K · max(kv/(bandwidth·eff), F_1/(peak·mfu))
//! all-reduce = alpha + 2(t−1)/t · 2·T·h / bus
//! ```
//! | symbol | meaning | here |
//! |---|---|---|
//! | T, K | tokens in the step, sum of the decoding sequences' contexts | [`Batch`] |
//! | t, p, L, h, a, d | TP, PP, layers, hidden, heads, head width | [`ReplicaConfig`] |
//! | w, kv | bytes per weight, KV bytes per token and layer on one GPU | |
//! | m | micro-batches in flight: min(p, sequences) | |
//!
//! A mixture of experts reads `E·(1 − (1 − k/E)^T)` experts (uniform routing) and computes `k` per token. Latent
//! attention reads one compressed vector per token. A windowed layer reads at most `window` tokens per sequence.
//! Pipeline stages each work on one micro-batch, so a step over the whole batch takes as long as one micro-batch takes
//! through all layers. Source of the forms: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; GEMM and
//! attention sizes from the transformer's definition; constants in `catalog/calibration.toml`.
//!
//! By construction no kernel is faster than peak compute or bandwidth, and more work never takes less time.

use boute_spec::catalog::{ModelShape, Moe, Source};
use boute_spec::units::SimTime;

use crate::calibration::{Calibration, Gemm, GpuCalibration};
use crate::memory::{FitError, MemoryFit, kv_bytes_per_layer, kv_shards, memory_fit};
use crate::{Batch, ReplicaConfig, StepTime};

/// Fixed time of one send between pipeline stages, in seconds (aiconfigurator's P2P latency).
const SEND_S: f64 = 10e-6;
/// 16-bit activations.
const ACTIVATION_BYTES: f64 = 2.0;

/// One weight matrix of a layer on one GPU: `inputs × outputs`, seconds by the soft roofline.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the unit is the last word of the name")]
struct Matrix {
    /// Seconds of compute per token.
    compute_s: f64,
    /// Seconds of bandwidth for the weights.
    weights_s: f64,
    /// Seconds of bandwidth per token for activations.
    activations_s: f64,
}

/// The experts of a layer on one GPU.
#[derive(Debug, Clone, Copy)]
struct Experts {
    /// As if every expert were touched.
    all: Matrix,
    /// Chance that one token does not use a given expert.
    miss: f64,
}

/// The cost model of one replica.
#[derive(Debug, Clone)]
pub struct ReplicaModel {
    layers: f64,
    moe_layers: f64,
    dense_layers: f64,
    attention: [Matrix; 2],
    dense: [Matrix; 2],
    experts: Option<Experts>,
    head: Matrix,
    gemm: Gemm,
    /// Seconds per query-key pair (twice counted) in one layer.
    pair_s: f64,
    /// Seconds per token of prefilled context in one layer.
    context_s: f64,
    prefill_t0_s: f64,
    decode_t0_s: f64,
    /// Per token of decoding context, all layers without window; by number of micro-batches less one.
    slope: Vec<SimTime>,
    /// The same for windowed layers.
    window_slope: Vec<SimTime>,
    window: u64,
    all_reduce_alpha_s: f64,
    /// Seconds per token of one all-reduce.
    all_reduce_s: f64,
    /// Seconds of sends: fixed, per token.
    sends: (f64, f64),
    overhead_s: f64,
    stages: u64,
    request: SimTime,
    memory: MemoryFit,
    source: Source,
}

impl ReplicaModel {
    /// The model of a replica.
    ///
    /// # Errors
    /// If the replica does not fit.
    pub fn new(config: &ReplicaConfig, calibration: &Calibration) -> Result<Self, FitError> {
        let memory = memory_fit(config)?;
        let ReplicaConfig { model, gpu, tp, pp, .. } = config;
        let shape = &model.shape;
        let of = calibration.of(gpu, model.precision);
        let t = f64::from(*tp);
        let bandwidth = gpu.bandwidth_bytes_per_s;
        let matrix = |inputs: f64, outputs: f64| {
            let weights = inputs * outputs / t;
            Matrix {
                compute_s: 2.0 * weights / (of.peak_flops * of.gemm.mfu),
                weights_s: weights * model.precision.bytes_per_weight() / (bandwidth * of.gemm.bandwidth),
                activations_s: ACTIVATION_BYTES * (inputs + outputs) / t / (bandwidth * of.gemm.bandwidth),
            }
        };
        let hidden = f64::from(shape.hidden);
        let (pair_s, context_s, per_token_s) = attention_seconds(config, &of);
        let windowed = shape.sliding_window.as_ref().map_or(0, |window| window.layers);
        let per_micro_batch = |layers: u32| {
            (1..=*pp)
                .map(|m| SimTime((per_token_s * f64::from(layers) / f64::from(m) * 1e12).ceil() as u64))
                .collect()
        };
        let (all_reduce_alpha_s, bus) = match tp {
            1 => (0.0, f64::INFINITY),
            2 => of.all_reduce[0],
            4 => of.all_reduce[1],
            _ => of.all_reduce[2],
        };
        let inside = tp * pp <= gpu.gpus_per_node;
        let link = if inside { gpu.link_bytes_per_s } else { gpu.network_bytes_per_s };
        let sends = f64::from(pp - 1);
        let dense_layers = shape.moe.as_ref().map_or(shape.layers, |moe| moe.dense_layers);
        let engine = calibration.engine;
        Ok(Self {
            layers: f64::from(shape.layers),
            moe_layers: f64::from(shape.layers - dense_layers),
            dense_layers: f64::from(dense_layers),
            attention: attention_matrices(shape, matrix),
            dense: [matrix(hidden, 2.0 * f64::from(shape.ffn)), matrix(f64::from(shape.ffn), hidden)],
            experts: shape.moe.as_ref().map(|moe| experts(moe, hidden, matrix)),
            head: matrix(hidden, f64::from(shape.vocab)),
            gemm: of.gemm,
            pair_s,
            context_s,
            prefill_t0_s: of.prefill_attention.t0_us * 1e-6,
            decode_t0_s: of.decode_attention.t0_us * 1e-6,
            slope: per_micro_batch(shape.layers - windowed),
            window_slope: per_micro_batch(windowed),
            window: shape.sliding_window.as_ref().map_or(u64::MAX, |window| u64::from(window.window)),
            all_reduce_alpha_s,
            all_reduce_s: 2.0 * (t - 1.0) / t * ACTIVATION_BYTES * hidden / bus,
            sends: (sends * SEND_S, sends * ACTIVATION_BYTES * hidden / link),
            overhead_s: engine.step_us * 1e-6 + f64::from(shape.layers) * engine.layer_us * 1e-6,
            stages: u64::from(*pp),
            request: SimTime::from_seconds(engine.request_ms * 1e-3),
            memory,
            source: of.source,
        })
    }

    /// How the memory is divided.
    pub const fn memory(&self) -> MemoryFit {
        self.memory
    }

    /// The worst source among the constants.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// What a request takes outside the engine's steps: protocol and tokenising.
    pub const fn request_time(&self) -> SimTime {
        self.request
    }

    /// Seconds of everything but decode attention's reading of the context.
    fn base_s(&self, batch: &Batch) -> f64 {
        let parts = self.micro_batches(batch) as f64;
        let tokens = (batch.prefill_tokens + batch.decodes) as f64 / parts;
        let sampled = (batch.prefill_ends + batch.decodes) as f64 / parts;
        let mut layer_s: f64 = self.attention.iter().map(|matrix| self.gemm_s(matrix, tokens, tokens)).sum();
        if self.all_reduce_s > 0.0 {
            layer_s += 2.0 * (self.all_reduce_alpha_s + self.all_reduce_s * tokens);
        }
        if batch.prefill_tokens > 0 {
            let pairs = self.windowed_pairs(batch) / parts;
            let context = batch.prefill_context as f64 / parts;
            layer_s += self.prefill_t0_s + (self.pair_s * pairs).max(self.context_s * context);
        }
        if batch.decodes > 0 {
            layer_s += self.decode_t0_s;
        }
        let dense_s: f64 = self.dense.iter().map(|matrix| self.gemm_s(matrix, tokens, tokens)).sum();
        let expert_s = self.experts.map_or(0.0, |experts| self.experts_s(&experts, tokens));
        let (send_s, send_token_s) = self.sends;
        self.layers * layer_s
            + self.dense_layers * dense_s
            + self.moe_layers * expert_s
            + self.gemm_s(&self.head, sampled, sampled)
            + send_s
            + send_token_s * tokens
            + self.overhead_s
    }

    fn gemm_s(&self, matrix: &Matrix, compute_tokens: f64, tokens: f64) -> f64 {
        if tokens == 0.0 {
            return 0.0;
        }
        let compute = matrix.compute_s * compute_tokens;
        let bytes = matrix.weights_s + matrix.activations_s * tokens;
        self.gemm.t0_us * 1e-6 + soft_max(compute, bytes, self.gemm.q)
    }

    fn experts_s(&self, experts: &Experts, tokens: f64) -> f64 {
        let touched = 1.0 - experts.miss.powf(tokens);
        let matrix = Matrix { weights_s: experts.all.weights_s * touched, ..experts.all };
        // Up and down projection are two launches.
        self.gemm.t0_us * 1e-6 + self.gemm_s(&matrix, tokens, tokens)
    }

    /// Pairs (twice counted), less those beyond the window, averaged over layers.
    fn windowed_pairs(&self, batch: &Batch) -> f64 {
        let pairs = batch.prefill_pairs_twice as f64;
        if self.window == u64::MAX {
            return pairs;
        }
        let inside = pairs.min(2.0 * batch.prefill_tokens as f64 * self.window as f64);
        let share = self.window_slope[0].0 as f64 / (self.window_slope[0].0 + self.slope[0].0).max(1) as f64;
        pairs + share * (inside - pairs)
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
        let base = SimTime((self.base_s(batch) * 1e12).ceil() as u64);
        let parts = self.micro_batches(batch) as usize - 1;
        let inside = batch.decode_context.min(batch.decodes.saturating_mul(self.window));
        SimTime(
            base.0
                .saturating_add(self.slope[parts].0.saturating_mul(batch.decode_context))
                .saturating_add(self.window_slope[parts].0.saturating_mul(inside)),
        )
    }

    fn decode_time(&self, decodes: u64, context: u64, steps: u64) -> SimTime {
        if steps == 0 {
            return SimTime::ZERO;
        }
        let batch = Batch { decodes, ..Batch::default() };
        let base = self.step_time(&batch).0;
        let parts = self.micro_batches(&batch) as usize - 1;
        // Σ over steps of the context, and of the context inside the window: arithmetic series.
        let series = |first: u64, count: u64| {
            u128::from(first) * u128::from(count)
                + u128::from(decodes) * u128::from(count) * u128::from(count.saturating_sub(1)) / 2
        };
        let limit = decodes.saturating_mul(self.window);
        let below = if context > limit { 0 } else { steps.min((limit - context) / decodes.max(1) + 1) };
        let inside = series(context, below) + u128::from(limit) * u128::from(steps - below);
        let total = u128::from(base) * u128::from(steps)
            + u128::from(self.slope[parts].0) * series(context, steps)
            + u128::from(self.window_slope[parts].0) * inside;
        SimTime(u64::try_from(total).unwrap_or(u64::MAX))
    }
}

/// `(x^q + y^q)^(1/q)`: at least max(x, y), at most twice that.
fn soft_max(x: f64, y: f64, q: f64) -> f64 {
    let (low, high) = if x < y { (x, y) } else { (y, x) };
    if low <= 0.0 { high } else { high * (1.0 + (low / high).powf(q)).powf(1.0 / q) }
}

/// The attention's projections: into queries, keys and values, and out of the heads.
fn attention_matrices(shape: &ModelShape, matrix: impl Fn(f64, f64) -> Matrix) -> [Matrix; 2] {
    let hidden = f64::from(shape.hidden);
    let out = f64::from(shape.heads)
        * shape.mla.as_ref().map_or(f64::from(shape.head_dim), |mla| f64::from(mla.value_head_dim));
    let weights_in = shape.attention_parameters() - out * hidden;
    [matrix(hidden, weights_in / hidden), matrix(out, hidden)]
}

fn experts(moe: &Moe, hidden: f64, matrix: impl Fn(f64, f64) -> Matrix) -> Experts {
    let used = f64::from(moe.experts_per_token) * f64::from(moe.expert_ffn) + f64::from(moe.shared_ffn);
    let stored = f64::from(moe.experts) * f64::from(moe.expert_ffn) + f64::from(moe.shared_ffn);
    let (active, all) = (matrix(hidden, 3.0 * used), matrix(hidden, 3.0 * stored));
    let miss = 1.0 - f64::from(moe.experts_per_token.min(moe.experts)) / f64::from(moe.experts.max(1));
    Experts { all: Matrix { weights_s: all.weights_s, ..active }, miss }
}

/// Seconds in one layer on one GPU: per query-key pair (twice counted), per token of prefilled context, per token of
/// decoding context.
fn attention_seconds(config: &ReplicaConfig, of: &GpuCalibration) -> (f64, f64, f64) {
    let ReplicaConfig { model, gpu, tp, .. } = config;
    let shape = &model.shape;
    let heads = f64::from(shape.heads) / f64::from(*tp);
    let compute = gpu.bf16_flops * of.prefill_attention.mfu;
    let (prefill_width, decode_width) = match &shape.mla {
        None => (2 * shape.head_dim, 2 * shape.head_dim),
        // Prefill expands keys and values; decode works on the compressed vector.
        Some(mla) => (
            mla.nope_head_dim + mla.rope_head_dim + mla.value_head_dim,
            2 * mla.kv_lora_rank + mla.rope_head_dim,
        ),
    };
    let kv = kv_bytes_per_layer(shape, model.kv_bytes_per_element) / f64::from(kv_shards(shape, *tp));
    let read_s = kv / (gpu.bandwidth_bytes_per_s * of.decode_attention.bandwidth);
    let pair_s = heads * f64::from(prefill_width) / compute;
    let decode_compute_s = 2.0 * heads * f64::from(decode_width) / compute;
    (pair_s, read_s, read_s.max(decode_compute_s))
}
