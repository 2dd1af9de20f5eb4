//! The router against its bars, on public test parts: quality, guarantee, drift, new tasks, hostile text, speed.
//!
//! Bars on a sample are met if the estimate reaches them; within its 95 % interval (bootstrap over queries) a miss is said
//! to be within noise and does not fail the run.

use std::path::Path;

use boute_router::{ScoredQueries, Scorer};
use boute_spec::data_file::parse_quality;
use boute_spec::workload::{QualityData, Query, Split};

use super::Report;

mod guarantee;
mod hostile;
mod online;
mod quality;
mod shift;
mod speed;

/// A data set, its scorer, and the queries the scorer has not seen.
struct Set {
    name: &'static str,
    data: QualityData,
    scorer: Scorer,
    validation: ScoredQueries,
    test: ScoredQueries,
    train_seconds: f64,
}

impl Set {
    fn load(name: &'static str, file: &str, models: &[&str]) -> Result<Self, String> {
        let data = read(file, models)?;
        let (train_seconds, scorer) = wall_seconds(|| Scorer::train(&data, 0, ""));
        let scorer = scorer.map_err(|error| error.to_string())?;
        let of = |split| scorer.score_queries(&data.models, data.split(split));
        let (validation, test) = (of(Split::Validation), of(Split::Test));
        Ok(Self { name, data, scorer, validation, test, train_seconds })
    }

    fn queries(&self, split: Split) -> Vec<&Query> {
        self.data.split(split).collect()
    }

    fn tasks(&self, split: Split) -> Vec<&str> {
        self.data.split(split).map(|query| query.task.as_str()).collect()
    }
}

/// Made-up words: the prefix with a number each.
fn numbered(prefix: &str, count: u32) -> String {
    (0..count).fold(String::new(), |text, at| text + prefix + &at.to_string())
}

/// Wall seconds: training uses all cores.
fn wall_seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = std::time::Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

fn read(file: &str, models: &[&str]) -> Result<QualityData, String> {
    let text = crate::unpacked(&crate::root().join(file))?;
    let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
    let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
    parse_quality(&name, &text, &models).map_err(|error| error.to_string())
}

pub(crate) fn run(small: bool, report: &mut Report) -> Result<(), String> {
    let routellm = Set::load("RouteLLM", "benchmarks/data/routellm.jsonl.gz", &[])?;
    let zeroeval = Set::load("ZeroEval", "grids/data/zeroeval.jsonl.gz", &["llama-3.1-8b", "llama-3.1-70b"])?;
    quality::pair(&routellm, &quality::ROUTELLM, report);
    quality::pair(&zeroeval, &quality::ZEROEVAL, report);
    speed::run(&routellm, report);
    online::run(&routellm, small, report);
    if small {
        guarantee::run(&[&routellm, &zeroeval], 100, report);
        return Ok(());
    }
    quality::rivals(&routellm, report);
    let mmlu = Set::load("MMLU-Pro", "examples/data/mmlu_pro_llama.jsonl.gz", &[])?;
    quality::pair(&mmlu, &quality::MMLU_PRO, report);
    quality::lengths(&mmlu, report);
    quality::length_costs(&mmlu, report);
    quality::length_costs(&zeroeval, report);
    quality::cascade(&mmlu, report);
    let pool = Set::load("LLMRouter", "benchmarks/data/llmrouter.jsonl.gz", &[])?;
    quality::pool(&pool, report);
    let pair = Set::load(
        "LLMRouter pair",
        "benchmarks/data/llmrouter.jsonl.gz",
        &["llama-3.1-8b-instruct", "llama-3.1-nemotron-51b-instruct"],
    )?;
    guarantee::run(&[&routellm, &mmlu, &zeroeval, &pair], 1000, report);
    shift::run(&routellm, &pool, report)?;
    hostile::run(&routellm, report);
    Ok(())
}
