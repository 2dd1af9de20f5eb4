//! `results.jsonl`: what a comparison found so far, a line per cell and strategy, appended as soon as it is known.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use boute_spec::score::{CellName, CellResult};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::files::open_lines;

/// The first line: results of another grid, or of another version of the tool, are not mixed with these.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    grid_sha256: String,
    tool_version: String,
}

/// The file and what it holds.
pub(crate) struct Results {
    path: PathBuf,
    file: fs::File,
    found: Vec<CellResult>,
    known: BTreeSet<(CellName, String)>,
}

impl Results {
    /// Opens or begins `results.jsonl` in `folder`. A last line that was not written to its end is dropped.
    pub(crate) fn open(folder: &Path, grid_sha256: &str) -> Result<Self, Failure> {
        let path = folder.join("results.jsonl");
        let failed = |error: std::io::Error| Failure::unwritable(&path, &error);
        fs::create_dir_all(folder).map_err(failed)?;
        let (mut file, text) = open_lines(&path)?;
        let mut lines = (1..).zip(text.lines());
        let header =
            Header { grid_sha256: grid_sha256.into(), tool_version: env!("CARGO_PKG_VERSION").into() };
        match lines.next() {
            None => append(&mut file, &header).map_err(failed)?,
            Some((number, line)) => {
                let found: Header = parse(&path, number, line)?;
                if found != header {
                    return Err(Failure::input(
                        format_args!("`{}` holds results of {}", path.display(), difference(&found, &header)),
                        "results of different runs are not mixed: give another folder with `-o`",
                    ));
                }
            }
        }
        let found =
            lines.map(|(number, line)| parse(&path, number, line)).collect::<Result<Vec<CellResult>, _>>()?;
        let known = found.iter().map(|result| (result.cell.clone(), result.strategy.clone())).collect();
        Ok(Self { path, file, found, known })
    }

    /// Whether a strategy is done in a cell.
    pub(crate) fn has(&self, cell: &CellName, strategy: &str) -> bool {
        self.known.contains(&(cell.clone(), strategy.to_owned()))
    }

    /// Keeps a result, on disk first.
    pub(crate) fn add(&mut self, result: CellResult) -> Result<(), Failure> {
        append(&mut self.file, &result).map_err(|error| Failure::unwritable(&self.path, &error))?;
        self.found.push(result);
        Ok(())
    }

    /// All results.
    pub(crate) fn all(&self) -> &[CellResult] {
        &self.found
    }
}

fn append(file: &mut fs::File, value: &impl Serialize) -> std::io::Result<()> {
    let line = serde_json::to_string(value)? + "\n";
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, number: usize, line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| {
        Failure::input(
            format_args!("{}:{number}:{}: not a line of results: {error}", path.display(), error.column()),
            "another program wrote there, or another version of boute: give another folder with `-o`",
        )
    })
}

fn difference(found: &Header, wanted: &Header) -> String {
    if found.grid_sha256 == wanted.grid_sha256 {
        return format!("boute {}, this is {}", found.tool_version, wanted.tool_version);
    }
    "another grid, or of this one before it was changed".into()
}
