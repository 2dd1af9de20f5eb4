//! One attempt: a request is sent to one replica, and the first piece of its answer waited for.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::response;
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use crate::forward::Ready;
use crate::replica::{Fault, Replica};
use crate::routes::header_text;
use crate::serve::Inner;
use crate::trace::{Span, TRACEPARENT};
use crate::upstream::{Outgoing, Wire};

/// A kept connection that breaks off this soon was closed by the engine before the request came.
const STALE: Duration = Duration::from_millis(100);

/// What became of one attempt.
pub(crate) enum Attempt {
    Answered(Box<Answer>),
    /// The answer is given up; with a fault if the replica is to blame for it.
    Failed {
        why: &'static str,
        cause: String,
        fault: Option<Fault>,
    },
}

/// The head of an answer and its first piece.
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) first: Option<Bytes>,
    /// Whether that is all.
    pub(crate) is_whole: bool,
    pub(crate) wire: Wire,
    pub(crate) span: Option<Span>,
}

impl Inner {
    /// Sends the request to one replica and waits for the first piece of its answer.
    pub(crate) async fn attempt(&self, replica: &Replica, ready: &Ready<'_>) -> Attempt {
        let mut span = ready.span.as_ref().and_then(Span::attempt);
        let traceparent = span.as_ref().and_then(Span::traceparent);
        let body = ready.peek.rewritten(ready.body, replica.asked_as(), ready.needs_usage);
        let outgoing = || outgoing(replica, ready, &body, traceparent.as_ref());
        let failed = |why, cause: String, fault| Attempt::Failed { why, cause, fault };
        if let Some(span) = &mut span {
            span.name(ready.asked.endpoint.operation(), &replica.model);
            span.set("gen_ai.provider.name", "openai");
            span.set("server.address", replica.pool.host.to_str().unwrap_or_default());
            span.set("boute.replica", &*replica.name);
        }
        let mut attempt = tokio::select! {
            biased;
            exchanged = timeout(self.limits.first_byte, exchange(replica, outgoing)) => match exchanged {
                Ok(Ok(answer)) => Attempt::Answered(answer),
                Ok(Err((Fault::Unreachable, cause))) => failed("unreachable", cause, Some(Fault::Unreachable)),
                Ok(Err((fault, cause))) => failed("broken", cause, Some(fault)),
                Err(_) => failed("slow", String::new(), Some(Fault::Failed)),
            },
            () = replica.gone_down() => failed("down", "it went down".into(), None),
        };
        match &mut attempt {
            Attempt::Answered(answer) => answer.span = span,
            Attempt::Failed { why, .. } => {
                if let Some(span) = &mut span {
                    span.set("error.type", *why);
                }
            }
        }
        attempt
    }
}

/// What a status says of a replica.
#[derive(PartialEq)]
pub(crate) enum Verdict {
    Fine,
    /// Backpressure is no fault: one try elsewhere, then it is passed on.
    Busy,
    Failed,
}

pub(crate) fn verdict(status: StatusCode) -> Verdict {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Verdict::Busy,
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Verdict::Failed
        }
        _ => Verdict::Fine,
    }
}

impl Attempt {
    /// Whether it came to an answer that nobody else would give better.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self, Self::Answered(answer) if verdict(answer.head.status) == Verdict::Fine)
    }
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    header_text(headers, &header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/event-stream"))
}

fn outgoing(
    replica: &Replica,
    ready: &Ready<'_>,
    body: &Bytes,
    traceparent: Option<&HeaderValue>,
) -> Outgoing {
    let mut request = hyper::Request::new(Full::new(body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = replica.pool.target(ready.uri.path_and_query());
    *request.headers_mut() = ready.headers.clone();
    if let Some(traceparent) = traceparent {
        request.headers_mut().insert(TRACEPARENT, traceparent.clone());
    }
    replica.pool.introduce(request.headers_mut());
    request
}

/// Sends a request until the first piece of its answer is there. A kept connection that turns out to be closed is no fault
/// of anybody's: a new one is made.
async fn exchange(
    replica: &Replica,
    outgoing: impl Fn() -> Outgoing,
) -> Result<Box<Answer>, (Fault, String)> {
    let connect =
        || async { replica.pool.connect().await.map_err(|error| (Fault::Unreachable, error.to_string())) };
    let broken = |error: hyper::Error| (Fault::Failed, error.to_string());
    // Boxed: nearly all requests find a kept connection, and have no room for the making of one.
    let fresh = || {
        Box::pin(async {
            let mut wire = connect().await?;
            let head = wire.send(outgoing()).await.map_err(broken)?;
            Ok((wire, head))
        })
    };
    let (mut wire, head) = if let Some(mut wire) = replica.pool.take() {
        let sent = Instant::now();
        match wire.send(outgoing()).await {
            Ok(head) => (wire, head),
            Err(_) if sent.elapsed() < STALE => {
                replica.pool.forget();
                fresh().await?
            }
            Err(error) => return Err(broken(error)),
        }
    } else {
        fresh().await?
    };
    let (head, mut body) = head.into_parts();
    let first = loop {
        match wire.frame(&mut body).await {
            None => break None,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    break Some(data);
                }
            }
            Some(Err(error)) => return Err(broken(error)),
        }
    };
    if first.is_none() && is_event_stream(&head.headers) {
        return Err((Fault::Failed, "its stream ended before it began".into()));
    }
    let is_whole = body.is_end_stream();
    Ok(Box::new(Answer { head, body, first, is_whole, wire, span: None }))
}
