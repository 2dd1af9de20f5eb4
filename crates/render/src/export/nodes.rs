//! What clusters and clouds call a GPU type, from `catalog/nodes.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

/// Who labels the nodes of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// NVIDIA GPU Feature Discovery, on any cluster.
    Gfd,
    /// Google Kubernetes Engine.
    Gke,
    /// Karpenter on AWS.
    Karpenter,
}

impl Labels {
    /// As in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gfd => "gfd",
            Self::Gke => "gke",
            Self::Karpenter => "karpenter",
        }
    }
}

/// What others call one GPU type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    name: String,
    gfd: Option<String>,
    gke: Option<String>,
    karpenter: Option<String>,
    pub(super) skypilot: Option<String>,
    pub(super) ray: Option<String>,
    /// Whether the value of `gfd` was seen in use.
    #[serde(default)]
    seen: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labeller {
    name: String,
    key: String,
    #[expect(dead_code, reason = "for those who read the table; required of every entry")]
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    labeller: Vec<Labeller>,
    gpu: Vec<Names>,
}

static NODES: LazyLock<NodeFile> = LazyLock::new(|| {
    let text = include_str!("../../../../catalog/nodes.toml");
    toml::from_str(text).unwrap_or_else(|error| panic!("nodes.toml: {error}"))
});

/// A label that nodes with a GPU type have.
pub(super) struct NodeLabel {
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    /// Whether the value is a guess.
    pub(super) assumed: bool,
}

impl Names {
    /// Of a GPU type by its catalogue name.
    pub(super) fn of(gpu: &str) -> Option<&'static Self> {
        NODES.gpu.iter().find(|names| names.name == gpu)
    }

    /// The label by which its nodes are found.
    pub(super) fn label(&'static self, labels: Labels) -> Option<NodeLabel> {
        let (value, assumed) = match labels {
            Labels::Gfd => (&self.gfd, !self.seen),
            Labels::Gke => (&self.gke, false),
            Labels::Karpenter => (&self.karpenter, true),
        };
        let labeller = NODES.labeller.iter().find(|it| it.name == labels.name())?;
        Some(NodeLabel { key: &labeller.key, value: value.as_deref()?, assumed })
    }
}

#[cfg(test)]
mod tests {
    use boute_spec::catalog::Catalog;

    use super::*;

    #[test]
    fn every_gpu_of_the_catalogue_with_cuda_has_a_label_and_no_two_the_same() {
        let mut values = std::collections::BTreeSet::new();
        for gpu in Catalog::builtin().gpus().iter().filter(|gpu| gpu.sm_version.is_some()) {
            let label = Names::of(&gpu.name).and_then(|names| names.label(Labels::Gfd));
            assert!(values.insert(label.unwrap_or_else(|| panic!("{}", gpu.name)).value), "{}", gpu.name);
        }
        for names in &NODES.gpu {
            assert!(
                Catalog::builtin().gpu(&names.name).is_ok_and(|gpu| gpu.name == names.name),
                "{}",
                names.name
            );
        }
    }
}
