//! Scripts: one per host that starts its engines, one for the gateway. Hosts are named by environment variables, which
//! stand for this machine unless they are set.

use std::fmt::Write;

use boute_spec::plan::Role;

use super::engine::{LEADER, RANK};
use super::fleet::{FIRST_PORT, Fleet, Host, Placed};
use super::{ExportFile, GATEWAY_PORT, file_name, header_of, one_line, plan_files, quote, readme};

/// First port at which an engine that hands KV caches over is asked for them; each rank has a port of its own.
const FIRST_SIDE_CHANNEL: u32 = 20_000;
/// Ports left to the ranks of an engine.
const SIDE_CHANNELS: u32 = 64;
/// Lines at the beginning of a script that starts processes, and stops them when it is stopped.
const PROCESSES: &str =
    "set -eu\npids=\ntrap 'kill $pids 2>/dev/null || true' EXIT\ntrap 'exit 143' INT TERM\n";

pub(super) fn files(fleet: &Fleet<'_>, router: Option<&[u8]>) -> Vec<ExportFile> {
    let hosts = fleet.hosts();
    let header = header_of(fleet);
    let mut files: Vec<ExportFile> = hosts
        .iter()
        .map(|host| {
            ExportFile::script(
                format!("engines-{}.sh", host.name),
                engines_script(fleet, &hosts, host, &header),
            )
        })
        .collect();
    let pairs = pairs(fleet, &hosts);
    if !pairs.is_empty() {
        files.push(ExportFile::script("proxies.sh", proxies_script(&header, &pairs)));
    }
    files.push(ExportFile::script("gateway.sh", gateway_script(fleet, &hosts, &header, &pairs)));
    files.extend(plan_files(fleet.plan, router));
    files.push(readme(fleet, "Running this plan", &instructions(&hosts, !pairs.is_empty())));
    files
}

/// The address of a host, inside double quotes.
fn address(host: &Host<'_>) -> String {
    format!("${{{}:-127.0.0.1}}", host.variable())
}

fn engines_script(fleet: &Fleet<'_>, hosts: &[Host<'_>], host: &Host<'_>, header: &str) -> String {
    let mut script =
        format!("#!/bin/sh\n{header}# The engines of host {}, with {}.\n{PROCESSES}", host.name, host.gpu());
    for placed in &host.engines {
        let launch = &fleet.launches[placed.launch];
        let words = fleet.command(launch, placed.port, placed.node());
        let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
        let leader = format!("\"{}\"", address(&hosts[placed.leader]));
        // A word with a brace is quoted; what stands for it is quoted in its own way.
        let command = words
            .join(" ")
            .replace(&quote(RANK), &placed.rank.to_string())
            .replace(LEADER, &format!("'{leader}'"));
        let devices: Vec<String> = placed.devices.clone().map(|gpu| gpu.to_string()).collect();
        let mut environment = format!("CUDA_VISIBLE_DEVICES={} ", devices.join(","));
        if launch.role != Role::Both {
            let port = FIRST_SIDE_CHANNEL + SIDE_CHANNELS * (placed.port - FIRST_PORT);
            let _ = write!(
                environment,
                "VLLM_NIXL_SIDE_CHANNEL_HOST=\"{}\" VLLM_NIXL_SIDE_CHANNEL_PORT={port} ",
                address(host)
            );
        }
        let _ = writeln!(script, "{environment}{command} &\npids=\"$pids $!\"");
    }
    script + "wait\n"
}

/// A replica of which some engines compute prompts and others answers.
struct Pair {
    model: String,
    port: u32,
    prefill: Vec<String>,
    decode: Vec<String>,
}

/// The disaggregated replicas, each with a port for its proxy after those of the engines.
fn pairs(fleet: &Fleet<'_>, hosts: &[Host<'_>]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut port = placed(hosts).map(|(_, placed)| placed.port).max().unwrap_or_default();
    for (index, launch) in fleet.launches.iter().enumerate().filter(|(_, it)| it.role == Role::Prefill) {
        for replica in 0..launch.group.replicas {
            // The engines that decode for a group come right after those that prefill.
            let [prefill, decode] = [index, index + 1].map(|index| {
                let count = fleet.launches[index].per_replica;
                let own = placed(hosts).filter(|(_, it)| {
                    it.launch == index && it.rank == 0 && it.engine / count.max(1) == replica
                });
                own.map(|(host, it)| format!("{}:{}", address(host), it.port)).collect()
            });
            port += 1;
            pairs.push(Pair { model: launch.model.id.clone(), port, prefill, decode });
        }
    }
    pairs
}

fn placed<'a>(hosts: &'a [Host<'a>]) -> impl Iterator<Item = (&'a Host<'a>, &'a Placed)> {
    hosts.iter().flat_map(|host| host.engines.iter().map(move |placed| (host, placed)))
}

/// A proxy per replica, which asks one of its engines for the prompt and then one for the answer.
fn proxies_script(header: &str, pairs: &[Pair]) -> String {
    let mut script = format!(
        "#!/bin/sh\n{header}# A proxy for each disaggregated replica, beside the gateway.\n# PROXY is vLLM's tests/v1/kv_connector/nixl_integration/toy_proxy_server.py, or another with its flags.\n{PROCESSES}"
    );
    for Pair { model, port, prefill, decode } in pairs {
        let side = |engines: &[String], name: &str| {
            let (hosts, ports): (Vec<_>, Vec<_>) =
                engines.iter().filter_map(|it| it.rsplit_once(':')).unzip();
            let hosts: Vec<String> = hosts.iter().map(|host| format!("\"{host}\"")).collect();
            format!("--{name}-hosts {} --{name}-ports {}", hosts.join(" "), ports.join(" "))
        };
        let (prefill, decode) = (side(prefill, "prefiller"), side(decode, "decoder"));
        let _ = writeln!(
            script,
            "# {}\npython3 \"$PROXY\" --port {port} {prefill} {decode} &\npids=\"$pids $!\"",
            one_line(model)
        );
    }
    script + "wait\n"
}

fn gateway_script(fleet: &Fleet<'_>, hosts: &[Host<'_>], header: &str, pairs: &[Pair]) -> String {
    let engines = placed(hosts).filter(|(_, it)| it.rank == 0);
    let engines: Vec<_> =
        engines.map(|(host, it)| (&fleet.launches[it.launch], address(host), it.port)).collect();
    let mut script = format!(
        "#!/bin/sh\n{header}# Waits for the engines, then serves them by the plan on port ${{PORT:-{GATEWAY_PORT}}}.\nset -eu\ncd \"$(dirname \"$0\")\"\nfor engine in"
    );
    for (_, host, port) in engines.iter().filter(|(launch, ..)| launch.role != Role::Prefill) {
        let _ = write!(script, " \\\n  \"{host}:{port}\"");
    }
    script.push_str(
        "; do\n  until curl -fs \"http://$engine/health\" >/dev/null; do sleep 2; done\ndone\nexec boute serve \"${PLAN:-plan.json}\"",
    );
    for (launch, host, port) in engines.iter().filter(|(launch, ..)| launch.role == Role::Both) {
        let _ = write!(script, " \\\n  --replica {}=\"http://{host}:{port}\"", quote(&launch.model.id));
    }
    for Pair { model, port, .. } in pairs {
        let _ = write!(script, " \\\n  --replica {}=http://127.0.0.1:{port}", quote(model));
    }
    let _ = writeln!(script, " \\\n  --listen \"0.0.0.0:${{PORT:-{GATEWAY_PORT}}}\" \"$@\"");
    script
}

fn instructions(hosts: &[Host<'_>], proxies: bool) -> String {
    let mut text = String::new();
    if hosts.len() > 1 {
        text.push_str("Wherever a script runs, set the addresses of the hosts it should reach (this machine, if not set):\n\n");
        for host in hosts {
            let _ = writeln!(
                text,
                "    export {}=ADDRESS   # {} with {}",
                host.variable(),
                host.name,
                file_name(host.gpu())
            );
        }
        text.push('\n');
    }
    text.push_str(
        "On each host, with the engine installed, its script; it stops the engines when it is stopped:\n\n",
    );
    for host in hosts {
        let _ = writeln!(text, "    ./engines-{}.sh", host.name);
    }
    if proxies {
        text.push_str("\nPrompts and answers of some replicas are computed by different engines, which hand KV caches over by NIXL\n(`pip install nixl`; vLLM's documentation says which models and which pairs of tensor parallelism its `NixlConnector`\nsupports). A proxy before each such replica asks one after the other; beside the gateway:\n\n    PROXY=toy_proxy_server.py ./proxies.sh\n");
    }
    let _ = write!(
        text,
        "\nThen the gateway, with `boute` installed:\n\n    ./gateway.sh\n\nIt answers OpenAI's API on port {GATEWAY_PORT} (`PORT` for another); ask for the model `auto`. `PLAN` names another file than the plan\nhere, such as the one that an autopilot keeps true; options of `boute serve` may follow, such as `--decisions FILE`."
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Target, export};
    use crate::fixture::{disaggregated_plan, plan};

    fn script(files: &[super::ExportFile], name: &str) -> String {
        let file = files.iter().find(|file| file.path == name).unwrap_or_else(|| panic!("no {name}"));
        file.contents.lines().skip(4).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_scripts_are_what_one_would_type() {
        let files = export(Target::Shell, &plan(), Some(b"{}"), &Options::default()).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "engines-l40s-0.sh",
                "engines-h100-sxm-0.sh",
                "gateway.sh",
                "plan.json",
                "plan.router.json",
                "README.md"
            ]
        );
        insta::assert_snapshot!(script(&files, "engines-h100-sxm-0.sh"));
        insta::assert_snapshot!(script(&files, "gateway.sh"));
    }

    #[test]
    fn a_disaggregated_replica_has_engines_of_two_roles_and_a_proxy() {
        let files = export(Target::Shell, &disaggregated_plan(), Some(b"{}"), &Options::default()).unwrap();
        insta::assert_snapshot!(script(&files, "engines-l40s-1.sh"));
        insta::assert_snapshot!(script(&files, "proxies.sh"));
        assert!(script(&files, "gateway.sh").contains("--replica llama-3.1-70b=http://127.0.0.1:8010"));
    }
}
