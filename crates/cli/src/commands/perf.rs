//! `boute perf`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use boute_perf::interval::{CONFIDENCE, Spread};
use boute_perf::rows::{Predicted, parse_rows, predictions_csv};
use boute_perf::{
    Calibration, ClosedLoop, Engine, ReplicaConfig, ReplicaModel, ServingEstimate, StepParts, TtftParts,
    default_engine,
};
use boute_render::terminal::Breakdown;
use boute_spec::catalog::{Catalog, Precision, Source};
use boute_spec::units::BytesPerSecond;
use serde::Serialize;

use crate::complete;
use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::load;
use crate::printer::Printer;

/// Predict the speed of replicas.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Predict TTFT and TPOT for every row of a table.
    Estimate(EstimateArgs),
    /// Show where the time of one replica goes, and what binds.
    Explain(ExplainArgs),
}

/// Predicts mean TTFT and TPOT of closed loops: a fixed number of clients, each sending its next request when the last is
/// answered.
///
/// The table is CSV with the columns of aiconfigurator's silicon sample: `id`, `model_path`, `system`, `backend`, `isl`, `osl`
/// and `tp_size` are required; `backend_version`, `precision`, `concurrency` (of the whole deployment), `batch_size`,
/// `pp_size`, `attention_dp_size`, `moe_tp_size`, `moe_ep_size` are read where present. The answer has the columns `id`,
/// `pred_ttft_ms`, `pred_tpot_ms`, `source` (fitted: the kernels were measured on this GPU type; assumed: they were not, or our
/// memory model says that the replica does not fit) and the ends of the 80 % intervals.
#[derive(Debug, clap::Args)]
pub(crate) struct EstimateArgs {
    /// The table; `-` is standard input.
    #[arg(long)]
    rows: PathBuf,
    /// Write the predictions here instead of to standard output.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Shows the parts of a decode step, of a prompt and of the time to first token.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Catalogue name of the model.
    #[arg(long, add = complete::models())]
    model: String,
    /// Catalogue name of the GPU type.
    #[arg(long, add = complete::gpus())]
    gpu: String,
    /// Precision of the weights: bf16, fp8, int4 or nvfp4; the model's own if left out.
    #[arg(long, value_parser = load::precision)]
    dtype: Option<Precision>,
    /// Tensor parallelism.
    #[arg(long, default_value_t = 1)]
    tp: u32,
    /// Pipeline parallelism.
    #[arg(long, default_value_t = 1)]
    pp: u32,
    /// Engine: vllm, sglang or trtllm.
    #[arg(long, default_value = "vllm", value_parser = engine)]
    engine: Engine,
    /// Prompt tokens of every request.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    prompt_tokens: u32,
    /// Answer tokens of every request.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    answer_tokens: u32,
    /// Clients that each have one request under way.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    concurrency: u32,
    /// Bandwidth between two GPUs of the node, one direction, as this host has it, such as 25GB/s.
    #[arg(long)]
    link: Option<BytesPerSecond>,
}

fn engine(text: &str) -> Result<Engine, String> {
    let known = [Engine::Vllm, Engine::Sglang, Engine::TrtLlm];
    known.into_iter().find(|it| it.name() == text).ok_or_else(|| "use vllm, sglang or trtllm".into())
}

pub(crate) fn run(command: &Command, printer: Printer) -> Result<Ending, Failure> {
    match command {
        Command::Estimate(args) => estimate(args, printer),
        Command::Explain(args) => explain(args, printer),
    }
}

fn estimate(args: &EstimateArgs, printer: Printer) -> Result<Ending, Failure> {
    let input = Input::read(&args.rows)?;
    let (rows, skipped) = parse_rows(&input.text).map_err(|error| {
        Failure::input(
            format_args!("`{}`: {error}", input.name),
            "the columns are those of aiconfigurator's silicon sample, see `boute perf estimate --help`",
        )
    })?;
    let predicted: Vec<Predicted<'_>> = rows.iter().map(|row| row.predict(Calibration::builtin())).collect();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &skipped {
        *reasons.entry(&row.why).or_default() += 1;
    }
    for (why, count) in reasons {
        printer.say(format_args!("{count} rows left out: {why}"));
    }
    if let Some(path) = &args.output {
        write_whole(path, predictions_csv(&predicted).as_bytes())?;
        printer.say(format_args!("predicted {} rows in {}", predicted.len(), path.display()));
    } else if !printer.json {
        printer.raw(predictions_csv(&predicted));
    }
    printer.data(&predicted)?;
    Ok(Ending::Done)
}

/// What `explain` says; times in seconds.
#[derive(Serialize)]
struct Explained<'a> {
    model: &'a str,
    gpu: &'a str,
    tp: u32,
    pp: u32,
    engine: &'a str,
    source: Source,
    ttft_s: f64,
    ttft_interval_s: [f64; 2],
    tpot_s: f64,
    tpot_interval_s: [f64; 2],
    confidence: f64,
    answer_tokens_per_s: f64,
    running: f64,
    binds: &'a str,
    weights_bytes_per_gpu: u64,
    kv_cache_tokens: u64,
    decode_step: StepParts,
    prompt_step: StepParts,
    ttft: TtftParts,
}

fn explain(args: &ExplainArgs, printer: Printer) -> Result<Ending, Failure> {
    let catalog = Catalog::builtin();
    let model = catalog.model(&args.model).map_err(Failure::told)?.clone().in_dtype(args.dtype);
    let link = args.link.filter(|link| link.get() > 0.0);
    let gpu = catalog.gpu(&args.gpu).map_err(Failure::told)?.clone().with_link(link);
    let flags = default_engine(&gpu, &model.shape, args.prompt_tokens.saturating_add(args.answer_tokens));
    let config =
        ReplicaConfig { backend: args.engine, ..ReplicaConfig::new(model, gpu, args.tp, args.pp, flags) };
    let calibration = Calibration::builtin();
    let replica = ReplicaModel::new(&config, calibration).map_err(Failure::told)?;
    let load = ClosedLoop {
        prompt_tokens: args.prompt_tokens,
        answer_tokens: args.answer_tokens,
        clients: f64::from(args.concurrency),
    };
    let estimate = replica.closed_loop(&load);
    let spread = calibration.spread(config.kind(replica.source()));
    let explained = explained(&config, &replica, &load, &estimate, spread);
    printer.data(&explained)?;
    printer.text(text(&explained, &load));
    Ok(Ending::Done)
}

fn explained<'a>(
    config: &'a ReplicaConfig,
    replica: &ReplicaModel,
    load: &ClosedLoop,
    estimate: &ServingEstimate,
    spread: Spread,
) -> Explained<'a> {
    let answer = f64::from(load.answer_tokens);
    let full = estimate.running < load.clients;
    Explained {
        model: &config.model.id,
        gpu: &config.gpu.name,
        tp: config.tp,
        pp: config.pp,
        engine: config.backend.name(),
        source: replica.source(),
        ttft_s: estimate.ttft_s,
        ttft_interval_s: spread.ttft.map(|factor| factor * estimate.ttft_s),
        tpot_s: estimate.tpot_s,
        tpot_interval_s: spread.tpot.map(|factor| factor * estimate.tpot_s),
        confidence: CONFIDENCE,
        answer_tokens_per_s: load.clients * answer / (estimate.ttft_s + (answer - 1.0) * estimate.tpot_s),
        running: estimate.running,
        binds: if full { "room in the KV cache" } else { estimate.decode.binding() },
        weights_bytes_per_gpu: replica.memory().weights_bytes.0,
        kv_cache_tokens: replica.memory().kv_cache_tokens,
        decode_step: estimate.decode,
        prompt_step: estimate.prompt,
        ttft: estimate.ttft,
    }
}

fn text(it: &Explained<'_>, load: &ClosedLoop) -> String {
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let interval = |[low, high]: [f64; 2]| format!("{} – {}", ms(low), ms(high));
    let step = |parts: &StepParts| {
        vec![
            ("compute", parts.compute_s),
            ("bandwidth", parts.bandwidth_s),
            ("KV cache", parts.kv_s),
            ("communication", parts.communication_s),
            ("overhead", parts.overhead_s),
        ]
    };
    let first = vec![
        ("protocol, tokenising", it.ttft.request_s),
        ("the prompt", it.ttft.prompt_s),
        ("the running step", it.ttft.step_s),
        ("others' prompts", it.ttft.others_s),
        ("waiting for room", it.ttft.room_s),
    ];
    let source = match it.source {
        Source::Assumed => "kernels assumed: measured on another GPU type",
        Source::Measured | Source::Fitted => "kernels fitted on this GPU type",
    };
    format!(
        "{} on {} × TP {} × PP {}, {}, {} + {} tokens, {} clients ({source})\n\
         memory per GPU: {:.1} GiB of weights; the KV cache of the replica holds {} tokens, {:.0} sequences run at once\n\n\
         TPOT  {:>10}   80 % interval {}\nTTFT  {:>10}   80 % interval {}\n{:.0} answer tokens/s; decoding is bound by {}\n\n{}\n{}\n{}",
        it.model,
        it.gpu,
        it.tp,
        it.pp,
        it.engine,
        load.prompt_tokens,
        load.answer_tokens,
        load.clients,
        it.weights_bytes_per_gpu as f64 / f64::from(1 << 30),
        it.kv_cache_tokens,
        it.running,
        ms(it.tpot_s),
        interval(it.tpot_interval_s),
        ms(it.ttft_s),
        interval(it.ttft_interval_s),
        it.answer_tokens_per_s,
        it.binds,
        Breakdown { title: "a decode step", parts: step(&it.decode_step) },
        Breakdown { title: "a prompt alone", parts: step(&it.prompt_step) },
        Breakdown { title: "time to first token", parts: first },
    )
}
