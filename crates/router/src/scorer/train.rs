//! Training. Everything that judges a prediction (calibration, trees, spread of lengths) uses predictions for queries by
//! heads that were not trained on them (cross-fitting).

use std::collections::BTreeMap;
use std::sync::Arc;

use boute_spec::workload::{QualityData, Query, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::ensemble::Ensemble;
use super::linear::Linear;
use super::{Provenance, Scorer};
use crate::encoder::Encode;
use crate::features::{SURFACE, Scratch, read};
use crate::lengths::{FEWEST_ANSWERS, Spread};
use crate::logistic::{Row, logit_of_mean, platt};
use crate::trees::{Table, Trees};
use crate::vocabulary::{FEWEST_DOCUMENTS, Vocabulary, frequency};
use crate::{logistic, ridge};

/// Cost C of both regressions, the customary 1.
const COST: f64 = 1.0;
/// Weight of the surface features beside the words, which together have length 1.
pub(super) const SURFACE_WEIGHT: f32 = 0.25;
/// Parts of the training queries: each is scored by heads trained on the others.
const PARTS: usize = 4;
/// Queries needed to train and to calibrate.
const FEWEST_TRAIN: usize = 100;
/// Queries of a task whose mean is taken to say something.
const FEWEST_OF_TASK: f32 = 10.0;
/// Shares of the training queries that are less novel than the point where scores begin to shrink, and than that where
/// nothing is left of them.
const KNOWN_SHARES: (f64, f64) = (0.98, 0.998);

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

/// A query as it was read.
struct Reading {
    scratch: Scratch,
    row: Row,
}

impl Scorer {
    /// Trains and calibrates on the training split of `data`, so that the other splits stay unseen: policies are chosen,
    /// certified and judged on those. `data_sha256` is kept as provenance. The same data and seed give the same bytes.
    ///
    /// # Errors
    /// If the training split has too few queries.
    pub fn train(data: &QualityData, seed: u64, data_sha256: &str) -> Result<Self, TooFewRows> {
        Self::train_with(data, seed, data_sha256, None)
    }

    /// The same as an ensemble with heads on the sentence embeddings of `encoder`, if there is one. The default scorer in it
    /// is the one that [`Self::train`] makes.
    ///
    /// # Errors
    /// If the training split has too few queries.
    pub fn train_with(
        data: &QualityData,
        seed: u64,
        data_sha256: &str,
        encoder: Option<Arc<dyn Encode>>,
    ) -> Result<Self, TooFewRows> {
        let train: Vec<&Query> = data.split(Split::Train).collect();
        if train.len() < FEWEST_TRAIN {
            return Err(TooFewRows { rows: train.len(), needed: FEWEST_TRAIN });
        }
        let provenance = Provenance { data_sha256: data_sha256.into(), train_queries: train.len(), seed };
        let (mut scorer, readings) = Self::untrained(&data.models, &train, provenance);
        let rows: Vec<&Row> = readings.iter().map(|reading| &reading.row).collect();
        let columns = scorer.vocabulary.len() + SURFACE + 1;
        let targets = |model: usize| train.iter().map(|query| query.scores[model]).collect::<Vec<f32>>();
        let models = 0..data.models.len();
        let heads: Vec<Head> = models
            .clone()
            .into_par_iter()
            .map(|model| {
                let seed = seed.wrapping_add(1 + model as u64);
                Head::fit(&rows, &smoothed(&train, &targets(model)), seed, |rows, targets, rng| {
                    logistic::fit(rows, targets, columns, COST, rng)
                })
            })
            .collect();
        for model in models.clone() {
            scorer.linear[model] = platt(&heads[model].unseen, &targets(model));
            scorer.prior[model] = logit_of_mean(&targets(model)) as f32;
        }
        let means = |model: &usize| scorer.prior[*model];
        scorer.best = models.clone().rev().max_by(|a, b| means(a).total_cmp(&means(b))).unwrap_or(0);
        let unseen = scorer.fit_trees(&train, &readings, &heads);
        scorer.ensemble = encoder.map(|encoder| {
            let surfaces: Vec<_> =
                readings.iter().map(|reading| scorer.standard_surface(&reading.scratch)).collect();
            Ensemble::fit(encoder, &train, &surfaces, &unseen, seed)
        });
        let lengths: Vec<Option<(Head, Spread)>> = models
            .into_par_iter()
            .map(|model| length_head(&rows, &train, model, columns, seed.wrapping_add(1 + model as u64)))
            .collect();
        scorer.assemble(heads, lengths);
        Ok(scorer)
    }

    /// A scorer that knows the words and the spread of the surface, and the queries as it reads them.
    fn untrained(models: &[String], train: &[&Query], provenance: Provenance) -> (Self, Vec<Reading>) {
        let scratches: Vec<Scratch> = train
            .iter()
            .map(|query| {
                let mut scratch = Scratch::default();
                read(&[&query.prompt], &mut scratch);
                scratch
            })
            .collect();
        let count = train.len() as f64;
        let spread: [(f64, f64); SURFACE] = std::array::from_fn(|at| {
            let values = || scratches.iter().map(|scratch| f64::from(scratch.surface[at]));
            let mean = values().sum::<f64>() / count;
            (mean, (values().map(|x| (x - mean).powi(2)).sum::<f64>() / count).max(1e-6).sqrt())
        });
        let mean_output = |model: usize| {
            let lengths = train.iter().map(|query| query.output_tokens[model]).filter(|tokens| *tokens > 0);
            let (sum, count) =
                lengths.fold((0.0, 0.0), |(sum, count), tokens| (sum + f64::from(tokens), count + 1.0));
            if count > 0.0 { sum / count } else { 0.0 }
        };
        let mut scorer = Self {
            models: models.to_vec(),
            provenance,
            mean_output_tokens: (0..models.len()).map(mean_output).collect(),
            vocabulary: Vocabulary::of(scratches.iter().map(|scratch| &scratch.terms[..])),
            heads: Linear::default(),
            surface_mean: spread.map(|(mean, _)| mean as f32),
            surface_scale: spread.map(|(_, scale)| SURFACE_WEIGHT / scale as f32),
            linear: vec![(1.0, 0.0); models.len()],
            trees: Trees::default(),
            calibration: vec![(1.0, 0.0); models.len()],
            prior: vec![0.0; models.len()],
            best: 0,
            novelty: (1.0, 1.0),
            lengths: Vec::new(),
            ensemble: None,
        };
        let readings: Vec<Reading> = scratches
            .into_iter()
            .map(|mut scratch| {
                let row = scorer.row_read(&scratch);
                scratch.novelty = scorer.novelty_without_itself(&scratch);
                Reading { scratch, row }
            })
            .collect();
        let mut novelties: Vec<f32> = readings.iter().map(|reading| reading.scratch.novelty).collect();
        novelties.sort_unstable_by(f32::total_cmp);
        let at = |share: f64| novelties[(share * (novelties.len() - 1) as f64).round() as usize];
        let (start, end) = KNOWN_SHARES;
        scorer.novelty = (at(start), at(end).max(at(start) + 0.05));
        (scorer, readings)
    }

    /// The novelty that a training query would have, had it not been trained on.
    fn novelty_without_itself(&self, scratch: &Scratch) -> f32 {
        let (mut seen, mut unseen) = (0.0, 0.0);
        for &(hash, times) in &scratch.terms {
            let frequency = frequency(times);
            match self.vocabulary.row(hash) {
                Some(row) if self.vocabulary.documents[row] > FEWEST_DOCUMENTS => {
                    seen += frequency * self.vocabulary.idf(row);
                }
                _ => unseen += frequency * self.vocabulary.idf_unknown(),
            }
        }
        unseen / (seen + unseen).max(1e-6)
    }

    /// Trees on the surface, the novelty and the heads, and the calibration of all of it. Returns the calibrated log odds
    /// (row-major) of each query by heads and trees that were not trained on it.
    fn fit_trees(&mut self, train: &[&Query], readings: &[Reading], heads: &[Head]) -> Vec<f64> {
        let models = heads.len();
        let columns = SURFACE + 1 + models;
        let mut inputs = Table { values: Vec::with_capacity(train.len() * columns), columns };
        let (mut odds, mut targets) = (Vec::new(), Vec::new());
        for (at, reading) in readings.iter().enumerate() {
            let own: Vec<f64> =
                heads.iter().zip(&self.linear).map(|(head, (a, b))| a * head.unseen[at] + b).collect();
            inputs.values.extend(reading.scratch.surface);
            inputs.values.push(reading.scratch.novelty);
            inputs.values.extend(own.iter().map(|odds| *odds as f32));
            odds.extend(own);
            targets.extend(&train[at].scores);
        }
        let part_of = |row: usize| row % PARTS;
        let mut unseen = vec![0.0; odds.len()];
        for part in 0..PARTS {
            let others: Vec<usize> = (0..train.len()).filter(|row| part_of(*row) != part).collect();
            let of = |row: &usize| *row * models..(*row + 1) * models;
            let some =
                Table { values: others.iter().flat_map(|row| inputs.row(*row)).copied().collect(), columns };
            let base: Vec<f64> = others.iter().flat_map(|row| &odds[of(row)]).copied().collect();
            let wanted: Vec<f32> = others.iter().flat_map(|row| &targets[of(row)]).copied().collect();
            let trees = Trees::fit(&some, &base, &wanted);
            for row in (part..train.len()).step_by(PARTS) {
                let mut own: Vec<f32> = odds[of(&row)].iter().map(|odds| *odds as f32).collect();
                trees.add(inputs.row(row), &mut own);
                unseen[of(&row)].iter_mut().zip(own).for_each(|(unseen, own)| *unseen = f64::from(own));
            }
        }
        for model in 0..models {
            let column =
                |table: &[f64]| -> Vec<f64> { table.iter().skip(model).step_by(models).copied().collect() };
            let wanted: Vec<f32> = targets.iter().skip(model).step_by(models).copied().collect();
            self.calibration[model] = platt(&column(&unseen), &wanted);
        }
        self.trees = Trees::fit(&inputs, &odds, &targets);
        let calibrated = |(at, odds): (usize, f64)| {
            let (a, b) = self.calibration[at % models];
            a * odds + b
        };
        unseen.into_iter().enumerate().map(calibrated).collect()
    }

    /// Interleaves the weights of all heads.
    fn assemble(&mut self, heads: Vec<Head>, lengths: Vec<Option<(Head, Spread)>>) {
        let columns = self.vocabulary.len() + SURFACE + 1;
        let mut weights: Vec<Vec<f32>> = heads.into_iter().map(|head| head.weights).collect();
        if lengths.iter().any(Option::is_some) {
            for length in lengths {
                let (head, spread) = length.unzip();
                weights.push(head.map_or_else(|| vec![0.0; columns], |head| head.weights));
                self.lengths.push(spread);
            }
        }
        let idf =
            |column: usize| if column < self.vocabulary.len() { self.vocabulary.idf(column) } else { 1.0 };
        let row =
            |column: usize| std::iter::once(idf(column)).chain(weights.iter().map(move |head| head[column]));
        let rows: Vec<f32> = (0..columns).flat_map(row).collect();
        self.heads = Linear::from_rows(&rows, weights.len()).expect("the rows are whole");
    }
}

/// Targets drawn half-way to the mean of their task. One answer is a noisy sample of how hard a query is; its task says some
/// of it, and the heads learn to know tasks by their words. (RouteLLM's data, cross-validated: APGR 0.687 → 0.691, with
/// whole tasks left out 0.601 → 0.612.)
pub(super) fn smoothed(train: &[&Query], targets: &[f32]) -> Vec<f32> {
    let mut sums: BTreeMap<&str, (f32, f32)> = BTreeMap::new();
    for (query, target) in train.iter().zip(targets) {
        let sum = sums.entry(&query.task).or_default();
        *sum = (sum.0 + target, sum.1 + 1.0);
    }
    let half = |(query, target): (&&Query, &f32)| match sums[query.task.as_str()] {
        (sum, count) if count >= FEWEST_OF_TASK => f32::midpoint(*target, sum / count),
        _ => *target,
    };
    train.iter().zip(targets).map(half).collect()
}

/// A linear head, and its outputs for rows it was not fitted to.
pub(super) struct Head {
    pub(super) weights: Vec<f32>,
    pub(super) unseen: Vec<f64>,
}

impl Head {
    /// Fits all rows, and the rows outside of each part, with `fit(rows, targets, rng) -> weights`.
    pub(super) fn fit(
        rows: &[&Row],
        targets: &[f32],
        seed: u64,
        fit: impl Fn(&[&Row], &[f32], &mut ChaCha8Rng) -> Vec<f32> + Sync,
    ) -> Self {
        // Part `PARTS` holds no row: that fit is the one on all rows.
        let mut fits: Vec<Vec<f32>> = (0..=PARTS)
            .into_par_iter()
            .map(|part| {
                let others = || (0..rows.len()).filter(|row| row % PARTS != part);
                let other_rows: Vec<&Row> = others().map(|row| rows[row]).collect();
                let other_targets: Vec<f32> = others().map(|row| targets[row]).collect();
                let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(8).wrapping_add(part as u64));
                fit(&other_rows, &other_targets, &mut rng)
            })
            .collect();
        let output = |(row, features): (usize, &&Row)| {
            let weights = &fits[row % PARTS];
            features.iter().map(|&(column, x)| f64::from(weights[column as usize] * x)).sum()
        };
        let unseen = rows.iter().enumerate().map(output).collect();
        Self { weights: fits.swap_remove(PARTS), unseen }
    }
}

/// The head that predicts ln(1 + tokens) of a model's answers, and the spread around it; `None` with too few lengths.
fn length_head(
    rows: &[&Row],
    train: &[&Query],
    model: usize,
    columns: usize,
    seed: u64,
) -> Option<(Head, Spread)> {
    let known: Vec<usize> = (0..train.len()).filter(|at| train[*at].output_tokens[model] > 0).collect();
    if known.len() < FEWEST_ANSWERS {
        return None;
    }
    let rows: Vec<&Row> = known.iter().map(|at| rows[*at]).collect();
    let targets: Vec<f32> = known.iter().map(|at| (train[*at].output_tokens[model] as f32).ln_1p()).collect();
    let head =
        Head::fit(&rows, &targets, seed, |rows, targets, rng| ridge::fit(rows, targets, columns, COST, rng));
    let pairs = head.unseen.iter().map(|guess| *guess as f32).zip(targets).collect();
    Some((head, Spread::of(pairs)))
}
