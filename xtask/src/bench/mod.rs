//! Benchmarks that anyone can run: `cargo xtask bench [NAME] [small]`; `small` is for continuous integration.
//!
//! Speeds are per second of CPU time of one thread (the machine may be busy with other things), medians of several rounds
//! where a round is short. Bars on speeds hold on a machine of its own; `small` asks for half, since a shared core that
//! another thread also uses gives about that.

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use boute_perf::{Calibration, ReplicaConfig, ReplicaModel, StepTime, default_engine};
use boute_spec::catalog::Catalog;

mod autopilot;
mod autopilot_rates;
mod mobo;
mod perf;
mod picture;
mod planner;
mod planner_blackbox;
mod problems;
mod router;
mod sim;

/// Rounds of each short measurement.
const ROUNDS: usize = 5;

pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let small = arguments.contains(&"small");
    let mut report = Report { kept: true, shared_machine: small, rows: Vec::new() };
    match arguments {
        ["mobo", "pictures", folder] => {
            mobo::pictures(Path::new(folder));
            return ExitCode::SUCCESS;
        }
        ["mobo"] | ["mobo", "small"] => report.kept &= mobo::run(small),
        ["planner", "pictures", folder] => {
            return match planner::pictures(Path::new(folder)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => {
                    eprintln!("{message}");
                    ExitCode::FAILURE
                }
            };
        }
        ["sim", "memory"] => return sim::print_peak_memory(),
        ["planner", ..] => {
            if let Err(message) = planner::run(small, &mut report) {
                eprintln!("{message}");
                return ExitCode::FAILURE;
            }
        }
        ["autopilot", "rates"] => {
            if let Err(message) = autopilot_rates::run() {
                eprintln!("{message}");
                return ExitCode::FAILURE;
            }
            return ExitCode::SUCCESS;
        }
        ["autopilot", arguments @ ..] => {
            let seed = arguments.iter().find_map(|argument| argument.parse().ok());
            if let Err(message) = autopilot::run(small, seed, &mut report) {
                eprintln!("{message}");
                return ExitCode::FAILURE;
            }
        }
        ["router", ..] => {
            if let Err(message) = router::run(small, &mut report) {
                eprintln!("{message}");
                return ExitCode::FAILURE;
            }
        }
        ["sim", ..] => sim::run(small, &mut report),
        ["perf" | "small"] | [] | ["perf", "small"] => {
            report.speed("step times per second", steps_per_second(), 500_000.0);
            if let Err(message) = perf::run(&crate::root(), small, &mut report) {
                eprintln!("{message}");
                return ExitCode::FAILURE;
            }
            sim::run(small, &mut report);
            if !arguments.contains(&"perf") {
                if let Err(message) = planner::run(small, &mut report) {
                    eprintln!("{message}");
                    return ExitCode::FAILURE;
                }
                report.kept &= mobo::run(small);
                if let Err(message) = router::run(small, &mut report) {
                    eprintln!("{message}");
                    return ExitCode::FAILURE;
                }
            }
        }
        _ => {
            eprintln!(
                "usage: cargo xtask bench [perf | sim | mobo | planner | router | autopilot] [small], (mobo | planner) pictures FOLDER, or autopilot (SEED | rates)"
            );
            return ExitCode::from(2);
        }
    }
    println!();
    for row in &report.rows {
        println!("{row}");
    }
    if report.kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measures beside their bars, printed at the end.
pub(crate) struct Report {
    kept: bool,
    shared_machine: bool,
    rows: Vec<String>,
}

impl Report {
    pub(crate) fn at_least(&mut self, name: &str, value: f64, bar: f64) {
        self.row(name, value, &format!("≥ {bar}"), value >= bar);
    }

    /// A bar on something per second of CPU time.
    pub(crate) fn speed(&mut self, name: &str, value: f64, bar: f64) {
        self.at_least(name, value, if self.shared_machine { bar / 2.0 } else { bar });
    }

    /// A bar on seconds of wall time, of which a machine shared with others may take several times as many.
    pub(crate) fn at_most_s(&mut self, name: &str, value: f64, bar: f64) {
        self.at_most(name, value, if self.shared_machine { 6.0 * bar } else { bar });
    }

    /// A bar on microseconds, of which a machine shared with others may take four times as many.
    pub(crate) fn at_most_us(&mut self, name: &str, value: f64, bar: f64) {
        self.at_most(name, value, if self.shared_machine { 4.0 * bar } else { bar });
    }

    pub(crate) fn at_most(&mut self, name: &str, value: f64, bar: f64) {
        self.row(name, value, &format!("≤ {bar}"), value <= bar);
    }

    pub(crate) fn between(&mut self, name: &str, value: f64, low: f64, high: f64) {
        self.row(name, value, &format!("{low}–{high}"), (low..=high).contains(&value));
    }

    /// A line of its own.
    pub(crate) fn note(&mut self, text: &str) {
        self.rows.push(text.to_owned());
    }

    /// A bar on an estimate from a sample: (value, low, high) of its 95 % interval. A miss within it is said, but kept.
    pub(crate) fn sampled_at_least(&mut self, name: &str, (value, low, high): (f64, f64, f64), bar: f64) {
        self.sampled(name, [value, low, high], &format!("≥ {bar}"), value >= bar, high >= bar);
    }

    /// The same for an upper bar.
    pub(crate) fn sampled_at_most(&mut self, name: &str, (value, low, high): (f64, f64, f64), bar: f64) {
        self.sampled(name, [value, low, high], &format!("≤ {bar}"), value <= bar, low <= bar);
    }

    fn sampled(&mut self, name: &str, [value, low, high]: [f64; 3], bar: &str, met: bool, may: bool) {
        self.kept &= met || may;
        let verdict = match (met, may) {
            (true, _) => "met",
            (false, true) => "missed within its interval",
            (false, false) => "NOT MET",
        };
        self.rows.push(format!("{name:<58} {value:>7.3} [{low:.3}, {high:.3}]  {bar:<8} {verdict}"));
    }

    fn row(&mut self, name: &str, value: f64, bar: &str, met: bool) {
        self.kept &= met;
        self.rows
            .push(format!("{name:<66} {value:>12.3}  {bar:<10} {}", if met { "met" } else { "NOT MET" }));
    }
}

/// Seconds of CPU time that this thread takes for `work`, and what it gives.
fn cpu_seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = cpu_clock_s();
    let result = work();
    (cpu_clock_s() - start, result)
}

/// When this process first looked at the clock.
static BEGIN: OnceLock<Instant> = OnceLock::new();

/// CPU time of this thread so far; wall time where the system does not say.
fn cpu_clock_s() -> f64 {
    let counters = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = counters.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok());
    nanos.map_or_else(|| BEGIN.get_or_init(Instant::now).elapsed().as_secs_f64(), |nanos| nanos * 1e-9)
}

/// Llama-3.1-8B on one H100, by our own cost model.
fn replica() -> ReplicaModel {
    let catalog = Catalog::builtin();
    let (Ok(model), Ok(gpu)) = (catalog.model("llama-3.1-8b"), catalog.gpu("H100-SXM")) else {
        unreachable!("the catalogue has these")
    };
    let engine = default_engine(gpu, &model.shape, 8192);
    let config = ReplicaConfig::new(model.clone(), gpu.clone(), 1, 1, engine);
    let Ok(replica) = ReplicaModel::new(&config, Calibration::builtin()) else { unreachable!("it fits") };
    replica
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn steps_per_second() -> f64 {
    const STEPS: u64 = 200_000;
    let replica = replica();
    let round = |_| {
        let (seconds, ()) = cpu_seconds(|| {
            for step in 0..STEPS {
                black_box(replica.decode_time(1 + step % 256, 1000 * (1 + step % 256), 1));
            }
        });
        STEPS as f64 / seconds
    };
    median((0..ROUNDS).map(round).collect())
}
