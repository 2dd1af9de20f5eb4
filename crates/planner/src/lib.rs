//! The co-optimisation: which models on which GPUs with which parallelism, and which query to which model.
//!
//! 1. [`candidates`]: replica configurations that fit.
//! 2. [`table`]: how each does at each load, by simulation.
//! 3. [`routing`]: divisions of the load, and which of them keep the quality floor.
//! 4. [`deployment`]: the exact fleet for a division; [`search`]: the sweep over divisions, and the baselines.
//! 5. [`verify`]: the whole fleet on other traffic and held-out queries; where the table was optimistic, plan for more
//!    and solve again.
//! 6. [`score`]: what a plan is worth on traffic that it was neither made nor repaired on.
//! 7. [`replan`]: the same again for a fleet that runs, with the cost of moving; [`autopilot`]: when to ask, and what then.

pub mod assemble;
mod attribution;
pub mod autopilot;
pub mod candidates;
mod cascade;
pub mod database;
pub mod deployment;
mod disaggregate;
mod explain;
pub mod forecast;
mod infeasible;
pub mod mix;
pub mod moving;
mod neighbours;
mod plan;
pub mod problem;
pub mod rents;
pub mod replan;
mod resume;
pub mod routing;
mod schedule;
pub mod score;
pub mod search;
mod standing;
pub mod strategies;
pub mod table;
mod uphold;
pub mod verify;

pub use attribution::Lever;
pub use database::{Database, Shelf};
pub use explain::{
    Alternative, ExplainError, Explanation, Question, RunnerUp, Scenario, Verdict, WhyNot, explain,
};
pub use infeasible::{Infeasible, Relaxation};
pub use plan::{PlanError, Prepared, StrategyResult, compare, plan, resume};
pub use problem::{GpuOffer, Problem, Progress, QualityInputs, Step, available_share};
pub use strategies::Strategy;
