//! To come.

use crate::deployment::{Goal, Limits};
use crate::problem::Progress;
use crate::routing::Route;
use crate::search::{Choice, Search};

impl Search<'_> {
    /// To come.
    pub fn agh(&self, _: &[Route], _: &Limits, _: Goal, _: Progress<'_>) -> Option<Choice> {
        let _ = self.problem;
        None
    }
}
