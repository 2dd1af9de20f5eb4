//! From routes and table to a fleet: the outer sweep, and the strategies people use today, over the same candidates.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::candidates::Candidate;
use crate::deployment::{Effort, Fleet, Goal, Limits, assess, columns, solve};
use crate::problem::{Problem, Progress, Step};
use crate::routing::Route;
use crate::table::Table;

/// How a plan is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// The best proven: exact.
    Default,
    /// Every division of the load × the exact fleet.
    Exact,
    /// The best single model that keeps the floor on the best single GPU type.
    Homogeneous,
    /// The cheapest division that keeps the floor, the same money for every model, on the best single GPU type.
    RoutingUniform,
    /// The same division, the money divided as the load needs it, on the best single GPU type.
    RoutingProportional,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Default, Self::Exact, Self::Homogeneous, Self::RoutingUniform, Self::RoutingProportional];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Exact => "exact",
            Self::Homogeneous => "homogeneous",
            Self::RoutingUniform => "routing-uniform",
            Self::RoutingProportional => "routing-proportional",
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

/// A route and its fleet.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Index of the route.
    pub route: usize,
    /// The fleet.
    pub fleet: Fleet,
}

/// Everything a search needs.
pub struct Search<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// Configurations that fit.
    pub candidates: &'a [Candidate],
    /// How they do.
    pub table: &'a Table,
}

impl Search<'_> {
    /// Limits as the problem states them, at `rate`.
    pub fn limits(&self, rate: f64) -> Limits {
        Limits {
            rate,
            budget: self.problem.budget,
            stock: self.problem.offers.iter().map(|offer| offer.stock).collect(),
            looser: false,
            allowed: vec![true; self.candidates.len()],
        }
    }

    /// The best fleet for one route.
    pub fn fleet(&self, route: &Route, limits: &Limits, goal: Goal, effort: Effort) -> Option<Fleet> {
        let fractions = &route.stats.fractions;
        let columns = columns(self.candidates, self.table.levels(fractions), limits, fractions);
        solve(self.problem, &columns, fractions, limits, goal, effort)
    }

    /// The highest rate that `counts` replicas per candidate carry under a route; see [`assess`].
    pub fn assess(&self, route: &Route, counts: &BTreeMap<usize, u32>) -> Option<Fleet> {
        let fractions = &route.stats.fractions;
        let limits = self.limits(self.problem.rate);
        let columns = columns(self.candidates, self.table.levels(fractions), &limits, fractions);
        assess(self.problem, &columns, fractions, counts)
    }

    /// The best of the admissible `routes` for `goal`, and a bound that no plan over this table beats. Routes are visited in
    /// order of their relaxation, and given up when that cannot beat the best so far. `None` if no route has a fleet.
    pub fn sweep(
        &self,
        routes: &[Route],
        limits: &Limits,
        goal: Goal,
        effort: Effort,
        progress: Progress<'_>,
    ) -> Option<(Choice, f64)> {
        // Least is best for both goals.
        let sign = if goal == Goal::Cost { 1.0 } else { -1.0 };
        let mut relaxed: Vec<(usize, f64)> = (0..routes.len())
            .into_par_iter()
            .filter(|route| routes[*route].admissible)
            .filter_map(|route| {
                Some((route, sign * self.fleet(&routes[route], limits, goal, Effort::Relaxed)?.value))
            })
            .collect();
        relaxed.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let bound_of_all = relaxed.first()?.1;
        let mut best: Option<(f64, Choice)> = None;
        let mut proven = f64::INFINITY;
        let total = relaxed.len() as u64;
        // Two at a time, as many as the machine is planned to have; the result does not depend on it.
        for (done, pair) in (0_u64..).zip(relaxed.chunks(2)) {
            let incumbent = best.as_ref().map_or(f64::INFINITY, |(value, _)| *value);
            if pair[0].1 >= incumbent - 1e-9 {
                proven = proven.min(pair[0].1);
                break;
            }
            let message = best.as_ref().map_or_else(
                || "searching fleets".to_owned(),
                |(value, _)| match goal {
                    Goal::Cost => format!("searching fleets, best so far ${value:.2}/h"),
                    Goal::Rate => format!("searching fleets, best so far {:.2} req/s", -value),
                },
            );
            if progress(&Step { message, done: 2 * done, total }) {
                proven = proven.min(pair[0].1);
                break;
            }
            let solved: Vec<Option<Fleet>> =
                pair.par_iter().map(|(route, _)| self.fleet(&routes[*route], limits, goal, effort)).collect();
            for ((route, relaxation), fleet) in pair.iter().zip(solved) {
                let Some(fleet) = fleet else { continue };
                proven = proven.min((sign * fleet.bound).max(*relaxation));
                let value = sign * fleet.value;
                if best.as_ref().is_none_or(|(incumbent, _)| value < incumbent - 1e-9) {
                    best = Some((value, Choice { route: *route, fleet }));
                }
            }
        }
        let (value, choice) = best?;
        let bound = proven.min(value).max(bound_of_all);
        Some((choice, sign * bound))
    }

    /// The admissible route of the highest quality that the budget allows, with its cheapest fleet.
    pub fn best_quality(&self, routes: &[Route], limits: &Limits, progress: Progress<'_>) -> Option<Choice> {
        let mut order: Vec<usize> = (0..routes.len()).filter(|route| routes[*route].admissible).collect();
        order.sort_by(|a, b| routes[*b].stats.quality.total_cmp(&routes[*a].stats.quality).then(a.cmp(b)));
        let total = order.len() as u64;
        for (done, route) in (0..).zip(order) {
            if progress(&Step { message: "searching the best quality".into(), done, total }) {
                return None;
            }
            if let Some(fleet) = self.fleet(&routes[route], limits, Goal::Cost, Effort::Proof) {
                return Some(Choice { route, fleet });
            }
        }
        None
    }

    /// One fleet per GPU type, from `best` under limits to that type; the cheapest (or fastest).
    fn on_one_gpu(
        &self,
        limits: &Limits,
        goal: Goal,
        best: impl Fn(&Limits) -> Option<Choice>,
    ) -> Option<Choice> {
        (0..self.problem.offers.len())
            .filter_map(|offer| {
                let allowed = self.candidates.iter().map(|candidate| candidate.offer == offer).collect();
                best(&Limits { allowed, ..limits.clone() })
            })
            .min_by(|a, b| {
                let key = |choice: &Choice| {
                    if goal == Goal::Cost { choice.fleet.value } else { -choice.fleet.value }
                };
                key(a).total_cmp(&key(b))
            })
    }

    /// `homogeneous`: one model, one GPU type.
    pub fn homogeneous(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let constant: Vec<usize> = (0..routes.len())
            .filter(|route| routes[*route].admissible && routes[*route].policy.models().len() == 1)
            .collect();
        self.on_one_gpu(limits, goal, |limits| {
            let fleets = constant.iter().filter_map(|&route| {
                Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
            });
            fleets.min_by(|a, b| {
                let key = |choice: &Choice| {
                    if goal == Goal::Cost { choice.fleet.value } else { -choice.fleet.value }
                };
                key(a).total_cmp(&key(b))
            })
        })
    }

    /// `routing-proportional`: the division that needs the better model least, one GPU type.
    pub fn proportional(&self, routes: &[Route], limits: &Limits, goal: Goal) -> Option<Choice> {
        let route = least_expensive_models(self.problem, routes)?;
        self.on_one_gpu(limits, goal, |limits| {
            Some(Choice { route, fleet: self.fleet(&routes[route], limits, goal, Effort::Proof)? })
        })
    }

    /// `routing-uniform`: the same division, and the same money for every model. Each model's fleet keeps the promises on
    /// its own; the model that needs the most money sets what all get.
    pub fn uniform(&self, routes: &[Route], limits: &Limits) -> Option<Choice> {
        let route = least_expensive_models(self.problem, routes)?;
        self.on_one_gpu(limits, Goal::Cost, |limits| {
            let fleet = self.equal_money(&routes[route], limits)?;
            Some(Choice { route, fleet })
        })
    }

    fn equal_money(&self, route: &Route, limits: &Limits) -> Option<Fleet> {
        let used: Vec<usize> =
            (0..route.stats.fractions.len()).filter(|at| route.stats.fractions[*at] > 0.0).collect();
        let alone = |model: usize| {
            let mut route = route.clone();
            let rate = limits.rate * route.stats.fractions[model];
            route.stats.fractions =
                (0..route.stats.fractions.len()).map(|at| f64::from(u8::from(at == model))).collect();
            self.fleet(&route, &Limits { rate, ..limits.clone() }, Goal::Cost, Effort::Proof)
        };
        let fleets: Vec<Fleet> = used.iter().map(|model| alone(*model)).collect::<Option<_>>()?;
        let money = fleets.iter().map(Fleet::usd_per_hour).fold(0.0, f64::max);
        let replicas: Vec<_> = fleets
            .into_iter()
            .flat_map(|fleet| {
                let spare = money - fleet.usd_per_hour();
                let mut replicas = fleet.replicas;
                if let Some((column, count)) = replicas.first_mut() {
                    *count += (spare / column.usd_per_hour + 1e-9).floor() as u32;
                }
                replicas
            })
            .collect();
        let value = replicas.iter().map(|(column, count)| column.usd_per_hour * f64::from(*count)).sum();
        let within = |offer: usize, stock: u32| {
            let used = replicas.iter().filter(|(column, _)| column.offer == offer);
            used.map(|(column, count)| column.gpus * f64::from(*count)).sum::<f64>() <= f64::from(stock)
        };
        let stocked = limits
            .stock
            .iter()
            .enumerate()
            .all(|(offer, stock)| stock.is_none_or(|stock| within(offer, stock)));
        let affordable = limits.budget.is_none_or(|budget| value <= budget);
        (stocked && affordable).then_some(Fleet { replicas, value, bound: 0.0 })
    }
}

/// What a team picks before it looks at GPUs: among the divisions that keep the floor, the one whose models are smallest on
/// average, by weights.
fn least_expensive_models(problem: &Problem, routes: &[Route]) -> Option<usize> {
    let weight = |route: &Route| -> f64 {
        let sizes = problem.models.iter().map(|model| model.shape.parameters());
        sizes.zip(&route.stats.fractions).map(|(size, fraction)| size * fraction).sum()
    };
    (0..routes.len())
        .filter(|route| routes[*route].admissible)
        .min_by(|a, b| weight(&routes[*a]).total_cmp(&weight(&routes[*b])))
}
