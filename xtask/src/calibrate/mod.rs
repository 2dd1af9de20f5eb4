//! `cargo xtask calibrate`: fits `catalog/calibration.toml` to the measurements in `catalog/measurements/`.

pub(crate) mod held_out;
mod operators;
pub(crate) mod serving;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use boute_perf::Engine;
use boute_perf::calibration::{Interval, System};
use boute_perf::interval::{HeldOut, Kind, Spread, spread};
use boute_perf::rows::{Row, Skipped, parse_rows};
use boute_spec::catalog::Source;
use flate2::read::GzDecoder;
use serde::de::DeserializeOwned;

use held_out::{distinct, predictions};
pub(crate) use operators::Kernels;
use operators::rounded;

const HEADER: &str = "\
# How far real kernels stay below the peaks of the data sheet, and what engines add. Written by `cargo xtask calibrate`; the
# forms and symbols are explained in crates/perf/src/kernels.rs, model.rs, serving.rs and interval.rs.
# Kernels: fitted to the operator tables of ai-dynamo/aiconfigurator @ 095f58a51c4c (Apache-2.0; vLLM 0.24.0 kernels, A100: 0.14.0);
# `error` is the mean relative error over the fitted points. Sends: microsoft/vidur @ 7d47513363ec (MIT). Engines and intervals: its end-to-end silicon sample.
# Times in microseconds or milliseconds as named, bus bandwidth in GB/s for 2, 4 and 8 GPUs.

";

/// The folder of measurements.
pub(crate) struct Tables {
    folder: PathBuf,
}

impl Tables {
    /// Those of the repository at `root`.
    pub(crate) fn of(root: &Path) -> Self {
        Self { folder: root.join("catalog/measurements") }
    }

    /// All rows of a gzipped CSV.
    pub(crate) fn rows<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, String> {
        let rows = csv::Reader::from_reader(self.open(name)?).into_deserialize().collect::<Result<_, _>>();
        rows.map_err(|error| format!("{name}: {error}"))
    }

    /// End-to-end measurements, and those that are not predicted.
    pub(crate) fn serving(&self) -> Result<(Vec<Row>, Vec<Skipped>), String> {
        let mut text = String::new();
        self.open("silicon_public.csv.gz")?.read_to_string(&mut text).map_err(|error| error.to_string())?;
        parse_rows(&text).map_err(|error| error.to_string())
    }

    fn open(&self, name: &str) -> Result<GzDecoder<File>, String> {
        let path = self.folder.join(name);
        Ok(GzDecoder::new(File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?))
    }
}

/// Writes `catalog/calibration.toml`.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let tables = Tables::of(root);
    let kernels = Kernels::fit(&tables)?;
    eprintln!("fitted the kernels of {} systems", kernels.systems.len());
    let rows = distinct(tables.serving()?.0);
    let all: Vec<&Row> = rows.iter().collect();
    let mut calibration = serving::fit(&all, &kernels);
    eprintln!("fitted the engines to {} settings; now each series held out, for the intervals", rows.len());
    let held_out = predictions(&rows, &kernels, |row| row.series.as_str());
    let residuals: Vec<HeldOut<'_>> = held_out.iter().map(|it| it.residual(&calibration)).collect();
    calibration.interval = intervals(&kernels.systems, &residuals);
    let path = root.join("catalog/calibration.toml");
    let text = toml::to_string(&calibration).map_err(|error| error.to_string())?;
    std::fs::write(&path, format!("{HEADER}{text}")).map_err(|error| format!("{}: {error}", path.display()))
}

fn intervals(systems: &[System], residuals: &[HeldOut<'_>]) -> Vec<Interval> {
    let mut intervals = Vec::new();
    for class in ["dense", "moe"] {
        for engine in Engine::ALL.map(Engine::name) {
            for system in systems {
                for source in [Source::Fitted, Source::Assumed] {
                    let kind = Kind { class, engine, gpu: &system.name, source };
                    let Some(Spread { ttft, tpot }) = spread(kind, residuals) else { continue };
                    intervals.push(Interval {
                        class: class.into(),
                        engine: engine.into(),
                        gpu: system.name.clone(),
                        source,
                        spread: Spread { ttft: ttft.map(rounded), tpot: tpot.map(rounded) },
                    });
                }
            }
        }
    }
    intervals
}
