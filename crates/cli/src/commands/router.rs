//! `boute router`.

use std::path::PathBuf;

use boute_router::Scorer;
use boute_spec::data_file::parse_quality;
use boute_spec::workload::{QualityData, Split};

use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

/// The query router.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a scorer on the training part of quality data and calibrate it on the validation part.
    Train(Train),
    /// Score a router on the test part of quality data.
    Eval(Eval),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
    /// Write the router here.
    #[arg(long, short, default_value = "router.json")]
    output: PathBuf,
    /// Only these models, small to large; all models of the first row if left out.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// The router.
    router: PathBuf,
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
}
