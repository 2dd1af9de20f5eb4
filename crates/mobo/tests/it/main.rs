//! The optimiser against tables of another program, against laws, and on awkward input.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod laws;
mod oracle;
mod studies;

use boute_mobo::gp::Gp;
use boute_mobo::kernel::{HyperParameters, Kernel, Structure};
use faer::Mat;

/// A matrix from rows.
fn rows(rows: &[Vec<f64>]) -> Mat<f64> {
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j])
}

/// A process with one Matérn kernel over all coordinates.
fn process(points: &[Vec<f64>], targets: &[f64], length_scales: &[f64], noise: f64) -> Gp {
    let kernel = Kernel {
        structure: Structure::joint(length_scales.len()),
        categorical: vec![false; length_scales.len()],
        hyper: HyperParameters { length_scales: length_scales.to_vec(), weights: vec![1.0], noise },
    };
    Gp::new(kernel, rows(points), targets.to_vec(), vec![noise; targets.len()]).unwrap()
}
