//! A replica configuration: what a candidate of the planner is, and what a group of a plan runs.

use boute_spec::catalog::{Gpu, Model, Source};
use boute_spec::plan::EngineFlags;

use crate::Speed;
use crate::interval::Kind;

/// The engine that runs a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// TensorRT-LLM from 1.1.
    TrtLlm,
    /// TensorRT-LLM 1.0, which keeps a new request waiting for a slot.
    TrtLlm10,
}

impl Engine {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Vllm, Self::Sglang, Self::TrtLlm, Self::TrtLlm10];

    /// As in `calibration.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TrtLlm => "trtllm",
            Self::TrtLlm10 => "trtllm_1_0",
        }
    }
}

/// One replica: a model on GPUs of one type, with its engine's settings.
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
    /// Attention data parallelism: groups of `tp` GPUs, each with its own sequences; experts are shared by all.
    pub dp: u32,
    /// Expert parallelism: ranks over which whole experts are divided, of the `tp × dp` GPUs of a stage.
    pub ep: u32,
    /// The engine.
    pub backend: Engine,
    /// Engine settings.
    pub engine: EngineFlags,
    /// How fast it was measured to be; `None` where nobody did.
    pub speed: Option<Speed>,
}

impl ReplicaConfig {
    /// A replica under vLLM, without data or expert parallelism.
    pub const fn new(model: Model, gpu: Gpu, tp: u32, pp: u32, engine: EngineFlags) -> Self {
        Self { model, gpu, tp, pp, dp: 1, ep: 1, backend: Engine::Vllm, engine, speed: None }
    }

    /// What its predictions are judged together with.
    pub fn kind(&self, source: Source) -> Kind<'_> {
        let class = if self.model.shape.moe.is_some() { "moe" } else { "dense" };
        Kind { class, engine: self.backend.name(), gpu: &self.gpu.calibration, source }
    }

    /// GPUs of the replica.
    pub const fn gpus(&self) -> u32 {
        self.tp * self.pp * self.dp
    }
}
