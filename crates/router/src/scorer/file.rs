//! The artefact: JSON with base64 tables.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use boute_spec::data_file::DataError;
use serde::{Deserialize, Serialize};

use super::ensemble::{Ensemble, Heads};
use super::linear::Linear;
use super::{Provenance, Scorer};
use crate::encoder::Encode;
use crate::features::SURFACE;
use crate::lengths::Spread;
use crate::trees::Trees;
use crate::vocabulary::Vocabulary;

/// Version of the artefact. Version 1 (before trees, lengths and novelty) hashed words differently, so it cannot be read.
const VERSION: u32 = 2;
const KIND: &str = "hashed words, logistic heads, trees";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScorerFile {
    version: u32,
    kind: String,
    models: Vec<String>,
    provenance: Provenance,
    mean_output_tokens: Vec<f64>,
    /// Base64 of little-endian 32-bit words, as are the next two.
    words: String,
    documents: String,
    weights: String,
    surface_mean: Vec<f32>,
    surface_scale: Vec<f32>,
    linear: Vec<(f64, f64)>,
    trees: TreesFile,
    calibration: Vec<(f64, f64)>,
    prior_log_odds: Vec<f32>,
    best_single: usize,
    novelty: (f32, f32),
    lengths: Vec<Option<Spread>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    embedding: Option<HeadsFile>,
}

/// Heads on sentence embeddings.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadsFile {
    encoder_sha256: String,
    dimensions: usize,
    /// Base64 of little-endian floats.
    weights: String,
    linear: Vec<(f64, f64)>,
    calibration: Vec<(f64, f64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TreesFile {
    columns: Vec<u32>,
    /// Base64 of little-endian floats.
    thresholds: String,
    leaves: String,
}

/// Read first, so that an artefact of another version is refused as such.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl Scorer {
    /// The artefact, as JSON; the same scorer gives the same bytes.
    ///
    /// # Panics
    /// Never: all numbers are finite.
    pub fn to_json(&self) -> String {
        let (columns, thresholds): (Vec<u32>, Vec<f32>) = self.trees.questions.iter().copied().unzip();
        let file = ScorerFile {
            version: VERSION,
            kind: KIND.into(),
            models: self.models.clone(),
            provenance: self.provenance.clone(),
            mean_output_tokens: self.mean_output_tokens.clone(),
            words: pack(self.vocabulary.hashes.iter().map(|hash| hash.to_le_bytes())),
            documents: pack(self.vocabulary.documents.iter().map(|count| count.to_le_bytes())),
            weights: pack_floats(&self.heads.to_rows()),
            surface_mean: self.surface_mean.to_vec(),
            surface_scale: self.surface_scale.to_vec(),
            linear: self.linear.clone(),
            trees: TreesFile {
                columns,
                thresholds: pack_floats(&thresholds),
                leaves: pack_floats(&self.trees.leaves),
            },
            calibration: self.calibration.clone(),
            prior_log_odds: self.prior.clone(),
            best_single: self.best,
            novelty: self.novelty,
            lengths: self.lengths.clone(),
            embedding: self.ensemble.as_ref().map(|ensemble| HeadsFile::of(&ensemble.heads)),
        };
        let mut text = serde_json::to_string_pretty(&file).expect("all numbers are finite");
        text.push('\n');
        text
    }

    /// Reads an artefact that needs no encoder.
    ///
    /// # Errors
    /// If the text is not one, is of another version, its parts do not fit together, or it was trained with an encoder.
    pub fn parse(file: &str, text: &str) -> Result<Self, DataError> {
        Self::parse_with(file, text, |encoder_sha256| {
            let message =
                format!("a router that reads the sentence embeddings of the model {encoder_sha256}");
            let hint = "give that model: only with it the scores are those that were certified";
            Err(DataError::whole(file, message, hint))
        })
    }

    /// Reads an artefact; `encoder` finds the encoder with a SHA-256, if one is needed.
    ///
    /// # Errors
    /// If the text is not an artefact, is of another version, its parts do not fit together, or the encoder is not found or
    /// another.
    pub fn parse_with(
        file: &str,
        text: &str,
        encoder: impl FnOnce(&str) -> Result<Arc<dyn Encode>, DataError>,
    ) -> Result<Self, DataError> {
        let error = |line: usize, message: String| DataError {
            file: file.into(),
            line,
            column: 0,
            message,
            hint: "train it again: `boute router train DATA -o router.json`".into(),
        };
        let not_json = |cause: serde_json::Error| error(cause.line(), cause.to_string());
        let VersionOnly { version } = serde_json::from_str(text).map_err(not_json)?;
        if version != VERSION {
            return Err(error(
                0,
                format!("a router of version {version}; this boute reads version {VERSION}"),
            ));
        }
        let mut read: ScorerFile = serde_json::from_str(text).map_err(not_json)?;
        if read.kind != KIND {
            return Err(error(0, format!("a router of another kind, `{}`", read.kind)));
        }
        let train_queries = u32::try_from(read.provenance.train_queries).unwrap_or(u32::MAX);
        let broken = |what: &str| error(0, format!("the router artefact is broken: {what}"));
        let embedding = read.embedding.take();
        let mut scorer = read.into_scorer(train_queries).map_err(broken)?;
        if let Some(heads) = embedding {
            let heads = heads.into_heads().map_err(broken)?;
            let encoder = encoder(&heads.encoder_sha256)?;
            if encoder.sha256() != heads.encoder_sha256 {
                let message = format!(
                    "trained with the sentence embeddings of the model {}, and given is the model {}",
                    heads.encoder_sha256,
                    encoder.sha256()
                );
                return Err(DataError {
                    hint: "give the model it was trained with, or train it again with this one".into(),
                    ..error(0, message)
                });
            }
            scorer.ensemble = Some(Ensemble { encoder, heads });
        }
        scorer.is_sound().then_some(scorer).ok_or_else(|| broken("its tables do not fit together"))
    }

    fn is_sound(&self) -> bool {
        let models = self.models.len();
        let weights = self.heads.to_rows();
        let floats = weights.iter().chain(&self.surface_mean).chain(&self.surface_scale).chain(&self.prior);
        models > 0
            && self.best < models
            && (self.lengths.is_empty() || self.lengths.len() == models)
            && self.lengths.iter().flatten().all(Spread::is_sound)
            && self.vocabulary.documents.len() == self.vocabulary.len()
            && self.heads.columns() == self.vocabulary.len() + SURFACE + 1
            && [self.linear.len(), self.calibration.len(), self.prior.len(), self.mean_output_tokens.len()]
                .iter()
                .all(|len| *len == models)
            && self.trees.is_sound(models, SURFACE + 1 + models)
            && self.novelty.0 < self.novelty.1
            && self.ensemble.as_ref().is_none_or(|ensemble| {
                ensemble.heads.dimensions == ensemble.encoder.dimensions() && ensemble.heads.is_sound(models)
            })
            && floats.into_iter().all(|value| value.is_finite())
    }
}

impl HeadsFile {
    fn of(heads: &Heads) -> Self {
        Self {
            encoder_sha256: heads.encoder_sha256.clone(),
            dimensions: heads.dimensions,
            weights: pack_floats(&heads.weights),
            linear: heads.linear.clone(),
            calibration: heads.calibration.clone(),
        }
    }

    fn into_heads(self) -> Result<Heads, &'static str> {
        Ok(Heads {
            weights: unpack_floats(&self.weights)?,
            encoder_sha256: self.encoder_sha256,
            dimensions: self.dimensions,
            linear: self.linear,
            calibration: self.calibration,
        })
    }
}

impl ScorerFile {
    fn into_scorer(self, train_queries: u32) -> Result<Scorer, &'static str> {
        let integers = |text: &str| {
            unpack(text).map(|all| all.into_iter().map(u32::from_le_bytes).collect::<Vec<u32>>())
        };
        let floats = unpack_floats;
        let surface = "the surface features are not as many as this boute reads";
        let thresholds = floats(&self.trees.thresholds)?;
        if thresholds.len() != self.trees.columns.len() {
            return Err("its trees do not fit together");
        }
        let heads = Linear::from_rows(&floats(&self.weights)?, self.models.len() + self.lengths.len());
        Ok(Scorer {
            heads: heads.ok_or("a row of its weights is cut")?,
            trees: Trees {
                targets: self.models.len(),
                questions: self.trees.columns.into_iter().zip(thresholds).collect(),
                leaves: floats(&self.trees.leaves)?,
            },
            models: self.models,
            provenance: self.provenance,
            mean_output_tokens: self.mean_output_tokens,
            vocabulary: Vocabulary::new(integers(&self.words)?, integers(&self.documents)?, train_queries),
            surface_mean: self.surface_mean.try_into().map_err(|_| surface)?,
            surface_scale: self.surface_scale.try_into().map_err(|_| surface)?,
            linear: self.linear,
            calibration: self.calibration,
            prior: self.prior_log_odds,
            best: self.best_single,
            novelty: self.novelty,
            lengths: self.lengths,
            ensemble: None,
        })
    }
}

fn pack(words: impl Iterator<Item = [u8; 4]>) -> String {
    BASE64.encode(words.flatten().collect::<Vec<u8>>())
}

fn pack_floats(values: &[f32]) -> String {
    pack(values.iter().map(|value| value.to_le_bytes()))
}

fn unpack(text: &str) -> Result<Vec<[u8; 4]>, &'static str> {
    let bytes = BASE64.decode(text).map_err(|_| "a table is not base64")?;
    let (words, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() { Ok(words.to_vec()) } else { Err("a table ends within a number") }
}

fn unpack_floats(text: &str) -> Result<Vec<f32>, &'static str> {
    unpack(text).map(|all| all.into_iter().map(f32::from_le_bytes).collect())
}
