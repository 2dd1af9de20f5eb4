//! How long an answer will be: quantiles of its tokens.
//!
//! A linear head on the features of the score predicts ln(1 + tokens). How far the truth lies from that is read off training
//! answers that the head was not fitted to, separately for short and long predictions, since those differ in spread.

use serde::{Deserialize, Serialize};

/// Quantiles kept.
pub const QUANTILES: [f64; 7] = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95];
/// Groups of predictions, from short to long.
const GROUPS: usize = 8;
/// Answers needed to say anything.
pub(crate) const FEWEST_ANSWERS: usize = 100;

/// The spread around the predictions for one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    /// Upper ends of all groups but the last, in ln(1 + tokens).
    pub(crate) edges: Vec<f32>,
    /// Per group, the quantiles of truth − prediction.
    pub(crate) residuals: Vec<[f32; QUANTILES.len()]>,
}

impl Spread {
    /// From (prediction, truth) in ln(1 + tokens), at least [`FEWEST_ANSWERS`].
    pub(crate) fn of(mut pairs: Vec<(f32, f32)>) -> Self {
        pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let groups: Vec<&[(f32, f32)]> = (0..GROUPS)
            .map(|group| &pairs[group * pairs.len() / GROUPS..(group + 1) * pairs.len() / GROUPS])
            .collect();
        let residuals = |group: &&[(f32, f32)]| {
            let mut residuals: Vec<f32> = group.iter().map(|(guess, truth)| truth - guess).collect();
            residuals.sort_unstable_by(f32::total_cmp);
            QUANTILES.map(|share| residuals[(share * (residuals.len() - 1) as f64).round() as usize])
        };
        Self {
            edges: groups[..GROUPS - 1].iter().map(|group| group[group.len() - 1].0).collect(),
            residuals: groups.iter().map(residuals).collect(),
        }
    }

    /// Tokens at each of [`QUANTILES`], for one prediction.
    pub(crate) fn tokens(&self, prediction: f32) -> [f32; QUANTILES.len()] {
        let group = self.edges.partition_point(|edge| *edge < prediction);
        self.residuals[group].map(|residual| (prediction + residual).exp_m1().max(1.0))
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.residuals.len() == self.edges.len() + 1
            && self.edges.iter().chain(self.residuals.iter().flatten()).all(|value| value.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_follow_the_spread_of_their_group() {
        // Long answers spread ten times as much.
        let pair = |at: u16| {
            let guess = f32::from(at % 2) * 4.0 + 1.0;
            let spread = if at.is_multiple_of(2) { 0.1 } else { 1.0 };
            (guess, guess + spread * (f32::from(at) / 1000.0 - 1.0))
        };
        let spread = Spread::of((0..2000).map(pair).collect());
        let [short, long] = [1.0, 5.0].map(|guess| spread.tokens(guess));
        let width = |tokens: [f32; 7]| (tokens[6] / tokens[0]).ln();
        assert!(width(long) > 5.0 * width(short), "{short:?} {long:?}");
        assert!(long.is_sorted() && spread.is_sound());
    }
}
