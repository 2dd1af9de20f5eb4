//! Three plans on every target: what is written is valid, the same each time, and what is broken is refused.

use std::path::Path;
use std::sync::LazyLock;

use boute_render::export::{ExportError, ExportFile, FOLDERS, Labels, MARK, Options, Target, export};
use boute_spec::plan::Plan;
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::fixture::{disaggregated_plan, one_gpu_plan, plan, two_node_plan};
use crate::schema::{Schemas, problems};

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(Schemas::read);

/// Stands for a trained router: text that packs badly, and packed is larger than a part.
fn router() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b' ' + (state >> 26) as u8
    };
    (0..1_000_000).map(|_| next()).collect()
}

fn plans() -> [(&'static str, Plan); 3] {
    [("one GPU", one_gpu_plan()), ("heterogeneous", plan()), ("two nodes", two_node_plan())]
}

fn exported(target: Target, plan: &Plan, options: &Options) -> Vec<ExportFile> {
    export(target, plan, Some(&router()), options).unwrap()
}

fn is_yaml(file: &ExportFile) -> bool {
    Path::new(&file.path).extension().is_some_and(|extension| extension == "yaml")
}

/// The documents of a file.
fn documents(file: &ExportFile) -> Vec<Value> {
    let read =
        |text: &str| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", file.path));
    file.contents.split("\n---\n").map(read).collect()
}

/// What is wrong with a file of a target, by the schema for it.
fn wrong(schemas: &Schemas, target: Target, file: &ExportFile) -> Vec<String> {
    let by = |validator: &Validator| documents(file).iter().flat_map(|it| problems(validator, it)).collect();
    if !is_yaml(file) {
        return Vec::new();
    }
    match target {
        Target::Compose => by(&schemas.compose),
        Target::SkyPilot => documents(file).iter().flat_map(|task| sky(schemas, task)).collect(),
        Target::Helm if file.path.starts_with("values/") => by(&schemas.production_stack),
        Target::LlmD if file.path.starts_with("values/") => by(&schemas.llm_d),
        Target::Shell | Target::Grafana => Vec::new(),
        _ => documents(file).iter().flat_map(|object| schemas.object(object)).collect(),
    }
}

fn sky(schemas: &Schemas, task: &Value) -> Vec<String> {
    let mut found = problems(&schemas.sky_task, task);
    found.extend(problems(&schemas.sky_resources, &task["resources"]));
    if let Some(service) = task.get("service") {
        found.extend(problems(&schemas.sky_service, service));
    }
    found
}

#[test]
fn every_target_is_valid_for_every_plan() {
    let schemas = &*SCHEMAS;
    for (name, plan) in plans() {
        for target in Target::ALL {
            let files = exported(target, &plan, &Options::default());
            assert!(files.iter().any(|file| file.path == "README.md"), "{name}: {}", target.name());
            for file in &files {
                let found = wrong(schemas, target, file);
                assert!(found.is_empty(), "{name}: {}: {}: {found:#?}", target.name(), file.path);
            }
            assert_eq!(files, exported(target, &plan, &Options::default()), "the same bytes each time");
        }
    }
}

#[test]
fn files_say_where_they_are_from_and_readmes_are_true() {
    for (name, plan) in plans() {
        for target in Target::ALL {
            for file in exported(target, &plan, &Options::default()) {
                let what = format!("{name}: {}: {}", target.name(), file.path);
                let folder = file.path.rsplit_once('/').map(|(folder, _)| folder);
                assert!(folder.is_none_or(|folder| FOLDERS.contains(&folder)), "{what}");
                let plain = file.path == "README.md" || file.path.starts_with("plan.");
                assert!(plain || file.contents.lines().take(3).any(|line| line.contains(MARK)), "{what}");
            }
            let files = exported(target, &plan, &Options::default());
            let readme = &files.iter().find(|file| file.path == "README.md").unwrap().contents;
            let commands = ["helm ", "kubectl ", "sky ", "docker ", "./"];
            let bare = readme.lines().find(|line| commands.iter().any(|command| line.starts_with(command)));
            assert_eq!(bare, None, "{name}: {}: a command is no code", target.name());
            // Who is kept from the engines: all, those of groups that span nodes, none.
            let guarded = |file: &&ExportFile| {
                file.path.starts_with("engines-") && file.contents.contains("kind: NetworkPolicy")
            };
            let says = |words: &str| readme.contains(words);
            match (target, files.iter().filter(guarded).count()) {
                (Target::Kubernetes, guarded) => assert!(guarded > 0 && says("one for each group")),
                (Target::Helm, 1..) => assert!(says("only groups that span nodes have one")),
                (Target::Helm | Target::LlmD | Target::KServe | Target::KubeRay, guarded) => {
                    assert!(guarded == 0 && says("no policy is written for the engines"), "{readme}");
                }
                _ => assert!(!says("NetworkPolicy")),
            }
        }
    }
}

#[test]
fn other_engines_images_and_labels_are_valid_too() {
    let schemas = &*SCHEMAS;
    let options = Options {
        engine: "sglang".into(),
        image: Some("registry:5000/engine:1".into()),
        gateway_image: "registry:5000/boute:1".into(),
        labels: Labels::Gfd,
    };
    for target in [Target::Shell, Target::Compose, Target::Kubernetes, Target::SkyPilot] {
        let files = exported(target, &two_node_plan(), &options);
        assert!(files.iter().any(|file| file.contents.contains("--dist-init-addr")), "{}", target.name());
        assert!(
            target == Target::Shell
                || files.iter().any(|file| file.contents.contains("registry:5000/engine:1"))
        );
        for file in &files {
            assert_eq!(
                wrong(schemas, target, file),
                Vec::<String>::new(),
                "{}: {}",
                target.name(),
                file.path
            );
        }
    }
    let gke = Options { labels: Labels::Gke, ..Options::default() };
    let error = export(Target::Kubernetes, &plan(), None, &gke).unwrap_err();
    assert!(error.to_string().contains("`L40S` has no known name in gke"), "{error}");
}

/// A change to a file and the target it is of: the file as it was is valid, so that only the change can be what is refused.
#[test]
fn what_is_broken_is_refused() {
    let schemas = &*SCHEMAS;
    let cases: [(Target, &str, &str, &str); 17] = [
        (Target::Kubernetes, "engines-llama-3-1-8b-l40s-tp1.yaml", "replicas: 6", "replicas: six"),
        (Target::Kubernetes, "engines-llama-3-1-8b-l40s-tp1.yaml", "matchLabels:", "matchLabel:"),
        (
            Target::Kubernetes,
            "engines-llama-3-1-8b-l40s-tp1.yaml",
            "containerPort: 8000",
            "containerPort: http",
        ),
        (Target::Kubernetes, "engines-llama-3-1-70b-h100-sxm-tp8-pp2.yaml", "size: 2", "size: two"),
        (
            Target::Kubernetes,
            "engines-llama-3-1-70b-h100-sxm-tp8-pp2.yaml",
            "workerTemplate:",
            "workersTemplate:",
        ),
        (Target::Kubernetes, "gateway.yaml", "maxUnavailable: 1", "maxUnavailabel: 1"),
        (Target::Kubernetes, "gateway.yaml", "policyTypes:", "policyType:"),
        (Target::Compose, "compose.l40s-0.yaml", "device_ids:", "device_idz:"),
        (Target::Compose, "compose.l40s-0.yaml", "healthcheck:", "health_check:"),
        (Target::SkyPilot, "llama-3-1-8b-l40s-tp1.yaml", "readiness_probe:", "readines_probe:"),
        (Target::SkyPilot, "llama-3-1-8b-l40s-tp1.yaml", "num_nodes: 1", "num_nodes: one"),
        (Target::Helm, "values/values.yaml", "requestGPU:", "requestGPUs:"),
        (Target::Helm, "values/values.yaml", "tensorParallelSize: 1", "tensorParallelSize: one"),
        (Target::LlmD, "values/llama-3-1-8b-l40s-tp1.yaml", "multinode: false", "multinode: maybe"),
        (Target::LlmD, "pools/inference-pools.yaml", "targetPorts:", "targetPort:"),
        (Target::KServe, "engines-llama-3-1-8b-l40s-tp1.yaml", "tensor: 1", "tensor: 0"),
        (Target::KubeRay, "engines-llama-3-1-8b-l40s-tp1.yaml", "rayClusterConfig:", "rayCluster:"),
    ];
    for (target, path, from, to) in cases {
        let files = exported(target, &two_node_plan(), &Options::default());
        let mut file =
            files.into_iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!(wrong(schemas, target, &file), Vec::<String>::new());
        assert!(file.contents.contains(from), "{path} has no `{from}`");
        file.contents = file.contents.replace(from, to);
        assert!(!wrong(schemas, target, &file).is_empty(), "{}: {path}: `{to}` is taken", target.name());
    }
}

#[test]
fn what_has_no_place_is_refused_with_a_way_out() {
    let refused =
        |target, plan: &Plan, options: &Options| export(target, plan, None, options).unwrap_err().to_string();
    for target in Target::ALL {
        if matches!(target, Target::Shell | Target::Grafana) {
            continue;
        }
        let said = refused(target, &disaggregated_plan(), &Options::default());
        assert!(said.contains("help: `boute export shell`"), "{said}");
    }
    let sglang = Options { engine: "sglang".into(), ..Options::default() };
    for target in [Target::Helm, Target::LlmD, Target::KServe, Target::KubeRay] {
        assert!(refused(target, &plan(), &sglang).contains("runs vLLM only"), "{}", target.name());
    }
    assert!(refused(Target::Shell, &disaggregated_plan(), &sglang).contains("written for vLLM only"));
    let unknown = Options { engine: "vlm".into(), ..Options::default() };
    assert!(refused(Target::Shell, &plan(), &unknown).contains("one of vllm, sglang"));
    let mut draft = serde_json::to_value(plan()).unwrap();
    draft["models"][0]["precision"] = "int4".into();
    let quantised: Plan = serde_json::from_value(draft).unwrap();
    let error = export(Target::Kubernetes, &quantised, None, &Options::default()).unwrap_err();
    assert!(
        matches!(error, ExportError::Precision { .. }) && error.to_string().contains("help: leave `dtype`")
    );
}

/// Names that mean something to a shell, to Kubernetes or to Compose stay names.
#[test]
fn hostile_names_do_no_harm() {
    let schemas = &*SCHEMAS;
    let name = "evil'; $(rm) ${HOME} {leader}\n# \"x";
    let text = serde_json::to_string(&plan()).unwrap();
    let text = text.replace("\"llama-3.1-8b\"", &serde_json::to_string(name).unwrap());
    let plan: Plan = serde_json::from_str(&text).unwrap();
    for target in Target::ALL {
        for file in exported(target, &plan, &Options::default()) {
            assert_eq!(
                wrong(schemas, target, &file),
                Vec::<String>::new(),
                "{}: {}",
                target.name(),
                file.path
            );
            if is_yaml(&file) {
                documents(&file);
            }
        }
    }
    let files = exported(Target::Kubernetes, &plan, &Options::default());
    let deployment = &documents(&files[0])[0];
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    assert!(args.contains(&json!(name.replace("$(", "$$("))), "{args:?}");
}

/// The larger part of each target's form, once.
#[test]
fn files_look_as_one_would_write_them() {
    let file = |target, plan: &Plan, path: &str| {
        let files = export(target, plan, Some(b"{}"), &Options::default()).unwrap();
        let file = files.into_iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}"));
        file.contents
    };
    let (one, two) = (one_gpu_plan(), two_node_plan());
    insta::assert_snapshot!("compose", file(Target::Compose, &one, "compose.yaml"));
    insta::assert_snapshot!(
        "k8s-deployment",
        file(Target::Kubernetes, &one, "engines-llama-3-1-8b-l40s-tp1.yaml")
    );
    let gateway = file(Target::Kubernetes, &plan(), "gateway.yaml");
    let (before, rest) = gateway.split_once("  plan.json: |\n").unwrap();
    let gateway = before.to_owned() + rest.split_once("---\n").unwrap().1;
    insta::assert_snapshot!("k8s-gateway", gateway);
    let lws = file(Target::Kubernetes, &two, "engines-llama-3-1-70b-h100-sxm-tp8-pp2.yaml");
    insta::assert_snapshot!("k8s-leaderworkerset", lws);
    insta::assert_snapshot!("skypilot", file(Target::SkyPilot, &two, "llama-3-1-70b-h100-sxm-tp8-pp2.yaml"));
    insta::assert_snapshot!("helm", file(Target::Helm, &plan(), "values/values.yaml"));
    insta::assert_snapshot!("llm-d", file(Target::LlmD, &two, "values/llama-3-1-70b-h100-sxm-tp8-pp2.yaml"));
    insta::assert_snapshot!("kserve", file(Target::KServe, &one, "engines-llama-3-1-8b-l40s-tp1.yaml"));
    insta::assert_snapshot!(
        "kuberay",
        file(Target::KubeRay, &two, "engines-llama-3-1-70b-h100-sxm-tp8-pp2.yaml")
    );
    insta::assert_snapshot!("alerts", file(Target::Grafana, &plan(), "alerts.yaml"));
    insta::assert_snapshot!("readme", file(Target::Kubernetes, &two, "README.md"));
}

#[test]
fn a_router_goes_along_whole() {
    use base64::Engine;
    use std::io::Read;
    let files = exported(Target::Kubernetes, &plan(), &Options::default());
    let parts = documents(files.iter().find(|file| file.path == "gateway-router.yaml").unwrap());
    assert!(parts.len() > 1);
    let packed: Vec<u8> = parts
        .iter()
        .flat_map(|part| part["binaryData"].as_object().unwrap().values())
        .flat_map(|data| base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap())
        .collect();
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut whole).unwrap();
    assert!(whole == router());
}
