//! How fast one replica of a model on a GPU is: memory fit, step time, calibration.

pub mod replica;
pub mod step;

pub use replica::ReplicaConfig;
pub use step::{Batch, StepTime};
