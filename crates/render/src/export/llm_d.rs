//! llm-d: values of its modelservice chart, a release per group, and an `InferencePool` per model for those who also run
//! its router. The chart has no field for pipeline parallelism: the engine's command is written in full instead.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::engine::{LEADER, RANK};
use super::fleet::{Fleet, Launch, Node, label};
use super::gateway::{self, Backend};
use super::kubernetes::{
    GROUP_LABEL, TOKEN_SECRET, container, leading, node_label, service, shm, tolerations,
};
use super::{ENGINE_PORT, ExportError, ExportFile, header, header_of_launch, quote, readme, yaml};

/// Version of the chart whose schema the values keep.
const CHART: &str = "0.4.12";
/// Label of the pods of a model, on all its groups.
const MODEL_LABEL: &str = "boute.dev/model";

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("llm-d")?;
    fleet.only_vllm("llm-d")?;
    let mut files = Vec::new();
    for launch in &fleet.launches {
        let header =
            format!("{}# For the chart llm-d-modelservice {CHART}.\n", header_of_launch(fleet, launch));
        let values = yaml::documents(&header, &[values(fleet, launch)?]);
        files.push(ExportFile::new(format!("values/{}.yaml", launch.name), values));
    }
    files.push(pools(fleet));
    let backends: Vec<Backend> = fleet.launches.iter().map(Backend::of).collect();
    let services = fleet
        .launches
        .iter()
        .map(|it| service(&it.name, &leading(it, json!({GROUP_LABEL: it.name}))))
        .collect();
    files.extend(gateway::files(fleet, router, &backends, services));
    files.push(readme(fleet, "Running this plan with llm-d", &instructions(fleet)));
    Ok(files)
}

fn values(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<Value, ExportError> {
    let node = node_label(fleet, launch)?;
    let mut engine = container(fleet, launch, Node::First, "vllm");
    engine["modelCommand"] = "custom".into();
    engine["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
    // The chart adds the token by the secret's name.
    engine["env"] = json!([]);
    if launch.nodes > 1 {
        // First and further nodes share a template: the command tells them apart, and no probe fits both.
        engine["command"] = json!(["sh", "-c"]);
        engine["args"] = json!([by_rank(fleet, launch)]);
        if let Some(engine) = engine.as_object_mut() {
            engine.retain(|key, _| !key.ends_with("Probe"));
        }
    }
    Ok(json!({
        "fullnameOverride": launch.name,
        "multinode": launch.nodes > 1,
        "modelArtifacts": {
            "name": launch.model.id,
            "uri": format!("hf://{}", launch.model.weights),
            "authSecretName": TOKEN_SECRET.0,
            "labels": {GROUP_LABEL: launch.name, MODEL_LABEL: label(&launch.model.id)},
        },
        "accelerator": {"type": "nvidia"},
        "routing": {"servicePort": ENGINE_PORT, "proxy": {"enabled": false}},
        "decode": {
            "create": true,
            "replicas": launch.count,
            "parallelism": {"tensor": launch.tp, "data": 1, "dataLocal": 1, "workers": launch.nodes},
            "acceleratorTypes": {"labelKey": node.key, "labelValues": [node.value]},
            "tolerations": tolerations(),
            "containers": [engine],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm(launch)}}],
        },
        "prefill": {"create": false},
    }))
}

fn by_rank(fleet: &Fleet<'_>, launch: &Launch<'_>) -> String {
    let command = |node| {
        let words: Vec<String> =
            fleet.command(launch, ENGINE_PORT, node).iter().map(|word| quote(word)).collect();
        let words = words.join(" ").replace("$(", "$$(");
        words.replace(LEADER, "'\"$LWS_LEADER_ADDRESS\"'").replace(&quote(RANK), "\"$LWS_WORKER_INDEX\"")
    };
    let (first, other) = (command(Node::First), command(Node::Other));
    format!("if [ \"$LWS_WORKER_INDEX\" = 0 ]; then exec {first}; fi\nexec {other}\n")
}

fn pools(fleet: &Fleet<'_>) -> ExportFile {
    let models: BTreeSet<String> = fleet.launches.iter().map(|launch| label(&launch.model.id)).collect();
    let pools: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({
                "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
                "metadata": {"name": model},
                "spec": {
                    "selector": {"matchLabels": {MODEL_LABEL: model}},
                    "targetPorts": [{"number": ENGINE_PORT}],
                    "endpointPickerRef": {
                        "name": format!("{model}-epp"), "port": {"number": 9002}, "failureMode": "FailOpen",
                    },
                },
            })
        })
        .collect();
    ExportFile::new("pools/inference-pools.yaml", yaml::documents(&header(fleet.plan), &pools))
}

fn instructions(fleet: &Fleet<'_>) -> String {
    let (secret, key) = TOKEN_SECRET;
    let mut text = format!(
        "The chart names the token's secret, so that it has to be there:\n\n    \
         helm repo add llm-d-modelservice https://llm-d-incubation.github.io/llm-d-modelservice\n    \
         kubectl create secret generic {secret} --from-literal={key}=...\n"
    );
    for Launch { name, .. } in &fleet.launches {
        let _ = writeln!(
            text,
            "    helm upgrade --install {name} llm-d-modelservice/llm-d-modelservice --version {CHART} -f values/{name}.yaml"
        );
    }
    format!(
        "{text}\nThe chart sets no rollout strategy: an update may wait for a GPU that the plan has not. `pools/` is for those who run the\n\
         Gateway API's inference extension with an endpoint picker per model (`MODEL-epp`); the gateway needs none of it.\n\n{}",
        gateway::instructions(fleet, gateway::ENGINES_OPEN)
    )
}
