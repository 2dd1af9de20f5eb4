//! `grid.yaml`: the cells on which strategies are compared, parsed and checked. Paths in it are relative to the file;
//! nothing is opened here.

use std::fmt;

use crate::digest::sha256_hex;
use crate::file::{GpuEntry, Lengths, ModelEntry};
use crate::plan::Objective;
use crate::score::CellName;
use crate::units::{Fraction, RequestsPerSecond, UsdPerHour};

/// Dimensions of a cell.
const DIMENSIONS: usize = 6;

/// What a comparison covers: the product of its dimensions, or a part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Traffic.
    pub traces: Vec<TraceLevel>,
    /// Models with their quality data.
    pub models: Vec<ModelSet>,
    /// GPUs on offer.
    pub gpus: Vec<GpuSet>,
    /// What is optimised, and under which limit.
    pub goals: Vec<Goal>,
    /// Quality floors: this share of the way from the smallest model's mean score to the largest model's.
    pub floors: Vec<Fraction>,
    /// Limits on the 95th percentile of E2E, as multiples of what an unloaded replica reaches.
    pub slo: Vec<Multiple>,
    /// Probability with which the floor must hold on unseen queries.
    pub confidence: Fraction,
    /// Every cell is run with each of these seeds.
    pub seeds: Vec<u64>,
    /// How many cells of the product; all of them if `None`.
    pub cells: Option<usize>,
}

/// Traffic of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceLevel {
    /// Its name in results.
    pub id: String,
    /// Trace file.
    pub trace: String,
    /// Where token counts come from.
    pub lengths: Lengths,
}

/// Models of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSet {
    /// Its name in results.
    pub id: String,
    /// The models, at least two.
    pub models: Vec<ModelEntry>,
    /// Per-query scores of these models.
    pub quality: String,
}

/// GPUs of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSet {
    /// Its name in results.
    pub id: String,
    /// The GPU types.
    pub gpus: Vec<GpuEntry>,
}

/// What is optimised in a cell, and under which limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The highest rate within this budget.
    MaxRate(UsdPerHour),
    /// The lowest rent at this rate.
    MinCost(RequestsPerSecond),
}

impl Goal {
    /// The objective alone.
    pub const fn objective(self) -> Objective {
        match self {
            Self::MaxRate(_) => Objective::MaxRate,
            Self::MinCost(_) => Objective::MinCost,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxRate(budget) => write!(f, "max_rate {budget}"),
            Self::MinCost(rate) => write!(f, "min_cost {rate}"),
        }
    }
}

/// A number above zero by which a time is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Multiple(f64);

impl Multiple {
    /// The multiple; `None` unless `value` is finite and above zero.
    pub fn new(value: f64) -> Option<Self> {
        (value.is_finite() && value > 0.0).then_some(Self(value))
    }

    /// The bare number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// One cell: a level of each dimension, by index, and a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Into [`Grid::traces`].
    pub trace: usize,
    /// Into [`Grid::models`].
    pub models: usize,
    /// The seed.
    pub seed: u64,
    /// Into [`Grid::gpus`].
    pub gpus: usize,
    /// Into [`Grid::slo`].
    pub slo: usize,
    /// Into [`Grid::floors`].
    pub floor: usize,
    /// Into [`Grid::goals`].
    pub goal: usize,
}

impl Grid {
    /// The cells to run, those of one trace, model set, seed and GPU set next to each other.
    ///
    /// A part of the product is drawn one cell after the other: among the cells whose levels were all used least so far
    /// in their dimensions, one whose pairs of levels were used least; ties go to the least SHA-256 of the first seed and
    /// the cell. So every level of a dimension occurs equally often, give or take one, while such cells are left.
    pub fn cells(&self) -> Vec<Cell> {
        let product = self.product();
        let wanted = self.cells.unwrap_or(product.len());
        let points = if wanted < product.len() { self.draw(product, wanted) } else { product };
        let mut cells: Vec<Cell> = points
            .into_iter()
            .flat_map(|[trace, models, gpus, goal, floor, slo]| {
                self.seeds.iter().map(move |&seed| Cell { trace, models, seed, gpus, slo, floor, goal })
            })
            .collect();
        cells.sort_unstable();
        cells
    }

    /// The names of a cell's levels.
    pub fn name(&self, cell: &Cell) -> CellName {
        CellName {
            trace: self.traces[cell.trace].id.clone(),
            models: self.models[cell.models].id.clone(),
            gpus: self.gpus[cell.gpus].id.clone(),
            goal: self.goals[cell.goal].to_string(),
            floor: self.floors[cell.floor].get().to_string(),
            slo: format!("{}×", self.slo[cell.slo].get()),
            seed: cell.seed,
        }
    }

    fn sizes(&self) -> [usize; DIMENSIONS] {
        let Self { traces, models, gpus, goals, floors, slo, .. } = self;
        [traces.len(), models.len(), gpus.len(), goals.len(), floors.len(), slo.len()]
    }

    fn product(&self) -> Vec<[usize; DIMENSIONS]> {
        let mut points = vec![[0; DIMENSIONS]];
        for (dimension, size) in self.sizes().into_iter().enumerate() {
            points = points
                .into_iter()
                .flat_map(|point| {
                    (0..size).map(move |level| {
                        let mut point = point;
                        point[dimension] = level;
                        point
                    })
                })
                .collect();
        }
        points
    }

    fn draw(&self, product: Vec<[usize; DIMENSIONS]>, wanted: usize) -> Vec<[usize; DIMENSIONS]> {
        let seed = self.seeds.first().copied().unwrap_or_default();
        let mut left: Vec<(String, [usize; DIMENSIONS])> = product
            .into_iter()
            .map(|point| (sha256_hex(format!("{seed} {point:?}").as_bytes()), point))
            .collect();
        left.sort_unstable();
        let mut used = Usage::default();
        (0..wanted)
            .filter_map(|_| {
                let at = (0..left.len()).min_by_key(|at| used.of(&left[*at].1))?;
                let (_, point) = left.remove(at);
                used.count(&point);
                Some(point)
            })
            .collect()
    }
}

/// How often levels and pairs of levels were drawn.
#[derive(Default)]
struct Usage {
    levels: std::collections::BTreeMap<(usize, usize), u32>,
    pairs: std::collections::BTreeMap<(usize, usize, usize, usize), u32>,
}

impl Usage {
    /// What makes a point worse to draw: dimensions in which its level is ahead of the least used one come first.
    fn of(&self, point: &[usize; DIMENSIONS]) -> (u32, u32) {
        let level = |(dimension, level): (usize, &usize)| {
            self.levels.get(&(dimension, *level)).copied().unwrap_or_default()
        };
        let levels: u32 = point.iter().enumerate().map(level).sum();
        let pairs = pairs(point).map(|pair| self.pairs.get(&pair).copied().unwrap_or_default());
        (levels, pairs.sum())
    }

    fn count(&mut self, point: &[usize; DIMENSIONS]) {
        for (dimension, level) in point.iter().enumerate() {
            *self.levels.entry((dimension, *level)).or_default() += 1;
        }
        for pair in pairs(point) {
            *self.pairs.entry(pair).or_default() += 1;
        }
    }
}

fn pairs(point: &[usize; DIMENSIONS]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let point = *point;
    (0..DIMENSIONS).flat_map(move |a| (a + 1..DIMENSIONS).map(move |b| (a, point[a], b, point[b])))
}
