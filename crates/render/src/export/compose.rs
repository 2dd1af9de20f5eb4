//! Docker Compose: a file per host, since Compose does not span hosts, and one for the gateway. All use the network of their
//! host, so that addresses and ports are the real ones; with a single host everything is one file.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::engine::{LEADER, RANK};
use super::fleet::{Fleet, Host, Placed};
use super::kubernetes::shm;
use super::{
    ExportError, ExportFile, GATEWAY_PORT, file_name, header, header_of, plan_files, readme, router_name,
    yaml,
};

/// Seconds between looks at an engine.
const INTERVAL_S: u32 = 10;

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Result<Vec<ExportFile>, ExportError> {
    fleet.no_disaggregation("compose")?;
    let hosts = fleet.hosts();
    let alone = hosts.len() == 1;
    let mut files = Vec::new();
    let gateway = gateway(fleet, &hosts);
    for host in &hosts {
        let mut services = engines(fleet, &hosts, host);
        if alone {
            services.insert("gateway".into(), gateway.clone());
        }
        let name = if alone { "compose.yaml".into() } else { format!("compose.{}.yaml", host.name) };
        files.push(file(fleet, name, &services));
    }
    if !alone {
        files.push(file(
            fleet,
            "compose.gateway.yaml".into(),
            &Map::from_iter([("gateway".to_owned(), gateway)]),
        ));
        let lines: Vec<String> = hosts.iter().map(|host| format!("{}=", host.variable())).collect();
        let head = format!(
            "{}# Copy to .env on every host and fill in: the address of each host.\n",
            header(fleet.plan)
        );
        files.push(ExportFile::new("env.example", format!("{head}{}\n", lines.join("\n"))));
    }
    files.extend(plan_files(fleet.plan, router));
    files.push(readme(fleet, "Running this plan with Docker Compose", &instructions(fleet, &hosts)));
    Ok(files)
}

fn file(fleet: &Fleet<'_>, name: String, services: &Map<String, Value>) -> ExportFile {
    let mut project = json!({"name": "boute", "services": services});
    if services.keys().any(|service| service != "gateway") {
        project["volumes"] = json!({"weights": {}});
    }
    ExportFile::new(name, yaml::documents(&header_of(fleet), &[project]))
}

/// How a file names a host's address: itself if there is one, else what `.env` says.
fn address(hosts: &[Host<'_>], host: usize) -> String {
    if hosts.len() == 1 {
        return "127.0.0.1".into();
    }
    format!("${{{}:?address of host {}, in .env}}", hosts[host].variable(), hosts[host].name)
}

/// `text` as it is: Compose puts in what follows a dollar sign.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn engines(fleet: &Fleet<'_>, hosts: &[Host<'_>], host: &Host<'_>) -> Map<String, Value> {
    host.engines.iter().map(|placed| engine(fleet, hosts, placed)).collect()
}

fn engine(fleet: &Fleet<'_>, hosts: &[Host<'_>], placed: &Placed) -> (String, Value) {
    let launch = &fleet.launches[placed.launch];
    let mut command: Vec<String> = fleet
        .command(launch, placed.port, placed.node())
        .iter()
        .map(|word| {
            let word = literal(word);
            if launch.nodes == 1 {
                return word;
            }
            word.replace(LEADER, &address(hosts, placed.leader)).replace(RANK, &placed.rank.to_string())
        })
        .collect();
    let program = command.remove(0);
    let devices: Vec<String> = placed.devices.clone().map(|gpu| gpu.to_string()).collect();
    let mut service = json!({
        "image": literal(fleet.image()),
        "entrypoint": [program],
        "command": command,
        "network_mode": "host",
        "shm_size": shm(launch).to_lowercase().trim_end_matches('i'),
        "environment": {"HF_TOKEN": "${HF_TOKEN:-}"},
        "volumes": ["weights:/root/.cache/huggingface"],
        "restart": "unless-stopped",
        "deploy": {"resources": {"reservations": {"devices": [
            {"driver": "nvidia", "device_ids": devices, "capabilities": ["gpu"]},
        ]}}},
    });
    if placed.rank == 0 {
        service["healthcheck"] = json!({
            "test": ["CMD", "curl", "-fsS", format!("http://127.0.0.1:{}/health", placed.port)],
            "interval": format!("{INTERVAL_S}s"), "timeout": "5s", "retries": 6,
            "start_period": format!("{}s", launch.start_s()),
        });
    }
    let node = if launch.nodes > 1 { format!("-node-{}", placed.rank) } else { String::new() };
    (format!("{}-{}{node}", launch.name, placed.engine), service)
}

fn gateway(fleet: &Fleet<'_>, hosts: &[Host<'_>]) -> Value {
    let mut command = vec!["serve".to_owned(), "/etc/boute/plan.json".into()];
    for (index, host) in hosts.iter().enumerate() {
        for placed in host.engines.iter().filter(|placed| placed.rank == 0) {
            let model = literal(&fleet.launches[placed.launch].model.id);
            command.extend([
                "--replica".into(),
                format!("{model}=http://{}:{}", address(hosts, index), placed.port),
            ]);
        }
    }
    command.extend(["--listen".into(), format!("0.0.0.0:{GATEWAY_PORT}")]);
    let mut volumes = vec!["./plan.json:/etc/boute/plan.json:ro".to_owned()];
    let router = router_name(fleet.plan);
    if !router.is_empty() {
        volumes.push(format!("./{router}:/etc/boute/{router}:ro"));
    }
    json!({
        "image": literal(&fleet.options.gateway_image),
        "entrypoint": ["boute"],
        "command": command,
        "network_mode": "host",
        "volumes": volumes,
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
    })
}

fn instructions(fleet: &Fleet<'_>, hosts: &[Host<'_>]) -> String {
    let mut text = format!(
        "The gateway's image `{}` is yours to build, with the Dockerfile of boute's repository. Set HF_TOKEN for gated weights.\n\n",
        fleet.options.gateway_image
    );
    if hosts.len() == 1 {
        text.push_str("    docker compose up -d\n    docker compose ps\n");
    } else {
        text.push_str(
            "Copy this folder to every host, `cp env.example .env`, fill in the addresses, and on each host start its own file:\n\n",
        );
        for host in hosts {
            let _ = writeln!(
                text,
                "    docker compose -f compose.{}.yaml up -d   # {}",
                host.name,
                file_name(host.gpu())
            );
        }
        text.push_str("    docker compose -f compose.gateway.yaml up -d   # any host\n");
    }
    let _ = write!(
        text,
        "\nThe gateway answers OpenAI's API on port {GATEWAY_PORT}; ask for the model `auto`. Engines listen on their hosts' own ports:\nkeep these from strangers."
    );
    text
}
