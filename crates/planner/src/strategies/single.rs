//! `heterogeneous-single`: the best single model, its traffic in length buckets, buckets assigned to GPU types.
//!
//! The programme is [`super::buckets`]. What one replica carries of one bucket alone is the model of its speed in a closed
//! loop of as many clients as the engine takes at once, scaled so that the mix of all buckets takes what the table says
//! that a replica carries within the promises. The sources have no queueing: where their counts, judged by the table,
//! carry less than asked, they are solved for more demand, in steps of at least a per cent.

use boute_perf::{Calibration, ClosedLoop, ReplicaModel};
use boute_spec::file::Lengths;

use super::buckets::{Buckets, Configuration};
use super::measures::{Counts, as_answer, best};
use crate::deployment::{Fleet, Goal, Limits};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// Buckets per side: this many equal parts of the prompts, and each of those by answers.
const SIDE: usize = 4;
/// How much more demand is planned for at a time.
const STEPS: (f64, f64) = (1.01, 1.05);
const MOST_STEPS: u32 = 40;
/// Relative gap of the programme, as of the exact fleet's.
const GAP: f64 = 5e-3;

/// Queries of about the same lengths.
struct Bucket {
    share: f64,
    prompt_tokens: u32,
    answer_tokens: u32,
}

impl Search<'_> {
    /// The best model that keeps the floor alone, on the GPU types that its length buckets are assigned to.
    pub fn heterogeneous_single(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let choices = Self::constant(routes)
            .filter_map(|route| Some(Choice { route, fleet: self.assigned(&routes[route], limits, goal)? }));
        best(goal, choices)
    }

    fn assigned(&self, route: &Route, limits: &Limits, goal: Goal) -> Option<Fleet> {
        let model = route.stats.fractions.iter().position(|fraction| *fraction > 0.0)?;
        let length_buckets = buckets(self.lengths(model));
        let capacities = self.capacities(route, limits);
        let useful: Vec<usize> = (0..self.candidates.len())
            .filter(|at| self.candidates[*at].model == model && capacities[*at] > 0.0)
            .collect();
        let configurations =
            useful.iter().map(|at| self.configuration(*at, capacities[*at], &length_buckets));
        let mut programme = Buckets {
            demand: Vec::new(),
            configurations: configurations.collect::<Option<_>>()?,
            stock: limits.stock.clone(),
            budget: limits.budget,
            gap: GAP,
        };
        let mut rate = limits.rate * limits.margins[model];
        for _ in 0..MOST_STEPS {
            programme.demand = length_buckets.iter().map(|bucket| bucket.share * rate).collect();
            let found = if goal == Goal::Cost { programme.cheapest() } else { programme.fastest() };
            let copies = useful.iter().zip(found?.copies).filter(|(_, copies)| *copies > 0);
            let counts: Counts = copies.map(|(at, copies)| (*at, copies)).collect();
            let carried = self.carried(route, limits, &counts)?;
            let short = limits.rate / carried.value;
            if let Some(fleet) = as_answer(carried, limits, goal) {
                return Some(fleet);
            }
            rate *= short.clamp(STEPS.0, STEPS.1);
        }
        None
    }

    /// (prompt, answer) tokens that a model sees when it answers everything.
    fn lengths(&self, model: usize) -> Vec<(u32, u32)> {
        let problem = self.problem;
        let requests = problem.planning_trace.requests();
        let scale = problem.output_scales()[model];
        match (&problem.quality, problem.lengths) {
            (Some(quality), Lengths::Quality) => (0..quality.planning.len())
                .map(|query| problem.tokens(&requests[0], Some((&quality.planning, query)), model, scale))
                .collect(),
            _ => requests.iter().map(|request| problem.tokens(request, None, model, scale)).collect(),
        }
    }

    /// What one replica carries of each bucket alone.
    fn configuration(&self, at: usize, capacity: f64, buckets: &[Bucket]) -> Option<Configuration> {
        let candidate = &self.candidates[at];
        let replica = ReplicaModel::new(&candidate.config, Calibration::builtin()).ok()?;
        let clients = f64::from(candidate.config.engine.max_num_seqs);
        let alone = |bucket: &Bucket| {
            let Bucket { prompt_tokens, answer_tokens, .. } = *bucket;
            let seen = replica.closed_loop(&ClosedLoop { prompt_tokens, answer_tokens, clients });
            clients / (seen.ttft_s + seen.tpot_s * f64::from(answer_tokens.saturating_sub(1)))
        };
        let rates: Vec<f64> = buckets.iter().map(alone).collect();
        let mix: f64 = buckets.iter().zip(&rates).map(|(bucket, rate)| bucket.share / rate).sum();
        Some(Configuration {
            usd_per_hour: candidate.usd_per_hour,
            gpus: (0..self.problem.offers.len())
                .map(|offer| if offer == candidate.offer { candidate.gpus() } else { 0 })
                .collect(),
            rates: rates.into_iter().map(|rate| rate * capacity * mix).collect(),
        })
    }
}

/// Equal parts of the prompts, each in equal parts of its answers; a bucket has its mean lengths.
fn buckets(mut lengths: Vec<(u32, u32)>) -> Vec<Bucket> {
    let total = lengths.len() as f64;
    lengths.sort_unstable();
    let mut buckets = Vec::new();
    let part = |count: usize| count.div_ceil(SIDE).max(1);
    let prompts = part(lengths.len());
    for alike in lengths.chunks_mut(prompts) {
        alike.sort_unstable_by_key(|(_, answer)| *answer);
        let answers = part(alike.len());
        for bucket in alike.chunks(answers) {
            let mean = |pick: fn(&(u32, u32)) -> u32| {
                (bucket.iter().map(|it| f64::from(pick(it))).sum::<f64>() / bucket.len() as f64).round()
                    as u32
            };
            buckets.push(Bucket {
                share: bucket.len() as f64 / total,
                prompt_tokens: mean(|it| it.0),
                answer_tokens: mean(|it| it.1),
            });
        }
    }
    buckets
}
