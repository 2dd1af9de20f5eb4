//! `SkyPilot`: a service per group, whose replicas it starts, watches and balances; a task per replica where that spans
//! nodes, which services do not.

use std::fmt::Write;

use serde_json::json;

use super::engine::{LEADER, RANK};
use super::fleet::{Fleet, Launch, Node};
use super::{
    ENGINE_PORT, ExportError, ExportFile, GATEWAY_PORT, header_of, header_of_launch, plan_files, quote,
    readme, yaml,
};

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("skypilot")?;
    let mut files = Vec::new();
    for launch in &fleet.launches {
        files.push(task(fleet, launch)?);
    }
    files.push(ExportFile::script("gateway.sh", gateway_script(fleet)));
    files.extend(plan_files(fleet.plan, router));
    files.push(readme(fleet, "Running this plan with SkyPilot", &instructions(fleet)));
    Ok(files)
}

fn task(fleet: &Fleet<'_>, launch: &Launch<'_>) -> Result<ExportFile, ExportError> {
    let accelerator = launch.names().and_then(|names| names.skypilot.as_deref());
    let accelerator = accelerator.ok_or_else(|| ExportError::NoName {
        gpu: launch.gpu.name.clone(),
        of: "SkyPilot's catalogue",
        help: "`sky show-gpus --all` lists them; use another target",
    })?;
    let mut task = json!({
        "name": launch.name,
        "num_nodes": launch.nodes,
        "resources": {
            "accelerators": {accelerator: launch.gpus_per_node},
            "image_id": format!("docker:{}", fleet.image()),
            "ports": ENGINE_PORT,
        },
        // Asked for at launch: `--secret HF_TOKEN`.
        "secrets": {"HF_TOKEN": null},
        "run": run(fleet, launch),
    });
    if launch.nodes == 1 {
        task["service"] = json!({
            "readiness_probe": {"path": "/health", "initial_delay_seconds": launch.start_s()},
            "replicas": launch.count,
        });
    }
    let header = header_of_launch(fleet, launch);
    Ok(ExportFile::new(format!("{}.yaml", launch.name), yaml::documents(&header, &[task])))
}

fn run(fleet: &Fleet<'_>, launch: &Launch<'_>) -> String {
    let command = |node| {
        let words: Vec<String> =
            fleet.command(launch, ENGINE_PORT, node).iter().map(|word| quote(word)).collect();
        words.join(" ").replace(LEADER, "'\"$leader\"'").replace(&quote(RANK), "\"$SKYPILOT_NODE_RANK\"")
    };
    if launch.nodes == 1 {
        return format!("set -e\nexec {}\n", command(Node::First));
    }
    format!(
        "set -e\nleader=\"$(echo \"$SKYPILOT_NODE_IPS\" | head -n 1)\"\nif [ \"$SKYPILOT_NODE_RANK\" = 0 ]; then\n  exec {}\nfi\nexec {}\n",
        command(Node::First),
        command(Node::Other)
    )
}

/// Names of the clusters of a launch that is no service.
fn clusters<'a>(launch: &'a Launch<'_>) -> impl Iterator<Item = String> + use<'a> {
    (0..launch.count).map(|number| format!("{}-{number}", launch.name))
}

fn gateway_script(fleet: &Fleet<'_>) -> String {
    let mut script = format!(
        "#!/bin/sh\n{}# Asks SkyPilot for the addresses, then serves them by the plan on port ${{PORT:-{GATEWAY_PORT}}}.\nset -eu\ncd \"$(dirname \"$0\")\"\nurl() {{ case \"$1\" in http*) echo \"$1\" ;; *) echo \"http://$1\" ;; esac; }}\nset --",
        header_of(fleet)
    );
    for launch in &fleet.launches {
        let model = quote(&launch.model.id);
        if launch.nodes == 1 {
            let _ = write!(
                script,
                " \\\n  --replica {model}=\"$(url \"$(sky serve status --endpoint {})\")\"",
                launch.name
            );
            continue;
        }
        for cluster in clusters(launch) {
            let _ = write!(
                script,
                " \\\n  --replica {model}=\"$(url \"$(sky status --endpoint {ENGINE_PORT} {cluster})\")\""
            );
        }
    }
    let _ = writeln!(
        script,
        "\nexec boute serve plan.json \"$@\" --listen \"0.0.0.0:${{PORT:-{GATEWAY_PORT}}}\""
    );
    script
}

fn instructions(fleet: &Fleet<'_>) -> String {
    let mut text = "With HF_TOKEN in the environment (empty, if no weights are gated):\n\n".to_owned();
    for launch in &fleet.launches {
        if launch.nodes == 1 {
            let name = &launch.name;
            let _ = writeln!(text, "    sky serve up -n {name} --secret HF_TOKEN {name}.yaml");
            continue;
        }
        for cluster in clusters(launch) {
            let _ = writeln!(text, "    sky launch -d -c {cluster} --secret HF_TOKEN {}.yaml", launch.name);
        }
    }
    let _ = write!(
        text,
        "\nThen the gateway, where `boute` and `sky` are installed:\n\n    ./gateway.sh\n\nIt answers OpenAI's API on port {GATEWAY_PORT}; ask for the model `auto`. SkyPilot picks the cheapest cloud that has the GPUs; add `infra:`\nunder `resources:` to name one. A service is one replica to the gateway: SkyPilot balances inside it. After a change:\n`sky serve update`."
    );
    text
}
