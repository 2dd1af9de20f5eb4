//! Values of vLLM production-stack's chart: a `modelSpec` per group. Its router is left out, the gateway takes its place.
//! The chart runs a replica over nodes only on Ray; such groups are a `LeaderWorkerSet` beside it.

use serde_json::{Map, Value, json};

use super::fleet::{Fleet, Launch};
use super::gateway::{self, Backend};
use super::kubernetes::{self, TOKEN_SECRET, engines, node_label, resources, service, shm, tolerations};
use super::{ExportError, ExportFile, header_of, readme, yaml};

/// Version of the chart whose schema the values keep.
const CHART: &str = "0.1.12";
/// Flags that the chart has settings for.
const SETTINGS: [(&str, &str); 5] = [
    ("--tensor-parallel-size", "tensorParallelSize"),
    ("--max-num-seqs", "maxNumSeqs"),
    ("--max-model-len", "maxModelLen"),
    ("--gpu-memory-utilization", "gpuMemoryUtilization"),
    ("--dtype", "dtype"),
];

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("helm")?;
    fleet.only_vllm("helm")?;
    let mut files = Vec::new();
    let (mut models, mut services) = (Vec::new(), Vec::new());
    for launch in &fleet.launches {
        if launch.nodes > 1 {
            files.push(engines(fleet, launch)?);
        } else {
            models.push(model(fleet, launch)?);
            services.push(service(&launch.name, &json!({"model": launch.name})));
        }
    }
    files.insert(0, values(fleet, &models));
    let backends: Vec<Backend> = fleet.launches.iter().map(Backend::of).collect();
    files.extend(gateway::files(fleet, router, &backends, services));
    files.push(readme(fleet, "Running this plan with vLLM production-stack", &instructions(fleet)));
    Ok(files)
}

fn values(fleet: &Fleet<'_>, models: &[Value]) -> ExportFile {
    // One probe for all: the slowest decides.
    let slowest = fleet.launches.iter().map(Launch::start_s).max().unwrap_or_default();
    let values = json!({
        "servingEngineSpec": {
            "enableEngine": !models.is_empty(),
            "modelSpec": models,
            "runtimeClassName": "",
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "startupProbe": {
                "httpGet": {"path": "/health", "port": super::ENGINE_PORT},
                "periodSeconds": 10,
                "failureThreshold": slowest.div_ceil(10),
            },
            "tolerations": tolerations(),
        },
        "routerSpec": {"enableRouter": false},
    });
    let header = format!("{}# For the chart vllm-stack {CHART}.\n", header_of(fleet));
    ExportFile::new("values/values.yaml", yaml::documents(&header, &[values]))
}

fn model(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<Value, ExportError> {
    let label = node_label(fleet, launch)?;
    let (repository, tag) = image_parts(fleet.image());
    let requests = &resources(launch)["requests"];
    Ok(json!({
        "name": launch.name,
        "repository": repository,
        "tag": tag,
        "modelURL": launch.model.weights,
        "replicaCount": launch.count,
        "requestCPU": requests["cpu"].as_str().and_then(|cpus| cpus.parse::<u32>().ok()),
        "requestMemory": requests["memory"],
        "requestGPU": launch.gpus_per_node,
        "shmSize": shm(launch),
        "nodeSelectorTerms": [{"matchExpressions": [{"key": label.key, "operator": "In", "values": [label.value]}]}],
        "hf_token": {"secretName": TOKEN_SECRET.0, "secretKey": TOKEN_SECRET.1},
        "vllmConfig": config(&fleet.settings(launch), launch.prefix_caching),
    }))
}

/// The flags as the chart's settings where it has them; it writes the one for prefix caching in any case.
fn config(flags: &[String], prefix_caching: bool) -> Value {
    let mut config = Map::from_iter([("enablePrefixCaching".to_owned(), prefix_caching.into())]);
    let mut extra = Vec::new();
    let mut words = flags.iter();
    while let Some(word) = words.next() {
        if let Some((_, setting)) = SETTINGS.iter().find(|(flag, _)| flag == word) {
            config.insert((*setting).to_owned(), number_or_text(words.next()));
        } else if !word.ends_with("enable-prefix-caching") {
            extra.push(Value::from(word.as_str()));
        }
    }
    config.insert("extraArgs".into(), extra.into());
    config.into()
}

/// What follows a flag.
pub(super) fn number_or_text(word: Option<&String>) -> Value {
    let word = word.map(String::as_str).unwrap_or_default();
    match (word.parse::<u64>(), word.parse::<f64>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(number)) => number.into(),
        _ => word.into(),
    }
}

/// `registry:5000/a/b:tag` → `registry:5000/a/b`, `tag`.
fn image_parts(image: &str) -> (&str, &str) {
    image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"))
}

fn instructions(fleet: &Fleet<'_>) -> String {
    let (secret, key) = kubernetes::TOKEN_SECRET;
    let engines = if fleet.launches.iter().any(|launch| launch.nodes > 1) {
        "of the engines\nonly groups that span nodes have one: add another for the chart's if others share the cluster."
    } else {
        gateway::ENGINES_OPEN
    };
    format!(
        "    helm repo add vllm https://vllm-project.github.io/production-stack\n    \
         kubectl create secret generic {secret} --from-literal={key}=...\n    \
         helm upgrade --install fleet vllm/vllm-stack --version {CHART} -f values/values.yaml\n\n{}",
        gateway::instructions(fleet, engines)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_two_parts() {
        assert_eq!(image_parts("vllm/vllm-openai:v0.33.0"), ("vllm/vllm-openai", "v0.33.0"));
        assert_eq!(image_parts("registry:5000/vllm"), ("registry:5000/vllm", "latest"));
    }
}
