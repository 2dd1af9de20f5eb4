//! GPUs, models and prices: what can be rented and what can run on it.

mod builtin;
mod hf;

pub use builtin::{Catalog, DefaultPrice, UnknownName};
pub use hf::ConfigError;

pub(crate) use builtin::nearest;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, BytesPerSecond, UsdPerHour};

/// Where a number comes from, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Measured on the thing itself.
    Measured,
    /// Computed by a model fitted to measurements of similar things.
    Fitted,
    /// From a data sheet or a guess.
    Assumed,
}

/// One type of GPU. Peak figures, dense (no structured sparsity).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Catalogue name, such as `H100-SXM`.
    pub name: String,
    /// Other names people use for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Memory of one GPU.
    pub memory_bytes: Bytes,
    /// Peak memory bandwidth.
    pub bandwidth_bytes_per_s: f64,
    /// Peak dense bf16 (or fp16 where there is no bf16) rate.
    pub bf16_flops: f64,
    /// Peak dense fp8 rate; `None` if the GPU has no fp8 units.
    #[serde(default)]
    pub fp8_flops: Option<f64>,
    /// Peak dense fp4 rate; `None` if the GPU has no fp4 units.
    #[serde(default)]
    pub fp4_flops: Option<f64>,
    /// GPU-to-GPU bandwidth inside a node, one direction, per GPU (`NVLink` or `PCIe`).
    pub link_bytes_per_s: f64,
    /// Whether `link_bytes_per_s` is `NVLink` (or the vendor's equal); `PCIe` otherwise.
    pub nvlink: bool,
    /// Whether `link_bytes_per_s` is this host's own, given by the user: it then stands above what was measured on another
    /// host (behind `PCIe` switches and sockets the same GPUs exchange ten times less, or more).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub link_given: bool,
    /// Network bandwidth between nodes, one direction, per GPU.
    pub network_bytes_per_s: f64,
    /// Largest number of GPUs in one node.
    pub gpus_per_node: u32,
    /// Board power.
    pub power_w: f64,
    /// CUDA compute capability times ten (90 for Hopper); `None` for other vendors.
    #[serde(default)]
    pub sm_version: Option<u32>,
    /// The system whose operator efficiencies stand for this GPU (`h100_sxm`, `l40s`, …), see `perf`.
    pub calibration: String,
    /// Where the numbers come from: data set or data sheet, and whether it was checked.
    pub source: String,
}

impl Gpu {
    /// The same with this host's own link between the GPUs of a node, if one is given.
    #[must_use]
    pub fn with_link(mut self, link: Option<BytesPerSecond>) -> Self {
        if let Some(link) = link {
            (self.link_bytes_per_s, self.link_given) = (link.get(), true);
        }
        self
    }
}

/// How weights are stored. A quantised variant is a model of its own, with its own quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 16-bit weights and arithmetic.
    Bf16,
    /// 8-bit floating-point weights and GEMMs.
    Fp8,
    /// 4-bit integer weights with group scales, 16-bit arithmetic (AWQ, GPTQ).
    Int4,
    /// 4-bit floating-point weights and GEMMs (Blackwell).
    Nvfp4,
}

impl Precision {
    /// Bytes of memory per weight, scales included (group of 128 for int4, 16 for nvfp4).
    pub const fn bytes_per_weight(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
            Self::Int4 => 0.515_625,
            Self::Nvfp4 => 0.5625,
        }
    }
}

/// Mixture of experts: which layers have experts and how large these are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// Routed experts per layer.
    pub experts: u32,
    /// Routed experts used per token.
    pub experts_per_token: u32,
    /// Hidden width of one routed expert.
    pub expert_ffn: u32,
    /// Hidden width of all shared experts together; 0 if there are none.
    pub shared_ffn: u32,
    /// Leading layers which are dense.
    pub dense_layers: u32,
}

/// Multi-head latent attention (DeepSeek): the KV cache holds one compressed vector per token and layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mla {
    /// Rank of the compressed key and value.
    pub kv_lora_rank: u32,
    /// Rank of the compressed query; 0 if the query is not compressed.
    pub q_lora_rank: u32,
    /// Head width that carries rotary position.
    pub rope_head_dim: u32,
    /// Head width of keys without position.
    pub nope_head_dim: u32,
    /// Head width of values.
    pub value_head_dim: u32,
}

/// Some layers attend only to the last `window` tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlidingWindow {
    /// Tokens seen by a windowed layer.
    pub window: u32,
    /// How many layers are windowed.
    pub layers: u32,
}

/// Some layers replace attention by a recurrence over a state of fixed size (gated delta rule and its kin): no KV cache, one
/// state per sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearAttention {
    /// How many layers do so.
    pub layers: u32,
    /// Key (and query) heads.
    pub key_heads: u32,
    /// Value heads.
    pub value_heads: u32,
    /// Width of a key head.
    pub key_dim: u32,
    /// Width of a value head.
    pub value_dim: u32,
}

impl LinearAttention {
    /// Outputs of the input projection: queries, keys, values and the gate.
    pub fn projected(&self) -> f64 {
        2.0 * f64::from(self.key_heads * self.key_dim) + 2.0 * f64::from(self.value_heads * self.value_dim)
    }

    /// Elements of the state of one sequence in one layer.
    pub fn state(&self) -> f64 {
        f64::from(self.value_heads) * f64::from(self.key_dim) * f64::from(self.value_dim)
    }
}

/// The shape of a transformer, as a Hugging Face `config.json` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Hidden width of a dense feed-forward block.
    pub ffn: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Whether the output head shares the embedding's weights.
    pub tied_embeddings: bool,
    /// Longest context the model was made for.
    pub max_context: u32,
    /// Experts, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<Moe>,
    /// Latent attention, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<Mla>,
    /// Windowed layers, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
    /// Layers without a KV cache, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear_attention: Option<LinearAttention>,
}

impl ModelShape {
    /// Weights, in number: embeddings, attention, feed-forward (all experts) and output head; norms are left out.
    pub fn parameters(&self) -> f64 {
        let dense_layers = f64::from(self.dense_layers());
        let moe_layers = f64::from(self.layers) - dense_layers;
        let hidden = f64::from(self.hidden);
        let beside_experts = self
            .moe
            .as_ref()
            .map_or(0.0, |moe| 3.0 * hidden * f64::from(moe.shared_ffn) + hidden * f64::from(moe.experts));
        self.embedding_parameters()
            + f64::from(self.attention_layers()) * self.attention_parameters()
            + self.linear_attention.as_ref().map_or(0.0, |linear| {
                let out = f64::from(linear.value_heads * linear.value_dim);
                f64::from(linear.layers) * hidden * (linear.projected() + out)
            })
            + dense_layers * 3.0 * hidden * f64::from(self.ffn)
            + moe_layers * beside_experts
            + self.expert_parameters()
    }

    /// Weights of the embeddings and, unless it is tied to them, the output head.
    pub fn embedding_parameters(&self) -> f64 {
        let copies = if self.tied_embeddings { 1.0 } else { 2.0 };
        copies * f64::from(self.vocab) * f64::from(self.hidden)
    }

    /// Weights of all routed experts.
    pub fn expert_parameters(&self) -> f64 {
        self.moe.as_ref().map_or(0.0, |moe| {
            let each = 3.0 * f64::from(self.hidden) * f64::from(moe.expert_ffn);
            f64::from(self.layers - self.dense_layers()) * f64::from(moe.experts) * each
        })
    }

    /// Layers whose feed-forward block is dense.
    pub fn dense_layers(&self) -> u32 {
        self.moe.as_ref().map_or(self.layers, |moe| moe.dense_layers.min(self.layers))
    }

    /// Layers with a KV cache.
    pub fn attention_layers(&self) -> u32 {
        self.layers - self.linear_attention.as_ref().map_or(0, |linear| linear.layers.min(self.layers))
    }

    /// Weights of one layer's attention.
    pub fn attention_parameters(&self) -> f64 {
        let (hidden, heads) = (f64::from(self.hidden), f64::from(self.heads));
        let Some(mla) = &self.mla else {
            let width = f64::from(self.head_dim);
            return hidden * (heads + 2.0 * f64::from(self.kv_heads)) * width + heads * width * hidden;
        };
        let (rope, nope) = (f64::from(mla.rope_head_dim), f64::from(mla.nope_head_dim));
        let (value, rank) = (f64::from(mla.value_head_dim), f64::from(mla.kv_lora_rank));
        let query = match mla.q_lora_rank {
            0 => hidden * heads * (nope + rope),
            q => f64::from(q) * (hidden + heads * (nope + rope)),
        };
        query + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    }
}

/// A model variant that can be served: a shape and the precision of its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name, unique within a spec.
    pub id: String,
    /// Where the weights are: Hugging Face id or path, as the engine takes it.
    pub weights: String,
    /// Shape.
    pub shape: ModelShape,
    /// Precision of the weights; embeddings and output head are 16-bit all the same.
    pub precision: Precision,
    /// Precision of the routed experts, where it differs (gpt-oss, Kimi K2.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_precision: Option<Precision>,
    /// Bytes per element of the KV cache: 2, or 1 for an fp8 cache.
    pub kv_bytes_per_element: u32,
}

impl Model {
    /// The same in `dtype`, experts too, if one is given.
    #[must_use]
    pub fn in_dtype(mut self, dtype: Option<Precision>) -> Self {
        if let Some(dtype) = dtype {
            (self.precision, self.expert_precision) = (dtype, None);
        }
        self
    }

    /// Precision of the routed experts.
    pub fn experts(&self) -> Precision {
        self.expert_precision.unwrap_or(self.precision)
    }
}

/// One row of a price list: a whole instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstancePrice {
    /// Cloud, such as `aws`.
    pub cloud: String,
    /// Instance type.
    pub instance_type: String,
    /// GPU type, by catalogue name.
    pub gpu: String,
    /// GPUs of the instance; an instance is rented whole.
    pub gpus: u32,
    /// On demand, whole instance.
    pub usd_per_hour: UsdPerHour,
    /// Spot, whole instance, if known.
    pub spot_usd_per_hour: Option<UsdPerHour>,
    /// Region; `all` where one price holds everywhere.
    pub region: String,
    /// Where the price was seen.
    pub source: String,
    /// When, as YYYY-MM-DD; empty if not known.
    pub date: String,
}
