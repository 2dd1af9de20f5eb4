//! `boute export`.

use std::fs;
use std::path::{Path, PathBuf};

use boute_render::export::ExportFile;
use boute_spec::plan::Plan;

use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

/// What to export to.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shell scripts that start the engines and the gateway on one machine.
    Shell(Args),
}

/// What to export and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan.
    plan: PathBuf,
    /// Folder to write to; made if it is not there.
    #[arg(long, short)]
    output: PathBuf,
}

pub(crate) fn run(command: &Command, printer: Printer) -> Result<Ending, Failure> {
    let Command::Shell(args) = command;
    let input = Input::read(&args.plan)?;
    let plan = Plan::parse(&input.name, &input.text).map_err(Failure::told)?;
    let files = boute_render::export::shell(&plan).map_err(Failure::told)?;
    fs::create_dir_all(&args.output).map_err(|error| Failure::unwritable(&args.output, &error))?;
    for file in &files {
        write(&args.output, file)?;
        printer.say(format_args!("wrote {}", args.output.join(&file.path).display()));
    }
    let paths: Vec<_> = files.iter().map(|file| args.output.join(&file.path)).collect();
    printer.data(&serde_json::json!({ "files": paths }))?;
    Ok(Ending::Done)
}

fn write(folder: &Path, file: &ExportFile) -> Result<(), Failure> {
    let path = folder.join(&file.path);
    write_whole(&path, file.contents.as_bytes())?;
    #[cfg(unix)]
    if file.executable {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(|error| Failure::unwritable(&path, &error))?;
    }
    Ok(())
}
