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

/// Who answers a query of a session whose last answer came from `previous`: the model of `decision`, but never one of lower
/// rank than before (`rank` per model, higher is better). Each turn is scored anew, so a session moves up when it becomes
/// harder; it does not move down, since that is where users notice and prompt caches are lost.
pub fn in_session(decision: Decision, previous: Option<usize>, rank: impl Fn(usize) -> usize) -> usize {
    match previous {
        Some(previous) if rank(previous) > rank(decision.model) => previous,
        _ => decision.model,
    }
}

/// A model taken with known probability, so that what it scores can be weighted afterwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Explored {
    /// Index of the model.
    pub model: usize,
    /// The chance that this model was taken, given the decision.
    pub propensity: f64,
}

/// With probability `share`, any of `models` with equal chances; else the one decided. `draw` is uniform in [0, 1).
///
/// # Panics
/// If `models` is empty.
pub fn explore(decision: Decision, models: &[usize], share: f64, draw: f64) -> Explored {
    assert!(!models.is_empty(), "there are models to explore");
    let each = share / models.len() as f64;
    let model =
        if draw < share { models[((draw / each) as usize).min(models.len() - 1)] } else { decision.model };
    let decided = if model == decision.model { 1.0 - share } else { 0.0 };
    let drawn = if models.contains(&model) { each } else { 0.0 };
    Explored { model, propensity: decided + drawn }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Decision = Decision { model: 0, margin: 0.1 };

    #[test]
    fn sessions_move_up_only() {
        let large = Decision { model: 1, margin: 0.1 };
        let answers = [(SMALL, None, 0), (SMALL, Some(0), 0), (large, Some(0), 1), (SMALL, Some(1), 1)];
        for (decision, previous, want) in answers {
            assert_eq!(in_session(decision, previous, |model| model), want);
        }
    }

    #[test]
    fn propensities_are_frequencies() {
        let draws = 10_000;
        let mut counts = [0_u32; 3];
        let mut stated = [0.0; 3];
        for draw in 0..draws {
            let explored = explore(SMALL, &[0, 1, 2], 0.06, f64::from(draw) / f64::from(draws));
            counts[explored.model] += 1;
            stated[explored.model] = explored.propensity;
        }
        for (count, stated) in counts.iter().zip(stated) {
            assert!((f64::from(*count) / f64::from(draws) - stated).abs() < 1e-3, "{counts:?} {stated}");
        }
    }
}
