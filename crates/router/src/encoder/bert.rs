//! Sentence embeddings by a BERT (Devlin et al., arXiv 1810.04805) that was trained for them (Reimers, Gurevych, "Sentence-BERT",
//! EMNLP 2019): the mean over the states of all tokens, scaled to length 1.
//!
//! One text at a time, so that there is no padding and nothing to mask. States are `[token][hidden]`.

use std::fmt;

use boute_spec::data_file::DataError;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear, ops};
use serde::Deserialize;
use tokenizers::Tokenizer;

use super::{Encode, FILES, digest};
use crate::features::{HEAD_BYTES, TAIL_BYTES};

/// Tokens read of a text, however many positions the model has: what bounds the time of an embedding. Sentence-transformers
/// reads as many with the `MiniLM` models.
const MOST_TOKENS: usize = 256;
/// A quarter of them are the text's last ones: a conversation ends with the question.
const TAIL_SHARE: usize = 4;
/// Fewer positions hold no sentence.
const FEWEST_POSITIONS: usize = 8;

/// What is needed of `config.json`; the rest is about training.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: Activation,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Positions,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Activation {
    Gelu,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Positions {
    #[default]
    Absolute,
}

/// A BERT on the CPU.
pub struct Bert {
    model: Model,
    tokenizer: Tokenizer,
    most_tokens: usize,
    dimensions: usize,
    sha256: String,
}

impl fmt::Debug for Bert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bert")
            .field("sha256", &self.sha256)
            .field("dimensions", &self.dimensions)
            .finish_non_exhaustive()
    }
}

impl Bert {
    /// Reads a model from its [`FILES`], which lie in `folder`.
    ///
    /// # Errors
    /// If one of them is not what its name says, or they do not fit together.
    pub fn new(folder: &str, files: [Vec<u8>; FILES.len()]) -> std::result::Result<Self, DataError> {
        let sha256 = digest(files.each_ref().map(Vec::as_slice));
        let [config, tokenizer, weights] = files;
        let error = |file: usize, message: String| {
            let hint = "give the folder of a BERT or MiniLM sentence embedder as it is published: config.json, tokenizer.json, model.safetensors";
            DataError::whole(format!("{folder}/{}", FILES[file]), message, hint)
        };
        let config = Config::parse(&config).map_err(|message| error(0, message))?;
        let tokenizer = read_tokenizer(&tokenizer, &config).map_err(|message| error(1, message))?;
        let not_weights = |cause| error(2, format!("not the weights of this model: {cause}"));
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu);
        let bert = Self {
            model: weights.and_then(|weights| Model::load(&weights, &config)).map_err(not_weights)?,
            tokenizer,
            most_tokens: MOST_TOKENS.min(config.max_position_embeddings),
            dimensions: config.hidden_size,
            sha256,
        };
        bert.mean_state("a first sentence").map_err(not_weights)?;
        Ok(bert)
    }

    fn mean_state(&self, text: &str) -> Result<Vec<f32>> {
        let encoding = self.tokenizer.encode_fast(cut(text), true).map_err(candle_core::Error::wrap)?;
        let ids = encoding.get_ids();
        let ids = if ids.len() > self.most_tokens {
            let tail = self.most_tokens / TAIL_SHARE;
            [&ids[..self.most_tokens - tail], &ids[ids.len() - tail..]].concat()
        } else {
            ids.to_vec()
        };
        self.model.states(ids)?.mean(0)?.to_vec1()
    }
}

impl Encode for Bert {
    fn sha256(&self) -> &str {
        &self.sha256
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn encode(&self, text: &str) -> Option<Vec<f32>> {
        let mut mean = self.mean_state(text).ok()?;
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            return None;
        }
        for x in &mut mean {
            *x /= length;
        }
        Some(mean)
    }
}

/// As much of a text as the words of it are read, so that the tokenizer's time is bounded, too.
fn cut(text: &str) -> String {
    if text.len() <= HEAD_BYTES + TAIL_BYTES {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(HEAD_BYTES);
    let tail = text.ceil_char_boundary(text.len() - TAIL_BYTES);
    format!("{} {}", &text[..head], &text[tail..])
}

impl Config {
    fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        let config: Self = serde_json::from_slice(text)
            .map_err(|cause| format!("not the configuration of a BERT: {cause}"))?;
        // The only ones there are.
        let (Activation::Gelu, Positions::Absolute) = (&config.hidden_act, &config.position_embedding_type);
        let heads = config.num_attention_heads;
        if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
            return Err(format!("{} hidden units cannot be divided among {heads} heads", config.hidden_size));
        }
        if config.max_position_embeddings < FEWEST_POSITIONS {
            return Err(format!("a model of only {} positions", config.max_position_embeddings));
        }
        Ok(config)
    }
}

fn read_tokenizer(text: &[u8], config: &Config) -> std::result::Result<Tokenizer, String> {
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(|cause| format!("not a tokenizer: {cause}"))?;
    // Texts are encoded one at a time and cut here, whatever the file says of batches.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|cause| cause.to_string())?;
    let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
    if largest >= config.vocab_size {
        return Err(format!("it has a token {largest}, and the model knows {} tokens", config.vocab_size));
    }
    Ok(tokenizer)
}

struct Model {
    words: Embedding,
    /// Of the places in the text, with what says that all of it is one sentence.
    places: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Model {
    fn load(weights: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        let prefixed = weights.contains_tensor("bert.embeddings.word_embeddings.weight");
        let weights = if prefixed { weights.pp("bert") } else { weights.clone() };
        let at = weights.pp("embeddings");
        let hidden = config.hidden_size;
        let table = |name: &str, rows: usize| at.get((rows, hidden), &format!("{name}.weight"));
        let places = table("position_embeddings", config.max_position_embeddings)?;
        let first_kind = table("token_type_embeddings", config.type_vocab_size)?.get(0)?;
        Ok(Self {
            words: embedding(config.vocab_size, hidden, at.pp("word_embeddings"))?,
            places: places.broadcast_add(&first_kind)?,
            norm: layer_norm(hidden, config.layer_norm_eps, at.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(&weights.pp("encoder.layer").pp(layer), config))
                .collect::<Result<_>>()?,
        })
    }

    fn states(&self, ids: Vec<u32>) -> Result<Tensor> {
        let places = self.places.narrow(0, 0, ids.len())?;
        let words = self.words.forward(&Tensor::new(ids, &Device::Cpu)?)?;
        let first = self.norm.forward(&(words + places)?)?;
        self.layers.iter().try_fold(first, |states, layer| layer.forward(&states))
    }
}

struct Layer {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    mixed: Linear,
    mixed_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl Layer {
    fn load(weights: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = |name: &str| linear(hidden, hidden, weights.pp(name));
        let norm = |name: &str| layer_norm(hidden, config.layer_norm_eps, weights.pp(name));
        Ok(Self {
            heads: config.num_attention_heads,
            query: square("attention.self.query")?,
            key: square("attention.self.key")?,
            value: square("attention.self.value")?,
            mixed: square("attention.output.dense")?,
            mixed_norm: norm("attention.output.LayerNorm")?,
            inner: linear(hidden, inner, weights.pp("intermediate.dense"))?,
            outer: linear(inner, hidden, weights.pp("output.dense"))?,
            outer_norm: norm("output.LayerNorm")?,
        })
    }

    fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let (tokens, hidden) = states.dims2()?;
        let width = hidden / self.heads;
        // [head][token][width]
        let by_head = |from: &Linear| {
            from.forward(states)?.reshape((tokens, self.heads, width))?.transpose(0, 1)?.contiguous()
        };
        let (query, key, value) = (by_head(&self.query)?, by_head(&self.key)?, by_head(&self.value)?);
        let scores = (query.matmul(&key.t()?)? / (width as f64).sqrt())?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = self.mixed.forward(&mixed.transpose(0, 1)?.reshape((tokens, hidden))?)?;
        let states = self.mixed_norm.forward(&(states + mixed)?)?;
        let outer = self.outer.forward(&self.inner.forward(&states)?.gelu_erf()?)?;
        self.outer_norm.forward(&(states + outer)?)
    }
}
