//! Tasks that training has never seen.

use std::collections::BTreeSet;

use boute_router::eval::{advantages, auc, gains, ranking, resamples, weakest_and_strongest};
use boute_router::monitor::Monitor;
use boute_router::{ScoredQueries, Scorer, Scratch};
use boute_spec::workload::{QualityData, Query, Split};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::online::reference;
use super::quality::interval;
use super::{Report, Set};

/// Whole tasks are left out in so many groups.
const GROUPS: usize = 10;

pub(super) fn run(routellm: &Set, pool: &Set, report: &mut Report) -> Result<(), String> {
    ranks(&routellm.data, report)?;
    keeps_quality(&pool.data, report)
}

/// The kind of task: the part before the slash.
fn kind(query: &Query) -> &str {
    query.task.split('/').next().unwrap_or_default()
}

/// A scorer that was not trained on `left_out` queries, with those as its test part and the others' validation part.
fn without(data: &QualityData, left_out: impl Fn(&Query) -> bool) -> Result<(Scorer, QualityData), String> {
    let mut queries = data.queries.clone();
    queries.retain(|query| left_out(query) || query.split != Split::Test);
    for query in queries.iter_mut().filter(|query| left_out(query)) {
        query.split = Split::Test;
    }
    let data = QualityData { models: data.models.clone(), queries };
    let scorer = Scorer::train(&data, 0, "").map_err(|error| error.to_string())?;
    Ok((scorer, data))
}

/// The ranking of queries of unseen tasks.
fn ranks(data: &QualityData, report: &mut Report) -> Result<(), String> {
    let tasks: BTreeSet<&str> = data.queries.iter().map(|query| query.task.as_str()).collect();
    let tasks: Vec<&str> = tasks.into_iter().collect();
    let mut all = ScoredQueries::new(data.models.clone());
    for group in 0..GROUPS {
        let out: BTreeSet<&str> = tasks.iter().skip(group).step_by(GROUPS).copied().collect();
        let (scorer, split) = without(data, |query| out.contains(query.task.as_str()))?;
        all.append(&scorer.score_queries(&split.models, split.split(Split::Test)));
    }
    let Some((weak, strong)) = weakest_and_strongest(&all) else { return Ok(()) };
    let (gains, keys) = (gains(&all, weak, strong), advantages(&all, weak, strong));
    let drawn = resamples(&gains, &[&keys]);
    let apgr = interval(ranking(&gains, &keys).apgr, drawn.iter().map(|row| row[0].apgr));
    report.sampled_at_least("whole tasks left out, RouteLLM: APGR", apgr, 0.65);
    let pairs: Vec<(f64, f64)> = (0..all.len())
        .map(|query| (f64::from(all.predicted(query)[weak]), all.actual(query, weak)))
        .collect();
    report.note(&format!("  AUC of the weak model {:.3}", auc(&pairs)));
    Ok(())
}

/// Each set of tasks comes as new traffic: the router decides until the monitor's alarm, then the best single model answers.
fn keeps_quality(data: &QualityData, report: &mut Report) -> Result<(), String> {
    let kinds: BTreeSet<&str> = data.queries.iter().map(kind).collect();
    report
        .note("new kinds of task, LLMRouter pool: mean score less that of the best single model, in points");
    report.note(
        "  with novelty alone / with the monitor (alarm after so many queries); share of novel queries",
    );
    let (mut sums, mut count) = ([0.0; 2], 0.0);
    for &out in &kinds {
        let (scorer, split) = without(data, |query| kind(query) == out)?;
        let calibration: Vec<&Query> = split.split(Split::Validation).collect();
        let scored = scorer.score_queries(&split.models, calibration.iter().copied());
        let mut monitor = Monitor::new(reference(&scored), 0.05);
        let mut fresh: Vec<&Query> = split.split(Split::Test).collect();
        fresh.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        let mut scratch = Scratch::default();
        let mut scores = vec![0.0; split.models.len()];
        let best = scorer.best_single();
        let (mut lost, mut alarm, mut novel) = ([0.0; 2], None, 0);
        for (at, query) in (1..).zip(&fresh) {
            scorer.score(&query.prompt, &mut scratch, &mut scores);
            let by_score = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]);
            let routed = (0..scores.len()).max_by(by_score).unwrap_or(best);
            novel += u32::from(scratch.novelty() >= scorer.novelty_limits().1);
            let safe = if monitor.alarm().is_some() { best } else { routed };
            for (lost, model) in lost.iter_mut().zip([routed, safe]) {
                *lost += f64::from(query.scores[best] - query.scores[model]);
            }
            if monitor.observe(&scores, scratch.novelty()).is_some() {
                alarm = Some(at);
            }
        }
        let points = lost.map(|lost| -100.0 * lost / fresh.len() as f64);
        report.note(&format!(
            "  {out:<22} {:+.1} / {:+.1} ({}); {:.0} % of {}",
            points[0],
            points[1],
            alarm.map_or_else(|| "none".to_owned(), |at: usize| at.to_string()),
            100.0 * f64::from(novel) / fresh.len() as f64,
            fresh.len()
        ));
        for (sum, lost) in sums.iter_mut().zip(lost) {
            *sum -= lost;
        }
        count += fresh.len() as f64;
    }
    let [alone, watched] = sums.map(|sum| 100.0 * sum / count);
    report.note(&format!("  all kinds, novelty alone: {alone:+.2} points"));
    report.at_least("  all kinds, with the monitor: points", watched, -1.0);
    Ok(())
}
