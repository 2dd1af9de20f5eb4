//! The autopilot: bounded, deaf to noise, obedient, and whole again after a crash at any point.

use std::collections::{BTreeMap, BTreeSet};

use boute_planner::autopilot::{
    Act, Autopilot, Decision, Entry, Hold, Observed, Question, Record, Scene, Settings, Signals, Trigger,
    digest, read_journal,
};
use boute_planner::mix::ScoreMix;
use boute_planner::rents::Rents;
use boute_planner::replan::{Answer, Replan, replan};
use boute_planner::{Database, Strategy, plan};
use boute_router::decide::Decider;
use boute_spec::plan::{Objective, Plan};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{problem, quiet, trace};

const INTERVAL_S: u64 = 900;

/// A plan, and what planning again for two fifths of its rate answers: a move.
fn scene() -> (Plan, Replan) {
    let (mut problem, database) = (problem(Objective::MinCost), Database::in_memory());
    problem.rate = 40.0;
    (problem.planning_trace, problem.verification_trace) = (trace(1, 40.0), trace(2, 40.0));
    let plan = plan(&problem, Strategy::Exact, &database, &quiet).unwrap();
    let mut now = problem.clone();
    now.rate = 16.0;
    (now.planning_trace, now.verification_trace) = (trace(3, 16.0), trace(4, 16.0));
    let answer = replan(&problem, &now, &plan, &Settings::default().terms, &database, &quiet).unwrap();
    assert_eq!(answer.answer, Answer::Move, "{:?}", answer.why);
    (plan, answer)
}

fn adopted(plan: &Plan) -> Autopilot {
    let mut autopilot = Autopilot::new(Settings::default());
    let rate = plan.predicted.rate.get();
    autopilot.note(&Record { at_s: 0, entry: Entry::Adopted { plan: digest(plan), rate } });
    autopilot
}

/// An interval in which `rate` requests per second of these queries come, routed by `plan`.
fn interval(number: u64, rate: f64, plan: &Plan, queries: &boute_router::ScoredQueries) -> Record {
    let decider = Decider::new(&plan.routing.policy, &queries.models).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let requests = (rate * INTERVAL_S as f64) as u64;
    let mut mix = ScoreMix::default();
    for _ in 0..requests {
        let scores = queries.predicted(rng.random_range(0..queries.len()));
        let model = decider.decide(scores).model;
        mix.count(&queries.models[model], scores[model]);
    }
    let observed = Observed {
        interval: number,
        requests,
        prompt_tokens: 800 * requests,
        answer_tokens: 160 * requests,
        mix,
    };
    Record { at_s: (number + 1) * INTERVAL_S, entry: Entry::Observed(observed) }
}

fn signals(now_s: u64, plan: &Plan, queries: &boute_router::ScoredQueries) -> Signals {
    let base_mix = ScoreMix::expected(queries, &plan.routing.policy).ok();
    Signals { now_s, offers: "as ever".into(), base_mix, ..Signals::default() }
}

/// An autopilot that has seen one interval at `rate`, and what it is told then.
fn after_one(rate: f64, plan: &Plan) -> (Autopilot, Signals) {
    let quality = problem(Objective::MinCost).quality.unwrap();
    let mut autopilot = adopted(plan);
    autopilot.note(&interval(4, rate, plan, &quality.held_out));
    (autopilot, signals(5 * INTERVAL_S, plan, &quality.planning))
}

#[test]
fn noise_raises_no_question_and_a_shift_does_within_one_interval() {
    let (plan, _) = scene();
    let quality = problem(Objective::MinCost).quality.unwrap();
    let mut autopilot = adopted(&plan);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Two days at 87 % of the planned rate, ±3 %: the forecast and its margin stay in the band.
    for number in 0..192 {
        autopilot.note(&interval(number, rng.random_range(34.0..36.0), &plan, &quality.held_out));
        let signals = signals((number + 1) * INTERVAL_S, &plan, &quality.planning);
        let question = autopilot.question(&signals);
        // On the first day nothing is known of the pattern, and the margin is an assumed one.
        assert!(number < 120 || question.is_none(), "{number}: {question:?}");
    }
    let harder = quality.held_out.only(|query| quality.held_out.predicted(query)[0] < 0.4);
    autopilot.note(&interval(192, 35.0, &plan, &harder));
    let question = autopilot.question(&signals(193 * INTERVAL_S, &plan, &quality.planning)).unwrap();
    assert_eq!(question.trigger, Trigger::Mix);
    assert!(question.mix.is_some() && question.rate <= plan.predicted.rate.get());
}

#[test]
fn a_fleet_that_is_the_smallest_already_is_not_asked_to_shrink() {
    let (mut problem, database) = (problem(Objective::MinCost), Database::in_memory());
    problem.rate = 2.0;
    (problem.planning_trace, problem.verification_trace) = (trace(1, 2.0), trace(2, 2.0));
    let plan = plan(&problem, Strategy::Exact, &database, &quiet).unwrap();
    let queries = &problem.quality.as_ref().unwrap().planning;
    let mut autopilot = adopted(&plan);
    autopilot.note(&interval(4, 1.0, &plan, queries));
    let mut signals = signals(5 * INTERVAL_S, &plan, queries);
    // Without a word on rents, they are taken to be as the rates.
    assert_eq!(autopilot.question(&signals).unwrap().trigger, Trigger::RateDown);
    let (lost, mut measured) = (BTreeMap::new(), problem.clone());
    let scene = Scene { spec: &problem, recent: &[], lost: &lost, running: &plan };
    let mut rents = Rents::default();
    let planner = (&database, &quiet as boute_planner::Progress<'_>);
    autopilot.learn_rents(&mut signals, &mut rents, &scene, &mut measured, planner).unwrap();
    assert_eq!(signals.rent, Some(plan.deployment.usd_per_hour()));
    assert!((rents.at(1.0) / signals.rent.unwrap() - 1.0).abs() < 1e-9, "{rents:?}");
    assert!(rents.at(100.0) > 2.0 * rents.at(1.0), "{rents:?}");
    assert_eq!(autopilot.question(&signals), None);
}

/// A decision to move to a fleet for this rate that stands a twentieth more, done at once.
fn moved(autopilot: &mut Autopilot, at_s: u64, trigger: Trigger, rate: f64) {
    let acts = vec![Act::Publish { plan: "another".into(), rate: 1.05 * rate }];
    let decision = Decision {
        trigger,
        answer: Some(Answer::Move),
        why: Vec::new(),
        rate,
        saving_usd_per_hour: 0.0,
        inputs: BTreeMap::new(),
        from: String::new(),
        to: None,
        acts,
        lost: BTreeMap::new(),
        offers: "as ever".into(),
        mix: None,
        lengths: None,
        alarm: None,
    };
    autopilot.note(&Record { at_s, entry: Entry::Decided(decision) });
    autopilot.note(&Record { at_s, entry: Entry::Done { number: 0 } });
}

#[test]
fn a_daily_pattern_takes_few_moves_and_noise_none() {
    const PER_DAY: u64 = 96;
    let mut autopilot = Autopilot::new(Settings::default());
    autopilot.note(&Record { at_s: 0, entry: Entry::Adopted { plan: "first".into(), rate: 24.0 } });
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut carries, mut moves, mut rent, mut short) = (24.0, Vec::new(), 0.0, 0);
    for number in 0..9 * PER_DAY {
        let now_s = number * INTERVAL_S;
        let signals = Signals { now_s, offers: "as ever".into(), stands: 1.05, ..Signals::default() };
        let left = autopilot.moves_today(now_s) < Settings::default().moves_per_day;
        if let Some(question) = autopilot.question(&signals).filter(|_| left) {
            carries = 1.05 * question.moved_rate;
            moved(&mut autopilot, now_s, question.trigger, question.moved_rate);
            moves.push(number);
        }
        let hour = number as f64 / PER_DAY as f64 * std::f64::consts::TAU;
        let rate = (12.0 - 8.0 * hour.cos()) * rng.random_range(0.94..1.06);
        // On the first day nothing is known of what comes, and the fleet carries it all the same.
        assert!(number >= PER_DAY || rate <= 1.1 * carries, "{number}: {rate} {carries}");
        let requests = (rate * INTERVAL_S as f64) as u64;
        let observed = Observed { interval: number, requests, ..Observed::default() };
        autopilot.note(&Record { at_s: now_s + INTERVAL_S, entry: Entry::Observed(observed) });
        if number >= 2 * PER_DAY {
            rent += carries / 1.05;
            short += u64::from(rate > carries);
        }
    }
    let within_a_day = |from: u64| moves.iter().filter(|at| (from..from + PER_DAY).contains(*at)).count();
    // On the first day nothing was known.
    let mut known = moves.iter().filter(|from| **from >= PER_DAY);
    assert!(known.all(|from| within_a_day(*from) <= 6), "{moves:?}");
    let learnt = moves.iter().filter(|at| **at >= 2 * PER_DAY).count();
    assert!((14..=7 * 6).contains(&learnt), "{learnt} moves in a week: {moves:?}");
    // The mean of the pattern is 0.6 of its peak; what stays must carry 20 and 6 % more.
    let rent = rent / (7 * PER_DAY) as f64 / 21.2;
    assert!(rent < 0.8, "{rent}");
    assert!(short <= 3, "{short} intervals with more than the fleet carries");
}

#[test]
fn moves_are_counted_and_a_person_has_the_last_word() {
    let (plan, answer) = scene();
    let (mut autopilot, mut signals) = after_one(10.0, &plan);
    let question = autopilot.question(&signals).unwrap();
    assert_eq!(question.trigger, Trigger::RateDown);
    signals.hold = Hold::Pin;
    assert_eq!(autopilot.question(&signals), None);
    signals.hold = Hold::Freeze;
    let decide = |autopilot: &Autopilot, signals: &Signals| {
        autopilot.decide(signals, &question, &Ok(answer.clone()), &plan, BTreeMap::new()).unwrap().0
    };
    let frozen = decide(&autopilot, &signals);
    assert!(frozen.answer.is_none() && frozen.acts.is_empty(), "{frozen:?}");
    signals.hold = Hold::None;

    let mut made = 0;
    for hour in 2..12 {
        signals.now_s = hour * 3600;
        let decision = decide(&autopilot, &signals);
        made += usize::from(decision.answer == Some(Answer::Move));
        let acts = decision.acts.len();
        autopilot.note(&Record { at_s: signals.now_s, entry: Entry::Decided(decision) });
        assert!(acts == 0 || autopilot.question(&signals).is_none(), "one at a time");
        for number in 0..acts {
            autopilot.note(&Record { at_s: signals.now_s, entry: Entry::Done { number } });
        }
    }
    assert_eq!(made, Settings::default().moves_per_day);
    // What only saves is not even asked for then.
    signals.now_s += 3600;
    assert!(autopilot.question(&signals).is_none_or(|question| question.trigger != Trigger::RateDown));
}

#[test]
fn an_alarm_asks_once() {
    let (plan, _) = scene();
    let (mut autopilot, mut signals) = after_one(30.0, &plan);
    let asked = |autopilot: &Autopilot, signals: &Signals| {
        autopilot.question(signals).map(|question| question.trigger)
    };
    let decide = |autopilot: &mut Autopilot, signals: &Signals, trigger| {
        let terms = Settings::default().terms;
        let question = Question { trigger, rate: 30.0, moved_rate: 30.0, mix: None, terms };
        let nothing = Err("nothing is better".into());
        let (decision, _) = autopilot.decide(signals, &question, &nothing, &plan, BTreeMap::new()).unwrap();
        autopilot.note(&Record { at_s: signals.now_s, entry: Entry::Decided(decision) });
    };
    assert_eq!(asked(&autopilot, &signals), None);
    let alarm = Some("boute_certificate_void 1".to_owned());
    signals.alarm.clone_from(&alarm);
    assert_eq!(asked(&autopilot, &signals), Some(Trigger::Alarm));
    decide(&mut autopilot, &signals, Trigger::Alarm);
    // As long as it lasts, and when it comes back with nothing decided in between.
    assert_eq!(asked(&autopilot, &signals), None);
    signals.alarm = None;
    assert_eq!(asked(&autopilot, &signals), None);
    decide(&mut autopilot, &signals, Trigger::RateUp);
    // The same question waits an interval.
    signals.alarm = alarm;
    assert_eq!(asked(&autopilot, &signals), None);
    signals.now_s += INTERVAL_S;
    assert_eq!(asked(&autopilot, &signals), Some(Trigger::Alarm));
}

#[test]
fn a_move_under_way_pauses_while_it_is_held() {
    let (plan, answer) = scene();
    let mut autopilot = adopted(&plan);
    let question = Question {
        trigger: Trigger::RateDown,
        rate: 16.0,
        moved_rate: 16.0,
        mix: None,
        terms: Settings::default().terms,
    };
    let decided = autopilot.decide(&Signals::default(), &question, &Ok(answer), &plan, BTreeMap::new());
    autopilot.note(&Record { at_s: 0, entry: Entry::Decided(decided.unwrap().0) });
    let (mut now_s, mut kinds) = (0, BTreeSet::new());
    while let Some(act) = autopilot.under_way().first().cloned() {
        // However long it is held, and whatever it waits for.
        now_s += 86_400;
        assert_eq!(autopilot.next_act(now_s, Hold::Pin), None, "{act:?}");
        let frozen = autopilot.next_act(now_s, Hold::Freeze).is_none();
        assert_eq!(frozen, matches!(act, Act::Fleet { .. }), "{act:?}");
        let (number, next) = autopilot.next_act(now_s, Hold::None).unwrap();
        assert_eq!(next, &act);
        kinds.insert(serde_json::to_value(next).unwrap()["act"].to_string());
        autopilot.note(&Record { at_s: now_s, entry: Entry::Done { number } });
    }
    assert_eq!(kinds.len(), 3, "{kinds:?}");
}

#[test]
fn the_same_is_asked_once_an_interval() {
    let (plan, answer) = scene();
    let (mut autopilot, mut signals) = after_one(60.0, &plan);
    // What is asked in an interval that is looked at fifteen times, whether or not anything comes of it.
    let asked = |autopilot: &mut Autopilot, signals: &mut Signals, live: bool| -> Vec<Trigger> {
        let looks = (0..15).filter_map(|look| {
            signals.now_s += if look == 0 { 0 } else { 60 };
            let question = autopilot.question(signals)?;
            let decided = autopilot.decide(signals, &question, &Ok(answer.clone()), &plan, BTreeMap::new());
            let (decision, _) = decided.unwrap();
            let entry = if live { Entry::Decided(decision) } else { Entry::DryRun(decision) };
            // The journal tells all that must be known.
            let line = serde_json::to_vec(&Record { at_s: signals.now_s, entry }).unwrap();
            autopilot.note(&serde_json::from_slice(&line).unwrap());
            Some(question.trigger)
        });
        looks.collect()
    };
    assert_eq!(asked(&mut autopilot, &mut signals, false), [Trigger::RateUp]);
    // What a person says, what is lost and what comes in are reasons to ask at once.
    signals.now_s = 5 * INTERVAL_S;
    signals.hold = Hold::Freeze;
    assert_eq!(asked(&mut autopilot, &mut signals, true), [Trigger::RateUp]);
    signals.now_s = 5 * INTERVAL_S;
    signals.lost = BTreeMap::from([("L40S".into(), 1)]);
    assert_eq!(asked(&mut autopilot, &mut signals, true), [Trigger::Stock]);
    let quality = problem(Objective::MinCost).quality.unwrap();
    autopilot.note(&interval(5, 60.0, &plan, &quality.held_out));
    assert_eq!(asked(&mut autopilot, &mut signals, true), [Trigger::Stock]);
    // Nothing came in, and it is time again.
    signals.now_s += INTERVAL_S;
    assert_eq!(asked(&mut autopilot, &mut signals, true), [Trigger::Stock]);
}

/// A disk and a cluster: what outlives a crash.
#[derive(Clone)]
struct World {
    journal: Vec<u8>,
    plans: BTreeMap<String, Plan>,
    published: String,
    /// Fleets that were applied, one after the other.
    applied: Vec<String>,
    /// Writes and acts until the crash, and the bytes of a record that still reach the disk then.
    left: usize,
    torn: usize,
}

struct Crash;

impl World {
    fn tick(&mut self) -> Result<(), Crash> {
        self.left = self.left.checked_sub(1).ok_or(Crash)?;
        Ok(())
    }

    fn append(&mut self, autopilot: &mut Autopilot, at_s: u64, entry: Entry) -> Result<(), Crash> {
        let record = Record { at_s, entry };
        let mut line = serde_json::to_vec(&record).unwrap();
        line.push(b'\n');
        if self.tick().is_err() {
            self.journal.extend(&line[..self.torn.min(line.len())]);
            return Err(Crash);
        }
        self.journal.extend(&line);
        autopilot.note(&record);
        Ok(())
    }

    fn start(&mut self) -> Autopilot {
        let (records, whole) = read_journal(&self.journal).expect("only the last line may be cut off");
        self.journal.truncate(whole);
        let mut autopilot = Autopilot::new(Settings::default());
        for record in &records {
            autopilot.note(record);
        }
        autopilot
    }

    /// From a start to the end of all acts, as `boute autopilot` goes about it.
    fn run(&mut self, first: &Plan, answer: &Replan, from_s: u64) -> Result<u64, Crash> {
        let mut autopilot = self.start();
        let mut now_s = from_s;
        let coming = autopilot
            .under_way()
            .iter()
            .any(|act| matches!(act, Act::Publish { plan, .. } if *plan == self.published));
        if autopilot.running() != Some(&self.published) && !coming {
            let adopted = Entry::Adopted { plan: self.published.clone(), rate: first.predicted.rate.get() };
            self.append(&mut autopilot, now_s, adopted)?;
        }
        if autopilot.last_decision().is_none() {
            let question = Question {
                trigger: Trigger::RateDown,
                rate: 16.0,
                moved_rate: 16.0,
                mix: None,
                terms: Settings::default().terms,
            };
            let signals = Signals { now_s, ..Signals::default() };
            let decided = autopilot.decide(&signals, &question, &Ok(answer.clone()), first, BTreeMap::new());
            let (decision, plans) = decided.unwrap();
            for (name, plan) in plans {
                self.tick()?;
                self.plans.insert(name, plan);
            }
            self.append(&mut autopilot, now_s, Entry::Decided(decision))?;
        }
        while !autopilot.under_way().is_empty() {
            let Some((number, act)) = autopilot.next_act(now_s, Hold::None) else {
                now_s += 10;
                continue;
            };
            let act = act.clone();
            self.append(&mut autopilot, now_s, Entry::Intent { number, act: act.clone() })?;
            self.tick()?;
            match act {
                Act::Wait { .. } => {}
                Act::Publish { plan, .. } => {
                    assert!(self.plans.contains_key(&plan), "what is published is there");
                    self.published = plan;
                }
                Act::Fleet { plan } => {
                    assert!(self.plans.contains_key(&plan), "what is applied is there");
                    self.applied.push(plan);
                }
            }
            self.append(&mut autopilot, now_s, Entry::Done { number })?;
        }
        Ok(now_s)
    }
}

fn world(first: &Plan) -> World {
    World {
        journal: Vec::new(),
        plans: BTreeMap::from([(digest(first), first.clone())]),
        published: digest(first),
        applied: Vec::new(),
        left: usize::MAX,
        torn: 0,
    }
}

#[test]
fn a_crash_at_any_point_loses_nothing_and_applies_nothing_else() {
    let (first, answer) = scene();
    let last = digest(answer.plan.as_ref().unwrap());
    let mut undisturbed = world(&first);
    assert!(undisturbed.run(&first, &answer, 0).is_ok());
    assert_eq!((undisturbed.published.as_str(), undisturbed.applied.last()), (last.as_str(), Some(&last)));
    let points = usize::MAX - undisturbed.left;
    assert!(points > 8, "{points}");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..400 {
        // Several crashes, one after the other, each at some point, each leaving some bytes of the record it cut off.
        let (mut world, mut now_s) = (world(&first), 0);
        for _ in 0..rng.random_range(1..4) {
            world.left = rng.random_range(0..points);
            world.torn = rng.random_range(0..400);
            if let Ok(end_s) = world.run(&first, &answer, now_s) {
                now_s = end_s;
            }
            now_s += rng.random_range(0..900);
            let known: BTreeSet<&String> = world.plans.keys().collect();
            assert!(known.contains(&world.published), "a whole plan is always published");
        }
        world.left = usize::MAX;
        assert!(world.run(&first, &answer, now_s).is_ok());
        assert_eq!(world.published, last);
        // The same fleets in the same order, some of them twice.
        world.applied.dedup();
        assert_eq!(world.applied, undisturbed.applied);
    }
}

proptest! {
    #[test]
    fn a_journal_cut_anywhere_is_its_whole_lines(cut in 0_usize..4000) {
        let record = |at_s| Record { at_s, entry: Entry::Done { number: 1 } };
        let text: String = (0..60).map(|at_s| serde_json::to_string(&record(at_s)).unwrap() + "\n").collect();
        let cut = cut.min(text.len());
        let (records, whole) = read_journal(&text.as_bytes()[..cut]).unwrap();
        prop_assert_eq!(records.len(), text[..cut].matches('\n').count());
        prop_assert!(whole <= cut && (cut - whole) < 60);
        // A line that was written to its end and is no record is no crash's doing, be it the first or the last.
        let (lines, nonsense) = (text.matches('\n').count(), b"\xffnonsense\n");
        prop_assert_eq!(read_journal(&[nonsense, text.as_bytes()].concat()).err(), Some(1));
        prop_assert_eq!(read_journal(&[text.as_bytes(), nonsense].concat()).err(), Some(lines + 1));
    }
}
