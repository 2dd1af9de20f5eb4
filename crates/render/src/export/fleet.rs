//! A plan as engines to start: the view that all targets share.

use std::collections::BTreeSet;
use std::ops::Range;

use boute_spec::catalog::{Gpu, Model};
use boute_spec::digest::sha256_hex;
use boute_spec::plan::{Instances, Plan, ReplicaGroup, Role};

use super::engine::{Engine, filled};
use super::nodes::Names;
use super::{ExportError, Options};

/// First port of engines that share a host; each has the next one.
pub(super) const FIRST_PORT: u32 = 8001;
/// First port at which the nodes of a replica find each other.
const FIRST_RENDEZVOUS: u32 = 29_501;
/// Time an engine may take to start once its weights are there: compilation and CUDA graphs. Assumed.
const START_S: f64 = 600.0;
/// Slowest download of weights that is waited for. Assumed.
const DOWNLOAD_BYTES_PER_S: f64 = 100e6;

/// What is exported.
pub(super) struct Fleet<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a Options,
    pub(super) engine: &'static Engine,
    /// In the order of the plan.
    pub(super) launches: Vec<Launch<'a>>,
}

/// Equal engines of one group.
pub(super) struct Launch<'a> {
    /// Unique; fit for a host or service name.
    pub(super) name: String,
    pub(super) group: &'a ReplicaGroup,
    pub(super) model: &'a Model,
    pub(super) role: Role,
    /// Engines per replica, and of the whole group.
    pub(super) per_replica: u32,
    pub(super) count: u32,
    pub(super) gpu: &'a Gpu,
    /// Machines that one engine spans, and the GPUs it takes of each.
    pub(super) nodes: u32,
    pub(super) gpus_per_node: u32,
    pub(super) tp: u32,
    pub(super) pp: u32,
    pub(super) prefix_caching: bool,
    /// What fills the placeholders of the engine's table.
    values: Vec<(&'static str, String)>,
    /// How its precision is asked for.
    precision: &'static [String],
}

/// A node of an engine as far as its command line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// The only one, or the first: it listens.
    First,
    /// Any other.
    Other,
}

impl<'a> Fleet<'a> {
    /// # Errors
    /// If the engine cannot be asked for a model's precision, or is not known.
    pub(super) fn new(plan: &'a Plan, options: &'a Options) -> Result<Self, ExportError> {
        let engine = Engine::all().iter().find(|it| it.name == options.engine);
        let engine = engine.ok_or_else(|| ExportError::Engine {
            name: options.engine.clone(),
            known: Engine::all().iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let mut names = BTreeSet::new();
        let mut launches = Vec::new();
        for group in &plan.deployment.groups {
            // A plan that was checked has the model and the GPU of every group.
            let Some(model) = plan.models.iter().find(|it| it.id == group.model) else { continue };
            for instances in group.instances() {
                let Some(gpu) = plan.gpus.iter().find(|it| it.name == instances.gpu) else { continue };
                let name = unique_name(group, instances.role, &mut names);
                launches.push(Launch::new(name, group, &instances, model, gpu, engine)?);
            }
        }
        Ok(Self { plan, options, engine, launches })
    }

    /// The image of the engines.
    pub(super) fn image(&self) -> &str {
        self.options.image.as_deref().unwrap_or(&self.engine.image)
    }

    /// The words that start an engine; address of the first node and rank stay as placeholders.
    pub(super) fn command(&self, launch: &Launch<'_>, port: u32, node: Node) -> Vec<String> {
        let engine = self.engine;
        let mut words = if launch.nodes > 1 { engine.nodes.clone() } else { Vec::new() };
        words.extend_from_slice(if node == Node::First { &engine.listen } else { &engine.follow });
        let mut values = launch.values.clone();
        values.push(("port", port.to_string()));
        values.push(("rendezvous", (FIRST_RENDEZVOUS + port.saturating_sub(FIRST_PORT)).to_string()));
        let program = filled(&engine.command, &values);
        [program, self.settings(launch), filled(&words, &values)].concat()
    }

    /// The flags that say how an engine runs, without which weights and where it listens.
    pub(super) fn settings(&self, launch: &Launch<'_>) -> Vec<String> {
        let engine = self.engine;
        let mut words = engine.flags.clone();
        if launch.pp > 1 {
            words.extend_from_slice(&engine.pipeline);
        }
        words.extend_from_slice(launch.precision);
        if launch.model.kv_bytes_per_element == 1 {
            words.extend_from_slice(&engine.fp8_kv_cache);
        }
        words.extend_from_slice(if launch.prefix_caching {
            &engine.prefix_caching
        } else {
            &engine.no_prefix_caching
        });
        if launch.role != Role::Both {
            words.extend_from_slice(&engine.kv_transfer);
        }
        filled(&words, &launch.values)
    }

    /// # Errors
    /// If an engine hands KV caches over, which `target` has no place for.
    pub(super) fn no_disaggregation(&self, target: &'static str) -> Result<(), ExportError> {
        match self.launches.iter().find(|launch| launch.role != Role::Both) {
            Some(launch) => Err(ExportError::Disaggregated { group: launch.group.id.clone(), target }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// If the engine is one that `target` does not run.
    pub(super) fn only_vllm(&self, target: &'static str) -> Result<(), ExportError> {
        if self.engine.name == "vllm" { Ok(()) } else { Err(ExportError::OnlyVllm { target }) }
    }

    /// Engines on numbered hosts of their GPU types, each host filled before the next.
    pub(super) fn hosts(&self) -> Vec<Host<'a>> {
        let mut hosts: Vec<Host<'a>> = Vec::new();
        let mut port = FIRST_PORT;
        for (launch, of) in self.launches.iter().enumerate() {
            for engine in 0..of.count {
                let mut leader = 0;
                let mut taken = BTreeSet::new();
                for rank in 0..of.nodes {
                    let host = with_room(&mut hosts, of, &taken);
                    taken.insert(host);
                    if rank == 0 {
                        leader = host;
                    }
                    let first = hosts[host].used;
                    hosts[host].used += of.gpus_per_node;
                    let devices = first..first + of.gpus_per_node;
                    hosts[host].engines.push(Placed { launch, engine, rank, devices, port, leader });
                }
                port += 1;
            }
        }
        hosts
    }
}

/// The first host of the launch's GPU type with enough free GPUs that is not taken; a new one if there is none.
fn with_room<'a>(hosts: &mut Vec<Host<'a>>, launch: &Launch<'a>, taken: &BTreeSet<usize>) -> usize {
    let gpu = launch.gpu;
    let room = |host: &Host<'_>| host.used + launch.gpus_per_node <= gpu.gpus_per_node;
    let found = (0..hosts.len())
        .find(|it| hosts[*it].gpu.name == gpu.name && !taken.contains(it) && room(&hosts[*it]));
    found.unwrap_or_else(|| {
        let number = hosts.iter().filter(|host| host.gpu.name == gpu.name).count();
        hosts.push(Host {
            name: format!("{}-{number}", label(&gpu.name)),
            gpu,
            used: 0,
            engines: Vec::new(),
        });
        hosts.len() - 1
    })
}

/// A machine and the engines on it.
pub(super) struct Host<'a> {
    /// `h100-sxm-0`.
    pub(super) name: String,
    gpu: &'a Gpu,
    used: u32,
    pub(super) engines: Vec<Placed>,
}

impl Host<'_> {
    /// Name of the environment variable with its address.
    pub(super) fn variable(&self) -> String {
        self.name.to_uppercase().replace('-', "_")
    }

    pub(super) fn gpu(&self) -> &str {
        &self.gpu.name
    }
}

/// An engine, or one node of it, on a host.
pub(super) struct Placed {
    /// Index of its launch.
    pub(super) launch: usize,
    /// Number within the launch.
    pub(super) engine: u32,
    /// Number of the node within the engine.
    pub(super) rank: u32,
    /// GPUs of the host.
    pub(super) devices: Range<u32>,
    /// Port of the engine; no other engine of the fleet has it.
    pub(super) port: u32,
    /// Index of the host of the first node.
    pub(super) leader: usize,
}

impl Placed {
    pub(super) const fn node(&self) -> Node {
        if self.rank == 0 { Node::First } else { Node::Other }
    }
}

impl<'a> Launch<'a> {
    fn new(
        name: String,
        group: &'a ReplicaGroup,
        instances: &Instances<'a>,
        model: &'a Model,
        gpu: &'a Gpu,
        engine: &'static Engine,
    ) -> Result<Self, ExportError> {
        let Instances { role, count, tp, pp, engine: settings, .. } = *instances;
        if role != Role::Both && engine.kv_transfer.is_empty() {
            return Err(ExportError::NoKvTransfer { group: group.id.clone(), engine: engine.title() });
        }
        let precision = engine.precision.get(&model.precision).ok_or_else(|| ExportError::Precision {
            model: model.id.clone(),
            precision: model.precision,
            engine: engine.title(),
        })?;
        let nodes = nodes(tp, pp, gpu.gpus_per_node);
        let values = vec![
            ("weights", model.weights.clone()),
            ("model", model.id.clone()),
            ("tp", tp.to_string()),
            ("pp", pp.to_string()),
            ("max_num_seqs", settings.max_num_seqs.to_string()),
            ("max_num_batched_tokens", settings.max_num_batched_tokens.to_string()),
            ("gpu_memory_utilization", settings.gpu_memory_utilization.to_string()),
            ("max_model_len", settings.max_model_len.to_string()),
            ("nodes", nodes.to_string()),
        ];
        Ok(Self {
            name,
            group,
            model,
            role,
            per_replica: count,
            count: group.replicas * count,
            gpu,
            nodes,
            gpus_per_node: tp * pp / nodes,
            tp,
            pp,
            prefix_caching: settings.enable_prefix_caching,
            values,
            precision,
        })
    }

    /// How long the engine may take until it answers: weights fetched slowly, then the start.
    pub(super) fn start_s(&self) -> u32 {
        let bytes = self.model.shape.parameters() * self.model.precision.bytes_per_weight();
        (START_S + bytes / DOWNLOAD_BYTES_PER_S).ceil() as u32
    }

    /// `6 × llama-3.1-8b on L40S, TP1`, in one line.
    pub(super) fn words(&self) -> String {
        let stages = if self.pp > 1 { format!(" × PP{}", self.pp) } else { String::new() };
        let nodes = if self.nodes > 1 { format!(" over {} nodes", self.nodes) } else { String::new() };
        let text =
            format!("{} × {} on {}, TP{}{stages}{nodes}", self.count, self.model.id, self.gpu.name, self.tp);
        super::one_line(&text)
    }

    /// What others call its GPU type.
    pub(super) fn names(&self) -> Option<&'static Names> {
        Names::of(&self.gpu.name)
    }
}

/// Fewest nodes over which `pp` stages of `tp` GPUs spread evenly; a stage stays within a node.
fn nodes(tp: u32, pp: u32, gpus_per_node: u32) -> u32 {
    let stages_per_node = (gpus_per_node / tp).max(1);
    (pp.div_ceil(stages_per_node)..=pp).find(|nodes| pp.is_multiple_of(*nodes)).unwrap_or(pp)
}

/// A name for these engines that no other has.
fn unique_name(group: &ReplicaGroup, role: Role, names: &mut BTreeSet<String>) -> String {
    let part = match role {
        Role::Both => "",
        Role::Prefill => "-prefill",
        Role::Decode => "-decode",
    };
    let id = format!("{}{part}", group.id);
    let mut name = label(&id);
    // Orchestrators add to the name, and 63 characters are the limit.
    if name.len() > 40 || names.contains(&name) {
        name.truncate(33);
        name = format!("{}-{}", name.trim_end_matches('-'), &sha256_hex(id.as_bytes())[..6]);
    }
    names.insert(name.clone());
    name
}

/// `text` as a DNS label that begins with a letter (RFC 1035).
pub(super) fn label(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(plain).collect();
    let name = name.trim_matches('-');
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { name.to_owned() } else { format!("m-{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{one_gpu_plan, plan, two_node_plan};

    #[test]
    fn stages_spread_evenly_and_stay_within_a_node() {
        for (tp, pp, node, want) in
            [(1, 1, 8, 1), (4, 2, 8, 1), (8, 2, 8, 2), (4, 3, 8, 3), (4, 4, 8, 2), (2, 6, 8, 2), (1, 3, 2, 3)]
        {
            assert_eq!(nodes(tp, pp, node), want, "TP{tp} PP{pp}, {node} GPUs per node");
        }
    }

    #[test]
    fn names_are_labels_and_unique() {
        assert_eq!(label("Llama-3.1_8B"), "llama-3-1-8b");
        assert_eq!(label("70b"), "m-70b");
        let mut names = BTreeSet::new();
        let mut group = plan().deployment.groups[0].clone();
        for id in ["a.b", "a-b", "a_b", &"x".repeat(80), &"x".repeat(81)] {
            group.id = id.to_owned();
            let name = unique_name(&group, Role::Both, &mut names);
            assert!(name.len() <= 40, "{name}");
        }
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn hosts_are_filled_one_after_the_other() {
        let hosts = |plan: &Plan| {
            let options = Options::default();
            let fleet = Fleet::new(plan, &options).unwrap();
            let placed = |it: &Placed| format!("{}/{} {:?} from {}", it.port, it.rank, it.devices, it.leader);
            let engines = |host: &Host<'_>| host.engines.iter().map(placed).collect::<Vec<_>>().join(", ");
            let hosts = fleet.hosts();
            hosts.iter().map(|host| format!("{}: {}", host.name, engines(host))).collect::<Vec<_>>()
        };
        assert_eq!(hosts(&one_gpu_plan()), ["l40s-0: 8001/0 0..1 from 0"]);
        assert_eq!(hosts(&plan())[1], "h100-sxm-0: 8007/0 0..8 from 1");
        let two = hosts(&two_node_plan());
        assert_eq!(two[1..], ["h100-sxm-0: 8007/0 0..8 from 1", "h100-sxm-1: 8007/1 0..8 from 1"]);
    }
}
