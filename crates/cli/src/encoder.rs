//! The sentence embedder of routers that were trained with one: a folder on disk. What it makes of quality data is kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use boute_router::Scorer;
use boute_router::encoder::{self, Encode, FILES};
use boute_spec::data_file::DataError;
use boute_spec::digest::sha256_hex;

use crate::cache;
use crate::failure::Failure;
use crate::files::Input;
use crate::progress::{Progress, is_quiet};

/// The environment's variable that names the folder.
const FOLDER: &str = "BOUTE_EMBEDDINGS";
/// Texts between two writes to the cache.
const AT_ONCE: usize = 64;
/// A cache that has grown past this is begun anew.
const LARGEST_BYTES: u64 = 1 << 30;

/// Reads a router artefact, and the embedder that it was trained with, if it was, from the folder in the environment.
pub(crate) fn read_scorer(input: &Input) -> Result<Scorer, Failure> {
    let find = |sha256: &str| {
        let folder = cache::set(FOLDER).ok_or_else(|| {
            DataError::whole(
                &*input.name,
                format!(
                    "this router reads the sentence embeddings of a model (SHA-256 {sha256}) that is not given"
                ),
                format!("say where the model lies that it was trained with: `{FOLDER}=FOLDER`"),
            )
        })?;
        open(&folder)
    };
    Scorer::parse_with(&input.name, &input.text, find).map_err(Failure::told)
}

/// The embedder in a folder.
pub(crate) fn open(folder: &Path) -> Result<Arc<dyn Encode>, DataError> {
    let name = folder.display().to_string();
    let read = |file: &str| {
        let path = folder.join(file);
        fs::read(&path).map_err(|cause| {
            let hint = format!("a sentence embedder is a folder with {}", FILES.join(", "));
            DataError::whole(path.display().to_string(), format!("cannot be read: {cause}"), hint)
        })
    };
    let [config, tokenizer, weights] = FILES.map(read);
    let model = encoder::open(&name, [config?, tokenizer?, weights?])?;
    let file = cache::embeddings_folder().map(|folder| folder.join(format!("{}.bin", model.sha256())));
    Ok(Arc::new(Cached { model, file }))
}

/// An embedder that remembers what it has read in bulk: a file of records, each the SHA-256 of a text and its embedding.
#[derive(Debug)]
struct Cached {
    model: Box<dyn Encode>,
    file: Option<PathBuf>,
}

impl Encode for Cached {
    fn sha256(&self) -> &str {
        self.model.sha256()
    }

    fn dimensions(&self) -> usize {
        self.model.dimensions()
    }

    fn encode(&self, text: &str) -> Option<Vec<f32>> {
        self.model.encode(text)
    }

    fn encode_all(&self, texts: &[&str]) -> Vec<Option<Vec<f32>>> {
        let keys: Vec<String> = texts.iter().map(|text| sha256_hex(text.as_bytes())).collect();
        let mut known = self.known();
        let missing: BTreeMap<&String, &str> = keys
            .iter()
            .zip(texts)
            .filter(|(key, _)| !known.contains_key(*key))
            .map(|(k, t)| (k, *t))
            .collect();
        let missing: Vec<(&String, &str)> = missing.into_iter().collect();
        let progress = Progress::new(is_quiet());
        for (at, some) in missing.chunks(AT_ONCE).enumerate() {
            progress.at("embedding queries", (at * AT_ONCE) as u64, missing.len() as u64);
            let made = self.model.encode_all(&some.iter().map(|(_, text)| *text).collect::<Vec<_>>());
            let mut records = Vec::new();
            for ((key, _), embedding) in some.iter().zip(made) {
                let Some(embedding) = embedding else { continue };
                records.extend(key.as_bytes());
                records.extend(embedding.iter().flat_map(|x| x.to_le_bytes()));
                known.insert((*key).clone(), embedding);
            }
            self.keep(&records);
        }
        progress.finish();
        keys.iter().map(|key| known.get(key).cloned()).collect()
    }
}

impl Cached {
    fn known(&self) -> BTreeMap<String, Vec<f32>> {
        const KEY: usize = 64;
        let Some(file) = &self.file else { return BTreeMap::new() };
        if fs::metadata(file).is_ok_and(|about| about.len() > LARGEST_BYTES) {
            let _ = fs::remove_file(file);
        }
        let mut bytes = fs::read(file).unwrap_or_default();
        let size = KEY + 4 * self.dimensions();
        if !bytes.len().is_multiple_of(size) {
            // A record that was not written to its end.
            bytes.truncate(bytes.len() / size * size);
            let _ =
                fs::File::options().write(true).open(file).and_then(|file| file.set_len(bytes.len() as u64));
        }
        let record = |record: &[u8]| {
            let (key, vector) = record.split_at(KEY);
            let vector = vector.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect();
            Some((String::from_utf8(key.to_vec()).ok()?, vector))
        };
        bytes.chunks_exact(size).filter_map(record).collect()
    }

    /// A cache that cannot be written is no cache; work goes on.
    fn keep(&self, records: &[u8]) {
        let Some(file) = &self.file else { return };
        let written = fs::create_dir_all(file.parent().unwrap_or(Path::new("")))
            .and_then(|()| fs::OpenOptions::new().append(true).create(true).open(file))
            .and_then(|mut file| file.write_all(records));
        let _ = written;
    }
}
