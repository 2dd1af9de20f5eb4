//! Reading files (plain or gzip) and writing them whole or not at all.

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use boute_spec::digest::sha256_hex;
use boute_spec::plan::{InputDigest, Plan};

use crate::failure::Failure;

/// Largest file we take in: a trace of ten million requests is about 250 MB.
const LARGEST_BYTES: u64 = 2 << 30;

/// A text file and what it is known by.
pub(crate) struct Input {
    /// The name the user gave, for messages.
    pub(crate) name: String,
    /// Its text, unpacked if it was gzip.
    pub(crate) text: String,
    /// SHA-256 of the bytes on disk.
    pub(crate) sha256: String,
}

impl Input {
    /// Reads `path`; `-` is standard input.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            std::io::stdin().read_to_end(&mut bytes).map_err(|error| Failure::unreadable(path, &error))?;
        } else {
            bytes = fs::read(path).map_err(|error| Failure::unreadable(path, &error))?;
        }
        Self::from_bytes(path.display().to_string(), &bytes)
    }

    /// The same from bytes in memory, such as the data compiled into the binary.
    pub(crate) fn from_bytes(name: String, bytes: &[u8]) -> Result<Self, Failure> {
        let sha256 = sha256_hex(bytes);
        let plain = if bytes.starts_with(&[0x1f, 0x8b]) { unpack(&name, bytes)? } else { bytes.to_vec() };
        let text = String::from_utf8(plain).map_err(|error| {
            Failure::input(
                format_args!("`{name}` is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()),
                "boute reads text files, plain or gzip",
            )
        })?;
        Ok(Self { name, text, sha256 })
    }

    /// Whether this is a plan where something else is wanted, as far as a glance tells.
    pub(crate) fn looks_like_a_plan(&self) -> bool {
        self.text.starts_with('{') && self.text.contains("\"deployment\"")
    }

    /// The entry of this file in a plan's list of inputs.
    pub(crate) fn digest(&self, input: &str) -> InputDigest {
        InputDigest { input: input.into(), file: self.name.clone(), sha256: self.sha256.clone() }
    }
}

/// Reads a plan.
pub(crate) fn read_plan(path: &Path) -> Result<Plan, Failure> {
    let input = Input::read(path)?;
    if !input.text.trim_start().starts_with('{') {
        return Err(Failure::input(
            format_args!("`{}` is no plan", input.name),
            "a plan is what `boute plan boute.yaml -o plan.json` makes of a spec",
        ));
    }
    Plan::parse(&input.name, &input.text).map_err(Failure::told)
}

/// The folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether both paths are there and lead to the same file or folder.
pub(crate) fn same_place(a: &Path, b: &Path) -> bool {
    fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
}

/// That files can be written there, asked before long work: their folders are there, and they are no folders themselves.
pub(crate) fn check_writable<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), Failure> {
    for path in paths {
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(Failure::input(
                format_args!("cannot write `{}`: there is no folder `{}`", path.display(), folder.display()),
                "make it, or write elsewhere",
            ));
        }
        check_no_folder(path)?;
    }
    Ok(())
}

fn check_no_folder(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::input(
            format_args!("cannot write `{}`: it is a folder", path.display()),
            "nothing was written; name a file in it, or move it away",
        ));
    }
    Ok(())
}

/// Opens a file of lines, or begins it, to append to, and reads what it holds. A last line that was not written to its end is
/// dropped.
pub(crate) fn open_lines(path: &Path) -> Result<(fs::File, String), Failure> {
    let failed = |error: std::io::Error| Failure::unwritable(path, &error);
    let file = fs::OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
    let bytes = fs::read(path).map_err(|error| Failure::unreadable(path, &error))?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    if whole < bytes.len() {
        file.set_len(whole as u64).map_err(failed)?;
    }
    Ok((file, String::from_utf8_lossy(&bytes[..whole]).into_owned()))
}

fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).take(LARGEST_BYTES).read_to_end(&mut plain).map_err(
        |error| {
            Failure::input(
                format_args!("`{name}` is not a whole gzip file: {error}"),
                "fetch or pack it again",
            )
        },
    )?;
    Ok(plain)
}

/// Writes `contents` to `path` at once: readers see the old file or the new one, never a part.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    write_whole_with(path, |file| file.write_all(contents))
}

/// The same for contents too long to hold.
pub(crate) fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let part = part_of(path);
    let written = write_part(&part, write);
    written.and_then(|()| fs::rename(&part, path)).map_err(|error| {
        // The part file may not exist; what matters is the first error.
        let _ = fs::remove_file(&part);
        Failure::unwritable(path, &error)
    })?;
    sync_name(path);
    Ok(())
}

/// Has the name of a new file or folder outlive a crash of the machine, where the system can be told to.
pub(crate) fn sync_name(path: &Path) {
    let _ = fs::File::open(folder_of(path)).and_then(|folder| folder.sync_all());
}

/// Writes files (path, contents, whether it is run), and makes their folders. None takes its name before all are written, and none is
/// written where a folder is in the way of one.
pub(crate) fn write_all_whole(files: &[(&Path, &[u8], bool)]) -> Result<(), Failure> {
    files.iter().try_for_each(|(path, ..)| check_no_folder(path))?;
    let undo = || {
        for (path, ..) in files {
            let _ = fs::remove_file(part_of(path));
        }
    };
    for (path, contents, executable) in files {
        let part = part_of(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("")))
            .and_then(|()| write_part(&part, |file| file.write_all(contents)))
            .and_then(|()| if *executable { make_executable(&part) } else { Ok(()) })
            .map_err(|error| {
                undo();
                Failure::unwritable(path, &error)
            })?;
    }
    for (done, (path, ..)) in files.iter().enumerate() {
        fs::rename(part_of(path), path).map_err(|error| {
            undo();
            Failure::input(
                format_args!("cannot write `{}`: {error}", path.display()),
                format_args!("{done} of {} files are new already: make way and write all again", files.len()),
            )
        })?;
    }
    for (path, ..) in files {
        sync_name(path);
    }
    Ok(())
}

/// Where a file is before it is whole.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn write_part(
    part: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut file = BufWriter::new(fs::File::create(part)?);
    write(&mut file)?;
    file.into_inner()?.sync_all()
}

fn make_executable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// `name` relative to the folder of `file`, unless it is absolute.
pub(crate) fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}
