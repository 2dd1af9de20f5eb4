//! `alternating`: the division for the fleet, the fleet for the division, in turn until neither changes.

use rayon::prelude::*;

use super::measures::{badness, best};
use crate::deployment::{Effort, Goal, Limits};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// Turns of one start, at most.
const MOST_TURNS: usize = 20;
/// A turn goes on for a gain of at least this part.
const WORTH: f64 = 1e-6;

impl Search<'_> {
    /// Starts from the division with the cheapest queries, the one with the dearest, and the one in the middle. No turn makes
    /// the plan worse: the division with the highest rate for the fleet carries what the fleet was made for.
    pub fn alternating(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let order = self.cheapest_first(routes);
        let mut starts = vec![*order.first()?, order[order.len() / 2], *order.last()?];
        starts.dedup();
        let from = |start| self.alternate(routes, &order, limits, goal, start);
        best(goal, starts.into_par_iter().filter_map(from).collect::<Vec<_>>())
    }

    fn alternate(
        &self,
        routes: &[Route],
        admissible: &[usize],
        limits: &Limits,
        goal: Goal,
        start: usize,
    ) -> Option<Choice> {
        let with_fleet = |route: usize| {
            Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
        };
        let mut choice = with_fleet(start)?;
        for _ in 0..MOST_TURNS {
            let counts = choice.fleet.counts();
            let rates: Vec<(usize, f64)> = admissible
                .par_iter()
                .filter_map(|&route| Some((route, self.carried(&routes[route], limits, &counts)?.value)))
                .collect();
            // The first among equals, as everywhere.
            let fastest = rates.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a });
            let Some(next) = fastest.and_then(|(route, _)| with_fleet(route)) else { break };
            let (before, after) = (badness(goal, &choice.fleet), badness(goal, &next.fleet));
            if after >= before - WORTH * before.abs() {
                break;
            }
            choice = next;
        }
        Some(choice)
    }
}
