//! Outputs as the model sees them.

use serde::{Deserialize, Serialize};

/// A monotone change of an output before it is standardised and modelled.
///
/// Hypervolume improvement is counted in the changed objectives; reported hypervolumes are always in the raw ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// As it is.
    #[default]
    None,
    /// ln y, for positive outputs with ratios that matter.
    Log,
    /// ln (y / (1 − y)), for shares.
    Logit,
}

impl Transform {
    /// The changed value; `None` outside the domain.
    pub fn apply(self, y: f64) -> Option<f64> {
        let changed = match self {
            Self::None => y,
            Self::Log => y.ln(),
            Self::Logit => (y / (1.0 - y)).ln(),
        };
        changed.is_finite().then_some(changed)
    }

    /// Derivative at `y`, to carry small noise over (delta method).
    pub fn slope(self, y: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Log => 1.0 / y,
            Self::Logit => 1.0 / (y * (1.0 - y)),
        }
    }
}

/// Zero mean and unit variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Standard {
    mean: f64,
    deviation: f64,
}

impl Standard {
    /// Of these values; a constant keeps its scale.
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        // Scaled by the largest, so that squares of huge values stay finite.
        let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let unit = if largest > 0.0 { largest } else { 1.0 };
        let mean = values.iter().map(|value| value / unit).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value / unit - mean).powi(2)).sum();
        let deviation = (squares / (n - 1.0).max(1.0)).sqrt();
        // Differences of rounding size are none.
        let deviation = if deviation > 1e-14 { deviation * unit } else { unit };
        Self { mean: mean * unit, deviation }
    }

    /// A value in standard units.
    pub(crate) fn apply(self, value: f64) -> f64 {
        (value - self.mean) / self.deviation
    }

    /// A variance in standard units.
    pub(crate) fn variance(self, variance: f64) -> f64 {
        variance / self.deviation / self.deviation
    }
}
