//! The strategies of other papers: their published instances, enumeration on small ones, and the limits that all keep.

use std::collections::BTreeMap;

use boute_planner::deployment::{Effort, Goal, Limits};
use boute_planner::routing::Route;
use boute_planner::search::{Choice, Search};
use boute_planner::strategies::buckets::{Assignment, Buckets, Configuration};
use boute_planner::{Database, GpuOffer, Prepared, Problem};
use boute_spec::catalog::Catalog;
use boute_spec::plan::Objective;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{problem, quiet};

/// GPU types that are configurations by themselves.
fn single_gpus<const N: usize>(types: [(f64, Vec<f64>); N]) -> Vec<Configuration> {
    let one = |at: usize| (0..N).map(|other| u32::from(other == at)).collect();
    let of = |(at, (usd_per_hour, rates))| Configuration { usd_per_hour, gpus: one(at), rates };
    types.into_iter().enumerate().map(of).collect()
}

/// What an assignment must be, whatever its value.
fn holds(buckets: &Buckets, found: &Assignment, scale: f64) -> bool {
    let rent: f64 =
        buckets.configurations.iter().zip(&found.copies).map(|(it, n)| it.usd_per_hour * f64::from(*n)).sum();
    let served = found.parts.iter().all(|parts| (parts.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    let in_time = buckets.configurations.iter().enumerate().all(|(at, it)| {
        let busy = (0..buckets.demand.len()).filter(|bucket| found.parts[*bucket][at] > 0.0);
        let load: f64 = busy
            .map(|bucket| scale * buckets.demand[bucket] * found.parts[bucket][at] / it.rates[bucket])
            .sum();
        load <= f64::from(found.copies[at]) + 1e-6
    });
    let stocked = buckets.stock.iter().enumerate().all(|(gpu, stock)| {
        let used =
            buckets.configurations.iter().zip(&found.copies).map(|(it, n)| it.gpus[gpu] * n).sum::<u32>();
        stock.is_none_or(|stock| used <= stock)
    });
    served && in_time && stocked && buckets.budget.is_none_or(|budget| rent <= budget + 1e-6)
}

/// The machine may be shared: one of three times counts.
#[expect(clippy::disallowed_methods, reason = "the published solvers are beaten in time")]
fn in_a_second<T>(solve: impl Fn() -> T) -> T {
    let timed = || {
        let start = std::time::Instant::now();
        let found = solve();
        (start.elapsed().as_secs_f64() < 1.0).then_some(found)
    };
    timed().or_else(timed).or_else(timed).expect("takes less than a second")
}

/// The example of Mélange's repository: its own programme rents 3 × A10G + 1 × A100 for $6.70/h.
#[test]
fn the_example_of_melange() {
    let share = [0.2, 0.1, 0.5, 0.2];
    let buckets = Buckets {
        demand: share.map(|share| 30.0 * share).to_vec(),
        configurations: single_gpus([(1.01, vec![2.0, 1.0, 5.0, 2.0]), (3.67, vec![20.0, 20.0, 40.0, 20.0])]),
        stock: vec![None, None],
        budget: None,
        gap: 0.0,
    };
    let found = in_a_second(|| buckets.cheapest_sliced(1).unwrap());
    assert!(holds(&buckets, &found, 1.0));
    assert!(found.value <= 6.70 + 1e-9 && (found.value - found.bound).abs() < 1e-6, "{found:?}");
}

/// The example of arXiv 2502.00722, §4.2: 80 and 20 requests, $8/h, two GPUs of each type. The paper's plan takes 28.67 s.
#[test]
fn the_example_of_demystifying() {
    let configuration = |usd_per_hour, gpus: [u32; 3], rates: [f64; 2]| Configuration {
        usd_per_hour,
        gpus: gpus.into(),
        rates: rates.into(),
    };
    let buckets = Buckets {
        demand: vec![80.0, 20.0],
        configurations: vec![
            configuration(4.0, [1, 0, 0], [1.0, 1.2]),
            configuration(2.0, [0, 1, 0], [0.9, 0.9]),
            configuration(2.0, [0, 0, 1], [0.3, 0.5]),
            configuration(4.0, [0, 2, 0], [2.4, 1.5]),
        ],
        stock: vec![Some(2); 3],
        budget: Some(8.0),
        gap: 0.0,
    };
    let found = in_a_second(|| buckets.fastest().unwrap());
    assert!(holds(&buckets, &found, found.value));
    assert!(1.0 / found.value <= 28.4315, "{} s", 1.0 / found.value);
}

/// Four GPU types and 60 buckets, the larger the slower, with noise per type.
fn synthetic(seed: u64) -> Buckets {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let demand: Vec<f64> = (0..60).map(|_| rng.random_range(0.05..1.0)).collect();
    let types = [(0.7, 0.6), (1.01, 1.0), (3.67, 4.0), (7.516, 9.0)].map(|(usd_per_hour, speed)| {
        let rate = |bucket: usize, noise: f64| speed * noise * 8.0 / (1.0 + bucket as f64 / 6.0);
        (usd_per_hour, (0..60).map(|bucket| rate(bucket, rng.random_range(0.5..1.5))).collect::<Vec<_>>())
    });
    Buckets { demand, configurations: single_gpus(types), stock: vec![None; 4], budget: None, gap: 0.0 }
}

/// The sizes at which Mélange's programme takes CBC 13 s (240 slices) and 139 s (480 slices).
#[test]
fn instances_of_the_size_of_melange_take_less_than_a_second() {
    let mut proven = 0;
    for slices in [4, 8] {
        for seed in 0..12 {
            let buckets = synthetic(seed);
            let found = in_a_second(|| buckets.cheapest_sliced(slices).unwrap());
            assert!(holds(&buckets, &found, 1.0));
            let whole = |part: &f64| (part * f64::from(slices)).fract().abs() < 1e-9;
            assert!(found.parts.iter().flatten().all(whole));
            // An independent bound: slices cost no less than what is divisible at will.
            let divisible = buckets.cheapest().unwrap();
            assert!(found.bound >= divisible.bound - 1e-6 && found.value <= found.bound * 1.02, "{found:?}");
            proven += u32::from(found.value <= found.bound + 1e-6);
        }
    }
    assert!(proven >= 20, "{proven} of 24 proven optimal");
}

/// Every way to give `slices` slices of each bucket to the configurations: `[bucket][configuration]`.
fn every_division(buckets: usize, configurations: usize, slices: u32) -> Vec<Vec<Vec<u32>>> {
    fn fill(left: u32, parts: usize) -> Vec<Vec<u32>> {
        if parts == 1 {
            return vec![vec![left]];
        }
        let rest = |first: u32| {
            fill(left - first, parts - 1).into_iter().map(move |rest| [vec![first], rest].concat())
        };
        (0..=left).flat_map(rest).collect()
    }
    let one = fill(slices, configurations);
    (0..buckets).fold(vec![Vec::new()], |all, _| {
        let with = |begun: &Vec<Vec<u32>>| {
            one.iter().map(|next| [begun.clone(), vec![next.clone()]].concat()).collect::<Vec<_>>()
        };
        all.iter().flat_map(with).collect()
    })
}

/// Copies' worth of load per configuration; `None` if something is given to what cannot serve it.
fn loads(buckets: &Buckets, division: &[Vec<u32>], slices: u32) -> Option<Vec<f64>> {
    let mut loads = vec![0.0; buckets.configurations.len()];
    for (bucket, counts) in division.iter().enumerate() {
        for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let rate = buckets.configurations[at].rates[bucket];
            if rate <= 0.0 {
                return None;
            }
            loads[at] += buckets.demand[bucket] * f64::from(*count) / f64::from(slices) / rate;
        }
    }
    Some(loads)
}

/// The least rent by trying everything.
fn enumerated(buckets: &Buckets, slices: u32) -> Option<f64> {
    let rent = |division: Vec<Vec<u32>>| {
        let copies: Vec<u32> = loads(buckets, &division, slices)?
            .iter()
            .map(|load| (load - 1e-9).ceil().max(0.0) as u32)
            .collect();
        let used = |gpu: usize| -> u32 {
            buckets.configurations.iter().zip(&copies).map(|(it, copies)| it.gpus[gpu] * copies).sum()
        };
        let stocked =
            buckets.stock.iter().enumerate().all(|(gpu, stock)| stock.is_none_or(|stock| used(gpu) <= stock));
        let each = buckets.configurations.iter().zip(&copies);
        let rent = each.map(|(it, copies)| it.usd_per_hour * f64::from(*copies)).sum::<f64>();
        (stocked && buckets.budget.is_none_or(|budget| rent <= budget)).then_some(rent)
    };
    let all = every_division(buckets.demand.len(), buckets.configurations.len(), slices);
    all.into_iter().filter_map(rent).min_by(f64::total_cmp)
}

/// The highest multiple of the demand by trying all copies up to the stock, and all divisions.
fn enumerated_rate(buckets: &Buckets, slices: u32) -> f64 {
    let most = |gpu: usize| buckets.stock[gpu].unwrap();
    let all = every_division(buckets.demand.len(), 2, slices);
    let mut best = 0.0_f64;
    for first in 0..=most(0) {
        for second in 0..=most(1) {
            let copies = [first, second].map(f64::from);
            let rent: f64 =
                buckets.configurations.iter().zip(copies).map(|(it, copies)| it.usd_per_hour * copies).sum();
            if buckets.budget.is_some_and(|budget| rent > budget) {
                continue;
            }
            for loads in all.iter().filter_map(|division| loads(buckets, division, slices)) {
                let each = loads.iter().zip(copies).filter(|(load, _)| **load > 0.0);
                best = best.max(each.map(|(load, copies)| copies / load).fold(f64::INFINITY, f64::min));
            }
        }
    }
    best
}

fn small_workloads(types: usize) -> impl proptest::strategy::Strategy<Value = Buckets> {
    use proptest::strategy::Strategy as _;
    // One in five cannot serve the bucket.
    let rate = (0_u32..5, 0.5_f64..4.0).prop_map(|(kind, rate)| if kind == 0 { 0.0 } else { rate });
    let configuration = (0.5_f64..4.0, prop::collection::vec(rate, 2));
    let stock = prop::collection::vec(1_u32..6, types);
    (
        prop::collection::vec(0.5_f64..5.0, 2),
        prop::collection::vec(configuration, types),
        stock,
        5.0_f64..25.0,
    )
        .prop_map(move |(demand, configurations, stock, budget)| Buckets {
            demand,
            configurations: configurations
                .into_iter()
                .enumerate()
                .map(|(at, (usd_per_hour, rates))| Configuration {
                    usd_per_hour,
                    gpus: (0..types).map(|other| u32::from(other == at)).collect(),
                    rates,
                })
                .collect(),
            stock: stock.into_iter().map(Some).collect(),
            budget: Some(budget),
            gap: 0.0,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cheapest_assignment_is_the_best_of_all(buckets in small_workloads(3), slices in 1_u32..5) {
        let found = buckets.cheapest_sliced(slices);
        let best = enumerated(&buckets, slices);
        prop_assert_eq!(found.as_ref().map(|it| (it.value * 1e6).round()), best.map(|best| (best * 1e6).round()));
        if let Some(found) = found {
            prop_assert!(holds(&buckets, &found, 1.0));
            prop_assert!((found.bound - found.value).abs() < 1e-6);
            prop_assert!(buckets.cheapest().unwrap().value <= found.value + 1e-6);
        }
    }

    #[test]
    fn the_fastest_assignment_is_the_best_of_all(buckets in small_workloads(2)) {
        // Sixtieths of a bucket come within a few per cent of what is divisible at will.
        let best = enumerated_rate(&buckets, 60);
        let found = buckets.fastest();
        prop_assert_eq!(found.is_some(), best > 0.0);
        if let Some(found) = found {
            prop_assert!(holds(&buckets, &found, found.value));
            prop_assert!(found.value >= best * (1.0 - 1e-9) && found.value <= best * 1.06, "{} {best}", found.value);
        }
    }
}

/// The problem of the other tests with a third GPU type, of which there are few.
fn three_types() -> Problem {
    let mut problem = problem(Objective::MinCost);
    problem.offers.push(GpuOffer {
        gpu: Catalog::builtin().gpu("A100-80GB").unwrap().clone(),
        usd_per_gpu_hour: 1.8,
        stock: Some(4),
        available: 1.0,
    });
    problem
}

type Find = fn(&Search<'_>, &[Route], &Limits, Goal) -> Option<Choice>;

const ALL: [(&str, Find); 8] = [
    ("homogeneous", |search, routes, limits, goal| search.homogeneous(routes, limits, goal)),
    ("heterogeneous-single", |search, routes, limits, goal| {
        search.heterogeneous_single(routes, limits, goal)
    }),
    ("routing-uniform", |search, routes, limits, goal| search.uniform(routes, limits, goal)),
    ("routing-proportional", |search, routes, limits, goal| search.proportional(routes, limits, goal)),
    ("sequential", |search, routes, limits, goal| search.sequential(routes, limits, goal)),
    ("alternating", |search, routes, limits, goal| search.alternating(routes, limits, goal)),
    ("cascadia", |search, routes, limits, goal| search.cascadia(routes, limits, goal)),
    ("agh", |search, routes, limits, goal| search.agh(routes, limits, goal)),
];

/// Value of each strategy, least is best, after all that must hold of its choice.
fn check(prepared: &Prepared<'_>, limits: &Limits, goal: Goal) -> BTreeMap<&'static str, f64> {
    let search = prepared.search();
    let sign = if goal == Goal::Cost { 1.0 } else { -1.0 };
    let (exact, bound) = search.sweep(prepared.routes(), limits, goal, Effort::Proof, &quiet).unwrap();
    let mut values = BTreeMap::from([("exact", sign * exact.fleet.value), ("bound", sign * bound)]);
    let single: Vec<Route> =
        prepared.routes().iter().filter(|route| route.policy.models().len() == 1).cloned().collect();
    if let Some((choice, _)) = search.sweep(&single, limits, goal, Effort::Proof, &quiet) {
        values.insert("exact, one model", sign * choice.fleet.value);
    }
    for (name, find) in ALL {
        let Some(choice) = in_a_second(|| find(&search, prepared.routes(), limits, goal)) else { continue };
        let (route, fleet) = (&prepared.routes()[choice.route], &choice.fleet);
        assert!(route.admissible, "{name}");
        let rent = fleet.usd_per_hour();
        assert!(limits.budget.is_none_or(|budget| rent <= budget + 1e-6), "{name}: ${rent}");
        for (offer, stock) in limits.stock.iter().enumerate() {
            let of_offer = fleet.replicas.iter().filter(|(column, _)| column.offer == offer);
            let used: f64 = of_offer.map(|(column, count)| column.gpus * f64::from(*count)).sum();
            assert!(stock.is_none_or(|stock| used <= f64::from(stock)), "{name}: {used}");
        }
        let counts = fleet.replicas.iter().map(|(column, count)| (column.candidate, *count)).collect();
        let carried = search.assess(route, &counts).unwrap().value;
        let (promised, value) = match goal {
            Goal::Cost => (limits.rate, rent),
            Goal::Rate => (fleet.value, fleet.value),
        };
        assert!(carried >= promised * (1.0 - 1e-6), "{name}: {carried} < {promised}");
        assert!((fleet.value - value).abs() < 1e-6, "{name}");
        assert!(sign * value >= sign * bound - 1e-6, "{name}: {value} beats the bound {bound}");
        values.insert(name, sign * value);
    }
    values
}

#[test]
fn every_strategy_keeps_the_limits_and_none_beats_the_bound() {
    let problem = three_types();
    let prepared = Prepared::new(&problem, &Database::in_memory(), &quiet).unwrap();
    let search = prepared.search();
    // At 12 req/s every strategy has a plan; at 60 req/s one model is not enough.
    for (goal, rate, budget, margins) in [
        (Goal::Cost, 12.0, None, [1.0, 1.0]),
        (Goal::Cost, 12.0, Some(70.0), [1.3, 1.9]),
        (Goal::Cost, 30.0, None, [1.0, 1.0]),
        (Goal::Cost, 60.0, None, [1.0, 1.0]),
        (Goal::Rate, 12.0, Some(20.0), [1.0, 1.0]),
    ] {
        let limits = Limits { budget, margins: margins.into(), ..search.limits(rate) };
        let values = check(&prepared, &limits, goal);
        let everywhere = ["sequential", "alternating", "agh"];
        assert!(everywhere.iter().all(|name| values.contains_key(name)), "{values:?}");
        assert!(rate > 12.0 || values.len() == ALL.len() + 3, "{values:?}");
        // The same division on more GPU types; then more divisions; each solved to within half a per cent.
        let no_worse = |a: &str, b: &str| {
            let of = |name| values.get(name).copied().unwrap_or(f64::INFINITY);
            assert!(of(a) <= of(b) + 0.005 * of(b).abs(), "{a} is worse than {b}: {values:?}");
        };
        no_worse("sequential", "routing-proportional");
        no_worse("alternating", "sequential");
        no_worse("routing-proportional", "routing-uniform");
        for (name, _) in ALL {
            no_worse("exact", name);
        }
        // No straw men: the heuristics are near the proven optimum of what they choose from.
        let near = |a: &str, b: &str| {
            if let Some(b) = values.get(b) {
                assert!(values[a] <= b + 0.15 * b.abs(), "{a}: {values:?}");
            }
        };
        near("agh", "exact");
        near("heterogeneous-single", "exact, one model");
    }
}
