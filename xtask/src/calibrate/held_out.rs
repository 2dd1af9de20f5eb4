//! Predictions of rows that the constants were not fitted to.

use std::collections::{BTreeMap, BTreeSet};

use boute_perf::ServingEstimate;
use boute_perf::calibration::Calibration;
use boute_perf::interval::HeldOut;
use boute_perf::rows::Row;
use rayon::prelude::*;

use super::operators::Kernels;
use super::serving::fit;

/// A measured row, and what constants say that never saw it.
pub(crate) struct Prediction<'a> {
    pub(crate) row: &'a Row,
    pub(crate) estimate: ServingEstimate,
    /// TTFT and TPOT in seconds.
    pub(crate) measured: (f64, f64),
}

/// Each row predicted by the fit to all rows whose `fold` differs.
pub(crate) fn predictions<'a, K: Ord + Sync>(
    rows: &'a [Row],
    kernels: &Kernels,
    fold: impl Fn(&'a Row) -> K + Sync,
) -> Vec<Prediction<'a>> {
    let mut by_fold: BTreeMap<K, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_fold.entry(fold(row)).or_default().push(row);
    }
    let folds: Vec<(&K, &Vec<&Row>)> = by_fold.iter().collect();
    folds
        .par_iter()
        .flat_map(|(key, held_out)| {
            let others: Vec<&Row> = rows.iter().filter(|row| fold(row) != **key).collect();
            let calibration = fit(&others, kernels);
            held_out.iter().filter_map(|row| prediction(row, &calibration)).collect::<Vec<_>>()
        })
        .collect()
}

fn prediction<'a>(row: &'a Row, calibration: &Calibration) -> Option<Prediction<'a>> {
    Some(Prediction { row, estimate: row.estimate(calibration), measured: row.measured? })
}

impl Prediction<'_> {
    /// Measured over predicted.
    pub(crate) fn residual(&self, calibration: &Calibration) -> HeldOut<'_> {
        HeldOut {
            kind: self.row.config.kind(calibration.source(&self.row.config.gpu)),
            series: &self.row.series,
            ttft: self.measured.0 / self.estimate.ttft_s,
            tpot: self.measured.1 / self.estimate.tpot_s,
        }
    }
}

/// The first of all rows with the same setting: exact copies are no second measurement.
pub(crate) fn distinct(rows: Vec<Row>) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    rows.into_iter().filter(|row| row.measured.is_some() && seen.insert(row.setting.clone())).collect()
}
