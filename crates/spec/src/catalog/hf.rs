//! Hugging Face `config.json` → [`ModelShape`].

use serde_json::{Map, Value};

use super::{Mla, ModelShape, Moe, Precision, SlidingWindow};

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
    fn optional(&self, names: &[&str]) -> Option<u32> {
        let value = names.iter().find_map(|name| self.map.get(*name).filter(|value| !value.is_null()))?;
        u32::try_from(value.as_u64()?).ok()
    }

    fn required(&self, names: &[&str]) -> Result<u32, ConfigError> {
        self.optional(names).filter(|value| *value > 0).ok_or_else(|| ConfigError {
            file: self.file.into(),
            message: format!("no `{}`, or it is not a positive number", names[0]),
            hint: "give the config.json of the model's Hugging Face repository".into(),
        })
    }
}

impl ModelShape {
    /// Reads a `config.json`: the shape, and the precision in which the weights are published.
    ///
    /// # Errors
    /// If the text is not JSON, or lacks a field without which nothing can be computed.
    pub fn from_hf(file: &str, text: &str) -> Result<(Self, Precision), ConfigError> {
        let root: Value = serde_json::from_str(text).map_err(|error| ConfigError {
            file: file.into(),
            message: error.to_string(),
            hint: "give the config.json of the model's Hugging Face repository".into(),
        })?;
        let empty = Map::new();
        let root = root.as_object().unwrap_or(&empty);
        let map = root.get("text_config").and_then(Value::as_object).unwrap_or(root);
        let fields = Fields { file, map };
        let hidden = fields.required(&["hidden_size"])?;
        let heads = fields.required(&["num_attention_heads"])?;
        let layers = fields.required(&["num_hidden_layers"])?;
        let tied = map.get("tie_word_embeddings").or_else(|| root.get("tie_word_embeddings"));
        let ffn =
            fields.optional(&["intermediate_size"]).or_else(|| fields.optional(&["moe_intermediate_size"]));
        let shape = Self {
            layers,
            hidden,
            heads,
            kv_heads: fields.optional(&["num_key_value_heads"]).unwrap_or(heads),
            head_dim: fields.optional(&["head_dim"]).unwrap_or(hidden / heads),
            ffn: ffn.map_or_else(|| fields.required(&["intermediate_size"]), Ok)?,
            vocab: fields.required(&["vocab_size"])?,
            tied_embeddings: tied.and_then(Value::as_bool).unwrap_or(false),
            max_context: fields.optional(&["max_position_embeddings", "context_window_size"]).unwrap_or(4096),
            moe: moe(&fields, layers)?,
            mla: mla(&fields)?,
            sliding_window: sliding_window(&fields, layers),
        };
        Ok((shape, precision(root, map)))
    }
}

fn moe(fields: &Fields<'_>, layers: u32) -> Result<Option<Moe>, ConfigError> {
    let Some(experts) = fields.optional(&["num_local_experts", "num_experts", "n_routed_experts"]) else {
        return Ok(None);
    };
    let expert_ffn = fields.required(&["moe_intermediate_size", "intermediate_size"])?;
    let shared = fields.optional(&["shared_expert_intermediate_size"]);
    let shared_ffn =
        shared.unwrap_or_else(|| fields.optional(&["n_shared_experts"]).unwrap_or(0) * expert_ffn);
    Ok(Some(Moe {
        experts,
        experts_per_token: fields.required(&["num_experts_per_tok", "experts_per_token", "moe_topk"])?,
        expert_ffn,
        shared_ffn,
        dense_layers: fields.optional(&["first_k_dense_replace"]).unwrap_or(0).min(layers),
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

/// Windowed layers: counted in `layer_types` where given; every second layer for Gemma 2, five of six for Gemma 3; all
/// layers otherwise. A window as long as the context is none.
fn sliding_window(fields: &Fields<'_>, layers: u32) -> Option<SlidingWindow> {
    let window = fields.optional(&["sliding_window", "sliding_window_size"])?;
    let off = fields.map.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    let longest = fields.optional(&["max_position_embeddings", "context_window_size"]).unwrap_or(u32::MAX);
    if off || window >= longest {
        return None;
    }
    let types = fields.map.get("layer_types").and_then(Value::as_array);
    let windowed = match (types, fields.map.get("model_type").and_then(Value::as_str).unwrap_or_default()) {
        (Some(types), _) => types.iter().filter(|kind| *kind == "sliding_attention").count() as u32,
        (None, "gemma2") => layers / 2,
        (None, kind) if kind.starts_with("gemma3") => layers - layers / 6,
        (None, _) => layers,
    };
    Some(SlidingWindow { window, layers: windowed })
}

/// fp8 and 4-bit checkpoints say so in `quantization_config`; the rest is taken as 16-bit.
fn precision(root: &Map<String, Value>, map: &Map<String, Value>) -> Precision {
    let config = root.get("quantization_config").or_else(|| map.get("quantization_config"));
    let method =
        config.and_then(|config| config.get("quant_method")).and_then(Value::as_str).unwrap_or_default();
    match method {
        "fp8" | "fbgemm_fp8" => Precision::Fp8,
        "awq" | "gptq" => Precision::Int4,
        "mxfp4" | "nvfp4" => Precision::Nvfp4,
        _ => Precision::Bf16,
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
}
