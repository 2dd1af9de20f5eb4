//! `boute replan`.

use std::fmt::Write as _;
use std::path::PathBuf;

use boute_planner::mix::ScoreMix;
use boute_planner::moving::Step;
use boute_planner::replan::{Answer, Replan, as_of_late, lose, replan};
use boute_planner::{PlanError, Problem};
use boute_spec::data_file::parse_trace;
use boute_spec::plan::Plan;
use boute_spec::units::{RequestsPerSecond, UnitError};
use boute_spec::workload::TraceRequest;

use crate::cache::database;
use crate::commands::explain::spec_of;
use crate::commands::plan::write_plan;
use crate::decisions::{Line, in_order};
use crate::failure::{Ending, Failure};
use crate::files::{Input, check_writable, read_plan, same_place};
use crate::load::{Choices, load, router_file_of};
use crate::market::{Gpus, MovingArgs, apply_prices};
use crate::printer::Printer;
use crate::progress::{Progress, catch_ctrl_c, stop_requested};

/// Plans again for a fleet that runs, by what has changed: rate and lengths, the mix of queries, prices, stock, lost GPUs.
///
/// The answer is to stay, to route otherwise on the same fleet, or to move to another, with the steps in order, what moving
/// costs and when it has paid for itself. What runs is judged on the traffic as it is; a move must also stand what the spec asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan that runs.
    plan: PathBuf,
    /// The traffic of late: a trace, or the gateway's log of decisions (then the mix of queries is taken from it too).
    #[arg(long)]
    trace: PathBuf,
    /// The spec as it is now; without, the file that the plan names.
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Requests per second to plan for; without, that of the trace.
    #[arg(long, value_parser = some_rate)]
    rate: Option<RequestsPerSecond>,
    /// Prices as they are now: lines such as `H100-SXM $2.40/h`.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// GPUs that are lost, such as `H100-SXM:2`: out of the stock, and with them the replicas that no others can carry.
    #[arg(long, value_name = "GPUS")]
    lost: Vec<Gpus>,
    /// Use this cloud's prices only, as the plan did.
    #[arg(long)]
    cloud: Option<String>,
    /// Write the plan to go on with here, if it is another.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Put it in the place of the old if only the routing is another: a gateway takes it over at once. For a move the new fleet
    /// must run first; `boute autopilot` does both.
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    moving: MovingArgs,
}

fn some_rate(text: &str) -> Result<RequestsPerSecond, String> {
    let rate: RequestsPerSecond = text.parse().map_err(|error: UnitError| error.to_string())?;
    if rate.get() > 0.0 { Ok(rate) } else { Err("a rate to plan for is above 0".into()) }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_writable(&args.output)?;
    let plan = read_plan(&args.plan)?;
    let spec = args.spec.clone().map_or_else(|| spec_of(&plan, &args.plan), Ok)?;
    let output = args.output.clone().or_else(|| args.apply.then(|| args.plan.clone()));
    let place = output.as_ref().unwrap_or(&args.plan);
    let choices = Choices {
        cloud: args.cloud.clone(),
        seed: plan.seed,
        router_file: router_file_of(place),
        scoring: false,
    };
    let mut loaded = load(&spec, &choices)?;
    loaded.name_router(place, Some(&plan));
    if let Some(prices) = &args.prices {
        apply_prices(&mut loaded.problem, prices)?;
    }
    let recent = Input::read(&args.trace)?;
    loaded.problem.inputs.push(recent.digest("recent"));
    let mut now = as_it_is(&loaded.problem, &plan, &recent, args.rate)?;
    lose(&mut now, &Gpus::by_type(&args.lost));
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    catch_ctrl_c(&runtime);
    let progress = Progress::new(printer.quiet);
    let told = |step: &boute_planner::Step| {
        progress.at(&step.message, step.done, step.total);
        stop_requested()
    };
    let answer = replan(&loaded.problem, &now, &plan, &args.moving.terms(), &database(), &told);
    progress.finish();
    let answer = match answer {
        Ok(answer) => answer,
        Err(PlanError::Infeasible(why)) => {
            printer.text(format_args!("{why}\n"));
            printer.data(&serde_json::json!({ "infeasible": why.to_string() }))?;
            return Ok(Ending::Unmet);
        }
        Err(PlanError::Stopped) => {
            printer.say("stopped before there was an answer");
            return Ok(Ending::Unmet);
        }
        Err(error) => return Err(Failure::unexpected(error)),
    };
    printer.data(&answer)?;
    printer.text(in_words(&answer));
    let in_place = same_place(place, &args.plan);
    if let (Some(plan), Some(output)) = (&answer.plan, &output) {
        if in_place && answer.answer == Answer::Move {
            printer.say(format_args!(
                "`{}` is left as it is: the new fleet must run first. Write it with `-o new.json`, start it as `boute export` says, \
                 then put it in place; or let `boute autopilot` do it",
                args.plan.display()
            ));
        } else {
            write_plan(plan, &loaded, output)?;
            printer.say(format_args!("wrote {}", output.display()));
        }
    }
    Ok(Ending::Done)
}

/// The problem with the traffic of late: its rate, lengths and mix.
fn as_it_is(
    spec: &Problem,
    plan: &Plan,
    recent: &Input,
    rate: Option<RequestsPerSecond>,
) -> Result<Problem, Failure> {
    // The gateway may be writing the last line.
    let whole = recent.text.rfind('\n').map_or("", |last| &recent.text[..last]);
    let log = |text: &str| -> Option<Vec<Line>> {
        let lines = text.lines().filter(|line| !line.trim().is_empty()).map(Line::parse);
        lines.collect::<Option<Vec<_>>>().filter(|lines| !lines.is_empty())
    };
    let lines = log(&recent.text).or_else(|| log(whole));
    let requests: Vec<TraceRequest> = match &lines {
        Some(lines) => in_order(lines),
        None => parse_trace(&recent.name, &recent.text).map_err(Failure::told)?.requests().to_vec(),
    };
    let span =
        |requests: &[TraceRequest]| Some(requests.last()?.arrival.since(requests.first()?.arrival).seconds());
    let own = span(&requests).filter(|span| *span > 0.0).map(|span| (requests.len() - 1) as f64 / span);
    let rate = rate.map(RequestsPerSecond::get).or(own).filter(|rate| *rate > 0.0).ok_or_else(|| {
        Failure::input(
            format_args!("`{}` has no rate of its own", recent.name),
            "say it: `--rate \"20 req/s\"`",
        )
    })?;
    let mut now = as_of_late(spec, &requests, rate);
    let mut mix = ScoreMix::default();
    lines.iter().flatten().for_each(|line| line.count(&mut mix));
    let queries = spec.quality.as_ref().map(|quality| &quality.planning);
    let expected = queries.and_then(|queries| ScoreMix::expected(queries, &plan.routing.policy).ok());
    if expected.is_some_and(|expected| mix.shifted(&expected))
        && let Some(shifted) = mix.applied_to(spec, &plan.routing.policy)
    {
        now.quality = Some(shifted);
    }
    Ok(now)
}

fn in_words(answer: &Replan) -> String {
    let mut out = String::new();
    let word = match answer.answer {
        Answer::Stay => "Stay",
        Answer::ReRoute => "Re-route: the same fleet, another division of the load",
        Answer::Move => "Move",
    };
    let _ = writeln!(out, "{word}");
    for why in &answer.why {
        let _ = writeln!(out, "  {why}");
    }
    let _ = writeln!(
        out,
        "Now   {}, ${:.2}/h, for {:.2} req/s",
        answer.now.fleet, answer.now.usd_per_hour, answer.now.rate
    );
    if let Some(best) = &answer.best {
        let _ = writeln!(out, "Best  {}, ${:.2}/h", best.fleet, best.usd_per_hour);
    }
    let Some(moving) = answer.moving.as_ref().filter(|_| answer.answer == Answer::Move) else { return out };
    for (number, step) in (1..).zip(&moving.steps) {
        let _ = writeln!(out, "{number:>4}. {}", step_in_words(step));
    }
    let _ = write!(
        out,
        "Moving takes {:.0} min and ${:.2} of rent on top; {} ${:.2}/h",
        moving.seconds / 60.0,
        moving.usd.max(0.0),
        if answer.saving_usd_per_hour < 0.0 { "from then on it costs another" } else { "saves" },
        answer.saving_usd_per_hour.abs()
    );
    let paid =
        answer.pay_back_h.map_or(String::new(), |hours| format!(", paid back after {:.0} min", hours * 60.0));
    let _ = writeln!(out, "{paid}");
    if moving.least_capacity < 1.0 {
        let part = 100.0 * moving.least_capacity;
        let _ = writeln!(
            out,
            "The stock is short: on the way only {part:.0} % of a model's planned capacity is there"
        );
    }
    out
}

fn step_in_words(step: &Step) -> String {
    match step {
        Step::Start { group, replicas } => format!("start {replicas}× {group}"),
        Step::Wait { seconds } => format!("wait until they are ready, about {seconds:.0} s"),
        Step::SwapRoutes => "route by the new plan".into(),
        Step::Drain { group, replicas, seconds } => {
            format!("drain {replicas}× {group}, about {seconds:.0} s")
        }
        Step::Stop { group, replicas } => format!("stop {replicas}× {group}"),
    }
}
