//! How much a point is expected to add: the logarithm of the noisy expected hypervolume improvement, weighted by feasibility.
//!
//! ```text
//! α(x) = ln 1/S Σ_s  Σ_B Π_i e_i(B, s)  ·  Π_c Φ(μ_cs / 2σ_c)
//! e_i  = E[(u − max(l, Y))₊] = σ_i (h((u − μ_is)/σ_i) − h((l − μ_is)/σ_i)),   Y ~ N(μ_is, σ_i²)
//! ```
//! over the boxes B (with sides `(l, u)`) of what the front of scenario s leaves, see [`crate::boxes`]. A scenario is a joint draw (Sobol
//! normals) of what is not known exactly: the noise-free values of observed points that may be on the front, and the values of pending
//! points. This is qLogNEHVI (Daulton, Balandat, Bakshy, "Parallel Bayesian optimization of multiple noisy objectives with expected
//! hypervolume improvement", `NeurIPS` 2021; in logarithms by Ament et al., `NeurIPS` 2023) with the innermost expectation, that over the new
//! point given a scenario, in closed form (Yang et al. 2019, eq. 13) rather than sampled: less variance from fewer scenarios, and
//! one scenario without any sampling where nothing is noisy or pending. All sums are log-sum-exp, products sums of logarithms, so that α
//! and its gradient keep their meaning where the improvement itself underflows.

use faer::Mat;

use crate::boxes::non_dominated_cells;
use crate::gp::{Gp, Scratch};
use crate::normal::{ln_1m_exp, ln_cdf, ln_improvement};

/// Relative width below which a side counts as thin and `h(u) − h(l)` is taken as width · Φ(middle).
const THIN: f64 = 1e-4;

/// By what the standard deviations of constraints are multiplied: an infeasible evaluation costs one evaluation, a feasible region that
/// is never tried costs its whole part of the front, and a process that has not seen the region is too sure that there is none.
///
/// Optimism about constraints is argued for by Lu and Paulson, "No-regret Bayesian optimization with unknown equality and inequality
/// constraints using exact penalty functions", 2022; the factor is ours, chosen on C2-DTLZ2 and confirmed on OSY.
const OPTIMISM: f64 = 2.0;

/// A draw of what is uncertain about the front: its boxes, sides as places in a table of distinct edges per objective.
#[derive(Debug)]
struct Scenario {
    /// Distinct finite edges per objective.
    edges: Vec<Vec<f64>>,
    /// Boxes, objective by objective: `(low, high)` in `edges`; a low of [`UNBOUNDED`] is −∞.
    sides: Vec<(u32, u32)>,
}

const UNBOUNDED: u32 = u32::MAX;

impl Scenario {
    fn new(front: &[Vec<f64>], reference: &[f64]) -> Self {
        let cells = non_dominated_cells(front, reference);
        let edges: Vec<Vec<f64>> = (0..reference.len())
            .map(|k| {
                let ends = cells.iter().flat_map(|cell| [cell[k].0, cell[k].1]);
                let mut edges: Vec<f64> = ends.filter(|edge| edge.is_finite()).collect();
                edges.sort_unstable_by(f64::total_cmp);
                edges.dedup();
                edges
            })
            .collect();
        let place = |k: usize, edge: f64| {
            edges[k].binary_search_by(|other| other.total_cmp(&edge)).map_or(UNBOUNDED, |at| at as u32)
        };
        let sides = cells
            .iter()
            .flat_map(|cell| {
                cell.iter().enumerate().map(|(k, (low, high))| (place(k, *low), place(k, *high)))
            })
            .collect();
        Self { edges, sides }
    }
}

/// One edge seen from a normal distribution.
#[derive(Debug, Clone, Copy)]
struct Edge {
    /// Where it is, in units of σ: widths are taken from here, because `z` rounds off what μ adds.
    at: f64,
    /// (edge − μ)/σ.
    z: f64,
    /// ln h(z).
    ln: f64,
    /// Φ(z)/h(z).
    slope: f64,
}

impl Edge {
    fn new(edge: f64, mean: f64, deviation: f64) -> Self {
        let z = (edge - mean) / deviation;
        let (ln, slope) = ln_improvement(z);
        Self { at: edge / deviation, z, ln, slope }
    }
}

/// ln (h(high) − h(low)), the improvement in units of σ.
fn ln_side(low: Option<Edge>, high: Edge) -> f64 {
    match low {
        None => high.ln,
        Some(low) if thin(low, high) => (high.at - low.at).ln() + ln_cdf(f64::midpoint(low.z, high.z)).0,
        Some(low) => high.ln + ln_1m_exp(low.ln - high.ln),
    }
}

fn thin(low: Edge, high: Edge) -> bool {
    (high.at - low.at) * high.slope < THIN
}

/// Derivatives of ln e by μ and σ, times σ.
fn side_slopes(low: Option<Edge>, high: Edge) -> (f64, f64) {
    let Some(low) = low else { return (-high.slope, 1.0 - high.z * high.slope) };
    if thin(low, high) {
        let z = f64::midpoint(low.z, high.z);
        let ratio = ln_cdf(z).1;
        return (-ratio, -z * ratio);
    }
    let ratio = (low.ln - high.ln).exp();
    let left = 1.0 - ratio;
    let by_mean = -(high.slope - ratio * low.slope) / left;
    let by_deviation = ((1.0 - high.z * high.slope) - ratio * (1.0 - low.z * low.slope)) / left;
    (by_mean, by_deviation)
}

/// ln E[improvement of one objective inside a box side]: `ln E[(high − max(low, Y))₊]`, Y ~ N(mean, deviation²).
///
/// `low` may be −∞.
pub fn ln_expected_side(low: f64, high: f64, mean: f64, deviation: f64) -> f64 {
    let low = low.is_finite().then(|| Edge::new(low, mean, deviation));
    deviation.ln() + ln_side(low, Edge::new(high, mean, deviation))
}

/// ln of the expected hypervolume improvement of an objective vector with independent normal entries over `front`.
pub fn ln_expected_hypervolume_improvement(
    front: &[Vec<f64>],
    reference: &[f64],
    means: &[f64],
    deviations: &[f64],
) -> f64 {
    let scenario = Scenario::new(front, reference);
    let outputs = Outputs { means, deviations };
    scenario_value(&scenario, outputs, &mut Workspace::default(), None)
}

/// Normal distributions of all outputs: objectives, then constraints.
#[derive(Debug, Clone, Copy)]
struct Outputs<'a> {
    means: &'a [f64],
    deviations: &'a [f64],
}

/// Room for one evaluation, kept between evaluations.
#[derive(Debug, Default)]
struct Workspace {
    edges: Vec<Vec<Edge>>,
    cells: Vec<f64>,
}

/// Derivatives of the value by the means and deviations of all outputs.
#[derive(Debug)]
struct Slopes<'a> {
    by_mean: &'a mut [f64],
    by_deviation: &'a mut [f64],
}

/// The value in one scenario; `slopes` are written if asked for.
fn scenario_value(
    scenario: &Scenario,
    outputs: Outputs,
    workspace: &mut Workspace,
    slopes: Option<Slopes>,
) -> f64 {
    let objectives = scenario.edges.len();
    let table = &mut workspace.edges;
    table.resize_with(objectives, Vec::new);
    for (k, edges) in scenario.edges.iter().enumerate() {
        let (mean, deviation) = (outputs.means[k], outputs.deviations[k]);
        table[k].clear();
        table[k].extend(edges.iter().map(|edge| Edge::new(*edge, mean, deviation)));
    }
    let side = |k: usize, (low, high): (u32, u32)| {
        ((low != UNBOUNDED).then(|| table[k][low as usize]), table[k][high as usize])
    };
    let cells = &mut workspace.cells;
    cells.clear();
    for sides in scenario.sides.chunks_exact(objectives) {
        let logarithms = sides.iter().enumerate().map(|(k, ends)| {
            let (low, high) = side(k, *ends);
            ln_side(low, high)
        });
        cells.push(logarithms.sum());
    }
    let total = ln_sum_exp(cells);
    let scale: f64 = outputs.deviations[..objectives].iter().map(|deviation| deviation.ln()).sum();
    let mut value = total + scale;
    let mut slopes = slopes;
    for k in objectives..outputs.means.len() {
        let z = outputs.means[k] / outputs.deviations[k];
        let (ln, ratio) = ln_cdf(z);
        value += ln;
        if let Some(slopes) = &mut slopes {
            slopes.by_mean[k] = ratio / outputs.deviations[k];
            slopes.by_deviation[k] = -z * ratio / outputs.deviations[k];
        }
    }
    if let Some(slopes) = slopes {
        slopes.by_mean[..objectives].fill(0.0);
        slopes.by_deviation[..objectives].fill(0.0);
        for (sides, ln) in scenario.sides.chunks_exact(objectives).zip(cells.iter()) {
            let share = (ln - total).exp();
            if share < 1e-14 {
                continue;
            }
            for (k, ends) in sides.iter().enumerate() {
                let (low, high) = side(k, *ends);
                let (by_mean, by_deviation) = side_slopes(low, high);
                slopes.by_mean[k] += share * by_mean / outputs.deviations[k];
                slopes.by_deviation[k] += share * by_deviation / outputs.deviations[k];
            }
        }
    }
    value
}

/// ln Σ exp(values), safe where all of them underflow; −∞ for none.
pub fn ln_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return largest;
    }
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// The acquisition function of one step.
#[derive(Debug)]
pub struct Acquisition {
    /// Objectives, then constraints; each with one mean per scenario.
    outputs: Vec<Gp>,
    objectives: usize,
    scenarios: Vec<Scenario>,
}

/// Room for one evaluation of an [`Acquisition`].
#[derive(Debug, Default)]
pub struct AcquisitionScratch {
    outputs: Vec<Scratch>,
    means: Vec<f64>,
    workspace: Workspace,
}

impl Acquisition {
    /// `outputs` are the objectives, then the constraints (feasible at ≥ 0), each with one mean per front in `fronts`.
    pub fn new(outputs: Vec<Gp>, fronts: &[Vec<Vec<f64>>], reference: &[f64]) -> Self {
        let scenarios = fronts.iter().map(|front| Scenario::new(front, reference)).collect();
        Self { outputs, objectives: reference.len(), scenarios }
    }

    /// By what the deviation of an output is multiplied.
    fn doubt(&self, output: usize) -> f64 {
        if output < self.objectives { 1.0 } else { OPTIMISM }
    }

    /// α(x) and, if `gradient` is given, its gradient.
    pub fn value(&self, x: &[f64], gradient: Option<&mut [f64]>, scratch: &mut AcquisitionScratch) -> f64 {
        let (count, scenarios) = (self.outputs.len(), self.scenarios.len());
        scratch.outputs.resize_with(count, Scratch::default);
        scratch.means.resize(count * scenarios, 0.0);
        let mut deviations = vec![0.0; count];
        for (k, gp) in self.outputs.iter().enumerate() {
            let means = &mut scratch.means[k * scenarios..(k + 1) * scenarios];
            deviations[k] = self.doubt(k) * gp.evaluate(x, means, &mut scratch.outputs[k]).sqrt();
        }
        let Some(gradient) = gradient else {
            return self.average(&scratch.means, &deviations, &mut scratch.workspace, None);
        };
        let mut slopes = vec![(0.0, 0.0); count * scenarios];
        let value = self.average(&scratch.means, &deviations, &mut scratch.workspace, Some(&mut slopes));
        gradient.fill(0.0);
        for (k, gp) in self.outputs.iter().enumerate() {
            let own = &slopes[k * scenarios..(k + 1) * scenarios];
            let by_mean: Vec<f64> = own.iter().map(|slope| slope.0).collect();
            let by_deviation: f64 = own.iter().map(|slope| slope.1).sum();
            let by_variance = by_deviation * self.doubt(k).powi(2) / (2.0 * deviations[k]);
            gp.add_gradient(x, &scratch.outputs[k], &by_mean, by_variance, gradient);
        }
        value
    }

    /// α at every row of `queries`.
    pub fn values(&self, queries: &Mat<f64>) -> Vec<f64> {
        let (count, scenarios) = (self.outputs.len(), self.scenarios.len());
        let predictions: Vec<_> = self.outputs.iter().map(|gp| gp.evaluate_many(queries)).collect();
        let mut workspace = Workspace::default();
        let mut means = vec![0.0; count * scenarios];
        let mut deviations = vec![0.0; count];
        (0..queries.nrows())
            .map(|row| {
                for (k, (mean, variance)) in predictions.iter().enumerate() {
                    means[k * scenarios..(k + 1) * scenarios].copy_from_slice(mean.col_as_slice(row));
                    deviations[k] = self.doubt(k) * variance[row].sqrt();
                }
                self.average(&means, &deviations, &mut workspace, None)
            })
            .collect()
    }

    /// ln of the mean over scenarios. `means` and `slopes` (by mean, by deviation) are output-major.
    fn average(
        &self,
        means: &[f64],
        deviations: &[f64],
        workspace: &mut Workspace,
        mut slopes: Option<&mut [(f64, f64)]>,
    ) -> f64 {
        let (count, scenarios) = (deviations.len(), self.scenarios.len());
        let mut own = vec![0.0; count];
        let (mut by_mean, mut by_deviation) = (vec![0.0; count], vec![0.0; count]);
        let mut values = vec![0.0; scenarios];
        for (s, scenario) in self.scenarios.iter().enumerate() {
            (0..count).for_each(|k| own[k] = means[k * scenarios + s]);
            let outputs = Outputs { means: &own, deviations };
            let wanted =
                slopes.is_some().then_some(Slopes { by_mean: &mut by_mean, by_deviation: &mut by_deviation });
            values[s] = scenario_value(scenario, outputs, workspace, wanted);
            if let Some(slopes) = &mut slopes {
                (0..count).for_each(|k| slopes[k * scenarios + s] = (by_mean[k], by_deviation[k]));
            }
        }
        let total = ln_sum_exp(&values);
        if let Some(slopes) = slopes {
            for (s, value) in values.iter().enumerate() {
                let share = (value - total).exp();
                (0..count).for_each(|k| {
                    let slope = &mut slopes[k * scenarios + s];
                    *slope = (slope.0 * share, slope.1 * share);
                });
            }
        }
        total - (scenarios as f64).ln()
    }
}
