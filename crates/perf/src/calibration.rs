//! How far real kernels stay below peak, and what an engine adds: `catalog/calibration.toml`, compiled in, written by
//! `cargo xtask calibrate`.

use std::sync::LazyLock;

use boute_spec::catalog::{Gpu, Model, Precision, Source};
use boute_spec::digest::sha256_hex;
use serde::{Deserialize, Serialize};

use crate::interval::{Kind, Spread};
use crate::kernels::{Collective, DecodeAttention, ExpertGemm, Gemm, Hardware, PrefillAttention, Send};
use crate::replica::Engine;

const FILE: &str = include_str!("../../../catalog/calibration.toml");

/// Share of the link's bandwidth that a collective reaches where nobody measured it.
const ASSUMED_LINK_EFFICIENCY: f64 = 0.6;

/// Constants and the mean relative error of their fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fitted<T> {
    /// The constants.
    #[serde(flatten)]
    pub constants: T,
    /// Mean |predicted/measured − 1| over the fitted points.
    pub error: f64,
}

/// Matrix products by the precision they are computed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByPrecision<T> {
    /// 16-bit.
    pub bf16: Fitted<T>,
    /// 8-bit, where the GPU has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp8: Option<Fitted<T>>,
    /// 4-bit, where the GPU has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp4: Option<Fitted<T>>,
    /// 4-bit weights, 16-bit arithmetic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_only: Option<Fitted<T>>,
}

/// Attention by head width (64, or 128 and all else) and, for decoding, width of the cache's elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Decoding, 16-bit cache, heads of 128.
    pub decode_bf16: Fitted<DecodeAttention>,
    /// Decoding, 8-bit cache, heads of 128.
    pub decode_fp8: Option<Fitted<DecodeAttention>>,
    /// Decoding, 16-bit cache, heads of 64.
    pub decode_bf16_64: Option<Fitted<DecodeAttention>>,
    /// Decoding, 8-bit cache, heads of 64.
    pub decode_fp8_64: Option<Fitted<DecodeAttention>>,
    /// Prompts, heads of 128.
    pub prefill: Fitted<PrefillAttention>,
    /// Prompts, heads of 64.
    pub prefill_64: Option<Fitted<PrefillAttention>>,
}

/// One measured system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Its name, as in [`Gpu::calibration`].
    pub name: String,
    /// The GPU type it was measured on, as in [`Gpu::name`].
    pub gpu: String,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Dense matrix products.
    pub gemm: ByPrecision<Gemm>,
    /// Routed experts.
    pub experts: ByPrecision<ExpertGemm>,
    /// Attention.
    pub attention: Attention,
    /// All-reduce of the engine (custom kernel, in a CUDA graph) over 2, 4 and 8 GPUs.
    pub all_reduce: [Fitted<Collective>; 3],
    /// All-reduce of NCCL over 2, 4 and 8 GPUs.
    pub nccl: [Fitted<Collective>; 3],
    /// All-to-all of NCCL over 2, 4 and 8 GPUs.
    pub exchange: [Fitted<Collective>; 3],
}

/// Sends between GPUs, over any link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sends {
    /// Inside a node.
    pub in_node: Fitted<Send>,
    /// From node to node.
    pub across_nodes: Fitted<Send>,
}

/// How operators add up to a step: fitted end to end over all engines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// Share of the fixed time of an all-reduce that shows: the rest is fused away.
    pub all_reduce_alpha: f64,
    /// Passes over the activations in norms, activation functions and rotary embedding.
    pub elementwise: f64,
    /// Per layer and step, in microseconds.
    pub layer_us: f64,
    /// Per layer with experts and step, in microseconds, on top.
    pub expert_layer_us: f64,
    /// How much slower experts compute in an engine than alone.
    pub expert_compute: f64,
    /// Share of the operator tables' uneven load of ranks that real traffic has.
    pub expert_skew: f64,
    /// Fixed time of an exchange of tokens between ranks, in microseconds.
    pub exchange_us: f64,
    /// Launch time per dense layer of a prompt's first step, in milliseconds.
    pub layer_launch_ms: f64,
}

/// What one engine adds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineOverhead {
    /// Per step, in microseconds.
    pub step_us: f64,
    /// Per request, in milliseconds: protocol, tokenising, load generator.
    pub request_ms: f64,
    /// Share of requests that arrive with the initial burst of a closed-loop measurement.
    pub burst: f64,
    /// Launch time per layer with experts of a prompt's first step, in milliseconds.
    pub expert_layer_launch_ms: f64,
    /// Share of the time to quantise activations that shows: none where scales are static and the pass is fused.
    pub quantise: f64,
    /// Share of the wait for the next of the running requests to end that a new request has at full batch.
    pub slot_wait: f64,
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engines {
    /// vLLM.
    pub vllm: EngineOverhead,
    /// `SGLang`.
    pub sglang: EngineOverhead,
    /// TensorRT-LLM from 1.1.
    pub trtllm: EngineOverhead,
    /// TensorRT-LLM 1.0.
    pub trtllm_1_0: EngineOverhead,
}

/// How far off predictions of one kind may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// `dense` or `moe`.
    pub class: String,
    /// Name of the engine.
    pub engine: String,
    /// Name of the system whose kernels are used.
    pub gpu: String,
    /// Whether these were measured on the GPU type itself.
    pub source: Source,
    /// From held-out series.
    pub spread: Spread,
}

/// All constants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Of the file format.
    pub version: u32,
    /// How operators add up.
    pub stack: Stack,
    /// What engines add.
    pub engine: Engines,
    /// Sends between pipeline stages.
    pub send: Sends,
    /// How far predictions are off.
    pub interval: Vec<Interval>,
    /// Measured systems.
    pub system: Vec<System>,
}

/// The constants that hold for one model on one GPU type.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSet {
    /// Dense matrix products of the layers, and the hardware they run on.
    pub gemm: (Gemm, Hardware),
    /// 16-bit matrix products: output head, expert routing.
    pub head: (Gemm, Hardware),
    /// Routed experts.
    pub experts: (ExpertGemm, Hardware),
    /// Decode attention.
    pub decode: DecodeAttention,
    /// Prefill attention.
    pub prefill: PrefillAttention,
    /// All-reduce of the engine over 2, 4 and 8 GPUs.
    pub all_reduce: [Collective; 3],
    /// All-reduce of NCCL, which engines turn to for large messages.
    pub nccl: [Collective; 3],
    /// All-to-all of NCCL.
    pub exchange: [Collective; 3],
    /// Measured on this GPU type, or taken over from another.
    pub source: Source,
}

static BUILTIN: LazyLock<Calibration> =
    LazyLock::new(|| toml::from_str(FILE).unwrap_or_else(|error| panic!("calibration.toml: {error}")));

impl Engines {
    /// What `engine` adds.
    pub const fn of(&self, engine: Engine) -> EngineOverhead {
        match engine {
            Engine::Vllm => self.vllm,
            Engine::Sglang => self.sglang,
            Engine::TrtLlm => self.trtllm,
            Engine::TrtLlm10 => self.trtllm_1_0,
        }
    }
}

impl<T: Copy> ByPrecision<T> {
    /// The kernel that computes weights of `precision`, and the peak it is measured against. Weights narrower than the
    /// GPU's units, or than anything measured, are widened to 16 bits on the way.
    fn of(&self, precision: Precision, gpu: &Gpu) -> (T, f64) {
        let wide = (self.bf16.constants, gpu.bf16_flops);
        let narrow = |kernel: Option<Fitted<T>>, peak: Option<f64>| {
            kernel.zip(peak).map(|(kernel, peak)| (kernel.constants, peak))
        };
        let weight_only = || narrow(self.weight_only, Some(gpu.bf16_flops));
        match precision {
            Precision::Bf16 => None,
            Precision::Fp8 => narrow(self.fp8, gpu.fp8_flops),
            Precision::Nvfp4 => narrow(self.fp4, gpu.fp4_flops).or_else(weight_only),
            Precision::Int4 => weight_only(),
        }
        .unwrap_or(wide)
    }
}

impl Attention {
    fn decode(&self, head_dim: u32, cache_bytes: u32) -> DecodeAttention {
        let narrow = cache_bytes == 1;
        let of_64 = if narrow { self.decode_fp8_64 } else { self.decode_bf16_64 };
        let of_128 = if narrow { self.decode_fp8 } else { None };
        (if head_dim == 64 { of_64 } else { None }).or(of_128).unwrap_or(self.decode_bf16).constants
    }

    fn prefill(&self, head_dim: u32) -> PrefillAttention {
        (if head_dim == 64 { self.prefill_64 } else { None }).unwrap_or(self.prefill).constants
    }
}

impl Calibration {
    /// The constants compiled in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// SHA-256 of the constants compiled in.
    pub fn digest() -> String {
        sha256_hex(FILE.as_bytes())
    }

    /// The same for clients long out of step, of which none arrive together.
    #[must_use]
    pub fn without_bursts(&self) -> Self {
        let steady = |engine: EngineOverhead| EngineOverhead { burst: 0.0, ..engine };
        let Engines { vllm, sglang, trtllm, trtllm_1_0 } = self.engine;
        let engine = Engines {
            vllm: steady(vllm),
            sglang: steady(sglang),
            trtllm: steady(trtllm),
            trtllm_1_0: steady(trtllm_1_0),
        };
        Self { engine, ..self.clone() }
    }

    /// Where the kernels of `gpu` come from: its own measurements, or those of another system.
    ///
    /// # Panics
    /// If a catalogue entry names an unknown system, which a test rules out.
    pub fn source(&self, gpu: &Gpu) -> Source {
        self.system_of(gpu).1
    }

    /// How far off predictions of `kind` may be.
    ///
    /// # Panics
    /// If there is no interval for it, which a test rules out.
    pub fn spread(&self, kind: Kind<'_>) -> Spread {
        let found = self.interval.iter().find(|it| {
            it.class == kind.class
                && it.engine == kind.engine
                && it.gpu == kind.gpu
                && it.source == kind.source
        });
        found.unwrap_or_else(|| panic!("no interval for {kind:?}")).spread
    }

    fn system_of(&self, gpu: &Gpu) -> (&System, Source) {
        let system = self.system.iter().find(|system| system.name == gpu.calibration);
        let system = system.unwrap_or_else(|| panic!("no calibration `{}`", gpu.calibration));
        (system, if system.gpu == gpu.name { Source::Fitted } else { Source::Assumed })
    }

    /// The kernels of `model` on `gpu`. A GPU type without measurements takes over the efficiencies of the system it
    /// names, on its own peaks and link.
    ///
    /// # Panics
    /// If a catalogue entry names an unknown system, which a test rules out.
    pub fn kernels(&self, model: &Model, gpu: &Gpu) -> KernelSet {
        let (system, source) = self.system_of(gpu);
        let hardware = |peak_flops| Hardware {
            peak_flops,
            bandwidth_bytes_per_s: gpu.bandwidth_bytes_per_s,
            sms: f64::from(system.sms),
        };
        let (gemm, peak) = system.gemm.of(model.precision, gpu);
        let (experts, expert_peak) = system.experts.of(model.experts(), gpu);
        let on_link = |measured: Fitted<Collective>| on_link(measured.constants, gpu, source);
        let head_dim = if model.shape.mla.is_some() { 128 } else { model.shape.head_dim };
        KernelSet {
            gemm: (gemm, hardware(peak)),
            head: (system.gemm.bf16.constants, hardware(gpu.bf16_flops)),
            experts: (experts, hardware(expert_peak)),
            decode: system.attention.decode(head_dim, model.kv_bytes_per_element),
            prefill: system.attention.prefill(head_dim),
            all_reduce: system.all_reduce.map(on_link),
            nccl: system.nccl.map(on_link),
            exchange: system.exchange.map(on_link),
            source,
        }
    }
}

/// A collective over the links of `gpu`: as measured, unless the host's own link is known, or the measurements are of
/// another GPU type with a faster one.
fn on_link(measured: Collective, gpu: &Gpu, source: Source) -> Collective {
    let reached = gpu.link_bytes_per_s * ASSUMED_LINK_EFFICIENCY / 1e9;
    let bus_gb_per_s = match source {
        _ if gpu.link_given => reached,
        Source::Assumed => measured.bus_gb_per_s.min(reached),
        Source::Measured | Source::Fitted => measured.bus_gb_per_s,
    };
    Collective { bus_gb_per_s, ..measured }
}

#[cfg(test)]
mod tests {
    use boute_spec::catalog::Catalog;

    use super::*;

    #[test]
    fn every_gpu_of_the_catalogue_has_constants_below_peak() {
        let model = Catalog::builtin().model("llama-3.1-8b").unwrap();
        for gpu in Catalog::builtin().gpus() {
            for precision in [Precision::Bf16, Precision::Fp8, Precision::Int4, Precision::Nvfp4] {
                let model = Model { precision, ..model.clone() };
                let of = Calibration::builtin().kernels(&model, gpu);
                let (gemm, experts) = (of.gemm.0, of.experts.0);
                assert!(
                    gemm.mfu <= 1.0
                        && gemm.bandwidth <= 1.0
                        && gemm.overlap.serial + gemm.overlap.blend <= 1.0 + 1e-12,
                    "{}",
                    gpu.name
                );
                assert!(experts.mfu <= 1.0 && experts.bandwidth <= 1.0, "{}", gpu.name);
                assert!(of.decode.bandwidth <= 1.0 && of.prefill.mfu <= 1.0, "{}", gpu.name);
            }
        }
        assert!(Calibration::builtin().stack.expert_compute >= 1.0);
        assert_eq!(Calibration::builtin().version, 2);
    }

    #[test]
    fn only_measured_gpus_count_as_fitted() {
        let source = |name| Calibration::builtin().source(Catalog::builtin().gpu(name).unwrap());
        for name in ["A100-80GB", "L40S", "H100-SXM", "H200-SXM", "B200-SXM", "RTX-PRO-6000"] {
            assert_eq!(source(name), Source::Fitted, "{name}");
        }
        for name in ["A100-80GB-PCIe", "L4", "H100-PCIe", "MI300X", "RTX-4090", "L40"] {
            assert_eq!(source(name), Source::Assumed, "{name}");
        }
    }
}
