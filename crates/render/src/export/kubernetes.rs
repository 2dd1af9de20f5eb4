//! Kubernetes' own objects: a Deployment per group, or a `LeaderWorkerSet` where a replica spans nodes, behind headless
//! services that the gateway looks up.

use serde_json::{Value, json};

use super::engine::{LEADER, RANK};
use super::fleet::{Fleet, Launch, Node};
use super::gateway::{self, Backend};
use super::nodes::NodeLabel;
use super::{ENGINE_PORT, ExportError, ExportFile, header_of_launch, readme, yaml};

/// Secret with the token for gated weights, and the key in it. It may be absent.
pub(super) const TOKEN_SECRET: (&str, &str) = ("hf-token", "HF_TOKEN");
/// Label of all pods of a group.
pub(super) const GROUP_LABEL: &str = "boute.dev/group";
/// Label that `LeaderWorkerSet` puts on every pod: its number, 0 for the one that answers.
const WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";
/// Seconds between looks at an engine that starts.
const STARTUP_PERIOD_S: u32 = 10;
/// Asked for per GPU, so that engines do not starve; nothing is limited but GPUs. Assumed.
const CPUS_PER_GPU: u32 = 4;
const MEMORY_GIB_PER_GPU: u32 = 16;
/// Shared memory per GPU for NCCL and the engine's processes. Assumed.
const SHM_GIB_PER_GPU: u32 = 4;

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("k8s")?;
    let mut files = Vec::new();
    for launch in &fleet.launches {
        files.push(engines(fleet, launch)?);
    }
    let backends: Vec<Backend> = fleet.launches.iter().map(Backend::of).collect();
    files.extend(gateway::files(fleet, router, &backends, Vec::new()));
    files.push(readme(fleet, "Running this plan on Kubernetes", &instructions(fleet)));
    Ok(files)
}

/// The engines of a group with their service and who may reach them.
pub(super) fn engines(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<ExportFile, ExportError> {
    let label = node_label(fleet, launch)?;
    let workload = if launch.nodes > 1 {
        leader_worker_set(fleet, launch, &label)
    } else {
        deployment(fleet, launch, &label)
    };
    let documents = [
        workload,
        service(&launch.name, &leading(launch, json!({GROUP_LABEL: launch.name}))),
        network_policy(launch),
    ];
    let assumed = if label.assumed {
        format!("# The value of {} is assumed: compare it with your nodes.\n", label.key)
    } else {
        String::new()
    };
    let header = header_of_launch(fleet, launch) + &assumed;
    Ok(ExportFile::new(format!("engines-{}.yaml", launch.name), yaml::documents(&header, &documents)))
}

/// # Errors
/// If whoever labels the nodes has no name for the GPU type.
pub(super) fn node_label(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<NodeLabel, ExportError> {
    let known = launch.names().and_then(|names| names.label(fleet.options.labels));
    known.ok_or_else(|| ExportError::NoName {
        gpu: launch.gpu.name.clone(),
        of: fleet.options.labels.name(),
        help: "`--labels gfd` knows all of NVIDIA's",
    })
}

/// A service of a group whose name stands for the addresses of all ready pods.
pub(super) fn service(name: &str, selector: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "boute", GROUP_LABEL: name}},
        "spec": {
            "clusterIP": "None",
            "selector": selector,
            "ports": [{"name": "http", "port": ENGINE_PORT, "targetPort": ENGINE_PORT}],
        },
    })
}

/// Adds to a selector that the pod is the one that answers for a `LeaderWorkerSet`.
pub(super) fn leading(launch: &Launch<'_>, mut labels: Value) -> Value {
    if launch.nodes > 1 {
        labels[WORKER_INDEX] = "0".into();
    }
    labels
}

fn deployment(fleet: &Fleet<'_>, launch: &Launch<'_>, label: &NodeLabel) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": metadata(launch),
        "spec": {
            "replicas": launch.count,
            // There is no spare GPU for a pod beyond the plan.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "progressDeadlineSeconds": launch.start_s() + 600,
            "selector": {"matchLabels": {GROUP_LABEL: launch.name}},
            "template": pod(fleet, launch, label, Node::First),
        },
    })
}

fn leader_worker_set(fleet: &Fleet<'_>, launch: &Launch<'_>, label: &NodeLabel) -> Value {
    json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
        "metadata": metadata(launch),
        "spec": {
            "replicas": launch.count,
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "leaderWorkerTemplate": {
                "size": launch.nodes,
                // An engine that lost a node starts again as a whole.
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": pod(fleet, launch, label, Node::First),
                "workerTemplate": pod(fleet, launch, label, Node::Other),
            },
        },
    })
}

fn metadata(launch: &Launch<'_>) -> Value {
    json!({"name": launch.name, "labels": {"app.kubernetes.io/managed-by": "boute", GROUP_LABEL: launch.name}})
}

fn pod(fleet: &Fleet<'_>, launch: &Launch<'_>, label: &NodeLabel, node: Node) -> Value {
    let mut container = container(fleet, launch, node, "engine");
    container["volumeMounts"] = json!([
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "weights", "mountPath": "/root/.cache/huggingface"},
    ]);
    json!({
        "metadata": {
            "labels": {
                "app.kubernetes.io/component": "engine",
                "app.kubernetes.io/managed-by": "boute",
                GROUP_LABEL: launch.name,
            },
            "annotations": {"boute.dev/model": launch.model.id},
        },
        "spec": {
            "automountServiceAccountToken": false,
            // A variable for every service of the namespace may stand for a setting of the engine.
            "enableServiceLinks": false,
            "nodeSelector": {label.key: label.value},
            "tolerations": tolerations(),
            "containers": [container],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm(launch)}},
                {"name": "weights", "emptyDir": {}},
            ],
        },
    })
}

/// Of nodes with GPUs.
pub(super) fn tolerations() -> Value {
    json!([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
}

/// Shared memory of one pod.
pub(super) fn shm(launch: &Launch<'_>) -> String {
    format!("{}Gi", SHM_GIB_PER_GPU * launch.gpus_per_node)
}

/// The engine as a container, without volumes.
pub(super) fn container(fleet: &Fleet<'_>, launch: &Launch<'_>, node: Node, name: &str) -> Value {
    let mut words = words(fleet, launch, node);
    let program =
        fleet.engine.command.iter().take_while(|word| !word.starts_with('-') && !word.contains('{')).count();
    let args = words.split_off(program);
    let mut container = json!({
        "name": name,
        "image": fleet.image(),
        "command": words,
        "args": args,
        "env": [token()],
        "resources": resources(launch),
    });
    if node == Node::First {
        container["ports"] = json!([{"name": "http", "containerPort": ENGINE_PORT}]);
        container["startupProbe"] = json!({
            "httpGet": health(), "periodSeconds": STARTUP_PERIOD_S, "timeoutSeconds": 5,
            "failureThreshold": launch.start_s().div_ceil(STARTUP_PERIOD_S),
        });
        container["readinessProbe"] = json!({"httpGet": health(), "periodSeconds": 5, "timeoutSeconds": 5});
        container["livenessProbe"] =
            json!({"httpGet": health(), "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6});
    }
    container
}

/// The command in the words of a pod: Kubernetes expands `$(NAME)`, so what is not ours is escaped.
pub(super) fn words(fleet: &Fleet<'_>, launch: &Launch<'_>, node: Node) -> Vec<String> {
    let words = fleet.command(launch, ENGINE_PORT, node);
    let expanded = |word: String| {
        let word = word.replace("$(", "$$(");
        if launch.nodes == 1 {
            return word;
        }
        word.replace(LEADER, "$(LWS_LEADER_ADDRESS)").replace(RANK, "$(LWS_WORKER_INDEX)")
    };
    words.into_iter().map(expanded).collect()
}

/// The token for gated weights, by reference.
pub(super) fn token() -> Value {
    let (name, key) = TOKEN_SECRET;
    json!({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": true}}})
}

/// How it is asked whether an engine is there.
pub(super) fn health() -> Value {
    json!({"path": "/health", "port": ENGINE_PORT, "scheme": "HTTP"})
}

/// What one pod takes of its node.
pub(super) fn resources(launch: &Launch<'_>) -> Value {
    let gpus = launch.gpus_per_node;
    json!({
        "requests": {
            "cpu": (CPUS_PER_GPU * gpus).to_string(),
            "memory": format!("{}Gi", MEMORY_GIB_PER_GPU * gpus),
            "nvidia.com/gpu": gpus.to_string(),
        },
        "limits": {"nvidia.com/gpu": gpus.to_string()},
    })
}

/// Engines are reached by the gateway, by the nodes of their own group, and by whoever collects metrics.
fn network_policy(launch: &Launch<'_>) -> Value {
    let group = json!({"matchLabels": {GROUP_LABEL: launch.name}});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": metadata(launch),
        "spec": {
            "podSelector": group,
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [gateway::pods(), gateway::monitoring()],
                    "ports": [{"port": ENGINE_PORT, "protocol": "TCP"}],
                },
                {"from": [{"podSelector": group}]},
            ],
        },
    })
}

fn instructions(fleet: &Fleet<'_>) -> String {
    let lws = if fleet.launches.iter().any(|launch| launch.nodes > 1) {
        "LeaderWorkerSet, for the replicas that span nodes, is installed from https://lws.sigs.k8s.io.\n"
    } else {
        ""
    };
    format!(
        "{lws}{}\nWhat changed, and undoing it:\n\n    kubectl diff --server-side -f .\n    kubectl delete -f .\n",
        gateway::instructions(
            fleet,
            "one for each group\nkeeps all but the gateway, the group itself and `monitoring` from its engines."
        )
    )
}
