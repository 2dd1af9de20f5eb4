//! The whole fleet on real traffic: same router, same balancing, every token.

use boute_router::ScoredQueries;
use boute_router::decide::Decider;
use boute_router::policy::{assign, evaluate};
use boute_sim::{Request, fleet, simulate};
use boute_spec::outcome::{Outcome, OutcomeSource, RequestOutcome, quantile};
use boute_spec::plan::{Deployment, ModelShare};
use boute_spec::policy::RoutingPolicy;
use boute_spec::slo::SloTarget;
use boute_spec::workload::Trace;

use crate::problem::Problem;

/// What a simulated fleet did.
#[derive(Debug, Clone)]
pub struct FleetRun {
    /// The summary.
    pub outcome: Outcome,
    /// Every answered request; its model is an index into the problem's.
    pub requests: Vec<RequestOutcome>,
}

/// Simulates `deployment` under `policy` on `trace`, each request joined to one of `queries` by the seed. Quality is that
/// of all `queries` under the policy. `shares` are in the order of the problem's models.
///
/// # Panics
/// If a group does not fit or the policy names an unknown model: candidates fit, policies are made of the models.
pub fn simulate_fleet(
    problem: &Problem,
    deployment: &Deployment,
    policy: &RoutingPolicy,
    shares: &[ModelShare],
    trace: &Trace,
    queries: Option<&ScoredQueries>,
) -> FleetRun {
    let gpus: Vec<_> = problem.offers.iter().map(|offer| offer.gpu.clone()).collect();
    let replicas = fleet::replicas(deployment, &problem.models, &gpus, shares).expect("candidates fit");
    let ids = problem.model_ids();
    let decider = Decider::new(policy, &ids).expect("the policy is made of these models");
    let scales = problem.output_scales();
    let joined = queries.map(|queries| (queries, problem.join(trace, queries)));
    let models = problem.models.len();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for (index, request) in trace.requests().iter().enumerate() {
        let query = joined.as_ref().map(|(queries, joined)| (*queries, joined[index]));
        // The prompt is the same for every model.
        inputs.push(problem.tokens(request, query, 0, 1.0).0);
        outputs.extend((0..models).map(|model| problem.tokens(request, query, model, scales[model]).1));
    }
    let requests = trace.requests().iter().enumerate().map(|(index, request)| Request {
        arrival: request.arrival,
        scores: joined.as_ref().map_or(&[], |(queries, joined)| queries.predicted(joined[index])),
        input_tokens: inputs[index],
        output_tokens: &outputs[index * models..(index + 1) * models],
        hash_ids: &request.hash_ids,
    });
    let simulation = simulate(replicas, &decider, requests);
    let quality = queries.map(|queries| evaluate(&assign(&decider, queries), queries).quality);
    let outcome = Outcome::summarise(
        OutcomeSource::Simulated,
        &simulation.outcomes,
        simulation.failed,
        &ids,
        &problem.slo,
        quality,
    );
    FleetRun { outcome, requests: simulation.outcomes }
}

/// What `run` reached of `target`, in seconds.
pub fn reached_s(problem: &Problem, run: &FleetRun, target: &SloTarget) -> f64 {
    let of = |outcome: &&RequestOutcome| {
        target.model.as_ref().is_none_or(|id| problem.models[outcome.model as usize].id == *id)
    };
    let mut values: Vec<f64> = run.requests.iter().filter(of).map(|it| it.metric_s(target.metric)).collect();
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, target.percentile.share())
}

/// Promises that `run` breaks; a lost request breaks all.
pub fn broken<'a>(problem: &'a Problem, run: &FleetRun) -> Vec<&'a SloTarget> {
    problem
        .slo
        .iter()
        .filter(|target| run.outcome.failed > 0 || reached_s(problem, run, target) > target.limit_s.get())
        .collect()
}
