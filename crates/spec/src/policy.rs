//! How queries are divided among models, as data. `router` evaluates it, in the simulator and in the gateway alike.

use serde::{Deserialize, Serialize};

use crate::units::Fraction;

/// Query → model.
///
/// One family: answer with the model that maximises `ŝ_m(q) − λ_m`, where `ŝ_m` is the calibrated score the model would
/// get. For two models this is a threshold on `ŝ_large − ŝ_small`.
#[derive(Debug, Clone, PartialEq)]
pub enum RoutingPolicy {
    /// Every query goes to one model.
    Constant {
        /// Its id.
        model: String,
    },
    /// The model with the largest `ŝ_m − λ_m`; ties go to the first model listed.
    Utility {
        /// Per model: id and price `λ_m` in units of score. All finite. At least two.
        penalties: Vec<ModelPenalty>,
    },
}

/// `λ_m` of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPenalty {
    /// Model id.
    pub model: String,
    /// `λ_m`: how much better than a free model the answer must be expected to be.
    pub lambda: f64,
}

/// The second decision, once a model of the policy has answered: whether its answer is given, or the query is asked again
/// from a better model. It is taken where an answer is not streamed, and swaps at most [`Self::max_share`] of the answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CascadePolicy {
    /// The model whose answers are looked at.
    pub from: String,
    /// The model that is asked again.
    pub to: String,
    /// Share of all queries that are asked again, at most: what the fleet was sized for.
    pub max_share: Fraction,
    /// By how much the second answer must be expected to score more.
    pub min_gain: f64,
    /// How the scores of the first and of the second answer are expected from the first: weights of log odds, on what
    /// `router::cascade` reads.
    pub weights: [[f64; CASCADE_INPUTS]; 2],
}

/// What a cascade reads of an answer.
pub const CASCADE_INPUTS: usize = 7;

impl RoutingPolicy {
    /// The models that can be chosen, in order.
    pub fn models(&self) -> Vec<&str> {
        match self {
            Self::Constant { model } => vec![model],
            Self::Utility { penalties } => penalties.iter().map(|penalty| penalty.model.as_str()).collect(),
        }
    }
}
