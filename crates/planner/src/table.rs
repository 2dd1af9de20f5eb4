//! The performance table: how one replica of each candidate does at each of several loads, by simulation.
//!
//! A replica in a fleet gets a part of the traffic. Its stream is made from the planning trace by taking every k-th
//! request, so that slow swells of the real traffic stay and neighbours are spread as a balancer spreads them. Where one
//! replica takes more than the whole traffic, time is compressed instead.
//!
//! With `lengths: quality` the lengths a model sees depend on which queries are routed to it; the table is then made for
//! a few routings, and a routing uses the table of the nearest.

use boute_perf::{Calibration, ReplicaModel};
use boute_router::decide::Decider;
use boute_router::policy::{assign, policy_for_fractions};
use boute_sim::fleet::replica;
use boute_sim::{ReplicaSpec, Request, simulate};
use boute_spec::file::Lengths;
use boute_spec::outcome::RequestOutcome;
use boute_spec::slo::SloTarget;
use boute_spec::units::SimTime;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::candidates::{Candidate, share_for};
use crate::problem::{Problem, Progress, Step};

/// Loads, as shares of what the replica can carry when it is never idle.
const LOADS: [f64; 12] = [0.05, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.86, 0.93, 1.0];
/// Requests of one simulation: enough of the trace that its busy stretches are in.
const REQUESTS: usize = 4_000;
/// Beyond a load at which more than this share of requests is over some limit, higher loads are not simulated.
const HOPELESS: f64 = 0.5;
/// Requests to find what a replica can carry.
const CAPACITY_REQUESTS: usize = 300;
/// Second set of limits, for what a looser promise is worth.
pub(crate) const LOOSER: f64 = 1.1;
/// Shares of the second of two models at which conditional lengths are tabulated.
const ANCHORS: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];

/// A replica at one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Requests per second.
    pub rate: f64,
    /// Per promise: share of requests over the limit (0 for promises about other models).
    pub over: Vec<f64>,
    /// The same with limits ten per cent looser.
    pub over_looser: Vec<f64>,
    /// Per promise: the promised percentile of the metric, in seconds.
    pub reached_s: Vec<f64>,
}

/// Levels per candidate, ascending in rate, for one length mix.
pub type Levels = Vec<Vec<Level>>;

/// The table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Load fractions a mix belongs to, and its levels per candidate. One entry where lengths do not depend on the route.
    mixes: Vec<(Vec<f64>, Levels)>,
}

impl Table {
    /// Simulates all candidates at all loads. `None` if told to stop.
    pub fn build(problem: &Problem, candidates: &[Candidate], progress: Progress<'_>) -> Option<Self> {
        let mixes = mixes(problem);
        let total = (mixes.len() * candidates.len()) as u64;
        let done = std::sync::atomic::AtomicU64::new(0);
        let jobs: Vec<(usize, usize)> = (0..mixes.len())
            .flat_map(|mix| (0..candidates.len()).map(move |candidate| (mix, candidate)))
            .collect();
        let levels: Option<Vec<Vec<Level>>> = jobs
            .par_iter()
            .map(|&(mix, candidate)| {
                let levels =
                    levels(problem, &candidates[candidate], &mixes[mix].1[candidates[candidate].model]);
                let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                let stop =
                    progress(&Step { message: "simulating replica configurations".into(), done, total });
                (!stop).then_some(levels)
            })
            .collect();
        let mut levels = levels?.into_iter();
        let mixes = mixes
            .into_iter()
            .map(|(fractions, _)| (fractions, levels.by_ref().take(candidates.len()).collect()))
            .collect();
        Some(Self { mixes })
    }

    /// The levels to use for a routing with these load fractions.
    ///
    /// # Panics
    /// Never: a table has at least one mix.
    pub fn levels(&self, fractions: &[f64]) -> &Levels {
        let distance =
            |other: &[f64]| -> f64 { other.iter().zip(fractions).map(|(a, b)| (a - b).abs()).sum() };
        let nearest = self.mixes.iter().min_by(|a, b| distance(&a.0).total_cmp(&distance(&b.0)));
        &nearest.expect("a table has at least one mix").1
    }
}

/// (prompt, answer) tokens in the order in which a model sees them.
type Tokens = Vec<(u32, u32)>;

/// Load fractions and, per model, the lengths it sees.
fn mixes(problem: &Problem) -> Vec<(Vec<f64>, Vec<Tokens>)> {
    let models = problem.models.len();
    let scales = problem.output_scales();
    let of_trace = |model: usize| {
        let requests = problem.planning_trace.requests().iter();
        requests.map(|request| problem.tokens(request, None, model, scales[model])).collect()
    };
    let Some(quality) = problem.quality.as_ref().filter(|_| problem.lengths == Lengths::Quality) else {
        return vec![(vec![1.0 / models as f64; models], (0..models).map(of_trace).collect())];
    };
    let queries = &quality.planning;
    let ids = problem.model_ids();
    anchors(models)
        .into_iter()
        .map(|fractions| {
            let policy = policy_for_fractions(queries, &fractions);
            let decider = Decider::new(&policy, &ids).expect("the policy is made of these models");
            let assignment = assign(&decider, queries);
            let lengths = (0..models)
                .map(|model| {
                    let routed: Tokens = (0..queries.len())
                        .filter(|query| assignment[*query] == model)
                        .map(|query| {
                            let request = &problem.planning_trace.requests()[0];
                            problem.tokens(request, Some((queries, query)), model, 1.0)
                        })
                        .collect();
                    if routed.is_empty() { of_trace(model) } else { routed }
                })
                .collect();
            (fractions, lengths)
        })
        .collect()
}

fn anchors(models: usize) -> Vec<Vec<f64>> {
    if models == 2 {
        return ANCHORS.iter().map(|share| vec![1.0 - share, *share]).collect();
    }
    // Every model alone, and all together.
    let alone = (0..models).map(|only| (0..models).map(|model| f64::from(u8::from(model == only))).collect());
    alone.chain([vec![1.0 / models as f64; models]]).collect()
}

fn levels(problem: &Problem, candidate: &Candidate, tokens: &Tokens) -> Vec<Level> {
    let mean = |pick: fn(&(u32, u32)) -> u32| {
        tokens.iter().map(|lengths| f64::from(pick(lengths))).sum::<f64>() / tokens.len() as f64
    };
    let share = share_for(candidate.config.model.id.clone(), mean(|at| at.0), mean(|at| at.1));
    let spec = replica(&candidate.group(1, 0.0), &candidate.config.model, &candidate.config.gpu, 0, &share)
        .expect("candidates fit");
    let at_once: Vec<Arrival> =
        cycle(problem, tokens).take(CAPACITY_REQUESTS).map(|lengths| (SimTime::ZERO, lengths)).collect();
    let capacity = CAPACITY_REQUESTS as f64 / makespan_s(&run(&spec, &at_once));
    let mut levels: Vec<Level> = Vec::with_capacity(LOADS.len());
    for load in LOADS {
        let arrivals = stream(problem, tokens, load * capacity);
        let outcomes = run(&spec, &arrivals);
        levels.push(level(problem, candidate.model, load * capacity, &outcomes));
        if levels[levels.len() - 1].over.iter().any(|over| *over > HOPELESS) {
            break;
        }
    }
    levels
}

type Arrival = (SimTime, (u32, u32));

fn run(spec: &ReplicaSpec<ReplicaModel>, arrivals: &[Arrival]) -> Vec<RequestOutcome> {
    let outputs: Vec<[u32; 1]> = arrivals.iter().map(|(_, (_, answer))| [*answer]).collect();
    let requests = arrivals.iter().zip(&outputs).map(|((arrival, (prompt, _)), output_tokens)| Request {
        arrival: *arrival,
        scores: &[],
        input_tokens: *prompt,
        output_tokens,
        hash_ids: &[],
    });
    simulate(vec![spec.clone()], &Decider::Constant(0), requests).outcomes
}

fn makespan_s(outcomes: &[RequestOutcome]) -> f64 {
    outcomes.iter().map(|outcome| (outcome.arrival + outcome.e2e).seconds()).fold(f64::MIN_POSITIVE, f64::max)
}

/// Lengths without end: the trace's own order, or queries drawn by the seed.
fn cycle<'a>(problem: &Problem, tokens: &'a Tokens) -> Box<dyn Iterator<Item = (u32, u32)> + 'a> {
    match problem.lengths {
        Lengths::Trace => Box::new(tokens.iter().copied().cycle()),
        Lengths::Quality => {
            let mut rng = ChaCha8Rng::seed_from_u64(problem.seed);
            Box::new(std::iter::repeat_with(move || tokens[rng.random_range(0..tokens.len())]))
        }
    }
}

/// Arrivals of a replica that gets `rate` of the traffic.
fn stream(problem: &Problem, tokens: &Tokens, rate: f64) -> Vec<Arrival> {
    let requests = problem.planning_trace.requests();
    let share = rate / problem.rate;
    let mut drawn = cycle(problem, tokens);
    if share >= 1.0 {
        let arrivals = requests.iter().take(REQUESTS);
        return arrivals
            .map(|at| (SimTime((at.arrival.0 as f64 / share) as u64), drawn.next().unwrap_or((1, 1))))
            .collect();
    }
    let taken = |index: usize| (index as f64 * share) as u64;
    let kept = (0..requests.len()).filter(|&index| taken(index + 1) > taken(index));
    kept.take(REQUESTS)
        .map(|index| {
            let lengths = match problem.lengths {
                Lengths::Trace => tokens[index],
                Lengths::Quality => drawn.next().unwrap_or((1, 1)),
            };
            (requests[index].arrival, lengths)
        })
        .collect()
}

fn level(problem: &Problem, model: usize, rate: f64, outcomes: &[RequestOutcome]) -> Level {
    let applies = |target: &SloTarget| target.model.as_ref().is_none_or(|id| *id == problem.models[model].id);
    let over = |factor: f64| {
        problem
            .slo
            .iter()
            .map(|target| {
                if !applies(target) || outcomes.is_empty() {
                    return 0.0;
                }
                let limit = target.limit_s.get() * factor;
                let over = outcomes.iter().filter(|outcome| outcome.metric_s(target.metric) > limit).count();
                over as f64 / outcomes.len() as f64
            })
            .collect()
    };
    let reached_s = problem
        .slo
        .iter()
        .map(|target| {
            let mut values: Vec<f64> =
                outcomes.iter().map(|outcome| outcome.metric_s(target.metric)).collect();
            values.sort_unstable_by(f64::total_cmp);
            boute_spec::outcome::quantile(&values, target.percentile.share())
        })
        .collect();
    Level { rate, over: over(1.0), over_looser: over(LOOSER), reached_s }
}

/// How far off predictions for a candidate may be.
pub(crate) fn spread_of(candidate: &Candidate) -> boute_perf::interval::Spread {
    Calibration::builtin().spread(candidate.config.kind(source_of(candidate)))
}

/// Whether the calibration of a candidate was measured; kept here with the other uses of the cost model.
pub(crate) fn source_of(candidate: &Candidate) -> boute_spec::catalog::Source {
    Calibration::builtin().source(&candidate.config.gpu)
}
