//! The autopilot as a state machine without clock or files: it is told what was observed, says when to plan again, decides what
//! to do with the answer, and what to do next. Whoever runs it keeps a journal and acts; the simulated week and `boute
//! autopilot` run the same code.
//!
//! All state is a fold over the journal ([`Autopilot::note`]), so that a start after a crash is a replay. A decision names the
//! plan to come by digest and lists its acts; each act is announced (`intent`) before it is done and confirmed (`done`) after. An act
//! announced and not confirmed is done again: acts are idempotent.

use std::collections::BTreeMap;

use boute_spec::digest::sha256_hex;
use boute_spec::plan::{Deployment, InvalidPlan, Plan, PlanDraft};
use boute_spec::units::UsdPerHour;
use boute_spec::workload::TraceRequest;
use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::forecast::Forecast;
use crate::mix::ScoreMix;
use crate::moving::{Stage, Terms};
use crate::plan::PlanError;
use crate::problem::{Problem, Progress};
use crate::rents::Rents;
use crate::replan::{Answer, Replan, as_of_late, lose, rent, replan, serves};
use crate::schedule::{Next, Schedule};

/// Seconds of a day.
const DAY_S: u64 = 86_400;
/// Days of observations that are kept: the forecast's seven and one more.
const KEPT_DAYS: u64 = 8;
/// Intervals whose traffic is looked at for drift, and the decisions that are enough of it.
const RECENT: u64 = 4;
const ENOUGH: u64 = 2_000;
/// Mean lengths that differ by more than this from those last planned with have drifted.
const DRIFT: f64 = 0.15;
/// A fleet that is expected to rent for less by this part is worth a question; by the second, if it takes the last move of the day, which
/// what runs may need when queries shift or GPUs are lost.
const SLACK: f64 = 0.2;
const LAST_SLACK: f64 = 0.4;
/// A fleet decided on in an interval is ready in the next.
const READY: usize = 1;
/// Seconds until a failed act is tried again: doubled each time, up to the second.
const RETRY_S: (u64, u64) = (30, 900);

/// The input of a decision that its signals are.
const SIGNALS: &str = "signals";

/// How often, how far ahead, how much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Length of an interval of observation.
    pub interval_s: u64,
    /// A smaller fleet is looked for at most this often.
    pub every_s: u64,
    /// The moments of the day's moves are chosen for this time to come.
    pub ahead_s: u64,
    /// Moves to another fleet within a day, at most.
    pub moves_per_day: usize,
    /// What moving takes and when it is worth it.
    pub terms: Terms,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval_s: 900, every_s: 3600, ahead_s: DAY_S, moves_per_day: 6, terms: Terms::default() }
    }
}

/// The traffic of one interval.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Number of the interval since the Unix epoch.
    pub interval: u64,
    /// Requests that arrived in it.
    pub requests: u64,
    /// Prompt tokens of all.
    pub prompt_tokens: u64,
    /// Answer tokens of all.
    pub answer_tokens: u64,
    /// Decisions by policy.
    pub mix: ScoreMix,
}

/// What a person has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Nothing: the autopilot acts.
    #[default]
    None,
    /// The fleet stays; queries may be routed otherwise.
    Freeze,
    /// Fleet and routing stay.
    Pin,
}

/// What is so now, beside the traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Signals {
    /// Seconds since the Unix epoch.
    pub now_s: u64,
    /// Digest of prices and stock.
    pub offers: String,
    /// GPUs that are lost, all in all.
    pub lost: BTreeMap<String, u32>,
    /// What the gateway complains about.
    pub alarm: Option<String>,
    /// What a person has said.
    pub hold: Hold,
    /// The mix that the planning queries give under the policy that runs.
    pub base_mix: Option<ScoreMix>,
    /// How many times the rate that it is made for a plan must stand, at least 1.
    pub stands: f64,
    /// Rent per hour of what runs, at today's prices.
    pub rent: Option<f64>,
    /// Rents of fleets for what is to come; in proportion to the rate where nothing is known of them.
    pub rents: Rents,
}

impl Default for Signals {
    /// Nothing is so.
    fn default() -> Self {
        Self {
            now_s: 0,
            offers: String::new(),
            lost: BTreeMap::new(),
            alarm: None,
            hold: Hold::None,
            base_mix: None,
            stands: 1.0,
            rent: None,
            rents: Rents::default(),
        }
    }
}

impl Signals {
    /// By which it is known whether something else is so than traffic and time.
    fn digest(&self) -> String {
        let Self { offers, lost, alarm, hold, .. } = self;
        sha256_hex(format!("{offers} {lost:?} {alarm:?} {hold:?}").as_bytes())
    }
}

/// Why a plan is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// GPUs are lost or back.
    Stock,
    /// Prices or stock of the spec have changed.
    Offers,
    /// The gateway says that quality does not hold.
    Alarm,
    /// Queries are of another mix.
    Mix,
    /// Prompts or answers are longer or shorter.
    Lengths,
    /// More is coming than was planned for.
    RateUp,
    /// Less is coming, and it is time to look.
    RateDown,
}

/// What to plan for.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Why.
    pub trigger: Trigger,
    /// Requests per second that what runs must carry until the next move that is planned.
    pub rate: f64,
    /// Those that a fleet is for, if it must be moved now.
    pub moved_rate: f64,
    /// The mix, where it is not that of the planning queries.
    pub mix: Option<ScoreMix>,
    /// When a move is worth it; no move that only saves where too many were made.
    pub terms: Terms,
}

/// What a question is asked of.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The spec with its prices as they are.
    pub spec: &'a Problem,
    /// The requests of late.
    pub recent: &'a [TraceRequest],
    /// GPUs that are lost.
    pub lost: &'a BTreeMap<String, u32>,
    /// The plan that runs.
    pub running: &'a Plan,
}

impl Scene<'_> {
    /// The problem with the traffic of late at `rate`, on the GPUs that are left.
    fn as_it_is(&self, rate: f64) -> Problem {
        let mut problem = as_of_late(self.spec, self.recent, rate);
        lose(&mut problem, self.lost);
        problem
    }
}

impl Question {
    /// What [`replan`] answers. `measured` is the problem whose table is in the database; where that no longer [`serves`], it becomes the
    /// problem as it is now.
    ///
    /// # Errors
    /// If nothing meets the targets any more; if stopped.
    pub fn answered(
        &self,
        scene: &Scene<'_>,
        measured: &mut Problem,
        database: &Database,
        progress: Progress<'_>,
    ) -> Result<Replan, PlanError> {
        let Scene { spec, running, .. } = scene;
        let mut asked = |rate: f64| {
            let mut problem = scene.as_it_is(rate);
            if let Some(mix) = &self.mix {
                problem.quality = mix.applied_to(spec, &running.routing.policy).or(problem.quality);
            }
            if !serves(measured, &problem) {
                measured.clone_from(&problem);
            }
            replan(measured, &problem, running, &self.terms, database, progress)
        };
        let answer = asked(self.rate)?;
        let must_move = answer.answer == Answer::Move && !answer.now.holds;
        if must_move && self.moved_rate > self.rate {
            match asked(self.moved_rate) {
                // As much as there is, then.
                Err(PlanError::Infeasible(_)) => {}
                further => return further,
            }
        }
        Ok(answer)
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// Have the fleet of this plan running.
    Fleet {
        /// Digest of the plan.
        plan: String,
    },
    /// Let time pass.
    Wait {
        /// Seconds.
        seconds: f64,
    },
    /// Put this plan where the gateway reads it.
    Publish {
        /// Digest of the plan.
        plan: String,
        /// Rate that it carries.
        rate: f64,
    },
}

/// What was decided, and on what ground.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Why there was a question.
    pub trigger: Trigger,
    /// The answer, after what limits it; `None` where nothing keeps the promises.
    pub answer: Option<Answer>,
    /// Why.
    pub why: Vec<String>,
    /// Requests per second planned for.
    pub rate: f64,
    /// Rent that it saves.
    pub saving_usd_per_hour: f64,
    /// Digests of what it was made from.
    pub inputs: BTreeMap<String, String>,
    /// Digest of the plan that runs.
    pub from: String,
    /// Digest of the plan to come, if it is another.
    pub to: Option<String>,
    /// What is to be done.
    pub acts: Vec<Act>,
    /// GPUs that were lost when it was made.
    pub lost: BTreeMap<String, u32>,
    /// Digest of the prices and stock it was made with.
    pub offers: String,
    /// The mix to be expected from here on.
    pub mix: Option<ScoreMix>,
    /// Mean prompt and answer that it was made with.
    pub lengths: Option<(f64, f64)>,
    /// What the gateway complained about.
    pub alarm: Option<String>,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since the Unix epoch.
    pub at_s: u64,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Entry {
    /// The autopilot took over a plan that it did not make.
    Adopted {
        /// Its digest.
        plan: String,
        /// Rate that it carries.
        rate: f64,
    },
    /// An interval ended.
    Observed(Observed),
    /// A decision.
    Decided(Decision),
    /// A decision that is only told: nothing is done.
    DryRun(Decision),
    /// An act begins.
    Intent {
        /// Its number in the decision.
        number: usize,
        /// The act.
        act: Act,
    },
    /// An act is done.
    Done {
        /// Its number.
        number: usize,
    },
    /// An act failed, and will be tried again.
    Failed {
        /// Its number.
        number: usize,
        /// Why.
        error: String,
    },
}

/// Acts under way.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    acts: Vec<Act>,
    /// Those done.
    done: usize,
    /// When the last was done.
    since_s: u64,
    failures: u32,
    not_before_s: u64,
}

/// What a question is asked on: asked again on the same, it has the same answer.
#[derive(Debug, Clone, PartialEq)]
struct Ground {
    /// Digest of the plan that runs.
    running: String,
    /// The first interval that was not observed.
    next: u64,
    /// Digest of the signals, if the record has it.
    signals: Option<String>,
}

/// What is known, by the journal.
#[derive(Debug, Clone, Default)]
struct State {
    /// The plan that runs, and the rate that it carries.
    running: Option<(String, f64)>,
    /// The highest rate that any plan carried.
    carried: f64,
    observed: BTreeMap<u64, Observed>,
    rates: BTreeMap<u64, f64>,
    change: Option<Change>,
    /// When fleets were moved.
    moves: Vec<u64>,
    /// When a question was last asked for each reason, and on what.
    asked: BTreeMap<Trigger, (u64, Ground)>,
    last: Option<Decision>,
    /// The first interval under the policy that runs.
    policy_since: u64,
}

/// The autopilot.
#[derive(Debug, Clone)]
pub struct Autopilot {
    settings: Settings,
    state: State,
}

impl Autopilot {
    /// One that knows nothing yet; [`note`](Self::note) the journal's records in order.
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: State::default() }
    }

    /// Its settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Digest of the plan that it has published last, or adopted.
    pub fn running(&self) -> Option<&str> {
        self.state.running.as_ref().map(|(digest, _)| digest.as_str())
    }

    /// Acts that are still to be done.
    pub fn under_way(&self) -> &[Act] {
        self.state.change.as_ref().map_or(&[], |change| &change.acts[change.done..])
    }

    /// The last decision.
    pub const fn last_decision(&self) -> Option<&Decision> {
        self.state.last.as_ref()
    }

    /// The first interval that has not been observed.
    pub fn next_interval(&self) -> u64 {
        self.state.observed.last_key_value().map_or(0, |(interval, _)| interval + 1)
    }

    /// Moves to another fleet within the last day.
    pub fn moves_today(&self, now_s: u64) -> usize {
        self.state.moves.iter().filter(|at| **at + DAY_S > now_s).count()
    }

    /// Moves that may still be made then, if none is made before.
    fn moves_left(&self, at_s: u64) -> usize {
        self.settings.moves_per_day.saturating_sub(self.moves_today(at_s))
    }

    /// Takes in a record.
    pub fn note(&mut self, record: &Record) {
        let at_s = record.at_s;
        match &record.entry {
            Entry::Adopted { plan, rate } => {
                self.runs(plan, *rate, at_s);
                self.state.change = None;
                self.state.last = None;
            }
            Entry::Observed(observed) => self.observed(observed),
            Entry::DryRun(decision) => {
                self.asked(decision, at_s);
                let mut told = decision.clone();
                if told.to.is_some() {
                    // Nothing is routed otherwise: what was expected still is.
                    told.mix = self.state.last.take().and_then(|last| last.mix);
                }
                self.state.last = Some(told);
            }
            Entry::Decided(decision) => {
                self.asked(decision, at_s);
                if decision.answer == Some(Answer::Move) {
                    self.state.moves.push(at_s);
                }
                if let (Some(Answer::Stay), Some((_, rate))) = (decision.answer, &mut self.state.running) {
                    // What runs has been seen to carry it.
                    *rate = rate.max(decision.rate);
                }
                let acts = decision.acts.clone();
                let change = Change { acts, done: 0, since_s: at_s, failures: 0, not_before_s: at_s };
                self.state.change = (!change.acts.is_empty()).then_some(change);
                self.state.last = Some(decision.clone());
            }
            Entry::Intent { .. } => {}
            Entry::Done { number } => self.done(*number, at_s),
            Entry::Failed { .. } => {
                if let Some(change) = &mut self.state.change {
                    let wait_s = (RETRY_S.0 << change.failures.min(8)).min(RETRY_S.1);
                    (change.failures, change.not_before_s) = (change.failures + 1, at_s + wait_s);
                }
            }
        }
    }

    fn runs(&mut self, plan: &str, rate: f64, at_s: u64) {
        self.state.running = Some((plan.to_owned(), rate));
        self.state.carried = self.state.carried.max(rate);
        self.state.policy_since = at_s.div_ceil(self.settings.interval_s);
    }

    /// What the last move of a day must be for, `None` if another may follow at once: the highest rate until one of those made is a day old.
    fn until_another(&self, signals: &Signals, need: &[f64]) -> Option<f64> {
        let left = |at: usize| self.moves_left(signals.now_s + at as u64 * self.settings.interval_s);
        let without = (0..need.len()).take_while(|at| left(*at) <= 1);
        let highest = without.map(|at| need[at]).reduce(f64::max)?;
        // Before a whole day was seen, the hours to come may be as those that were.
        let seen = self.state.rates.first_key_value().map_or(0, |(first, _)| self.next_interval() - first);
        Some(if seen < self.per_day() { highest.max(self.highest() / signals.stands) } else { highest })
    }

    /// The highest rate that came or was carried.
    fn highest(&self) -> f64 {
        let came = self.state.rates.values().copied();
        came.chain([self.state.carried]).fold(0.0, f64::max)
    }

    fn asked(&mut self, decision: &Decision, at_s: u64) {
        let signals = decision.inputs.get(SIGNALS).cloned();
        let ground = Ground { running: decision.from.clone(), next: self.next_interval(), signals };
        self.state.asked.insert(decision.trigger, (at_s, ground));
    }

    /// Whether this was asked less than an interval ago, and nothing has changed since.
    fn just_asked(&self, trigger: Trigger, running: &str, signals: &Signals) -> bool {
        self.state.asked.get(&trigger).is_some_and(|(at_s, ground)| {
            let (running, next) = (running.to_owned(), self.next_interval());
            let now = Ground { running, next, signals: Some(signals.digest()) };
            signals.now_s < at_s + self.settings.interval_s && *ground == now
        })
    }

    fn observed(&mut self, observed: &Observed) {
        let rate = observed.requests as f64 / self.settings.interval_s as f64;
        self.state.rates.insert(observed.interval, rate);
        self.state.observed.insert(observed.interval, observed.clone());
        let oldest = observed.interval.saturating_sub(KEPT_DAYS * self.per_day());
        self.state.rates.retain(|interval, _| *interval >= oldest);
        let oldest = observed.interval.saturating_sub(RECENT);
        self.state.observed.retain(|interval, _| *interval >= oldest);
    }

    fn done(&mut self, number: usize, at_s: u64) {
        let Some(change) = self.state.change.as_mut().filter(|change| change.done == number) else { return };
        let act = change.acts[number].clone();
        (change.done, change.since_s, change.failures, change.not_before_s) = (number + 1, at_s, 0, at_s);
        if change.done == change.acts.len() {
            self.state.change = None;
        }
        if let Act::Publish { plan, rate } = act {
            self.runs(&plan, rate, at_s);
        }
    }

    const fn per_day(&self) -> u64 {
        DAY_S / self.settings.interval_s
    }

    /// The next act and its number, if it is time for it. What waits is an act too, with nothing to do when its time has come. Pinned, none
    /// begins: what is under way pauses where it is, and goes on after. Frozen, none does that changes the fleet.
    pub fn next_act(&self, now_s: u64, hold: Hold) -> Option<(usize, &Act)> {
        let change = self.state.change.as_ref()?;
        let act = &change.acts[change.done];
        let held = match act {
            Act::Fleet { .. } => hold != Hold::None,
            Act::Wait { .. } | Act::Publish { .. } => hold == Hold::Pin,
        };
        if held {
            return None;
        }
        let due_s = match act {
            Act::Wait { seconds } => change.since_s + seconds.ceil() as u64,
            _ => change.not_before_s,
        };
        (now_s >= due_s).then_some((change.done, act))
    }

    /// Tells `signals` what the fleets rent for that what is to come may need, so that moves go where they save rent: `rents` as they are
    /// known, and what they lack by the table of `measured`. Where that no longer [`serves`], it becomes the problem as it is now.
    ///
    /// # Errors
    /// If stopped.
    pub fn learn_rents(
        &self,
        signals: &mut Signals,
        rents: &mut Rents,
        scene: &Scene<'_>,
        measured: &mut Problem,
        (database, progress): (&Database, Progress<'_>),
    ) -> Result<(), PlanError> {
        let Some(needs) = self.needs(signals.now_s).filter(|_| self.may_ask(signals)) else { return Ok(()) };
        let now = scene.as_it_is(needs.iter().copied().fold(0.0, f64::max));
        if !serves(measured, &now) {
            measured.clone_from(&now);
        }
        // Lengths wander: a tenth is nothing that a schedule depends on.
        let tenths = |tokens: f64| (tokens.ln() * 10.0).round();
        let lengths = self.state.last.as_ref().and_then(|last| last.lengths);
        let lengths = lengths.map(|(prompt, answer)| (tenths(prompt), tenths(answer)));
        let ground = format!("{} {:?} {lengths:?}", signals.offers, signals.lost);
        match rents.learn(&ground, &needs, [measured, &now], database, progress) {
            // Why, the answer to a question says.
            Err(PlanError::Infeasible(_)) => return Ok(()),
            learnt => learnt?,
        }
        if rents.any() {
            signals.rent = Some(rent(&scene.running.deployment, &now));
            signals.rents = rents.clone();
        }
        Ok(())
    }

    const fn may_ask(&self, signals: &Signals) -> bool {
        self.state.change.is_none() && !matches!(signals.hold, Hold::Pin)
    }

    /// Whether to plan again, and for what. Never while acts are under way, or while a person has pinned the plan; and the same but once an
    /// interval.
    pub fn question(&self, signals: &Signals) -> Option<Question> {
        let (running, carries) = self.state.running.as_ref()?;
        if !self.may_ask(signals) {
            return None;
        }
        let schedule = self.schedule(signals)?;
        let rent = signals.rent.unwrap_or_else(|| signals.rents.at(carries / signals.stands));
        let next = schedule.next(rent, *carries);
        if next.rate <= 0.0 {
            return None;
        }
        let mix = self.recent_mix();
        let trigger = self.trigger(signals, (*carries, rent), &next, mix.as_ref())?;
        if self.just_asked(trigger, running, signals) {
            return None;
        }
        let mix = mix.filter(|mix| signals.base_mix.as_ref().is_some_and(|base| mix.shifted(base)));
        let mut terms = self.settings.terms;
        // Queries and lengths wander: what could be saved by that is left to the next move that is planned, if there is one.
        let waits = matches!(trigger, Trigger::Mix | Trigger::Alarm | Trigger::Lengths) && next.at.is_some();
        // What is asked to carry more than it was made for is not made smaller.
        let rises = next.rate > *carries;
        if !self.may_save(signals) || waits || rises {
            terms.least_gain = f64::INFINITY;
        }
        if trigger == Trigger::RateDown {
            // What saves less than half of what it was chosen for is worth no move of the few there are.
            let expected = 1.0 - signals.rents.at(next.rate) / rent;
            terms.least_gain = terms.least_gain.max(expected / 2.0);
        }
        if let Some(intervals) = next.at.filter(|at| *at > 0) {
            let hours = (intervals as u64 * self.settings.interval_s) as f64 / 3600.0;
            terms.horizon_h = terms.horizon_h.min(hours);
        }
        let moved_rate = self.until_another(signals, &schedule.need).unwrap_or(next.moved);
        Some(Question { trigger, rate: next.rate, moved_rate, mix, terms })
    }

    /// The day to come: what a fleet must carry, and the moves that may be made to save.
    fn schedule(&self, signals: &Signals) -> Option<Schedule> {
        let need = self.needs(signals.now_s)?;
        let interval_s = self.settings.interval_s;
        let allowed = |at: usize| self.moves_left(signals.now_s + at as u64 * interval_s);
        let Terms { machine_s, warm_up_s, .. } = self.settings.terms;
        Some(Schedule {
            rent: need.iter().map(|rate| signals.rents.at(*rate)).collect(),
            allowed: (0..need.len()).map(allowed).collect(),
            need,
            move_intervals: (machine_s + warm_up_s) / interval_s as f64,
        })
    }

    /// Requests per second that a fleet must carry that is decided on in each interval from now on; `None` where nothing is known.
    fn needs(&self, now_s: u64) -> Option<Vec<f64>> {
        let interval_s = self.settings.interval_s;
        let count = (self.settings.ahead_s / interval_s).clamp(1, self.per_day());
        let forecast = Forecast { rates: &self.state.rates, per_day: self.per_day() };
        let needs = forecast.needs(now_s / interval_s, count)?;
        let until_ready = |at: usize| {
            let end = (at + READY + 1).min(needs.len());
            needs[at..end].iter().copied().fold(0.0, f64::max)
        };
        Some((0..needs.len()).map(until_ready).collect())
    }

    /// Whether a fleet may be moved that keeps its promises, to save.
    fn may_save(&self, signals: &Signals) -> bool {
        self.moves_left(signals.now_s) > 0 && signals.hold == Hold::None
    }

    fn trigger(
        &self,
        signals: &Signals,
        (carries, rent): (f64, f64),
        next: &Next,
        mix: Option<&ScoreMix>,
    ) -> Option<Trigger> {
        let last = self.state.last.as_ref();
        let nothing = BTreeMap::new();
        if signals.lost != *last.map_or(&nothing, |last| &last.lost) {
            return Some(Trigger::Stock);
        }
        if last.is_some_and(|last| last.offers != signals.offers) {
            return Some(Trigger::Offers);
        }
        if signals.alarm.is_some() && signals.alarm != last.and_then(|last| last.alarm.clone()) {
            return Some(Trigger::Alarm);
        }
        let expected = last.and_then(|last| last.mix.as_ref()).or(signals.base_mix.as_ref());
        if mix.zip(expected).is_some_and(|(mix, expected)| mix.shifted(expected)) {
            return Some(Trigger::Mix);
        }
        if next.rate > carries {
            return Some(Trigger::RateUp);
        }
        let planned_with = last.and_then(|last| last.lengths);
        let drifted = |(now, then): (f64, f64)| (now / then - 1.0).abs() > DRIFT;
        if let Some((now, then)) = self.recent_lengths().zip(planned_with)
            && (drifted((now.0, then.0)) || drifted((now.1, then.1)))
        {
            return Some(Trigger::Lengths);
        }
        let asked_s = self.state.asked.get(&Trigger::RateDown).map_or(0, |(at_s, _)| *at_s);
        let due = signals.now_s >= asked_s + self.settings.every_s && self.may_save(signals);
        let slack = if self.moves_left(signals.now_s) > 1 { SLACK } else { LAST_SLACK };
        let lower = next.at == Some(0) && signals.rents.at(next.rate) < rent * (1.0 - slack);
        (due && lower).then_some(Trigger::RateDown)
    }

    /// The mix of the latest intervals that have enough decisions by the policy that runs.
    fn recent_mix(&self) -> Option<ScoreMix> {
        let mut mix = ScoreMix::default();
        for (_, observed) in self.state.observed.range(self.state.policy_since..).rev() {
            mix.add(&observed.mix);
            if mix.total() >= ENOUGH {
                return Some(mix);
            }
        }
        (mix.total() >= ENOUGH / 4).then_some(mix)
    }

    /// Mean prompt and answer of the latest intervals.
    pub fn recent_lengths(&self) -> Option<(f64, f64)> {
        let sum = self.state.observed.values().fold((0, 0, 0), |sum, it| {
            (sum.0 + it.requests, sum.1 + it.prompt_tokens, sum.2 + it.answer_tokens)
        });
        (sum.0 >= ENOUGH / 4).then(|| (sum.1 as f64 / sum.0 as f64, sum.2 as f64 / sum.0 as f64))
    }

    /// What to do with an answer (`Err`: nothing keeps the promises, and why), and the plans that its acts name, by digest.
    /// A move is not made where a person has frozen the fleet or the day's moves are used up.
    ///
    /// # Errors
    /// If a fleet on the way is no plan.
    pub fn decide(
        &self,
        signals: &Signals,
        question: &Question,
        answer: &Result<Replan, String>,
        running: &Plan,
        inputs: BTreeMap<String, String>,
    ) -> Result<(Decision, BTreeMap<String, Plan>), InvalidPlan> {
        let signals_digest = (SIGNALS.to_owned(), signals.digest());
        let mut decision = Decision {
            trigger: question.trigger,
            answer: None,
            why: Vec::new(),
            rate: question.rate,
            saving_usd_per_hour: 0.0,
            inputs: inputs.into_iter().chain([signals_digest]).collect(),
            from: digest(running),
            to: None,
            acts: Vec::new(),
            lost: signals.lost.clone(),
            offers: signals.offers.clone(),
            mix: question.mix.clone(),
            lengths: self.recent_lengths(),
            alarm: signals.alarm.clone(),
        };
        let replan = match answer {
            Err(why) => Err(vec![why.clone()]),
            Ok(replan) => match self.barred(signals, replan.answer) {
                Some(why) => Err([&replan.why[..], &[format!("not done: {why}")]].concat()),
                None => Ok(replan),
            },
        };
        let replan = match replan {
            Ok(replan) => replan,
            Err(why) => {
                // What is lost is not made good: it is asked again.
                decision.lost = self.state.last.as_ref().map(|last| last.lost.clone()).unwrap_or_default();
                return Ok((Decision { why, ..decision }, BTreeMap::new()));
            }
        };
        decision.why.clone_from(&replan.why);
        decision.answer = Some(replan.answer);
        decision.mix.clone_from(&replan.mix);
        let Some(plan) = &replan.plan else { return Ok((decision, BTreeMap::new())) };
        decision.saving_usd_per_hour = replan.saving_usd_per_hour;
        decision.rate = plan.predicted.rate.get();
        decision.to = Some(digest(plan));
        let (acts, plans) = acts(replan, running, plan, signals.stands)?;
        decision.acts = acts;
        Ok((decision, plans))
    }
}

impl Autopilot {
    /// Why an answer must not be carried out.
    fn barred(&self, signals: &Signals, answer: Answer) -> Option<&'static str> {
        if answer != Answer::Move {
            return None;
        }
        if signals.hold == Hold::Freeze {
            return Some("the fleet is frozen");
        }
        (self.moves_left(signals.now_s) == 0).then_some("the day's moves are used up")
    }
}

/// The digest by which a plan is known.
pub fn digest(plan: &Plan) -> String {
    sha256_hex(plan.to_json_pretty().as_bytes())
}

/// The acts that lead from one plan to another, and the plans that they name.
fn acts(
    replan: &Replan,
    running: &Plan,
    plan: &Plan,
    stands: f64,
) -> Result<(Vec<Act>, BTreeMap<String, Plan>), InvalidPlan> {
    // A fleet that stays was only asked to carry the traffic as it is.
    let carries = if replan.answer == Answer::Move { stands } else { 1.0 };
    let publish = || Act::Publish { plan: digest(plan), rate: plan.predicted.rate.get() * carries };
    let mut plans = BTreeMap::from([(digest(plan), plan.clone())]);
    let moving = replan.moving.as_ref().filter(|_| replan.answer == Answer::Move);
    let Some(moving) = moving else { return Ok((vec![publish()], plans)) };
    let last = moving.stages.iter().rposition(|stage| matches!(stage, Stage::Fleet { .. }));
    let mut routing = running;
    let mut acts = Vec::new();
    for (at, stage) in moving.stages.iter().enumerate() {
        acts.push(match stage {
            Stage::Wait { seconds } => Act::Wait { seconds: *seconds },
            Stage::Routes => {
                routing = plan;
                publish()
            }
            Stage::Fleet { .. } if Some(at) == last => Act::Fleet { plan: digest(plan) },
            Stage::Fleet { deployment } => {
                let stage = on_the_way(routing, [running, plan], deployment)?;
                let name = digest(&stage);
                plans.insert(name.clone(), stage);
                Act::Fleet { plan: name }
            }
        });
    }
    Ok((acts, plans))
}

/// A plan whose fleet is one on the way between `ends`. Old and new are paid for at once, whatever the budget.
fn on_the_way(routing: &Plan, ends: [&Plan; 2], deployment: &Deployment) -> Result<Plan, InvalidPlan> {
    let mut draft = PlanDraft::clone(routing);
    draft.deployment = deployment.clone();
    draft.targets.budget_usd_per_hour = None;
    draft.predicted.cost_usd_per_hour = UsdPerHour::new(deployment.usd_per_hour()).unwrap_or_default();
    (draft.bound, draft.front, draft.binding) = (None, Vec::new(), Vec::new());
    for end in ends {
        for model in &end.models {
            if !draft.models.iter().any(|known| known.id == model.id) {
                draft.models.push(model.clone());
            }
        }
        for gpu in &end.gpus {
            if !draft.gpus.iter().any(|known| known.name == gpu.name) {
                draft.gpus.push(gpu.clone());
            }
        }
    }
    Plan::try_from(draft)
}

/// A journal as far as it is whole, and the bytes that are: a last line that a crash cut off does not count.
///
/// # Errors
/// With the number of a line that has an end and is no record.
pub fn read_journal(bytes: &[u8]) -> Result<(Vec<Record>, usize), usize> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let lines = (1_usize..).zip(bytes[..whole].split_inclusive(|byte| *byte == b'\n'));
    let records = lines.map(|(number, line)| serde_json::from_slice(line).map_err(|_| number));
    Ok((records.collect::<Result<_, usize>>()?, whole))
}
