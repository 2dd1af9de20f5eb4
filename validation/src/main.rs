//! The simulator beside other people's: the same requests and the same step times through `boute-sim`, through
//! `aisimulate-core` (a vLLM scheduler by another team) and against a recorded run of Vidur.
//!
//! `cargo run --release --manifest-path validation/Cargo.toml` prints the tables of `docs/simulator.md` and fails if a
//! percentile is further off than its bar.

use std::process::ExitCode;

mod case;
mod shared;
mod speed;
mod theirs;
mod vidur;

/// Largest difference of a percentile, as a share.
const BAR: f64 = 0.03;

fn main() -> anyhow::Result<ExitCode> {
    let mut kept = true;
    println!("| requests | TTFT p50 | TTFT p95 | TPOT p50 | TPOT p95 | E2E p50 | E2E p95 | preempted |");
    println!("|---|---|---|---|---|---|---|---|");
    for case in case::all()? {
        let ours = case.ours();
        let theirs = theirs::run(&case)?;
        println!("{}", case.row(&ours, &theirs));
        kept &= ours.furthest(&theirs.times) <= BAR;
    }
    println!();
    kept &= vidur::compare()?;
    println!();
    kept &= speed::compare()?;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
