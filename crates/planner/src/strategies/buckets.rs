//! Workload buckets to GPU configurations, exactly: the integer programmes of Mélange and of "Demystifying
//! Cost-Efficiency in LLM Serving over Heterogeneous GPUs".
//!
//! ```text
//! minimise  Σ_c usd_c·n_c       or       maximise R
//! such that Σ_c x_bc = R                              every bucket is served        (R = 1 when cost is minimised)
//!           Σ_b demand_b·x_bc / rate_cb ≤ n_c          copies have the time for what they are given
//!           Σ_c gpus_cg·n_c ≤ stock_g,  Σ_c usd_c·n_c ≤ budget
//! ```
//! n (copies of configuration c) is whole; x (part of bucket b that c serves) is real, or a whole number of slices.
//! Sources: Griggs et al., "Mélange", arXiv 2404.14527, §5 (cost, whole slices); Jiang et al., arXiv 2502.00722, §4
//! (makespan T). There T·n is a product and T is found by bisection; with R = 1/T as the variable the programme is linear,
//! and one solve finds the optimum. Mélange has a 0/1 variable per slice; slices of a bucket are alike, so here each
//! (bucket, configuration) has one whole number.

use microlp::{ComparisonOp, Error, OptimizationDirection, Problem, SolutionStatus, SolveOptions, Variable};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::deployment::Goal;

/// Copies of a configuration that nothing bounds, at most.
const MOST_COPIES: f64 = 10_000.0;
/// Nodes of one branch and bound, at most; the bound is stated where that is not enough.
const NODES: u64 = 20_000;
/// Nodes spent on showing that slices do not fit into given copies.
const SLICE_NODES: u64 = 60;
/// Copies into which slices are tried to be fitted, at most.
const MOST_BRANCHES: u32 = 100;
/// A move that leaves no more than this part of the overload is taken without a look at the others.
const ENOUGH: f64 = 0.2;
/// Restarts of the search for a fit, and random moves of each.
const KICKS: u32 = 10;
const KICK_MOVES: u32 = 3;
/// Rounding error of a sum of loads.
const EPSILON: f64 = 1e-6;

/// A GPU configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// Rent of one copy.
    pub usd_per_hour: f64,
    /// GPUs of each type in one copy.
    pub gpus: Vec<u32>,
    /// Requests per second of one copy that serves nothing but bucket b; 0 where it cannot.
    pub rates: Vec<f64>,
}

/// A workload, and what may be rented for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// Requests per second of each bucket (or requests, when the makespan is asked for).
    pub demand: Vec<f64>,
    /// What may be rented.
    pub configurations: Vec<Configuration>,
    /// GPUs of each type, at most.
    pub stock: Vec<Option<u32>>,
    /// Rent per hour, at most.
    pub budget: Option<f64>,
    /// Relative gap at which a search may end; 0 for a proven optimum.
    pub gap: f64,
}

/// What to rent, and what serves what.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Copies of each configuration.
    pub copies: Vec<u32>,
    /// Part of each bucket that each configuration serves: `[bucket][configuration]`; a bucket's parts sum to 1.
    pub parts: Vec<Vec<f64>>,
    /// Rent per hour, or R: how many times the demand is served per second.
    pub value: f64,
    /// No assignment has a better value than this.
    pub bound: f64,
}

impl Buckets {
    /// The least rent that serves the demand. `None` if nothing serves it.
    pub fn cheapest(&self) -> Option<Assignment> {
        self.cheapest_with(&vec![0; self.configurations.len()])
    }

    /// The least rent where every bucket is cut into `slices` equal slices, each of which one configuration serves.
    ///
    /// Whole slices never cost less than divisible buckets. Where slices do not fit into the copies found for those, they fit
    /// into no fewer, so some configuration needs one copy more: one branch each, cheapest first. A fit is found by moving
    /// slices, and refuted by branch and bound; where that ends at its limit of nodes, the search goes on and `bound` says
    /// what is proven.
    pub fn cheapest_sliced(&self, slices: u32) -> Option<Assignment> {
        let at_least = |fewest: Vec<u32>| Some((self.cheapest_with(&fewest)?, fewest));
        let mut open = vec![at_least(vec![0; self.configurations.len()])?];
        let mut undecided = f64::INFINITY;
        for _ in 0..MOST_BRANCHES {
            let cheapest = (0..open.len()).min_by(|a, b| open[*a].0.value.total_cmp(&open[*b].0.value))?;
            let (divisible, fewest) = open.swap_remove(cheapest);
            match self.fit(&divisible, slices) {
                Ok(parts) => {
                    return Some(Assignment { parts, bound: divisible.bound.min(undecided), ..divisible });
                }
                Err(refuted) if !refuted => undecided = undecided.min(divisible.bound),
                Err(_) => {}
            }
            open.extend((0..fewest.len()).filter_map(|at| {
                let mut fewest = fewest.clone();
                fewest[at] = divisible.copies[at] + 1;
                at_least(fewest)
            }));
        }
        None
    }

    /// The most that the budget and the stock serve. With requests as the demand, `1 / value` is the makespan in seconds.
    /// `None` if nothing serves some bucket.
    pub fn fastest(&self) -> Option<Assignment> {
        let most =
            self.configurations.iter().map(|it| (0, self.most_copies(it, Goal::Rate))).collect::<Vec<_>>();
        let found = Programme::new(self, Goal::Rate, None, &most).solve(NODES).ok()?;
        (found.value > EPSILON).then_some(found)
    }

    fn cheapest_with(&self, fewest: &[u32]) -> Option<Assignment> {
        let range = |(it, fewest): (&Configuration, &u32)| (*fewest, self.most_copies(it, Goal::Cost));
        let ranges: Vec<(u32, u32)> = self.configurations.iter().zip(fewest).map(range).collect();
        let possible = ranges.iter().all(|(fewest, most)| fewest <= most);
        possible.then(|| Programme::new(self, Goal::Cost, None, &ranges).solve(NODES).ok())?
    }

    /// Whole slices in the copies of a divisible assignment, as parts; or whether it is proven that they do not fit.
    fn fit(&self, divisible: &Assignment, slices: u32) -> Result<Vec<Vec<f64>>, bool> {
        let fixed: Vec<(u32, u32)> = divisible.copies.iter().map(|copies| (*copies, *copies)).collect();
        // What could serve the most with these copies leaves them the same room everywhere.
        let balanced = Programme::new(self, Goal::Rate, None, &fixed).solve(NODES)?;
        if let Some(parts) = Packing::rounded(self, &balanced, slices).fitted() {
            return Ok(parts);
        }
        Programme::new(self, Goal::Cost, Some(slices), &fixed).solve(SLICE_NODES).map(|whole| whole.parts)
    }

    /// More copies than this cannot help, or cannot be had.
    fn most_copies(&self, configuration: &Configuration, goal: Goal) -> u32 {
        let served = configuration.rates.iter().zip(&self.demand).filter(|(rate, _)| **rate > 0.0);
        let by_load = match goal {
            Goal::Cost => served.map(|(rate, demand)| demand / rate).sum::<f64>().ceil(),
            Goal::Rate => MOST_COPIES,
        };
        let by_stock = configuration.gpus.iter().zip(&self.stock).filter(|(gpus, _)| **gpus > 0);
        let by_stock = by_stock.filter_map(|(gpus, stock)| Some(f64::from((*stock)? / gpus)));
        let by_money = self.budget.map(|budget| (budget / configuration.usd_per_hour + EPSILON).floor());
        by_stock.chain(by_money).fold(by_load.min(MOST_COPIES), f64::min) as u32
    }
}

/// The integer programme.
struct Programme<'a> {
    inner: Problem,
    goal: Goal,
    buckets: &'a Buckets,
    copies: Vec<Variable>,
    /// `[bucket][configuration]`; `None` where the configuration cannot serve the bucket.
    parts: Vec<Vec<Option<Variable>>>,
    rate: Variable,
    slices: Option<u32>,
}

impl<'a> Programme<'a> {
    /// `copies`: the fewest and the most of each configuration.
    fn new(buckets: &'a Buckets, goal: Goal, slices: Option<u32>, copies: &[(u32, u32)]) -> Self {
        let (direction, worth, range) = match goal {
            Goal::Cost => (OptimizationDirection::Minimize, 0.0, (1.0, 1.0)),
            Goal::Rate => (OptimizationDirection::Maximize, 1.0, (0.0, f64::INFINITY)),
        };
        let mut inner = Problem::new(direction);
        let rate = inner.add_var(worth, range);
        let usd = |it: &Configuration| if goal == Goal::Cost { it.usd_per_hour } else { 0.0 };
        let copies: Vec<Variable> = buckets
            .configurations
            .iter()
            .zip(copies)
            .map(|(it, (fewest, most))| {
                inner.add_integer_var(usd(it), (fewest.cast_signed(), most.cast_signed()))
            })
            .collect();
        let mut part = |bucket: usize, configuration: &Configuration| {
            (configuration.rates[bucket] > 0.0).then(|| match slices {
                Some(slices) => inner.add_integer_var(0.0, (0, slices.cast_signed())),
                None => inner.add_var(0.0, (0.0, f64::INFINITY)),
            })
        };
        let parts = (0..buckets.demand.len())
            .map(|bucket| buckets.configurations.iter().map(|it| part(bucket, it)).collect())
            .collect();
        let mut programme = Self { inner, goal, buckets, copies, parts, rate, slices };
        programme.serve();
        programme.keep_within_limits();
        programme
    }

    /// A part in units of its variable.
    fn unit(&self) -> f64 {
        1.0 / f64::from(self.slices.unwrap_or(1))
    }

    fn serve(&mut self) {
        let unit = self.unit();
        for parts in &self.parts {
            let served = parts.iter().flatten().map(|part| (*part, unit));
            let all = served.chain([(self.rate, -1.0)]).collect::<Vec<_>>();
            self.inner.add_constraint(all, ComparisonOp::Eq, 0.0);
        }
        for (at, configuration) in self.buckets.configurations.iter().enumerate() {
            let load = |bucket: usize| {
                let busy = self.buckets.demand[bucket] / configuration.rates[bucket];
                self.parts[bucket][at].map(|part| (part, busy * unit))
            };
            let loads = (0..self.parts.len()).filter_map(load);
            let all = loads.chain([(self.copies[at], -1.0)]).collect::<Vec<_>>();
            self.inner.add_constraint(all, ComparisonOp::Le, 0.0);
        }
    }

    fn keep_within_limits(&mut self) {
        let configurations = &self.buckets.configurations;
        let row = |of: &dyn Fn(&Configuration) -> f64| -> Vec<(Variable, f64)> {
            let factors = self.copies.iter().zip(configurations).map(|(copies, it)| (*copies, of(it)));
            factors.filter(|(_, factor)| *factor > 0.0).collect()
        };
        let stocked = self.buckets.stock.iter().enumerate();
        let mut rows: Vec<(Vec<(Variable, f64)>, f64)> = stocked
            .filter_map(|(gpu, stock)| Some((row(&|it| f64::from(it.gpus[gpu])), f64::from((*stock)?))))
            .collect();
        rows.extend(self.buckets.budget.map(|budget| (row(&|it| it.usd_per_hour), budget)));
        for (terms, most) in rows {
            self.inner.add_constraint(terms, ComparisonOp::Le, most);
        }
    }

    /// The best assignment; or whether it is proven that there is none.
    fn solve(&self, nodes: u64) -> Result<Assignment, bool> {
        let mut options = SolveOptions::default();
        (options.node_limit, options.mip_gap) = (Some(nodes), self.buckets.gap);
        let outcome = self.inner.solve_with(options).map_err(|error| error == Error::Infeasible)?;
        let solution = outcome.into_solution().map_err(|_| false)?;
        let copies: Vec<u32> =
            self.copies.iter().map(|copies| solution.var_value(*copies).round() as u32).collect();
        let rate = solution.var_value(self.rate);
        let share = |part: &Option<Variable>| {
            let value = part.map_or(0.0, |part| solution.var_value(part));
            if self.slices.is_some() { value.round() * self.unit() } else { value.max(0.0) / rate }
        };
        let parts = self.parts.iter().map(|parts| parts.iter().map(share).collect()).collect();
        let configurations = &self.buckets.configurations;
        let rent = copies.iter().zip(configurations).map(|(n, it)| f64::from(*n) * it.usd_per_hour);
        let value = if self.goal == Goal::Cost { rent.sum() } else { rate };
        let bound = match (solution.status(), solution.stats().best_bound, self.goal) {
            (SolutionStatus::Optimal, ..) | (_, None, _) => value,
            (_, Some(bound), Goal::Cost) => bound.min(value),
            (_, Some(bound), Goal::Rate) => bound.max(value),
        };
        Ok(Assignment { copies, parts, value, bound })
    }
}

/// Slices of each bucket on each configuration, with given copies.
#[derive(Clone)]
struct Packing<'a> {
    buckets: &'a Buckets,
    copies: &'a [u32],
    slices: u32,
    /// `[bucket][configuration]`
    counts: Vec<Vec<u32>>,
    /// Copies' worth of load per configuration.
    loads: Vec<f64>,
}

/// One slice of a bucket from one configuration to another.
#[derive(Clone, Copy)]
struct Move {
    bucket: usize,
    from: usize,
    to: usize,
}

impl<'a> Packing<'a> {
    /// A divisible assignment, the largest remainders rounded up.
    fn rounded(buckets: &'a Buckets, divisible: &'a Assignment, slices: u32) -> Self {
        let round = |parts: &Vec<f64>| {
            let exact: Vec<f64> = parts.iter().map(|part| part * f64::from(slices)).collect();
            let mut counts: Vec<u32> = exact.iter().map(|exact| (exact + EPSILON).floor() as u32).collect();
            let mut order: Vec<usize> = (0..exact.len()).collect();
            order.sort_by(|a, b| {
                (exact[*b] - f64::from(counts[*b])).total_cmp(&(exact[*a] - f64::from(counts[*a])))
            });
            let missing = slices.saturating_sub(counts.iter().sum());
            order.iter().take(missing as usize).for_each(|at| counts[*at] += 1);
            counts
        };
        let counts: Vec<Vec<u32>> = divisible.parts.iter().map(round).collect();
        let mut rounded = Self { buckets, copies: &divisible.copies, slices, counts, loads: Vec::new() };
        rounded.loads = (0..buckets.configurations.len())
            .map(|at| {
                let used = (0..buckets.demand.len()).filter(|bucket| rounded.counts[*bucket][at] > 0);
                used.map(|bucket| rounded.load(bucket, at) * f64::from(rounded.counts[bucket][at])).sum()
            })
            .collect();
        rounded
    }

    /// Load of one slice.
    fn load(&self, bucket: usize, at: usize) -> f64 {
        self.buckets.demand[bucket] / self.buckets.configurations[at].rates[bucket] / f64::from(self.slices)
    }

    /// By how much the loads exceed the copies, after `moves`.
    fn overload(&self, moves: &[Move]) -> f64 {
        let after = |at: usize| {
            let taken =
                moves.iter().filter(|it| it.from == at).map(|it| self.load(it.bucket, at)).sum::<f64>();
            let given = moves.iter().filter(|it| it.to == at).map(|it| self.load(it.bucket, at)).sum::<f64>();
            (self.loads[at] - taken + given - f64::from(self.copies[at]) - EPSILON).max(0.0)
        };
        (0..self.loads.len()).map(after).sum()
    }

    fn make(&mut self, moves: &[Move]) {
        for it in moves {
            self.loads[it.from] -= self.load(it.bucket, it.from);
            self.loads[it.to] += self.load(it.bucket, it.to);
            self.counts[it.bucket][it.from] -= 1;
            self.counts[it.bucket][it.to] += 1;
        }
    }

    /// Moves slices until everything fits: downhill, and where that ends a few random moves and downhill again.
    fn fitted(mut self) -> Option<Vec<Vec<f64>>> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        self.descend();
        for _ in 0..KICKS {
            if self.overload(&[]) == 0.0 {
                let part = |count: &u32| f64::from(*count) / f64::from(self.slices);
                return Some(self.counts.iter().map(|counts| counts.iter().map(part).collect()).collect());
            }
            let mut other = self.clone();
            for _ in 0..KICK_MOVES {
                let moves = other.moves();
                other.make(&[*moves.get(rng.random_range(0..moves.len().max(1)))?]);
            }
            other.descend();
            if other.overload(&[]) <= self.overload(&[]) {
                self = other;
            }
        }
        None
    }

    /// Single moves, and pairs where none helps, the best first, until everything fits or nothing helps.
    fn descend(&mut self) {
        loop {
            let overload = self.overload(&[]);
            if overload == 0.0 {
                return;
            }
            let moves = self.moves();
            let better = |best: Option<(f64, Vec<Move>)>| best.filter(|(left, _)| *left < overload - EPSILON);
            let single = || better(self.best(moves.iter().map(|it| [*it])));
            let pairs = || {
                let full = |it: &&Move| self.loads[it.from] > f64::from(self.copies[it.from]);
                let pairs =
                    moves.iter().filter(full).flat_map(|one| moves.iter().map(|other| [*one, *other]));
                // Two moves of the last slice of a bucket are one too many.
                let possible = |[a, b]: &[Move; 2]| {
                    (a.bucket, a.from) != (b.bucket, b.from) || self.counts[a.bucket][a.from] > 1
                };
                better(self.best(pairs.filter(possible)))
            };
            let Some((_, best)) = single().or_else(pairs) else { return };
            self.make(&best);
        }
    }

    /// All that may be moved.
    fn moves(&self) -> Vec<Move> {
        let all = 0..self.loads.len();
        let of = |bucket: usize| {
            let serves = move |at: &usize| self.buckets.configurations[*at].rates[bucket] > 0.0;
            let from = all.clone().filter(move |at| self.counts[bucket][*at] > 0);
            let all = all.clone();
            from.flat_map(move |from| all.clone().filter(serves).map(move |to| Move { bucket, from, to }))
        };
        (0..self.counts.len()).flat_map(of).filter(|it| it.from != it.to).collect()
    }

    /// The first moves that do enough, or those that do most.
    fn best<const N: usize>(&self, moves: impl Iterator<Item = [Move; N]>) -> Option<(f64, Vec<Move>)> {
        let enough = self.overload(&[]) * ENOUGH;
        let mut best: Option<(f64, [Move; N])> = None;
        for moves in moves {
            let left = self.overload(&moves);
            if best.is_none_or(|(least, _)| left < least) {
                best = Some((left, moves));
            }
            if left <= enough {
                break;
            }
        }
        best.map(|(left, moves)| (left, moves.to_vec()))
    }
}
