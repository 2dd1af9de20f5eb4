//! Test problems for the optimiser: objectives are minimised, constraints hold at ≥ 0, variables live in the unit cube.
//!
//! Sources: Belakaria et al., "Max-value entropy search for multi-objective Bayesian optimization", 2019 (Branin-Currin); Zitzler, Deb,
//! Thiele, "Comparison of multiobjective evolutionary algorithms", 2000 (ZDT1); Liao et al., "Multiobjective optimization for crash
//! safety design of vehicles", 2008; Deb, Jain, "NSGA-III part I/II", 2014 (DTLZ2, C2-DTLZ2); Tanabe, Ishibuchi, "An easy-to-use
//! real-world multi-objective optimization problem suite", 2020 (disc brake). Constants and maxima as in `BoTorch` 0.18, where C2-DTLZ2
//! has 2 r² for r²; the maximum of the disc brake is that of 200,000 evaluations by NSGA-II, a lower bound.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_PI_2, PI};

use boute_mobo::{Domain, Outcome, Space, Value};

/// Objectives and constraints at a point of the unit cube.
type Function = fn(&[f64]) -> (Vec<f64>, Vec<f64>);

/// A problem with a known maximal hypervolume.
pub(super) struct Problem {
    pub(super) name: &'static str,
    pub(super) dimensions: usize,
    pub(super) objectives: usize,
    pub(super) constraints: usize,
    /// Variables with eight levels instead of all numbers.
    pub(super) integers: &'static [usize],
    pub(super) reference: &'static [f64],
    pub(super) maximum: f64,
    function: Function,
}

/// Levels of an integer variable.
const LEVELS: i64 = 8;

impl Problem {
    pub(super) fn space(&self) -> Space {
        let domain = |at| {
            if self.integers.contains(&at) {
                Domain::Integer { low: 0, high: LEVELS - 1 }
            } else {
                Domain::Real { low: 0.0, high: 1.0 }
            }
        };
        let Ok(space) = Space::new((0..self.dimensions).map(domain).collect(), Vec::new()) else {
            unreachable!("the domains are valid")
        };
        space
    }

    pub(super) fn evaluate(&self, point: &[Value]) -> Outcome {
        let unit = |value: &Value| match value {
            Value::Real(x) => *x,
            Value::Integer(level) => *level as f64 / (LEVELS - 1) as f64,
            _ => unreachable!("these problems have numbers only"),
        };
        let (objectives, constraints) = (self.function)(&point.iter().map(unit).collect::<Vec<_>>());
        Outcome { objectives, constraints, variances: None }
    }
}

/// The six problems of the comparison.
pub(super) const COMPARED: [Problem; 6] = [
    Problem {
        name: "BraninCurrin",
        dimensions: 2,
        objectives: 2,
        constraints: 0,
        integers: &[],
        reference: &[18.0, 6.0],
        maximum: 59.360_118_748_677_46,
        function: branin_currin,
    },
    Problem {
        name: "ZDT1_d6",
        dimensions: 6,
        objectives: 2,
        constraints: 0,
        integers: &[],
        reference: &[11.0, 11.0],
        maximum: 120.666_666_666_666_67,
        function: zdt1,
    },
    Problem {
        name: "VehicleSafety",
        dimensions: 5,
        objectives: 3,
        constraints: 0,
        integers: &[],
        reference: &[1864.72022, 11.819_939_45, 0.290_399_938_4],
        maximum: 246.816_070_811_870_02,
        function: vehicle_safety,
    },
    Problem {
        name: "C2DTLZ2_d6_m2",
        dimensions: 6,
        objectives: 2,
        constraints: 1,
        integers: &[],
        reference: &[1.1, 1.1],
        maximum: 0.399_640_630_372_354_4,
        function: c2_dtlz2,
    },
    Problem {
        name: "DiscBrake",
        dimensions: 4,
        objectives: 2,
        constraints: 4,
        integers: &[],
        reference: &[5.7771, 3.9651],
        maximum: 11.213_508_880_270_812,
        function: disc_brake,
    },
    Problem {
        name: "MixedDTLZ2_d6_m2",
        dimensions: 6,
        objectives: 2,
        constraints: 0,
        integers: &[1, 3, 5],
        reference: &[1.1, 1.1],
        maximum: 1.21 - PI / 4.0,
        function: mixed_dtlz2,
    },
];

/// Problems without a recorded peer: those of the time comparison, and some to see that nothing is tuned to the six.
pub(super) const OTHERS: [Problem; 4] = [
    Problem {
        name: "ConstrainedBraninCurrin",
        dimensions: 2,
        objectives: 2,
        constraints: 1,
        integers: &[],
        reference: &[80.0, 12.0],
        maximum: 608.400_423_702_267_3,
        function: constrained_branin_currin,
    },
    Problem {
        name: "DTLZ2_d6_m2",
        dimensions: 6,
        objectives: 2,
        constraints: 0,
        integers: &[],
        reference: &[1.1, 1.1],
        maximum: 1.21 - PI / 4.0,
        function: dtlz2_2,
    },
    Problem {
        name: "DTLZ2_d6_m3",
        dimensions: 6,
        objectives: 3,
        constraints: 0,
        integers: &[],
        reference: &[1.1, 1.1, 1.1],
        maximum: 1.331 - PI / 6.0,
        function: dtlz2_3,
    },
    Problem {
        name: "OSY",
        dimensions: 6,
        objectives: 2,
        constraints: 6,
        integers: &[],
        reference: &[-75.0, 75.0],
        maximum: 10_000.0,
        function: osy,
    },
];

fn branin_currin(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (a, b) = (15.0 * u[0] - 5.0, 15.0 * u[1]);
    let branin = (b - 5.1 / (4.0 * PI * PI) * a * a + 5.0 / PI * a - 6.0).powi(2)
        + 10.0 * (1.0 - 1.0 / (8.0 * PI)) * a.cos()
        + 10.0;
    let x = u[0];
    let factor = if u[1] > 0.0 { 1.0 - (-1.0 / (2.0 * u[1])).exp() } else { 1.0 };
    let currin = factor * (2300.0 * x.powi(3) + 1900.0 * x * x + 2092.0 * x + 60.0)
        / (100.0 * x.powi(3) + 500.0 * x * x + 4.0 * x + 20.0);
    (vec![branin, currin], Vec::new())
}

fn zdt1(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let g = 1.0 + 9.0 / (u.len() - 1) as f64 * u[1..].iter().sum::<f64>();
    (vec![u[0], g * (1.0 - (u[0] / g).sqrt())], Vec::new())
}

fn vehicle_safety(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let x: Vec<f64> = u.iter().map(|u| 1.0 + 2.0 * u).collect();
    let mass = 1640.2823
        + 2.357_328_5 * x[0]
        + 2.322_003_5 * x[1]
        + 4.568_876_8 * x[2]
        + 7.721_363_3 * x[3]
        + 4.455_950_4 * x[4];
    let acceleration = 6.5856 + 1.15 * x[0] - 1.0427 * x[1] + 0.9738 * x[2] + 0.8364 * x[3]
        - 0.3695 * x[0] * x[3]
        + 0.0861 * x[0] * x[4]
        + 0.3628 * x[1] * x[3]
        - 0.1106 * x[0] * x[0]
        - 0.3437 * x[2] * x[2]
        + 0.1764 * x[3] * x[3];
    let intrusion = -0.0551 + 0.0181 * x[0] + 0.1024 * x[1] + 0.0421 * x[2] - 0.0073 * x[0] * x[1]
        + 0.024 * x[1] * x[2]
        - 0.0118 * x[1] * x[3]
        - 0.0204 * x[2] * x[3]
        - 0.008 * x[2] * x[4]
        - 0.0241 * x[1] * x[1]
        + 0.0109 * x[3] * x[3];
    (vec![mass, acceleration, intrusion], Vec::new())
}

/// The spherical front of DTLZ2 at distance g.
fn sphere(u: &[f64], g: f64) -> Vec<f64> {
    vec![(1.0 + g) * (u[0] * FRAC_PI_2).cos(), (1.0 + g) * (u[0] * FRAC_PI_2).sin()]
}

fn dtlz2_distance(u: &[f64]) -> f64 {
    u[1..].iter().map(|u| (u - 0.5).powi(2)).sum()
}

fn c2_dtlz2(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let f = sphere(u, dtlz2_distance(u));
    let square = 0.04;
    let corner = |a: f64, b: f64| (a - 1.0).powi(2) + b * b - square;
    let ends = corner(f[0], f[1]).min(corner(f[1], f[0]));
    let middle = (f[0] - FRAC_1_SQRT_2).powi(2) + (f[1] - FRAC_1_SQRT_2).powi(2) - 2.0 * square;
    let slack = -ends.min(middle);
    (f, vec![slack])
}

fn disc_brake(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (a, b) = (55.0 + 25.0 * u[0], 75.0 + 35.0 * u[1]);
    let (force, count) = (1000.0 + 2000.0 * u[2], 11.0 + 9.0 * u[3]);
    let (squares, cubes) = (b * b - a * a, b.powi(3) - a.powi(3));
    let mass = 4.9e-5 * squares * (count - 1.0);
    let time = 9.82e6 * squares / (force * count * cubes);
    let slacks = vec![
        b - a - 20.0,
        // π as the source rounds it.
        0.4 - force / (314.0 / 100.0 * squares),
        1.0 - 2.22e-3 * force * cubes / squares.powi(2),
        2.66e-2 * force * count * cubes / squares - 900.0,
    ];
    (vec![mass, time], slacks)
}

fn mixed_dtlz2(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let best = [4.0 / 7.0, 0.3, 2.0 / 7.0, 0.7, 5.0 / 7.0];
    let gaps: Vec<f64> = u[1..].iter().zip(best).map(|(u, best)| u - best).collect();
    let g = gaps.iter().map(|gap| gap * gap).sum::<f64>() + 0.2 * gaps[0].abs() * gaps[1].abs();
    (sphere(u, g), Vec::new())
}

/// Branin-Currin inside a disc (`BoTorch`).
fn constrained_branin_currin(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (a, b) = (15.0 * u[0] - 5.0, 15.0 * u[1]);
    (branin_currin(u).0, vec![50.0 - (a - 2.5).powi(2) - (b - 7.5).powi(2)])
}

/// DTLZ2 with as many dimensions and objectives (two to four) as wanted.
pub(super) fn dtlz2(dimensions: usize, objectives: usize) -> Problem {
    let ball = match objectives {
        2 => PI / 4.0,
        3 => PI / 6.0,
        _ => PI * PI / 32.0,
    };
    Problem {
        name: "DTLZ2",
        dimensions,
        objectives,
        constraints: 0,
        integers: &[],
        reference: &[1.1, 1.1, 1.1, 1.1][..objectives],
        maximum: vec![1.1; objectives].iter().product::<f64>() - ball,
        function: match objectives {
            2 => dtlz2_2,
            3 => dtlz2_3,
            _ => dtlz2_4,
        },
    }
}

fn dtlz2_2(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    (dtlz2_objectives(u, 2), Vec::new())
}

fn dtlz2_3(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    (dtlz2_objectives(u, 3), Vec::new())
}

fn dtlz2_4(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    (dtlz2_objectives(u, 4), Vec::new())
}

fn dtlz2_objectives(u: &[f64], objectives: usize) -> Vec<f64> {
    let radius = 1.0 + u[objectives - 1..].iter().map(|u| (u - 0.5).powi(2)).sum::<f64>();
    let angles: Vec<f64> = u[..objectives - 1].iter().map(|u| u * FRAC_PI_2).collect();
    (0..objectives)
        .map(|k| {
            let along: f64 = angles[..objectives - 1 - k].iter().map(|angle| angle.cos()).product();
            radius * along * if k == 0 { 1.0 } else { angles[objectives - 1 - k].sin() }
        })
        .collect()
}

/// Osyczka and Kundu, 1995.
fn osy(u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let spans = [(0.0, 10.0), (0.0, 10.0), (1.0, 5.0), (0.0, 6.0), (1.0, 5.0), (0.0, 10.0)];
    let x: Vec<f64> = u.iter().zip(spans).map(|(u, (low, high))| low + u * (high - low)).collect();
    let far = 25.0 * (x[0] - 2.0).powi(2)
        + (x[1] - 2.0).powi(2)
        + (x[2] - 1.0).powi(2)
        + (x[3] - 4.0).powi(2)
        + (x[4] - 1.0).powi(2);
    let slacks = vec![
        x[0] + x[1] - 2.0,
        6.0 - x[0] - x[1],
        2.0 - x[1] + x[0],
        2.0 - x[0] + 3.0 * x[1],
        4.0 - (x[2] - 3.0).powi(2) - x[3],
        (x[4] - 3.0).powi(2) + x[5] - 4.0,
    ];
    (vec![-far, x.iter().map(|x| x * x).sum()], slacks)
}
