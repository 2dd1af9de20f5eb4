//! An answer's head: what is told to the client beside it, and which body follows.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};

use crate::attempt::{Answer, is_event_stream};
use crate::forward::{Found, Ready};
use crate::headers::strip_hop_by_hop;
use crate::http::{Response, full};
use crate::openai::{Endpoint, openai_error};
use crate::relay::{Begun, Relay, Story};
use crate::replica::Replica;
use crate::serve::Inner;
use crate::sse::Watch;
use crate::traffic::Ending;
use crate::upstream::Wire;

/// Longest error of an engine that is passed on.
const LONGEST_ERROR: usize = 64 << 10;

impl Inner {
    /// Passes an answer on.
    pub(crate) async fn respond(self: &Arc<Self>, found: Found<'_, '_>) -> Response {
        let Found { model, replica, ready, answer, place, attempts } = found;
        let Answer { mut head, mut body, first, is_whole, mut wire, span: attempt } = *answer;
        let streams = is_event_stream(&head.headers);
        let closes = head.headers.get(header::TRANSFER_ENCODING).is_none()
            && head.headers.get(header::CONTENT_LENGTH).is_none();
        strip_hop_by_hop(&mut head.headers);
        if streams {
            // The counts that were asked for in the client's stead are taken out again.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        say(&mut head.headers, replica, &ready, &model.name, attempts);
        let status = head.status;
        let Ready { asked, name, choice, replaced, prompt_tokens, text, session, .. } = ready;
        let Ready { needs_usage, span, permit, .. } = ready;
        let client = asked.key.as_ref().map_or(0, |key| key.number);
        self.quality.decided(asked.id.as_bytes(), &model.name, &choice, client);
        let story = Story {
            gateway: Arc::clone(self),
            arrived: asked.arrived,
            endpoint: asked.endpoint,
            id: asked.id.clone(),
            asked: name,
            model: Arc::clone(&model.name),
            traffic: Arc::clone(&model.traffic),
            choice,
            replaced,
            replica: Arc::clone(replica),
            attempts,
            status: status.as_u16(),
            prompt_tokens,
            session,
            prompt: self.log_prompts.then_some(text),
            key: asked.key,
            spans: [attempt, span],
            permit,
        };
        if status.is_client_error() || status.is_server_error() {
            let error = rest_of(&mut wire, &mut body, first).await;
            replica.pool.give_back(wire);
            drop(place);
            story.end(Ending::Error, None, None, 0);
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return hyper::Response::from_parts(head, full(openai_error(status, &error)));
        }
        let mut watch = Watch::new(streams, needs_usage);
        if let Some(theirs) = &replica.served_name {
            watch = watch.renaming(theirs, &model.name);
            head.headers.remove(header::CONTENT_LENGTH);
        }
        if !streams && is_whole {
            // All is there already.
            let whole = watch.pass_whole(first.unwrap_or_default());
            replica.pool.give_back(wire);
            drop(place);
            let now = Instant::now();
            story.traffic.ttft.observe_time(now.duration_since(story.arrived));
            story.end(Ending::Done, Some(now), watch.usage(), 0);
            return hyper::Response::from_parts(head, full(whole));
        }
        let ends_with_done = streams && closes && asked.endpoint != Endpoint::Responses;
        let begun = Begun { wire, body, first, place, watch, streams, ends_with_done };
        let relay = http_body_util::BodyExt::boxed_unsync(Relay::new(begun, story));
        hyper::Response::from_parts(head, relay)
    }
}

/// The rest of an error's body; as much of it as matters.
async fn rest_of(wire: &mut Wire, body: &mut Incoming, first: Option<Bytes>) -> Bytes {
    let mut whole = BytesMut::from(&*first.unwrap_or_default());
    while whole.len() < LONGEST_ERROR {
        let Some(Ok(frame)) = wire.frame(body).await else { break };
        whole.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    whole.freeze()
}

/// Tells the client what was chosen, and why.
fn say(headers: &mut HeaderMap, replica: &Replica, ready: &Ready<'_>, model: &str, attempts: u32) {
    let mut say = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    say("x-boute-model", model);
    say("x-boute-replica", &replica.name);
    say("x-boute-reason", &ready.choice.reason);
    if let Some(score) = ready.choice.score {
        say("x-boute-score", &format!("{score:.4}"));
    }
    if let Some(threshold) = ready.choice.threshold {
        say("x-boute-threshold", &threshold.to_string());
    }
    headers.insert("x-boute-attempts", HeaderValue::from(attempts));
    if ready.streams {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
}
