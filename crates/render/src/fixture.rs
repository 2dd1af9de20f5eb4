//! A plan for tests: eight-billion model on L40S, seventy-billion model on H100.
#![cfg(test)]

use boute_spec::catalog::Catalog;
use boute_spec::plan::{Plan, PlanDraft};

/// The plan in `tests/data/plan.json`, with models and GPUs from the catalogue.
pub(crate) fn plan() -> Plan {
    let mut draft: serde_json::Value = serde_json::from_str(include_str!("../tests/data/plan.json")).unwrap();
    let catalog = Catalog::builtin();
    let models = ["llama-3.1-8b", "llama-3.1-70b"].map(|id| catalog.model(id).unwrap());
    draft["models"] = serde_json::to_value(models).unwrap();
    let gpus = ["L40S", "H100-SXM"].map(|name| catalog.gpu(name).unwrap());
    draft["gpus"] = serde_json::to_value(gpus).unwrap();
    let draft: PlanDraft = serde_json::from_value(draft).unwrap();
    Plan::try_from(draft).unwrap()
}
