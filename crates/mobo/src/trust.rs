//! A trust region: where the search stays when there are too many dimensions to explore.
//!
//! A box around one of the best points, longer where the model varies less, that doubles after successes and halves after failures
//! (Eriksson et al., "Scalable Global Optimization via Local Bayesian Optimization", `NeurIPS` 2019; its use around points of a front:
//! Daulton et al., "Multi-Objective Bayesian Optimization over High-Dimensional Search Spaces", UAI 2022).

use serde::{Deserialize, Serialize};

use crate::search::Region;
use crate::space::{Coordinate, Space};

/// More coordinates than this are searched in a trust region.
pub const MOST_GLOBAL: usize = 20;

const FIRST_LENGTH: f64 = 0.8;
const LONGEST: f64 = 1.6;
const SHORTEST: f64 = 0.007_812_5;
const SUCCESSES: usize = 3;
/// Coordinates that a sampled point changes, about.
const CHANGED: f64 = 20.0;

/// Length and recent luck of the region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrustRegion {
    length: f64,
    successes: usize,
    failures: usize,
    /// How often the region collapsed and began anew, elsewhere on the front.
    restarts: usize,
}

impl Default for TrustRegion {
    fn default() -> Self {
        Self { length: FIRST_LENGTH, successes: 0, failures: 0, restarts: 0 }
    }
}

impl TrustRegion {
    /// Takes in whether the last evaluation improved the front of a problem with this many dimensions.
    pub(crate) fn record(&mut self, improved: bool, dimensions: usize) {
        (self.successes, self.failures) =
            if improved { (self.successes + 1, 0) } else { (0, self.failures + 1) };
        if self.successes >= SUCCESSES {
            self.length = (2.0 * self.length).min(LONGEST);
            self.successes = 0;
        } else if self.failures >= dimensions.clamp(4, 50) {
            self.length /= 2.0;
            self.failures = 0;
        }
        if self.length < SHORTEST {
            *self = Self { restarts: self.restarts + 1, ..Self::default() };
        }
    }

    /// The box around one of `centres` (best first; restarts move on), given the length scales of the first objective's model.
    pub(crate) fn region(&self, space: &Space, centres: &[Vec<f64>], length_scales: &[f64]) -> Region {
        let mut region = Region::whole(space);
        let Some(centre) = centres.get(self.restarts % centres.len().max(1)) else { return region };
        let logarithms = length_scales.iter().map(|scale| scale.ln()).sum::<f64>();
        let typical = (logarithms / length_scales.len() as f64).exp();
        for (at, coordinate) in space.coordinates().iter().enumerate() {
            if matches!(coordinate, Coordinate::Real | Coordinate::Level(_)) {
                let half = 0.5 * self.length * (length_scales[at] / typical).clamp(0.1, 10.0);
                region.lower[at] = (centre[at] - half).max(0.0);
                region.upper[at] = (centre[at] + half).min(1.0);
            }
        }
        region.centre = Some((centre.clone(), CHANGED));
        region
    }
}
