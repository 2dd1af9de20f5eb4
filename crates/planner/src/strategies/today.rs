//! What a team would do today: one GPU type, one model or a threshold.

use super::measures::{Counts, as_answer, best};
use crate::deployment::{Effort, Fleet, Goal, Limits, solve};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// GPUs per model, at most.
const MOST_GPUS: u32 = 1 << 12;

impl Search<'_> {
    /// One fleet per GPU type, from `on` an offer under limits to it; the cheapest (or fastest).
    fn on_one_gpu(
        &self,
        limits: &Limits,
        goal: Goal,
        on: impl Fn(usize, &Limits) -> Option<Choice>,
    ) -> Option<Choice> {
        let choices = (0..self.problem.offers.len()).filter_map(|offer| {
            let of = |(at, candidate): (usize, &crate::candidates::Candidate)| {
                limits.allowed[at] && candidate.offer == offer
            };
            let allowed = self.candidates.iter().enumerate().map(of).collect();
            on(offer, &Limits { allowed, ..limits.clone() })
        });
        best(goal, choices)
    }

    /// `homogeneous`: one model, one GPU type.
    pub fn homogeneous(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        self.on_one_gpu(limits, goal, |_, limits| {
            let fleets = Self::constant(routes).filter_map(|route| {
                Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
            });
            best(goal, fleets)
        })
    }

    /// `routing-proportional`: the division with the cheapest queries, one GPU type, the exact fleet.
    pub fn proportional(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let route = *self.cheapest_first(routes).first()?;
        self.on_one_gpu(limits, goal, |_, limits| {
            Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
        })
    }

    /// `routing-uniform`: the same division, and the same money for every model; with one GPU type that is as many GPUs.
    /// Every model has the fastest fleet on them; the least number that carries the rate, or the most that can be had.
    pub fn uniform(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let route = *self.cheapest_first(routes).first()?;
        self.on_one_gpu(limits, goal, |offer, limits| {
            let with = |gpus: u32| self.equal_gpus(&routes[route], limits, goal, offer, gpus);
            let models = routes[route].policy.models().len() as u32;
            let price = self.problem.offers[offer].usd_per_gpu_hour;
            let by_money = limits.budget.map(|budget| (budget / price + 1e-9) as u32 / models);
            let by_stock = limits.stock[offer].map(|stock| stock / models);
            let most = by_money.into_iter().chain(by_stock).fold(MOST_GPUS, u32::min);
            let fleet = if goal == Goal::Rate { with(most) } else { least(most, with) }?;
            Some(Choice { route, fleet })
        })
    }

    /// The fastest fleet of every model on `gpus` GPUs, as an answer to `goal`.
    fn equal_gpus(
        &self,
        route: &Route,
        limits: &Limits,
        goal: Goal,
        offer: usize,
        gpus: u32,
    ) -> Option<Fleet> {
        let mut own = Limits { budget: None, ..limits.clone() };
        own.stock[offer] = Some(gpus);
        let columns = self.columns(route, limits);
        let mut counts = Counts::new();
        for model in (0..route.stats.fractions.len()).filter(|at| route.stats.fractions[*at] > 0.0) {
            let alone: Vec<f64> =
                (0..route.stats.fractions.len()).map(|at| f64::from(u8::from(at == model))).collect();
            let of_model: Vec<_> = columns.iter().filter(|column| column.model == model).cloned().collect();
            let fleet = solve(self.problem, &of_model, &alone, &own, Goal::Rate, Effort::Proof).ok()?;
            counts.extend(fleet.counts());
        }
        as_answer(self.carried(route, limits, &counts)?, limits, goal)
    }
}

/// The fleet of the least number up to `most` that has one, taking it that larger numbers have one too.
fn least(most: u32, with: impl Fn(u32) -> Option<Fleet>) -> Option<Fleet> {
    let (mut low, mut high) = (0, 1.min(most));
    let mut found = with(high);
    while found.is_none() && high < most {
        (low, high) = (high, (2 * high).min(most));
        found = with(high);
    }
    while found.is_some() && high - low > 1 {
        let middle = u32::midpoint(low, high);
        match with(middle) {
            Some(fleet) => (high, found) = (middle, Some(fleet)),
            None => low = middle,
        }
    }
    found
}
