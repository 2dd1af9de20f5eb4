//! The words of each engine's command line, from `catalog/engines.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use boute_spec::catalog::Precision;
use serde::Deserialize;

/// Address of a replica's first node, left in a command for the target to fill in.
pub(super) const LEADER: &str = "{leader}";
/// Number of a node within its replica, likewise.
pub(super) const RANK: &str = "{rank}";

/// One version of an engine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Engine {
    /// What users call it.
    pub(super) name: String,
    title: String,
    version: String,
    /// Container image with a fixed tag.
    pub(super) image: String,
    /// The program, and which weights.
    pub(super) command: Vec<String>,
    /// Said of every engine.
    pub(super) flags: Vec<String>,
    /// Said where there are several pipeline stages.
    pub(super) pipeline: Vec<String>,
    /// Prompt prefixes are reused.
    pub(super) prefix_caching: Vec<String>,
    /// They are not.
    pub(super) no_prefix_caching: Vec<String>,
    /// The KV cache has a byte per element.
    pub(super) fp8_kv_cache: Vec<String>,
    /// Where it listens.
    pub(super) listen: Vec<String>,
    /// Said where a replica spans nodes.
    pub(super) nodes: Vec<String>,
    /// Said instead of `listen` by nodes after the first.
    pub(super) follow: Vec<String>,
    /// The KV cache is handed over to another engine; empty where that is not written.
    #[serde(default)]
    pub(super) kv_transfer: Vec<String>,
    /// How weights of a precision are asked for.
    pub(super) precision: BTreeMap<Precision, Vec<String>>,
    /// Where the words come from.
    #[expect(dead_code, reason = "for those who read the table; required of every entry")]
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineFile {
    engine: Vec<Engine>,
}

static ENGINES: LazyLock<Vec<Engine>> = LazyLock::new(|| {
    let text = include_str!("../../../../catalog/engines.toml");
    let file: EngineFile = toml::from_str(text).unwrap_or_else(|error| panic!("engines.toml: {error}"));
    file.engine
});

impl Engine {
    /// Every engine in the table.
    pub(super) fn all() -> &'static [Self] {
        &ENGINES
    }

    /// `vLLM 0.33.0`.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.title, self.version)
    }
}

/// Replaces each `{key}` in `words` by its value; keys that are not given stay.
pub(super) fn filled(words: &[String], values: &[(&str, String)]) -> Vec<String> {
    words.iter().map(|word| fill(word, values)).collect()
}

fn fill(word: &str, values: &[(&str, String)]) -> String {
    let mut pieces = word.split('{');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (key, after) = piece.split_once('}').unwrap_or((piece, ""));
        match values.iter().find(|(name, _)| *name == key) {
            Some((_, value)) => out.extend([value, after]),
            // A placeholder of the target's, or a brace that is meant.
            None => out.extend(["{", piece]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_of_the_table_is_known() {
        let known = [
            "weights",
            "model",
            "tp",
            "pp",
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory_utilization",
            "max_model_len",
            "port",
            "nodes",
            "rank",
            "leader",
            "rendezvous",
        ];
        for engine in Engine::all() {
            let lists = [&engine.command, &engine.flags, &engine.pipeline, &engine.listen, &engine.nodes];
            for word in lists.into_iter().flatten() {
                for piece in word.split('{').skip(1) {
                    assert!(known.contains(&piece.split('}').next().unwrap()), "{}: {word}", engine.name);
                }
            }
        }
    }
}
