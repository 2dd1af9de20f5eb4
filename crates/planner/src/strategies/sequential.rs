//! `sequential`: first the thresholds, then the GPUs.

use crate::deployment::{Effort, Goal, Limits};
use crate::routing::Route;
use crate::search::{Choice, Search};

impl Search<'_> {
    /// The division that keeps the floor at the least price per query, then the exact fleet over all GPU types. Where that
    /// division has no fleet, the next cheapest.
    pub fn sequential(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        self.cheapest_first(routes).into_iter().find_map(|route| {
            Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
        })
    }
}
