//! Disaggregated candidates: engines that compute prompts before engines that decode, on the same or on another GPU type.
//!
//! Every pair of configurations of a model in every small ratio would be thousands, so they are ranked by what each side
//! carries alone at mean lengths, in closed form, before any is simulated:
//! ```text
//! prompts  = n / step(n prompts of p tokens), n as many as a step takes
//! answers  = b / (a · step(b decoding at context p + a/2)), b the most that memory and the promises on TPOT and E2E allow
//! requests = min(x · prompts, y · answers)                   of a replica with x : y engines
//! ```
//! For each pair the ratio with the least rent per request is kept; for each pair of GPU types the pairs that none beats in
//! rent per request, rent per replica (small replicas fit a load better) and time of a prompt. Which of them is worth it
//! under real traffic the table says.

use std::collections::BTreeMap;

use boute_mobo::pareto::{dominates, non_dominated};
use boute_perf::{Batch, Calibration, ReplicaModel, StepTime};
use boute_spec::slo::{Metric, SloTarget};

use crate::candidates::{Candidate, Prefill};
use crate::problem::Problem;

/// Engines that prefill and that decode, per replica.
const RATIOS: [(u32, u32); 7] = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
/// Pairs per model and pair of GPU types, and per model, at most.
const PER_TYPES: usize = 4;
const PER_MODEL: usize = 24;

/// What one side of a pair does alone at mean lengths.
struct Side<'a> {
    candidate: &'a Candidate,
    /// Requests per second.
    rate: f64,
    /// Of one prompt, or of one step.
    seconds: f64,
}

/// A pair with its best ratio.
struct Pair<'a> {
    prefill: &'a Candidate,
    decode: &'a Candidate,
    ratio: (u32, u32),
    /// Rent of a request per second, rent of a replica, and seconds of a prompt: the less, the better.
    worth: Vec<f64>,
}

/// The disaggregated candidates over `engines`, whose models see `means` prompt and answer tokens.
pub(crate) fn disaggregated(
    problem: &Problem,
    engines: &[Candidate],
    means: impl Fn(usize) -> Option<(f64, f64)>,
) -> Vec<Candidate> {
    let of_model = |model: usize| {
        let means = means(model)?;
        let own = engines.iter().filter(|candidate| candidate.model == model);
        let prefills = useful(own.clone().filter_map(|candidate| prefill_side(problem, candidate, means)));
        let decodes = useful(own.filter_map(|candidate| decode_side(problem, candidate, means)));
        let mut by_types: BTreeMap<(usize, usize), Vec<Pair<'_>>> = BTreeMap::new();
        for prefill in &prefills {
            for decode in &decodes {
                let types = (prefill.candidate.offer, decode.candidate.offer);
                by_types.entry(types).or_default().extend(pair(problem, prefill, decode));
            }
        }
        let mut pairs: Vec<Pair<'_>> =
            by_types.into_values().flat_map(|pairs| best(pairs, PER_TYPES)).collect();
        pairs.sort_by(|a, b| a.worth[0].total_cmp(&b.worth[0]));
        pairs.truncate(PER_MODEL);
        Some(pairs.iter().map(candidate).collect::<Vec<_>>())
    };
    (0..problem.models.len()).filter_map(of_model).flatten().collect()
}

/// A configuration that computes prompts; `None` if not even an idle one keeps a promise on TTFT.
fn prefill_side<'a>(
    problem: &Problem,
    candidate: &'a Candidate,
    (prompt, _): (f64, f64),
) -> Option<Side<'a>> {
    let model = ReplicaModel::new(&candidate.config, Calibration::builtin()).ok()?;
    let tokens = (prompt as u64).max(1);
    let seconds = |prompts: u64| {
        let batch = Batch {
            prefill_tokens: prompts * tokens,
            prefill_chunks: prompts,
            prefill_pairs_twice: prompts * tokens * tokens,
            prefill_ends: prompts,
            ..Batch::default()
        };
        model.step_time(&batch).seconds()
    };
    let at_once = (u64::from(candidate.config.engine.max_num_batched_tokens) / tokens).max(1);
    let alone = seconds(1);
    let keeps = alone <= strictest_s(problem, candidate, Metric::Ttft);
    keeps.then(|| Side { candidate, rate: at_once as f64 / seconds(at_once), seconds: alone })
}

/// A configuration that decodes; `None` if not even one sequence keeps the promises.
fn decode_side<'a>(
    problem: &Problem,
    candidate: &'a Candidate,
    (prompt, answer): (f64, f64),
) -> Option<Side<'a>> {
    let model = ReplicaModel::new(&candidate.config, Calibration::builtin()).ok()?;
    let context = (prompt + answer / 2.0) as u64;
    let limit_s = strictest_s(problem, candidate, Metric::Tpot)
        .min(strictest_s(problem, candidate, Metric::E2e) / answer.max(1.0));
    let room = candidate.kv_cache_tokens / ((prompt + answer) as u64).max(1);
    let most = room.min(u64::from(candidate.config.engine.max_num_seqs));
    // More sequences never take less time.
    let (mut enough, mut many) = (0, most + 1);
    while many - enough > 1 {
        let middle = u64::midpoint(enough, many);
        if model.decode_step_s(middle, context) <= limit_s {
            enough = middle;
        } else {
            many = middle;
        }
    }
    let seconds = model.decode_step_s(enough.max(1), context);
    (enough > 0).then(|| Side { candidate, rate: enough as f64 / (answer.max(1.0) * seconds), seconds })
}

/// The strictest limit on a metric of a candidate's model; infinite if there is none.
fn strictest_s(problem: &Problem, candidate: &Candidate, metric: Metric) -> f64 {
    let concerns = |target: &&SloTarget| target.metric == metric && problem.concerns(target, candidate.model);
    let limits = problem.slo.iter().filter(concerns);
    limits.map(|target| target.limit_s.get()).fold(f64::INFINITY, f64::min)
}

/// Without those that another of the same GPU type beats in rent per request and in time.
fn useful<'a>(sides: impl Iterator<Item = Side<'a>>) -> Vec<Side<'a>> {
    let sides: Vec<Side<'_>> = sides.collect();
    let worth = |side: &Side<'_>| vec![side.candidate.usd_per_hour / side.rate, side.seconds];
    let beaten = |side: &Side<'_>| {
        let rivals = sides.iter().filter(|it| it.candidate.offer == side.candidate.offer);
        rivals.map(worth).any(|rival| dominates(&rival, &worth(side)))
    };
    let kept: Vec<bool> = sides.iter().map(|side| !beaten(side)).collect();
    sides.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(side, _)| side).collect()
}

/// A pair in the ratio of the least rent per request that the stock allows.
fn pair<'a>(problem: &Problem, prefill: &Side<'a>, decode: &Side<'a>) -> Option<Pair<'a>> {
    let in_ratio = |ratio: (u32, u32)| {
        let (x, y) = (f64::from(ratio.0), f64::from(ratio.1));
        let usd = x * prefill.candidate.usd_per_hour + y * decode.candidate.usd_per_hour;
        let rate = (x * prefill.rate).min(y * decode.rate);
        let worth = vec![usd / rate, usd, prefill.seconds];
        Pair { prefill: prefill.candidate, decode: decode.candidate, ratio, worth }
    };
    let in_stock = RATIOS.into_iter().map(in_ratio).filter(|pair| candidate(pair).in_stock(problem));
    in_stock.min_by(|a, b| a.worth[0].total_cmp(&b.worth[0]))
}

/// The pairs that none beats, the `most` with the least rent per request.
fn best(pairs: Vec<Pair<'_>>, most: usize) -> Vec<Pair<'_>> {
    let worths: Vec<Vec<f64>> = pairs.iter().map(|pair| pair.worth.clone()).collect();
    let front = non_dominated(&worths);
    let mut kept: Vec<Pair<'_>> =
        pairs.into_iter().enumerate().filter(|(at, _)| front.contains(at)).map(|(_, pair)| pair).collect();
    kept.sort_by(|a, b| a.worth[0].total_cmp(&b.worth[0]));
    kept.truncate(most);
    kept
}

/// It is there when all its engines are.
fn candidate(pair: &Pair<'_>) -> Candidate {
    let Pair { prefill, decode, ratio: (instances, decode_instances), .. } = *pair;
    Candidate {
        usd_per_hour: f64::from(instances) * prefill.usd_per_hour
            + f64::from(decode_instances) * decode.usd_per_hour,
        available: prefill.available.powf(instances.into()) * decode.available.powf(decode_instances.into()),
        prefill: Some(Prefill {
            offer: prefill.offer,
            config: prefill.config.clone(),
            kv_cache_tokens: prefill.kv_cache_tokens,
            instances,
            decode_instances,
        }),
        ..decode.clone()
    }
}
