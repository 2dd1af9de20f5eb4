//! Do certified promises hold as often as they say? Calibration samples are drawn with replacement from queries that the
//! scorer has not seen, whose mean is the truth; every draw walks the path of thresholds as `router certify` does.

use std::fmt;

use boute_router::ScoredQueries;
use boute_router::certify::{Answers, FloorRule, Promise};
use boute_router::eval::{advantages, weakest_and_strongest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Report, Set};

const DELTA: f64 = 0.05;
/// Thresholds on the path, from "all to the strong model" down.
const STEPS: usize = 100;
const SIZES: [usize; 3] = [300, 1000, 3000];
/// Shares of the gap that the promises keep.
const FLOORS: [f64; 3] = [0.5, 0.8, 0.9];
/// Strong shares to keep to at each size, for half of RouteLLM's gap.
const PRICES: [f64; 3] = [0.59, 0.43, 0.36];

/// Unseen queries of a pair of models.
struct Population {
    queries: ScoredQueries,
    advantage: Vec<f64>,
    weak: usize,
    strong: usize,
}

impl Population {
    fn of(set: &Set) -> Option<Self> {
        let mut queries = set.validation.clone();
        queries.append(&set.test);
        let (weak, strong) = weakest_and_strongest(&queries)?;
        Some(Self { advantage: advantages(&queries, weak, strong), queries, weak, strong })
    }

    /// Rows with repetition, as a population of their own.
    fn sample(&self, size: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let models = self.queries.models.len();
        let mut queries = ScoredQueries::new(self.queries.models.clone());
        let mut advantage = Vec::with_capacity(size);
        for _ in 0..size {
            let row = rng.random_range(0..self.queries.len());
            queries.actual.extend(&self.queries.actual[row * models..(row + 1) * models]);
            advantage.push(self.advantage[row]);
        }
        Self { queries, advantage, ..*self }
    }

    fn assignment(&self, threshold: f64) -> Vec<usize> {
        let choose = |advantage: &f64| if *advantage > threshold { self.strong } else { self.weak };
        self.advantage.iter().map(choose).collect()
    }

    fn rows(&self) -> Vec<usize> {
        (0..self.advantage.len()).collect()
    }

    fn quality(&self, model: usize) -> f64 {
        (0..self.queries.len()).map(|query| self.queries.actual(query, model)).sum::<f64>()
            / self.queries.len() as f64
    }

    /// Of one draw: whether the certified and the naive threshold keep the promise, and their shares of strong calls.
    fn draw(&self, promise: &Promise, size: usize, seed: u64) -> [(bool, f64); 2] {
        let sample = self.sample(size, seed);
        let (rows, all) = (sample.rows(), self.rows());
        let mut sorted = sample.advantage.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let thresholds: Vec<f64> = std::iter::once(f64::NEG_INFINITY)
            .chain((1..=STEPS).map(|step| sorted[step * (size - 1) / STEPS]))
            .collect();
        let holds = |threshold: &f64| {
            let only = (*threshold == f64::NEG_INFINITY).then_some(self.strong);
            let answers = Answers { by: &sample.assignment(*threshold), only };
            promise.holds(&sample.queries, &rows, answers, DELTA)
        };
        let certified = thresholds.iter().take_while(|threshold| holds(threshold)).count().max(1);
        // The largest threshold whose sample mean keeps the promise, as others choose it.
        let kept =
            |threshold: &f64| promise.slack(&sample.queries, &rows, &sample.assignment(*threshold)) >= 0.0;
        let naive = thresholds.iter().rposition(kept).unwrap_or(0);
        [certified - 1, naive].map(|at| {
            let assignment = self.assignment(thresholds[at]);
            let strong = assignment.iter().filter(|model| **model == self.strong).count();
            let kept = promise.slack(&self.queries, &all, &assignment) >= -1e-12;
            (kept, strong as f64 / all.len() as f64)
        })
    }

    /// The least share of strong calls that keeps the promise, were the truth known.
    fn cheapest(&self, promise: &Promise) -> f64 {
        let all = self.rows();
        let mut sorted = self.advantage.clone();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let share = |step: usize| step as f64 / 1000.0;
        let keeps = |step: &usize| {
            let at = (share(*step) * (sorted.len() - 1) as f64) as usize;
            promise.slack(&self.queries, &all, &self.assignment(sorted[at])) >= 0.0
        };
        (0..=1000).find(keeps).map_or(1.0, share)
    }
}

/// What many draws came to.
struct Cell {
    size: usize,
    draws: Vec<[(bool, f64); 2]>,
}

impl Cell {
    fn of(population: &Population, promise: &Promise, size: usize, draws: u64) -> Self {
        let draw = |seed| population.draw(promise, size, seed);
        Self { size, draws: (0..draws).into_par_iter().map(draw).collect() }
    }

    /// Share of the draws that kept the promise: certified (0) or naive (1).
    fn coverage(&self, at: usize) -> f64 {
        self.draws.iter().filter(|draw| draw[at].0).count() as f64 / self.draws.len() as f64
    }

    /// Mean share of strong calls.
    fn strong(&self, at: usize) -> f64 {
        self.draws.iter().map(|draw| draw[at].1).sum::<f64>() / self.draws.len() as f64
    }

    /// The certified share with its 95 % interval.
    fn strong_interval(&self) -> (f64, f64, f64) {
        let mean = self.strong(0);
        let squares: f64 = self.draws.iter().map(|draw| (draw[0].1 - mean).powi(2)).sum();
        let error = squares.sqrt() / self.draws.len() as f64;
        (mean, mean - 1.96 * error, mean + 1.96 * error)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: f64| value * 100.0;
        let [coverage, naive] = [0, 1].map(|at| percent(self.coverage(at)));
        let [strong, naive_strong] = [0, 1].map(|at| percent(self.strong(at)));
        write!(f, "  {}: {coverage:.1} / {naive:.0} %, {strong:.0} / {naive_strong:.0} %", self.size)
    }
}

pub(super) fn run(sets: &[&Set], draws: u64, report: &mut Report) {
    report.note(&format!(
        "certificates: {draws} draws per cell; coverage certified / naive, strong share certified / naive"
    ));
    let mut least: [(f64, String); 2] = std::array::from_fn(|_| (1.0, String::new()));
    for set in sets {
        let Some(population) = Population::of(set) else { continue };
        let [low, high] = [population.weak, population.strong].map(|model| population.quality(model));
        for floor in FLOORS {
            let loss = (1.0 - floor) * (high - low);
            let promises = [
                ("max loss", Promise::max_loss(loss, population.strong)),
                ("floor", Promise::from(FloorRule::Absolute(high - loss))),
            ];
            for (at, (kind, promise)) in promises.into_iter().enumerate() {
                let cells = SIZES.map(|size| Cell::of(&population, &promise, size, draws));
                for cell in &cells {
                    if cell.coverage(0) < least[at].0 {
                        least[at] = (cell.coverage(0), format!("{}, PGR {floor}, n {}", set.name, cell.size));
                    }
                }
                let [a, b, c] = &cells;
                let cheapest = population.cheapest(&promise) * 100.0;
                report.note(&format!(
                    "  {:<14} PGR {floor} {kind:<8} (best possible {cheapest:.0} %){a}{b}{c}",
                    set.name
                ));
                if set.name == "RouteLLM" && kind == "max loss" && floor == FLOORS[0] {
                    for (cell, bar) in cells.iter().zip(PRICES) {
                        let name = format!("  strong share of it at n = {}", cell.size);
                        report.sampled_at_most(&name, cell.strong_interval(), bar);
                    }
                }
            }
        }
    }
    for (kind, (coverage, cell)) in ["max loss", "floor"].iter().zip(least) {
        // 95 %, less two standard errors of as many draws.
        let bar = 0.95 - 2.0 * (0.95 * 0.05 / draws as f64).sqrt();
        report.at_least(&format!("  least coverage, {kind}: {cell}"), coverage, (bar * 1e3).floor() / 1e3);
    }
}
