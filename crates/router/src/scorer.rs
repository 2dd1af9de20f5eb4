//! Predicts, from the text of a prompt alone, the score each model would get on it.
//!
//! Hashed words and word pairs (sub-linear term frequency × inverse document frequency, unit length) and standardised
//! surface features feed one logistic head per model; Platt calibration on data that training has not seen makes the
//! scores probabilities. Routing on the *difference* of two models' scores is what matters (RouteLLM's data: area under
//! the recovered-gap curve 0.68, against 0.58 for routing on the small model's score alone).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use boute_spec::data_file::DataError;
use boute_spec::workload::{QualityData, Query, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::features::{HASH_BITS, SURFACE, Scratch, read};
use crate::logistic::{Row, fit, platt, sigmoid};
use crate::queries::ScoredQueries;

/// Version of the artefact.
const VERSION: u32 = 1;
/// Cost C of the regularised regression, the customary 1.
const COST: f64 = 1.0;
/// Weight of the surface features beside the words, which together have length 1.
const SURFACE_WEIGHT: f32 = 0.25;
/// Parts of the training queries: each is scored by a head trained on the others.
const PARTS: usize = 3;
/// Queries needed to train and to calibrate.
const FEWEST_TRAIN: usize = 100;

/// Why a scorer cannot be trained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {rows} queries in the training part of the quality data\n  help: at least {needed} are needed; collect more, or mark them with `\"split\": \"train\"`"
)]
pub struct TooFewRows {
    /// Queries there.
    pub rows: usize,
    /// Queries needed.
    pub needed: usize,
}

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
    /// Slot → row of `weights`, or `NONE`.
    row_of: Vec<u32>,
    /// Kept slots, ascending, and their document counts.
    slots: Vec<u32>,
    documents: Vec<u32>,
    idf: Vec<f32>,
    /// `[row][model]`, then the surface features, then the bias.
    weights: Vec<f32>,
    surface_mean: [f32; SURFACE],
    surface_scale: [f32; SURFACE],
    /// Per model (a, b): probability = sigmoid(a·score + b).
    calibration: Vec<(f64, f64)>,
}

const NONE: u32 = u32::MAX;

/// The score of every row by a head that was trained on the other parts.
fn cross_fitted(rows: &[Row], targets: &[f32], columns: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut scores = vec![0.0; rows.len()];
    for part in 0..PARTS {
        let others = || (0..rows.len()).filter(|index| index % PARTS != part);
        let other_rows: Vec<&Row> = others().map(|index| &rows[index]).collect();
        let other_targets: Vec<f32> = others().map(|index| targets[index]).collect();
        let head = fit(&other_rows, &other_targets, columns, COST, rng);
        for index in (part..rows.len()).step_by(PARTS) {
            scores[index] = rows[index].iter().map(|&(column, x)| f64::from(head[column as usize] * x)).sum();
        }
    }
    scores
}

impl Scorer {
    /// Trains and calibrates on the training split of `data`, so that the other splits stay unseen: policies are chosen,
    /// certified and judged on those. Calibration uses scores of queries by heads that were not trained on them
    /// (cross-fitting). `data_sha256` is kept as provenance. The same data and seed give the same bytes.
    ///
    /// # Errors
    /// If the training split has too few queries.
    pub fn train(data: &QualityData, seed: u64, data_sha256: &str) -> Result<Self, TooFewRows> {
        let train: Vec<&Query> = data.split(Split::Train).collect();
        if train.len() < FEWEST_TRAIN {
            return Err(TooFewRows { rows: train.len(), needed: FEWEST_TRAIN });
        }
        let mut scorer = Self::vocabulary(data, &train);
        scorer.provenance = Provenance { data_sha256: data_sha256.into(), train_queries: train.len(), seed };
        let mut scratch = Scratch::default();
        let rows: Vec<Row> = train.iter().map(|query| scorer.row(&query.prompt, &mut scratch)).collect();
        let columns = scorer.slots.len() + SURFACE + 1;
        let mut heads = Vec::with_capacity(data.models.len());
        for model in 0..data.models.len() {
            let targets: Vec<f32> = train.iter().map(|query| query.scores[model]).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(model as u64));
            scorer.calibration[model] = platt(&cross_fitted(&rows, &targets, columns, &mut rng), &targets);
            heads.push(fit(&rows.iter().collect::<Vec<_>>(), &targets, columns, COST, &mut rng));
        }
        scorer.weights = (0..columns).flat_map(|column| heads.iter().map(move |head| head[column])).collect();
        Ok(scorer)
    }

    /// An untrained scorer that knows the words occurring in at least two prompts, and the spread of the surface.
    fn vocabulary(data: &QualityData, train: &[&Query]) -> Self {
        let mut counts = vec![0_u32; 1 << HASH_BITS];
        let mut scratch = Scratch::default();
        let mut sums = [(0.0_f64, 0.0_f64); SURFACE];
        for query in train {
            read(&query.prompt, &mut scratch);
            for (slot, _) in &scratch.terms {
                counts[*slot as usize] += 1;
            }
            for (sum, value) in sums.iter_mut().zip(scratch.surface) {
                sum.0 += f64::from(value);
                sum.1 += f64::from(value * value);
            }
        }
        let count = train.len() as f64;
        let spread = sums.map(|(sum, squares)| {
            let mean = sum / count;
            (mean, (squares / count - mean * mean).max(1e-6).sqrt())
        });
        let kept = (0_u32..).zip(&counts).filter(|(_, count)| **count >= 2);
        let (slots, documents): (Vec<u32>, Vec<u32>) = kept.map(|(slot, count)| (slot, *count)).unzip();
        let mean_output = |model: usize| {
            let lengths = train.iter().map(|query| query.output_tokens[model]).filter(|tokens| *tokens > 0);
            let (sum, count) =
                lengths.fold((0.0, 0.0), |(sum, count), tokens| (sum + f64::from(tokens), count + 1.0));
            if count > 0.0 { sum / count } else { 0.0 }
        };
        let mut scorer = Self {
            models: data.models.clone(),
            provenance: Provenance { data_sha256: String::new(), train_queries: train.len(), seed: 0 },
            mean_output_tokens: (0..data.models.len()).map(mean_output).collect(),
            row_of: Vec::new(),
            slots,
            documents,
            idf: Vec::new(),
            weights: Vec::new(),
            surface_mean: spread.map(|(mean, _)| mean as f32),
            surface_scale: spread.map(|(_, scale)| SURFACE_WEIGHT / scale as f32),
            calibration: vec![(1.0, 0.0); data.models.len()],
        };
        scorer.index();
        scorer
    }

    /// Fills what follows from the kept slots.
    fn index(&mut self) {
        self.row_of = vec![NONE; 1 << HASH_BITS];
        for (row, slot) in (0..).zip(&self.slots) {
            self.row_of[*slot as usize] = row;
        }
        let all = self.provenance.train_queries as f32;
        self.idf =
            self.documents.iter().map(|count| ((1.0 + all) / (1.0 + *count as f32)).ln() + 1.0).collect();
    }

    /// Calls `each` with (column, value) of every feature of `prompt`; words have length 1 together.
    fn for_each_feature(&self, prompt: &str, scratch: &mut Scratch, mut each: impl FnMut(usize, f32)) {
        read(prompt, scratch);
        let known =
            |slot: &u32| Some(self.row_of[*slot as usize]).filter(|row| *row != NONE).map(|row| row as usize);
        let squares: f32 = scratch
            .terms
            .iter()
            .filter_map(|(slot, tf)| known(slot).map(|row| (tf * self.idf[row]).powi(2)))
            .sum();
        let scale = 1.0 / squares.sqrt().max(1e-6);
        for (slot, tf) in &scratch.terms {
            if let Some(row) = known(slot) {
                each(row, tf * self.idf[row] * scale);
            }
        }
        let surface = self.slots.len();
        for (at, value) in scratch.surface.iter().enumerate() {
            let centred = (value - self.surface_mean[at]) * self.surface_scale[at];
            each(surface + at, centred.clamp(-4.0 * SURFACE_WEIGHT, 4.0 * SURFACE_WEIGHT));
        }
        each(surface + SURFACE, 1.0);
    }

    fn row(&self, prompt: &str, scratch: &mut Scratch) -> Row {
        let mut row = Row::new();
        self.for_each_feature(prompt, scratch, |column, value| row.push((column as u32, value)));
        row
    }

    /// Uncalibrated scores (log odds).
    fn raw(&self, prompt: &str, scratch: &mut Scratch, out: &mut [f32]) {
        let models = self.models.len();
        out.fill(0.0);
        self.for_each_feature(prompt, scratch, |column, value| {
            let weights = &self.weights[column * models..(column + 1) * models];
            for (sum, weight) in out.iter_mut().zip(weights) {
                *sum += weight * value;
            }
        });
    }

    /// The score each model is expected to get on `prompt`, in the order of [`Self::models`]. Allocates nothing once
    /// `scratch` has grown.
    ///
    /// # Panics
    /// If `out` is not as long as [`Self::models`].
    pub fn score(&self, prompt: &str, scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(out.len(), self.models.len(), "one score per model");
        self.raw(prompt, scratch, out);
        for (score, (a, b)) in out.iter_mut().zip(&self.calibration) {
            *score = sigmoid(a * f64::from(*score) + b) as f32;
        }
    }

    /// The models, in the order of the scores.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// Mean answer length per model on the training queries; 0 where not recorded.
    pub fn mean_output_tokens(&self) -> &[f64] {
        &self.mean_output_tokens
    }

    /// Where it comes from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
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
        for query in queries {
            self.score(&query.prompt, &mut scratch, &mut scores);
            scored.push(query, order.iter().map(|at| scores[*at]));
        }
        scored
    }

    /// The artefact, as JSON; the same scorer gives the same bytes.
    ///
    /// # Panics
    /// Never: all numbers are finite.
    pub fn to_json(&self) -> String {
        let file = ScorerFile {
            version: VERSION,
            kind: KIND.into(),
            models: self.models.clone(),
            provenance: self.provenance.clone(),
            mean_output_tokens: self.mean_output_tokens.clone(),
            hash_bits: HASH_BITS,
            slots: pack(self.slots.iter().map(|slot| slot.to_le_bytes())),
            documents: pack(self.documents.iter().map(|count| count.to_le_bytes())),
            weights: pack(self.weights.iter().map(|weight| weight.to_le_bytes())),
            surface_mean: self.surface_mean.to_vec(),
            surface_scale: self.surface_scale.to_vec(),
            calibration: self.calibration.clone(),
        };
        let mut text = serde_json::to_string_pretty(&file).expect("all numbers are finite");
        text.push('\n');
        text
    }

    /// Reads an artefact.
    ///
    /// # Errors
    /// If the text is not one, or its parts do not fit together.
    pub fn parse(file: &str, text: &str) -> Result<Self, DataError> {
        let error = |line: usize, message: String| DataError {
            file: file.into(),
            line,
            column: 0,
            message,
            hint: "train it again: `boute router train DATA -o router.json`".into(),
        };
        let read: ScorerFile =
            serde_json::from_str(text).map_err(|cause| error(cause.line(), cause.to_string()))?;
        let broken = |what: &str| error(0, format!("the router artefact is broken: {what}"));
        if read.version != VERSION || read.kind != KIND || read.hash_bits != HASH_BITS {
            return Err(error(0, format!("a router of version {}, not {VERSION}", read.version)));
        }
        let words = |text: &str| unpack(text).ok_or_else(|| broken("a table is not base64"));
        let slots: Vec<u32> = words(&read.slots)?.into_iter().map(u32::from_le_bytes).collect();
        let documents: Vec<u32> = words(&read.documents)?.into_iter().map(u32::from_le_bytes).collect();
        let weights: Vec<f32> = words(&read.weights)?.into_iter().map(f32::from_le_bytes).collect();
        let models = read.models.len();
        let fits = models > 0
            && documents.len() == slots.len()
            && weights.len() == (slots.len() + SURFACE + 1) * models
            && read.calibration.len() == models
            && read.mean_output_tokens.len() == models
            && slots.iter().all(|slot| *slot < 1 << HASH_BITS);
        let finite =
            weights.iter().chain(&read.surface_mean).chain(&read.surface_scale).all(|x| x.is_finite());
        let (Ok(surface_mean), Ok(surface_scale)) =
            (read.surface_mean.try_into(), read.surface_scale.try_into())
        else {
            return Err(broken("the surface features are not as many as this boute reads"));
        };
        if !fits || !finite {
            return Err(broken("its tables do not fit together"));
        }
        let mut scorer = Self {
            models: read.models,
            provenance: read.provenance,
            mean_output_tokens: read.mean_output_tokens,
            row_of: Vec::new(),
            slots,
            documents,
            idf: Vec::new(),
            weights,
            surface_mean,
            surface_scale,
            calibration: read.calibration,
        };
        scorer.index();
        Ok(scorer)
    }
}

const KIND: &str = "hashed words, logistic heads";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScorerFile {
    version: u32,
    kind: String,
    models: Vec<String>,
    provenance: Provenance,
    mean_output_tokens: Vec<f64>,
    hash_bits: u32,
    /// Base64 of little-endian 32-bit words, as are the next two.
    slots: String,
    documents: String,
    weights: String,
    surface_mean: Vec<f32>,
    surface_scale: Vec<f32>,
    calibration: Vec<(f64, f64)>,
}

fn pack(words: impl Iterator<Item = [u8; 4]>) -> String {
    BASE64.encode(words.flatten().collect::<Vec<u8>>())
}

fn unpack(text: &str) -> Option<Vec<[u8; 4]>> {
    let bytes = BASE64.decode(text).ok()?;
    let (words, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| words.to_vec())
}
