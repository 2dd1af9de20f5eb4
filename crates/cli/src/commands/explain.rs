//! `boute explain`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use boute_planner::{
    ExplainError, Explanation, PlanError, Question, RunnerUp, Scenario, Verdict, WhyNot, explain,
};
use boute_spec::plan::{InputDigest, Plan};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cache::database;
use crate::failure::{Ending, Failure};
use crate::files::{beside, read_plan};
use crate::load::{Choices, load};
use crate::printer::Printer;
use crate::progress::{Progress, catch_ctrl_c, stop_requested};

/// Says why a plan is as it is: what binds and what one more unit of it is worth, the best plans of other kinds, why
/// something is not in it, and what if rate, answer lengths or prices were otherwise.
///
/// Everything is solved again on the simulated performance of replicas, which is kept between runs; differences between
/// plans are not verified by simulating whole fleets.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan.
    plan: PathBuf,
    /// The spec it was made from; without, the file that the plan names.
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Force something in and say what that costs, or why it cannot be: "MODEL on GPU", "MODEL on 4×GPU", "MODEL" or "GPU".
    #[arg(long, value_name = "WHAT")]
    why_not: Option<String>,
    /// Solve again with rate, answer lengths and each price 20 % lower and higher.
    #[arg(long)]
    sensitivity: bool,
    /// Use this cloud's prices only, as the plan did.
    #[arg(long)]
    cloud: Option<String>,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Explained {
    /// How the files differ from those the plan was made from.
    notes: Vec<String>,
    #[serde(flatten)]
    explanation: Explanation,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let plan = read_plan(&args.plan)?;
    let spec = args.spec.clone().map_or_else(|| spec_of(&plan, &args.plan), Ok)?;
    let choices = Choices {
        cloud: args.cloud.clone(),
        seed: plan.seed,
        router_file: plan.routing.router.clone(),
        scoring: false,
    };
    let loaded = load(&spec, &choices)?;
    let notes = differences(&plan.inputs, &loaded.problem.inputs);
    let question = Question { why_not: args.why_not.clone(), sensitivity: args.sensitivity };
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    catch_ctrl_c(&runtime);
    let progress = Progress::new(printer.quiet);
    let result = explain(&loaded.problem, &plan, &question, &database(), &|step| {
        progress.at(&step.message, step.done, step.total);
        stop_requested()
    });
    progress.finish();
    let explanation = match result {
        Ok(explanation) => explanation,
        Err(ExplainError::Plan(PlanError::Infeasible(why))) => {
            return Err(Failure::input(format_args!("`{}` has no plan now", spec.display()), why));
        }
        Err(ExplainError::Plan(PlanError::Stopped)) => {
            printer.say("stopped before anything could be explained");
            return Ok(Ending::Unmet);
        }
        Err(error @ ExplainError::OtherProblem(_)) => {
            return Err(Failure::input(error, "give the spec it was made from with `--spec`"));
        }
        Err(error @ ExplainError::Unknown(_)) => return Err(Failure::told(error)),
        Err(error) => return Err(Failure::unexpected(error)),
    };
    let explained = Explained { notes, explanation };
    printer.data(&explained)?;
    printer.text(in_words(&explained, printer.colour()));
    Ok(Ending::Done)
}

/// The spec that a plan names: from here, or from beside the plan.
pub(crate) fn spec_of(plan: &Plan, path: &Path) -> Result<PathBuf, Failure> {
    let named = plan.inputs.iter().find(|input| input.input == "spec").map(|input| input.file.as_str());
    let mut there = named.into_iter().flat_map(|name| {
        let alone = Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
        [PathBuf::from(name), beside(path, name), beside(path, &alone)]
    });
    there.find(|path| path.is_file()).ok_or_else(|| {
        let name = named.unwrap_or_default();
        Failure::input(
            format_args!("the spec of `{}`, `{name}`, is neither here nor beside it", path.display()),
            "say where it is: `--spec boute.yaml`",
        )
    })
}

/// Which files are not what the plan was made from.
fn differences(then: &[InputDigest], now: &[InputDigest]) -> Vec<String> {
    let changed = now.iter().filter(|now| {
        then.iter().find(|then| then.input == now.input).is_none_or(|then| then.sha256 != now.sha256)
    });
    changed
        .map(|now| {
            let name = if now.file.is_empty() { String::new() } else { format!(" `{}`", now.file) };
            format!("the {}{name} changed since the plan was made: explained by what it is now", now.input)
        })
        .collect()
}

fn in_words(explained: &Explained, colour: bool) -> String {
    let Explained { notes, explanation } = explained;
    let bold = |text: &str| if colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let mut out = String::new();
    for note in notes {
        let _ = writeln!(out, "Note: {note}.");
    }
    let _ = writeln!(out, "{}\n\n{}", explanation.summary, bold("What binds"));
    if explanation.binding.is_empty() {
        out.push_str("  nothing known: no limit is worth anything, or the plan's strategy proves nothing\n");
    }
    for binding in &explanation.binding {
        let _ = writeln!(out, "  {}", binding.text);
    }
    let unit = explanation.unit;
    let _ = writeln!(out, "\n{}", bold("Runners-up"));
    let rows = explanation.runners_up.iter().map(|it| runner_up(it, unit));
    let _ = writeln!(
        out,
        "{}",
        table(&["", "difference", "quality", "best such plan", "what it takes"], rows.collect())
    );
    if let Some(answer) = &explanation.why_not {
        let _ = writeln!(out, "\n{}", bold(&format!("Why not {}", answer.asked)));
        out.push_str(&why_not(answer, unit));
    }
    if !explanation.sensitivity.is_empty() {
        let _ = writeln!(out, "\n{}", bold("What if"));
        let rows = explanation.sensitivity.iter().map(|it| scenario(it, unit));
        let header = ["", "this plan", "regret", "best", "best plan then"];
        let _ = writeln!(out, "{}", table(&header, rows.collect()));
    }
    out
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    table.trim_fmt()
}

fn runner_up(it: &RunnerUp, unit: &str) -> Vec<String> {
    let Some(plan) = &it.plan else {
        return vec![it.kind.clone(), String::new(), String::new(), "none meets the targets".into()];
    };
    vec![
        it.kind.clone(),
        it.difference.map(|difference| signed(difference, unit)).unwrap_or_default(),
        format!("{:.3}", plan.quality),
        format!("{}, {}", plan.fleet, amount(plan.value, unit)),
        it.takes.clone().unwrap_or_default(),
    ]
}

fn why_not(answer: &WhyNot, unit: &str) -> String {
    let mut out = match (answer.verdict, &answer.plan) {
        (Verdict::InPlan, _) => "  It is in the plan.\n".to_owned(),
        (Verdict::Possible, Some(plan)) => format!(
            "  {} with it: {}, {}\n",
            signed(answer.difference.unwrap_or_default(), unit),
            plan.fleet,
            amount(plan.value, unit)
        ),
        _ => "  It cannot be.\n".to_owned(),
    };
    for line in answer.takes.iter().chain(&answer.reasons) {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn scenario(it: &Scenario, unit: &str) -> Vec<String> {
    let (fleet, value) = it.optimum.as_ref().map_or_else(
        || ("none meets the targets".to_owned(), String::new()),
        |plan| (plan.fleet.clone(), amount(plan.value, unit)),
    );
    let here = it.value.filter(|_| it.holds).map_or("breaks a promise".into(), |value| amount(value, unit));
    let regret = it.regret.map(|regret| amount(regret, unit)).unwrap_or_default();
    vec![it.change.clone(), here, regret, value, fleet]
}

fn amount(value: f64, unit: &str) -> String {
    match unit {
        "$/h" => format!("${value:.2}/h"),
        "score" => format!("{value:.4}"),
        _ => format!("{value:.2} {unit}"),
    }
}

fn signed(value: f64, unit: &str) -> String {
    format!("{}{}", if value < 0.0 { "−" } else { "+" }, amount(value.abs(), unit))
}
