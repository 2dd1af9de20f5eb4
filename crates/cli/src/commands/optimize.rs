//! `boute optimize`: the optimiser alone, by JSON lines on stdin and stdout.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use boute_mobo::{
    Domain, Linear, Noise, Outcome, Point, Problem, Space, StopRules, Study, Transform, Value as Coordinate,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

/// Largest number of candidates in one answer.
const MOST_ASKED: usize = 1_000;

/// Tunes anything: asks for what to try next and is told what came of it, as JSON lines on stdin and stdout.
///
/// `{"ask":2}` is answered by `{"candidates":[{"id":0,"x":{…}},…]}`; `{"tell":[{"id":0,"objectives":{…},"constraints":{…}},…]}` by
/// `{"evaluations":…,"hypervolume":…,"front":[…]}`. Objectives are minimised, constraints hold at ≥ 0. A line that cannot be used is
/// answered by `{"error":…}` and changes nothing. docs/optimiser.md has the whole protocol.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The problem: variables, objectives, constraints (JSON).
    #[arg(long)]
    space: PathBuf,
    /// Keep the study in this file: written whole after every line that changes it, read again at the start.
    #[arg(long)]
    study: Option<PathBuf>,
    /// Evaluate the front of this earlier study first, for what it is worth now.
    #[arg(long)]
    begin_from: Option<PathBuf>,
}

/// The file named by `--space`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpaceFile {
    space: Vec<Variable>,
    objectives: Vec<String>,
    #[serde(default)]
    constraints: Vec<String>,
    /// `Σ factor · x ≤ at_most`, known without evaluating.
    #[serde(default)]
    linear: Vec<LinearRow>,
    #[serde(default)]
    reference: Option<Vec<f64>>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    initial: Option<usize>,
    #[serde(default)]
    noise: Noise,
    /// What to do with an objective or constraint that is null.
    #[serde(default)]
    not_finite: NotFinite,
    #[serde(default)]
    transforms: BTreeMap<String, Transform>,
    #[serde(default)]
    stop: Option<StopRules>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    low: Option<f64>,
    #[serde(default)]
    high: Option<f64>,
    #[serde(default)]
    values: Option<Vec<Value>>,
    /// Of a simplex.
    #[serde(default)]
    parts: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Real,
    Int,
    Cat,
    Ordered,
    Simplex,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinearRow {
    factors: BTreeMap<String, f64>,
    at_most: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NotFinite {
    /// The line is an error.
    #[default]
    Refuse,
    /// The evaluation failed.
    Failed,
}

/// One line of stdin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    Ask(usize),
    Tell(Vec<Told>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    #[serde(default)]
    id: Option<u64>,
    /// Instead of `id`, for a point that was evaluated elsewhere.
    #[serde(default)]
    x: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    failed: bool,
    #[serde(default)]
    objectives: BTreeMap<String, Option<f64>>,
    #[serde(default)]
    constraints: BTreeMap<String, Option<f64>>,
    /// Variance of each output, if known.
    #[serde(default)]
    variances: Option<BTreeMap<String, f64>>,
}

/// The file named by `--study`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyFile {
    problem: SpaceFile,
    study: Study,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let input = Input::read(&args.space)?;
    let file: SpaceFile = serde_json::from_str(&input.text).map_err(|error| {
        Failure::input(format_args!("`{}`: {error}", input.name), "docs/optimiser.md describes the file")
    })?;
    let problem = file.problem().map_err(|error| {
        Failure::input(format_args!("`{}`: {error}", input.name), "docs/optimiser.md describes the file")
    })?;
    let mut study = Study::new(problem).map_err(Failure::told)?;
    match args.study.as_deref().filter(|path| path.exists()) {
        Some(path) => {
            let stored = read_study(path)?;
            if stored.problem != file {
                return Err(Failure::input(
                    format_args!("`{}` is a study of another problem than `{}`", path.display(), input.name),
                    "give the space file that the study began with, or another --study",
                ));
            }
            study = stored.study;
            printer.say(format_args!("resuming after {} evaluations", study.evaluations().len()));
        }
        None => {
            if let Some(path) = &args.begin_from {
                study.begin_from(&read_study(path)?.study).map_err(Failure::told)?;
            }
        }
    }
    let mut server = Server { file, study, path: args.study.clone(), begin: Instant::now() };
    server.serve(std::io::stdin().lock(), std::io::stdout().lock())
}

fn read_study(path: &Path) -> Result<StudyFile, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::unreadable(path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::input(
            format_args!("`{}` is not a study: {error}", path.display()),
            "give a file that `boute optimize --study` wrote",
        )
    })
}

impl SpaceFile {
    /// The problem in the optimiser's words; the message says what is wrong.
    fn problem(&self) -> Result<Problem, String> {
        let names = self.space.iter().map(|variable| &variable.name);
        unique("variable", names)?;
        unique("output", self.objectives.iter().chain(&self.constraints))?;
        let domains = self.space.iter().map(Variable::domain).collect::<Result<_, _>>()?;
        let linear = self.linear.iter().map(|row| self.linear_row(row)).collect::<Result<_, _>>()?;
        let space = Space::new(domains, linear).map_err(|error| self.named(&error))?;
        let mut problem = Problem::new(space, self.objectives.len(), self.constraints.len());
        problem.reference.clone_from(&self.reference);
        problem.seed = self.seed;
        problem.initial = self.initial;
        problem.noise = self.noise;
        if !self.transforms.is_empty() {
            let outputs: Vec<&String> = self.objectives.iter().chain(&self.constraints).collect();
            if let Some(name) = self.transforms.keys().find(|name| !outputs.contains(name)) {
                return Err(format!("`transforms` names `{name}`, which is no objective"));
            }
            problem.transforms =
                outputs.iter().map(|name| self.transforms.get(*name).copied().unwrap_or_default()).collect();
        }
        Ok(problem)
    }

    fn linear_row(&self, row: &LinearRow) -> Result<Linear, String> {
        let terms = row.factors.iter().map(|(name, factor)| {
            // `weights.1` is part 1 of the simplex `weights`.
            let (base, part) = match name.rsplit_once('.') {
                Some((base, part)) if self.place(name).is_none() => (base, part.parse().ok()),
                _ => (name.as_str(), Some(0)),
            };
            let place = self.place(base).zip(part);
            place
                .map(|(place, part)| (place, part, *factor))
                .ok_or_else(|| format!("`linear` names `{name}`, which is no variable"))
        });
        Ok(Linear { terms: terms.collect::<Result<_, _>>()?, at_most: row.at_most })
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.space.iter().position(|variable| variable.name == name)
    }

    /// An error of the optimiser, with the name of the variable it is about.
    fn named(&self, error: &boute_mobo::Error) -> String {
        let name = |variable: &usize| self.space.get(*variable).map_or("?", |variable| &variable.name);
        match error {
            boute_mobo::Error::Variable { variable, reason } => {
                format!("variable `{}`: {reason}", name(variable))
            }
            boute_mobo::Error::Value { variable, reason } => {
                format!("`{}` is not in its domain: {reason}", name(variable))
            }
            other => other.to_string(),
        }
    }

    /// A point by names.
    fn by_name(&self, point: &[Coordinate]) -> Value {
        let named = self
            .space
            .iter()
            .zip(point)
            .map(|(variable, value)| (variable.name.clone(), variable.shown(value)));
        Value::Object(named.collect())
    }

    fn point(&self, x: &BTreeMap<String, Value>) -> Result<Point, String> {
        if let Some(name) = x.keys().find(|name| self.place(name).is_none()) {
            return Err(format!("`x` has `{name}`, which is no variable"));
        }
        self.space
            .iter()
            .map(|variable| {
                let value = x.get(&variable.name).ok_or_else(|| format!("`x` lacks `{}`", variable.name))?;
                variable.read(value).ok_or_else(|| format!("`{}` cannot be {value}", variable.name))
            })
            .collect()
    }

    /// What was told of one point; `None` if the evaluation failed.
    fn outcome(&self, told: &Told) -> Result<Option<Outcome>, String> {
        if told.failed {
            return Ok(None);
        }
        let objectives = by_order("objective", &self.objectives, &told.objectives)?;
        let constraints = by_order("constraint", &self.constraints, &told.constraints)?;
        let outputs: Vec<&String> = self.objectives.iter().chain(&self.constraints).collect();
        let missing = objectives.iter().chain(&constraints).position(Option::is_none);
        if let Some(at) = missing {
            return match self.not_finite {
                NotFinite::Failed => Ok(None),
                NotFinite::Refuse => Err(format!(
                    "`{}` is null; tell a finite number, or `\"failed\": true`, or set `\"not_finite\": \"failed\"` in the space file",
                    outputs[at]
                )),
            };
        }
        let variances = told.variances.as_ref().map(|variances| {
            let get = |name: &&String| {
                variances.get(*name).copied().ok_or_else(|| format!("`variances` lacks `{name}`"))
            };
            outputs.iter().map(get).collect::<Result<Vec<_>, _>>()
        });
        Ok(Some(Outcome {
            objectives: objectives.into_iter().flatten().collect(),
            constraints: constraints.into_iter().flatten().collect(),
            variances: variances.transpose()?,
        }))
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Err(format!("{what} `{name}` is there twice"));
        }
        seen.push(name);
    }
    Ok(())
}

/// Values in the order of `names`; every name must be there, and no other.
fn by_order(
    what: &str,
    names: &[String],
    values: &BTreeMap<String, Option<f64>>,
) -> Result<Vec<Option<f64>>, String> {
    if let Some(name) = values.keys().find(|name| !names.contains(name)) {
        return Err(format!("`{name}` is no {what}; there are {names:?}"));
    }
    let get = |name: &String| values.get(name).copied().ok_or_else(|| format!("{what} `{name}` is missing"));
    names.iter().map(get).collect()
}

impl Variable {
    fn domain(&self) -> Result<Domain, String> {
        let wrong = |text: &str| Err(format!("variable `{}`: {text}", self.name));
        let bounds = self.low.zip(self.high);
        let whole = |x: f64| x.fract() == 0.0 && x.abs() <= 2.0_f64.powi(52);
        if self.values.is_some() && (self.low.is_some() || self.high.is_some()) {
            return wrong("it has both `values` and bounds; give one");
        }
        if self.parts.is_some() != (self.kind == Kind::Simplex) {
            return wrong("a simplex has `parts`, and nothing else has");
        }
        if let Some(values) = &self.values
            && (1..values.len()).any(|at| values[..at].contains(&values[at]))
        {
            return wrong("`values` has the same value twice");
        }
        match (self.kind, bounds, &self.values) {
            (Kind::Real, Some((low, high)), None) => Ok(Domain::Real { low, high }),
            (Kind::Int, Some((low, high)), None) if whole(low) && whole(high) => {
                Ok(Domain::Integer { low: low as i64, high: high as i64 })
            }
            (Kind::Ordered | Kind::Int, None, Some(values)) => Ok(Domain::Ordered { levels: values.len() }),
            (Kind::Cat, None, Some(values)) => Ok(Domain::Categorical { count: values.len() }),
            (Kind::Simplex, None, None) => Ok(Domain::Simplex { parts: self.parts.unwrap_or_default() }),
            (Kind::Real, ..) => wrong("a real variable needs `low` and `high`"),
            (Kind::Int, ..) => wrong("an int variable needs whole `low` and `high`, or `values` in order"),
            (Kind::Cat | Kind::Ordered, ..) => wrong("it needs `values`, a list"),
            (Kind::Simplex, ..) => wrong("a simplex needs `parts` alone"),
        }
    }

    fn shown(&self, value: &Coordinate) -> Value {
        match value {
            Coordinate::Real(x) => json!(x),
            Coordinate::Integer(x) => json!(x),
            Coordinate::Choice(at) => self.values.as_ref().map_or(Value::Null, |values| values[*at].clone()),
            Coordinate::Shares(shares) => json!(shares),
        }
    }

    fn read(&self, value: &Value) -> Option<Coordinate> {
        match (self.kind, &self.values) {
            (_, Some(values)) => values.iter().position(|other| other == value).map(Coordinate::Choice),
            (Kind::Int, None) => {
                let x = value.as_f64().filter(|x| x.fract() == 0.0)?;
                Some(Coordinate::Integer(x as i64))
            }
            (Kind::Simplex, None) => {
                let shares = value.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
                Some(Coordinate::Shares(shares))
            }
            _ => value.as_f64().map(Coordinate::Real),
        }
    }
}

/// A study that answers lines.
struct Server {
    file: SpaceFile,
    study: Study,
    path: Option<PathBuf>,
    begin: Instant,
}

impl Server {
    fn serve(&mut self, mut input: impl BufRead, mut output: impl Write) -> Result<Ending, Failure> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = input.read_until(b'\n', &mut line).map_err(Failure::unexpected)?;
            if read == 0 {
                return Ok(Ending::Done);
            }
            let text = String::from_utf8_lossy(&line);
            if text.trim().is_empty() {
                continue;
            }
            let answer = match self.answer(text.trim()) {
                Ok(answer) => answer,
                Err(Refusal::Line(message)) => json!({ "error": message }),
                Err(Refusal::Store(failure)) => return Err(failure),
            };
            let told = writeln!(output, "{answer}").and_then(|()| output.flush());
            if told.is_err() {
                // Nobody listens any more; what was told is stored.
                return Ok(Ending::Done);
            }
        }
    }

    fn answer(&mut self, line: &str) -> Result<Value, Refusal> {
        let request: Request = serde_json::from_str(line).map_err(|error| {
            Refusal::Line(format!("{error}; a line is {{\"ask\": number}} or {{\"tell\": [{{\"id\", \"objectives\", \"constraints\"}}]}}"))
        })?;
        // All of a line holds, or none of it.
        let mut next = self.study.clone();
        let answer = match request {
            Request::Ask(count) => self.ask(&mut next, count),
            Request::Tell(told) => self.tell(&mut next, &told),
        }
        .map_err(Refusal::Line)?;
        if let Some(path) = &self.path {
            let stored = StudyFile { problem: self.file.clone(), study: next.clone() };
            let text =
                serde_json::to_string(&stored).map_err(|error| Refusal::Store(Failure::unexpected(error)))?;
            write_whole(path, (text + "\n").as_bytes()).map_err(Refusal::Store)?;
        }
        self.study = next;
        Ok(answer)
    }

    fn ask(&self, study: &mut Study, count: usize) -> Result<Value, String> {
        if count > MOST_ASKED {
            return Err(format!("`ask` is {count}; ask for at most {MOST_ASKED} at a time"));
        }
        let asked = study.ask(count).map_err(|error| self.file.named(&error))?;
        let shown = asked.iter().map(|it| json!({ "id": it.id, "x": self.file.by_name(&it.point) }));
        Ok(json!({ "candidates": shown.collect::<Vec<_>>() }))
    }

    fn tell(&self, study: &mut Study, told: &[Told]) -> Result<Value, String> {
        let mut pending = Vec::new();
        for one in told {
            let outcome = self.file.outcome(one)?;
            match (one.id, &one.x) {
                (Some(id), None) => pending.push((id, outcome)),
                (None, Some(x)) => {
                    let point = self.file.point(x)?;
                    study.tell_at(point, outcome).map_err(|error| self.file.named(&error))?;
                }
                _ => return Err("tell either the `id` of a candidate or the `x` of another point".into()),
            }
        }
        study.tell(pending).map_err(|error| self.file.named(&error))?;
        let mut answer = json!({
            "evaluations": study.evaluations().len(),
            "hypervolume": study.hypervolume(),
            "front": self.front(study),
        });
        if let Some(rules) = &self.file.stop {
            answer["stop"] = json!(rules.reached(study, self.begin.elapsed().as_secs_f64()));
        }
        Ok(answer)
    }

    fn front(&self, study: &Study) -> Vec<Value> {
        let named = |names: &[String], values: &[f64]| -> Value {
            Value::Object(names.iter().cloned().zip(values.iter().map(|value| json!(value))).collect())
        };
        let entry = |at: usize| {
            let evaluation = &study.evaluations()[at];
            let outcome = evaluation.outcome.as_ref()?;
            Some(json!({
                "id": evaluation.id,
                "x": self.file.by_name(&evaluation.point),
                "objectives": named(&self.file.objectives, &outcome.objectives),
                "constraints": named(&self.file.constraints, &outcome.constraints),
            }))
        };
        study.front().into_iter().filter_map(entry).collect()
    }
}

/// Why a line was not done.
enum Refusal {
    /// The line's fault: it gets an error object, and the loop lives on.
    Line(String),
    /// The study cannot be stored: to go on would lose what is told.
    Store(Failure),
}
