//! Which model answers a query, which replica of it, and with what guarantee. Pure.

pub mod balance;
pub mod certify;
pub mod decide;
pub mod eval;
mod features;
mod logistic;
pub mod policy;
pub mod queries;
pub mod scorer;

pub use features::Scratch;
pub use queries::ScoredQueries;
pub use scorer::Scorer;
