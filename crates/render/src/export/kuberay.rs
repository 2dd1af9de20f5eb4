//! `KubeRay`: a `RayService` per group. A `model_id` of Ray Serve has one shape, and a model may have several here.

use serde_json::{Map, Value, json};

use super::fleet::{Fleet, Launch};
use super::gateway::{self, Backend};
use super::helm::number_or_text;
use super::kubernetes::{GROUP_LABEL, node_label, resources, shm, token, tolerations};
use super::{ExportError, ExportFile, header, readme, yaml};

/// Version of Ray, and the image that has it with Ray Serve's LLM parts and a vLLM of its own. Assumed current.
const RAY: &str = "2.52.0";
const IMAGE: &str = "rayproject/ray-llm:2.52.0-py311-cu128";

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("kuberay")?;
    fleet.only_vllm("kuberay")?;
    let mut files = Vec::new();
    for launch in &fleet.launches {
        let lines = format!("{}# Ray {RAY} brings its own vLLM.\n# {}\n", header(fleet.plan), launch.words());
        let service = yaml::documents(&lines, &[ray_service(fleet, launch)?]);
        files.push(ExportFile::new(format!("engines-{}.yaml", launch.name), service));
    }
    // KubeRay makes this service; Ray Serve balances behind it.
    let backends = fleet.launches.iter().map(|launch| Backend {
        model: launch.model.id.clone(),
        service: format!("{}-serve-svc", launch.name),
    });
    files.extend(gateway::files(fleet, router, &backends.collect::<Vec<_>>(), Vec::new()));
    files.push(readme(fleet, "Running this plan with KubeRay", &instructions(fleet)));
    Ok(files)
}

fn ray_service(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<Value, ExportError> {
    let label = node_label(fleet, launch)?;
    let image = fleet.options.image.as_deref().unwrap_or(IMAGE);
    let token = token();
    let pods = launch.count * launch.nodes;
    Ok(json!({
        "apiVersion": "ray.io/v1", "kind": "RayService",
        "metadata": {"name": launch.name, "labels": {"app.kubernetes.io/managed-by": "boute", GROUP_LABEL: launch.name}},
        "spec": {
            // A second cluster for an update would need the GPUs twice.
            "upgradeStrategy": {"type": "None"},
            "serveConfigV2": serve_config(fleet, launch)?,
            "rayClusterConfig": {
                "rayVersion": RAY,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                    "template": {"spec": {"containers": [{
                        "name": "ray-head", "image": image, "env": [token],
                        "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
                    }]}},
                },
                "workerGroupSpecs": [{
                    "groupName": "engines",
                    "replicas": pods, "minReplicas": pods, "maxReplicas": pods,
                    "rayStartParams": {"num-gpus": launch.gpus_per_node.to_string()},
                    "template": {"spec": {
                        "nodeSelector": {label.key: label.value},
                        "tolerations": tolerations(),
                        "containers": [{
                            "name": "ray-worker", "image": image, "env": [token], "resources": resources(launch),
                            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                        }],
                        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm(launch)}}],
                    }},
                }],
            },
        },
    }))
}

fn serve_config(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<String, ExportError> {
    let accelerator = launch.names().and_then(|names| names.ray.as_deref());
    let accelerator = accelerator.ok_or_else(|| ExportError::NoName {
        gpu: launch.gpu.name.clone(),
        of: "Ray",
        help: "`boute export k8s` needs no name of Ray's",
    })?;
    let config = json!({"applications": [{
        "name": "llm",
        "import_path": "ray.serve.llm:build_openai_app",
        "route_prefix": "/",
        "args": {"llm_configs": [{
            "model_loading_config": {"model_id": launch.model.id, "model_source": launch.model.weights},
            "accelerator_type": accelerator,
            "engine_kwargs": engine_kwargs(&fleet.settings(launch)),
            "deployment_config": {"num_replicas": launch.count},
        }]},
    }]});
    Ok(yaml::documents("", &[config]))
}

/// vLLM's flags as arguments of its engine in Python. Ray names the model itself.
fn engine_kwargs(flags: &[String]) -> Value {
    let mut arguments = Map::new();
    let mut words = flags.iter().peekable();
    while let Some(word) = words.next() {
        let flag = word.trim_start_matches('-');
        let value = words.next_if(|next| !next.starts_with("--"));
        if flag == "served-model-name" {
            continue;
        }
        let (name, value) = match (flag.strip_prefix("no-"), value) {
            (Some(name), None) => (name, false.into()),
            (None, None) => (flag, true.into()),
            (_, value) => (flag, number_or_text(value)),
        };
        arguments.insert(name.replace('-', "_"), value);
    }
    arguments.into()
}

fn instructions(fleet: &Fleet<'_>) -> String {
    format!(
        "The KubeRay operator 1.7 or later. Ray Serve balances the replicas of a group, and the gateway the groups.\n\n{}",
        gateway::instructions(fleet, gateway::ENGINES_OPEN)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_arguments() {
        let flags =
            ["--served-model-name", "m", "--tensor-parallel-size", "4", "--gpu-memory-utilization", "0.9"];
        let more = ["--no-enable-prefix-caching", "--dtype", "bfloat16"];
        let flags: Vec<String> = flags.iter().chain(&more).map(|word| (*word).to_owned()).collect();
        let want = json!({
            "tensor_parallel_size": 4, "gpu_memory_utilization": 0.9, "enable_prefix_caching": false, "dtype": "bfloat16",
        });
        assert_eq!(engine_kwargs(&flags), want);
    }
}
