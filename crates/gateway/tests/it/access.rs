//! Who may ask, how much, over what; and what reaches the engine.

use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{Gateway, Keys, Settings, Tls};
use boute_spec::digest::sha256_hex;
use hyper::StatusCode;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::engine::{Engine, Mood};
use crate::{CHAT, Running, ask, constant, eventually, gateway, limits, listener, send, send_with, upstream};

fn keys(text: &str) -> Keys {
    let hash = |name: &str| sha256_hex(format!("{name}-key").as_bytes());
    let lines = text.split(';').map(|line| {
        let (name, limits) = line.split_once(' ').unwrap_or((line, ""));
        format!("{name} {} {limits}\n", hash(name))
    });
    Keys::parse("keys", &lines.collect::<String>()).unwrap()
}

async fn as_client(gateway: &Running, name: &str) -> crate::Answer {
    let bearer = format!("Bearer {name}-key");
    send_with(gateway.address, "POST", CHAT, &[("authorization", &bearer)], ask("m", 3, true)).await
}

#[tokio::test]
async fn only_known_keys_are_served_and_none_reaches_the_engine() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(vec![upstream("m", engine.address)], None).await;
    gateway.gateway.set_keys(Some(keys("alice;bob")));
    for (method, path) in [("POST", CHAT), ("GET", "/v1/models"), ("POST", "/v1/feedback")] {
        let answer = send(gateway.address, method, path, ask("m", 3, false)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(answer.text.contains("\"invalid_api_key\""), "{}", answer.text);
    }
    assert_eq!(send(gateway.address, "GET", "/health", "").await.status, StatusCode::OK, "for probes");
    assert_eq!(as_client(&gateway, "alice").await.status, StatusCode::OK);
    assert!(!engine.last().to_lowercase().contains("alice"), "{}", engine.last());
    assert_eq!(as_client(&gateway, "mallory").await.status, StatusCode::UNAUTHORIZED);
    gateway.gateway.set_keys(Some(keys("bob")));
    assert_eq!(
        as_client(&gateway, "alice").await.status,
        StatusCode::UNAUTHORIZED,
        "taken away while it runs"
    );
    // Without keys of our own, clients' keys are the engines' business.
    gateway.gateway.set_keys(None);
    as_client(&gateway, "alice").await;
    assert!(engine.last().contains("Bearer alice-key"), "{}", engine.last());
}

#[tokio::test]
async fn limits_are_per_key() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(vec![upstream("m", engine.address)], None).await;
    gateway.gateway.set_keys(Some(keys("alice requests/min=2;bob tokens/min=15")));
    let statuses = async |name| {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let answer = as_client(&gateway, name).await;
            let waits =
                answer.headers.get("retry-after").map(|it| it.to_str().unwrap().parse::<u64>().unwrap());
            assert_eq!(waits.is_some_and(|seconds| seconds > 0), answer.status == 429, "{answer:?}");
            statuses.push(answer.status.as_u16());
        }
        statuses
    };
    assert_eq!(statuses("alice").await, [200, 200, 429]);
    // Each answer takes ten tokens, by the engine's own count.
    assert_eq!(statuses("bob").await, [200, 200, 429]);
}

/// A full house answers 429 at once; who waits gets in by turns.
#[tokio::test]
async fn a_full_gateway_pushes_back() {
    let engine = Engine::start(Mood::Slow(Duration::from_millis(300))).await;
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.admission.in_flight = 2;
    settings.limits.admission.waiting = 2;
    let gateway = Running::start(constant(vec![upstream("m", engine.address)], None), settings).await;
    let ask = || send(gateway.address, "POST", CHAT, ask("m", 3, false));
    let (a, b, c, d, e) = tokio::join!(ask(), ask(), ask(), ask(), ask());
    let mut statuses = [a, b, c, d, e].map(|answer| answer.status.as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 429]);
    assert_eq!(gateway.metric("boute_errors_total{error_type=\"overloaded\"}"), 1.0);
    gateway.is_idle().await;
}

#[tokio::test]
async fn https_is_spoken() {
    let engine = Engine::start(Mood::Good).await;
    let (certificate, key) = (include_bytes!("data/cert.pem"), include_bytes!("data/key.pem"));
    let config = constant(vec![upstream("m", engine.address)], None);
    let gateway = Gateway::new(config, Settings { limits: limits(), ..Settings::default() }).unwrap();
    let (listener, address) = listener().await;
    let (_keep, stop) = watch::channel(false);
    let tls = Tls::new(certificate, key).unwrap();
    tokio::spawn(async move { gateway.serve(listener, Some(tls), stop).await });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut socket = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
    let body = ask("m", 3, true);
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    // Plain text, and a peer that says nothing, are turned away.
    assert!(Tls::new(certificate, b"no key").is_err() && Tls::new(b"", key).is_err());
}

/// What the client sends arrives as it was sent, but for what concerns one connection only.
#[tokio::test]
async fn requests_arrive_as_they_were_sent() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(vec![upstream("m", engine.address)], None).await;
    let body = r#"{ "zz":{"a":[1, 2.50,null]}, "seed":9007199254740993,"model":"m", "messages":[{"role":"user","content":"hé"}] }"#;
    let headers = [
        ("x-request-id", "id-1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-custom", "1"),
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
    ];
    let answer = send_with(gateway.address, "POST", &format!("{CHAT}?v=1"), &headers, body).await;
    assert_eq!(answer.headers["x-request-id"], "id-1");
    let last = engine.last();
    assert!(last.ends_with(body), "{last}");
    assert!(last.starts_with("POST /v1/chat/completions?v=1 HTTP/1.1\r\n"), "{last}");
    for kept in ["x-request-id: id-1", "traceparent: 00-0af7", "x-custom: 1"] {
        assert!(last.contains(kept), "{last}");
    }
    assert!(!last.contains("x-hop") && last.contains(&format!("host: {}", engine.address)), "{last}");
    let answer = send(gateway.address, "POST", CHAT, ask("m", 3, false)).await;
    assert!(answer.headers["x-request-id"].to_str().unwrap().starts_with("boute-"));
}

/// Counts are asked for in the client's stead, and are not shown to it.
#[tokio::test]
async fn usage_is_counted_for_everybody_and_shown_to_who_asks() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(vec![upstream("m", engine.address)], None).await;
    let plain =
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}).to_string();
    for mood in [Mood::Sized, Mood::Good] {
        engine.set(mood);
        let answer = send(gateway.address, "POST", CHAT, plain.clone()).await;
        assert!(!answer.text.contains("usage") && answer.text.ends_with("[DONE]\n\n"), "{}", answer.text);
        assert!(engine.last().contains("include_usage"));
    }
    let asked = send(gateway.address, "POST", CHAT, ask("m", 3, true)).await;
    assert!(asked.text.contains("\"completion_tokens\":3"), "{}", asked.text);
    eventually("all are counted", || gateway.metric("gen_ai_client_token_usage_sum") == 30.0).await;
}

#[tokio::test]
async fn browsers_may_ask_where_they_are_allowed() {
    let engine = Engine::start(Mood::Good).await;
    let settings = Settings {
        allow_origins: vec!["https://chat.example".into()],
        limits: limits(),
        ..Settings::default()
    };
    let gateway = Running::start(constant(vec![upstream("m", engine.address)], None), settings).await;
    for (origin, allowed) in [("https://chat.example", true), ("https://evil.example", false)] {
        let asked = [("origin", origin), ("access-control-request-method", "POST")];
        let preflight = send_with(gateway.address, "OPTIONS", CHAT, &asked, "").await;
        assert_eq!(preflight.status, StatusCode::NO_CONTENT);
        let answer = send_with(gateway.address, "POST", CHAT, &asked, ask("m", 1, false)).await;
        for headers in [&preflight.headers, &answer.headers] {
            assert_eq!(headers.contains_key("access-control-allow-origin"), allowed, "{origin}");
        }
    }
    let head = send(gateway.address, "HEAD", "/v1/models", "").await;
    assert!(head.status == StatusCode::OK && head.text.is_empty());
    let wrong = send(gateway.address, "PUT", CHAT, "").await;
    assert_eq!(
        (wrong.status, &wrong.headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    let body: Value = serde_json::from_str(&wrong.text).unwrap();
    assert!(body["error"]["message"].is_string());
}
