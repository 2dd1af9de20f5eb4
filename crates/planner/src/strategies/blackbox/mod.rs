//! Black-box searches over routing and fleet at once: `random`, `nsga2`, `qnehvi` and `boute`, with one evaluator.
//!
//! A point of a search space becomes a division of the load, the nearest of the tested ones, and replicas per candidate.
//! They are worth the highest rate that this fleet carries ([`assess`]), or its rent; the quality on the planning queries is
//! a second objective. Promises are constraints: the floor, the rate (where rent is minimised), budget and stock. The
//! searches differ in how points are encoded ([`raw`], [`structured`]) and in how the next one is chosen. `docs/strategies.md`
//! has the sources and where these differ.

mod exchange;
mod knapsack;
mod raw;
mod structured;

use std::collections::{BTreeMap, BTreeSet};

use boute_mobo::nsga2::nsga2;
use boute_mobo::{Noise, Outcome, Point, Space, Structure, Study, Transform, random_points};
use boute_router::certify::FloorRule;

use crate::deployment::{Column, Fleet, Goal, Limits, assess, columns};
use crate::problem::{Progress, Step};
use crate::routing::Route;
use crate::search::{Choice, Search};

/// Evaluations of a search, at most.
pub const EVALUATIONS: usize = 100;
/// `boute` ends its search, and then its exchanges, after so many in a row that found nothing better (as in the paper).
const STABLE_FOR: usize = 20;
/// Price and lack of quality that bound the hypervolume. So far away that what counts is the ends of the front, of which one
/// is the best value.
const NOT_WORTH_HAVING: [f64; 2] = [1e6, 1.0 - LEAST];
/// Individuals of a generation.
const POPULATION: usize = 20;
/// Slack of a division that the walk along the path refuses although its own test holds.
const REFUSED: f64 = -1e-3;
/// Qualities are told apart from 0 and 1, where their logit ends.
const LEAST: f64 = 1e-6;
/// Promises are kept up to this part.
const ROUNDING: f64 = 1e-9;

/// A black-box search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlackBox {
    /// Uniform draws of raw variables.
    Random,
    /// NSGA-II over raw variables.
    Nsga2,
    /// Bayesian optimisation over raw variables.
    Qnehvi,
    /// Bayesian optimisation over load fractions, money and preferences.
    Boute,
}

/// The course of a search.
#[derive(Debug, Clone)]
pub struct Trail {
    /// The best admissible value (rent, or rate) after each evaluation; NaN before the first.
    pub evaluations: Vec<f64>,
    /// The best found, without replicas that it does not need.
    pub choice: Option<Choice>,
}

impl Search<'_> {
    /// The course of `strategy` over at most `evaluations`, by the problem's seed. All of the `routes` may be tried, only
    /// admissible ones are kept.
    pub fn trail(
        &self,
        strategy: BlackBox,
        routes: &[Route],
        limits: &Limits,
        goal: Goal,
        evaluations: usize,
        progress: Progress<'_>,
    ) -> Trail {
        let ground = Ground { search: self, routes, limits, goal };
        let encoding = match strategy {
            BlackBox::Boute => structured::encoding(&ground),
            _ => raw::encoding(&ground),
        };
        let mut trail = Trail { evaluations: Vec::new(), choice: None };
        // No variables, no search: nothing can be rented.
        if let Some(encoding) = encoding {
            let mut course = Course {
                ground: &ground,
                encoding,
                most: evaluations,
                progress,
                stopped: false,
                values: Vec::new(),
                best: None,
                tried: BTreeSet::new(),
            };
            course.run(strategy, self.problem.seed);
            trail.choice = course.choice();
            trail.evaluations = course.values;
        }
        trail
    }
}

/// What every encoding and evaluation needs.
struct Ground<'a> {
    search: &'a Search<'a>,
    routes: &'a [Route],
    limits: &'a Limits,
    goal: Goal,
}

/// A division of the load and replicas per candidate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Design {
    route: usize,
    counts: BTreeMap<usize, u32>,
}

/// How points become designs.
struct Encoding<'a> {
    space: Space,
    /// Which coordinates act together.
    structure: Option<Structure>,
    /// To be tried before any other.
    first: Vec<Point>,
    decode: Box<dyn Fn(&Point) -> Design + 'a>,
}

impl Ground<'_> {
    /// The route whose load fractions are nearest, in L1.
    fn nearest_route(&self, fractions: &[f64]) -> usize {
        let distance = |route: &Route| -> f64 {
            route.stats.fractions.iter().zip(fractions).map(|(a, b)| (a - b).abs()).sum()
        };
        let all = 0..self.routes.len();
        all.min_by(|a, b| distance(&self.routes[*a]).total_cmp(&distance(&self.routes[*b])))
            .unwrap_or_default()
    }

    /// The columns that the encodings may use: those of candidates that no other beats at every load, for an even division.
    fn columns(&self) -> Vec<Column> {
        let models = self.search.problem.models.len();
        let even = vec![1.0 / models as f64; models];
        columns(self.search.candidates, self.search.table.levels(&even), self.limits, &even)
    }

    /// The highest rate that `design` carries.
    fn carried(&self, design: &Design) -> Option<Fleet> {
        let Search { problem, candidates, table, .. } = self.search;
        let fractions = &self.routes[design.route].stats.fractions;
        // Candidate by candidate, since a level that another candidate beats still counts for a replica that is there.
        let of_candidate = |candidate: &usize| {
            let allowed =
                (0..candidates.len()).map(|at| at == *candidate && self.limits.allowed[at]).collect();
            let only = Limits { allowed, ..self.limits.clone() };
            columns(candidates, table.levels(fractions), &only, fractions)
        };
        let columns: Vec<Column> = design.counts.keys().flat_map(of_candidate).collect();
        assess(problem, &columns, fractions, &self.limits.margins, &design.counts)
    }

    fn rent(&self, design: &Design) -> f64 {
        self.search.rent(&design.counts)
    }

    /// By how much `design` keeps each promise, in parts of what is promised; kept at ≥ 0. Rents and stock only where
    /// limited.
    fn slacks(&self, design: &Design, rate: f64) -> Vec<f64> {
        let problem = self.search.problem;
        let floor = problem.floor.map(|rule| {
            let route = &self.routes[design.route];
            let bound = route.certified.map_or(0.0, |certified| certified.lower_bound);
            let slack = if let FloorRule::Absolute(floor) = rule { bound - floor } else { bound };
            if route.admissible { slack.max(0.0) } else { slack.min(REFUSED) }
        });
        let rate = (self.goal == Goal::Cost).then(|| rate / self.limits.rate - 1.0);
        let budget = self.limits.budget.map(|budget| 1.0 - self.rent(design) / budget);
        let stock = self.limits.stock.iter().enumerate().filter_map(|(offer, stock)| {
            stock.map(|stock| {
                (f64::from(stock) - f64::from(self.search.gpus_on(&design.counts, offer)))
                    / f64::from(stock.max(1))
            })
        });
        let all = floor.into_iter().chain(rate).chain(budget).chain(stock);
        all.map(|slack| if slack.abs() < ROUNDING { 0.0 } else { slack }).collect()
    }

    /// `design` as a fleet that keeps all promises, without replicas it can do without where rent is minimised: the dearest
    /// go first. `None` if it carries nothing.
    fn fleet(&self, mut design: Design) -> Option<Fleet> {
        if self.goal == Goal::Rate {
            return self.carried(&design).map(|fleet| Fleet { bound: f64::INFINITY, ..fleet });
        }
        let rent = |at: &usize| self.search.candidates[*at].usd_per_hour;
        let mut dearest: Vec<usize> = design.counts.keys().copied().collect();
        dearest.sort_by(|a, b| rent(b).total_cmp(&rent(a)));
        for candidate in dearest {
            while let Some(fewer) = without_one(&design, candidate) {
                let carried = self.carried(&fewer).map_or(0.0, |fleet| fleet.value);
                if carried < self.limits.rate * (1.0 - ROUNDING) {
                    break;
                }
                design = fewer;
            }
        }
        let mut fleet = self.carried(&design)?;
        (fleet.value, fleet.bound) = (fleet.usd_per_hour(), 0.0);
        Some(fleet)
    }
}

fn without_one(design: &Design, candidate: usize) -> Option<Design> {
    let mut fewer = design.clone();
    let count = fewer.counts.remove(&candidate)?;
    if count > 1 {
        fewer.counts.insert(candidate, count - 1);
    }
    Some(fewer)
}

/// A search under way.
struct Course<'a> {
    ground: &'a Ground<'a>,
    encoding: Encoding<'a>,
    most: usize,
    progress: Progress<'a>,
    /// Told to stop.
    stopped: bool,
    values: Vec<f64>,
    best: Option<(f64, Design)>,
    /// What came from exchanges.
    tried: BTreeSet<Design>,
}

impl Course<'_> {
    fn run(&mut self, strategy: BlackBox, seed: u64) {
        let space = self.encoding.space.clone();
        match strategy {
            BlackBox::Random => {
                // Without linear constraints every space has points.
                for point in random_points(&space, self.most, seed).unwrap_or_default() {
                    self.evaluate(&point);
                }
            }
            BlackBox::Nsga2 => {
                let most = self.most;
                let evaluate = |points: &[Point]| points.iter().map(|point| self.evaluate(point)).collect();
                // Likewise.
                nsga2(&space, POPULATION, most, seed, evaluate).unwrap_or_default();
            }
            BlackBox::Qnehvi => self.bayesian(seed, usize::MAX, 0),
            BlackBox::Boute => {
                self.bayesian(seed, STABLE_FOR, 1);
                self.exchange(STABLE_FOR);
            }
        }
    }

    /// Bayesian optimisation until nothing better is found for `stable_for` points after the design. From every new best on,
    /// replicas are exchanged until so many `exchanges` were in vain.
    fn bayesian(&mut self, seed: u64, stable_for: usize, exchanges: usize) {
        let constraints = self.ground.slacks(&Design { route: 0, counts: BTreeMap::new() }, 0.0).len();
        let mut problem = boute_mobo::Problem::new(self.encoding.space.clone(), 2, constraints);
        problem.transforms = vec![Transform::None; problem.outputs()];
        problem.transforms[..2].copy_from_slice(&[Transform::Log, Transform::Logit]);
        problem.structure.clone_from(&self.encoding.structure);
        (problem.noise, problem.seed) = (Noise::None, seed);
        problem.reference = Some(NOT_WORTH_HAVING.into());
        let first = &self.encoding.first;
        problem.initial = (!first.is_empty()).then_some(first.len());
        let designed = problem.initial();
        let Ok(mut study) = Study::new(problem) else { return };
        if study.enqueue(first.clone()).is_err() {
            return;
        }
        let (mut points, mut stable, mut value) = (0, 0, f64::NAN);
        while stable < stable_for && self.values.len() < self.most && !self.stopped {
            let Ok(asked) = study.ask(1) else { return };
            for candidate in asked {
                let outcome = self.evaluate(&candidate.point);
                if study.tell(vec![(candidate.id, outcome)]).is_err() {
                    return;
                }
            }
            points += 1;
            let better = self.best.as_ref().is_some_and(|(best, _)| *best != value);
            if better && exchanges > 0 {
                self.exchange(exchanges);
            }
            // Without any plan there is nothing to settle on.
            let settling = !better && points > designed && self.best.is_some();
            stable = if settling { stable + 1 } else { 0 };
            value = self.best.as_ref().map_or(f64::NAN, |(best, _)| *best);
        }
    }

    /// What `point` is worth; `None` where it has no fleet, or the search was told to stop.
    fn evaluate(&mut self, point: &Point) -> Option<Outcome> {
        if self.stopped { None } else { self.judge((self.encoding.decode)(point)) }
    }

    /// What `design` is worth; `None` if it carries nothing.
    fn judge(&mut self, design: Design) -> Option<Outcome> {
        let Ground { goal, routes, .. } = *self.ground;
        let rate = self.ground.carried(&design).map_or(0.0, |fleet| fleet.value);
        let (value, price) = match goal {
            Goal::Cost => {
                let rent = self.ground.rent(&design);
                (rent, rent)
            }
            Goal::Rate => (rate, 1.0 / rate),
        };
        let quality = routes[design.route].stats.quality.clamp(LEAST, 1.0 - LEAST);
        let outcome = (value > 0.0).then(|| Outcome {
            objectives: vec![price, 1.0 - quality],
            constraints: self.ground.slacks(&design, rate),
            variances: None,
        });
        let better = |best: f64| if goal == Goal::Cost { value < best } else { value > best };
        if outcome.as_ref().is_some_and(Outcome::is_feasible)
            && self.best.as_ref().is_none_or(|(best, _)| better(*best))
        {
            self.best = Some((value, design));
        }
        let best = self.best.as_ref().map(|(best, _)| *best);
        self.values.push(best.unwrap_or(f64::NAN));
        let message = match (best, goal) {
            (None, _) => "searching".into(),
            (Some(best), Goal::Cost) => format!("searching, best so far ${best:.2}/h"),
            (Some(best), Goal::Rate) => format!("searching, best so far {best:.2} req/s"),
        };
        let (done, total) = (self.values.len() as u64, self.most as u64);
        self.stopped = (self.progress)(&Step { message, done, total });
        outcome
    }

    fn choice(&mut self) -> Option<Choice> {
        let (_, design) = self.best.take()?;
        Some(Choice { route: design.route, fleet: self.ground.fleet(design)? })
    }
}
