//! From a spec on disk to a problem for the planner: opens the files it names, resolves names, trains the router.

use std::path::Path;

use boute_planner::{GpuOffer, Problem, QualityInputs, available_share};
use boute_router::Scorer;
use boute_router::certify::FloorRule;
use boute_spec::catalog::{Catalog, Model, Precision};
use boute_spec::data_file::{parse_quality, parse_trace};
use boute_spec::file::{Floor, GpuEntry, ModelEntry, QualityEntry, Spec, Stock};
use boute_spec::parse::parse_spec;
use boute_spec::plan::{InputDigest, Plan};
use boute_spec::units::{BytesPerSecond, Fraction, RequestsPerSecond, UsdPerHour};
use boute_spec::workload::{QualityData, Split, Trace};

use crate::encoder::read_scorer;
use crate::failure::Failure;
use crate::files::{Input, beside};

/// Requests a window of the trace must have.
const FEWEST_REQUESTS: usize = 50;
/// Queries that the planning and the held-out part must have each: with fewer no floor worth having can be promised.
const FEWEST_QUERIES: usize = 30;
/// Requests of each window, at most: enough for a stable 99th percentile.
const WINDOW_REQUESTS: usize = 10_000;

/// Opens a file that a spec names.
pub(crate) type Open<'a> = &'a dyn Fn(&str) -> Result<Input, Failure>;

/// What a spec and its files come to.
pub(crate) struct Loaded {
    /// For the planner.
    pub(crate) problem: Problem,
    /// Traffic to score plans on; where it was asked for.
    pub(crate) scoring: Option<Trace>,
    /// For serving; `None` where no query is routed.
    pub(crate) scorer: Option<Scorer>,
    /// Quality data, for texts of real queries.
    pub(crate) quality: Option<QualityData>,
    /// Things the user should know.
    pub(crate) notes: Vec<String>,
}

/// Choices of the command line that bear on a problem.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    /// Only this cloud's prices.
    pub(crate) cloud: Option<String>,
    /// Seed of every random choice.
    pub(crate) seed: u64,
    /// Where the router artefact will be, relative to the plan.
    pub(crate) router_file: String,
    /// Whether a third window of the trace is kept, to score plans on.
    pub(crate) scoring: bool,
}

/// Reads the spec at `path` and everything it names.
pub(crate) fn load(path: &Path, choices: &Choices) -> Result<Loaded, Failure> {
    let input = Input::read(path)?;
    if input.looks_like_a_plan() {
        return Err(Failure::input(
            format_args!("`{}` is a plan, and a spec is wanted", input.name),
            "give the `boute.yaml` that it was made from; `boute explain` takes plans",
        ));
    }
    let folder = path.to_owned();
    load_with(&input, choices, &move |name| Input::read(&beside(&folder, name)))
}

/// The same, with the files the spec names taken from `open`.
pub(crate) fn load_with(input: &Input, choices: &Choices, open: Open<'_>) -> Result<Loaded, Failure> {
    let spec = parse_spec(&input.name, &input.text).map_err(Failure::told)?;
    resolve(&spec, input.digest("spec"), choices, open)
}

/// The same from a spec that is read already.
pub(crate) fn resolve(
    spec: &Spec,
    digest: InputDigest,
    choices: &Choices,
    open: Open<'_>,
) -> Result<Loaded, Failure> {
    let mut notes = Vec::new();
    let mut inputs = vec![digest, prices_digest()];
    let models = spec.models.iter().map(|entry| model(entry, open)).collect::<Result<Vec<_>, _>>()?;
    let offers = offers(&spec.gpus, choices.cloud.as_deref(), &mut notes)?;
    let (windows, rate) = traffic(spec, if choices.scoring { 3 } else { 2 }, open, &mut inputs)?;
    let mut windows = windows.into_iter();
    let (Some(planning_trace), Some(verification_trace)) = (windows.next(), windows.next()) else {
        return Err(Failure::unexpected("the trace was not divided"));
    };
    let (quality, scorer, data) = match &spec.quality {
        None => (None, None, None),
        Some(entry) => {
            let (inputs_of_router, scorer, data) = routing(spec, entry, choices, open, &mut inputs)?;
            (Some(inputs_of_router), Some(scorer), Some(data))
        }
    };
    let floor =
        spec.quality.as_ref().and_then(|entry| entry.floor.as_ref()).map(|floor| floor_rule(floor, spec));
    let problem = Problem {
        models,
        offers,
        planning_trace,
        verification_trace,
        rate,
        lengths: spec.traffic.lengths,
        slo: spec.slo.clone(),
        confidence: spec.quality.as_ref().map_or(0.95, |entry| entry.confidence.get()),
        cascade: spec.quality.as_ref().and_then(|entry| entry.cascade).map(Fraction::get),
        quality,
        floor,
        objective: spec.objective,
        budget: spec.budget.map(UsdPerHour::get),
        robust: spec.robust,
        disaggregate: spec.disaggregate,
        seed: choices.seed,
        inputs,
        tool_version: env!("CARGO_PKG_VERSION").into(),
    };
    Ok(Loaded { problem, scoring: windows.next(), scorer, quality: data, notes })
}

/// The compiled-in prices are an input like any other.
fn prices_digest() -> InputDigest {
    InputDigest { input: "prices".into(), file: String::new(), sha256: Catalog::builtin().digest().into() }
}

/// A precision as people write it on the command line.
pub(crate) fn precision(name: &str) -> Result<Precision, String> {
    serde_json::from_value(name.into()).map_err(|_| "there are bf16, fp8, int4 and nvfp4".to_owned())
}

/// A model of the spec: from its own `config.json`, or from the catalogue.
pub(crate) fn model(entry: &ModelEntry, open: Open<'_>) -> Result<Model, Failure> {
    let Some(config) = &entry.config else {
        let mut model =
            Catalog::builtin().model(&entry.id).map_err(Failure::told)?.clone().in_dtype(entry.dtype);
        model.id.clone_from(&entry.id);
        model.weights = entry.weights.clone().unwrap_or(model.weights);
        return Ok(model);
    };
    let input = open(config)?;
    let weights = entry.weights.as_deref().unwrap_or(&entry.id);
    Model::from_hf(&entry.id, weights, &input.name, &input.text, entry.dtype).map_err(Failure::told)
}

/// GPU types of the spec with their prices; notes say where those come from.
pub(crate) fn offers(
    gpus: &[GpuEntry],
    cloud: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Vec<GpuOffer>, Failure> {
    let catalog = Catalog::builtin();
    gpus.iter()
        .map(|entry| {
            let mut gpu = catalog.gpu(&entry.gpu).map_err(Failure::told)?.clone().with_link(entry.link);
            gpu.network_bytes_per_s = entry.network.map_or(gpu.network_bytes_per_s, BytesPerSecond::get);
            let usd_per_gpu_hour = if let Some(price) = entry.price {
                price.get()
            } else {
                let price = catalog.default_price(&gpu.name, cloud).ok_or_else(|| {
                    Failure::input(
                        format_args!("the catalogue has no price for `{}`{}", gpu.name, on_cloud(cloud)),
                        "give one in the spec, `price: $2.50/h`, or see `boute catalog prices`",
                    )
                })?;
                notes.push(price.explanation.clone());
                price.usd_per_hour.get()
            };
            let stock = match entry.stock {
                Stock::Known(stock) => Some(stock),
                Stock::Unknown => None,
            };
            let available = entry.interruptions.map_or(1.0, |chance| available_share(chance.get()));
            Ok(GpuOffer { gpu, usd_per_gpu_hour, stock, available })
        })
        .collect()
}

fn on_cloud(cloud: Option<&str>) -> String {
    cloud.map(|cloud| format!(" on `{cloud}`")).unwrap_or_default()
}

/// The trace in `parts` windows of equal length, and their rate. The first is planned on, the second verifies, the third
/// scores.
fn traffic(
    spec: &Spec,
    parts: usize,
    open: Open<'_>,
    inputs: &mut Vec<InputDigest>,
) -> Result<(Vec<Trace>, f64), Failure> {
    let input = open(&spec.traffic.trace)?;
    let trace = parse_trace(&input.name, &input.text).map_err(Failure::told)?;
    inputs.push(input.digest("trace"));
    let count = trace.requests().len();
    if count < parts * FEWEST_REQUESTS {
        return Err(Failure::input(
            format_args!("`{}` has {count} requests, fewer than {}", input.name, parts * FEWEST_REQUESTS),
            "a plan is made on one part of the trace and judged on the others: give a longer trace",
        ));
    }
    let rate = spec.traffic.rate.map_or_else(|| trace.rate_per_second(), RequestsPerSecond::get);
    if !(rate.is_finite() && rate > 0.0) {
        return Err(Failure::input(
            format_args!("`{}` has no rate of its own: all its requests arrive at once", input.name),
            "set `traffic.rate`, such as `rate: 20 req/s`",
        ));
    }
    let windows = (0..parts).map(|part| {
        let (start, end) = (count * part / parts, count * (part + 1) / parts);
        // What is longer than needed is cut where the windows are far from each other, so that plans are made on the
        // latest traffic before that which judges them.
        let range = if part == 0 {
            end.saturating_sub(WINDOW_REQUESTS)..end
        } else {
            start..end.min(start + WINDOW_REQUESTS)
        };
        trace.window(range).at_rate(rate)
    });
    Ok((windows.collect(), rate))
}

/// Scores of the planning and of the held-out queries, by the router that will serve.
fn routing(
    spec: &Spec,
    entry: &QualityEntry,
    choices: &Choices,
    open: Open<'_>,
    inputs: &mut Vec<InputDigest>,
) -> Result<(QualityInputs, Scorer, QualityData), Failure> {
    let input = open(&entry.data)?;
    let ids: Vec<String> = spec.models.iter().map(|model| model.id.clone()).collect();
    let data = parse_quality(&input.name, &input.text, &ids).map_err(Failure::told)?;
    inputs.push(input.digest("quality"));
    let scorer = match &entry.router {
        None => Scorer::train(&data, choices.seed, &input.sha256).map_err(Failure::told)?,
        Some(router) => {
            let input = open(router)?;
            let scorer = read_scorer(&input)?;
            inputs.push(input.digest("router"));
            scorer
        }
    };
    let missing = ids.iter().find(|id| !scorer.models().contains(id));
    if let Some(missing) = missing {
        return Err(Failure::input(
            format_args!("the router knows {} but not `{missing}`", scorer.models().join(", ")),
            "train it again on data that has this model: `boute router train DATA -o router.json`",
        ));
    }
    let planning = scorer.score_queries(&data.models, data.split(Split::Validation));
    let held_out = scorer.score_queries(&data.models, data.split(Split::Test));
    for (part, queries) in [("validation", &planning), ("test", &held_out)] {
        if queries.len() < FEWEST_QUERIES {
            return Err(Failure::input(
                format_args!(
                    "only {} queries in the {part} part of `{}`, fewer than {FEWEST_QUERIES}",
                    queries.len(),
                    entry.data
                ),
                "policies are chosen on the validation part and judged on the test part: give more queries",
            ));
        }
    }
    let router_digest = boute_spec::digest::sha256_hex(scorer.to_json().as_bytes());
    let quality =
        QualityInputs { planning, held_out, router_digest, router_file: choices.router_file.clone() };
    Ok((quality, scorer, data))
}

fn floor_rule(floor: &Floor, spec: &Spec) -> FloorRule {
    match floor {
        Floor::Absolute(floor) => FloorRule::Absolute(floor.get()),
        Floor::Relative { share, model } => FloorRule::Relative {
            share: share.get(),
            // The parser has checked that the model is listed.
            model: spec.models.iter().position(|entry| entry.id == *model).unwrap_or_default(),
        },
    }
}

impl Loaded {
    /// Has a plan at `path` name its router so that no other router is replaced, which some plan needs: the name that it has for the
    /// plan that runs, that of the new plan, or, where another is of that name, one with its digest.
    pub(crate) fn name_router(&mut self, path: &Path, running: Option<&Plan>) {
        let Some(quality) = &mut self.problem.quality else { return };
        let digest = &quality.router_digest;
        let known = running.map(|plan| &plan.routing).filter(|routing| routing.router_digest == *digest);
        let free = |name: &String| {
            let there = beside(path, name);
            !there.exists() || Input::read(&there).is_ok_and(|there| there.sha256 == *digest)
        };
        let mut names = known.map(|routing| routing.router.clone()).into_iter().chain([router_file_of(path)]);
        quality.router_file = names.find(free).unwrap_or_else(|| router_file(path, &digest[..12]));
    }
}

/// `plan.json` → `plan.router.json`: the name of a plan's router artefact, beside it.
pub(crate) fn router_file_of(plan: &Path) -> String {
    router_file(plan, "")
}

fn router_file(plan: &Path, digest: &str) -> String {
    let stem = plan.file_stem().unwrap_or("plan".as_ref()).to_string_lossy();
    let dot = if digest.is_empty() { "" } else { "." };
    format!("{stem}.router{dot}{digest}.json")
}
