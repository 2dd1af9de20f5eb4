//! `boute simulate`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use boute_perf::memory::BLOCK_TOKENS;
use boute_render::terminal::outcome_summary;
use boute_router::balance::Balancing;
use boute_router::decide::Decider;
use boute_sim::{
    EngineConfig, InvalidStepTime, LinearStepTime, ReplicaSpec, Request, StepLimits, Totals, simulate_each,
};
use boute_spec::data_file::{parse_requests, parse_trace};
use boute_spec::outcome::{Outcome, OutcomeSource, RequestOutcome};
use boute_spec::slo::Metric;
use boute_spec::units::RequestsPerSecond;
use boute_spec::workload::Trace;

use crate::commands::bench::texts;
use crate::failure::{Ending, Failure};
use crate::files::{Input, check_writable, read_plan, write_whole, write_whole_with};
use crate::printer::Printer;
use crate::replay::{Replay, scorer_of};

/// Simulates a plan on a trace, token by token, or one replica whose step times come from a file.
///
/// With `--quality`, every request carries one of these queries and is routed by the plan's router; otherwise queries are
/// divided at random in the planned proportions.
#[derive(Debug, clap::Args)]
#[command(override_usage = "boute simulate <PLAN> --trace <TRACE> [OPTIONS]\n       \
                            boute simulate --step-time <FILE> --requests <FILE> [OPTIONS]")]
pub(crate) struct Args {
    /// The plan.
    #[arg(required_unless_present = "step_time", conflicts_with = "step_time", requires = "trace")]
    plan: Option<PathBuf>,
    /// The traffic: CSV or JSON lines, plain or gzip.
    #[arg(long, conflicts_with = "step_time")]
    trace: Option<PathBuf>,
    /// With a plan: only this many requests of the trace. With `--step-time`: the requests, CSV with the columns
    /// `arrival_s,prefill_tokens,decode_tokens`.
    #[arg(long, value_name = "N|FILE")]
    requests: Option<Requests>,
    /// Rescale the trace to this mean rate, such as "20 req/s".
    #[arg(long, conflicts_with = "step_time")]
    rate: Option<RequestsPerSecond>,
    /// Queries to send: quality data, of which the test part is used.
    #[arg(long, conflicts_with = "step_time")]
    quality: Option<PathBuf>,
    /// How a replica is picked: least-expected-finish, round-robin, least-requests or power-of-two.
    #[arg(long, default_value = Balancing::LeastExpectedFinish.name(), conflicts_with = "step_time")]
    balance: Balancing,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the outcome here.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    replica: ReplicaArgs,
}

/// One replica with the step times of another cost model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "One replica")]
struct ReplicaArgs {
    /// Step times, linear in features of the batch: JSON `{"basis": ["1", "T", …], "seconds": [c0, c1, …]}`.
    #[arg(long, value_name = "FILE", requires = "requests")]
    step_time: Option<PathBuf>,
    /// Write TTFT, TPOT and E2E of each request here, as CSV in the order of the requests.
    #[arg(long, value_name = "FILE", requires = "step_time")]
    per_request: Option<PathBuf>,
    /// Sequences that run at once, at most.
    #[arg(long, value_name = "N", default_value_t = 128, requires = "step_time", value_parser = clap::value_parser!(u32).range(1..))]
    max_num_seqs: u32,
    /// Tokens computed in one step, at most.
    #[arg(long, value_name = "N", default_value_t = 512, requires = "step_time", value_parser = clap::value_parser!(u32).range(1..))]
    max_num_batched_tokens: u32,
    /// Tokens that the KV cache holds; without, as many as can ever be used.
    #[arg(long, value_name = "N", requires = "step_time")]
    kv_tokens: Option<u64>,
}

/// `--requests`: how many, or which.
#[derive(Debug, Clone)]
enum Requests {
    First(usize),
    File(PathBuf),
}

impl FromStr for Requests {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::First))
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_writable(args.output.iter().chain(&args.replica.per_request))?;
    let outcome = match (&args.replica.step_time, &args.plan, &args.trace) {
        (Some(step_time), _, _) => of_replica(args, step_time)?,
        (None, Some(plan), Some(trace)) => of_plan(args, plan, trace)?,
        _ => return Err(Failure::input("there is no trace", "give the traffic with `--trace`")),
    };
    if let Some(path) = &args.output {
        write_whole(path, outcome.to_json_pretty().as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&outcome)?;
    printer.text(outcome_summary(&outcome));
    Ok(Ending::Done)
}

fn of_plan(args: &Args, plan_path: &Path, trace: &Path) -> Result<Outcome, Failure> {
    let first = match &args.requests {
        None => usize::MAX,
        Some(Requests::First(0)) => {
            return Err(Failure::input("no requests are to be taken", "`--requests` is at least 1"));
        }
        Some(Requests::First(count)) => *count,
        Some(Requests::File(path)) => {
            return Err(Failure::input(
                format_args!("`{}` is not a number of requests", path.display()),
                "with a plan, `--requests` says how many requests of the trace to take",
            ));
        }
    };
    let plan = read_plan(plan_path)?;
    let scorer = scorer_of(&plan, plan_path)?;
    let input = Input::read(trace)?;
    let trace = parse_trace(&input.name, &input.text).map_err(Failure::told)?;
    let trace = trace.window(0..first.clamp(1, trace.requests().len()));
    let trace = match args.rate.filter(|rate| rate.get() > 0.0) {
        Some(rate) => trace.at_rate(rate.get()),
        None => trace,
    };
    let texts = texts(args.quality.as_deref())?;
    Replay::new(&trace, &texts, args.seed).simulate(&plan, scorer.as_ref(), args.balance, args.seed)
}

fn of_replica(args: &Args, step_file: &Path) -> Result<Outcome, Failure> {
    let Some(Requests::File(path)) = &args.requests else {
        return Err(Failure::input(
            "`--requests` is not a file",
            "with `--step-time`, it names CSV with the columns `arrival_s,prefill_tokens,decode_tokens`",
        ));
    };
    let unusable = |error: InvalidStepTime| Failure::told(format_args!("{}: {error}", step_file.display()));
    let step_time = LinearStepTime::parse(&Input::read(step_file)?.text).map_err(unusable)?;
    let trace = {
        // The text is let go of before the simulation: it may be long.
        let input = Input::read(path)?;
        parse_requests(&input.name, &input.text).map_err(Failure::told)?
    };
    let (config, limits) = limits(&args.replica, &trace)?;
    step_time.check(limits).map_err(unusable)?;
    let (outcomes, refused) = replay(&trace, config, step_time)?;
    if let Some(path) = &args.replica.per_request {
        write_whole_with(path, |file| write_rows(file, &trace, &outcomes))?;
    }
    drop(trace);
    let answered: Vec<RequestOutcome> = outcomes.into_iter().flatten().collect();
    Ok(Outcome::summarise(OutcomeSource::Simulated, &answered, refused, &["replica".into()], &[], None))
}

/// The engine's limits, and what they and the requests allow in one step.
fn limits(args: &ReplicaArgs, trace: &Trace) -> Result<(EngineConfig, StepLimits), Failure> {
    let (seqs, tokens) = (args.max_num_seqs, args.max_num_batched_tokens);
    if tokens < seqs {
        return Err(Failure::input(
            format_args!("a step of {tokens} tokens cannot hold {seqs} sequences"),
            "give `--max-num-batched-tokens` at least `--max-num-seqs`, as vLLM demands too",
        ));
    }
    let lengths = trace.requests().iter().map(|it| u64::from(it.input_tokens) + u64::from(it.output_tokens));
    let context = lengths.max().unwrap_or_default();
    let kv_blocks = match args.kv_tokens {
        Some(tokens) => tokens / BLOCK_TOKENS,
        None => u64::from(seqs) * context.div_ceil(BLOCK_TOKENS),
    };
    let config =
        EngineConfig { max_num_seqs: seqs, max_num_batched_tokens: tokens, kv_blocks, prefix_caching: false };
    Ok((config, StepLimits { tokens: u64::from(tokens), seqs: u64::from(seqs), context }))
}

/// What happens to each request (`None` if it is larger than the KV cache), and how many were refused.
fn replay(
    trace: &Trace,
    config: EngineConfig,
    step_time: LinearStepTime,
) -> Result<(Vec<Option<RequestOutcome>>, u64), Failure> {
    let replica = ReplicaSpec::alone(config, step_time);
    let requests = trace.requests().iter().map(Request::from);
    let mut outcomes = vec![None; requests.len()];
    let Totals { failed, .. } =
        simulate_each(vec![replica], &Decider::Constant(0), requests, |index, outcome| {
            outcomes[index] = Some(outcome);
        });
    let missing = outcomes.iter().filter(|outcome| outcome.is_none()).count() as u64;
    if missing > failed {
        return Err(Failure::input(
            format_args!("{} requests would end after more than 213 days", missing - failed),
            "virtual time ends there: check that `seconds` are seconds, or give fewer or shorter requests",
        ));
    }
    Ok((outcomes, failed))
}

/// One line per request, in order; a request that was refused has no times.
fn write_rows(
    file: &mut impl Write,
    trace: &Trace,
    outcomes: &[Option<RequestOutcome>],
) -> std::io::Result<()> {
    writeln!(file, "arrival_s,prefill_tokens,decode_tokens,ttft_s,tpot_s,e2e_s")?;
    for (request, outcome) in trace.requests().iter().zip(outcomes) {
        let (arrival_s, input, output) =
            (request.arrival.seconds(), request.input_tokens, request.output_tokens);
        write!(file, "{arrival_s},{input},{output}")?;
        match outcome {
            Some(outcome) => {
                let [ttft_s, tpot_s, e2e_s] =
                    [Metric::Ttft, Metric::Tpot, Metric::E2e].map(|metric| outcome.metric_s(metric));
                writeln!(file, ",{ttft_s:.9},{tpot_s:.9},{e2e_s:.9}")?;
            }
            None => writeln!(file, ",,,")?,
        }
    }
    Ok(())
}
