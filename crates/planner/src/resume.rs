//! Going on from an earlier plan of the same problem.

use std::cell::Cell;

use boute_spec::plan::{Objective, PlanDraft};

use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::plan::{PlanError, goal_of};
use crate::problem::Problem;
use crate::routing::Route;
use crate::search::{Choice, Search};
use crate::standing::Standing;
use crate::strategies::Strategy;
use crate::uphold::{Attempt, Choose, Upholder};

/// Prices of a plan and of its problem are the same within this part.
const SAME_PRICE: f64 = 1e-6;

/// Whether `plan` was made from what `problem` was made from; if not, what differs.
pub(crate) fn same_inputs(problem: &Problem, plan: &PlanDraft) -> Result<(), String> {
    if plan.seed != problem.seed {
        return Err(format!("it was made with seed {}, not {}", plan.seed, problem.seed));
    }
    for input in &problem.inputs {
        let then = plan.inputs.iter().find(|then| then.input == input.input);
        if then.is_none_or(|then| then.sha256 != input.sha256) {
            let name = if input.file.is_empty() { String::new() } else { format!(" (`{}`)", input.file) };
            return Err(format!("it was made from another {}{name}", input.input));
        }
    }
    Ok(())
}

/// The plan as an attempt, simulated again.
pub(crate) fn again(plan: &PlanDraft, search: &Search<'_>, routes: &[Route]) -> Result<Attempt, PlanError> {
    let problem = search.problem;
    let other = |what: &str| PlanError::OtherProblem(what.into());
    let standing = Standing::find(plan, search, routes).map_err(PlanError::OtherProblem)?;
    let route = routes.iter().position(|route| route.policy == standing.route.policy);
    let route = route.ok_or_else(|| other("its division of the load is none of this problem's"))?;
    let (then, now) = (plan.deployment.usd_per_hour(), standing.usd_per_hour(search));
    if (then - now).abs() > SAME_PRICE * now {
        return Err(PlanError::OtherProblem(format!("its fleet was ${then:.2}/h and is ${now:.2}/h now")));
    }
    let margins = search.limits(problem.rate).margins;
    let fleet = standing.fleet(search, &margins);
    let fleet = fleet.ok_or_else(|| other("by the table its fleet keeps no promise at any rate"))?;
    let value = if goal_of(problem.objective) == Goal::Cost { now } else { fleet.value };
    let choice = Choice { route, fleet: Fleet { value, ..fleet } };
    let bound = plan.bound.as_ref().map(|bound| bound.value);
    let (deployment, rate) = (plan.deployment.clone(), plan.predicted.rate.get());
    let attempt = Attempt::of_deployment(search, routes, choice, deployment, bound, rate, &margins);
    Ok(Attempt { repairs: plan.verification.repairs, ..attempt })
}

/// What `chosen` comes to if that is better than `earlier`; else `earlier`, with the tighter of both bounds.
pub(crate) fn improved(
    upholder: &Upholder<'_>,
    strategy: Strategy,
    earlier: Attempt,
    chosen: Choose<'_>,
) -> Attempt {
    let Upholder { search, routes, goal, progress, .. } = *upholder;
    let problem = search.problem;
    let optimises = matches!(problem.objective, Objective::MinCost | Objective::MaxRate);
    let sweeps = optimises && matches!(strategy, Strategy::Default | Strategy::Exact);
    let proven = Cell::new(None);
    let beating = |limits: &Limits| {
        // Only what is chosen by the bare table bounds all plans, and has to beat the earlier one there.
        let bare = search.unrepaired(limits);
        let picked = if sweeps && bare {
            let incumbent = Some(earlier.choice.clone());
            let swept = search.sweep_from(incumbent, routes, limits, goal, Effort::Proof, progress);
            swept.map(|(choice, bound)| (choice, Some(bound)))
        } else {
            chosen(limits)
        };
        if bare {
            proven.set(picked.as_ref().and_then(|(_, bound)| *bound));
        }
        picked
    };
    let holds = earlier.holds(problem);
    let than = (holds && optimises).then_some(&earlier);
    let quality = |attempt: &Attempt| routes[attempt.choice.route].stats.quality;
    let better = upholder.uphold(&beating, than).filter(|found| match (found.holds(problem), holds) {
        (true, true) => problem.objective != Objective::MaxQuality || quality(found) > quality(&earlier),
        (found, _) => found,
    });
    let lower = matches!(problem.objective, Objective::MinCost | Objective::Pareto);
    let tighter = if lower { f64::max } else { f64::min };
    let bound = [proven.get(), earlier.bound].into_iter().flatten().reduce(tighter);
    Attempt { bound, ..better.unwrap_or(earlier) }
}
