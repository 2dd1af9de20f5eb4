//! A study: what was tried, and what to try next.

use serde::{Deserialize, Serialize};

use crate::design::{design, mix};
use crate::error::Error;
use crate::hypervolume::hypervolume;
use crate::kernel::{HyperParameters, Structure};
use crate::model::Models;
use crate::pareto::non_dominated;
use crate::propose::propose;
use crate::space::{Point, Space};
use crate::transform::Transform;
use crate::trust::{MOST_GLOBAL, TrustRegion};

/// Where observations come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// The variance of the noise is fitted, output by output; it may turn out to be none.
    #[default]
    Fitted,
    /// The same point gives the same values.
    None,
}

/// What is to be minimised, over what, subject to what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Where to look.
    pub space: Space,
    /// Number of objectives, all minimised; one to five.
    pub objectives: usize,
    /// Number of outcome constraints, feasible at ≥ 0.
    pub constraints: usize,
    /// Objective values that are just not worth having; inferred from the front if absent.
    pub reference: Option<Vec<f64>>,
    /// Per objective, then per constraint; all [`Transform::None`] if empty.
    pub transforms: Vec<Transform>,
    /// Which coordinates act together; all if absent.
    pub structure: Option<Structure>,
    /// Where observations come from.
    pub noise: Noise,
    /// Points before the model; 2 (d + 1) if absent.
    pub initial: Option<usize>,
    /// Names all randomness.
    pub seed: u64,
}

impl Problem {
    /// A problem with defaults for everything but these.
    pub fn new(space: Space, objectives: usize, constraints: usize) -> Self {
        Self {
            space,
            objectives,
            constraints,
            reference: None,
            transforms: Vec::new(),
            structure: None,
            noise: Noise::default(),
            initial: None,
            seed: 0,
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.objectives + self.constraints
    }

    /// Points before the model.
    pub fn initial(&self) -> usize {
        self.initial.unwrap_or(2 * (self.space.dimensions() + 1)).max(1)
    }

    pub(crate) fn transform(&self, output: usize) -> Transform {
        self.transforms.get(output).copied().unwrap_or_default()
    }

    fn check(&self) -> Result<(), Error> {
        let problem = |text: &str| Err(Error::Problem(text.into()));
        if !(1..=5).contains(&self.objectives) {
            return problem("a problem has one to five objectives");
        }
        if !self.transforms.is_empty() && self.transforms.len() != self.outputs() {
            return Err(Error::Count {
                what: "transforms",
                got: self.transforms.len(),
                want: self.outputs(),
            });
        }
        if self.transforms.iter().skip(self.objectives).any(|transform| *transform != Transform::None) {
            return problem("a constraint has its zero where it is: only objectives can be transformed");
        }
        if let Some(reference) = &self.reference {
            if reference.len() != self.objectives {
                return Err(Error::Count {
                    what: "reference values",
                    got: reference.len(),
                    want: self.objectives,
                });
            }
            for (at, &value) in reference.iter().enumerate() {
                if self.transform(at).apply(value).is_none() {
                    return Err(Error::Transform { at, value });
                }
            }
        }
        if self.structure.as_ref().is_some_and(|structure| !structure.covers(self.space.dimensions())) {
            return problem("in a structure every coordinate is in one group and every group in a term");
        }
        Ok(())
    }
}

/// What came of an evaluation that worked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Minimised.
    pub objectives: Vec<f64>,
    /// Feasible at ≥ 0.
    pub constraints: Vec<f64>,
    /// Variance of each objective, then of each constraint, if known.
    pub variances: Option<Vec<f64>>,
}

impl Outcome {
    /// Whether every constraint holds.
    pub fn is_feasible(&self) -> bool {
        self.constraints.iter().all(|slack| *slack >= 0.0)
    }

    /// Objectives, then constraints.
    pub(crate) fn output(&self, at: usize) -> f64 {
        self.objectives.get(at).copied().unwrap_or_else(|| self.constraints[at - self.objectives.len()])
    }
}

/// A point that was evaluated; no outcome if that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The candidate's number.
    pub id: u64,
    /// Where.
    pub point: Point,
    /// What came of it; `None`: it failed.
    pub outcome: Option<Outcome>,
}

/// A point to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its number, to tell it by.
    pub id: u64,
    /// Where.
    pub point: Point,
}

/// What a study knows; all of it is stored, so that stopping and resuming changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "State", into = "State")]
pub struct Study {
    state: State,
    /// Coordinates of the evaluations.
    coordinates: Vec<Vec<f64>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    problem: Problem,
    evaluations: Vec<Evaluation>,
    pending: Vec<Candidate>,
    queue: Vec<Point>,
    next_id: u64,
    designed: usize,
    proposed: u64,
    fits: Vec<HyperParameters>,
    fitted_at: usize,
    trust: TrustRegion,
}

impl From<Study> for State {
    fn from(study: Study) -> Self {
        study.state
    }
}

impl TryFrom<State> for Study {
    type Error = Error;
    fn try_from(state: State) -> Result<Self, Error> {
        state.problem.check()?;
        for evaluation in &state.evaluations {
            if let Some(outcome) = &evaluation.outcome {
                check_outcome(&state.problem, outcome)?;
            }
        }
        for point in state.pending.iter().map(|candidate| &candidate.point).chain(&state.queue) {
            state.problem.space.encode(point)?;
        }
        let coordinates = state
            .evaluations
            .iter()
            .map(|evaluation| state.problem.space.encode(&evaluation.point))
            .collect::<Result<_, _>>()?;
        Ok(Self { state, coordinates })
    }
}

impl Study {
    /// A study of `problem`, with nothing tried.
    ///
    /// # Errors
    /// If the problem makes no sense.
    pub fn new(problem: Problem) -> Result<Self, Error> {
        Self::try_from(State {
            problem,
            evaluations: Vec::new(),
            pending: Vec::new(),
            queue: Vec::new(),
            next_id: 0,
            designed: 0,
            proposed: 0,
            fits: Vec::new(),
            fitted_at: 0,
            trust: TrustRegion::default(),
        })
    }

    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.state.problem
    }

    /// What was told, in order.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.state.evaluations
    }

    /// What was asked and not told.
    pub fn pending(&self) -> &[Candidate] {
        &self.state.pending
    }

    /// The next `count` points to evaluate; they are pending until told.
    ///
    /// # Errors
    /// If no point meets the space's linear constraints.
    pub fn ask(&mut self, count: usize) -> Result<Vec<Candidate>, Error> {
        let mut models = None;
        let mut asked = Vec::with_capacity(count);
        for _ in 0..count {
            let point = match self.next_point(&mut models) {
                Ok(point) => point,
                Err(error) => {
                    let kept = self.state.pending.len() - asked.len();
                    self.state.pending.truncate(kept);
                    return Err(error);
                }
            };
            let candidate = Candidate { id: self.state.next_id, point };
            self.state.next_id += 1;
            self.state.pending.push(candidate.clone());
            asked.push(candidate);
        }
        Ok(asked)
    }

    fn next_point(&mut self, models: &mut Option<Models>) -> Result<Point, Error> {
        if !self.state.queue.is_empty() {
            return Ok(self.state.queue.remove(0));
        }
        let known = self.state.evaluations.len() + self.state.pending.len();
        if known < self.state.problem.initial()
            || !self.state.evaluations.iter().any(|it| it.outcome.is_some())
        {
            return self.design_point();
        }
        if models.is_none() {
            *models = self.fit();
        }
        let Some(models) = models else { return self.design_point() };
        self.state.proposed += 1;
        let seed = mix(self.state.problem.seed ^ mix(self.state.proposed));
        let trusted = self.state.problem.space.dimensions() > MOST_GLOBAL;
        let trust = trusted.then_some(&self.state.trust);
        let x = propose(self, models, trust, seed)?;
        Ok(self.state.problem.space.decode(&x))
    }

    fn design_point(&mut self) -> Result<Point, Error> {
        let problem = &self.state.problem;
        let x = design(&problem.space, self.state.designed, 1, problem.seed)?;
        self.state.designed += 1;
        x.first().map(|x| problem.space.decode(x)).ok_or(Error::Empty)
    }

    /// Models of all outputs; parameters are fitted again when there is enough news.
    fn fit(&mut self) -> Option<Models> {
        let n = self.state.evaluations.len();
        let news = n - self.state.fitted_at;
        let (models, fits) = Models::fit(
            &self.state.problem,
            &self.state.evaluations,
            &self.coordinates,
            &self.state.fits,
            self.state.fits.is_empty() || news * 100 >= n,
        )?;
        if fits != self.state.fits {
            self.state.fits = fits;
            self.state.fitted_at = n;
        }
        Some(models)
    }

    /// Takes in what came of pending candidates (`None`: the evaluation failed): all of them, or none if one is refused.
    ///
    /// # Errors
    /// If a candidate is not pending, or numbers are too few, not finite or outside the domain of their transform.
    pub fn tell(&mut self, told: Vec<(u64, Option<Outcome>)>) -> Result<(), Error> {
        let mut places = Vec::with_capacity(told.len());
        for (id, outcome) in &told {
            let place = self.state.pending.iter().position(|candidate| candidate.id == *id);
            let place = place.filter(|place| !places.contains(place)).ok_or(Error::UnknownCandidate(*id))?;
            places.push(place);
            outcome.as_ref().map_or(Ok(()), |outcome| check_outcome(&self.state.problem, outcome))?;
        }
        for (id, outcome) in told {
            if let Some(place) = self.state.pending.iter().position(|candidate| candidate.id == id) {
                let Candidate { id, point } = self.state.pending.remove(place);
                let x = self.state.problem.space.encode(&point)?;
                self.record(Evaluation { id, point, outcome }, x);
            }
        }
        Ok(())
    }

    /// Takes in a point that was evaluated elsewhere (`None`: it failed), such as in an earlier study.
    ///
    /// # Errors
    /// If the point is not in the space, or the numbers are not as [`Self::tell`] takes them.
    pub fn tell_at(&mut self, point: Point, outcome: Option<Outcome>) -> Result<u64, Error> {
        let x = self.state.problem.space.encode(&point)?;
        outcome.as_ref().map_or(Ok(()), |outcome| check_outcome(&self.state.problem, outcome))?;
        let id = self.state.next_id;
        self.state.next_id += 1;
        self.record(Evaluation { id, point, outcome }, x);
        Ok(id)
    }

    fn record(&mut self, evaluation: Evaluation, x: Vec<f64>) {
        if self.state.problem.space.dimensions() > MOST_GLOBAL
            && self.state.evaluations.len() >= self.state.problem.initial()
        {
            let improved = evaluation.outcome.as_ref().is_some_and(|outcome| self.improves(outcome));
            self.state.trust.record(improved, self.state.problem.space.dimensions());
        }
        self.state.evaluations.push(evaluation);
        self.coordinates.push(x);
    }

    /// Whether no evaluation so far is at least as good.
    fn improves(&self, outcome: &Outcome) -> bool {
        let as_good = |other: &Outcome| {
            other.is_feasible() && other.objectives.iter().zip(&outcome.objectives).all(|(a, b)| a <= b)
        };
        let known = self.state.evaluations.iter().filter_map(|evaluation| evaluation.outcome.as_ref());
        outcome.is_feasible() && !known.into_iter().any(as_good)
    }

    /// Points to be asked before any other, in order.
    ///
    /// # Errors
    /// If a point is not in the space.
    pub fn enqueue(&mut self, points: Vec<Point>) -> Result<(), Error> {
        for point in &points {
            self.state.problem.space.encode(point)?;
        }
        self.state.queue.extend(points);
        Ok(())
    }

    /// Begins from an `earlier` study of the same space whose outcomes may not hold any more: its front is asked first.
    ///
    /// Where they do hold, tell them with [`Self::tell_at`] instead.
    ///
    /// # Errors
    /// If a point is not in the space.
    pub fn begin_from(&mut self, earlier: &Self) -> Result<(), Error> {
        let points = earlier.front().into_iter().map(|at| earlier.state.evaluations[at].point.clone());
        self.enqueue(points.collect())
    }

    /// Places of the feasible evaluations that no other dominates.
    pub fn front(&self) -> Vec<usize> {
        self.front_after(self.state.evaluations.len())
    }

    /// The same after the first `count` evaluations.
    pub fn front_after(&self, count: usize) -> Vec<usize> {
        let feasible: Vec<usize> = (0..count.min(self.state.evaluations.len()))
            .filter(|at| self.objectives(*at).is_some())
            .collect();
        let objectives: Vec<Vec<f64>> =
            feasible.iter().filter_map(|at| self.objectives(*at)).map(<[f64]>::to_vec).collect();
        non_dominated(&objectives).into_iter().map(|at| feasible[at]).collect()
    }

    /// Objectives of an evaluation that is feasible.
    fn objectives(&self, at: usize) -> Option<&[f64]> {
        let outcome = self.state.evaluations[at].outcome.as_ref()?;
        outcome.is_feasible().then_some(&outcome.objectives)
    }

    /// The volume the front dominates, in the objectives as told.
    pub fn hypervolume(&self) -> f64 {
        self.hypervolume_after(self.state.evaluations.len())
    }

    /// The same after the first `count` evaluations, under today's reference.
    pub fn hypervolume_after(&self, count: usize) -> f64 {
        let Some(reference) = self.reference() else { return 0.0 };
        hypervolume(&self.values(&self.front_after(count)), &reference)
    }

    /// The reference point: the problem's, or inferred from the front; `None` if there is neither.
    pub fn reference(&self) -> Option<Vec<f64>> {
        let given = self.state.problem.reference.clone();
        given.or_else(|| infer_reference(&self.values(&self.front())))
    }

    fn values(&self, places: &[usize]) -> Vec<Vec<f64>> {
        places.iter().filter_map(|at| self.objectives(*at)).map(<[f64]>::to_vec).collect()
    }

    /// Coordinates of the evaluations.
    pub(crate) fn coordinates(&self) -> &[Vec<f64>] {
        &self.coordinates
    }
}

/// A tenth of the front's range beyond its worst values, as `BoTorch` infers it; `None` for an empty front.
pub(crate) fn infer_reference(front: &[Vec<f64>]) -> Option<Vec<f64>> {
    let objectives = front.first()?.len();
    let beyond = |k: usize| {
        let values = front.iter().map(|point| point[k]);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let range = if high > low { high - low } else { high.abs().max(1.0) };
        high + 0.1 * range
    };
    Some((0..objectives).map(beyond).collect())
}

fn check_outcome(problem: &Problem, outcome: &Outcome) -> Result<(), Error> {
    check_numbers("objective", &outcome.objectives, problem.objectives)?;
    check_numbers("constraint", &outcome.constraints, problem.constraints)?;
    if let Some(variances) = &outcome.variances {
        check_numbers("noise variance", variances, problem.outputs())?;
        if let Some(at) = variances.iter().position(|variance| *variance < 0.0) {
            return Err(Error::Problem(format!("noise variance {at} is negative")));
        }
    }
    for (at, &value) in outcome.objectives.iter().enumerate() {
        if problem.transform(at).apply(value).is_none() {
            return Err(Error::Transform { at, value });
        }
    }
    Ok(())
}

fn check_numbers(what: &'static str, values: &[f64], want: usize) -> Result<(), Error> {
    if values.len() != want {
        return Err(Error::Count { what, got: values.len(), want });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::NotFinite { what, at, value: values[at] }),
        None => Ok(()),
    }
}
