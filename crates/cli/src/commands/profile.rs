//! `boute profile`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use boute_gateway::engine_metrics::EngineName;
use boute_gateway::profile::{Load, Measured, MeasuredLoad, ProfileConfig, Timing, profile};
use boute_perf::profile::{Fit, MeasuredPoint, MedianError, Point, Profile, Summary};
use boute_perf::{Calibration, ClosedLoop, Engine, ReplicaConfig, Speed, default_engine};
use boute_spec::catalog::{Catalog, Model, Precision};
use boute_spec::file::ModelEntry;
use comfy_table::{Table, presets};

use crate::complete;
use crate::failure::{Ending, Failure};
use crate::files::{Input, check_writable, write_whole};
use crate::load;
use crate::printer::Printer;
use crate::progress::Progress;

/// Fewer measured loads say nothing.
const FEWEST_LOADS: usize = 3;
/// An answer whose next part takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);
/// A larger share of prompt tokens from the prefix cache flatters.
const MOST_CACHED: f64 = 0.1;

/// Measures a live OpenAI-compatible engine and corrects the model of its speed: TTFT and TPOT of closed loops of clients
/// at a few prompt lengths, answer lengths and numbers of clients. Every prompt is new, so that no prefix cache helps.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The engine, such as `http://127.0.0.1:8000`.
    url: String,
    /// Catalogue name of the model; with `--config`, any name.
    #[arg(long, add = complete::models())]
    model: String,
    /// Catalogue name of the GPU type; for other hardware, the one most like it.
    #[arg(long, add = complete::gpus())]
    gpu: String,
    /// Tensor parallelism the engine runs with.
    #[arg(long, default_value_t = 1)]
    tp: u32,
    /// Pipeline parallelism the engine runs with.
    #[arg(long, default_value_t = 1)]
    pp: u32,
    /// The model's Hugging Face `config.json`, if it is not in the catalogue.
    #[arg(long)]
    config: Option<String>,
    /// Precision of the weights: bf16, fp8, int4 or nvfp4; the catalogue's or the config's own if not given.
    #[arg(long, value_parser = load::precision)]
    dtype: Option<Precision>,
    /// Name the engine serves the model under, if it serves several.
    #[arg(long)]
    served_model: Option<String>,
    /// Prompt lengths to measure.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512, 2048], value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    prompt_tokens: Vec<u32>,
    /// Answer lengths to measure: the first at every prompt length and number of clients, the others once each.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256], value_parser = clap::value_parser!(u32).range(4..=100_000))]
    answer_tokens: Vec<u32>,
    /// Numbers of clients that ask at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16], value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: Vec<u32>,
    /// About how long to measure; the heaviest loads are left out where it does not suffice.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seed of prompts and lengths.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the profile here.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// The speed in a `profile.json`.
pub(crate) fn read_speed(path: &Path) -> Result<Speed, Failure> {
    let input = Input::read(path)?;
    let hint = "`boute profile URL -o FILE` writes one";
    let profile: Profile = serde_json::from_str(&input.text)
        .map_err(|error| Failure::input(format_args!("{}: not a profile: {error}", input.name), hint))?;
    match profile.problem() {
        None => Ok(profile.speed),
        Some(problem) => Err(Failure::input(format_args!("{}: {problem}", input.name), hint)),
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_writable(&args.output)?;
    let mut config = replica(args)?;
    let measured = measure(args, printer)?;
    for note in &measured.notes {
        printer.say(note);
    }
    if let Some(EngineName::Sglang) = measured.metrics.as_ref().map(|metrics| metrics.engine) {
        config.backend = Engine::Sglang;
    }
    let points = points(&measured, printer)?;
    let calibration = Calibration::builtin().without_bursts();
    let loads: Vec<Point<'_>> = points.iter().map(|(point, _)| of_file(&config, point)).collect();
    let fit = Fit::new(&loads, &calibration, repeatability(&points));
    let profile = Profile {
        version: Profile::VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        measured_at_unix_s: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: config.model.id.clone(),
        gpu: config.gpu.name.clone(),
        tp: config.tp,
        pp: config.pp,
        engine: engine_name(&measured),
        kv_cache_tokens: measured.metrics.as_ref().and_then(|metrics| metrics.kv_cache_tokens),
        prefix_cache_share: cached_share(&measured, printer),
        speed: fit.speed,
        spread: fit.spread,
        error_before: fit.before,
        error_after: fit.after,
        points: points.into_iter().map(|(point, _)| point).collect(),
    };
    if let Some(path) = &args.output {
        let json = serde_json::to_string_pretty(&profile).map_err(Failure::unexpected)? + "\n";
        write_whole(path, json.as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&profile)?;
    printer.text(text(&profile, &config, &calibration));
    Ok(Ending::Done)
}

/// The replica as the engine is said to run it.
fn replica(args: &Args) -> Result<ReplicaConfig, Failure> {
    let entry =
        ModelEntry { id: args.model.clone(), config: args.config.clone(), dtype: args.dtype, weights: None };
    let model: Model = load::model(&entry, &|name| Input::read(name.as_ref()))?;
    let gpu = Catalog::builtin().gpu(&args.gpu).map_err(Failure::told)?.clone();
    if !args.tp.is_power_of_two() || args.tp > 64 || !(1..=model.shape.layers).contains(&args.pp) {
        return Err(Failure::input(
            format_args!("no engine runs {} with TP {} and PP {}", args.model, args.tp, args.pp),
            "give what the engine was started with: TP a power of two, PP no more than the layers",
        ));
    }
    let longest = |lengths: &[u32]| lengths.iter().copied().max().unwrap_or_default();
    let longest = longest(&args.prompt_tokens).saturating_add(2 * longest(&args.answer_tokens));
    let engine = default_engine(&gpu, &model.shape, longest);
    Ok(ReplicaConfig::new(model, gpu, args.tp, args.pp, engine))
}

/// Every prompt length with every number of clients, and the further answer lengths in the middle.
fn loads(args: &Args) -> Vec<Load> {
    let (prompts, answers, clients) = (&args.prompt_tokens, &args.answer_tokens, &args.clients);
    let load = |prompt_tokens, answer_tokens, clients| Load { prompt_tokens, answer_tokens, clients };
    let grid = clients.iter().flat_map(|c| prompts.iter().map(move |p| (*p, *c)));
    let middle = (prompts[prompts.len() / 2], clients[clients.len() / 2]);
    let further = answers[1..].iter().map(|answer| load(middle.0, *answer, middle.1));
    let mut loads: Vec<Load> =
        grid.map(|(prompt, clients)| load(prompt, answers[0], clients)).chain(further).collect();
    // Should time run out, the slowest are left out.
    loads.sort_by_key(|load| u64::from(load.clients) * u64::from(load.prompt_tokens + load.answer_tokens));
    loads
}

fn measure(args: &Args, printer: Printer) -> Result<Measured, Failure> {
    let config = ProfileConfig {
        url: args.url.clone(),
        model: args.served_model.clone(),
        loads: loads(args),
        budget: Duration::from_secs(args.seconds),
        patience: PATIENCE,
        seed: args.seed,
    };
    let progress = Progress::new(printer.quiet);
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    let measured = runtime.block_on(async {
        tokio::select! {
            measured = profile(&config, |what, passed| {
                progress.at(what, passed.as_secs().min(args.seconds), args.seconds);
            }) => measured.map_err(Failure::told),
            _ = tokio::signal::ctrl_c() => Err(Failure::input(
                "stopped before the end",
                "nothing was written; measure for a shorter time with `--seconds`",
            )),
        }
    });
    progress.finish();
    measured
}

/// The loads that were answered, with the relative standard errors of their TTFT and TPOT.
fn points(measured: &Measured, printer: Printer) -> Result<Vec<(MeasuredPoint, [f64; 2])>, Failure> {
    for MeasuredLoad { load, errors, .. } in &measured.loads {
        for (error, count) in errors {
            printer.say(format_args!(
                "{} prompt + {} answer tokens, {} clients: {count} requests failed: {error}",
                load.prompt_tokens, load.answer_tokens, load.clients
            ));
        }
    }
    let points: Vec<_> = measured.loads.iter().filter_map(point).collect();
    if points.len() < FEWEST_LOADS {
        return Err(Failure::input(
            format_args!("only {} of the loads were answered; {FEWEST_LOADS} are needed", points.len()),
            "see the messages above and the engine's log; `--prompt-tokens` and `--clients` choose other loads",
        ));
    }
    Ok(points)
}

fn point(measured: &MeasuredLoad) -> Option<(MeasuredPoint, [f64; 2])> {
    let MeasuredLoad { load, timings, errors } = measured;
    let values = |of: &dyn Fn(&Timing) -> Option<f64>| timings.iter().filter_map(of).collect::<Vec<f64>>();
    let ttft = values(&|timing| Some(timing.ttft_s));
    let tpot = values(&|timing| timing.tpot_s.filter(|tpot_s| *tpot_s > 0.0));
    let mean = |of: &dyn Fn(&Timing) -> Option<f64>| Some(Summary::of(values(of))?.mean.round() as u32);
    let errors_of_means = [standard_error(&ttft), standard_error(&tpot)];
    let point = MeasuredPoint {
        prompt_tokens: mean(&|timing| timing.prompt_tokens.map(f64::from)).unwrap_or(load.prompt_tokens),
        answer_tokens: mean(&|timing| Some(f64::from(timing.answer_tokens)))?,
        clients: load.clients,
        requests: timings.len() as u32,
        failed: errors.values().sum::<u64>() as u32,
        ttft_s: Summary::of(ttft)?,
        tpot_s: Summary::of(tpot)?,
    };
    Some((point, errors_of_means))
}

/// Relative standard error of the mean; 0 where one value tells nothing of it.
fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (variance / n).sqrt() / mean
}

/// Root mean square of the points' standard errors.
fn repeatability(points: &[(MeasuredPoint, [f64; 2])]) -> [f64; 2] {
    [0, 1].map(|which| {
        let squares = points.iter().map(|(_, errors)| errors[which].powi(2)).sum::<f64>();
        (squares / points.len() as f64).sqrt()
    })
}

fn of_file<'a>(config: &'a ReplicaConfig, point: &MeasuredPoint) -> Point<'a> {
    let MeasuredPoint { prompt_tokens, answer_tokens, clients, .. } = *point;
    Point {
        config,
        load: ClosedLoop { prompt_tokens, answer_tokens, clients: f64::from(clients) },
        ttft_s: point.ttft_s.mean,
        tpot_s: point.tpot_s.mean,
    }
}

fn engine_name(measured: &Measured) -> String {
    let name = measured.metrics.as_ref().map_or("unknown", |metrics| metrics.engine.name());
    measured.version.as_ref().map_or(name.to_owned(), |version| format!("{name} {version}"))
}

/// Share of prompt tokens from the prefix cache, and a word where it, or want of memory, spoils the measurement.
fn cached_share(measured: &Measured, printer: Printer) -> Option<f64> {
    let metrics = measured.metrics.as_ref()?;
    if metrics.preemptions.is_some_and(|count| count > 0.0) {
        printer.say(
            "the engine ran out of KV cache: measure fewer clients or shorter prompts for its own speed",
        );
    }
    let share = metrics.cached_share()?;
    if share > MOST_CACHED {
        printer.say(format_args!(
            "{:.0} % of the prompts came from the prefix cache: TTFT is flattered",
            share * 100.0
        ));
    }
    Some(share)
}

fn text(profile: &Profile, config: &ReplicaConfig, calibration: &Calibration) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "prompt", "answer", "clients", "requests", "TTFT ms", "model", "profile", "TPOT ms", "model",
        "profile",
    ]);
    for point in &profile.points {
        let of = of_file(config, point);
        let (before, after) = (of.estimate(None, calibration), of.estimate(Some(profile.speed), calibration));
        let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
        table.add_row([
            point.prompt_tokens.to_string(),
            point.answer_tokens.to_string(),
            point.clients.to_string(),
            point.requests.to_string(),
            ms(point.ttft_s.mean),
            ms(before.ttft_s),
            ms(after.ttft_s),
            ms(point.tpot_s.mean),
            ms(before.tpot_s),
            ms(after.tpot_s),
        ]);
    }
    for index in 0..table.column_count() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    let prior = calibration.spread(config.kind(calibration.source(&config.gpu)));
    let percent =
        |error: MedianError| format!("TTFT {:.1} %, TPOT {:.1} %", error.ttft * 100.0, error.tpot * 100.0);
    let range = |[low, high]: [f64; 2]| format!("{low:.2}–{high:.2}");
    let speed = profile.speed;
    format!(
        "{table}\n\n{} on {}, engine {}: {:.2} times the time to compute, {:.2} times the time to read memory, {:.0} µs a \
         step, {:.1} ms a request\nmedian error: {} before, {} after (each load predicted by the others)\n80 % of \
         measurements are within: TTFT × {}, TPOT × {} (before: {}, {})\n",
        profile.model,
        profile.gpu,
        profile.engine,
        speed.compute,
        speed.bandwidth,
        speed.step_us,
        speed.request_ms,
        percent(profile.error_before),
        percent(profile.error_after),
        range(profile.spread.ttft),
        range(profile.spread.tpot),
        range(prior.ttft),
        range(prior.tpot),
    )
}
