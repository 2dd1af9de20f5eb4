//! When to stop.

use serde::{Deserialize, Serialize};

use crate::study::Study;

/// Rules for stopping; the first that holds stops. Absent rules never do.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRules {
    /// After this many evaluations.
    pub evaluations: Option<usize>,
    /// After this many evaluations in a row that left the front as it was.
    pub stable_for: Option<usize>,
    /// When the hypervolume grew too little.
    pub gain: Option<Gain>,
    /// After this many seconds.
    pub seconds: Option<f64>,
}

/// Growth of the hypervolume over the last evaluations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    /// Over how many evaluations.
    pub over: usize,
    /// Relative growth below which the rule stops.
    pub below: f64,
}

/// The rule that stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Enough evaluations.
    Evaluations,
    /// The front is stable.
    StableFor,
    /// The hypervolume hardly grows.
    Gain,
    /// Out of time.
    Seconds,
}

impl StopRules {
    /// The first rule that holds after `elapsed_s` seconds.
    ///
    /// Rules about the front wait for the initial design to be over.
    pub fn reached(&self, study: &Study, elapsed_s: f64) -> Option<StopReason> {
        let count = study.evaluations().len();
        let searched = count.saturating_sub(study.problem().initial());
        if self.evaluations.is_some_and(|most| count >= most) {
            return Some(StopReason::Evaluations);
        }
        if self.seconds.is_some_and(|most| elapsed_s >= most) {
            return Some(StopReason::Seconds);
        }
        let stable = |over: usize| study.front() == study.front_after(count - over);
        if self.stable_for.is_some_and(|over| searched >= over && stable(over)) {
            return Some(StopReason::StableFor);
        }
        let slow = |gain: &Gain| {
            let (before, now) = (study.hypervolume_after(count - gain.over), study.hypervolume());
            now > 0.0 && now - before < gain.below * now
        };
        self.gain.filter(|gain| searched >= gain.over && slow(gain)).map(|_| StopReason::Gain)
    }
}
