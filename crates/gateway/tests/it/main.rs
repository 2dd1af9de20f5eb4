//! Gateway, emulated replica and load generator over real sockets on the loopback interface.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod cascade;
mod certificate;
mod discovery;
mod engine;
mod faults;
mod hedging;
mod operations;
mod profile;
mod routing;
mod seeds;
mod soak;
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{
    BenchConfig, BenchRequest, Gateway, GatewayError, Limits, MockConfig, RoutesConfig, Settings, Upstream,
    bench, serve_mock, served_models,
};
use boute_perf::{Batch, StepTime};
use boute_router::balance::ReplicaSpeed;
use boute_sim::{Engine, EngineConfig, EngineEvent, EngineRequest};
use boute_spec::policy::RoutingPolicy;
use boute_spec::units::SimTime;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const SPEED: ReplicaSpeed =
    ReplicaSpeed { prompt_tokens_per_s: 1e4, answer_tokens_per_s: 1e3, seconds_per_answer_token: 0.01 };
const ENGINE: EngineConfig =
    EngineConfig { max_num_seqs: 32, max_num_batched_tokens: 2048, kv_blocks: 1000, prefix_caching: true };

/// 5 ms a step and 10 µs a prompt token.
#[derive(Debug, Clone, Copy)]
struct Steady;

impl StepTime for Steady {
    fn step_time(&self, batch: &Batch) -> SimTime {
        SimTime::from_nanos(5_000_000 + 10_000 * batch.prefill_tokens)
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn mock(model: &str) -> SocketAddr {
    let (listener, address) = listener().await;
    let config = MockConfig {
        model: model.into(),
        engine: ENGINE,
        step_time: Steady,
        request_time: SimTime::ZERO,
        time_scale: 1.0,
        output_length_scale: 1.0,
    };
    tokio::spawn(serve_mock(config, listener));
    address
}

fn upstream(model: &str, address: SocketAddr) -> Upstream {
    Upstream {
        speed: SPEED,
        expected_output_tokens: Some(20),
        ..Upstream::at(model, &format!("http://{address}"))
    }
}

/// Short limits, so that tests are; longer than another process may hold up a token.
fn limits() -> Limits {
    let mut limits = Limits {
        first_byte: Duration::from_secs(2),
        silence: Duration::from_secs(1),
        check_every: Duration::from_millis(50),
        ..Limits::default()
    };
    limits.client.drain = Duration::from_secs(5);
    limits
}

/// A gateway that runs.
struct Running {
    address: SocketAddr,
    gateway: Gateway,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl Running {
    async fn start(config: RoutesConfig, settings: Settings) -> Self {
        let (listener, address) = listener().await;
        let gateway = Gateway::new(config, settings).unwrap();
        let (stop, stopping) = watch::channel(false);
        let served = gateway.clone();
        let served = tokio::spawn(async move { served.serve(listener, None, stopping).await });
        Self { address, gateway, stop, served }
    }

    /// The value of a metric; 0 if it is not there.
    fn metric(&self, name: &str) -> f64 {
        let metrics = self.gateway.metrics();
        let values = metrics.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }

    /// All that was taken has been given back.
    async fn is_idle(&self) {
        let left = || {
            let gauges = [
                "boute_replica_in_flight",
                "boute_replica_waiting",
                "boute_requests_in_flight",
                "boute_requests_waiting",
            ];
            gauges.map(|gauge| self.metric(gauge)).iter().sum::<f64>()
        };
        eventually("nothing is in flight", || left() == 0.0).await;
    }
}

/// Waits for what is to come soon.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not so within 4 s: {what}");
}

fn constant(upstreams: Vec<Upstream>, auto: Option<&str>) -> RoutesConfig {
    let policy = auto.map(|model| RoutingPolicy::Constant { model: model.into() });
    RoutesConfig { policy, upstreams, ..RoutesConfig::default() }
}

async fn gateway(upstreams: Vec<Upstream>, auto: Option<&str>) -> Running {
    Running::start(constant(upstreams, auto), Settings { limits: limits(), ..Settings::default() }).await
}

const CHAT: &str = "/v1/chat/completions";

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: hyper::HeaderMap,
    /// The whole body, or what came before it broke off.
    text: String,
    broken: bool,
}

async fn send(address: SocketAddr, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
    send_with(address, method, path, &[], body).await
}

async fn send_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = hyper::Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let (mut body, mut bytes, mut broken) = (response.into_body(), Vec::new(), false);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            broken = true;
            break;
        };
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    Answer { status, headers, text: String::from_utf8(bytes).unwrap(), broken }
}

fn ask(model: &str, tokens: u32, stream: bool) -> String {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": stream, "stream_options": {"include_usage": true}}).to_string()
}

#[tokio::test]
async fn answers_come_whole_and_streamed_with_what_was_chosen() {
    let gateway = gateway(
        vec![upstream("small", mock("small").await), upstream("large", mock("large").await)],
        Some("small"),
    )
    .await;
    let address = gateway.address;
    let whole = send(address, "POST", "/v1/chat/completions", ask("auto", 7, false)).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.headers["x-boute-model"], "small");
    assert_eq!(whole.headers["x-boute-reason"], "constant");
    let body: Value = serde_json::from_str(&whole.text).unwrap();
    assert_eq!((&body["model"], &body["usage"]["completion_tokens"]), (&json!("small"), &json!(7)));

    let streamed = send(address, "POST", CHAT, ask("large", 7, true)).await;
    assert_eq!(streamed.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(streamed.headers["x-boute-model"], "large");
    assert_eq!(streamed.headers["x-accel-buffering"], "no");
    assert!(streamed.text.ends_with("data: [DONE]\n\n"));
    assert_eq!(streamed.text.matches(" word").count(), 7);

    let completion = json!({"model": "small", "prompt": "hello", "max_tokens": 3}).to_string();
    let completion = send(address, "POST", "/v1/completions", completion).await;
    assert!(completion.text.contains("\"text_completion\""));

    assert_eq!(served_models(&format!("http://{address}/v1")).await, ["large", "small"]);
    assert_eq!(gateway.metric("boute_decisions_total{model=\"small\"}"), 2.0);
    assert_eq!(
        gateway.metric(
            "gen_ai_client_token_usage_sum{gen_ai_response_model=\"large\",gen_ai_token_type=\"output\"}"
        ),
        7.0
    );
    gateway.is_idle().await;
    assert_eq!(send(address, "GET", "/health", "").await.status, StatusCode::OK);
}

/// The engine refuses any other name than its own.
#[tokio::test]
async fn an_engine_may_know_a_model_by_another_name() {
    let engine = mock("meta/\"8b\"").await;
    let gateway =
        gateway(vec![Upstream::at("8b", &format!("http://{engine}/v1#meta/\"8b\""))], Some("8b")).await;
    for (asked, streams) in [("8b", false), ("auto", false), ("8b", true)] {
        let answer = send(gateway.address, "POST", CHAT, ask(asked, 3, streams)).await;
        assert_eq!((answer.status, answer.broken), (StatusCode::OK, false), "{}", answer.text);
        assert_eq!(answer.headers["x-boute-model"], "8b");
        assert!(answer.text.contains("\"model\":\"8b\"") && !answer.text.contains("meta"), "{}", answer.text);
        assert!(answer.text.contains("\"completion_tokens\":3"), "{}", answer.text);
    }
    assert_eq!(served_models(&format!("http://{}/v1", gateway.address)).await, ["8b"]);
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let gateway = gateway(vec![upstream("small", mock("small").await)], None).await.address;
    let chat = CHAT;
    let many = format!("{{\"model\":\"small\",\"messages\":[],\"x\":\"{}\"}}", "y".repeat(33 << 20));
    for (method, path, body, status) in [
        ("POST", chat, "{".to_owned(), StatusCode::BAD_REQUEST),
        ("POST", chat, "{\"model\":5,\"messages\":[{}]}".into(), StatusCode::BAD_REQUEST),
        ("POST", chat, "{\"model\":\"small\"}".into(), StatusCode::BAD_REQUEST),
        ("POST", chat, ask("gpt", 1, false), StatusCode::NOT_FOUND),
        ("POST", chat, ask("auto", 1, false), StatusCode::NOT_FOUND),
        ("GET", chat, String::new(), StatusCode::METHOD_NOT_ALLOWED),
        ("GET", "/v2", String::new(), StatusCode::NOT_FOUND),
        ("POST", chat, many, StatusCode::PAYLOAD_TOO_LARGE),
        // Larger than the whole KV cache: the replica's own error is passed on.
        ("POST", chat, ask("small", 100_000, false), StatusCode::BAD_REQUEST),
    ] {
        let answer = send(gateway, method, path, body).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        let error = body["error"].as_object().unwrap();
        assert!(
            ["message", "type", "param", "code"].iter().all(|key| error.contains_key(*key)),
            "{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn an_impossible_gateway_does_not_start() {
    let start = |model: &str, url: &str| {
        let there = Upstream { url: url.into(), ..upstream("m", "127.0.0.1:1".parse().unwrap()) };
        Gateway::new(constant(vec![there], Some(model)), Settings::default()).map(drop)
    };
    for url in ["ftp://x", "no address", "http://x/path?query", "http://me:secret@x", ""] {
        assert!(matches!(start("m", url), Err(GatewayError::Url { .. })), "{url}");
    }
    let error = start("other", "http://127.0.0.1:1").unwrap_err().to_string();
    assert!(error.contains("`other`"), "{error}");
    let nowhere = Settings { decisions: Some("/no/such/folder/log".into()), ..Settings::default() };
    assert!(matches!(Gateway::new(RoutesConfig::default(), nowhere), Err(GatewayError::Log(_))));
}

/// The load generator through the gateway to a replica measures what the engine itself says. Another process may make any of
/// that late, and nothing makes it early: of several runs the least late one is what counts.
#[tokio::test]
async fn what_is_measured_is_what_the_engine_does() {
    let config = constant(vec![upstream("m", mock("m").await)], Some("m"));
    // However late, nothing is cut off.
    let gateway = Running::start(config, Settings::default()).await.address;
    let requests: Vec<BenchRequest> = (0_u32..40)
        .map(|index| BenchRequest {
            at: SimTime::from_seconds(f64::from(index) * 0.03),
            prompt: Arc::from("hello"),
            input_tokens: 500,
            max_tokens: 20 + index,
        })
        .collect();
    let mut engine = Engine::new(ENGINE, Steady);
    let (mut events, mut e2e) = (Vec::new(), 0.0);
    for (id, request) in (0..).zip(&requests) {
        engine.advance(request.at, &mut events);
        let request_of_engine = EngineRequest {
            id,
            input_tokens: request.input_tokens,
            output_tokens: request.max_tokens,
            ..EngineRequest::default()
        };
        engine.submit(request.at, request_of_engine).unwrap();
    }
    engine.advance(SimTime::from_seconds(100.0), &mut events);
    for event in events {
        if let EngineEvent::Finished { id, at } = event {
            e2e += at.since(requests[id as usize].at).seconds();
        }
    }
    let mut least = f64::INFINITY;
    for _ in 0..8 {
        let config = BenchConfig {
            url: format!("http://{gateway}"),
            model: "auto".into(),
            models: vec!["m".into()],
            time_scale: 1.0,
            clients: None,
            requests: requests.clone(),
        };
        let result = bench(config, |_, _| ()).await;
        assert_eq!((result.outcomes.len(), result.failed()), (40, 0), "{:?}", result.errors);
        assert!(
            result
                .outcomes
                .iter()
                .zip(&requests)
                .all(|(outcome, request)| outcome.output_tokens == request.max_tokens)
        );
        let measured: f64 = result.outcomes.iter().map(|outcome| outcome.e2e.seconds()).sum();
        assert!(measured > 0.95 * e2e, "early: {measured} {e2e}");
        least = least.min(measured / e2e);
        if least < 1.2 {
            return;
        }
    }
    panic!("late in every run: {least} times what the engine says");
}

/// In a closed loop there are never more requests under way than clients.
#[tokio::test]
async fn a_closed_loop_has_so_many_clients() {
    let engine = engine::Engine::start(engine::Mood::Slow(Duration::from_millis(20))).await;
    let request = BenchRequest { at: SimTime::ZERO, prompt: Arc::from("x"), input_tokens: 1, max_tokens: 1 };
    let config = BenchConfig {
        url: format!("http://{}", engine.address),
        model: "m".into(),
        models: vec!["m".into()],
        time_scale: 1.0,
        clients: Some(3),
        requests: vec![request; 12],
    };
    let seen = Arc::clone(&engine.seen);
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let watched = Arc::clone(&most);
    let watcher = tokio::spawn(async move {
        loop {
            watched.fetch_max(
                seen.running.load(std::sync::atomic::Ordering::SeqCst),
                std::sync::atomic::Ordering::SeqCst,
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let result = bench(config, |_, _| ()).await;
    watcher.abort();
    assert_eq!((result.outcomes.len(), result.failed()), (12, 0), "{:?}", result.errors);
    assert_eq!(most.load(std::sync::atomic::Ordering::SeqCst), 3);
    // Three tokens, twenty milliseconds before each: the first and the last bound TTFT and E2E.
    for outcome in &result.outcomes {
        assert!(outcome.ttft.seconds() >= 0.02 && outcome.e2e.seconds() >= 0.06, "{outcome:?}");
        assert_eq!(outcome.output_tokens, 3);
    }
}

#[tokio::test]
async fn failures_are_counted_by_kind() {
    let (dead, address) = listener().await;
    drop(dead);
    let requests =
        vec![BenchRequest { at: SimTime::ZERO, prompt: Arc::from("x"), input_tokens: 1, max_tokens: 1 }];
    let config = BenchConfig {
        url: format!("http://{address}"),
        model: "m".into(),
        models: Vec::new(),
        time_scale: 1.0,
        clients: None,
        requests,
    };
    let result = bench(config, |_, _| ()).await;
    assert_eq!(result.failed(), 1);
    assert!(result.errors.keys().all(|error| error.starts_with("not sent")));
    assert!(served_models(&format!("http://{address}")).await.is_empty());
}
