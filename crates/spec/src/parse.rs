//! `boute.yaml` → [`Spec`], strictly: unknown keys, wrong units and contradictions are all reported at once, each with
//! file, line, column, a caret and what to do.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use crate::catalog::{Catalog, Precision};
use crate::file::{Floor, GpuEntry, Lengths, ModelEntry, QualityEntry, Spec, Stock, Traffic};
use crate::plan::Objective;
use crate::slo::{Metric, Percentile, SloKey, SloTarget};
use crate::units::{Fraction, RequestsPerSecond, Seconds, UsdPerHour};

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
            let margin = " ".repeat(line.to_string().len());
            let (indent, carets) = (" ".repeat(column - 1), "^".repeat((*width).max(1)));
            let blank = if index == 0 { "" } else { "\n\n" };
            write!(f, "{blank}{}:{line}:{column}: {message}\n{margin} |\n{line} | {source}\n", self.file)?;
            write!(f, "{margin} | {indent}{carets}\n{margin} = help: {hint}")?;
        }
        Ok(())
    }
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
            let message = format!("{what} is not a map");
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

    /// A quantity with its unit spelled out, or a fraction.
    fn parsed<T: FromStr>(&mut self, tree: &Spanned<Tree>, key: &str, example: &str, bare: bool) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let text = self.scalar(tree, key, example, bare)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let hint = format!("write it like `{key}: {example}`");
                self.problem(place_of(tree), format!("{error}"), hint);
                None
            }
        }
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

const KEYS: [&str; 8] = ["apiVersion", "models", "gpus", "traffic", "slo", "quality", "objective", "budget"];
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
    let failed = |problems| SpecErrors { file: file.into(), problems, text: text.into() };
    let tree: Spanned<Tree> = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().to_owned();
        failed(vec![Problem {
            line: usize::try_from(place.0).unwrap_or(1).max(1),
            column: usize::try_from(place.1).unwrap_or(1).max(1),
            width: 1,
            message: format!("not valid YAML: {message}"),
            hint: "see examples/llama-8b-70b.yaml for the form, or `boute schema` for an editor".into(),
        }])
    })?;
    let mut walk = Walk { problems: Vec::new() };
    let spec = spec(&mut walk, &tree);
    match spec {
        Some(spec) if walk.problems.is_empty() => Ok(spec),
        _ => {
            walk.problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(failed(walk.problems))
        }
    }
}

fn spec(walk: &mut Walk, tree: &Spanned<Tree>) -> Option<Spec> {
    let map = walk.map(tree, "the spec", &KEYS);
    match map.get("apiVersion") {
        None => walk.missing(&map, "apiVersion", "boute/v1"),
        Some(version) => {
            walk.word(version, "apiVersion", &[("boute/v1", ())]);
        }
    }
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
        let budget: UsdPerHour = walk.parsed(tree, "budget", "$40/h", false)?;
        if budget.get() == 0.0 {
            walk.problem(
                place_of(tree),
                "the budget is zero",
                "give a budget above zero, or none for no limit",
            );
        }
        Some(budget)
    });
    if matches!(objective, Some(Objective::MaxRate | Objective::MaxQuality)) && budget.is_none() {
        let hint = "add `budget: $40/h`, or use `objective: min_cost`";
        walk.problem(map.place, "this objective needs a budget", hint);
    }
    Some(Spec {
        models,
        gpus,
        traffic: traffic?,
        slo,
        quality: quality.flatten(),
        objective: objective?,
        budget,
    })
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
        let map = walk.map(item, "a GPU type", &["type", "stock", "price"]);
        let Some(kind) = map.get("type") else {
            walk.missing(&map, "type", "L40S");
            continue;
        };
        let Some(text) = walk.scalar(kind, "type", "L40S", true) else { continue };
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name.to_owned(), Some(count)),
            None => (text.clone(), None),
        };
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
                let stock = stock(walk, &map, kind, count);
                let price = map.get("price").and_then(|tree| {
                    let price: UsdPerHour = walk.parsed(tree, "price", "$2.50/h", false)?;
                    if price.get() == 0.0 {
                        let hint =
                            "give what an hour of one GPU costs; for GPUs you own, power and depreciation";
                        walk.problem(place_of(tree), "the price is zero", hint);
                    }
                    Some(price)
                });
                gpus.push(GpuEntry { gpu: gpu.name.clone(), stock, price });
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
    let trace = match map.get("trace") {
        Some(tree) => walk.scalar(tree, "trace", "trace.csv", true),
        None => {
            walk.missing(&map, "trace", "trace.csv");
            None
        }
    };
    let rate = map.get("rate").and_then(|tree| {
        let rate: RequestsPerSecond = walk.parsed(tree, "rate", "20 req/s", false)?;
        if rate.get() == 0.0 {
            walk.problem(
                place_of(tree),
                "the rate is zero",
                "give a rate above zero, or none for the trace's own",
            );
        }
        Some(rate)
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
    let limit: Seconds = walk.parsed(value, &key.value, "200ms", false)?;
    if limit.get() == 0.0 {
        walk.problem(
            place_of(value),
            "the limit is zero",
            "nothing answers in no time: give a limit above zero",
        );
    }
    Some(SloTarget { metric, percentile, limit_s: limit, model: model.cloned() })
}

fn quality(walk: &mut Walk, tree: &Spanned<Tree>, models: &[ModelEntry]) -> Option<QualityEntry> {
    let map = walk.map(tree, "`quality`", &["data", "router", "floor", "confidence"]);
    let data = match map.get("data") {
        Some(tree) => walk.scalar(tree, "data", "quality.jsonl", true),
        None => {
            walk.missing(&map, "data", "quality.jsonl");
            None
        }
    };
    let router = map.get("router").and_then(|tree| walk.scalar(tree, "router", "router.json", true));
    let floor = map.get("floor").and_then(|tree| floor(walk, tree, models));
    let confidence = match map.get("confidence") {
        None => Fraction::new(0.95),
        Some(tree) => walk.parsed::<Fraction>(tree, "confidence", "0.95", true).filter(|value| {
            let inside = value.get() > 0.0 && value.get() < 1.0;
            if !inside {
                let hint = "certainty is not to be had: give a number below 1, such as 0.95";
                walk.problem(place_of(tree), "the confidence is not between 0 and 1", hint);
            }
            inside
        }),
    };
    Some(QualityEntry { data: data?, router, floor, confidence: confidence? })
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
        Err(error) => {
            let hint = "write a score such as `0.56`, or `95% of llama-3.1-70b`";
            walk.problem(place_of(tree), format!("{error}"), hint);
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

/// The JSON schema of `boute.yaml`, for editors. It says less than the parser checks, never more.
pub fn json_schema() -> Value {
    let text = |pattern: &str, description: &str| json!({"type": "string", "pattern": pattern, "description": description});
    let money = text(r"^\$?[0-9.]+ */(h|hour|hr)$", "US dollars per hour, such as $2.50/h");
    let fraction = json!({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, text(r"^[0-9.]+ *%$", "a share, such as 95%")]});
    let limits = json!({
        "type": "object",
        "patternProperties": {"^(ttft|tpot|e2e)_p(50|90|95|99)$": text(r"^[0-9.]+ *(us|ms|s|min|h)$", "a duration, such as 200ms")},
    });
    let words = |words: &[&str]| json!({"enum": words});
    let mut slo = limits.clone();
    slo["properties"] = json!({"models": {"type": "object", "additionalProperties": limits, "description": "limits for one model's answers"}});
    for object in [&mut slo, &mut json!({})] {
        object["additionalProperties"] = json!(false);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "boute.yaml",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "models", "gpus", "traffic", "slo"],
        "properties": {
            "apiVersion": {"const": "boute/v1"},
            "models": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": false, "required": ["id"], "properties": {
                    "id": {"type": "string", "description": "catalogue name; any name with `config`"},
                    "config": {"type": "string", "description": "a Hugging Face config.json, relative to this file"},
                    "dtype": words(&DTYPES.map(|(word, _)| word)),
                    "weights": {"type": "string", "description": "Hugging Face id or path of the weights"},
                }}},
            "gpus": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": false, "required": ["type"], "properties": {
                    "type": {"type": "string", "description": "catalogue name, such as L40S or H100-SXM:8"},
                    "stock": {"anyOf": [{"type": "integer", "minimum": 0}, {"const": "unknown"}]},
                    "price": money,
                }}},
            "traffic": {"type": "object", "additionalProperties": false, "required": ["trace"], "properties": {
                "trace": {"type": "string", "description": "CSV or JSON lines, plain or gzip, relative to this file"},
                "rate": text(r"^[0-9.]+ *(req/s|/s|rps|requests/s|req/min|/min)$", "a rate, such as 20 req/s"),
                "lengths": words(&LENGTHS.map(|(word, _)| word)),
            }},
            "slo": slo,
            "quality": {"type": "object", "additionalProperties": false, "required": ["data"], "properties": {
                "data": {"type": "string", "description": "per-query scores, JSON lines, relative to this file"},
                "router": {"type": "string", "description": "a trained router; trained on `data` if left out"},
                "floor": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, text(r"^[0-9.]+ *%?( of .+)?$", "a score, or a share of a model's own, such as 95% of llama-3.1-70b")]},
                "confidence": fraction,
            }},
            "objective": words(&OBJECTIVES.map(|(word, _)| word)),
            "budget": money,
        },
    })
}

#[cfg(test)]
mod tests {
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
        let floor = spec.quality.unwrap().floor.unwrap();
        assert_eq!(
            floor,
            Floor::Relative { share: Fraction::new(0.95).unwrap(), model: "llama-3.1-70b".into() }
        );
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

        boute.yaml:4:35: `-$0.86/h` is not a price per hour; write it like `$2.50/h`
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
        ] {
            assert_ne!(GOOD.replace(from, to), GOOD, "{from}");
            let text = errors(&GOOD.replace(from, to));
            assert!(text.starts_with("boute.yaml:") && text.contains("= help: "), "{text}");
        }
        errors("");
        errors("[]");
        errors("models: {a: [");
    }
}
