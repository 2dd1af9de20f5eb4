//! `tests/oracle/oracle.json` was made by `tests/oracle/tables.py` with 50 to 400 digits.

use boute_mobo::acquisition::{ln_expected_hypervolume_improvement, ln_expected_side};
use boute_mobo::fit::{Observations, Posterior};
use boute_mobo::gp::Gp;
use boute_mobo::hypervolume::hypervolume;
use boute_mobo::kernel::{HyperParameters, Kernel, Structure};
use boute_mobo::normal::{ln_cdf, ln_improvement};
use serde_json::Value;

use crate::rows;

fn table(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../oracle/oracle.json")).unwrap();
    all[name].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

/// Equal within `tolerance`, relative to the larger of the wanted size and one.
#[track_caller]
fn close(got: f64, want: f64, tolerance: f64, what: &dyn std::fmt::Debug) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what:?}: got {got}, want {want}");
}

#[test]
fn the_tails_of_the_normal() {
    for row in table("tails") {
        let [z, cdf, h] = numbers(&row)[..] else { panic!("{row}") };
        close(ln_cdf(z).0, cdf, 2e-14, &z);
        close(ln_improvement(z).0, h, 1e-13, &z);
    }
}

#[test]
fn posterior_likelihood_and_gradient_of_a_process() {
    for case in table("gp") {
        let structure: Structure = serde_json::from_value(case["structure"].clone()).unwrap();
        let (points, targets) = (matrix(&case["points"]), numbers(&case["targets"]));
        let length_scales = numbers(&case["length_scales"]);
        let noise = case["noise"].as_f64().unwrap();
        let hyper = HyperParameters {
            length_scales: length_scales.clone(),
            weights: numbers(&case["weights"]),
            noise,
        };
        let categorical = vec![false; length_scales.len()];
        let kernel =
            Kernel { structure: structure.clone(), categorical: categorical.clone(), hyper: hyper.clone() };
        let gp = Gp::new(kernel, rows(&points), targets.clone(), vec![noise; targets.len()]).unwrap();
        let (mean, variance) = gp.predict(&numbers(&case["query"]));
        close(mean, case["mean"].as_f64().unwrap(), 1e-11, &"mean");
        close(variance, case["variance"].as_f64().unwrap(), 1e-11, &"variance");
        let known_noise = vec![f64::NAN; targets.len()];
        let points = rows(&points);
        let observations =
            Observations { points: &points, targets: &targets, known_noise: &known_noise, noisy: true };
        let mut posterior = Posterior::new(&structure, &categorical, observations);
        let packed = posterior.pack(&hyper);
        let mut gradient = vec![0.0; packed.len()];
        let value = posterior.negative_log_likelihood(&packed, &mut gradient);
        close(-value, case["ln_likelihood"].as_f64().unwrap(), 1e-11, &"likelihood");
        for (got, want) in gradient.iter().zip(numbers(&case["gradient"])) {
            close(-got, want, 1e-9, &"gradient");
        }
    }
}

#[test]
fn hypervolumes() {
    for case in table("hypervolume") {
        let got = hypervolume(&matrix(&case["points"]), &numbers(&case["reference"]));
        close(got, case["volume"].as_f64().unwrap(), 1e-13, &case);
    }
}

#[test]
fn one_side_of_a_box_also_where_it_is_thin_or_far() {
    for row in table("sides") {
        let [low, high, mean, deviation, want] = numbers(&row)[..] else { panic!("{row}") };
        close(ln_expected_side(low, high, mean, deviation), want, 1e-9, &row);
    }
}

#[test]
fn the_logarithm_of_the_expected_hypervolume_improvement() {
    for case in table("ln_ehvi") {
        let (means, deviations) = (numbers(&case["means"]), numbers(&case["deviations"]));
        let got = ln_expected_hypervolume_improvement(
            &matrix(&case["front"]),
            &numbers(&case["reference"]),
            &means,
            &deviations,
        );
        close(got, case["ln"].as_f64().unwrap(), 1e-10, &case);
    }
}
