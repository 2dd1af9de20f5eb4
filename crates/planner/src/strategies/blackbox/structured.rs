//! The paper's structure: load fractions, how the models share each GPU type, and what a late request costs. What is left,
//! replicas and their parallelism, is the best that the performance table has for a model with its part of the stock, a
//! multiple-choice knapsack; where the rate is maximised, money is divided so that every model carries its share of the same
//! rate. So neither budget nor stock can be broken.
//!
//! The promise on a tail is one of the mixture: some replicas may be later where others are earlier. Its Lagrange multiplier
//! takes it apart: at price μ of a late request a replica of model m counts as carrying
//! ```text
//! max_l rate_l·(1 − μ/λ_m · max_k (over_lk − allowed_k))       λ_m: rent of a request on the cheapest candidate
//! ```
//! and at the right μ, which is searched, the fleets that are best one by one are best together. At an infinite μ every replica
//! keeps the promises by itself.

use std::collections::{BTreeMap, BTreeSet};

use boute_mobo::{Domain, Point, Space, Structure, Value};

use super::knapsack::{self, Replica};
use super::{Design, Encoding, Ground};
use crate::deployment::{Column, Goal, assess, columns};
use crate::problem::Problem;
use crate::routing::Route;

/// Steps between the divisions that are tried first.
const DIVISIONS: usize = 4;
/// One-sided divisions of the stock that are tried first, at most.
const MOST_ONE_SIDED: usize = 16;
/// The highest rate of a division is found within this part, at most so many times the problem's, as a power of two.
const RATE_WITHIN: f64 = 2e-3;
const MOST_DOUBLINGS: u32 = 20;
/// No share is nothing.
const LEAST_SHARE: f64 = 1e-6;
/// What a late request costs in the middle of the variable's range, in mean rents of a request: of the order of one over the
/// share that may be late.
const LATE_COSTS: f64 = 1.0;
/// In the first points lateness costs this part of the range.
const FIRST_PRICE: f64 = 0.25;

/// Variables in this order: load fractions; preference of the models for each GPU type whose stock is limited; price of a late
/// request, all but the last simplices over the models. Stock is divided as preference × what the load would cost on the model's cheapest candidate, so that the
/// simplex's centre is the division in proportion to the load. `None` if there is nothing to rent.
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
    let mut domains = vec![shares(models); 1 + limited];
    domains.push(Domain::Real { low: 0.0, high: 1.0 });
    let space = Space::new(domains, Vec::new()).ok()?;
    let coordinates = space.dimensions();
    let routing = (coordinates - 1) / (1 + limited);
    let groups = vec![(0..routing).collect(), (routing..coordinates).collect()];
    let structure = Some(Structure::additive_with_interactions(groups));
    let first = if models > 1 { first(ground, models, limited) } else { Vec::new() };
    let decode = move |point: &Point| decode(ground, &usd_per_request, point);
    Some(Encoding { space, structure, first, decode: Box::new(decode) })
}

/// A few divisions of the load with all stock shared; then, at the division that needs the best model least, the ends of the
/// prices, and ways to give each GPU type to one model wholly, spread over all of them.
fn first(ground: &Ground<'_>, models: usize, limited: usize) -> Vec<Point> {
    let admissible: Vec<&Route> = ground.routes.iter().filter(|route| route.admissible).collect();
    let even = Value::Shares(vec![1.0 / models as f64; models]);
    let proportional = |route: usize| {
        let load = Value::Shares(admissible[route].stats.fractions.clone());
        let price = Value::Real(FIRST_PRICE);
        [vec![load], vec![even.clone(); limited], vec![price]].concat()
    };
    let Some(last) = admissible.len().checked_sub(1) else { return Vec::new() };
    let divisions = (0..=DIVISIONS).rev().map(|at| proportional(at * last / DIVISIONS));
    let prices = [0.0, 1.0].map(|price| {
        let mut point = proportional(last);
        point[1 + limited] = Value::Real(price);
        point
    });
    let all_for =
        |model: usize| Value::Shares((0..models).map(|at| f64::from(u8::from(at == model))).collect());
    let ways = models.saturating_pow(limited as u32);
    let one_sided = (0..ways).step_by(ways.div_ceil(MOST_ONE_SIDED)).map(|way| {
        let mut point = proportional(last);
        let mut left = way;
        for stock in &mut point[1..=limited] {
            *stock = all_for(left % models);
            left /= models;
        }
        point
    });
    divisions.chain(prices).chain(one_sided).collect()
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
    let stock: Vec<Option<Vec<f64>>> =
        ground.limits.stock.iter().map(|stock| stock.map(|stock| divide(f64::from(stock)))).collect();
    let usd: f64 = need.iter().filter(|usd| usd.is_finite()).sum();
    let price = match point.last() {
        Some(Value::Real(price)) => LATE_COSTS * usd * price / (1.0 - price),
        _ => f64::INFINITY,
    };
    let used: Vec<(usize, Vec<Replica>)> = (0..fractions.len())
        .filter(|model| fractions[*model] > 0.0)
        .map(|model| (model, replicas(ground, model, fractions, price / usd_per_request[model])))
        .collect();
    let fleets = Fleets { ground, fractions, used, stock };
    let counts = match ground.goal {
        Goal::Cost => fleets.carrying(ground.limits.rate).0,
        Goal::Rate => fleets.fastest(),
    };
    Design { route, counts }
}

/// What the models can rent once the stock is divided.
struct Fleets<'a> {
    ground: &'a Ground<'a>,
    fractions: &'a [f64],
    /// Models with a share, and their replicas.
    used: Vec<(usize, Vec<Replica>)>,
    /// GPUs per offer and model.
    stock: Vec<Option<Vec<f64>>>,
}

impl Fleets<'_> {
    /// The cheapest fleets of all models, one after the other, that carry `rate` together, and whether they do. What a model
    /// leaves of its money and stock goes to the next.
    fn carrying(&self, rate: f64) -> (BTreeMap<usize, u32>, bool) {
        let mut counts = BTreeMap::new();
        let mut usd = self.ground.limits.budget.unwrap_or(f64::INFINITY);
        let mut gpus = vec![0.0; self.stock.len()];
        let mut all = true;
        for (model, replicas) in &self.used {
            for (gpus, stock) in gpus.iter_mut().zip(&self.stock) {
                *gpus += stock.as_ref().map_or(f64::INFINITY, |stock| stock[*model]);
            }
            let load = rate * self.fractions[*model] * self.ground.limits.margins[*model];
            let whole: Vec<usize> = gpus.iter().map(|gpus| (gpus + 1e-9) as usize).collect();
            let chosen = knapsack::best(replicas, load, usd, &whole);
            let mut carried = 0.0;
            for replica in replicas {
                let count = f64::from(chosen.get(&replica.candidate).copied().unwrap_or_default());
                carried += replica.rate * count;
                usd -= replica.usd_per_hour * count;
                gpus[replica.offer] -= replica.gpus as f64 * count;
            }
            all &= carried >= load * (1.0 - 1e-9);
            counts.extend(chosen);
        }
        (counts, all)
    }

    /// The fleets that carry the highest rate together, by bisection.
    fn fastest(&self) -> BTreeMap<usize, u32> {
        let mut best = BTreeMap::new();
        let (mut low, mut high) = (0.0, self.ground.search.problem.rate);
        for _ in 0..MOST_DOUBLINGS {
            let (counts, all) = self.carrying(high);
            if !all {
                break;
            }
            (best, low, high) = (counts, high, 2.0 * high);
        }
        while high - low > RATE_WITHIN * high {
            let middle = f64::midpoint(low, high);
            let (counts, all) = self.carrying(middle);
            if all {
                (best, low) = (counts, middle);
            } else {
                high = middle;
            }
            if high < 1e-6 {
                break;
            }
        }
        best
    }
}

/// What one replica of each of a model's candidates counts as carrying under a division of the load, when a late request costs as
/// much as `late_costs` others.
pub(super) fn replicas(
    ground: &Ground<'_>,
    model: usize,
    fractions: &[f64],
    late_costs: f64,
) -> Vec<Replica> {
    let search = ground.search;
    let alone: Vec<f64> = (0..fractions.len()).map(|at| f64::from(u8::from(at == model))).collect();
    let columns = columns(search.candidates, search.table.levels(fractions), ground.limits, &alone);
    let candidates: BTreeSet<usize> = columns.iter().map(|column| column.candidate).collect();
    let replica = |at: usize| {
        let candidate = &search.candidates[at];
        let rate = if late_costs.is_finite() {
            let of = columns.iter().filter(|column| column.candidate == at);
            of.map(|column| column.rate * (1.0 - late_costs * lateness(search.problem, column)))
                .fold(0.0, f64::max)
        } else {
            assess(search.problem, &columns, &alone, &vec![1.0; alone.len()], &BTreeMap::from([(at, 1)]))?
                .value
        };
        Some(Replica {
            candidate: at,
            offer: candidate.offer,
            gpus: candidate.gpus() as usize,
            usd_per_hour: candidate.usd_per_hour,
            rate,
        })
    };
    candidates.into_iter().filter_map(replica).filter(|replica| replica.rate > 0.0).collect()
}

/// By how much more of its requests than allowed a column's replica is late.
fn lateness(problem: &Problem, column: &Column) -> f64 {
    let promises = problem.slo.iter().zip(&column.over);
    let concerned = promises.filter(|(target, _)| problem.concerns(target, column.model));
    concerned.map(|(target, over)| over - (1.0 - target.percentile.share())).reduce(f64::max).unwrap_or(0.0)
}
