//! `boute check`.

use std::path::PathBuf;

use boute_spec::data_file::{parse_quality, parse_trace};
use boute_spec::parse::parse_spec;
use boute_spec::plan::Plan;

use crate::failure::{Ending, Failure};
use crate::files::{Input, beside};
use crate::load::model;
use crate::printer::Printer;

/// Checks files; nothing is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A spec (`.yaml`), plan (`.json`), trace (`.csv`, `.jsonl`) or quality data (`.jsonl`), plain or gzip.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    for path in &args.files {
        let input = Input::read(path)?;
        let name = path.to_string_lossy();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        let what = match plain.rsplit_once('.').map(|(_, extension)| extension) {
            Some("yaml" | "yml") => {
                let spec = parse_spec(&input.name, &input.text).map_err(Failure::told)?;
                for entry in &spec.models {
                    model(entry, &|file| Input::read(&beside(path, file)))?;
                }
                "spec"
            }
            Some("json") => {
                Plan::parse(&input.name, &input.text).map_err(Failure::told)?;
                "plan"
            }
            Some("jsonl") if input.text.lines().next().is_some_and(|line| line.contains("\"scores\"")) => {
                parse_quality(&input.name, &input.text, &[]).map_err(Failure::told)?;
                "quality data"
            }
            Some("csv" | "jsonl") => {
                parse_trace(&input.name, &input.text).map_err(Failure::told)?;
                "trace"
            }
            _ => {
                return Err(Failure::input(
                    format_args!("`{}` has no extension that tells what it is", input.name),
                    "name it `.yaml` (spec), `.json` (plan), `.csv` or `.jsonl` (trace, quality data)",
                ));
            }
        };
        printer.say(format_args!("{}: {what} is valid", input.name));
    }
    printer.data(&serde_json::json!({ "valid": args.files }))?;
    Ok(Ending::Done)
}
