//! Queries with predicted and actual scores: what policies are chosen on and judged by.

use boute_spec::workload::Query;

/// Queries × models; tables are row-major, `[query][model]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredQueries {
    /// Model ids.
    pub models: Vec<String>,
    /// Predicted scores.
    pub predicted: Vec<f32>,
    /// Actual scores.
    pub actual: Vec<f32>,
    /// Answer tokens; 0 where not recorded.
    pub output_tokens: Vec<u32>,
    /// Prompt tokens per query; a quarter of the bytes where not counted.
    pub prompt_tokens: Vec<u32>,
    /// Share of each query that the scorer's training had not seen.
    pub novelty: Vec<f32>,
    /// Answer tokens that are expected (median); 0 where nothing is. A table, or empty.
    pub expected_tokens: Vec<f32>,
}

impl ScoredQueries {
    /// No queries yet.
    pub fn new(models: Vec<String>) -> Self {
        Self {
            models,
            predicted: Vec::new(),
            actual: Vec::new(),
            output_tokens: Vec::new(),
            prompt_tokens: Vec::new(),
            novelty: Vec::new(),
            expected_tokens: Vec::new(),
        }
    }

    /// Adds a query whose own tables are in the order of `models`, with its predicted scores and its novelty.
    pub fn push(&mut self, query: &Query, predicted: impl Iterator<Item = f32>, novelty: f32) {
        self.novelty.push(novelty);
        self.predicted.extend(predicted);
        self.actual.extend(&query.scores);
        self.output_tokens.extend(&query.output_tokens);
        let estimate = || u32::try_from(query.prompt.len() / 4).unwrap_or(u32::MAX);
        self.prompt_tokens.push(query.prompt_tokens.unwrap_or_else(estimate).max(1));
    }

    /// Adds the queries of another, of the same models.
    pub fn append(&mut self, other: &Self) {
        self.predicted.extend(&other.predicted);
        self.actual.extend(&other.actual);
        self.output_tokens.extend(&other.output_tokens);
        self.prompt_tokens.extend(&other.prompt_tokens);
        self.novelty.extend(&other.novelty);
        self.expected_tokens.extend(&other.expected_tokens);
    }

    /// The queries (indices) that `keep` keeps.
    #[must_use]
    pub fn only(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let models = self.models.len();
        let mut left = Self::new(self.models.clone());
        for query in (0..self.len()).filter(|query| keep(*query)) {
            let row = query * models..(query + 1) * models;
            left.predicted.extend(&self.predicted[row.clone()]);
            left.actual.extend(&self.actual[row.clone()]);
            left.output_tokens.extend(&self.output_tokens[row.clone()]);
            left.expected_tokens.extend(self.expected_tokens.get(row).unwrap_or_default());
            left.prompt_tokens.push(self.prompt_tokens[query]);
            left.novelty.extend(self.novelty.get(query));
        }
        left
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.prompt_tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.prompt_tokens.is_empty()
    }

    /// Predicted scores of one query.
    pub fn predicted(&self, query: usize) -> &[f32] {
        let models = self.models.len();
        &self.predicted[query * models..(query + 1) * models]
    }

    /// Actual score of one model on one query.
    pub fn actual(&self, query: usize, model: usize) -> f64 {
        f64::from(self.actual[query * self.models.len() + model])
    }

    /// Answer tokens of one model on one query; 0 where not recorded.
    pub fn output_tokens(&self, query: usize, model: usize) -> u32 {
        self.output_tokens[query * self.models.len() + model]
    }

    /// Answer tokens expected of one model on one query; 0 where nothing is.
    pub fn expected_tokens(&self, query: usize, model: usize) -> f32 {
        self.expected_tokens.get(query * self.models.len() + model).copied().unwrap_or_default()
    }

    /// Mean answer length of a model where recorded; `None` if nowhere.
    pub fn mean_output_tokens(&self, model: usize) -> Option<f64> {
        let lengths =
            (0..self.len()).map(|query| self.output_tokens(query, model)).filter(|tokens| *tokens > 0);
        let (sum, count) =
            lengths.fold((0.0, 0_u32), |(sum, count), tokens| (sum + f64::from(tokens), count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }
}
