//! The planner: seconds from a problem to a plan, cold and with a warm database; how they grow; the published instances.

use std::path::Path;
use std::time::Instant;

use boute_planner::deployment::Goal;
use boute_planner::strategies::buckets::{Buckets, Configuration};
use boute_planner::{Database, GpuOffer, Problem, QualityInputs, Step, Strategy, plan};
use boute_router::ScoredQueries;
use boute_router::certify::FloorRule;
use boute_spec::catalog::Catalog;
use boute_spec::file::Lengths;
use boute_spec::plan::{Objective, Plan};
use boute_spec::workload::{Query, Split};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::planner_blackbox::{paper_like_problem, searches};
use super::{Report, median, picture};

/// The GPU types of the paper with its prices, and the next best of the catalogue with its: $/h per GPU.
const GPUS: [(&str, f64); 12] = [
    ("H100-SXM", 2.69),
    ("RTX-PRO-6000", 1.96),
    ("RTX-5090", 0.89),
    ("RTX-4090", 0.59),
    ("A100-80GB", 1.79),
    ("L40S", 0.86),
    ("A40", 0.45),
    ("L4", 0.70),
    ("A10G", 1.01),
    ("H200-SXM", 3.59),
    ("RTX-A6000", 0.49),
    ("A100-40GB", 1.29),
];
/// Models from small to large, of which a problem takes every so many.
const MODELS: [&str; 10] = [
    "llama-3.2-1b",
    "llama-3.2-3b",
    "phi-4-mini",
    "qwen2.5-7b",
    "llama-3.1-8b",
    "gemma-2-9b",
    "qwen2.5-14b",
    "gemma-2-27b",
    "qwen2.5-32b",
    "llama-3.1-70b",
];

/// Plans with a warm database, of whose times the median counts.
const WARM_PLANS: usize = 5;

pub(crate) const fn quiet(_: &Step) -> bool {
    false
}

pub(crate) fn run(small: bool, report: &mut Report) -> Result<(), String> {
    let example = paper_like_problem()?;
    papers_setting(&example, report)?;
    published(report)?;
    if !small {
        searches("the example", &example, [Goal::Rate, Goal::Cost], report)?;
        searches("the paper's setting", &papers(&example, 3, 24)?, [Goal::Rate], report)?;
        let [(_, by_models), ..] = growth(&example)?;
        let (_, largest_s) = by_models[by_models.len() - 1];
        report.at_most_s("10 models, 12 GPU types, 1000 GPUs: plan, cold, s", largest_s, 60.0);
    }
    Ok(())
}

/// `types` GPU types, `stock` GPUs in all.
fn offers(types: usize, stock: u32) -> Result<Vec<GpuOffer>, String> {
    let offer = |&(gpu, usd_per_gpu_hour): &(&str, f64)| {
        let gpu = Catalog::builtin().gpu(gpu).map_err(|error| error.to_string())?.clone();
        Ok(GpuOffer { gpu, usd_per_gpu_hour, stock: Some(stock / types as u32), available: 1.0 })
    };
    GPUS[..types].iter().map(offer).collect()
}

/// A plan and the seconds that it took.
pub(crate) fn timed(problem: &Problem, database: &Database) -> Result<(Plan, f64), String> {
    let start = Instant::now();
    let plan = plan(problem, Strategy::Default, database, &quiet).map_err(|error| error.to_string())?;
    Ok((plan, start.elapsed().as_secs_f64()))
}

/// The paper's setting: $30/h, 100 req/s asked, the models' own answer lengths.
pub(crate) fn papers(example: &Problem, types: usize, stock: u32) -> Result<Problem, String> {
    Ok(Problem {
        offers: offers(types, stock)?,
        planning_trace: example.planning_trace.at_rate(100.0),
        verification_trace: example.verification_trace.at_rate(100.0),
        rate: 100.0,
        lengths: Lengths::Quality,
        objective: Objective::MaxRate,
        budget: Some(30.0),
        ..example.clone()
    })
}

/// Times in the paper's setting, in which its own search takes 23.5 s and 72 s.
fn papers_setting(example: &Problem, report: &mut Report) -> Result<(), String> {
    for (types, stock, cold_s, warm_s) in [(3, 24, 5.0, 0.5), (6, 48, 15.0, 2.0)] {
        let problem = papers(example, types, stock)?;
        let database = Database::in_memory();
        let (cold, seconds) = timed(&problem, &database)?;
        report.at_most_s(&format!("{stock} GPUs of {types} types: plan, cold, s"), seconds, cold_s);
        let warm = (0..WARM_PLANS).map(|_| timed(&problem, &database)).collect::<Result<Vec<_>, _>>()?;
        let seconds = median(warm.iter().map(|(_, seconds)| *seconds).collect());
        report.at_most_s(&format!("{stock} GPUs of {types} types: plan, warm, s"), seconds, warm_s);
        let same = warm.iter().all(|(plan, _)| *plan == cold);
        report.at_least("  the same plan (1 = yes)", f64::from(u8::from(same)), 1.0);
        // Over the table. 40 s of traffic show a replica little of a load that it cannot go on with; simulation refuses it.
        report.at_most("  below its bound, part", cold.bound.as_ref().map_or(1.0, |bound| bound.gap), 0.5);
    }
    Ok(())
}

/// What others published of their own programmes: Mélange (arXiv 2404.14527), its example and its size, at which CBC takes 13 s
/// and 139 s; the example of arXiv 2502.00722 §4.2, whose own plan takes 28.67 s.
fn published(report: &mut Report) -> Result<(), String> {
    let types = |rates: &[(f64, Vec<f64>)]| -> Vec<Configuration> {
        let one = |at: usize| (0..rates.len()).map(|other| u32::from(other == at)).collect();
        let of = |(at, (usd, rates)): (usize, &(f64, Vec<f64>))| Configuration {
            usd_per_hour: *usd,
            gpus: one(at),
            rates: rates.clone(),
        };
        rates.iter().enumerate().map(of).collect()
    };
    let none = || "no assignment".to_owned();
    let melange = Buckets {
        demand: [0.2, 0.1, 0.5, 0.2].map(|share| 30.0 * share).to_vec(),
        configurations: types(&[(1.01, vec![2.0, 1.0, 5.0, 2.0]), (3.67, vec![20.0, 20.0, 40.0, 20.0])]),
        stock: vec![None; 2],
        budget: None,
        gap: 0.0,
    };
    report.at_most("Mélange's example, $/h", melange.cheapest_sliced(1).ok_or_else(none)?.value, 6.7 + 1e-9);
    let configuration = |usd_per_hour, gpus: [u32; 3], rates: [f64; 2]| Configuration {
        usd_per_hour,
        gpus: gpus.into(),
        rates: rates.into(),
    };
    let demystifying = Buckets {
        demand: vec![80.0, 20.0],
        configurations: vec![
            configuration(4.0, [1, 0, 0], [1.0, 1.2]),
            configuration(2.0, [0, 1, 0], [0.9, 0.9]),
            configuration(2.0, [0, 0, 1], [0.3, 0.5]),
            configuration(4.0, [0, 2, 0], [2.4, 1.5]),
        ],
        stock: vec![Some(2); 3],
        budget: Some(8.0),
        gap: 0.0,
    };
    let makespan_s = 1.0 / demystifying.fastest().ok_or_else(none)?.value;
    report.at_most("the example of 2502.00722, makespan, s", makespan_s, 28.4315);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let demand: Vec<f64> = (0..60).map(|_| rng.random_range(0.05..1.0)).collect();
    let speeds = [(0.7, 0.6), (1.01, 1.0), (3.67, 4.0), (7.516, 9.0)].map(|(usd, speed): (f64, f64)| {
        let rate = |bucket: usize, noise: f64| speed * noise * 8.0 / (1.0 + bucket as f64 / 6.0);
        (usd, (0..60).map(|bucket| rate(bucket, rng.random_range(0.5..1.5))).collect::<Vec<_>>())
    });
    for slices in [4, 8] {
        let buckets = Buckets {
            demand: demand.clone(),
            configurations: types(&speeds),
            stock: vec![None; 4],
            budget: None,
            gap: 0.0,
        };
        let start = Instant::now();
        let found = buckets.cheapest_sliced(slices).ok_or_else(none)?;
        let name = format!("Mélange's programme with {} slices, s", 60 * slices);
        report.at_most_s(&name, start.elapsed().as_secs_f64(), 1.0);
        report.at_most("  above its bound, part", found.value / found.bound - 1.0, 0.02);
    }
    Ok(())
}

/// What grows, and its sizes, each with the seconds of a plan.
type Panel = (&'static str, Vec<(usize, f64)>);

/// Seconds of a plan, cold, as models, GPU types and stock grow.
fn growth(example: &Problem) -> Result<[Panel; 3], String> {
    println!("\nmodels  types  GPUs   cold s  warm s  $/h");
    let seconds = |models: usize, types: usize, stock: u32| -> Result<f64, String> {
        let problem = grown(example, models, types, stock)?;
        let database = Database::in_memory();
        let (cold, cold_s) = timed(&problem, &database)?;
        let (_, warm_s) = timed(&problem, &database)?;
        let usd = cold.predicted.cost_usd_per_hour.get();
        println!("{models:>6} {types:>6} {stock:>5} {cold_s:>8.2} {warm_s:>7.2} {usd:>6.2}");
        Ok(cold_s)
    };
    let models = [2, 4, 7, 10].map(|models| Ok((models, seconds(models, 12, 1000)?)));
    let types = [3, 6, 12].map(|types| Ok((types, seconds(2, types, 96)?)));
    let stock = [48, 200, 1000].map(|stock| Ok((stock as usize, seconds(2, 12, stock)?)));
    Ok([
        ("models (12 types, 1000 GPUs)", models.into_iter().collect::<Result<_, String>>()?),
        ("GPU types (2 models, 96 GPUs)", types.into_iter().collect::<Result<_, String>>()?),
        ("GPUs (2 models, 12 types)", stock.into_iter().collect::<Result<_, String>>()?),
    ])
}

/// Draws how the time of a plan grows.
pub(crate) fn pictures(folder: &Path) -> Result<(), String> {
    let drawing =
        picture::growth("Seconds of a plan, nothing known before", &growth(&paper_like_problem()?)?);
    let path = folder.join("planning-time.svg");
    std::fs::write(&path, drawing).map_err(|error| format!("{}: {error}", path.display()))
}

/// Least rent for traffic that takes about a quarter of `stock`.
fn grown(example: &Problem, models: usize, types: usize, stock: u32) -> Result<Problem, String> {
    let catalog = Catalog::builtin();
    let ids: Vec<&str> =
        (0..models).map(|at| MODELS[at * (MODELS.len() - 1) / (models - 1).max(1)]).collect();
    let resolved = ids.iter().map(|id| catalog.model(id).cloned().map_err(|error| error.to_string()));
    let rate = f64::from(stock) / 4.0;
    Ok(Problem {
        models: resolved.collect::<Result<_, _>>()?,
        offers: offers(types, stock)?,
        planning_trace: example.planning_trace.at_rate(rate),
        verification_trace: example.verification_trace.at_rate(rate),
        rate,
        quality: Some(QualityInputs {
            planning: made_up(&ids, 1),
            held_out: made_up(&ids, 2),
            router_digest: String::new(),
            router_file: String::new(),
        }),
        floor: Some(FloorRule::Absolute(0.55)),
        objective: Objective::MinCost,
        budget: None,
        ..example.clone()
    })
}

/// Queries on which larger models do better, the more the harder the query: for times, not for quality.
fn made_up(ids: &[&str], seed: u64) -> ScoredQueries {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut queries = ScoredQueries::new(ids.iter().map(ToString::to_string).collect());
    for id in 0..1500 {
        let ease: f64 = rng.random();
        let chance = |at: usize| {
            let strength = (at + 1) as f64 / ids.len() as f64;
            0.15 + 0.7 * ease.powf(1.5 - strength)
        };
        let chances: Vec<f64> = (0..ids.len()).map(chance).collect();
        let query = Query {
            id: id.to_string(),
            prompt: String::new(),
            task: String::new(),
            split: Split::Test,
            prompt_tokens: Some(300),
            scores: chances
                .iter()
                .map(|chance| if rng.random::<f64>() < *chance { 1.0 } else { 0.0 })
                .collect(),
            output_tokens: vec![200; ids.len()],
        };
        queries.push(&query, chances.iter().map(|chance| *chance as f32), 0.0);
    }
    queries
}
