//! Gateway, emulated replica and load generator over real sockets on the loopback interface.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod profile;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{
    BenchConfig, BenchRequest, GatewayConfig, GatewayError, MockConfig, ReadyGateway, Upstream, bench,
    serve_mock, served_models,
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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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
        model: model.into(),
        url: format!("http://{address}"),
        speed: SPEED,
        expected_output_tokens: Some(20),
    }
}

async fn gateway(upstreams: Vec<Upstream>, auto: Option<&str>) -> SocketAddr {
    let (listener, address) = listener().await;
    let policy = auto.map(|model| RoutingPolicy::Constant { model: model.into() });
    let ready = ReadyGateway::new(GatewayConfig { policy, scorer: None, upstreams }).unwrap();
    tokio::spawn(ready.serve(listener));
    address
}

struct Answer {
    status: StatusCode,
    headers: hyper::HeaderMap,
    /// The whole body, or what came before it broke off.
    text: String,
    broken: bool,
}

async fn send(address: SocketAddr, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = hyper::Request::builder().method(method).uri(format!("http://{address}{path}"));
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
    let whole = send(gateway, "POST", "/v1/chat/completions", ask("auto", 7, false)).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.headers["x-boute-model"], "small");
    assert_eq!(whole.headers["x-boute-reason"], "constant");
    let body: Value = serde_json::from_str(&whole.text).unwrap();
    assert_eq!((&body["model"], &body["usage"]["completion_tokens"]), (&json!("small"), &json!(7)));

    let streamed = send(gateway, "POST", "/v1/chat/completions", ask("large", 7, true)).await;
    assert_eq!(streamed.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(streamed.headers["x-boute-model"], "large");
    assert!(streamed.text.ends_with("data: [DONE]\n\n"));
    assert_eq!(streamed.text.matches(" word").count(), 7);

    let completion = json!({"model": "small", "prompt": "hello", "max_tokens": 3}).to_string();
    let completion = send(gateway, "POST", "/v1/completions", completion).await;
    assert!(completion.text.contains("\"text_completion\""));

    assert_eq!(served_models(&format!("http://{gateway}/v1")).await, ["large", "small"]);
    let metrics = send(gateway, "GET", "/metrics", "").await.text;
    assert!(metrics.contains("boute_decisions_total{model=\"small\"} 2"), "{metrics}");
    assert!(
        metrics
            .lines()
            .filter(|line| line.starts_with("boute_replica_in_flight{"))
            .all(|line| line.ends_with(" 0")),
        "{metrics}"
    );
    assert_eq!(send(gateway, "GET", "/health", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let gateway = gateway(vec![upstream("small", mock("small").await)], None).await;
    let chat = "/v1/chat/completions";
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
async fn a_dead_replica_is_passed_over() {
    let (dead, address) = listener().await;
    drop(dead);
    let gateway = gateway(vec![upstream("m", address), upstream("m", mock("m").await)], Some("m")).await;
    for _ in 0..4 {
        let answer = send(gateway, "POST", "/v1/chat/completions", ask("auto", 2, false)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    let metrics = send(gateway, "GET", "/metrics", "").await.text;
    assert!(metrics.contains("boute_retries_total{} 1\n"), "{metrics}");
}

#[tokio::test]
async fn all_replicas_dead_is_said() {
    let (dead, address) = listener().await;
    drop(dead);
    let gateway = gateway(vec![upstream("m", address)], Some("m")).await;
    let answer = send(gateway, "POST", "/v1/chat/completions", ask("m", 2, false)).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.text.contains("replica_unreachable"));
}

#[tokio::test]
async fn a_death_mid_stream_is_no_clean_end() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(format!("{head}a\r\ndata: {{}}\n\n\r\n").as_bytes()).await.unwrap();
    });
    let gateway = gateway(vec![upstream("m", address)], None).await;
    let answer = send(gateway, "POST", "/v1/chat/completions", ask("m", 2, true)).await;
    assert!(answer.broken);
    assert!(answer.text.contains("data: {\"error\"") && !answer.text.contains("[DONE]"), "{}", answer.text);
    let metrics = send(gateway, "GET", "/metrics", "").await.text;
    assert!(
        metrics.contains(&format!("boute_replica_in_flight{{model=\"m\",replica=\"http://{address}\"}} 0")),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_client_that_goes_frees_the_replica() {
    let replica = mock("m").await;
    let gateway = gateway(vec![upstream("m", replica)], None).await;
    for stream in [true, false] {
        let asked = send(gateway, "POST", "/v1/chat/completions", ask("m", 5000, stream));
        assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
        let mut left = String::new();
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = send(replica, "GET", "/metrics", "").await.text;
            if left.contains("vllm:num_requests_running{model_name=\"m\"} 0\n") {
                break;
            }
        }
        assert!(left.contains("vllm:num_requests_running{model_name=\"m\"} 0\n"), "{left}");
    }
    let metrics = send(gateway, "GET", "/metrics", "").await.text;
    assert!(
        metrics.contains("} 0\n") && !metrics.contains("boute_replica_in_flight{model=\"m\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_impossible_gateway_does_not_start() {
    let config = |model: &str, url: &str| GatewayConfig {
        policy: Some(RoutingPolicy::Constant { model: model.into() }),
        scorer: None,
        upstreams: vec![Upstream { url: url.into(), ..upstream("m", "127.0.0.1:1".parse().unwrap()) }],
    };
    assert!(matches!(ReadyGateway::new(config("m", "ftp://x")), Err(GatewayError::Url { .. })));
    assert!(matches!(ReadyGateway::new(config("m", "no address")), Err(GatewayError::Url { .. })));
    assert!(ReadyGateway::new(config("other", "http://127.0.0.1:1")).is_err());
}

/// The load generator through the gateway to a replica measures what the engine itself says.
#[tokio::test]
async fn what_is_measured_is_what_the_engine_does() {
    let gateway = gateway(vec![upstream("m", mock("m").await)], Some("m")).await;
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
    let config = BenchConfig {
        url: format!("http://{gateway}"),
        model: "auto".into(),
        models: vec!["m".into()],
        time_scale: 1.0,
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
    assert!((measured / e2e - 1.0).abs() < 0.25, "{measured} {e2e}");
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
        requests,
    };
    let result = bench(config, |_, _| ()).await;
    assert_eq!(result.failed(), 1);
    assert!(result.errors.keys().all(|error| error.starts_with("not sent")));
    assert!(served_models(&format!("http://{address}")).await.is_empty());
}
