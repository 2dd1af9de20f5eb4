//! How good a router is: the area under the recovered-gap curve and friends, beside random and oracle routing.

use serde::Serialize;

use crate::queries::ScoredQueries;

/// Points of the curves.
const STEPS: usize = 100;
/// Bins of the calibration error.
const BINS: usize = 15;

/// Calibration of the predictions for one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    /// Model id.
    pub model: String,
    /// Mean score: what always using it gives.
    pub quality: f64,
    /// Area under the ROC curve of the prediction (scores above ½ count as right).
    pub auc: f64,
    /// Expected calibration error, 15 bins of equal width.
    pub ece: f64,
    /// Mean squared error of the prediction.
    pub brier: f64,
}

/// A router between two models: weak answers by default, strong where it is worth it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairReport {
    /// The model with the lower mean score.
    pub weak: String,
    /// The model with the higher mean score.
    pub strong: String,
    /// Average performance gap recovered: mean over shares of strong calls of (quality − weak)/(strong − weak).
    pub apgr: f64,
    /// Standard error of it, by bootstrap.
    pub apgr_standard_error: f64,
    /// Share of strong calls that recovers half of the gap.
    pub cpt50: f64,
    /// Share of strong calls that recovers 80 % of the gap.
    pub cpt80: f64,
    /// The same area for routing at random.
    pub apgr_random: f64,
    /// The same area for routing by the actual scores.
    pub apgr_oracle: f64,
}

/// What `router eval` reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Queries.
    pub queries: usize,
    /// Per model.
    pub models: Vec<ModelReport>,
    /// For the weakest and the strongest model; `None` if they are equally good.
    pub pair: Option<PairReport>,
}

/// Judges predictions on `queries`.
pub fn report(queries: &ScoredQueries) -> Report {
    let models: Vec<ModelReport> =
        (0..queries.models.len()).map(|model| model_report(queries, model)).collect();
    let by_quality = |a: &usize, b: &usize| models[*a].quality.total_cmp(&models[*b].quality);
    let weak = (0..models.len()).min_by(by_quality);
    let strong = (0..models.len()).max_by(by_quality);
    let pair = weak
        .zip(strong)
        .filter(|(weak, strong)| models[*strong].quality > models[*weak].quality)
        .map(|(weak, strong)| pair_report(queries, weak, strong));
    Report { queries: queries.len(), models, pair }
}

fn model_report(queries: &ScoredQueries, model: usize) -> ModelReport {
    let pairs: Vec<(f64, f64)> = (0..queries.len())
        .map(|query| (f64::from(queries.predicted(query)[model]), queries.actual(query, model)))
        .collect();
    let count = pairs.len().max(1) as f64;
    let mut bins = [(0.0, 0.0); BINS];
    for (predicted, actual) in &pairs {
        let bin = &mut bins[((predicted * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += predicted;
        bin.1 += actual;
    }
    ModelReport {
        model: queries.models[model].clone(),
        quality: pairs.iter().map(|(_, actual)| actual).sum::<f64>() / count,
        auc: auc(&pairs),
        ece: bins.iter().map(|(predicted, actual)| (predicted - actual).abs()).sum::<f64>() / count,
        brier: pairs.iter().map(|(predicted, actual)| (predicted - actual).powi(2)).sum::<f64>() / count,
    }
}

/// Chance that a right answer was predicted higher than a wrong one; ties count half.
fn auc(pairs: &[(f64, f64)]) -> f64 {
    let mut sorted: Vec<(f64, bool)> =
        pairs.iter().map(|(predicted, actual)| (*predicted, *actual > 0.5)).collect();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let right = sorted.iter().filter(|(_, right)| *right).count() as f64;
    let wrong = sorted.len() as f64 - right;
    let (mut below, mut area) = (0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let right_here = tied.iter().filter(|(_, right)| *right).count() as f64;
        let wrong_here = tied.len() as f64 - right_here;
        area += right_here * (below + 0.5 * wrong_here);
        below += wrong_here;
    }
    if right * wrong > 0.0 { area / (right * wrong) } else { 0.5 }
}

fn pair_report(queries: &ScoredQueries, weak: usize, strong: usize) -> PairReport {
    let gain = |query: usize| queries.actual(query, strong) - queries.actual(query, weak);
    let predicted = |query: usize| {
        let scores = queries.predicted(query);
        f64::from(scores[strong] - scores[weak])
    };
    let all: Vec<usize> = (0..queries.len()).collect();
    let by = |key: &dyn Fn(usize) -> f64| {
        let mut order = all.clone();
        order.sort_by(|a, b| key(*b).total_cmp(&key(*a)));
        order.iter().map(|query| gain(*query)).collect::<Vec<f64>>()
    };
    let routed = by(&predicted);
    let curve = recovered(&routed);
    let reaches = |level: f64| {
        let at = curve.iter().position(|gap| *gap >= level).unwrap_or(STEPS);
        at as f64 / STEPS as f64
    };
    PairReport {
        weak: queries.models[weak].clone(),
        strong: queries.models[strong].clone(),
        apgr: area(&curve),
        apgr_standard_error: bootstrap(&all, &predicted, &gain),
        cpt50: reaches(0.5),
        cpt80: reaches(0.8),
        apgr_random: 0.5,
        apgr_oracle: area(&recovered(&by(&gain))),
    }
}

/// Share of the gap recovered when the first 0, 1/100, …, 1 of `gains` go to the strong model.
fn recovered(gains: &[f64]) -> Vec<f64> {
    let total: f64 = gains.iter().sum();
    let mut sums = vec![0.0];
    for gain in gains {
        sums.push(sums[sums.len() - 1] + gain);
    }
    (0..=STEPS).map(|step| sums[step * gains.len() / STEPS] / total).collect()
}

fn area(curve: &[f64]) -> f64 {
    curve.iter().sum::<f64>() / curve.len() as f64
}

/// Standard error of the area over 200 resamples, seeded.
fn bootstrap(all: &[usize], key: &dyn Fn(usize) -> f64, gain: &dyn Fn(usize) -> f64) -> f64 {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut order = all.to_vec();
    order.sort_by(|a, b| key(*b).total_cmp(&key(*a)));
    let areas: Vec<f64> = (0..200)
        .map(|_| {
            // Resampling in order of the key: how often each query is drawn.
            let mut times = vec![0_u32; order.len()];
            for _ in 0..order.len() {
                times[rng.random_range(0..order.len())] += 1;
            }
            let gains: Vec<f64> = order
                .iter()
                .zip(&times)
                .flat_map(|(query, times)| std::iter::repeat_n(gain(*query), *times as usize))
                .collect();
            area(&recovered(&gains))
        })
        .collect();
    let mean = areas.iter().sum::<f64>() / areas.len() as f64;
    (areas.iter().map(|area| (area - mean).powi(2)).sum::<f64>() / (areas.len() - 1) as f64).sqrt()
}
