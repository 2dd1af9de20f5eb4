//! What must hold for all inputs.

use boute_mobo::acquisition::{Acquisition, AcquisitionScratch, ln_sum_exp};
use boute_mobo::boxes::non_dominated_cells;
use boute_mobo::fit::{Observations, Posterior};
use boute_mobo::hypervolume::hypervolume;
use boute_mobo::kernel::Structure;
use faer::Mat;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{process, rows};

fn points(objectives: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    vec(vec(0.0..1.2_f64, objectives), 0..9)
}

/// Central differences of `f` at `x`.
fn slopes(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    (0..x.len())
        .map(|at| {
            let mut moved = |step: f64| {
                let mut x = x.to_vec();
                x[at] += step;
                f(&x)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn another_point_never_shrinks_the_hypervolume(objectives in 2..=5_usize, seed in any::<u64>()) {
        let front = boute_mobo_points(objectives, 8, seed);
        let reference = vec![1.0; objectives];
        let mut before = 0.0;
        for count in 0..=front.len() {
            let now = hypervolume(&front[..count], &reference);
            prop_assert!(now >= before - 1e-12, "{now} < {before}");
            before = now;
        }
    }

    #[test]
    fn the_order_of_points_does_not_matter(front in points(4)) {
        let reversed: Vec<_> = front.iter().rev().cloned().collect();
        let (a, b) = (hypervolume(&front, &[1.0; 4]), hypervolume(&reversed, &[1.0; 4]));
        prop_assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn boxes_are_a_partition_of_what_is_not_dominated(
        front in prop_oneof![points(1), points(2), points(3), points(4)],
        place in vec(-0.5..1.0_f64, 4),
    ) {
        let objectives = front.first().map_or(2, Vec::len);
        let (reference, place) = (vec![1.0; objectives], &place[..objectives]);
        let cells = non_dominated_cells(&front, &reference);
        let inside = cells
            .iter()
            .filter(|cell| cell.iter().zip(place).all(|((low, high), y)| low < y && y < high))
            .count();
        let dominated = front.iter().any(|point| point.iter().zip(place).all(|(a, b)| a <= b));
        prop_assert_eq!(inside, usize::from(!dominated));
        // From the ideal corner on, boxes and hypervolume share the volume between them.
        let volume: f64 = cells
            .iter()
            .map(|cell| cell.iter().map(|(low, high)| (high - low.max(-1.0)).max(0.0)).product::<f64>())
            .sum();
        let whole: f64 = vec![2.0; objectives].iter().product();
        prop_assert!((volume + hypervolume(&front, &reference) - whole).abs() < 1e-10);
    }

    #[test]
    fn a_process_is_never_surer_than_certain_nor_doubts_more_than_before(
        points in vec(vec(0.0..1.0_f64, 3), 1..20),
        query in vec(0.0..1.0_f64, 3),
        noise in 1e-6..0.1_f64,
    ) {
        let targets: Vec<f64> = points.iter().map(|x| (5.0 * x[0]).sin() + x[1]).collect();
        let (_, variance) = process(&points, &targets, &[0.3, 0.5, 2.0], noise).predict(&query);
        prop_assert!(variance > 0.0 && variance <= 1.0 + 1e-9, "{variance}");
    }

    #[test]
    fn scaling_inputs_with_their_length_scales_changes_nothing(
        points in vec(vec(0.0..1.0_f64, 2), 2..12),
        query in vec(0.0..1.0_f64, 2),
        factor in 0.1..10.0_f64,
        shift in -3.0..3.0_f64,
    ) {
        let scaled = |x: &Vec<f64>| x.iter().map(|x| factor * x + shift).collect::<Vec<f64>>();
        let targets: Vec<f64> = points.iter().map(|x| x[0] - x[1] * x[1]).collect();
        let plain = process(&points, &targets, &[0.4, 0.9], 1e-3).predict(&query);
        let moved: Vec<_> = points.iter().map(scaled).collect();
        let other = process(&moved, &targets, &[0.4 * factor, 0.9 * factor], 1e-3).predict(&scaled(&query));
        prop_assert!((plain.0 - other.0).abs() < 1e-8 && (plain.1 - other.1).abs() < 1e-8, "{plain:?} {other:?}");
    }

    #[test]
    fn scaling_outputs_scales_the_posterior(
        points in vec(vec(0.0..1.0_f64, 2), 2..12),
        query in vec(0.0..1.0_f64, 2),
        factor in 0.1..10.0_f64,
        shift in -3.0..3.0_f64,
    ) {
        let targets: Vec<f64> = points.iter().map(|x| (3.0 * x[0]).cos() + x[1]).collect();
        let moved: Vec<f64> = targets.iter().map(|y| factor * y + shift).collect();
        let (plain, _) = process(&points, &targets, &[0.4, 0.9], 1e-3).predict(&query);
        let (other, _) = process(&points, &moved, &[0.4, 0.9], 1e-3).predict(&query);
        prop_assert!((factor * plain + shift - other).abs() < 1e-7, "{plain} {other}");
    }

    #[test]
    fn one_more_observation_is_the_same_as_beginning_anew(
        points in vec(vec(0.0..1.0_f64, 2), 2..12),
        query in vec(0.0..1.0_f64, 2),
    ) {
        let targets: Vec<f64> = points.iter().map(|x| x[0] * x[1]).collect();
        let last = points.len() - 1;
        let whole = process(&points, &targets, &[0.5, 0.5], 1e-3).predict(&query);
        let grown = process(&points[..last], &targets[..last], &[0.5, 0.5], 1e-3)
            .with_observation(&points[last], targets[last], 1e-3)
            .predict(&query);
        prop_assert!((whole.0 - grown.0).abs() < 1e-9 && (whole.1 - grown.1).abs() < 1e-9);
    }

    #[test]
    fn a_sum_of_exponentials_is_between_its_largest_and_n_times_that(values in vec(-2000.0..2000.0_f64, 1..9)) {
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = ln_sum_exp(&values);
        prop_assert!(sum >= largest && sum <= largest + (values.len() as f64).ln() + 1e-12);
    }
}

/// Points of a scrambled sequence.
fn boute_mobo_points(dimensions: usize, count: usize, seed: u64) -> Vec<Vec<f64>> {
    let space =
        boute_mobo::Space::new(vec![boute_mobo::Domain::Real { low: 0.0, high: 1.0 }; dimensions], vec![]);
    let number = |value: &boute_mobo::Value| match value {
        boute_mobo::Value::Real(x) => *x,
        _ => unreachable!("real variables only"),
    };
    let points = boute_mobo::sobol_points(&space.unwrap(), 0, count, seed).unwrap();
    points.iter().map(|point| point.iter().map(number).collect()).collect()
}

#[test]
fn the_gradient_of_the_posterior_density_is_its_slope() {
    let points = rows(&boute_mobo_points(4, 15, 3));
    let targets: Vec<f64> = (0..15).map(|i| (7.0 * points[(i, 0)]).sin() + points[(i, 2)]).collect();
    let known_noise = vec![f64::NAN; 15];
    let structure = Structure::additive_with_interactions(vec![vec![0, 1], vec![2, 3]]);
    for categorical in [[false; 4], [false, true, false, false]] {
        let observations =
            Observations { points: &points, targets: &targets, known_noise: &known_noise, noisy: true };
        let mut posterior = Posterior::new(&structure, &categorical, observations);
        let at = [-0.5, 0.3, -1.0, 0.7, -0.4, -1.2, 0.1, -5.0];
        let mut gradient = vec![0.0; at.len()];
        posterior.negative_log_posterior(&at, &mut gradient);
        let mut unused = vec![0.0; at.len()];
        let wanted = slopes(&at, |x| posterior.negative_log_posterior(x, &mut unused));
        for (got, want) in gradient.iter().zip(wanted) {
            assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{got} {want}");
        }
    }
}

#[test]
fn the_gradient_of_the_acquisition_is_its_slope_also_far_from_any_improvement() {
    let points = boute_mobo_points(3, 12, 5);
    let output = |f: fn(&[f64]) -> f64| {
        let targets: Vec<f64> = points.iter().map(|x| f(x)).collect();
        process(&points, &targets, &[0.4, 0.7, 1.1], 1e-4)
    };
    let outputs = [output(|x| x[0] + x[1]), output(|x| x[2] - x[0]), output(|x| 0.3 - x[1])];
    let normals: Vec<Vec<f64>> = [-0.7, 0.2, 1.3].iter().map(|z| vec![*z; 2]).collect();
    let pending = Mat::from_fn(2, 3, |i, j| 0.2 + 0.3 * i as f64 + 0.1 * j as f64);
    let drawn: Vec<_> =
        outputs.iter().map(|gp| gp.given_samples(&[], &pending, &normals).unwrap().0).collect();
    for (front, reference) in
        [(vec![vec![0.5, 0.2], vec![0.9, -0.3]], [1.5, 0.8]), (vec![vec![-9.0, -9.0]], [1.5, 0.8])]
    {
        let fronts = vec![front; 3];
        let acquisition = Acquisition::new(drawn.clone(), &fronts, &reference);
        let mut scratch = AcquisitionScratch::default();
        let x = [0.31, 0.52, 0.77];
        let mut gradient = vec![0.0; 3];
        let value = acquisition.value(&x, Some(&mut gradient), &mut scratch);
        assert!(value.is_finite());
        let wanted = slopes(&x, |x| acquisition.value(x, None, &mut scratch));
        for (got, want) in gradient.iter().zip(wanted) {
            assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{got} {want}");
        }
        let many = acquisition.values(&rows(&[x.to_vec()]));
        assert!((many[0] - value).abs() < 1e-9 * value.abs().max(1.0), "{} {value}", many[0]);
    }
}

#[test]
fn a_process_given_its_own_samples_passes_through_them() {
    let points = boute_mobo_points(2, 10, 1);
    let targets: Vec<f64> = points.iter().map(|x| x[0] * x[1]).collect();
    let gp = process(&points, &targets, &[0.5, 0.5], 0.05);
    let normals = vec![vec![0.3, -1.1, 0.8], vec![-2.0, 0.1, 0.4]];
    let added = rows(&[vec![0.9, 0.05]]);
    let (given, values) = gp.given_samples(&[2, 7], &added, &normals).unwrap();
    let mut scratch = boute_mobo::gp::Scratch::default();
    for (place, x) in [&points[2], &points[7], &vec![0.9, 0.05]].into_iter().enumerate() {
        let mut means = [0.0; 2];
        let variance = given.evaluate(x, &mut means, &mut scratch);
        assert!(variance < 1e-6, "{variance}");
        for scenario in 0..2 {
            assert!((means[scenario] - values[(scenario, place)]).abs() < 1e-4);
        }
    }
}
