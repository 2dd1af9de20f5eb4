//! The monitor: false alarms over a long life, and how soon it notices.

use boute_router::ScoredQueries;
use boute_router::certify::lower_bound;
use boute_router::monitor::{self, Monitor};
use boute_spec::certificate::Reference;
use boute_spec::workload::{Query, Split};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Report, Set};

const ALPHA: f64 = 0.05;
const LIFE: usize = 100_000;
const DAY: usize = 864_000;
/// Points of a drop.
const DROP: f64 = 0.05;

pub(super) fn run(set: &Set, small: bool, report: &mut Report) {
    let runs = if small { 40 } else { 400 };
    feedback(set, runs, report);
    drift(set, if small { 10 } else { 100 }, report);
    if !small {
        unseen(set, report);
    }
}

/// Scores of the weak model, drawn from the unseen ones. The monitor vouches for exactly their mean, where false alarms are likeliest
/// and drops are found soonest; then for what a certificate vouches for, the lower bound of some calibration answers.
fn feedback(set: &Set, runs: u64, report: &mut Report) {
    let own: Vec<f64> = (0..set.test.len()).map(|query| set.test.actual(query, 1)).collect();
    let mean = own.iter().sum::<f64>() / own.len() as f64;
    let monitor = |vouched: f64| {
        let mut reference = reference(&set.validation);
        for group in &mut reference.groups {
            group.at_least.fill(vouched);
        }
        Monitor::new(reference, ALPHA)
    };
    // Answers until the alarm, the drop beginning after `good` answers.
    let until = |seed: u64, good: usize, life: usize, calibration: Option<usize>| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let vouched = calibration.map_or(mean, |answers| {
            let answers: Vec<f64> = (0..answers).map(|_| own[rng.random_range(0..own.len())]).collect();
            lower_bound(&answers, ALPHA)
        });
        let mut monitor = monitor(vouched);
        (0..life).find(|answer| {
            let score = own[rng.random_range(0..own.len())];
            let lost = *answer >= good && rng.random::<f64>() < DROP / mean;
            monitor.feedback("", 1, if lost { 0.0 } else { score }).is_some()
        })
    };
    let alarms = (0..runs).into_par_iter().filter(|seed| until(*seed, LIFE, LIFE, None).is_some()).count();
    let share = alarms as f64 / runs as f64;
    let error = (ALPHA * (1.0 - ALPHA) / runs as f64).sqrt();
    report.sampled_at_most(
        &format!("feedback: false alarms in {LIFE} answers, {runs} lives"),
        (share, share - 1.96 * error, share + 1.96 * error),
        ALPHA,
    );
    let median = |good: usize, calibration: Option<usize>| {
        let mut found: Vec<usize> = (0..runs.min(200))
            .into_par_iter()
            .map(|seed| until(seed, good, LIFE, calibration).map_or(LIFE, |at| at.saturating_sub(good)))
            .collect();
        found.sort_unstable();
        found[found.len() / 2] as f64
    };
    let soonest = median(0, None);
    report.at_most("  labelled answers until a 5-point drop is found, median", soonest, 1000.0);
    for good in [1000, 10_000] {
        report.note(&format!("  the same, the drop beginning after {good} answers: {}", median(good, None)));
    }
    for answers in [600, 1500, 5000] {
        let found = median(0, Some(answers));
        report.note(&format!("  the same, certified on {answers} answers of the model: {found}"));
    }
}

/// Calibrated on MMLU; then the same queries, other queries of it, or GSM8K.
fn drift(set: &Set, runs: u64, report: &mut Report) {
    let of = |split, prefix: &str| -> Vec<&Query> {
        set.data.split(split).filter(|query| query.task.starts_with(prefix)).collect()
    };
    let calibration = of(Split::Validation, "mmlu");
    let scored = set.scorer.score_queries(&set.data.models, calibration.iter().copied());
    let reference = reference(&scored);
    let stream = |queries: &[&Query]| {
        let scored = set.scorer.score_queries(&set.data.models, queries.iter().copied());
        (0..queries.len()).map(|at| (scored.predicted(at).to_vec(), scored.novelty[at])).collect::<Vec<_>>()
    };
    let (same, other) = (stream(&calibration), stream(&of(Split::Test, "gsm8k")));
    let until = |seed: u64, share_of_other: f64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut monitor = Monitor::new(reference.clone(), ALPHA);
        (1..=LIFE).find(|_| {
            let from = if rng.random::<f64>() < share_of_other { &other } else { &same };
            let (scores, novelty) = &from[rng.random_range(0..from.len())];
            monitor.observe(scores, *novelty).is_some()
        })
    };
    let alarms =
        (0..runs).into_par_iter().filter(|seed| until(*seed, 0.0).is_some()).count() as f64 / runs as f64;
    let error = (ALPHA * (1.0 - ALPHA) / runs as f64).sqrt();
    report.sampled_at_most(
        &format!("drift: false alarms in {LIFE} queries, {runs} lives"),
        (alarms, alarms - 1.96 * error, alarms + 1.96 * error),
        ALPHA,
    );
    for (share, bar) in [(1.0, 200.0), (0.25, 2000.0)] {
        let mut found: Vec<usize> =
            (0..40).into_par_iter().map(|seed| until(seed, share).unwrap_or(LIFE)).collect();
        found.sort_unstable();
        let name =
            format!("  queries until {:.0} % of another task are noticed, 95th percentile", share * 100.0);
        report.at_most(&name, found[found.len() * 95 / 100] as f64, bar);
    }
}

/// The same for ordinary traffic that the calibration has not seen, the test queries, over a day at ten queries a second: the
/// calibration is a sample, and its own error counts at every look.
fn unseen(set: &Set, report: &mut Report) {
    const LIVES: u64 = 20;
    let reference = reference(&set.validation);
    let alarmed = |seed: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut monitor = Monitor::new(reference.clone(), ALPHA);
        (0..DAY).any(|_| {
            let query = rng.random_range(0..set.test.len());
            monitor.observe(set.test.predicted(query), set.test.novelty[query]).is_some()
        })
    };
    let alarms = (0..LIVES).into_par_iter().filter(|seed| alarmed(*seed)).count();
    report.note(&format!(
        "  test queries in place of the calibration's: {alarms} of {LIVES} lives of {DAY} have an alarm"
    ));
}

/// Every model answers every query.
pub(super) fn reference(queries: &ScoredQueries) -> Reference {
    monitor::reference(queries, |_, _| true, &[], |_| None, ALPHA)
}
