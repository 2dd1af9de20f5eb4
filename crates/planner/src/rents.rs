//! What fleets rent for by the rate that they are for: replicas are whole, so that rent rises in steps, and the smallest fleet costs what it
//! costs however little comes.

use std::collections::BTreeMap;

use crate::database::Database;
use crate::deployment::{Effort, Goal};
use crate::plan::{PlanError, Prepared, goal_of};
use crate::problem::{Problem, Progress};
use crate::replan::on_traffic_of;
use crate::table::LengthMix;

/// Rates within a twentieth of each other are one, the higher.
const PER_E_FOLD: f64 = 20.0;
/// Steps learnt below and above what is asked for.
const BESIDE: i32 = 4;

/// Rents per hour of the cheapest fleets by the table, for the rates of some range.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rents {
    /// What they were learnt on.
    ground: String,
    /// By the rate, exp(step / 20); `None` where no fleet is enough.
    known: BTreeMap<i32, Option<f64>>,
}

impl Rents {
    /// Learns the rents for `rates` of a problem as it is now, and for those a little below and above, over a table that serves it. Nothing is
    /// simulated but what the table lacks. What is known stays as long as the `ground` is the same: prices, stock, lengths.
    ///
    /// # Errors
    /// If no fleet can have a plan at any rate; if stopped.
    pub(crate) fn learn(
        &mut self,
        ground: &str,
        rates: &[f64],
        [measured, now]: [&Problem; 2],
        database: &Database,
        progress: Progress<'_>,
    ) -> Result<(), PlanError> {
        if self.ground != ground {
            *self = Self { ground: ground.to_owned(), known: BTreeMap::new() };
        }
        let wanted: Vec<i32> = rates.iter().filter_map(|rate| step_of(*rate)).collect();
        let (Some(least), Some(most)) = (wanted.iter().min(), wanted.iter().max()) else { return Ok(()) };
        let learnt = self.known.contains_key(least) && self.known.contains_key(most);
        // For other goals than rent a fleet is as large as the budget allows.
        if learnt || goal_of(now.objective) != Goal::Cost {
            return Ok(());
        }
        let prepared = Prepared::with_table_of(
            &on_traffic_of(measured, now),
            now,
            LengthMix::ByRoute,
            &[],
            database,
            progress,
        )?;
        let search = prepared.search();
        let rent = |step: i32| {
            let limits = search.limits((f64::from(step) / PER_E_FOLD).exp());
            let found = search.sweep(prepared.routes(), &limits, Goal::Cost, Effort::Sketch, progress);
            found.map(|(choice, _)| choice.fleet.value)
        };
        self.fill(least - BESIDE, most + BESIDE, &rent);
        Ok(())
    }

    /// Those for the rates between two of a problem.
    ///
    /// # Errors
    /// As of a plan.
    pub fn of(
        problem: &Problem,
        rates: [f64; 2],
        database: &Database,
        progress: Progress<'_>,
    ) -> Result<Self, PlanError> {
        let mut rents = Self::default();
        rents.learn("", &rates, [problem, problem], database, progress)?;
        Ok(rents)
    }

    /// What lies between two rates of the same rent has that rent too.
    fn fill(&mut self, least: i32, most: i32, rent: &dyn Fn(i32) -> Option<f64>) {
        let [low, high] = [least, most].map(|step| *self.known.entry(step).or_insert_with(|| rent(step)));
        if most - least < 2 {
            return;
        }
        if low == high {
            self.known.extend((least..most).map(|step| (step, low)));
            return;
        }
        let middle = i32::midpoint(least, most);
        self.fill(least, middle, rent);
        self.fill(middle, most, rent);
    }

    /// Whether anything is known.
    pub(crate) fn any(&self) -> bool {
        self.known.values().any(Option::is_some)
    }

    /// Rent per hour of a fleet for a rate; the least that is known for a lower one. In proportion to the rate beyond the most that any
    /// fleet carries; the rate itself where nothing is known.
    pub fn at(&self, rate: f64) -> f64 {
        let Some(step) = step_of(rate) else { return 0.0 };
        let above = self.known.range(step..).find_map(|(_, usd)| *usd);
        let most = || self.known.iter().rev().find_map(|(known, usd)| Some((*known, (*usd)?)));
        let beyond = || most().map(|(known, usd)| usd * rate / (f64::from(known) / PER_E_FOLD).exp());
        above.or_else(beyond).unwrap_or(rate)
    }
}

/// The least step whose rate is no lower.
fn step_of(rate: f64) -> Option<i32> {
    (rate > 0.0 && rate.is_finite()).then(|| (rate.ln() * PER_E_FOLD - 1e-9).ceil() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replicas of $4 that carry 2 requests per second each, three of them at most.
    fn replicas(step: i32) -> Option<f64> {
        let count = ((f64::from(step) / PER_E_FOLD).exp() / 2.0).ceil();
        (count <= 3.0).then_some(4.0 * count)
    }

    fn learnt() -> Rents {
        let mut rents = Rents::default();
        rents.fill(-10, 50, &replicas);
        rents
    }

    #[test]
    fn rents_rise_by_whole_replicas() {
        let rents = learnt();
        for (rate, usd) in
            [(0.1, 4.0), (1.0, 4.0), (1.9, 4.0), (2.2, 8.0), (3.8, 8.0), (4.2, 12.0), (5.7, 12.0)]
        {
            assert_eq!(rents.at(rate), usd, "{rate}");
        }
        // Beyond what there is: as if there were more of it, from the last step on at which there is.
        assert!((rents.at(12.0) / 12.0 - 12.0 / 6.0).abs() < 0.1, "{}", rents.at(12.0));
        assert_eq!(rents.at(0.0), 0.0);
    }

    #[test]
    fn where_nothing_is_known_rent_is_the_rate() {
        assert_eq!(Rents::default().at(3.0), 3.0);
        assert!(!Rents::default().any() && learnt().any());
    }

    #[test]
    fn what_lies_between_equal_rents_is_not_asked() {
        let asked = std::cell::Cell::new(0);
        Rents::default().fill(-1000, 10, &|step| {
            asked.set(asked.get() + 1);
            replicas(step)
        });
        assert!(asked.get() < 20, "{}", asked.get());
    }
}
