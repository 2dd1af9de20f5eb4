//! An answer on its way to the client: bytes pass unchanged, the place on the replica is held until the end, and the end,
//! whichever it is, is told once.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::HeaderValue;
use tokio::time::{Sleep, sleep, sleep_until};

use crate::admission::Permit;
use crate::cascade::Replaced;
use crate::decisions::{Decision, DecisionLine};
use crate::http::BrokenOff;
use crate::keys::Key;
use crate::openai::{Endpoint, Failure};
use crate::replica::{Fault, Place, Replica};
use crate::routes::Choice;
use crate::serve::Inner;
use crate::sse::{Usage, Watch};
use crate::trace::Span;
use crate::traffic::{Ending, ModelTraffic};
use crate::upstream::Wire;

/// Between telling a client that its stream is broken and breaking it off: breaking off discards what is still buffered.
const FAREWELL: Duration = Duration::from_millis(50);

/// All that is known of a request once a replica has answered it.
pub(crate) struct Story {
    pub(crate) gateway: Arc<Inner>,
    pub(crate) arrived: Instant,
    pub(crate) endpoint: Endpoint,
    pub(crate) id: HeaderValue,
    pub(crate) asked: String,
    pub(crate) model: Arc<str>,
    pub(crate) traffic: Arc<ModelTraffic>,
    pub(crate) choice: Choice,
    pub(crate) replaced: Option<Replaced>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) attempts: u32,
    pub(crate) status: u16,
    pub(crate) prompt_tokens: u32,
    pub(crate) session: Option<String>,
    /// Kept only if prompts are logged.
    pub(crate) prompt: Option<String>,
    pub(crate) key: Option<Arc<Key>>,
    /// Of the attempt that was answered, and of the request.
    pub(crate) spans: [Option<Span>; 2],
    pub(crate) permit: Permit,
}

impl Story {
    /// The answer has ended; `first` is when its first byte came, `counted` its tokens.
    pub(crate) fn end(mut self, ending: Ending, first: Option<Instant>, counted: Option<Usage>, chunks: u64) {
        let e2e = self.arrived.elapsed();
        let ttft = first.map(|first| first.duration_since(self.arrived));
        self.traffic.ended(self.endpoint, ending, ttft, e2e, counted);
        let usage = counted
            .unwrap_or(Usage { prompt_tokens: u64::from(self.prompt_tokens), completion_tokens: chunks });
        if ending == Ending::Done {
            self.replica.succeeded();
        }
        if let Some(key) = &self.key {
            key.charge(usage.prompt_tokens + usage.completion_tokens);
        }
        if let Some(log) = &self.gateway.decisions {
            let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            log.decided(&DecisionLine {
                timestamp: since_epoch.saturating_sub(e2e).as_millis() as u64,
                input_length: usage.prompt_tokens.max(1),
                output_length: usage.completion_tokens.max(1),
                session_id: self.session.as_deref(),
                prompt: self.prompt.as_deref(),
                decision: Decision {
                    request_id: self.id.to_str().unwrap_or_default(),
                    operation: self.endpoint.operation(),
                    asked: &self.asked,
                    model: &self.model,
                    replica: &self.replica.name,
                    reason: &self.choice.reason,
                    score: self.choice.score,
                    propensity: self.choice.propensity,
                    replaced: self.replaced.as_ref(),
                    key: self.key.as_ref().map(|key| key.name.as_str()),
                    attempts: self.attempts,
                    status: self.status,
                    ending: ending.name(),
                    ttft_ms: ttft.map(milliseconds),
                    e2e_ms: milliseconds(e2e),
                },
            });
        }
        for span in self.spans.iter_mut().flatten() {
            span.set("gen_ai.response.model", &*self.model);
            span.set("gen_ai.usage.input_tokens", usage.prompt_tokens);
            span.set("gen_ai.usage.output_tokens", usage.completion_tokens);
            span.set("http.response.status_code", self.status);
            match ending {
                Ending::Done | Ending::Replaced => {}
                Ending::Error => span.set("error.type", self.status.to_string()),
                Ending::Broken | Ending::Cancelled => span.set("error.type", ending.name()),
            }
        }
        if let [_, Some(span)] = &mut self.spans {
            span.set("boute.reason", &*self.choice.reason);
            span.set("boute.attempts", self.attempts);
            if let Some(score) = self.choice.score {
                span.set("boute.score", score);
            }
            if let Some(ttft) = ttft {
                span.set("boute.ttft_ms", ttft.as_secs_f64() * 1e3);
            }
            if let Some(session) = &self.session {
                span.set("gen_ai.conversation.id", &**session);
            }
        }
        drop(self.permit);
    }
}

/// The body of an answer that a replica is still giving.
pub(crate) struct Relay {
    wire: Option<Wire>,
    body: Incoming,
    /// Came with the head.
    first: Option<Bytes>,
    /// Held until the end.
    _place: Place,
    watch: Watch,
    story: Option<Story>,
    began: Instant,
    last: Instant,
    /// Of a stream that ends when its connection does: it is whole only with `[DONE]`.
    ends_with_done: bool,
    /// While waiting: when to look whether the replica has been silent for too long.
    silence: Option<Pin<Box<Sleep>>>,
    /// Set when the replica has died and the client was told: when the connection is broken off.
    farewell: Option<Pin<Box<Sleep>>>,
    streams: bool,
}

/// What [`Relay::new`] needs.
pub(crate) struct Begun {
    pub(crate) wire: Wire,
    pub(crate) body: Incoming,
    pub(crate) first: Option<Bytes>,
    pub(crate) place: Place,
    pub(crate) watch: Watch,
    pub(crate) streams: bool,
    pub(crate) ends_with_done: bool,
}

impl Relay {
    /// The first piece has come.
    pub(crate) fn new(begun: Begun, story: Story) -> Self {
        let Begun { wire, body, first, mut place, watch, streams, ends_with_done } = begun;
        let now = Instant::now();
        place.begun();
        story.traffic.ttft.observe_time(now.duration_since(story.arrived));
        Self {
            wire: Some(wire),
            body,
            first,
            _place: place,
            watch,
            story: Some(story),
            began: now,
            last: now,
            ends_with_done,
            silence: None,
            farewell: None,
            streams,
        }
    }

    fn end(&mut self, ending: Ending) {
        if let Some(story) = self.story.take() {
            if ending == Ending::Broken {
                story.replica.failed(Fault::Failed, story.gateway.now_ms());
            }
            story.end(ending, Some(self.began), self.watch.usage(), self.watch.chunks());
        }
    }

    /// The replica has given all. What it held back of an event passes on.
    fn complete(&mut self) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.ends_with_done && !self.watch.is_done() {
            return self.broken("its stream ended early");
        }
        let rest = self.watch.rest();
        if let (Some(wire), Some(story)) = (self.wire.take(), &self.story) {
            story.replica.pool.give_back(wire);
        }
        self.end(Ending::Done);
        Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))))
    }

    /// The replica has died. A client that reads events is told, and then cut off: without `[DONE]` it knows that this is
    /// not the end.
    fn broken(&mut self, cause: &str) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.wire = None;
        let model =
            self.story.as_ref().map_or(Cow::Borrowed(""), |story| Cow::Owned(story.model.to_string()));
        self.end(Ending::Broken);
        if !self.streams {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        self.farewell = Some(Box::pin(sleep(FAREWELL)));
        let event = format!("data: {}\n\n", Failure::broken_off(&model, cause).json());
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }

    /// Whether the replica has been silent for too long, or the answer takes too long as a whole.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<&'static str> {
        let Some(story) = &self.story else { return Poll::Pending };
        let limits = &story.gateway.limits;
        let (idle_end, end) = (self.last + limits.silence, story.arrived + limits.answer);
        let due = idle_end.min(end);
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        while Instant::now() < due {
            // Set for an earlier piece: it need not be moved with each.
            ready!(silence.as_mut().poll(context));
            silence.as_mut().reset(due.into());
        }
        Poll::Ready(if end <= idle_end { "it took too long" } else { "it was silent for too long" })
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(farewell) = &mut self.farewell {
            return farewell.as_mut().poll(context).map(|()| Some(Err(BrokenOff)));
        }
        let this = &mut *self;
        loop {
            let data = if let Some(first) = this.first.take() {
                first
            } else {
                let Some(wire) = &mut this.wire else { return Poll::Ready(None) };
                match wire.poll_frame(&mut this.body, context) {
                    Poll::Ready(None) => return this.complete(),
                    Poll::Ready(Some(Err(error))) => return this.broken(&error.to_string()),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => data,
                        Err(_trailers) => continue,
                    },
                    Poll::Pending => {
                        let cause = ready!(this.poll_silence(context));
                        return this.broken(cause);
                    }
                }
            };
            this.last = Instant::now();
            let passed = this.watch.pass(data);
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Whoever drops an answer before its end has no client left.
        self.end(Ending::Cancelled);
    }
}
