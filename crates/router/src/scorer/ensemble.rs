//! A second opinion: a logistic head per model on the sentence embedding and the surface. The mean of both log odds,
//! calibrated anew, is what an ensemble says; their errors differ, so the mean errs less than either.

use std::sync::Arc;

use boute_spec::workload::Query;
use rayon::prelude::*;

use super::train::{Head, smoothed};
use crate::encoder::Encode;
use crate::features::SURFACE;
use crate::logistic::{self, Row, platt};

/// Length of the embedding in training, beside the surface features, which have the same spread as in the default scorer. Of 0.5, 1, 2,
/// 4 and 8 it has the least Brier score over the validation queries of three data sets (see docs/router.md).
const EMBEDDING_WEIGHT: f32 = 2.0;
/// Cost C of the regression.
const COST: f64 = 1.0;

/// The heads, and what makes embeddings for them.
#[derive(Debug, Clone)]
pub(super) struct Ensemble {
    pub(super) encoder: Arc<dyn Encode>,
    pub(super) heads: Heads,
}

/// As kept in the artefact, which has the digest of the encoder and never its weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heads {
    pub(super) encoder_sha256: String,
    pub(super) dimensions: usize,
    /// Per model: weights of the embedding, of the surface and of a 1.
    pub(super) weights: Vec<f32>,
    /// Per model (a, b): log odds = a·sum + b, by the embedding.
    pub(super) linear: Vec<(f64, f64)>,
    /// Per model (a, b): log odds = a·mean + b, of both.
    pub(super) calibration: Vec<(f64, f64)>,
}

impl PartialEq for Ensemble {
    fn eq(&self, other: &Self) -> bool {
        self.heads == other.heads
    }
}

impl Ensemble {
    /// Fits the heads to `train`. `surfaces` are the queries' standardised surfaces, `others` the log odds (row-major) that
    /// the default scorer gives them when it has not been trained on them.
    pub(super) fn fit(
        encoder: Arc<dyn Encode>,
        train: &[&Query],
        surfaces: &[[f32; SURFACE]],
        others: &[f64],
        seed: u64,
    ) -> Self {
        let dimensions = encoder.dimensions();
        let models = others.len() / train.len();
        let texts: Vec<&str> = train.iter().map(|query| query.prompt.as_str()).collect();
        let row = |(embedding, surface): (Option<Vec<f32>>, &[f32; SURFACE])| -> Row {
            // A text that cannot be encoded says nothing here.
            let embedding = embedding.unwrap_or_else(|| vec![0.0; dimensions]);
            let embedding: Vec<f32> = embedding.iter().map(|x| x * EMBEDDING_WEIGHT).collect();
            (0..).zip(inputs(&embedding, surface)).collect()
        };
        let rows: Vec<Row> = encoder.encode_all(&texts).into_iter().zip(surfaces).map(row).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let fit = |model: usize| {
            let targets: Vec<f32> = train.iter().map(|query| query.scores[model]).collect();
            let seed = seed.wrapping_add(1 + model as u64);
            let mut head = Head::fit(&rows, &smoothed(train, &targets), seed, |rows, targets, rng| {
                logistic::fit(rows, targets, dimensions + SURFACE + 1, COST, rng)
            });
            // What is kept takes embeddings as they are.
            for weight in &mut head.weights[..dimensions] {
                *weight *= EMBEDDING_WEIGHT;
            }
            let linear = platt(&head.unseen, &targets);
            let other = others.iter().skip(model).step_by(models);
            let means: Vec<f64> = head
                .unseen
                .iter()
                .zip(other)
                .map(|(own, other)| mean(affine(linear, *own), *other))
                .collect();
            (head.weights, linear, platt(&means, &targets))
        };
        let fitted: Vec<_> = (0..models).into_par_iter().map(fit).collect();
        let mut heads = Heads {
            encoder_sha256: encoder.sha256().into(),
            dimensions,
            weights: Vec::new(),
            linear: Vec::new(),
            calibration: Vec::new(),
        };
        for (weights, linear, calibration) in fitted {
            heads.weights.extend(weights);
            heads.linear.push(linear);
            heads.calibration.push(calibration);
        }
        Self { encoder, heads }
    }
}

impl Heads {
    /// Log odds by the embedding alone.
    pub(super) fn own(&self, model: usize, embedding: &[f32], surface: &[f32; SURFACE]) -> f64 {
        let columns = self.dimensions + SURFACE + 1;
        let weights = &self.weights[model * columns..(model + 1) * columns];
        let sum: f32 = inputs(embedding, surface).zip(weights).map(|(x, weight)| x * weight).sum();
        affine(self.linear[model], f64::from(sum))
    }

    /// Calibrated log odds, given those of the default scorer.
    pub(super) fn odds(&self, model: usize, embedding: &[f32], surface: &[f32; SURFACE], other: f64) -> f64 {
        affine(self.calibration[model], mean(self.own(model, embedding, surface), other))
    }

    /// Whether the tables fit together.
    pub(super) fn is_sound(&self, models: usize) -> bool {
        self.weights.len() == models * (self.dimensions + SURFACE + 1)
            && self.linear.len() == models
            && self.calibration.len() == models
            && self.weights.iter().all(|weight| weight.is_finite())
    }
}

/// What a head sees.
fn inputs<'a>(embedding: &'a [f32], surface: &'a [f32; SURFACE]) -> impl Iterator<Item = f32> + 'a {
    embedding.iter().chain(surface).copied().chain([1.0])
}

fn affine((a, b): (f64, f64), x: f64) -> f64 {
    a * x + b
}

fn mean(own: f64, other: f64) -> f64 {
    f64::midpoint(own, other)
}
