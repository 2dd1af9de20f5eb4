//! Gradient-boosted oblivious trees for several targets at once, on binned inputs.
//!
//! Every node of a level asks the same question, so a tree is a table that `DEPTH` answers index: no branches, and little to
//! overfit with (Prokhorenkova et al., "CatBoost: unbiased boosting with categorical features", NeurIPS 2018). A leaf holds a
//! Newton step per target, `−η·G/(H + λ)` of the logistic loss; the question of a level is the one with the largest
//! `Σ_leaf Σ_target G²/(H + λ)` (Chen, Guestrin, "XGBoost", KDD 2016, eq. 7).

use rayon::prelude::*;

use crate::logistic::sigmoid;

const TREES: usize = 60;
const DEPTH: usize = 4;
const LEAVES: usize = 1 << DEPTH;
const RATE: f64 = 0.08;
/// λ, in units of the second derivative: a leaf of some 200 even chances is shrunk by half.
const RIDGE: f64 = 50.0;
const BINS: usize = 32;

/// Rows of inputs, row-major.
pub(crate) struct Table {
    pub(crate) values: Vec<f32>,
    pub(crate) columns: usize,
}

impl Table {
    fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

/// Fitted trees; they add to log odds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Trees {
    pub(crate) targets: usize,
    /// `DEPTH` questions per tree: is input `column` above `threshold`?
    pub(crate) questions: Vec<(u32, f32)>,
    /// `[tree][leaf][target]`.
    pub(crate) leaves: Vec<f32>,
}

impl Trees {
    /// Fits to `targets` (row-major, in [0, 1]) from the log odds `base`.
    pub(crate) fn fit(inputs: &Table, base: &[f64], targets: &[f32]) -> Self {
        let rows = inputs.rows();
        let outputs = targets.len() / rows;
        let edges: Vec<Vec<f32>> = (0..inputs.columns).map(|column| edges(inputs, column)).collect();
        let bins: Vec<Vec<u8>> = edges
            .iter()
            .enumerate()
            .map(|(column, edges)| {
                let bin = |row| edges.partition_point(|edge| *edge < inputs.row(row)[column]) as u8;
                (0..rows).map(bin).collect()
            })
            .collect();
        let mut odds = base.to_vec();
        let mut fitted = Self { targets: outputs, ..Self::default() };
        for _ in 0..TREES {
            let slopes: Vec<[f32; 2]> = odds
                .iter()
                .zip(targets)
                .map(|(odds, target)| {
                    let p = sigmoid(*odds);
                    [(p - f64::from(*target)) as f32, (p * (1.0 - p)) as f32]
                })
                .collect();
            fitted.grow(&bins, &edges, &slopes, &mut odds);
        }
        fitted
    }

    fn grow(&mut self, bins: &[Vec<u8>], edges: &[Vec<f32>], slopes: &[[f32; 2]], odds: &mut [f64]) {
        let mut leaf_of = vec![0_usize; bins[0].len()];
        for level in 0..DEPTH {
            let best = (0..bins.len())
                .into_par_iter()
                .map(|column| {
                    let histogram = histogram(&bins[column], &leaf_of, slopes, self.targets, 1 << level);
                    let (gain, bin) = best_bin(&histogram, self.targets, edges[column].len());
                    (gain, column, bin)
                })
                .reduce_with(|a, b| if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a });
            let (_, column, bin) = best.expect("there are inputs");
            // A constant input has no edge; nothing is above infinity.
            self.questions.push((column as u32, edges[column].get(bin).copied().unwrap_or(f32::INFINITY)));
            for (leaf, value) in leaf_of.iter_mut().zip(&bins[column]) {
                *leaf |= usize::from(usize::from(*value) > bin) << level;
            }
        }
        let mut sums = vec![[0.0; 2]; LEAVES * self.targets];
        for (leaf, slopes) in leaf_of.iter().zip(slopes.chunks_exact(self.targets)) {
            for (sum, slope) in sums[leaf * self.targets..].iter_mut().zip(slopes) {
                sum[0] += f64::from(slope[0]);
                sum[1] += f64::from(slope[1]);
            }
        }
        let steps: Vec<f32> = sums.iter().map(|[g, h]| (-RATE * g / (h + RIDGE)) as f32).collect();
        for (leaf, odds) in leaf_of.iter().zip(odds.chunks_exact_mut(self.targets)) {
            for (odds, step) in odds.iter_mut().zip(&steps[leaf * self.targets..]) {
                *odds += f64::from(*step);
            }
        }
        self.leaves.extend(steps);
    }

    /// Adds what the trees say of `inputs` to `odds`, one per target.
    pub(crate) fn add(&self, inputs: &[f32], odds: &mut [f32]) {
        let trees = self.questions.chunks_exact(DEPTH).zip(self.leaves.chunks_exact(LEAVES * self.targets));
        for (questions, leaves) in trees {
            let answer = |(level, (column, threshold)): (usize, &(u32, f32))| {
                usize::from(inputs[*column as usize] > *threshold) << level
            };
            let leaf: usize = questions.iter().enumerate().map(answer).sum();
            for (odds, step) in odds.iter_mut().zip(&leaves[leaf * self.targets..]) {
                *odds += step;
            }
        }
    }

    /// Whether the tables fit together and ask only for inputs that exist.
    pub(crate) fn is_sound(&self, targets: usize, columns: usize) -> bool {
        self.targets == targets
            && self.questions.len().is_multiple_of(DEPTH)
            && self.leaves.len() == self.questions.len() / DEPTH * LEAVES * targets
            && self.leaves.iter().all(|leaf| leaf.is_finite())
            && self.questions.iter().all(|(column, _)| (*column as usize) < columns)
    }
}

/// Up to `BINS − 1` quantiles of a column, without repetition; a value above the last edge is in the last bin.
fn edges(inputs: &Table, column: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..inputs.rows()).map(|row| inputs.row(row)[column]).collect();
    values.sort_unstable_by(f32::total_cmp);
    let mut edges: Vec<f32> = (1..BINS).map(|bin| values[bin * (values.len() - 1) / BINS]).collect();
    edges.dedup();
    edges.retain(|edge| *edge < values[values.len() - 1]);
    edges
}

/// Sums of both derivatives, `[leaf][bin][target]`.
fn histogram(
    bins: &[u8],
    leaf_of: &[usize],
    slopes: &[[f32; 2]],
    targets: usize,
    leaves: usize,
) -> Vec<[f32; 2]> {
    let mut sums = vec![[0.0; 2]; leaves * BINS * targets];
    for ((bin, leaf), slopes) in bins.iter().zip(leaf_of).zip(slopes.chunks_exact(targets)) {
        let at = (leaf * BINS + usize::from(*bin)) * targets;
        for (sum, slope) in sums[at..at + targets].iter_mut().zip(slopes) {
            sum[0] += slope[0];
            sum[1] += slope[1];
        }
    }
    sums
}

/// The edge that separates best, summed over leaves and targets, and its gain.
fn best_bin(histogram: &[[f32; 2]], targets: usize, edges: usize) -> (f64, usize) {
    let mut gains = vec![0.0; edges.max(1)];
    for leaf in histogram.chunks_exact(BINS * targets) {
        for target in 0..targets {
            let at = |bin: usize| leaf[bin * targets + target].map(f64::from);
            let [all_g, all_h] = (0..BINS).map(at).fold([0.0; 2], |sum, x| [sum[0] + x[0], sum[1] + x[1]]);
            let (mut g, mut h) = (0.0, 0.0);
            for (bin, gain) in gains.iter_mut().enumerate().take(edges) {
                let [more_g, more_h] = at(bin);
                g += more_g;
                h += more_h;
                let (rest_g, rest_h) = (all_g - g, all_h - h);
                *gain += g * g / (h + RIDGE) + rest_g * rest_g / (rest_h + RIDGE);
            }
        }
    }
    let best = (0..gains.len()).max_by(|a, b| gains[*a].total_cmp(&gains[*b]).then(b.cmp(a)));
    best.map_or((0.0, 0), |bin| (gains[bin], bin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactions_are_learned() {
        // Exclusive or: no linear head can learn it.
        let corner = |row: usize| [(row % 2) as f32, (row / 2 % 2) as f32];
        let inputs = Table { values: (0..4000).flat_map(corner).collect(), columns: 2 };
        let target = |row: usize| if corner(row)[0] == corner(row)[1] { 0.9 } else { 0.2 };
        let targets: Vec<f32> = (0..4000).map(target).collect();
        let trees = Trees::fit(&inputs, &vec![0.0; 4000], &targets);
        for row in 0..4 {
            let mut odds = [0.0];
            trees.add(inputs.row(row), &mut odds);
            assert!((sigmoid(f64::from(odds[0])) - f64::from(target(row))).abs() < 0.05, "{row}: {odds:?}");
        }
        assert!(trees.is_sound(1, 2) && !trees.is_sound(1, 1));
    }

    #[test]
    fn constant_inputs_ask_nothing() {
        let inputs = Table { values: vec![1.0; 300], columns: 1 };
        let trees = Trees::fit(&inputs, &vec![0.0; 300], &vec![1.0; 300]);
        let (mut low, mut high) = ([0.0], [0.0]);
        trees.add(&[-5.0], &mut low);
        trees.add(&[5.0], &mut high);
        assert_eq!(low, high);
    }
}
