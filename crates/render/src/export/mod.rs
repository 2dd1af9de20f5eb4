//! Files that run a plan on real engines. One plan gives the same bytes every time.
//!
//! A plan is seen as engines to start (`fleet`), and each target writes these down in its own form. The words of the
//! engines' command lines and the names of GPU types elsewhere are data: `catalog/engines.toml`, `catalog/nodes.toml`.

mod compose;
mod engine;
mod fleet;
mod gateway;
mod grafana;
mod helm;
mod kserve;
mod kuberay;
mod kubernetes;
mod llm_d;
mod nodes;
mod shell;
mod skypilot;
mod yaml;

use std::fmt::Write;

use boute_spec::catalog::Precision;
use boute_spec::digest::sha256_hex;
use boute_spec::plan::{Plan, PlanDraft};

use fleet::{Fleet, Launch};
pub use nodes::Labels;

/// What every file but the plan, its router and the README says of its origin: in a comment at its top, or in its description.
pub const MARK: &str = "Written by boute";

/// The folders that an export may have besides its own.
pub const FOLDERS: [&str; 2] = ["pools", "values"];

/// Port of the gateway.
const GATEWAY_PORT: u32 = 8080;
/// Port of engines that have a host to themselves, as pods do.
const ENGINE_PORT: u32 = 8000;

/// Where a plan can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Scripts for each host.
    Shell,
    /// Docker Compose, a file per host.
    Compose,
    /// Kubernetes' own objects, and `LeaderWorkerSet` for replicas that span nodes.
    Kubernetes,
    /// `SkyPilot` tasks and services.
    SkyPilot,
    /// Values of vLLM production-stack's Helm chart.
    Helm,
    /// Values of llm-d's modelservice chart, and inference pools.
    LlmD,
    /// `KServe`'s `LLMInferenceService`.
    KServe,
    /// `KubeRay`'s `RayService`.
    KubeRay,
    /// Dashboard and alerts.
    Grafana,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Shell,
        Self::Compose,
        Self::Kubernetes,
        Self::SkyPilot,
        Self::Helm,
        Self::LlmD,
        Self::KServe,
        Self::KubeRay,
        Self::Grafana,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Compose => "compose",
            Self::Kubernetes => "k8s",
            Self::SkyPilot => "skypilot",
            Self::Helm => "helm",
            Self::LlmD => "llm-d",
            Self::KServe => "kserve",
            Self::KubeRay => "kuberay",
            Self::Grafana => "grafana",
        }
    }
}

/// What the user may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of the engine in `catalog/engines.toml`.
    pub engine: String,
    /// Image of the engines, if another than the table's.
    pub image: Option<String>,
    /// Image of the gateway.
    pub gateway_image: String,
    /// By which labels nodes are found.
    pub labels: Labels,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: "vllm".into(),
            image: None,
            gateway_image: concat!("boute:", env!("CARGO_PKG_VERSION")).into(),
            labels: Labels::Gfd,
        }
    }
}

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

impl ExportFile {
    fn new(path: impl Into<String>, contents: String) -> Self {
        Self { path: path.into(), contents, executable: false }
    }

    fn script(path: impl Into<String>, contents: String) -> Self {
        Self { executable: true, ..Self::new(path, contents) }
    }
}

/// Why a plan cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The engine is not in the table.
    #[error("unknown engine `{name}`\n  help: one of {known}")]
    Engine {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The precision has no flags in this engine.
    #[error(
        "`{model}` has {precision:?} weights that {engine} loads only from a checkpoint which says so\n  help: leave `dtype` out of the spec and name such a checkpoint in `weights`"
    )]
    Precision {
        /// Model id.
        model: String,
        /// Its precision.
        precision: Precision,
        /// Engine and version.
        engine: String,
    },
    /// Prompts are computed elsewhere than answers.
    #[error(
        "group `{group}` is disaggregated, which `{target}` has no place for without a router of its own that pairs engines\n  help: `boute export shell` writes it, or plan without `disaggregate`"
    )]
    Disaggregated {
        /// Group id.
        group: String,
        /// Target.
        target: &'static str,
    },
    /// The engine's hand-over of KV caches is not in the table.
    #[error(
        "group `{group}` is disaggregated, which is written for vLLM only, not for {engine}\n  help: leave out `--engine`, or plan without `disaggregate`"
    )]
    NoKvTransfer {
        /// Group id.
        group: String,
        /// Engine and version.
        engine: String,
    },
    /// The target starts vLLM itself.
    #[error(
        "`{target}` runs vLLM only\n  help: leave out `--engine`; `shell`, `compose`, `k8s` and `skypilot` run others"
    )]
    OnlyVllm {
        /// Target.
        target: &'static str,
    },
    /// The target has no name for a GPU type.
    #[error("`{gpu}` has no known name in {of}\n  help: {help}; names are in `catalog/nodes.toml`")]
    NoName {
        /// Catalogue name.
        gpu: String,
        /// Whose names.
        of: &'static str,
        /// What else one can do.
        help: &'static str,
    },
}

/// The files that run `plan` on `target`. `router` is the artefact that the plan routes by; it goes along.
///
/// # Errors
/// If the target, or the engine, has no form for something in the plan.
pub fn export(
    target: Target,
    plan: &Plan,
    router: Option<&[u8]>,
    options: &Options,
) -> Result<Vec<ExportFile>, ExportError> {
    let fleet = Fleet::new(plan, options)?;
    match target {
        Target::Shell => Ok(shell::files(&fleet, router)),
        Target::Compose => compose::files(&fleet, router),
        Target::Kubernetes => kubernetes::files(&fleet, router),
        Target::SkyPilot => skypilot::files(&fleet, router),
        Target::Helm => helm::files(&fleet, router),
        Target::LlmD => llm_d::files(&fleet, router),
        Target::KServe => kserve::files(&fleet, router),
        Target::KubeRay => kuberay::files(&fleet, router),
        Target::Grafana => Ok(grafana::files(plan)),
    }
}

/// First twelve digits of the plan's SHA-256.
fn plan_id(plan: &Plan) -> String {
    sha256_hex(plan.to_json_pretty().as_bytes())[..12].to_owned()
}

/// Where a file comes from.
fn origin(plan: &Plan) -> String {
    format!("{MARK} {} for plan {}.", plan.tool_version, plan_id(plan))
}

/// Where a file comes from and what is promised, as lines of comment.
fn header(plan: &Plan) -> String {
    format!("# {}\n# Predicted: {}.\n", origin(plan), promise(plan))
}

/// `$38.00/h at 20 req/s, E2E p95 12.0 s, quality 0.5400`.
fn promise(plan: &Plan) -> String {
    let predicted = &plan.predicted;
    format!(
        "{} at {}, TTFT p95 {:.2} s, E2E p95 {:.1} s, quality {:.4}",
        predicted.cost_usd_per_hour,
        predicted.rate,
        predicted.ttft.p95.value_ms / 1e3,
        predicted.e2e.p95.value_ms / 1e3,
        predicted.quality.value
    )
}

/// [`header`] and the version whose flags are written.
fn header_of(fleet: &Fleet<'_>) -> String {
    format!("{}# Flags of {}, image {}.\n", header(fleet.plan), fleet.engine.title(), one_line(fleet.image()))
}

/// The same, and which engines the file is about.
fn header_of_launch(fleet: &Fleet<'_>, launch: &Launch<'_>) -> String {
    format!("{}# {}\n", header_of(fleet), launch.words())
}

/// The README of an export: what it runs, then `body`, the commands.
fn readme(fleet: &Fleet<'_>, title: &str, body: &str) -> ExportFile {
    let mut text = format!(
        "# {title}\n\nPlan {} of boute {}; predicted: {}.\n\n",
        plan_id(fleet.plan),
        fleet.plan.tool_version,
        promise(fleet.plan)
    );
    for launch in &fleet.launches {
        let _ = writeln!(text, "- `{}`: {}", launch.name, launch.words());
    }
    let _ = write!(text, "\n{}\n", body.trim_end());
    ExportFile::new("README.md", text)
}

/// The plan and its router artefact, if it has one, beside each other.
fn plan_files(plan: &Plan, router: Option<&[u8]>) -> Vec<ExportFile> {
    let name = router_name(plan);
    let mut files = vec![ExportFile::new("plan.json", plan_with_router_at(plan, &name))];
    if let Some(router) = router.filter(|_| !name.is_empty()) {
        files.push(ExportFile::new(name, String::from_utf8_lossy(router).into_owned()));
    }
    files
}

/// Name of the router artefact beside the plan; empty if the plan has none.
fn router_name(plan: &Plan) -> String {
    file_name(plan.routing.router.rsplit(['/', '\\']).next().unwrap_or_default())
}

/// The plan as a file that finds its router artefact at `path`.
fn plan_with_router_at(plan: &Plan, path: &str) -> String {
    let mut draft = PlanDraft::from(plan.clone());
    path.clone_into(&mut draft.routing.router);
    // Where its router is found says nothing about whether a plan holds together.
    Plan::try_from(draft).as_ref().unwrap_or(plan).to_json_pretty()
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

/// Safe inside a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn file_name(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_words() {
        assert_eq!(quote("a b'; rm -rf /"), "'a b'\\''; rm -rf /'");
        assert_eq!(quote(""), "''");
        assert_eq!(file_name("../x y"), "..-x-y");
    }
}
