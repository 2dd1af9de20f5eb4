//! The house rules which the compiler does not check: arrows between crates, layering of outside libraries, words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Libraries that only `gateway`, `cli` and `xtask` may use: they bring clocks, sockets or threads of their own.
const RUNTIME_LIBRARIES: [&str; 5] = ["tokio", "axum", "hyper", "hyper-util", "indicatif"];

/// Marks of unfinished work.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("dbg", "!(")];

/// Words that `mobo` must not know.
const LLM_WORDS: [&str; 4] = ["llm", "gpu", "vllm", "prompt"];

/// All violations in the repository at `root`, one sentence each.
pub(crate) fn violations(root: &Path) -> Vec<String> {
    let crates = workspace_crates(root);
    let allowed = arrows_of(&read(&root.join("ARCHITECTURE.md")));
    let mut found = Vec::new();
    for (name, dependencies) in &crates {
        let ours: BTreeSet<_> = dependencies.iter().filter(|it| crates.contains_key(*it)).cloned().collect();
        match allowed.get(name) {
            None => found.push(format!("`{name}` is missing from the table in ARCHITECTURE.md")),
            Some(allowed) => found.extend(
                ours.difference(allowed)
                    .map(|it| format!("`{name}` uses `{it}`, which ARCHITECTURE.md does not allow")),
            ),
        }
        if !matches!(name.as_str(), "gateway" | "cli") {
            let runtime = dependencies.iter().filter(|it| RUNTIME_LIBRARIES.contains(&it.as_str()));
            found.extend(runtime.map(|it| format!("`{name}` uses `{it}`: only `gateway` and `cli` may")));
        }
    }
    found.extend(
        allowed
            .keys()
            .filter(|it| !crates.contains_key(*it))
            .map(|it| format!("ARCHITECTURE.md has a row for `{it}`, which is not a crate")),
    );
    for file in rust_files(root) {
        let text = read(&file);
        let name = file.strip_prefix(root).unwrap_or(&file).display();
        found.extend(UNFINISHED.iter().filter(|it| text.contains(*it)).map(|it| format!("{name}: `{it}`")));
        if file.starts_with(root.join("crates/mobo/src")) {
            let lower = text.to_lowercase();
            let words: BTreeSet<_> = lower.split(|c: char| !c.is_alphanumeric()).collect();
            let known = LLM_WORDS.iter().filter(|it| words.contains(*it));
            found
                .extend(known.map(|it| format!("{name}: `mobo` has no word about LLMs, but here is `{it}`")));
        }
    }
    found
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Crate (folder name) → direct dependencies, ours by folder name and others by package name, dev-dependencies left out.
fn workspace_crates(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .unwrap_or_else(|error| panic!("cargo metadata: {error}"));
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}"));
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = |name: &str| match name {
        "boute" => "cli".to_owned(),
        other => other.strip_prefix("boute-").unwrap_or(other).to_owned(),
    };
    packages
        .iter()
        .filter(|package| package["name"] != "xtask")
        .map(|package| {
            let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
            let direct = dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .filter_map(|dependency| dependency["name"].as_str())
                .map(ours)
                .collect();
            (ours(package["name"].as_str().unwrap_or_default()), direct)
        })
        .collect()
}

/// The table of ARCHITECTURE.md: crate → crates it may use.
fn arrows_of(architecture: &str) -> BTreeMap<String, BTreeSet<String>> {
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    architecture
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let cells: Vec<_> = line.split('|').collect();
            let name = names(cells.get(1)?).pop_first()?;
            Some((name, names(cells.get(3)?)))
        })
        .collect()
}

fn rust_files(root: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(violations(root), Vec::<String>::new());
    }

    #[test]
    fn the_table_is_read() {
        let arrows =
            arrows_of("| crate | is | uses |\n|---|---|---|\n| `a` | x | |\n| `b` | y | `a`, `c` |\n");
        assert_eq!(arrows["b"], ["a", "c"].map(str::to_owned).into());
        assert!(arrows["a"].is_empty());
    }
}
