//! `boute report`.

use std::path::{Path, PathBuf};

use boute_render::report::{ReportData, html};
use boute_spec::outcome::Outcome;

use crate::failure::{Ending, Failure};
use crate::files::{Input, read_plan, write_whole};
use crate::printer::Printer;

/// Draws a plan as one page that needs nothing from elsewhere, with what became of it beside what was promised.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan.
    plan: PathBuf,
    /// What `boute simulate -o` said of it.
    #[arg(long, value_name = "OUTCOME")]
    simulated: Option<PathBuf>,
    /// What `boute bench -o` measured.
    #[arg(long, value_name = "OUTCOME")]
    measured: Option<PathBuf>,
    /// The page.
    #[arg(long, short, default_value = "report.html")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let plan = read_plan(&args.plan)?;
    let simulated = args.simulated.as_deref().map(outcome).transpose()?;
    let measured = args.measured.as_deref().map(outcome).transpose()?;
    let data = ReportData {
        plan: &plan,
        simulated: simulated.as_ref(),
        measured: measured.as_ref(),
        comparison: &[],
        quality_curve: &[],
    };
    write_whole(&args.output, html(&data).as_bytes())?;
    printer.say(format_args!("wrote {}", args.output.display()));
    printer.data(&serde_json::json!({ "files": [args.output] }))?;
    Ok(Ending::Done)
}

fn outcome(path: &Path) -> Result<Outcome, Failure> {
    let input = Input::read(path)?;
    serde_json::from_str(&input.text).map_err(|error| {
        Failure::input(
            format_args!("`{}` is no outcome: {error}", input.name),
            "give what `boute simulate -o` or `boute bench -o` wrote",
        )
    })
}
