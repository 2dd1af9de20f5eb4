//! Values that a shell completes: names of the catalogue.

use boute_spec::catalog::Catalog;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

/// Models of the catalogue.
pub(crate) fn models() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        Catalog::builtin().models().iter().map(|model| CompletionCandidate::new(&model.id)).collect()
    })
}

/// GPU types of the catalogue.
pub(crate) fn gpus() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        Catalog::builtin().gpus().iter().map(|gpu| CompletionCandidate::new(&gpu.name)).collect()
    })
}
