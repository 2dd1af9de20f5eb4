//! Speed side by side, in the same process, on the same requests: 1,024 prompt and 256 answer tokens, KV blocks of 16
//! tokens, prefix caching on.

use std::time::Instant;

use anyhow::Result;
use boute_sim::EngineConfig;
use boute_spec::units::SimTime;
use boute_spec::workload::{Trace, TraceRequest};

use crate::case::{Case, run, shared};
use crate::theirs;

/// How many times as fast we must be.
const BAR: f64 = 30.0;
const REQUESTS: u64 = 4_000;
/// The two take turns; the median of the ratios counts.
const ROUNDS: usize = 3;

/// Prints the table; whether the bar is kept.
pub(crate) fn compare() -> Result<bool> {
    println!("| requests per second, 1,024 + 256 tokens | ours | aisimulate-core | ratio |");
    println!("|---|---|---|---|");
    let mut kept = true;
    for rate in [2.0, 4.0, 8.0] {
        let requests = (0..REQUESTS).map(|index| TraceRequest {
            arrival: SimTime::from_seconds(index as f64 / rate),
            input_tokens: 1024,
            output_tokens: 256,
            // Distinct prefixes: they are stored, looked up and evicted.
            hash_ids: [2 * index, 2 * index + 1].into(),
            ..TraceRequest::default()
        });
        let config = EngineConfig {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            kv_blocks: 25_000,
            prefix_caching: true,
        };
        let case = Case {
            name: String::new(),
            trace: Trace::new(requests.collect())?,
            config,
            step_time: shared()?,
        };
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let theirs = REQUESTS as f64 / theirs::run(&case)?.elapsed.as_secs_f64();
            let start = Instant::now();
            let simulation = run(&case.trace, case.config, case.step_time.clone());
            let ours = REQUESTS as f64 / start.elapsed().as_secs_f64();
            assert_eq!(simulation.outcomes.len() as u64, REQUESTS, "every request is answered");
            rounds.push((ours / theirs, ours, theirs));
        }
        rounds.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, ours, theirs) = rounds[ROUNDS / 2];
        println!("| {rate} req/s arriving | {ours:.0} | {theirs:.0} | {ratio:.0} |");
        kept &= ratio >= BAR;
    }
    Ok(kept)
}
