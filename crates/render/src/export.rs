//! Files that run a plan on real engines. One plan gives the same bytes every time.

use std::fmt::Write;

use boute_spec::catalog::{Model, Precision};
use boute_spec::digest::sha256_hex;
use boute_spec::plan::{Plan, ReplicaGroup};

/// First port of the engines; each replica has the next one.
const FIRST_PORT: u32 = 8001;
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
    let mut replicas = Vec::new();
    let mut first_gpu = std::collections::BTreeMap::new();
    for group in &plan.deployment.groups {
        let gpus = first_gpu.entry(group.gpu.as_str()).or_insert(0);
        let model = plan.models.iter().find(|model| model.id == group.model);
        let Some(model) = model else { continue };
        let mut script = format!(
            "#!/bin/sh\n{header}# Group {}: {} replicas on {}.\nset -eu\n",
            one_line(&group.id),
            group.replicas,
            one_line(&group.gpu)
        );
        for replica in 0..group.replicas {
            let devices: Vec<String> = (0..group.gpus_per_replica())
                .map(|gpu| (*gpus + replica * group.gpus_per_replica() + gpu).to_string())
                .collect();
            let _ = writeln!(
                script,
                "CUDA_VISIBLE_DEVICES={} {} &",
                devices.join(","),
                serve_command(group, model, port)?
            );
            replicas.push((group.model.clone(), port));
            port += 1;
        }
        *gpus += group.gpus();
        script.push_str("wait\n");
        files.push(ExportFile {
            path: format!("engines-{}.sh", file_name(&group.id)),
            contents: script,
            executable: true,
        });
    }
    files.push(ExportFile {
        path: "gateway.sh".into(),
        contents: gateway_script(&header, &replicas),
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

fn serve_command(group: &ReplicaGroup, model: &Model, port: u32) -> Result<String, ExportError> {
    let engine = &group.engine;
    let mut words = vec!["vllm".to_owned(), "serve".into(), quote(&model.weights)];
    let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    flag("served-model-name", quote(&group.model));
    flag("port", port.to_string());
    flag("tensor-parallel-size", group.tp.to_string());
    if group.pp > 1 {
        flag("pipeline-parallel-size", group.pp.to_string());
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
    Ok(words.join(" "))
}

fn gateway_script(header: &str, replicas: &[(String, u32)]) -> String {
    let mut script = format!(
        "#!/bin/sh\n{header}# HOST_… may name other machines that run the engines.\nset -eu\ncd \"$(dirname \"$0\")\"\nhost=\"${{ENGINE_HOST:-127.0.0.1}}\"\nfor port in"
    );
    for (_, port) in replicas {
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
    fn hostile_names_stay_words() {
        assert_eq!(quote("a b'; rm -rf /"), "'a b'\\''; rm -rf /'");
        assert_eq!(quote(""), "''");
        assert_eq!(file_name("../x y"), "..-x-y");
    }
}
