//! Traces: a span per request and one per attempt at a replica, in the caller's trace, sent to a collector as OTLP over HTTP in
//! JSON (OpenTelemetry Protocol 1.x, `opentelemetry/proto/trace/v1`), with the names of OpenTelemetry's `gen_ai` conventions.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use crate::metrics::Counter;
use crate::routes::header_text;
use crate::upstream::{Outgoing, Pool};

/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Spans that may wait to be sent; more are dropped and counted, since answers do not wait for a collector.
const WAITING: usize = 1 << 13;
/// Spans in one message, and how long a smaller one gathers.
const BATCH: usize = 512;
const GATHER: Duration = Duration::from_secs(1);
/// A collector that takes longer has not taken them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes spans.
#[derive(Debug)]
pub(crate) struct Tracer {
    finished: Sender<Record>,
    random: RandomState,
    count: AtomicU64,
    pub(crate) dropped: Counter,
}

/// What is sent of a span.
#[derive(Debug)]
struct Record {
    trace: u128,
    id: u64,
    parent: Option<u64>,
    name: String,
    is_server: bool,
    began: SystemTime,
    ended: SystemTime,
    attributes: BTreeMap<&'static str, Value>,
}

/// Something that takes a while; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Span {
    tracer: Arc<Tracer>,
    record: Option<Record>,
}

impl Tracer {
    /// With whoever sends the spans.
    pub(crate) fn new(collector: Pool) -> (Arc<Self>, Exporter) {
        let (finished, waiting) = channel(WAITING);
        let tracer = Arc::new(Self {
            finished,
            random: RandomState::new(),
            count: AtomicU64::new(0),
            dropped: Counter::default(),
        });
        (Arc::clone(&tracer), Exporter { tracer, waiting, collector })
    }

    /// A request has come with these headers: a span in its caller's trace, or in one of its own; `None` if the caller does not
    /// want the trace to be kept.
    pub(crate) fn request(self: &Arc<Self>, headers: &HeaderMap) -> Option<Span> {
        let caller = header_text(headers, &TRACEPARENT).and_then(parse_traceparent);
        match caller {
            Some((_, _, false)) => None,
            Some((trace, parent, true)) => Some(self.span(trace, Some(parent), true)),
            None => {
                let trace = u128::from(self.id()) << 64 | u128::from(self.id());
                Some(self.span(trace, None, true))
            }
        }
    }

    fn span(self: &Arc<Self>, trace: u128, parent: Option<u64>, is_server: bool) -> Span {
        let began = SystemTime::now();
        let attributes = BTreeMap::new();
        let record = Record {
            trace,
            id: self.id(),
            parent,
            name: String::new(),
            is_server,
            began,
            ended: began,
            attributes,
        };
        Span { tracer: Arc::clone(self), record: Some(record) }
    }

    /// An id that nobody else has, and not 0.
    fn id(&self) -> u64 {
        self.random.hash_one(self.count.fetch_add(1, Relaxed)).max(1)
    }
}

impl Span {
    /// A request that is sent on behalf of this one.
    pub(crate) fn attempt(&self) -> Option<Self> {
        let record = self.record.as_ref()?;
        Some(self.tracer.span(record.trace, Some(record.id), false))
    }

    /// Calls it as the `gen_ai` conventions do: by operation and model.
    pub(crate) fn name(&mut self, operation: &'static str, model: &str) {
        if let Some(record) = &mut self.record {
            record.name = format!("{operation} {model}");
        }
        self.set("gen_ai.operation.name", operation);
        self.set("gen_ai.request.model", model);
    }

    pub(crate) fn set(&mut self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(record) = &mut self.record {
            record.attributes.insert(attribute, value.into());
        }
    }

    /// As a header for who works on behalf of it.
    pub(crate) fn traceparent(&self) -> Option<HeaderValue> {
        let Record { trace, id, .. } = self.record.as_ref()?;
        HeaderValue::try_from(format!("00-{trace:032x}-{id:016x}-01")).ok()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.ended = SystemTime::now();
            if self.tracer.finished.try_send(record).is_err() {
                self.tracer.dropped.add(1);
            }
        }
    }
}

/// Trace, parent and whether it is kept, of `00-TRACE-PARENT-FLAGS`.
fn parse_traceparent(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let right = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        right.then(|| u128::from_str_radix(part, 16).ok())?
    };
    let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    (version != 0xff && trace != 0 && parent != 0).then_some((trace, parent as u64, flags & 1 == 1))
}

/// Sends spans to a collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    tracer: Arc<Tracer>,
    waiting: Receiver<Record>,
    collector: Pool,
}

impl Exporter {
    /// Sends what comes; never ends.
    pub(crate) async fn run(&mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.waiting.recv_many(&mut batch, BATCH).await > 0 {
            let full = batch.len() == BATCH;
            self.send(&mut batch).await;
            if !full {
                sleep(GATHER).await;
            }
        }
    }

    /// Sends what there is.
    pub(crate) async fn flush(&mut self) {
        let mut batch: Vec<Record> = std::iter::from_fn(|| self.waiting.try_recv().ok()).collect();
        if !batch.is_empty() {
            self.send(&mut batch).await;
        }
    }

    async fn send(&self, batch: &mut Vec<Record>) {
        let spans: Vec<Value> = batch.iter().map(Record::json).collect();
        let resource = json!({"attributes": attributes([("service.name", &json!("boute"))])});
        let message = json!({"resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": {"name": "boute"}, "spans": spans}]}
        ]});
        let body = Bytes::from(message.to_string());
        let request = || {
            let mut request = Outgoing::new(Full::new(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = self.collector.target(Some(&PathAndQuery::from_static("/v1/traces")));
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
            self.collector.introduce(request.headers_mut());
            request
        };
        let sent = timeout(PATIENCE, self.collector.ask(request)).await;
        if !matches!(sent, Ok(Ok((StatusCode::OK, _)))) {
            self.tracer.dropped.add(batch.len() as u64);
        }
        batch.clear();
    }
}

impl Record {
    fn json(&self) -> Value {
        let nanoseconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
        };
        let failed = self.attributes.contains_key("error.type");
        json!({
            "traceId": format!("{:032x}", self.trace),
            "spanId": format!("{:016x}", self.id),
            "parentSpanId": self.parent.map_or_else(String::new, |parent| format!("{parent:016x}")),
            "name": self.name,
            // SPAN_KIND_SERVER, SPAN_KIND_CLIENT
            "kind": if self.is_server { 2 } else { 3 },
            "startTimeUnixNano": nanoseconds(self.began),
            "endTimeUnixNano": nanoseconds(self.ended),
            "attributes": attributes(self.attributes.iter().map(|(key, value)| (*key, value))),
            // STATUS_CODE_ERROR
            "status": if failed { json!({"code": 2}) } else { json!({}) },
        })
    }
}

fn attributes<'a>(attributes: impl IntoIterator<Item = (&'static str, &'a Value)>) -> Vec<Value> {
    let typed = |value: &Value| match value {
        Value::Number(number) if number.is_f64() => json!({"doubleValue": number}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
        other => json!({"stringValue": other.as_str().unwrap_or_default()}),
    };
    attributes.into_iter().map(|(key, value)| json!({"key": key, "value": typed(value)})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_trace_is_read() {
        let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
        let parent = 0xb7ad_6b71_6920_3331;
        let read = |rest: &str| parse_traceparent(&format!("00-0af7651916cd43dd8448eb211c80319c-{rest}"));
        assert_eq!(read("b7ad6b7169203331-01"), Some((trace, parent, true)));
        assert_eq!(read("b7ad6b7169203331-00"), Some((trace, parent, false)));
        for wrong in ["0000000000000000-01", "b7ad6b7169203331", "b7ad6b716920333-01", "+7ad6b7169203331-01"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(parse_traceparent("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), None);
        assert_eq!(parse_traceparent(""), None);
    }
}
