//! Quality promises that hold with a stated probability, whatever the distribution and the sample size.
//!
//! - All values 0 or 1: the exact binomial bound (Clopper, Pearson, Biometrika 26, 1934).
//! - Values in [0, 1]: the betting bound (Waudby-Smith, Ramdas, "Estimating means of bounded random variables by
//!   betting", JRSS B 86, 2024): if the mean were m, the capital `Π(1 + λ_t(x_t − m))` with bets `λ_t ≥ 0` fixed before `x_t`
//!   is seen would exceed 1/δ with probability at most δ; so every m at which it does is rejected. It looks at the values one
//!   after another, and files are in order (by task, by difficulty): they are shuffled here first, so that no caller's order
//!   matters.
//!
//! A policy is chosen from a path of policies that begins at the safe end: each is tested at level δ, and the walk stops
//! at the first that fails. The chance that the last one accepted breaks its promise is then at most δ, however long the
//! path (fixed-sequence testing; Angelopoulos et al., "Learn then test", 2021). Several promises (of groups of tasks) are
//! each tested at level δ and must all pass: a policy that breaks one of them passes with probability at most δ, so the
//! family is controlled without dividing δ (intersection–union test; Berger, Technometrics 24, 1982).

use boute_spec::policy::RoutingPolicy;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use statrs::function::beta::beta_reg;

use crate::queries::ScoredQueries;

/// A promise about the mean score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FloorRule {
    /// At least this.
    Absolute(f64),
    /// At least this share of what one model (index) would score on the same queries.
    Relative {
        /// The share.
        share: f64,
        /// Index of the model.
        model: usize,
    },
}

/// Which model answers what: on a sample, and, of a policy that asks nothing, on everything else too.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// Index of the model that answers each query of the sample.
    pub by: &'a [usize],
    /// The model that answers whatever comes. A sample on which one model answers everything shows no such thing.
    pub only: Option<usize>,
}

impl<'a> Answers<'a> {
    /// Of a `policy` over `models` that was found to answer the sample so.
    pub fn of(policy: &RoutingPolicy, models: &[String], by: &'a [usize]) -> Self {
        let only = match policy {
            RoutingPolicy::Constant { model } => models.iter().position(|id| id == model),
            RoutingPolicy::Utility { .. } => None,
        };
        Self { by, only }
    }
}

/// A promise about a mean: score − share·(score of a reference model) is at least `least`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promise {
    reference: Option<usize>,
    share: f64,
    least: f64,
}

impl From<FloorRule> for Promise {
    fn from(rule: FloorRule) -> Self {
        match rule {
            FloorRule::Absolute(floor) => Self { reference: None, share: 0.0, least: floor },
            FloorRule::Relative { share, model } => Self { reference: Some(model), share, least: 0.0 },
        }
    }
}

impl Promise {
    /// At most `loss` (in [0, 1]) less than what `model` (index) would score on the same queries.
    pub fn max_loss(loss: f64, model: usize) -> Self {
        Self { reference: Some(model), share: 1.0, least: -loss }
    }

    /// The same promise about true scores where the stated ones come from a judge whose mean, for any set of answers, may
    /// be off by up to `error` either way: the test is harder by that error, twice where two models are compared.
    #[must_use]
    pub fn under_judge(self, error: f64) -> Self {
        Self { least: self.least + (1.0 + self.share) * error, ..self }
    }

    /// The tested value of one answer, in [0, 1]: a score, or a scaled difference of scores.
    fn value(&self, queries: &ScoredQueries, query: usize, model: usize) -> f64 {
        let reference = self.reference.map_or(0.0, |reference| queries.actual(query, reference));
        self.in_unit(queries.actual(query, model) - self.share * reference)
    }

    /// From [−share, 1] to [0, 1].
    fn in_unit(&self, difference: f64) -> f64 {
        (difference + self.share) / (1.0 + self.share)
    }

    fn out_of_unit(&self, value: f64) -> f64 {
        value * (1.0 + self.share) - self.share
    }

    fn values(&self, queries: &ScoredQueries, rows: &[usize], by: &[usize]) -> Vec<f64> {
        rows.iter().map(|row| self.value(queries, *row, by[*row])).collect()
    }

    /// Whether nothing can break it: the reference model answers whatever comes, and no more than it scores is asked for. It loses
    /// nothing against itself, whoever judges.
    fn is_trivial(&self, answers: Answers<'_>) -> bool {
        self.share <= 1.0 && self.reference.is_some() && self.reference == answers.only
    }

    /// Whether it holds on what `rows` of `queries` were drawn from, with an error of at most `delta`.
    pub fn holds(&self, queries: &ScoredQueries, rows: &[usize], answers: Answers<'_>, delta: f64) -> bool {
        self.is_trivial(answers)
            || mean_exceeds(&self.values(queries, rows, answers.by), self.in_unit(self.least), delta)
    }

    /// The same, with the bound that decides it.
    pub fn certify(
        &self,
        queries: &ScoredQueries,
        rows: &[usize],
        answers: Answers<'_>,
        delta: f64,
    ) -> Certified {
        let values = self.values(queries, rows, answers.by);
        let mean = self.out_of_unit(values.iter().sum::<f64>() / values.len().max(1) as f64);
        let lower_bound = self.out_of_unit(lower_bound(&values, delta));
        if self.is_trivial(answers) {
            return Certified { holds: true, lower_bound: lower_bound.max(0.0), mean };
        }
        Certified { holds: lower_bound >= self.least, lower_bound, mean }
    }

    /// The mean on `rows`, and how far it is above what is promised.
    pub fn slack(&self, queries: &ScoredQueries, rows: &[usize], by: &[usize]) -> f64 {
        let values = self.values(queries, rows, by);
        self.out_of_unit(values.iter().sum::<f64>() / values.len().max(1) as f64) - self.least
    }
}

/// Whether a promise holds, and with what margin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Certified {
    /// Whether it holds at the asked confidence.
    pub holds: bool,
    /// Lower bound of the tested mean: the score, or the score less (the share of) the reference model's.
    pub lower_bound: f64,
    /// The tested mean on the sample.
    pub mean: f64,
}

/// A lower bound on the mean of what `values` (each in [0, 1]) were drawn from: the truth is below it with probability at
/// most `delta`. 0 for no values.
pub fn lower_bound(values: &[f64], delta: f64) -> f64 {
    if let Some(ones) = ones(values) {
        return binomial_lower_bound(ones, values.len(), delta);
    }
    let values = in_random_order(values);
    bisect(|mean| wealth_exceeds(&values, mean, delta))
}

/// `values` in an order that nothing in them has to do with; the same for every test of as many.
fn in_random_order(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    values
}

/// Whether the mean of what `values` (each in [0, 1]) were drawn from is above `least`, with an error of at most `delta`:
/// whether [`lower_bound`] exceeds `least`, in one pass.
fn mean_exceeds(values: &[f64], least: f64, delta: f64) -> bool {
    match ones(values) {
        Some(0) => least < 0.0,
        Some(_) if least < 0.0 => true,
        Some(ones) => least < 1.0 && binomial_tail(ones, values.len(), least) < delta,
        None => least < 0.0 || (least < 1.0 && wealth_exceeds(&in_random_order(values), least, delta)),
    }
}

/// How many values are 1, if all are 0 or 1.
fn ones(values: &[f64]) -> Option<usize> {
    values
        .iter()
        .all(|value| *value == 0.0 || *value == 1.0)
        .then(|| values.iter().filter(|value| **value == 1.0).count())
}

/// The chance of at least `ones` ≥ 1 among `count` when each has the chance `p`.
fn binomial_tail(ones: usize, count: usize, p: f64) -> f64 {
    beta_reg(ones as f64, (count - ones) as f64 + 1.0, p)
}

/// p such that at least `ones` of `count` has probability `delta`: `I_p(ones, count − ones + 1) = δ`.
fn binomial_lower_bound(ones: usize, count: usize, delta: f64) -> f64 {
    if ones == 0 { 0.0 } else { bisect(|p| binomial_tail(ones, count, p) < delta) }
}

/// Whether betting against "the mean is `mean`" ever multiplies the capital by 1/δ. `values` in random order.
fn wealth_exceeds(values: &[f64], mean: f64, delta: f64) -> bool {
    let count = values.len() as f64;
    let target = 1.0 / delta;
    // The bet that would be best if the variance were 1; it is scaled by the past only.
    let unit_bet = (2.0 * target.ln() / count).sqrt();
    let most = 0.75 / mean.max(1e-9);
    let (mut wealth, mut seen, mut sum, mut squares) = (1.0, 1.0, 0.5, 0.25_f64);
    for value in values {
        let bet = (unit_bet * (seen / squares).sqrt()).min(most);
        wealth *= 1.0 + bet * (value - mean);
        if wealth >= target {
            return true;
        }
        seen += 1.0;
        sum += value;
        let off = value - sum / seen;
        squares += off * off;
    }
    false
}

/// The largest p in [0, 1] below which `rejected` is true, to 1e-9; it is true up to some p and false from there.
fn bisect(rejected: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 1e-9 {
        let middle = f64::midpoint(low, high);
        if rejected(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Tests one policy on all of a sample.
pub fn floor_holds(queries: &ScoredQueries, answers: Answers<'_>, rule: FloorRule, delta: f64) -> Certified {
    let rows: Vec<usize> = (0..answers.by.len()).collect();
    Promise::from(rule).certify(queries, &rows, answers, delta)
}

/// Rows of a sample that look as if drawn from a stated mix of groups: each draw picks a group by the mix, then the next
/// unused row of it, until a group has none left. Which rows are taken depends on groups and seed alone, so every test
/// stays valid. `groups[row]` is the row's group, `None` for rows outside the mix.
pub fn rows_of_mix(groups: &[Option<usize>], mix: &[f64], seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut left: Vec<Vec<usize>> = vec![Vec::new(); mix.len()];
    for (row, group) in groups.iter().enumerate().rev() {
        if let Some(group) = group {
            left[*group].push(row);
        }
    }
    let total: f64 = mix.iter().sum();
    let mut rows = Vec::new();
    loop {
        let mut at = rng.random::<f64>() * total;
        let group = mix.iter().position(|share| {
            at -= share;
            at < 0.0
        });
        let Some(row) = left[group.unwrap_or(mix.len() - 1)].pop() else { return rows };
        rows.push(row);
    }
}

/// Walks along a path of policies, the safe end first; returns how many are certified before the first that fails. Each
/// promise is about its rows. 0: nothing can be promised.
pub fn walk<'a>(
    queries: &ScoredQueries,
    path: impl IntoIterator<Item = Answers<'a>>,
    promises: &[(Promise, Vec<usize>)],
    delta: f64,
) -> usize {
    let keeps = |answers: &Answers<'_>| {
        promises.iter().all(|(promise, rows)| promise.holds(queries, rows, *answers, delta))
    };
    path.into_iter().take_while(keeps).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_binomial_bound_is_the_tabulated_one() {
        // One-sided 95 % Clopper-Pearson: scipy.stats.beta.ppf(0.05, k, n - k + 1), SciPy 1.x.
        for (ones, count, want) in
            [(10, 10, 0.741_134_4), (8, 10, 0.493_098_5), (560, 1000, 0.533_574_1), (1, 100, 0.000_512_8)]
        {
            assert!(
                (binomial_lower_bound(ones, count, 0.05) - want).abs() < 2e-6,
                "{ones}/{count}: {}",
                binomial_lower_bound(ones, count, 0.05)
            );
        }
        assert_eq!(lower_bound(&[0.0; 5], 0.05), 0.0);
        assert_eq!(lower_bound(&[], 0.05), 0.0);
    }

    #[test]
    fn bounds_cover_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (draw, truth) in [(None, 0.6), (Some(()), 0.5)] {
            let misses = (0..400)
                .filter(|_| {
                    let values: Vec<f64> = (0..200)
                        .map(|_| match draw {
                            None => f64::from(u8::from(rng.random::<f64>() < truth)),
                            Some(()) => rng.random::<f64>(),
                        })
                        .collect();
                    lower_bound(&values, 0.05) > truth
                })
                .count();
            assert!(misses <= 32, "{misses} of 400, expected at most 20 ± 3 standard errors");
        }
    }

    #[test]
    fn betting_is_close_to_the_normal_bound() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let values: Vec<f64> = (0..2000).map(|_| 0.4 + 0.2 * rng.random::<f64>()).collect();
        let mean = values.iter().sum::<f64>() / 2000.0;
        let bound = lower_bound(&values, 0.05);
        // 1.645 standard errors are 0.0021.
        assert!(bound < mean && bound > mean - 0.006, "{bound} {mean}");
    }

    /// Files are often sorted by task: easy queries that come first vouch for nothing.
    #[test]
    fn the_order_of_a_file_does_not_matter() {
        let easy_first: Vec<f64> = (0..400).map(|at| if at < 200 { 0.9 } else { 0.1 }).collect();
        let hard_first: Vec<f64> = easy_first.iter().rev().copied().collect();
        for sorted in [&easy_first, &hard_first] {
            let bound = lower_bound(sorted, 0.05);
            assert!(bound < 0.5 && bound > 0.4, "the mean is 0.5, the bound {bound}");
        }
        // The small model is right where the large one is in the first half, and nowhere in the second.
        let mut queries = pair(400, 1000);
        (200..400).for_each(|query| queries.actual[2 * query] = 0.0);
        let small = vec![0; 400];
        let holds =
            |share| floor_holds(&queries, some(&small), FloorRule::Relative { share, model: 1 }, 0.05).holds;
        assert!(holds(0.4) && !holds(0.6), "it reaches half of the large model's score");
        let rows: Vec<usize> = (0..400).collect();
        assert!(!Promise::max_loss(0.4, 1).holds(&queries, &rows, some(&small), 0.05), "it loses 0.5");
    }

    #[test]
    fn a_test_and_its_bound_agree() {
        let mut queries = pair(400, 7);
        (200..400).for_each(|query| queries.actual[2 * query] = 0.3);
        let (small, rows) = (vec![0; 400], (0..400).collect::<Vec<_>>());
        let bound = Promise::max_loss(0.0, 1).certify(&queries, &rows, some(&small), 0.05).lower_bound;
        for step in [-1e-6, 1e-6] {
            let promise = Promise::max_loss(-bound + step, 1);
            let certified = promise.certify(&queries, &rows, some(&small), 0.05);
            assert_eq!(promise.holds(&queries, &rows, some(&small), 0.05), certified.holds, "{certified:?}");
        }
    }

    #[test]
    fn the_reference_model_keeps_what_is_relative_to_it() {
        let mut queries = pair(30, 2);
        queries.actual.fill(0.0);
        let rule = FloorRule::Relative { share: 0.9, model: 1 };
        let large = Answers { by: &[1; 30], only: Some(1) };
        assert!(floor_holds(&queries, large, rule, 0.05).holds);
        assert!(!floor_holds(&pair(30, 1), some(&[0; 30]), rule, 0.05).holds);
        // Nor does a judge who errs make it worse than itself.
        let rows: Vec<usize> = (0..30).collect();
        let promise = Promise::max_loss(0.01, 1).under_judge(0.2);
        let kept = promise.certify(&queries, &rows, large, 0.05);
        assert!(kept.holds && kept.lower_bound == 0.0, "{kept:?}");
    }

    /// A few queries that the reference model happened to answer say little of those that come.
    #[test]
    fn what_a_sample_does_not_show_is_not_promised() {
        let queries = pair(15, 1);
        let promise = Promise::max_loss(0.01, 1);
        assert!(!promise.holds(&queries, &[3], some(&[1; 15]), 0.05));
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let broken = (0..400)
            .filter(|_| {
                // The small model, always wrong, answers a tenth: ten times the loss that is promised.
                let by: Vec<usize> = (0..15).map(|_| usize::from(rng.random::<f64>() < 0.9)).collect();
                promise.holds(&queries, &(0..15).collect::<Vec<_>>(), some(&by), 0.05)
            })
            .count();
        assert!(broken <= 32, "{broken} of 400, expected at most 20 ± 3 standard errors");
    }

    proptest! {
        #[test]
        fn one_pass_agrees_with_the_bound(
            values in prop::collection::vec(prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64], 1..80),
            least in 0.0..1.0_f64,
        ) {
            let whole: Vec<f64> = values.iter().map(|value: &f64| value.round()).collect();
            for values in [values, whole] {
                let bound = lower_bound(&values, 0.05);
                if (bound - least).abs() > 1e-6 {
                    prop_assert_eq!(mean_exceeds(&values, least, 0.05), bound > least, "{}", bound);
                }
            }
        }
    }

    /// Answers on a sample, which are all that is known.
    fn some(by: &[usize]) -> Answers<'_> {
        Answers { by, only: None }
    }

    /// A small and a large model; the large one is right on every query, the small one on all but every `step`-th.
    fn pair(count: usize, step: usize) -> ScoredQueries {
        let mut queries = ScoredQueries::new(vec!["small".into(), "large".into()]);
        for query in 0..count {
            queries.predicted.extend([0.5, 0.5]);
            queries.actual.extend([f32::from(u8::from(query % step != 0)), 1.0]);
            queries.output_tokens.extend([0, 0]);
            queries.prompt_tokens.push(1);
        }
        queries
    }

    #[test]
    fn a_walk_stops_where_the_loss_may_be_too_large() {
        let queries = pair(1000, 10);
        let path: Vec<Vec<usize>> = (0..=10)
            .map(|step| (0..1000).map(|query| usize::from(query % 100 >= step * 10)).collect())
            .collect();
        let promise = |loss| (Promise::max_loss(loss, 1), (0..1000).collect());
        let path = || {
            let only = |step| (step == 0).then_some(1);
            path.iter().enumerate().map(move |(step, by)| Answers { by, only: only(step) })
        };
        let certified = [0.0, 0.02, 0.05, 0.5].map(|loss| walk(&queries, path(), &[promise(loss)], 0.05));
        assert!(certified[0] == 1 && certified[3] == 11 && certified.is_sorted(), "{certified:?}");
        assert!((1..4).contains(&certified[1]) && (2..6).contains(&certified[2]), "{certified:?}");
        let both = [promise(0.5), promise(0.02)];
        assert_eq!(walk(&queries, path(), &both, 0.05), certified[1], "the stricter promise decides");
    }

    #[test]
    fn judges_make_promises_harder() {
        let queries = pair(1000, 10);
        let (small, rows) = (vec![0; 1000], (0..1000).collect::<Vec<_>>());
        let floors = [FloorRule::Absolute(0.87), FloorRule::Relative { share: 0.87, model: 1 }];
        for promise in floors.map(Promise::from).into_iter().chain([Promise::max_loss(0.13, 1)]) {
            assert!(promise.holds(&queries, &rows, some(&small), 0.05), "{promise:?}");
            assert!(!promise.under_judge(0.03).holds(&queries, &rows, some(&small), 0.05), "{promise:?}");
        }
    }

    #[test]
    fn a_mix_is_drawn_until_a_group_runs_out() {
        let groups: Vec<Option<usize>> = (0..1000).map(|row| Some(usize::from(row % 10 == 0))).collect();
        let rows = rows_of_mix(&groups, &[0.5, 0.5], 1);
        let rare = rows.iter().filter(|row| **row % 10 == 0).count();
        assert_eq!(rare, 100, "all of the rare group");
        assert!((150..260).contains(&rows.len()), "{}", rows.len());
    }
}
