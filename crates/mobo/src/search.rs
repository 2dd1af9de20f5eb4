//! Finds the point of highest acquisition in a mixed space.
//!
//! Many points are scored at once: a Sobol sequence, and neighbours of and midpoints between the best evaluated points. From the most
//! promising of them, gradient ascent in what is continuous alternates with the best single move in what is discrete until neither
//! helps (as `BoTorch`'s `optimize_acqf_mixed_alternating` does; Daulton et al., "Bayesian Optimization over Discrete and Mixed Spaces",
//! `NeurIPS` 2022, appendix). Small finite spaces are enumerated.

use faer::Mat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::acquisition::{Acquisition, AcquisitionScratch};
use crate::design::{sobol, towards};
use crate::lbfgsb::{Limits, minimise};
use crate::space::{Coordinate, Space};

/// Finite spaces up to this size are enumerated.
const ENUMERATED: u64 = 2_000;
/// Levels of an ordered coordinate beyond which it is relaxed to a continuous one first.
const RELAXED: u64 = 8;
/// Rounds of ascent and moves from one start.
const ROUNDS: usize = 6;
/// Weight of a squared excess over a linear constraint during ascent.
const PENALTY: f64 = 1e4;

/// What is searched, and from where.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    pub(crate) space: &'a Space,
    pub(crate) acquisition: &'a Acquisition,
    /// Bounds of every coordinate; those of shares and kinds are not used.
    pub(crate) region: &'a Region,
    /// Good points, best spread first.
    pub(crate) elites: &'a [Vec<f64>],
    /// Points that are evaluated or pending: not to be proposed again.
    pub(crate) taken: &'a [Vec<f64>],
    pub(crate) effort: Effort,
    pub(crate) seed: u64,
}

/// Bounds of the coordinates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Region {
    pub(crate) lower: Vec<f64>,
    pub(crate) upper: Vec<f64>,
    /// How many coordinates of a new point differ from its centre, about; all if there is no centre.
    pub(crate) centre: Option<(Vec<f64>, f64)>,
}

impl Region {
    /// The whole space.
    pub(crate) fn whole(space: &Space) -> Self {
        let top = |coordinate: &Coordinate| match coordinate {
            Coordinate::Kind(n) => (n - 1) as f64,
            _ => 1.0,
        };
        let upper = space.coordinates().iter().map(top).collect();
        Self { lower: vec![0.0; space.dimensions()], upper, centre: None }
    }
}

/// How much is spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Points scored.
    pub(crate) points: usize,
    /// Ascents.
    pub(crate) starts: usize,
    /// Iterations of one ascent.
    pub(crate) iterations: usize,
}

impl Search<'_> {
    /// The point of highest acquisition found, not among those taken unless there is no other.
    pub(crate) fn run(&self) -> Vec<f64> {
        if let Some(size) = self.space.size().filter(|size| *size <= ENUMERATED) {
            let all: Vec<Vec<f64>> =
                (0..size).map(|at| self.nth(at)).filter(|x| self.space.allows(x)).collect();
            let fresh: Vec<Vec<f64>> = all.iter().filter(|x| !self.is_taken(x)).cloned().collect();
            let scored = self.scored(if fresh.is_empty() { all } else { fresh });
            return scored.into_iter().next().map_or_else(|| self.nth(0), |(x, _)| x);
        }
        let scored = self.scored(self.candidates());
        let starts = self.starts(&scored);
        let mut ends: Vec<(Vec<f64>, f64)> = starts.par_iter().map(|start| self.climb(start)).collect();
        // A stable sort keeps the order of starts among equals.
        ends.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut all = ends.into_iter().chain(scored);
        let first = all.next().map_or_else(Vec::new, |(x, _)| x);
        if !self.is_taken(&first) {
            return first;
        }
        all.find(|(x, _)| !self.is_taken(x)).map_or(first, |(x, _)| x)
    }

    fn is_taken(&self, x: &[f64]) -> bool {
        self.taken.iter().any(|other| other == x)
    }

    /// Point `at` of a finite space.
    fn nth(&self, mut at: u64) -> Vec<f64> {
        let digit = |coordinate: &Coordinate| {
            let (n, unit) = match coordinate {
                Coordinate::Level(n) => (*n, 1.0 / (n - 1).max(1) as f64),
                Coordinate::Kind(n) => (*n as u64, 1.0),
                Coordinate::Real | Coordinate::Share(..) => (1, 0.0),
            };
            let digit = at % n;
            at /= n;
            digit as f64 * unit
        };
        let mut x: Vec<f64> = self.space.coordinates().iter().map(digit).collect();
        self.space.snap(&mut x);
        x
    }

    /// Points with their acquisition, best first.
    fn scored(&self, points: Vec<Vec<f64>>) -> Vec<(Vec<f64>, f64)> {
        let queries = Mat::from_fn(points.len(), self.space.dimensions(), |i, j| points[i][j]);
        let values = self.acquisition.values(&queries);
        let mut scored: Vec<_> = points.into_iter().zip(values).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        scored
    }

    fn candidates(&self) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let half = self.effort.points / 2;
        let spread = if self.elites.is_empty() { self.effort.points } else { half };
        let mut points: Vec<Vec<f64>> =
            (0..spread).map(|index| self.spread(index as u32, &mut rng)).collect();
        for at in 0..self.effort.points - spread {
            points.push(self.neighbour(at, &mut rng));
        }
        if self.space.is_constrained() {
            let anchor = self.elites.first().or_else(|| self.taken.iter().find(|x| self.space.allows(x)));
            if let Some(anchor) = anchor {
                for x in &mut points {
                    *x = towards(self.space, anchor, x);
                }
            }
            points.retain(|x| self.space.allows(x));
        }
        points
    }

    /// A point of the sequence, within the region.
    fn spread(&self, index: u32, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let cube: Vec<f64> =
            (0..self.space.dimensions()).map(|dimension| sobol(index, dimension, self.seed)).collect();
        let mut x = self.space.at_cube(&cube);
        let region = self.region;
        for (at, coordinate) in self.space.coordinates().iter().enumerate() {
            if matches!(coordinate, Coordinate::Real | Coordinate::Level(_)) {
                x[at] = region.lower[at] + x[at] * (region.upper[at] - region.lower[at]);
            }
        }
        if let Some((centre, changed)) = &region.centre {
            let share = (changed / x.len() as f64).min(1.0);
            let forced = rng.random_range(0..x.len());
            for at in 0..x.len() {
                if at != forced && rng.random_range(0.0..1.0) >= share {
                    x[at] = centre[at];
                }
            }
        }
        self.space.snap(&mut x);
        x
    }

    /// A point near an elite one, or between two that are next to each other.
    fn neighbour(&self, at: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let elite = &self.elites[at % self.elites.len()];
        let round = at / self.elites.len();
        let mut x = elite.clone();
        if round % 4 == 3 {
            let other = &self.elites[(at + 1) % self.elites.len()];
            let share = rng.random_range(0.0..1.5);
            for (k, coordinate) in self.space.coordinates().iter().enumerate() {
                match coordinate {
                    Coordinate::Kind(_) => x[k] = if rng.random() { x[k] } else { other[k] },
                    _ => x[k] += share * (other[k] - x[k]),
                }
            }
        } else {
            let size = [0.2, 0.05, 0.01][round % 4];
            let share = if rng.random() { 1.0 } else { (2.0 / x.len() as f64).min(1.0) };
            for (k, coordinate) in self.space.coordinates().iter().enumerate() {
                if rng.random_range(0.0..1.0) >= share {
                    continue;
                }
                let step = size * crate::normal::quantile(rng.random_range(1e-9..1.0 - 1e-9));
                match *coordinate {
                    Coordinate::Real => x[k] = reflected(x[k] + step),
                    Coordinate::Level(n) => {
                        let unit = 1.0 / (n - 1).max(1) as f64;
                        x[k] = reflected(x[k] + if step.abs() < unit { unit.copysign(step) } else { step });
                    }
                    Coordinate::Kind(n) => {
                        if rng.random_range(0.0..1.0) < 0.3 {
                            x[k] = rng.random_range(0..n) as f64;
                        }
                    }
                    Coordinate::Share(..) => x[k] = (x[k] + 1e-3) * (10.0 * step).exp(),
                }
            }
        }
        self.clamp_to_region(&mut x);
        self.space.snap(&mut x);
        x
    }

    fn clamp_to_region(&self, x: &mut [f64]) {
        for (at, coordinate) in self.space.coordinates().iter().enumerate() {
            if matches!(coordinate, Coordinate::Real | Coordinate::Level(_)) {
                x[at] = x[at].clamp(self.region.lower[at], self.region.upper[at]);
            }
        }
    }

    /// The best of `scored` that are not close to a better one.
    fn starts(&self, scored: &[(Vec<f64>, f64)]) -> Vec<Vec<f64>> {
        let apart = 0.1 * (self.space.dimensions() as f64).sqrt();
        let far =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() >= apart;
        let mut starts: Vec<Vec<f64>> = Vec::new();
        for (x, _) in scored {
            if starts.len() == self.effort.starts {
                break;
            }
            if starts.iter().all(|start| far(start, x)) {
                starts.push(x.clone());
            }
        }
        starts
    }

    /// Ascends from `start`; ends at a point of the space that meets the linear constraints.
    fn climb(&self, start: &[f64]) -> (Vec<f64>, f64) {
        let mut scratch = AcquisitionScratch::default();
        let mut best = (start.to_vec(), self.acquisition.value(start, None, &mut scratch));
        for round in 0..ROUNDS {
            let before = best.1;
            self.ascend(&mut best, round == 0, &mut scratch);
            let moved = self.move_once(&mut best, &mut scratch);
            if !moved || best.1 <= before + 1e-9 * before.abs() {
                break;
            }
        }
        best
    }

    /// Gradient ascent in the continuous coordinates, and in many-levelled ones if `relax`; then back into the space.
    fn ascend(&self, best: &mut (Vec<f64>, f64), relax: bool, scratch: &mut AcquisitionScratch) {
        let coordinates = self.space.coordinates();
        let free: Vec<usize> = (0..coordinates.len())
            .filter(|at| match coordinates[*at] {
                Coordinate::Real | Coordinate::Share(..) => true,
                Coordinate::Level(n) => relax && n > RELAXED,
                Coordinate::Kind(_) => false,
            })
            .collect();
        if free.is_empty() {
            return;
        }
        let is_share = |at: usize| matches!(coordinates[at], Coordinate::Share(..));
        let bound = |bounds: &[f64], share: f64| -> Vec<f64> {
            free.iter().map(|at| if is_share(*at) { share } else { bounds[*at] }).collect()
        };
        let (lower, upper) = (bound(&self.region.lower, 0.0), bound(&self.region.upper, 1.0));
        let mut x = best.0.clone();
        let mut full = vec![0.0; x.len()];
        let limits = Limits { iterations: self.effort.iterations, gradient: 1e-5, decrease: 1e-6 };
        let start: Vec<f64> = free.iter().map(|at| best.0[*at]).collect();
        let (end, _) = minimise(&start, &lower, &upper, limits, |knobs, gradient| {
            free.iter().zip(knobs).for_each(|(at, knob)| x[*at] = *knob);
            let sums = normalise_shares(coordinates, &mut x);
            let value = self.acquisition.value(&x, Some(&mut full), scratch);
            for slope in &mut full {
                *slope = -*slope;
            }
            let penalty = self.space.add_penalty(&x, PENALTY, &mut full);
            through_shares(coordinates, &x, &sums, &mut full);
            free.iter().zip(gradient).for_each(|(at, slope)| *slope = full[*at]);
            -value + PENALTY * penalty
        });
        let mut point = best.0.clone();
        free.iter().zip(&end).for_each(|(at, knob)| point[*at] = *knob);
        self.space.snap(&mut point);
        let point = towards(self.space, &best.0, &point);
        let value = self.acquisition.value(&point, None, scratch);
        if value > best.1 {
            *best = (point, value);
        }
    }

    /// The best change of one discrete coordinate, if it helps.
    fn move_once(&self, best: &mut (Vec<f64>, f64), scratch: &mut AcquisitionScratch) -> bool {
        let mut moved = false;
        loop {
            let neighbours = self.discrete_neighbours(&best.0);
            let better = neighbours
                .into_iter()
                .map(|x| {
                    let value = self.acquisition.value(&x, None, scratch);
                    (x, value)
                })
                .filter(|(_, value)| *value > best.1)
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let Some(better) = better else { return moved };
            *best = better;
            moved = true;
        }
    }

    fn discrete_neighbours(&self, x: &[f64]) -> Vec<Vec<f64>> {
        let mut out = Vec::new();
        let mut push = |at: usize, value: f64| {
            let inside = (self.region.lower[at]..=self.region.upper[at]).contains(&value);
            if inside && value != x[at] {
                let mut moved = x.to_vec();
                moved[at] = value;
                self.space.snap(&mut moved);
                out.extend(Some(moved).filter(|moved| self.space.allows(moved)));
            }
        };
        for (at, coordinate) in self.space.coordinates().iter().enumerate() {
            match *coordinate {
                Coordinate::Level(n) if n > 1 => {
                    let unit = 1.0 / (n - 1) as f64;
                    push(at, x[at] - unit);
                    push(at, x[at] + unit);
                }
                Coordinate::Kind(n) => {
                    for kind in 0..n {
                        push(at, kind as f64);
                    }
                }
                _ => {}
            }
        }
        out
    }
}

/// Back into [0, 1] by reflection at the nearer end.
fn reflected(x: f64) -> f64 {
    if x < 0.0 {
        (-x).min(1.0)
    } else if x > 1.0 {
        (2.0 - x).max(0.0)
    } else {
        x
    }
}

/// Divides the parts of each simplex by their sum; returns the sums, by first coordinate.
fn normalise_shares(coordinates: &[Coordinate], x: &mut [f64]) -> Vec<(usize, f64)> {
    let mut sums = Vec::new();
    for (at, coordinate) in coordinates.iter().enumerate() {
        if let Coordinate::Share(first, parts) = *coordinate
            && at == first
        {
            let sum = x[first..first + parts].iter().sum::<f64>().max(1e-9);
            x[first..first + parts].iter_mut().for_each(|part| *part /= sum);
            sums.push((first, sum));
        }
    }
    sums
}

/// The chain rule through x = w / Σw: the slope by one w is (its g − Σ g x) / Σw.
fn through_shares(coordinates: &[Coordinate], x: &[f64], sums: &[(usize, f64)], gradient: &mut [f64]) {
    for &(first, sum) in sums {
        if let Coordinate::Share(_, parts) = coordinates[first] {
            let part = first..first + parts;
            let mean: f64 = gradient[part.clone()].iter().zip(&x[part.clone()]).map(|(g, x)| g * x).sum();
            gradient[part].iter_mut().for_each(|slope| *slope = (*slope - mean) / sum);
        }
    }
}
