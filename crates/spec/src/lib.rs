//! What boute talks about: units, catalogue, workload, latency promises, spec, plan, outcome. Strict parsing of `&str`, no I/O.

pub mod catalog;
pub mod certificate;
pub mod data_file;
pub mod digest;
pub mod file;
pub mod grid;
pub mod outcome;
pub mod parse;
pub mod plan;
mod plan_check;
pub mod policy;
pub mod score;
pub mod slo;
pub mod units;
pub mod workload;
