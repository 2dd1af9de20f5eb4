//! How good the predictions and the policies are.

use boute_router::baselines::{nearest, pairwise};
use boute_router::cascade::{Answer, Heads};
use boute_router::eval::{
    Ranking, advantages, auc, gains, policy_point, ranking, report as judge, resamples, weakest_and_strongest,
};
use boute_router::lengths::QUANTILES;
use boute_router::{ScoredQueries, Scratch};
use boute_spec::workload::{Query, Split};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Report, Set};

/// What a pair of models should reach.
pub(super) struct Bars {
    apgr: f64,
    cpt50: Option<f64>,
    cpt80: Option<f64>,
    auc: Option<f64>,
    /// ECE and Brier score of the weak model.
    calibration: Option<(f64, f64)>,
}

pub(super) const ROUTELLM: Bars = Bars {
    apgr: 0.68,
    cpt50: Some(0.27),
    cpt80: Some(0.58),
    auc: Some(0.71),
    calibration: Some((0.03, 0.191)),
};
pub(super) const MMLU_PRO: Bars =
    Bars { apgr: 0.54, cpt50: None, cpt80: None, auc: Some(0.67), calibration: None };
pub(super) const ZEROEVAL: Bars = Bars { apgr: 0.61, cpt50: None, cpt80: None, auc: None, calibration: None };

/// A value with its 95 % interval.
pub(super) fn interval(value: f64, resampled: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = resampled.collect();
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
    (value, at(0.025), at(0.975))
}

/// Half of the interval's width on either side of `value`, for means.
fn normal(value: f64, standard_error: f64) -> (f64, f64, f64) {
    (value, value - 1.96 * standard_error, value + 1.96 * standard_error)
}

pub(super) fn pair(set: &Set, bars: &Bars, report: &mut Report) {
    let Some((weak, strong)) = weakest_and_strongest(&set.test) else { return };
    let (gains, keys) = (gains(&set.test, weak, strong), advantages(&set.test, weak, strong));
    let drawn = resamples(&gains, &[&keys]);
    let router = ranking(&gains, &keys);
    let of = |value: fn(&Ranking) -> f64| interval(value(&router), drawn.iter().map(|row| value(&row[0])));
    report.note(&format!(
        "{}, {} test queries; trained in {:.1} s",
        set.name,
        gains.len(),
        set.train_seconds
    ));
    report.sampled_at_least("  APGR", of(|ranking| ranking.apgr), bars.apgr);
    for (name, value, bar) in [
        ("  CPT50", (|ranking| ranking.cpt50) as fn(&Ranking) -> f64, bars.cpt50),
        ("  CPT80", |ranking| ranking.cpt80, bars.cpt80),
    ] {
        if let Some(bar) = bar {
            report.sampled_at_most(name, of(value), bar);
        }
    }
    let judged = judge(&set.test, &set.tasks(Split::Test), None);
    let model = &judged.models[weak];
    if let Some(bar) = bars.auc {
        // Standard error of an area under the ROC curve: Hanley, McNeil, Radiology 143, 1982.
        let (a, right) = (model.auc, model.quality * gains.len() as f64);
        let wrong = gains.len() as f64 - right;
        let (q1, q2) = (a / (2.0 - a), 2.0 * a * a / (1.0 + a));
        let variance =
            (a * (1.0 - a) + (right - 1.0) * (q1 - a * a) + (wrong - 1.0) * (q2 - a * a)) / (right * wrong);
        report.sampled_at_least("  AUC of the weak model", normal(a, variance.sqrt()), bar);
    }
    if let Some((ece, brier)) = bars.calibration {
        // A calibrated predictor would show an error, too: that much is noise.
        let (low, high) = (model.ece - model.ece_of_truth, model.ece + model.ece_of_truth);
        report.sampled_at_most(
            &format!("  ECE of it (true chances: {:.3})", model.ece_of_truth),
            (model.ece, low, high),
            ece,
        );
        let errors: Vec<f64> = (0..gains.len())
            .map(|query| (f64::from(set.test.predicted(query)[weak]) - set.test.actual(query, weak)).powi(2))
            .collect();
        let spread =
            errors.iter().map(|error| (error - model.brier).powi(2)).sum::<f64>() / gains.len() as f64;
        report.sampled_at_most(
            "  Brier score of it",
            normal(model.brier, (spread / gains.len() as f64).sqrt()),
            brier,
        );
    }
    if let Some(pair) = &judged.pair {
        let row = |name: &str, ranking: &Ranking| {
            format!(
                "  {name:<28} {:.3} / {:.1} / {:.1}",
                ranking.apgr,
                ranking.cpt50 * 100.0,
                ranking.cpt80 * 100.0
            )
        };
        report.note("  APGR / CPT50 % / CPT80 % of others");
        report.note(&row("this router", &pair.router));
        report.note(&row("the weak score alone", &pair.weak_only));
        report.note(&row("random (50 / 80 by definition)", &Ranking { apgr: 0.5, cpt50: 0.5, cpt80: 0.8 }));
        if let Some(tasks) = &pair.task_oracle {
            report.note(&row("means of tasks, known", tasks));
        }
        report.note(&row("oracle", &pair.oracle));
    }
}

/// Nearest neighbours and RouteLLM's loss, on our features.
pub(super) fn rivals(set: &Set, report: &mut Report) {
    let Some((weak, strong)) = weakest_and_strongest(&set.test) else { return };
    let (train, test) = (set.queries(Split::Train), set.queries(Split::Test));
    let models = set.scorer.models().len();
    let neighbours = nearest(&set.scorer, &train, &test, 100);
    let neighbours: Vec<f64> =
        neighbours.chunks_exact(models).map(|scores| f64::from(scores[strong] - scores[weak])).collect();
    let factors = pairwise(&set.scorer, &train, &test, (weak, strong), 0);
    let factors: Vec<f64> = factors.into_iter().map(f64::from).collect();
    let (gains, keys) = (gains(&set.test, weak, strong), advantages(&set.test, weak, strong));
    let drawn = resamples(&gains, &[&keys, &neighbours, &factors]);
    for (at, name, keys_of) in [(1, "kNN-100", &neighbours), (2, "RouteLLM's mf (emulated)", &factors)] {
        let other = ranking(&gains, keys_of).apgr;
        let gain =
            interval(ranking(&gains, &keys).apgr - other, drawn.iter().map(|row| row[0].apgr - row[at].apgr));
        report.sampled_at_least(&format!("  APGR gained over {name}, {other:.3}"), gain, 0.04);
        report.at_least("    lower end of the interval", gain.1, 0.0);
    }
}

/// Billions of parameters active per token, as the cost of an answer.
const ACTIVE: [(&str, f64); 9] = [
    ("mistral-7b-instruct-v0.3", 7.2),
    ("qwen2.5-7b-instruct", 7.6),
    ("codegemma-7b", 8.5),
    ("llama-3.1-8b-instruct", 8.0),
    ("gemma-2-9b-it", 9.2),
    ("llama3-chatqa-1.5-8b", 8.0),
    ("llama3-chatqa-1.5-70b", 70.6),
    ("llama-3.3-nemotron-super-49b-v1", 49.9),
    ("llama-3.1-nemotron-51b-instruct", 51.5),
];

pub(super) fn costs(models: &[String]) -> Vec<f64> {
    let of = |model: &String| ACTIVE.iter().find(|(name, _)| name == model).map_or(1.0, |(_, cost)| *cost);
    models.iter().map(of).collect()
}

pub(super) fn pool(set: &Set, report: &mut Report) {
    let costs = costs(&set.data.models);
    // The price is chosen on the validation part, the largest among the best.
    let price = (0..=60).map(|step| f64::from(step) * 5e-5).fold((0.0, 0.0), |best, price| {
        let quality = policy_point(&set.validation, &costs, price).quality;
        if quality >= best.1 { (price, quality) } else { best }
    });
    let point = policy_point(&set.test, &costs, price.0);
    let judged = judge(&set.test, &set.tasks(Split::Test), Some(&costs));
    let Some(pool) = judged.pool else { return };
    let error = (point.quality * (1.0 - point.quality) / set.test.len() as f64).sqrt();
    report.note(&format!(
        "{}, {} models, {} test queries; trained in {:.1} s",
        set.name,
        costs.len(),
        set.test.len(),
        set.train_seconds
    ));
    report.sampled_at_least("  accuracy, priced on the validation part", normal(point.quality, error), 0.68);
    let savings = pool_savings(&set.test, &costs);
    report.sampled_at_least(
        "  cost saved at the best single model's quality",
        interval(pool.saved_at_best, savings.into_iter()),
        0.75,
    );
    report.note(&format!(
        "  best single {} {:.3}; at no price {:.3}; best per task, known {:.3}; oracle {:.3}; saved at 95 % {:.2}; AIQ {:.3}",
        pool.best_single, pool.best.quality, pool.unpriced_quality, pool.task_oracle_quality, pool.oracle_quality,
        pool.saved_at_95_percent, pool.aiq
    ));
    let mean_auc = judged.models.iter().map(|model| model.auc).sum::<f64>() / costs.len() as f64;
    report.note(&format!("  mean AUC {mean_auc:.3}"));
}

/// The saving on resamples of the queries.
fn pool_savings(queries: &ScoredQueries, costs: &[f64]) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let models = costs.len();
    (0..60)
        .map(|_| {
            let mut drawn = ScoredQueries::new(queries.models.clone());
            for _ in 0..queries.len() {
                let at = rng.random_range(0..queries.len());
                drawn.predicted.extend(queries.predicted(at));
                drawn.actual.extend(&queries.actual[at * models..(at + 1) * models]);
                drawn.prompt_tokens.push(1);
            }
            let tasks = vec![""; drawn.len()];
            judge(&drawn, &tasks, Some(costs)).pool.map_or(0.0, |pool| pool.saved_at_best)
        })
        .collect()
}

/// Predicted answer lengths: rank correlation and pinball loss, beside a constant per task.
pub(super) fn lengths(set: &Set, report: &mut Report) {
    let (train, test) = (set.queries(Split::Train), set.queries(Split::Test));
    for (model, name) in set.data.models.iter().enumerate() {
        let mut scratch = Scratch::default();
        let mut scores = vec![0.0; set.data.models.len()];
        let predicted: Vec<[f64; QUANTILES.len()]> = test
            .iter()
            .filter_map(|query| {
                set.scorer.score(&query.prompt, &mut scratch, &mut scores);
                Some(set.scorer.answer_tokens(&scratch, model)?.map(f64::from))
            })
            .collect();
        let actual: Vec<f64> = test.iter().map(|query| f64::from(query.output_tokens[model])).collect();
        let constants: Vec<[f64; QUANTILES.len()]> =
            test.iter().map(|query| task_quantiles(&train, &query.task, model)).collect();
        let medians: Vec<f64> = predicted.iter().map(|quantiles| quantiles[QUANTILES.len() / 2]).collect();
        report.at_least(&format!("  answer length of {name}: Spearman"), spearman(&medians, &actual), 0.66);
        let ratio = pinball(&predicted, &actual) / pinball(&constants, &actual);
        report.at_most("    pinball loss against the task's own quantiles", ratio, 1.0);
        let covered = predicted.iter().zip(&actual).filter(|(p, a)| **a <= p[5]).count();
        report.between("    share below the 90 % quantile", covered as f64 / actual.len() as f64, 0.87, 0.93);
    }
}

fn task_quantiles(train: &[&Query], task: &str, model: usize) -> [f64; QUANTILES.len()] {
    let mut own: Vec<u32> =
        train.iter().filter(|query| query.task == task).map(|query| query.output_tokens[model]).collect();
    own.sort_unstable();
    QUANTILES.map(|share| {
        own.get((share * own.len().saturating_sub(1) as f64).round() as usize)
            .map_or(0.0, |tokens| f64::from(*tokens))
    })
}

fn pinball(predicted: &[[f64; QUANTILES.len()]], actual: &[f64]) -> f64 {
    let loss = |(quantiles, actual): (&[f64; QUANTILES.len()], &f64)| {
        let one = |(share, quantile): (f64, f64)| {
            if *actual >= quantile {
                share * (actual - quantile)
            } else {
                (1.0 - share) * (quantile - actual)
            }
        };
        QUANTILES.into_iter().zip(*quantiles).map(one).sum::<f64>()
    };
    predicted.iter().zip(actual).map(loss).sum::<f64>() / actual.len() as f64
}

fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|x, y| values[*x].total_cmp(&values[*y]));
        let mut ranks = vec![0.0; values.len()];
        for tied in order.chunk_by(|x, y| values[*x] == values[*y]) {
            let below = values.iter().filter(|value| **value < values[tied[0]]).count();
            for at in tied {
                ranks[*at] = below as f64 + (tied.len() - 1) as f64 / 2.0;
            }
        }
        ranks
    };
    let (a, b) = (ranks(a), ranks(b));
    let middle = (a.len() - 1) as f64 / 2.0;
    let product =
        |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - middle) * (y - middle)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Whether it pays to price each query's own answer: `ŝ_m − λ·cost_m(q)` with predicted lengths against one cost per model,
/// judged by the true costs on the validation part. Costs are active parameters × tokens.
pub(super) fn length_costs(set: &Set, report: &mut Report) {
    let Some((small, large)) = weakest_and_strongest(&set.validation) else { return };
    let parameters = |model: usize| if model == small { 8.0 } else { 70.6 };
    let mut scratch = Scratch::default();
    let mut scores = vec![0.0; set.data.models.len()];
    let mut predicted = Vec::new();
    for query in set.queries(Split::Validation) {
        set.scorer.score(&query.prompt, &mut scratch, &mut scores);
        // The mean is what costs; the quantiles' mean is near it.
        let tokens = |model: usize| {
            let quantiles = set.scorer.answer_tokens(&scratch, model).unwrap_or_default();
            f64::from(quantiles.iter().sum::<f32>()) / QUANTILES.len() as f64
        };
        predicted.push((tokens(small), tokens(large)));
    }
    let queries = 0..set.validation.len();
    let extra = |query: usize, (short, long): (f64, f64)| {
        let prompt = f64::from(set.validation.prompt_tokens[query]);
        parameters(large) * (prompt + long) - parameters(small) * (prompt + short)
    };
    let tokens = |query, model| f64::from(set.validation.output_tokens(query, model));
    let truth: Vec<f64> =
        queries.clone().map(|query| extra(query, (tokens(query, small), tokens(query, large)))).collect();
    let (gains, plain) = (gains(&set.validation, small, large), advantages(&set.validation, small, large));
    // Where the large model is better: by its advantage per cost; a query that it answers for less comes first.
    let priced =
        |cost: f64, advantage: f64| if advantage > 0.0 { advantage / cost.max(1.0) } else { advantage };
    let by_length: Vec<f64> =
        queries.clone().map(|query| priced(extra(query, predicted[query]), plain[query])).collect();
    let known: Vec<f64> = queries.clone().map(|query| priced(truth[query], plain[query])).collect();
    let all: Vec<usize> = queries.collect();
    let areas = |rows: &[usize]| [&plain, &by_length, &known].map(|keys| area(rows, keys, &gains, &truth));
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let drawn: Vec<[f64; 3]> = (0..200)
        .map(|_| areas(&all.iter().map(|_| rng.random_range(0..all.len())).collect::<Vec<_>>()))
        .collect();
    let [constant, own, oracle] = areas(&all);
    let (gain, low, high) = interval(own - constant, drawn.iter().map(|areas| areas[1] - areas[0]));
    report.note(&format!(
        "  {} validation queries, share of the gap recovered over the share of the cost: {constant:.3} by one cost per model; \
         by predicted lengths {gain:+.3} ({low:+.3} to {high:+.3}); by the true ones {:+.3}",
        all.len(),
        oracle - constant
    ));
}

/// Area under the share of all gains over the share of all costs, the largest keys first.
fn area(rows: &[usize], keys: &[f64], gains: &[f64], costs: &[f64]) -> f64 {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]));
    let total = |of: &[f64]| rows.iter().map(|row| of[*row]).sum::<f64>();
    let (all_gains, all_costs) = (total(gains), total(costs));
    let (mut area, mut gain) = (0.0, 0.0);
    for row in &rows {
        area += costs[*row] * (gain + gains[*row] / 2.0);
        gain += gains[*row];
    }
    area / all_costs / all_gains
}

/// The second decision, after the small model's answer.
pub(super) fn cascade(set: &Set, report: &mut Report) {
    let Some((small, large)) = weakest_and_strongest(&set.test) else { return };
    let answers = |split| -> Vec<Answer> {
        let queries = set.scorer.score_queries(&set.data.models, set.data.split(split));
        let answer = |query| Answer::of(&queries, query, [small, large]);
        (0..queries.len()).map(|query| answer(query).expect("all lengths are recorded")).collect()
    };
    let scores: Vec<(f32, f32)> =
        set.data.split(Split::Validation).map(|query| (query.scores[small], query.scores[large])).collect();
    let Some(heads) = Heads::train(&answers(Split::Validation), &scores, 0) else { return };
    let decided: Vec<[f32; 2]> = answers(Split::Test).iter().map(|answer| heads.scores(answer)).collect();
    let gains = gains(&set.test, small, large);
    let keys: Vec<f64> = decided.iter().map(|[small, large]| f64::from(large - small)).collect();
    let drawn = resamples(&gains, &[&keys, &advantages(&set.test, small, large)]);
    let gain = interval(
        ranking(&gains, &keys).apgr - ranking(&gains, &advantages(&set.test, small, large)).apgr,
        drawn.iter().map(|row| row[0].apgr - row[1].apgr),
    );
    let pairs: Vec<(f64, f64)> = decided
        .iter()
        .enumerate()
        .map(|(query, [own, _])| (f64::from(*own), set.test.actual(query, small)))
        .collect();
    report.note(&format!(
        "  cascade on the length of the small model's answer: APGR {:.3}, AUC {:.3}",
        ranking(&gains, &keys).apgr,
        auc(&pairs)
    ));
    report.sampled_at_least("    APGR gained by it", gain, 0.02);
}
