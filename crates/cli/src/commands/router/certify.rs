//! `boute router certify`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use boute_router::certify::{Answers, Certified, FloorRule, Promise, rows_of_mix, walk};
use boute_router::decide::Decider;
use boute_router::monitor::{belongs, reference};
use boute_router::policy::{PolicyStats, assign, evaluate, path};
use boute_router::{ScoredQueries, Scorer};
use boute_spec::certificate::Reference;
use boute_spec::policy::{ModelPenalty, RoutingPolicy};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Part, Scored, assignment, costs, read_router, score};
use crate::failure::{Ending, Failure};
use crate::files::{Input, write_whole};
use crate::printer::Printer;

/// Sizes of calibration data about which it is said what they would certify.
const SIZES: [usize; 4] = [300, 1000, 3000, 10_000];
/// Resamples for that.
const RESAMPLES: usize = 15;
const VERSION: u32 = 2;
/// Fewer queries certify nothing worth having.
const FEWEST_QUERIES: usize = 30;

/// A share on the command line; what it may be is judged later.
fn share(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "write a share between 0 and 1, such as 0.95".to_owned())
}

/// Certifies a policy.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("promise").required(true).args(["floor", "max_loss"])))]
pub(crate) struct Certify {
    /// The router.
    router: PathBuf,
    /// Per-query scores that the router was not trained on: JSON lines, plain or gzip.
    data: PathBuf,
    /// Mean score that the policy must keep, between 0 and 1.
    #[arg(long, value_parser = share, allow_negative_numbers = true)]
    floor: Option<f64>,
    /// How much worse than the reference model it may be on average: 0.02 is two points of a hundred.
    #[arg(long, value_parser = share, allow_negative_numbers = true)]
    max_loss: Option<f64>,
    /// The reference model; the best on the router's training queries if left out.
    #[arg(long, requires = "max_loss")]
    reference: Option<String>,
    /// The same promise for a group of tasks, with its own number: TASK=NUMBER; `mmlu` is all of `mmlu/…`. All hold together.
    #[arg(long = "group", value_parser = assignment)]
    groups: Vec<(String, f64)>,
    /// The mix of tasks to be served, if not that of the data: TASK=SHARE, several times.
    #[arg(long = "mix", value_parser = assignment)]
    mix: Vec<(String, f64)>,
    /// Chance that the promises hold.
    #[arg(long, default_value_t = 0.95, value_parser = share, allow_negative_numbers = true)]
    confidence: f64,
    /// How far the mean of the scores may be off, if a judge gave them.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    judge_error: f64,
    /// What an answer of a model costs, in any unit: MODEL=NUMBER, once per model. Needed for three and more models.
    #[arg(long = "cost", value_parser = assignment)]
    costs: Vec<(String, f64)>,
    /// The queries to certify on.
    #[arg(long, value_enum, default_value_t = Part::Validation)]
    split: Part,
    /// Seed of the order in which queries are looked at.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the certificate here.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// What is promised, on what grounds, and for which queries it holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    version: u32,
    /// SHA-256 of the router artefact.
    router_sha256: String,
    /// SHA-256 of the calibration data.
    data_sha256: String,
    /// Calibration queries.
    queries: usize,
    made_at_unix_s: u64,
    confidence: f64,
    judge_error: f64,
    promises: Vec<Stated>,
    /// Whether a policy other than the best single model could be certified.
    pub(super) certified: bool,
    /// Model ids.
    pub(super) models: Vec<String>,
    /// `argmax ŝ_m − λ_m`; one entry for a constant policy.
    pub(super) policy: Vec<ModelPenalty>,
    /// Share of the calibration queries per model.
    pub(super) shares: Vec<f64>,
    /// Mean cost of a query, where costs are given; likewise of the best single model.
    cost: Option<(f64, f64)>,
    quality: f64,
    /// What larger calibration data would certify: queries, share of the best single model (median of resamples).
    with_queries: Vec<(usize, f64)>,
    /// For the monitor: void when queries or answers are no longer like these.
    reference: Reference,
}

/// One promise, with what the calibration queries say of the policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stated {
    /// Group of tasks; empty for all.
    group: String,
    /// `floor` or `max_loss`.
    kind: String,
    value: f64,
    /// Model that losses are counted against; empty for floors.
    against: String,
    queries: usize,
    #[serde(flatten)]
    test: Certified,
}

impl Certificate {
    /// Reads one that was made for this `router`.
    pub(super) fn read(path: &Path, router: &Input) -> Result<Self, Failure> {
        let Input { name, text, .. } = Input::read(path)?;
        let read: Self = serde_json::from_str(&text).map_err(|error| {
            Failure::input(
                format_args!("`{name}` is not a certificate: {error}"),
                "make one: `boute router certify ROUTER DATA --max-loss 0.02 -o certificate.json`",
            )
        })?;
        let models = read.models.len();
        let known = |penalty: &ModelPenalty| read.models.contains(&penalty.model);
        if read.version != VERSION || read.shares.len() != models || !read.policy.iter().all(known) {
            let hint = "certify again with this boute";
            return Err(Failure::input(format_args!("`{name}` is broken or of another version"), hint));
        }
        if read.router_sha256 != router.sha256 {
            let hint = "its promises hold for that one alone: certify this one, or give the other";
            let message = format_args!("`{name}` is of another router than `{}`", router.name);
            return Err(Failure::input(message, hint));
        }
        Ok(read)
    }

    /// Lower bound and mean of the quality of the policy; of a loss, counted from the policy's own mean.
    pub(super) fn quality_interval(&self) -> Option<(f64, f64)> {
        let all = self.promises.iter().find(|promise| promise.group.is_empty())?;
        Some((self.quality - (all.test.mean - all.test.lower_bound), self.quality))
    }

    pub(super) fn routing_policy(&self) -> RoutingPolicy {
        match &self.policy[..] {
            [only] => RoutingPolicy::Constant { model: only.model.clone() },
            penalties => RoutingPolicy::Utility { penalties: penalties.to_vec() },
        }
    }
}

pub(super) fn run(args: &Certify, printer: Printer) -> Result<Ending, Failure> {
    check(args)?;
    let (scorer, router) = read_router(&args.router)?;
    let scored = of_mix(args, score(&scorer, &args.data, args.split)?)?;
    if scored.queries.len() < FEWEST_QUERIES {
        let message =
            format_args!("only {} queries to certify on, fewer than {FEWEST_QUERIES}", scored.queries.len());
        return Err(Failure::input(message, "a few hundred are needed for a useful promise; see `--split`"));
    }
    let models = scorer.models();
    let reference = reference_model(args, &scorer)?;
    let costs = costs(&args.costs, models)?;
    if costs.is_none() && models.len() > 2 {
        let hint = "say what an answer costs: `--cost MODEL=NUMBER`, once per model";
        return Err(Failure::input("which of three and more models is cheaper is not known", hint));
    }
    // Of two models, the safe one is dearer.
    let order: Vec<f64> = (0..models.len()).map(|model| f64::from(u8::from(model == reference))).collect();
    let priced = costs.as_deref().unwrap_or(&order);
    let promises = promises(args, &scored, reference)?;
    let tested: Vec<(Promise, Vec<usize>)> =
        promises.iter().map(|(_, promise, rows)| (*promise, rows.clone())).collect();
    let delta = 1.0 - args.confidence;
    let policies = path(&scored.queries, reference, priced);
    let assignments = assignments(&scored.queries, &policies)?;
    let answers = |step: usize| Answers::of(&policies[step], models, &assignments[step]);
    let all_answers: Vec<Answers<'_>> = (0..policies.len()).map(answers).collect();
    let certified = walk(&scored.queries, all_answers.iter().copied(), &tested, delta);
    let mean_cost = |stats: &PolicyStats| -> f64 {
        stats.fractions.iter().zip(priced).map(|(share, cost)| share * cost).sum()
    };
    let stats_of: Vec<PolicyStats> =
        assignments[..certified.max(1)].iter().map(|by| evaluate(by, &scored.queries)).collect();
    // All that are certified hold together: the cheapest, and of those the safest.
    let cheaper = |a: &usize, b: &usize| mean_cost(&stats_of[*a]).total_cmp(&mean_cost(&stats_of[*b]));
    let chosen = (0..stats_of.len()).min_by(cheaper).unwrap_or_default();
    let stats = &stats_of[chosen];
    let certificate = Certificate {
        version: VERSION,
        router_sha256: router.sha256,
        data_sha256: scored.input.sha256.clone(),
        queries: scored.queries.len(),
        made_at_unix_s: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs()),
        confidence: args.confidence,
        judge_error: args.judge_error,
        certified: chosen > 0,
        promises: promises
            .into_iter()
            .map(|(stated, promise, rows)| Stated {
                test: promise.certify(&scored.queries, &rows, all_answers[chosen], delta),
                ..stated
            })
            .collect(),
        policy: penalties(&policies[chosen]),
        cost: costs.as_ref().map(|costs| (mean_cost(stats), costs[reference])),
        quality: stats.quality,
        with_queries: outlook(&scored.queries, &all_answers, &tested, reference, delta, args.seed),
        reference: reference_of(args, &scored, &assignments[chosen], delta),
        models: models.to_vec(),
        shares: stats.fractions.clone(),
    };
    // The best single model keeps a loss against itself without a test, but a floor only if that is certified.
    let kept = certified > 0;
    if let Some(path) = args.output.as_ref().filter(|_| kept) {
        let mut text = serde_json::to_string_pretty(&certificate).map_err(Failure::unexpected)?;
        text.push('\n');
        write_whole(path, text.as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    printer.data(&certificate)?;
    printer.text(as_text(&certificate, certified, stats, &models[reference]));
    Ok(if kept { Ending::Done } else { Ending::Unmet })
}

fn check(args: &Certify) -> Result<(), Failure> {
    let shares = [Some(args.confidence), args.floor, args.max_loss, Some(args.judge_error)];
    let bad = shares
        .into_iter()
        .flatten()
        .chain(args.groups.iter().map(|(_, value)| *value))
        .find(|value| !(0.0..=1.0).contains(value));
    match bad {
        Some(bad) => Err(Failure::input(
            format_args!("{bad} is not between 0 and 1"),
            "floors, losses, errors and the confidence are shares: 0.95, not 95",
        )),
        None if args.confidence == 1.0 => {
            Err(Failure::input("nothing holds with certainty", "ask for `--confidence 0.99`"))
        }
        None if args.confidence < 0.5 => Err(Failure::input(
            format_args!("a promise with a confidence of {} rather breaks than holds", args.confidence),
            "ask for `--confidence 0.95`",
        )),
        None => Ok(()),
    }
}

fn reference_model(args: &Certify, scorer: &Scorer) -> Result<usize, Failure> {
    let Some(name) = &args.reference else { return Ok(scorer.best_single()) };
    scorer.models().iter().position(|model| model == name).ok_or_else(|| {
        let hint = format!("it knows {}", scorer.models().join(", "));
        Failure::input(format_args!("the router does not know `{name}`"), hint)
    })
}

/// Those of the queries that look as if drawn from the stated mix of tasks, if there is one: what is said of a policy is said of
/// the traffic to come.
fn of_mix(args: &Certify, scored: Scored) -> Result<Scored, Failure> {
    if args.mix.is_empty() {
        return Ok(scored);
    }
    if args.mix.iter().all(|(_, share)| *share == 0.0) {
        return Err(Failure::input(
            "the shares of the mix are all 0",
            "give positive ones: `--mix maths=0.7`",
        ));
    }
    let mut rows: Vec<usize> = (0..scored.queries.len()).collect();
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let group = |row: &usize| args.mix.iter().position(|(name, _)| belongs(&scored.tasks[*row], name));
    let groups: Vec<Option<usize>> = rows.iter().map(group).collect();
    let empty = (0..args.mix.len()).find(|at| !groups.contains(&Some(*at)));
    if let Some(empty) = empty {
        let hint = "name tasks as the data does; `mmlu` is all of `mmlu/…`";
        return Err(Failure::input(format_args!("no query of the task `{}`", args.mix[empty].0), hint));
    }
    let shares: Vec<f64> = args.mix.iter().map(|(_, share)| *share).collect();
    let drawn: BTreeSet<usize> =
        rows_of_mix(&groups, &shares, args.seed).into_iter().map(|at| rows[at]).collect();
    Ok(Scored {
        tasks: drawn.iter().map(|row| scored.tasks[*row].clone()).collect(),
        queries: scored.queries.only(|query| drawn.contains(&query)),
        input: scored.input,
    })
}

/// Every promise with its rows.
fn promises(
    args: &Certify,
    scored: &Scored,
    reference: usize,
) -> Result<Vec<(Stated, Promise, Vec<usize>)>, Failure> {
    let kind = if args.floor.is_some() { "floor" } else { "max_loss" };
    let overall = args.floor.or(args.max_loss).unwrap_or_default();
    let all = std::iter::once((String::new(), overall)).chain(args.groups.iter().cloned());
    all.map(|(group, value)| {
        let own: Vec<usize> = (0..scored.queries.len())
            .filter(|row| group.is_empty() || belongs(&scored.tasks[*row], &group))
            .collect();
        if own.is_empty() {
            let hint = "name tasks as the data does; `mmlu` is all of `mmlu/…`";
            return Err(Failure::input(format_args!("no query of the task `{group}`"), hint));
        }
        let (promise, against) = match kind {
            "floor" => (Promise::from(FloorRule::Absolute(value)), String::new()),
            _ => (Promise::max_loss(value, reference), scored.queries.models[reference].clone()),
        };
        let test = Certified { holds: false, lower_bound: 0.0, mean: 0.0 };
        let stated = Stated { group, kind: kind.into(), value, against, queries: own.len(), test };
        Ok((stated, promise.under_judge(args.judge_error), own))
    })
    .collect()
}

fn assignments(queries: &ScoredQueries, policies: &[RoutingPolicy]) -> Result<Vec<Vec<usize>>, Failure> {
    let decided = |policy| Decider::new(policy, &queries.models).map(|decider| assign(&decider, queries));
    policies.iter().map(decided).collect::<Result<_, _>>().map_err(Failure::unexpected)
}

fn penalties(policy: &RoutingPolicy) -> Vec<ModelPenalty> {
    match policy {
        RoutingPolicy::Constant { model } => vec![ModelPenalty { model: model.clone(), lambda: 0.0 }],
        RoutingPolicy::Utility { penalties } => penalties.clone(),
    }
}

/// Share of the reference model that so many queries would certify: the median over resamples of those there are.
fn outlook(
    queries: &ScoredQueries,
    path: &[Answers<'_>],
    promises: &[(Promise, Vec<usize>)],
    reference: usize,
    delta: f64,
    seed: u64,
) -> Vec<(usize, f64)> {
    let share = |assignment: &[usize]| {
        assignment.iter().filter(|model| **model == reference).count() as f64 / assignment.len() as f64
    };
    let all = promises.iter().map(|(_, rows)| rows.len()).max().unwrap_or(1) as f64;
    let with = |size: usize| {
        let mut shares: Vec<f64> = (0..RESAMPLES as u64)
            .map(|draw| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(draw));
                let drawn: Vec<(Promise, Vec<usize>)> = promises
                    .iter()
                    .map(|(promise, rows)| {
                        let own = (size as f64 * rows.len() as f64 / all).ceil() as usize;
                        (*promise, (0..own).map(|_| rows[rng.random_range(0..rows.len())]).collect())
                    })
                    .collect();
                share(path[walk(queries, path.iter().copied(), &drawn, delta).saturating_sub(1)].by)
            })
            .collect();
        shares.sort_unstable_by(f64::total_cmp);
        shares[RESAMPLES / 2]
    };
    SIZES.map(|size| (size, with(size))).to_vec()
}

fn reference_of(args: &Certify, scored: &Scored, assignment: &[usize], delta: f64) -> Reference {
    let groups: Vec<String> = args.groups.iter().map(|(name, _)| name.clone()).collect();
    let group_of = |query: usize| groups.iter().position(|name| belongs(&scored.tasks[query], name));
    reference(&scored.queries, |query, model| assignment[query] == model, &groups, group_of, delta)
}

fn as_text(certificate: &Certificate, certified: usize, stats: &PolicyStats, reference: &str) -> String {
    let mut text = String::new();
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let _ = match certified {
        0 => writeln!(text, "refused: not even {reference} alone can be promised to keep this"),
        1 => writeln!(text, "refused: only {reference} alone is certified; every query goes to it"),
        _ if !certificate.certified => {
            writeln!(text, "{reference} alone: nothing cheaper is certified, and every query goes to it")
        }
        _ => writeln!(text, "certified, with {} confidence:", percent(certificate.confidence)),
    };
    for promise in &certificate.promises {
        let group = if promise.group.is_empty() { "all queries" } else { &promise.group };
        let _ = match promise.against.as_str() {
            "" => writeln!(
                text,
                "  {group}: mean score at least {}; {:.4} measured on {}, lower bound {:.4}",
                promise.value, promise.test.mean, promise.queries, promise.test.lower_bound
            ),
            against => writeln!(
                text,
                "  {group}: at most {} worse than {against}; {:.4} measured on {}, at most {:.4}",
                promise.value,
                0.0 - promise.test.mean,
                promise.queries,
                0.0 - promise.test.lower_bound
            ),
        };
    }
    for (model, share) in certificate.models.iter().zip(&stats.fractions) {
        let _ = writeln!(text, "  {} of the queries to {model}", percent(*share));
    }
    if let Some((cost, best)) = certificate.cost {
        let _ = writeln!(text, "  {cost:.4} per query, {best:.4} with {reference} alone");
    }
    let outlook: Vec<String> = certificate
        .with_queries
        .iter()
        .map(|(queries, share)| format!("{queries}: {}", percent(*share)))
        .collect();
    let _ =
        writeln!(text, "  share of {reference} that more such queries would certify: {}", outlook.join(", "));
    text
}
