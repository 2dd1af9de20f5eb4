//! Engines: what they add to the kernels, fitted to end-to-end measurements.

use std::collections::BTreeMap;

use boute_perf::calibration::{Calibration, EngineOverhead, Engines, Stack};
use boute_perf::fit::{Residual, Search, least_squares};
use boute_perf::rows::Row;

use super::operators::{Kernels, rounded};

/// Errors (logarithms) beyond this pull with constant force only.
const LOSS_SCALE: f64 = 0.15;
/// TTFT is worth this much of TPOT: the files do not say how the load generator starts.
const TTFT_WEIGHT: f64 = 0.5;
/// How strongly a constant is held to its prior, in units of one series' error.
const PRIOR_WEIGHT: f64 = 0.3;

/// A constant: where it starts and is drawn to, bounds, and how far from the start is far.
struct Constant {
    start: f64,
    lower: f64,
    upper: f64,
    far: f64,
}

const fn constant(start: f64, lower: f64, upper: f64, far: f64) -> Constant {
    Constant { start, lower, upper, far }
}

const STACK: [Constant; 8] = [
    constant(0.7, 0.0, 1.5, 0.5),     // all_reduce_alpha
    constant(1.0, 0.0, 4.0, 1.0),     // elementwise
    constant(5.0, 0.0, 60.0, 10.0),   // layer_us
    constant(10.0, 0.0, 200.0, 30.0), // expert_layer_us
    constant(1.3, 1.0, 5.0, 0.5),     // expert_compute
    constant(0.5, 0.0, 1.5, 0.5),     // expert_skew
    constant(40.0, 0.0, 400.0, 50.0), // exchange_us
    constant(0.3, 0.0, 3.0, 0.5),     // layer_launch_ms
];

const ENGINE: [Constant; 6] = [
    constant(1500.0, 0.0, 10_000.0, 1000.0), // step_us
    constant(30.0, 0.0, 600.0, 40.0),        // request_ms
    constant(0.15, 0.0, 1.0, 0.03),          // burst: ten waves of requests, as benchmarks send
    constant(0.5, 0.0, 6.0, 1.0),            // expert_layer_launch_ms
    constant(0.5, 0.0, 1.0, 0.5),            // quantise
    constant(0.1, 0.0, 1.0, 0.03),           // slot_wait
];

fn constants() -> impl Iterator<Item = &'static Constant> {
    STACK.iter().chain((0..4).flat_map(|_| ENGINE.iter()))
}

/// The block of what belongs to no engine.
const NO_ENGINE: usize = usize::MAX;

/// Engine by constant; engines in the order of their discriminants.
fn blocks() -> Vec<Option<usize>> {
    let engines = (0..4).flat_map(|engine| ENGINE.iter().map(move |_| Some(engine)));
    STACK.iter().map(|_| None).chain(engines).collect()
}

fn with(p: &[f64], kernels: &Kernels) -> Calibration {
    let (s, engines) = p.split_at(STACK.len());
    let engine = |index: usize| {
        let e = &engines[index * ENGINE.len()..];
        EngineOverhead {
            step_us: e[0],
            request_ms: e[1],
            burst: e[2],
            expert_layer_launch_ms: e[3],
            quantise: e[4],
            slot_wait: e[5],
        }
    };
    Calibration {
        version: 2,
        stack: Stack {
            all_reduce_alpha: s[0],
            elementwise: s[1],
            layer_us: s[2],
            expert_layer_us: s[3],
            expert_compute: s[4],
            expert_skew: s[5],
            exchange_us: s[6],
            layer_launch_ms: s[7],
        },
        engine: Engines { vllm: engine(0), sglang: engine(1), trtllm: engine(2), trtllm_1_0: engine(3) },
        interval: Vec::new(),
        send: kernels.send,
        system: kernels.systems.clone(),
    }
}

/// The constants that fit `rows` best.
pub(crate) fn fit(rows: &[&Row], kernels: &Kernels) -> Calibration {
    let mut per_series: BTreeMap<&str, f64> = BTreeMap::new();
    for row in rows {
        *per_series.entry(&row.series).or_default() += 1.0;
    }
    // Between one vote a series and one vote a row.
    let weights: Vec<f64> = rows.iter().map(|row| per_series[row.series.as_str()].powf(-0.35)).collect();
    let search = Search {
        blocks: blocks(),
        ..Search::new(bounds(|it| it.start), bounds(|it| it.lower), bounds(|it| it.upper))
    };
    let found = least_squares(&search, LOSS_SCALE, |p, out| {
        let calibration = with(p, kernels);
        for (row, weight) in rows.iter().zip(&weights) {
            let Some((ttft_s, tpot_s)) = row.measured else { continue };
            let estimate = row.estimate(&calibration);
            let block = row.config.backend as usize;
            out.push(Residual { value: (estimate.tpot_s / tpot_s).ln(), weight: *weight, block });
            out.push(Residual {
                value: (estimate.ttft_s / ttft_s).ln(),
                weight: weight * TTFT_WEIGHT,
                block,
            });
        }
        for ((it, x), block) in constants().zip(p).zip(&search.blocks) {
            let value = (x - it.start) / it.far * LOSS_SCALE;
            out.push(Residual { value, weight: PRIOR_WEIGHT, block: block.unwrap_or(NO_ENGINE) });
        }
    });
    with(&found.into_iter().map(rounded).collect::<Vec<_>>(), kernels)
}

fn bounds(of: fn(&Constant) -> f64) -> Vec<f64> {
    constants().map(of).collect()
}
