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
    let direction = match goal {
        Goal::Cost => OptimizationDirection::Minimize,
        Goal::Rate => OptimizationDirection::Maximize,
    };
    let mut programme = microlp::Problem::new(direction);
    let rate = match goal {
        Goal::Cost => programme.add_var(0.0, (limits.rate, limits.rate)),
        Goal::Rate => programme.add_var(1.0, (0.0, f64::INFINITY)),
    };
    let counts: Vec<Variable> = columns
        .iter()
        .map(|column| {
            let cost = if goal == Goal::Cost { column.usd_per_hour } else { 0.0 };
            let most = most_replicas(column, fractions, limits, goal);
            if effort == Effort::Relaxed {
                programme.add_var(cost, (0.0, most))
            } else {
                programme.add_integer_var(cost, (0, most as i32))
            }
        })
        .collect();
    let mut row = |terms: &dyn Fn(&Column) -> f64, of_rate: f64, op: ComparisonOp, bound: f64| {
        let mut expression: Vec<(Variable, f64)> = columns
            .iter()
            .zip(&counts)
            .map(|(column, count)| (*count, terms(column)))
            .filter(|(_, factor)| *factor != 0.0)
            .collect();
        if of_rate != 0.0 {
            expression.push((rate, of_rate));
        }
        programme.add_constraint(expression, op, bound);
    };
    for (model, fraction) in fractions.iter().enumerate().filter(|(_, fraction)| **fraction > 0.0) {
        let carried = |column: &Column| if column.model == model { column.rate } else { 0.0 };
        row(&carried, -fraction, ComparisonOp::Ge, 0.0);
    }
    for (index, target) in problem.slo.iter().enumerate() {
        let part = target.model.as_ref().map_or(1.0, |id| {
            problem.models.iter().position(|model| model.id == *id).map_or(0.0, |model| fractions[model])
        });
        if part > 0.0 {
            let allowed = (1.0 - target.percentile.share()) * part;
            row(&|column| column.rate * column.over[index], -allowed, ComparisonOp::Le, 0.0);
        }
    }
    for (offer, stock) in limits.stock.iter().enumerate() {
        if let Some(stock) = stock {
            let used = |column: &Column| if column.offer == offer { column.gpus } else { 0.0 };
            row(&used, 0.0, ComparisonOp::Le, f64::from(*stock));
        }
    }
    if let Some(budget) = limits.budget {
        row(&|column| column.usd_per_hour, 0.0, ComparisonOp::Le, budget);
    }
    let mut options = SolveOptions::default();
    let depth = usize::from(effort == Effort::Sketch);
    (options.node_limit, options.mip_gap) = (Some(NODES[depth]), GAPS[depth]);
    let solution = programme.solve_with(options).ok()?.into_solution().ok()?;
    let objective = solution.objective();
    let bound = solution.stats().best_bound.unwrap_or(objective);
    let replicas = columns
        .iter()
        .zip(&counts)
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

/// More replicas of a column than this cannot help.
fn most_replicas(column: &Column, fractions: &[f64], limits: &Limits, goal: Goal) -> f64 {
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
