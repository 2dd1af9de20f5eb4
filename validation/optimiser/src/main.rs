//! Our optimiser and egobox (the nearest Rust peer) side by side: the same problems, 100 evaluations, one thread, run in turns.
//!
//! `cargo run --release --manifest-path validation/optimiser/Cargo.toml [ROUNDS]`; exit status 1 if ours is slower on any problem.

use std::process::ExitCode;

use boute_mobo::hypervolume::hypervolume;
use boute_mobo::{Problem, Study, Value};
use egobox_ego::{EgorBuilder, XType};
use ndarray::{Array2, ArrayView2};

#[path = "../../../xtask/src/bench/problems.rs"]
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod problems;

const EVALUATIONS: usize = 100;

fn main() -> ExitCode {
    let rounds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("one thread");
    println!("{:<24} {:>10} {:>10} {:>8}   {:>9} {:>9}", "100 evaluations", "ours s", "egobox s", "ratio", "ours HV", "egobox HV");
    let mut kept = true;
    for problem in problems::COMPARED.iter().chain(&problems::OTHERS) {
        let (mut ours, mut theirs, mut volumes) = (Vec::new(), Vec::new(), [0.0; 2]);
        for seed in 0..rounds {
            let before = cpu_seconds();
            volumes[0] += by_us(problem, seed) / rounds as f64;
            let between = cpu_seconds();
            let Some(volume) = by_egobox(problem, seed) else { continue };
            volumes[1] += volume / rounds as f64;
            ours.push(between - before);
            theirs.push(cpu_seconds() - between);
        }
        if theirs.is_empty() {
            println!("{:<24} egobox gave no result", problem.name);
            continue;
        }
        let (a, b) = (median(&mut ours), median(&mut theirs));
        kept &= a <= b;
        println!("{:<24} {a:>10.2} {b:>10.2} {:>7.1}×   {:>9.4} {:>9.4}", problem.name, b / a, volumes[0], volumes[1]);
    }
    println!("bar: never slower; {}", if kept { "met" } else { "NOT MET" });
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU seconds that the threads of this process have used.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

fn by_us(problem: &problems::Problem, seed: u64) -> f64 {
    let mut wanted = Problem::new(problem.space(), problem.objectives, problem.constraints);
    wanted.reference = Some(problem.reference.to_vec());
    wanted.seed = seed;
    let mut study = Study::new(wanted).expect("a valid problem");
    while study.evaluations().len() < EVALUATIONS {
        let candidate = study.ask(1).expect("a candidate").remove(0);
        let outcome = problem.evaluate(&candidate.point);
        study.tell(vec![(candidate.id, Some(outcome))]).expect("finite values");
    }
    study.hypervolume() / problem.maximum
}

fn by_egobox(problem: &problems::Problem, seed: u64) -> Option<f64> {
    let columns = problem.objectives + problem.constraints;
    let evaluate = |x: &ArrayView2<f64>| {
        let mut y = Array2::zeros((x.nrows(), columns));
        for (x, mut y) in x.rows().into_iter().zip(y.rows_mut()) {
            let value = |(at, x): (usize, &f64)| match problem.integers.contains(&at) {
                true => Value::Integer(*x as i64),
                false => Value::Real(*x),
            };
            let outcome = problem.evaluate(&x.iter().enumerate().map(value).collect::<Vec<_>>());
            // Constraints of egobox hold at ≤ 0.
            let slacks = outcome.constraints.iter().map(|slack| -slack);
            y.iter_mut().zip(outcome.objectives.iter().copied().chain(slacks)).for_each(|(y, value)| *y = value);
        }
        y
    };
    let types: Vec<XType> = (0..problem.dimensions)
        .map(|at| if problem.integers.contains(&at) { XType::Int(0, 7) } else { XType::Float(0.0, 1.0) })
        .collect();
    let initial = 2 * (problem.dimensions + 1);
    let result = EgorBuilder::optimize(evaluate)
        .configure(|config| {
            config.n_obj(problem.objectives).n_cstr(problem.constraints).n_doe(initial).max_iters(EVALUATIONS - initial).seed(seed)
        })
        .min_within_mixint_space(&types)
        .ok()?
        .run_pareto()
        .ok()?;
    let feasible: Vec<Vec<f64>> = result
        .y_doe
        .rows()
        .into_iter()
        .map(|row| row.to_vec())
        .filter(|row| row[problem.objectives..].iter().all(|slack| *slack <= 0.0))
        .map(|row| row[..problem.objectives].to_vec())
        .collect();
    Some(hypervolume(&feasible, problem.reference) / problem.maximum)
}
