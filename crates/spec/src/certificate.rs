//! What a promise of quality rests on, so that whoever serves can watch whether it still does.

use serde::{Deserialize, Serialize};

/// Void when queries or answers are no longer like those it was made on; then `safe_model` answers everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The model of the policy with the best mean score on the calibration queries.
    pub safe_model: String,
    /// What those looked like.
    pub reference: Reference,
}

/// What the calibration queries looked like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Model ids.
    pub models: Vec<String>,
    /// Calibration queries.
    pub queries: usize,
    /// Of the predicted score of each model, then of the novelty.
    pub quantiles: Vec<Quantiles>,
    /// Groups of tasks; the first is "all", for whatever belongs to no other.
    pub groups: Vec<Group>,
}

/// Equally spaced quantiles, ascending. In a file they are one text, with spaces between: hundreds of numbers on one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quantiles(pub Vec<f32>);

/// A group of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Per model: lower bound of the mean score of its answers.
    pub at_least: Vec<f64>,
}

impl TryFrom<String> for Quantiles {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let number = |word: &str| word.parse().map_err(|_| format!("`{word}` is not a number"));
        text.split_ascii_whitespace().map(number).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Quantiles> for String {
    fn from(quantiles: Quantiles) -> Self {
        quantiles.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl Reference {
    /// Whether a monitor can work with it: tables of the right size, ascending quantiles, scores in [0, 1].
    pub fn is_sound(&self) -> bool {
        let ascending = |at: &Quantiles| !at.0.is_empty() && at.0.is_sorted_by(|low, high| low <= high);
        let vouched = |group: &Group| {
            group.at_least.len() == self.models.len()
                && group.at_least.iter().all(|mean| (0.0..=1.0).contains(mean))
        };
        !self.models.is_empty()
            && !self.groups.is_empty()
            && self.quantiles.len() == self.models.len() + 1
            && self.quantiles.iter().all(ascending)
            && self.groups.iter().all(vouched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_one_text() {
        let quantiles = Quantiles(vec![0.0, 0.1234, 1.0]);
        let text = serde_json::to_string(&quantiles).unwrap();
        assert_eq!(text, "\"0 0.1234 1\"");
        assert_eq!(serde_json::from_str::<Quantiles>(&text).unwrap(), quantiles);
        assert!(serde_json::from_str::<Quantiles>("\"0 x\"").is_err());
    }

    #[test]
    fn what_a_monitor_cannot_use_is_not_sound() {
        let reference = |quantiles: Vec<f32>, at_least: Vec<f64>| Reference {
            models: vec!["m".into()],
            queries: 2,
            quantiles: vec![Quantiles(quantiles); 2],
            groups: vec![Group { name: "all".into(), at_least }],
        };
        assert!(reference(vec![0.1, 0.1, 0.9], vec![0.5]).is_sound());
        for (quantiles, at_least) in [
            (vec![], vec![0.5]),
            (vec![0.5, 0.1], vec![0.5]),
            (vec![f32::NAN, 0.1], vec![0.5]),
            (vec![0.1], vec![]),
            (vec![0.1], vec![1.5]),
        ] {
            assert!(!reference(quantiles.clone(), at_least.clone()).is_sound(), "{quantiles:?} {at_least:?}");
        }
    }
}
