//! `boute quality`.

use crate::failure::{Ending, Failure};
use crate::printer::Printer;

mod collect;
mod judge;

/// What to do with quality data.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Ask your models your prompts, and score what they answer: quality data of your own.
    Collect(collect::Args),
}

pub(crate) fn run(command: &Command, printer: Printer) -> Result<Ending, Failure> {
    match command {
        Command::Collect(args) => collect::run(args, printer),
    }
}
