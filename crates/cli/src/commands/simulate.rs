//! `boute simulate`.

use std::path::PathBuf;

use boute_render::terminal::outcome_summary;
use boute_spec::data_file::parse_trace;
use boute_spec::plan::Plan;
use boute_spec::units::RequestsPerSecond;

use crate::commands::bench::texts;
use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;
use crate::replay::{Replay, scorer_of};

/// Simulates a plan on a trace. With `--quality`, every request carries one of these queries and is routed by the plan's
/// router; otherwise queries are divided at random in the planned proportions.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan.
    plan: PathBuf,
    /// The traffic: CSV or JSON lines, plain or gzip.
    #[arg(long)]
    trace: PathBuf,
    /// Rescale the trace to this mean rate, such as "20 req/s".
    #[arg(long)]
    rate: Option<RequestsPerSecond>,
    /// Queries to send: quality data, of which the test part is used.
    #[arg(long)]
    quality: Option<PathBuf>,
    /// Only the first requests of the trace.
    #[arg(long)]
    requests: Option<usize>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the outcome here.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let input = Input::read(&args.plan)?;
    let plan = Plan::parse(&input.name, &input.text).map_err(Failure::told)?;
    let scorer = scorer_of(&plan, &args.plan)?;
    let input = Input::read(&args.trace)?;
    let trace = parse_trace(&input.name, &input.text).map_err(Failure::told)?;
    let trace = trace.window(0..args.requests.unwrap_or(usize::MAX).clamp(1, trace.requests().len()));
    let trace = match args.rate.filter(|rate| rate.get() > 0.0) {
        Some(rate) => trace.at_rate(rate.get()),
        None => trace,
    };
    let texts = texts(args.quality.as_deref())?;
    let outcome = Replay::new(&trace, &texts, args.seed).simulate(&plan, scorer.as_ref(), args.seed)?;
    if let Some(path) = &args.output {
        write_whole(path, outcome.to_json_pretty().as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&outcome)?;
    printer.text(outcome_summary(&outcome));
    Ok(Ending::Done)
}
