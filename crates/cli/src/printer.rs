//! The one place that prints: data to stdout, talk to stderr.
#![allow(clippy::unused_self, reason = "whoever prints holds the printer")]

use std::fmt::Display;
use std::io::IsTerminal;

use serde::Serialize;

use crate::failure::Failure;

/// Where output goes and how much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    /// Data as JSON instead of text.
    pub(crate) json: bool,
    /// No talk at all.
    pub(crate) quiet: bool,
}

impl Printer {
    /// Text for people, on stdout; nothing with `--json`.
    pub(crate) fn text(self, text: impl Display) {
        if !self.json {
            anstream::print!("{text}");
        }
    }

    /// The same as data, on stdout; nothing without `--json`.
    pub(crate) fn data<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        if self.json {
            let text = serde_json::to_string_pretty(value).map_err(Failure::unexpected)?;
            anstream::println!("{text}");
        }
        Ok(())
    }

    /// Data that is the same in both forms, on stdout.
    pub(crate) fn raw(self, text: impl Display) {
        anstream::print!("{text}");
    }

    /// Talk, on stderr.
    pub(crate) fn say(self, text: impl Display) {
        if !self.quiet {
            anstream::eprintln!("{text}");
        }
    }

    /// A question, on stderr; the answer follows on the same line.
    pub(crate) fn ask(self, question: impl Display) {
        anstream::eprint!("{question}");
    }

    /// An error, on stderr, also when quiet.
    pub(crate) fn error(self, message: &str) {
        anstream::eprintln!("\x1b[1;31merror\x1b[0m: {message}");
    }

    /// Whether text on stdout may carry colours (`NO_COLOR`, `CLICOLOR_FORCE` and pipes are heeded).
    pub(crate) fn colour(self) -> bool {
        anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
    }

    /// Columns of the terminal; 100 where there is none.
    pub(crate) fn width(self) -> usize {
        if std::io::stdout().is_terminal() {
            usize::from(console::Term::stdout().size().1).clamp(60, 140)
        } else {
            100
        }
    }
}
