//! The second decision of a cascade: the small model has answered; is its answer good enough?
//!
//! What the small model did is the cheapest sign of whether it was right: on MMLU-Pro the length of its answer alone does
//! more than any embedding of the question (docs/router.md). One logistic head per model on the scores of the question,
//! the length of the answer beside the expected one, and the mean log-probability of its tokens where known.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::logistic::{Row, fit, logit_of_mean, sigmoid};

/// Cost C: a few thousand answers teach a dozen weights.
const COST: f64 = 1.0;
const INPUTS: u32 = 8;

/// One answer of the small model, and what was expected before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Expected score of the small model.
    pub small: f32,
    /// Expected score of the large model.
    pub large: f32,
    /// Tokens of the small model's answer.
    pub tokens: u32,
    /// Tokens that were expected (median).
    pub expected_tokens: f32,
    /// Mean log-probability of the answer's tokens; 0 where engines do not say.
    pub mean_log_probability: f32,
}

impl Answer {
    fn row(&self) -> Row {
        let odds = |score: f32| {
            let score = score.clamp(0.001, 0.999);
            (score / (1.0 - score)).ln()
        };
        let tokens = (self.tokens as f32).ln_1p();
        let beyond = tokens - self.expected_tokens.max(0.0).ln_1p();
        let values = [
            odds(self.small),
            odds(self.large),
            tokens - 5.0,
            (tokens - 5.0).powi(2),
            beyond,
            beyond * beyond,
            self.mean_log_probability,
            1.0,
        ];
        (0..INPUTS).zip(values).collect()
    }
}

/// Decides whether a query goes on to the large model.
#[derive(Debug, Clone, PartialEq)]
pub struct Cascade {
    small: Vec<f32>,
    large: Vec<f32>,
}

impl Cascade {
    /// From answers with the scores that the small and the large model got; queries that the scorer was not trained on.
    /// `None` for fewer than 100 answers, or if a model was always right or always wrong.
    pub fn train(answers: &[Answer], scores: &[(f32, f32)], seed: u64) -> Option<Self> {
        let rows: Vec<Row> = answers.iter().map(Answer::row).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let head = |score: fn(&(f32, f32)) -> f32| {
            let targets: Vec<f32> = scores.iter().map(score).collect();
            let certain = logit_of_mean(&targets).abs() > (2.0 * targets.len() as f64).ln();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (!certain).then(|| fit(&rows, &targets, INPUTS as usize, COST, &mut rng))
        };
        if answers.len() < 100 {
            return None;
        }
        Some(Self { small: head(|scores| scores.0)?, large: head(|scores| scores.1)? })
    }

    /// The scores of the small model's answer and of the large model, now that the small one has answered. The query goes
    /// on where the difference is worth the large model's price.
    pub fn scores(&self, answer: &Answer) -> (f32, f32) {
        let row = answer.row();
        let of = |head: &[f32]| {
            sigmoid(row.iter().map(|&(column, x)| f64::from(head[column as usize] * x)).sum()) as f32
        };
        (of(&self.small), of(&self.large))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_run_on_are_doubted() {
        let answer = |tokens| Answer {
            small: 0.5,
            large: 0.6,
            tokens,
            expected_tokens: 200.0,
            mean_log_probability: 0.0,
        };
        let answers: Vec<Answer> = (0..1000).map(|at| answer(if at % 3 == 0 { 2000 } else { 150 })).collect();
        let scores: Vec<(f32, f32)> = (0..1000)
            .map(|at| (f32::from(u8::from(at % 3 != 0 || at % 9 == 0)), f32::from(u8::from(at % 5 != 0))))
            .collect();
        let cascade = Cascade::train(&answers, &scores, 0).unwrap();
        let [good, bad] = [150, 2000].map(|tokens| cascade.scores(&answer(tokens)).0);
        assert!(good > 0.9 && (0.2..0.5).contains(&bad), "{good} {bad}");
        assert!(Cascade::train(&answers[..50], &scores[..50], 0).is_none());
    }
}
