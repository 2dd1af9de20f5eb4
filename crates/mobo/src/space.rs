//! What may be tried: variables, their coordinates for the model, and linear constraints known beforehand.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The values a variable can take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Domain {
    /// Any number from `low` to `high`.
    Real {
        /// Smallest.
        low: f64,
        /// Largest.
        high: f64,
    },
    /// Any integer from `low` to `high`.
    Integer {
        /// Smallest.
        low: i64,
        /// Largest.
        high: i64,
    },
    /// One of `levels` steps in an order, evenly far apart for the model (1, 2, 4, 8 …).
    Ordered {
        /// How many.
        levels: usize,
    },
    /// One of `count` kinds without an order.
    Categorical {
        /// How many.
        count: usize,
    },
    /// `parts` shares that are not negative and sum to one.
    Simplex {
        /// How many.
        parts: usize,
    },
}

/// The value of one variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// Of a real variable.
    Real(f64),
    /// Of an integer variable.
    Integer(i64),
    /// Which level or kind, from zero.
    Choice(usize),
    /// Of a simplex variable.
    Shares(Vec<f64>),
}

/// One value per variable.
pub type Point = Vec<Value>;

/// A constraint known beforehand: `Σ factor · value ≤ at_most`, over real, integer and simplex variables in their own units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// (variable, part of a simplex variable or 0, factor).
    pub terms: Vec<(usize, usize, f64)>,
    /// The bound.
    pub at_most: f64,
}

/// One axis of the model's cube.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Coordinate {
    /// Any number in [0, 1].
    Real,
    /// `k / (n − 1)` for k below n.
    Level(u64),
    /// `k` for k below n; only equality matters.
    Kind(usize),
    /// A share; the first coordinate of its simplex and the number of parts.
    Share(usize, usize),
}

/// A space that has been checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SpaceDraft", into = "SpaceDraft")]
pub struct Space {
    domains: Vec<Domain>,
    linear: Vec<Linear>,
    coordinates: Vec<Coordinate>,
    /// First coordinate of each variable.
    first: Vec<usize>,
    /// Linear constraints over coordinates: factors and bound.
    rows: Vec<(Vec<(usize, f64)>, f64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SpaceDraft {
    domains: Vec<Domain>,
    linear: Vec<Linear>,
}

impl TryFrom<SpaceDraft> for Space {
    type Error = Error;
    fn try_from(draft: SpaceDraft) -> Result<Self, Error> {
        Self::new(draft.domains, draft.linear)
    }
}

impl From<Space> for SpaceDraft {
    fn from(space: Space) -> Self {
        Self { domains: space.domains, linear: space.linear }
    }
}

impl Space {
    /// Checks domains and constraints.
    ///
    /// # Errors
    /// If a variable or a constraint makes no sense.
    pub fn new(domains: Vec<Domain>, linear: Vec<Linear>) -> Result<Self, Error> {
        if domains.is_empty() {
            return Err(Error::Problem("a space needs at least one variable".into()));
        }
        let mut coordinates = Vec::new();
        let mut first = Vec::new();
        for (variable, domain) in domains.iter().enumerate() {
            first.push(coordinates.len());
            let wrong = |reason: String| Error::Variable { variable, reason };
            match domain {
                Domain::Real { low, high } => {
                    if !(low.is_finite() && high.is_finite() && low < high && (high - low).is_finite()) {
                        return Err(wrong(format!("`low` {low} must be below `high` {high}, both finite")));
                    }
                    coordinates.push(Coordinate::Real);
                }
                Domain::Integer { low, high } => {
                    let span = high.checked_sub(*low).filter(|span| (0..=1 << 52).contains(span));
                    let span = span.ok_or_else(|| {
                        wrong(format!("`low` {low} must not be above `high` {high}, nor 2^52 below it"))
                    })?;
                    coordinates.push(Coordinate::Level(span as u64 + 1));
                }
                Domain::Ordered { levels: 0 } | Domain::Categorical { count: 0 } => {
                    return Err(wrong("it needs at least one value".into()));
                }
                Domain::Ordered { levels } => coordinates.push(Coordinate::Level(*levels as u64)),
                Domain::Categorical { count } => coordinates.push(Coordinate::Kind(*count)),
                Domain::Simplex { parts } => {
                    if *parts < 2 {
                        return Err(wrong("a simplex needs at least two parts".into()));
                    }
                    let start = coordinates.len();
                    coordinates.extend((0..*parts).map(|_| Coordinate::Share(start, *parts)));
                }
            }
        }
        let mut space = Self { domains, linear, coordinates, first, rows: Vec::new() };
        space.rows = space.linear.iter().map(|linear| space.row(linear)).collect::<Result<_, _>>()?;
        Ok(space)
    }

    /// A constraint over coordinates: values are affine in them.
    fn row(&self, linear: &Linear) -> Result<(Vec<(usize, f64)>, f64), Error> {
        let mut factors = Vec::new();
        let mut bound = linear.at_most;
        for &(variable, part, factor) in &linear.terms {
            let at = self.first.get(variable).map(|first| first + part);
            let (offset, span, parts) = match self.domains.get(variable) {
                Some(Domain::Real { low, high }) => (*low, high - low, 1),
                Some(Domain::Integer { low, high }) => (*low as f64, (high - low) as f64, 1),
                Some(Domain::Simplex { parts }) => (0.0, 1.0, *parts),
                _ => (0.0, 0.0, 0),
            };
            let Some(at) = at.filter(|_| part < parts && factor.is_finite()) else {
                let reason =
                    "a linear constraint takes finite factors of real, integer and simplex variables".into();
                return Err(Error::Variable { variable, reason });
            };
            bound -= factor * offset;
            factors.push((at, factor * span));
        }
        if bound.is_finite() {
            Ok((factors, bound))
        } else {
            Err(Error::Problem("a linear constraint needs a finite bound".into()))
        }
    }

    /// The domains, in order.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Number of coordinates of the model: one per variable, one per part of a simplex.
    pub fn dimensions(&self) -> usize {
        self.coordinates.len()
    }

    pub(crate) fn coordinates(&self) -> &[Coordinate] {
        &self.coordinates
    }

    /// Per coordinate, whether only equality matters.
    pub(crate) fn categorical(&self) -> Vec<bool> {
        self.coordinates.iter().map(|coordinate| matches!(coordinate, Coordinate::Kind(_))).collect()
    }

    /// The number of points, if the space is finite and it fits.
    pub fn size(&self) -> Option<u64> {
        self.coordinates.iter().try_fold(1_u64, |size, coordinate| match coordinate {
            Coordinate::Level(n) => size.checked_mul(*n),
            Coordinate::Kind(n) => size.checked_mul(*n as u64),
            Coordinate::Real | Coordinate::Share(..) => None,
        })
    }

    /// Coordinates of a point.
    ///
    /// # Errors
    /// If it does not lie in the space.
    pub fn encode(&self, point: &[Value]) -> Result<Vec<f64>, Error> {
        if point.len() != self.domains.len() {
            return Err(Error::Count { what: "values", got: point.len(), want: self.domains.len() });
        }
        let mut x = Vec::with_capacity(self.coordinates.len());
        for (variable, (domain, value)) in self.domains.iter().zip(point).enumerate() {
            let wrong = |reason: String| Error::Value { variable, reason };
            match (domain, value) {
                (Domain::Real { low, high }, Value::Real(value)) if (low..=high).contains(&value) => {
                    x.push((value - low) / (high - low));
                }
                (Domain::Integer { low, high }, Value::Integer(value)) if (low..=high).contains(&value) => {
                    x.push((value - low) as f64 / (high - low).max(1) as f64);
                }
                (Domain::Ordered { levels }, Value::Choice(at)) if at < levels => {
                    x.push(*at as f64 / (levels - 1).max(1) as f64);
                }
                (Domain::Categorical { count }, Value::Choice(at)) if at < count => x.push(*at as f64),
                (Domain::Simplex { parts }, Value::Shares(shares))
                    if shares.len() == *parts
                        && shares.iter().all(|share| *share >= 0.0)
                        && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 =>
                {
                    x.extend(shares);
                }
                _ => return Err(wrong(format!("{value:?} does not fit {domain:?}"))),
            }
        }
        Ok(x)
    }

    /// The point nearest to coordinates `x`.
    pub(crate) fn decode(&self, x: &[f64]) -> Point {
        let mut snapped = x.to_vec();
        self.snap(&mut snapped);
        self.domains
            .iter()
            .zip(&self.first)
            .map(|(domain, &at)| match domain {
                Domain::Real { low, high } => {
                    Value::Real((low + snapped[at] * (high - low)).clamp(*low, *high))
                }
                Domain::Integer { low, high } => {
                    Value::Integer(low + (snapped[at] * (high - low) as f64).round() as i64)
                }
                Domain::Ordered { levels } => {
                    Value::Choice((snapped[at] * (levels - 1) as f64).round() as usize)
                }
                Domain::Categorical { .. } => Value::Choice(snapped[at] as usize),
                Domain::Simplex { parts } => Value::Shares(snapped[at..at + parts].to_vec()),
            })
            .collect()
    }

    /// Moves every coordinate to its nearest allowed value (half to even, as levels are cut elsewhere).
    pub(crate) fn snap(&self, x: &mut [f64]) {
        for (at, coordinate) in self.coordinates.iter().enumerate() {
            match *coordinate {
                Coordinate::Real => x[at] = x[at].clamp(0.0, 1.0),
                Coordinate::Level(n) => {
                    let steps = (n - 1).max(1) as f64;
                    x[at] = (x[at].clamp(0.0, 1.0) * steps).round_ties_even() / steps;
                    if n == 1 {
                        x[at] = 0.0;
                    }
                }
                Coordinate::Kind(n) => x[at] = x[at].round().clamp(0.0, (n - 1) as f64),
                Coordinate::Share(first, parts) if at == first => share_out(&mut x[first..first + parts]),
                Coordinate::Share(..) => {}
            }
        }
    }

    /// A point of the space from a point of the unit cube; uniform maps to uniform.
    pub(crate) fn at_cube(&self, cube: &[f64]) -> Vec<f64> {
        let mut x = cube.to_vec();
        for (x, coordinate) in x.iter_mut().zip(&self.coordinates) {
            match *coordinate {
                Coordinate::Real => {}
                Coordinate::Level(n) => *x = (*x * n as f64).floor() / (n - 1).max(1) as f64,
                Coordinate::Kind(n) => *x = (*x * n as f64).floor(),
                // Spacings of a uniform sample are exponentials over their sum.
                Coordinate::Share(..) => *x = -(1.0 - *x).ln(),
            }
        }
        self.snap(&mut x);
        x
    }

    /// By how much the linear constraints are broken: the sum of the excesses, each relative to its factors.
    pub(crate) fn excess(&self, x: &[f64]) -> f64 {
        self.excesses(x).map(|(_, excess)| excess).sum()
    }

    /// Per constraint that is broken: its scaled factors and its scaled excess.
    fn excesses<'a>(&'a self, x: &'a [f64]) -> impl Iterator<Item = (usize, f64)> + 'a {
        self.rows.iter().enumerate().filter_map(|(at, (factors, bound))| {
            let scale = scale_of(factors);
            let excess = (factors.iter().map(|(at, factor)| factor * x[*at]).sum::<f64>() - bound) / scale;
            (excess > 1e-12).then_some((at, excess))
        })
    }

    /// Σ excess², and its gradient added to `gradient` times `weight`.
    pub(crate) fn add_penalty(&self, x: &[f64], weight: f64, gradient: &mut [f64]) -> f64 {
        self.excesses(x)
            .map(|(row, excess)| {
                let (factors, _) = &self.rows[row];
                let scale = scale_of(factors);
                for (at, factor) in factors {
                    gradient[*at] += weight * 2.0 * excess * factor / scale;
                }
                excess * excess
            })
            .sum()
    }

    /// Whether the linear constraints hold.
    pub(crate) fn allows(&self, x: &[f64]) -> bool {
        self.excess(x) == 0.0
    }

    pub(crate) fn is_constrained(&self) -> bool {
        !self.rows.is_empty()
    }
}

fn scale_of(factors: &[(usize, f64)]) -> f64 {
    factors.iter().map(|(_, factor)| factor.abs()).fold(f64::MIN_POSITIVE, f64::max)
}

/// Divides by the sum; equal shares if that is nothing.
fn share_out(parts: &mut [f64]) {
    for part in &mut *parts {
        *part = part.max(0.0);
    }
    let sum: f64 = parts.iter().sum();
    let equal = 1.0 / parts.len() as f64;
    for part in parts {
        *part = if sum > 0.0 { *part / sum } else { equal };
    }
}
