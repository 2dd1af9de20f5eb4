//! The gateway in a cluster: it takes the plan from a mounted `ConfigMap`, and a new one when that changes, and finds its
//! replicas by looking up headless services.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boute_spec::plan::Plan;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::fleet::{Fleet, Launch};
use super::{ENGINE_PORT, ExportFile, GATEWAY_PORT, header, plan_with_router_at, yaml};

/// Port of metrics and administration.
const ADMIN_PORT: u32 = 8081;
/// Name of the deployment and its service.
const NAME: &str = "boute-gateway";
/// Where the plan is mounted, and where the router artefact is put together.
const PLAN_FOLDER: &str = "/etc/boute";
const ROUTER_FOLDER: &str = "/var/lib/boute";
/// A `ConfigMap` holds a mebibyte; the router artefact, packed, may be more.
const PART_BYTES: usize = 700_000;
/// Seconds that answers under way are given when a pod goes.
const DRAIN_S: u32 = 120;

/// A service behind which replicas of a model are.
pub(super) struct Backend {
    pub(super) model: String,
    pub(super) service: String,
}

impl Backend {
    /// Behind a service with the launch's own name.
    pub(super) fn of(launch: &Launch<'_>) -> Self {
        Self { model: launch.model.id.clone(), service: launch.name.clone() }
    }
}

/// The gateway's files; `services` are those that other objects than ours lack.
pub(super) fn files(
    fleet: &Fleet<'_>,
    router: Option<&[u8]>,
    backends: &[Backend],
    services: Vec<Value>,
) -> Vec<ExportFile> {
    let header = header(fleet.plan);
    let parts = router.filter(|_| !fleet.plan.routing.router.is_empty()).map(parts).unwrap_or_default();
    let mut documents = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(NAME), "automountServiceAccountToken": false}),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("boute-plan"),
            "data": {"plan.json": mounted_plan(fleet.plan)},
        }),
        deployment(fleet, backends, parts.len()),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(NAME),
            "spec": {"selector": labels(), "ports": [{"name": "http", "port": 80, "targetPort": GATEWAY_PORT}]},
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(NAME),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels()}},
        }),
        network_policy(),
    ];
    documents.extend(services);
    let mut files = vec![ExportFile::new("gateway.yaml", yaml::documents(&header, &documents))];
    if !parts.is_empty() {
        files.push(ExportFile::new("gateway-router.yaml", yaml::documents(&header, &parts)));
    }
    files
}

/// The gateway's pods, as a network policy names them.
pub(super) fn pods() -> Value {
    json!({"podSelector": {"matchLabels": labels()}})
}

/// Whoever collects metrics.
pub(super) fn monitoring() -> Value {
    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}})
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": NAME})
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "labels": {"app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "boute"}})
}

/// The plan as the gateway finds it.
fn mounted_plan(plan: &Plan) -> String {
    let path =
        if plan.routing.router.is_empty() { String::new() } else { format!("{ROUTER_FOLDER}/router.json") };
    format!("{}\n", plan_with_router_at(plan, &path).trim_end())
}

/// The packed router artefact, divided over as many `ConfigMap`s as it takes.
fn parts(router: &[u8]) -> Vec<Value> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail.
    let packed = packer.write_all(router).and_then(|()| packer.finish()).unwrap_or_default();
    packed
        .chunks(PART_BYTES)
        .enumerate()
        .map(|(index, part)| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(&format!("boute-router-{index}")),
                "binaryData": {format!("part-{index:02}"): STANDARD.encode(part)},
            })
        })
        .collect()
}

fn deployment(fleet: &Fleet<'_>, backends: &[Backend], parts: usize) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(NAME),
        "spec": {
            // It keeps no state: any number of them serve the same plan.
            "replicas": 2,
            "selector": {"matchLabels": labels()},
            "template": {
                // Another router is put together when a pod starts, so that it takes new pods; another plan does not.
                "metadata": {"labels": labels(), "annotations": {"boute.dev/router": fleet.plan.routing.router_digest}},
                "spec": pod(fleet, backends, parts),
            },
        },
    })
}

fn pod(fleet: &Fleet<'_>, backends: &[Backend], parts: usize) -> Value {
    let mut args = vec!["serve".to_owned(), format!("{PLAN_FOLDER}/plan.json")];
    for Backend { model, service } in backends {
        let model = model.replace("$(", "$$(");
        args.extend(["--discover".into(), format!("{model}=http://{service}:{ENGINE_PORT}")]);
    }
    args.extend(["--listen".into(), format!("0.0.0.0:{GATEWAY_PORT}")]);
    args.extend(["--admin".into(), format!("0.0.0.0:{ADMIN_PORT}")]);
    args.extend(["--drain".into(), DRAIN_S.to_string()]);
    // The root is read-only: the log of decisions is the container's, where `boute autopilot` can read it.
    args.extend(["--decisions".into(), "/dev/stdout".into()]);
    let security = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    let mut mounts = vec![json!({"name": "plan", "mountPath": PLAN_FOLDER, "readOnly": true})];
    let mut volumes = vec![json!({"name": "plan", "configMap": {"name": "boute-plan"}})];
    if parts > 0 {
        mounts.push(json!({"name": "router", "mountPath": ROUTER_FOLDER, "readOnly": true}));
        let sources: Vec<Value> =
            (0..parts).map(|index| json!({"configMap": {"name": format!("boute-router-{index}")}})).collect();
        volumes.push(json!({"name": "router", "emptyDir": {}}));
        volumes.push(json!({"name": "router-parts", "projected": {"sources": sources}}));
    }
    let mut spec = json!({
        "serviceAccountName": NAME,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": DRAIN_S + 15,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels()},
        }],
        "containers": [{
            "name": "gateway",
            "image": fleet.options.gateway_image,
            "command": ["boute"],
            "args": args,
            "ports": [{"name": "http", "containerPort": GATEWAY_PORT}, {"name": "admin", "containerPort": ADMIN_PORT}],
            "readinessProbe": {"httpGet": {"path": "/health", "port": GATEWAY_PORT}, "periodSeconds": 2},
            "livenessProbe": {"tcpSocket": {"port": GATEWAY_PORT}, "periodSeconds": 10, "failureThreshold": 6},
            "resources": {"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
            "securityContext": security,
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    if parts > 0 {
        spec["initContainers"] = json!([{
            "name": "router",
            "image": fleet.options.gateway_image,
            "command": ["sh", "-c", format!("cat /parts/* | gunzip > {ROUTER_FOLDER}/router.json")],
            "securityContext": security,
            "volumeMounts": [
                {"name": "router-parts", "mountPath": "/parts", "readOnly": true},
                {"name": "router", "mountPath": ROUTER_FOLDER},
            ],
        }]);
    }
    spec
}

/// Anyone may ask; only whoever collects metrics reaches the administration.
fn network_policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(NAME),
        "spec": {
            "podSelector": {"matchLabels": labels()},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"port": GATEWAY_PORT, "protocol": "TCP"}]},
                {"from": [monitoring()], "ports": [{"port": ADMIN_PORT, "protocol": "TCP"}]},
            ],
        },
    })
}

/// For targets whose engines are other people's pods.
pub(super) const ENGINES_OPEN: &str =
    "no policy is written for the engines: add one\nif others share the cluster.";

/// What to type for all that is applied with `kubectl`. `engines` ends a sentence: who reaches them.
pub(super) fn instructions(fleet: &Fleet<'_>, engines: &str) -> String {
    format!(
        "The gateway's image `{}` is yours to build, with the Dockerfile of boute's repository. For gated weights:\n\n    \
         kubectl create secret generic hf-token --from-literal=HF_TOKEN=...\n\n\
         Then, in the namespace of your choice (`-n`):\n\n    \
         kubectl apply --server-side -f .\n    \
         kubectl rollout status deployment/{NAME}\n    \
         kubectl port-forward service/{NAME} {GATEWAY_PORT}:80\n\n\
         It answers OpenAI's API; ask for the model `auto`. A new plan of the same groups is taken over without a restart:\n\
         export and apply again. Metrics are collected from the namespace `monitoring`, port {ADMIN_PORT} of the gateway's\n\
         pods and {ENGINE_PORT} of the engines'. A NetworkPolicy keeps others from the gateway's port {ADMIN_PORT}; {engines}\n",
        fleet.options.gateway_image
    )
}
