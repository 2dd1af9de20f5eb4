//! Hugging Face `config.json` → [`ModelShape`].

use serde_json::{Map, Value};

use super::{LinearAttention, Mla, Model, ModelShape, Moe, Precision, SlidingWindow};

/// A `config.json` that does not describe a transformer we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {message}\n  help: {hint}")]
pub struct ConfigError {
    /// Name of the file.
    pub file: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The fields of a config; multimodal models nest those of the language model under `text_config`.
struct Fields<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn error(&self, message: String, hint: &str) -> ConfigError {
        ConfigError { file: self.file.into(), message, hint: hint.into() }
    }

    fn optional(&self, names: &[&str]) -> Option<u32> {
        let value = names.iter().find_map(|name| self.map.get(*name).filter(|value| !value.is_null()))?;
        u32::try_from(value.as_u64()?).ok()
    }

    fn required(&self, names: &[&str]) -> Result<u32, ConfigError> {
        self.optional(names).filter(|value| *value > 0).ok_or_else(|| {
            self.error(format!("no `{}`, or it is not a positive number", names[0]), NO_CONFIG)
        })
    }

    /// The architecture: `llama`, `gemma2`, `llama4_text`, …; empty if not stated.
    fn kind(&self) -> &str {
        self.map.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// How many layers `layer_types` says are of one kind; `None` without that list.
    fn layers_of(&self, kind: &str) -> Option<u32> {
        let types = self.map.get("layer_types")?.as_array()?;
        u32::try_from(types.iter().filter(|layer| *layer == kind).count()).ok()
    }
}

const NO_CONFIG: &str = "give the config.json of the model's Hugging Face repository";

impl ModelShape {
    /// Reads a `config.json`: the shape, and the precision in which the weights are published.
    ///
    /// # Errors
    /// If the text is not JSON, lacks a field without which nothing can be computed, or describes a model whose
    /// layers we cannot cost (state-space hybrids, Gemma 4).
    pub fn from_hf(file: &str, text: &str) -> Result<(Self, Precision), ConfigError> {
        let root: Value = serde_json::from_str(text).map_err(|error| ConfigError {
            file: file.into(),
            message: error.to_string(),
            hint: NO_CONFIG.into(),
        })?;
        let empty = Map::new();
        let root = root.as_object().unwrap_or(&empty);
        let map = root.get("text_config").and_then(Value::as_object).unwrap_or(root);
        let fields = Fields { file, map };
        refuse_hybrids(&fields)?;
        let hidden = fields.required(&["hidden_size"])?;
        let heads = fields.required(&["num_attention_heads"])?;
        let layers = fields.required(&["num_hidden_layers"])?;
        let moe = moe(&fields, layers)?;
        let tied = map.get("tie_word_embeddings").or_else(|| root.get("tie_word_embeddings"));
        // Where a config leaves it out, its architecture's default holds: tied for Gemma, not for the others.
        let tied = tied.and_then(Value::as_bool).unwrap_or(fields.kind().starts_with("gemma"));
        let shape = Self {
            layers,
            hidden,
            heads,
            kv_heads: fields.optional(&["num_key_value_heads"]).unwrap_or(heads),
            head_dim: fields.optional(&["head_dim"]).unwrap_or(hidden / heads),
            ffn: fields.required(&["intermediate_size_mlp", "intermediate_size", "moe_intermediate_size"])?,
            vocab: fields.required(&["vocab_size"])?,
            tied_embeddings: tied,
            max_context: fields.optional(&["max_position_embeddings", "context_window_size"]).unwrap_or(4096),
            moe,
            mla: mla(&fields)?,
            sliding_window: sliding_window(&fields, layers),
            linear_attention: linear_attention(&fields)?,
        };
        if shape.kv_heads == 0 || shape.head_dim == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
            let message = format!(
                "{heads} query heads of width {} cannot share {} key/value heads",
                shape.head_dim, shape.kv_heads
            );
            return Err(fields.error(message, NO_CONFIG));
        }
        Ok((shape, precision(&fields, root)?))
    }
}

impl Model {
    /// The model that a `config.json` describes, in `dtype` if given, else as published.
    ///
    /// # Errors
    /// As [`ModelShape::from_hf`].
    pub fn from_hf(
        id: &str,
        weights: &str,
        file: &str,
        text: &str,
        dtype: Option<Precision>,
    ) -> Result<Self, ConfigError> {
        let (shape, published) = ModelShape::from_hf(file, text)?;
        let expert_precision = (dtype.is_none() && quantises_only_experts(text)).then_some(published);
        Ok(Self {
            id: id.into(),
            weights: weights.into(),
            shape,
            precision: dtype.unwrap_or(if expert_precision.is_some() { Precision::Bf16 } else { published }),
            expert_precision,
            kv_bytes_per_element: 2,
        })
    }
}

/// Whether the checkpoint quantises only its experts: attention is named among what stays 16-bit.
fn quantises_only_experts(text: &str) -> bool {
    let root: Value = serde_json::from_str(text).unwrap_or_default();
    root.pointer("/quantization_config/modules_to_not_convert")
        .and_then(Value::as_array)
        .is_some_and(|kept| kept.iter().filter_map(Value::as_str).any(|name| name.contains("self_attn")))
}

/// Models with layers that are not attention, or with heads that differ from layer to layer: a shape would misstate
/// their weights and their cache.
fn refuse_hybrids(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let state_space = fields.map.contains_key("hybrid_override_pattern")
        || fields.map.contains_key("mamba_num_heads")
        || fields.layers_of("mamba").unwrap_or(0) > 0;
    let uneven = fields.optional(&["global_head_dim"]).is_some();
    let what = match (state_space, uneven) {
        (true, _) => "it mixes in state-space layers",
        (_, true) => "its attention heads differ from layer to layer",
        _ => return Ok(()),
    };
    let hint =
        "its speed and memory are not modelled yet: leave it out, or take the nearest plain transformer";
    Err(fields.error(format!("`{}` is not supported: {what}", fields.kind()), hint))
}

fn moe(fields: &Fields<'_>, layers: u32) -> Result<Option<Moe>, ConfigError> {
    let experts = fields.optional(&["num_local_experts", "num_experts", "n_routed_experts"]).unwrap_or(0);
    if experts == 0 {
        return Ok(None);
    }
    let llama4 = fields.kind().starts_with("llama4");
    let expert_ffn = fields.required(&["moe_intermediate_size", "intermediate_size"])?;
    // A Llama 4 config does not say that each of its expert layers has one shared expert as well.
    let shared = fields.optional(&["n_shared_experts"]).unwrap_or(u32::from(llama4));
    let dense_layers = match fields.optional(&["interleave_moe_layer_step"]) {
        Some(step) if llama4 && step > 0 => layers - layers / step,
        _ => fields.optional(&["first_k_dense_replace"]).unwrap_or(0).min(layers),
    };
    Ok(Some(Moe {
        experts,
        experts_per_token: fields.required(&["num_experts_per_tok", "experts_per_token", "moe_topk"])?,
        expert_ffn,
        shared_ffn: fields
            .optional(&["shared_expert_intermediate_size"])
            .unwrap_or_else(|| shared.saturating_mul(expert_ffn)),
        dense_layers,
    }))
}

fn mla(fields: &Fields<'_>) -> Result<Option<Mla>, ConfigError> {
    let Some(kv_lora_rank) = fields.optional(&["kv_lora_rank"]) else { return Ok(None) };
    Ok(Some(Mla {
        kv_lora_rank,
        q_lora_rank: fields.optional(&["q_lora_rank"]).unwrap_or(0),
        rope_head_dim: fields.required(&["qk_rope_head_dim"])?,
        nope_head_dim: fields.required(&["qk_nope_head_dim"])?,
        value_head_dim: fields.required(&["v_head_dim"])?,
    }))
}

fn linear_attention(fields: &Fields<'_>) -> Result<Option<LinearAttention>, ConfigError> {
    let layers = fields.layers_of("linear_attention").unwrap_or(0);
    if layers == 0 {
        return Ok(None);
    }
    Ok(Some(LinearAttention {
        layers,
        key_heads: fields.required(&["linear_num_key_heads"])?,
        value_heads: fields.required(&["linear_num_value_heads"])?,
        key_dim: fields.required(&["linear_key_head_dim"])?,
        value_dim: fields.required(&["linear_value_head_dim"])?,
    }))
}

/// Windowed layers: counted in `layer_types` where given; every second layer for Gemma 2, five of six for Gemma 3,
/// three of four for Llama 4 (whose chunks count as windows); all layers otherwise. Sparse attention that picks
/// `index_topk` tokens reads as many as a window of that length. A window as long as the context is none.
fn sliding_window(fields: &Fields<'_>, layers: u32) -> Option<SlidingWindow> {
    let window =
        fields.optional(&["sliding_window", "sliding_window_size", "attention_chunk_size", "index_topk"])?;
    let off = fields.map.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    let longest = fields.optional(&["max_position_embeddings", "context_window_size"]).unwrap_or(u32::MAX);
    if off || window >= longest {
        return None;
    }
    let windowed = match (fields.layers_of("sliding_attention"), fields.kind()) {
        (Some(counted), _) => counted,
        (None, "gemma2") => layers / 2,
        (None, kind) if kind.starts_with("gemma3") => layers - layers / 6,
        (None, kind) if kind.starts_with("llama4") => layers - layers / 4,
        (None, _) => layers,
    };
    (windowed > 0).then_some(SlidingWindow { window, layers: windowed })
}

/// Quantised checkpoints say so in `quantization_config`; all others are taken as 16-bit.
fn precision(fields: &Fields<'_>, root: &Map<String, Value>) -> Result<Precision, ConfigError> {
    let config = root.get("quantization_config").or_else(|| fields.map.get("quantization_config"));
    let Some(config) = config.and_then(Value::as_object) else { return Ok(Precision::Bf16) };
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
    let weights = config.get("config_groups").and_then(|groups| groups.get("group_0")?.get("weights"));
    let weights = |key: &str| weights.and_then(|weights| weights.get(key));
    let bits = config.get("bits").or_else(|| weights("num_bits")).and_then(Value::as_u64);
    let float = weights("type").and_then(Value::as_str) == Some("float");
    match (text("quant_method"), text("quant_algo"), bits) {
        ("fp8" | "fbgemm_fp8", ..) | ("modelopt", "FP8", _) => Ok(Precision::Fp8),
        ("mxfp4" | "nvfp4", ..) | ("modelopt", "NVFP4", _) => Ok(Precision::Nvfp4),
        ("compressed-tensors", _, Some(8)) if float => Ok(Precision::Fp8),
        ("compressed-tensors", _, Some(4)) if float => Ok(Precision::Nvfp4),
        ("awq" | "gptq", _, None) | ("awq" | "gptq" | "compressed-tensors", _, Some(4)) => {
            Ok(Precision::Int4)
        }
        (method, ..) => {
            let message = format!("the weights are quantised by `{method}` in a way that is not known");
            let hint = "remove `quantization_config` from a copy of the file, and set `dtype` in the spec";
            Err(fields.error(message, hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        insta::assert_snapshot!(ModelShape::from_hf("config.json", "{\"hidden_size\": 8}").unwrap_err(), @r"
        config.json: no `num_attention_heads`, or it is not a positive number
          help: give the config.json of the model's Hugging Face repository
        ");
        ModelShape::from_hf("config.json", "{\"hidden_size\": 8").unwrap_err();
        ModelShape::from_hf("config.json", "[]").unwrap_err();
    }

    /// A small dense config, with `extra` keys.
    fn read(extra: &str) -> Result<(ModelShape, Precision), ConfigError> {
        let base = r#""num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
            "intermediate_size": 4096, "vocab_size": 32000, "max_position_embeddings": 32768"#;
        ModelShape::from_hf("config.json", &format!("{{{base}{extra}}}"))
    }

    #[test]
    fn what_a_config_leaves_out_is_its_architectures_default() {
        let (shape, precision) = read("").unwrap();
        assert_eq!((shape.kv_heads, shape.head_dim, shape.tied_embeddings), (16, 64, false));
        assert_eq!((precision, &shape.sliding_window, &shape.moe), (Precision::Bf16, &None, &None));
        let gemma = read(r#", "model_type": "gemma2", "sliding_window": 4096"#).unwrap().0;
        assert!(gemma.tied_embeddings);
        assert_eq!(gemma.sliding_window, Some(SlidingWindow { window: 4096, layers: 12 }));
        let llama4 = r#", "model_type": "llama4_text", "num_local_experts": 16, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2, "intermediate_size_mlp": 8192"#;
        let llama4 = read(llama4).unwrap().0;
        assert_eq!(llama4.ffn, 8192);
        let moe = llama4.moe.unwrap();
        assert_eq!((moe.expert_ffn, moe.shared_ffn, moe.dense_layers), (4096, 4096, 12));
    }

    #[test]
    fn the_precision_is_that_of_the_checkpoint() {
        let quantised = |config: &str| read(&format!(r#", "quantization_config": {config}"#));
        for (config, want) in [
            ("null", Precision::Bf16),
            (r#"{"quant_method": "fp8"}"#, Precision::Fp8),
            (r#"{"quant_method": "awq", "bits": 4}"#, Precision::Int4),
            (r#"{"quant_method": "mxfp4"}"#, Precision::Nvfp4),
            (r#"{"quant_method": "modelopt", "quant_algo": "NVFP4"}"#, Precision::Nvfp4),
            (
                r#"{"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}"#,
                Precision::Fp8,
            ),
        ] {
            assert_eq!(quantised(config).unwrap().1, want, "{config}");
        }
        insta::assert_snapshot!(quantised(r#"{"quant_method": "gptq", "bits": 8}"#).unwrap_err(), @r"
        config.json: the weights are quantised by `gptq` in a way that is not known
          help: remove `quantization_config` from a copy of the file, and set `dtype` in the spec
        ");
    }

    #[test]
    fn what_is_not_a_plain_transformer_is_refused() {
        insta::assert_snapshot!(read(r#", "model_type": "nemotron_h", "mamba_num_heads": 64"#).unwrap_err(), @r"
        config.json: `nemotron_h` is not supported: it mixes in state-space layers
          help: its speed and memory are not modelled yet: leave it out, or take the nearest plain transformer
        ");
        read(r#", "hybrid_override_pattern": "MEM*""#).unwrap_err();
        read(r#", "global_head_dim": 512"#).unwrap_err();
        read(r#", "num_key_value_heads": 3"#).unwrap_err();
        read(r#", "num_key_value_heads": 0"#).unwrap_err();
        read(r#", "num_experts": 8"#).unwrap_err();
    }
}
