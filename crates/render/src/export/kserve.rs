//! `KServe`: an `LLMInferenceService` per group. Its own router is left out, the gateway takes its place, and engines speak
//! plain HTTP to it.

use serde_json::{Value, json};

use super::fleet::{Fleet, Launch, Node};
use super::gateway::{self, Backend};
use super::kubernetes::{GROUP_LABEL, container, leading, node_label, service, shm, tolerations};
use super::{ExportError, ExportFile, header_of_launch, readme, yaml};

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("kserve")?;
    fleet.only_vllm("kserve")?;
    let mut files = Vec::new();
    for launch in &fleet.launches {
        let documents = [inference_service(fleet, launch)?, service(&launch.name, &selector(launch))];
        let header = header_of_launch(fleet, launch);
        files.push(ExportFile::new(
            format!("engines-{}.yaml", launch.name),
            yaml::documents(&header, &documents),
        ));
    }
    let backends: Vec<Backend> = fleet.launches.iter().map(Backend::of).collect();
    files.extend(gateway::files(fleet, router, &backends, Vec::new()));
    files.push(readme(fleet, "Running this plan with KServe", &instructions(fleet)));
    Ok(files)
}

/// The labels that `KServe` puts on the pods of a service.
fn selector(launch: &Launch<'_>) -> Value {
    leading(launch, json!({"app.kubernetes.io/name": launch.name, "kserve.io/component": "workload"}))
}

fn inference_service(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<Value, ExportError> {
    let mut parallelism = json!({"tensor": launch.tp});
    let mut spec = json!({
        "model": {"uri": format!("hf://{}", launch.model.weights), "name": launch.model.id},
        // The engine fetches the weights itself.
        "storageInitializer": {"enabled": false},
        "replicas": launch.count,
        "rolloutStrategy": {"maxSurge": 0, "maxUnavailable": 1},
        "template": pod(fleet, launch, Node::First)?,
    });
    if launch.nodes > 1 {
        // KServe takes this for the number of nodes; the engine's own flags have the number of stages.
        parallelism["pipeline"] = launch.nodes.into();
        spec["worker"] = pod(fleet, launch, Node::Other)?;
    }
    spec["parallelism"] = parallelism;
    Ok(json!({
        "apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService",
        "metadata": {"name": launch.name, "labels": {"app.kubernetes.io/managed-by": "boute", GROUP_LABEL: launch.name}},
        "spec": spec,
    }))
}

fn pod(fleet: &Fleet<'_>, launch: &Launch<'_>, node: Node) -> Result<Value, ExportError> {
    let label = node_label(fleet, launch)?;
    // KServe knows the container by this name.
    let mut main = container(fleet, launch, node, "main");
    main["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
    Ok(json!({
        "nodeSelector": {label.key: label.value},
        "tolerations": tolerations(),
        "containers": [main],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm(launch)}}],
    }))
}

fn instructions(fleet: &Fleet<'_>) -> String {
    format!(
        "KServe 0.20 or later with LLMInferenceService, and LeaderWorkerSet for replicas that span nodes.\n\n{}",
        gateway::instructions(fleet, gateway::ENGINES_OPEN)
    )
}
