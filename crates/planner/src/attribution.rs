//! What each part of the default strategy contributes: the same without it, everything else as it was.

use boute_spec::file::Lengths;
use boute_spec::outcome::Outcome;
use boute_spec::plan::Plan;
use boute_spec::policy::RoutingPolicy;

use crate::candidates::Candidate;
use crate::database::Database;
use crate::deployment::Goal;
use crate::plan::{PlanError, Prepared, goal_of};
use crate::problem::Progress;
use crate::strategies::Strategy;
use crate::table::LengthMix;

/// A part of the default strategy that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lever {
    /// One model answers everything.
    Routing,
    /// All replicas on one GPU type, the best.
    Heterogeneity,
    /// Every replica on as few GPUs as it fits on.
    Parallelism,
    /// The division of the load is chosen first, by price per query, and the fleet for it.
    JointSearch,
    /// The first choice on the table is the plan, whatever simulation says.
    Repair,
    /// Every model is planned for the lengths of all queries, not of those that are routed to it.
    LengthConditioning,
}

impl Lever {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Routing,
        Self::Heterogeneity,
        Self::Parallelism,
        Self::JointSearch,
        Self::Repair,
        Self::LengthConditioning,
    ];

    /// The default strategy without it, in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "without-routing",
            Self::Heterogeneity => "without-heterogeneity",
            Self::Parallelism => "without-parallelism",
            Self::JointSearch => "without-joint-search",
            Self::Repair => "without-repair",
            Self::LengthConditioning => "without-length-conditioning",
        }
    }
}

impl Prepared<'_> {
    /// The default strategy's draft without `lever`.
    ///
    /// # Errors
    /// If it finds none.
    pub fn draft_without(&self, lever: Lever, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        let default = |prepared: &Self| prepared.draft(Strategy::Default, progress);
        match lever {
            Lever::Routing => {
                default(&self.with_routes(|policy| matches!(policy, RoutingPolicy::Constant { .. })))
            }
            Lever::Heterogeneity => self.on_one_type(progress),
            Lever::Parallelism => default(&self.with_candidates(|one| {
                let alike = |other: &&Candidate| other.model == one.model && other.offer == one.offer;
                let first_of_fewest = self.candidates().iter().filter(alike).min_by_key(|other| other.gpus());
                first_of_fewest.is_some_and(|first| std::ptr::eq(first, one))
            })),
            Lever::JointSearch => self.draft(Strategy::Sequential, progress),
            Lever::Repair => self.unrepaired(progress),
            Lever::LengthConditioning if self.problem().lengths == Lengths::Trace => default(self),
            Lever::LengthConditioning => {
                let database = Database::in_memory();
                let (problem, mix) = (self.problem(), LengthMix::Overall);
                default(&Prepared::with_table_of(problem, problem, mix, &[], &database, progress)?)
            }
        }
    }

    /// The best of the default strategy's drafts on a single GPU type each.
    fn on_one_type(&self, progress: Progress<'_>) -> Result<(Plan, Outcome), PlanError> {
        let offers = 0..self.problem().offers.len();
        let drafts = offers.map(|offer| {
            self.with_candidates(|candidate| candidate.offer == offer).draft(Strategy::Default, progress)
        });
        let worth = |(plan, _): &(Plan, Outcome)| {
            let value = match goal_of(self.problem().objective) {
                Goal::Cost => -plan.predicted.cost_usd_per_hour.get(),
                Goal::Rate => plan.predicted.rate.get(),
            };
            (plan.verification.passed, value)
        };
        let better = |best: Result<_, PlanError>, next: Result<_, PlanError>| match (&best, &next) {
            (Ok(a), Ok(b)) if worth(b) > worth(a) => next,
            (Err(_), _) => next,
            _ => best,
        };
        drafts.reduce(better).unwrap_or_else(|| self.draft(Strategy::Default, progress))
    }
}
