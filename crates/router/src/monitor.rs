//! Watches whether what a certificate was made on is still what comes in. Pure: the caller holds it and feeds it. Two tests:
//!
//! - **Without labels** ([`Monitor::observe`]): the largest distance between the distribution of a window of values and that
//!   of the calibration queries (Kolmogorov, Smirnov), for the score of each model and for the novelty, in windows of 25,
//!   50, 200 and 2,000 queries. Each test has its share of the chance of a false alarm, however long it runs: the k-th
//!   100,000 queries have 6/(πk)² of it, which is 1 over all k, divided evenly among windows and values.
//! - **With feedback** ([`Monitor::feedback`]): per group of tasks and model, bets that the mean score is below what the
//!   calibration queries vouch for, b. The capital `Π(1 + λ(b − x_t))` is expected not to grow while the mean is at least b,
//!   so that it ever reaches 1/α with probability at most α, however long it runs (Ville's inequality; Waudby-Smith,
//!   Ramdas, JRSS B 86, 2024). It is divided among drops of several sizes, λ = drop/(b(1 − b)), and among several times at
//!   which the drop may begin; the capitals of all groups and models are averaged, so that α is for all of them together.
//!
//! Both speak of queries that come independently of each other. An alarm voids the certificate: route to the safe end,
//! raise a metric, plan again.

use std::f64::consts::PI;
use std::fmt;

use boute_spec::certificate::{Group, Quantiles, Reference};
use serde::Serialize;

use crate::certify::lower_bound;
use crate::queries::ScoredQueries;

/// Queries whose label-free tests have the same share of the false alarms; a multiple of every window.
const EPOCH: usize = 100_000;
/// Queries compared at a time.
const WINDOWS: [usize; 4] = [25, 50, 200, 2000];
/// Quantiles kept of a reference distribution.
const POINTS: usize = 257;
/// Drops bet on, and shares of the capital.
const DROPS: [(f64, f64); 3] = [(0.02, 0.15), (0.05, 0.7), (0.15, 0.15)];
/// A drop may begin at every so many answers.
const STARTS: u32 = 500;
/// Capital that can no longer matter.
const NOTHING: f64 = 1e-9;

/// What scored calibration queries look like. `answered(query, model)` says whether the model answers the query, so that its
/// mean is that of the queries it gets; `group_of` gives a query's place in `groups`, if any. Each mean is vouched for at level
/// `delta`.
pub fn reference(
    queries: &ScoredQueries,
    answered: impl Fn(usize, usize) -> bool,
    groups: &[String],
    group_of: impl Fn(usize) -> Option<usize>,
    delta: f64,
) -> Reference {
    let models = queries.models.len();
    let quantiles = |values: &mut dyn Iterator<Item = f32>| {
        let mut values: Vec<f32> = values.map(rounded).collect();
        values.sort_unstable_by(f32::total_cmp);
        let last = values.len().saturating_sub(1);
        let quantiles = (0..POINTS).filter_map(|point| values.get(point * last / (POINTS - 1)).copied());
        Quantiles(quantiles.collect())
    };
    let column = |model: usize| (0..queries.len()).map(move |query| queries.predicted(query)[model]);
    let columns = (0..models).map(|model| quantiles(&mut column(model)));
    let group = |name: &str, belongs: &dyn Fn(usize) -> bool| Group {
        name: name.into(),
        at_least: (0..models)
            .map(|model| {
                let own = (0..queries.len()).filter(|query| belongs(*query) && answered(*query, model));
                lower_bound(&own.map(|query| queries.actual(query, model)).collect::<Vec<_>>(), delta)
            })
            .collect(),
    };
    let named = groups.iter().enumerate().map(|(at, name)| group(name, &|query| group_of(query) == Some(at)));
    Reference {
        models: queries.models.clone(),
        queries: queries.len(),
        quantiles: columns.chain([quantiles(&mut queries.novelty.iter().copied())]).collect(),
        groups: std::iter::once(group("all", &|_| true)).chain(named).collect(),
    }
}

/// Values are compared to four decimals: a score that many queries share is the same one on every machine.
fn rounded(value: f32) -> f32 {
    (value * 1e4).round() / 1e4
}

/// What was noticed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "alarm")]
pub enum Alarm {
    /// Queries are no longer those of the calibration.
    Drift {
        /// `novelty`, or the model whose predicted scores have moved.
        of: String,
        /// Largest difference of the two distributions.
        distance: f64,
        /// What chance explains.
        limit: f64,
        /// Queries in the window.
        window: usize,
    },
    /// Answers are worse than those of the calibration.
    Drop {
        /// Group of tasks.
        group: String,
        /// Model.
        model: String,
        /// Answers with feedback there.
        answers: u32,
        /// Their mean score.
        mean: f64,
        /// What the calibration vouches for.
        at_least: f64,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drift { of, distance, limit, window } => {
                let what = if of == "novelty" { "novelty".into() } else { format!("scores of `{of}`") };
                write!(
                    f,
                    "queries are other than those of the calibration: the {what} of the last {window} is {distance:.2} \
                     off, of which chance explains {limit:.2}"
                )
            }
            Self::Drop { group, model, answers, mean, at_least } => write!(
                f,
                "answers are worse than those of the calibration: {answers} of `{model}` ({group}) score {mean:.3} on \
                 average, at least {at_least:.3} was vouched for"
            ),
        }
    }
}

/// Answers of a model with feedback.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answers<'a> {
    /// Group of tasks.
    pub group: &'a str,
    /// Model.
    pub model: &'a str,
    /// How many.
    pub answers: u32,
    /// Their mean score.
    pub mean: f64,
    /// What the calibration vouches for.
    pub at_least: f64,
}

/// Watches one certificate. The first alarm is kept; nothing lifts it but a new certificate.
#[derive(Debug, Clone)]
pub struct Monitor {
    reference: Reference,
    alpha: f64,
    /// Queries observed.
    observed: usize,
    windows: [Vec<Vec<f32>>; WINDOWS.len()],
    streams: Vec<Stream>,
    alarm: Option<Alarm>,
}

impl Monitor {
    /// With a chance of a false alarm of at most `alpha` for feedback, ever, and of at most `alpha` for drift, ever.
    pub fn new(reference: Reference, alpha: f64) -> Self {
        let values = || WINDOWS.map(|window| vec![Vec::with_capacity(window); reference.quantiles.len()]);
        let streams = reference
            .groups
            .iter()
            .flat_map(|group| group.at_least.iter().map(|at_least| Stream::new(*at_least)))
            .collect();
        Self { windows: values(), streams, reference, alpha, observed: 0, alarm: None }
    }

    /// A query came: its scores, in the order of the certificate's models, and its novelty. Returns a new alarm.
    pub fn observe(&mut self, scores: &[f32], novelty: f32) -> Option<Alarm> {
        self.observed += 1;
        for (at, window) in self.windows.iter_mut().enumerate() {
            for (values, value) in window.iter_mut().zip(scores.iter().copied().chain([novelty])) {
                values.push(rounded(value));
            }
            if window.iter().any(|values| values.len() < WINDOWS[at]) {
                continue;
            }
            let level = self.alpha * share_of_alarms(self.observed, WINDOWS[at], window.len());
            let limit = smirnov_limit(WINDOWS[at], self.reference.queries, level) + 1.0 / (POINTS - 1) as f64;
            for (channel, (values, quantiles)) in window.iter_mut().zip(&self.reference.quantiles).enumerate()
            {
                let distance = distance(values, &quantiles.0);
                values.clear();
                if distance > limit && self.alarm.is_none() {
                    let of = self.reference.models.get(channel).map_or("novelty", String::as_str).to_owned();
                    self.alarm = Some(Alarm::Drift { of, distance, limit, window: WINDOWS[at] });
                    return self.alarm.clone();
                }
            }
        }
        None
    }

    /// An answer was judged: the task of the query, the model (index) that answered, the score in [0, 1]; others are
    /// ignored. Returns a new alarm.
    pub fn feedback(&mut self, task: &str, model: usize, score: f64) -> Option<Alarm> {
        let models = self.reference.models.len();
        if model >= models || !(0.0..=1.0).contains(&score) {
            return None;
        }
        let group = self.reference.groups.iter().skip(1).position(|group| belongs(task, &group.name));
        let group = group.map_or(0, |at| at + 1);
        let at = group * models + model;
        self.streams[at].see(score);
        let capital =
            self.streams.iter().map(|stream| stream.capital).sum::<f64>() / self.streams.len() as f64;
        if capital < 1.0 / self.alpha || self.alarm.is_some() {
            return None;
        }
        let richest = |a: &usize, b: &usize| self.streams[*a].capital.total_cmp(&self.streams[*b].capital);
        let worst = (0..self.streams.len()).max_by(richest)?;
        let stream = &self.streams[worst];
        self.alarm = Some(Alarm::Drop {
            group: self.reference.groups[worst / models].name.clone(),
            model: self.reference.models[worst % models].clone(),
            answers: stream.answers,
            mean: stream.mean(),
            at_least: stream.at_least,
        });
        self.alarm.clone()
    }

    /// Of every group and model with feedback: what it came to, and what the calibration vouches for.
    pub fn answers(&self) -> impl Iterator<Item = Answers<'_>> {
        let models = self.reference.models.len();
        self.streams.iter().enumerate().filter(|(_, stream)| stream.answers > 0).map(move |(at, stream)| {
            Answers {
                group: &self.reference.groups[at / models].name,
                model: &self.reference.models[at % models],
                answers: stream.answers,
                mean: stream.mean(),
                at_least: stream.at_least,
            }
        })
    }

    /// What voided the certificate, if anything did.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }
}

/// Share of all false alarms that the test of one value may give, in a window of `window` queries of which the last is the
/// `observed`-th, where `values` are tested. The sum over all tests, for ever, is 1.
fn share_of_alarms(observed: usize, window: usize, values: usize) -> f64 {
    let epoch = observed.div_ceil(EPOCH) as f64;
    let tests = EPOCH / window * WINDOWS.len() * values;
    6.0 / (PI * epoch).powi(2) / tests as f64
}

/// Whether `task` is in the group `name`: the same, or below it (`mmlu/law` in `mmlu`).
pub fn belongs(task: &str, name: &str) -> bool {
    task.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The distance that two samples of one distribution exceed with probability at most about `level`:
/// `√(ln(2/level)/2 · (n + m)/(n·m))`, the leading term of Smirnov's distribution.
fn smirnov_limit(n: usize, m: usize, level: f64) -> f64 {
    let (n, m) = (n as f64, (m as f64).max(1.0));
    ((2.0 / level).ln() / 2.0 * (n + m) / (n * m)).sqrt()
}

/// Largest difference between the distribution of `values` and the one with these equally spaced quantiles.
fn distance(values: &mut [f32], quantiles: &[f32]) -> f64 {
    values.sort_unstable_by(f32::total_cmp);
    let share = |below: usize, of: usize| below as f64 / of.max(1) as f64;
    let at = |point: f32| {
        let own = share(values.partition_point(|value| *value <= point), values.len());
        (own - share(quantiles.partition_point(|value| *value <= point), quantiles.len())).abs()
    };
    quantiles.iter().chain(&*values).map(|point| at(*point)).fold(0.0, f64::max)
}

/// The bets on one group and model.
#[derive(Debug, Clone)]
struct Stream {
    at_least: f64,
    answers: u32,
    sum: f64,
    /// Capital that has started, by bet: (λ, capital).
    bets: Vec<(f64, f64)>,
    /// Capital in all, with what has not started.
    capital: f64,
}

impl Stream {
    fn new(at_least: f64) -> Self {
        Self { at_least, answers: 0, sum: 0.0, bets: Vec::new(), capital: 1.0 }
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.answers)
    }

    fn see(&mut self, score: f64) {
        let start = self.answers / STARTS + 1;
        if self.answers.is_multiple_of(STARTS) {
            // Start j has 1/(j(j + 1)) of the capital: together 1.
            let share = 1.0 / (f64::from(start) * f64::from(start + 1));
            let spread = (self.at_least * (1.0 - self.at_least)).max(0.01);
            self.bets.extend(DROPS.map(|(drop, part)| {
                // Never more than half of the capital is lost at once.
                ((drop / spread).min(0.5 / (1.0 - self.at_least).max(1e-9)), part * share)
            }));
        }
        self.answers += 1;
        self.sum += score;
        for (bet, capital) in &mut self.bets {
            *capital *= 1.0 + *bet * (self.at_least - score);
        }
        self.bets.retain(|(_, capital)| *capital > NOTHING);
        let started: f64 = self.bets.iter().map(|(_, capital)| capital).sum();
        self.capital = started + 1.0 / f64::from(start + 1);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// 500 calibration queries with uniform predictions, right with that chance.
    fn uniform() -> Reference {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut queries = ScoredQueries::new(vec!["m".into()]);
        for query in 0..500 {
            let score: f32 = rng.random();
            queries.predicted.push(score);
            queries.actual.push(f32::from(u8::from(rng.random::<f32>() < score)));
            queries.output_tokens.push(0);
            queries.prompt_tokens.push(1);
            queries.novelty.push((query % 10) as f32 / 20.0);
        }
        let groups = ["maths".to_owned()];
        reference(&queries, |_, _| true, &groups, |query| (query % 2 == 0).then_some(0), 0.05)
    }

    #[test]
    fn other_queries_are_noticed_and_the_same_are_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut monitor = Monitor::new(uniform(), 0.05);
        for query in 0..20_000 {
            let alarm = monitor.observe(&[rng.random()], (query % 10) as f32 / 20.0);
            assert_eq!(alarm, None, "query {query}");
        }
        let noticed = (0..400).find_map(|_| monitor.observe(&[rng.random::<f32>() * 0.5], 0.2));
        assert!(matches!(noticed, Some(Alarm::Drift { .. })), "{noticed:?}");
        assert!(monitor.alarm().is_some());
        assert_eq!(monitor.observe(&[0.0], 0.0), None, "an alarm is raised once");
    }

    #[test]
    fn false_alarms_are_bounded_for_ever() {
        let of_epoch = |epoch: usize| {
            let of_window = |window: usize| {
                let last = (epoch * EPOCH / window + 1..=(epoch + 1) * EPOCH / window).map(|at| at * window);
                last.map(|observed| 3.0 * share_of_alarms(observed, window, 3)).sum::<f64>()
            };
            WINDOWS.into_iter().map(of_window).sum::<f64>()
        };
        let spent: f64 = (0..300).map(of_epoch).sum();
        assert!((0.995..1.0).contains(&spent), "{spent}");
    }

    #[test]
    fn worse_answers_are_noticed_in_their_group() {
        let mut monitor = Monitor::new(uniform(), 0.05);
        let at_least = monitor.reference.groups[1].at_least[0];
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut answer = |monitor: &mut Monitor, task: &str, mean: f64| {
            let score = f64::from(u8::from(rng.random::<f64>() < mean));
            monitor.feedback(task, 0, score)
        };
        for _ in 0..3000 {
            assert_eq!(answer(&mut monitor, "maths/algebra", at_least), None);
            assert_eq!(answer(&mut monitor, "poems", 0.55), None);
        }
        let alarm = (0..3000).find_map(|_| answer(&mut monitor, "maths/algebra", at_least - 0.15));
        assert!(matches!(alarm, Some(Alarm::Drop { group, .. }) if group == "maths"));
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut monitor = Monitor::new(uniform(), 0.05);
        for (model, score) in [(7, 0.0), (0, f64::NAN), (0, -1.0)] {
            assert_eq!(monitor.feedback("maths", model, score), None);
        }
        assert!(belongs("mmlu/law", "mmlu") && belongs("mmlu", "mmlu") && !belongs("mmlu_pro/law", "mmlu"));
    }
}
