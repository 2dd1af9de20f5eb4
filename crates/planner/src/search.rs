//! From routes and table to a fleet: the outer sweep, and the strategies people use today, over the same candidates.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::candidates::Candidate;
use crate::deployment::{Column, Effort, Fleet, Goal, Limits, NoFleet, assess, columns, solve};
use crate::problem::{Problem, Progress, Step};
use crate::routing::Route;
use crate::table::Table;

/// A division is solved for a gain of at least this part over the best so far.
const WORTH: f64 = 5e-4;

/// A route and its fleet.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Index of the route.
    pub route: usize,
    /// The fleet.
    pub fleet: Fleet,
}

/// Everything a search needs.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// Configurations that fit.
    pub candidates: &'a [Candidate],
    /// How they do.
    pub table: &'a Table,
    /// Whether disaggregated ones may be used.
    pub disaggregate: bool,
}

impl Search<'_> {
    /// Limits as the problem states them, at `rate`.
    pub fn limits(&self, rate: f64) -> Limits {
        Limits {
            rate,
            budget: self.problem.budget,
            stock: self.problem.offers.iter().map(|offer| offer.stock).collect(),
            looser: false,
            allowed: self.candidates.iter().map(|it| self.disaggregate || it.prefill.is_none()).collect(),
            beat: None,
            margins: vec![self.least_margin(); self.problem.models.len()],
            required: Vec::new(),
        }
    }

    /// How many times its load every model is planned for before simulation contradicts the table.
    fn least_margin(&self) -> f64 {
        self.problem.robust.rate.max(self.problem.robust.lengths)
    }

    /// Whether no margin of `limits` has been raised.
    pub(crate) fn unrepaired(&self, limits: &Limits) -> bool {
        limits.margins.iter().all(|margin| *margin == self.least_margin())
    }

    /// The best fleet for one route.
    pub fn fleet(&self, route: &Route, limits: &Limits, goal: Goal, effort: Effort) -> Option<Fleet> {
        self.solve(route, limits, goal, effort).ok()
    }

    fn solve(&self, route: &Route, limits: &Limits, goal: Goal, effort: Effort) -> Result<Fleet, NoFleet> {
        solve(self.problem, &self.columns(route, limits), &route.stats.fractions, limits, goal, effort)
    }

    /// The highest rate that `counts` replicas per candidate carry under a route; see [`assess`].
    pub fn assess(&self, route: &Route, counts: &BTreeMap<usize, u32>) -> Option<Fleet> {
        let limits = self.limits(self.problem.rate);
        let columns = self.columns(route, &limits);
        assess(self.problem, &columns, &route.stats.fractions, &limits.margins, counts)
    }

    /// Columns of a route under limits.
    pub(crate) fn columns(&self, route: &Route, limits: &Limits) -> Vec<Column> {
        let fractions = &route.stats.fractions;
        columns(self.candidates, self.table.levels(fractions), limits, fractions)
    }

    /// Rent of `counts` replicas per candidate.
    pub(crate) fn rent(&self, counts: &BTreeMap<usize, u32>) -> f64 {
        counts.iter().map(|(at, count)| self.candidates[*at].usd_per_hour * f64::from(*count)).sum()
    }

    /// GPUs on an offer of `counts` replicas per candidate.
    pub(crate) fn gpus_on(&self, counts: &BTreeMap<usize, u32>, offer: usize) -> u32 {
        counts.iter().map(|(at, count)| self.candidates[*at].gpus_on(offer) * count).sum()
    }

    /// Admissible routes that have a fleet, best first, with the value of their relaxation, in which a part of a replica can be
    /// rented.
    pub fn relaxed(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Vec<(usize, f64)> {
        let mut relaxed: Vec<(usize, f64)> = (0..routes.len())
            .into_par_iter()
            .filter(|route| routes[*route].admissible)
            .filter_map(|route| {
                Some((route, self.fleet(&routes[route], limits, goal, Effort::Relaxed)?.value))
            })
            .collect();
        relaxed.sort_by(|a, b| (goal.sign() * a.1).total_cmp(&(goal.sign() * b.1)).then(a.0.cmp(&b.0)));
        relaxed
    }

    /// The best of the admissible `routes` for `goal`, and a bound that no plan over this table beats. Routes are visited in
    /// order of their relaxation, and given up when that cannot beat the best so far. `None` if no route has a fleet. Told to
    /// stop, it does so once there is a fleet.
    pub fn sweep(
        &self,
        routes: &[Route],
        limits: &Limits,
        goal: Goal,
        effort: Effort,
        progress: Progress<'_>,
    ) -> Option<(Choice, f64)> {
        self.sweep_from(None, routes, limits, goal, effort, progress)
    }

    /// The same from a fleet that is there already: it is what comes back, with the bound, where nothing beats it.
    pub fn sweep_from(
        &self,
        incumbent: Option<Choice>,
        routes: &[Route],
        limits: &Limits,
        goal: Goal,
        effort: Effort,
        progress: Progress<'_>,
    ) -> Option<(Choice, f64)> {
        let sign = goal.sign();
        let relaxed = self.relaxed(routes, limits, goal);
        let relaxed: Vec<(usize, f64)> =
            relaxed.into_iter().map(|(route, value)| (route, sign * value)).collect();
        let bound_of_all = relaxed.first()?.1;
        let mut best = incumbent.map(|choice| (sign * choice.fleet.value, choice));
        let mut proven = f64::INFINITY;
        let total = relaxed.len() as u64;
        // Two at a time, as many as the machine is planned to have; the result does not depend on it.
        for (done, pair) in (0_u64..).zip(relaxed.chunks(2)) {
            let to_beat = best.as_ref().map(|(value, _)| sign * value * (1.0 - sign * WORTH));
            if to_beat.is_some_and(|value| pair[0].1 >= sign * value) {
                proven = proven.min(pair[0].1);
                break;
            }
            let message = best.as_ref().map_or_else(
                || "searching fleets".to_owned(),
                |(value, _)| match goal {
                    Goal::Cost => format!("searching fleets, best so far ${value:.2}/h"),
                    Goal::Rate => format!("searching fleets, best so far {:.2} req/s", -value),
                },
            );
            if progress(&Step { message, done: 2 * done, total }) && best.is_some() {
                proven = proven.min(pair[0].1);
                break;
            }
            // What cannot beat the best so far need not be solved to its end. That proves soon that a route has no better fleet,
            // but a rate bounded from below makes one that is there hard to find, and the first routes likely have one.
            let beat = to_beat.filter(|_| goal == Goal::Cost || done > 0);
            let limits = Limits { beat, ..limits.clone() };
            let solved: Vec<Result<Fleet, NoFleet>> = pair
                .par_iter()
                .map(|(route, _)| self.solve(&routes[*route], &limits, goal, effort))
                .collect();
            for ((route, relaxation), fleet) in pair.iter().zip(solved) {
                let fleet = match fleet {
                    Ok(fleet) => fleet,
                    Err(NoFleet::Infeasible) => {
                        proven =
                            proven.min(to_beat.map_or(f64::INFINITY, |value| sign * value).max(*relaxation));
                        continue;
                    }
                    Err(NoFleet::NotFound) => {
                        proven = proven.min(*relaxation);
                        continue;
                    }
                };
                proven = proven.min((sign * fleet.bound).max(*relaxation));
                let value = sign * fleet.value;
                if best.as_ref().is_none_or(|(incumbent, _)| value < incumbent - 1e-9) {
                    best = Some((value, Choice { route: *route, fleet }));
                }
            }
        }
        let (value, choice) = best?;
        let bound = proven.min(value).max(bound_of_all);
        Some((choice, sign * bound))
    }

    /// The admissible route of the highest quality that the budget allows, with its cheapest fleet, and a bound on quality.
    /// Told to stop, it settles for the cheapest fleet of all.
    pub fn best_quality(
        &self,
        routes: &[Route],
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Option<(Choice, f64)> {
        let mut order: Vec<usize> = (0..routes.len()).filter(|route| routes[*route].admissible).collect();
        order.sort_by(|a, b| routes[*b].stats.quality.total_cmp(&routes[*a].stats.quality).then(a.cmp(b)));
        let total = order.len() as u64;
        for (done, route) in (0..).zip(order) {
            if progress(&Step { message: "searching the best quality".into(), done, total }) {
                let cheapest = self.sweep(routes, limits, Goal::Cost, Effort::Sketch, progress);
                return cheapest.map(|(choice, _)| (choice, routes[route].stats.quality));
            }
            if let Some(fleet) = self.fleet(&routes[route], limits, Goal::Cost, Effort::Proof) {
                return Some((Choice { route, fleet }, routes[route].stats.quality));
            }
        }
        None
    }
}
