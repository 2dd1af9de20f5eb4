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

/// Locks of what is no member of the workspace but uses its crates: nothing else says that they are out of date.
const OTHER_LOCKS: [&str; 3] =
    ["fuzz/Cargo.lock", "validation/Cargo.lock", "validation/optimiser/Cargo.lock"];

/// All violations in the repository at `root`, one sentence each.
pub(crate) fn violations(root: &Path) -> Vec<String> {
    let packages = workspace_packages(root);
    let crates = workspace_crates(&packages);
    let allowed = arrows_of(&read(&root.join("ARCHITECTURE.md")));
    let mut found = Vec::new();
    for lock in OTHER_LOCKS {
        let stale = stale(&read(&root.join(lock)), &packages);
        found.extend(
            stale.map(|name| format!("{lock} lags behind `{name}`: `cargo update --workspace` there")),
        );
    }
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

fn workspace_packages(root: &Path) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .unwrap_or_else(|error| panic!("cargo metadata: {error}"));
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}"));
    metadata["packages"].as_array().cloned().unwrap_or_default()
}

/// Crate (folder name) → direct dependencies, ours by folder name and others by package name, dev-dependencies left out.
fn workspace_crates(packages: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let ours = |name: &str| match name {
        "boute" => "cli".to_owned(),
        other => other.strip_prefix("boute-").unwrap_or(other).to_owned(),
    };
    packages
        .iter()
        .filter(|package| package["name"] != "xtask")
        .map(|package| {
            let direct = dependencies(package).map(|(name, _)| ours(name)).collect();
            (ours(package["name"].as_str().unwrap_or_default()), direct)
        })
        .collect()
}

/// Names of a package's dependencies, those for its tests left out, and whether they are optional.
fn dependencies(package: &Value) -> impl Iterator<Item = (&str, bool)> {
    let all = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| Some((dependency["name"].as_str()?, dependency["optional"] == true)))
}

/// Names of the packages whose dependencies a lock does not know as they are: each that is not optional, and no other.
/// Other features of a library, which change what that brings, are not seen: only a build with `--locked` sees all.
fn stale<'a>(lock: &str, packages: &'a [Value]) -> impl Iterator<Item = &'a str> + use<'a> {
    let locked = locked(lock);
    packages.iter().filter_map(move |package| {
        let name = package["name"].as_str()?;
        let locked = locked.get(name)?;
        let known: BTreeMap<_, _> = dependencies(package).collect();
        let right = known.iter().all(|(name, optional)| *optional || locked.contains(*name))
            && locked.iter().all(|name| known.contains_key(&**name));
        (!right).then_some(name)
    })
}

/// A `Cargo.lock`: package → names of its dependencies.
fn locked(lock: &str) -> BTreeMap<String, BTreeSet<String>> {
    let entries = lock.split("[[package]]").skip(1);
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    entries
        .filter_map(|entry| {
            let (head, dependencies) = entry.split_once("dependencies = [").unwrap_or((entry, ""));
            // A version follows where there are two of one name.
            let name_of = |text: String| text.split(' ').next().map(str::to_owned);
            let name = quoted(head).into_iter().next()?;
            Some((name, quoted(dependencies).into_iter().filter_map(name_of).collect()))
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
    fn a_lock_that_lags_is_told() {
        let package = |dependencies: Value| serde_json::json!({"name": "a", "dependencies": dependencies});
        let lock =
            "[[package]]\nname = \"a\"\nversion = \"1\"\ndependencies = [\n \"b\",\n \"c 1.0.0\",\n]\n";
        let found = |dependencies| stale(lock, &[package(dependencies)]).count();
        let [b, c] = ["b", "c"].map(|name| serde_json::json!({"name": name, "kind": null}));
        let [test, optional] = [("kind", "dev".into()), ("optional", true.into())].map(|(key, value)| {
            let mut dependency = serde_json::json!({"name": "d", "kind": null});
            dependency[key] = value;
            dependency
        });
        assert_eq!(found(serde_json::json!([b, c, test, optional])), 0);
        assert_eq!(found(serde_json::json!([b])), 1);
        assert_eq!(found(serde_json::json!([b, c, {"name": "e", "kind": null}])), 1);
    }

    #[test]
    fn the_table_is_read() {
        let arrows =
            arrows_of("| crate | is | uses |\n|---|---|---|\n| `a` | x | |\n| `b` | y | `a`, `c` |\n");
        assert_eq!(arrows["b"], ["a", "c"].map(str::to_owned).into());
        assert!(arrows["a"].is_empty());
    }
}
