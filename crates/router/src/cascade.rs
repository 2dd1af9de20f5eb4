//! The second decision of a cascade: a smaller model has answered; is its answer good enough?
//!
//! What it did is the cheapest sign of whether it was right: on MMLU-Pro the length of its answer alone does more than any
//! embedding of the question (docs/router.md). One logistic head per model on the scores of the question and the length of
//! the answer beside the expected one.

use boute_spec::policy::{CASCADE_INPUTS, CascadePolicy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::logistic::{Row, fit, logit_of_mean, sigmoid};
use crate::queries::ScoredQueries;

/// Cost C: a few thousand answers teach a dozen weights.
const COST: f64 = 1.0;
/// Fewest answers that teach anything.
const FEWEST_ANSWERS: usize = 100;

/// A first answer, and what was expected before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Expected score of the model that answered.
    pub first: f32,
    /// Expected score of the model that may be asked again.
    pub second: f32,
    /// Tokens of the answer.
    pub tokens: u32,
    /// Tokens that were expected (median).
    pub expected_tokens: f32,
}

impl Answer {
    /// The answer of `from` to one of `queries`, before `to` is asked; `None` where its length is not known.
    pub fn of(queries: &ScoredQueries, query: usize, [from, to]: [usize; 2]) -> Option<Self> {
        let (scores, tokens) = (queries.predicted(query), queries.output_tokens(query, from));
        let expected_tokens = queries.expected_tokens(query, from);
        let (first, second) = (scores[from], scores[to]);
        (tokens > 0).then_some(Self { first, second, tokens, expected_tokens })
    }

    fn inputs(&self) -> [f32; CASCADE_INPUTS] {
        let odds = |score: f32| {
            let score = score.clamp(0.001, 0.999);
            (score / (1.0 - score)).ln()
        };
        let tokens = (self.tokens as f32).ln_1p();
        let beyond = tokens - self.expected_tokens.max(0.0).ln_1p();
        let long = tokens - 5.0;
        [odds(self.first), odds(self.second), long, long * long, beyond, beyond * beyond, 1.0]
    }
}

/// What is expected of a first and of a second answer, once the first is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    /// Weights for the first, and for the second.
    pub weights: [[f64; CASCADE_INPUTS]; 2],
}

impl Heads {
    /// From first answers with the scores that the first and the second model got, on queries that the scorer was not
    /// trained on. `None` for fewer than [`FEWEST_ANSWERS`], or if a model was always right or always wrong.
    pub fn train(answers: &[Answer], scores: &[(f32, f32)], seed: u64) -> Option<Self> {
        if answers.len() < FEWEST_ANSWERS {
            return None;
        }
        let rows: Vec<Row> = answers.iter().map(|answer| (0..).zip(answer.inputs()).collect()).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let head = |score: fn(&(f32, f32)) -> f32| {
            let targets: Vec<f32> = scores.iter().map(score).collect();
            let certain = logit_of_mean(&targets).abs() > (2.0 * targets.len() as f64).ln();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let weights = (!certain).then(|| fit(&rows, &targets, CASCADE_INPUTS, COST, &mut rng))?;
            Some(std::array::from_fn(|at| f64::from(weights[at])))
        };
        Some(Self { weights: [head(|scores| scores.0)?, head(|scores| scores.1)?] })
    }

    /// The scores that are expected of the first answer and of a second one, now that the first is there.
    pub fn scores(&self, answer: &Answer) -> [f32; 2] {
        let inputs = answer.inputs();
        let sum = |head: &[f64; CASCADE_INPUTS]| head.iter().zip(inputs).map(|(w, x)| w * f64::from(x)).sum();
        self.weights.each_ref().map(|head| sigmoid(sum(head)) as f32)
    }

    /// How much more a second answer is expected to score.
    pub fn gain(&self, answer: &Answer) -> f32 {
        let [first, second] = self.scores(answer);
        second - first
    }
}

/// A [`CascadePolicy`] bound to the order in which scores are given.
#[derive(Debug, Clone, PartialEq)]
pub struct Cascade {
    /// The models (indices): whose answers are looked at, and who is asked again.
    pub models: [usize; 2],
    /// Share of the queries that are asked again, at most.
    pub max_share: f64,
    min_gain: f64,
    heads: Heads,
}

impl Cascade {
    /// Binds `policy` to `models`; `None` if it names others.
    pub fn new(policy: &CascadePolicy, models: &[String]) -> Option<Self> {
        let index = |model: &String| models.iter().position(|known| known == model);
        Some(Self {
            models: [index(&policy.from)?, index(&policy.to)?],
            max_share: policy.max_share.get(),
            min_gain: policy.min_gain,
            heads: Heads { weights: policy.weights },
        })
    }

    /// How much more a second answer is expected to score, where that is enough to ask for it.
    pub fn worth(&self, answer: &Answer) -> Option<f32> {
        Some(self.heads.gain(answer)).filter(|gain| f64::from(*gain) >= self.min_gain)
    }
}

/// Second answers saved up, at most: a burst of doubtful answers costs no more at once.
const MOST_AT_ONCE: f64 = 10.0;

/// Keeps second answers to a share of the queries, so that the model that gives them gets no more load than was planned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Budget(f64);

impl Budget {
    /// A query has come, of which `share` may be asked again.
    pub fn earn(&mut self, share: f64) {
        self.0 = (self.0 + share).min(MOST_AT_ONCE);
    }

    /// Whether one may be asked again; then it is paid for.
    pub fn spend(&mut self) -> bool {
        let enough = self.0 >= 1.0;
        self.0 -= f64::from(u8::from(enough));
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_answers_stay_within_their_share() {
        let mut budget = Budget::default();
        let spent = |budget: &mut Budget, queries: u32, every: u32| {
            let mut spent = 0;
            for query in 0..queries {
                budget.earn(0.25);
                spent += u32::from(query % every == 0 && budget.spend());
            }
            spent
        };
        assert_eq!(spent(&mut budget, 1000, 1), 250, "who wants all gets the share");
        assert_eq!(spent(&mut budget, 1000, 100), 9, "who wants less gets it, once there is one");
        assert_eq!(spent(&mut budget, 1000, 1), 259, "what was left is kept, but no more than ten");
    }

    #[test]
    fn answers_that_run_on_are_doubted() {
        let answer = |tokens| Answer { first: 0.5, second: 0.6, tokens, expected_tokens: 200.0 };
        let answers: Vec<Answer> = (0..1000).map(|at| answer(if at % 3 == 0 { 2000 } else { 150 })).collect();
        let scores: Vec<(f32, f32)> = (0..1000)
            .map(|at| (f32::from(u8::from(at % 3 != 0 || at % 9 == 0)), f32::from(u8::from(at % 5 != 0))))
            .collect();
        let heads = Heads::train(&answers, &scores, 0).unwrap();
        let [good, bad] = [150, 2000].map(|tokens| heads.scores(&answer(tokens))[0]);
        assert!(good > 0.9 && (0.2..0.5).contains(&bad), "{good} {bad}");
        assert!(heads.gain(&answer(2000)) > 0.3 && heads.gain(&answer(150)) < 0.0);
        assert!(Heads::train(&answers[..50], &scores[..50], 0).is_none());
    }
}
