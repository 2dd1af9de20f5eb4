//! How fast one replica of a model on a GPU is: memory fit, step time, calibration.

pub mod calibration;
pub mod fit;
pub mod interval;
pub mod kernels;
pub mod memory;
mod model;
pub mod profile;
pub mod replica;
pub mod rows;
pub mod serving;
pub mod step;

pub use calibration::Calibration;
pub use memory::{FitError, MemoryFit, default_engine, memory_fit};
pub use model::{ReplicaModel, StepParts};
pub use profile::Speed;
pub use replica::{Engine, ReplicaConfig};
pub use serving::{ClosedLoop, ServingEstimate, TtftParts};
pub use step::{Batch, StepTime};
