//! `boute router import`: tables of other projects as quality data.
//!
//! One reader for all: a CSV table with a column `prompt` and a column per model. RouteLLM's `responses/*.csv` have `True` and `False` there; RouterBench's
//! wide tables (its pickles, saved as CSV) have numbers, `sample_id`, `eval_name`, and `MODEL|model_response`, `MODEL|total_cost` beside.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

const PROMPTS: [&str; 3] = ["prompt", "query", "question"];
const IDS: [&str; 3] = ["id", "sample_id", ""];
const TASKS: [&str; 4] = ["task", "eval_name", "dataset", "category"];
/// What RouterBench says beside, of all models together.
const OTHERS: [&str; 1] = ["oracle_model_to_route_to"];

/// Imports scores.
#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// Tables: CSV, plain or gzip.
    #[arg(required = true)]
    tables: Vec<PathBuf>,
    /// Write quality data here.
    #[arg(long, short, default_value = "quality.jsonl")]
    output: PathBuf,
    /// Only these columns are models; all columns that are nothing else if left out.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Largest score in the tables; scores are divided by it.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

pub(super) fn run(args: &Import, printer: Printer) -> Result<Ending, Failure> {
    if !(args.scale.is_finite() && args.scale > 0.0) {
        return Err(Failure::input(
            "the scale must be positive",
            "give the largest score, such as `--scale 10`",
        ));
    }
    let mut text = String::new();
    let mut rows = 0;
    for path in &args.tables {
        let input = Input::read(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem = stem.trim_end_matches(".csv");
        for line in table(args, &input, stem)? {
            let _ = writeln!(text, "{line}");
            rows += 1;
        }
    }
    if rows == 0 {
        return Err(Failure::input("no query has a score", "give tables with rows below their header"));
    }
    write_whole(&args.output, text.as_bytes())?;
    printer.say(format_args!("wrote {rows} queries to {}", args.output.display()));
    printer.data(&json!({ "data": args.output, "queries": rows }))?;
    Ok(Ending::Done)
}

/// The rows of one table as JSON lines; ids and tasks that are missing are made from the table's name.
fn table(args: &Import, input: &Input, stem: &str) -> Result<Vec<Value>, Failure> {
    let failure = |line: u64, message: String| {
        let hint = "give CSV with a header: `prompt`, a column of scores (0 to 1, or True and False) per model, `id` and `task` if you like; `--models` says which columns are models";
        let place = if line == 0 { String::new() } else { format!(":{line}") };
        Failure::input(format_args!("{}{place}: {message}", input.name), hint)
    };
    let mut reader = csv::Reader::from_reader(input.text.as_bytes());
    let header = reader.headers().map_err(|error| failure(1, error.to_string()))?.clone();
    let column = |names: &[&str]| names.iter().find_map(|name| header.iter().position(|cell| cell == *name));
    let prompt = column(&PROMPTS).ok_or_else(|| failure(1, "no column `prompt`".into()))?;
    let (id, task) = (column(&IDS), column(&TASKS));
    let is_model = |name: &str| {
        if args.models.is_empty() {
            !name.contains('|') && ![&PROMPTS[..], &IDS, &TASKS, &OTHERS].concat().contains(&name)
        } else {
            args.models.iter().any(|model| model == name)
        }
    };
    let models: Vec<(usize, &str)> = header.iter().enumerate().filter(|(_, name)| is_model(name)).collect();
    if models.is_empty() {
        return Err(failure(1, "no column of a model".into()));
    }
    if let Some(missing) = args.models.iter().find(|model| !header.iter().any(|cell| cell == *model)) {
        return Err(failure(1, format!("no column `{missing}`")));
    }
    let mut lines = Vec::new();
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(|error| failure(0, error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let mut scores = Map::new();
        for (at, model) in &models {
            let cell = record.get(*at).unwrap_or_default().trim();
            if cell.is_empty() {
                continue;
            }
            let score = read_score(cell).map(|score| score / args.scale);
            let score = score.filter(|score| (0.0..=1.0).contains(score));
            let score = score.ok_or_else(|| failure(line, format!("`{model}` has the score `{cell}`")))?;
            scores.insert((*model).to_owned(), score.into());
        }
        if scores.is_empty() {
            continue;
        }
        let text =
            |column: Option<usize>| column.and_then(|at| record.get(at)).filter(|cell| !cell.is_empty());
        lines.push(json!({
            "id": format!("{stem}/{}", text(id).map_or_else(|| row.to_string(), str::to_owned)),
            "task": text(task).unwrap_or(stem),
            "prompt": record.get(prompt).unwrap_or_default(),
            "scores": scores,
        }));
    }
    Ok(lines)
}

fn read_score(cell: &str) -> Option<f64> {
    match cell {
        "True" | "true" | "TRUE" => Some(1.0),
        "False" | "false" | "FALSE" => Some(0.0),
        number => number.parse().ok(),
    }
}
