//! `aisimulate-core`: its replay of one vLLM replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aisimulate_core::TimingModelConfig;
use aisimulate_core::engine::EngineConfig;
use aisimulate_core::replay::{
    ReplayEngineConfig, ReplayEngineFactory, ReplayRequest, ReplaySpec, ReplayTopology, Replayer,
};
use anyhow::{Context, Result, ensure};
use boute_spec::workload::TraceRequest;

use crate::case::{Case, Times};

/// Tokens that one hash id stands for.
const UNIT_TOKENS: u32 = 512;

/// What it says, and how long it took.
pub(crate) struct Theirs {
    pub(crate) times: Times,
    pub(crate) elapsed: Duration,
}

/// Runs a case with equal options: blocks of 16 tokens, chunked prefill, prefix caching, preemption of the last admitted.
pub(crate) fn run(case: &Case) -> Result<Theirs> {
    let rank = EngineConfig {
        num_gpu_blocks: usize::try_from(case.config.kv_blocks)?,
        block_size: 16,
        max_num_seqs: case.config.max_num_seqs as usize,
        max_num_batched_tokens: case.config.max_num_batched_tokens as usize,
        enable_prefix_caching: case.config.prefix_caching,
        timing_model: TimingModelConfig::External {
            provider: "shared".into(),
            config: serde_json::Value::Null,
        },
        ..EngineConfig::default()
    };
    let engine = serde_json::to_value(ReplayEngineConfig { rank, ..ReplayEngineConfig::default() })?;
    let spec: ReplaySpec = serde_json::from_value(serde_json::json!({
        "topology": ReplayTopology::aggregated(1),
        "engine": engine,
        "requests": Vec::<ReplayRequest>::new(),
    }))?;
    let requests = case.trace.requests().iter().enumerate().map(|(index, request)| lower(index, request));
    let spec = ReplaySpec { requests: requests.collect(), ..spec };
    let factory = ReplayEngineFactory::with_timing_model(Arc::new(case.step_time.clone()));
    let replayer = Replayer::new(spec, factory)?;
    let start = Instant::now();
    let report = replayer.run()?;
    let elapsed = start.elapsed();
    ensure!(report.per_request.len() == case.trace.requests().len(), "a record of every request");
    let mut times = Vec::with_capacity(report.per_request.len());
    for record in &report.per_request {
        let ttft = record.ttft_ms.context("a first token")? * 1e-3;
        let e2e = record.e2e_latency_ms.context("a last token")? * 1e-3;
        times.push((ttft, e2e, u32::try_from(record.output_length)?));
    }
    let preemptions = report.per_request.iter().map(|record| record.readmission_count as u64).sum();
    Ok(Theirs { times: Times::new(times, preemptions), elapsed })
}

/// Token ids that share a prefix exactly where the hash ids do; without hash ids, the crate makes up unique ones.
fn lower(index: usize, request: &TraceRequest) -> ReplayRequest {
    let token = |at: u32| {
        let unit = request.hash_ids[(at / UNIT_TOKENS) as usize];
        (unit as u32) * UNIT_TOKENS + at % UNIT_TOKENS
    };
    let input_token_ids =
        (!request.hash_ids.is_empty()).then(|| (0..request.input_tokens).map(token).collect());
    ReplayRequest {
        id: index.to_string(),
        arrival_time_ms: request.arrival.millis(),
        input_tokens: request.input_tokens as usize,
        input_token_ids,
        output_tokens: request.output_tokens as usize,
        output_token_ids: None,
        dp_rank: None,
        prefill_dp_rank: None,
        session_id: None,
        turn_index: None,
        metadata: serde_json::Value::Null,
    }
}
