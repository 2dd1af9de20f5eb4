//! Predicts, from the text of a conversation alone, the score each model would get on its next answer, and that answer's
//! length.
//!
//! Hashed words and word pairs (sub-linear term frequency × inverse document frequency, unit length) and standardised
//! surface features feed one logistic head per model; small trees on the heads and the surface correct what is not linear;
//! Platt calibration on predictions for queries that were not trained on makes the scores probabilities. Routing on the
//! *difference* of two models' scores is what matters (RouteLLM's data: area under the recovered-gap curve 0.68, against
//! 0.58 for routing on the small model's score alone).
//!
//! A scorer that was trained with an [encoder](crate::encoder) is an *ensemble*: the mean of these log odds and of those of a
//! head on a sentence embedding, calibrated anew.
//!
//! A conversation with many words that training has not seen is *novel*: its scores shrink towards the models' means, and
//! past a limit the best single model gets the score 1 and the others 0, so that it answers under every policy that has it.

mod ensemble;
mod file;
mod linear;
mod train;

use std::sync::Arc;

use boute_spec::workload::Query;
use serde::{Deserialize, Serialize};

pub use train::TooFewRows;

use ensemble::Ensemble;
use linear::Linear;

use crate::encoder::Encode;
use crate::features::{SURFACE, SURFACE_NAMES, Scratch, read};
use crate::lengths::{QUANTILES, Spread};
use crate::logistic::sigmoid;
use crate::queries::ScoredQueries;
use crate::trees::Trees;
use crate::vocabulary::{Vocabulary, frequency};

/// Where a scorer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// SHA-256 of the quality data.
    pub data_sha256: String,
    /// Queries trained on.
    pub train_queries: usize,
    /// Seed.
    pub seed: u64,
}

/// A trained scorer for some models.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    models: Vec<String>,
    provenance: Provenance,
    mean_output_tokens: Vec<f64>,
    vocabulary: Vocabulary,
    /// A head per model for the score, then one per model for the length where known. Columns: a known word each, the
    /// surface features, the bias.
    heads: Linear,
    surface_mean: [f32; SURFACE],
    surface_scale: [f32; SURFACE],
    /// Per model (a, b): log odds = a·sum + b, before the trees.
    linear: Vec<(f64, f64)>,
    trees: Trees,
    /// Per model (a, b): log odds = a·odds + b, after the trees.
    calibration: Vec<(f64, f64)>,
    /// Per model: log odds of its mean score.
    prior: Vec<f32>,
    /// The model with the best mean score.
    best: usize,
    /// Novelty from which scores shrink, and at which nothing is left of them.
    novelty: (f32, f32),
    /// Per model; empty if no length is recorded.
    lengths: Vec<Option<Spread>>,
    /// A second opinion from sentence embeddings.
    ensemble: Option<Ensemble>,
}

/// Standardised surface features beyond this many spreads are cut.
const FURTHEST: f32 = 4.0;

impl Scorer {
    /// The standardised surface feature.
    fn standard(&self, surface: &[f32; SURFACE], at: usize) -> f32 {
        let far = FURTHEST * train::SURFACE_WEIGHT;
        ((surface[at] - self.surface_mean[at]) * self.surface_scale[at]).clamp(-far, far)
    }

    fn standard_surface(&self, scratch: &Scratch) -> [f32; SURFACE] {
        std::array::from_fn(|at| self.standard(&scratch.surface, at))
    }

    /// Runs the linear heads on what `scratch` has read, and measures its novelty.
    fn sum(&self, scratch: &mut Scratch) {
        self.vocabulary.sort(&scratch.terms, &mut scratch.known, &mut scratch.unknown);
        scratch.words.clear();
        let weighted = |&(row, times): &(u32, u32)| (row, frequency(times) * self.heads.idf(row as usize));
        scratch.words.extend(scratch.known.iter().map(weighted));
        let (mut squares, mut seen) = (0.0, 0.0);
        for (_, value) in &scratch.words {
            seen += value;
            squares += value * value;
        }
        let unseen: f32 = scratch.unknown.iter().fold(0.0, |sum, times| sum + frequency(*times));
        let unseen = unseen * self.vocabulary.idf_unknown();
        scratch.novelty = unseen / (seen + unseen).max(1e-6);
        let scale = 1.0 / squares.sqrt().max(1e-6);
        let last: [f32; SURFACE + 1] =
            std::array::from_fn(|at| if at < SURFACE { self.standard(&scratch.surface, at) } else { 1.0 });
        self.heads.outputs(&scratch.words, scale, &last, &mut scratch.sums);
    }

    /// The score each model is expected to get on a conversation of one message, in the order of [`Self::models`].
    ///
    /// # Panics
    /// If `out` is not as long as [`Self::models`].
    pub fn score(&self, prompt: &str, scratch: &mut Scratch, out: &mut [f32]) {
        self.score_conversation(&[prompt], scratch, out);
    }

    /// The score each model is expected to get with its next answer to a conversation, given by its messages in order.
    /// Allocates nothing once `scratch` has grown, unless there is an [`Self::encoder`]: that is run, which takes tens of
    /// milliseconds. Afterwards [`Scratch::novelty`] and [`Self::answer_tokens`] speak of this conversation.
    ///
    /// # Panics
    /// If `out` is not as long as [`Self::models`].
    pub fn score_conversation(&self, messages: &[&str], scratch: &mut Scratch, out: &mut [f32]) {
        let embedding = self.embedding(messages);
        self.score_embedded(messages, embedding.as_deref(), scratch, out);
    }

    /// The same with the sentence embedding at hand, for callers who do not wait for it: its messages joined by line ends, by
    /// [`Self::encoder`]. Where there is an encoder and no embedding, the best single model gets the score 1 and the others 0,
    /// as with novel conversations: half of an ensemble is not what was calibrated or certified.
    ///
    /// # Panics
    /// If `out` is not as long as [`Self::models`], or `embedding` not as long as the encoder's.
    pub fn score_embedded(
        &self,
        messages: &[&str],
        embedding: Option<&[f32]>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        self.odds(messages, scratch, out);
        let (start, end) = self.novelty;
        if let (Some(ensemble), Some(embedding)) = (&self.ensemble, embedding) {
            assert_eq!(embedding.len(), ensemble.heads.dimensions, "an embedding of another encoder");
            let surface = self.standard_surface(scratch);
            for (model, out) in out.iter_mut().enumerate() {
                *out = ensemble.heads.odds(model, embedding, &surface, f64::from(*out)) as f32;
            }
        }
        if scratch.novelty >= end || (self.ensemble.is_some() && embedding.is_none()) {
            out.fill(0.0);
            out[self.best] = 1.0;
            return;
        }
        let trust = 1.0 - (scratch.novelty - start).max(0.0) / (end - start);
        for (odds, prior) in out.iter_mut().zip(&self.prior) {
            *odds = sigmoid(f64::from(prior + trust * (*odds - prior))) as f32;
        }
    }

    fn embedding(&self, messages: &[&str]) -> Option<Vec<f32>> {
        let encoder = self.encoder()?;
        match messages {
            [only] => encoder.encode(only),
            _ => encoder.encode(&messages.join("\n")),
        }
    }

    /// Calibrated log odds without embeddings, before novelty is looked at.
    fn odds(&self, messages: &[&str], scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(out.len(), self.models.len(), "one score per model");
        read(messages, scratch);
        self.sum(scratch);
        for ((out, sum), (a, b)) in out.iter_mut().zip(&scratch.sums).zip(&self.linear) {
            *out = (a * f64::from(*sum) + b) as f32;
        }
        scratch.inputs.clear();
        scratch.inputs.extend_from_slice(&scratch.surface);
        scratch.inputs.push(scratch.novelty);
        scratch.inputs.extend_from_slice(out);
        self.trees.add(&scratch.inputs, out);
        for (out, (a, b)) in out.iter_mut().zip(&self.calibration) {
            *out = (a * f64::from(*out) + b) as f32;
        }
    }

    /// Quantiles of the tokens that `model` (index) would answer the conversation last scored with `scratch`, at
    /// [`QUANTILES`]; `None` if training knew no lengths of that model.
    pub fn answer_tokens(&self, scratch: &Scratch, model: usize) -> Option<[f32; QUANTILES.len()]> {
        let spread = self.lengths.get(model)?.as_ref()?;
        Some(spread.tokens(*scratch.sums.get(self.models.len() + model)?))
    }

    /// The median of [`Self::answer_tokens`]; 0 if training knew no lengths of that model.
    pub fn expected_tokens(&self, scratch: &Scratch, model: usize) -> f32 {
        self.answer_tokens(scratch, model).map_or(0.0, |quantiles| quantiles[QUANTILES.len() / 2])
    }

    /// What makes the sentence embeddings that it was trained with, if it was.
    pub fn encoder(&self) -> Option<&Arc<dyn Encode>> {
        self.ensemble.as_ref().map(|ensemble| &ensemble.encoder)
    }

    /// The models, in the order of the scores.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// The model with the best mean score on the training queries: the safe end.
    pub fn best_single(&self) -> usize {
        self.best
    }

    /// How many of the models have a lower mean score on the training queries than `model` (index).
    pub fn rank(&self, model: usize) -> usize {
        self.prior.iter().filter(|prior| **prior < self.prior[model]).count()
    }

    /// Novelty from which scores shrink towards the means, and from which the best single model answers.
    pub fn novelty_limits(&self) -> (f32, f32) {
        self.novelty
    }

    /// Mean answer length per model on the training queries; 0 where not recorded.
    pub fn mean_output_tokens(&self) -> &[f64] {
        &self.mean_output_tokens
    }

    /// Where it comes from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Columns of what the linear heads see.
    pub(crate) fn columns(&self) -> usize {
        self.vocabulary.len() + SURFACE + 1
    }

    /// What the linear heads see in a conversation, by column: words have length 1 together, then come the standardised
    /// surface features and a 1. The raw material of other routers, as for explanations.
    pub(crate) fn row(&self, messages: &[&str], scratch: &mut Scratch) -> Vec<(u32, f32)> {
        read(messages, scratch);
        self.row_read(scratch)
    }

    fn row_read(&self, scratch: &Scratch) -> Vec<(u32, f32)> {
        let known = scratch.terms.iter().filter_map(|&(hash, times)| {
            let row = self.vocabulary.row(hash)?;
            Some((row as u32, frequency(times) * self.vocabulary.idf(row)))
        });
        let mut row: Vec<(u32, f32)> = known.collect();
        let scale = 1.0 / row.iter().map(|(_, x)| x * x).sum::<f32>().sqrt().max(1e-6);
        for (_, x) in &mut row {
            *x *= scale;
        }
        let first = self.vocabulary.len() as u32;
        let surface = (0..SURFACE).map(|at| (first + at as u32, self.standard(&scratch.surface, at)));
        row.extend(surface.chain([(first + SURFACE as u32, 1.0)]));
        row
    }

    /// Scores `queries`, whose own scores and lengths are in the order of `models`; the result is in that order too.
    ///
    /// # Panics
    /// If a model of `models` is not among [`Self::models`].
    pub fn score_queries<'a>(
        &self,
        models: &[String],
        queries: impl Iterator<Item = &'a Query>,
    ) -> ScoredQueries {
        let position = |model: &String| self.models.iter().position(|known| known == model);
        let order: Vec<usize> = models
            .iter()
            .map(|model| position(model).expect("the caller has checked that the router knows it"))
            .collect();
        let mut scratch = Scratch::default();
        let mut scores = vec![0.0; self.models.len()];
        let mut scored = ScoredQueries::new(models.to_vec());
        let queries: Vec<&Query> = queries.collect();
        let texts = queries.iter().map(|query| query.prompt.as_str());
        let embeddings = self.encoder().map(|encoder| encoder.encode_all(&texts.collect::<Vec<_>>()));
        for (at, query) in queries.into_iter().enumerate() {
            let embedding = embeddings.as_ref().and_then(|all| all[at].as_deref());
            self.score_embedded(&[&query.prompt], embedding, &mut scratch, &mut scores);
            scored.push(query, order.iter().map(|at| scores[*at]), scratch.novelty());
            scored.expected_tokens.extend(order.iter().map(|at| self.expected_tokens(&scratch, *at)));
        }
        scored
    }

    /// What speaks for `model` rather than `other` (indices) in a conversation: words, pairs and properties of its surface
    /// with their part in the difference of log odds, the largest first.
    pub fn reasons(&self, messages: &[&str], model: usize, other: usize) -> Vec<(String, f32)> {
        let mut scratch = Scratch::default();
        let row = self.row(messages, &mut scratch);
        let names = crate::features::names(messages);
        let mut reasons: Vec<(String, f32)> = row
            .iter()
            .map(|&(column, value)| {
                let weight = |model: usize| self.heads.weight(column as usize, model);
                let of = |model: usize| self.linear[model].0 as f32 * weight(model) * value;
                let place = (column as usize).checked_sub(self.vocabulary.len());
                let name = match place {
                    None => names.get(&self.vocabulary.hashes[column as usize]).cloned().unwrap_or_default(),
                    Some(at) if at < SURFACE => SURFACE_NAMES[at].to_owned(),
                    Some(_) => "all queries alike".to_owned(),
                };
                (name, of(model) - of(other))
            })
            .collect();
        if let Some((ensemble, embedding)) = self.ensemble.as_ref().zip(self.embedding(messages)) {
            let surface = self.standard_surface(&scratch);
            let own = |model: usize| ensemble.heads.own(model, &embedding, &surface);
            // Each opinion is half of the mean.
            for (_, part) in &mut reasons {
                *part /= 2.0;
            }
            reasons.push(("sentence embedding".into(), ((own(model) - own(other)) / 2.0) as f32));
        }
        reasons.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
        reasons
    }
}
