//! From a plan's deployment to replicas that can be simulated (and emulated).

use boute_perf::memory::FitError;
use boute_perf::{Calibration, ReplicaConfig, ReplicaModel};
use boute_router::balance::ReplicaSpeed;
use boute_spec::catalog::{Gpu, Model};
use boute_spec::plan::{Deployment, ModelShare, ReplicaGroup};

use crate::cluster::ReplicaSpec;
use crate::engine::EngineConfig;

/// Fewest sequences a replica's speed is stated at: alone, a sequence says little about how answers share a GPU.
const FEWEST_DECODES: f64 = 8.0;

/// Every replica of a deployment, group by group; a replica's model is its index in `shares`.
///
/// # Errors
/// If a group does not fit in memory.
///
/// # Panics
/// If a group's model or GPU is not listed: a checked plan lists them.
pub fn replicas(
    deployment: &Deployment,
    models: &[Model],
    gpus: &[Gpu],
    shares: &[ModelShare],
) -> Result<Vec<ReplicaSpec<ReplicaModel>>, FitError> {
    let mut specs = Vec::new();
    for group in &deployment.groups {
        let model =
            models.iter().find(|model| model.id == group.model).expect("a checked plan lists its models");
        let gpu = gpus.iter().find(|gpu| gpu.name == group.gpu).expect("a checked plan lists its GPUs");
        let Some(index) = shares.iter().position(|share| share.model == group.model) else { continue };
        let spec = replica(group, model, gpu, index, &shares[index])?;
        specs.extend(std::iter::repeat_n(spec, group.replicas as usize));
    }
    Ok(specs)
}

/// One replica of a group.
///
/// # Errors
/// If it does not fit in memory.
pub fn replica(
    group: &ReplicaGroup,
    model: &Model,
    gpu: &Gpu,
    index: usize,
    share: &ModelShare,
) -> Result<ReplicaSpec<ReplicaModel>, FitError> {
    let config = ReplicaConfig::new(model.clone(), gpu.clone(), group.tp, group.pp, group.engine.clone());
    let step_time = ReplicaModel::new(&config, Calibration::builtin())?;
    let speed = speed(&step_time, &group.engine, group.planned_rate_per_replica.get(), share);
    Ok(ReplicaSpec {
        model: index,
        config: EngineConfig::new(&group.engine, group.kv_cache_tokens),
        speed,
        request_time: step_time.request_time(),
        step_time,
        expected_output_tokens: share.mean_answer_tokens.round().max(1.0) as u32,
    })
}

/// What the balancer knows of a replica: its speed at the load it is planned to carry. By Little's law b sequences decode
/// at once when b = rate · answer · step(b).
fn speed(
    model: &ReplicaModel,
    engine: &boute_spec::plan::EngineFlags,
    rate: f64,
    share: &ModelShare,
) -> ReplicaSpeed {
    let (prompt, answer) = (share.mean_prompt_tokens.max(1.0), share.mean_answer_tokens.max(1.0));
    let context = (prompt + answer / 2.0) as u64;
    let mut decodes = FEWEST_DECODES;
    for _ in 0..30 {
        let step_s = model.decode_step_s(decodes as u64, context);
        decodes = (rate * answer * step_s).clamp(FEWEST_DECODES, f64::from(engine.max_num_seqs));
    }
    let step_s = model.decode_step_s(decodes as u64, context);
    ReplicaSpeed {
        prompt_tokens_per_s: model.prompt_tokens_per_s(prompt as u32),
        answer_tokens_per_s: decodes.floor() / step_s,
        seconds_per_answer_token: step_s,
    }
}
