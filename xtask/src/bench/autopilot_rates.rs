//! When the autopilot moves and for which rates, over many weeks and without planning: a fleet is taken to cost what the cheapest one costs
//! by the planner's table, and to keep its promises up to the highest rate of that rent. In truth the table is optimistic, queries shift and GPUs are
//! lost, so that a rule that does better here must still be flown through whole weeks, none of them the one judged.

use std::collections::BTreeMap;

use boute_planner::autopilot::{
    Act, Autopilot, Decision, Entry, Observed, Record, Settings, Signals, Trigger,
};
use boute_planner::rents::Rents;
use boute_planner::replan::Answer;

use super::autopilot::{INTERVAL_S, PER_DAY, Passed, READY_S, SEEN_DAYS, act, rates, rents_of_week};

/// How many times the rate that it is for a fleet stands.
const STANDS: f64 = 1.05;

/// Weeks that rules are tried on.
const SEEDS: std::ops::Range<u64> = 100..120;

/// What a week comes to.
#[derive(Debug, Default)]
struct Tally {
    /// Mean rent per hour.
    paid: f64,
    /// Share of intervals in which more came than what ran stands.
    short: f64,
    /// Moves, and most within a day.
    moves: usize,
    most: usize,
}

/// Prints what each week comes to, and the mean: rent as a part of that of a fleet for the highest rate, and of one that is changed at no cost
/// in every interval.
pub(crate) fn run() -> Result<(), String> {
    let rents = rents_of_week()?;
    println!(
        "{:>4} {:>10} {:>10} {:>8} {:>6} {:>5}",
        "seed", "of peak", "of least", "short", "moves", "most"
    );
    let mut sums = [0.0; 4];
    for seed in SEEDS {
        let rates = rates(7, seed);
        let tally = fly(&rates, &rents);
        let week = || rates.range(SEEN_DAYS * PER_DAY..).map(|(_, rate)| *rate);
        let peak = week().fold(0.0, f64::max);
        let least = week().map(|rate| rents.at(rate / STANDS)).sum::<f64>() / week().count() as f64;
        let row = [tally.paid / rents.at(peak), tally.paid / least, 100.0 * tally.short, tally.moves as f64];
        println!(
            "{seed:>4} {:>10.3} {:>10.3} {:>7.1}% {:>6} {:>5}",
            row[0], row[1], row[2], tally.moves, tally.most
        );
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value / SEEDS.count() as f64);
    }
    println!("mean {:>10.4} {:>10.4} {:>7.2}% {:>6.1}", sums[0], sums[1], sums[2], sums[3]);
    Ok(())
}

/// A week with the autopilot in the loop.
fn fly(rates: &BTreeMap<u64, f64>, rents: &Rents) -> Tally {
    let week = SEEN_DAYS * PER_DAY..rates.len() as u64;
    let first = week.clone().map(|at| rates[&at]).fold(0.0, f64::max);
    let mut autopilot = Autopilot::new(Settings::default());
    let note = |autopilot: &mut Autopilot, at_s, entry| autopilot.note(&Record { at_s, entry });
    let observed = |interval: u64| {
        let requests = (rates[&interval] * INTERVAL_S as f64) as u64;
        Entry::Observed(Observed { interval, requests, ..Observed::default() })
    };
    note(&mut autopilot, 0, Entry::Adopted { plan: "0".into(), rate: first * STANDS });
    for interval in 0..week.start {
        note(&mut autopilot, (interval + 1) * INTERVAL_S, observed(interval));
    }
    let (mut runs, mut paid) = (first, first);
    let (mut tally, mut moves) = (Tally::default(), Vec::new());
    let intervals = week.clone().count() as f64;
    for interval in week {
        let start_s = interval * INTERVAL_S;
        let signals = Signals {
            now_s: start_s,
            stands: STANDS,
            rent: Some(rents.at(runs)),
            rents: rents.clone(),
            ..Signals::default()
        };
        if let Some(question) = autopilot.question(&signals)
            && autopilot.moves_today(start_s) < Settings::default().moves_per_day
        {
            let must = question.rate > carried(rents, runs);
            let to = if must { question.rate.max(question.moved_rate) } else { question.rate };
            let mut decision = decision(question.trigger, [runs, to]);
            let gain = 1.0 - rents.at(to) / rents.at(runs);
            if must || gain >= question.terms.least_gain {
                moves.push(start_s);
            } else {
                (decision.answer, decision.acts) = (Some(Answer::Stay), Vec::new());
            }
            note(&mut autopilot, start_s, Entry::Decided(decision));
        }
        let mut short = false;
        act(&mut autopilot, start_s, |passed| match passed {
            Passed::Act(Act::Fleet { plan }) => paid = plan.parse().unwrap_or(paid),
            Passed::Act(Act::Publish { plan, .. }) => runs = plan.parse().unwrap_or(runs),
            Passed::Act(Act::Wait { .. }) => {}
            Passed::Stretch { seconds } => {
                short |= rates[&interval] > carried(rents, runs);
                tally.paid += rents.at(paid) * seconds / INTERVAL_S as f64 / intervals;
            }
        });
        tally.short += f64::from(u8::from(short)) / intervals;
        note(&mut autopilot, start_s + INTERVAL_S, observed(interval));
    }
    let within = |from: &u64| moves.iter().filter(|at| (*from..from + 86_400).contains(*at)).count();
    tally.most = moves.iter().map(within).max().unwrap_or_default();
    tally.moves = moves.len();
    tally
}

/// The rate up to which the fleet for a rate keeps its promises: the highest that has its rent.
fn carried(rents: &Rents, planned: f64) -> f64 {
    let steps = std::iter::successors(Some(planned), |rate| Some(rate * 1.02));
    let same = steps.take_while(|rate| rents.at(*rate) <= rents.at(planned));
    same.last().unwrap_or(planned) * STANDS
}

/// The move from one rate to another: what is new is paid while it loads.
fn decision(trigger: Trigger, [from, to]: [f64; 2]) -> Decision {
    let fleet = |rate: f64| Act::Fleet { plan: rate.to_string() };
    let acts = vec![
        fleet(from.max(to)),
        Act::Wait { seconds: READY_S },
        Act::Publish { plan: to.to_string(), rate: to * STANDS },
        fleet(to),
    ];
    Decision {
        trigger,
        answer: Some(Answer::Move),
        why: Vec::new(),
        rate: to,
        saving_usd_per_hour: 0.0,
        inputs: BTreeMap::new(),
        from: from.to_string(),
        to: Some(to.to_string()),
        acts,
        lost: BTreeMap::new(),
        offers: String::new(),
        mix: None,
        lengths: None,
        alarm: None,
    }
}
