//! `boute schema`.

use boute_spec::parse::json_schema;

use crate::failure::{Ending, Failure};
use crate::printer::Printer;

pub(crate) fn run(printer: Printer) -> Result<Ending, Failure> {
    printer.raw(text()?);
    Ok(Ending::Done)
}

/// The schema as a file.
pub(crate) fn text() -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(&json_schema()).map_err(Failure::unexpected)?;
    Ok(text + "\n")
}
