//! Pure views of checked data: texts for the terminal, a page to look at, files that run a plan.

pub mod comparison;
mod engines;
pub mod export;
mod fixture;
pub mod report;
pub mod router;
mod svg;
pub mod terminal;

use serde::Serialize;

/// What one strategy came to, scored on the same traffic and queries as the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StrategyRow {
    /// Its name.
    pub strategy: String,
    /// Rent; `None` if it found no plan.
    pub cost_usd_per_hour: Option<f64>,
    /// Mean score on held-out queries.
    pub quality: Option<f64>,
    /// 95th percentile of E2E on the verification window.
    pub e2e_p95_ms: Option<f64>,
    /// Whether every promise held.
    pub met: bool,
    /// The fleet in words, or why there is none.
    pub fleet: String,
}
