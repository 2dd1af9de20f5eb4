//! What turns a text into a sentence embedding, for scorers that were trained with one.

#[cfg(feature = "embeddings")]
mod bert;

use std::fmt;

use boute_spec::data_file::DataError;
use boute_spec::digest::sha256_hex;
use rayon::prelude::*;

#[cfg(feature = "embeddings")]
pub use bert::Bert;

/// The files that make a model, in the order in which they are digested.
pub const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// Turns texts into vectors. Only this reads the weights; a scorer knows its digest and what the vectors mean to it.
pub trait Encode: fmt::Debug + Send + Sync {
    /// SHA-256 of the model, by [`digest`].
    fn sha256(&self) -> &str;

    /// Length of the vectors.
    fn dimensions(&self) -> usize;

    /// The embedding of a text, of Euclidean length 1; `None` if the model cannot read it.
    fn encode(&self, text: &str) -> Option<Vec<f32>>;

    /// The embeddings of many texts, in their order.
    fn encode_all(&self, texts: &[&str]) -> Vec<Option<Vec<f32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }
}

/// What a model with these [`FILES`] is known by: what `sha256sum config.json tokenizer.json model.safetensors | sha256sum`
/// prints in its folder.
pub fn digest(files: [&[u8]; FILES.len()]) -> String {
    let lines = FILES.iter().zip(files).map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes)));
    sha256_hex(lines.collect::<String>().as_bytes())
}

/// The sentence embedder of a model's [`FILES`], which lie in `folder`.
///
/// # Errors
/// If this program was built without the feature `embeddings`, or the files are not a BERT's or do not fit together.
pub fn open(folder: &str, files: [Vec<u8>; FILES.len()]) -> Result<Box<dyn Encode>, DataError> {
    #[cfg(feature = "embeddings")]
    return Bert::new(folder, files).map(|bert| Box::new(bert) as Box<dyn Encode>);
    #[cfg(not(feature = "embeddings"))]
    {
        drop(files);
        let hint = "build it with them: `cargo build --release -p boute --features embeddings`";
        Err(DataError::whole(folder, "this boute was built without sentence embeddings", hint))
    }
}
