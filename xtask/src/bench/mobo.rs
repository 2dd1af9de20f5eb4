//! dev harness
use super::problems::{COMPARED, OTHERS, Problem};
use boute_mobo::{Problem as MoboProblem, Study, hypervolume::hypervolume};
use rayon::prelude::*;
use std::time::Instant;

fn run_one(problem: &Problem, seed: u64, evaluations: usize) -> (Vec<f64>, f64) {
    let mut p = MoboProblem::new(problem.space(), problem.objectives, problem.constraints);
    p.reference = Some(problem.reference.to_vec());
    p.seed = seed;
    let mut study = Study::new(p).unwrap();
    let t = Instant::now();
    let mut trace = vec![];
    while study.evaluations().len() < evaluations {
        let c = study.ask(1).unwrap().remove(0);
        let o = problem.evaluate(&c.point);
        study.tell(vec![(c.id, Some(o))]).unwrap();
        if [20, 30, 40, 50, 60].contains(&study.evaluations().len()) {
            trace.push(study.hypervolume() / problem.maximum);
        }
    }
    trace.push(study.evaluations().iter().filter(|e| e.outcome.as_ref().unwrap().is_feasible()).count() as f64);
    (trace, t.elapsed().as_secs_f64())
}

pub(super) fn run(arguments: &[&str]) -> std::process::ExitCode {
    let seeds: u64 = arguments.get(1).and_then(|a| a.parse().ok()).unwrap_or(4);
    let only = arguments.get(0).copied().unwrap_or("");
    for problem in COMPARED.iter().chain(&OTHERS).filter(|p| p.name.contains(only)) {
        let r: Vec<_> = (0..seeds).into_par_iter().map(|s| run_one(problem, s, 60)).collect();
        let n = seeds as f64;
        let mean = |k: usize| r.iter().map(|x| x.0[k]).sum::<f64>() / n;
        let last: Vec<f64> = r.iter().map(|x| x.0[4]).collect();
        let m = mean(4);
        let sd = (last.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
        if std::env::var("ALL").is_ok() {
            println!(
                "{:?}",
                r.iter()
                    .map(|x| x.0.iter().map(|v| (v * 1000.0).round() / 1000.0).collect::<Vec<_>>())
                    .collect::<Vec<_>>()
            );
        }
        println!(
            "{:18} {:.4} {:.4} {:.4} {:.4} {:.4} se {:.4} min {:.4} time {:.2} feas {:.1}",
            problem.name,
            mean(0),
            mean(1),
            mean(2),
            mean(3),
            m,
            sd / n.sqrt(),
            last.iter().copied().fold(1.0, f64::min),
            r.iter().map(|x| x.1).sum::<f64>() / n,
            mean(5)
        );
    }
    std::process::ExitCode::SUCCESS
}
