//! What happens: a continuous-batching engine and a fleet of them, token by token, on integer virtual time.

pub mod cluster;
pub mod engine;
pub mod fleet;
mod prefix;

pub use cluster::{ReplicaSpec, Request, Simulation, simulate};
pub use engine::{Engine, EngineConfig, EngineEvent, EngineRequest, Refused};
