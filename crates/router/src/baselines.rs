//! What other routers do, on the same features: for comparison, never for serving.

use std::collections::BTreeMap;

use boute_spec::workload::Query;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::features::{SURFACE, Scratch};
use crate::logistic::{self, Row};
use crate::scorer::Scorer;

/// Cost C of the regression, as for our own heads.
const COST: f64 = 1.0;

/// Expected scores of `queries` per model (row-major): means over the `nearest` training queries by cosine similarity of
/// their words, as the nearest-neighbour routers of RouterBench and vLLM's semantic router have it.
pub fn nearest(scorer: &Scorer, train: &[&Query], queries: &[&Query], nearest: usize) -> Vec<f32> {
    let rows = |of: &[&Query]| words(scorer, of);
    let mut postings: BTreeMap<u32, Vec<(u32, f32)>> = BTreeMap::new();
    for (at, row) in (0..).zip(rows(train)) {
        for (column, x) in row {
            postings.entry(column).or_default().push((at, x));
        }
    }
    let mut similarity = vec![0.0_f32; train.len()];
    let mut scores = Vec::new();
    for row in rows(queries) {
        similarity.fill(0.0);
        for (column, x) in row {
            for (at, y) in postings.get(&column).into_iter().flatten() {
                similarity[*at as usize] += x * y;
            }
        }
        let mut order: Vec<usize> = (0..train.len()).collect();
        let nearest = nearest.min(train.len());
        let closer = |a: &usize, b: &usize| similarity[*b].total_cmp(&similarity[*a]).then(a.cmp(b));
        order.select_nth_unstable_by(nearest - 1, closer);
        scores.extend((0..scorer.models().len()).map(|model| {
            order[..nearest].iter().map(|at| train[*at].scores[model]).sum::<f32>() / nearest as f32
        }));
    }
    scores
}

/// The log odds that model `strong` beats model `weak` (indices) on each query, learned from training queries on which
/// one of them does, ties left out: the loss of RouteLLM's matrix factorisation (Ong et al., 2024, section 4), which for
/// two models is linear in the features of the query.
pub fn pairwise(
    scorer: &Scorer,
    train: &[&Query],
    queries: &[&Query],
    (weak, strong): (usize, usize),
    seed: u64,
) -> Vec<f32> {
    let decided: Vec<&Query> =
        train.iter().copied().filter(|query| query.scores[weak] != query.scores[strong]).collect();
    let rows = rows(scorer, &decided);
    let targets: Vec<f32> =
        decided.iter().map(|query| f32::from(u8::from(query.scores[strong] > query.scores[weak]))).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let weights = logistic::fit(&rows.iter().collect::<Vec<_>>(), &targets, scorer.columns(), COST, &mut rng);
    let output = |row: &Row| row.iter().map(|&(column, x)| weights[column as usize] * x).sum();
    self::rows(scorer, queries).iter().map(output).collect()
}

fn rows(scorer: &Scorer, queries: &[&Query]) -> Vec<Row> {
    let mut scratch = Scratch::default();
    queries.iter().map(|query| scorer.row(&[&query.prompt], &mut scratch)).collect()
}

/// The rows without the surface and the bias.
fn words(scorer: &Scorer, queries: &[&Query]) -> Vec<Row> {
    let words = scorer.columns() - SURFACE - 1;
    let mut rows = rows(scorer, queries);
    for row in &mut rows {
        row.retain(|(column, _)| (*column as usize) < words);
    }
    rows
}
