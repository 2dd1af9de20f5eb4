//! A plan found again among the routes and candidates of a problem.

use std::collections::BTreeMap;

use boute_router::certify::{Answers, floor_holds};
use boute_router::decide::Decider;
use boute_router::policy::{assign, evaluate};
use boute_spec::plan::PlanDraft;

use crate::cascade;
use crate::deployment::{Fleet, assess};
use crate::routing::Route;
use crate::search::Search;

/// A plan's division of the load, and its replicas per candidate.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) route: Route,
    pub(crate) counts: BTreeMap<usize, u32>,
}

impl Standing {
    /// The plan on this problem, or which part of it the problem lacks.
    pub(crate) fn find(plan: &PlanDraft, search: &Search<'_>, routes: &[Route]) -> Result<Self, String> {
        let mut counts = BTreeMap::new();
        for group in &plan.deployment.groups {
            let at = search.candidates.iter().position(|candidate| candidate.is_of(group));
            let at = at.ok_or_else(|| {
                format!("`{}` is none of the configurations that this spec can use", group.id)
            })?;
            *counts.entry(at).or_default() += group.replicas;
        }
        Ok(Self { route: route(plan, search, routes)?, counts })
    }

    /// Rent at the problem's prices.
    pub(crate) fn usd_per_hour(&self, search: &Search<'_>) -> f64 {
        search.rent(&self.counts)
    }

    /// The fleet with its load divided so that it carries the most, its value: requests per second, by the table.
    pub(crate) fn fleet(&self, search: &Search<'_>, margins: &[f64]) -> Option<Fleet> {
        let mut limits = search.limits(search.problem.rate);
        limits.allowed = (0..search.candidates.len()).map(|at| self.counts.contains_key(&at)).collect();
        // None of them is left out because another is better.
        limits.required = self.counts.keys().copied().collect();
        let columns = search.columns(&self.route, &limits);
        assess(search.problem, &columns, &self.route.stats.fractions, margins, &self.counts)
    }
}

fn route(plan: &PlanDraft, search: &Search<'_>, routes: &[Route]) -> Result<Route, String> {
    let policy = &plan.routing.policy;
    if let Some(route) = routes.iter().find(|route| route.policy == *policy) {
        return Ok(route.clone());
    }
    let problem = search.problem;
    let Some(quality) = &problem.quality else {
        return Err("this spec has no quality data, and the plan's routing is not its only one".into());
    };
    let queries = &quality.planning;
    let decider = Decider::new(policy, &queries.models).map_err(|unknown| unknown.to_string())?;
    let assignment = assign(&decider, queries);
    let delta = routes.first().map_or(1.0 - problem.confidence, |route| route.delta);
    let answers = Answers::of(policy, &queries.models, &assignment);
    let certified = problem.floor.map(|rule| floor_holds(queries, answers, rule, delta));
    let cascade = cascade::of(problem, policy, &assignment);
    Ok(Route {
        policy: policy.clone(),
        stats: cascade::with_load(problem, cascade.as_ref(), evaluate(&assignment, queries)),
        cascade,
        assignment,
        path: 0,
        delta,
        certified,
        admissible: certified.is_none_or(|certified| certified.holds),
    })
}
