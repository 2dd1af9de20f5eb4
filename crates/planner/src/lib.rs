//! The co-optimisation of routing and deployment.
