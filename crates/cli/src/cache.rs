//! Where simulated replicas are kept between runs: one file per book under the user's cache folder. Sentence embeddings lie in
//! a folder of their own there.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use boute_planner::{Database, Shelf};

use crate::files::write_whole;

/// Books kept; the ones longest unused go first.
const MOST_BOOKS: usize = 200;

/// A folder of books.
struct Folder(PathBuf);

/// The database of this user; in memory alone where there is no home, or where `BOUTE_CACHE` is `off`.
pub(crate) fn database() -> Database {
    folder().map_or_else(Database::in_memory, |folder| Database::on(Box::new(Folder(folder))))
}

/// A folder for sentence embeddings beside the books; `None` where nothing is kept.
pub(crate) fn embeddings_folder() -> Option<PathBuf> {
    folder().map(|folder| folder.join("embeddings"))
}

/// `$BOUTE_CACHE`, or `boute/tables` in the cache folder of the system.
fn folder() -> Option<PathBuf> {
    if let Some(folder) = set("BOUTE_CACHE") {
        return (folder.as_os_str() != "off").then_some(folder);
    }
    let caches =
        set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(|| Some(set("HOME")?.join(".cache")));
    Some(caches?.join("boute").join("tables"))
}

/// A folder that the environment names.
pub(crate) fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Shelf for Folder {
    fn read(&self, name: &str) -> Option<String> {
        let path = self.0.join(format!("{name}.json"));
        let text = fs::read_to_string(&path).ok()?;
        // When it was last of use; that it cannot be noted costs a simulation later, no more.
        let _ = fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(text)
    }

    fn write(&self, name: &str, book: &str) {
        // A cache that cannot be written is no cache; planning goes on.
        if fs::create_dir_all(&self.0).is_ok() {
            let _ = write_whole(&self.0.join(format!("{name}.json")), book.as_bytes());
            self.tidy_up();
        }
    }
}

impl Folder {
    fn tidy_up(&self) {
        let Ok(files) = fs::read_dir(&self.0) else { return };
        let mut books: Vec<(SystemTime, PathBuf)> = files
            .flatten()
            .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
            .filter(|(_, path)| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        books.sort_unstable();
        for (_, path) in books.iter().rev().skip(MOST_BOOKS) {
            let _ = fs::remove_file(path);
        }
    }
}
