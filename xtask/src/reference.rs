//! `cargo xtask reference`: pages of `docs/reference/` from the code. The keys of a file are those of the structs that are
//! written into it, with their documentation; metrics are those that the gateway's code describes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Writes all pages.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let folder = root.join("docs/reference");
    for (name, page) in pages(root) {
        let path = folder.join(name);
        fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    // The commands are known to the program alone.
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "-p", "boute", "--", "reference"])
        .arg(&folder)
        .current_dir(root)
        .status()
        .map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err("`boute reference` failed".into()) }
}

/// File name → text of the pages that are made here.
fn pages(root: &Path) -> BTreeMap<&'static str, String> {
    let read = |path: &str| super::tidy::read(&root.join(path));
    let plan = read("crates/spec/src/plan.rs")
        + &read("crates/spec/src/policy.rs")
        + &read("crates/spec/src/catalog/mod.rs")
        + &read("crates/spec/src/slo.rs");
    BTreeMap::from([
        ("spec.md", spec()),
        (
            "plan.md",
            structs(
                "Keys of `plan.json`",
                "What `boute plan` writes. Unknown keys are errors; old versions stay readable.",
                &plan,
                "PlanDraft",
            ),
        ),
        (
            "outcome.md",
            structs(
                "Keys of `outcome.json`",
                "What `boute simulate -o` and `boute bench -o` write: vLLM's `bench serve` keys, then ours. Times in milliseconds.",
                &read("crates/spec/src/outcome.rs"),
                "Outcome",
            ),
        ),
        ("metrics.md", metrics(root)),
    ])
}

const GENERATED: &str = "Generated from the code by `cargo xtask reference`.";

/// The spec's keys, from its JSON schema.
fn spec() -> String {
    let schema = boute_spec::parse::json_schema();
    let mut out = format!(
        "# Keys of `boute.yaml`\n\n{GENERATED} `boute schema` prints the same as a JSON schema, for editors; `boute check` knows more than it does. Unknown keys are errors.\n\n| key | | value |\n|---|---|---|\n"
    );
    keys(&mut out, &schema, "");
    out
}

fn keys(out: &mut String, schema: &Value, prefix: &str) {
    let needed = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = schema["properties"].as_object().into_iter().flatten();
    let patterns = schema["patternProperties"].as_object().into_iter().flatten();
    for (name, value) in named.chain(patterns) {
        let key = format!("{prefix}{}", name.trim_start_matches('^').trim_end_matches('$'));
        let needed = if needed.iter().any(|it| it == name) { "needed" } else { "" };
        let _ = writeln!(out, "| `{}` | {needed} | {} |", escaped(&key), escaped(&meaning(value)));
        let (inner, mark) = match value["type"].as_str() {
            Some("array") => (&value["items"], "[]."),
            _ => (value, "."),
        };
        let inner =
            if inner["additionalProperties"].is_object() { &inner["additionalProperties"] } else { inner };
        keys(out, inner, &format!("{key}{mark}"));
    }
}

/// What a value is, in words.
fn meaning(value: &Value) -> String {
    if let Some(text) = value["description"].as_str() {
        return text.to_owned();
    }
    if let Some(words) = value["enum"].as_array() {
        return words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    }
    if let Some(only) = value["const"].as_str() {
        return only.to_owned();
    }
    if let Some(choices) = value["anyOf"].as_array() {
        return choices.iter().map(meaning).collect::<Vec<_>>().join(", or ");
    }
    match (value["type"].as_str(), &value["minimum"], &value["maximum"]) {
        (Some("array"), ..) => "a list".into(),
        (Some("object") | None, ..) => String::new(),
        (Some(kind), Value::Null, _) => format!("a {kind}"),
        (Some(kind), low, Value::Null) => format!("{} of at least {low}", with_article(kind)),
        (Some(kind), low, high) => format!("{} from {low} to {high}", with_article(kind)),
    }
}

fn with_article(kind: &str) -> String {
    if kind == "integer" { format!("an {kind}") } else { format!("a {kind}") }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A struct as it stands in the source: its name, what it is, and its fields with type and documentation.
struct Struct {
    name: String,
    /// The struct that stands in the file in its place.
    in_file: Option<String>,
    about: String,
    fields: Vec<[String; 3]>,
}

/// The structs with named fields in `source`, which is formatted by rustfmt.
fn parse_structs(source: &str) -> Vec<Struct> {
    let (mut found, mut comment, mut in_file, mut open) = (Vec::new(), Vec::new(), None, None::<Struct>);
    for line in source.lines() {
        let text = line.trim();
        if let Some(doc) = text.strip_prefix("///") {
            comment.push(doc.trim().to_owned());
            continue;
        }
        if text.starts_with("#[") {
            let other = text.split_once("try_from = \"").and_then(|(_, rest)| rest.split_once('"'));
            in_file = other.map(|(name, _)| name.to_owned()).or(in_file);
            continue;
        }
        let about = std::mem::take(&mut comment).join(" ");
        let in_file = in_file.take();
        let text = text.strip_prefix("pub ").unwrap_or(text);
        match &mut open {
            None => {
                let name = text.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {"));
                open = name.map(|name| Struct { name: name.into(), in_file, about, fields: Vec::new() });
            }
            Some(_) if text == "}" => found.extend(open.take()),
            Some(open) => {
                let field = text.trim_end_matches(',').split_once(": ");
                open.fields.extend(field.map(|(name, kind)| [name.to_owned(), kind.to_owned(), about]));
            }
        }
    }
    found
}

/// A page on the struct `top` and all that it holds, those that are met first first.
fn structs(title: &str, about: &str, source: &str, top: &str) -> String {
    let all = parse_structs(source);
    let mut out = format!("# {title}\n\n{GENERATED} {about}\n");
    let mut met = vec![top];
    let mut next = 0;
    while let Some(name) = met.get(next) {
        next += 1;
        let find = |name: &str| all.iter().find(|it| it.name == name);
        let Some(named) = find(name) else { continue };
        let it = named.in_file.as_deref().and_then(find).unwrap_or(named);
        let _ = write!(out, "\n## {}\n\n{}\n\n| key | type | meaning |\n|---|---|---|\n", it.name, it.about);
        for [key, kind, about] in &it.fields {
            // What the file's form does not say, the public one does.
            let said = named.fields.iter().find(|[name, ..]| name == key).map(|[.., about]| about);
            let about = said.filter(|_| about.is_empty()).unwrap_or(about);
            let _ = writeln!(out, "| `{key}` | `{}` | {} |", escaped(kind), escaped(about));
            let words = kind.split(|c: char| !c.is_alphanumeric());
            for word in words.filter(|word| all.iter().any(|it| it.name == *word)) {
                if !met.contains(&word) {
                    met.push(word);
                }
            }
        }
    }
    out
}

/// Metrics as the gateway's sources describe them: a name, its kind and its help, each a string literal after the other.
fn metrics(root: &Path) -> String {
    let mut found = BTreeMap::new();
    let folder = root.join("crates/gateway/src");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        // The emulated replica speaks as vLLM does: that is vLLM's to document.
        if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("mock.rs") {
            let text = super::tidy::read(&path);
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            found.extend(described(code));
        }
    }
    let mut out = format!(
        "# Metrics of the gateway\n\n{GENERATED} On the admin listener at `/metrics`, in Prometheus' text form.\n\n| name | kind | meaning |\n|---|---|---|\n"
    );
    for (name, (kind, help)) in found {
        let _ = writeln!(out, "| `{name}` | {kind} | {} |", escaped(&help));
    }
    out
}

/// Name → kind and help.
fn described(code: &str) -> Vec<(String, (String, String))> {
    let literals: Vec<&str> = code.split('"').skip(1).step_by(2).collect();
    let is_name = |text: &str| text.starts_with("boute_") || text.starts_with("gen_ai_");
    let mut found = Vec::new();
    let mut name = "";
    let mut at = 0;
    while at < literals.len() {
        let text = literals[at];
        if is_name(text) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            name = text;
        } else if matches!(text, "counter" | "gauge" | "histogram") && !name.is_empty() {
            // A table of metrics says the kind once, below it: what follows is another name.
            if let Some(help) = literals.get(at + 1).filter(|help| !is_name(help)) {
                found.push((name.to_owned(), (text.to_owned(), (*help).to_owned())));
            }
        } else if name.starts_with("gen_ai_server") && text.ends_with('.') && text.contains(' ') {
            // In such a table the help follows the name.
            found.push((name.to_owned(), ("histogram".into(), text.to_owned())));
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_of_today() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (name, page) in pages(root) {
            let written = fs::read_to_string(root.join("docs/reference").join(name)).unwrap_or_default();
            assert!(
                written == page,
                "docs/reference/{name} is out of date: `cargo xtask reference` writes it anew"
            );
        }
    }

    #[test]
    fn pages_hold_what_they_should() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let pages = pages(root);
        for (name, text) in [
            ("spec.md", "| `gpus[].price` |"),
            ("spec.md", "| `traffic.trace` | needed |"),
            ("plan.md", "| `usd_per_million_tokens` | `f64` |"),
            ("plan.md", "## ReplicaGroup"),
            ("plan.md", "| `parameters` | `PolicyParameters` |"),
            ("outcome.md", "| `p99_tpot_ms` |"),
            (
                "metrics.md",
                "| `gen_ai_server_time_to_first_token_seconds` | histogram | From arrival to the first byte. |",
            ),
            (
                "metrics.md",
                "| `gen_ai_server_time_per_output_token_seconds` | histogram | Time per token after the first. |",
            ),
            ("metrics.md", "| `boute_replica_in_flight` | gauge | Requests in flight from here. |"),
        ] {
            assert!(pages[name].contains(text), "{text}: {}", pages[name]);
        }
    }
}
