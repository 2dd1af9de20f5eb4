//! The load generator. In an open loop requests are sent when they are due, whatever became of earlier ones, and are timed
//! from when they were due, so that a slow server cannot hide behind its own queue; and how late the generator itself was
//! is told. In a closed loop each client sends its next request when its last one is answered.
//!
//! TTFT, TPOT and E2E are vLLM's (`vllm/benchmarks/lib/endpoint_request_func.py`): to the first and to the last chunk with a
//! choice; the chunk of counts and `[DONE]` are not waited for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boute_spec::outcome::RequestOutcome;
use boute_spec::units::SimTime;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use memchr::memmem;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::openai::PROMPT_TOKENS;

/// Bytes at the end of an answer in which its token count stands.
const TAIL: usize = 2048;

/// One request to send.
#[derive(Debug, Clone)]
pub struct BenchRequest {
    /// When, in virtual time.
    pub at: SimTime,
    /// What is asked.
    pub prompt: Arc<str>,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Longest answer.
    pub max_tokens: u32,
}

/// What to send, and where to.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    /// Address, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// Model asked for.
    pub model: String,
    /// Model names, by which answers are counted.
    pub models: Vec<String>,
    /// Virtual seconds per wall second.
    pub time_scale: f64,
    /// Clients of a closed loop, which does not look at when requests are due; `None` for an open loop.
    pub clients: Option<usize>,
    /// In order of time.
    pub requests: Vec<BenchRequest>,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct BenchResult {
    /// Answered requests, in virtual time.
    pub outcomes: Vec<RequestOutcome>,
    /// Requests without a full answer, by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// How late requests of an open loop were sent, in wall seconds, ascending: the generator's own fault.
    pub late_s: Vec<f64>,
}

impl BenchResult {
    /// Requests without a full answer.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Sends everything and waits for all answers. `progress` is told how many are done.
pub async fn bench(config: BenchConfig, progress: impl Fn(u64, u64)) -> BenchResult {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let total = config.requests.len() as u64;
    let shared = Arc::new(Shared {
        client,
        url: format!("{}/v1/chat/completions", config.url.trim_end_matches('/').trim_end_matches("/v1")),
        model: config.model,
        models: config.models,
        time_scale: config.time_scale,
        // A moment to get going.
        start: Instant::now() + Duration::from_millis(50),
    });
    let mut result = match config.clients {
        None => open_loop(&shared, config.requests, |done| progress(done, total)).await,
        Some(clients) => closed_loop(&shared, config.requests, clients, |done| progress(done, total)).await,
    };
    result.outcomes.sort_by_key(|outcome| (outcome.arrival, outcome.ttft, outcome.e2e));
    result.late_s.sort_unstable_by(f64::total_cmp);
    result
}

/// What one request came to.
type Sent = Result<RequestOutcome, String>;

impl BenchResult {
    fn book(&mut self, joined: Result<Sent, tokio::task::JoinError>) {
        match joined.map_err(|error| error.to_string()).flatten() {
            Ok(outcome) => self.outcomes.push(outcome),
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
    }

    fn done(&self) -> u64 {
        self.outcomes.len() as u64 + self.failed()
    }
}

async fn open_loop(shared: &Arc<Shared>, requests: Vec<BenchRequest>, progress: impl Fn(u64)) -> BenchResult {
    let (mut tasks, mut result) = (JoinSet::new(), BenchResult::default());
    for request in requests {
        let due = shared.start + shared.wall(request.at);
        sleep_until(due.into()).await;
        result.late_s.push(due.elapsed().as_secs_f64());
        while let Some(joined) = tasks.try_join_next() {
            result.book(joined);
        }
        progress(result.done());
        let shared = Arc::clone(shared);
        tasks.spawn(async move { send(&shared, request, due).await });
    }
    while let Some(joined) = tasks.join_next().await {
        result.book(joined);
        progress(result.done());
    }
    result
}

async fn closed_loop(
    shared: &Arc<Shared>,
    requests: Vec<BenchRequest>,
    clients: usize,
    progress: impl Fn(u64),
) -> BenchResult {
    let (mut tasks, mut result) = (JoinSet::new(), BenchResult::default());
    let mut requests = requests.into_iter();
    sleep_until(shared.start.into()).await;
    loop {
        while tasks.len() < clients.max(1)
            && let Some(request) = requests.next()
        {
            let shared = Arc::clone(shared);
            tasks.spawn(async move {
                let now = Instant::now();
                send(&shared, BenchRequest { at: shared.since(shared.start), ..request }, now).await
            });
        }
        let Some(joined) = tasks.join_next().await else { return result };
        result.book(joined);
        progress(result.done());
    }
}

/// The concrete models that an endpoint lists; empty if it does not answer.
pub async fn served_models(url: &str) -> Vec<String> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let url = format!("{}/v1/models", url.trim_end_matches('/').trim_end_matches("/v1"));
    let Ok(uri) = url.parse() else { return Vec::new() };
    let Ok(response) = client.get(uri).await else { return Vec::new() };
    let Ok(body) = response.into_body().collect().await else { return Vec::new() };
    let list: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let models = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids = models.iter().filter_map(|model| model["id"].as_str());
    ids.filter(|id| *id != crate::AUTO).map(str::to_owned).collect()
}

struct Shared {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    model: String,
    models: Vec<String>,
    time_scale: f64,
    start: Instant,
}

impl Shared {
    fn wall(&self, at: SimTime) -> Duration {
        Duration::from_secs_f64(at.seconds() / self.time_scale)
    }

    /// Virtual time since `start`.
    fn since(&self, start: Instant) -> SimTime {
        SimTime::from_seconds(start.elapsed().as_secs_f64() * self.time_scale)
    }
}

/// Sends one request; times count from `due`.
async fn send(shared: &Shared, request: BenchRequest, due: Instant) -> Sent {
    let body = json!({
        "model": shared.model,
        "messages": [{"role": "user", "content": &*request.prompt}],
        "max_tokens": request.max_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let post = hyper::Request::post(&shared.url)
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .header(PROMPT_TOKENS, request.input_tokens)
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| error.to_string())?;
    let response = shared.client.request(post).await.map_err(|error| format!("not sent: {error}"))?;
    if !response.status().is_success() {
        return Err(format!("status {}", response.status().as_u16()));
    }
    let answered = response.headers().get("x-boute-model").and_then(|value| value.to_str().ok());
    let model =
        answered.and_then(|name| shared.models.iter().position(|model| model == name)).unwrap_or_default();
    let mut body = response.into_body();
    let (mut first, mut last) = (None, SimTime::ZERO);
    let mut tail: Vec<u8> = Vec::with_capacity(2 * TAIL);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| format!("broken off: {error}"))?.into_data() else { continue };
        if has_choice(&data) {
            last = shared.since(due);
            first.get_or_insert(last);
        }
        tail.extend_from_slice(&data);
        let extra = tail.len().saturating_sub(TAIL);
        tail.drain(..extra);
    }
    let text = String::from_utf8_lossy(&tail);
    if !text.contains("data: [DONE]") {
        return Err("the stream ended without [DONE]".into());
    }
    let output_tokens = completion_tokens(&text).ok_or("the stream has no token count")?;
    Ok(RequestOutcome {
        model: model as u32,
        replica: 0,
        arrival: request.at,
        input_tokens: request.input_tokens,
        output_tokens,
        ttft: first.unwrap_or(last),
        e2e: last,
    })
}

/// Whether a piece of a stream holds part of an answer.
fn has_choice(data: &[u8]) -> bool {
    memmem::find(data, b"\"delta\"").or_else(|| memmem::find(data, b"\"text\"")).is_some()
}

/// The number behind the last `"completion_tokens":`.
fn completion_tokens(text: &str) -> Option<u32> {
    let (_, rest) = text.rsplit_once("\"completion_tokens\":")?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_count_is_found() {
        assert_eq!(
            completion_tokens(r#"..."usage":{"completion_tokens": 17,"x":1}} data: [DONE]"#),
            Some(17)
        );
        assert_eq!(completion_tokens("data: [DONE]"), None);
    }
}
