//! The cascade of a policy: which answers of its most used model are worth asking its best model again, and what that costs.
//!
//! Both halves of the planning queries have heads of their own, which judge the answers to the other half: the answers of the
//! greatest expected gain are asked for again, as many as the spec allows, if second answers to them scored no less than the
//! first with the confidence of the floor. The policy's promise of quality is made without second answers; this test is what says that
//! they do not take from it. The fleet is made for all of them: for the simulation no answer is streamed.

use boute_router::ScoredQueries;
use boute_router::cascade::{Answer, Heads};
use boute_router::certify::lower_bound;
use boute_router::policy::PolicyStats;
use boute_spec::policy::{CascadePolicy, RoutingPolicy};
use boute_spec::units::Fraction;

use crate::problem::Problem;

/// The cascade of `policy`; `None` if the spec wants none, one model answers everything, or second answers are not worth it.
/// `assignment` says which model answers each planning query.
pub(crate) fn of(problem: &Problem, policy: &RoutingPolicy, assignment: &[usize]) -> Option<CascadePolicy> {
    let share = problem.cascade?;
    let queries = &problem.quality.as_ref()?.planning;
    let models @ [from, to] = models(queries, policy, assignment)?;
    let known: Vec<(usize, Answer)> =
        (0..queries.len()).filter_map(|query| Some((query, Answer::of(queries, query, models)?))).collect();
    let train = |left_out: usize| {
        let kept = || (0..).zip(&known).filter(|(at, _)| at % 2 != left_out).map(|(_, known)| known);
        let answers: Vec<Answer> = kept().map(|(_, answer)| *answer).collect();
        let score = |query: usize, model: usize| queries.actual(query, model) as f32;
        let scores: Vec<_> = kept().map(|(query, _)| (score(*query, from), score(*query, to))).collect();
        Heads::train(&answers, &scores, problem.seed)
    };
    let halves = [train(0)?, train(1)?];
    let mut gains: Vec<(f32, usize)> = (0..)
        .zip(&known)
        .filter(|(_, (query, _))| assignment[*query] == from)
        .map(|(at, (query, answer)): (usize, _)| (halves[at % 2].gain(answer), *query))
        .filter(|(gain, _)| *gain > 0.0)
        .collect();
    gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    gains.truncate((share * queries.len() as f64) as usize);
    let &(min_gain, _) = gains.last()?;
    // Differences of scores, from [−1, 1] to [0, 1].
    let better =
        |(_, query): &(f32, usize)| (1.0 + queries.actual(*query, to) - queries.actual(*query, from)) / 2.0;
    let no_worse = lower_bound(&gains.iter().map(better).collect::<Vec<f64>>(), 1.0 - problem.confidence);
    if no_worse < 0.5 {
        return None;
    }
    Some(CascadePolicy {
        from: queries.models[from].clone(),
        to: queries.models[to].clone(),
        max_share: Fraction::new(gains.len() as f64 / queries.len() as f64)?,
        min_gain: f64::from(min_gain),
        // No half is left out.
        weights: train(2)?.weights,
    })
}

/// What each model is asked when second answers count too.
pub(crate) fn with_load(
    problem: &Problem,
    cascade: Option<&CascadePolicy>,
    mut stats: PolicyStats,
) -> PolicyStats {
    if let Some(cascade) = cascade {
        for (fraction, model) in stats.fractions.iter_mut().zip(&problem.models) {
            *fraction += if model.id == cascade.to { cascade.max_share.get() } else { 0.0 };
        }
    }
    stats
}

/// The policy's best model by its mean score, and of the others the one that answers most: [most, best].
fn models(queries: &ScoredQueries, policy: &RoutingPolicy, assignment: &[usize]) -> Option<[usize; 2]> {
    let chosen = policy.models();
    let chosen: Vec<usize> =
        (0..queries.models.len()).filter(|model| chosen.contains(&queries.models[*model].as_str())).collect();
    let mean = |model: usize| (0..queries.len()).map(|query| queries.actual(query, model)).sum::<f64>();
    let best = chosen.iter().copied().max_by(|a, b| mean(*a).total_cmp(&mean(*b)))?;
    let load = |model: usize| assignment.iter().filter(|answers| **answers == model).count();
    let most = chosen.into_iter().filter(|model| *model != best).max_by_key(|model| load(*model))?;
    Some([most, best])
}
