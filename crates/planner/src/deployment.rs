//! The cheapest fleet for a given division of the load, exactly.
//!
//! With the division fixed, cost, capacity and the tail of the mixture are sums over replicas, so the fleet is an integer
//! programme over n = how many replicas of each (candidate, load level):
//! ```text
//! minimise  Σ n·usd
//! such that Σ_{of model m} n·rate ≥ w_m·R             every model m carries its share
//!           Σ n·rate·over_k ≤ (1 − share_k)·R          every promise k, over all models (or w_m·R for one model's)
//!           Σ_{on GPU type g} n·gpus ≤ stock_g
//! ```
//! Its relaxation to real n bounds the cost from below; the branch and bound of `microlp` closes the gap, up to a limit on
//! nodes, so that the answer does not depend on the clock. Only columns that another column of the same model and GPU
//! type beats in cost, rate and every tail are left out, so that no optimum is lost.

use std::collections::BTreeMap;

use microlp::{ComparisonOp, OptimizationDirection, SolveOptions, Variable};

use crate::candidates::Candidate;
use crate::problem::Problem;
use crate::table::{Level, Levels};

/// Nodes of the branch and bound, at most: for the plan itself, and for its neighbours.
const NODES: [u64; 2] = [6_000, 400];
/// Relative gap at which the search ends, likewise.
const GAPS: [f64; 2] = [5e-3, 1e-2];
/// A column with more than this share of requests over some limit is not worth a variable.
const WORST_OVER: f64 = 0.5;

/// One (candidate, level).
#[derive(Debug, Clone)]
pub struct Column {
    /// Index of the candidate.
    pub candidate: usize,
    /// Index of the model.
    pub model: usize,
    /// Index of the offer.
    pub offer: usize,
    /// GPUs of one replica.
    pub gpus: f64,
    /// Rent of one replica.
    pub usd_per_hour: f64,
    /// Requests per second of one replica.
    pub rate: f64,
    /// Share of its requests over each limit.
    pub over: Vec<f64>,
}

/// What bounds a deployment.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests per second to carry.
    pub rate: f64,
    /// Rent per hour, at most.
    pub budget: Option<f64>,
    /// GPUs per offer, at most.
    pub stock: Vec<Option<u32>>,
    /// Use limits ten per cent looser than promised.
    pub looser: bool,
    /// Only these candidates.
    pub allowed: Vec<bool>,
}

/// A fleet: how many replicas of each column.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Column and count, counts above zero.
    pub replicas: Vec<(Column, u32)>,
    /// What was optimised: rent, or rate.
    pub value: f64,
    /// No fleet under these limits is better than this.
    pub bound: f64,
}

impl Fleet {
    /// Rent of all replicas.
    pub fn usd_per_hour(&self) -> f64 {
        self.replicas.iter().map(|(column, count)| column.usd_per_hour * f64::from(*count)).sum()
    }
}

/// The columns worth a variable, for models with a share of the load.
pub fn columns(candidates: &[Candidate], levels: &Levels, limits: &Limits, fractions: &[f64]) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if !limits.allowed[index] || fractions[candidate.model] <= 0.0 {
            continue;
        }
        let column = |level: &Level| Column {
            candidate: index,
            model: candidate.model,
            offer: candidate.offer,
            gpus: f64::from(candidate.gpus()),
            usd_per_hour: candidate.usd_per_hour,
            rate: level.rate,
            over: if limits.looser { level.over_looser.clone() } else { level.over.clone() },
        };
        columns.extend(
            levels[index].iter().map(column).filter(|it| it.over.iter().all(|over| *over <= WORST_OVER)),
        );
    }
    let beats = |a: &Column, b: &Column| {
        a.model == b.model
            && a.offer == b.offer
            && a.gpus <= b.gpus
            && a.rate >= b.rate
            && a.over.iter().zip(&b.over).all(|(a, b)| a <= b)
    };
    (0..columns.len())
        .filter(|&at| {
            let better = |other: usize| {
                beats(&columns[other], &columns[at]) && (!beats(&columns[at], &columns[other]) || other < at)
            };
            !(0..columns.len()).any(|other| other != at && better(other))
        })
        .map(|at| columns[at].clone())
        .collect()
}

/// What to optimise for a given division of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Least rent for the rate in the limits.
    Cost,
    /// Highest rate within the budget in the limits.
    Rate,
}

/// How much work a solution is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Counts may be fractional: only the bound is meaningful.
    Relaxed,
    /// Within a per cent, for comparisons.
    Sketch,
    /// Within half a per cent, for the plan.
    Proof,
}

/// The best fleet over `columns` for load `fractions`; `None` if there is none.
pub fn solve(
    problem: &Problem,
    columns: &[Column],
    fractions: &[f64],
    limits: &Limits,
    goal: Goal,
    effort: Effort,
) -> Option<Fleet> {
    let mut programme = Programme::new(goal, limits.rate, columns, |column| {
        let cost = if goal == Goal::Cost { column.usd_per_hour } else { 0.0 };
        (cost, most_replicas(column, fractions, limits, goal), effort != Effort::Relaxed)
    });
    programme.carry_and_keep(problem, fractions);
    for (offer, stock) in limits.stock.iter().enumerate() {
        if let Some(stock) = stock {
            let used = |column: &Column| if column.offer == offer { column.gpus } else { 0.0 };
            programme.row(used, 0.0, ComparisonOp::Le, f64::from(*stock));
        }
    }
    if let Some(budget) = limits.budget {
        programme.row(|column| column.usd_per_hour, 0.0, ComparisonOp::Le, budget);
    }
    let mut options = SolveOptions::default();
    let depth = usize::from(effort == Effort::Sketch);
    (options.node_limit, options.mip_gap) = (Some(NODES[depth]), GAPS[depth]);
    let solution = programme.inner.solve_with(options).ok()?.into_solution().ok()?;
    let objective = solution.objective();
    let bound = solution.stats().best_bound.unwrap_or(objective);
    let replicas = columns
        .iter()
        .zip(&programme.counts)
        .map(|(column, count)| (column.clone(), solution.var_value(*count).round() as u32))
        .filter(|(_, count)| *count > 0)
        .collect();
    let mut fleet = Fleet { replicas, value: objective, bound };
    if goal == Goal::Cost && effort != Effort::Relaxed {
        // Counts come back as integers up to a tolerance: what is paid is the rent of the rounded ones.
        fleet.value = fleet.usd_per_hour();
        fleet.bound = bound.min(fleet.value);
    }
    Some(fleet)
}

/// The highest rate that a given fleet, `counts` replicas per candidate, carries under load `fractions`, with the best
/// division of each model's load over its replicas: the programme above with the counts as bounds and real levels.
/// `None` if some model with a share has no replica that keeps its promises at any load.
pub fn assess(
    problem: &Problem,
    columns: &[Column],
    fractions: &[f64],
    counts: &BTreeMap<usize, u32>,
) -> Option<Fleet> {
    let columns: Vec<Column> =
        columns.iter().filter(|column| counts.contains_key(&column.candidate)).cloned().collect();
    let most = |column: &Column| f64::from(counts[&column.candidate]);
    let mut programme = Programme::new(Goal::Rate, 0.0, &columns, |column| (0.0, most(column), false));
    programme.carry_and_keep(problem, fractions);
    for (&candidate, &count) in counts {
        let of_candidate = |column: &Column| f64::from(u8::from(column.candidate == candidate));
        programme.row(of_candidate, 0.0, ComparisonOp::Le, f64::from(count));
    }
    let solution = programme.inner.solve().ok()?.into_solution().ok()?;
    let value = solution.objective();
    let used = |candidate: usize| {
        let of =
            columns.iter().zip(&programme.counts).filter(move |(column, _)| column.candidate == candidate);
        of.map(|(column, count)| (column, solution.var_value(*count))).filter(|(_, count)| *count > 1e-9)
    };
    let replicas = counts
        .iter()
        .filter_map(|(&candidate, &count)| Some((blend(used(candidate), count)?, count)))
        .collect();
    (value > 0.0).then_some(Fleet { replicas, value, bound: value })
}

/// `count` equal replicas that together do what the parts do.
fn blend<'a>(parts: impl Iterator<Item = (&'a Column, f64)>, count: u32) -> Option<Column> {
    let parts: Vec<(&Column, f64)> = parts.collect();
    let rate: f64 = parts.iter().map(|(column, n)| column.rate * n).sum();
    let mut column = parts.first()?.0.clone();
    for (index, over) in column.over.iter_mut().enumerate() {
        *over = parts.iter().map(|(column, n)| column.rate * n * column.over[index]).sum::<f64>() / rate;
    }
    column.rate = rate / f64::from(count);
    Some(column)
}

/// An integer programme over columns, row by row.
struct Programme<'a> {
    inner: microlp::Problem,
    columns: &'a [Column],
    counts: Vec<Variable>,
    rate: Variable,
}

impl<'a> Programme<'a> {
    /// `variable` gives a column's cost, the most of it, and whether its count must be whole.
    fn new(
        goal: Goal,
        rate: f64,
        columns: &'a [Column],
        variable: impl Fn(&Column) -> (f64, f64, bool),
    ) -> Self {
        let (direction, worth, range) = match goal {
            Goal::Cost => (OptimizationDirection::Minimize, 0.0, (rate, rate)),
            Goal::Rate => (OptimizationDirection::Maximize, 1.0, (0.0, f64::INFINITY)),
        };
        let mut inner = microlp::Problem::new(direction);
        let rate = inner.add_var(worth, range);
        let mut add = |column| match variable(column) {
            (cost, most, true) => inner.add_integer_var(cost, (0, most as i32)),
            (cost, most, false) => inner.add_var(cost, (0.0, most)),
        };
        let counts = columns.iter().map(&mut add).collect();
        Self { inner, columns, counts, rate }
    }

    fn row(&mut self, terms: impl Fn(&Column) -> f64, of_rate: f64, op: ComparisonOp, bound: f64) {
        let factors = self.columns.iter().zip(&self.counts).map(|(column, count)| (*count, terms(column)));
        let all = factors.chain([(self.rate, of_rate)]).filter(|(_, factor)| *factor != 0.0);
        self.inner.add_constraint(all.collect::<Vec<_>>(), op, bound);
    }

    /// Every model carries its share, and every promise is kept.
    fn carry_and_keep(&mut self, problem: &Problem, fractions: &[f64]) {
        for (model, fraction) in fractions.iter().enumerate().filter(|(_, fraction)| **fraction > 0.0) {
            let carried = |column: &Column| if column.model == model { column.rate } else { 0.0 };
            self.row(carried, -fraction, ComparisonOp::Ge, 0.0);
        }
        for (index, target) in problem.slo.iter().enumerate() {
            let part = target.model.as_ref().map_or(1.0, |id| {
                problem.models.iter().position(|model| model.id == *id).map_or(0.0, |model| fractions[model])
            });
            if part > 0.0 {
                let allowed = (1.0 - target.percentile.share()) * part;
                self.row(|column| column.rate * column.over[index], -allowed, ComparisonOp::Le, 0.0);
            }
        }
    }
}

/// More replicas of a column than this cannot help.
pub(crate) fn most_replicas(column: &Column, fractions: &[f64], limits: &Limits, goal: Goal) -> f64 {
    let by_load = match goal {
        // One more than carries everything, since tails may want slack.
        Goal::Cost => (fractions[column.model] * limits.rate / column.rate).ceil() + 1.0,
        Goal::Rate => 10_000.0,
    };
    let by_stock =
        limits.stock[column.offer].map_or(f64::INFINITY, |stock| (f64::from(stock) / column.gpus).floor());
    let by_money =
        limits.budget.map_or(f64::INFINITY, |budget| (budget / column.usd_per_hour + 1e-9).floor());
    by_load.min(by_stock).min(by_money)
}
