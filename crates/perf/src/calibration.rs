//! How far real kernels stay below peak, and what an engine adds: `catalog/calibration.toml`, compiled in.

use std::sync::LazyLock;

use boute_spec::catalog::{Gpu, Precision, Source};
use boute_spec::digest::sha256_hex;
use serde::Deserialize;

const FILE: &str = include_str!("../../../catalog/calibration.toml");

/// Share of the link's bandwidth an all-reduce reaches where nobody measured it.
const ASSUMED_LINK_EFFICIENCY: f64 = 0.6;

/// Soft roofline of a GEMM: `t0 + ((F/(peak·mfu))^q + (B/(bandwidth·efficiency))^q)^(1/q)`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Reached share of the peak rate.
    pub mfu: f64,
    /// Reached share of the peak bandwidth.
    pub bandwidth: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
    /// Sharpness of the corner; infinite would be the sharp roofline.
    pub q: f64,
}

/// Decode attention: bound by reading the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeAttention {
    /// Reached share of the peak bandwidth.
    pub bandwidth: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
}

/// Prefill attention: bound by compute.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillAttention {
    /// Reached share of the peak bf16 rate.
    pub mfu: f64,
    /// Fixed time in microseconds.
    pub t0_us: f64,
}

/// All-reduce over 2, 4 and 8 GPUs of a node: `alpha + 2(t−1)/t · bytes / bus`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduce {
    /// Fixed time in microseconds.
    pub alpha_us: [f64; 3],
    /// Bus bandwidth in GB/s.
    pub bus_gb_per_s: [f64; 3],
}

/// One measured system.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Its name, as in [`Gpu::calibration`].
    pub name: String,
    /// 16-bit GEMM.
    pub gemm_bf16: Gemm,
    /// 8-bit GEMM, where the GPU has it.
    pub gemm_fp8: Option<Gemm>,
    /// 4-bit GEMM, where the GPU has it.
    pub gemm_fp4: Option<Gemm>,
    /// Decode attention.
    pub decode_attention: DecodeAttention,
    /// Prefill attention.
    pub prefill_attention: PrefillAttention,
    /// All-reduce.
    pub all_reduce: AllReduce,
}

/// What the engine adds to the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineOverhead {
    /// Per step, in microseconds.
    pub step_us: f64,
    /// Per layer and step, beyond the kernels modelled here, in microseconds.
    pub layer_us: f64,
    /// Per request, in milliseconds: protocol, tokenising.
    pub request_ms: f64,
}

/// All constants.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    version: u32,
    system: Vec<System>,
    /// What the engine adds.
    pub engine: EngineOverhead,
}

/// The constants that hold for one GPU type.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuCalibration {
    /// GEMM of the asked precision.
    pub gemm: Gemm,
    /// Peak rate the GEMM is measured against.
    pub peak_flops: f64,
    /// Decode attention.
    pub decode_attention: DecodeAttention,
    /// Prefill attention.
    pub prefill_attention: PrefillAttention,
    /// All-reduce: seconds and bytes per second, for 2, 4 and 8 GPUs.
    pub all_reduce: [(f64, f64); 3],
    /// Fitted on this GPU type, or taken over from another.
    pub source: Source,
}

static BUILTIN: LazyLock<Calibration> =
    LazyLock::new(|| toml::from_str(FILE).unwrap_or_else(|error| panic!("calibration.toml: {error}")));

impl Calibration {
    /// The constants compiled in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// SHA-256 of the constants compiled in.
    pub fn digest() -> String {
        sha256_hex(FILE.as_bytes())
    }

    /// The constants for `gpu` at `precision`. A GPU type without measurements takes over the efficiencies of the
    /// system it names, on its own peaks and link. Weights narrower than the GPU's units compute in 16 bits.
    ///
    /// # Panics
    /// If a catalogue entry names an unknown system, which a test rules out.
    pub fn of(&self, gpu: &Gpu, precision: Precision) -> GpuCalibration {
        let system = self.system.iter().find(|system| system.name == gpu.calibration);
        let system = system.unwrap_or_else(|| panic!("no calibration `{}`", gpu.calibration));
        let narrow = match precision {
            Precision::Fp8 => system.gemm_fp8.zip(gpu.fp8_flops),
            Precision::Nvfp4 => system.gemm_fp4.zip(gpu.fp4_flops),
            Precision::Bf16 | Precision::Int4 => None,
        };
        let (gemm, peak_flops) = narrow.unwrap_or((system.gemm_bf16, gpu.bf16_flops));
        let own =
            gpu.name.to_lowercase().replace('-', "_").starts_with(system.name.trim_end_matches("_server"))
                || (gpu.name == "A100-80GB" && system.name == "a100_sxm");
        let link = gpu.link_bytes_per_s * ASSUMED_LINK_EFFICIENCY;
        let all_reduce = [0, 1, 2].map(|index| {
            let measured = system.all_reduce.bus_gb_per_s[index] * 1e9;
            let bus = if own { measured } else { measured.min(link) };
            (system.all_reduce.alpha_us[index] * 1e-6, bus)
        });
        GpuCalibration {
            gemm,
            peak_flops,
            decode_attention: system.decode_attention,
            prefill_attention: system.prefill_attention,
            all_reduce,
            source: if own { Source::Fitted } else { Source::Assumed },
        }
    }
}

#[cfg(test)]
mod tests {
    use boute_spec::catalog::Catalog;

    use super::*;

    #[test]
    fn every_gpu_of_the_catalogue_has_constants_below_peak() {
        for gpu in Catalog::builtin().gpus() {
            for precision in [Precision::Bf16, Precision::Fp8, Precision::Int4, Precision::Nvfp4] {
                let of = Calibration::builtin().of(gpu, precision);
                assert!(of.gemm.mfu <= 1.0 && of.gemm.bandwidth <= 1.0 && of.gemm.q >= 1.0, "{}", gpu.name);
                assert!(
                    of.decode_attention.bandwidth <= 1.0 && of.prefill_attention.mfu <= 1.0,
                    "{}",
                    gpu.name
                );
            }
        }
        assert_eq!(Calibration::builtin().version, 1);
    }

    #[test]
    fn only_measured_gpus_count_as_fitted() {
        let source =
            |name| Calibration::builtin().of(Catalog::builtin().gpu(name).unwrap(), Precision::Bf16).source;
        for name in ["A100-80GB", "L40S", "H100-SXM", "H200-SXM", "B200-SXM", "RTX-PRO-6000"] {
            assert_eq!(source(name), Source::Fitted, "{name}");
        }
        for name in ["A100-80GB-PCIe", "L4", "H100-PCIe", "MI300X", "RTX-4090", "L40"] {
            assert_eq!(source(name), Source::Assumed, "{name}");
        }
    }
}
