//! What becomes known of answers' quality: predicted scores as they are decided on, and clients' own scores afterwards.
//! Whoever watches for drift listens here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::certificate::Watched;
use crate::metrics::{Histogram, SCORES, describe, label};
use crate::openai::Failure;
use crate::recent::{Recent, hash};
use crate::routes::Choice;

/// Requests that can still be scored: one generation of [`Recent`].
const GENERATION: usize = 1 << 14;

/// A client's score of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Feedback {
    pub(crate) request_id: String,
    pub(crate) model: Arc<str>,
    /// What the router had expected, if it was asked.
    pub(crate) predicted: Option<f32>,
    pub(crate) score: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedbackBody {
    request_id: String,
    score: f64,
}

/// A request that can be scored.
#[derive(Debug, Clone)]
struct Answered {
    model: Arc<str>,
    predicted: Option<f32>,
    /// Number of the key that asked.
    client: u64,
    /// Whose promise the answer is part of; until its first score, since one answer is one sample.
    certificate: Option<Weak<Watched>>,
}

/// Histograms of one model's scores.
#[derive(Debug)]
struct Scores {
    predicted: Histogram,
    given: Histogram,
}

impl Default for Scores {
    fn default() -> Self {
        Self { predicted: Histogram::new(&SCORES), given: Histogram::new(&SCORES) }
    }
}

/// Scores by model, and the requests that can be scored.
#[derive(Debug)]
pub(crate) struct Quality {
    recent: Mutex<Recent<Answered>>,
    scores: Mutex<BTreeMap<Arc<str>, Scores>>,
}

impl Default for Quality {
    fn default() -> Self {
        Self { recent: Mutex::new(Recent::new(GENERATION)), scores: Mutex::default() }
    }
}

impl Quality {
    /// A request of `client` goes to `model`, by `choice`.
    pub(crate) fn decided(&self, request_id: &[u8], model: &Arc<str>, choice: &Choice, client: u64) {
        if let Some(predicted) = choice.score {
            let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
            scores.entry(Arc::clone(model)).or_default().predicted.observe(f64::from(predicted));
        }
        let (predicted, certificate) = (choice.score, choice.certificate.clone());
        let answered = Answered { model: Arc::clone(model), predicted, client, certificate };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.insert(hash(request_id), answered);
    }

    /// A client scores an answer: `{"request_id": "…", "score": 0..1}`.
    pub(crate) fn feedback(&self, body: &[u8], client: u64) -> Result<Feedback, Failure> {
        let read: FeedbackBody = serde_json::from_slice(body).map_err(|error| {
            let message = format!("the body is not {{\"request_id\": …, \"score\": 0..1}}: {error}");
            Failure::bad_request(message, None)
        })?;
        if !(0.0..=1.0).contains(&read.score) {
            let message = format!("a score of {} is not between 0 and 1", read.score);
            return Err(Failure::bad_request(message, Some("score")));
        }
        let answered = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let answered = recent.get_mut(hash(read.request_id.as_bytes()));
            answered.filter(|answered| answered.client == client).map(|answered| {
                let certificate = answered.certificate.take();
                Answered { certificate, ..answered.clone() }
            })
        };
        let Some(answered) = answered else { return Err(Failure::unknown_request(&read.request_id)) };
        if let Some(certificate) = answered.certificate.as_ref().and_then(Weak::upgrade) {
            certificate.feedback(&answered.model, read.score);
        }
        let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        scores.entry(Arc::clone(&answered.model)).or_default().given.observe(read.score);
        let Answered { model, predicted, .. } = answered;
        Ok(Feedback { request_id: read.request_id, model, predicted, score: read.score })
    }

    /// A model's scores as JSON; `null` if there are none yet.
    pub(crate) fn state(&self, model: &str) -> Value {
        let scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        let of =
            |scores: &Scores| json!({"predicted": scores.predicted.state(), "given": scores.given.state()});
        scores.get(model).map_or(Value::Null, of)
    }

    /// Appends the metrics.
    pub(crate) fn write(&self, out: &mut String) {
        let scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        let predicted = "boute_router_score";
        describe(out, predicted, "histogram", "Score the router expected of the model it chose.");
        for (model, scores) in &*scores {
            scores.predicted.write(out, predicted, &format!("model=\"{}\"", label(model)));
        }
        let given = "boute_feedback_score";
        describe(out, given, "histogram", "Score that clients gave to answers.");
        for (model, scores) in &*scores {
            scores.given.write(out, given, &format!("model=\"{}\"", label(model)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(score: Option<f32>) -> Choice {
        Choice { score, ..Choice::of(0, "policy") }
    }

    #[test]
    fn who_asked_may_score() {
        let quality = Quality::default();
        let model: Arc<str> = "m".into();
        quality.decided(b"a", &model, &choice(Some(0.75)), 1);
        let score = |body: &str, client| {
            quality.feedback(body.as_bytes(), client).map_err(|failure| failure.status.as_u16())
        };
        let feedback = score(r#"{"request_id":"a","score":0.5}"#, 1).unwrap();
        assert_eq!((&*feedback.model, feedback.predicted, feedback.score), ("m", Some(0.75), 0.5));
        assert_eq!(score(r#"{"request_id":"a","score":0.5}"#, 2), Err(404));
        assert_eq!(score(r#"{"request_id":"b","score":0.5}"#, 1), Err(404));
        for bad in ["{", r#"{"request_id":"a","score":1.5}"#, r#"{"request_id":"a"}"#] {
            assert_eq!(score(bad, 1), Err(400), "{bad}");
        }
        let mut out = String::new();
        quality.write(&mut out);
        assert!(out.contains("boute_feedback_score_sum{model=\"m\"} 0.5\n"), "{out}");
    }
}
