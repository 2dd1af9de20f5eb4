//! A plan: deployment, routing policy, predictions and provenance. Holding a [`Plan`] proves that it was checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::plan_check::{InvalidPlan, Plan};

use crate::catalog::{Gpu, Model, Source};
use crate::certificate::Certificate;
use crate::policy::{CascadePolicy, ModelPenalty, RoutingPolicy};
use crate::slo::SloTarget;
use crate::units::{Fraction, RequestsPerSecond, UsdPerHour};

/// Version of the plan file; raised when a reader of the old one would misread the new.
pub const PLAN_VERSION: u32 = 1;

/// Settings of one engine, in vLLM's terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFlags {
    /// Sequences that run at once, at most.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, at most.
    pub max_num_batched_tokens: u32,
    /// Share of GPU memory the engine may fill.
    pub gpu_memory_utilization: f64,
    /// Longest prompt plus answer.
    pub max_model_len: u32,
    /// Whether prompt prefixes are reused.
    pub enable_prefix_caching: bool,
}

/// `replicas` equal replicas of one model: the unit of export. A replica is one engine, or several if it is disaggregated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaGroup {
    /// Unique within the plan, such as `llama-3.1-8b-l40s-tp1`.
    pub id: String,
    /// Model id.
    pub model: String,
    /// GPU type, by catalogue name.
    pub gpu: String,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline parallelism.
    pub pp: u32,
    /// How many.
    pub replicas: u32,
    /// Price of the whole group.
    pub usd_per_hour: UsdPerHour,
    /// Requests per second one replica is planned to take.
    pub planned_rate_per_replica: RequestsPerSecond,
    /// KV cache of one replica, in tokens.
    pub kv_cache_tokens: u64,
    /// Engine settings.
    pub engine: EngineFlags,
    /// Where prompts are computed by engines of their own: all above that is about one engine is then about one that decodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disaggregated: Option<Disaggregated>,
}

/// A replica whose prompts are computed by other engines than its answers (prefill/decode disaggregation).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disaggregated {
    /// Engines per replica that decode.
    pub decode_instances: u32,
    /// Engines that compute prompts.
    pub prefill: PrefillInstances,
}

/// The engines of one disaggregated replica that compute prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillInstances {
    /// How many per replica.
    pub instances: u32,
    /// GPU type, by catalogue name.
    pub gpu: String,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline parallelism.
    pub pp: u32,
    /// KV cache of one engine, in tokens.
    pub kv_cache_tokens: u64,
    /// Engine settings.
    pub engine: EngineFlags,
}

/// What an engine of a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Prompts and answers.
    Both,
    /// Prompts, and the first token of each answer.
    Prefill,
    /// Answers after the first token.
    Decode,
}

/// Equal engines of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instances<'a> {
    /// What they do.
    pub role: Role,
    /// How many per replica.
    pub count: u32,
    /// GPU type, by catalogue name.
    pub gpu: &'a str,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline parallelism.
    pub pp: u32,
    /// KV cache of one engine, in tokens.
    pub kv_cache_tokens: u64,
    /// Engine settings.
    pub engine: &'a EngineFlags,
}

impl Instances<'_> {
    /// GPUs per replica.
    pub const fn gpus(&self) -> u32 {
        self.count * self.tp * self.pp
    }
}

impl ReplicaGroup {
    /// The engines of one replica, those that compute prompts first.
    pub fn instances(&self) -> Vec<Instances<'_>> {
        let Self { gpu, tp, pp, kv_cache_tokens, engine, .. } = self;
        let own = |role, count| Instances {
            role,
            count,
            gpu,
            tp: *tp,
            pp: *pp,
            kv_cache_tokens: *kv_cache_tokens,
            engine,
        };
        let Some(Disaggregated { decode_instances, prefill }) = &self.disaggregated else {
            return vec![own(Role::Both, 1)];
        };
        let PrefillInstances { instances, gpu, tp, pp, kv_cache_tokens, engine } = prefill;
        let prefill = Instances {
            role: Role::Prefill,
            count: *instances,
            gpu,
            tp: *tp,
            pp: *pp,
            kv_cache_tokens: *kv_cache_tokens,
            engine,
        };
        vec![prefill, own(Role::Decode, *decode_instances)]
    }

    /// The group with that many replicas, at its price of one.
    #[must_use]
    pub fn with_replicas(&self, replicas: u32) -> Self {
        let share = f64::from(replicas) / f64::from(self.replicas.max(1));
        let usd_per_hour = UsdPerHour::new(self.usd_per_hour.get() * share).unwrap_or_default();
        Self { replicas, usd_per_hour, ..self.clone() }
    }

    /// GPUs of one replica.
    pub fn gpus_per_replica(&self) -> u32 {
        self.instances().iter().map(Instances::gpus).sum()
    }

    /// GPUs of the group.
    pub fn gpus(&self) -> u32 {
        self.gpus_per_replica() * self.replicas
    }
}

/// What runs where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The groups.
    pub groups: Vec<ReplicaGroup>,
}

impl Deployment {
    /// What is left when `count` replicas of `model` are lost: of the group whose replicas carry the most each, then the next.
    #[must_use]
    pub fn without(&self, model: &str, count: u32) -> Self {
        let mut left = self.clone();
        let mut own: Vec<&mut ReplicaGroup> =
            left.groups.iter_mut().filter(|group| group.model == model).collect();
        own.sort_by(|a, b| b.planned_rate_per_replica.get().total_cmp(&a.planned_rate_per_replica.get()));
        let mut lost = count;
        for group in own {
            let gone = lost.min(group.replicas);
            *group = group.with_replicas(group.replicas - gone);
            lost -= gone;
        }
        left.groups.retain(|group| group.replicas > 0);
        left
    }

    /// Rent of all groups.
    pub fn usd_per_hour(&self) -> f64 {
        self.groups.iter().fold(0.0, |sum, group| sum + group.usd_per_hour.get())
    }
}

/// An expected value with the interval it lies in with the stated confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Expected value.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability that the truth is inside.
    pub confidence: f64,
}

/// A predicted time in milliseconds, with its interval and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedMs {
    /// Expected value in milliseconds.
    pub value_ms: f64,
    /// Lower end of the interval.
    pub low_ms: f64,
    /// Upper end of the interval.
    pub high_ms: f64,
    /// Probability that the truth is inside.
    pub confidence: f64,
    /// The worst source among the numbers it was computed from.
    pub source: Source,
}

/// Predicted percentiles of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedPercentiles {
    /// Median.
    pub p50: PredictedMs,
    /// 95th percentile.
    pub p95: PredictedMs,
    /// 99th percentile.
    pub p99: PredictedMs,
}

/// What one model does in the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShare {
    /// Model id.
    pub model: String,
    /// Expected share of the queries.
    pub load_fraction: Fraction,
    /// Expected mean score of the queries routed to it.
    pub quality: Fraction,
    /// Mean answer length relative to the largest model's, by which the output lengths of a trace are scaled;
    /// 1 where not known, and where the queries bring their own lengths.
    pub output_length_scale: f64,
    /// Mean prompt of the queries it is planned to answer.
    pub mean_prompt_tokens: f64,
    /// Mean answer it is planned to give; what the balancer expects.
    pub mean_answer_tokens: f64,
}

/// The routing half of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RoutingFile", into = "RoutingFile")]
pub struct Routing {
    /// The rule.
    pub policy: RoutingPolicy,
    /// SHA-256 of the router artefact whose scores the rule uses; empty for a constant policy.
    pub router_digest: String,
    /// Where the router artefact is, relative to the plan; empty for a constant policy.
    pub router: String,
    /// Expected share and quality per model, in the order of `policy`.
    pub models: Vec<ModelShare>,
    /// Which models may answer in a model's place, in order, while it has no healthy replica: what may degrade is policy.
    pub fallback: BTreeMap<String, Vec<String>>,
    /// What the promise of quality rests on; `None` without a floor.
    pub certificate: Option<Certificate>,
    /// Which answers are asked for again; `None` unless the spec wants it.
    pub cascade: Option<CascadePolicy>,
}

/// [`Routing`] as it stands in the file: `policy` names the kind, `parameters` hold the rest of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutingFile {
    policy: PolicyKind,
    parameters: PolicyParameters,
    router_digest: String,
    router: String,
    models: Vec<ModelShare>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fallback: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cascade: Option<CascadePolicy>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PolicyKind {
    Constant,
    Utility,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyParameters {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    penalties: Vec<ModelPenalty>,
}

impl TryFrom<RoutingFile> for Routing {
    type Error = String;
    fn try_from(file: RoutingFile) -> Result<Self, String> {
        let PolicyParameters { model, penalties } = file.parameters;
        let policy = match (file.policy, model) {
            (PolicyKind::Constant, Some(model)) if penalties.is_empty() => RoutingPolicy::Constant { model },
            (PolicyKind::Utility, None) => RoutingPolicy::Utility { penalties },
            (PolicyKind::Constant, _) => {
                return Err("a constant policy has the one parameter `model`".into());
            }
            (PolicyKind::Utility, _) => {
                return Err("a utility policy has the one parameter `penalties`".into());
            }
        };
        let RoutingFile { router_digest, router, models, fallback, certificate, cascade, .. } = file;
        Ok(Self { policy, router_digest, router, models, fallback, certificate, cascade })
    }
}

impl From<Routing> for RoutingFile {
    fn from(routing: Routing) -> Self {
        let (policy, parameters) = match routing.policy {
            RoutingPolicy::Constant { model } => {
                (PolicyKind::Constant, PolicyParameters { model: Some(model), penalties: Vec::new() })
            }
            RoutingPolicy::Utility { penalties } => {
                (PolicyKind::Utility, PolicyParameters { model: None, penalties })
            }
        };
        Self {
            policy,
            parameters,
            router_digest: routing.router_digest,
            router: routing.router,
            models: routing.models,
            fallback: routing.fallback,
            certificate: routing.certificate,
            cascade: routing.cascade,
        }
    }
}

/// What the plan promises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Rent.
    pub cost_usd_per_hour: UsdPerHour,
    /// Rate the plan was made for.
    pub rate: RequestsPerSecond,
    /// Largest rate at which all promises hold, by the table the planner used.
    pub max_rate: RequestsPerSecond,
    /// Rent per million tokens, prompt and answer together, at `rate`.
    pub usd_per_million_tokens: f64,
    /// Time to the first token.
    pub ttft: PredictedPercentiles,
    /// Time per further token.
    pub tpot: PredictedPercentiles,
    /// Time to the last token.
    pub e2e: PredictedPercentiles,
    /// Mean score of the answers served.
    pub quality: Interval,
    /// Score that holds with the spec's confidence on unseen queries (one-sided lower bound). With a floor relative to a
    /// model: what holds relative to that model's mean on the planning queries.
    pub quality_certified: f64,
}

impl Predicted {
    /// Rent per thousand requests at the planned rate.
    pub fn usd_per_thousand_requests(&self) -> f64 {
        self.cost_usd_per_hour.get() / (self.rate.get() * 3.6)
    }
}

/// How far from the optimum the plan can be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// What is bounded: `cost_usd_per_hour` (from below), `max_rate` or `quality` (from above).
    pub of: String,
    /// No plan over the same candidates and table is better than this.
    pub value: f64,
    /// |value of the plan − bound| / bound.
    pub gap: f64,
}

/// One non-dominated plan, in brief.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontPoint {
    /// Rent.
    pub cost_usd_per_hour: f64,
    /// Expected quality.
    pub quality: f64,
    /// Rate served within the promises.
    pub max_rate: f64,
    /// Predicted 95th percentile of E2E.
    pub e2e_p95_ms: f64,
    /// Load fraction per model, in the order of `routing.models`.
    pub load_fractions: Vec<f64>,
    /// The fleet in words: `3× llama-3.1-8b on L40S`.
    pub fleet: String,
    /// Whether this is the plan itself.
    pub chosen: bool,
}

/// A constraint that binds, and what one more unit of it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// `budget`, `floor`, `e2e_p95`, `stock H100-SXM`, …
    pub constraint: String,
    /// One more unit of it, in words: `+1 GPU`, `-0.01`, `+10%`.
    pub unit: String,
    /// Change of the objective for that unit: negative is cheaper. In the unit of the objective.
    pub worth: f64,
    /// The same in words.
    pub text: String,
}

/// SHA-256 of one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputDigest {
    /// What it is: `spec`, `trace`, `quality`, `router`, `prices`, `calibration`.
    pub input: String,
    /// File name as given; empty for what is compiled in.
    pub file: String,
    /// Hexadecimal SHA-256 of the bytes.
    pub sha256: String,
}

/// What the planner optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Cheapest fleet for the given rate.
    MinCost,
    /// Highest rate within the budget.
    MaxRate,
    /// Best quality within the budget at the given rate.
    MaxQuality,
    /// All trade-offs of cost and quality; the plan is the knee.
    Pareto,
}

impl Objective {
    /// As written in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MinCost => "min_cost",
            Self::MaxRate => "max_rate",
            Self::MaxQuality => "max_quality",
            Self::Pareto => "pareto",
        }
    }
}

/// What the plan was asked to achieve, so that it can be checked again without the spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Objective.
    pub objective: Objective,
    /// Latency promises.
    pub slo: Vec<SloTarget>,
    /// Quality floor, resolved to a number; `None` if there is none.
    pub floor: Option<Fraction>,
    /// Confidence of the floor.
    pub confidence: Fraction,
    /// Budget; `None` if there is none.
    pub budget_usd_per_hour: Option<UsdPerHour>,
}

/// How the plan was checked by simulation of the whole fleet on traffic it was not planned on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Whether every promise held.
    pub passed: bool,
    /// Requests simulated.
    pub requests: u64,
    /// Mean score of the answers on held-out queries.
    pub quality: f64,
    /// Held-out queries.
    pub queries: u64,
    /// Times the planner tightened the table and solved again before the plan held.
    pub repairs: u32,
}

/// The loose form of a plan: what a file may say. [`Plan`] is the checked form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDraft {
    /// [`PLAN_VERSION`] of the writer.
    pub version: u32,
    /// Version of the tool that made it.
    pub tool_version: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Strategy that found it.
    pub strategy: String,
    /// What was asked.
    pub targets: Targets,
    /// Digests of all inputs.
    pub inputs: Vec<InputDigest>,
    /// The models in use, complete: a plan can be simulated and emulated without the spec.
    pub models: Vec<Model>,
    /// The GPU types in use, complete.
    pub gpus: Vec<Gpu>,
    /// What runs where.
    pub deployment: Deployment,
    /// Who answers.
    pub routing: Routing,
    /// What is promised.
    pub predicted: Predicted,
    /// The check by simulation.
    pub verification: Verification,
    /// Distance from the optimum; `None` for strategies that prove nothing.
    pub bound: Option<Bound>,
    /// Non-dominated plans, by cost.
    pub front: Vec<FrontPoint>,
    /// What binds.
    pub binding: Vec<Binding>,
}
