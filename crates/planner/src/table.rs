//! The performance table: how one replica of each candidate does at each of several loads, by simulation.
//!
//! A replica in a fleet gets a part of the traffic. Its stream is made from the planning trace by taking every k-th
//! request, so that slow swells of the real traffic stay and neighbours are spread as a balancer spreads them. Where one
//! replica takes more than the whole traffic, time is compressed instead.
//!
//! With `lengths: quality` the lengths a model sees depend on which queries are routed to it; the table is then made for
//! a few routings, and a routing uses the table of the nearest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use boute_perf::interval::Spread;
use boute_perf::{Calibration, ReplicaConfig, ReplicaModel};
use boute_router::decide::Decider;
use boute_router::policy::{assign, policy_for_fractions};
use boute_sim::fleet::replica_of;
use boute_sim::{ReplicaSpec, Request, simulate};
use boute_spec::catalog::Source;
use boute_spec::file::Lengths;
use boute_spec::outcome::RequestOutcome;
use boute_spec::plan::ReplicaGroup;
use boute_spec::slo::{Metric, SloTarget};
use boute_spec::units::SimTime;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::candidates::{Candidate, share_for};
use crate::database::{Book, Database, Entry, Record, StreamDigest, replica_digest};
use crate::disaggregate::disaggregated;
use crate::problem::{Problem, Progress, Step};

/// Loads, as shares of what the replica carries when a batch of requests comes at once; with the last of them running
/// out alone, that is less than it carries under a stream, the more so the longer some answers are.
const LOADS: [f64; 23] = [
    0.05, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.86, 0.93, 1.0, 1.08, 1.17, 1.28, 1.4, 1.55, 1.75, 2.0,
    2.3, 2.7, 3.2, 4.0,
];
/// Requests of one simulation: enough of the trace that its busy stretches are in.
const REQUESTS: usize = 4_000;
/// Beyond a load at which more than this share of requests is over some limit, higher loads are not simulated.
const HOPELESS: f64 = 0.5;
/// Below a load at which at most this share is over every limit, lower loads have nothing to offer.
const NEGLIGIBLE: f64 = 1e-3;
/// Requests to find what a replica can carry, and how fast it is alone.
const CAPACITY_REQUESTS: usize = 300;
const ALONE_REQUESTS: usize = 40;
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
    /// Whether the replica can go on with it: requests do not pile up.
    pub sustained: bool,
}

/// Levels per candidate, ascending in rate, for one length mix; none for a candidate whose model has no share in it.
pub type Levels = Vec<Vec<Level>>;

/// Whose lengths a model is measured with, where lengths are the queries' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LengthMix {
    /// Those of the queries that are routed to it.
    ByRoute,
    /// Those of all.
    Overall,
}

/// The table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Load fractions a mix belongs to, and its levels per candidate. One entry where lengths do not depend on the route.
    mixes: Vec<(Vec<f64>, Levels)>,
    /// Candidates left out, each with the one that dominates it.
    pub dominated: Vec<(Candidate, Candidate)>,
}

impl Table {
    /// Simulates what is not in the database: every candidate that is not dominated, at the loads that matter for the
    /// promises. Returns those candidates and their table; `None` if told to stop.
    ///
    /// A candidate is dominated if another of the same model and GPU type with no more GPUs carries as much per GPU and is
    /// as fast alone, under every length mix. Those of `keep` groups stay all the same.
    pub(crate) fn build(
        problem: &Problem,
        candidates: Vec<Candidate>,
        length_mix: LengthMix,
        keep: &[ReplicaGroup],
        database: &Database,
        progress: Progress<'_>,
    ) -> Option<(Vec<Candidate>, Self)> {
        let mixes = mixes(problem, length_mix);
        let desks: Vec<Vec<Option<Desk<'_>>>> = mixes
            .iter()
            .map(|(fractions, lengths)| {
                let shared = fractions.iter().zip(lengths);
                shared
                    .map(|(fraction, tokens)| (*fraction > 0.0).then(|| Desk::new(problem, tokens, database)))
                    .collect()
            })
            .collect();
        let jobs = |candidates: &[Candidate]| -> Vec<(usize, usize)> {
            let all = (0..mixes.len()).flat_map(|mix| (0..candidates.len()).map(move |at| (mix, at)));
            all.filter(|(mix, at)| desks[*mix][candidates[*at].model].is_some()).collect()
        };
        let pairs = jobs(&candidates);
        let message = "measuring replica configurations";
        let alone = at_desks(&desks, &candidates, &pairs, message, progress, Desk::entry);
        // What was measured before a stop need not be measured again.
        database.keep();
        let alone = alone?;
        let mut known: Vec<Vec<Entry>> = vec![Vec::new(); candidates.len()];
        for ((_, at), entry) in pairs.iter().zip(alone) {
            known[*at].push(entry);
        }
        let by: Vec<Option<Candidate>> = (0..candidates.len())
            .map(|at| {
                let other = dominator(at, &candidates, &known)?;
                let kept = keep.iter().any(|group| candidates[at].is_of(group));
                (!kept).then(|| candidates[other].clone())
            })
            .collect();
        let mut dominated = Vec::new();
        let mut kept = Vec::new();
        for (candidate, by) in candidates.into_iter().zip(by) {
            match by {
                Some(other) => dominated.push((candidate, other)),
                None => kept.push(candidate),
            }
        }
        let mut candidates = kept;
        if problem.disaggregate {
            let means = |model: usize| desks.iter().find_map(|desks| Some(desks[model].as_ref()?.means));
            candidates.extend(disaggregated(problem, &candidates, means));
        }
        let pairs = jobs(&candidates);
        let message = "simulating replica configurations";
        let levels = at_desks(&desks, &candidates, &pairs, message, progress, Desk::levels);
        database.keep();
        let mut table: Vec<(Vec<f64>, Levels)> = mixes
            .iter()
            .map(|(fractions, _)| (fractions.clone(), vec![Vec::new(); candidates.len()]))
            .collect();
        for ((mix, at), levels) in pairs.into_iter().zip(levels?) {
            table[mix].1[at] = levels;
        }
        Some((candidates, Self { mixes: table, dominated }))
    }

    /// The rows of the `kept` candidates.
    pub(crate) fn only(&self, kept: &[usize]) -> Self {
        let rows = |levels: &Levels| kept.iter().map(|at| levels[*at].clone()).collect();
        let mixes = self.mixes.iter().map(|(fractions, levels)| (fractions.clone(), rows(levels)));
        Self { mixes: mixes.collect(), dominated: self.dominated.clone() }
    }

    /// What a query costs on each model's cheapest replica of one engine that keeps the promises alone; where none does, on
    /// the cheapest. `None` for a model that runs nowhere.
    pub fn usd_per_query(&self, problem: &Problem, candidates: &[Candidate]) -> Vec<Option<f64>> {
        let keeps = |level: &&Level| {
            let allowed = problem.slo.iter().map(|target| 1.0 - target.percentile.share());
            level.sustained && level.over.iter().zip(allowed).all(|(over, allowed)| *over <= allowed)
        };
        let cheapest = |model: usize, keeping: bool| {
            self.mixes
                .iter()
                .flat_map(|(_, levels)| candidates.iter().zip(levels))
                .filter(|(candidate, _)| candidate.model == model && candidate.prefill.is_none())
                .flat_map(|(candidate, levels)| {
                    let usable = levels.iter().filter(|level| !keeping || keeps(level));
                    usable.map(|level| candidate.usd_per_hour / 3600.0 / level.rate)
                })
                .min_by(f64::total_cmp)
        };
        (0..problem.models.len())
            .map(|model| cheapest(model, true).or_else(|| cheapest(model, false)))
            .collect()
    }

    /// The levels to use for a routing with these load fractions: the nearest mix in which all its models have a share.
    ///
    /// # Panics
    /// Never: a table has a mix in which every model has a share.
    pub fn levels(&self, fractions: &[f64]) -> &Levels {
        let covers = |other: &[f64]| other.iter().zip(fractions).all(|(a, b)| *b <= 0.0 || *a > 0.0);
        let distance =
            |other: &[f64]| -> f64 { other.iter().zip(fractions).map(|(a, b)| (a - b).abs()).sum() };
        let covering = self.mixes.iter().filter(|(other, _)| covers(other));
        let nearest = covering.min_by(|a, b| distance(&a.0).total_cmp(&distance(&b.0)));
        &nearest.expect("a table has a mix in which every model has a share").1
    }
}

/// `work` for every pair of mix and candidate, in parallel; `None` if told to stop.
fn at_desks<'a, T: Send>(
    desks: &[Vec<Option<Desk<'a>>>],
    candidates: &[Candidate],
    pairs: &[(usize, usize)],
    message: &str,
    progress: Progress<'_>,
    work: impl Fn(&Desk<'a>, &Candidate) -> T + Sync,
) -> Option<Vec<T>> {
    let begun = AtomicU64::new(0);
    pairs
        .par_iter()
        .map(|(mix, at)| {
            let candidate = &candidates[*at];
            let done = begun.fetch_add(1, Ordering::Relaxed) + 1;
            let stop = progress(&Step { message: message.into(), done, total: pairs.len() as u64 });
            (!stop).then(|| desks[*mix][candidate.model].as_ref().map(|desk| work(desk, candidate)))?
        })
        .collect()
}

/// Another candidate that makes this one pointless; `known` in the order of candidates, one entry per mix.
fn dominator(at: usize, candidates: &[Candidate], known: &[Vec<Entry>]) -> Option<usize> {
    let per_gpu =
        |at: usize, mix: usize| known[at][mix].capacity_micro as f64 / f64::from(candidates[at].gpus());
    let no_worse = |a: usize, b: usize| {
        candidates[a].model == candidates[b].model
            && candidates[a].offer == candidates[b].offer
            && candidates[a].gpus() <= candidates[b].gpus()
            && (0..known[a].len()).all(|mix| {
                let (alone, other) = (known[a][mix].alone_us, known[b][mix].alone_us);
                per_gpu(a, mix) >= per_gpu(b, mix) && alone[0] <= other[0] && alone[1] <= other[1]
            })
    };
    (0..candidates.len())
        .find(|&other| other != at && no_worse(other, at) && (!no_worse(at, other) || other < at))
}

/// (prompt, answer) tokens in the order in which a model sees them.
type Tokens = Vec<(u32, u32)>;

/// Load fractions and, per model, the lengths it sees.
fn mixes(problem: &Problem, length_mix: LengthMix) -> Vec<(Vec<f64>, Vec<Tokens>)> {
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
    let tokens = |query: usize, model: usize| {
        problem.tokens(&problem.planning_trace.requests()[0], Some((queries, query)), model, 1.0)
    };
    if length_mix == LengthMix::Overall {
        let of_all = |model: usize| (0..queries.len()).map(|query| tokens(query, model)).collect();
        return vec![(vec![1.0 / models as f64; models], (0..models).map(of_all).collect())];
    }
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
                        .map(|query| tokens(query, model))
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

/// One stream of requests, and where what is known of it is kept.
struct Desk<'a> {
    problem: &'a Problem,
    tokens: &'a Tokens,
    /// Mean prompt and answer.
    means: (f64, f64),
    book: Arc<Book>,
}

impl<'a> Desk<'a> {
    fn new(problem: &'a Problem, tokens: &'a Tokens, database: &Database) -> Self {
        let mean = |pick: fn(&(u32, u32)) -> u32| {
            tokens.iter().map(|lengths| f64::from(pick(lengths))).sum::<f64>() / tokens.len() as f64
        };
        let arrivals = problem.planning_trace.requests().iter().map(|request| request.arrival);
        let drawn_by = format!("{:?} {} {}", problem.lengths, problem.seed, problem.rate);
        let book = database.book(&StreamDigest::new(arrivals, tokens, &drawn_by));
        Self { problem, tokens, means: (mean(|at| at.0), mean(|at| at.1)), book }
    }

    fn replica(&self, candidate: &Candidate) -> ReplicaSpec<ReplicaModel> {
        let share = share_for(candidate.config.model.id.clone(), self.means.0, self.means.1);
        replica_of(&candidate.group(1, 0.0), &candidate.config.model, &candidate.gpu_types(), 0, &share)
            .expect("candidates fit")
    }

    /// What is known of a candidate; its capacity and its speed alone are measured if nothing is.
    fn entry(&self, candidate: &Candidate) -> Entry {
        let name = replica_digest(candidate);
        self.book.entry(&name).unwrap_or_else(|| {
            let spec = self.replica(candidate);
            let lengths = || cycle(self.problem, self.tokens);
            let at_once: Vec<Arrival> =
                lengths().take(CAPACITY_REQUESTS).map(|lengths| (SimTime::ZERO, lengths)).collect();
            let capacity = CAPACITY_REQUESTS as f64 / makespan_s(&run(&spec, &at_once));
            // Apart by more than any request takes.
            let apart = SimTime::from_seconds(3600.0);
            let spaced = lengths().take(ALONE_REQUESTS).scan(SimTime::ZERO, |at, lengths| {
                *at += apart;
                Some((*at, lengths))
            });
            let alone = run(&spec, &spaced.collect::<Vec<_>>());
            let mean_us = |metric: Metric| {
                let sum: f64 = alone.iter().map(|outcome| outcome.metric_s(metric)).sum();
                (sum / alone.len() as f64 * 1e6).round() as u64
            };
            let entry = Entry {
                capacity_micro: (capacity * 1e6).round() as u64,
                alone_us: [mean_us(Metric::Ttft), mean_us(Metric::E2e)],
                records: BTreeMap::new(),
            };
            self.book.put(&name, entry.clone());
            entry
        })
    }

    /// Levels at the loads that matter: from the highest at which next to nothing is over a limit to the first hopeless one.
    fn levels(&self, candidate: &Candidate) -> Vec<Level> {
        let mut entry = self.entry(candidate);
        let before = entry.records.len();
        let spec = self.replica(candidate);
        let mut level = |load: usize| {
            let rate = LOADS[load] * entry.capacity_micro as f64 * 1e-6;
            let record = entry
                .records
                .entry(load)
                .or_insert_with(|| Record::new(&run(&spec, &stream(self.problem, self.tokens, rate))));
            level(self.problem, candidate.model, rate, record)
        };
        let negligible = |level: &Level| level.sustained && level.over.iter().all(|over| *over <= NEGLIGIBLE);
        // Shares over a limit grow with the load: bisection finds the last load at which they are negligible.
        let (mut first, mut end) = (0, LOADS.len());
        while first + 1 < end {
            let middle = usize::midpoint(first, end);
            if negligible(&level(middle)) {
                first = middle;
            } else {
                end = middle;
            }
        }
        let mut levels: Vec<Level> = Vec::new();
        for load in first..LOADS.len() {
            let level = level(load);
            let hopeless = !level.sustained || level.over.iter().any(|over| *over > HOPELESS);
            levels.push(level);
            if hopeless {
                break;
            }
        }
        if entry.records.len() > before {
            self.book.put(&replica_digest(candidate), entry);
        }
        levels
    }
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
        again: None,
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

fn level(problem: &Problem, model: usize, rate: f64, record: &Record) -> Level {
    let over = |factor: f64| {
        let share = |target: &SloTarget| {
            if problem.concerns(target, model) {
                record.over(target.metric, target.limit_s.get() * factor)
            } else {
                0.0
            }
        };
        problem.slo.iter().map(share).collect()
    };
    let reached_s =
        problem.slo.iter().map(|target| record.quantile_s(target.metric, target.percentile.share()));
    Level {
        rate,
        over: over(1.0),
        over_looser: over(LOOSER),
        reached_s: reached_s.collect(),
        sustained: !record.backlog_grows,
    }
}

/// How far off predictions for a candidate may be: its TTFT as that of the engines that compute prompts.
pub(crate) fn spread_of(candidate: &Candidate) -> Spread {
    let of = |config: &ReplicaConfig| {
        let calibration = Calibration::builtin();
        calibration.spread(config.kind(calibration.source(&config.gpu)))
    };
    let own = of(&candidate.config);
    candidate.prefill.as_ref().map_or(own, |prefill| Spread { ttft: of(&prefill.config).ttft, ..own })
}

/// Whether the calibration of a candidate was measured, the worst of its engines'; kept here with the other uses of the
/// cost model.
pub(crate) fn source_of(candidate: &Candidate) -> Source {
    let source = |config: &ReplicaConfig| Calibration::builtin().source(&config.gpu);
    candidate.configs().map(source).max().unwrap_or(Source::Assumed)
}
