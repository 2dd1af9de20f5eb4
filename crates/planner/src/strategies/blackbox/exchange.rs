//! The end of `boute`: replicas of one configuration in exchange for another.
//!
//! The knapsack takes models one after the other and a late request's price for the same everywhere; what a fleet of few
//! replicas gains by a pair of others it does not see. From the best design on, some replicas of one configuration are given
//! up for as many of another as the money (where rent is minimised: less than theirs) and the stock allow, in the order of
//! ```text
//! min_m Σ_c count_c·alone_c / fraction_m        alone_c: rate at which a replica keeps the promises by itself
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::structured::replicas;
use super::{Course, Design, Ground, STABLE_FOR};
use crate::deployment::Goal;

/// More replicas of one configuration are not added at once.
const MOST_ADDED: u32 = 64;

impl Course<'_> {
    /// Exchanges from the best design on, until nothing better was found for [`STABLE_FOR`] of them.
    pub(super) fn exchange(&mut self) {
        let mut tried = BTreeSet::new();
        'better: while let Some((value, design)) = self.best.clone() {
            let mut stable = 0;
            for counts in self.ground.exchanges(&design) {
                if !tried.insert(counts.clone()) {
                    continue;
                }
                if stable == STABLE_FOR || self.values.len() == self.most || self.stopped {
                    return;
                }
                self.judge(Design { counts, ..design });
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
    /// Replicas per candidate after each exchange, the most promising first.
    fn exchanges(&self, design: &Design) -> Vec<BTreeMap<usize, u32>> {
        let fractions = &self.routes[design.route].stats.fractions;
        let used: Vec<usize> = (0..fractions.len()).filter(|model| fractions[*model] > 0.0).collect();
        let offered: Vec<_> =
            used.iter().flat_map(|model| replicas(self, *model, fractions, f64::INFINITY)).collect();
        let alone: BTreeMap<usize, f64> =
            offered.iter().map(|replica| (replica.candidate, replica.rate)).collect();
        let mut after = Vec::new();
        for (given, count) in &design.counts {
            for less in 0..=*count {
                let mut kept = design.counts.clone();
                kept.insert(*given, count - less);
                for replica in &offered {
                    let most = self.affordable(design, &kept, replica.candidate);
                    if replica.candidate != *given && most + less > 0 {
                        let mut counts = kept.clone();
                        *counts.entry(replica.candidate).or_default() += most;
                        counts.retain(|_, count| *count > 0);
                        after.push(counts);
                    }
                }
            }
        }
        let enough = if self.goal == Goal::Cost { self.limits.rate } else { f64::INFINITY };
        let promise = |counts: &BTreeMap<usize, u32>| {
            let carried = |model: usize| -> f64 {
                let own = counts.iter().filter(|(at, _)| self.search.candidates[**at].model == model);
                own.map(|(at, count)| alone.get(at).unwrap_or(&0.0) * f64::from(*count)).sum()
            };
            let rates = used.iter().map(|m| carried(*m) / fractions[*m] / self.limits.margins[*m]);
            (rates.fold(enough, f64::min), self.search.rent(counts))
        };
        let mut ranked: Vec<_> = after.into_iter().map(|counts| (promise(&counts), counts)).collect();
        ranked.sort_by(|((a, usd_a), _), ((b, usd_b), _)| b.total_cmp(a).then(usd_a.total_cmp(usd_b)));
        ranked.into_iter().map(|(_, counts)| counts).collect()
    }

    /// How many replicas of a candidate the money and the stock that `kept` leaves are for.
    fn affordable(&self, design: &Design, kept: &BTreeMap<usize, u32>, candidate: usize) -> u32 {
        let candidates = self.search.candidates;
        let wanted = &candidates[candidate];
        let money = match self.goal {
            Goal::Cost => self.rent(design) - 1e-6,
            Goal::Rate => self.limits.budget.map_or(f64::INFINITY, |budget| budget + 1e-9),
        };
        let by_money = ((money - self.search.rent(kept)) / wanted.usd_per_hour).max(0.0) as u32;
        let on_offer = kept.iter().filter(|(at, _)| candidates[**at].offer == wanted.offer);
        let rented: u32 = on_offer.map(|(at, count)| candidates[*at].gpus() * count).sum();
        let stock = self.limits.stock[wanted.offer];
        let by_stock = stock.map_or(MOST_ADDED, |stock| stock.saturating_sub(rented) / wanted.gpus());
        by_money.min(by_stock).min(MOST_ADDED)
    }
}
