//! The project's own chores: `cargo xtask tidy`, `cargo xtask reference`, `cargo xtask bench NAME`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks to the terminal")]

use std::alloc::System;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flate2::read::GzDecoder;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts allocations, so that the router's benchmark can show that a decision makes none.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

mod bench;
mod calibrate;
mod docs;
mod reference;
mod tidy;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy(),
        ["bench", rest @ ..] => bench::run(rest),
        ["calibrate"] => done(calibrate::run(&root())),
        ["reference"] => done(reference::run(&root())),
        ["docs", boute, demo @ ..] if demo.len() < 2 => {
            done(docs::run(&root(), Path::new(boute), demo.first().map(Path::new)))
        }
        _ => {
            eprintln!(
                "usage: cargo xtask tidy | calibrate | reference | docs BOUTE [DEMO] | bench [perf | sim | mobo | planner | router | autopilot] [small]"
            );
            ExitCode::from(2)
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a file, unpacked if it is packed by gzip.
fn unpacked(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(failed)?;
    let mut text = String::new();
    let read = if bytes.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text)
    } else {
        bytes.as_slice().read_to_string(&mut text)
    };
    read.map(|_| text).map_err(failed)
}

fn done(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn tidy() -> ExitCode {
    let root = root();
    let found = tidy::violations(&root);
    for violation in &found {
        eprintln!("{violation}");
    }
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
