//! Whether a replica fits in memory, and how much KV cache is left.
//!
//! ```text
//! KV tokens = floor((M·u − W/p − R) / (k·⌈L/p⌉/t')), the same on every GPU of the replica
//! ```
//! | symbol | meaning | unit |
//! |---|---|---|
//! | M, u | memory of a GPU, share the engine may fill | B, – |
//! | W, t, p | weights on a GPU of a replica without stages, tensor and pipeline parallelism | B, –, – |
//! | R | activations, CUDA graphs, and communication buffers where t > 1 | B |
//! | k, L | KV cache of one token in one layer, layers that have one | B, – |
//! | t' | GPUs over which the cache is divided: min(t, KV heads); 1 for latent attention | – |
//!
//! Layers are divided over t GPUs, routed experts over t × attention data parallelism; embeddings and output head are
//! 16-bit at any precision.
//!
//! Source: vLLM's block allocation; R from aiconfigurator's vLLM memory model (3.5 GiB and 342–392 MiB).

use boute_spec::catalog::{ModelShape, Precision};
use boute_spec::plan::EngineFlags;
use boute_spec::units::Bytes;

use crate::ReplicaConfig;

/// Tokens in one block of the KV cache.
pub const BLOCK_TOKENS: u64 = 16;

const ACTIVATION_BYTES: f64 = 3.5 * 1_073_741_824.0;
const COMMUNICATION_BYTES: f64 = 0.36 * 1_073_741_824.0;

/// How memory is divided on each GPU of a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryFit {
    /// Weights on one GPU.
    pub weights_bytes: Bytes,
    /// KV cache of one token on one GPU.
    pub kv_bytes_per_token: f64,
    /// Tokens the KV cache of the replica holds, a multiple of [`BLOCK_TOKENS`].
    pub kv_cache_tokens: u64,
}

/// Why a replica cannot run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Not enough memory.
    #[error("`{model}` at TP {tp} × PP {pp} needs {need_gib:.1} GiB on each `{gpu}`, which can fill {have_gib:.1} GiB{}", way_out(*.fits_at))]
    OutOfMemory {
        /// Model id.
        model: String,
        /// GPU type.
        gpu: String,
        /// Tensor parallelism.
        tp: u32,
        /// Pipeline parallelism.
        pp: u32,
        /// Weights, reserve and one longest sequence.
        need_gib: f64,
        /// What the engine may fill.
        have_gib: f64,
        /// The least tensor parallelism at which it fits in a node.
        fits_at: Option<u32>,
    },
    /// The parallelism cannot be.
    #[error("`{model}` cannot run at TP {tp} × PP {pp} on `{gpu}`: {why}")]
    Parallelism {
        /// Model id.
        model: String,
        /// GPU type.
        gpu: String,
        /// Tensor parallelism.
        tp: u32,
        /// Pipeline parallelism.
        pp: u32,
        /// Why.
        why: &'static str,
    },
}

fn way_out(tp: Option<u32>) -> String {
    tp.map_or_else(
        || "; it fits on no number of them in one node: allow a larger GPU, or narrower weights".into(),
        |tp| format!("; it fits at TP {tp}"),
    )
}

/// KV cache bytes of one token in one layer, whole model: 2·g·d elements, or rank + rope for latent attention.
pub(crate) fn kv_bytes_per_layer(shape: &ModelShape, kv_bytes_per_element: u32) -> f64 {
    let elements = match &shape.mla {
        Some(mla) => mla.kv_lora_rank + mla.rope_head_dim,
        None => 2 * shape.kv_heads * shape.head_dim,
    };
    f64::from(elements * kv_bytes_per_element)
}

/// GPUs over which the KV cache of a layer is divided.
pub(crate) fn kv_shards(shape: &ModelShape, tp: u32) -> u32 {
    if shape.mla.is_some() { 1 } else { tp.min(shape.kv_heads) }
}

/// Divides the memory of a replica.
///
/// # Errors
/// If the parallelism cannot be, or the weights and one sequence of `max_model_len` tokens do not fit.
pub fn memory_fit(config: &ReplicaConfig) -> Result<MemoryFit, FitError> {
    let ReplicaConfig { model, gpu, tp, pp, engine, .. } = config;
    let shape = &model.shape;
    let parallelism =
        |why| FitError::Parallelism { model: model.id.clone(), gpu: gpu.name.clone(), tp: *tp, pp: *pp, why };
    if *tp == 0 || *pp == 0 {
        return Err(parallelism("both are at least 1"));
    }
    if *tp > gpu.gpus_per_node {
        return Err(parallelism("tensor parallelism stays inside a node"));
    }
    if !tp.is_power_of_two() || *tp > 8 {
        return Err(parallelism("tensor parallelism is 1, 2, 4 or 8"));
    }
    if shape.heads % tp != 0 {
        return Err(parallelism("the heads cannot be divided evenly"));
    }
    if *pp > shape.layers {
        return Err(parallelism("there are fewer layers than stages"));
    }
    let fit = divide(config);
    let (fixed, have) = (reserved(config) + fit.weights_bytes.0 as f64, fillable(config));
    let MemoryFit { kv_bytes_per_token, kv_cache_tokens, .. } = fit;
    if kv_cache_tokens < u64::from(engine.max_model_len) {
        let gib = |bytes: f64| Bytes(bytes as u64).gib();
        return Err(FitError::OutOfMemory {
            model: model.id.clone(),
            gpu: gpu.name.clone(),
            tp: *tp,
            pp: *pp,
            need_gib: gib(fixed + kv_bytes_per_token * f64::from(engine.max_model_len)),
            have_gib: gib(have),
            fits_at: (*tp < 8).then(|| wider_fit(config)).flatten(),
        });
    }
    Ok(fit)
}

/// Bytes of a GPU that the engine may fill.
fn fillable(config: &ReplicaConfig) -> f64 {
    config.gpu.memory_bytes.0 as f64 * config.engine.gpu_memory_utilization
}

/// Bytes that neither weights nor cache may have.
fn reserved(config: &ReplicaConfig) -> f64 {
    ACTIVATION_BYTES + if config.tp * config.dp > 1 { COMMUNICATION_BYTES } else { 0.0 }
}

/// How memory is divided, whether or not anything is left for the cache.
pub(crate) fn divide(config: &ReplicaConfig) -> MemoryFit {
    let ReplicaConfig { model, tp, pp, dp, .. } = config;
    let shape = &model.shape;
    let (t, stages) = (f64::from(*tp), f64::from(*pp));
    let experts = shape.expert_parameters();
    let embeddings = shape.embedding_parameters();
    let layers = shape.parameters() - experts - embeddings;
    let weights = (layers * model.precision.bytes_per_weight() / t
        + embeddings * Precision::Bf16.bytes_per_weight() / t
        + experts * model.experts().bytes_per_weight() / (t * f64::from(*dp)))
        / stages;
    let kv_per_layer =
        kv_bytes_per_layer(shape, model.kv_bytes_per_element) / f64::from(kv_shards(shape, *tp));
    let kv_bytes_per_token = kv_per_layer * f64::from(shape.attention_layers().div_ceil(*pp));
    let left = fillable(config) - reserved(config) - weights;
    let blocks = (left / (kv_bytes_per_token * BLOCK_TOKENS as f64)).max(0.0) as u64;
    let kv_cache_tokens = blocks * BLOCK_TOKENS * u64::from(*dp);
    MemoryFit { weights_bytes: Bytes(weights as u64), kv_bytes_per_token, kv_cache_tokens }
}

/// The least larger tensor parallelism at which `config` fits.
fn wider_fit(config: &ReplicaConfig) -> Option<u32> {
    let wider = ReplicaConfig { tp: config.tp * 2, ..config.clone() };
    match memory_fit(&wider) {
        Ok(_) => Some(wider.tp),
        Err(FitError::OutOfMemory { fits_at, .. }) => fits_at,
        Err(FitError::Parallelism { .. }) => None,
    }
}

/// vLLM's defaults for a GPU of this size, for sequences of up to `longest_tokens` (rounded up to a power of two, at
/// least 2,048, at most what the model was made for).
///
/// Source: vLLM's default batch sizes: 8,192 tokens and 1,024 sequences from 70 GiB up, A100 excepted; 2,048 and 256
/// elsewhere.
pub fn default_engine(
    gpu: &boute_spec::catalog::Gpu,
    shape: &ModelShape,
    longest_tokens: u32,
) -> EngineFlags {
    let large = gpu.memory_bytes.gib() >= 70.0 && !gpu.name.starts_with("A100");
    EngineFlags {
        max_num_seqs: if large { 1024 } else { 256 },
        max_num_batched_tokens: if large { 8192 } else { 2048 },
        gpu_memory_utilization: 0.9,
        max_model_len: longest_tokens
            .max(2048)
            .checked_next_power_of_two()
            .unwrap_or(u32::MAX)
            .min(shape.max_context),
        enable_prefix_caching: true,
    }
}

#[cfg(test)]
mod tests {
    use boute_spec::catalog::{Catalog, Precision};

    use super::*;

    fn config(model: &str, gpu: &str, tp: u32, pp: u32) -> ReplicaConfig {
        let (model, gpu) = (Catalog::builtin().model(model).unwrap(), Catalog::builtin().gpu(gpu).unwrap());
        let engine = default_engine(gpu, &model.shape, 16_384);
        ReplicaConfig::new(model.clone(), gpu.clone(), tp, pp, engine)
    }

    #[test]
    fn kv_bytes_are_the_published_ones() {
        // Per token, whole model: Llama-3-8B 131,072, Llama-3-70B 327,680, Qwen3-32B 262,144, DeepSeek-V3 70,272.
        for (id, bytes) in [
            ("llama-3.1-8b", 131_072.0),
            ("llama-3.1-70b", 327_680.0),
            ("qwen3-32b", 262_144.0),
            ("deepseek-v3", 70_272.0),
        ] {
            let shape = &Catalog::builtin().model(id).unwrap().shape;
            assert_eq!(kv_bytes_per_layer(shape, 2) * f64::from(shape.layers), bytes, "{id}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_numbers() {
        insta::assert_snapshot!(memory_fit(&config("llama-3.1-70b", "L40S", 1, 1)).unwrap_err(), @"`llama-3.1-70b` at TP 1 × PP 1 needs 139.9 GiB on each `L40S`, which can fill 40.5 GiB; it fits at TP 4");
        insta::assert_snapshot!(memory_fit(&config("llama-3.1-8b", "L40S", 3, 1)).unwrap_err(), @"`llama-3.1-8b` cannot run at TP 3 × PP 1 on `L40S`: tensor parallelism is 1, 2, 4 or 8");
        memory_fit(&config("llama-3.1-70b", "L40S", 4, 1)).unwrap();
        memory_fit(&config("llama-3.1-70b", "L40S", 2, 2)).unwrap();
        memory_fit(&config("llama-3.1-70b", "H100-SXM", 4, 1)).unwrap();
    }

    #[test]
    fn narrower_weights_leave_more_cache() {
        let mut config = config("llama-3.1-8b", "L40S", 1, 1);
        let tokens = |config: &ReplicaConfig| memory_fit(config).unwrap().kv_cache_tokens;
        let wide = tokens(&config);
        config.model.precision = Precision::Fp8;
        assert!(tokens(&config) > wide);
        assert_eq!(wide % BLOCK_TOKENS, 0);
    }
}
