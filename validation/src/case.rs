//! What is compared: requests and an engine's limits.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use boute_perf::StepTime;
use boute_router::decide::Decider;
use boute_sim::{EngineConfig, LinearStepTime, ReplicaSpec, Request, Simulation, simulate};
use boute_spec::data_file::parse_trace;
use boute_spec::outcome::{RequestOutcome, quantile};
use boute_spec::slo::Metric;
use boute_spec::workload::Trace;

use crate::shared::Shared;
use crate::theirs::Theirs;

/// Requests through one replica.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) trace: Trace,
    pub(crate) config: EngineConfig,
    pub(crate) step_time: Shared,
}

/// Seconds of each answered request.
pub(crate) struct Times {
    /// TTFT, TPOT, E2E, each ascending.
    sorted: [Vec<f64>; 3],
    pub(crate) preemptions: u64,
}

impl Times {
    /// From (TTFT, E2E, answer tokens).
    pub(crate) fn new(requests: impl IntoIterator<Item = (f64, f64, u32)>, preemptions: u64) -> Self {
        let mut sorted = [Vec::new(), Vec::new(), Vec::new()];
        for (ttft, e2e, tokens) in requests {
            sorted[0].push(ttft);
            if tokens > 1 {
                sorted[1].push((e2e - ttft) / f64::from(tokens - 1));
            }
            sorted[2].push(e2e);
        }
        for values in &mut sorted {
            values.sort_unstable_by(f64::total_cmp);
        }
        Self { sorted, preemptions }
    }

    /// p50 and p95 of TTFT, TPOT and E2E.
    pub(crate) fn percentiles(&self) -> [f64; 6] {
        std::array::from_fn(|at| quantile(&self.sorted[at / 2], [0.50, 0.95][at % 2]))
    }

    pub(crate) fn answered(&self) -> usize {
        self.sorted[0].len()
    }

    /// The largest difference of a percentile, as a share of the other's.
    pub(crate) fn furthest(&self, other: &Self) -> f64 {
        let pairs = self.percentiles().into_iter().zip(other.percentiles());
        pairs.map(|(ours, theirs)| (ours / theirs - 1.0).abs()).fold(0.0, f64::max)
    }
}

/// `ours` beside `theirs`, in milliseconds, and the difference.
pub(crate) fn cell(ours: f64, theirs: f64) -> String {
    format!("{:.1} / {:.1} ms {:+.2} %", ours * 1e3, theirs * 1e3, (ours / theirs - 1.0) * 100.0)
}

impl Case {
    pub(crate) fn ours(&self) -> Times {
        let simulation = run(&self.trace, self.config, self.step_time.clone());
        let times =
            |it: &RequestOutcome| (it.metric_s(Metric::Ttft), it.metric_s(Metric::E2e), it.output_tokens);
        Times::new(simulation.outcomes.iter().map(times), simulation.preemptions)
    }

    /// A row of the table.
    pub(crate) fn row(&self, ours: &Times, theirs: &Theirs) -> String {
        assert_eq!(ours.answered(), theirs.times.answered(), "{}: both answer every request", self.name);
        let cells = ours.percentiles().into_iter().zip(theirs.times.percentiles());
        let cells: Vec<_> = cells.map(|(ours, theirs)| cell(ours, theirs)).collect();
        format!(
            "| {} | {} | {} / {} |",
            self.name,
            cells.join(" | "),
            ours.preemptions,
            theirs.times.preemptions
        )
    }
}

/// Requests through one replica of ours.
pub(crate) fn run<T: StepTime + Clone>(trace: &Trace, config: EngineConfig, step_time: T) -> Simulation {
    let replica = ReplicaSpec::alone(config, step_time);
    let requests = trace.requests().iter().map(Request::from);
    simulate(vec![replica], &Decider::Constant(0), requests)
}

/// The step time that both schedulers get.
pub(crate) fn shared() -> Result<Shared> {
    Ok(Shared {
        prompts: step_time(&["P>0", "T", "A", "max(T-128,0)", "max(T-256,0)"])?,
        answers: step_time(&["1", "D>0", "T", "K"])?,
    })
}

/// The terms `wanted` of Vidur's cost model of Llama-3-8B on an A100.
fn step_time(wanted: &[&str]) -> Result<LinearStepTime> {
    let reference: serde_json::Value =
        serde_json::from_str(&read("crates/sim/tests/data/vidur_8b_step_time.json")?)?;
    let basis = reference["basis"].as_array().context("a basis")?;
    let of = |term: &&str| basis.iter().position(|it| it == term).map(|at| &reference["seconds"][at]);
    let seconds: Vec<_> = wanted.iter().map(of).collect();
    Ok(LinearStepTime::parse(&serde_json::json!({"basis": wanted, "seconds": seconds}).to_string())?)
}

/// A file of the repository, unpacked if its name ends with `.gz`.
pub(crate) fn read(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    if !name.ends_with(".gz") {
        return Ok(String::from_utf8(bytes)?);
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
    Ok(text)
}

const CONVERSATION: &str = "examples/data/azure2023_conv.csv.gz";
const CODE: &str = "examples/data/azure2023_code.csv.gz";
const MOONCAKE: &str = "validation/data/mooncake_conversation_1500.jsonl.gz";

/// Every case.
pub(crate) fn all() -> Result<Vec<Case>> {
    // File, requests, rate in requests per second, thousand tokens of KV cache, what is special.
    [
        (CONVERSATION, 4000, 4.0, 400, "Azure conversation, 4 req/s"),
        (CONVERSATION, 4000, 5.0, 60, "the same at 5 req/s, short of KV blocks"),
        (CODE, 4000, 2.0, 400, "Azure code, 2 req/s"),
        (MOONCAKE, 1500, 0.25, 4000, "Mooncake conversation, 0.25 req/s, prefixes kept"),
        (MOONCAKE, 1500, 0.25, 600, "the same, prefixes evicted"),
    ]
    .into_iter()
    .map(|(file, requests, rate, thousand_tokens, name)| {
        let trace = parse_trace(file, &read(file)?)?.window(0..requests).at_rate(rate);
        let config = EngineConfig {
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            kv_blocks: thousand_tokens * 1000 / 16,
            prefix_caching: true,
        };
        Ok(Case { name: name.into(), trace, config, step_time: shared()? })
    })
    .collect()
}
