//! How long a decision takes, and that it allocates nothing.

use std::hint::black_box;
use std::time::Instant;

use boute_router::decide::Decider;
use boute_router::policy::policy_for_fractions;
use boute_router::{Scorer, Scratch};
use boute_spec::workload::Split;
use stats_alloc::Region;

use super::{Report, Set, numbered};

/// Each decision is timed this often, in rounds over all texts, so that caches are as cold as between requests. The fastest
/// round counts: what slows the others is other work on the machine.
const ROUNDS: usize = 9;

pub(super) fn run(set: &Set, report: &mut Report) {
    let policy = policy_for_fractions(&set.validation, &[0.5, 0.5]);
    let Ok(decider) = Decider::new(&policy, set.scorer.models()) else { return };
    let test = set.queries(Split::Test);
    let usual: Vec<&str> = test.iter().map(|query| query.prompt.as_str()).collect();
    let bytes = usual.iter().map(|text| text.len()).sum::<usize>() / usual.len();
    let all = usual.join("\n");
    let long: Vec<&str> = (0..40).filter_map(|at| all.get(at * 10_000..)).collect();
    let signs: String = "?!,.;:".chars().cycle().take(100_000).collect();
    let words = numbered(" x", 20_000);
    let worst = [signs.as_str(), &words];
    let times = |texts: &[&str]| decision_times(&set.scorer, &decider, texts);
    let (usual, allocations) = times(&usual);
    let at = |times: &[f64], share: f64| times[(share * (times.len() - 1) as f64) as usize];
    report.note(&format!("decisions, wall time of one core; prompts of {bytes} bytes on average"));
    report.at_most_us("  p50, µs", at(&usual, 0.5), 5.0);
    report.at_most_us("  p99, µs", at(&usual, 0.99), 25.0);
    for (name, texts) in [("of up to 1 MB", &long[..]), ("made to be slow", &worst)] {
        report.at_most_us(&format!("  p99 of prompts {name}, µs"), at(&times(texts).0, 0.99), 60.0);
    }
    report.at_most("  heap allocations", allocations as f64, 0.0);
}

/// Microseconds of each text's fastest round, ascending; and allocations after the first round.
fn decision_times(scorer: &Scorer, decider: &Decider, texts: &[&str]) -> (Vec<f64>, usize) {
    let mut scratch = Scratch::default();
    let mut scores = vec![0.0; scorer.models().len()];
    let mut decide = |text: &str| {
        scorer.score(text, &mut scratch, &mut scores);
        black_box(decider.decide(&scores));
    };
    for text in texts {
        decide(text);
    }
    let mut times = vec![f64::INFINITY; texts.len()];
    let region = Region::new(crate::ALLOCATOR);
    for _ in 0..ROUNDS {
        for (text, fastest) in texts.iter().zip(&mut times) {
            let start = Instant::now();
            decide(text);
            *fastest = fastest.min(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    let allocations = region.change().allocations + region.change().reallocations;
    times.sort_unstable_by(f64::total_cmp);
    (times, allocations)
}
