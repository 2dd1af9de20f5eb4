//! `boute export` as a user meets it: scripts that run, metrics that exist, and folders that change.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boute_spec::plan::{Plan, PlanDraft};
use boute_spec::policy::RoutingPolicy;
use boute_spec::units::{Fraction, UsdPerHour};
use serde_json::Value;

use crate::fixture;
use crate::serve::{exchange, free_port, get};
use crate::{Folder, boute, refused, text};

/// A small and a large model, one replica each, on two hosts; `auto` is the small one.
fn two_host_plan() -> Plan {
    let mut draft = PlanDraft::from(fixture::plan());
    let small = &mut draft.deployment.groups[0];
    (small.replicas, small.usd_per_hour) = (1, UsdPerHour::new(1.0).unwrap());
    draft.routing.policy = RoutingPolicy::Constant { model: small.model.clone() };
    draft.routing.models.truncate(1);
    draft.routing.models[0].load_fraction = Fraction::new(1.0).unwrap();
    (draft.routing.router, draft.routing.router_digest) = (String::new(), String::new());
    draft.predicted.cost_usd_per_hour = UsdPerHour::new(draft.deployment.usd_per_hour()).unwrap();
    Plan::try_from(draft).unwrap()
}

fn plan_file(folder: &Folder, plan: &Plan) -> String {
    folder.file("plan.json", &plan.to_json_pretty())
}

/// Stands for vLLM: an emulated replica of the model that is asked for, at the port that is asked for.
const STUB: &str = r#"#!/bin/sh
set -eu
[ "$1" = serve ] || exit 9
shift 2
while [ $# -gt 0 ]; do
  case "$1" in
    --served-model-name) model="$2"; shift 2 ;;
    --tensor-parallel-size) tp="$2"; shift 2 ;;
    --pipeline-parallel-size) pp="$2"; shift 2 ;;
    --max-model-len) longest="$2"; shift 2 ;;
    --port) port="$2"; shift 2 ;;
    *) shift ;;
  esac
done
case "$model" in *8b) gpu=L40S ;; *) gpu=H100-SXM ;; esac
echo "$gpu $CUDA_VISIBLE_DEVICES" >> "$STARTED"
exec boute mock --model "$model" --gpu "$gpu" --tp "$tp" --pp "${pp:-1}" --max-model-len "$longest" --time-scale 50 \
  --listen "127.0.0.1:$port"
"#;

/// A script that is stopped, with what it started, when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn the_scripts_run_and_the_dashboard_asks_for_metrics_that_exist() {
    let folder = Folder::new("export-run");
    let plan = plan_file(&folder, &two_host_plan());
    let run = folder.path("run");
    assert_eq!(boute(&["export", "shell", &plan, "-o", &run]).status.code(), Some(0));
    let bin = folder.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_boute"), format!("{bin}/boute")).unwrap();
    let stub = folder.file("bin/vllm", STUB);
    fs::set_permissions(stub, fs::Permissions::from_mode(0o755)).unwrap();
    // The ports of the scripts may be taken here.
    let scripts = ["engines-l40s-0.sh", "engines-h100-sxm-0.sh", "gateway.sh"];
    let ports = [("8001", free_port().to_string()), ("8002", free_port().to_string())];
    for script in scripts {
        let path = format!("{run}/{script}");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, ports.iter().fold(text, |text, (from, to)| text.replace(from, to))).unwrap();
    }
    let port = free_port();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let decisions = folder.path("decisions.jsonl");
    // The gateway serves the plan that an autopilot keeps true, not its copy.
    fs::write(format!("{run}/plan.json"), "a plan of before").unwrap();
    let running = scripts.map(|script| {
        let mut command = Command::new(format!("{run}/{script}"));
        command.env("PATH", &path).env("STARTED", folder.path("started")).env("PORT", port.to_string());
        if script == "gateway.sh" {
            // As it logs in a cluster.
            command.env("PLAN", &plan).args(["--decisions", "/dev/stdout"]);
            command.stdout(fs::File::create(&decisions).unwrap());
        }
        Running(command.stderr(Stdio::null()).spawn().unwrap())
    });
    let started = Instant::now();
    while !get(port, "/health", "").contains("\"replicas_well\":2") {
        assert!(started.elapsed() < Duration::from_mins(1), "the gateway is not up within a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (asked, answers) in [("auto", "llama-3.1-8b"), ("llama-3.1-70b", "llama-3.1-70b")] {
        let body =
            format!(r#"{{"model":"{asked}","max_tokens":8,"messages":[{{"role":"user","content":"hi"}}]}}"#);
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length:";
        let answer = exchange(port, &format!("{head} {}\r\n\r\n{body}", body.len()));
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("x-boute-model: {answers}")),
            "{answer}"
        );
    }
    let devices = fs::read_to_string(folder.path("started")).unwrap();
    let devices: BTreeSet<&str> = devices.lines().collect();
    assert_eq!(devices, BTreeSet::from(["L40S 0", "H100-SXM 0,1,2,3,4,5,6,7"]));
    let metrics = get(port + 1, "/metrics", "");
    drop(running);
    assert_eq!(fs::read_to_string(&decisions).unwrap().lines().count(), 2);

    let watch = folder.path("watch");
    assert_eq!(boute(&["export", "grafana", &plan, "-o", &watch]).status.code(), Some(0));
    let dashboard = fs::read_to_string(format!("{watch}/dashboard.json")).unwrap();
    assert!(serde_json::from_str::<Value>(&dashboard).is_ok());
    let alerts = fs::read_to_string(format!("{watch}/alerts.yaml")).unwrap();
    let both = dashboard + &alerts;
    let asked_for = metric_names(&both);
    assert!(asked_for.len() > 15, "{asked_for:?}");
    for name in asked_for {
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let known = metrics.contains(&format!("# TYPE {base} ")) || metrics.contains(&format!("{name}=\""));
        // Only a plan with a certificate has this one.
        assert!(known || name == "boute_certificate_void", "the gateway has no `{name}`");
    }
    for edge in alerts.split("le=~\\\"").skip(1) {
        let edge = edge.split(['|', '\\']).next().unwrap();
        assert!(metrics.contains(&format!("le=\"{edge}\"")), "no bucket ends at {edge}");
    }
}

/// Stands for kubectl: two gateways run, of which each has decided once; what is asked is written down.
const KUBECTL: &str = r#"#!/bin/sh
echo "$*" >> "$ASKED"
case "$*" in
  *" get pods "*) printf 'pod/g-1\npod/g-2\n' ;;
  *" logs "*) echo '{"timestamp":1}'; exec sleep 60 ;;
  *" port-forward "*) exec sleep 60 ;;
  *" api-resources "*) echo leaderworkersets.leaderworkerset.x-k8s.io ;;
esac
"#;

#[test]
fn an_autopilot_beside_a_cluster_reaches_it() {
    let folder = Folder::new("export-cluster");
    let plan = plan_file(&folder, &two_host_plan());
    let bin = folder.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_boute"), format!("{bin}/boute")).unwrap();
    fs::set_permissions(folder.file("bin/kubectl", KUBECTL), fs::Permissions::from_mode(0o755)).unwrap();
    let asked = folder.path("asked");
    let script = |verb: &str| {
        let mut command =
            Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/autopilot-k8s.sh"));
        command.arg(verb).current_dir(folder.path("")).env("ASKED", &asked).env("NAMESPACE", "llm");
        command.env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()));
        command.env("EVERY_S", "0.1").env("SETTLE_S", "0").stderr(Stdio::null());
        command
    };
    let told = || fs::read_to_string(&asked).unwrap_or_default();

    // A fleet is applied, and what is left of another is deleted.
    assert!(script("fleet").env("BOUTE_PLAN", &plan).status().unwrap().success());
    let kinds = "deployments,services,networkpolicies,leaderworkersets.leaderworkerset.x-k8s.io";
    let groups = "llama-3-1-70b-h100-sxm-tp4-pp2,llama-3-1-8b-l40s-tp1";
    let other = format!("-l boute.dev/group,boute.dev/group notin ({groups})");
    assert!(told().contains("-n llm apply --server-side -f cluster/fleet\n"), "{}", told());
    assert!(told().contains(&format!("-n llm delete {kinds} {other}\n")), "{}", told());

    // Decisions come; the plan goes, and goes again when it is another.
    let within = |what: &str, holds: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}: {}", told());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let running = Running(script("follow").spawn().unwrap());
    let published = || told().matches("apply --server-side -f cluster/routes/gateway.yaml\n").count();
    let decisions = folder.path("decisions.jsonl");
    let decided = || fs::read_to_string(&decisions).unwrap_or_default().lines().count();
    within("decisions of both gateways", &|| decided() == 2);
    within("the plan is published", &|| published() == 1);
    let looks = told().matches(" get pods ").count();
    within("looks go on", &|| told().matches(" get pods ").count() > looks + 2);
    assert_eq!((published(), decided()), (1, 2), "{}", told());
    plan_file(&folder, &fixture::one_gpu_plan());
    within("another plan is published", &|| published() == 2);
    drop(running);
    let left = |name: &str| {
        let pid = fs::read_to_string(folder.path(&format!("cluster/running/{name}"))).unwrap();
        fs::read_to_string(format!("/proc/{}/comm", pid.trim())).is_ok_and(|comm| comm.trim() == "sleep")
    };
    within("nothing is left", &|| !["g-1", "g-2", "admin"].iter().any(|name| left(name)));
}

/// Words in `text` that look like a metric, or a label, of the gateway.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("boute_") || word.starts_with("gen_ai_")).collect()
}

#[test]
fn exports_are_checked_compared_and_replaced() {
    let folder = Folder::new("export-diff");
    let plan = plan_file(&folder, &two_host_plan());
    let out = folder.path("out");
    let checked = boute(&["export", "k8s", &plan, "--check"]);
    assert!(
        checked.status.success() && text(&checked.stderr).contains("gateway.yaml"),
        "{}",
        text(&checked.stderr)
    );
    assert!(!fs::exists("gateway.yaml").unwrap());
    for target in ["shell", "compose", "skypilot", "helm", "llm-d", "kserve", "kuberay", "grafana", "k8s"] {
        let out = folder.path(target);
        assert_eq!(boute(&["export", target, &plan, "-o", &out]).status.code(), Some(0), "{target}");
        let same = boute(&["export", target, &plan, "--diff", &out]);
        assert_eq!((same.status.code(), text(&same.stdout)), (Some(0), String::new()), "{target}");
    }

    let before = boute(&["export", "k8s", &plan, "-o", &out, "--json"]);
    let files: Value = serde_json::from_slice(&before.stdout).unwrap();
    assert!(
        files["files"].as_array().unwrap().len() >= 4
            && files["no_longer_part"].as_array().unwrap().is_empty()
    );
    let other = plan_file(&folder, &fixture::one_gpu_plan());
    let difference = boute(&["export", "k8s", &other, "--diff", &out]);
    let said = text(&difference.stdout);
    assert_eq!(difference.status.code(), Some(1));
    assert!(said.contains("gateway.yaml, line 1:\n- # Written by boute"), "{said}");
    assert!(said.contains("engines-llama-3-1-70b-h100-sxm-tp4-pp2.yaml: no longer part of it"), "{said}");
    let written = boute(&["export", "k8s", &other, "-o", &out]);
    assert!(text(&written.stderr).contains("no longer part of it, remove: "), "{}", text(&written.stderr));

    // All of one target's files are left when another is exported to its folder; a filled in `.env` is the user's.
    let plan = folder.file("two-hosts.json", &two_host_plan().to_json_pretty());
    for target in ["compose", "llm-d", "grafana"] {
        let out = folder.path(&format!("was-{target}"));
        let wrote = boute(&["export", target, &plan, "-o", &out, "--json"]);
        let wrote: Value = serde_json::from_slice(&wrote.stdout).unwrap();
        let short = |path: &Value| path.as_str().unwrap()[out.len() + 1..].to_owned();
        let mut wrote: Vec<String> = wrote["files"].as_array().unwrap().iter().map(short).collect();
        if target == "compose" {
            fs::copy(format!("{out}/env.example"), format!("{out}/.env")).unwrap();
        }
        let now = boute(&["export", "k8s", &plan, "-o", &out, "--json"]);
        let now: Value = serde_json::from_slice(&now.stdout).unwrap();
        let now_files: Vec<String> = now["files"].as_array().unwrap().iter().map(short).collect();
        wrote.retain(|path| !now_files.contains(path));
        wrote.sort();
        assert!(!wrote.is_empty());
        assert_eq!(now["no_longer_part"], serde_json::json!(wrote), "{target}");
    }
    // The user's own plan, beside which an export is written, is none of it.
    let beside = boute(&["export", "k8s", &plan, "-o", &folder.path(""), "--json"]);
    let beside: Value = serde_json::from_slice(&beside.stdout).unwrap();
    assert_eq!(beside["no_longer_part"], serde_json::json!([]));

    let sglang = boute(&[
        "export",
        "k8s",
        &other,
        "--engine",
        "sglang",
        "--image",
        "me/sglang:1",
        "--check",
        "--json",
    ]);
    assert!(sglang.status.success());
    assert!(
        refused(2, &["export", "helm", &other, "--engine", "sglang", "--check"]).contains("runs vLLM only")
    );
    assert!(
        refused(2, &["export", "k8s", &other, "--engine", "vlm", "--check"]).contains("one of vllm, sglang")
    );
    assert!(
        refused(2, &["export", "k8s", &other, "--labels", "gke", "--check"]).contains("no known name in gke")
    );
    assert!(refused(2, &["export", "k8s", &other]).contains("--output"));
    assert!(refused(2, &["export", "k9s", &other, "--check"]).contains("k8s"));
    // A folder that cannot be made: nothing is written.
    let taken = folder.file("taken", "a file");
    assert!(refused(2, &["export", "k8s", &other, "-o", &taken]).contains("cannot write"));
    // Nor is a part of an export, where a folder has the name of one of its files.
    let (blocked, way) = (folder.path("blocked"), folder.path("blocked/gateway.yaml"));
    fs::create_dir_all(&way).unwrap();
    assert!(refused(2, &["export", "k8s", &other, "-o", &blocked]).contains("gateway.yaml`: it is a folder"));
    assert_eq!(fs::read_dir(&blocked).unwrap().count(), 1);
}
