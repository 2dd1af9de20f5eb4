//! What the strategies know of models and fleets without an exact search.

use std::collections::BTreeMap;

use crate::deployment::{Fleet, Goal, Limits, assess};
use crate::routing::Route;
use crate::search::{Choice, Search};
use crate::table::LOOSER;

/// Replicas per candidate.
pub(super) type Counts = BTreeMap<usize, u32>;

impl Search<'_> {
    /// The admissible routes in order of what a query costs on average, each model at the price of its cheapest replica that
    /// keeps the promises. This is what a team that picks thresholds before GPUs goes by: the price per token, at what the
    /// models cost here rather than at some provider's.
    pub(super) fn cheapest_first(&self, routes: &[Route]) -> Vec<usize> {
        let prices = self.table.usd_per_query(self.problem, self.candidates);
        let price = |route: &usize| -> f64 {
            let used =
                routes[*route].stats.fractions.iter().zip(&prices).filter(|(fraction, _)| **fraction > 0.0);
            used.map(|(fraction, usd)| fraction * usd.unwrap_or(f64::INFINITY)).sum()
        };
        let mut order: Vec<usize> = (0..routes.len()).filter(|route| routes[*route].admissible).collect();
        order.sort_by(|a, b| price(a).total_cmp(&price(b)).then(a.cmp(b)));
        order
    }

    /// The admissible routes that use one model.
    pub(super) fn constant(routes: &[Route]) -> impl Iterator<Item = usize> {
        let one = |route: &Route| route.admissible && route.policy.models().len() == 1;
        (0..routes.len()).filter(move |route| one(&routes[*route]))
    }

    /// Per model: the part of the rate that it is planned for.
    pub(super) fn planned_parts(route: &Route, limits: &Limits) -> Vec<f64> {
        route
            .stats
            .fractions
            .iter()
            .zip(&limits.margins)
            .map(|(fraction, margin)| fraction * margin)
            .collect()
    }

    /// The highest rate that `counts` carry, as a fleet of that value.
    pub(super) fn carried(&self, route: &Route, limits: &Limits, counts: &Counts) -> Option<Fleet> {
        let allowed =
            (0..self.candidates.len()).map(|at| limits.allowed[at] && counts.contains_key(&at)).collect();
        let columns = self.columns(route, &Limits { allowed, ..limits.clone() });
        assess(self.problem, &columns, &route.stats.fractions, &limits.margins, counts)
    }

    /// Per candidate: the highest rate at which the largest of `reached / limit` over all promises is at most 1, between
    /// sustained levels in a straight line; 0 where none is, and where the candidate is not allowed.
    pub(super) fn capacities(&self, route: &Route, limits: &Limits) -> Vec<f64> {
        let levels = self.table.levels(&route.stats.fractions);
        let slack = if limits.looser { LOOSER } else { 1.0 };
        let applies = |model: usize, index: usize| self.problem.concerns(&self.problem.slo[index], model);
        let capacity = |(at, candidate): (usize, &crate::candidates::Candidate)| {
            let mut before = (0.0, 0.0);
            for level in levels[at].iter().filter(|_| limits.allowed[at]).take_while(|level| level.sustained)
            {
                let ratios = level.reached_s.iter().zip(&self.problem.slo).enumerate();
                let ratio = ratios
                    .filter(|(index, _)| applies(candidate.model, *index))
                    .map(|(_, (reached_s, target))| reached_s / (target.limit_s.get() * slack))
                    .fold(0.0, f64::max);
                if ratio > 1.0 {
                    let part = if before.0 > 0.0 { (1.0 - before.1) / (ratio - before.1) } else { 0.0 };
                    return before.0 + part * (level.rate - before.0);
                }
                before = (level.rate, ratio);
            }
            before.0
        };
        self.candidates.iter().enumerate().map(capacity).collect()
    }

    /// Whether `counts` are in stock and within the budget.
    pub(super) fn can_be_had(&self, limits: &Limits, counts: &Counts) -> bool {
        let stocked = |(offer, stock): (usize, &Option<u32>)| {
            stock.is_none_or(|stock| self.gpus_on(counts, offer) <= stock)
        };
        let stocked = limits.stock.iter().enumerate().all(stocked);
        stocked && limits.budget.is_none_or(|budget| self.rent(counts) <= budget + 1e-9)
    }
}

/// Least is best.
pub(super) fn badness(goal: Goal, fleet: &Fleet) -> f64 {
    if goal == Goal::Cost { fleet.value } else { -fleet.value }
}

/// The best of several choices, the first among equals.
pub(super) fn best(goal: Goal, choices: impl IntoIterator<Item = Choice>) -> Option<Choice> {
    choices.into_iter().min_by(|a, b| badness(goal, &a.fleet).total_cmp(&badness(goal, &b.fleet)))
}

/// A fleet that carries `fleet.value` as an answer to `goal`: its rent where that is minimised, if it carries enough.
pub(super) fn as_answer(fleet: Fleet, limits: &Limits, goal: Goal) -> Option<Fleet> {
    match goal {
        Goal::Rate => Some(Fleet { bound: f64::INFINITY, ..fleet }),
        Goal::Cost if fleet.value < limits.rate * (1.0 - 1e-9) => None,
        Goal::Cost => Some(Fleet { value: fleet.usd_per_hour(), bound: 0.0, ..fleet }),
    }
}
