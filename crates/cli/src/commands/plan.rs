//! `boute plan`.

use std::path::{Path, PathBuf};

use boute_planner::{PlanError, Step, Strategy, plan, resume};
use boute_render::report::{ReportData, html};
use boute_render::terminal::plan_summary;
use boute_router::policy::quality_curve;
use boute_spec::plan::Plan;

use crate::cache::database;
use crate::failure::{Ending, Failure};
use crate::files::{beside, check_writable, read_plan, write_whole};
use crate::load::{Choices, Loaded, load, router_file_of};
use crate::printer::Printer;
use crate::progress::{Progress, catch_ctrl_c, stop_requested};

/// Finds the fleet and the routing policy for a spec. Ctrl-C keeps the best so far.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The spec, `boute.yaml`.
    spec: PathBuf,
    /// Write the plan here, and the router it needs beside it.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// How to search: `default`, `exact`, or a baseline (`homogeneous`, `routing-uniform`, `routing-proportional`).
    #[arg(long, default_value = "default")]
    strategy: Strategy,
    /// Seed of every random choice; the same seed gives the same plan, byte for byte.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on from this plan of the same spec and seed, such as one kept by Ctrl-C: find a better one, or prove more of it.
    #[arg(long, value_name = "PLAN")]
    resume: Option<PathBuf>,
    /// Use this cloud's prices only.
    #[arg(long)]
    cloud: Option<String>,
    /// Write a report to look at, one self-contained page.
    #[arg(long)]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let output = args.output.clone().unwrap_or_else(|| "plan.json".into());
    let choices = Choices {
        cloud: args.cloud.clone(),
        seed: args.seed,
        router_file: router_file_of(&output),
        scoring: false,
    };
    check_writable(args.output.iter().chain(&args.report))?;
    let mut loaded = load(&args.spec, &choices)?;
    if args.output.is_some() && !replaces_its_router(&output, &choices.router_file) {
        loaded.name_router(&output, None);
    }
    let router = loaded.problem.quality.as_ref().map(|quality| &quality.router_file);
    if let Some(router) = router.filter(|router| **router != choices.router_file) {
        let there = &choices.router_file;
        printer.say(format_args!("`{there}` is another plan's router and stays: this plan's is `{router}`"));
    }
    for note in &loaded.notes {
        printer.say(note);
    }
    let earlier = args.resume.as_deref().map(read_plan).transpose()?;
    let Some(plan) = solve(&loaded, args.strategy, earlier.as_ref(), printer)? else {
        return Ok(Ending::Unmet);
    };
    if args.output.is_some() {
        write_plan(&plan, &loaded, &output)?;
    }
    if let Some(report) = &args.report {
        let quality_curve = &held_out_curve(&loaded);
        let data =
            ReportData { plan: &plan, simulated: None, measured: None, comparison: &[], quality_curve };
        write_whole(report, html(&data).as_bytes())?;
    }
    printer.data(&plan)?;
    match (&plan.routing.cascade, loaded.problem.cascade) {
        (None, Some(_)) => printer.say(
            "no cascade: one model answers everything, or the planning queries do not show that second answers are worth it (the lengths of their answers, `output_tokens`, are needed)",
        ),
        (Some(cascade), _) => printer.say(format_args!(
            "cascade: {:.1}% of the queries are asked again from {}, at most, and only answers that are not streamed",
            100.0 * cascade.max_share.get(),
            cascade.to
        )),
        (None, None) => {}
    }
    printer.text(plan_summary(&plan, printer.width(), printer.colour()));
    printer.say(format_args!("\n{}", next(args, &plan)));
    Ok(if plan.verification.passed { Ending::Done } else { Ending::Unmet })
}

/// What was written, and what to type next.
fn next(args: &Args, plan: &Plan) -> String {
    let spec = args.spec.display();
    let Some(output) = args.output.as_deref().map(Path::display) else {
        return format!(
            "Next: boute plan {spec} -o plan.json --report report.html   to keep it and look at it"
        );
    };
    let report = args.report.as_deref().map(|report| format!(", {} to look at", report.display()));
    // Emulated replicas are single engines.
    let emulated = !plan.deployment.groups.iter().any(|group| group.disaggregated.is_some());
    let serve = if emulated { format!("\n      boute serve {output} --emulate") } else { String::new() };
    format!(
        "wrote {output}{}\nNext: boute explain {output}{serve}\n      boute export shell {output} -o run/",
        report.unwrap_or_default()
    )
}

/// Plans with progress; `None`, after saying why and what would help, if nothing meets the targets.
fn solve(
    loaded: &Loaded,
    strategy: Strategy,
    earlier: Option<&Plan>,
    printer: Printer,
) -> Result<Option<Plan>, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    catch_ctrl_c(&runtime);
    let progress = Progress::new(printer.quiet);
    let told = |step: &Step| {
        progress.at(&step.message, step.done, step.total);
        stop_requested()
    };
    let result = match earlier {
        None => plan(&loaded.problem, strategy, &database(), &told),
        Some(earlier) => resume(&loaded.problem, strategy, earlier, &database(), &told),
    };
    progress.finish();
    match result {
        Ok(plan) => {
            if stop_requested() {
                printer.say(
                    "stopped: this is the best so far; `--resume` goes on from the plan that `-o` writes",
                );
            }
            Ok(Some(plan))
        }
        Err(PlanError::Infeasible(infeasible)) => {
            printer.text(format_args!("{infeasible}\n"));
            printer.data(&serde_json::json!({ "infeasible": infeasible.to_string() }))?;
            Ok(None)
        }
        Err(PlanError::Stopped) => {
            printer.say("stopped before a plan was found; what was simulated is kept for the next run");
            Ok(None)
        }
        Err(error @ PlanError::OtherProblem(_)) => Err(Failure::input(
            error,
            "`--resume` takes a plan of this spec with the same data, prices and seed; plan anew without it",
        )),
        Err(error) => Err(Failure::unexpected(error)),
    }
}

/// Quality over the share of the stronger of two models, on held-out queries; nothing to draw otherwise.
pub(crate) fn held_out_curve(loaded: &Loaded) -> Vec<(f64, f64)> {
    let queries = loaded.problem.quality.as_ref().map(|quality| &quality.held_out);
    queries
        .filter(|queries| queries.models.len() == 2 && !queries.is_empty())
        .map(|queries| quality_curve(queries, 50))
        .unwrap_or_default()
}

/// Whether a plan is there that is planned anew, so that its router may be replaced with it.
fn replaces_its_router(output: &Path, router: &str) -> bool {
    read_plan(output).is_ok_and(|old| old.routing.router.is_empty() || old.routing.router == router)
}

/// The plan, and the router artefact its policy needs.
pub(crate) fn write_plan(plan: &Plan, loaded: &Loaded, path: &Path) -> Result<(), Failure> {
    if let (Some(scorer), Some(quality)) = (&loaded.scorer, &loaded.problem.quality) {
        write_whole(&beside(path, &quality.router_file), scorer.to_json().as_bytes())?;
    }
    write_whole(path, plan.to_json_pretty().as_bytes())
}
