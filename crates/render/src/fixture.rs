//! Plans for tests: eight-billion model on L40S, seventy-billion model on H100.
#![cfg(test)]

use boute_spec::catalog::Catalog;
use boute_spec::plan::{Disaggregated, Plan, PlanDraft, PrefillInstances};
use boute_spec::policy::RoutingPolicy;
use boute_spec::units::{Fraction, UsdPerHour};

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

/// One small model on one GPU.
pub(crate) fn one_gpu_plan() -> Plan {
    let mut draft = PlanDraft::from(plan());
    draft.deployment.groups.truncate(1);
    let group = &mut draft.deployment.groups[0];
    (group.replicas, group.usd_per_hour) = (1, UsdPerHour::new(1.0).unwrap());
    draft.predicted.cost_usd_per_hour = group.usd_per_hour;
    let model = group.model.clone();
    draft.routing.models.truncate(1);
    draft.routing.models[0].load_fraction = Fraction::new(1.0).unwrap();
    draft.routing.policy = RoutingPolicy::Constant { model };
    (draft.routing.router, draft.routing.router_digest) = (String::new(), String::new());
    Plan::try_from(draft).unwrap()
}

/// The same fleet with the seventy-billion model in two stages over two nodes of eight GPUs.
pub(crate) fn two_node_plan() -> Plan {
    let mut draft = PlanDraft::from(plan());
    let group = &mut draft.deployment.groups[1];
    (group.tp, group.id) = (8, "llama-3.1-70b-h100-sxm-tp8-pp2".into());
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
