//! The decision itself: scores in, model out. The one function that routes, in the simulator and in the gateway.

use boute_spec::policy::RoutingPolicy;

/// A [`RoutingPolicy`] bound to the order in which scores are given.
#[derive(Debug, Clone, PartialEq)]
pub enum Decider {
    /// Always this model (index).
    Constant(usize),
    /// The model (index) with the largest score minus penalty.
    Utility(Vec<(usize, f32)>),
}

/// A policy names a model for which there are no scores.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the routing policy names `{model}`, but scores are known only for {known}")]
pub struct UnknownModel {
    /// The model.
    pub model: String,
    /// The models with scores, comma-separated.
    pub known: String,
}

/// Who answers, and by how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Index of the model.
    pub model: usize,
    /// Its `ŝ_m − λ_m` less the runner-up's; infinite for a constant policy.
    pub margin: f32,
}

impl Decider {
    /// Binds `policy` to `models`, the order in which [`Self::decide`] gets scores.
    ///
    /// # Errors
    /// If the policy names a model that is not in `models`.
    pub fn new(policy: &RoutingPolicy, models: &[String]) -> Result<Self, UnknownModel> {
        let index = |model: &str| {
            models
                .iter()
                .position(|known| known == model)
                .ok_or_else(|| UnknownModel { model: model.into(), known: models.join(", ") })
        };
        Ok(match policy {
            RoutingPolicy::Constant { model } => Self::Constant(index(model)?),
            RoutingPolicy::Utility { penalties } => Self::Utility(
                penalties
                    .iter()
                    .map(|penalty| Ok((index(&penalty.model)?, penalty.lambda as f32)))
                    .collect::<Result<_, UnknownModel>>()?,
            ),
        })
    }

    /// The model that answers a query with these scores (one per model, in the bound order).
    ///
    /// # Panics
    /// If `scores` is shorter than the bound order.
    pub fn decide(&self, scores: &[f32]) -> Decision {
        match self {
            Self::Constant(model) => Decision { model: *model, margin: f32::INFINITY },
            Self::Utility(penalties) => {
                let (mut best, mut first, mut second) =
                    (penalties[0].0, f32::NEG_INFINITY, f32::NEG_INFINITY);
                for &(model, lambda) in penalties {
                    let utility = scores[model] - lambda;
                    if utility > first {
                        (best, first, second) = (model, utility, first);
                    } else if utility > second {
                        second = utility;
                    }
                }
                Decision { model: best, margin: first - second }
            }
        }
    }
}
