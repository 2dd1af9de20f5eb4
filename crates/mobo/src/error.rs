//! What can be wrong with what the caller gave.

/// Why a call was refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A space that has no points, or a variable that makes no sense.
    #[error("variable {variable}: {reason}")]
    Variable {
        /// Its place.
        variable: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A problem that makes no sense.
    #[error("{0}")]
    Problem(String),
    /// A point that does not lie in the space.
    #[error("the value of variable {variable} is not in its domain: {reason}")]
    Value {
        /// The variable's place.
        variable: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The known constraints leave nothing.
    #[error("no point that meets the linear constraints was found; check that they can be met together")]
    Empty,
    /// No such candidate.
    #[error("there is no pending candidate {0}; it was told already, or never asked for")]
    UnknownCandidate(u64),
    /// The wrong number of values.
    #[error("{what}: {got} given, {want} expected")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many were given.
        got: usize,
        /// How many there should be.
        want: usize,
    },
    /// NaN or infinite.
    #[error("{what} {at} is {value}; tell finite numbers, or tell the evaluation as failed")]
    NotFinite {
        /// Objective, constraint or noise variance.
        what: &'static str,
        /// Its place.
        at: usize,
        /// The number.
        value: f64,
    },
    /// A positive value was needed for the logarithm, or one in (0, 1) for the logit.
    #[error(
        "output {at} is {value}, outside the domain of its transform; tell the evaluation as failed, or use another transform"
    )]
    Transform {
        /// Place among objectives, then constraints.
        at: usize,
        /// The number.
        value: f64,
    },
}
