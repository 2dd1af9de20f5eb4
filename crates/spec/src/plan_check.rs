//! The only way to a [`Plan`]: through its checks.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::data_file::DataError;
use crate::outcome::Outcome;
use crate::plan::{PLAN_VERSION, PlanDraft, ReplicaGroup};
use crate::policy::RoutingPolicy;

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
            problems.push(format!("version {} is not {PLAN_VERSION}, which this boute reads", draft.version));
        }
        check_groups(&draft, &mut problems);
        check_routing(&draft, &mut problems);
        check_money(&draft, &mut problems);
        check_numbers(&draft, &mut problems);
        if problems.is_empty() { Ok(Self(draft)) } else { Err(InvalidPlan { problems }) }
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
        if !draft.models.iter().any(|model| model.id == group.model) {
            problems.push(format!("group `{id}` runs `{}`, which is not among `models`", group.model));
        }
        if group.replicas == 0 {
            problems.push(format!("group `{id}` has no replica"));
        }
        if group.kv_cache_tokens == 0 {
            problems.push(format!("group `{id}` has no KV cache"));
        }
        match draft.gpus.iter().find(|gpu| gpu.name == group.gpu) {
            None => problems.push(format!("group `{id}` runs on `{}`, which is not among `gpus`", group.gpu)),
            Some(gpu) if group.tp == 0 || group.pp == 0 || group.tp > gpu.gpus_per_node => {
                problems.push(format!(
                    "group `{id}`: TP {} × PP {} cannot be, a node has {} GPUs",
                    group.tp, group.pp, gpu.gpus_per_node
                ))
            }
            Some(_) => {}
        }
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
        for penalty in penalties.iter().filter(|penalty| !penalty.lambda.is_finite()) {
            problems.push(format!("λ of `{}` is not a finite number", penalty.model));
        }
    }
    let shares: Vec<_> = routing.models.iter().map(|share| share.model.as_str()).collect();
    if shares != chosen {
        problems.push("`routing.models` does not list the models of the policy, in its order".into());
    }
    let sum: f64 = routing.models.iter().map(|share| share.load_fraction.get()).sum();
    if (sum - 1.0).abs() > ROUNDING {
        problems.push(format!("the load fractions sum to {sum}, not to 1"));
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
    let times = [&predicted.ttft, &predicted.tpot, &predicted.e2e];
    let times = times.iter().flat_map(|at| [at.p50, at.p95, at.p99]).map(|time| time.value_ms);
    let rates =
        draft.deployment.groups.iter().map(|group: &ReplicaGroup| group.planned_rate_per_replica.get());
    let scales =
        draft.routing.models.iter().flat_map(|share| {
            [share.output_length_scale, share.mean_prompt_tokens, share.mean_answer_tokens]
        });
    let numbers =
        times.chain(rates).chain(scales).chain([predicted.usd_per_million_tokens, predicted.quality.value]);
    if numbers.into_iter().any(|number| !number.is_finite() || number < 0.0) {
        problems.push("a predicted number is negative, infinite or missing".into());
    }
}

/// What is wrong with JSON text, with its place.
fn json_error(file: &str, error: &serde_json::Error) -> DataError {
    DataError {
        file: format!("{file}:{}", error.line()),
        line: error.column(),
        message: error.to_string(),
        hint: "is the file whole, and made by this version of boute?".into(),
    }
}

impl Plan {
    /// Reads `plan.json`.
    ///
    /// # Errors
    /// With line and column if the text is not such JSON; with every problem if it does not hold together.
    pub fn parse(file: &str, text: &str) -> Result<Self, DataError> {
        serde_json::from_str(text).map_err(|error| json_error(file, &error))
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
        serde_json::from_str(text).map_err(|error| json_error(file, &error))
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
