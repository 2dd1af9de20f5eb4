//! The documentation against the program: every `boute` command that a page shows must be one, and the reference of commands
//! must be of today.
//!
//! Here they are parsed; `cargo xtask docs` runs them with the release binary.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use crate::Cli;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// README and all pages under `docs/`.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The `boute` commands in `sh` blocks of a page, continued lines joined.
fn commands(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in page.replace("\\\n", " ").lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && command.starts_with("boute ") => lines.push(command.to_owned()),
            _ => {}
        }
    }
    lines
}

/// The words of a command as a shell has them, up to a comment, a pipe, a redirection or the next command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | '>' | '<' | ';' | '&') => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_command_of_the_documentation_is_one() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages() {
        for line in commands(&fs::read_to_string(&page).unwrap()) {
            count += 1;
            if let Err(error) = Cli::try_parse_from(words(&line)) {
                wrong.push(format!("{}: {line}\n{error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "only {count} commands were found");
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let targets =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let file = page.with_file_name(target.split('#').next().unwrap_or(target));
            assert!(file.exists(), "{}: {target}", page.display());
        }
    }
}

#[test]
fn the_reference_of_commands_is_of_today() {
    let mut command = Cli::command();
    command.build();
    let written = fs::read_to_string(root().join("docs/reference/commands.md")).unwrap_or_default();
    let now = crate::commands::reference::markdown(&command);
    assert!(
        written == now,
        "docs/reference/commands.md is out of date: `cargo xtask reference` writes it anew"
    );
}

#[test]
fn shell_words_are_split() {
    assert_eq!(
        words("boute plan a.yaml --rate \"10 req/s\"  # why | x"),
        ["boute", "plan", "a.yaml", "--rate", "10 req/s"]
    );
    assert_eq!(words("boute schema > x.json"), ["boute", "schema"]);
}
