//! Constrained multi-objective Bayesian optimisation, asked and told.
