//! Raw variables: the penalties λ of the policy, and per model and GPU type a number of replicas and their parallelism.

use std::collections::BTreeMap;

use boute_mobo::{Domain, Point, Space, Value};
use boute_router::ScoredQueries;
use boute_router::decide::Decider;
use boute_router::policy::{assign, evaluate};
use boute_spec::policy::{ModelPenalty, RoutingPolicy};

use super::{Design, Encoding, Ground};
use crate::deployment::{Column, most_replicas};

/// Variables in this order: λ of each model beyond the first; replicas of each (model, GPU type); which of its candidates.
/// Any budget and stock may be broken. `None` if there is nothing to rent.
pub(super) fn encoding<'a>(ground: &'a Ground<'a>) -> Option<Encoding<'a>> {
    let queries = ground.search.problem.quality.as_ref().map(|quality| &quality.planning);
    let penalties = queries.map_or_else(Vec::new, penalties);
    let mut pools: BTreeMap<(usize, usize), Vec<Column>> = BTreeMap::new();
    for column in ground.columns() {
        pools.entry((column.model, column.offer)).or_default().push(column);
    }
    let pools: Vec<Vec<Column>> = pools.into_values().map(fastest).collect();
    let counts = pools.iter().map(|pool| {
        let whole = vec![1.0; ground.search.problem.models.len()];
        let most = |column| {
            most_replicas(column, &whole, ground.limits, ground.goal, ground.search.problem.robust) as i64
        };
        Domain::Integer { low: 0, high: pool.iter().map(most).max().unwrap_or(0) }
    });
    let kinds = pools.iter().map(|pool| Domain::Categorical { count: pool.len() });
    let domains: Vec<Domain> = penalties.iter().cloned().chain(counts).chain(kinds).collect();
    let free = penalties.len();
    let decode = move |point: &Point| {
        let fractions = queries.map_or_else(|| vec![1.0], |queries| fractions(queries, &point[..free]));
        let (counts, kinds) = point[free..].split_at(pools.len());
        let counts = pools.iter().zip(counts).zip(kinds).filter_map(|((pool, count), kind)| {
            let (Value::Integer(count @ 1..), Value::Choice(kind)) = (count, kind) else { return None };
            Some((pool[*kind].candidate, *count as u32))
        });
        Design { route: ground.nearest_route(&fractions), counts: counts.collect() }
    };
    let space = Space::new(domains, Vec::new()).ok()?;
    Some(Encoding { space, structure: None, first: Vec::new(), decode: Box::new(decode) })
}

/// The fastest column of each candidate, in the candidates' order.
fn fastest(pool: Vec<Column>) -> Vec<Column> {
    let mut of: BTreeMap<usize, Column> = BTreeMap::new();
    for column in pool {
        let known = of.entry(column.candidate).or_insert_with(|| column.clone());
        if column.rate > known.rate {
            *known = column;
        }
    }
    of.into_values().collect()
}

/// λ of each model beyond the first: as far as its predicted advantage over the first goes on the planning queries.
fn penalties(queries: &ScoredQueries) -> Vec<Domain> {
    (1..queries.models.len())
        .map(|model| {
            let advantages = (0..queries.len()).map(|query| {
                let scores = queries.predicted(query);
                f64::from(scores[model] - scores[0])
            });
            let low = advantages.clone().fold(f64::INFINITY, f64::min);
            let high = advantages.fold(f64::NEG_INFINITY, f64::max);
            // A little more on both sides, so that either model may answer everything.
            Domain::Real { low: low - 1e-3, high: high + 1e-3 }
        })
        .collect()
}

/// Load fractions under penalties.
fn fractions(queries: &ScoredQueries, penalties: &[Value]) -> Vec<f64> {
    let first = [0.0].into_iter();
    let lambdas =
        first.chain(penalties.iter().map(|value| if let Value::Real(at) = value { *at } else { 0.0 }));
    let penalties: Vec<ModelPenalty> = queries
        .models
        .iter()
        .zip(lambdas)
        .map(|(model, lambda)| ModelPenalty { model: model.clone(), lambda })
        .collect();
    let only = vec![1.0; queries.models.len()];
    Decider::new(&RoutingPolicy::Utility { penalties }, &queries.models)
        .map_or(only, |decider| evaluate(&assign(&decider, queries), queries).fractions)
}
