//! A recorded run of Vidur (Llama-3-8B, A100, Sarathi chunks of 512 tokens, 128 sequences): its requests and its batch
//! cost through our scheduler.

use anyhow::{Context, Result};
use boute_sim::{EngineConfig, LinearStepTime};
use boute_spec::data_file::parse_requests;
use boute_spec::outcome::RequestOutcome;
use boute_spec::slo::Metric;

use crate::case::{Times, cell, read, run};

/// Largest difference of a percentile, as a share.
const BAR: f64 = 0.05;

/// Prints the table; whether the bar is kept.
pub(crate) fn compare() -> Result<bool> {
    let file = "crates/sim/tests/data/vidur_8b_requests.csv";
    let text = read(file)?;
    let trace = parse_requests(file, &text)?;
    let step_time = LinearStepTime::parse(&read("crates/sim/tests/data/vidur_8b_step_time.json")?)?;
    let config = EngineConfig {
        max_num_seqs: 128,
        max_num_batched_tokens: 512,
        kv_blocks: 25_000,
        prefix_caching: false,
    };
    let simulation = run(&trace, config, step_time);
    // Vidur divides by all answer tokens where TPOT leaves the first one out.
    let outcome =
        |it: &RequestOutcome| (it.metric_s(Metric::Ttft), it.metric_s(Metric::E2e), it.output_tokens + 1);
    let ours = Times::new(simulation.outcomes.iter().map(outcome), simulation.preemptions);
    let theirs = text.lines().skip(1).map(|line| {
        let cells = line.split(',').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let [_, _, tokens, ttft, e2e] = cells[..] else { anyhow::bail!("`{line}` has not five columns") };
        Ok((ttft, e2e, tokens as u32 + 1))
    });
    let theirs = Times::new(theirs.collect::<Result<Vec<_>>>().context(file)?, 0);
    let cells = ours.percentiles().into_iter().zip(theirs.percentiles());
    let cells: Vec<_> = cells.map(|(ours, theirs)| cell(ours, theirs)).collect();
    println!("| Vidur | TTFT p50 | TTFT p95 | TBT p50 | TBT p95 | E2E p50 | E2E p95 |");
    println!("|---|---|---|---|---|---|---|");
    println!("| Llama-3-8B, A100, 4 req/s | {} |", cells.join(" | "));
    Ok(ours.furthest(&theirs) <= BAR)
}
