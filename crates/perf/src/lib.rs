//! How fast one replica of a model on a GPU is: memory fit, step time, calibration.

pub mod calibration;
pub mod memory;
mod model;
pub mod replica;
pub mod step;

pub use calibration::Calibration;
pub use memory::{FitError, MemoryFit, default_engine, memory_fit};
pub use model::ReplicaModel;
pub use replica::ReplicaConfig;
pub use step::{Batch, StepTime};
