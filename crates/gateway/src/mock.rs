//! An emulated vLLM replica: the simulator's engine, driven in real time (or a multiple of it), behind OpenAI's API.
//!
//! One task owns the engine. Its clock is the wall clock since start times the scale; it sleeps until the engine's next
//! event. Tokens are sent in batches every few milliseconds of wall time, the first and the last when they come.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use boute_perf::StepTime;
use boute_sim::{Engine, EngineConfig, EngineEvent, EngineRequest};
use boute_spec::units::SimTime;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{self, HeaderValue};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};

use crate::http::{
    ClientLimits, Request, Response, Service, json_response, read_body, serve_forever, text_response,
};
use crate::metrics::{Histogram, TTFT_S, describe, sample};
use crate::openai::{Endpoint, Failure, Peek};

/// Wall time between two batches of tokens of one stream.
const BATCH: Duration = Duration::from_millis(20);
/// Answer length where the request does not limit it.
const DEFAULT_ANSWER: u32 = 128;

/// What is emulated.
#[derive(Debug, Clone)]
pub struct MockConfig<T> {
    /// Name the model is served under.
    pub model: String,
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Cost model.
    pub step_time: T,
    /// What a request takes outside the engine.
    pub request_time: SimTime,
    /// Virtual seconds per wall second.
    pub time_scale: f64,
    /// Answers are this many times as long as asked for (`max_tokens`): models differ in how much they say.
    pub output_length_scale: f64,
}

struct Submission {
    request: EngineRequest,
    tokens: mpsc::UnboundedSender<Tokens>,
}

/// What a stream is told.
enum Tokens {
    /// This many more.
    More(u32),
    /// That was all.
    Done,
    /// It can never fit.
    Refused(String),
}

#[derive(Debug, Default)]
struct Gauges {
    running: usize,
    waiting: usize,
    kv_usage: f64,
    preemptions: u64,
}

struct Replica {
    model: String,
    request_time: Duration,
    output_length_scale: f64,
    submissions: mpsc::UnboundedSender<Submission>,
    gauges: Arc<Mutex<Gauges>>,
    ttft: Histogram,
    next_id: std::sync::atomic::AtomicU64,
}

/// Serves an emulated replica on `listener` until the task is dropped.
pub async fn serve_mock<T: StepTime + Send + Sync + 'static>(config: MockConfig<T>, listener: TcpListener) {
    let (submissions, received) = mpsc::unbounded_channel();
    let gauges = Arc::new(Mutex::new(Gauges::default()));
    let driver = Driver {
        engine: Engine::new(config.engine, config.step_time),
        started: Instant::now(),
        time_scale: config.time_scale,
        streams: BTreeMap::new(),
        gauges: Arc::clone(&gauges),
        events: Vec::new(),
    };
    let replica = Arc::new(Replica {
        model: config.model,
        request_time: Duration::from_secs_f64(config.request_time.seconds() / config.time_scale),
        output_length_scale: config.output_length_scale,
        submissions,
        gauges,
        ttft: Histogram::new(&TTFT_S),
        next_id: std::sync::atomic::AtomicU64::new(0),
    });
    tokio::join!(driver.run(received), serve_forever(replica, listener));
}

struct Stream {
    tokens: mpsc::UnboundedSender<Tokens>,
    sent: u32,
    total: u32,
}

struct Driver<T> {
    engine: Engine<T>,
    started: Instant,
    time_scale: f64,
    streams: BTreeMap<u64, Stream>,
    gauges: Arc<Mutex<Gauges>>,
    events: Vec<EngineEvent>,
}

impl<T: StepTime> Driver<T> {
    async fn run(mut self, mut received: mpsc::UnboundedReceiver<Submission>) {
        loop {
            let wake = self.wake();
            tokio::select! {
                submission = received.recv() => match submission {
                    Some(submission) => self.submit(submission),
                    None => return,
                },
                // Also without streams: what was cancelled leaves at the end of its step.
                () = sleep_until(wake.into()), if self.engine.next_event().is_some() => self.settle(true),
            }
        }
    }

    fn virtual_now(&self) -> SimTime {
        SimTime::from_seconds(self.started.elapsed().as_secs_f64() * self.time_scale)
    }

    /// When the next event of the engine is due, or the next batch of tokens.
    fn wake(&self) -> Instant {
        let batch = Instant::now() + BATCH;
        self.engine.next_event().map_or(batch, |next| {
            (self.started + Duration::from_secs_f64(next.seconds() / self.time_scale)).min(batch)
        })
    }

    fn submit(&mut self, Submission { request, tokens }: Submission) {
        self.settle(false);
        let (id, total) = (request.id, request.output_tokens);
        match self.engine.submit(self.virtual_now(), request) {
            Ok(()) => {
                self.streams.insert(id, Stream { tokens, sent: 0, total });
            }
            Err(refused) => {
                // The receiver may be gone; then there is nobody to tell.
                let _ = tokens.send(Tokens::Refused(refused.to_string()));
            }
        }
    }

    /// Lets the engine catch up with the clock, and tells the streams; `batch` sends tokens in between too.
    fn settle(&mut self, batch: bool) {
        let now = self.virtual_now();
        let mut events = std::mem::take(&mut self.events);
        self.engine.advance(now, &mut events);
        for event in events.drain(..) {
            match event {
                EngineEvent::FirstToken { id, .. } => self.send(id, 1),
                EngineEvent::Finished { id, .. } => {
                    let total = self.streams.get(&id).map_or(0, |stream| stream.total);
                    self.send(id, total);
                    if let Some(stream) = self.streams.remove(&id) {
                        let _ = stream.tokens.send(Tokens::Done);
                    }
                }
            }
        }
        self.events = events;
        if batch {
            let ids: Vec<u64> = self.streams.keys().copied().collect();
            for id in ids {
                if let Some(generated) = self.engine.generated(id) {
                    self.send(id, generated);
                }
            }
        }
        self.drop_deserted(now);
        if let Ok(mut gauges) = self.gauges.lock() {
            *gauges = Gauges {
                running: self.engine.running(),
                waiting: self.engine.waiting(),
                kv_usage: self.engine.kv_usage(),
                preemptions: self.engine.preemptions(),
            };
        }
    }

    /// Tells a stream that `generated` tokens are there by now.
    fn send(&mut self, id: u64, generated: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && generated > stream.sent
        {
            let _ = stream.tokens.send(Tokens::More(generated - stream.sent));
            stream.sent = generated;
        }
    }

    /// Cancels requests whose client is gone.
    fn drop_deserted(&mut self, now: SimTime) {
        let engine = &mut self.engine;
        self.streams.retain(|id, stream| {
            let gone = stream.tokens.is_closed();
            if gone {
                engine.cancel(now, *id);
            }
            !gone
        });
    }
}

impl Service for Replica {
    async fn answer(self: Arc<Self>, request: Request, _: IpAddr) -> Response {
        match (request.uri().path(), Endpoint::of(request.uri().path())) {
            ("/v1/models", _) => json_response(self.models()),
            ("/health", _) => text_response(""),
            ("/metrics", _) => text_response(self.metrics()),
            (_, Some(endpoint @ (Endpoint::Chat | Endpoint::Completions))) => {
                answer(self, request, endpoint).await.unwrap_or_else(|failure| failure.response())
            }
            _ => Failure::no_such_path().response(),
        }
    }
}

impl Replica {
    fn models(&self) -> String {
        let model = json!({"id": self.model, "object": "model", "created": 0, "owned_by": "boute mock"});
        json!({"object": "list", "data": [model]}).to_string()
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let labels = format!("model_name=\"{}\"", self.model);
        {
            let Ok(gauges) = self.gauges.lock() else { return out };
            for (name, help, value) in [
                ("vllm:num_requests_running", "Requests in model execution batches.", gauges.running as f64),
                ("vllm:num_requests_waiting", "Requests waiting to be processed.", gauges.waiting as f64),
                ("vllm:kv_cache_usage_perc", "KV-cache usage; 1 means 100 percent.", gauges.kv_usage),
            ] {
                describe(&mut out, name, "gauge", help);
                sample(&mut out, name, &labels, value);
            }
            describe(&mut out, "vllm:num_preemptions_total", "counter", "Preemptions by the engine.");
            sample(&mut out, "vllm:num_preemptions_total", &labels, gauges.preemptions);
        }
        describe(
            &mut out,
            "vllm:time_to_first_token_seconds",
            "histogram",
            "Time to first token, wall clock.",
        );
        self.ttft.write(&mut out, "vllm:time_to_first_token_seconds", &labels);
        out
    }
}

/// What is the same in every chunk of an answer.
struct Answer {
    id: String,
    model: String,
    chat: bool,
    /// Prompt tokens.
    prompt: u32,
    /// Answer tokens; each is a word.
    words: u32,
}

async fn answer(replica: Arc<Replica>, request: Request, endpoint: Endpoint) -> Result<Response, Failure> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let body = read_body(body, ClientLimits::default().body).await?;
    let mut peek = Peek::read(&body)?;
    let model = peek.model()?.into_owned();
    if model != replica.model {
        return Err(Failure::unknown_model(&model, &replica.model));
    }
    let input_tokens = peek.text(endpoint)?.tokens(&parts.headers);
    let asked = f64::from(peek.answer_tokens().unwrap_or(DEFAULT_ANSWER));
    let output_tokens = (asked * replica.output_length_scale).round().max(1.0) as u32;
    let id = replica.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (tokens, mut received) = mpsc::unbounded_channel();
    sleep(replica.request_time).await;
    let request = EngineRequest { id, input_tokens, output_tokens, hash_ids: Box::default() };
    if replica.submissions.send(Submission { request, tokens }).is_err() {
        return Err(Failure::no_replica(&model));
    }
    let first = match received.recv().await {
        Some(Tokens::More(count)) => count,
        Some(Tokens::Refused(why)) => return Err(Failure::bad_request(why, None)),
        Some(Tokens::Done) | None => return Err(Failure::no_replica(&model)),
    };
    replica.ttft.observe_time(started.elapsed());
    let answer = Answer {
        id: format!("boute-{id}"),
        model,
        chat: endpoint == Endpoint::Chat,
        prompt: input_tokens,
        words: output_tokens,
    };
    if peek.streams() {
        return Ok(stream(answer, first, received, peek.wants_usage()));
    }
    while let Some(Tokens::More(_)) = received.recv().await {}
    Ok(json_response(answer.whole().to_string()))
}

/// The pieces of a streamed answer, all of them: `http_body_util`'s channel loses the last one where its sender is dropped while
/// the body is asked for it.
struct Pieces(mpsc::Receiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Streams an answer whose first tokens are there.
fn stream(
    answer: Answer,
    first: u32,
    mut received: mpsc::UnboundedReceiver<Tokens>,
    usage: bool,
) -> Response {
    let (sender, pieces) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut next = Some(Tokens::More(first));
        while let Some(Tokens::More(count)) = next {
            if sender.send(answer.chunk(count, false)).await.is_err() {
                return;
            }
            next = received.recv().await;
        }
        let mut end = Vec::from(answer.chunk(0, true));
        if usage {
            end.extend_from_slice(&event(&answer.usage_chunk()));
        }
        end.extend_from_slice(b"data: [DONE]\n\n");
        let _ = sender.send(Bytes::from(end)).await;
    });
    let mut response = Response::new(Pieces(pieces).map_err(|never| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl Answer {
    fn chunk(&self, tokens: u32, last: bool) -> Bytes {
        let text = " word".repeat(tokens as usize);
        let finish = if last { json!("length") } else { json!(null) };
        let choice = if self.chat {
            let delta = if last { json!({}) } else { json!({"content": text}) };
            json!({"index": 0, "delta": delta, "finish_reason": finish})
        } else {
            json!({"index": 0, "text": text, "finish_reason": finish})
        };
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        event(
            &json!({"id": self.id, "object": object, "created": 0, "model": self.model, "choices": [choice]}),
        )
        .into()
    }

    fn usage(&self) -> serde_json::Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.words,
            "total_tokens": self.prompt + self.words,
        })
    }

    fn usage_chunk(&self) -> serde_json::Value {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        json!({"id": self.id, "object": object, "created": 0, "model": self.model, "choices": [], "usage": self.usage()})
    }

    fn whole(&self) -> serde_json::Value {
        let text = " word".repeat(self.words as usize);
        let (object, choice) = if self.chat {
            let message = json!({"role": "assistant", "content": text});
            ("chat.completion", json!({"index": 0, "message": message, "finish_reason": "length"}))
        } else {
            ("text_completion", json!({"index": 0, "text": text, "finish_reason": "length"}))
        };
        json!({
            "id": self.id, "object": object, "created": 0, "model": self.model, "choices": [choice], "usage": self.usage(),
        })
    }
}

fn event(value: &serde_json::Value) -> Vec<u8> {
    format!("data: {value}\n\n").into_bytes()
}
