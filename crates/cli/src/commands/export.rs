//! `boute export`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use boute_render::export::{self, ExportFile, FOLDERS, Labels, MARK, Options};

use crate::failure::{Ending, Failure};
use crate::files::{folder_of, read_plan, same_place, write_all_whole};
use crate::printer::Printer;
use crate::replay::router_of;

/// Lines of a difference that are shown of each file.
const SHOWN: usize = 20;
/// Lines within which a file says where it is from.
const HEAD: usize = 3;

/// Writes the files that run a plan on real engines, and a README with the commands. One plan gives the same bytes every
/// time. Engines' flags, image tags and names of GPU types are data in `catalog/`, see docs/exports.md.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the plan is to run.
    target: Target,
    /// The plan; its router artefact is beside it.
    plan: PathBuf,
    /// Folder to write to; made if it is not there.
    #[arg(long, short, required_unless_present_any = ["check", "diff"])]
    output: Option<PathBuf>,
    /// Engine of the replicas: vllm or sglang.
    #[arg(long, default_value_t = Options::default().engine)]
    engine: String,
    /// Image of the engines, instead of the engine's own with a fixed tag.
    #[arg(long)]
    image: Option<String>,
    /// Image of the gateway.
    #[arg(long, default_value_t = Options::default().gateway_image)]
    gateway_image: String,
    /// By which labels Kubernetes' nodes with a GPU type are found.
    #[arg(long, value_enum, default_value_t = NodeLabels::Gfd)]
    labels: NodeLabels,
    /// Do all but write: whether the plan can be exported, and to which files.
    #[arg(long)]
    check: bool,
    /// Compare with the export in this folder instead of writing; exit status 1 if it differs.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["check", "output"])]
    diff: Option<PathBuf>,
}

/// Where a plan can run.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Target {
    /// Scripts for each host
    Shell,
    /// Docker Compose, a file per host
    Compose,
    /// Kubernetes: Deployments, and `LeaderWorkerSet` for replicas that span nodes
    K8s,
    /// `SkyPilot` services and tasks
    Skypilot,
    /// Helm values of vLLM production-stack
    Helm,
    /// Helm values of llm-d's modelservice, and inference pools
    LlmD,
    /// `KServe`'s `LLMInferenceService`
    Kserve,
    /// `KubeRay`'s `RayService`
    Kuberay,
    /// Grafana dashboard and Prometheus alerts
    Grafana,
}

impl From<Target> for export::Target {
    fn from(target: Target) -> Self {
        match target {
            Target::Shell => Self::Shell,
            Target::Compose => Self::Compose,
            Target::K8s => Self::Kubernetes,
            Target::Skypilot => Self::SkyPilot,
            Target::Helm => Self::Helm,
            Target::LlmD => Self::LlmD,
            Target::Kserve => Self::KServe,
            Target::Kuberay => Self::KubeRay,
            Target::Grafana => Self::Grafana,
        }
    }
}

/// Who labels the nodes of the cluster.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NodeLabels {
    /// NVIDIA GPU Feature Discovery, on any cluster
    Gfd,
    /// Google Kubernetes Engine
    Gke,
    /// Karpenter on AWS
    Karpenter,
}

impl From<NodeLabels> for Labels {
    fn from(labels: NodeLabels) -> Self {
        match labels {
            NodeLabels::Gfd => Self::Gfd,
            NodeLabels::Gke => Self::Gke,
            NodeLabels::Karpenter => Self::Karpenter,
        }
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let plan = read_plan(&args.plan)?;
    let router = router_of(&plan, &args.plan)?;
    let options = Options {
        engine: args.engine.clone(),
        image: args.image.clone(),
        gateway_image: args.gateway_image.clone(),
        labels: args.labels.into(),
    };
    let router = router.as_ref().map(|router| router.text.as_bytes());
    let files = export::export(args.target.into(), &plan, router, &options).map_err(Failure::told)?;
    if let Some(folder) = &args.diff {
        return compare(folder, &files, &args.plan, printer);
    }
    let folder = args.output.as_deref().unwrap_or(Path::new(""));
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.path)).collect();
    let mut left = Vec::new();
    if args.check {
        printer.say(format_args!("{} files, none written:", files.len()));
    } else {
        let pieces = files.iter().zip(&paths);
        let pieces: Vec<_> =
            pieces.map(|(file, path)| (path.as_path(), file.contents.as_bytes(), file.executable)).collect();
        write_all_whole(&pieces)?;
        left = left_over(folder, &files, &args.plan);
    }
    for path in &paths {
        printer.say(format_args!("{} {}", if args.check { " " } else { "wrote" }, path.display()));
    }
    for path in &left {
        printer.say(format_args!("no longer part of it, remove: {}", folder.join(path).display()));
    }
    printer.data(&serde_json::json!({ "files": paths, "no_longer_part": left }))?;
    Ok(Ending::Done)
}

/// Says what writing `files` to `folder` would change.
fn compare(folder: &Path, files: &[ExportFile], plan: &Path, printer: Printer) -> Result<Ending, Failure> {
    let mut differ = Vec::new();
    let mut text = String::new();
    for file in files {
        let old = match fs::read_to_string(folder.join(&file.path)) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::unreadable(&folder.join(&file.path), &error)),
        };
        if old != file.contents {
            let _ = write!(text, "{}", difference(&file.path, &old, &file.contents));
            differ.push(file.path.clone());
        }
    }
    let left = left_over(folder, files, plan);
    for path in &left {
        let _ = writeln!(text, "{path}: no longer part of it");
    }
    printer.text(&text);
    let ending = if differ.is_empty() && left.is_empty() { Ending::Done } else { Ending::Unmet };
    printer.data(&serde_json::json!({ "differ": differ, "no_longer_part": left }))?;
    Ok(ending)
}

/// The lines between the first and the last that differ.
fn difference(path: &str, old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut old.iter().zip(&new));
    let tail = same(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
    let mut text = format!("{path}, line {}:\n", head + 1);
    for (mark, lines) in [('-', &old[head..old.len() - tail]), ('+', &new[head..new.len() - tail])] {
        for line in lines.iter().take(SHOWN) {
            let _ = writeln!(text, "{mark} {line}");
        }
        if lines.len() > SHOWN {
            let _ = writeln!(text, "{mark} … {} more lines", lines.len() - SHOWN);
        }
    }
    text
}

/// Files of an earlier export in `folder` that `files`, exported from `plan`, has no more, by their relative paths.
fn left_over(folder: &Path, files: &[ExportFile], plan: &Path) -> Vec<String> {
    let part = |path: &str| files.iter().any(|file| file.path == path);
    let mut found = Vec::new();
    for sub in [""].into_iter().chain(FOLDERS) {
        for entry in fs::read_dir(folder.join(sub)).into_iter().flatten().flatten() {
            let path = Path::new(sub).join(entry.file_name()).display().to_string();
            // What begins with a dot is the user's, such as a copy of `env.example` that is filled in.
            if !path.starts_with('.') && !part(&path) && is_marked(&entry.path()) {
                found.push(path);
            }
        }
    }
    // A plan says nothing of where it is from: one beside the plan that is exported may be the user's own.
    if !same_place(folder_of(plan), folder)
        && !part("plan.json")
        && let Ok(plan) = read_plan(&folder.join("plan.json"))
    {
        let router = Some(plan.routing.router.clone());
        found.extend(router.filter(|name| !name.is_empty() && !part(name) && folder.join(name).is_file()));
        found.push("plan.json".into());
    }
    found.sort();
    found
}

/// Whether a file says that an export has written it.
fn is_marked(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.lines().take(HEAD).any(|line| line.contains(MARK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changed() {
        assert_eq!(difference("f", "a\nb\nc\n", "a\nx\ny\nc\n"), "f, line 2:\n- b\n+ x\n+ y\n");
        assert_eq!(difference("f", "", "a\n"), "f, line 1:\n+ a\n");
        assert_eq!(difference("f", "a\na\n", "a\n"), "f, line 2:\n- a\n");
    }
}
