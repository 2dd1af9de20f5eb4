//! The only way to a [`Plan`]: through its checks.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::catalog::Model;
use crate::certificate::Certificate;
use crate::data_file::DataError;
use crate::outcome::Outcome;
use crate::plan::{EngineFlags, Instances, PLAN_VERSION, PlanDraft, ReplicaGroup, Role};
use crate::policy::{CascadePolicy, RoutingPolicy};

/// Two sums of money or shares are equal within this, for rounding.
const ROUNDING: f64 = 1e-6;

/// A plan that holds together: it was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PlanDraft", into = "PlanDraft")]
pub struct Plan(PlanDraft);

/// Everything in which a draft does not hold together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InvalidPlan {
    /// One sentence each; at least one.
    pub problems: Vec<String>,
}

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plan does not hold together:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl Deref for Plan {
    type Target = PlanDraft;
    fn deref(&self) -> &PlanDraft {
        &self.0
    }
}

impl From<Plan> for PlanDraft {
    fn from(plan: Plan) -> Self {
        plan.0
    }
}

impl TryFrom<PlanDraft> for Plan {
    type Error = InvalidPlan;
    fn try_from(draft: PlanDraft) -> Result<Self, InvalidPlan> {
        let mut problems = Vec::new();
        if draft.version != PLAN_VERSION {
            problems.push(wrong_version(draft.version));
        }
        check_catalogue(&draft, &mut problems);
        check_groups(&draft, &mut problems);
        check_routing(&draft, &mut problems);
        check_money(&draft, &mut problems);
        check_numbers(&draft, &mut problems);
        if problems.is_empty() { Ok(Self(draft)) } else { Err(InvalidPlan { problems }) }
    }
}

fn wrong_version(version: u32) -> String {
    format!("version {version} is not {PLAN_VERSION}, which this boute reads")
}

/// The models and GPUs that the plan carries along: named once, and nothing is divided by zero later.
fn check_catalogue(draft: &PlanDraft, problems: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    for model in &draft.models {
        if !names.insert(&model.id) {
            problems.push(format!("the model `{}` occurs twice", model.id));
        }
        let shape = &model.shape;
        let sizes = [shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab];
        if sizes.contains(&0) || model.kv_bytes_per_element == 0 || shape.attention_layers() == 0 {
            problems.push(format!("the shape of `{}` has a zero", model.id));
        }
    }
    let mut names = BTreeSet::new();
    for gpu in &draft.gpus {
        if !names.insert(&gpu.name) {
            problems.push(format!("the GPU type `{}` occurs twice", gpu.name));
        }
        let figures =
            [gpu.bandwidth_bytes_per_s, gpu.bf16_flops, gpu.link_bytes_per_s, gpu.network_bytes_per_s];
        let positive = figures.iter().all(|figure| figure.is_finite() && *figure > 0.0);
        if !positive || gpu.memory_bytes.0 == 0 {
            problems.push(format!("a figure of `{}` is not a positive number", gpu.name));
        }
    }
}

fn check_groups(draft: &PlanDraft, problems: &mut Vec<String>) {
    if draft.deployment.groups.is_empty() {
        problems.push("no replica group".into());
    }
    let mut ids = BTreeSet::new();
    for group in &draft.deployment.groups {
        let id = &group.id;
        if !ids.insert(id) {
            problems.push(format!("the group `{id}` occurs twice"));
        }
        let model = draft.models.iter().find(|model| model.id == group.model);
        if model.is_none() {
            problems.push(format!("group `{id}` runs `{}`, which is not among `models`", group.model));
        }
        if group.replicas == 0 {
            problems.push(format!("group `{id}` has no replica"));
        }
        for instances in group.instances() {
            check_instances(draft, id, model, &instances, problems);
        }
        if too_many_gpus(group) {
            problems.push(format!("group `{id}` has more GPUs than can be counted"));
        }
    }
}

fn check_instances(
    draft: &PlanDraft,
    id: &str,
    model: Option<&Model>,
    instances: &Instances<'_>,
    problems: &mut Vec<String>,
) {
    let Instances { role, count, gpu, tp, pp, kv_cache_tokens, engine } = *instances;
    if let Some(model) = model.filter(|model| pp > model.shape.layers) {
        let layers = model.shape.layers;
        problems.push(format!("group `{id}`: PP {pp} cannot be, `{}` has {layers} layers", model.id));
    }
    if count == 0 {
        let missing = if role == Role::Prefill { "computes prompts" } else { "decodes" };
        problems.push(format!("group `{id}`: no engine {missing}"));
    }
    if kv_cache_tokens == 0 {
        problems.push(format!("group `{id}` has no KV cache"));
    }
    match draft.gpus.iter().find(|it| it.name == gpu) {
        None => problems.push(format!("group `{id}` runs on `{gpu}`, which is not among `gpus`")),
        Some(gpu) if tp == 0 || pp == 0 || tp > gpu.gpus_per_node => {
            let node = gpu.gpus_per_node;
            problems.push(format!("group `{id}`: TP {tp} × PP {pp} cannot be, a node has {node} GPUs"));
        }
        Some(_) => {}
    }
    check_engine(id, engine, problems);
}

/// Whether no `u32` holds the GPUs of a group.
fn too_many_gpus(group: &ReplicaGroup) -> bool {
    let of = |it: &Instances<'_>| it.tp.checked_mul(it.pp)?.checked_mul(it.count);
    let sum = group.instances().iter().map(of).try_fold(0_u32, |sum, gpus| sum.checked_add(gpus?));
    sum.and_then(|gpus| gpus.checked_mul(group.replicas)).is_none()
}

fn check_engine(id: &str, engine: &EngineFlags, problems: &mut Vec<String>) {
    let limits = [engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len];
    if limits.contains(&0) {
        problems.push(format!("group `{id}`: an engine limit is zero, so it would answer nothing"));
    }
    if !(engine.gpu_memory_utilization > 0.0 && engine.gpu_memory_utilization <= 1.0) {
        let share = engine.gpu_memory_utilization;
        problems.push(format!("group `{id}`: gpu_memory_utilization is {share}, not a share"));
    }
}

fn check_routing(draft: &PlanDraft, problems: &mut Vec<String>) {
    let routing = &draft.routing;
    let chosen = routing.policy.models();
    for model in &chosen {
        if !draft.deployment.groups.iter().any(|group| group.model == *model) {
            problems.push(format!("the routing policy sends queries to `{model}`, which no group runs"));
        }
    }
    if let RoutingPolicy::Utility { penalties } = &routing.policy {
        if penalties.len() < 2 {
            problems.push("a utility policy needs at least two models".into());
        }
        let names: BTreeSet<_> = chosen.iter().collect();
        if names.len() < chosen.len() {
            problems.push("the routing policy names a model twice".into());
        }
        for penalty in penalties.iter().filter(|penalty| !penalty.lambda.is_finite()) {
            problems.push(format!("λ of `{}` is not a finite number", penalty.model));
        }
    }
    let shares: Vec<_> = routing.models.iter().map(|share| share.model.as_str()).collect();
    if shares != chosen {
        problems.push("`routing.models` does not list the models of the policy, in its order".into());
    }
    if let Some(certificate) = &routing.certificate {
        check_certificate(certificate, &chosen, problems);
    }
    if let Some(cascade) = &routing.cascade {
        check_cascade(cascade, &chosen, problems);
    }
    for (model, others) in &routing.fallback {
        for name in std::iter::once(model).chain(others) {
            if !draft.deployment.groups.iter().any(|group| group.model == *name) {
                problems.push(format!("`routing.fallback` names `{name}`, which no group runs"));
            }
        }
    }
    let sum: f64 = routing.models.iter().map(|share| share.load_fraction.get()).sum();
    if (sum - 1.0).abs() > ROUNDING {
        problems.push(format!("the load fractions sum to {sum}, not to 1"));
    }
}

fn check_certificate(certificate: &Certificate, chosen: &[&str], problems: &mut Vec<String>) {
    let Certificate { safe_model, reference } = certificate;
    if !chosen.contains(&safe_model.as_str()) {
        problems
            .push(format!("the certificate falls back on `{safe_model}`, which the policy does not have"));
    }
    if !reference.is_sound() || chosen.iter().any(|model| !reference.models.iter().any(|it| it == model)) {
        problems.push("the certificate's reference does not hold together".into());
    }
}

fn check_cascade(cascade: &CascadePolicy, chosen: &[&str], problems: &mut Vec<String>) {
    let CascadePolicy { from, to, max_share, min_gain, weights } = cascade;
    for model in [from, to] {
        if !chosen.contains(&model.as_str()) {
            problems.push(format!("the cascade names `{model}`, which the policy does not have"));
        }
    }
    if from == to {
        problems.push(format!("the cascade asks `{to}` after itself"));
    }
    if max_share.get() <= 0.0 || max_share.get() >= 1.0 {
        problems.push(format!("the cascade's share of {} is not between 0 and 1", max_share.get()));
    }
    if !weights.iter().flatten().chain([min_gain]).all(|number| number.is_finite()) {
        problems.push("a number of the cascade is not finite".into());
    }
}

fn check_money(draft: &PlanDraft, problems: &mut Vec<String>) {
    let (rent, stated) = (draft.deployment.usd_per_hour(), draft.predicted.cost_usd_per_hour.get());
    if (rent - stated).abs() > ROUNDING * rent.max(1.0) {
        problems.push(format!("the groups cost ${rent:.4}/h, but the plan says ${stated:.4}/h"));
    }
    if let Some(budget) = draft.targets.budget_usd_per_hour
        && rent > budget.get() * (1.0 + ROUNDING)
    {
        problems.push(format!("the rent of ${rent:.2}/h is over the budget of {budget}"));
    }
}

fn check_numbers(draft: &PlanDraft, problems: &mut Vec<String>) {
    let predicted = &draft.predicted;
    let times = [("ttft", &predicted.ttft), ("tpot", &predicted.tpot), ("e2e", &predicted.e2e)]
        .into_iter()
        .flat_map(|(name, at)| [at.p50, at.p95, at.p99].map(|time| (name, time)))
        .flat_map(|(name, time)| [time.value_ms, time.low_ms, time.high_ms].map(|number| (name, number)));
    let quality = [predicted.quality.value, predicted.quality.low, predicted.quality.high];
    let shares =
        draft.routing.models.iter().flat_map(|share| {
            [share.output_length_scale, share.mean_prompt_tokens, share.mean_answer_tokens]
        });
    let front = draft
        .front
        .iter()
        .flat_map(|point| [point.cost_usd_per_hour, point.quality, point.max_rate, point.e2e_p95_ms]);
    let bound = draft.bound.iter().flat_map(|bound| [bound.value, bound.gap]);
    let named = |name: &'static str| move |number: f64| (name, number);
    let numbers = times
        .chain(quality.map(named("quality")))
        .chain([("usd_per_million_tokens", predicted.usd_per_million_tokens)])
        .chain(shares.map(named("routing.models")))
        .chain(bound.map(named("bound")))
        .chain(front.map(named("front")));
    let wrong: BTreeSet<_> = numbers
        .filter(|(_, number)| !number.is_finite() || *number < 0.0)
        .map(|(name, number)| format!("a number of `{name}` is {number}, not finite and at least zero"))
        .collect();
    problems.extend(wrong);
    let signed = draft.binding.iter().map(|binding| binding.worth).chain([predicted.quality_certified]);
    if signed.into_iter().any(|number| !number.is_finite()) {
        problems.push("`quality_certified` or what a constraint is worth is not finite".into());
    }
}

const PLAN_AGAIN: &str = "is the file whole, and made by this version of boute? `boute plan` makes it anew";

/// The one key that plan files of all versions have.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Plan {
    /// Reads `plan.json`.
    ///
    /// # Errors
    /// With line and column if the text is not such JSON; with every problem if it does not hold together.
    pub fn parse(file: &str, text: &str) -> Result<Self, DataError> {
        let whole = |message: String| DataError::whole(file, message, PLAN_AGAIN);
        let json = |cause| DataError::json(file, 0, &cause, PLAN_AGAIN);
        // First of all, or a plan of another version would be reported as one with unknown keys.
        let Version { version } = serde_json::from_str(text).map_err(json)?;
        if version != PLAN_VERSION {
            return Err(whole(wrong_version(version)));
        }
        let draft: PlanDraft = serde_json::from_str(text).map_err(json)?;
        Self::try_from(draft).map_err(|invalid| whole(invalid.to_string()))
    }

    /// As text for `plan.json`: indented, ends with a newline, the same bytes for the same plan.
    ///
    /// # Panics
    /// Never: a checked plan has only finite numbers and text keys.
    pub fn to_json_pretty(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a checked plan is representable as JSON");
        text.push('\n');
        text
    }
}

impl Outcome {
    /// Reads `outcome.json`.
    ///
    /// # Errors
    /// With line and column, if the text is not such JSON.
    pub fn parse(file: &str, text: &str) -> Result<Self, DataError> {
        let hint = "is the file whole, and written by `boute simulate` or `boute bench`?";
        serde_json::from_str(text).map_err(|cause| DataError::json(file, 0, &cause, hint))
    }

    /// As text for `outcome.json`: indented, ends with a newline.
    ///
    /// # Panics
    /// Never: an outcome has only numbers and text keys.
    pub fn to_json_pretty(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("an outcome is representable as JSON");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::certificate::{Group, Quantiles, Reference};
    use crate::plan::{Disaggregated, PrefillInstances};
    use crate::policy::CASCADE_INPUTS;
    use crate::units::{Fraction, UsdPerHour};

    /// Made by version 1, and readable for ever.
    const PLAN_V1: &str = include_str!("../tests/data/plan-v1.json");
    const OUTCOME_V1: &str = include_str!("../tests/data/outcome-v1.json");

    /// The problems of the golden plan after `change`.
    fn problems(change: impl FnOnce(&mut PlanDraft)) -> String {
        let mut draft = serde_json::from_str(PLAN_V1).unwrap();
        change(&mut draft);
        Plan::try_from(draft).unwrap_err().to_string()
    }

    #[test]
    fn old_files_stay_readable() {
        let plan = Plan::parse("plan.json", PLAN_V1).unwrap();
        assert_eq!(plan.to_json_pretty(), PLAN_V1);
        let outcome = Outcome::parse("outcome.json", OUTCOME_V1).unwrap();
        assert_eq!(outcome.to_json_pretty(), OUTCOME_V1);
    }

    #[test]
    fn every_problem_of_a_plan_is_reported() {
        insta::assert_snapshot!(problems(|draft| {
            let group = &mut draft.deployment.groups[0];
            group.id = "a".into();
            group.replicas = 0;
            group.tp = 16;
            group.engine.max_num_seqs = 0;
            group.engine.gpu_memory_utilization = 1.5;
            draft.deployment.groups[1].id = "a".into();
            draft.deployment.groups[1].gpu = "abacus".into();
            draft.routing.models[0].load_fraction = Fraction::new(0.25).unwrap();
            draft.targets.budget_usd_per_hour = UsdPerHour::new(1.0);
            draft.predicted.cost_usd_per_hour = UsdPerHour::new(2.0).unwrap();
            draft.predicted.e2e.p99.high_ms = f64::INFINITY;
            draft.front[0].quality = f64::NAN;
            draft.binding[0].worth = f64::NAN;
        }), @r"
        the plan does not hold together:
          - group `a` has no replica
          - group `a`: TP 16 × PP 1 cannot be, a node has 8 GPUs
          - group `a`: an engine limit is zero, so it would answer nothing
          - group `a`: gpu_memory_utilization is 1.5, not a share
          - the group `a` occurs twice
          - group `a` runs on `abacus`, which is not among `gpus`
          - the load fractions sum to 0.788971807628524, not to 1
          - the groups cost $29.8418/h, but the plan says $2.0000/h
          - the rent of $29.84/h is over the budget of $1.00/h
          - a number of `e2e` is inf, not finite and at least zero
          - a number of `front` is NaN, not finite and at least zero
          - `quality_certified` or what a constraint is worth is not finite
        ");
    }

    #[test]
    fn a_disaggregated_group_is_checked_as_a_whole() {
        let split = |draft: &mut PlanDraft, change: &dyn Fn(&mut Disaggregated)| {
            let group = &mut draft.deployment.groups[1];
            let mut disaggregated = Disaggregated {
                decode_instances: 1,
                prefill: PrefillInstances {
                    instances: 2,
                    gpu: "H100-SXM".into(),
                    tp: 2,
                    pp: 1,
                    kv_cache_tokens: 100_000,
                    engine: group.engine.clone(),
                },
            };
            change(&mut disaggregated);
            group.disaggregated = Some(disaggregated);
        };
        let mut draft: PlanDraft = serde_json::from_str(PLAN_V1).unwrap();
        split(&mut draft, &|_| {});
        assert_eq!(draft.deployment.groups[1].gpus_per_replica(), 2 * 2 + 4);
        let plan = Plan::try_from(draft).unwrap();
        assert_eq!(Plan::parse("plan.json", &plan.to_json_pretty()), Ok(plan));
        insta::assert_snapshot!(problems(|draft| split(draft, &|it| {
            it.decode_instances = 0;
            it.prefill.tp = 16;
            it.prefill.kv_cache_tokens = 0;
            it.prefill.engine.max_num_seqs = 0;
        })), @r"
        the plan does not hold together:
          - group `llama-3.1-70b-a100-80gb-tp4` has no KV cache
          - group `llama-3.1-70b-a100-80gb-tp4`: TP 16 × PP 1 cannot be, a node has 8 GPUs
          - group `llama-3.1-70b-a100-80gb-tp4`: an engine limit is zero, so it would answer nothing
          - group `llama-3.1-70b-a100-80gb-tp4`: no engine decodes
        ");
        insta::assert_snapshot!(problems(|draft| split(draft, &|it| {
            it.prefill.instances = u32::MAX;
            it.prefill.gpu = "abacus".into();
        })), @r"
        the plan does not hold together:
          - group `llama-3.1-70b-a100-80gb-tp4` runs on `abacus`, which is not among `gpus`
          - group `llama-3.1-70b-a100-80gb-tp4` has more GPUs than can be counted
        ");
    }

    #[test]
    fn a_certificate_fits_the_policy() {
        let certified = |draft: &mut PlanDraft, change: &dyn Fn(&mut Certificate)| {
            let models: Vec<String> = draft.routing.models.iter().map(|share| share.model.clone()).collect();
            let mut certificate = Certificate {
                safe_model: models[0].clone(),
                reference: Reference {
                    queries: 300,
                    quantiles: vec![Quantiles(vec![0.1, 0.5, 0.9]); models.len() + 1],
                    groups: vec![Group { name: "all".into(), at_least: vec![0.5; models.len()] }],
                    models,
                },
            };
            change(&mut certificate);
            draft.routing.certificate = Some(certificate);
        };
        let mut draft: PlanDraft = serde_json::from_str(PLAN_V1).unwrap();
        certified(&mut draft, &|_| {});
        let plan = Plan::try_from(draft).unwrap();
        assert_eq!(Plan::parse("plan.json", &plan.to_json_pretty()), Ok(plan));
        insta::assert_snapshot!(problems(|draft| certified(draft, &|it| {
            it.safe_model = "abacus".into();
            it.reference.models[0] = "abacus".into();
        })), @r"
        the plan does not hold together:
          - the certificate falls back on `abacus`, which the policy does not have
          - the certificate's reference does not hold together
        ");
    }

    #[test]
    fn a_cascade_fits_the_policy() {
        let cascading = |draft: &mut PlanDraft, change: &dyn Fn(&mut CascadePolicy)| {
            let [from, to] = [0, 1].map(|at| draft.routing.models[at].model.clone());
            let (max_share, weights) = (Fraction::new(0.03).unwrap(), [[0.1; CASCADE_INPUTS]; 2]);
            let mut cascade = CascadePolicy { from, to, max_share, min_gain: 0.2, weights };
            change(&mut cascade);
            draft.routing.cascade = Some(cascade);
        };
        let mut draft: PlanDraft = serde_json::from_str(PLAN_V1).unwrap();
        cascading(&mut draft, &|_| {});
        let plan = Plan::try_from(draft).unwrap();
        assert_eq!(Plan::parse("plan.json", &plan.to_json_pretty()), Ok(plan));
        insta::assert_snapshot!(problems(|draft| cascading(draft, &|it| {
            it.to = "abacus".into();
            it.max_share = Fraction::new(1.0).unwrap();
            it.weights[1][2] = f64::NAN;
        })), @r"
        the plan does not hold together:
          - the cascade names `abacus`, which the policy does not have
          - the cascade's share of 1 is not between 0 and 1
          - a number of the cascade is not finite
        ");
        let itself = problems(|draft| cascading(draft, &|it| it.to = it.from.clone()));
        assert!(itself.contains("the cascade asks `llama-3.1-8b` after itself"), "{itself}");
    }

    #[test]
    fn the_routing_fits_the_fleet() {
        insta::assert_snapshot!(problems(|draft| {
            let RoutingPolicy::Utility { penalties } = &mut draft.routing.policy else { panic!("not utility") };
            penalties[0].model = "parrot".into();
            penalties[1].lambda = f64::NAN;
        }), @r"
        the plan does not hold together:
          - the routing policy sends queries to `parrot`, which no group runs
          - λ of `llama-3.1-70b` is not a finite number
          - `routing.models` does not list the models of the policy, in its order
        ");
        insta::assert_snapshot!(problems(|draft| draft.deployment.groups.clear()), @r"
        the plan does not hold together:
          - no replica group
          - the routing policy sends queries to `llama-3.1-8b`, which no group runs
          - the routing policy sends queries to `llama-3.1-70b`, which no group runs
          - the groups cost $0.0000/h, but the plan says $29.8418/h
        ");
        insta::assert_snapshot!(problems(|draft| {
            draft.models[0].id = draft.models[1].id.clone();
            draft.gpus[0].bandwidth_bytes_per_s = 0.0;
        }), @r"
        the plan does not hold together:
          - the model `llama-3.1-70b` occurs twice
          - a figure of `A100-80GB` is not a positive number
          - group `llama-3.1-8b-h100-sxm-tp1` runs `llama-3.1-8b`, which is not among `models`
        ");
        insta::assert_snapshot!(problems(|draft| {
            draft.deployment.groups[0].pp = 33;
            draft.deployment.groups[1].replicas = u32::MAX;
        }), @r"
        the plan does not hold together:
          - group `llama-3.1-8b-h100-sxm-tp1`: PP 33 cannot be, `llama-3.1-8b` has 32 layers
          - group `llama-3.1-70b-a100-80gb-tp4` has more GPUs than can be counted
        ");
    }

    #[test]
    fn a_file_that_is_no_plan_is_refused_at_its_place() {
        let error = |text: &str| Plan::parse("plan.json", text).unwrap_err();
        insta::assert_snapshot!(error(&PLAN_V1[..PLAN_V1.len() / 2]), @r"
        plan.json:176:23: EOF while parsing a string
          help: is the file whole, and made by this version of boute? `boute plan` makes it anew
        ");
        insta::assert_snapshot!(error(&PLAN_V1.replacen("\"seed\"", "\"sed\"", 1)), @r"
        plan.json:4:7: unknown field `sed`, expected one of `version`, `tool_version`, `seed`, `strategy`, `targets`, `inputs`, `models`, `gpus`, `deployment`, `routing`, `predicted`, `verification`, `bound`, `front`, `binding`
          help: is the file whole, and made by this version of boute? `boute plan` makes it anew
        ");
        insta::assert_snapshot!(error(&PLAN_V1.replacen("\"version\": 1", "\"version\": 2", 1)), @r"
        plan.json: version 2 is not 1, which this boute reads
          help: is the file whole, and made by this version of boute? `boute plan` makes it anew
        ");
        insta::assert_snapshot!(error(&PLAN_V1.replacen("\"tp\": 4", "\"tp\": 64", 1)), @r"
        plan.json: the plan does not hold together:
          - group `llama-3.1-70b-a100-80gb-tp4`: TP 64 × PP 1 cannot be, a node has 8 GPUs
          help: is the file whole, and made by this version of boute? `boute plan` makes it anew
        ");
        insta::assert_snapshot!(Outcome::parse("outcome.json", "{}").unwrap_err(), @r"
        outcome.json:1:2: missing field `source`
          help: is the file whole, and written by `boute simulate` or `boute bench`?
        ");
        error("");
        error("[]");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(at in 0..PLAN_V1.len(), instead in "[0-9a-z{}\\[\\]\",.-]{0,4}") {
            // The golden file is not ASCII throughout.
            prop_assume!(PLAN_V1.is_char_boundary(at) && PLAN_V1.is_char_boundary(at + 1));
            let text = format!("{}{instead}{}", &PLAN_V1[..at], &PLAN_V1[at + 1..]);
            if let Ok(plan) = Plan::parse("plan.json", &text) {
                prop_assert_eq!(Plan::parse("plan.json", &plan.to_json_pretty()), Ok(plan));
            }
        }
    }
}
