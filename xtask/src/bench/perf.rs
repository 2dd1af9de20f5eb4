//! `cargo xtask bench perf`: how far predictions are off, on rows that the constants were not fitted to, beside
//! aiconfigurator 0.12 on the same rows; and what a prediction costs.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use boute_perf::interval::{HeldOut, spread};
use boute_perf::profile::{Point, Speed};
use boute_perf::rows::Row;
use boute_perf::{Calibration, ReplicaModel};
use boute_spec::digest::sha256_hex;
use rayon::prelude::*;
use serde::Deserialize;

use super::Report;
use crate::calibrate::held_out::{Prediction, distinct, predictions};
use crate::calibrate::serving::fit;
use crate::calibrate::{Kernels, Tables};

/// Points of a series that a profile measures.
const PROFILED: usize = 10;
/// Folds by configuration.
const FOLDS: u64 = 5;

#[derive(Deserialize)]
struct Theirs {
    id: String,
    pred_ttft_ms: f64,
    pred_tpot_ms: f64,
}

/// TTFT and TPOT of a prediction over the measured ones.
#[derive(Clone, Copy)]
struct Ratios {
    ttft: f64,
    tpot: f64,
}

/// `small` leaves out what `cargo test` runs.
pub(crate) fn run(root: &Path, small: bool, report: &mut Report) -> Result<(), String> {
    let tables = Tables::of(root);
    let kernels = Kernels::fit(&tables)?;
    let (rows, skipped) = tables.serving()?;
    let aggregated = rows.len() + skipped.iter().filter(|it| !it.why.contains("different GPUs")).count();
    let covered = rows.len() as f64 / aggregated as f64 * 100.0;
    let rows = distinct(rows);
    let theirs = tables.rows::<Theirs>("aiconfigurator_predictions_public.csv.gz")?;
    let theirs: BTreeMap<&str, &Theirs> = theirs.iter().map(|it| (it.id.as_str(), it)).collect();

    println!("\n{} settings; constants refitted for every fold to the others", rows.len());
    let by_series = predictions(&rows, &kernels, |row| row.series.as_str());
    accuracy(&by_series, &theirs, report);
    by_configuration(&rows, &kernels, report);
    profiled(&rows, &kernels, report);
    report.at_least("rows predicted, % of those that ran (aiconfigurator: 73)", covered, 97.0);
    intervals(&by_series, report);
    ranking(&by_series, &theirs, report);
    per_series(&by_series, &theirs);
    if !small {
        report.at_most(
            "laws of physics broken in random tests (crates/perf/tests/it)",
            broken_laws(root)?,
            0.0,
        );
    }
    report.speed("closed-form estimates per core-second", estimates_per_second(&rows), 500_000.0);
    report.at_most("cold start to the first estimate, ms", cold_start_ms(root)?, 50.0);
    Ok(())
}

fn ours(prediction: &Prediction<'_>) -> Ratios {
    let (ttft_s, tpot_s) = prediction.measured;
    Ratios { ttft: prediction.estimate.ttft_s / ttft_s, tpot: prediction.estimate.tpot_s / tpot_s }
}

/// The same for aiconfigurator; `None` where it predicts nothing.
fn aiconfigurators(prediction: &Prediction<'_>, theirs: &BTreeMap<&str, &Theirs>) -> Option<Ratios> {
    let their = theirs.get(prediction.row.id.as_str())?;
    let (ttft_s, tpot_s) = prediction.measured;
    Some(Ratios { ttft: their.pred_ttft_ms * 1e-3 / ttft_s, tpot: their.pred_tpot_ms * 1e-3 / tpot_s })
}

/// Rows whose labels contradict each other: one setting with 8 and 42 ms per token, replicas summed into one concurrency.
fn mislabelled(row: &Row) -> bool {
    row.series.starts_with("qwen3-32b gb200")
}

fn is_moe(row: &Row) -> bool {
    row.config.model.shape.moe.is_some()
}

fn accuracy(predictions: &[Prediction<'_>], theirs: &BTreeMap<&str, &Theirs>, report: &mut Report) {
    type Class = (&'static str, fn(&Row) -> bool);
    let classes: [Class; 3] = [
        ("dense", |row| !is_moe(row) && !mislabelled(row)),
        ("dense, mislabelled rows too", |row| !is_moe(row)),
        ("MoE", is_moe),
    ];
    println!("\nseries held out: mean / median absolute error in %");
    println!(
        "{:<28} {:>5} {:>15} {:>15}   on {:>4} {:>31} {:>31}",
        "", "rows", "TPOT", "TTFT", "both", "TPOT ours | aiconfigurator", "TTFT ours | aiconfigurator"
    );
    for (name, class) in classes {
        let of_class: Vec<&Prediction<'_>> = predictions.iter().filter(|it| class(it.row)).collect();
        let all: Vec<Ratios> = of_class.iter().map(|it| ours(it)).collect();
        let (both, their): (Vec<Ratios>, Vec<Ratios>) =
            of_class.iter().filter_map(|it| Some((ours(it), aiconfigurators(it, theirs)?))).unzip();
        let (tpot, ttft) = (Error::of(&all, |it| it.tpot), Error::of(&all, |it| it.ttft));
        println!(
            "{name:<28} {:>5} {tpot:>15} {ttft:>15}   on {:>4} {:>15} | {:>13} {:>15} | {:>13}",
            all.len(),
            both.len(),
            Error::of(&both, |it| it.tpot),
            Error::of(&their, |it| it.tpot),
            Error::of(&both, |it| it.ttft),
            Error::of(&their, |it| it.ttft),
        );
        match name {
            "dense" => {
                report.at_most("dense, series held out: TPOT mean error, %", tpot.mean, 14.0);
                report.at_most("dense, series held out: TPOT median error, %", tpot.median, 9.0);
                report.at_most("dense, series held out: TTFT mean error, %", ttft.mean, 38.0);
                report.at_most("dense, series held out: TTFT median error, %", ttft.median, 30.0);
            }
            "MoE" => {
                report.at_most("MoE, series held out: TPOT mean error, %", tpot.mean, 28.0);
                report.at_most("MoE, series held out: TTFT mean error, %", ttft.mean, 50.0);
            }
            _ => {}
        }
    }
}

fn by_configuration(rows: &[Row], kernels: &Kernels, report: &mut Report) {
    let fold =
        |row: &Row| u64::from_str_radix(&sha256_hex(row.setting.as_bytes())[..8], 16).unwrap_or(0) % FOLDS;
    let predictions = predictions(rows, kernels, fold);
    let dense: Vec<Ratios> =
        predictions.iter().filter(|it| !is_moe(it.row) && !mislabelled(it.row)).map(ours).collect();
    let (tpot, ttft) = (Error::of(&dense, |it| it.tpot), Error::of(&dense, |it| it.ttft));
    println!("\ndense, {FOLDS} folds by configuration: TPOT {tpot}, TTFT {ttft}");
    report.at_most("dense, by configuration: TPOT mean error, %", tpot.mean, 10.5);
    report.at_most("dense, by configuration: TPOT median error, %", tpot.median, 6.5);
}

/// Each dense series after some of its points corrected the model as `boute profile` does, on the others.
fn profiled(rows: &[Row], kernels: &Kernels, report: &mut Report) {
    let mut dense: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !is_moe(row) && !mislabelled(row)) {
        dense.entry(&row.series).or_default().push(row);
    }
    dense.retain(|_, of_series| of_series.len() >= 2 * PROFILED);
    let after: Vec<Ratios> = dense
        .par_iter_mut()
        .flat_map(|(series, of_series)| {
            let others: Vec<&Row> = rows.iter().filter(|row| row.series != *series).collect();
            let calibration = fit(&others, kernels);
            of_series.sort_by_key(|row| sha256_hex(row.setting.as_bytes()));
            let points: Vec<Point<'_>> = of_series.iter().filter_map(|row| point(row)).collect();
            let (measured, rest) = points.split_at(PROFILED);
            let speed = Speed::fit(measured, &calibration);
            rest.iter()
                .map(|point| {
                    let corrected = point.estimate(Some(speed), &calibration);
                    Ratios { ttft: corrected.ttft_s / point.ttft_s, tpot: corrected.tpot_s / point.tpot_s }
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let (tpot, ttft) = (Error::of(&after, |it| it.tpot), Error::of(&after, |it| it.ttft));
    println!("dense, after {PROFILED} points of the series: TPOT {tpot}, TTFT {ttft}");
    report.at_most("dense, after 10 points: TPOT median error, %", tpot.median, 5.0);
}

fn point(row: &Row) -> Option<Point<'_>> {
    let (ttft_s, tpot_s) = row.measured?;
    Some(Point { config: &row.config, load: row.load, ttft_s, tpot_s })
}

fn in_series<'a, 'b>(predictions: &'b [Prediction<'a>]) -> BTreeMap<&'a str, Vec<&'b Prediction<'a>>> {
    let mut series: BTreeMap<&str, Vec<&Prediction<'_>>> = BTreeMap::new();
    for prediction in predictions {
        series.entry(&prediction.row.series).or_default().push(prediction);
    }
    series
}

/// Held-out rows inside the interval that the other series give.
fn intervals(predictions: &[Prediction<'_>], report: &mut Report) {
    let calibration = Calibration::builtin();
    let residuals: Vec<HeldOut<'_>> = predictions.iter().map(|it| it.residual(calibration)).collect();
    let (mut ttft, mut tpot, mut count) = (0_u32, 0_u32, 0_u32);
    let series: BTreeSet<&str> = residuals.iter().map(|it| it.series).collect();
    for name in series {
        let (own, others): (Vec<HeldOut<'_>>, Vec<HeldOut<'_>>) =
            residuals.iter().partition(|it| it.series == name);
        let Some(spread) = spread(own[0].kind, &others) else { continue };
        for row in &own {
            count += 1;
            ttft += u32::from((spread.ttft[0]..=spread.ttft[1]).contains(&row.ttft));
            tpot += u32::from((spread.tpot[0]..=spread.tpot[1]).contains(&row.tpot));
        }
    }
    let share = |inside: u32| f64::from(inside) / f64::from(count.max(1)) * 100.0;
    report.between("80 % interval of TPOT covers, % of held-out rows", share(tpot), 75.0, 85.0);
    report.between("80 % interval of TTFT covers, % of held-out rows", share(ttft), 75.0, 85.0);
}

/// Output tokens per second and GPU of a closed loop.
fn throughput_per_gpu(row: &Row, ttft_s: f64, tpot_s: f64) -> f64 {
    let answer = f64::from(row.load.answer_tokens);
    row.load.clients * answer / (ttft_s + (answer - 1.0) * tpot_s) / f64::from(row.config.gpus())
}

/// Measured and predicted.
fn throughputs(it: &Prediction<'_>) -> (f64, f64) {
    let of = |ttft_s, tpot_s| throughput_per_gpu(it.row, ttft_s, tpot_s);
    (of(it.measured.0, it.measured.1), of(it.estimate.ttft_s, it.estimate.tpot_s))
}

/// Kendall's τ of throughput per GPU inside each series, averaged over rows.
fn ranking(predictions: &[Prediction<'_>], theirs: &BTreeMap<&str, &Theirs>, report: &mut Report) {
    let (mut our, mut our_both, mut their) = (Mean::default(), Mean::default(), Mean::default());
    for (_, of_series) in in_series(predictions).into_iter().filter(|(_, it)| !mislabelled(it[0].row)) {
        let pairs: Vec<(f64, f64)> = of_series.iter().map(|it| throughputs(it)).collect();
        our.add(kendall_tau(&pairs), pairs.len());
        let (both, their_pairs): (Vec<_>, Vec<_>) = of_series
            .iter()
            .filter_map(|it| {
                let their = theirs.get(it.row.id.as_str())?;
                let their = throughput_per_gpu(it.row, their.pred_ttft_ms * 1e-3, their.pred_tpot_ms * 1e-3);
                Some((throughputs(it), (throughputs(it).0, their)))
            })
            .unzip();
        our_both.add(kendall_tau(&both), both.len());
        their.add(kendall_tau(&their_pairs), their_pairs.len());
    }
    println!(
        "\nKendall's tau of throughput per GPU inside a series: ours {:.3}; on the rows of both: ours {:.3}, aiconfigurator {:.3}",
        our.mean(),
        our_both.mean(),
        their.mean()
    );
    report.at_least("Kendall's tau of throughput per GPU in a series", our.mean(), 0.9);
}

#[derive(Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>, weight: usize) {
        if let Some(value) = value {
            self.sum += value * weight as f64;
            self.weight += weight as f64;
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.weight.max(1.0)
    }
}

/// τ-a over the pairs that differ in both; `None` if there are none.
fn kendall_tau(pairs: &[(f64, f64)]) -> Option<f64> {
    let (mut agree, mut all) = (0.0, 0.0);
    for (i, a) in pairs.iter().enumerate() {
        for b in &pairs[..i] {
            let product = (a.0 - b.0) * (a.1 - b.1);
            if product != 0.0 {
                agree += product.signum();
                all += 1.0;
            }
        }
    }
    (all > 0.0).then(|| agree / all)
}

fn per_series(predictions: &[Prediction<'_>], theirs: &BTreeMap<&str, &Theirs>) {
    println!(
        "\n{:<42} {:>5} {:>15} {:>15} {:>6}   aiconfigurator on {:>15} {:>15}",
        "series", "rows", "TPOT", "TTFT", "tau", "TPOT", "TTFT"
    );
    for (name, of_series) in in_series(predictions) {
        let all: Vec<Ratios> = of_series.iter().map(|it| ours(it)).collect();
        let their: Vec<Ratios> = of_series.iter().filter_map(|it| aiconfigurators(it, theirs)).collect();
        println!(
            "{name:<42} {:>5} {:>15} {:>15} {:>6.3}   {:>17} {:>15} {:>15}",
            all.len(),
            Error::of(&all, |it| it.tpot),
            Error::of(&all, |it| it.ttft),
            kendall_tau(&of_series.iter().map(|it| throughputs(it)).collect::<Vec<_>>()).unwrap_or(f64::NAN),
            their.len(),
            Error::of(&their, |it| it.tpot),
            Error::of(&their, |it| it.ttft),
        );
    }
}

/// Mean and median of |predicted/measured − 1| in percent.
struct Error {
    mean: f64,
    median: f64,
}

impl Error {
    fn of(ratios: &[Ratios], which: fn(&Ratios) -> f64) -> Self {
        let errors: Vec<f64> = ratios.iter().map(|it| (which(it) - 1.0).abs() * 100.0).collect();
        Self { mean: errors.iter().sum::<f64>() / errors.len().max(1) as f64, median: Self::middle(errors) }
    }

    fn middle(mut values: Vec<f64>) -> f64 {
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.median.is_nan() {
            f.pad("–")
        } else {
            f.pad(&format!("{:.1} / {:.1}", self.mean, self.median))
        }
    }
}

/// Property tests of the cost model that fail: peak compute and bandwidth, monotone in load, TP and bandwidth, …
fn broken_laws(root: &Path) -> Result<f64, String> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--package", "boute-perf", "--test", "it"])
        .current_dir(root)
        .output()
        .map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = told.split("; ").find_map(|part| part.strip_suffix(" failed")?.trim().parse().ok());
    failed.ok_or_else(|| "the property tests of `boute-perf` do not run".into())
}

/// From configuration to TTFT, TPOT and the parts of a step, memory checked: on one thread, over all rows.
fn estimates_per_second(rows: &[Row]) -> f64 {
    const REPEATS: usize = 100;
    let calibration = Calibration::builtin();
    let round = |_| {
        let (seconds, ()) = super::cpu_seconds(|| {
            for row in std::iter::repeat_n(rows, REPEATS).flatten() {
                if let Ok(replica) = ReplicaModel::new(&row.config, calibration) {
                    black_box(replica.closed_loop(black_box(&row.load)));
                }
            }
        });
        (REPEATS * rows.len()) as f64 / seconds
    };
    super::median((0..super::ROUNDS).map(round).collect())
}

/// From starting the program to its exit with the estimate of one row.
fn cold_start_ms(root: &Path) -> Result<f64, String> {
    let build = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--package", "boute"])
        .current_dir(root)
        .status();
    if !build.map_err(|error| error.to_string())?.success() {
        return Err("`boute` does not build".into());
    }
    let folder = std::env::temp_dir().join(format!("boute-bench-{}", std::process::id()));
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(wrong)?;
    let (rows, predictions) = (folder.join("rows.csv"), folder.join("predictions.csv"));
    std::fs::write(&rows, "id,model_path,system,backend,precision,isl,osl,concurrency,tp_size\n1,meta-llama/Llama-3.1-8B,h100_sxm,vllm,fp8,1024,256,16,1\n").map_err(wrong)?;
    let mut rounds = Vec::new();
    for _ in 0..2 * super::ROUNDS {
        let start = Instant::now();
        let status = Command::new(root.join("target/release/boute"))
            .args(["perf", "estimate", "--rows"])
            .arg(&rows)
            .arg("-o")
            .arg(&predictions)
            .stderr(Stdio::null())
            .status();
        if !status.map_err(wrong)?.success() {
            return Err("`boute perf estimate` fails".into());
        }
        rounds.push(start.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_dir_all(&folder).map_err(wrong)?;
    // The best of them: the machine may be busy with other things.
    Ok(rounds.into_iter().fold(f64::INFINITY, f64::min))
}
