//! The simulator: requests per core-second, how the cost grows, memory, and Vidur beside.

use std::process::{Command, ExitCode};

use boute_perf::StepTime;
use boute_perf::memory::BLOCK_TOKENS;
use boute_router::balance::ReplicaSpeed;
use boute_router::decide::Decider;
use boute_sim::{EngineConfig, LinearStepTime, ReplicaSpec, Request, Totals, simulate_each};
use boute_spec::data_file::parse_requests;
use boute_spec::outcome::{RequestOutcome, quantile};
use boute_spec::units::SimTime;

use super::{ROUNDS, Report, cpu_seconds, median, replica};

/// Prompt and answer tokens of the bar.
const LENGTHS: (u32, u32) = (1024, 256);
/// Prefix units of a prompt, 512 tokens each.
const UNITS: u64 = 2;

/// Units that many prompts share, where they do.
const SHARED: u64 = 50;
/// Requests of one timed round.
const AT_LEAST: u64 = 50_000;

/// One way to load the fleet.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    /// Requests per second for each replica.
    rate: f64,
    replicas: usize,
    /// Whether every prompt begins with one of fifty units, instead of one of its own.
    shared: bool,
    /// KV cache of a replica, in tokens.
    kv_tokens: u64,
    bar: f64,
}

const BASE: Load =
    Load { name: "4 req/s", rate: 4.0, replicas: 1, shared: false, kv_tokens: 400_000, bar: 300_000.0 };

/// A replica of the reference carries at most about 10 requests per second.
const LOADS: [Load; 6] = [
    BASE,
    Load { name: "over capacity, a queue without end", rate: 16.0, ..BASE },
    Load { name: "shared prefixes", shared: true, ..BASE },
    Load { name: "preempting", rate: 16.0, kv_tokens: 40_000, ..BASE },
    Load { name: "40 replicas", replicas: 40, bar: 200_000.0, ..BASE },
    Load { name: "40 replicas over capacity", replicas: 40, rate: 16.0, bar: 200_000.0, ..BASE },
];

pub(crate) fn run(small: bool, report: &mut Report) {
    let count = if small { 20_000 } else { 200_000 };
    for load in LOADS {
        let (rate, totals) = requests_per_second(&reference_step_time(), &load, count);
        report.speed(&format!("simulated requests per core-second: {}", load.name), rate, load.bar);
        if load.kv_tokens < BASE.kv_tokens {
            report.at_least("  sequences preempted", totals.preemptions as f64, 1.0);
        }
    }
    let load = Load { rate: 12.0, ..BASE };
    let (rate, _) = requests_per_second(&replica(), &load, count);
    report.speed("the same with the roofline of Llama-3.1-8B on an H100, 12 req/s", rate, 200_000.0);
    let counts: [u64; 2] = if small { [1_000, 20_000] } else { [1_000, 1_000_000] };
    let [short, long] = counts.map(|count| requests_per_second(&reference_step_time(), &BASE, count).0);
    let name = format!("cost per request, {} against {} requests", counts[1], counts[0]);
    report.at_most(&name, short / long, 1.5);
    report.at_most("peak memory at 1,000,000 requests, MB", peak_memory_mb(), 150.0);
    vidur(report);
}

/// Vidur's cost model of Llama-3-8B on an A100, see `crates/sim/tests/data/README.md`.
fn reference_step_time() -> LinearStepTime {
    LinearStepTime::parse(include_str!("../../../crates/sim/tests/data/vidur_8b_step_time.json"))
        .unwrap_or_else(|error| panic!("the reference step time: {error}"))
}

/// Vidur's recorded requests through our scheduler, with Vidur's step times.
fn vidur(report: &mut Report) {
    let text = include_str!("../../../crates/sim/tests/data/vidur_8b_requests.csv");
    let trace = parse_requests("vidur_8b_requests.csv", text).unwrap_or_else(|error| panic!("{error}"));
    // Vidur's columns stand behind the three of the request; TBT is per answer token there.
    let theirs = text.lines().skip(1).map(|line| {
        let mut cells = line.split(',').map(|cell| cell.parse().unwrap_or(f64::NAN)).skip(2);
        let mut next = || cells.next().unwrap_or(f64::NAN);
        times(next(), next(), next())
    });
    let theirs: Vec<[f64; 3]> = theirs.collect();
    let config = EngineConfig {
        max_num_seqs: 128,
        max_num_batched_tokens: 512,
        kv_blocks: 25_000,
        prefix_caching: false,
    };
    let requests = trace.requests().iter().map(Request::from);
    let mut ours = Vec::new();
    simulate_each(
        vec![spec(&reference_step_time(), config)],
        &Decider::Constant(0),
        requests,
        |_, outcome| {
            ours.push(times(f64::from(outcome.output_tokens), outcome.ttft.seconds(), outcome.e2e.seconds()));
        },
    );
    assert_eq!(ours.len(), theirs.len(), "every request is answered");
    for (at, metric) in ["TTFT", "TBT", "E2E"].iter().enumerate() {
        for (percentile, share) in [("p50", 0.50), ("p95", 0.95)] {
            let [ours, theirs] = [&ours, &theirs].map(|rows| {
                let mut values: Vec<f64> = rows.iter().map(|row| row[at]).collect();
                values.sort_unstable_by(f64::total_cmp);
                quantile(&values, share)
            });
            let name = format!(
                "{metric} {percentile} against Vidur: {:.1} and {:.1} ms, off by %",
                ours * 1e3,
                theirs * 1e3
            );
            report.at_most(&name, (ours / theirs - 1.0).abs() * 100.0, 5.0);
        }
    }
}

/// TTFT, TBT and E2E.
fn times(answer_tokens: f64, ttft_s: f64, e2e_s: f64) -> [f64; 3] {
    [ttft_s, (e2e_s - ttft_s) / answer_tokens, e2e_s]
}

fn spec<T: StepTime + Clone>(step_time: &T, config: EngineConfig) -> ReplicaSpec<T> {
    ReplicaSpec {
        model: 0,
        config,
        request_time: SimTime::ZERO,
        step_time: step_time.clone(),
        speed: ReplicaSpeed {
            prompt_tokens_per_s: 2e4,
            answer_tokens_per_s: 2e3,
            seconds_per_answer_token: 0.02,
        },
        expected_output_tokens: LENGTHS.1,
        disaggregated: None,
    }
}

/// Evenly spaced requests through the fleet; each outcome goes to `done`.
fn replay<T: StepTime + Clone>(
    step_time: &T,
    load: &Load,
    count: u64,
    mut done: impl FnMut(RequestOutcome),
) -> Totals {
    let config = EngineConfig {
        max_num_seqs: 256,
        max_num_batched_tokens: 2048,
        kv_blocks: load.kv_tokens / BLOCK_TOKENS,
        prefix_caching: true,
    };
    let gap_s = 1.0 / (load.rate * load.replicas as f64);
    let ids: Vec<[u64; UNITS as usize]> = (0..count)
        .map(|index| {
            let own = (index + SHARED) * UNITS;
            [if load.shared { index % SHARED } else { own }, own + 1]
        })
        .collect();
    let requests = ids.iter().enumerate().map(|(index, hash_ids)| Request {
        arrival: SimTime::from_seconds(index as f64 * gap_s),
        scores: &[],
        input_tokens: LENGTHS.0,
        output_tokens: &[LENGTHS.1],
        hash_ids,
        again: None,
    });
    let replicas = vec![spec(step_time, config); load.replicas];
    simulate_each(replicas, &Decider::Constant(0), requests, |_, outcome| done(outcome))
}

/// Short traces are simulated over and over, for the clock ticks in milliseconds.
fn requests_per_second<T: StepTime + Clone>(step_time: &T, load: &Load, count: u64) -> (f64, Totals) {
    let times = (AT_LEAST / count).max(1);
    let round = |_| {
        let (seconds, totals) = cpu_seconds(|| {
            let mut last = Totals::default();
            for _ in 0..times {
                let mut answered = 0;
                last = replay(step_time, load, count, |_| answered += 1);
                assert_eq!(answered, count, "every request is answered");
            }
            last
        });
        ((times * count) as f64 / seconds, totals)
    };
    let rounds: Vec<_> = (0..if count > AT_LEAST { 1 } else { ROUNDS }).map(round).collect();
    (median(rounds.iter().map(|(rate, _)| *rate).collect()), rounds[0].1)
}

/// Peak resident memory of a process that does nothing but simulate a million requests and keep their outcomes.
fn peak_memory_mb() -> f64 {
    let output =
        std::env::current_exe().and_then(|it| Command::new(it).args(["bench", "sim", "memory"]).output());
    let output = output.unwrap_or_else(|error| panic!("xtask starts itself: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(f64::INFINITY)
}

/// The other side of [`peak_memory_mb`].
pub(super) fn print_peak_memory() -> ExitCode {
    let mut outcomes = Vec::new();
    replay(&reference_step_time(), &BASE, 1_000_000, |outcome| outcomes.push(outcome));
    assert_eq!(outcomes.len(), 1_000_000, "every request is answered");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let Some(kilobytes) = peak.and_then(|it| it.parse::<f64>().ok()) else { return ExitCode::FAILURE };
    println!("{:.1}", kilobytes * 1024.0 / 1e6);
    ExitCode::SUCCESS
}
