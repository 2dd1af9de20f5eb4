//! `boute router`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use boute_router::{ScoredQueries, Scorer};
use boute_spec::data_file::parse_quality;
use boute_spec::digest::sha256_hex;
use boute_spec::workload::{QualityData, Query, Split};

use crate::encoder::{self, read_scorer};
use crate::failure::{Ending, Failure};
use crate::files::{Input, same_place, write_whole};
use crate::printer::Printer;

mod certify;
mod eval;
mod explain;
mod import;

/// What to do with the query router.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train and calibrate a scorer on the training part of quality data.
    Train(Train),
    /// Score a router on the test part of quality data.
    Eval(eval::Eval),
    /// Find the cheapest policy whose quality can be promised, on the validation part of quality data.
    Certify(certify::Certify),
    /// Say why a query goes where it goes.
    Explain(explain::Explain),
    /// Turn tables of other projects (RouteLLM, RouterBench, CSV) into quality data.
    Import(import::Import),
}

/// Trains a router.
#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
    /// Write the router here.
    #[arg(long, short, default_value = "router.json")]
    output: PathBuf,
    /// Only these models; all models of the first row if left out.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Score by sentence embeddings too: the folder of a BERT that embeds sentences, with config.json, tokenizer.json and
    /// model.safetensors. Whoever uses the router sets `BOUTE_EMBEDDINGS` to that folder.
    #[arg(long, value_name = "FOLDER")]
    embeddings: Option<PathBuf>,
}

/// A part of quality data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Train,
    Validation,
    Test,
    All,
}

impl Part {
    fn holds(self, split: Split) -> bool {
        match self {
            Self::Train => split == Split::Train,
            Self::Validation => split == Split::Validation,
            Self::Test => split == Split::Test,
            Self::All => true,
        }
    }
}

pub(crate) fn run(command: &Command, printer: Printer) -> Result<Ending, Failure> {
    match command {
        Command::Train(args) => train(args, printer),
        Command::Eval(args) => eval::run(args, printer),
        Command::Certify(args) => certify::run(args, printer),
        Command::Explain(args) => explain::run(args, printer),
        Command::Import(args) => import::run(args, printer),
    }
}

fn read(path: &Path, models: &[String]) -> Result<(QualityData, Input), Failure> {
    let input = Input::read(path)?;
    let data = parse_quality(&input.name, &input.text, models).map_err(Failure::told)?;
    Ok((data, input))
}

fn read_router(path: &Path) -> Result<(Scorer, Input), Failure> {
    let input = Input::read(path)?;
    if input.looks_like_a_plan() {
        let hint = "a plan's router is in the file beside it: `plan.router.json`";
        return Err(Failure::input(format_args!("`{}` is a plan, and a router is wanted", input.name), hint));
    }
    Ok((read_scorer(&input)?, input))
}

/// The queries of a part, and what the router says of them.
struct Scored {
    input: Input,
    /// Their tasks.
    tasks: Vec<String>,
    /// Predicted and actual scores.
    queries: ScoredQueries,
}

fn score(scorer: &Scorer, path: &Path, part: Part) -> Result<Scored, Failure> {
    let (data, input) = read(path, scorer.models())?;
    let own: Vec<&Query> = data.queries.iter().filter(|query| part.holds(query.split)).collect();
    if own.is_empty() {
        let hint = "give more queries, mark some with `\"split\": \"test\"`, or take others with `--split`";
        return Err(Failure::input(format_args!("`{}` has no queries in that part", input.name), hint));
    }
    if matches!(part, Part::Train | Part::All) && scorer.provenance().data_sha256 == input.sha256 {
        let hint = "it knows their answers: judge it by `--split validation` or `--split test`";
        let message = format_args!("the router was trained on queries of `{}` in that part", input.name);
        return Err(Failure::input(message, hint));
    }
    let queries = scorer.score_queries(&data.models, own.iter().copied());
    Ok(Scored { tasks: own.iter().map(|query| query.task.clone()).collect(), input, queries })
}

/// `NAME=NUMBER` of the command line.
fn assignment(text: &str) -> Result<(String, f64), String> {
    let (name, number) = text.rsplit_once('=').ok_or("write NAME=NUMBER")?;
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    if number.is_finite() && number >= 0.0 {
        Ok((name.to_owned(), number))
    } else {
        Err("the number must be finite and not negative".to_owned())
    }
}

/// The first that comes twice.
fn repeated<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

/// One cost per model, if any is given.
fn costs(given: &[(String, f64)], models: &[String]) -> Result<Option<Vec<f64>>, Failure> {
    if given.is_empty() {
        return Ok(None);
    }
    if let Some((unknown, _)) = given.iter().find(|(name, _)| !models.contains(name)) {
        let hint = format!("the router knows {}", models.join(", "));
        return Err(Failure::input(format_args!("a cost for `{unknown}`"), hint));
    }
    if let Some(twice) = repeated(given.iter().map(|(name, _)| name)) {
        return Err(Failure::input(format_args!("two costs for `{twice}`"), "give each model one"));
    }
    if let Some((free, _)) = given.iter().find(|(_, cost)| *cost == 0.0) {
        return Err(Failure::input(
            format_args!("`{free}` costs nothing"),
            "give a positive cost, in any unit",
        ));
    }
    let cost = |model: &String| {
        given.iter().find(|(name, _)| name == model).map(|(_, cost)| *cost).ok_or_else(|| {
            Failure::input(format_args!("no cost for `{model}`"), format_args!("add `--cost {model}=…`"))
        })
    };
    models.iter().map(cost).collect::<Result<Vec<f64>, _>>().map(Some)
}

fn train(args: &Train, printer: Printer) -> Result<Ending, Failure> {
    if let Some(twice) = repeated(args.models.iter()) {
        return Err(Failure::input(format_args!("`{twice}` is named twice"), "name each model once"));
    }
    if same_place(&args.data, &args.output) {
        let message = format_args!("`{}` is the quality data", args.output.display());
        return Err(Failure::input(message, "write the router to another file"));
    }
    let (data, input) = read(&args.data, &args.models)?;
    let encoder = args.embeddings.as_deref().map(encoder::open).transpose().map_err(Failure::told)?;
    let sha256 = encoder.as_ref().map(|encoder| encoder.sha256().to_owned());
    let scorer = Scorer::train_with(&data, args.seed, &input.sha256, encoder).map_err(Failure::told)?;
    let text = scorer.to_json();
    write_whole(&args.output, text.as_bytes())?;
    let provenance = scorer.provenance();
    let lines = input.text.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > data.queries.len() {
        let (out, models) = (lines - data.queries.len(), scorer.models().join(", "));
        printer
            .say(format_args!("{out} of {lines} queries lack a score of one of {models} and are left out"));
    }
    printer.say(format_args!(
        "trained on {} queries; wrote {}",
        provenance.train_queries,
        args.output.display()
    ));
    printer.data(&serde_json::json!({
        "router": args.output,
        "models": scorer.models(),
        "provenance": provenance,
        "embeddings_sha256": sha256,
        "sha256": sha256_hex(text.as_bytes()),
    }))?;
    Ok(Ending::Done)
}
