//! The black-box searches of the planner: how many evaluations `boute` needs against `qnehvi`, and how far from the exact
//! plan it ends.

use std::time::Instant;

use boute_planner::deployment::{Effort, Goal};
use boute_planner::search::Search;
use boute_planner::strategies::blackbox::{BlackBox, EVALUATIONS};
use boute_planner::{Database, GpuOffer, Prepared, Problem, QualityInputs};
use boute_router::Scorer;
use boute_router::certify::FloorRule;
use boute_spec::catalog::Catalog;
use boute_spec::data_file::{parse_quality, parse_trace};
use boute_spec::file::Stock;
use boute_spec::parse::parse_spec;
use boute_spec::units::UsdPerHour;
use boute_spec::workload::{Split, TraceRequest};

use super::planner::quiet;
use super::{Report, median};

/// Seeds of the whole benchmark.
const SEEDS: u64 = 10;
/// Requests of each window.
const WINDOW: usize = 4_000;
/// A search has arrived within this part of its own final value.
const NEAR: f64 = 0.01;

/// A text among the examples.
fn text(name: &str) -> Result<String, String> {
    crate::unpacked(&crate::root().join("examples").join(name))
}

/// The requests of the chat hour.
pub(crate) fn chat_requests() -> Result<Vec<TraceRequest>, String> {
    let name = "data/azure2023_conv.csv.gz";
    let trace = parse_trace(name, &text(name)?).map_err(|error| error.to_string())?;
    Ok(trace.requests().to_vec())
}

/// Llama-3.1-8B and 70B on three GPU types, chat traffic and MMLU-Pro scores: `examples/llama-8b-70b.yaml`.
pub(crate) fn paper_like_problem() -> Result<Problem, String> {
    let name = "llama-8b-70b.yaml";
    let spec = parse_spec(name, &text(name)?).map_err(|error| error.to_string())?;
    let catalog = Catalog::builtin();
    let models = spec.models.iter().map(|entry| catalog.model(&entry.id).cloned());
    let models = models.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let offers = spec.gpus.iter().map(|entry| {
        let gpu = catalog.gpu(&entry.gpu).map_err(|error| error.to_string())?.clone();
        let price = catalog.default_price(&gpu.name, None).ok_or("no price")?.usd_per_hour.get();
        let Stock::Known(stock) = entry.stock else { return Err("no stock".to_owned()) };
        Ok(GpuOffer { gpu, usd_per_gpu_hour: price, stock: Some(stock), available: 1.0 })
    });
    let offers = offers.collect::<Result<_, _>>()?;
    let trace =
        parse_trace(&spec.traffic.trace, &text(&spec.traffic.trace)?).map_err(|error| error.to_string())?;
    let ids: Vec<String> = models.iter().map(|model| model.id.clone()).collect();
    let data = parse_quality(MMLU, &text(MMLU)?, &ids).map_err(|error| error.to_string())?;
    let scorer = Scorer::train(&data, 0, "").map_err(|error| error.to_string())?;
    let rate = spec.traffic.rate.ok_or("no rate")?.get();
    Ok(Problem {
        planning_trace: trace.window(0..WINDOW).at_rate(rate),
        verification_trace: trace.window(WINDOW..2 * WINDOW).at_rate(rate),
        rate,
        lengths: spec.traffic.lengths,
        slo: spec.slo.clone(),
        quality: Some(QualityInputs {
            planning: scorer.score_queries(&data.models, data.split(Split::Validation)),
            held_out: scorer.score_queries(&data.models, data.split(Split::Test)),
            router_digest: String::new(),
            router_file: String::new(),
        }),
        floor: Some(FloorRule::Relative { share: 0.85, model: 1 }),
        confidence: 0.95,
        cascade: None,
        objective: spec.objective,
        budget: spec.budget.map(UsdPerHour::get),
        robust: spec.robust,
        disaggregate: spec.disaggregate,
        seed: 0,
        inputs: Vec::new(),
        tool_version: String::new(),
        models,
        offers,
    })
}

/// Scores per question of both models.
const MMLU: &str = "data/mmlu_pro_llama.jsonl.gz";

/// Both searches with every seed, and the bars.
fn compare(name: &str, prepared: &Prepared<'_>, goal: Goal, report: &mut Report) {
    let (search, routes) = (prepared.search(), prepared.routes());
    let problem = search.problem;
    let limits = search.limits(problem.rate);
    let exact = search.sweep(routes, &limits, goal, Effort::Proof, &quiet);
    let exact = exact.map_or(f64::NAN, |(choice, _)| choice.fleet.value);
    let (aim, sign) = if goal == Goal::Cost { ("min cost", 1.0) } else { ("max rate", -1.0) };
    let (mut ahead, mut sooner, mut gaps, mut seconds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    println!(
        "\n{name}, {aim}, exact {exact:.3}: best after 5, 10, 25, 50 and 100 evaluations, relative to exact"
    );
    for seed in 0..SEEDS {
        let problem = Problem { seed, ..problem.clone() };
        let search = Search { problem: &problem, ..search };
        let course = |strategy| {
            let start = Instant::now();
            let values = search.trail(strategy, routes, &limits, goal, EVALUATIONS, &quiet).evaluations;
            (values, start.elapsed().as_secs_f64())
        };
        let show = |strategy, values: &[f64]| {
            let at = |count: usize| values[count.min(values.len()) - 1] / exact;
            let cells: Vec<String> = [5, 10, 25, 50, 100].map(|count| format!("{:.3}", at(count))).into();
            println!("{strategy:?} seed {seed}: {} ({} evaluations)", cells.join(" "), values.len());
        };
        for strategy in [BlackBox::Random, BlackBox::Nsga2] {
            show(strategy, &course(strategy).0);
        }
        let (plain, _) = course(BlackBox::Qnehvi);
        let (ours, ours_s) = course(BlackBox::Boute);
        show(BlackBox::Qnehvi, &plain);
        show(BlackBox::Boute, &ours);
        let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
        // Evaluations until as good as `target`; all of them if never.
        let until = |values: &[f64], target: f64| {
            let good = |value: &f64| !value.is_nan() && (target.is_nan() || sign * value <= sign * target);
            values.iter().position(good).map_or(EVALUATIONS, |at| at + 1) as f64
        };
        let near = |values: &[f64]| until(values, last(values) * (1.0 + sign * NEAR));
        // A search without any plan is not done before its last evaluation.
        let near_plain = if last(&plain).is_nan() { EVALUATIONS as f64 } else { near(&plain) };
        ahead.push(near_plain / until(&ours, last(&plain)));
        sooner.push(near_plain / near(&ours));
        gaps.push(sign * (last(&ours) / exact - 1.0));
        seconds.push(ours_s);
    }
    let label = |text: &str| format!("{name}, {aim}: {text}");
    report.at_least(&label("evaluations of qnehvi / of boute, to qnehvi's best"), median(ahead), 4.0);
    report.at_least(&label("the same, each to 1 % of its own best"), median(sooner), 4.0);
    report.at_most(&label("boute above exact, part"), median(gaps), 0.02);
    report.at_most_s(&label("boute, seconds of a search"), median(seconds), 3.0);
}

/// `boute` against `qnehvi` and against exact on a problem.
pub(crate) fn searches<const N: usize>(
    name: &str,
    problem: &Problem,
    goals: [Goal; N],
    report: &mut Report,
) -> Result<(), String> {
    let prepared =
        Prepared::new(problem, &Database::in_memory(), &quiet).map_err(|error| error.to_string())?;
    for goal in goals {
        compare(name, &prepared, goal, report);
    }
    Ok(())
}
