//! `agh`: greedy construction from several starts, then moves and merges.
//!
//! Source: "Fast Heterogeneous Serving", arXiv 2604.07472: a greedy heuristic builds a plan query type by query type; its
//! adaptive form starts several times in other orders and improves each plan by *relocate* (load to another
//! deployment) and *consolidate* (fewer deployments). A query type's model and the error it may make are a division of the
//! load here; a start is a division and a GPU type that is taken first. Every step is judged by the table's programme
//! with the fleet given, which is linear.

use rayon::prelude::*;

use super::measures::{Counts, as_answer, best};
use crate::deployment::{Fleet, Goal, Limits};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// Divisions that construction starts from, over all admissible ones.
const STARTS: usize = 5;
/// Neighbouring divisions to which load is relocated: this many further on in order of price.
const NEIGHBOURS: [isize; 6] = [-1, 1, -3, 3, -9, 9];
/// Greedy plans are made for this much more until they carry enough.
const MARGIN: f64 = 1.02;
const MOST_MARGINS: i32 = 15;
/// Replicas that construction adds, at most.
const MOST_REPLICAS: usize = 10_000;
/// Improvements of one start, at most.
const MOST_MOVES: usize = 100;
/// Fleets that promise less than this part of what is needed are not tried, and no more than so many at a time.
const NEAR: f64 = 0.9;
const MOST_TRIES: usize = 200;
/// A gain in rate smaller than this part is none.
const WORTH: f64 = 1e-4;

impl Search<'_> {
    /// The best of several greedy plans, each improved until no move helps.
    pub fn agh(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let order = self.cheapest_first(routes);
        let last = order.len().checked_sub(1)?;
        let mut starts: Vec<usize> = (0..STARTS).map(|start| start * last / (STARTS - 1)).collect();
        starts.dedup();
        let plans: Vec<Plan> = starts
            .par_iter()
            .filter_map(|&at| {
                let capacities = self.capacities(&routes[order[at]], limits);
                let builder = Builder { search: self, routes, order: &order, capacities, limits, goal };
                Some(builder.improved(builder.start(at)?))
            })
            .collect();
        let answers = plans.into_iter().filter_map(|plan| {
            Some(Choice { route: order[plan.at], fleet: as_answer(plan.fleet, limits, goal)? })
        });
        best(goal, answers)
    }
}

/// A division (by its place in the order of price), replicas per candidate, and what they carry.
struct Plan {
    at: usize,
    counts: Counts,
    fleet: Fleet,
}

struct Builder<'a> {
    search: &'a Search<'a>,
    routes: &'a [Route],
    order: &'a [usize],
    /// Per candidate: the rate at which one replica keeps its promises alone.
    capacities: Vec<f64>,
    limits: &'a Limits,
    goal: Goal,
}

impl Builder<'_> {
    fn plan(&self, at: usize, counts: Counts) -> Option<Plan> {
        let fleet = self.search.carried(&self.routes[self.order[at]], self.limits, &counts)?;
        Some(Plan { at, counts, fleet })
    }

    /// Least is best: rent, or the rate with its sign turned.
    fn badness(&self, plan: &Plan) -> f64 {
        if self.goal == Goal::Cost { self.search.rent(&plan.counts) } else { -plan.fleet.value }
    }

    fn is_answer(&self, plan: &Plan) -> bool {
        self.goal == Goal::Rate || plan.fleet.value >= self.limits.rate
    }

    /// The best greedy plan for a division over the GPU types that may be taken first.
    fn start(&self, at: usize) -> Option<Plan> {
        let first = (0..self.search.problem.offers.len()).map(Some).chain([None]);
        let plans = first.filter_map(|first| {
            (0..MOST_MARGINS).find_map(|more| {
                let rate = self.limits.rate * MARGIN.powi(more);
                let plan = self.plan(at, self.greedy(at, rate, first)?)?;
                self.is_answer(&plan).then_some(plan)
            })
        });
        plans.min_by(|a, b| self.badness(a).total_cmp(&self.badness(b)))
    }

    /// Replicas one by one for the model that is farthest behind, at the least rent for what is still missing.
    fn greedy(&self, at: usize, rate: f64, first: Option<usize>) -> Option<Counts> {
        let parts = Search::planned_parts(&self.routes[self.order[at]], self.limits);
        let mut counts = Counts::new();
        let mut carried = vec![0.0; parts.len()];
        for _ in 0..MOST_REPLICAS {
            let behind = |model: &usize| carried[*model] / parts[*model];
            let used = (0..parts.len()).filter(|model| parts[*model] > 0.0);
            let model = used.min_by(|a, b| behind(a).total_cmp(&behind(b)))?;
            let missing = match self.goal {
                Goal::Cost => parts[model] * rate - carried[model],
                Goal::Rate => f64::INFINITY,
            };
            if missing <= 1e-9 {
                return Some(counts);
            }
            let price = |at: usize| {
                let candidate = &self.search.candidates[at];
                let other = first.is_some_and(|first| candidate.offer != first);
                (other, candidate.usd_per_hour / self.capacities[at].min(missing))
            };
            let next = (0..self.capacities.len())
                .filter(|at| self.search.candidates[*at].model == model && self.capacities[*at] > 0.0)
                .filter(|at| self.search.can_be_had(self.limits, &changed(&counts, &[(*at, 1)])))
                .min_by(|a, b| price(*a).0.cmp(&price(*b).0).then(price(*a).1.total_cmp(&price(*b).1)));
            match next {
                Some(next) => {
                    *counts.entry(next).or_default() += 1;
                    carried[model] += self.capacities[next];
                }
                // Nothing more can be had; what this carries is judged by the table.
                None => return Some(counts),
            }
        }
        None
    }

    /// Move by move, until none helps.
    fn improved(&self, mut plan: Plan) -> Plan {
        for _ in 0..MOST_MOVES {
            match self.better_fleet(&plan).or_else(|| self.better_division(&plan)) {
                Some(better) => plan = better,
                None => break,
            }
        }
        plan
    }

    /// Relocate: the same fleet carries more under a neighbouring division.
    fn better_division(&self, plan: &Plan) -> Option<Plan> {
        let neighbours = NEIGHBOURS.iter().filter_map(|step| plan.at.checked_add_signed(*step));
        let plans = neighbours
            .filter(|at| *at < self.order.len())
            .filter_map(|at| self.plan(at, plan.counts.clone()))
            .filter(|other| other.fleet.value > plan.fleet.value * (1.0 + WORTH));
        plans.max_by(|a, b| a.fleet.value.total_cmp(&b.fleet.value))
    }

    /// Relocate and consolidate: other replicas, cheaper or carrying more. Those that promise most are tried first.
    fn better_fleet(&self, plan: &Plan) -> Option<Plan> {
        let rent = self.search.rent(&plan.counts);
        let (enough, least) = match self.goal {
            Goal::Cost => (self.limits.rate, rent - 1e-9),
            Goal::Rate => (plan.fleet.value, f64::INFINITY),
        };
        let mut fleets: Vec<(f64, Counts)> = self
            .neighbours(plan)
            .into_iter()
            .filter(|counts| self.search.rent(counts) < least && self.search.can_be_had(self.limits, counts))
            .map(|counts| (self.promised(plan.at, &counts), counts))
            .filter(|(promised, _)| *promised > NEAR * enough)
            .map(|(promised, counts)| match self.goal {
                Goal::Cost => (self.search.rent(&counts), counts),
                Goal::Rate => (-promised, counts),
            })
            .collect();
        fleets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut plans =
            fleets.into_iter().take(MOST_TRIES).filter_map(|(_, counts)| self.plan(plan.at, counts));
        let better = |other: &Plan| match self.goal {
            Goal::Cost => self.is_answer(other),
            Goal::Rate => other.fleet.value > plan.fleet.value * (1.0 + WORTH),
        };
        plans.find(better)
    }

    /// What `counts` carry if every replica keeps its promises alone.
    fn promised(&self, at: usize, counts: &Counts) -> f64 {
        let parts = Search::planned_parts(&self.routes[self.order[at]], self.limits);
        let carried = |model: usize| -> f64 {
            let of = counts.iter().filter(|(at, _)| self.search.candidates[**at].model == model);
            of.map(|(at, count)| self.capacities[*at] * f64::from(*count)).sum()
        };
        let used = (0..parts.len()).filter(|model| parts[*model] > 0.0);
        used.map(|model| carried(model) / parts[model]).fold(f64::INFINITY, f64::min)
    }

    /// One replica less; one or two replaced by one or two of another candidate for the same model; one more.
    fn neighbours(&self, plan: &Plan) -> Vec<Counts> {
        let model = |at: usize| self.search.candidates[at].model;
        let mut fleets = Vec::new();
        for (&old, &count) in &plan.counts {
            fleets.push(changed(&plan.counts, &[(old, -1)]));
            for new in (0..self.search.candidates.len()).filter(|new| model(*new) == model(old)) {
                fleets.push(changed(&plan.counts, &[(new, 1)]));
                if new != old {
                    let swaps = [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1)];
                    let possible = swaps.into_iter().filter(|(fewer, _)| count >= *fewer as u32);
                    fleets.extend(
                        possible.map(|(fewer, more)| changed(&plan.counts, &[(old, -fewer), (new, more)])),
                    );
                }
            }
        }
        fleets
    }
}

/// `counts` with some more or fewer of some candidates.
fn changed(counts: &Counts, changes: &[(usize, i32)]) -> Counts {
    let mut counts = counts.clone();
    for &(at, change) in changes {
        let count = counts.get(&at).copied().unwrap_or_default().saturating_add_signed(change);
        counts.insert(at, count);
    }
    counts.retain(|_, count| *count > 0);
    counts
}
