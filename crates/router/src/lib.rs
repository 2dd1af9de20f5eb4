//! Which model answers a query, which replica of it, and with what guarantee. Pure.

pub mod balance;
pub mod baselines;
pub mod cascade;
pub mod certify;
pub mod decide;
pub mod encoder;
pub mod eval;
mod features;
pub mod lengths;
mod logistic;
pub mod monitor;
pub mod policy;
pub mod queries;
mod ridge;
pub mod scorer;
mod trees;
mod vocabulary;

pub use features::Scratch;
pub use queries::ScoredQueries;
pub use scorer::Scorer;
