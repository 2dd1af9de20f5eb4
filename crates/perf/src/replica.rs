//! A replica configuration: what a candidate of the planner is, and what a group of a plan runs.

use boute_spec::catalog::{Gpu, Model};
use boute_spec::plan::EngineFlags;

/// One replica: a model on `tp × pp` GPUs of one type, with its engine's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaConfig {
    /// The model.
    pub model: Model,
    /// The GPU type.
    pub gpu: Gpu,
    /// Tensor parallelism: GPUs that share each layer, inside a node.
    pub tp: u32,
    /// Pipeline parallelism: groups of layers.
    pub pp: u32,
    /// Engine settings.
    pub engine: EngineFlags,
}
