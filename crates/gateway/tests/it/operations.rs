//! What operators do while requests are under way: swap the plan, add and remove replicas, stop; and what they read.

use std::time::Duration;

use boute_gateway::{RoutesConfig, Settings};
use boute_spec::data_file::parse_trace;
use boute_spec::policy::RoutingPolicy;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::engine::{Engine, Mood};
use crate::{CHAT, Running, ask, constant, eventually, gateway, limits, listener, send, send_with, upstream};

/// Streams are under way while the plan changes: they end as they began, and new requests go by the new plan.
#[tokio::test]
async fn a_plan_is_swapped_under_load() {
    let (old, new) =
        (Engine::start(Mood::Slow(Duration::from_millis(200))).await, Engine::start(Mood::Good).await);
    let upstreams = vec![upstream("old", old.address), upstream("new", new.address)];
    let gateway = gateway(upstreams.clone(), Some("old")).await;
    let asks = || send(gateway.address, "POST", CHAT, ask("auto", 3, true));
    let swaps = async {
        eventually("the stream is under way", || old.requests() == 1).await;
        let policy = Some(RoutingPolicy::Constant { model: "new".into() });
        let nowhere = RoutesConfig { policy: policy.clone(), upstreams: vec![], ..RoutesConfig::default() };
        assert!(gateway.gateway.swap(nowhere).is_err(), "what does not fit together is not taken");
        let next = RoutesConfig { policy, upstreams: upstreams.clone(), ..RoutesConfig::default() };
        gateway.gateway.swap(next).unwrap();
        let answer = asks().await;
        assert_eq!((answer.headers["x-boute-model"].as_bytes(), new.requests()), (&b"new"[..], 1));
        assert_eq!(gateway.metric("boute_replica_in_flight"), 1.0, "the old stream is still counted");
    };
    let (stream, ()) = tokio::join!(asks(), swaps);
    assert!(stream.text.ends_with("[DONE]\n\n") && stream.headers["x-boute-model"] == "old", "{stream:?}");
    assert_eq!(gateway.metric("boute_plan_swaps_total"), 1.0);
    gateway.is_idle().await;
}

/// Told to stop, the gateway ends what is under way, tells its probe, and takes nothing new.
#[tokio::test]
async fn stopping_ends_what_is_under_way() {
    let engine = Engine::start(Mood::Slow(Duration::from_millis(200))).await;
    let gateway = gateway(vec![upstream("m", engine.address)], None).await;
    let stream = send(gateway.address, "POST", CHAT, ask("m", 3, true));
    let whole = send(gateway.address, "POST", CHAT, ask("m", 3, false));
    let stops = async {
        eventually("both are under way", || engine.requests() == 2).await;
        gateway.stop.send(true).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(TcpStream::connect(gateway.address).await.is_err(), "nobody new is let in");
        assert!(!gateway.served.is_finished());
    };
    let (stream, whole, ()) = tokio::join!(stream, whole, stops);
    assert!(stream.text.ends_with("[DONE]\n\n") && whole.text.ends_with("}}"), "{stream:?} {whole:?}");
    eventually("it has stopped", || gateway.served.is_finished()).await;
    gateway.is_idle().await;
}

#[tokio::test]
async fn replicas_come_and_go_while_it_runs() {
    let (one, two) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let gateway = gateway(vec![upstream("m", one.address)], None).await;
    let (admin, address) = listener().await;
    let (_keep, stop) = watch::channel(false);
    let served = gateway.gateway.clone();
    tokio::spawn(async move { served.serve_admin(admin, stop).await });
    let replica = |url: String| json!({"model": "m", "url": url}).to_string();
    let there = |answer: &crate::Answer| -> Vec<String> {
        let read: Value = serde_json::from_str(&answer.text).unwrap();
        read["replicas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let path = "/admin/replicas";
    let added = send(address, "POST", path, replica(format!("http://{}", two.address))).await;
    assert_eq!(there(&added), ["m-0", "m-1"]);
    let again = send(address, "POST", path, replica(format!("http://{}", two.address))).await;
    assert_eq!(there(&again), ["m-0", "m-1"], "twice is once");
    let removed = send(address, "DELETE", path, replica(format!("http://{}/v1", one.address))).await;
    assert_eq!(there(&removed), ["m-1"]);
    for _ in 0..3 {
        assert_eq!(send(gateway.address, "POST", CHAT, ask("m", 1, false)).await.status, StatusCode::OK);
    }
    assert_eq!((one.requests(), two.requests()), (0, 3));
    // A new plan brings back nobody who was sent away, and keeps who was added.
    gateway.gateway.swap(constant(vec![upstream("m", one.address)], None)).unwrap();
    assert_eq!(there(&send(address, "GET", path, "").await), ["m-1"]);
    for (method, body, status) in [
        ("POST", "{}".to_owned(), 400),
        ("POST", replica("ftp://x".into()), 400),
        ("DELETE", replica("http://127.0.0.1:1".into()), 400),
        ("PUT", String::new(), 405),
    ] {
        assert_eq!(send(address, method, path, body).await.status.as_u16(), status);
    }
    assert!(
        send(address, "GET", "/metrics", "").await.text.contains("boute_decisions_total{model=\"m\"} 3\n")
    );
    assert_eq!(
        send(gateway.address, "GET", "/metrics", "").await.status,
        StatusCode::NOT_FOUND,
        "not for clients"
    );
    assert_eq!(send(gateway.address, "GET", path, "").await.status, StatusCode::NOT_FOUND);
}

/// The log of decisions is a trace; feedback is kept beside it.
#[tokio::test]
async fn decisions_are_a_trace_and_feedback_is_kept() {
    let engine = Engine::start(Mood::Slow(Duration::from_millis(50))).await;
    let path = std::env::temp_dir().join(format!("boute-decisions-{}.jsonl", std::process::id()));
    let feedback = path.with_extension("jsonl.feedback.jsonl");
    for file in [&path, &feedback] {
        let _ = std::fs::remove_file(file);
    }
    let settings = Settings {
        decisions: Some(path.clone()),
        log_prompts: true,
        limits: limits(),
        ..Settings::default()
    };
    let gateway = Running::start(constant(vec![upstream("m", engine.address)], Some("m")), settings).await;
    let session = [("x-boute-session", "s-1"), ("x-request-id", "r-1")];
    // The first to come is the last to end.
    let (slow, quick) =
        tokio::join!(send_with(gateway.address, "POST", CHAT, &session, ask("auto", 3, true)), async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            send(gateway.address, "POST", CHAT, ask("m", 3, false)).await
        });
    assert_eq!((slow.status, quick.status), (StatusCode::OK, StatusCode::OK));
    let rate = |id: &str, score| {
        let body = json!({"request_id": id, "score": score}).to_string();
        send(gateway.address, "POST", "/v1/feedback", body)
    };
    let rated = rate("r-1", 0.5).await;
    assert_eq!((rated.status, rated.text.contains("\"m\"")), (StatusCode::OK, true), "{}", rated.text);
    assert_eq!(rate("r-2", 0.5).await.status, StatusCode::NOT_FOUND);
    assert_eq!(rate("r-1", 7.0).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(gateway.metric("boute_feedback_score_sum{model=\"m\"}"), 0.5);
    gateway.is_idle().await;
    gateway.stop.send(true).unwrap();
    gateway.served.await.unwrap();
    drop(gateway.gateway);

    let written = || std::fs::read_to_string(&path).unwrap();
    eventually("the log is written", || written().lines().count() == 2).await;
    let text = written();
    let trace = parse_trace("decisions.jsonl", &text).unwrap();
    let sizes: Vec<_> = trace.requests().iter().map(|it| (it.input_tokens, it.output_tokens)).collect();
    assert_eq!(sizes, [(7, 3), (7, 3)]);
    assert_eq!(trace.requests()[0].session_id.as_deref(), Some("s-1"), "in order of arrival: {text}");
    assert_eq!(trace.requests()[0].prompt.as_deref(), Some("hello"));
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let decision = &last["decision"];
    assert_eq!(
        (&decision["asked"], &decision["model"], &decision["reason"]),
        (&json!("auto"), &json!("m"), &json!("constant"))
    );
    assert_eq!((&decision["request_id"], &decision["ending"]), (&json!("r-1"), &json!("done")));
    assert!(decision["ttft_ms"].as_f64().unwrap() < decision["e2e_ms"].as_f64().unwrap());
    let rated = std::fs::read_to_string(&feedback).unwrap();
    assert_eq!(rated, "{\"request_id\":\"r-1\",\"model\":\"m\",\"score\":0.5}\n");
    for file in [&path, &feedback] {
        std::fs::remove_file(file).unwrap();
    }
}
