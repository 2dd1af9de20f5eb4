//! What engines tell about themselves at `/metrics`, in Prometheus' text form.
//!
//! Names: vLLM 0.33 (docs.vllm.ai, usage/metrics; before 0.9 the cache was `gpu_…`), `SGLang` 0.5
//! (docs.sglang.io, `references/production_metrics`), llama.cpp's server (seen on a running one).

use std::collections::BTreeMap;

/// Of a name, the sum over its label sets.
type Samples = BTreeMap<String, f64>;

/// The engines whose counters we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// vLLM, or what speaks like it.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
}

impl EngineName {
    /// As its makers write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// Counters of one engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineMetrics {
    /// Which engine.
    pub engine: EngineName,
    /// Tokens that its KV cache holds.
    pub kv_cache_tokens: Option<u64>,
    /// Prompt tokens computed or taken from the prefix cache.
    pub prompt_tokens: Option<f64>,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: Option<f64>,
    /// Sequences thrown out for want of memory.
    pub preemptions: Option<f64>,
    /// Time to first token as the engine sees it: sum in seconds, and requests.
    pub ttft: Option<(f64, f64)>,
}

impl EngineMetrics {
    /// Reads a page; `None` if it is of no engine that we know.
    pub fn parse(text: &str) -> Option<Self> {
        let samples = samples(text);
        let engine = [
            (EngineName::Vllm, "vllm:"),
            (EngineName::Sglang, "sglang:"),
            (EngineName::LlamaCpp, "llamacpp:"),
        ]
        .into_iter()
        .find(|(_, prefix)| samples.keys().any(|name| name.starts_with(prefix)))
        .map(|(engine, _)| engine)?;
        let first = |names: &[&str]| names.iter().find_map(|name| samples.get(*name).copied());
        let ttft = |prefix: &str| {
            let of = |part| first(&[&format!("{prefix}:time_to_first_token_seconds_{part}")]);
            of("sum").zip(of("count"))
        };
        let none = Self {
            engine,
            kv_cache_tokens: None,
            prompt_tokens: None,
            cached_tokens: None,
            preemptions: None,
            ttft: None,
        };
        Some(match engine {
            EngineName::Vllm => Self {
                kv_cache_tokens: cache_config(text),
                prompt_tokens: first(&[
                    "vllm:prefix_cache_queries_total",
                    "vllm:gpu_prefix_cache_queries_total",
                ]),
                cached_tokens: first(&["vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"]),
                preemptions: first(&["vllm:num_preemptions_total"]),
                ttft: ttft("vllm"),
                ..none
            },
            EngineName::Sglang => Self {
                kv_cache_tokens: first(&["sglang:max_total_num_tokens"]).map(|tokens| tokens as u64),
                prompt_tokens: first(&["sglang:prompt_tokens_total"]),
                cached_tokens: first(&["sglang:cached_tokens_total"]),
                preemptions: first(&["sglang:num_retracted_requests_total"]),
                ttft: ttft("sglang"),
                ..none
            },
            EngineName::LlamaCpp => {
                let cached = first(&["llamacpp:prompt_tokens_cached_total"]);
                // Its count of prompt tokens leaves the cached ones out.
                let computed = first(&["llamacpp:prompt_tokens_total"]);
                let prompt_tokens = computed.map(|computed| computed + cached.unwrap_or_default());
                Self { prompt_tokens, cached_tokens: cached, ..none }
            }
        })
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |after: Option<f64>, before: Option<f64>| {
            after.zip(before).map(|(after, before)| (after - before).max(0.0))
        };
        Self {
            prompt_tokens: less(self.prompt_tokens, before.prompt_tokens),
            cached_tokens: less(self.cached_tokens, before.cached_tokens),
            preemptions: less(self.preemptions, before.preemptions),
            ttft: self.ttft.zip(before.ttft).map(|(after, before)| (after.0 - before.0, after.1 - before.1)),
            ..self.clone()
        }
    }

    /// Share of the prompt tokens that came from the prefix cache.
    pub fn cached_share(&self) -> Option<f64> {
        self.cached_tokens.zip(self.prompt_tokens).filter(|(_, all)| *all > 0.0).map(|(hits, all)| hits / all)
    }
}

/// What an engine has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineLoad {
    /// Requests in its batches.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
}

/// Names of the two gauges, engine by engine: vLLM, `SGLang`, TensorRT-LLM, llama.cpp (the Gateway API Inference
/// Extension's proposal 003, and a running llama.cpp server).
const LOAD_NAMES: [[&str; 2]; 4] = [
    ["vllm:num_requests_running", "vllm:num_requests_waiting"],
    ["sglang:num_running_reqs", "sglang:num_queue_reqs"],
    ["trtllm_num_requests_running", "trtllm_num_requests_waiting"],
    ["llamacpp:requests_processing", "llamacpp:requests_deferred"],
];

impl EngineLoad {
    /// Reads a page; `None` if it does not say.
    pub fn parse(text: &str) -> Option<Self> {
        let samples = samples(text);
        LOAD_NAMES.iter().find_map(|[running, waiting]| {
            let running = *samples.get(*running)? as u32;
            let waiting = samples.get(*waiting).copied().unwrap_or_default() as u32;
            Some(Self { running, waiting })
        })
    }
}

fn samples(text: &str) -> Samples {
    let mut samples = Samples::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        // A label's value may hold blanks: the number follows the last brace.
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest.rsplit_once('}').map_or("", |(_, rest)| rest)),
            None => line.split_once(' ').unwrap_or((line, "")),
        };
        let value = rest.split_whitespace().next().and_then(|number| number.parse::<f64>().ok());
        if let Some(value) = value.filter(|value| value.is_finite()) {
            *samples.entry(name.to_owned()).or_default() += value;
        }
    }
    samples
}

/// vLLM writes the cache's size as labels: blocks times tokens a block, over all engines.
fn cache_config(text: &str) -> Option<u64> {
    let tokens = text.lines().filter(|line| line.starts_with("vllm:cache_config_info{")).filter_map(|line| {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"')?.0.parse::<u64>().ok()
        };
        label("num_gpu_blocks")?.checked_mul(label("block_size")?)
    });
    tokens.reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read() {
        let vllm = "vllm:num_requests_running{engine=\"0\"} 3.0\nvllm:num_requests_running{engine=\"1\"} 1\nvllm:num_requests_waiting{engine=\"0\"} 2.0\n";
        assert_eq!(EngineLoad::parse(vllm), Some(EngineLoad { running: 4, waiting: 2 }));
        let llama = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n";
        assert_eq!(EngineLoad::parse(llama), Some(EngineLoad { running: 1, waiting: 0 }));
        assert_eq!(EngineLoad::parse("up 1\n"), None);
    }

    #[test]
    fn the_three_engines_are_read() {
        let vllm = "# HELP x\nvllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",num_gpu_blocks=\"1000\"} 1.0\n\
                    vllm:prefix_cache_queries_total{model_name=\"a b\",engine=\"0\"} 1000.0\n\
                    vllm:prefix_cache_queries_total{model_name=\"a b\",engine=\"1\"} 500.0\n\
                    vllm:prefix_cache_hits_total{model_name=\"a b\"} 150.0\n\
                    vllm:time_to_first_token_seconds_sum{model_name=\"a\"} 4.0\n\
                    vllm:time_to_first_token_seconds_count{model_name=\"a\"} 8\n";
        let read = EngineMetrics::parse(vllm).unwrap();
        assert_eq!(
            (read.engine, read.kv_cache_tokens, read.ttft),
            (EngineName::Vllm, Some(16_000), Some((4.0, 8.0)))
        );
        assert_eq!((read.cached_share(), read.preemptions), (Some(0.1), None));
        let none = read.since(&read);
        assert_eq!(
            (none.kv_cache_tokens, none.cached_share(), none.ttft),
            (Some(16_000), None, Some((0.0, 0.0)))
        );

        let sglang = "sglang:max_total_num_tokens{model_name=\"m\"} 5e5\nsglang:prompt_tokens_total{model_name=\"m\"} 8.0\n";
        let read = EngineMetrics::parse(sglang).unwrap();
        assert_eq!((read.engine.name(), read.kv_cache_tokens), ("SGLang", Some(500_000)));

        let llama = "llamacpp:prompt_tokens_total 90\nllamacpp:prompt_tokens_cached_total 10\n";
        assert_eq!(EngineMetrics::parse(llama).unwrap().cached_share(), Some(0.1));

        for strange in ["", "{", "}{ vllm", "vllm: x", "up 1", "<html>", "vllm:x{a=\"\n"] {
            assert_eq!(EngineMetrics::parse(strange), None, "{strange}");
        }
    }
}
