//! Files that run a plan on real engines. One plan gives the same bytes every time.

use std::fmt::Write;
use std::ops::Range;

use boute_spec::catalog::{Model, Precision};
use boute_spec::digest::sha256_hex;
use boute_spec::plan::{Instances, Plan, ReplicaGroup, Role};

/// First port of the engines; each replica has the next one.
const FIRST_PORT: u32 = 8001;
/// First port at which an engine that hands KV caches over is asked for them.
const FIRST_SIDE_CHANNEL: u32 = 20_000;
/// How: either side may send and receive, the proxy says who does.
const KV_TRANSFER: &str = r#"{"kv_connector":"NixlConnector","kv_role":"kv_both"}"#;
/// Port of the gateway.
const GATEWAY_PORT: u32 = 8000;
/// The engine whose flags are written.
const ENGINE: &str = "vLLM 0.33";

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Relative path.
    pub path: String,
    /// Contents.
    pub contents: String,
    /// Whether it is run.
    pub executable: bool,
}

/// Why a plan cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The precision has no flags in this engine.
    #[error(
        "`{model}` has {precision:?} weights that {ENGINE} loads only from a checkpoint which says so; leave `dtype` out and name such a checkpoint in `weights`"
    )]
    Precision {
        /// Model id.
        model: String,
        /// Its precision.
        precision: Precision,
    },
}

/// `text` as one word of a POSIX shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Scripts that start the engines and the gateway on one machine per GPU type.
///
/// # Errors
/// If a model's precision cannot be asked for by a flag.
pub fn shell(plan: &Plan) -> Result<Vec<ExportFile>, ExportError> {
    let header = header(plan);
    let mut files = Vec::new();
    let mut port = FIRST_PORT;
    let (mut replicas, mut engines) = (Vec::new(), Vec::new());
    let mut first_gpu = std::collections::BTreeMap::new();
    for group in &plan.deployment.groups {
        let model = plan.models.iter().find(|model| model.id == group.model);
        let Some(model) = model else { continue };
        let mut ports_by_role = Vec::new();
        for instances in group.instances() {
            let first = first_gpu.entry(instances.gpu.to_owned()).or_insert(0);
            let ports = port..port + group.replicas * instances.count;
            let (name, intro) = introduction(group, &instances);
            let mut contents = format!("#!/bin/sh\n{header}{intro}");
            for port in ports.clone() {
                let devices: Vec<String> =
                    (*first..*first + instances.tp * instances.pp).map(|gpu| gpu.to_string()).collect();
                let command = serve_command(&instances, model, port)?;
                let _ = writeln!(contents, "CUDA_VISIBLE_DEVICES={} {command} &", devices.join(","));
                *first += instances.tp * instances.pp;
            }
            contents.push_str("wait\n");
            files.push(ExportFile { path: format!("{name}.sh"), contents, executable: true });
            port = ports.end;
            if instances.role != Role::Prefill {
                engines.extend(ports.clone());
            }
            ports_by_role.push((ports, instances.count));
        }
        let entries = match &ports_by_role[..] {
            [prefill, decode] => {
                let proxies = port..port + group.replicas;
                let contents = proxy_script(&header, group, proxies.clone(), [prefill, decode]);
                let path = format!("proxy-{}.sh", file_name(&group.id));
                files.push(ExportFile { path, contents, executable: true });
                port = proxies.end;
                proxies
            }
            _ => port - group.replicas..port,
        };
        replicas.extend(entries.map(|port| (group.model.clone(), port)));
    }
    files.push(ExportFile {
        path: "gateway.sh".into(),
        contents: gateway_script(&header, &engines, &replicas),
        executable: true,
    });
    files.push(ExportFile { path: "plan.json".into(), contents: plan.to_json_pretty(), executable: false });
    files.push(ExportFile { path: "README.md".into(), contents: readme(plan, &files), executable: false });
    Ok(files)
}

/// Safe inside a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn file_name(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

fn header(plan: &Plan) -> String {
    let predicted = &plan.predicted;
    format!(
        "# Written by boute {} for plan {}: {} at {}, E2E p95 {:.1} s, quality {:.4}.\n# Flags of {ENGINE}.\n",
        plan.tool_version,
        &sha256_hex(plan.to_json_pretty().as_bytes())[..12],
        predicted.cost_usd_per_hour,
        predicted.rate,
        predicted.e2e.p95.value_ms / 1e3,
        predicted.quality.value
    )
}

/// Name of the script that starts these engines, and its first lines.
fn introduction(group: &ReplicaGroup, instances: &Instances<'_>) -> (String, String) {
    let (id, gpu, count) = (one_line(&group.id), one_line(instances.gpu), group.replicas * instances.count);
    let name = format!("engines-{}", file_name(&group.id));
    let parts = match instances.role {
        Role::Both => {
            return (name, format!("# Group {id}: {} replicas on {gpu}.\nset -eu\n", group.replicas));
        }
        Role::Prefill => ("prefill", "compute prompts"),
        Role::Decode => ("decode", "decode"),
    };
    let intro = format!(
        "# Group {id}: {count} engines on {gpu} that {}, for {} replicas.\n# NIXL_HOST is the address at which the other side reaches this machine.\nset -eu\nexport VLLM_NIXL_SIDE_CHANNEL_HOST=\"${{NIXL_HOST:-127.0.0.1}}\"\n",
        parts.1, group.replicas
    );
    (format!("{name}-{}", parts.0), intro)
}

/// A proxy per replica, which asks one of its engines for the prompt and then one for the answer.
fn proxy_script(
    header: &str,
    group: &ReplicaGroup,
    proxies: Range<u32>,
    [prefill, decode]: [&(Range<u32>, u32); 2],
) -> String {
    let mut script = format!(
        "#!/bin/sh\n{header}# Group {}: a proxy for each of {} replicas.\n# PROXY is vLLM's tests/v1/kv_connector/nixl_integration/toy_proxy_server.py, or another with its flags.\n# PREFILL_HOST and ENGINE_HOST name the machines that run the engines, if they are others.\nset -eu\n",
        one_line(&group.id),
        group.replicas
    );
    for (replica, port) in (0..).zip(proxies) {
        let side = |(ports, count): &(Range<u32>, u32), name: &str, host: &str| {
            let own = ports.clone().skip((replica * count) as usize).take(*count as usize);
            let ports: Vec<String> = own.map(|port| port.to_string()).collect();
            let hosts = vec![format!("\"${{{host}:-127.0.0.1}}\""); ports.len()];
            format!("--{name}-hosts {} --{name}-ports {}", hosts.join(" "), ports.join(" "))
        };
        let _ = writeln!(
            script,
            "python3 \"$PROXY\" --port {port} {} {} &",
            side(prefill, "prefiller", "PREFILL_HOST"),
            side(decode, "decoder", "ENGINE_HOST")
        );
    }
    script.push_str("wait\n");
    script
}

fn serve_command(instances: &Instances<'_>, model: &Model, port: u32) -> Result<String, ExportError> {
    let engine = instances.engine;
    let mut words = vec!["vllm".to_owned(), "serve".into(), quote(&model.weights)];
    let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    flag("served-model-name", quote(&model.id));
    flag("port", port.to_string());
    flag("tensor-parallel-size", instances.tp.to_string());
    if instances.pp > 1 {
        flag("pipeline-parallel-size", instances.pp.to_string());
    }
    flag("max-num-seqs", engine.max_num_seqs.to_string());
    flag("max-num-batched-tokens", engine.max_num_batched_tokens.to_string());
    flag("gpu-memory-utilization", engine.gpu_memory_utilization.to_string());
    flag("max-model-len", engine.max_model_len.to_string());
    match model.precision {
        Precision::Bf16 => flag("dtype", "bfloat16".into()),
        Precision::Fp8 => flag("quantization", "fp8".into()),
        precision => return Err(ExportError::Precision { model: model.id.clone(), precision }),
    }
    words.push(
        if engine.enable_prefix_caching { "--enable-prefix-caching" } else { "--no-enable-prefix-caching" }
            .into(),
    );
    if instances.role != Role::Both {
        // Each rank listens on a port of its own.
        let side_channel = FIRST_SIDE_CHANNEL + 64 * (port - FIRST_PORT);
        words.insert(0, format!("VLLM_NIXL_SIDE_CHANNEL_PORT={side_channel}"));
        words.extend(["--kv-transfer-config".into(), quote(KV_TRANSFER)]);
    }
    Ok(words.join(" "))
}

/// `engines` are the ports that must answer before `replicas` get requests.
fn gateway_script(header: &str, engines: &[u32], replicas: &[(String, u32)]) -> String {
    let mut script = format!(
        "#!/bin/sh\n{header}# HOST_… may name other machines that run the engines.\nset -eu\ncd \"$(dirname \"$0\")\"\nhost=\"${{ENGINE_HOST:-127.0.0.1}}\"\nfor port in"
    );
    for port in engines {
        let _ = write!(script, " {port}");
    }
    script.push_str("; do\n  until curl -fs \"http://$host:$port/health\" >/dev/null; do sleep 2; done\ndone\nexec boute serve plan.json");
    for (model, port) in replicas {
        let _ = write!(script, " \\\n  --replica {}=\"http://$host:{port}\"", quote(model));
    }
    let _ = writeln!(script, " \\\n  --listen 0.0.0.0:{GATEWAY_PORT}");
    script.replace(
        "# HOST_… may name other machines that run the engines.\n",
        "# ENGINE_HOST names the machine that runs the engines, if it is another one.\n",
    )
}

fn readme(plan: &Plan, files: &[ExportFile]) -> String {
    let mut text = String::from(
        "# Running this plan\n\nOn each machine with the GPUs of a group, with vLLM installed:\n\n",
    );
    for file in files.iter().filter(|file| file.path.starts_with("engines-")) {
        let _ = writeln!(text, "    ./{}", file.path);
    }
    let proxies: Vec<&ExportFile> = files.iter().filter(|file| file.path.starts_with("proxy-")).collect();
    if !proxies.is_empty() {
        text.push_str("\nPrompts and answers are computed by different engines (`-prefill`, `-decode`), which hand KV caches over by NIXL\n(`pip install nixl`; vLLM's documentation says which models and which pairs of tensor parallelism its `NixlConnector`\nsupports). A proxy before each such replica, beside its `-decode` engines, asks one after the other:\n\n");
        for file in proxies {
            let _ = writeln!(text, "    PROXY=toy_proxy_server.py ./{}", file.path);
        }
    }
    text.push_str("\nThen the gateway, with `boute` installed and the router artefact of the plan beside `plan.json`:\n\n    ./gateway.sh\n\n");
    let _ = writeln!(text, "It answers OpenAI's API on port {GATEWAY_PORT}; ask for the model `auto`.");
    if !plan.routing.router.is_empty() {
        let _ = writeln!(text, "Copy `{}` here from where the plan was made.", plan.routing.router);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plan;

    #[test]
    fn the_scripts_are_what_one_would_type() {
        let files = shell(&plan()).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "engines-llama-3.1-8b-l40s-tp1.sh",
                "engines-llama-3.1-70b-h100-sxm-tp4-pp2.sh",
                "gateway.sh",
                "plan.json",
                "README.md"
            ]
        );
        insta::assert_snapshot!(files[1].contents.lines().last().map(|_| files[1].contents.lines().skip(5).collect::<Vec<_>>().join("\n")).unwrap(), @r"
        CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 vllm serve meta-llama/Llama-3.1-70B-Instruct --served-model-name llama-3.1-70b --port 8007 --tensor-parallel-size 4 --pipeline-parallel-size 2 --max-num-seqs 1024 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9 --max-model-len 16384 --dtype bfloat16 --enable-prefix-caching &
        wait
        ");
        insta::assert_snapshot!(files[2].contents.lines().skip(3).collect::<Vec<_>>().join("\n"), @r#"
        # ENGINE_HOST names the machine that runs the engines, if it is another one.
        set -eu
        cd "$(dirname "$0")"
        host="${ENGINE_HOST:-127.0.0.1}"
        for port in 8001 8002 8003 8004 8005 8006 8007; do
          until curl -fs "http://$host:$port/health" >/dev/null; do sleep 2; done
        done
        exec boute serve plan.json \
          --replica llama-3.1-8b="http://$host:8001" \
          --replica llama-3.1-8b="http://$host:8002" \
          --replica llama-3.1-8b="http://$host:8003" \
          --replica llama-3.1-8b="http://$host:8004" \
          --replica llama-3.1-8b="http://$host:8005" \
          --replica llama-3.1-8b="http://$host:8006" \
          --replica llama-3.1-70b="http://$host:8007" \
          --listen 0.0.0.0:8000
        "#);
        assert_eq!(files, shell(&plan()).unwrap());
    }

    #[test]
    fn a_disaggregated_replica_has_engines_of_two_roles_and_a_proxy() {
        let files = shell(&crate::fixture::disaggregated_plan()).unwrap();
        let script = |name: &str| {
            let file = files.iter().find(|file| file.path.starts_with(name)).unwrap();
            file.contents.lines().skip(3).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(script("engines-llama-3.1-70b-h100-sxm-tp4-pp2-prefill"), @r#"
        # Group llama-3.1-70b-h100-sxm-tp4-pp2: 2 engines on L40S that compute prompts, for 1 replicas.
        # NIXL_HOST is the address at which the other side reaches this machine.
        set -eu
        export VLLM_NIXL_SIDE_CHANNEL_HOST="${NIXL_HOST:-127.0.0.1}"
        CUDA_VISIBLE_DEVICES=6,7,8,9 VLLM_NIXL_SIDE_CHANNEL_PORT=20384 vllm serve meta-llama/Llama-3.1-70B-Instruct --served-model-name llama-3.1-70b --port 8007 --tensor-parallel-size 4 --max-num-seqs 1024 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9 --max-model-len 16384 --dtype bfloat16 --enable-prefix-caching --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_both"}' &
        CUDA_VISIBLE_DEVICES=10,11,12,13 VLLM_NIXL_SIDE_CHANNEL_PORT=20448 vllm serve meta-llama/Llama-3.1-70B-Instruct --served-model-name llama-3.1-70b --port 8008 --tensor-parallel-size 4 --max-num-seqs 1024 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9 --max-model-len 16384 --dtype bfloat16 --enable-prefix-caching --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_both"}' &
        wait
        "#);
        insta::assert_snapshot!(script("engines-llama-3.1-70b-h100-sxm-tp4-pp2-decode"), @r#"
        # Group llama-3.1-70b-h100-sxm-tp4-pp2: 1 engines on H100-SXM that decode, for 1 replicas.
        # NIXL_HOST is the address at which the other side reaches this machine.
        set -eu
        export VLLM_NIXL_SIDE_CHANNEL_HOST="${NIXL_HOST:-127.0.0.1}"
        CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 VLLM_NIXL_SIDE_CHANNEL_PORT=20512 vllm serve meta-llama/Llama-3.1-70B-Instruct --served-model-name llama-3.1-70b --port 8009 --tensor-parallel-size 4 --pipeline-parallel-size 2 --max-num-seqs 1024 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9 --max-model-len 16384 --dtype bfloat16 --enable-prefix-caching --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_both"}' &
        wait
        "#);
        insta::assert_snapshot!(script("proxy-"), @r#"
        # Group llama-3.1-70b-h100-sxm-tp4-pp2: a proxy for each of 1 replicas.
        # PROXY is vLLM's tests/v1/kv_connector/nixl_integration/toy_proxy_server.py, or another with its flags.
        # PREFILL_HOST and ENGINE_HOST name the machines that run the engines, if they are others.
        set -eu
        python3 "$PROXY" --port 8010 --prefiller-hosts "${PREFILL_HOST:-127.0.0.1}" "${PREFILL_HOST:-127.0.0.1}" --prefiller-ports 8007 8008 --decoder-hosts "${ENGINE_HOST:-127.0.0.1}" --decoder-ports 8009 &
        wait
        "#);
        insta::assert_snapshot!(script("gateway"), @r#"
        # ENGINE_HOST names the machine that runs the engines, if it is another one.
        set -eu
        cd "$(dirname "$0")"
        host="${ENGINE_HOST:-127.0.0.1}"
        for port in 8001 8002 8003 8004 8005 8006 8009; do
          until curl -fs "http://$host:$port/health" >/dev/null; do sleep 2; done
        done
        exec boute serve plan.json \
          --replica llama-3.1-8b="http://$host:8001" \
          --replica llama-3.1-8b="http://$host:8002" \
          --replica llama-3.1-8b="http://$host:8003" \
          --replica llama-3.1-8b="http://$host:8004" \
          --replica llama-3.1-8b="http://$host:8005" \
          --replica llama-3.1-8b="http://$host:8006" \
          --replica llama-3.1-70b="http://$host:8010" \
          --listen 0.0.0.0:8000
        "#);
        insta::assert_snapshot!(files.last().unwrap().contents, @r"
        # Running this plan

        On each machine with the GPUs of a group, with vLLM installed:

            ./engines-llama-3.1-8b-l40s-tp1.sh
            ./engines-llama-3.1-70b-h100-sxm-tp4-pp2-prefill.sh
            ./engines-llama-3.1-70b-h100-sxm-tp4-pp2-decode.sh

        Prompts and answers are computed by different engines (`-prefill`, `-decode`), which hand KV caches over by NIXL
        (`pip install nixl`; vLLM's documentation says which models and which pairs of tensor parallelism its `NixlConnector`
        supports). A proxy before each such replica, beside its `-decode` engines, asks one after the other:

            PROXY=toy_proxy_server.py ./proxy-llama-3.1-70b-h100-sxm-tp4-pp2.sh

        Then the gateway, with `boute` installed and the router artefact of the plan beside `plan.json`:

            ./gateway.sh

        It answers OpenAI's API on port 8000; ask for the model `auto`.
        Copy `plan.router.json` here from where the plan was made.
        ");
    }

    #[test]
    fn hostile_names_stay_words() {
        assert_eq!(quote("a b'; rm -rf /"), "'a b'\\''; rm -rf /'");
        assert_eq!(quote(""), "''");
        assert_eq!(file_name("../x y"), "..-x-y");
    }
}
