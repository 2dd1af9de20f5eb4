//! From a plan's deployment to replicas that can be simulated (and emulated).

use boute_perf::memory::FitError;
use boute_perf::{Calibration, ReplicaConfig, ReplicaModel};
use boute_router::balance::ReplicaSpeed;
use boute_spec::catalog::{Gpu, Model};
use boute_spec::plan::{Deployment, Disaggregated, EngineFlags, ModelShare, ReplicaGroup};
use boute_spec::units::SimTime;

use crate::cluster::{Disaggregation, ReplicaSpec};
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
        let Some(index) = shares.iter().position(|share| share.model == group.model) else { continue };
        let spec = replica_of(group, model, gpus, index, &shares[index])?;
        specs.extend(std::iter::repeat_n(spec, group.replicas as usize));
    }
    Ok(specs)
}

/// One replica of a group, disaggregated or not.
///
/// Every GPU sends and receives its own part of a KV cache over its own network link, and the slower side decides:
/// ```text
/// transfer of a prompt token = max over both sides of (its KV cache on one GPU, B) / (network link of one GPU, B/s)
/// ```
/// Setting up a transfer takes no time, and the state of linear attention is not counted (assumed).
///
/// # Errors
/// If an engine does not fit in memory.
///
/// # Panics
/// If a GPU of the group is not listed: a checked plan lists them.
pub fn replica_of(
    group: &ReplicaGroup,
    model: &Model,
    gpus: &[Gpu],
    index: usize,
    share: &ModelShare,
) -> Result<ReplicaSpec<ReplicaModel>, FitError> {
    let named = |name: &str| gpus.iter().find(|gpu| gpu.name == name).expect("a checked plan lists its GPUs");
    let gpu = named(&group.gpu);
    let spec = replica(group, model, gpu, index, share)?;
    let Some(Disaggregated { decode_instances, prefill }) = &group.disaggregated else { return Ok(spec) };
    let prefill_gpu = named(&prefill.gpu);
    let step_time = engine_model(model, prefill_gpu, (prefill.tp, prefill.pp), &prefill.engine)?;
    let prompts = step_time.prompt_tokens_per_s(share.mean_prompt_tokens.max(1.0) as u32);
    let seconds = |side: &ReplicaModel, gpu: &Gpu| side.memory().kv_bytes_per_token / gpu.network_bytes_per_s;
    let transfer_s = seconds(&step_time, prefill_gpu).max(seconds(&spec.step_time, gpu));
    Ok(ReplicaSpec {
        speed: ReplicaSpeed {
            prompt_tokens_per_s: prompts * f64::from(prefill.instances),
            answer_tokens_per_s: spec.speed.answer_tokens_per_s * f64::from(*decode_instances),
            ..spec.speed
        },
        disaggregated: Some(Disaggregation {
            decode_instances: *decode_instances,
            prefill_instances: prefill.instances,
            config: EngineConfig::new(&prefill.engine, prefill.kv_cache_tokens),
            step_time,
            transfer_time: SimTime::from_seconds(transfer_s),
        }),
        ..spec
    })
}

/// One replica of a group; of a disaggregated one, an engine that decodes.
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
    let step_time = engine_model(model, gpu, (group.tp, group.pp), &group.engine)?;
    let decode_instances = group.disaggregated.as_ref().map_or(1, |it| it.decode_instances);
    let rate = group.planned_rate_per_replica.get() / f64::from(decode_instances);
    let speed = speed(&step_time, &group.engine, rate, share);
    Ok(ReplicaSpec {
        model: index,
        config: EngineConfig::new(&group.engine, group.kv_cache_tokens),
        speed,
        request_time: step_time.request_time(),
        step_time,
        expected_output_tokens: share.mean_answer_tokens.round().max(1.0) as u32,
        disaggregated: None,
    })
}

fn engine_model(
    model: &Model,
    gpu: &Gpu,
    (tp, pp): (u32, u32),
    engine: &EngineFlags,
) -> Result<ReplicaModel, FitError> {
    let config = ReplicaConfig::new(model.clone(), gpu.clone(), tp, pp, engine.clone());
    ReplicaModel::new(&config, Calibration::builtin())
}

/// What the balancer knows of a replica: its speed at the load it is planned to carry. By Little's law b sequences decode
/// at once when b = rate · answer · step(b).
fn speed(model: &ReplicaModel, engine: &EngineFlags, rate: f64, share: &ModelShare) -> ReplicaSpeed {
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
