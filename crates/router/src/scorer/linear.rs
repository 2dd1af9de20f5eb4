//! The weights of all linear heads. Those of a column lie side by side, so that one pass over a conversation serves all heads.

/// Heads that are summed at once: what the registers of every processor hold.
const LANES: usize = 4;

/// Linear heads over the same columns: words first, then the surface features and the bias.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Linear {
    heads: usize,
    /// Per column: inverse document frequency of a word, 1 of the others.
    idf: Vec<f32>,
    /// `[column][group of LANES heads]`; zeros fill the last group.
    weights: Vec<[f32; LANES]>,
}

impl Linear {
    /// From a row per column, as in the artefact: its inverse document frequency and a weight per head. `None` if the last
    /// row is cut.
    pub(super) fn from_rows(rows: &[f32], heads: usize) -> Option<Self> {
        if !rows.len().is_multiple_of(1 + heads) {
            return None;
        }
        let mut linear = Self { heads, ..Self::default() };
        for row in rows.chunks_exact(1 + heads) {
            linear.idf.push(row[0]);
            for group in row[1..].chunks(LANES) {
                linear.weights.push(std::array::from_fn(|lane| group.get(lane).copied().unwrap_or(0.0)));
            }
        }
        Some(linear)
    }

    /// The rows of [`Self::from_rows`], one after the other.
    pub(super) fn to_rows(&self) -> Vec<f32> {
        let weights = |column: usize| (0..self.heads).map(move |head| self.weight(column, head));
        (0..self.columns()).flat_map(|column| [self.idf[column]].into_iter().chain(weights(column))).collect()
    }

    pub(super) fn columns(&self) -> usize {
        self.idf.len()
    }

    fn groups(&self) -> usize {
        self.heads.div_ceil(LANES)
    }

    pub(super) fn idf(&self, column: usize) -> f32 {
        self.idf[column]
    }

    pub(super) fn weight(&self, column: usize, head: usize) -> f32 {
        self.weights[column * self.groups() + head / LANES][head % LANES]
    }

    /// The outputs of all heads into `sums`: of words (column, value) times `scale`, and of values of the last columns.
    pub(super) fn outputs(&self, words: &[(u32, f32)], scale: f32, last: &[f32], sums: &mut Vec<f32>) {
        let groups = self.groups();
        let first = self.columns() - last.len();
        sums.clear();
        for group in 0..groups {
            let add = |sums: [f32; LANES], column: usize, value: f32| -> [f32; LANES] {
                let weights = self.weights[column * groups + group];
                std::array::from_fn(|lane| sums[lane] + weights[lane] * value)
            };
            let of_words =
                words.iter().fold([0.0; LANES], |sums, (column, value)| add(sums, *column as usize, *value));
            let last = (first..).zip(last);
            sums.extend(
                last.fold(of_words.map(|sum| sum * scale), |sums, (column, x)| add(sums, column, *x)),
            );
        }
        sums.truncate(self.heads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_sums_its_own_weights() {
        for heads in [1, 2, 4, 7] {
            // Columns 0 to 4, weights that tell column and head.
            let row = |column: usize| (0..=heads).map(move |at| (10 * column + at) as f32);
            let rows: Vec<f32> = (0..5).flat_map(row).collect();
            let linear = Linear::from_rows(&rows, heads).unwrap();
            assert_eq!(linear.to_rows(), rows);
            let mut sums = Vec::new();
            linear.outputs(&[(0, 1.0), (2, 3.0)], 0.5, &[2.0, -1.0], &mut sums);
            let want = |head: usize| {
                let [a, b, c, d] = [0, 2, 3, 4].map(|column| linear.weight(column, head));
                0.5 * (a + 3.0 * b) + 2.0 * c - d
            };
            assert_eq!(sums, (0..heads).map(want).collect::<Vec<f32>>());
            assert_eq!(linear.weight(3, heads - 1), (30 + heads) as f32);
            assert_eq!(Linear::from_rows(&rows[1..], heads), None);
        }
    }
}
