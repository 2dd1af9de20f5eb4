//! `boute bench`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use boute_gateway::{BenchConfig, bench, served_models};
use boute_render::terminal::outcome_summary;
use boute_spec::data_file::{parse_quality, parse_trace};
use boute_spec::outcome::{Outcome, OutcomeSource, quantile};
use boute_spec::units::RequestsPerSecond;
use boute_spec::workload::Split;

use crate::failure::{Ending, Failure};
use crate::files::{Input, check_writable, write_whole};
use crate::printer::Printer;
use crate::progress::Progress;
use crate::replay::Replay;

/// A load generator that is later than this says so.
const LATE_MS: f64 = 20.0;

/// Says so if requests were sent later than they were due.
pub(crate) fn say_if_late(late_s: &[f64], printer: Printer) {
    let late_ms = quantile(late_s, 0.99) * 1e3;
    if late_ms > LATE_MS {
        printer.say(format_args!(
            "one request in a hundred was sent {late_ms:.0} ms late or more: this machine is too slow or too busy for the \
             load, and its lateness is in the times"
        ));
    }
}

/// Replays a trace against an OpenAI-compatible endpoint, in an open loop: requests are sent when they are due and timed
/// from then on. With `--concurrency`, in a closed loop. Times are defined as vLLM's `bench serve` does, and so are the keys.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The endpoint, such as `http://127.0.0.1:8080`.
    url: String,
    /// The traffic: CSV or JSON lines, plain or gzip.
    #[arg(long)]
    trace: PathBuf,
    /// Model to ask for.
    #[arg(long, default_value = boute_gateway::AUTO)]
    model: String,
    /// Rescale the trace to this mean rate, such as "20 req/s".
    #[arg(long)]
    rate: Option<RequestsPerSecond>,
    /// Only the first requests of the trace.
    #[arg(long)]
    requests: Option<usize>,
    /// Queries to send: quality data, of which the test part is used; filler of the trace's lengths otherwise.
    #[arg(long)]
    quality: Option<PathBuf>,
    /// Virtual seconds per second, for emulated replicas started with the same scale.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// In a closed loop: this many clients, each of which sends its next request when its last one is answered.
    #[arg(long, value_name = "CLIENTS", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the outcome here.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_time_scale(args.time_scale)?;
    crate::commands::mock::raise_descriptor_limit();
    check_writable(&args.output)?;
    let input = Input::read(&args.trace)?;
    let trace = parse_trace(&input.name, &input.text).map_err(Failure::told)?;
    let trace = trace.window(0..args.requests.unwrap_or(usize::MAX).clamp(1, trace.requests().len()));
    let trace = match args.rate.filter(|rate| rate.get() > 0.0) {
        Some(rate) => trace.at_rate(rate.get()),
        None => trace,
    };
    let replay = Replay::new(&trace, &texts(args.quality.as_deref())?, args.seed);
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    let listed = runtime.block_on(served_models(&args.url));
    if listed.is_empty() {
        return Err(Failure::input(
            format_args!("`{}` does not answer /v1/models", args.url),
            "give the address of an OpenAI-compatible endpoint over plain HTTP, such as http://127.0.0.1:8080",
        ));
    }
    let models = if args.model == boute_gateway::AUTO { listed } else { vec![args.model.clone()] };
    let config = BenchConfig {
        url: args.url.clone(),
        model: args.model.clone(),
        models: models.clone(),
        time_scale: args.time_scale,
        clients: args.concurrency.map(|clients| clients as usize),
        requests: replay.requests,
    };
    let progress = Progress::new(printer.quiet);
    let result = runtime.block_on(bench(config, |done, total| progress.at("sending requests", done, total)));
    progress.finish();
    for (error, count) in &result.errors {
        printer.say(format_args!("{count} requests failed: {error}"));
    }
    say_if_late(&result.late_s, printer);
    let failed = result.failed();
    let outcome = Outcome::summarise(OutcomeSource::Measured, &result.outcomes, failed, &models, &[], None);
    if let Some(path) = &args.output {
        write_whole(path, outcome.to_json_pretty().as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&outcome)?;
    printer.text(outcome_summary(&outcome));
    Ok(if failed == 0 { Ending::Done } else { Ending::Unmet })
}

/// The test queries of quality data; none without data.
pub(crate) fn texts(path: Option<&Path>) -> Result<Vec<Arc<str>>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let input = Input::read(path)?;
    let data = parse_quality(&input.name, &input.text, &[]).map_err(Failure::told)?;
    let texts: Vec<Arc<str>> =
        data.split(Split::Test).map(|query| Arc::from(query.prompt.as_str())).collect();
    if texts.is_empty() {
        let hint = "give more queries, or mark some with `\"split\": \"test\"`";
        return Err(Failure::input(format_args!("`{}` has no test queries", input.name), hint));
    }
    Ok(texts)
}

pub(crate) fn check_time_scale(scale: f64) -> Result<(), Failure> {
    if (0.001..=1000.0).contains(&scale) {
        Ok(())
    } else {
        Err(Failure::input(
            format_args!("a time scale of {scale} cannot be"),
            "give a number from 0.001 to 1000",
        ))
    }
}
