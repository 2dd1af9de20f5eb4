//! A plan for tests: eight-billion model on L40S, seventy-billion model on H100.
#![cfg(test)]

use boute_spec::catalog::Catalog;
use boute_spec::plan::{Disaggregated, Plan, PlanDraft, PrefillInstances};

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

/// The same where two engines on L40S compute the prompts of the seventy-billion model.
pub(crate) fn disaggregated_plan() -> Plan {
    let mut draft = PlanDraft::from(plan());
    let group = &mut draft.deployment.groups[1];
    let prefill = PrefillInstances {
        instances: 2,
        gpu: "L40S".into(),
        tp: 4,
        pp: 1,
        kv_cache_tokens: 100_000,
        engine: group.engine.clone(),
    };
    group.disaggregated = Some(Disaggregated { decode_instances: 1, prefill });
    Plan::try_from(draft).unwrap()
}
