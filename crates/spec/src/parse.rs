//! `boute.yaml` → [`Spec`], strictly: unknown keys, wrong units and contradictions are all reported at once, each with
//! file, line, column, a caret and what to do.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use crate::catalog::{Catalog, Precision};
use crate::file::{Floor, GpuEntry, Lengths, ModelEntry, QualityEntry, Robust, Spec, Stock, Traffic};
use crate::plan::Objective;
use crate::slo::{Metric, Percentile, SloKey, SloTarget};
use crate::units::{Fraction, UnitError};

mod grid;

pub use grid::parse_grid;

/// One thing wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One-based line.
    pub line: usize,
    /// One-based column, in characters.
    pub column: usize,
    /// Characters to underline.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Everything that is wrong with a spec; at least one problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SpecErrors {
    /// Name of the file.
    pub file: String,
    /// In order of place.
    pub problems: Vec<Problem>,
    /// The text, for the snippets.
    text: String,
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let Problem { line, column, width, message, hint } = problem;
            let source = self.text.lines().nth(line - 1).unwrap_or_default();
            let (source, underline) = snippet(source, *column, *width);
            let margin = " ".repeat(line.to_string().len());
            let blank = if index == 0 { "" } else { "\n\n" };
            write!(f, "{blank}{}:{line}:{column}: {message}\n{margin} |\n{line} | {source}\n", self.file)?;
            write!(f, "{margin} | {underline}\n{margin} = help: {hint}")?;
        }
        Ok(())
    }
}

/// Longest piece of a line that is shown, in characters.
const SNIPPET: usize = 120;

/// The piece of `line` around `column`, and the carets below it, which end where the line ends.
fn snippet(line: &str, column: usize, width: usize) -> (String, String) {
    let from = if column > SNIPPET { column - SNIPPET / 2 } else { 0 };
    let shown: String =
        line.chars().skip(from).take(SNIPPET).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let indent = column - 1 - from;
    let carets = width.min(shown.chars().count().saturating_sub(indent)).max(1);
    (shown, " ".repeat(indent) + &"^".repeat(carets))
}

/// A YAML value whose children know where they stand.
#[derive(Debug, Clone)]
enum Tree {
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
    Text(String),
    Number(String),
    Null,
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyTree;
        impl<'de> Visitor<'de> for AnyTree {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Number(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Number(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Number(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Map(entries))
            }
        }
        deserializer.deserialize_any(AnyTree)
    }
}

/// Where something stands: line, column, width.
type Place = (usize, usize, usize);

fn place_of<T>(spanned: &Spanned<T>) -> Place {
    let at = spanned.referenced;
    let width = usize::try_from(at.span().len()).unwrap_or(1);
    (usize::try_from(at.line()).unwrap_or(1).max(1), usize::try_from(at.column()).unwrap_or(1).max(1), width)
}

/// Collects problems while the tree is walked.
struct Walk {
    problems: Vec<Problem>,
}

impl Walk {
    fn problem(&mut self, (line, column, width): Place, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem { line, column, width, message: message.into(), hint: hint.into() });
    }

    /// The entries of a map whose keys are all among `known`.
    fn map<'a>(&mut self, tree: &'a Spanned<Tree>, what: &str, known: &[&'static str]) -> Map<'a> {
        let Tree::Map(entries) = &tree.value else {
            let is = if matches!(tree.value, Tree::Null) { "empty" } else { "not a map" };
            let message = format!("{what} is {is}");
            self.problem(place_of(tree), message, format!("write `key: value` pairs with {}", list(known)));
            return Map { entries: &[], place: place_of(tree), readable: false };
        };
        for (key, _) in entries {
            if !known.contains(&key.value.as_str()) {
                let near = crate::catalog::nearest(&key.value, known.iter().copied());
                let hint = near.map_or_else(
                    || format!("{what} takes {}", list(known)),
                    |near| format!("did you mean `{near}`?"),
                );
                self.problem(place_of(key), format!("unknown key `{}` in {what}", key.value), hint);
            }
        }
        Map { entries, place: place_of(tree), readable: true }
    }

    fn missing(&mut self, map: &Map<'_>, key: &str, example: &str) {
        if map.readable {
            self.problem(map.place, format!("`{key}` is missing"), format!("add `{key}: {example}`"));
        }
    }

    /// A scalar as text; numbers only if `bare_numbers`.
    fn scalar(
        &mut self,
        tree: &Spanned<Tree>,
        key: &str,
        example: &str,
        bare_numbers: bool,
    ) -> Option<String> {
        let hint = format!("write it like `{key}: {example}`");
        match &tree.value {
            Tree::Text(text) if text.trim().is_empty() => {
                self.problem(place_of(tree), format!("`{key}` is empty"), hint);
                None
            }
            Tree::Text(text) => Some(text.clone()),
            Tree::Number(text) if bare_numbers => Some(text.clone()),
            Tree::Number(text) => {
                self.problem(place_of(tree), format!("`{key}: {text}` has no unit"), hint);
                None
            }
            _ => {
                self.problem(place_of(tree), format!("`{key}` is not a single value"), hint);
                None
            }
        }
    }

    /// The value of a key that must be there, as text.
    fn required(&mut self, map: &Map<'_>, key: &str, example: &str) -> Option<String> {
        let Some(tree) = map.get(key) else {
            self.missing(map, key, example);
            return None;
        };
        self.scalar(tree, key, example, true)
    }

    /// A quantity with its unit spelled out, or a fraction.
    fn parsed<T: FromStr<Err = UnitError>>(
        &mut self,
        tree: &Spanned<Tree>,
        key: &str,
        example: &str,
        bare_numbers: bool,
    ) -> Option<T> {
        let text = self.scalar(tree, key, example, bare_numbers)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(UnitError { text, wanted, .. }) => {
                let message = format!("`{text}` is not {wanted}");
                self.problem(place_of(tree), message, format!("write it like `{key}: {example}`"));
                None
            }
        }
    }

    /// A quantity that must not be zero.
    fn positive<T: FromStr<Err = UnitError> + Into<f64> + Copy>(
        &mut self,
        tree: &Spanned<Tree>,
        (key, example): (&str, &str),
        what: &str,
        hint: &str,
    ) -> Option<T> {
        let value: T = self.parsed(tree, key, example, false)?;
        if value.into() == 0.0 {
            self.problem(place_of(tree), format!("{what} is zero"), hint);
        }
        Some(value)
    }

    fn items<'a>(&mut self, tree: &'a Spanned<Tree>, key: &str, example: &str) -> &'a [Spanned<Tree>] {
        match &tree.value {
            Tree::List(items) if !items.is_empty() => items,
            _ => {
                let message = format!("`{key}` is not a list with at least one entry");
                self.problem(place_of(tree), message, format!("write `{key}: [{example}]`"));
                &[]
            }
        }
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, tree: &Spanned<Tree>, key: &str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.scalar(tree, key, words[0].0, true)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let near = crate::catalog::nearest(&text, known.iter().copied());
            let hint = near
                .map_or_else(|| format!("it is {}", list(&known)), |near| format!("did you mean `{near}`?"));
            self.problem(place_of(tree), format!("`{key}` cannot be `{text}`"), hint);
        }
        found
    }

    fn required_word<T: Copy>(&mut self, map: &Map<'_>, key: &str, words: &[(&'static str, T)]) -> Option<T> {
        let Some(tree) = map.get(key) else {
            self.missing(map, key, words[0].0);
            return None;
        };
        self.word(tree, key, words)
    }

    fn version(&mut self, map: &Map<'_>) {
        self.required_word(map, "apiVersion", &[("boute/v1", ())]);
    }

    fn confidence(&mut self, map: &Map<'_>) -> Option<Fraction> {
        let Some(tree) = map.get("confidence") else { return Fraction::new(0.95) };
        let hint = "certainty is not to be had: give a number below 1, such as 0.95";
        self.inside(tree, ("confidence", "0.95"), "the confidence", hint)
    }

    /// A share that is neither 0 nor 1.
    fn inside(
        &mut self,
        tree: &Spanned<Tree>,
        (key, example): (&str, &str),
        what: &str,
        hint: &str,
    ) -> Option<Fraction> {
        self.parsed::<Fraction>(tree, key, example, true).filter(|value| {
            let inside = value.get() > 0.0 && value.get() < 1.0;
            if !inside {
                self.problem(place_of(tree), format!("{what} is not between 0 and 1"), hint);
            }
            inside
        })
    }
}

/// A map in the tree.
struct Map<'a> {
    entries: &'a [(Spanned<String>, Spanned<Tree>)],
    place: Place,
    readable: bool,
}

impl<'a> Map<'a> {
    fn get(&self, key: &str) -> Option<&'a Spanned<Tree>> {
        self.entries.iter().find(|(known, _)| known.value == key).map(|(_, value)| value)
    }
}

/// `a`, `b` or `c`.
fn list(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

const KEYS: [&str; 10] = [
    "apiVersion",
    "models",
    "gpus",
    "traffic",
    "slo",
    "quality",
    "objective",
    "budget",
    "robust",
    "disaggregate",
];
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];
const OBJECTIVES: [(&str, Objective); 4] = [
    ("min_cost", Objective::MinCost),
    ("max_rate", Objective::MaxRate),
    ("max_quality", Objective::MaxQuality),
    ("pareto", Objective::Pareto),
];
const LENGTHS: [(&str, Lengths); 2] = [("trace", Lengths::Trace), ("quality", Lengths::Quality)];
const DTYPES: [(&str, Precision); 4] = [
    ("bf16", Precision::Bf16),
    ("fp8", Precision::Fp8),
    ("int4", Precision::Int4),
    ("nvfp4", Precision::Nvfp4),
];

/// Reads `boute.yaml`.
///
/// # Errors
/// With every problem found: syntax, unknown keys and names, missing units, contradictions.
pub fn parse_spec(file: &str, text: &str) -> Result<Spec, SpecErrors> {
    let hint = "see examples/llama-8b-70b.yaml for the form, or `boute schema` for an editor";
    read(file, text, hint, spec)
}

/// Reads a strict file; `form` says where its form is shown.
fn read<T>(
    file: &str,
    text: &str,
    form: &str,
    walk_tree: impl FnOnce(&mut Walk, &Spanned<Tree>) -> Option<T>,
) -> Result<T, SpecErrors> {
    let failed = |problems| SpecErrors { file: file.into(), problems, text: text.into() };
    let tree: Spanned<Tree> =
        serde_saphyr::from_str(text).map_err(|error| failed(vec![syntax_problem(&error, form)]))?;
    let mut walk = Walk { problems: Vec::new() };
    match walk_tree(&mut walk, &tree) {
        Some(value) if walk.problems.is_empty() => Ok(value),
        _ => {
            walk.problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(failed(walk.problems))
        }
    }
}

/// What is wrong with text that is not one YAML value.
fn syntax_problem(error: &serde_saphyr::Error, form: &str) -> Problem {
    let place = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let (width, message, hint) = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            (key.chars().count(), format!("`{key}` is given twice"), "remove one of the two")
        }
        serde_saphyr::Error::MultipleDocuments { .. } => {
            (1, "a second document begins here".into(), "give one per file: remove the line `---`")
        }
        other => {
            let text = other.to_string();
            let text = text.lines().next().unwrap_or_default();
            // The library appends the place, which is stated anyway.
            let message = text.split_once(" at line ").map_or(text, |(message, _)| message);
            (1, format!("not valid YAML: {message}"), form)
        }
    };
    Problem {
        line: usize::try_from(place.0).unwrap_or(1).max(1),
        column: usize::try_from(place.1).unwrap_or(1).max(1),
        width,
        message,
        hint: hint.into(),
    }
}

fn spec(walk: &mut Walk, tree: &Spanned<Tree>) -> Option<Spec> {
    let map = walk.map(tree, "the spec", &KEYS);
    walk.version(&map);
    let models = models(walk, &map);
    let gpus = gpus(walk, &map);
    let traffic = traffic(walk, &map);
    let slo = slo(walk, &map, &models);
    let quality = map.get("quality").map(|tree| quality(walk, tree, &models));
    if models.len() > 1 && quality.is_none() {
        let hint = "add `quality: {data: FILE}`, or leave one model: without scores no query can be routed";
        walk.problem(map.place, "several models but no `quality`", hint);
    }
    let objective = match map.get("objective") {
        None => Some(Objective::MinCost),
        Some(tree) => walk.word(tree, "objective", &OBJECTIVES),
    };
    let budget = map.get("budget").and_then(|tree| {
        let hint = "give a budget above zero, or none for no limit";
        walk.positive(tree, ("budget", "$40/h"), "the budget", hint)
    });
    if matches!(objective, Some(Objective::MaxRate | Objective::MaxQuality)) && budget.is_none() {
        let hint = "add `budget: $40/h`, or use `objective: min_cost`";
        walk.problem(map.place, "this objective needs a budget", hint);
    }
    let robust = map.get("robust").map_or(Robust::USUAL, |tree| robust(walk, tree));
    let disaggregate =
        map.get("disaggregate").map_or(Some(false), |tree| walk.word(tree, "disaggregate", &SWITCH));
    Some(Spec {
        models,
        gpus,
        traffic: traffic?,
        slo,
        quality: quality.flatten(),
        objective: objective?,
        budget,
        robust,
        disaggregate: disaggregate?,
    })
}

fn robust(walk: &mut Walk, tree: &Spanned<Tree>) -> Robust {
    let map = walk.map(tree, "`robust`", &["rate", "lengths", "lost_replicas", "min_replicas"]);
    let mut number = |key: &'static str, example: &str, least: f64, most: f64, whole: bool| {
        let tree = map.get(key)?;
        let text = walk.scalar(tree, key, example, true)?;
        let value = text.parse::<f64>().ok().filter(|value| (least..=most).contains(value));
        let value = value.filter(|value| !whole || value.fract() == 0.0);
        if value.is_none() {
            let kind = if whole { "a whole number" } else { "a factor" };
            let message = format!("`{text}` is not {kind} from {least} to {most}");
            walk.problem(place_of(tree), message, format!("write it like `{key}: {example}`"));
        }
        value
    };
    Robust {
        rate: number("rate", "1.2", 1.0, 10.0, false).unwrap_or(Robust::USUAL.rate),
        lengths: number("lengths", "1.2", 1.0, 10.0, false).unwrap_or(1.0),
        lost_replicas: number("lost_replicas", "1", 0.0, 100.0, true).unwrap_or(0.0) as u32,
        min_replicas: number("min_replicas", "2", 1.0, 100.0, true).unwrap_or(1.0) as u32,
    }
}

fn models(walk: &mut Walk, map: &Map<'_>) -> Vec<ModelEntry> {
    let example = "{id: llama-3.1-8b}";
    let Some(tree) = map.get("models") else {
        walk.missing(map, "models", &format!("[{example}]"));
        return Vec::new();
    };
    let mut models: Vec<ModelEntry> = Vec::new();
    for item in walk.items(tree, "models", example) {
        let map = walk.map(item, "a model", &["id", "config", "dtype", "weights"]);
        let Some(id) = map.get("id") else {
            walk.missing(&map, "id", "llama-3.1-8b");
            continue;
        };
        let Some(name) = walk.scalar(id, "id", "llama-3.1-8b", true) else { continue };
        if models.iter().any(|model| model.id == name) {
            let hint = "give each variant an id of its own, such as `llama-3.1-70b-fp8` with a `config`";
            walk.problem(place_of(id), format!("the model `{name}` is listed twice"), hint);
        }
        let config =
            map.get("config").and_then(|tree| walk.scalar(tree, "config", "models/config.json", true));
        if config.is_none()
            && let Err(unknown) = Catalog::builtin().model(&name)
        {
            let near = unknown.near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let hint = format!(
                "{near}`boute catalog models` lists all; for another model add `config: config.json`"
            );
            walk.problem(place_of(id), format!("unknown model `{name}`"), hint);
        }
        let dtype = map.get("dtype").and_then(|tree| walk.word(tree, "dtype", &DTYPES));
        let weights = map.get("weights").and_then(|tree| walk.scalar(tree, "weights", "org/name", true));
        models.push(ModelEntry { id: name, config, dtype, weights });
    }
    models
}

fn gpus(walk: &mut Walk, map: &Map<'_>) -> Vec<GpuEntry> {
    let example = "{type: L40S, stock: 16}";
    let Some(tree) = map.get("gpus") else {
        walk.missing(map, "gpus", &format!("[{example}]"));
        return Vec::new();
    };
    let mut gpus: Vec<GpuEntry> = Vec::new();
    for item in walk.items(tree, "gpus", example) {
        let map =
            walk.map(item, "a GPU type", &["type", "stock", "price", "link", "network", "interruptions"]);
        let Some(kind) = map.get("type") else {
            walk.missing(&map, "type", "L40S");
            continue;
        };
        let Some(text) = walk.scalar(kind, "type", "L40S", true) else { continue };
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name.to_owned(), Some(count)),
            None => (text.clone(), None),
        };
        let stock = stock(walk, &map, kind, count);
        let price = map.get("price").and_then(|tree| {
            let hint = "give what an hour of one GPU costs; for GPUs you own, power and depreciation";
            walk.positive(tree, ("price", "$2.50/h"), "the price", hint)
        });
        let link = map.get("link").and_then(|tree| {
            let hint = "give what two GPUs of a node exchange, one direction, such as nvbandwidth measures";
            walk.positive(tree, ("link", "25GB/s"), "the bandwidth", hint)
        });
        let network = map.get("network").and_then(|tree| {
            let hint = "give what one GPU sends to another node: the node's network divided by its GPUs";
            walk.positive(tree, ("network", "12.5GB/s"), "the bandwidth", hint)
        });
        let interruptions =
            map.get("interruptions").and_then(|tree| walk.parsed(tree, "interruptions", "5%", true));
        match Catalog::builtin().gpu(&name) {
            Err(unknown) => {
                let near = unknown.near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
                let hint = format!("{near}`boute catalog gpus` lists all");
                walk.problem(place_of(kind), format!("unknown GPU type `{name}`"), hint);
            }
            Ok(gpu) if gpus.iter().any(|entry| entry.gpu == gpu.name) => {
                let hint = "add the two stocks up into one entry";
                walk.problem(place_of(kind), format!("the GPU type `{name}` is listed twice"), hint);
            }
            Ok(gpu) => {
                gpus.push(GpuEntry { gpu: gpu.name.clone(), stock, price, link, network, interruptions });
            }
        }
    }
    gpus
}

/// From `stock: 8`, `stock: unknown` or the count in `type: H100-SXM:8`.
fn stock(walk: &mut Walk, map: &Map<'_>, kind: &Spanned<Tree>, count: Option<&str>) -> Stock {
    let hint = "give a whole number of GPUs, or `unknown` for no limit";
    let (place, text) = match (map.get("stock"), count) {
        (Some(tree), Some(_)) => {
            walk.problem(
                place_of(tree),
                "the stock is given twice",
                "leave out `stock`, or the number after the colon",
            );
            return Stock::Unknown;
        }
        (None, None) => return Stock::Unknown,
        (None, Some(count)) => (place_of(kind), count.to_owned()),
        (Some(tree), None) => match walk.scalar(tree, "stock", "8", true) {
            None => return Stock::Unknown,
            Some(text) => (place_of(tree), text),
        },
    };
    if text == "unknown" {
        return Stock::Unknown;
    }
    text.parse().map_or_else(
        |_| {
            walk.problem(place, format!("`{text}` is not a stock"), hint);
            Stock::Unknown
        },
        Stock::Known,
    )
}

fn traffic(walk: &mut Walk, map: &Map<'_>) -> Option<Traffic> {
    let Some(tree) = map.get("traffic") else {
        walk.missing(map, "traffic", "{trace: trace.csv, rate: 20 req/s}");
        return None;
    };
    let map = walk.map(tree, "`traffic`", &["trace", "rate", "lengths"]);
    let trace = walk.required(&map, "trace", "trace.csv");
    let rate = map.get("rate").and_then(|tree| {
        let hint = "give a rate above zero, or none for the trace's own";
        walk.positive(tree, ("rate", "20 req/s"), "the rate", hint)
    });
    let lengths =
        map.get("lengths").map_or(Some(Lengths::Trace), |tree| walk.word(tree, "lengths", &LENGTHS));
    Some(Traffic { trace: trace?, rate, lengths: lengths? })
}

const SLO_HINT: &str =
    "keys are ttft, tpot or e2e, then _p50, _p90, _p95 or _p99; limits like `20s` or `200ms`";

fn slo(walk: &mut Walk, map: &Map<'_>, models: &[ModelEntry]) -> Vec<SloTarget> {
    let Some(tree) = map.get("slo") else {
        walk.missing(map, "slo", "{e2e_p95: 20s}");
        return Vec::new();
    };
    let mut targets = Vec::new();
    let Tree::Map(entries) = &tree.value else {
        walk.problem(place_of(tree), "`slo` is not a map", SLO_HINT);
        return targets;
    };
    for (key, value) in entries {
        match (key.value.as_str(), &value.value) {
            ("models", Tree::Map(per_model)) => {
                for (model, limits) in per_model {
                    let name = &model.value;
                    if !models.iter().any(|entry| entry.id == *name) {
                        let message = format!("`slo` names the model `{name}`, which is not listed");
                        walk.problem(place_of(model), message, "use an id from `models`");
                    }
                    match &limits.value {
                        Tree::Map(limits) => {
                            targets.extend(
                                limits
                                    .iter()
                                    .filter_map(|(key, value)| slo_target(walk, key, value, Some(name))),
                            );
                        }
                        _ => walk.problem(place_of(limits), "not a map of limits", SLO_HINT),
                    }
                }
            }
            ("models", _) => walk.problem(place_of(value), "`models` is not a map of models", SLO_HINT),
            _ => targets.extend(slo_target(walk, key, value, None)),
        }
    }
    if targets.is_empty() && walk.problems.is_empty() {
        walk.problem(
            place_of(tree),
            "`slo` promises nothing",
            "add at least one limit, such as `e2e_p95: 20s`",
        );
    }
    targets
}

fn slo_target(
    walk: &mut Walk,
    key: &Spanned<String>,
    value: &Spanned<Tree>,
    model: Option<&String>,
) -> Option<SloTarget> {
    let Ok(SloKey(metric, percentile)) = key.value.parse() else {
        let all = Metric::ALL.iter().flat_map(|metric| {
            Percentile::ALL.iter().map(move |percentile| format!("{}_{}", metric.name(), percentile.name()))
        });
        let all: Vec<String> = all.collect();
        let near = crate::catalog::nearest(&key.value, all.iter().map(String::as_str));
        let hint = near.map_or_else(|| SLO_HINT.to_owned(), |near| format!("did you mean `{near}`?"));
        walk.problem(place_of(key), format!("unknown promise `{}`", key.value), hint);
        return None;
    };
    let hint = "nothing answers in no time: give a limit above zero";
    let limit = walk.positive(value, (&key.value, "200ms"), "the limit", hint)?;
    Some(SloTarget { metric, percentile, limit_s: limit, model: model.cloned() })
}

fn quality(walk: &mut Walk, tree: &Spanned<Tree>, models: &[ModelEntry]) -> Option<QualityEntry> {
    let map = walk.map(tree, "`quality`", &["data", "router", "floor", "confidence", "cascade"]);
    let data = walk.required(&map, "data", "quality.jsonl");
    let router = map.get("router").and_then(|tree| walk.scalar(tree, "router", "router.json", true));
    let floor = map.get("floor").and_then(|tree| floor(walk, tree, models));
    let confidence = walk.confidence(&map);
    let cascade = map.get("cascade").and_then(|tree| {
        let hint = "this is the share of the queries that may be asked twice: give one such as 3%";
        walk.inside(tree, ("cascade", "3%"), "the share of the cascade", hint)
    });
    Some(QualityEntry { data: data?, router, floor, confidence: confidence?, cascade })
}

/// `0.56`, `56%` or `95% of llama-3.1-70b`.
fn floor(walk: &mut Walk, tree: &Spanned<Tree>, models: &[ModelEntry]) -> Option<Floor> {
    let text = walk.scalar(tree, "floor", "0.56", true)?;
    let (share, model) = match text.split_once(" of ") {
        None => (text.as_str(), None),
        Some((share, model)) => (share, Some(model.trim())),
    };
    let share: Fraction = match share.parse() {
        Ok(share) => share,
        Err(UnitError { text, wanted, .. }) => {
            let hint = "write a score such as `0.56`, or `95% of llama-3.1-70b`";
            walk.problem(place_of(tree), format!("`{text}` is not {wanted}"), hint);
            return None;
        }
    };
    let Some(model) = model else { return Some(Floor::Absolute(share)) };
    if !models.iter().any(|entry| entry.id == model) {
        let message = format!("the floor names the model `{model}`, which is not listed");
        walk.problem(place_of(tree), message, "use an id from `models`");
    }
    Some(Floor::Relative { share, model: model.into() })
}

/// A number as quantities begin with one.
const NUMBER: &str = "[0-9._]+([eE][+-]?[0-9]+)?";

/// The JSON schema of `boute.yaml`, for editors. What it refuses, the parser refuses too; the parser knows more: names,
/// and what contradicts what.
pub fn json_schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let matching = |pattern: String, description: &str| json!({"type": "string", "pattern": pattern, "description": description});
    let quantity = |prefix: &str, units: &str, description: &str| {
        matching(format!("^\\s*{prefix}\\s*{NUMBER}\\s*({units})\\s*$"), description)
    };
    let words = |words: &[&str]| json!({"enum": words});
    let money = quantity("\\$?", "/h|/hour|/hr", "US dollars per hour, such as $2.50/h");
    let limit = quantity("", "us|µs|ms|s|min|h", "a duration, such as 200ms");
    let share = json!({"type": "number", "minimum": 0, "maximum": 1});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties});
    let list = |items: Value| json!({"type": "array", "minItems": 1, "items": items});
    let limits = json!({"^(ttft|tpot|e2e)_p(50|90|95|99)$": limit});
    let mut model_limits = object(&[], json!({}));
    model_limits["patternProperties"] = limits.clone();
    let per_model = json!({"type": "object", "additionalProperties": model_limits, "description": "limits for one model's answers"});
    let mut slo = object(&[], json!({"models": per_model}));
    slo["patternProperties"] = limits;
    slo["minProperties"] = json!(1);
    let mut spec = object(
        &["apiVersion", "models", "gpus", "traffic", "slo"],
        json!({
            "apiVersion": {"const": "boute/v1"},
            "models": list(object(&["id"], json!({
                "id": text("catalogue name; any name with `config`"),
                "config": text("a Hugging Face config.json, relative to this file"),
                "dtype": words(&DTYPES.map(|(word, _)| word)),
                "weights": text("Hugging Face id or path of the weights"),
            }))),
            "gpus": list(object(&["type"], json!({
                "type": text("catalogue name, such as L40S or H100-SXM:8"),
                "stock": {"anyOf": [{"type": "integer", "minimum": 0}, matching("^(unknown|\\+?[0-9]+)$".into(), "GPUs to be had, or `unknown`")]},
                "price": money,
                "link": quantity("", "MB/s|GB/s|TB/s", "bandwidth between two GPUs of a node, one direction, such as 25GB/s"),
                "network": quantity("", "MB/s|GB/s|TB/s", "bandwidth of one GPU to other nodes, one direction, such as 12.5GB/s"),
                "interruptions": {"anyOf": [share, quantity("", "%?", "spot capacity: the chance that a replica is taken away within an hour, such as 5%")]},
            }))),
            "traffic": object(&["trace"], json!({
                "trace": text("CSV or JSON lines, plain or gzip, relative to this file"),
                "rate": quantity("", "req/s|/s|rps|requests/s|req/min|/min", "a rate, such as 20 req/s"),
                "lengths": words(&LENGTHS.map(|(word, _)| word)),
            })),
            "slo": slo,
            "quality": object(&["data"], json!({
                "data": text("per-query scores, JSON lines, relative to this file"),
                "router": text("a trained router; trained on `data` if left out"),
                "floor": {"anyOf": [share, matching(format!("^\\s*{NUMBER}\\s*%?\\s*( of .+)?$"), "a score, or a share of a model's own, such as 95% of llama-3.1-70b")]},
                "confidence": {"anyOf": [share, quantity("", "%?", "a probability, such as 95%")]},
                "cascade": {"anyOf": [share, quantity("", "%?", "share of the queries that may be asked again from a better model once a first answer is there, such as 3%")]},
            })),
            "objective": words(&OBJECTIVES.map(|(word, _)| word)),
            "budget": money,
            "robust": object(&[], json!({
                "rate": {"type": "number", "minimum": 1, "maximum": 10, "description": "stand this many times the rate"},
                "lengths": {"type": "number", "minimum": 1, "maximum": 10, "description": "stand prompts and answers this many times as long"},
                "lost_replicas": {"type": "integer", "minimum": 0, "maximum": 100, "description": "stand the loss of this many replicas of any model"},
                "min_replicas": {"type": "integer", "minimum": 1, "maximum": 100, "description": "replicas of every model that answers, at least"},
            })),
            "disaggregate": {"type": "boolean", "description": "whether prompts may be computed by other engines than answers, on other GPU types too"},
        }),
    );
    spec["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    spec["title"] = json!("boute.yaml");
    spec
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "apiVersion: boute/v1
models: [{id: llama-3.1-8b}, {id: llama-3.1-70b, dtype: fp8}]
gpus:
  - {type: L40S, stock: 16, price: $0.86/h}
  - {type: H100-SXM:8}
  - {type: A100-80GB, stock: unknown}
traffic: {trace: t.csv, rate: 20 req/s}
slo:
  e2e_p95: 20s
  models: {llama-3.1-8b: {ttft_p95: 500ms}}
quality: {data: q.jsonl, floor: 95% of llama-3.1-70b, confidence: 0.9}
budget: $40/h
";

    fn errors(text: &str) -> String {
        parse_spec("boute.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_spec_is_read() {
        let spec = parse_spec("boute.yaml", GOOD).unwrap();
        assert_eq!(spec.gpus[1].stock, Stock::Known(8));
        assert_eq!(spec.gpus[2].stock, Stock::Unknown);
        assert_eq!(spec.slo.len(), 2);
        assert_eq!(spec.objective, Objective::MinCost);
        let quality = spec.quality.unwrap();
        assert_eq!(quality.cascade, None);
        let floor = quality.floor.unwrap();
        assert_eq!(
            floor,
            Floor::Relative { share: Fraction::new(0.95).unwrap(), model: "llama-3.1-70b".into() }
        );
    }

    #[test]
    fn a_cascade_is_a_share() {
        let with =
            |share: &str| GOOD.replace("confidence: 0.9", &format!("confidence: 0.9, cascade: {share}"));
        let spec = parse_spec("boute.yaml", &with("3%")).unwrap();
        assert_eq!(spec.quality.unwrap().cascade, Fraction::new(0.03));
        insta::assert_snapshot!(errors(&with("100%")), @r"
        boute.yaml:11:81: the share of the cascade is not between 0 and 1
           |
        11 | quality: {data: q.jsonl, floor: 95% of llama-3.1-70b, confidence: 0.9, cascade: 100%}
           |                                                                                 ^^^^
           = help: this is the share of the queries that may be asked twice: give one such as 3%
        ");
    }

    #[test]
    fn every_problem_is_reported_at_its_place() {
        let text = GOOD
            .replace("llama-3.1-8b}", "llama-3.1-9b}")
            .replace("$0.86/h", "-$0.86/h")
            .replace("stock: 16", "stok: 16")
            .replace("$40/h", "40");
        insta::assert_snapshot!(errors(&text), @r"
        boute.yaml:2:15: unknown model `llama-3.1-9b`
          |
        2 | models: [{id: llama-3.1-9b}, {id: llama-3.1-70b, dtype: fp8}]
          |               ^^^^^^^^^^^^
          = help: did you mean `llama-3.1-8b`? `boute catalog models` lists all; for another model add `config: config.json`

        boute.yaml:4:18: unknown key `stok` in a GPU type
          |
        4 |   - {type: L40S, stok: 16, price: -$0.86/h}
          |                  ^^^^
          = help: did you mean `stock`?

        boute.yaml:4:35: `-$0.86/h` is not a price per hour
          |
        4 |   - {type: L40S, stok: 16, price: -$0.86/h}
          |                                   ^^^^^^^^
          = help: write it like `price: $2.50/h`

        boute.yaml:10:12: `slo` names the model `llama-3.1-8b`, which is not listed
           |
        10 |   models: {llama-3.1-8b: {ttft_p95: 500ms}}
           |            ^^^^^^^^^^^^
           = help: use an id from `models`

        boute.yaml:12:9: `budget: 40` has no unit
           |
        12 | budget: 40
           |         ^^
           = help: write it like `budget: $40/h`
        ");
    }

    #[test]
    fn messages_name_the_place_and_the_way_out() {
        insta::assert_snapshot!(errors(&GOOD.replace("L40S", "L40X").replace("stock: 16", "stock: -1")), @r"
        boute.yaml:4:12: unknown GPU type `L40X`
          |
        4 |   - {type: L40X, stock: -1, price: $0.86/h}
          |            ^^^^
          = help: did you mean `L40`? `boute catalog gpus` lists all

        boute.yaml:4:25: `-1` is not a stock
          |
        4 |   - {type: L40X, stock: -1, price: $0.86/h}
          |                         ^^
          = help: give a whole number of GPUs, or `unknown` for no limit
        ");
        insta::assert_snapshot!(errors(&format!("{GOOD}budget: $1/h\n")), @r"
        boute.yaml:13:1: `budget` is given twice
           |
        13 | budget: $1/h
           | ^^^^^^
           = help: remove one of the two
        ");
        insta::assert_snapshot!(errors(&GOOD.replace("ttft_p95: 500ms", "ttft_p96: 500ms").replace("20s", "20")), @r"
        boute.yaml:9:12: `e2e_p95: 20` has no unit
          |
        9 |   e2e_p95: 20
          |            ^^
          = help: write it like `e2e_p95: 200ms`

        boute.yaml:10:27: unknown promise `ttft_p96`
           |
        10 |   models: {llama-3.1-8b: {ttft_p96: 500ms}}
           |                           ^^^^^^^^
           = help: did you mean `ttft_p90`?
        ");
        insta::assert_snapshot!(errors(&GOOD.replace("confidence: 0.9", "confidence: 1.0").replace("$40/h", "$0/h")), @r"
        boute.yaml:11:67: the confidence is not between 0 and 1
           |
        11 | quality: {data: q.jsonl, floor: 95% of llama-3.1-70b, confidence: 1.0}
           |                                                                   ^^^
           = help: certainty is not to be had: give a number below 1, such as 0.95

        boute.yaml:12:9: the budget is zero
           |
        12 | budget: $0/h
           |         ^^^^
           = help: give a budget above zero, or none for no limit
        ");
        insta::assert_snapshot!(errors(&GOOD.replace("95% of llama-3.1-70b", "95% of llama-3.1-405b")), @r"
        boute.yaml:11:33: the floor names the model `llama-3.1-405b`, which is not listed
           |
        11 | quality: {data: q.jsonl, floor: 95% of llama-3.1-405b, confidence: 0.9}
           |                                 ^^^^^^^^^^^^^^^^^^^^^
           = help: use an id from `models`
        ");
        insta::assert_snapshot!(errors(""), @r"
        boute.yaml:1:1: the spec is empty
          |
        1 | 
          | ^
          = help: write `key: value` pairs with `apiVersion`, `models`, `gpus`, `traffic`, `slo`, `quality`, `objective`, `budget`, `robust` or `disaggregate`
        ");
        insta::assert_snapshot!(errors("models: {a: ["), @r"
        boute.yaml:1:13: not valid YAML: unclosed bracket '['
          |
        1 | models: {a: [
          |             ^
          = help: see examples/llama-8b-70b.yaml for the form, or `boute schema` for an editor
        ");
    }

    #[test]
    fn carets_stand_below_what_they_mean() {
        let (line, carets) = snippet("é: \tüx # y", 4, 99);
        assert_eq!((line.as_str(), carets.as_str()), ("é:  üx # y", "   ^^^^^^^"));
        let (line, carets) = snippet(&format!("{}stop{}", "-".repeat(500), "-".repeat(500)), 501, 4);
        assert_eq!(carets.find('^'), line.find("stop"));
        assert_eq!(line.chars().count(), SNIPPET);
        assert_eq!(snippet("", 1, 0), (String::new(), "^".into()));
    }

    #[test]
    fn bad_values_say_what_to_write() {
        for (from, to) in [
            ("$40/h", "$0/h"),
            ("$40/h", "NaN"),
            ("20 req/s", "-3 req/s"),
            ("20s", "20"),
            ("e2e_p95", "e2e_p96"),
            ("0.9}", "1}"),
            ("0.9}", ".nan}"),
            ("H100-SXM:8", "H100-SXM:x"),
            ("H100-SXM:8", "L40S"),
            ("boute/v1", "boute/v2"),
            ("95% of llama-3.1-70b", "95% of gpt"),
            ("95% of llama-3.1-70b", "1.5"),
            ("traffic: {trace: t.csv, rate: 20 req/s}\n", ""),
            ("fp8", "fp7"),
            ("{trace: t.csv", "[trace"),
            ("{llama-3.1-8b: {ttft_p95: 500ms}}", "3"),
            ("t.csv", "''"),
            ("$0.86/h", "0.86/h/h"),
            ("id: llama-3.1-8b}", "id: llama-3.1-70b}"),
            ("budget:", "robust: {rate: 0.9}\nbudget:"),
            ("budget:", "robust: {lost_replicas: 1.5}\nbudget:"),
            ("budget:", "robust: {min_replica: 2}\nbudget:"),
            ("budget:", "disaggregate: maybe\nbudget:"),
            ("H100-SXM:8", "H100-SXM:8, interruptions: 120%"),
            ("H100-SXM:8", "H100-SXM:8, network: 0GB/s"),
        ] {
            assert_ne!(GOOD.replace(from, to), GOOD, "{from}");
            let text = errors(&GOOD.replace(from, to));
            assert!(text.starts_with("boute.yaml:") && text.contains("= help: "), "{text}");
        }
        errors("[]");
        errors(&"[".repeat(10_000));
        errors(&"{a: ".repeat(10_000));
    }

    const EXAMPLE: &str = include_str!("../../../examples/llama-8b-70b.yaml");

    fn schema_takes(text: &str) -> bool {
        let value: Value = serde_saphyr::from_str(text).unwrap();
        jsonschema::is_valid(&json_schema(), &value)
    }

    #[test]
    fn the_schema_agrees_with_the_parser() {
        let robust =
            "robust: {rate: 1.2, lengths: 1.1, lost_replicas: 1, min_replicas: 2}\ndisaggregate: true\n";
        let spot =
            GOOD.replace("{type: H100-SXM:8}", "{type: H100-SXM:8, interruptions: 5%, network: 12.5GB/s}");
        for text in [GOOD, EXAMPLE, &format!("{spot}{robust}")] {
            parse_spec("boute.yaml", text).unwrap();
            assert!(schema_takes(text), "{text}");
        }
        for (from, to) in [
            ("stock: 16", "stok: 16"),
            ("stock: 16", "stock: -1"),
            ("$0.86/h", "-$0.86/h"),
            ("$0.86/h", "0.86"),
            ("20s", "20"),
            ("e2e_p95", "e2e_p96"),
            ("ttft_p95", "ttft"),
            ("fp8", "fp7"),
            ("boute/v1", "boute/v2"),
            ("95% of llama-3.1-70b", "1.5"),
            ("trace: t.csv, ", ""),
            ("budget:", "objective: max_budget\nbudget:"),
        ] {
            let text = GOOD.replace(from, to);
            assert!(!schema_takes(&text), "{text}");
            errors(&text);
        }
    }

    proptest! {
        #[test]
        fn the_schema_refuses_nothing_the_parser_takes(
            number in "[ $]{0,2}[0-9._]{1,4}([eE][+-]?[0-9])?",
            blank in " ?",
            unit in "us|µs|ms|s|min|h|/h|/hour|req/s|/s|rps|req/min|%|% of llama-3.1-70b|",
            place in prop::sample::select(vec!["$0.86/h", "20 req/s", "20s", "95% of llama-3.1-70b", "0.9}", "$40/h"]),
        ) {
            let brace = if place.ends_with('}') { "}" } else { "" };
            let text = GOOD.replace(place, &format!("'{number}{blank}{unit}'{brace}"));
            if parse_spec("boute.yaml", &text).is_ok() {
                prop_assert!(schema_takes(&text), "{text}");
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(at in 0..GOOD.len(), length in 0..20_usize, instead in "\\PC{0,6}") {
            let end = (at + length).min(GOOD.len());
            let text = format!("{}{instead}{}", &GOOD[..at], &GOOD[end..]);
            if let Err(errors) = parse_spec("boute.yaml", &text) {
                prop_assert!(errors.to_string().contains("= help: "));
            }
        }
    }
}
