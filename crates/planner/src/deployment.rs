//! The cheapest (or fastest) fleet for a given division of the load, exactly.
//!
//! With the division fixed, cost, capacity and the tail of the mixture are sums over replicas, so the fleet is an integer
//! programme over `N_c` = replicas of candidate c and `x_cl` = how many of them work at load level l:
//! ```text
//! minimise  Σ N_c·usd_c                              or maximise R within the budget
//! such that Σ_{of model m} x_cl·rate_cl ≥ w_m·R      every model m carries its share
//!           Σ x_cl·rate_cl·over_clk ≤ (1 − share_k)·R    every promise k, over all models (or w_m·R for one model's)
//!           Σ_l x_cl ≤ a_c·N_c                           a: share of the time that it is there (spot)
//!           Σ_{of model m} x_cl ≤ Σ a_c·N_c − k           k replicas may be lost
//!           Σ_{of model m} N_c ≥ fewest
//!           Σ N_c·gpus_cg ≤ stock_g                       every GPU type g; a disaggregated candidate is on two
//!           N_c whole, x_cl real: replicas of one candidate share their load as they like
//! ```
//! Its relaxation to real N bounds the value; the branch and bound of `microlp` closes the gap, up to a limit on nodes, so that
//! the answer does not depend on the clock. Levels that another of the same candidate beats in rate and every tail are left
//! out, and candidates of which one other beats every level, so that no optimum is lost.

use std::collections::BTreeMap;

use microlp::{ComparisonOp, OptimizationDirection, SolveOptions, Variable};

use boute_spec::file::Robust;

use crate::candidates::Candidate;
use crate::problem::Problem;
use crate::table::{Level, Levels};

/// Nodes of the branch and bound, at most: for the plan itself, and for its neighbours.
const NODES: [u64; 2] = [6_000, 400];
/// Relative gap at which the search ends, likewise.
const GAPS: [f64; 2] = [5e-3, 1e-2];
/// Kinds of replicas up to which the search goes on to the optimum: it takes no time there.
const FEW: usize = 8;
/// A column with more than this share of requests over some limit is not worth a variable.
const WORST_OVER: f64 = 0.5;

/// One (candidate, level); in a fleet, the blend of levels at which a candidate's replicas work.
#[derive(Debug, Clone)]
pub struct Column {
    /// Index of the candidate.
    pub candidate: usize,
    /// Index of the model.
    pub model: usize,
    /// Index of the offer.
    pub offer: usize,
    /// GPUs of one replica on that offer.
    pub gpus: f64,
    /// Another offer, and GPUs of one replica on it.
    pub other: Option<(usize, f64)>,
    /// Rent of one replica.
    pub usd_per_hour: f64,
    /// Share of the time that it is there.
    pub available: f64,
    /// Requests per second of one replica.
    pub rate: f64,
    /// Share of its requests over each limit.
    pub over: Vec<f64>,
}

impl Column {
    /// GPUs of one replica on an offer.
    pub fn gpus_on(&self, offer: usize) -> f64 {
        let other = self.other.filter(|(other, _)| *other == offer).map_or(0.0, |(_, gpus)| gpus);
        other + if self.offer == offer { self.gpus } else { 0.0 }
    }

    /// Offers of its GPUs.
    fn offers(&self) -> impl Iterator<Item = usize> {
        [self.offer].into_iter().chain(self.other.map(|(offer, _)| offer))
    }
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
    /// Only fleets better than this: a lower rent, or a higher rate.
    pub beat: Option<f64>,
    /// Per model: how many times its load is planned for, where simulation contradicted the table.
    pub margins: Vec<f64>,
    /// At least one replica of one of these candidates; empty if nothing is asked for.
    pub required: Vec<usize>,
}

impl Limits {
    /// The most rent that a fleet worth having may cost.
    fn money(&self, goal: Goal) -> Option<f64> {
        let to_beat = self.beat.filter(|_| goal == Goal::Cost);
        [self.budget, to_beat].into_iter().flatten().reduce(f64::min)
    }
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
    /// Replicas per candidate.
    pub fn counts(&self) -> BTreeMap<usize, u32> {
        self.replicas.iter().map(|(column, count)| (column.candidate, *count)).collect()
    }

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
            gpus: f64::from(candidate.gpus_on(candidate.offer)),
            other: candidate
                .prefill_offer()
                .filter(|offer| *offer != candidate.offer)
                .map(|offer| (offer, f64::from(candidate.gpus_on(offer)))),
            usd_per_hour: candidate.usd_per_hour,
            available: candidate.available,
            rate: level.rate,
            over: if limits.looser { level.over_looser.clone() } else { level.over.clone() },
        };
        columns.extend(
            levels[index]
                .iter()
                .filter(|level| level.sustained)
                .map(column)
                .filter(|it| it.over.iter().all(|over| *over <= WORST_OVER)),
        );
    }
    let beats = |a: &Column, b: &Column| a.rate >= b.rate && a.over.iter().zip(&b.over).all(|(a, b)| a <= b);
    let of = |candidate: usize| columns.iter().filter(move |column| column.candidate == candidate);
    let replaces = |a: &Column, b: &Column| {
        a.model == b.model
            && a.offer == b.offer
            && a.offers().all(|offer| a.gpus_on(offer) <= b.gpus_on(offer))
            && of(b.candidate).all(|column| of(a.candidate).any(|other| beats(other, column)))
    };
    let mut heads: Vec<&Column> = Vec::new();
    for column in &columns {
        if heads.last().is_none_or(|head| head.candidate != column.candidate) {
            heads.push(column);
        }
    }
    let useful = |head: &Column| {
        limits.required.contains(&head.candidate)
            || !heads.iter().any(|other| {
                other.candidate != head.candidate
                    && replaces(other, head)
                    && (!replaces(head, other) || other.candidate < head.candidate)
            })
    };
    let kept: Vec<usize> = heads.iter().filter(|head| useful(head)).map(|head| head.candidate).collect();
    let best_level = |at: usize| {
        let column = &columns[at];
        let better = |(other, it): (usize, &Column)| {
            other != at
                && it.candidate == column.candidate
                && beats(it, column)
                && (!beats(column, it) || other < at)
        };
        !columns.iter().enumerate().any(better)
    };
    (0..columns.len())
        .filter(|at| kept.binary_search(&columns[*at].candidate).is_ok() && best_level(*at))
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

impl Goal {
    /// Times this, the least value is the best.
    pub(crate) const fn sign(self) -> f64 {
        match self {
            Self::Cost => 1.0,
            Self::Rate => -1.0,
        }
    }
}

/// How much work a solution is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Counts may be fractional: only the bound is meaningful.
    Relaxed,
    /// Within a per cent, for comparisons.
    Sketch,
    /// Within half a per cent, for the plan; to the optimum where there are few kinds of replicas.
    Proof,
}

/// Why there is no fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFleet {
    /// Proven: none exists under these limits.
    Infeasible,
    /// None was found within the nodes allowed.
    NotFound,
}

/// The best fleet over `columns` for load `fractions`.
///
/// # Errors
/// If there is none, or none was found.
pub fn solve(
    problem: &Problem,
    columns: &[Column],
    fractions: &[f64],
    limits: &Limits,
    goal: Goal,
    effort: Effort,
) -> Result<Fleet, NoFleet> {
    let rates = match goal {
        Goal::Cost => (limits.rate, limits.rate),
        Goal::Rate => (limits.beat.unwrap_or(0.0), f64::INFINITY),
    };
    let mut programme = Programme::new(goal, rates, columns, |column| {
        let cost = if goal == Goal::Cost { column.usd_per_hour } else { 0.0 };
        let most = most_replicas(column, fractions, limits, goal, problem.robust);
        (cost, 0.0, most, effort != Effort::Relaxed)
    });
    programme.carry_and_keep(problem, fractions, &limits.margins);
    for (offer, stock) in limits.stock.iter().enumerate() {
        if let Some(stock) = stock {
            programme.row_of_counts(|column| column.gpus_on(offer), f64::from(*stock));
        }
    }
    for model in (0..fractions.len()).filter(|model| fractions[*model] > 0.0) {
        programme.stand(model, problem.robust.lost_replicas, problem.robust.min_replicas);
    }
    if let Some(budget) = limits.money(goal) {
        programme.row_of_counts(|column| column.usd_per_hour, budget);
    }
    if !limits.required.is_empty() {
        programme.row_of_required(&limits.required)?;
    }
    let mut options = SolveOptions::default();
    let depth = usize::from(effort == Effort::Sketch);
    let gap = if programme.counts.len() <= FEW { 0.0 } else { GAPS[depth] };
    (options.node_limit, options.mip_gap) = (Some(NODES[depth]), gap);
    let solution = match programme.inner.solve_with(options) {
        Ok(outcome) => outcome.into_solution().map_err(|_| NoFleet::NotFound)?,
        Err(microlp::Error::Infeasible) => return Err(NoFleet::Infeasible),
        Err(_) => return Err(NoFleet::NotFound),
    };
    let objective = solution.objective();
    let bound = solution.stats().best_bound.unwrap_or(objective);
    if effort == Effort::Relaxed {
        return Ok(Fleet { replicas: Vec::new(), value: objective, bound });
    }
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    for (candidate, variable) in &programme.counts {
        let count = solution.var_value(*variable).round() as u32;
        if count > 0 {
            counts.insert(*candidate, count);
        }
    }
    // The vertex that was found may leave some replicas idle; the load is divided so that the fleet could carry the most.
    let mut carried =
        assess(problem, columns, fractions, &limits.margins, &counts).ok_or(NoFleet::NotFound)?;
    carried.replicas.extend(idle(columns, &limits.required, &counts, &carried));
    let value = if goal == Goal::Cost { carried.usd_per_hour() } else { carried.value };
    let bound = if goal == Goal::Cost { bound.min(value) } else { bound.max(value) };
    Ok(Fleet { value, bound, ..carried })
}

/// Required replicas that have nothing to do: their rent is due nevertheless.
fn idle(
    columns: &[Column],
    required: &[usize],
    counts: &BTreeMap<usize, u32>,
    carried: &Fleet,
) -> Vec<(Column, u32)> {
    let works = |candidate: usize| carried.replicas.iter().any(|(column, _)| column.candidate == candidate);
    let idle = counts.iter().filter(|(candidate, _)| required.contains(candidate) && !works(**candidate));
    idle.filter_map(|(candidate, count)| {
        let column = columns.iter().find(|column| column.candidate == *candidate)?;
        Some((Column { rate: 0.0, ..column.clone() }, *count))
    })
    .collect()
}

/// The highest rate that a given fleet, `counts` replicas per candidate, carries under load `fractions`, with the best
/// division of each model's load over its replicas: the programme above with N fixed.
/// `None` if some model with a share has no replica that keeps its promises at any load.
pub fn assess(
    problem: &Problem,
    columns: &[Column],
    fractions: &[f64],
    margins: &[f64],
    counts: &BTreeMap<usize, u32>,
) -> Option<Fleet> {
    let columns: Vec<Column> =
        columns.iter().filter(|column| counts.contains_key(&column.candidate)).cloned().collect();
    let mut programme = Programme::new(Goal::Rate, (0.0, f64::INFINITY), &columns, |column| {
        let count = f64::from(counts[&column.candidate]);
        (0.0, count, count, false)
    });
    programme.carry_and_keep(problem, fractions, margins);
    let solution = programme.inner.solve().ok()?.into_solution().ok()?;
    let value = solution.objective();
    let used = |candidate: usize| {
        let of =
            columns.iter().zip(&programme.loads).filter(move |(column, _)| column.candidate == candidate);
        of.map(|(column, load)| (column, solution.var_value(*load))).filter(|(_, load)| *load > 1e-9)
    };
    let replicas = counts
        .iter()
        .filter_map(|(&candidate, &count)| {
            // A replica that is there takes its part, whether or not the others could do without it.
            let idle = || columns.iter().find(|column| column.candidate == candidate).cloned();
            Some((blend(used(candidate), count).or_else(idle)?, count))
        })
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

/// The programme, row by row.
struct Programme<'a> {
    inner: microlp::Problem,
    columns: &'a [Column],
    /// x, one per column.
    loads: Vec<Variable>,
    /// N, one per candidate.
    counts: BTreeMap<usize, Variable>,
    rate: Variable,
}

impl<'a> Programme<'a> {
    /// `count` gives, for a column's candidate, the cost of a replica, the fewest and the most of them, and whether they must
    /// be whole.
    fn new(
        goal: Goal,
        rates: (f64, f64),
        columns: &'a [Column],
        count: impl Fn(&Column) -> (f64, f64, f64, bool),
    ) -> Self {
        let (direction, worth) = match goal {
            Goal::Cost => (OptimizationDirection::Minimize, 0.0),
            Goal::Rate => (OptimizationDirection::Maximize, 1.0),
        };
        let mut inner = microlp::Problem::new(direction);
        let rate = inner.add_var(worth, rates);
        let mut counts = BTreeMap::new();
        for column in columns {
            counts.entry(column.candidate).or_insert_with(|| match count(column) {
                (cost, fewest, most, true) => inner.add_integer_var(cost, (fewest as i32, most as i32)),
                (cost, fewest, most, false) => inner.add_var(cost, (fewest, most)),
            });
        }
        let loads: Vec<Variable> = columns.iter().map(|_| inner.add_var(0.0, (0.0, f64::INFINITY))).collect();
        for (candidate, count) in &counts {
            let at_work = columns.iter().zip(&loads).filter(|(column, _)| column.candidate == *candidate);
            let mut available = 1.0;
            let at_work = at_work.inspect(|(column, _)| available = column.available);
            let mut row: Vec<(Variable, f64)> = at_work.map(|(_, load)| (*load, 1.0)).collect();
            row.push((*count, -available));
            inner.add_constraint(row, ComparisonOp::Le, 0.0);
        }
        Self { inner, columns, loads, counts, rate }
    }

    /// A model goes on when `lost` of its replicas are lost, and has at least `fewest`.
    fn stand(&mut self, model: usize, lost: u32, fewest: u32) {
        let own = |column: &Column, factor: f64| if column.model == model { factor } else { 0.0 };
        if lost > 0 {
            let mut row: BTreeMap<Variable, f64> = BTreeMap::new();
            for (column, load) in self.columns.iter().zip(&self.loads) {
                row.insert(*load, own(column, 1.0));
                row.insert(self.counts[&column.candidate], own(column, -column.available));
            }
            row.retain(|_, factor| *factor != 0.0);
            self.inner.add_constraint(
                row.into_iter().collect::<Vec<_>>(),
                ComparisonOp::Le,
                -f64::from(lost),
            );
        }
        if fewest > 1 {
            self.row_of_counts(|column| own(column, -1.0), -f64::from(fewest));
        }
    }

    /// Σ factor·x + `of_rate`·R (op) 0.
    fn row_of_loads(&mut self, factor: impl Fn(&Column) -> f64, of_rate: f64, op: ComparisonOp) {
        let factors = self.columns.iter().zip(&self.loads).map(|(column, load)| (*load, factor(column)));
        let all = factors.chain([(self.rate, of_rate)]).filter(|(_, factor)| *factor != 0.0);
        self.inner.add_constraint(all.collect::<Vec<_>>(), op, 0.0);
    }

    /// Σ factor·N ≤ most.
    fn row_of_counts(&mut self, factor: impl Fn(&Column) -> f64, most: f64) {
        let mut row: BTreeMap<usize, f64> = BTreeMap::new();
        for column in self.columns {
            row.insert(column.candidate, factor(column));
        }
        let terms: Vec<(Variable, f64)> = row
            .into_iter()
            .filter(|(_, factor)| *factor != 0.0)
            .map(|(candidate, factor)| (self.counts[&candidate], factor))
            .collect();
        self.inner.add_constraint(terms, ComparisonOp::Le, most);
    }

    /// Σ N over these candidates ≥ 1; infeasible if none of them can work.
    fn row_of_required(&mut self, required: &[usize]) -> Result<(), NoFleet> {
        let terms: Vec<(Variable, f64)> =
            required.iter().filter_map(|candidate| Some((*self.counts.get(candidate)?, 1.0))).collect();
        if terms.is_empty() {
            return Err(NoFleet::Infeasible);
        }
        self.inner.add_constraint(terms, ComparisonOp::Ge, 1.0);
        Ok(())
    }

    /// Every model carries its share, and every promise is kept.
    fn carry_and_keep(&mut self, problem: &Problem, fractions: &[f64], margins: &[f64]) {
        for (model, fraction) in fractions.iter().enumerate().filter(|(_, fraction)| **fraction > 0.0) {
            let carried = |column: &Column| if column.model == model { column.rate } else { 0.0 };
            self.row_of_loads(carried, -fraction * margins[model], ComparisonOp::Ge);
        }
        for (index, target) in problem.slo.iter().enumerate() {
            let part = target.model.as_ref().map_or(1.0, |id| {
                problem.models.iter().position(|model| model.id == *id).map_or(0.0, |model| fractions[model])
            });
            if part > 0.0 {
                let allowed = (1.0 - target.percentile.share()) * part;
                self.row_of_loads(|column| column.rate * column.over[index], -allowed, ComparisonOp::Le);
            }
        }
    }
}

/// More replicas of a column than this cannot help.
pub(crate) fn most_replicas(
    column: &Column,
    fractions: &[f64],
    limits: &Limits,
    goal: Goal,
    robust: Robust,
) -> f64 {
    let by_load = match goal {
        // More than carries everything, since tails may want slack.
        Goal::Cost => {
            let load = fractions[column.model] * limits.margins[column.model] * limits.rate;
            let spare = f64::from(robust.lost_replicas + robust.min_replicas);
            (load / column.rate / column.available).ceil() + spare
        }
        Goal::Rate => 10_000.0,
    };
    let by_stock = column
        .offers()
        .filter_map(|offer| Some((f64::from(limits.stock[offer]?) / column.gpus_on(offer)).floor()))
        .fold(f64::INFINITY, f64::min);
    let by_money =
        limits.money(goal).map_or(f64::INFINITY, |budget| (budget / column.usd_per_hour + 1e-9).floor());
    by_load.min(by_stock).min(by_money)
}
