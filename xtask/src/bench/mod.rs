//! Benchmarks that anyone can run: `cargo xtask bench`, or `bench small` for continuous integration; `bench mobo` alone for the
//! optimiser, `bench mobo pictures FOLDER` for the drawings of its page.
//!
//! Figures are medians of several rounds in one process, on one thread; bars are wide enough that noise does not fail them,
//! and tight enough that an order of magnitude does.

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use boute_perf::{Calibration, ReplicaConfig, ReplicaModel, StepTime, default_engine};
use boute_router::balance::ReplicaSpeed;
use boute_router::decide::Decider;
use boute_sim::{EngineConfig, ReplicaSpec, Request, simulate};
use boute_spec::catalog::Catalog;
use boute_spec::units::SimTime;

mod mobo;
mod picture;
mod problems;

/// Rounds of each measurement.
const ROUNDS: usize = 5;

pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    match arguments {
        ["mobo"] => return ending(mobo::run(false)),
        ["mobo", "small"] => return ending(mobo::run(true)),
        ["mobo", "pictures", folder] => {
            mobo::pictures(Path::new(folder));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let requests = if arguments.contains(&"small") { 20_000 } else { 1_000_000 };
    let mut kept = true;
    let mut report = |name: &str, value: f64, bar: f64, higher_is_better: bool| {
        let met = if higher_is_better { value >= bar } else { value <= bar };
        kept &= met;
        println!("{name:<58} {value:>14.3}  bar {bar:<12} {}", if met { "met" } else { "NOT MET" });
    };
    report("step times per second", steps_per_second(), 500_000.0, true);
    let short = requests_per_second(requests / 20);
    report(&format!("simulated requests per second, {}", requests / 20), short, 100_000.0, true);
    let long = requests_per_second(requests);
    report(&format!("simulated requests per second, {requests}"), long, 100_000.0, true);
    report("cost per request, 20 times the trace", short / long, 1.5, false);
    if arguments.contains(&"small") {
        kept &= mobo::run(true);
    }
    ending(kept)
}

fn ending(kept: bool) -> ExitCode {
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replica() -> (ReplicaConfig, ReplicaModel) {
    let catalog = Catalog::builtin();
    let (Ok(model), Ok(gpu)) = (catalog.model("llama-3.1-8b"), catalog.gpu("H100-SXM")) else {
        unreachable!("the catalogue has these")
    };
    let engine = default_engine(gpu, &model.shape, 8192);
    let config = ReplicaConfig { model: model.clone(), gpu: gpu.clone(), tp: 1, pp: 1, engine };
    let Ok(replica) = ReplicaModel::new(&config, Calibration::builtin()) else { unreachable!("it fits") };
    (config, replica)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn steps_per_second() -> f64 {
    const STEPS: u64 = 200_000;
    let (_, replica) = replica();
    let round = |_| {
        let start = Instant::now();
        for step in 0..STEPS {
            black_box(replica.decode_time(1 + step % 256, 1000 * (1 + step % 256), 1));
        }
        STEPS as f64 / start.elapsed().as_secs_f64()
    };
    median((0..ROUNDS).map(round).collect())
}

/// 1,024 prompt and 256 answer tokens at 12 requests per second, KV blocks and prefix cache on.
fn requests_per_second(count: u64) -> f64 {
    let (config, step_time) = replica();
    let speed =
        ReplicaSpeed { prompt_tokens_per_s: 3e4, answer_tokens_per_s: 3e3, seconds_per_answer_token: 0.01 };
    let spec = ReplicaSpec {
        model: 0,
        config: EngineConfig::new(&config.engine, step_time.memory().kv_cache_tokens),
        request_time: step_time.request_time(),
        step_time,
        speed,
        expected_output_tokens: 256,
    };
    let round = |_| {
        let requests = (0..count).map(|index| Request {
            arrival: SimTime::from_seconds(index as f64 / 12.0),
            scores: &[],
            input_tokens: 1024,
            output_tokens: &[256],
            hash_ids: &[],
        });
        let start = Instant::now();
        let simulation = simulate(vec![spec.clone()], &Decider::Constant(0), requests);
        assert_eq!(simulation.outcomes.len() as u64, count, "every request is answered");
        count as f64 / start.elapsed().as_secs_f64()
    };
    median((0..if count > 100_000 { 1 } else { ROUNDS }).map(round).collect())
}
