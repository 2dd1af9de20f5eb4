//! `boute demo`: all of it, on this machine, on bundled real data.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use boute_gateway::{AUTO, BenchConfig, bench, emulate_fleet};
use boute_planner::{Strategy, StrategyResult, compare};
use boute_render::StrategyRow;
use boute_render::report::{ReportData, cost_picture, html};
use boute_render::terminal::{comparison, plan_summary, promised_against_measured};
use boute_router::balance::Balancing;
use boute_spec::outcome::{Outcome, OutcomeSource};
use boute_spec::plan::Plan;
use boute_spec::workload::Split;

use crate::bundled;
use crate::cache::database;
use crate::commands::bench::say_if_late;
use crate::commands::mock::bind;
use crate::commands::plan::{held_out_curve, write_plan};
use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::load::{Choices, Loaded, load_with};
use crate::printer::Printer;
use crate::progress::Progress;
use crate::replay::Replay;

const SPEC: &str = "llama-8b-70b.yaml";
/// The spec and what it names; written beside the plan, so that it can be explained, changed and planned again.
const FILES: [(&str, &[u8]); 4] = [
    (SPEC, include_bytes!("../../../../examples/llama-8b-70b.yaml")),
    ("data/azure2023_conv.csv.gz", bundled::CONVERSATION),
    ("data/mmlu_pro_llama.jsonl.gz", bundled::KNOWLEDGE),
    ("data/README.md", include_bytes!("../../../../examples/data/README.md")),
];

/// Virtual minutes replayed, and how much faster than real time: about forty seconds.
const REPLAY_SECONDS: f64 = 300.0;
const TIME_SCALE: f64 = 8.0;
/// Promised and measured P95 of E2E may differ by this much.
const TOLERANCE: f64 = 0.2;
const STRATEGIES: [Strategy; 4] =
    [Strategy::Default, Strategy::RoutingProportional, Strategy::RoutingUniform, Strategy::Homogeneous];

/// Shows all of boute on bundled real data, without a GPU and without a download.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for plan, router, outcomes and report; made if it is not there.
    #[arg(long, short, default_value = "boute-demo")]
    output: PathBuf,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    printer.say(format_args!(
        "boute demo: which GPUs should answer an hour of Azure chat traffic with Llama-3.1 8B and 70B, and which query goes\n\
         to which of them? Quality is that of MMLU-Pro, GPUs have list prices. It takes a minute or two, needs no GPU, asks\n\
         nobody on the network and writes to {}/.\n  \
         1. plan, by four strategies\n  2. start the best fleet, every replica emulated, and the gateway before it\n  \
         3. replay five minutes of traffic over HTTP, at {TIME_SCALE}× speed\n  4. compare what was promised with what was measured\n",
        args.output.display()
    ));
    let data = args.output.join("data");
    fs::create_dir_all(&data).map_err(|error| Failure::unwritable(&data, &error))?;
    let loaded = load_bundled(args.seed)?;
    for note in &loaded.notes {
        printer.say(note);
    }
    let progress = Progress::new(printer.quiet);
    let results = compare(&loaded.problem, &STRATEGIES, &database(), &|step| {
        progress.at(&step.message, step.done, step.total);
        false
    });
    progress.finish();
    let results = results.map_err(Failure::told)?;
    let rows: Vec<StrategyRow> = results.iter().map(row).collect();
    let plan = match results.into_iter().next().map(|result| result.plan) {
        Some(Ok(plan)) => plan,
        Some(Err(why)) => return Err(Failure::unexpected(why)),
        None => return Err(Failure::unexpected("no strategy was tried")),
    };
    printer.text(plan_summary(&plan, printer.width(), printer.colour()));
    printer.text(format_args!("\nAt the same quality floor and latency\n{}", comparison(&rows)));

    let (promised, measured) = replay(&loaded, &plan, printer, args.seed)?;
    printer.text(format_args!(
        "\nPromised and measured, {} requests over HTTP at {TIME_SCALE}× speed\n{}",
        promised.completed,
        promised_against_measured(&promised, &measured)
    ));
    write(args, &loaded, &plan, &promised, &measured, &rows)?;
    printer.text(in_short(&plan, &rows, &promised, &measured));
    let folder = args.output.display();
    printer.say(format_args!(
        "\nOpen  {folder}/report.html\nNext: boute explain {folder}/plan.json\n      \
         boute serve {folder}/plan.json --emulate   and   curl http://127.0.0.1:8080/v1/models\n      \
         boute init my-fleet   to plan your own"
    ));
    printer.data(&serde_json::json!({
        "plan": plan, "predicted": promised, "measured": measured, "comparison": rows,
    }))?;
    let off = measured.p95_e2el_ms / promised.p95_e2el_ms - 1.0;
    let kept = measured.failed == 0 && measured.completed == promised.completed && off.abs() <= TOLERANCE;
    if !kept {
        printer.say(format_args!(
            "\nRequests failed, or the P95 of whole answers is more than {:.0} % off: exit status 1. A machine that is busy with \
             other things shows here; try again when it is idle.",
            100.0 * TOLERANCE
        ));
    }
    Ok(if kept { Ending::Done } else { Ending::Unmet })
}

/// What all of it came to, in two sentences.
fn in_short(plan: &Plan, rows: &[StrategyRow], promised: &Outcome, measured: &Outcome) -> String {
    let ours = plan.predicted.cost_usd_per_hour;
    let others = rows.iter().skip(1).filter_map(|row| Some((row, row.cost_usd_per_hour?)));
    let others: Vec<String> = others
        .map(|(row, cost)| {
            let broken = if row.met { "" } else { ", its promises broken" };
            let less = (1.0 - ours.get() / cost) * 100.0;
            let compared =
                if less.abs() < 0.5 { "as much as".into() } else { format!("{less:.0}% less than") };
            format!("{compared} {} (${cost:.2}/h{broken})", row.strategy)
        })
        .collect();
    let seconds = |outcome: &Outcome| outcome.p95_e2el_ms / 1e3;
    format!(
        "\nIn short: {ours} for {} at the quality and latency asked for: {}. P95 of whole answers: {:.1} s promised, {:.1} s measured.\n",
        plan.predicted.rate,
        others.join(", "),
        seconds(promised),
        seconds(measured)
    )
}

fn load_bundled(seed: u64) -> Result<Loaded, Failure> {
    let choices = Choices { cloud: None, seed, router_file: "plan.router.json".into(), scoring: false };
    let bundled = |name: &str| {
        let file = FILES.iter().find(|(bundled, _)| *bundled == name);
        let (_, bytes) = file.ok_or_else(|| Failure::unexpected(format_args!("`{name}` is not bundled")))?;
        Input::from_bytes(name.into(), bytes)
    };
    load_with(&bundled(SPEC)?, &choices, &bundled)
}

fn row(result: &StrategyResult) -> StrategyRow {
    let plan = result.plan.as_ref().ok();
    StrategyRow {
        strategy: result.strategy.name().into(),
        cost_usd_per_hour: plan.map(|plan| plan.predicted.cost_usd_per_hour.get()),
        quality: plan.map(|plan| plan.verification.quality),
        e2e_p95_ms: result.outcome.as_ref().map(|outcome| outcome.p95_e2el_ms),
        met: plan.is_some_and(|plan| plan.verification.passed),
        fleet: match &result.plan {
            Ok(plan) => boute_planner::assemble::in_words(&plan.deployment),
            Err(why) => why.lines().next().unwrap_or_default().into(),
        },
    }
}

/// Minutes of the verification window with held-out queries: what the simulator says, and what HTTP says.
fn replay(loaded: &Loaded, plan: &Plan, printer: Printer, seed: u64) -> Result<(Outcome, Outcome), Failure> {
    let trace = &loaded.problem.verification_trace;
    let count =
        trace.requests().iter().take_while(|request| request.arrival.seconds() < REPLAY_SECONDS).count();
    let trace = trace.window(0..count.max(1));
    let data = loaded.quality.as_ref();
    let texts: Vec<Arc<str>> = data
        .map(|data| data.split(Split::Test).map(|query| Arc::from(query.prompt.as_str())).collect())
        .unwrap_or_default();
    let replay = Replay::new(&trace, &texts, seed);
    let promised = replay.simulate(plan, loaded.scorer.as_ref(), Balancing::default(), seed)?;
    let models: Vec<String> = plan.routing.models.iter().map(|share| share.model.clone()).collect();
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    let progress = Progress::new(printer.quiet);
    let result = runtime.block_on(async {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into(), "--listen").await?;
        let fleet =
            emulate_fleet(plan, loaded.scorer.clone(), TIME_SCALE, listener).await.map_err(Failure::told)?;
        printer.say(format_args!(
            "{} emulated replicas behind http://{}/v1",
            fleet.replicas.upstreams.len(),
            fleet.gateway
        ));
        let config = BenchConfig {
            url: format!("http://{}", fleet.gateway),
            model: AUTO.into(),
            models: models.clone(),
            time_scale: TIME_SCALE,
            clients: None,
            requests: replay.requests,
        };
        Ok(bench(config, |done, total| progress.at("replaying traffic over HTTP", done, total)).await)
    })?;
    progress.finish();
    for (error, count) in &result.errors {
        printer.say(format_args!("{count} requests failed: {error}"));
    }
    say_if_late(&result.late_s, printer);
    let (failed, slo) = (result.failed(), &plan.targets.slo);
    let measured = Outcome::summarise(OutcomeSource::Measured, &result.outcomes, failed, &models, slo, None);
    Ok((promised, measured))
}

fn write(
    args: &Args,
    loaded: &Loaded,
    plan: &Plan,
    promised: &Outcome,
    measured: &Outcome,
    rows: &[StrategyRow],
) -> Result<(), Failure> {
    let at = |name: &str| args.output.join(name);
    for (name, bytes) in FILES {
        write_whole(&at(name), bytes)?;
    }
    write_plan(plan, loaded, &at("plan.json"))?;
    write_whole(&at("promised.json"), promised.to_json_pretty().as_bytes())?;
    write_whole(&at("measured.json"), measured.to_json_pretty().as_bytes())?;
    let data = ReportData {
        plan,
        simulated: Some(promised),
        measured: Some(measured),
        comparison: rows,
        quality_curve: &held_out_curve(loaded),
    };
    write_whole(&at("report.html"), html(&data).as_bytes())?;
    write_whole(&at("cost.svg"), cost_picture(rows).as_bytes())
}
