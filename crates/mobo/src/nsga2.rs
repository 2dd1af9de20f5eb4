//! NSGA-II, a baseline that needs no model (Deb, Pratap, Agarwal, Meyarivan, "A fast and elitist multiobjective genetic algorithm:
//! NSGA-II", IEEE Trans. Evolutionary Computation 6, 2002), on mixed spaces.
//!
//! Simulated binary crossover (probability 0.9, η = 15), polynomial mutation (probability 1/d, η = 20), constrained domination.
//! Coordinates are crossed as numbers and then moved to their nearest allowed value; kinds are taken from either parent.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::design::{design, towards};
use crate::error::Error;
use crate::pareto::dominates;
use crate::space::{Coordinate, Point, Space};
use crate::study::Outcome;

const CROSSOVER: f64 = 0.9;
const CROSSOVER_INDEX: f64 = 15.0;
const MUTATION_INDEX: f64 = 20.0;

struct Individual {
    x: Vec<f64>,
    objectives: Vec<f64>,
    /// Sum of the broken constraints; infinite for an evaluation that failed.
    lacking: f64,
    rank: usize,
    crowding: f64,
}

/// Evaluates `evaluations` points in generations of `population` (even, at least four).
///
/// `evaluate` is given a generation and returns one outcome per point; `None` is a failed evaluation.
///
/// # Errors
/// If no point meets the space's linear constraints.
pub fn nsga2(
    space: &Space,
    population: usize,
    evaluations: usize,
    seed: u64,
    mut evaluate: impl FnMut(&[Point]) -> Vec<Option<Outcome>>,
) -> Result<(), Error> {
    let population = population.max(4).next_multiple_of(2);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut measure = |xs: Vec<Vec<f64>>| -> Vec<Individual> {
        let points: Vec<Point> = xs.iter().map(|x| space.decode(x)).collect();
        let outcomes = evaluate(&points);
        xs.into_iter().zip(outcomes).map(|(x, outcome)| individual(x, outcome)).collect()
    };
    let mut parents = measure(design(space, 0, population.min(evaluations), seed)?);
    let mut spent = parents.len();
    rank(&mut parents);
    while spent < evaluations {
        let mut children = Vec::new();
        while children.len() < population {
            let (a, b) = (tournament(&parents, &mut rng), tournament(&parents, &mut rng));
            let (mut one, mut two) = crossed(space, &a.x, &b.x, &mut rng);
            for (child, parent) in [(&mut one, a), (&mut two, b)] {
                mutate(space, child, &mut rng);
                space.snap(child);
                *child = towards(space, &parent.x, child);
            }
            children.extend([one, two]);
        }
        children.truncate(evaluations - spent);
        spent += children.len();
        parents.extend(measure(children));
        rank(&mut parents);
        parents.sort_by(|a, b| a.rank.cmp(&b.rank).then(b.crowding.total_cmp(&a.crowding)));
        parents.truncate(population);
    }
    Ok(())
}

fn individual(x: Vec<f64>, outcome: Option<Outcome>) -> Individual {
    let (objectives, lacking) = outcome.map_or((Vec::new(), f64::INFINITY), |outcome| {
        let lacking = outcome.constraints.iter().map(|slack| (-slack).max(0.0)).sum();
        (outcome.objectives, lacking)
    });
    Individual { x, objectives, lacking, rank: 0, crowding: 0.0 }
}

/// Less broken wins; among equals, domination.
fn beats(a: &Individual, b: &Individual) -> bool {
    a.lacking < b.lacking || (a.lacking == b.lacking && dominates(&a.objectives, &b.objectives))
}

/// Peels off fronts, and measures crowding within each.
fn rank(all: &mut [Individual]) {
    let mut left: Vec<usize> = (0..all.len()).collect();
    let mut level = 0;
    while !left.is_empty() {
        let front: Vec<usize> =
            left.iter().copied().filter(|a| !left.iter().any(|b| beats(&all[*b], &all[*a]))).collect();
        for at in &front {
            (all[*at].rank, all[*at].crowding) = (level, 0.0);
        }
        crowd(all, &front);
        left.retain(|at| !front.contains(at));
        level += 1;
    }
}

fn crowd(all: &mut [Individual], front: &[usize]) {
    let objectives = front.iter().map(|at| all[*at].objectives.len()).min().unwrap_or(0);
    for k in 0..objectives {
        let mut order = front.to_vec();
        order.sort_by(|a, b| all[*a].objectives[k].total_cmp(&all[*b].objectives[k]));
        let (Some(&first), Some(&last)) = (order.first(), order.last()) else { continue };
        let range = all[last].objectives[k] - all[first].objectives[k];
        all[first].crowding = f64::INFINITY;
        all[last].crowding = f64::INFINITY;
        for three in order.windows(3) {
            let gap = all[three[2]].objectives[k] - all[three[0]].objectives[k];
            all[three[1]].crowding += if range > 0.0 { gap / range } else { 0.0 };
        }
    }
}

fn tournament<'a>(all: &'a [Individual], rng: &mut ChaCha8Rng) -> &'a Individual {
    let (a, b) = (&all[rng.random_range(0..all.len())], &all[rng.random_range(0..all.len())]);
    let better = a.rank.cmp(&b.rank).then(b.crowding.total_cmp(&a.crowding));
    if better.is_le() { a } else { b }
}

fn crossed(space: &Space, a: &[f64], b: &[f64], rng: &mut ChaCha8Rng) -> (Vec<f64>, Vec<f64>) {
    let (mut one, mut two) = (a.to_vec(), b.to_vec());
    if rng.random_range(0.0..1.0) < CROSSOVER {
        for (at, coordinate) in space.coordinates().iter().enumerate() {
            if rng.random() {
                continue;
            }
            if matches!(coordinate, Coordinate::Kind(_)) {
                (one[at], two[at]) = (b[at], a[at]);
                continue;
            }
            let u: f64 = rng.random_range(0.0..1.0);
            let spread = if u <= 0.5 { 2.0 * u } else { 1.0 / (2.0 * (1.0 - u)) };
            let beta = spread.powf(1.0 / (CROSSOVER_INDEX + 1.0));
            one[at] = 0.5 * ((1.0 + beta) * a[at] + (1.0 - beta) * b[at]);
            two[at] = 0.5 * ((1.0 - beta) * a[at] + (1.0 + beta) * b[at]);
        }
    }
    (one, two)
}

fn mutate(space: &Space, x: &mut [f64], rng: &mut ChaCha8Rng) {
    let share = 1.0 / x.len() as f64;
    for (at, coordinate) in space.coordinates().iter().enumerate() {
        if rng.random_range(0.0..1.0) >= share {
            continue;
        }
        if let Coordinate::Kind(n) = coordinate {
            x[at] = rng.random_range(0..*n) as f64;
            continue;
        }
        let u: f64 = rng.random_range(0.0..1.0);
        let power = 1.0 / (MUTATION_INDEX + 1.0);
        let step = if u < 0.5 { (2.0 * u).powf(power) - 1.0 } else { 1.0 - (2.0 * (1.0 - u)).powf(power) };
        let unit = match coordinate {
            // A step that rounding would undo is one level.
            Coordinate::Level(n) => 1.0 / (n - 1).max(1) as f64,
            _ => 0.0,
        };
        x[at] += if step.abs() < unit { unit.copysign(step) } else { step };
    }
}
