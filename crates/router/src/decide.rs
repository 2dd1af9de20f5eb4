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

    /// The models (indices) that can answer.
    pub fn models(&self) -> Vec<usize> {
        match self {
            Self::Constant(model) => vec![*model],
            Self::Utility(penalties) => penalties.iter().map(|(model, _)| *model).collect(),
        }
    }

    /// The model that answers a query with these scores (one per model, in the bound order).
    ///
    /// # Panics
    /// If `scores` is shorter than the bound order.
    pub fn decide(&self, scores: &[f32]) -> Decision {
        self.decide_among(scores, |_| true).expect("a policy has a model")
    }

    /// The same among the models (by index) that `allowed` says; `None` if the policy has none of them.
    ///
    /// # Panics
    /// If `scores` is shorter than the bound order.
    pub fn decide_among(&self, scores: &[f32], allowed: impl Fn(usize) -> bool) -> Option<Decision> {
        match self {
            Self::Constant(model) => {
                allowed(*model).then_some(Decision { model: *model, margin: f32::INFINITY })
            }
            Self::Utility(penalties) => {
                let (mut best, mut first, mut second) = (None, f32::NEG_INFINITY, f32::NEG_INFINITY);
                for &(model, lambda) in penalties.iter().filter(|(model, _)| allowed(*model)) {
                    let utility = scores[model] - lambda;
                    if utility > first || best.is_none() {
                        (best, first, second) = (Some(model), utility, first);
                    } else if utility > second {
                        second = utility;
                    }
                }
                best.map(|model| Decision { model, margin: first - second })
            }
        }
    }
}

/// The cheapest model whose score reaches `floor`; if none does, the one with the highest score. `cheapest_first` are the
/// models by price. `None` if there is no model.
pub fn cheapest_reaching(scores: &[f32], cheapest_first: &[usize], floor: f32) -> Option<usize> {
    let reaching = cheapest_first.iter().find(|model| scores[**model] >= floor);
    let best = || cheapest_first.iter().max_by(|a, b| scores[**a].total_cmp(&scores[**b]));
    reaching.or_else(best).copied()
}

/// The dearest model if its score is at least `threshold` above the cheapest's, else the cheapest: `RouteLLM`'s rule (Ong
/// et al., arXiv 2406.18665, §2) with a difference of scores in the place of the chance of a win.
pub fn dearest_if_better(scores: &[f32], cheapest_first: &[usize], threshold: f32) -> Option<usize> {
    let (cheapest, dearest) = (*cheapest_first.first()?, *cheapest_first.last()?);
    Some(if scores[dearest] - scores[cheapest] >= threshold { dearest } else { cheapest })
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

    const SCORES: [f32; 3] = [0.9, 0.5, 0.7];

    #[test]
    fn a_floor_takes_the_cheapest_that_reaches_it() {
        let at = |floor| cheapest_reaching(&SCORES, &[1, 2, 0], floor);
        assert_eq!([0.1, 0.6, 0.8, 0.99].map(at), [Some(1), Some(2), Some(0), Some(0)]);
        assert_eq!(cheapest_reaching(&SCORES, &[], 0.0), None);
    }

    #[test]
    fn a_threshold_takes_the_dearest_or_the_cheapest() {
        assert_eq!(
            [0.3, 0.39, 0.5].map(|t| dearest_if_better(&SCORES, &[1, 2, 0], t)),
            [Some(0), Some(0), Some(1)]
        );
    }

    #[test]
    fn what_is_not_allowed_is_not_chosen() {
        let decider = Decider::Utility(vec![(0, 0.5), (1, 0.0), (2, 0.1)]);
        assert_eq!(decider.decide(&SCORES).model, 2);
        assert_eq!(decider.decide_among(&SCORES, |model| model != 2).map(|it| it.model), Some(1));
        assert_eq!(decider.decide_among(&SCORES, |_| false), None);
        assert_eq!(Decider::Constant(1).decide_among(&SCORES, |model| model == 0), None);
    }

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
