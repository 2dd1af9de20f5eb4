//! How a command ends: exit codes, and errors that say where, why and what to do.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

/// How a command that worked ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Done.
    Done,
    /// The answer is no: nothing meets the targets, or a promise was not kept.
    Unmet,
}

/// Why a command did not work: what, where, and what to do about it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the user gave cannot be used; they can mend it.
    Input(String),
    /// Something broke which is not the user's doing.
    Unexpected(String),
}

impl Failure {
    /// Bad input, with what to do about it.
    pub(crate) fn input(message: impl Display, hint: impl Display) -> Self {
        Self::Input(format!("{message}\n  help: {hint}"))
    }

    /// Bad input whose message already tells the way out.
    pub(crate) fn told(message: impl Display) -> Self {
        Self::Input(message.to_string())
    }

    /// A file that cannot be read.
    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            ErrorKind::NotFound => "check the name; paths in a spec are relative to the spec",
            ErrorKind::IsADirectory => "name a file in it",
            _ => "check that the file is readable",
        };
        Self::input(format_args!("cannot read `{}`: {error}", path.display()), hint)
    }

    /// A file that cannot be written.
    pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Self {
        Self::input(
            format_args!("cannot write `{}`: {error}", path.display()),
            "nothing was written; check that the folder exists and is writable",
        )
    }

    /// Not the user's doing.
    pub(crate) fn unexpected(message: impl Display) -> Self {
        let hint = "this looks like a fault in boute: please report it with the command and its input";
        Self::Unexpected(format!("{message}\n  help: {hint}"))
    }
}

/// 0 done, 1 the answer is no, 2 input, 3 unexpected.
pub(crate) fn exit_code(result: &Result<Ending, Failure>) -> u8 {
    match result {
        Ok(Ending::Done) => 0,
        Ok(Ending::Unmet) => 1,
        Err(Failure::Input(_)) => 2,
        Err(Failure::Unexpected(_)) => 3,
    }
}
