//! What `boute` does beside its search, from every new best and at the end: replicas in exchange for others.
//!
//! The knapsack takes models one after the other and a late request's price for the same everywhere; what a fleet of few
//! replicas gains by a pair of others it does not see. From the best design on, some replicas of one configuration are given
//! up for some of another and as many of a third as the money (where rent is minimised: less than theirs) and the stock
//! allow. Each is tried under the division of the load for which it promises most, the highest promise first:
//! ```text
//! min_m Σ_c count_c·alone_c / fraction_m        alone_c: rate at which a replica keeps the promises by itself
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::knapsack::Replica;
use super::structured::replicas;
use super::{Course, Design, Ground};
use crate::deployment::Goal;
use crate::strategies::measures::Counts;

/// Configurations that are offered in exchange, about: the cheapest per request of each model.
const OFFERED: usize = 24;
/// Replicas that are given up, and taken of the second configuration, at most.
const FEW: u32 = 4;
/// Replicas that are taken of the third, at most.
const MANY: u32 = 64;

impl Course<'_> {
    /// Exchanges from the best design on, until nothing better was found for `patience` of them.
    pub(super) fn exchange(&mut self, patience: usize) {
        'better: while let Some((value, design)) = self.best.clone() {
            let mut stable = 0;
            for next in self.ground.exchanges(&design) {
                if stable == patience || self.values.len() == self.most || self.stopped {
                    return;
                }
                if !self.tried.insert(next.clone()) {
                    continue;
                }
                self.judge(next);
                if self.best.as_ref().is_some_and(|(best, _)| *best != value) {
                    continue 'better;
                }
                stable += 1;
            }
            return;
        }
    }
}

impl Ground<'_> {
    /// What each exchange leads to, the most promising first.
    fn exchanges(&self, design: &Design) -> Vec<Design> {
        let fractions = &self.routes[design.route].stats.fractions;
        let offered = self.offered(fractions);
        let alone: BTreeMap<usize, f64> =
            offered.iter().map(|replica| (replica.candidate, replica.rate)).collect();
        let money = match self.goal {
            Goal::Cost => self.rent(design) - 1e-6,
            Goal::Rate => self.limits.budget.map_or(f64::INFINITY, |budget| budget + 1e-9),
        };
        let mut after = BTreeSet::new();
        for (given, count) in &design.counts {
            for less in 0..=FEW.min(*count) {
                let mut kept = design.counts.clone();
                kept.insert(*given, count - less);
                self.take(&kept, &offered, money, &mut after);
            }
        }
        let enough = if self.goal == Goal::Cost { self.limits.rate } else { f64::INFINITY };
        let ranked = after.into_iter().filter_map(|counts| {
            let (rate, route) = self.promised(&counts, &alone)?;
            Some((rate.min(enough), self.search.rent(&counts), Design { route, counts }))
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by(|(a, usd_a, _), (b, usd_b, _)| b.total_cmp(a).then(usd_a.total_cmp(usd_b)));
        ranked.into_iter().map(|(.., design)| design).collect()
    }

    /// What `kept` becomes with some of one configuration and as many as can be had of another.
    fn take(&self, kept: &Counts, offered: &[Replica], money: f64, after: &mut BTreeSet<Counts>) {
        for second in offered {
            for few in 0..=FEW.min(self.affordable(kept, second.candidate, money)) {
                let with = more(kept, second.candidate, few);
                for third in offered {
                    let many = MANY.min(self.affordable(&with, third.candidate, money));
                    let mut counts = more(&with, third.candidate, many);
                    counts.retain(|_, count| *count > 0);
                    after.insert(counts);
                }
            }
        }
    }

    /// Replicas of each model that has a part of the load.
    fn offered(&self, fractions: &[f64]) -> Vec<Replica> {
        let used: Vec<usize> = (0..fractions.len()).filter(|model| fractions[*model] > 0.0).collect();
        let each = (OFFERED / used.len().max(1)).max(2);
        let of_model = |model: &usize| {
            let mut all = replicas(self, *model, fractions, f64::INFINITY);
            all.sort_by(|a, b| (a.usd_per_hour / a.rate).total_cmp(&(b.usd_per_hour / b.rate)));
            all.truncate(each);
            all
        };
        used.iter().flat_map(of_model).collect()
    }

    /// The highest rate that replicas promise which carry `alone` each, and the admissible route for which it is.
    fn promised(&self, counts: &Counts, alone: &BTreeMap<usize, f64>) -> Option<(f64, usize)> {
        let mut carried = vec![0.0; self.search.problem.models.len()];
        for (candidate, count) in counts {
            let rate = alone.get(candidate).copied().unwrap_or_default();
            carried[self.search.candidates[*candidate].model] += rate * f64::from(*count);
        }
        let rate = |route: usize| -> f64 {
            let loads = self.routes[route].stats.fractions.iter().zip(&self.limits.margins);
            let rates = carried.iter().zip(loads).filter(|(_, (fraction, _))| **fraction > 0.0);
            rates
                .map(|(carried, (fraction, margin))| carried / fraction / margin)
                .fold(f64::INFINITY, f64::min)
        };
        let admissible = (0..self.routes.len()).filter(|route| self.routes[*route].admissible);
        admissible.map(|route| (rate(route), route)).max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// How many replicas of a candidate the `money` and the stock that `kept` leaves are for.
    fn affordable(&self, kept: &Counts, candidate: usize, money: f64) -> u32 {
        let wanted = &self.search.candidates[candidate];
        let by_money = ((money - self.search.rent(kept)) / wanted.usd_per_hour).max(0.0) as u32;
        let left = |stock: u32| stock.saturating_sub(self.search.gpus_on(kept, wanted.offer));
        let by_stock = self.limits.stock[wanted.offer].map_or(u32::MAX, |stock| left(stock) / wanted.gpus());
        by_money.min(by_stock)
    }
}

fn more(counts: &Counts, candidate: usize, by: u32) -> Counts {
    let mut counts = counts.clone();
    *counts.entry(candidate).or_default() += by;
    counts
}
