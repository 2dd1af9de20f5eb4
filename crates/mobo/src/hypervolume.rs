//! The volume that a set of points dominates, up to a reference point; objectives are minimised.

use crate::pareto::non_dominated;

/// The exact hypervolume of `points` under `reference`, for any number of objectives (practical to five).
///
/// Points that are not strictly below the reference in every objective count nothing.
///
/// Two and three objectives: a sweep along the last one. More: While, Bradstreet, Barone, "A fast way of calculating exact
/// hypervolumes", IEEE Trans. Evolutionary Computation 16, 2012 (WFG).
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let inside: Vec<Vec<f64>> = points
        .iter()
        .filter(|point| point.iter().zip(reference).all(|(y, limit)| y < limit))
        .cloned()
        .collect();
    volume(front_of(&inside), reference)
}

fn front_of(points: &[Vec<f64>]) -> Vec<Vec<f64>> {
    non_dominated(points).into_iter().map(|at| points[at].clone()).collect()
}

fn volume(mut front: Vec<Vec<f64>>, reference: &[f64]) -> f64 {
    let Some((limit, below)) = reference.split_last() else { return 0.0 };
    let last = below.len();
    front.sort_by(|a, b| a[last].total_cmp(&b[last]));
    match last {
        0 => front.first().map_or(0.0, |point| limit - point[0]),
        1 => {
            let mut right = below[0];
            let mut area = 0.0;
            for point in &front {
                if point[0] < right {
                    area += (right - point[0]) * (limit - point[1]);
                    right = point[0];
                }
            }
            area
        }
        2 => (0..front.len())
            .map(|at| {
                let top = front.get(at + 1).map_or(*limit, |next| next[2]);
                if top > front[at][2] {
                    (top - front[at][2]) * volume(flattened(&front[..=at]), below)
                } else {
                    0.0
                }
            })
            .sum(),
        _ => (0..front.len())
            .map(|at| {
                (limit - front[at][last]) * exclusive(&front[at][..last], &flattened(&front[..at]), below)
            })
            .sum(),
    }
}

fn flattened(points: &[Vec<f64>]) -> Vec<Vec<f64>> {
    points.iter().map(|point| point[..point.len() - 1].to_vec()).collect()
}

/// What `point` dominates and `others` do not. Points come in ascending order of the last objective, so that what the earlier ones
/// dominate of the next begins at its own level, and one objective fewer is enough.
fn exclusive(point: &[f64], others: &[Vec<f64>], reference: &[f64]) -> f64 {
    let own: f64 = point.iter().zip(reference).map(|(y, limit)| limit - y).product();
    let limited: Vec<Vec<f64>> =
        others.iter().map(|other| other.iter().zip(point).map(|(a, b)| a.max(*b)).collect()).collect();
    own - volume(front_of(&limited), reference)
}
