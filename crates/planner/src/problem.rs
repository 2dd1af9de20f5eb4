//! What is to be planned: a spec with everything it names, resolved.

use boute_router::ScoredQueries;
use boute_router::certify::FloorRule;
use boute_spec::catalog::{Gpu, Model};
use boute_spec::file::{Lengths, Robust};
use boute_spec::plan::{InputDigest, Objective};
use boute_spec::slo::SloTarget;
use boute_spec::workload::{Trace, TraceRequest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// GPUs on offer.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuOffer {
    /// The type.
    pub gpu: Gpu,
    /// Price of one.
    pub usd_per_gpu_hour: f64,
    /// How many there are; `None` for no limit.
    pub stock: Option<u32>,
    /// Share of the time that a replica on it is there: below 1 for spot capacity.
    pub available: f64,
}

/// Hours until another replica answers in place of one taken away: a machine is found and the weights are loaded (assumed).
const RECOVERY_HOURS: f64 = 1.0 / 6.0;

/// Share of the time that a spot replica is there, if it is taken away within an hour with this chance.
pub fn available_share(interruptions: f64) -> f64 {
    1.0 / (1.0 + interruptions * RECOVERY_HOURS)
}

/// What is known of the queries.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityInputs {
    /// Queries on which the policy is chosen; the router was not trained on them.
    pub planning: ScoredQueries,
    /// Queries on which the policy is judged, and which nothing else has seen.
    pub held_out: ScoredQueries,
    /// SHA-256 of the router artefact.
    pub router_digest: String,
    /// Where the artefact will be, relative to the plan.
    pub router_file: String,
}

/// A planning problem. Tables in `quality` are in the order of `models`.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Models that may answer.
    pub models: Vec<Model>,
    /// GPUs that may be rented.
    pub offers: Vec<GpuOffer>,
    /// Traffic to plan on, at `rate`.
    pub planning_trace: Trace,
    /// Other traffic to verify on, at `rate`.
    pub verification_trace: Trace,
    /// Requests per second.
    pub rate: f64,
    /// Where token counts come from.
    pub lengths: Lengths,
    /// Latency promises.
    pub slo: Vec<SloTarget>,
    /// Queries; `None` for a single model without quality data.
    pub quality: Option<QualityInputs>,
    /// Quality promise.
    pub floor: Option<FloorRule>,
    /// Probability with which the floor must hold.
    pub confidence: f64,
    /// Share of the queries that may be asked again from a better model; `None` for no cascade.
    pub cascade: Option<f64>,
    /// What to optimise.
    pub objective: Objective,
    /// Most rent per hour; `None` for no limit.
    pub budget: Option<f64>,
    /// What the plan must stand.
    pub robust: Robust,
    /// Whether prompts may be computed by other engines than answers.
    pub disaggregate: bool,
    /// Seed of every random choice.
    pub seed: u64,
    /// Digests for the plan.
    pub inputs: Vec<InputDigest>,
    /// For the plan.
    pub tool_version: String,
}

impl Problem {
    /// Whether a promise is about the model of this index too.
    pub(crate) fn concerns(&self, target: &SloTarget, model: usize) -> bool {
        target.model.as_ref().is_none_or(|id| *id == self.models[model].id)
    }

    /// Ids of the models, in order.
    pub fn model_ids(&self) -> Vec<String> {
        self.models.iter().map(|model| model.id.clone()).collect()
    }

    /// Mean answer length per model relative to the largest model's (by weights); 1 where not known, and where queries
    /// bring their own lengths.
    pub fn output_scales(&self) -> Vec<f64> {
        let one = vec![1.0; self.models.len()];
        let Some(quality) = self.quality.as_ref().filter(|_| self.lengths == Lengths::Trace) else {
            return one;
        };
        let size = |model: &usize| self.models[*model].shape.parameters();
        let largest = (0..self.models.len()).max_by(|a, b| size(a).total_cmp(&size(b)));
        let mean = |model: usize| quality.planning.mean_output_tokens(model);
        let Some(reference) = largest.and_then(mean) else { return one };
        (0..self.models.len()).map(|model| mean(model).map_or(1.0, |mean| mean / reference)).collect()
    }

    /// The query that arrives with each request of `trace`: drawn by the seed.
    pub fn join(&self, trace: &Trace, queries: &ScoredQueries) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        (0..trace.requests().len()).map(|_| rng.random_range(0..queries.len())).collect()
    }

    /// Prompt and answer tokens of a request that `model` answers.
    pub fn tokens(
        &self,
        request: &TraceRequest,
        query: Option<(&ScoredQueries, usize)>,
        model: usize,
        scale: f64,
    ) -> (u32, u32) {
        let scaled = (f64::from(request.output_tokens) * scale).round().max(1.0) as u32;
        match (self.lengths, query) {
            (Lengths::Quality, Some((queries, query))) => {
                let answer = queries.output_tokens(query, model);
                (queries.prompt_tokens[query], if answer > 0 { answer } else { scaled })
            }
            _ => (request.input_tokens, scaled),
        }
    }
}

/// What the planner is doing.
#[derive(Debug, Clone)]
pub struct Step {
    /// In words, with the best so far if there is one.
    pub message: String,
    /// Pieces of work done.
    pub done: u64,
    /// Pieces of work in this stage.
    pub total: u64,
}

/// Told of every step; answers whether to stop and keep the best so far.
pub type Progress<'a> = &'a (dyn Fn(&Step) -> bool + Sync);
