//! What the autopilot keeps beside a plan, in `PLAN.autopilot/`: the journal, the lock, plans by digest, and what a person has said.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use boute_planner::autopilot::{Entry, Hold, Record, digest, read_journal};
use boute_spec::plan::Plan;

use crate::failure::Failure;
use crate::files::{read_plan, sync_name, write_whole};
use crate::market::Gpus;

pub(crate) const JOURNAL: &str = "journal.jsonl";

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Of a plan; nothing is made yet.
    pub(crate) fn of(plan: &Path) -> Self {
        let mut name = plan.file_name().unwrap_or_default().to_owned();
        name.push(".autopilot");
        Self(plan.with_file_name(name))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn make(&self) -> Result<(), Failure> {
        let plans = self.path("plans");
        fs::create_dir_all(&plans).map_err(|error| Failure::unwritable(&plans, &error))?;
        sync_name(&self.0);
        sync_name(&plans);
        Ok(())
    }

    /// What a person has said.
    pub(crate) fn hold(&self) -> Hold {
        match fs::read_to_string(self.path("hold")).unwrap_or_default().trim() {
            "" => Hold::None,
            "freeze" => Hold::Freeze,
            // Whatever else was meant, it was not to go on.
            _ => Hold::Pin,
        }
    }

    pub(crate) fn set_hold(&self, hold: Hold) -> Result<(), Failure> {
        self.make()?;
        let text = match hold {
            Hold::None => "",
            Hold::Freeze => "freeze\n",
            Hold::Pin => "pin\n",
        };
        write_whole(&self.path("hold"), text.as_bytes())
    }

    /// GPUs that a person has said are lost.
    pub(crate) fn lost(&self) -> Result<BTreeMap<String, u32>, Failure> {
        let text = fs::read_to_string(self.path("lost")).unwrap_or_default();
        let gpus: Result<Vec<Gpus>, String> = text.split_whitespace().map(str::parse).collect();
        gpus.map(|gpus| Gpus::by_type(&gpus)).map_err(|error| {
            let path = self.path("lost");
            Failure::input(
                format_args!("{}: {error}", path.display()),
                "say it again: `boute autopilot lost PLAN H100-SXM:2`",
            )
        })
    }

    pub(crate) fn set_lost(&self, lost: &BTreeMap<String, u32>) -> Result<(), Failure> {
        self.make()?;
        let lines = lost.iter().filter(|(_, lost)| **lost > 0).map(|(gpu, lost)| format!("{gpu}:{lost}\n"));
        write_whole(&self.path("lost"), lines.collect::<String>().as_bytes())
    }

    /// Where a plan is kept.
    pub(crate) fn plan_file(&self, digest: &str) -> PathBuf {
        self.path("plans").join(format!("{digest}.json"))
    }

    pub(crate) fn keep(&self, plan: &Plan) -> Result<(), Failure> {
        write_whole(&self.plan_file(&digest(plan)), plan.to_json_pretty().as_bytes())
    }

    pub(crate) fn plan(&self, digest: &str) -> Result<Plan, Failure> {
        read_plan(&self.plan_file(digest))
    }

    /// The records so far, without taking the lock.
    pub(crate) fn records(&self) -> Result<Vec<Record>, Failure> {
        let path = self.path(JOURNAL);
        match fs::read(&path) {
            Ok(bytes) => whole(&path, &bytes).map(|(records, _)| records),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Failure::unreadable(&path, &error)),
        }
    }
}

fn whole(path: &Path, bytes: &[u8]) -> Result<(Vec<Record>, usize), Failure> {
    read_journal(bytes).map_err(|line| {
        let hint = "it was changed or belongs to another version: put the line right, or move the file away to begin anew";
        Failure::input(format_args!("{}:{line}: no record of the autopilot", path.display()), hint)
    })
}

/// The journal, and the right to write it: one process at a time.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Held until this process has ended, and whatever command it started.
    lock: File,
}

impl Journal {
    /// Takes the lock and reads what is there; what a crash cut off is cut away.
    pub(crate) fn open(folder: &Folder) -> Result<(Self, Vec<Record>), Failure> {
        folder.make()?;
        let path = folder.path("lock");
        let lock = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let lock = lock.map_err(|error| Failure::unwritable(&path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::input(
                    format_args!(
                        "another autopilot runs on this plan, or a command that it started: `{}` is held",
                        path.display()
                    ),
                    "stop it first, or let its command end",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(Failure::unwritable(&path, &error)),
        }
        let path = folder.path(JOURNAL);
        let open = || -> std::io::Result<(File, Vec<u8>)> {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok((file, bytes))
        };
        let (mut file, bytes) = open().map_err(|error| Failure::unwritable(&path, &error))?;
        let (records, end) = whole(&path, &bytes)?;
        file.set_len(end as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(|error| Failure::unwritable(&path, &error))?;
        sync_name(&path);
        Ok((Self { path, file, lock }, records))
    }

    /// Appends a record; it is on disk when this returns.
    pub(crate) fn append(&mut self, at_s: u64, entry: Entry) -> Result<Record, Failure> {
        let record = Record { at_s, entry };
        let mut line = serde_json::to_vec(&record).map_err(Failure::unexpected)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| Failure::unwritable(&self.path, &error))?;
        Ok(record)
    }

    /// The lock, for a command that must be over before another autopilot begins.
    pub(crate) fn lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }
}
