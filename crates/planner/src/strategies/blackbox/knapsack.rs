//! The fleets of one model: the paper's multiple-choice knapsack over its performance database.
//!
//! Every replica keeps the promises by itself, at the highest rate at which it does. On one GPU type money is price × GPUs,
//! so the best rate of n GPUs is a knapsack with one weight; over the types, one n each is chosen:
//! ```text
//! b_g(n) = max_c [ b_g(n − gpus_c) + rate_c ]          candidates c on type g
//! B(usd) = max Σ_g b_g(n_g),  Σ_g price_g·n_g ≤ usd,  n_g ≤ stock_g
//! ```
//! B is built type by type as the list of its steps (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11).

use std::collections::BTreeMap;

/// Steps of B that are kept: with more, neighbours hardly differ.
const MOST_STEPS: usize = 400;
/// More GPUs of one type than this are not counted.
const MOST_GPUS: usize = 4_096;

/// A replica that keeps the promises by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replica {
    pub(super) candidate: usize,
    pub(super) offer: usize,
    pub(super) gpus: usize,
    pub(super) usd_per_hour: f64,
    /// Requests per second.
    pub(super) rate: f64,
}

/// A step of B: no cheaper fleet has this rate.
#[derive(Debug, Clone)]
struct Step {
    usd: f64,
    rate: f64,
    /// GPUs per type, in the order of the types so far.
    gpus: Vec<usize>,
}

/// Replicas per candidate: the cheapest fleet that carries `load`, or else the one that carries most, within `usd` per hour and
/// the `stock` of GPUs per offer. With an infinite load, the one that carries most.
pub(super) fn best(replicas: &[Replica], load: f64, usd: f64, stock: &[usize]) -> BTreeMap<usize, u32> {
    let mut types: Vec<Vec<(f64, Option<Replica>)>> = Vec::new();
    let mut steps = vec![Step { usd: 0.0, rate: 0.0, gpus: Vec::new() }];
    for (offer, stock) in stock.iter().enumerate() {
        let on_offer: Vec<Replica> =
            replicas.iter().filter(|replica| replica.offer == offer).copied().collect();
        let Some(first) = on_offer.first() else { continue };
        let price = first.usd_per_hour / first.gpus as f64;
        let affordable = (usd / price + 1e-9).min(MOST_GPUS as f64) as usize;
        let table = by_gpus(&on_offer, load, affordable.min(*stock));
        steps = extended(&steps, &table, price, usd);
        types.push(table);
    }
    let enough = steps.iter().position(|step| step.rate >= load * (1.0 - 1e-9));
    let step = &steps[enough.unwrap_or(steps.len() - 1)];
    let mut counts = BTreeMap::new();
    for (table, gpus) in types.iter().zip(&step.gpus) {
        let mut left = *gpus;
        while let Some(replica) = table[left].1 {
            *counts.entry(replica.candidate).or_default() += 1;
            left -= replica.gpus;
        }
    }
    counts
}

/// b for 0, 1, … GPUs and the replica it ends with (none: nothing fits), until `load` is carried.
fn by_gpus(replicas: &[Replica], load: f64, most: usize) -> Vec<(f64, Option<Replica>)> {
    let mut table: Vec<(f64, Option<Replica>)> = vec![(0.0, None)];
    while table.len() <= most && table[table.len() - 1].0 < load {
        let n = table.len();
        let with = |replica: &Replica| (table[n - replica.gpus].0 + replica.rate, Some(*replica));
        let fitting = replicas.iter().filter(|replica| replica.gpus <= n).map(with);
        table.push(fitting.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, None)));
    }
    table
}

/// The steps of B with one more type.
fn extended(steps: &[Step], table: &[(f64, Option<Replica>)], price: f64, most_usd: f64) -> Vec<Step> {
    // GPUs that add nothing are not rented.
    let useful = (0..table.len()).filter(|n| *n == 0 || table[*n].0 > table[n - 1].0);
    let mut sums: Vec<(f64, f64, usize, usize)> = useful
        .flat_map(|n| {
            let sum = move |(at, step): (usize, &Step)| {
                (step.usd + price * n as f64, step.rate + table[n].0, at, n)
            };
            steps.iter().enumerate().map(sum)
        })
        .filter(|(usd, ..)| *usd <= most_usd + 1e-9)
        .collect();
    sums.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut kept: Vec<(f64, f64, usize, usize)> = Vec::new();
    for sum in sums {
        if kept.last().is_none_or(|last| sum.1 > last.1) {
            kept.push(sum);
        }
    }
    let stride = kept.len().div_ceil(MOST_STEPS);
    let last = kept.len() - 1;
    let thinned = kept.into_iter().enumerate().filter(|(at, _)| at % stride == 0 || *at == last);
    thinned
        .map(|(_, (usd, rate, at, n))| Step { usd, rate, gpus: [steps[at].gpus.as_slice(), &[n]].concat() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_fleet_is_better() {
        let replica = |candidate, offer, gpus, rate| Replica {
            candidate,
            offer,
            gpus,
            usd_per_hour: [1.0, 2.5][offer] * gpus as f64,
            rate,
        };
        let replicas =
            [replica(0, 0, 1, 1.0), replica(1, 0, 2, 2.3), replica(2, 1, 1, 3.1), replica(3, 1, 4, 13.0)];
        let total = |counts: &[u32]| {
            let sum = |of: &dyn Fn(&Replica) -> f64| -> f64 {
                replicas.iter().zip(counts).map(|(replica, count)| of(replica) * f64::from(*count)).sum()
            };
            let gpus = |offer: usize| sum(&|it| if it.offer == offer { it.gpus as f64 } else { 0.0 });
            (sum(&|it| it.usd_per_hour), sum(&|it| it.rate), gpus(0) <= 5.0 && gpus(1) <= 6.0)
        };
        let all: Vec<[u32; 4]> =
            (0..6 * 3 * 7 * 2).map(|n| [n % 6, n / 6 % 3, n / 18 % 7, n / 126]).collect();
        for (load, usd) in
            [(f64::INFINITY, 9.0), (f64::INFINITY, 100.0), (7.0, 100.0), (16.1, 16.0), (50.0, 17.0)]
        {
            let counts = best(&replicas, load, usd, &[5, 6]);
            let counts: Vec<u32> = (0..4).map(|at| counts.get(&at).copied().unwrap_or(0)).collect();
            let (cost, rate, stocked) = total(&counts);
            assert!(stocked && cost <= usd + 1e-9, "{counts:?}");
            let possible =
                all.iter().map(|counts| total(counts)).filter(|(cost, _, stocked)| *stocked && *cost <= usd);
            let best_rate = possible.clone().map(|(_, rate, _)| rate).fold(0.0, f64::max);
            let cheapest =
                possible.filter(|(_, rate, _)| *rate >= load).map(|it| it.0).fold(f64::INFINITY, f64::min);
            if cheapest.is_finite() {
                assert!(rate >= load && (cost - cheapest).abs() < 1e-9, "{counts:?}: {cost} {cheapest}");
            } else {
                assert!((rate - best_rate).abs() < 1e-9, "{counts:?}: {rate} {best_rate}");
            }
        }
    }
}
