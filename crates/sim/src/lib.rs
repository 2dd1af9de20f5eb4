//! What happens: a continuous-batching engine and a fleet of them, token by token, on integer virtual time.

pub mod cluster;
pub mod engine;
pub mod fleet;
pub mod linear;
mod prefix;

pub use cluster::{
    Disaggregation, ReplicaSpec, Request, Simulation, Totals, simulate, simulate_balanced,
    simulate_closed_loop, simulate_each,
};
pub use engine::{Engine, EngineConfig, EngineEvent, EngineRequest, Refused};
pub use linear::{InvalidStepTime, LinearStepTime, StepLimits};
