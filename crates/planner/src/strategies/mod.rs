//! The strategies: what people do, what papers propose, and ours, over the same candidates, table and evaluator.

mod agh;
mod alternating;
pub mod blackbox;
pub mod buckets;
mod cascadia;
mod measures;
mod sequential;
mod single;
mod today;

use blackbox::BlackBox;

/// How a plan is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// The best proven: exact.
    Default,
    /// Every division of the load × the exact fleet.
    Exact,
    /// The best single model that keeps the floor on the best single GPU type.
    Homogeneous,
    /// The best single model that keeps the floor, length buckets assigned to GPU types.
    HeterogeneousSingle,
    /// The cheapest division that keeps the floor, the same money for every model, on the best single GPU type.
    RoutingUniform,
    /// The same division, the money divided as the load needs it, on the best single GPU type.
    RoutingProportional,
    /// The same division, then the exact fleet over all GPU types.
    Sequential,
    /// Division and fleet improved in turn until neither changes.
    Alternating,
    /// Thresholds by a Chebyshev-guided search, GPUs by a programme on the slowest model's tail; one GPU type.
    Cascadia,
    /// Greedy construction from many starts, then moves and merges.
    Agh,
    /// Random thresholds and fleets.
    Random,
    /// An evolutionary search over thresholds and fleets.
    Nsga2,
    /// Bayesian optimisation over raw thresholds and fleets.
    Qnehvi,
    /// Bayesian optimisation over load fractions, money and preferences, with kernels of that structure.
    Boute,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Default,
        Self::Exact,
        Self::Homogeneous,
        Self::HeterogeneousSingle,
        Self::RoutingUniform,
        Self::RoutingProportional,
        Self::Sequential,
        Self::Alternating,
        Self::Cascadia,
        Self::Agh,
        Self::Random,
        Self::Nsga2,
        Self::Qnehvi,
        Self::Boute,
    ];

    /// The search that it is, if it evaluates samples, and so takes seconds rather than milliseconds.
    pub(crate) const fn black_box(self) -> Option<BlackBox> {
        match self {
            Self::Random => Some(BlackBox::Random),
            Self::Nsga2 => Some(BlackBox::Nsga2),
            Self::Qnehvi => Some(BlackBox::Qnehvi),
            Self::Boute => Some(BlackBox::Boute),
            _ => None,
        }
    }

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Exact => "exact",
            Self::Homogeneous => "homogeneous",
            Self::HeterogeneousSingle => "heterogeneous-single",
            Self::RoutingUniform => "routing-uniform",
            Self::RoutingProportional => "routing-proportional",
            Self::Sequential => "sequential",
            Self::Alternating => "alternating",
            Self::Cascadia => "cascadia",
            Self::Agh => "agh",
            Self::Random => "random",
            Self::Nsga2 => "nsga2",
            Self::Qnehvi => "qnehvi",
            Self::Boute => "boute",
        }
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == text)
            .ok_or_else(|| format!("strategies are {}", Self::ALL.map(Self::name).join(", ")))
    }
}
