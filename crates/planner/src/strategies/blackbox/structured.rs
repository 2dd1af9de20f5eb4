//! The paper's structure: load fractions, money per model, and how the models share each GPU type. What is left, replicas
//! and their parallelism, is the best that the performance table has for a model with its money and its part of the stock,
//! a multiple-choice knapsack. So neither budget nor stock can be broken.

use std::collections::{BTreeMap, BTreeSet};

use boute_mobo::{Domain, Point, Space, Structure, Value};

use super::knapsack::{self, Replica};
use super::{Design, Encoding, Ground};
use crate::deployment::{Goal, assess, columns};
use crate::routing::Route;

/// Steps between the divisions that are tried first.
const DIVISIONS: usize = 4;
/// Points that are tried first, at most.
const MOST_FIRST: usize = 25;
/// No share is nothing.
const LEAST_SHARE: f64 = 1e-6;

/// Variables in this order, each a simplex over the models: load fractions; money, where it is limited; preference for each
/// GPU type whose stock is limited. Money and stock are divided as preference × what the load would cost on the model's
/// cheapest candidate, so that the simplex's centre is the division in proportion to the load. `None` if there is nothing
/// to rent.
pub(super) fn encoding<'a>(ground: &'a Ground<'a>) -> Option<Encoding<'a>> {
    let models = ground.search.problem.models.len();
    let columns = ground.columns();
    let usd_per_request: Vec<f64> = (0..models)
        .map(|model| {
            let of_model = columns.iter().filter(|column| column.model == model);
            of_model.map(|column| column.usd_per_hour / column.rate).fold(f64::INFINITY, f64::min)
        })
        .collect();
    if usd_per_request.iter().all(|usd| usd.is_infinite()) {
        return None;
    }
    let limited = ground.limits.stock.iter().flatten().count();
    let variables = 1 + usize::from(ground.limits.budget.is_some()) + limited;
    let space = Space::new(vec![shares(models); variables], Vec::new()).ok()?;
    let coordinates = space.dimensions();
    let routing = coordinates / variables;
    let groups = vec![(0..routing).collect(), (routing..coordinates).collect()];
    let structure = (variables > 1).then(|| Structure::additive_with_interactions(groups));
    let first = if models > 1 { first(ground, models, variables) } else { Vec::new() };
    let decode = move |point: &Point| decode(ground, &usd_per_request, point);
    Some(Encoding { space, structure, first, decode: Box::new(decode) })
}

/// In proportion to the load: a few divisions; then at the last of them, which needs the best model least, one variable at a
/// time all for one model.
fn first(ground: &Ground<'_>, models: usize, variables: usize) -> Vec<Point> {
    let admissible: Vec<&Route> = ground.routes.iter().filter(|route| route.admissible).collect();
    let even = Value::Shares(vec![1.0 / models as f64; models]);
    let proportional = |route: usize| {
        let load = Value::Shares(admissible[route].stats.fractions.clone());
        [vec![load], vec![even.clone(); variables - 1]].concat()
    };
    let Some(last) = admissible.len().checked_sub(1) else { return Vec::new() };
    let divisions = (0..=DIVISIONS).rev().map(|at| proportional(at * last / DIVISIONS));
    let one_sided = (1..variables).flat_map(|variable| (0..models).map(move |model| (variable, model)));
    let one_sided = one_sided.map(|(variable, model)| {
        let mut point = proportional(last);
        let shares = (0..models).map(|at| f64::from(u8::from(at == model)));
        point[variable] = Value::Shares(shares.collect());
        point
    });
    divisions.chain(one_sided).take(MOST_FIRST).collect()
}

/// One model has everything: a variable without an effect.
fn shares(models: usize) -> Domain {
    if models > 1 { Domain::Simplex { parts: models } } else { Domain::Real { low: 0.0, high: 1.0 } }
}

fn decode(ground: &Ground<'_>, usd_per_request: &[f64], point: &Point) -> Design {
    let alone = [1.0];
    let mut variables = point.iter().map(|value| match value {
        Value::Shares(shares) => shares.as_slice(),
        _ => &alone,
    });
    let load = variables.next().unwrap_or(&alone);
    let route = ground.nearest_route(load);
    let fractions = &ground.routes[route].stats.fractions;
    let need: Vec<f64> = fractions.iter().zip(usd_per_request).map(|(load, usd)| load * usd).collect();
    let mut divide = |of: f64| {
        let preference = variables.next().unwrap_or(&alone);
        let weights: Vec<f64> =
            need.iter().zip(preference).map(|(need, share)| need * share.max(LEAST_SHARE)).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| of * weight / sum).collect::<Vec<f64>>()
    };
    let money = ground.limits.budget.map(&mut divide);
    let stock: Vec<Option<Vec<f64>>> =
        ground.limits.stock.iter().map(|stock| stock.map(|stock| divide(f64::from(stock)))).collect();
    let mut counts = BTreeMap::new();
    // What a model leaves of its money and stock goes to the next.
    let (mut usd, mut gpus) = (0.0, vec![0.0; stock.len()]);
    for model in (0..fractions.len()).filter(|model| fractions[*model] > 0.0) {
        usd += money.as_ref().map_or(f64::INFINITY, |money| money[model]);
        for (gpus, stock) in gpus.iter_mut().zip(&stock) {
            *gpus += stock.as_ref().map_or(f64::INFINITY, |stock| stock[model]);
        }
        let load =
            if ground.goal == Goal::Cost { ground.limits.rate * fractions[model] } else { f64::INFINITY };
        let whole: Vec<usize> = gpus.iter().map(|gpus| (gpus + 1e-9) as usize).collect();
        let chosen = knapsack::best(&replicas(ground, model, fractions), load, usd, &whole);
        for (&candidate, &count) in &chosen {
            let candidate = &ground.search.candidates[candidate];
            usd -= candidate.usd_per_hour * f64::from(count);
            gpus[candidate.offer] -= f64::from(candidate.gpus() * count);
        }
        counts.extend(chosen);
    }
    Design { route, counts }
}

/// What one replica of each of a model's candidates carries alone under a division of the load.
fn replicas(ground: &Ground<'_>, model: usize, fractions: &[f64]) -> Vec<Replica> {
    let search = ground.search;
    let alone: Vec<f64> = (0..fractions.len()).map(|at| f64::from(u8::from(at == model))).collect();
    let columns = columns(search.candidates, search.table.levels(fractions), ground.limits, &alone);
    let candidates: BTreeSet<usize> = columns.iter().map(|column| column.candidate).collect();
    let replica = |at: usize| {
        let candidate = &search.candidates[at];
        let rate =
            assess(search.problem, &columns, &alone, &vec![1.0; alone.len()], &BTreeMap::from([(at, 1)]))?
                .value;
        Some(Replica {
            candidate: at,
            offer: candidate.offer,
            gpus: candidate.gpus() as usize,
            usd_per_hour: candidate.usd_per_hour,
            rate,
        })
    };
    candidates.into_iter().filter_map(replica).collect()
}
