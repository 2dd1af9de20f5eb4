//! What a team would do today: one GPU type, one model or a threshold.

use crate::deployment::{Effort, Fleet, Goal, Limits};
use crate::problem::Problem;
use crate::routing::Route;
use crate::search::{Choice, Search};

impl Search<'_> {
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
