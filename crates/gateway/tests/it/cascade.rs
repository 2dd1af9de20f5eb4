//! Answers that are asked for again: when, how often, and what the client, the metrics and the log are told.

use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{RoutesConfig, Settings};
use boute_spec::policy::{CascadePolicy, ModelPenalty, RoutingPolicy};
use boute_spec::units::Fraction;
use serde_json::{Value, json};

use crate::engine::{Engine, Mood};
use crate::routing::scorer;
use crate::{Answer, CHAT, Running, limits, mock, send, upstream};

/// The large model asks again where the small one's answer is long: worth 0.75 more at 100 tokens, nothing at 5.
fn cascade(max_share: f64) -> CascadePolicy {
    CascadePolicy {
        from: "small".into(),
        to: "large".into(),
        max_share: Fraction::new(max_share).unwrap(),
        min_gain: 0.3,
        weights: [[0.0, 0.0, -3.0, 0.0, 0.0, 0.0, -3.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]],
    }
}

async fn cascading(max_share: f64, large: std::net::SocketAddr, log: Option<&str>) -> Running {
    let penalty = |model: &str, lambda| ModelPenalty { model: model.into(), lambda };
    let config = RoutesConfig {
        policy: Some(RoutingPolicy::Utility {
            penalties: vec![penalty("small", 0.0), penalty("large", 0.3)],
        }),
        scorer: Some(Arc::new(scorer(None))),
        upstreams: vec![upstream("small", mock("small").await), upstream("large", large)],
        cascade: Some(cascade(max_share)),
        ..RoutesConfig::default()
    };
    Running::start(
        config,
        Settings { limits: limits(), decisions: log.map(Into::into), ..Settings::default() },
    )
    .await
}

async fn easy(gateway: &Running, model: &str, tokens: u32, stream: bool) -> Answer {
    let messages = [json!({"role": "user", "content": "easy question number 1"})];
    let body = json!({"model": model, "messages": messages, "max_tokens": tokens, "stream": stream});
    send(gateway.address, "POST", CHAT, body.to_string()).await
}

/// (model, reason, attempts) as the client is told, and the model that the body names.
fn told(answer: &Answer) -> [String; 4] {
    let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_str(&answer.text).unwrap();
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    [header("x-boute-model"), header("x-boute-reason"), header("x-boute-attempts"), model]
}

#[tokio::test]
async fn a_doubtful_answer_is_asked_for_again() {
    let log = std::env::temp_dir().join(format!("boute-cascade-{}.jsonl", std::process::id()));
    let _ = std::fs::remove_file(&log);
    let gateway = cascading(1.0, mock("large").await, log.to_str()).await;
    let escalated = easy(&gateway, "auto", 100, false).await;
    assert_eq!(told(&escalated), ["large", "escalated from small", "2", "large"], "{}", escalated.text);
    assert_eq!(told(&easy(&gateway, "auto", 5, false).await), ["small", "policy", "1", "small"]);
    // Whoever names a model or streams gets what was asked for, as it comes.
    assert_eq!(told(&easy(&gateway, "small", 100, false).await)[..2], ["small", "asked"]);
    let streamed = easy(&gateway, "auto", 100, true).await;
    assert_eq!(
        (&streamed.headers["x-boute-model"], streamed.text.matches(" word").count()),
        (&"small".parse().unwrap(), 100)
    );
    gateway.is_idle().await;
    let outcome = |name: &str| gateway.metric(&format!("boute_cascade_total{{outcome=\"{name}\"}}"));
    assert_eq!([outcome("asked again"), outcome("kept"), outcome("over budget")], [1.0, 1.0, 0.0]);
    let ended = |model: &str, ending: &str| {
        let labels =
            format!("gen_ai_response_model=\"{model}\",gen_ai_operation_name=\"chat\",ending=\"{ending}\"");
        gateway.metric(&format!("boute_answers_total{{{labels}}}"))
    };
    assert_eq!([ended("small", "replaced"), ended("small", "done"), ended("large", "done")], [1.0, 3.0, 1.0]);
    gateway.stop.send(true).unwrap();
    gateway.served.await.unwrap();
    drop(gateway.gateway);
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "a line per answer that was given: it is a trace");
    let decision = &lines[0]["decision"];
    assert_eq!((&decision["model"], &decision["attempts"]), (&json!("large"), &json!(2)));
    assert_eq!(
        (&decision["replaced"]["model"], &decision["replaced"]["output_length"]),
        (&json!("small"), &json!(100))
    );
    assert!(
        decision["replaced"]["gain"].as_f64().unwrap() > 0.5 && lines[1]["decision"]["replaced"].is_null()
    );
    std::fs::remove_file(&log).unwrap();
}

#[tokio::test]
async fn second_answers_keep_to_their_share() {
    let gateway = cascading(0.25, mock("large").await, None).await;
    let mut escalated = 0;
    for _ in 0..20 {
        escalated += u32::from(told(&easy(&gateway, "auto", 60, false).await)[0] == "large");
    }
    assert_eq!(escalated, 5);
    assert_eq!(gateway.metric("boute_cascade_total{outcome=\"over budget\"}"), 15.0);
}

/// The first answer is in hand: whatever the larger model does, the client gets one.
#[tokio::test]
async fn the_first_answer_stands_where_the_second_fails() {
    let large = Engine::start(Mood::Good).await;
    let gateway = cascading(1.0, large.address, None).await;
    for mood in
        [Mood::Status(500), Mood::Status(429), Mood::Garbage, Mood::DiesAfterHead, Mood::Silent, Mood::Down]
    {
        large.set(mood);
        let answer = easy(&gateway, "auto", 60, false).await;
        assert_eq!(told(&answer), ["small", "escalation failed", "1", "small"], "{mood:?}");
        assert!(answer.text.contains("\"completion_tokens\":60"), "{mood:?}: {}", answer.text);
    }
    gateway.is_idle().await;
    assert_eq!(gateway.metric("boute_cascade_total{outcome=\"failed\"}"), 6.0);
    large.set(Mood::Slow(Duration::from_millis(1)));
    for _ in 0..100 {
        if told(&easy(&gateway, "auto", 60, false).await)[0] == "large" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the larger model is back, and not asked");
}
