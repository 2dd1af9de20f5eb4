//! The project's own chores: `cargo xtask tidy`, `cargo xtask bench NAME`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks to the terminal")]

use std::path::Path;
use std::process::ExitCode;

mod bench;
mod tidy;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy(),
        ["bench", rest @ ..] => bench::run(rest),
        _ => {
            eprintln!("usage: cargo xtask tidy | bench [small] | bench mobo [small | pictures FOLDER]");
            ExitCode::from(2)
        }
    }
}

fn tidy() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found = tidy::violations(&root);
    for violation in &found {
        eprintln!("{violation}");
    }
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
