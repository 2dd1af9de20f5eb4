//! The autopilot over a simulated week, against fleets that stay and against a threshold autoscaler; and how long planning again
//! takes.
//!
//! Arrivals and lengths are those of the Azure chat hour, queries those of MMLU-Pro; no week of a real service is in the repository,
//! so the rate follows a stated daily pattern (below), two per cent more every day, weekends at 70 %, with noise and bursts that
//! nobody is told of. Prices rise and fall, GPUs are lost for half a day, queries are harder for an evening, and from one day on
//! prompts and answers are longer. Of every stretch with one fleet four minutes are simulated, token by token. The autopilot is the
//! product's own: `planner::autopilot` and `planner::replan`, with virtual time.

use std::collections::BTreeMap;
use std::time::Instant;

use boute_planner::autopilot::{
    Act, Autopilot, Decision, Entry, Hold, Observed, Record, Scene, Settings, Signals, Trigger, digest,
};
use boute_planner::deployment::{Effort, Goal, Limits};
use boute_planner::mix::ScoreMix;
use boute_planner::moving::Terms;
use boute_planner::rents::Rents;
use boute_planner::replan::{Answer, as_of_late, lose, rent, replan, within_stock};
use boute_planner::verify::{Traffic, simulate_fleet};
use boute_planner::{Database, PlanError, Prepared, Problem, Strategy, plan};
use boute_router::ScoredQueries;
use boute_router::decide::Decider;
use boute_spec::outcome::RequestOutcome;
use boute_spec::plan::{Deployment, ModelShare, Plan, PlanDraft};
use boute_spec::policy::RoutingPolicy;
use boute_spec::units::{SimTime, UsdPerHour};
use boute_spec::workload::{Trace, TraceRequest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::planner::{papers, quiet, timed};
use super::planner_blackbox::{chat_requests, paper_like_problem};
use super::{Report, median};

/// Requests per second at 1 of the pattern.
const BASE_RATE: f64 = 20.0;
/// The daily pattern, by hour: a service used in one region's waking hours.
const PATTERN: [f64; 24] = [
    0.40, 0.31, 0.26, 0.23, 0.23, 0.26, 0.36, 0.56, 0.86, 1.15, 1.35, 1.45, 1.45, 1.50, 1.55, 1.50, 1.45,
    1.35, 1.25, 1.20, 1.10, 0.95, 0.75, 0.55,
];
const WEEKEND: f64 = 0.7;
const GROWTH_PER_DAY: f64 = 1.02;
/// Standard deviation of the noise on an interval's rate.
const NOISE: f64 = 0.04;
/// Length of an interval; of a stretch with one fleet at most this much is simulated.
pub(super) const INTERVAL_S: u64 = 900;
pub(super) const PER_DAY: u64 = 86_400 / INTERVAL_S;
const SIMULATED_S: f64 = 240.0;
/// Fewest requests of a simulation, so that a 95th percentile means something.
const FEWEST_REQUESTS: f64 = 600.0;
/// Days before the week that the autopilot has seen.
pub(super) const SEEN_DAYS: u64 = 1;
/// The autoscaler: utilisation aimed at, tolerance, intervals of stabilisation before it scales down, seconds to ready.
const TARGET: f64 = 0.7;
const TOLERANCE: f64 = 0.1;
const STABILISATION: usize = 2;
pub(super) const READY_S: f64 = 250.0;

/// The week that is judged; others are for choosing rules.
const SEED: u64 = 7;

pub(crate) fn run(small: bool, seed: Option<u64>, report: &mut Report) -> Result<(), String> {
    let example = paper_like_problem()?;
    replan_times(small, &example, report)?;
    let mut week = Week::new(if small { 2 } else { 7 }, seed.unwrap_or(SEED), example)?;
    let database = Database::in_memory();
    let peak = week.static_plan(week.rates.values().copied().fold(0.0, f64::max), &database)?;
    let mean = week.static_plan(week.rates.values().sum::<f64>() / week.rates.len() as f64, &database)?;
    if !small {
        let flown = week.fly(&peak, &database)?;
        let runs = [("static, peak rate", week.stays(&peak)), ("autopilot", flown.stretches)];
        let [peak, autopilot] = week.scores("no GPU is lost", &runs).try_into().map_err(|_| "two runs")?;
        report.note(&format!(
            "without lost GPUs: rent {:.3} of the static peak-rate plan's; {:.1} % of intervals keep every promise, {:.1} % there",
            autopilot.usd / peak.usd,
            100.0 * autopilot.kept,
            100.0 * peak.kept,
        ));
    }
    week.lose_half_of(&peak);
    let flown = week.fly(&peak, &database)?;
    let attributed = week.attributed(&flown.stretches, &database)?;
    let runs = [
        ("static, mean rate", week.stays(&mean)),
        ("static, peak rate", week.stays(&peak)),
        ("threshold autoscaler", week.autoscaled(&mean)),
        ("autopilot", flown.stretches),
    ];
    let scores = week.scores("all events", &runs);
    let [_, peak, _, autopilot] = &scores[..] else { unreachable!("four runs") };
    let [least, ..] = attributed;
    println!("{:<22} {least:>8.2}", "least, by the table");
    report.at_most("autopilot: rent against the static peak-rate plan's", autopilot.usd / peak.usd, 0.75);
    report.note(&format!(
        "  the least possible, with free moves and perfect foresight: {:.3}; the autopilot's is {:.2} times that,",
        least / peak.usd,
        autopilot.usd / least,
    ));
    let why = ["few moves", "rates planned for", "whole replicas that stand more", "two fleets while moving"];
    let parts = why.iter().zip(attributed.windows(2));
    let parts: Vec<String> =
        parts.map(|(why, usd)| format!("{why} {:+.3}", (usd[1] - usd[0]) / least)).collect();
    report.note(&format!("    of it: {}", parts.join(", ")));
    report.at_least(
        "  requests in time, worst promise, less the static plan's",
        autopilot.in_time - peak.in_time.min(week.promised()),
        0.0,
    );
    report.at_least(
        "  intervals that keep every promise, less the static plan's",
        autopilot.kept - peak.kept,
        0.0,
    );
    report.at_least(
        "  intervals that keep the floor, less the static plan's",
        autopilot.floor - peak.floor,
        0.0,
    );
    report.at_most("  moves of the fleet within a day, at most", flown.most_moves as f64, 6.0);
    report.at_most("  intervals from harder queries to an answer that moves no fleet", flown.reaction, 1.0);
    Ok(())
}

/// Seconds of planning again against those of a plan, in the paper's setting: after a change of price, of stock, and of the traffic of
/// late.
fn replan_times(small: bool, example: &Problem, report: &mut Report) -> Result<(), String> {
    let later = chat_requests()?.split_off(8_000);
    for (types, stock) in if small { &[(3, 24)][..] } else { &[(3, 24), (6, 48)] } {
        let spec = papers(example, *types, *stock)?;
        let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..if small { 1 } else { 3 } {
            let database = Database::in_memory();
            let (running, cold_s) = timed(&spec, &database)?;
            let [mut price, mut fewer] = [spec.clone(), spec.clone()];
            price.offers[0].usd_per_gpu_hour *= 0.9;
            fewer.offers[0].stock = fewer.offers[0].stock.map(|stock| stock - 2);
            let traffic = as_of_late(&spec, &later[..8_000], spec.rate);
            for (ratios, now) in ratios.iter_mut().zip([price, fewer, traffic]) {
                let start = Instant::now();
                replan(&spec, &now, &running, &Terms::default(), &database, &quiet)
                    .map_err(|error| error.to_string())?;
                ratios.push(start.elapsed().as_secs_f64() / cold_s);
            }
        }
        for (change, ratios) in ["price", "stock", "traffic"].into_iter().zip(ratios) {
            let name = format!("{stock} GPUs of {types} types: planning again, other {change} / a cold plan");
            report.at_most(&name, median(ratios), 0.25);
        }
    }
    Ok(())
}

fn told(interval: u64, decision: &Decision) {
    let (day, hour, minute) = (interval / PER_DAY, interval % PER_DAY * 24 / PER_DAY, interval % 4 * 15);
    let why = decision.why.last().map(String::as_str).unwrap_or_default();
    println!(
        "day {day} {hour:02}:{minute:02} {:?}, {:.1}/s: {:?}, {why}",
        decision.trigger, decision.rate, decision.answer
    );
}

/// Queries of which three in five of those easy for the small model are gone.
fn harder_of(queries: &ScoredQueries) -> ScoredQueries {
    let (mut number, small) = (0_u32, 0);
    let mut easy: Vec<f32> = (0..queries.len()).map(|query| queries.predicted(query)[small]).collect();
    easy.sort_unstable_by(f32::total_cmp);
    let median = easy[easy.len() / 2];
    queries.only(|query| {
        number += 1;
        queries.predicted(query)[small] < median || number % 5 < 2
    })
}

/// Requests per second by interval, from [`SEEN_DAYS`] before the week on.
pub(super) fn rates(days: u64, seed: u64) -> BTreeMap<u64, f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let intervals = (SEEN_DAYS + days) * PER_DAY;
    let mut rates: BTreeMap<u64, f64> = (0..intervals)
        .map(|interval| {
            let (day, hour) = (interval / PER_DAY, interval % PER_DAY * 24 / PER_DAY);
            let next = PATTERN[(hour as usize + 1) % 24];
            let part = (interval % PER_DAY * 24 % PER_DAY) as f64 / PER_DAY as f64;
            let usual = PATTERN[hour as usize] * (1.0 - part) + next * part;
            let week = if day % 7 >= 5 { WEEKEND } else { 1.0 };
            let noise = 1.0 + NOISE * (2.0 * rng.random::<f64>() - 1.0) * 3.0_f64.sqrt();
            (interval, BASE_RATE * usual * week * GROWTH_PER_DAY.powi(day as i32) * noise)
        })
        .collect();
    // A burst every other day, for up to an hour, of 1.2 to 1.4 times the rate.
    for day in (0..days).step_by(2).map(|day| SEEN_DAYS + day) {
        let first = day * PER_DAY + rng.random_range(28..88);
        let factor = rng.random_range(1.2..1.4);
        for interval in first..first + rng.random_range(1..5) {
            rates.entry(interval).and_modify(|rate| *rate *= factor);
        }
    }
    rates
}

/// What comes one after the other in an interval.
pub(super) enum Passed<'a> {
    /// The autopilot acts.
    Act(&'a Act),
    /// Time passes with one fleet.
    Stretch { seconds: f64 },
}

/// Lets the autopilot act in the interval from `start_s` on.
pub(super) fn act(autopilot: &mut Autopilot, start_s: u64, mut passed: impl FnMut(Passed<'_>)) {
    let (mut now_s, end_s) = (start_s as f64, (start_s + INTERVAL_S) as f64);
    while now_s < end_s {
        if let Some((number, act)) = autopilot.next_act(now_s as u64, Hold::None) {
            passed(Passed::Act(act));
            autopilot.note(&Record { at_s: now_s as u64, entry: Entry::Done { number } });
            continue;
        }
        let until = match autopilot.under_way() {
            [Act::Wait { seconds }, ..] => (now_s + seconds.ceil()).min(end_s),
            _ => end_s,
        };
        if until > now_s {
            passed(Passed::Stretch { seconds: until - now_s });
        }
        now_s = until;
    }
}

/// What fleets rent for in the week, while nothing has happened.
pub(super) fn rents_of_week() -> Result<Rents, String> {
    let week = Week::new(1, 0, paper_like_problem()?)?;
    let rents = Rents::of(&week.spec, [1.0, 100.0], &Database::in_memory(), &quiet);
    rents.map_err(|error| error.to_string())
}

/// What happens in the week.
struct Week {
    spec: Problem,
    requests: Vec<TraceRequest>,
    days: u64,
    /// By interval, from [`SEEN_DAYS`] before the week on.
    rates: BTreeMap<u64, f64>,
    /// Queries as they are while they are harder: those to plan on, and those that come.
    harder: [ScoredQueries; 2],
    lost: BTreeMap<String, u32>,
}

/// A time with one fleet.
#[derive(Clone)]
struct Stretch {
    interval: u64,
    seconds: f64,
    deployment: Deployment,
    policy: RoutingPolicy,
    shares: Vec<ModelShare>,
    /// Rate that the plan is for.
    rate: f64,
    /// Rent per hour of its fleet, and of all that runs, also what does not answer yet.
    fleet_usd_per_hour: f64,
    usd_per_hour: f64,
}

struct Score {
    usd: f64,
    in_time: f64,
    kept: f64,
    floor: f64,
}

struct Flown {
    stretches: Vec<Stretch>,
    most_moves: usize,
    reaction: f64,
}

impl Week {
    fn new(days: u64, seed: u64, example: Problem) -> Result<Self, String> {
        let mut spec = Problem { budget: None, ..example };
        spec.offers.iter_mut().for_each(|offer| offer.stock = offer.stock.map(|stock| 2 * stock));
        let rates = rates(days, seed);
        let quality = spec.quality.as_ref().ok_or("no quality data")?;
        let harder = [harder_of(&quality.planning), harder_of(&quality.held_out)];
        Ok(Self { spec, requests: chat_requests()?, days, rates, harder, lost: BTreeMap::new() })
    }

    /// GPUs are lost until the type that `plan` uses most has half of what it uses.
    fn lose_half_of(&mut self, plan: &Plan) {
        let Some(most) = plan.deployment.groups.iter().max_by_key(|group| group.gpus()) else { return };
        let stock =
            self.spec.offers.iter().find(|offer| offer.gpu.name == most.gpu).and_then(|offer| offer.stock);
        self.lost = BTreeMap::from([(most.gpu.clone(), stock.unwrap_or_default() - most.gpus() / 2)]);
    }

    const fn end(&self) -> u64 {
        (SEEN_DAYS + self.days) * PER_DAY
    }

    /// The share of requests that the strictest promise wants in time.
    fn promised(&self) -> f64 {
        self.spec.slo.iter().map(|target| target.percentile.share()).fold(0.0, f64::max)
    }

    /// The interval at an hour of a day of the week; of a shorter time, the days are folded.
    fn at(&self, day: u64, hour: u64) -> u64 {
        (SEEN_DAYS + day % self.days) * PER_DAY + hour * PER_DAY / 24
    }

    /// Whether queries are harder.
    fn is_harder(&self, interval: u64) -> bool {
        (self.at(3, 18)..self.at(3, 24)).contains(&interval)
    }

    /// GPUs that are lost: for twelve hours of a week, and for as large a part of a shorter time.
    fn lost(&self, interval: u64) -> BTreeMap<String, u32> {
        let hours = 12 * self.days / 7;
        let gone = (self.at(2, 10)..self.at(2, 10 + hours)).contains(&interval);
        if gone { self.lost.clone() } else { BTreeMap::new() }
    }

    /// Prices as they are.
    fn priced(&self, interval: u64) -> Problem {
        let mut problem = self.spec.clone();
        if (self.at(1, 12)..self.at(5, 12).max(self.at(1, 23))).contains(&interval) {
            problem.offers[1].usd_per_gpu_hour *= 1.6;
        }
        problem
    }

    /// How many times as long prompts and answers are.
    fn stretch(&self, interval: u64) -> f64 {
        if interval >= self.at(4, 0).max(self.at(self.days - 1, 0)) { 1.15 } else { 1.0 }
    }

    fn queries(&self, interval: u64) -> &ScoredQueries {
        let usual = || self.spec.quality.as_ref().map(|quality| &quality.held_out);
        match usual() {
            Some(queries) if !self.is_harder(interval) => queries,
            _ => &self.harder[1],
        }
    }

    /// Requests of an interval from some second on: a part of the chat hour, at the interval's rate.
    fn traffic(&self, interval: u64, count: usize, stream: u64) -> Trace {
        let mut rng = ChaCha8Rng::seed_from_u64(interval << 3 | stream);
        let first = rng.random_range(0..self.requests.len() - count);
        let longer = self.stretch(interval);
        let stretched = |tokens: u32| (f64::from(tokens) * longer).round() as u32;
        let requests = self.requests[first..first + count].iter().map(|request| TraceRequest {
            input_tokens: stretched(request.input_tokens),
            output_tokens: stretched(request.output_tokens),
            ..request.clone()
        });
        let Ok(trace) = Trace::new(requests.collect()) else { unreachable!("a part of a trace") };
        trace.at_rate(self.rates[&interval])
    }

    fn static_plan(&self, rate: f64, database: &Database) -> Result<Plan, String> {
        let problem = as_of_late(&self.spec, &[], rate);
        plan(&problem, Strategy::Default, database, &quiet).map_err(|error| error.to_string())
    }

    /// What a plan does for some seconds of an interval, with what is lost, at that time's prices.
    fn stretch_of(&self, plan: &Plan, paid: &Deployment, interval: u64, seconds: f64) -> Stretch {
        let mut prices = self.priced(interval);
        lose(&mut prices, &self.lost(interval));
        let deployment = within_stock(&plan.deployment, &prices);
        Stretch {
            interval,
            seconds,
            rate: plan.predicted.rate.get(),
            fleet_usd_per_hour: rent(&deployment, &prices),
            deployment,
            policy: plan.routing.policy.clone(),
            shares: plan.routing.models.clone(),
            usd_per_hour: rent(&within_stock(paid, &prices), &prices),
        }
    }

    fn stays(&self, plan: &Plan) -> Vec<Stretch> {
        let all = SEEN_DAYS * PER_DAY..self.end();
        all.map(|interval| self.stretch_of(plan, &plan.deployment, interval, INTERVAL_S as f64)).collect()
    }

    /// Replicas of each model scaled by utilisation, as a horizontal autoscaler does it.
    fn autoscaled(&self, plan: &Plan) -> Vec<Stretch> {
        let capacity = plan.predicted.max_rate.get() / plan.predicted.rate.get();
        let mut wanted: Vec<BTreeMap<String, f64>> = Vec::new();
        let mut fleet = plan.clone();
        let mut stretches = Vec::new();
        for interval in SEEN_DAYS * PER_DAY..self.end() {
            let rate = self.rates[&(interval - 1)];
            let mut factors = BTreeMap::new();
            for share in &plan.routing.models {
                let own = fleet.deployment.groups.iter().filter(|group| group.model == share.model);
                let carries: f64 =
                    own.map(|it| it.planned_rate_per_replica.get() * f64::from(it.replicas) * capacity).sum();
                let planned = plan.deployment.groups.iter().filter(|group| group.model == share.model);
                let once: f64 = planned
                    .map(|it| it.planned_rate_per_replica.get() * f64::from(it.replicas) * capacity)
                    .sum();
                let utilisation = share.load_fraction.get() * rate / carries;
                let near = (utilisation / TARGET - 1.0).abs() <= TOLERANCE;
                factors.insert(
                    share.model.clone(),
                    carries / once * if near { 1.0 } else { utilisation / TARGET },
                );
            }
            wanted.push(factors);
            let lately = &wanted[wanted.len().saturating_sub(STABILISATION + 1)..];
            let next = self.scaled(plan, lately, interval);
            let (before, after) = (fleet.clone(), next.clone());
            // New replicas are paid while they load; old ones answer meanwhile.
            stretches.push(self.stretch_of(&before, &after.deployment, interval, READY_S));
            stretches.push(self.stretch_of(&after, &after.deployment, interval, INTERVAL_S as f64 - READY_S));
            fleet = next;
        }
        stretches
    }

    /// The plan's groups, each the largest number of times that was wanted of late, within the stock.
    fn scaled(&self, plan: &Plan, lately: &[BTreeMap<String, f64>], interval: u64) -> Plan {
        let mut draft = PlanDraft::clone(plan);
        let mut left = self.spec.clone();
        lose(&mut left, &self.lost(interval));
        let mut stock: BTreeMap<String, u32> = left
            .offers
            .iter()
            .map(|offer| (offer.gpu.name.clone(), offer.stock.unwrap_or(u32::MAX)))
            .collect();
        for group in &mut draft.deployment.groups {
            let factor = lately.iter().map(|factors| factors[&group.model]).fold(0.0, f64::max);
            let each = group.gpus_per_replica();
            let wanted = (f64::from(group.replicas) * factor).ceil().max(1.0) as u32;
            let room = stock.entry(group.gpu.clone()).or_default();
            *group = group.with_replicas(wanted.min(*room / each).max(1));
            *room = room.saturating_sub(group.replicas * each);
        }
        draft.predicted.cost_usd_per_hour =
            UsdPerHour::new(draft.deployment.usd_per_hour()).unwrap_or_default();
        Plan::try_from(draft).unwrap_or_else(|_| plan.clone())
    }

    /// The week with the autopilot in the loop.
    fn fly(&self, first: &Plan, database: &Database) -> Result<Flown, String> {
        let mut autopilot = Autopilot::new(Settings::default());
        let note = |autopilot: &mut Autopilot, at_s, entry| autopilot.note(&Record { at_s, entry });
        let mut plans = BTreeMap::from([(digest(first), first.clone())]);
        let (mut running, mut paid) = (first.clone(), first.deployment.clone());
        let adopted = Entry::Adopted { plan: digest(first), rate: first.predicted.rate.get() };
        note(&mut autopilot, 0, adopted);
        for interval in 0..SEEN_DAYS * PER_DAY {
            note(
                &mut autopilot,
                (interval + 1) * INTERVAL_S,
                Entry::Observed(self.observed(interval, first)),
            );
        }
        let (mut stretches, mut reaction, mut moves) = (Vec::new(), f64::INFINITY, Vec::new());
        let (mut measured, mut rents) = (self.spec.clone(), Rents::default());
        for interval in SEEN_DAYS * PER_DAY..self.end() {
            let start_s = interval * INTERVAL_S;
            let spec = self.priced(interval);
            let queries = spec.quality.as_ref().map(|quality| &quality.planning);
            let mut signals = Signals {
                now_s: start_s,
                offers: spec.offers[1].usd_per_gpu_hour.to_string(),
                // Seen within the interval in which they are lost.
                lost: self.lost(interval - 1),
                alarm: None,
                hold: Hold::None,
                base_mix: queries
                    .and_then(|queries| ScoreMix::expected(queries, &running.routing.policy).ok()),
                stands: spec.robust.rate,
                ..Signals::default()
            };
            let (recent, lost) = (self.recent(interval), signals.lost.clone());
            let scene = Scene { spec: &spec, recent: &recent, lost: &lost, running: &running };
            autopilot
                .learn_rents(&mut signals, &mut rents, &scene, &mut measured, (database, &quiet))
                .map_err(|error| error.to_string())?;
            if let Some(question) = autopilot.question(&signals) {
                let answer = match question.answered(&scene, &mut measured, database, &quiet) {
                    Err(PlanError::Infeasible(why)) => Err(why.to_string()),
                    answer => Ok(answer.map_err(|error| error.to_string())?),
                };
                let decided = autopilot.decide(&signals, &question, &answer, &running, BTreeMap::new());
                let (decision, named) = decided.map_err(|error| error.to_string())?;
                if decision.answer != Some(Answer::Stay) || decision.trigger == Trigger::Mix {
                    told(interval, &decision);
                }
                if decision.answer == Some(Answer::Move) {
                    moves.push(start_s);
                }
                let shift = self.at(3, 18);
                // Where what runs keeps the floor on harder queries too, to stay is the answer.
                let without_move = matches!(decision.answer, Some(Answer::Stay | Answer::ReRoute));
                if without_move && decision.trigger == Trigger::Mix && interval >= shift {
                    reaction = f64::min(reaction, (interval - shift) as f64);
                }
                plans.extend(named);
                note(&mut autopilot, start_s, Entry::Decided(decision));
            }
            act(&mut autopilot, start_s, |passed| match passed {
                Passed::Act(Act::Fleet { plan }) => paid = plans[plan].deployment.clone(),
                Passed::Act(Act::Publish { plan, .. }) => running = plans[plan].clone(),
                Passed::Act(Act::Wait { .. }) => {}
                Passed::Stretch { seconds } => {
                    stretches.push(self.stretch_of(&running, &paid, interval, seconds));
                }
            });
            note(&mut autopilot, start_s + INTERVAL_S, Entry::Observed(self.observed(interval, &running)));
        }
        let within = |from: &u64| moves.iter().filter(|at| (*from..from + 86_400).contains(*at)).count();
        let most_moves = moves.iter().map(within).max().unwrap_or_default();
        println!("{} moves in {} days", moves.len(), self.days);
        Ok(Flown { stretches, most_moves, reaction })
    }

    /// What the gateway's log says of an interval.
    fn observed(&self, interval: u64, running: &Plan) -> Observed {
        let count = (self.rates[&interval] * INTERVAL_S as f64) as usize;
        let trace = self.traffic(interval, count.min(self.requests.len() / 2), 0);
        let queries = self.queries(interval);
        let mut mix = ScoreMix::default();
        if let Ok(decider) = Decider::new(&running.routing.policy, &queries.models) {
            let mut rng = ChaCha8Rng::seed_from_u64(interval);
            for _ in 0..count {
                let scores = queries.predicted(rng.random_range(0..queries.len()));
                let model = decider.decide(scores).model;
                mix.count(&queries.models[model], scores[model]);
            }
        }
        let scale = count as f64 / trace.requests().len() as f64;
        let sum = |of: fn(&TraceRequest) -> u32| -> u64 {
            (trace.requests().iter().map(|it| f64::from(of(it))).sum::<f64>() * scale) as u64
        };
        Observed {
            interval,
            requests: count as u64,
            prompt_tokens: sum(|it| it.input_tokens),
            answer_tokens: sum(|it| it.output_tokens),
            mix,
        }
    }

    /// The latest requests, as the log has them: of the interval before.
    fn recent(&self, interval: u64) -> Vec<TraceRequest> {
        let start = SimTime::ZERO;
        let trace = self.traffic(interval - 1, 8_000, 1);
        trace.requests().iter().map(|it| TraceRequest { arrival: start + it.arrival, ..it.clone() }).collect()
    }

    /// One stretch simulated: requests it stands for, those late per promise, and quality with its floor.
    fn simulated(&self, stretch: &Stretch) -> (f64, Vec<f64>, f64, f64) {
        let interval = stretch.interval;
        let rate = self.rates[&interval];
        let count = (rate * stretch.seconds.min(SIMULATED_S)).max(FEWEST_REQUESTS) as usize;
        let trace = self.traffic(interval, count, 2);
        let queries = self.queries(interval);
        let runs = |model: &str| stretch.deployment.groups.iter().any(|group| group.model == model);
        let policy = match stretch.policy.models().into_iter().find(|model| !runs(model)) {
            None => stretch.policy.clone(),
            // A model without a replica: what is there answers in its place.
            Some(_) => RoutingPolicy::Constant { model: stretch.deployment.groups[0].model.clone() },
        };
        let share = |id: String| {
            let known = stretch.shares.iter().find(|share| share.model == id).cloned();
            known.unwrap_or_else(|| ModelShare { model: id, ..stretch.shares[0].clone() })
        };
        let shares: Vec<ModelShare> = self.spec.model_ids().into_iter().map(share).collect();
        let traffic = Traffic { trace: &trace, queries: Some(queries), stretch: 1.0 };
        let run = simulate_fleet(&self.spec, &stretch.deployment, &policy, None, &shares, traffic);
        let total = (run.requests.len() as u64 + run.outcome.failed).max(1) as f64;
        let late = self.spec.slo.iter().map(|target| {
            let over = |it: &&RequestOutcome| it.metric_s(target.metric) > target.limit_s.get();
            (run.requests.iter().filter(over).count() as f64 + run.outcome.failed as f64) / total
        });
        let large = 1;
        let best: f64 =
            (0..queries.len()).map(|query| queries.actual(query, large)).sum::<f64>() / queries.len() as f64;
        (rate * stretch.seconds, late.collect(), run.outcome.quality.unwrap_or_default(), best * 0.85)
    }

    /// The least rents per hour at rates in intervals: of fleets that are changed at no cost by one who knows all that comes, as the
    /// planner's table bounds them from below, with nothing more to stand. `None` where no fleet is enough.
    fn least_rents(&self, wanted: &[(u64, f64)], database: &Database) -> Result<Vec<Option<f64>>, String> {
        let mut alike: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, (interval, _)) in wanted.iter().enumerate() {
            let now = self.priced(*interval).offers[1].usd_per_gpu_hour;
            let (longer, harder) = (self.stretch(*interval), self.is_harder(*interval));
            let key = format!("{now} {:?} {longer} {harder}", self.lost(*interval));
            alike.entry(key).or_default().push(at);
        }
        let mut least = vec![None; wanted.len()];
        for all in alike.values() {
            let first = wanted[all[0]].0;
            let recent = if self.stretch(first) > 1.0 { self.recent(first + 1) } else { Vec::new() };
            let mut problem = as_of_late(&self.priced(first), &recent, self.spec.rate);
            if let Some(quality) = problem.quality.as_mut().filter(|_| self.is_harder(first)) {
                quality.planning = self.harder[0].clone();
            }
            lose(&mut problem, &self.lost(first));
            let prepared = Prepared::new(&problem, database, &quiet).map_err(|error| error.to_string())?;
            let search = prepared.search();
            let bound_at = |rate: f64| {
                let limits = search.limits(rate);
                let limits = Limits { margins: vec![1.0; limits.margins.len()], ..limits };
                let swept = search.sweep(prepared.routes(), &limits, Goal::Cost, Effort::Proof, &quiet);
                swept.map(|(_, bound)| bound)
            };
            let mut known: BTreeMap<i64, Option<f64>> = BTreeMap::new();
            for at in all {
                // Rates within a twentieth of each other are one, the lower.
                let step = (wanted[*at].1.ln() * 20.0).floor();
                least[*at] = *known.entry(step as i64).or_insert_with(|| bound_at((step / 20.0).exp()));
            }
        }
        Ok(least)
    }

    /// Where the rent of a flown week goes, mean $/h: the least for what came; for the highest that came while one plan ran; for the
    /// rates that plans are for; their fleets; all that was paid.
    fn attributed(&self, stretches: &[Stretch], database: &Database) -> Result<[f64; 5], String> {
        let highest = stretches.chunk_by(|a, b| a.rate == b.rate).flat_map(|segment| {
            let rates = segment.iter().map(|stretch| self.rates[&stretch.interval]);
            std::iter::repeat_n(rates.fold(0.0, f64::max), segment.len())
        });
        let wanted: Vec<(u64, f64)> = stretches
            .iter()
            .zip(highest)
            .flat_map(|(it, highest)| {
                [self.rates[&it.interval], highest, it.rate].map(|rate| (it.interval, rate))
            })
            .collect();
        let least = self.least_rents(&wanted, database)?;
        let hours: f64 = stretches.iter().map(|stretch| stretch.seconds / 3600.0).sum();
        let mut sums = [0.0; 5];
        for (stretch, least) in stretches.iter().zip(least.chunks(3)) {
            // What was planned before GPUs were lost is bounded by nothing while they are.
            let bound = |at: usize| least[at].unwrap_or(stretch.fleet_usd_per_hour);
            let usd = [bound(0), bound(1), bound(2), stretch.fleet_usd_per_hour, stretch.usd_per_hour];
            sums.iter_mut().zip(usd).for_each(|(sum, usd)| *sum += usd * stretch.seconds / 3600.0 / hours);
        }
        Ok(sums)
    }

    /// What each of several fleets does, and a table of it.
    fn scores(&self, title: &str, runs: &[(&str, Vec<Stretch>)]) -> Vec<Score> {
        println!(
            "\n{title:<22} {:>8} {:>10} {:>10} {:>10} {:>8}  $/h by day",
            "$/h", "promises", "intervals", "floor", "score"
        );
        runs.iter().map(|(name, stretches)| self.score(name, stretches)).collect()
    }

    /// Rent per hour by day.
    fn by_day(&self, stretches: &[Stretch]) -> Vec<String> {
        let mut days = vec![0.0; self.days as usize];
        for stretch in stretches {
            let day = stretch.interval / PER_DAY - SEEN_DAYS;
            days[day as usize] += stretch.usd_per_hour * stretch.seconds / 86_400.0;
        }
        days.into_iter().map(|usd| format!("{usd:.1}")).collect()
    }

    fn score(&self, name: &str, stretches: &[Stretch]) -> Score {
        let simulated: Vec<_> = stretches.par_iter().map(|stretch| self.simulated(stretch)).collect();
        let hours: f64 = stretches.iter().map(|stretch| stretch.seconds / 3600.0).sum();
        let usd: f64 = stretches.iter().map(|stretch| stretch.usd_per_hour * stretch.seconds / 3600.0).sum();
        let promises = self.spec.slo.len();
        let (mut requests, mut late, mut score) = (0.0, vec![0.0; promises], 0.0);
        let mut by_interval: BTreeMap<u64, (f64, Vec<f64>, f64, f64)> = BTreeMap::new();
        for (stretch, (count, over, quality, floor)) in stretches.iter().zip(&simulated) {
            requests += count;
            score += quality * count;
            let own =
                by_interval.entry(stretch.interval).or_insert_with(|| (0.0, vec![0.0; promises], 0.0, 0.0));
            own.0 += count;
            own.2 += quality * count;
            own.3 += floor * count;
            for ((late, own), over) in late.iter_mut().zip(&mut own.1).zip(over) {
                *late += over * count;
                *own += over * count;
            }
        }
        let allowed: Vec<f64> = self.spec.slo.iter().map(|target| 1.0 - target.percentile.share()).collect();
        let intervals = by_interval.len() as f64;
        let kept = by_interval.values().filter(|(count, late, ..)| {
            late.iter().zip(&allowed).all(|(late, allowed)| late / count <= *allowed)
        });
        let floor = by_interval.values().filter(|(_, _, quality, floor)| quality >= floor);
        let worst = late.iter().map(|late| 1.0 - late / requests).fold(1.0, f64::min);
        let scored = Score {
            usd: usd / hours,
            in_time: worst,
            kept: kept.count() as f64 / intervals,
            floor: floor.count() as f64 / intervals,
        };
        println!(
            "{name:<22} {:>8.2} {:>9.2}% {:>9.1}% {:>9.1}% {:>8.4}  {}",
            scored.usd,
            100.0 * scored.in_time,
            100.0 * scored.kept,
            100.0 * scored.floor,
            score / requests,
            self.by_day(stretches).join(" ")
        );
        scored
    }
}
