//! Constrained multi-objective Bayesian optimisation over mixed spaces, by ask and tell.
//!
//! ```
//! use boute_mobo::{Domain, Outcome, Problem, Space, Study, Value};
//!
//! let space = Space::new(vec![Domain::Real { low: 0.0, high: 2.0 }], vec![])?;
//! let mut study = Study::new(Problem::new(space, 2, 0))?;
//! while study.evaluations().len() < 8 {
//!     for candidate in study.ask(1)? {
//!         let [Value::Real(x)] = candidate.point[..] else { unreachable!("one real variable") };
//!         let outcome = Outcome { objectives: vec![x * x, (x - 1.0).powi(2)], constraints: vec![], variances: None };
//!         study.tell(vec![(candidate.id, Some(outcome))])?;
//!     }
//! }
//! assert!(study.front().len() > 3);
//! # Ok::<(), boute_mobo::Error>(())
//! ```
//!
//! All objectives are minimised; constraints are feasible at ≥ 0. The same calls with the same seed give the same bytes, on any number
//! of threads, and also if the study is stored (it is `serde`-serialisable) and resumed in between. Nothing here reads a clock, a file
//! or the environment. `docs/optimiser.md` in the repository has the mathematics.

pub mod acquisition;
pub mod boxes;
mod design;
mod error;
pub mod fit;
pub mod gp;
pub mod hypervolume;
pub mod kernel;
pub mod lbfgsb;
pub mod linalg;
mod model;
pub mod normal;
pub mod nsga2;
pub mod pareto;
mod propose;
mod search;
mod space;
mod stop;
mod study;
mod transform;
mod trust;

pub use error::Error;
pub use kernel::Structure;
pub use space::{Domain, Linear, Point, Space, Value};
pub use stop::{Gain, StopReason, StopRules};
pub use study::{Candidate, Evaluation, Noise, Outcome, Problem, Study};
pub use transform::Transform;
pub use trust::MOST_GLOBAL;

/// Points spread evenly without a model: `count` from the `skip`-th on of a scrambled Sobol sequence that meets the constraints.
///
/// # Errors
/// If no point meets the space's linear constraints.
pub fn sobol_points(space: &Space, skip: usize, count: usize, seed: u64) -> Result<Vec<Point>, Error> {
    Ok(design::design(space, skip, count, seed)?.iter().map(|x| space.decode(x)).collect())
}

/// Points drawn independently and uniformly that meet the constraints.
///
/// # Errors
/// If no point meets the space's linear constraints.
pub fn random_points(space: &Space, count: usize, seed: u64) -> Result<Vec<Point>, Error> {
    Ok(design::random(space, count, seed)?.iter().map(|x| space.decode(x)).collect())
}
