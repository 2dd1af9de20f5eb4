//! A trace joined with queries: the same requests for the simulator and for the load generator.

use std::path::Path;
use std::sync::Arc;

use boute_gateway::BenchRequest;
use boute_router::balance::Balancing;
use boute_router::decide::Decider;
use boute_router::{Scorer, Scratch};
use boute_sim::{Request, fleet, simulate_balanced};
use boute_spec::outcome::{Outcome, OutcomeSource};
use boute_spec::plan::PlanDraft;
use boute_spec::policy::{ModelPenalty, RoutingPolicy};
use boute_spec::workload::Trace;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::encoder::read_scorer;
use crate::failure::Failure;
use crate::files::{Input, beside};

/// Requests with their texts.
pub(crate) struct Replay {
    /// For the load generator, in order of arrival. `max_tokens` is the trace's; models answer more or less by their scale.
    pub(crate) requests: Vec<BenchRequest>,
    /// Prefix ids of each request, if the trace has them.
    hash_ids: Vec<Box<[u64]>>,
    /// Whether the texts are real queries, so that the router can be asked.
    pub(crate) real_texts: bool,
}

impl Replay {
    /// Joins `trace` with `texts` by `seed`; without texts the trace's own prompts are used, or filler of the right length.
    pub(crate) fn new(trace: &Trace, texts: &[Arc<str>], seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let own = trace.requests().iter().all(|request| request.prompt.is_some());
        let requests = trace
            .requests()
            .iter()
            .map(|request| BenchRequest {
                at: request.arrival,
                prompt: match (&request.prompt, texts.is_empty()) {
                    (_, false) => Arc::clone(&texts[rng.random_range(0..texts.len())]),
                    (Some(prompt), true) => Arc::from(&**prompt),
                    (None, true) => Arc::from(" word".repeat(request.input_tokens as usize)),
                },
                input_tokens: request.input_tokens,
                max_tokens: request.output_tokens,
            })
            .collect();
        let hash_ids = trace.requests().iter().map(|request| request.hash_ids.clone()).collect();
        Self { requests, hash_ids, real_texts: own || !texts.is_empty() }
    }

    /// What the simulator says `plan` would do. Without real texts or a scorer, queries are divided at random in the
    /// planned proportions.
    pub(crate) fn simulate(
        &self,
        plan: &PlanDraft,
        scorer: Option<&Scorer>,
        balancing: Balancing,
        seed: u64,
    ) -> Result<Outcome, Failure> {
        let shares = &plan.routing.models;
        let ids: Vec<String> = shares.iter().map(|share| share.model.clone()).collect();
        let replicas =
            fleet::replicas(&plan.deployment, &plan.models, &plan.gpus, shares).map_err(Failure::told)?;
        let scores = match scorer.filter(|_| self.real_texts) {
            Some(scorer) => self.scores(scorer, &ids)?,
            None => self.drawn_routes(plan, seed),
        };
        let policy = match scorer.filter(|_| self.real_texts) {
            Some(_) => plan.routing.policy.clone(),
            None => largest_score(&ids),
        };
        let decider = Decider::new(&policy, &ids).map_err(Failure::told)?;
        let outputs: Vec<u32> = self
            .requests
            .iter()
            .flat_map(|request| {
                let scaled = |scale: f64| (f64::from(request.max_tokens) * scale).round().max(1.0) as u32;
                shares.iter().map(move |share| scaled(share.output_length_scale))
            })
            .collect();
        let models = ids.len();
        let again = second_answers(plan, &decider, &scores, seed);
        let requests = self.requests.iter().enumerate().map(|(index, request)| Request {
            arrival: request.at,
            scores: &scores[index * models..(index + 1) * models],
            input_tokens: request.input_tokens,
            output_tokens: &outputs[index * models..(index + 1) * models],
            hash_ids: &self.hash_ids[index],
            again: again[index],
        });
        let simulation = simulate_balanced(replicas, &decider, balancing, requests);
        let slo = &plan.targets.slo;
        Ok(Outcome::summarise(
            OutcomeSource::Simulated,
            &simulation.outcomes,
            simulation.failed,
            &ids,
            slo,
            None,
        ))
    }

    /// Scores of every text, in the order of `models`.
    fn scores(&self, scorer: &Scorer, models: &[String]) -> Result<Vec<f32>, Failure> {
        let position = |model: &String| {
            scorer.models().iter().position(|known| known == model).ok_or_else(|| {
                Failure::input(
                    format_args!("the router has no scores of `{model}`"),
                    "give the router that belongs to this plan",
                )
            })
        };
        let order = models.iter().map(position).collect::<Result<Vec<_>, _>>()?;
        let mut scratch = Scratch::default();
        let mut all = vec![0.0; scorer.models().len()];
        let mut scores = Vec::with_capacity(self.requests.len() * models.len());
        for request in &self.requests {
            scorer.score(&request.prompt, &mut scratch, &mut all);
            scores.extend(order.iter().map(|at| all[*at]));
        }
        Ok(scores)
    }

    /// One model per request with score 1, drawn by the planned load fractions.
    fn drawn_routes(&self, plan: &PlanDraft, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shares: Vec<f64> = plan.routing.models.iter().map(|share| share.load_fraction.get()).collect();
        let mut scores = Vec::with_capacity(self.requests.len() * shares.len());
        for _ in &self.requests {
            let mut left: f64 = rng.random();
            let drawn = shares.iter().position(|share| {
                left -= share;
                left < 0.0
            });
            let drawn = drawn.unwrap_or(shares.len() - 1);
            scores.extend((0..shares.len()).map(|model| f32::from(u8::from(model == drawn))));
        }
        scores
    }
}

/// Which model each request is asked again from. What a trace's answers would say to a cascade is not known, so as many are
/// drawn of those that it looks at as the plan has it.
fn second_answers(plan: &PlanDraft, decider: &Decider, scores: &[f32], seed: u64) -> Vec<Option<usize>> {
    let shares = &plan.routing.models;
    let index = |model: &str| shares.iter().position(|share| share.model == model);
    let cascade = plan.routing.cascade.as_ref();
    let bound = cascade.and_then(|cascade| {
        let (from, to) = (index(&cascade.from)?, index(&cascade.to)?);
        Some((from, to, cascade.max_share.get() / shares[from].load_fraction.get().max(f64::MIN_POSITIVE)))
    });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn = |scores: &[f32]| {
        let (from, to, chance) = bound?;
        (decider.decide(scores).model == from && rng.random::<f64>() < chance).then_some(to)
    };
    scores.chunks(shares.len()).map(drawn).collect()
}

/// The policy that follows the larger score.
fn largest_score(models: &[String]) -> RoutingPolicy {
    match models {
        [only] => RoutingPolicy::Constant { model: only.clone() },
        _ => RoutingPolicy::Utility {
            penalties: models
                .iter()
                .map(|model| ModelPenalty { model: model.clone(), lambda: 0.0 })
                .collect(),
        },
    }
}

/// The router artefact of a plan, beside it; `None` if the plan needs none.
pub(crate) fn scorer_of(plan: &PlanDraft, path: &Path) -> Result<Option<Scorer>, Failure> {
    let Some(input) = router_of(plan, path)? else { return Ok(None) };
    read_scorer(&input).map(Some)
}

/// The router artefact that the plan at `path` was made with, if it has one.
pub(crate) fn router_of(plan: &PlanDraft, path: &Path) -> Result<Option<Input>, Failure> {
    if plan.routing.router.is_empty() {
        return Ok(None);
    }
    let input = Input::read(&beside(path, &plan.routing.router))?;
    if input.sha256 != plan.routing.router_digest {
        return Err(Failure::input(
            format_args!("`{}` is not the router that `{}` was made with", input.name, path.display()),
            "plan again, or put the plan's own router back beside it",
        ));
    }
    Ok(Some(input))
}
