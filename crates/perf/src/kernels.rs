//! The operators of a transformer layer on one GPU, each a few constants fitted to measured tables.
//!
//! ```text
//! GEMM     = t0 + corner(F·waste/(peak·mfu), B/(bandwidth·eff)) + quantise·2·m·k/bandwidth
//! experts  = t0 + corner(F·(1 + skew)/(peak·mfu), B·touched/(bandwidth·eff)) + traffic·A/bandwidth
//! prefill  = t0 + F/(peak·mfu) + traffic·A/bandwidth
//! decode   = t0 + head·D·a + K·kv/(bandwidth·eff)
//! reduce   = alpha + 2(t−1)/t · bytes/bus        exchange = alpha + (t−1)/t · bytes/bus
//! corner(x, y) = high + low·(serial + blend·low/high), with low = min(x, y), high = max(x, y)
//! ```
//! | symbol | meaning |
//! |---|---|
//! | F, B, A | FLOPs, bytes of weights and activations, bytes of activations alone |
//! | serial, blend | share of the shorter side that is not hidden behind the longer, always and near the corner; sum ≤ 1 |
//! | waste | 1 + share · (tiles and waves rounded up / exact − 1): whole tiles run in whole waves over the SMs |
//! | quantise | passes over the 16-bit input that turn it into 8 or 4 bits |
//! | touched | share of experts that any token uses, 1 − (1 − k/E)^(touch·T): popular experts are shared, so touch < 1 |
//! | skew | load of the busiest rank over the mean, less one, where experts are divided over ranks |
//! | D, K, a | decoding sequences, sum of their contexts, query heads on this GPU |
//!
//! Sources of the forms: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; sizes from the transformer's
//! definition; tile and wave quantisation as in NVIDIA's "Matrix Multiplication Background" guide. Every form grows with
//! the work and is at least the time at peak compute and at peak bandwidth.

use serde::{Deserialize, Serialize};

/// Rows and columns of the output tiles that matrix libraries choose from.
const TILES: [(f64, f64); 4] = [(64.0, 64.0), (64.0, 128.0), (128.0, 128.0), (128.0, 256.0)];
/// Beyond this libraries split the sum over k instead of leaving SMs idle.
const MOST_WASTE: f64 = 4.0;
/// 16-bit activations.
pub(crate) const ACTIVATION_BYTES: f64 = 2.0;

/// What the data sheet promises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hardware {
    /// Peak FLOP/s in the precision of the kernel.
    pub peak_flops: f64,
    /// Peak bytes/s of memory.
    pub bandwidth_bytes_per_s: f64,
    /// Streaming multiprocessors.
    pub sms: f64,
}

/// Seconds of one kernel, by what bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bound by compute.
    pub compute_s: f64,
    /// Bound by memory.
    pub bandwidth_s: f64,
    /// However small the work.
    pub fixed_s: f64,
}

impl Cost {
    /// All together.
    pub fn total_s(&self) -> f64 {
        self.compute_s + self.bandwidth_s + self.fixed_s
    }

    /// The soft roofline, all of it booked on the side that binds.
    #[inline]
    fn of(compute: f64, bytes: f64, overlap: Overlap, traffic: f64, fixed_s: f64) -> Self {
        let corner = overlap.corner(compute, bytes);
        if compute > bytes {
            Self { compute_s: corner, bandwidth_s: traffic, fixed_s }
        } else {
            Self { compute_s: 0.0, bandwidth_s: corner + traffic, fixed_s }
        }
    }
}

/// How compute and memory traffic of a kernel overlap: the soft corner of its roofline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Share of the shorter side that is never hidden.
    pub serial: f64,
    /// Share of it that shows where both sides are equally long; `serial + blend` is at most 1.
    pub blend: f64,
}

impl Overlap {
    /// At least the longer side, at most both together; grows with either.
    #[inline]
    fn corner(self, x: f64, y: f64) -> f64 {
        let (low, high) = if x < y { (x, y) } else { (y, x) };
        if high <= 0.0 { 0.0 } else { high + low * (self.serial + self.blend * low / high) }
    }
}

/// A dense matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Reached share of the peak rate.
    pub mfu: f64,
    /// Reached share of the peak bandwidth.
    pub bandwidth: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
    /// Corner of the roofline.
    pub overlap: Overlap,
    /// Passes over the 16-bit input to quantise it.
    pub quantise: f64,
    /// Share of the tile and wave waste that shows.
    pub waste: f64,
}

/// One weight matrix on one GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    compute_s: f64,
    weights_s: f64,
    activations_s: f64,
    quantise_s: f64,
    t0_s: f64,
    overlap: Overlap,
    waste: f64,
    /// Columns of the output, and of tiles over them, for each shape of tile.
    outputs: f64,
    tile_columns: [f64; TILES.len()],
    waves_per_tile: f64,
    sms: f64,
}

impl Gemm {
    /// The cost of `inputs × outputs` weights of `bytes_per_weight` each.
    pub fn matrix(&self, on: &Hardware, inputs: f64, outputs: f64, bytes_per_weight: f64) -> Matrix {
        let read_s = 1.0 / (on.bandwidth_bytes_per_s * self.bandwidth);
        let narrow = bytes_per_weight.min(ACTIVATION_BYTES);
        Matrix {
            compute_s: 2.0 * inputs * outputs / (on.peak_flops * self.mfu),
            weights_s: inputs * outputs * bytes_per_weight * read_s,
            activations_s: (inputs * narrow + outputs * ACTIVATION_BYTES) * read_s,
            quantise_s: self.quantise * inputs * ACTIVATION_BYTES / on.bandwidth_bytes_per_s,
            t0_s: self.t0_us * 1e-6,
            overlap: self.overlap,
            waste: self.waste,
            outputs,
            tile_columns: TILES.map(|(_, columns)| ceil(outputs / columns)),
            waves_per_tile: 1.0 / on.sms,
            sms: on.sms,
        }
    }
}

impl Matrix {
    /// The cost for `tokens` rows; nothing if there are none.
    #[inline]
    pub fn cost(&self, tokens: f64) -> Cost {
        if tokens <= 0.0 || self.outputs <= 0.0 {
            return Cost::default();
        }
        let compute = self.compute_s * tokens * self.wasted(tokens);
        let bytes = self.weights_s + self.activations_s * tokens;
        Cost::of(compute, bytes, self.overlap, self.quantise_s * tokens, self.t0_s)
    }

    #[inline]
    fn wasted(&self, tokens: f64) -> f64 {
        if self.waste == 0.0 {
            return 1.0;
        }
        let mut whole = f64::INFINITY;
        for ((rows, columns), across) in TILES.into_iter().zip(self.tile_columns) {
            let waves = ceil(ceil(tokens / rows) * across * self.waves_per_tile);
            whole = whole.min(waves * self.sms * rows * columns);
        }
        let exact = tokens * self.outputs;
        1.0 + self.waste * ((whole / exact).min(MOST_WASTE) - 1.0)
    }
}

/// The routed experts of one layer, all three matrices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertGemm {
    /// Reached share of the peak rate.
    pub mfu: f64,
    /// Reached share of the peak bandwidth.
    pub bandwidth: f64,
    /// Fixed time in microseconds: routing, sorting, three launches.
    pub t0_us: f64,
    /// Corner of the roofline.
    pub overlap: Overlap,
    /// Tokens count for this much in touching experts, for some experts are popular.
    pub touch: f64,
    /// How far the busiest rank is above the mean, where experts are divided over ranks.
    pub skew: f64,
    /// Passes over the activations.
    pub traffic: f64,
}

/// Shape of the experts on one GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Width of the residual stream.
    pub hidden: f64,
    /// Width of an expert on one GPU.
    pub ffn: f64,
    /// Experts in the layer.
    pub experts: f64,
    /// Experts a token uses.
    pub used: f64,
    /// Ranks over which the experts are divided.
    pub ranks: f64,
}

/// The experts of one layer on one GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    compute_s: f64,
    weights_s: f64,
    traffic_s: f64,
    t0_s: f64,
    overlap: Overlap,
    /// ln of the chance that one token leaves a given expert alone, times `touch`.
    miss: f64,
}

impl ExpertGemm {
    /// The cost of experts of that shape with weights of `bytes_per_weight` each.
    pub fn experts(&self, on: &Hardware, shape: &ExpertShape, bytes_per_weight: f64) -> Experts {
        let ExpertShape { hidden, ffn, experts, used, ranks } = *shape;
        let skew = if ranks > 1.0 { 1.0 + self.skew } else { 1.0 };
        let weights = 3.0 * hidden * ffn * experts / ranks * bytes_per_weight;
        let chance = (used / experts).clamp(0.0, 1.0 - 1e-9);
        Experts {
            compute_s: 6.0 * used * hidden * ffn / ranks / (on.peak_flops * self.mfu) * skew,
            weights_s: weights / (on.bandwidth_bytes_per_s * self.bandwidth),
            traffic_s: self.traffic * used * (hidden + ffn) * ACTIVATION_BYTES
                / ranks
                / on.bandwidth_bytes_per_s,
            t0_s: self.t0_us * 1e-6,
            overlap: self.overlap,
            miss: (1.0 - chance).ln() * self.touch,
        }
    }
}

impl Experts {
    /// The cost for `tokens` tokens over all ranks.
    #[inline]
    pub fn cost(&self, tokens: f64) -> Cost {
        let bytes = self.weights_s * -(self.miss * tokens).exp_m1();
        Cost::of(self.compute_s * tokens, bytes, self.overlap, self.traffic_s * tokens, self.t0_s)
    }

    /// The same with compute `factor` times as slow.
    pub(crate) fn slowed(self, factor: f64) -> Self {
        Self { compute_s: self.compute_s * factor, ..self }
    }
}

/// Attention of decoding sequences: bound by reading the KV cache, split over SMs at any length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeAttention {
    /// Reached share of the peak bandwidth.
    pub bandwidth: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
    /// Nanoseconds per sequence and query head.
    pub head_ns: f64,
}

/// Attention of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillAttention {
    /// Reached share of the peak bf16 rate.
    pub mfu: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
    /// Passes over queries, keys, values and outputs.
    pub traffic: f64,
}

impl DecodeAttention {
    /// Seconds for `sequences` with `heads` query heads that read `cache_bytes` in all.
    pub fn seconds(&self, sequences: f64, heads: f64, cache_bytes: f64, bandwidth_bytes_per_s: f64) -> f64 {
        self.t0_us * 1e-6
            + self.head_ns * 1e-9 * sequences * heads
            + cache_bytes / (bandwidth_bytes_per_s * self.bandwidth)
    }
}

impl PrefillAttention {
    /// Seconds for `flops` and `bytes` of queries, keys, values and outputs.
    pub fn seconds(&self, on: &Hardware, flops: f64, bytes: f64) -> f64 {
        self.t0_us * 1e-6
            + flops / (on.peak_flops * self.mfu)
            + self.traffic * bytes / on.bandwidth_bytes_per_s
    }
}

/// A collective over the GPUs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collective {
    /// Fixed time in microseconds.
    pub alpha_us: f64,
    /// Bus bandwidth in GB/s.
    pub bus_gb_per_s: f64,
}

impl Collective {
    /// Seconds to reduce `bytes` on every one of `gpus`: `alpha + 2(t−1)/t · bytes/bus`.
    pub fn reduce_s(&self, gpus: f64, bytes: f64) -> f64 {
        self.alpha_us * 1e-6 + 2.0 * (gpus - 1.0) / gpus * bytes / (self.bus_gb_per_s * 1e9)
    }

    /// Seconds for every one of `gpus` to send `bytes`, a part to each other: `alpha + (t−1)/t · bytes/bus`.
    pub fn exchange_s(&self, gpus: f64, bytes: f64) -> f64 {
        self.alpha_us * 1e-6 + (gpus - 1.0) / gpus * bytes / (self.bus_gb_per_s * 1e9)
    }
}

/// A send from one GPU to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// Fixed time in microseconds.
    pub alpha_us: f64,
    /// Reached share of the link's bandwidth.
    pub link_share: f64,
}

impl Send {
    /// Seconds to send `bytes` over a link.
    pub fn seconds(&self, bytes: f64, link_bytes_per_s: f64) -> f64 {
        self.alpha_us * 1e-6 + bytes / (link_bytes_per_s * self.link_share)
    }
}

/// Rounds up; for the sizes that occur here, without a call into the maths library.
#[inline]
pub(crate) fn ceil(x: f64) -> f64 {
    let down = x as u64 as f64;
    if down < x { down + 1.0 } else { down }
}
