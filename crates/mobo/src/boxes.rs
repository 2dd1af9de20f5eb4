//! The part of objective space that no point of a front dominates, cut into disjoint boxes.
//!
//! A sweep along the last objective: between two levels of it, the boxes are those of the points below in one objective fewer; a box
//! that stays from level to level is one tall box. With two and three objectives their number grows linearly in the front.
//!
//! The use of such boxes for the expected hypervolume improvement is that of Yang, Emmerich, Deutz, Bäck, "Efficient computation of
//! expected hypervolume improvement using box decomposition algorithms", J. Global Optimization 75, 2019.

use std::collections::BTreeMap;

/// A box: an interval `(low, high)` per objective; `low` may be −∞.
pub type Cell = Vec<(f64, f64)>;

/// Disjoint boxes that cover all `y < reference` which no point of `front` weakly dominates.
pub fn non_dominated_cells(front: &[Vec<f64>], reference: &[f64]) -> Vec<Cell> {
    let inside: Vec<&[f64]> = front
        .iter()
        .map(Vec::as_slice)
        .filter(|point| point.iter().zip(reference).all(|(y, limit)| y < limit))
        .collect();
    cells(&inside, reference)
}

fn cells(points: &[&[f64]], reference: &[f64]) -> Vec<Cell> {
    let Some((limit, below)) = reference.split_last() else { return Vec::new() };
    let last = below.len();
    let mut order = points.to_vec();
    order.sort_by(|a, b| a[last].total_cmp(&b[last]));
    match below {
        [] => return vec![vec![(f64::NEG_INFINITY, order.first().map_or(*limit, |point| point[0]))]],
        [width] => return strips(&order, *width, *limit),
        _ => {}
    }
    let mut open: BTreeMap<Vec<(u64, u64)>, (Cell, f64)> = BTreeMap::new();
    let mut closed = Vec::new();
    let mut level = f64::NEG_INFINITY;
    let mut count = 0;
    loop {
        let mut still = BTreeMap::new();
        for cell in cells(&order[..count], below) {
            let key: Vec<_> = cell.iter().map(|(low, high)| (low.to_bits(), high.to_bits())).collect();
            let entry = open.remove(&key).unwrap_or((cell, level));
            still.insert(key, entry);
        }
        closed.extend(open.into_values().map(|(cell, from)| raised(cell, from, level)));
        open = still;
        let Some(next) = order.get(count) else { break };
        level = next[last];
        count += order[count..].iter().take_while(|point| point[last] == level).count();
    }
    closed.extend(open.into_values().map(|(cell, from)| raised(cell, from, *limit)));
    closed
}

fn raised(mut cell: Cell, low: f64, high: f64) -> Cell {
    cell.push((low, high));
    cell
}

/// Two objectives: one strip of the first objective per step of the staircase; `order` ascends in the second.
fn strips(order: &[&[f64]], width: f64, height: f64) -> Vec<Cell> {
    let mut out = Vec::with_capacity(order.len() + 1);
    let mut right = width;
    for point in order.iter().filter(|point| point[0] < width) {
        // Ascending in the second objective, a point matters if it is further left than all before.
        if point[0] < right {
            out.push((point[0], right, point[1]));
            right = point[0];
        }
    }
    let steps = out.into_iter().map(|(left, right, top)| vec![(left, right), (f64::NEG_INFINITY, top)]);
    let mut cells: Vec<Cell> = steps.collect();
    cells.push(vec![(f64::NEG_INFINITY, right), (f64::NEG_INFINITY, height)]);
    cells
}
