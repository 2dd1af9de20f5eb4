//! Traces as a collector gets them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use boute_gateway::{GatewayError, RoutesConfig, Settings};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::engine::{Engine, Mood};
use crate::{CHAT, Running, ask, constant, eventually, limits, listener, send, send_with, upstream};

/// A collector that keeps the spans it is sent, in the order of their end.
async fn collector() -> (String, Arc<Mutex<Vec<Value>>>) {
    let (listener, address) = listener().await;
    let spans = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&spans);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut received = Vec::new();
            loop {
                let text = String::from_utf8_lossy(&received).into_owned();
                let message =
                    text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
                if let Some(message) = message {
                    let message: Value = message;
                    assert!(text.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{text}");
                    let of_scope =
                        message["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
                    kept.lock().unwrap().extend(of_scope);
                    received.clear();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    socket.write_all(answer).await.unwrap();
                }
                let mut piece = vec![0; 1 << 16];
                match socket.read(&mut piece).await {
                    Ok(count @ 1..) => received.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
        }
    });
    (format!("http://{address}"), spans)
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a str {
    let all = span["attributes"].as_array().unwrap();
    let value = all.iter().find(|it| it["key"] == key).map(|it| &it["value"]);
    value.and_then(|value| value.as_object()?.values().next()?.as_str()).unwrap_or_default()
}

#[tokio::test]
async fn a_request_and_its_attempts_are_spans_of_the_callers_trace() {
    let (mut dead, good) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    dead.kill().await;
    let (url, spans) = collector().await;
    let mut settings = Settings { limits: limits(), otlp: Some(url), ..Settings::default() };
    settings.limits.check_every = Duration::from_mins(1);
    let upstreams = vec![upstream("m", dead.address), upstream("m", good.address)];
    let gateway = Running::start(constant(upstreams, None), settings).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = |flags: &str| ("traceparent", format!("00-{trace}-b7ad6b7169203331-{flags}"));
    let ask_within = async |flags: &str, body: String| {
        let (name, value) = traced(flags);
        send_with(gateway.address, "POST", CHAT, &[(name, &value)], body).await
    };
    // Nobody has found out yet that the first is dead: each is tried until then.
    let answer = ask_within("01", ask("m", 3, true)).await;
    assert!(answer.text.ends_with("[DONE]\n\n"));
    let seen = engine_traceparent(&good);
    ask_within("00", ask("m", 3, false)).await;
    assert!(engine_traceparent(&good).ends_with("-b7ad6b7169203331-00"), "not kept, and sent on as it came");
    gateway.is_idle().await;
    gateway.stop.send(true).unwrap();
    let attempts: usize = answer.headers["x-boute-attempts"].to_str().unwrap().parse().unwrap();
    eventually("all spans have come", || spans.lock().unwrap().len() > attempts).await;
    let spans = spans.lock().unwrap().clone();
    assert_eq!(spans.len(), attempts + 1, "{spans:?}");
    let request = spans.iter().find(|span| span["kind"] == 2).unwrap();
    assert_eq!((&request["traceId"], &request["parentSpanId"]), (&trace.into(), &"b7ad6b7169203331".into()));
    assert_eq!(request["name"], "chat m");
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.response.status_code", "200"),
        ("boute.reason", "asked"),
    ] {
        assert_eq!(attribute(request, key), value, "{request}");
    }
    for attempt in spans.iter().filter(|span| span["kind"] == 3) {
        assert_eq!((&attempt["traceId"], &attempt["parentSpanId"]), (&trace.into(), &request["spanId"]));
        let answered = attribute(attempt, "error.type").is_empty();
        assert_eq!(answered, seen == format!("00-{trace}-{}-01", attempt["spanId"].as_str().unwrap()));
        assert_eq!(attempt["status"]["code"] == 2, !answered, "{attempt}");
    }
    assert_eq!(gateway.metric("boute_spans_dropped_total"), 0.0);
}

fn engine_traceparent(engine: &Engine) -> String {
    let last = engine.last();
    last.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap().to_owned()
}

/// Without a collector nothing waits: spans are dropped, and counted.
#[tokio::test]
async fn a_collector_that_is_away_holds_nobody_up() {
    let engine = Engine::start(Mood::Good).await;
    let settings =
        Settings { limits: limits(), otlp: Some("http://127.0.0.1:9".into()), ..Settings::default() };
    let gateway = Running::start(constant(vec![upstream("m", engine.address)], None), settings).await;
    assert!(send(gateway.address, "POST", CHAT, ask("m", 3, true)).await.text.ends_with("[DONE]\n\n"));
    assert!(engine_traceparent(&engine).starts_with("00-"), "a trace of its own");
    eventually("they are counted", || gateway.metric("boute_spans_dropped_total") == 2.0).await;
    let nowhere = Settings { otlp: Some("collector:4318".into()), ..Settings::default() };
    let refused = boute_gateway::Gateway::new(RoutesConfig::default(), nowhere);
    assert!(matches!(refused, Err(GatewayError::Collector { .. })));
}
