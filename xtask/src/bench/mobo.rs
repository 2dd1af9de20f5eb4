//! `cargo xtask bench mobo`: how good and how fast the optimiser is, against recorded runs of other libraries.
//!
//! `xtask/data/mobo_reference.json` holds those runs. Quality: mean normalised hypervolume after 60 evaluations, the initial design of
//! 2 (d + 1) points included, one point per step. Time: CPU seconds of the process for one ask and its tell, on one thread.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use boute_mobo::{Problem, Study, sobol_points};
use rayon::prelude::*;
use serde_json::Value;

use super::picture;
use super::problems::{self, COMPARED, OTHERS};

const EVALUATIONS: usize = 60;
const REFERENCE: &str = include_str!("../../data/mobo_reference.json");
/// Methods of the reference, in the order of the table's columns.
const METHODS: [&str; 5] = ["BoTorch", "egobox", "TPE", "NSGA-II", "Sobol"];

/// Problems on which seeds differ little, so that three of them tell something.
const STEADY: [&str; 2] = ["BraninCurrin", "DiscBrake"];

/// Runs everything, or in the small form three seeds on two problems and the fast timings; true if every bar is met.
pub(super) fn run(small: bool) -> bool {
    let reference: Value =
        serde_json::from_str(REFERENCE).unwrap_or_else(|error| panic!("the reference: {error}"));
    let mut met = quality(&reference, small);
    met &= speed(&reference, small);
    if !small {
        met &= runs(&reference);
        others();
        met &= long_study();
    }
    met
}

fn study(problem: &problems::Problem, seed: u64) -> Study {
    let mut wanted = Problem::new(problem.space(), problem.objectives, problem.constraints);
    wanted.reference = Some(problem.reference.to_vec());
    wanted.seed = seed;
    Study::new(wanted).unwrap_or_else(|error| panic!("{}: {error}", problem.name))
}

/// Asks for `count` points and tells their values.
fn step(study: &mut Study, problem: &problems::Problem, count: usize) {
    let asked = study.ask(count).unwrap_or_else(|error| panic!("{}: {error}", problem.name));
    let told =
        asked.iter().map(|candidate| (candidate.id, Some(problem.evaluate(&candidate.point)))).collect();
    study.tell(told).unwrap_or_else(|error| panic!("{}: {error}", problem.name));
}

/// A whole run with one point per step.
fn run_of(problem: &problems::Problem, seed: u64, evaluations: usize) -> Study {
    let mut study = study(problem, seed);
    while study.evaluations().len() < evaluations {
        step(&mut study, problem, 1);
    }
    study
}

/// Mean and standard error.
fn summary(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

fn normalised(problem: &problems::Problem, seeds: u64) -> Vec<f64> {
    (0..seeds)
        .into_par_iter()
        .map(|seed| run_of(problem, seed, EVALUATIONS).hypervolume() / problem.maximum)
        .collect()
}

/// The table of all methods; whether every bar is met.
fn quality(reference: &Value, small: bool) -> bool {
    let seeds = if small { 3 } else { 10 };
    let compared: Vec<_> =
        COMPARED.iter().filter(|problem| !small || STEADY.contains(&problem.name)).collect();
    println!("normalised hypervolume after {EVALUATIONS} evaluations, mean ± standard error, {seeds} seeds");
    println!(
        "{:<18} {:>16} {}  verdict",
        "problem",
        "ours",
        METHODS.map(|method| format!("{method:>16}")).join("")
    );
    let (mut kept, mut above) = (true, 0);
    for problem in &compared {
        let (mean, error) = summary(&normalised(problem, seeds));
        let peers: Vec<Option<(f64, f64)>> = METHODS
            .iter()
            .map(|method| {
                let seeds = reference["traces"][problem.name][method]["normalised_hv"]["60"].as_array()?;
                Some(summary(&seeds.iter().filter_map(Value::as_f64).collect::<Vec<_>>()))
            })
            .collect();
        let best = peers.iter().flatten().copied().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
        let allowed = error.hypot(best.1);
        let met = mean >= best.0 - allowed;
        let over = peers[0].is_some_and(|botorch| mean > botorch.0);
        kept &= met;
        above += usize::from(over);
        let cells = peers.iter().map(|peer| match peer {
            Some((mean, error)) => format!("{:>16}", format!("{mean:.4} ± {error:.4}")),
            None => format!("{:>16}", "-"),
        });
        println!(
            "{:<18} {:>16} {}  {}{}",
            problem.name,
            format!("{mean:.4} ± {error:.4}"),
            cells.collect::<String>(),
            if met { "met" } else { "NOT MET" },
            if over { ", above BoTorch" } else { "" }
        );
    }
    let enough = 2 * above >= compared.len();
    println!("above BoTorch on {above} of {}; bar: half, {}\n", compared.len(), verdict(enough));
    kept && enough
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT MET" }
}

/// Problems without a recorded peer, against a design of as many points.
fn others() {
    println!("the same on problems without a recorded peer (OSY: hypervolume / 10,000)");
    for problem in &OTHERS {
        let (mean, error) = summary(&normalised(problem, 10));
        let spread: Vec<f64> = (0..10)
            .map(|seed| {
                let mut study = study(problem, seed);
                for point in sobol_points(&problem.space(), 0, EVALUATIONS, seed).unwrap_or_default() {
                    let outcome = problem.evaluate(&point);
                    let _ = study.tell_at(point, Some(outcome));
                }
                study.hypervolume() / problem.maximum
            })
            .collect();
        let (sobol, sobol_error) = summary(&spread);
        println!("{:<24} ours {mean:.4} ± {error:.4}   Sobol {sobol:.4} ± {sobol_error:.4}", problem.name);
    }
    println!();
}

/// CPU seconds that the threads of this process have used.
fn cpu_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap_or_else(|error| panic!("/proc/self/task: {error}"));
    let nanoseconds = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

/// A pool of one thread, always the same: the time of a thread that has ended is lost to [`cpu_seconds`].
fn one_thread() -> &'static rayon::ThreadPool {
    static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        pool.unwrap_or_else(|error| panic!("a thread: {error}"))
    })
}

/// Mean CPU seconds of an ask of `q` points and their tell when `n` points are known, after one such step to warm up.
fn step_seconds(problem: &problems::Problem, n: usize, q: usize) -> f64 {
    const STEPS: usize = 4;
    let mut study = study(problem, 1);
    for point in sobol_points(&problem.space(), 0, n - q, 1).unwrap_or_default() {
        let outcome = problem.evaluate(&point);
        let _ = study.tell_at(point, Some(outcome));
    }
    one_thread().install(|| step(&mut study, problem, q));
    let before = cpu_seconds();
    one_thread().install(|| (0..STEPS).for_each(|_| step(&mut study, problem, q)));
    (cpu_seconds() - before) / STEPS as f64
}

/// Dimensions, objectives, points known, points asked; how many times less than `BoTorch`'s the time must be.
const CASES: [(usize, usize, usize, usize, Option<f64>); 9] = [
    (6, 2, 64, 1, Some(20.0)),
    (6, 3, 64, 4, Some(20.0)),
    (20, 2, 256, 1, Some(10.0)),
    (6, 2, 64, 4, None),
    (12, 2, 128, 1, None),
    (6, 2, 256, 1, None),
    (6, 3, 64, 1, None),
    (6, 3, 128, 1, None),
    (6, 3, 256, 1, None),
];

/// Time of a step against `BoTorch`'s; whether the bars are met.
fn speed(reference: &Value, small: bool) -> bool {
    println!("CPU seconds of one ask + tell, one thread, fit included");
    let mut kept = true;
    for (d, m, n, q, bar) in CASES.into_iter().filter(|case| !small || case.4.is_some()) {
        let name = format!("m{m} d{d} n{n} q{q}");
        let ours = step_seconds(&problems::dtlz2(d, m), n, q);
        let theirs = reference["botorch_seconds_per_step"][&name].as_f64().unwrap_or(f64::NAN);
        let ratio = theirs / ours;
        let met = bar.is_none_or(|bar| ratio >= bar);
        kept &= met;
        let bar = bar.map_or(String::new(), |bar| format!("  bar {bar}×, {}", verdict(met)));
        println!("{name:<16} ours {ours:>8.4}   BoTorch {theirs:>6.2}   {ratio:>6.1}× less{bar}");
    }
    println!();
    kept
}

/// Whole runs of 100 evaluations against egobox's recorded ones; `validation/optimiser` runs both in turns.
fn runs(reference: &Value) -> bool {
    println!("CPU seconds of a run of 100 evaluations, one thread");
    let mut kept = true;
    for problem in COMPARED.iter().chain(&OTHERS) {
        let Some(theirs) = reference["egobox_cpu_seconds_100_evaluations"][problem.name].as_f64() else {
            continue;
        };
        let before = cpu_seconds();
        one_thread().install(|| run_of(problem, 1, 100));
        let ours = cpu_seconds() - before;
        kept &= ours <= theirs;
        println!(
            "{:<24} ours {ours:>6.2}   egobox {theirs:>6.2}   {}",
            problem.name,
            verdict(ours <= theirs)
        );
    }
    println!();
    kept
}

/// 500 evaluations.
fn long_study() -> bool {
    let problem = problems::dtlz2(6, 2);
    let (begin, before) = (Instant::now(), cpu_seconds());
    let study = run_of(&problem, 1, 500);
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - before);
    // On a machine that does other things too, the CPU seconds are what a quiet one would need at most.
    let met = seconds.min(cpu) <= 60.0;
    println!(
        "500 evaluations of DTLZ2 (d = 6, m = 2): {seconds:.1} s on {} threads, {cpu:.1} CPU s, normalised hypervolume {:.4}; bar 60 s, {}",
        rayon::current_num_threads(),
        study.hypervolume() / problem.maximum,
        verdict(met)
    );
    met
}

/// The pictures of the documentation, written to `folder`.
pub(super) fn pictures(folder: &Path) {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    let problem = &COMPARED[0];
    let study = run_of(problem, 1, EVALUATIONS);
    write("optimiser-front.svg", picture::front_over_iterations(&study, problem.reference, problem.name));
    let growth = [
        (
            "n (d 6, m 2, q 1)",
            [32, 64, 128, 256].map(|n| (n, step_seconds(&problems::dtlz2(6, 2), n, 1))).to_vec(),
        ),
        (
            "d (n 64, m 2, q 1)",
            [3, 6, 12, 20].map(|d| (d, step_seconds(&problems::dtlz2(d, 2), 64, 1))).to_vec(),
        ),
        ("m (n 64, d 6, q 1)", [2, 3, 4].map(|m| (m, step_seconds(&problems::dtlz2(6, m), 64, 1))).to_vec()),
        (
            "q (n 64, d 6, m 2)",
            [1, 2, 4, 8].map(|q| (q, step_seconds(&problems::dtlz2(6, 2), 64, q))).to_vec(),
        ),
    ];
    write("optimiser-time.svg", picture::growth("CPU seconds of one ask + tell, one thread", &growth));
}
