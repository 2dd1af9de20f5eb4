//! `cascadia`: thresholds outside, GPUs per model by the slowest model's tail inside; one GPU type.
//!
//! Source: "Cascadia", arXiv 2506.04203. Inside, for given thresholds, with `l_i(f)` the tail of model i at its load on the best
//! parallelism of f GPUs:
//! ```text
//! minimise  L   such that   Σ_f x_if = 1,   Σ_i Σ_f f·x_if ≤ N,   L ≥ Σ_f l_i(f)·x_if
//! ```
//! L is the worst `reached / limit` over the promises, so that L ≤ 1 keeps them all, for every model by itself. As `l_i` falls
//! with f, the programme's optimum is at most 1 exactly when every model gets the fewest GPUs that keep its own tail
//! and these are within N: no solver is needed. The least N is the cheapest fleet; the highest rate whose GPUs are within N
//! (stock and budget) is the fastest.
//!
//! Outside, the source scalarises (latency, −quality) by Chebyshev weights with a penalty below the quality floor, walks
//! the front, and takes its fastest point at or above the floor. Divisions are a finite grid here and the inner programme
//! takes microseconds, so every admissible one is visited, which is where that walk can end at best.

use super::measures::{Counts, as_answer};
use crate::deployment::{Fleet, Goal, Limits};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// Where the table finds that the fleet carries less than its tails promise, it is planned for this much more.
const REPAIR: f64 = 1.01;
const MOST_REPAIRS: u32 = 20;
/// Bisections of the rate.
const HALVINGS: u32 = 40;

impl Search<'_> {
    /// The best division and GPU type by the tails of single models; see the module.
    pub fn cascadia(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let admissible = (0..routes.len()).filter(|route| routes[*route].admissible);
        let planned = admissible.flat_map(|route| {
            let capacities = self.capacities(&routes[route], limits);
            let of = move |offer| {
                let tails =
                    Tails { search: self, capacities: &capacities, route: &routes[route], offer, limits };
                let (counts, value) = tails.inner(goal, limits.rate)?;
                Some((route, offer, counts, value))
            };
            (0..self.problem.offers.len()).filter_map(of).collect::<Vec<_>>()
        });
        let mut planned: Vec<(usize, usize, Counts, f64)> = planned.collect();
        planned.sort_by(|a, b| a.3.total_cmp(&b.3));
        planned.into_iter().find_map(|(route, offer, counts, _)| {
            let capacities = self.capacities(&routes[route], limits);
            let tails = Tails { search: self, capacities: &capacities, route: &routes[route], offer, limits };
            Some(Choice { route, fleet: tails.repaired(goal, counts)? })
        })
    }
}

/// One route on one GPU type.
struct Tails<'a> {
    search: &'a Search<'a>,
    /// Per candidate: the highest rate at which it keeps its tail.
    capacities: &'a [f64],
    route: &'a Route,
    offer: usize,
    limits: &'a Limits,
}

impl Tails<'_> {
    /// The fewest GPUs at `rate`, or the highest rate; with what is minimised.
    fn inner(&self, goal: Goal, rate: f64) -> Option<(Counts, f64)> {
        if goal == Goal::Cost {
            let counts = self.fewest(rate)?;
            let rent = self.search.rent(&counts);
            return Some((counts, rent));
        }
        // No fleet carries more than all GPUs would at the rate of the fastest candidate.
        let (mut low, mut high) = (0.0, rate);
        while self.fewest(high).is_some() && high < 1e6 {
            (low, high) = (high, 2.0 * high);
        }
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if self.fewest(middle).is_some() {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some((self.fewest(low).filter(|counts| !counts.is_empty())?, -low))
    }

    /// Every model on the fewest GPUs that keep its tail at its part of `rate`; `None` if some model cannot or they cannot be had.
    fn fewest(&self, rate: f64) -> Option<Counts> {
        let parts = Search::planned_parts(self.route, self.limits);
        let best = |(model, part): (usize, &f64)| {
            let on_offer = self.search.candidates.iter().enumerate();
            let of = on_offer
                .filter(|(at, it)| it.model == model && it.offer == self.offer && self.capacities[*at] > 0.0);
            let replicas = of.map(|(at, it)| {
                let count = (part * rate / self.capacities[at] - 1e-9).ceil().max(1.0);
                (at, count, count * f64::from(it.gpus()))
            });
            replicas.min_by(|a, b| a.2.total_cmp(&b.2)).map(|(at, count, _)| (at, count as u32))
        };
        let used = parts.iter().enumerate().filter(|(_, part)| **part > 0.0);
        let counts: Counts = used.map(best).collect::<Option<_>>()?;
        self.search.can_be_had(self.limits, &counts).then_some(counts)
    }

    fn repaired(&self, goal: Goal, mut counts: Counts) -> Option<Fleet> {
        let mut rate = self.limits.rate;
        for _ in 0..MOST_REPAIRS {
            let carried = self.search.carried(self.route, self.limits, &counts);
            if let Some(fleet) = carried.and_then(|fleet| as_answer(fleet, self.limits, goal)) {
                return Some(fleet);
            }
            rate *= REPAIR;
            counts = self.fewest(rate)?;
        }
        None
    }
}
