//! Cascades: an answer of the plan's smaller model that is not streamed is looked at before it is given, and the query is
//! asked again from the better one where that is worth it (`router::cascade`), at most as often as the plan has room for.
//! Whatever becomes of the second answer, the first is in hand.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use boute_router::cascade::Answer;
use bytes::BytesMut;
use serde::Serialize;
use tokio::time::timeout;

use crate::attempt::is_event_stream;
use crate::forward::{Found, Ready};
use crate::http::{LARGEST_BODY, Response};
use crate::openai::Failure;
use crate::replica::Fault;
use crate::routes::{Choice, Routes};
use crate::serve::Inner;
use crate::sse::{Usage, last_usage};
use crate::traffic::Ending;

/// What may become of an answer once it is there.
#[derive(Debug, Clone)]
pub(crate) struct Doubt {
    /// What is expected of it; its length is yet to come.
    pub(crate) answer: Answer,
    /// Index of the model that may be asked again.
    pub(crate) second: usize,
}

/// An answer that another took the place of.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Replaced {
    model: String,
    output_length: u64,
    /// How much more the other was expected to score.
    gain: f32,
}

/// Whether an answer is here as a whole.
enum Held {
    Whole(Option<Usage>),
    /// It is passed on as it comes: an error, a stream, or longer than anything that is looked at.
    No,
    Broken(&'static str),
}

impl Inner {
    /// A query has come that the policy alone decides on.
    pub(crate) fn earn_second_answers(&self, share: f64) {
        self.second_answers.lock().unwrap_or_else(PoisonError::into_inner).earn(share);
    }

    /// Gives the answer that was found, unless the cascade has the query asked again.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        routes: &Routes,
        mut found: Found<'_, '_>,
    ) -> Result<Response, Failure> {
        let Some(doubt) = found.ready.choice.doubt.take().filter(|_| !found.ready.streams) else {
            return Ok(self.respond(found).await);
        };
        // Boxed: whoever has no cascade has no room for two answers.
        Box::pin(self.look_at(routes, found, doubt)).await
    }

    async fn look_at(
        self: &Arc<Self>,
        routes: &Routes,
        mut found: Found<'_, '_>,
        mut doubt: Doubt,
    ) -> Result<Response, Failure> {
        let usage = match self.hold(&mut found).await {
            Held::Whole(Some(usage)) => usage,
            Held::Whole(None) | Held::No => return Ok(self.respond(found).await),
            Held::Broken(cause) => return Err(Failure::broken_off(&found.model.name, cause)),
        };
        doubt.answer.tokens = u32::try_from(usage.completion_tokens).unwrap_or(u32::MAX);
        let worth = routes.cascade.as_ref().and_then(|cascade| cascade.worth(&doubt.answer));
        let Some(gain) = worth else {
            self.cascades.add("kept");
            return Ok(self.respond(found).await);
        };
        if !self.second_answers.lock().unwrap_or_else(PoisonError::into_inner).spend() {
            self.cascades.add("over budget");
            return Ok(self.respond(found).await);
        }
        Ok(self.ask_again(routes, found, &doubt, usage, gain).await)
    }

    /// The second model's answer or, where that does not come whole, the first.
    async fn ask_again(
        self: &Arc<Self>,
        routes: &Routes,
        mut first: Found<'_, '_>,
        doubt: &Doubt,
        usage: Usage,
        gain: f32,
    ) -> Response {
        let (e2e, endpoint) = (first.ready.asked.arrived.elapsed(), first.ready.asked.endpoint);
        let model = &routes.models[doubt.second];
        first.place.done();
        let Found { model: doubted, replica, ready, answer, place, attempts } = first;
        let choice = ready.choice.clone();
        let replaced =
            Replaced { model: doubted.name.to_string(), output_length: usage.completion_tokens, gain };
        let ready = Ready {
            choice: Choice {
                score: Some(doubt.answer.second),
                reason: format!("escalated from {}", doubted.name).into(),
                ..Choice::of(doubt.second, "")
            },
            replaced: Some(replaced),
            ..ready
        };
        // Whoever has an answer does not wait for replicas that are away.
        let answered = if model.may_be_asked(self.now_ms()) {
            self.try_replicas(routes, model, ready).await
        } else {
            Err((Box::new(ready), Failure::no_replica(&model.name)))
        };
        let ready = match answered {
            Err((ready, _)) => *ready,
            Ok(mut second) => match self.hold(&mut second).await {
                Held::Whole(_) => {
                    replica.succeeded();
                    doubted.traffic.ended(endpoint, Ending::Replaced, Some(e2e), e2e, Some(usage));
                    self.cascades.add("asked again");
                    second.attempts += attempts;
                    return self.respond(second).await;
                }
                Held::No | Held::Broken(_) => second.ready,
            },
        };
        self.cascades.add("failed");
        let choice = Choice { reason: "escalation failed".into(), ..choice };
        let ready = Ready { choice, replaced: None, ..ready };
        self.respond(Found { model: doubted, replica, ready, answer, place, attempts }).await
    }

    /// Waits for the rest of an answer.
    async fn hold(&self, found: &mut Found<'_, '_>) -> Held {
        let answer = &mut *found.answer;
        if !answer.head.status.is_success() || is_event_stream(&answer.head.headers) {
            return Held::No;
        }
        let mut whole = BytesMut::from(answer.first.take().unwrap_or_default());
        let end = found.ready.asked.arrived + self.limits.answer;
        let broken = |cause| {
            found.replica.failed(Fault::Failed, self.now_ms());
            Held::Broken(cause)
        };
        while whole.len() <= LARGEST_BODY {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match timeout(self.limits.silence.min(left), answer.wire.frame(&mut answer.body)).await {
                Ok(Some(Ok(frame))) => whole.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Ok(Some(Err(_))) => return broken("its answer ended early"),
                Err(_) => return broken("it was silent for too long"),
                Ok(None) => {
                    answer.is_whole = true;
                    let usage = last_usage(&whole);
                    answer.first = Some(whole.freeze());
                    return Held::Whole(usage);
                }
            }
        }
        answer.first = Some(whole.freeze());
        Held::No
    }
}
