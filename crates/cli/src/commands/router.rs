//! `boute router`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use boute_router::Scorer;
use boute_router::eval::{Report, report};
use boute_spec::data_file::parse_quality;
use boute_spec::workload::{QualityData, Split};

use comfy_table::{Table, presets};

use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

/// What to do with the query router.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train and calibrate a scorer on the training part of quality data.
    Train(Train),
    /// Score a router on the test part of quality data.
    Eval(Eval),
}

/// Trains a router.
#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
    /// Write the router here.
    #[arg(long, short, default_value = "router.json")]
    output: PathBuf,
    /// Only these models, small to large; all models of the first row if left out.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Evaluates a router.
#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// The router.
    router: PathBuf,
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
}

pub(crate) fn run(command: &Command, printer: Printer) -> Result<Ending, Failure> {
    match command {
        Command::Train(args) => train(args, printer),
        Command::Eval(args) => eval(args, printer),
    }
}

fn read(path: &Path, models: &[String]) -> Result<(QualityData, Input), Failure> {
    let input = Input::read(path)?;
    let data = parse_quality(&input.name, &input.text, models).map_err(Failure::told)?;
    Ok((data, input))
}

fn train(args: &Train, printer: Printer) -> Result<Ending, Failure> {
    let (data, input) = read(&args.data, &args.models)?;
    let scorer = Scorer::train(&data, args.seed, &input.sha256).map_err(Failure::told)?;
    let text = scorer.to_json();
    write_whole(&args.output, text.as_bytes())?;
    let provenance = scorer.provenance();
    printer.say(format_args!(
        "trained on {} queries; wrote {}",
        provenance.train_queries,
        args.output.display()
    ));
    printer.data(&serde_json::json!({
        "router": args.output,
        "models": scorer.models(),
        "provenance": provenance,
        "sha256": boute_spec::digest::sha256_hex(text.as_bytes()),
    }))?;
    Ok(Ending::Done)
}

fn eval(args: &Eval, printer: Printer) -> Result<Ending, Failure> {
    let input = Input::read(&args.router)?;
    let scorer = Scorer::parse(&input.name, &input.text).map_err(Failure::told)?;
    let (data, input) = read(&args.data, scorer.models())?;
    let queries = scorer.score_queries(&data.models, data.split(Split::Test));
    if queries.is_empty() {
        let hint = "give more queries, or mark some with `\"split\": \"test\"`";
        return Err(Failure::input(format_args!("`{}` has no test queries", input.name), hint));
    }
    let report = report(&queries);
    printer.data(&report)?;
    printer.text(as_text(&report));
    Ok(Ending::Done)
}

fn as_text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["model", "quality", "AUC", "ECE", "Brier"]);
    for model in &report.models {
        let numbers = [model.quality, model.auc, model.ece, model.brier].map(|number| format!("{number:.4}"));
        table.add_row(std::iter::once(model.model.clone()).chain(numbers));
    }
    let mut text = format!("{} test queries\n{table}\n", report.queries);
    if let Some(pair) = &report.pair {
        let _ = writeln!(
            text,
            "{} → {}: APGR {:.4} ± {:.4} (random {:.2}, oracle {:.4}), CPT50 {:.0}%, CPT80 {:.0}%",
            pair.weak,
            pair.strong,
            pair.apgr,
            pair.apgr_standard_error,
            pair.apgr_random,
            pair.apgr_oracle,
            pair.cpt50 * 100.0,
            pair.cpt80 * 100.0
        );
    }
    text
}
