//! How good a router is: the share of the quality gap it recovers for its strong calls, what a pool of models saves, and
//! how true its predictions are; beside what random, constant and all-knowing routing do.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::queries::ScoredQueries;

/// Points of the curves.
const STEPS: usize = 1000;
/// Bins of the calibration error.
const BINS: usize = 15;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 400;
/// Prices tried for a pool.
const PRICES: usize = 200;

/// Predicted and actual scores of the queries in one bin of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Queries in it.
    pub queries: usize,
    /// Their mean prediction.
    pub predicted: f64,
    /// Their mean score.
    pub actual: f64,
}

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
    /// What the calibration error of true probabilities would be on average, with as many queries.
    pub ece_of_truth: f64,
    /// Mean squared error of the prediction.
    pub brier: f64,
    /// The bins that are not empty.
    pub bins: Vec<Bin>,
}

/// What a ranking of queries by their need of the strong model comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ranking {
    /// Average performance gap recovered: mean over shares of strong calls of (quality − weak)/(strong − weak).
    pub apgr: f64,
    /// Share of strong calls that recovers half of the gap.
    pub cpt50: f64,
    /// Share of strong calls that recovers 80 % of the gap.
    pub cpt80: f64,
}

/// A router between two models: weak answers by default, strong where it is worth it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairReport {
    /// The model with the lower mean score.
    pub weak: String,
    /// The model with the higher mean score.
    pub strong: String,
    /// The router's ranking by `ŝ_strong − ŝ_weak`.
    #[serde(flatten)]
    pub router: Ranking,
    /// Standard error of its APGR, by bootstrap.
    pub apgr_standard_error: f64,
    /// The same area for routing at random.
    pub apgr_random: f64,
    /// For ranking by `1 − ŝ_weak` alone, as single-score routers do.
    pub weak_only: Ranking,
    /// For routing by the actual scores.
    pub oracle: Ranking,
    /// For ranking whole tasks by their actual gain; `None` with a single task.
    pub task_oracle: Option<Ranking>,
    /// Share of strong calls and quality, 101 points.
    pub curve: Vec<(f64, f64)>,
}

/// A policy of a pool: what it costs and how good it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Mean cost of a query, in the unit of the given costs.
    pub cost: f64,
    /// Mean score.
    pub quality: f64,
}

/// A router among several models with different costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolReport {
    /// The model with the best mean score.
    pub best_single: String,
    /// What always using it gives and costs.
    pub best: Point,
    /// Quality of taking the largest prediction whatever it costs.
    pub unpriced_quality: f64,
    /// Quality of the best model for each query.
    pub oracle_quality: f64,
    /// Quality of the best model for each task.
    pub task_oracle_quality: f64,
    /// Share of the best model's cost saved at its quality.
    pub saved_at_best: f64,
    /// Share of it saved at 95 % of its quality.
    pub saved_at_95_percent: f64,
    /// Average improvement in quality (RouterBench): mean quality over costs from the cheapest to the dearest model, under
    /// the non-decreasing convex hull of what can be had.
    pub aiq: f64,
    /// That hull.
    pub hull: Vec<Point>,
    /// Every single model.
    pub constants: Vec<Point>,
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
    /// For all models; `None` without costs.
    pub pool: Option<PoolReport>,
}

/// How much more of something one router has than another, with the 95 % interval of the paired bootstrap over queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gain {
    /// On all queries.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A router beside another, between the weakest and the strongest model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Area under the recovered gap.
    pub apgr: Gain,
    /// Area under the ROC curve for the weak model.
    pub auc: Gain,
    /// Brier score for the weak model; less is better.
    pub brier: Gain,
}

/// What `queries` gain over `other`, the same queries with another router's predictions; `None` if all models are equally good.
///
/// # Panics
/// If they are not equally many.
pub fn compare(queries: &ScoredQueries, other: &ScoredQueries) -> Option<Comparison> {
    assert_eq!(queries.len(), other.len(), "the same queries");
    let (weak, strong) = weakest_and_strongest(queries)?;
    let gains = gains(queries, weak, strong);
    let [own, others] =
        [queries, other].map(|router| (advantages(router, weak, strong), predictions(router, weak)));
    let measures = |(keys, pairs): &(Vec<f64>, Vec<(f64, f64)>), rows: &[usize]| {
        let keys: Vec<f64> = rows.iter().map(|row| keys[*row]).collect();
        let gains: Vec<f64> = rows.iter().map(|row| gains[*row]).collect();
        let pairs: Vec<(f64, f64)> = rows.iter().map(|row| pairs[*row]).collect();
        [ranking(&gains, &keys).apgr, auc(&pairs), brier(&pairs)]
    };
    let differences = |rows: &[usize]| {
        let (own, others) = (measures(&own, rows), measures(&others, rows));
        [0, 1, 2].map(|at| own[at] - others[at])
    };
    let drawn: Vec<[f64; 3]> = draws(queries.len()).map(|rows| differences(&rows)).collect();
    let value = differences(&(0..queries.len()).collect::<Vec<_>>());
    let [apgr, auc, brier] = [0, 1, 2].map(|at| {
        let mut sorted: Vec<f64> = drawn.iter().map(|row| row[at]).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Gain { value: value[at], low: sorted[RESAMPLES / 40], high: sorted[RESAMPLES - 1 - RESAMPLES / 40] }
    });
    Some(Comparison { apgr, auc, brier })
}

/// Judges predictions on `queries`, whose tasks are `tasks`; `costs` per model and query, in any unit.
///
/// # Panics
/// If there is not a task per query or a cost per model.
pub fn report(queries: &ScoredQueries, tasks: &[&str], costs: Option<&[f64]>) -> Report {
    assert_eq!(tasks.len(), queries.len(), "one task per query");
    let models: Vec<ModelReport> =
        (0..queries.models.len()).map(|model| model_report(queries, model)).collect();
    let pair = weakest_and_strongest(queries).map(|(weak, strong)| pair_report(queries, tasks, weak, strong));
    let pool = costs.map(|costs| pool_report(queries, tasks, costs));
    Report { queries: queries.len(), models, pair, pool }
}

/// The models with the least and the largest mean score; `None` if they are equally good.
pub fn weakest_and_strongest(queries: &ScoredQueries) -> Option<(usize, usize)> {
    let by_quality = |a: &usize, b: &usize| quality(queries, *a).total_cmp(&quality(queries, *b));
    let models = 0..queries.models.len();
    let (weak, strong) = (models.clone().min_by(by_quality)?, models.max_by(by_quality)?);
    (quality(queries, strong) > quality(queries, weak)).then_some((weak, strong))
}

fn quality(queries: &ScoredQueries, model: usize) -> f64 {
    mean((0..queries.len()).map(|query| queries.actual(query, model)))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// What a model was predicted to score on each query, and what it scored.
fn predictions(queries: &ScoredQueries, model: usize) -> Vec<(f64, f64)> {
    let pair = |query| (f64::from(queries.predicted(query)[model]), queries.actual(query, model));
    (0..queries.len()).map(pair).collect()
}

fn brier(pairs: &[(f64, f64)]) -> f64 {
    mean(pairs.iter().map(|(predicted, actual)| (predicted - actual).powi(2)))
}

fn model_report(queries: &ScoredQueries, model: usize) -> ModelReport {
    let pairs = predictions(queries, model);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let of_truth = || {
        let drawn = pairs.iter().map(|(p, _)| (*p, f64::from(u8::from(rng.random::<f64>() < *p))));
        ece(&bins(&drawn.collect::<Vec<_>>()), pairs.len())
    };
    let of_truth: Vec<f64> = std::iter::repeat_with(of_truth).take(20).collect();
    let bins = bins(&pairs);
    ModelReport {
        model: queries.models[model].clone(),
        quality: mean(pairs.iter().map(|(_, actual)| *actual)),
        auc: auc(&pairs),
        ece: ece(&bins, pairs.len()),
        ece_of_truth: mean(of_truth.into_iter()),
        brier: brier(&pairs),
        bins: bins.into_iter().filter(|bin| bin.queries > 0).collect(),
    }
}

fn bins(pairs: &[(f64, f64)]) -> Vec<Bin> {
    let mut sums = [(0_usize, 0.0, 0.0); BINS];
    for (predicted, actual) in pairs {
        let bin = &mut sums[((predicted * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + predicted, bin.2 + actual);
    }
    let bin = |(queries, predicted, actual): &(usize, f64, f64)| {
        let count = (*queries).max(1) as f64;
        Bin { queries: *queries, predicted: predicted / count, actual: actual / count }
    };
    sums.iter().map(bin).collect()
}

fn ece(bins: &[Bin], count: usize) -> f64 {
    let off = |bin: &Bin| bin.queries as f64 * (bin.predicted - bin.actual).abs();
    bins.iter().map(off).sum::<f64>() / count.max(1) as f64
}

/// Chance that a right answer was predicted higher than a wrong one; ties count half.
pub fn auc(pairs: &[(f64, f64)]) -> f64 {
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

fn pair_report(queries: &ScoredQueries, tasks: &[&str], weak: usize, strong: usize) -> PairReport {
    let gains = gains(queries, weak, strong);
    let routed = advantages(queries, weak, strong);
    let weak_only: Vec<f64> =
        (0..queries.len()).map(|query| -f64::from(queries.predicted(query)[weak])).collect();
    let of_task = means_by_task(tasks, &gains);
    let errors: Vec<f64> = resamples(&gains, &[&routed]).into_iter().map(|row| row[0].apgr).collect();
    let recovered = recovered(&in_order(&gains, &routed));
    let low = quality(queries, weak);
    let gap = quality(queries, strong) - low;
    PairReport {
        weak: queries.models[weak].clone(),
        strong: queries.models[strong].clone(),
        router: ranking(&gains, &routed),
        apgr_standard_error: standard_deviation(&errors),
        apgr_random: 0.5,
        weak_only: ranking(&gains, &weak_only),
        oracle: ranking(&gains, &gains),
        task_oracle: (of_task.iter().any(|mean| *mean != of_task[0])).then(|| ranking(&gains, &of_task)),
        curve: (0..=100)
            .map(|step| (step as f64 / 100.0, low + gap * recovered[step * STEPS / 100]))
            .collect(),
    }
}

/// What the strong model gains on each query.
pub fn gains(queries: &ScoredQueries, weak: usize, strong: usize) -> Vec<f64> {
    (0..queries.len()).map(|query| queries.actual(query, strong) - queries.actual(query, weak)).collect()
}

/// What it is expected to gain.
pub fn advantages(queries: &ScoredQueries, weak: usize, strong: usize) -> Vec<f64> {
    let advantage = |query| {
        let scores = queries.predicted(query);
        f64::from(scores[strong] - scores[weak])
    };
    (0..queries.len()).map(advantage).collect()
}

/// For each query the mean of `values` over its task.
fn means_by_task(tasks: &[&str], values: &[f64]) -> Vec<f64> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (task, value) in tasks.iter().zip(values) {
        let sum = sums.entry(task).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    tasks.iter().map(|task| sums[task].0 / sums[task].1).collect()
}

/// What sending the queries with the largest `keys` to the strong model first comes to.
pub fn ranking(gains: &[f64], keys: &[f64]) -> Ranking {
    ranking_of(&in_order(gains, keys))
}

fn in_order(gains: &[f64], keys: &[f64]) -> Vec<f64> {
    descending(keys).iter().map(|query| gains[*query]).collect()
}

fn descending(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]));
    order
}

fn ranking_of(gains_in_order: &[f64]) -> Ranking {
    let curve = recovered(gains_in_order);
    let reaches =
        |level: f64| curve.iter().position(|gap| *gap >= level).unwrap_or(STEPS) as f64 / STEPS as f64;
    Ranking { apgr: curve.iter().sum::<f64>() / curve.len() as f64, cpt50: reaches(0.5), cpt80: reaches(0.8) }
}

/// Share of the gap recovered when the first 0, 1/1000, …, 1 of `gains` go to the strong model.
fn recovered(gains: &[f64]) -> Vec<f64> {
    let total: f64 = gains.iter().sum();
    let mut sums = vec![0.0];
    for gain in gains {
        sums.push(sums[sums.len() - 1] + gain);
    }
    (0..=STEPS).map(|step| sums[step * gains.len() / STEPS] / total).collect()
}

/// The queries of each resample, of `count`.
fn draws(count: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..RESAMPLES).map(move |_| (0..count).map(|_| rng.random_range(0..count)).collect())
}

/// Rankings by several keys of the same resamples of the queries, so that differences are paired: `[resample][key]`.
pub fn resamples(gains: &[f64], keys: &[&[f64]]) -> Vec<Vec<Ranking>> {
    let orders: Vec<Vec<usize>> = keys.iter().map(|keys| descending(keys)).collect();
    draws(gains.len())
        .map(|rows| {
            let mut times = vec![0_usize; gains.len()];
            for row in rows {
                times[row] += 1;
            }
            let ranked = |order: &Vec<usize>| {
                let drawn = order.iter().flat_map(|query| std::iter::repeat_n(gains[*query], times[*query]));
                ranking_of(&drawn.collect::<Vec<_>>())
            };
            orders.iter().map(ranked).collect()
        })
        .collect()
}

fn standard_deviation(values: &[f64]) -> f64 {
    let mean = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len().max(2) - 1) as f64).sqrt()
}

fn pool_report(queries: &ScoredQueries, tasks: &[&str], costs: &[f64]) -> PoolReport {
    let models = queries.models.len();
    assert_eq!(costs.len(), models, "one cost per model");
    let constants: Vec<Point> = costs
        .iter()
        .enumerate()
        .map(|(model, cost)| Point { cost: *cost, quality: quality(queries, model) })
        .collect();
    let best = (0..models)
        .max_by(|a, b| {
            let [a, b] = [a, b].map(|at| constants[*at]);
            a.quality.total_cmp(&b.quality).then(b.cost.total_cmp(&a.cost))
        })
        .unwrap_or_default();
    let by_query = |value: &dyn Fn(usize) -> f64| mean((0..queries.len()).map(value));
    let columns: Vec<Vec<f64>> = (0..models)
        .map(|model| {
            let own: Vec<f64> = (0..queries.len()).map(|query| queries.actual(query, model)).collect();
            means_by_task(tasks, &own)
        })
        .collect();
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let hull = hull(priced(queries, costs).into_iter().chain(constants.iter().copied()).collect());
    let saved = |share: f64| 1.0 - cost_at(&hull, share * constants[best].quality) / constants[best].cost;
    PoolReport {
        best_single: queries.models[best].clone(),
        best: constants[best],
        unpriced_quality: policy_point(queries, costs, 0.0).quality,
        oracle_quality: by_query(&|query| {
            largest(&mut (0..models).map(|model| queries.actual(query, model)))
        }),
        task_oracle_quality: by_query(&|query| largest(&mut columns.iter().map(|column| column[query]))),
        saved_at_best: saved(1.0),
        saved_at_95_percent: saved(0.95),
        aiq: area(&hull, costs),
        hull,
        constants,
    }
}

/// Policies `argmax ŝ_m − t·cost_m` for growing t.
fn priced(queries: &ScoredQueries, costs: &[f64]) -> Vec<Point> {
    let dearest = costs.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let price = |step: usize| 1e-3 * 1e4_f64.powf(step as f64 / (PRICES - 1) as f64) / dearest;
    let prices = std::iter::once(0.0).chain((0..PRICES).map(price));
    prices.map(|price| policy_point(queries, costs, price)).collect()
}

/// What `argmax ŝ_m − price·cost_m` comes to.
pub fn policy_point(queries: &ScoredQueries, costs: &[f64], price: f64) -> Point {
    let chosen = |query: usize| {
        let scores = queries.predicted(query);
        let utility = |model: usize| f64::from(scores[model]) - price * costs[model];
        let first_best =
            |best: usize, model: usize| if utility(model) > utility(best) { model } else { best };
        (1..costs.len()).fold(0, first_best)
    };
    let chosen: Vec<usize> = (0..queries.len()).map(chosen).collect();
    Point {
        cost: mean(chosen.iter().map(|model| costs[*model])),
        quality: mean(chosen.iter().enumerate().map(|(query, model)| queries.actual(query, *model))),
    }
}

/// The points on the non-decreasing convex hull, cheapest first: what mixtures of policies can do.
fn hull(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(b.quality.total_cmp(&a.quality)));
    let mut hull: Vec<Point> = Vec::new();
    for point in points {
        if hull.last().is_some_and(|last| point.quality <= last.quality) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let rise =
                |from: Point, to: Point| (to.quality - from.quality) / (to.cost - from.cost).max(1e-12);
            if rise(a, b) > rise(a, point) {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

/// The least cost at which the hull has `quality`; infinite if it never has.
fn cost_at(hull: &[Point], quality: f64) -> f64 {
    let reaches = hull.iter().position(|point| point.quality >= quality - 1e-12);
    match reaches {
        None => f64::INFINITY,
        Some(0) => hull[0].cost,
        Some(at) => {
            let [a, b] = [hull[at - 1], hull[at]];
            a.cost + (b.cost - a.cost) * (quality - a.quality) / (b.quality - a.quality)
        }
    }
}

/// Mean quality of the hull over the costs of the models.
fn area(hull: &[Point], costs: &[f64]) -> f64 {
    let low = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = costs.iter().copied().fold(0.0, f64::max);
    let at = |cost: f64| {
        let above = hull.partition_point(|point| point.cost < cost);
        match (above, hull.get(above)) {
            (0, _) => hull[0].quality,
            (_, None) => hull[hull.len() - 1].quality,
            (_, Some(b)) => {
                let a = hull[above - 1];
                a.quality + (b.quality - a.quality) * (cost - a.cost) / (b.cost - a.cost)
            }
        }
    };
    mean((0..=STEPS).map(|step| at(low + (high - low) * step as f64 / STEPS as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rankings_lie_between_random_and_oracle() {
        let gains: Vec<f64> = (0..1000).map(|at| [1.0, 0.0, 0.0, -1.0, 1.0][at % 5]).collect();
        let oracle = ranking(&gains, &gains);
        let inverse = ranking(&gains, &gains.iter().map(|gain| -gain).collect::<Vec<_>>());
        // A fifth of the queries each: +1 twice, 0 twice, −1 once; the whole gap is 1/5.
        assert!((oracle.cpt50 - 0.1).abs() < 1e-9 && oracle.apgr > 1.2 && inverse.apgr < 0.0, "{oracle:?}");
        let shuffled: Vec<f64> = (0..1000).map(|at| f64::from(at * 7919 % 1000)).collect();
        assert!((ranking(&gains, &shuffled).apgr - 0.5).abs() < 0.1);
    }

    #[test]
    fn mixtures_reach_what_lies_between() {
        let point = |cost, quality| Point { cost, quality };
        let hull =
            hull(vec![point(1.0, 0.2), point(3.0, 0.3), point(3.0, 0.6), point(2.0, 0.3), point(4.0, 0.5)]);
        assert_eq!(hull, [point(1.0, 0.2), point(3.0, 0.6)]);
        assert!((cost_at(&hull, 0.4) - 2.0).abs() < 1e-9);
        assert_eq!(cost_at(&hull, 0.7), f64::INFINITY);
        assert!((area(&hull, &[1.0, 3.0]) - 0.4).abs() < 1e-3);
    }

    #[test]
    fn a_better_router_gains() {
        let scored = |noise: f32| {
            let mut queries = ScoredQueries::new(vec!["weak".into(), "strong".into()]);
            for at in 0..400_u32 {
                let spread = |factor: u32, of: u32| (at * factor % of) as f32 / of as f32;
                let chance = spread(1, 20);
                queries.predicted.extend([chance + noise * (spread(37, 101) - 0.5), 0.9]);
                queries.actual.extend([f32::from(u8::from(spread(7919, 97) < chance)), 1.0]);
                queries.prompt_tokens.push(1);
            }
            queries
        };
        let gains = compare(&scored(0.0), &scored(2.0)).unwrap();
        assert!(gains.apgr.low > 0.0 && gains.auc.low > 0.0 && gains.brier.high < 0.0, "{gains:?}");
        let none = compare(&scored(0.0), &scored(0.0)).unwrap();
        assert_eq!((none.apgr.low, none.auc.value, none.brier.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn an_auc_counts_ties_half() {
        assert_eq!(auc(&[(0.1, 0.0), (0.9, 1.0)]), 1.0);
        assert_eq!(auc(&[(0.5, 0.0), (0.5, 1.0)]), 0.5);
    }
}
