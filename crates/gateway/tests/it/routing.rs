//! Which model answers, which replica of it, and what the client is told of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use boute_gateway::{RoutesConfig, Settings, Upstream};
use boute_router::Scorer;
use boute_router::balance::{Balancing, ReplicaSpeed};
use boute_router::encoder::Encode;
use boute_spec::policy::{ModelPenalty, RoutingPolicy};
use boute_spec::workload::{QualityData, Query, Split};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::engine::{Engine, Mood};
use crate::{Answer, CHAT, Running, SPEED, ask, constant, gateway, limits, send, send_with, upstream};

/// Knows that the small model fails at hard questions, and the large one at none.
pub(crate) fn scorer(encoder: Option<Arc<dyn Encode>>) -> Scorer {
    let queries = (0..400).map(|number| {
        let hard = number % 2 == 1;
        Query {
            id: number.to_string(),
            prompt: format!("{} question number {}", if hard { "hard" } else { "easy" }, number / 2 % 7),
            task: String::new(),
            split: Split::Train,
            prompt_tokens: None,
            scores: vec![if hard { 0.1 } else { 0.9 }, 0.95],
            output_tokens: vec![10, 10],
        }
    });
    let data = QualityData { models: vec!["small".into(), "large".into()], queries: queries.collect() };
    Scorer::train_with(&data, 0, "", encoder).unwrap()
}

/// Has no meaning, and takes its time where it is told to.
#[derive(Debug)]
struct Slow;

impl Encode for Slow {
    fn sha256(&self) -> &'static str {
        "slow"
    }

    fn dimensions(&self) -> usize {
        1
    }

    fn encode(&self, text: &str) -> Option<Vec<f32>> {
        if text.contains("slowly") {
            std::thread::sleep(Duration::from_millis(500));
        }
        Some(vec![1.0])
    }
}

async fn two_models() -> (Running, Engine, Engine) {
    two_models_scored_by(scorer(None)).await
}

/// Two models behind a policy by which `large` must be better by 0.3.
async fn two_models_scored_by(scorer: Scorer) -> (Running, Engine, Engine) {
    let (small, large) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let penalty = |model: &str, lambda| ModelPenalty { model: model.into(), lambda };
    let config = RoutesConfig {
        policy: Some(RoutingPolicy::Utility {
            penalties: vec![penalty("small", 0.0), penalty("large", 0.3)],
        }),
        scorer: Some(Arc::new(scorer)),
        upstreams: vec![upstream("small", small.address), upstream("large", large.address)],
        aliases: [("gpt-4o", "auto:0.8"), ("mini", "small"), ("best", "auto")]
            .map(|(name, model)| (name.to_owned(), model.to_owned()))
            .into(),
        fallback: BTreeMap::from([("large".to_owned(), vec!["small".to_owned()])]),
        usd_per_million_tokens: [("small", 0.1), ("large", 1.0)].map(|(m, usd)| (m.to_owned(), usd)).into(),
        ..RoutesConfig::default()
    };
    let settings = Settings { limits: limits(), ..Settings::default() };
    (Running::start(config, settings).await, small, large)
}

fn question(model: &str, text: &str) -> String {
    json!({"model": model, "messages": [{"role": "user", "content": text}]}).to_string()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn auto_and_its_forms_choose_by_score() {
    let (gateway, small, _large) = two_models().await;
    for (model, text, headers, chosen, reason) in [
        ("auto", "easy question number 1", vec![], "small", "policy"),
        ("auto", "hard question number 1", vec![], "large", "policy"),
        ("best", "hard question number 1", vec![], "large", "policy"),
        ("auto:0.05", "hard question number 1", vec![], "small", "floor"),
        ("auto:0.8", "hard question number 1", vec![], "large", "floor"),
        ("gpt-4o", "easy question number 1", vec![], "small", "floor"),
        ("auto", "hard question number 1", vec![("x-boute-floor", "0.05")], "small", "floor"),
        ("auto", "hard question number 1", vec![("x-boute-max-cost", "0.5")], "small", "policy"),
        ("router-boute-0.99", "hard question number 1", vec![], "small", "threshold"),
        ("router-boute-0.2", "hard question number 1", vec![], "large", "threshold"),
        ("router-boute--1", "easy question number 1", vec![], "large", "threshold"),
        ("mini", "hard question number 1", vec![], "small", "alias"),
        ("large", "easy question number 1", vec![], "large", "asked"),
    ] {
        let answer = send_with(gateway.address, "POST", CHAT, &headers, question(model, text)).await;
        assert_eq!(answer.status, StatusCode::OK, "{model}: {}", answer.text);
        let told = (header(&answer, "x-boute-model"), header(&answer, "x-boute-reason"));
        assert_eq!(told, (chosen, reason), "{model}: {text} {headers:?}");
        let scored = matches!(reason, "policy" | "floor" | "threshold");
        let score: Option<f32> = header(&answer, "x-boute-score").parse().ok();
        assert_eq!(score.is_some_and(|score| (0.0..=1.0).contains(&score)), scored, "{model}");
    }
    // The body that the engine gets names the concrete model.
    assert!(small.last().contains("\"model\":\"small\""), "{}", small.last());
    assert_eq!(gateway.metric("boute_router_score_count"), 11.0);
}

/// Half of an ensemble is not what was certified: whoever's embedding is late gets the safe model, and no later turn keeps to it.
#[tokio::test]
async fn a_late_embedding_means_the_safe_model() {
    let (gateway, _small, _large) = two_models_scored_by(scorer(Some(Arc::new(Slow)))).await;
    let session = [("x-boute-session", "s1")];
    let ask = async |model: &str, text: &str| {
        let answer = send_with(gateway.address, "POST", CHAT, &session, question(model, text)).await;
        let of = |name: &str| header(&answer, name).to_owned();
        [of("x-boute-model"), of("x-boute-reason"), of("x-boute-score")]
    };
    // A busy machine may be late at first, and after a turn that has not ended.
    let in_time = async || {
        for _ in 0..50 {
            let [model, reason, score] = ask("auto", "easy question number 1").await;
            if reason == "policy" {
                assert!(model == "small" && !score.is_empty(), "{model} {score}");
                return;
            }
            assert_eq!((model.as_str(), reason.as_str()), ("large", "late embedding"));
        }
        panic!("always late");
    };
    in_time().await;
    let late = gateway.metric("boute_embeddings_late_total");
    assert_eq!(ask("auto", "slowly: easy question number 1").await, ["large", "late embedding", ""]);
    assert_eq!(ask("auto:0.8", "slowly: easy question number 1").await, ["large", "floor", ""]);
    assert_eq!(gateway.metric("boute_embeddings_late_total"), late + 2.0);
    in_time().await;
    assert_eq!(ask("small", "slowly: easy question number 1").await, ["small", "asked", ""]);
}

#[tokio::test]
async fn what_cannot_be_chosen_is_said() {
    let (gateway, ..) = two_models().await;
    for (model, headers, status, says) in [
        ("auto:1.5", vec![], 400, "from 0 to 1"),
        ("auto:high", vec![], 400, "from 0 to 1"),
        ("router-boute-x", vec![], 400, "threshold"),
        ("router-mf-0.1", vec![], 404, "gpt-4o"),
        ("auto", vec![("x-boute-max-cost", "0.01")], 400, "small: $0.10"),
        ("auto", vec![("x-boute-max-cost", "cheap")], 400, "USD"),
        ("auto", vec![("x-boute-floor", "2")], 400, "x-boute-floor"),
    ] {
        let answer = send_with(gateway.address, "POST", CHAT, &headers, question(model, "hi")).await;
        assert_eq!(answer.status.as_u16(), status, "{model}: {}", answer.text);
        assert!(answer.text.contains(says), "{model}: {}", answer.text);
    }
    let embed = json!({"model": "auto", "input": "hi"}).to_string();
    let answer = send(gateway.address, "POST", "/v1/embeddings", embed).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let models: Value =
        serde_json::from_str(&send(gateway.address, "GET", "/v1/models", "").await.text).unwrap();
    let ids: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["auto", "best", "gpt-4o", "mini", "large", "small"]);
    assert_eq!(send(gateway.address, "GET", "/v1/models/mini", "").await.status, StatusCode::OK);
    assert_eq!(send(gateway.address, "GET", "/v1/models/gpt-5", "").await.status, StatusCode::NOT_FOUND);
    // Without scores there is no quality to choose.
    let one = Engine::start(Mood::Good).await;
    let plain = crate::gateway(vec![upstream("m", one.address)], Some("m")).await;
    let answer = send(plain.address, "POST", CHAT, question("auto:0.5", "hi")).await;
    assert!(answer.status == StatusCode::BAD_REQUEST && answer.text.contains("no scores"), "{}", answer.text);
}

/// Only what the operator allows may answer in another's place, and the client is told.
#[tokio::test]
async fn a_model_without_replicas_falls_back_as_allowed() {
    let (gateway, mut small, mut large) = two_models().await;
    large.kill().await;
    for _ in 0..3 {
        let answer = send(gateway.address, "POST", CHAT, question("large", "hi")).await;
        assert_eq!((answer.status, header(&answer, "x-boute-model")), (StatusCode::OK, "small"));
        assert_eq!(header(&answer, "x-boute-reason"), "fallback from large");
        assert!(small.last().contains("\"model\":\"small\""), "{}", small.last());
    }
    large.revive();
    crate::eventually("it is back", || gateway.metric("boute_replica_well") == 2.0).await;
    small.kill().await;
    let answer = send(gateway.address, "POST", CHAT, question("small", "hi")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "nobody may answer for the small one");
}

/// Sends `count` requests one after the other; how many each engine got.
async fn shares(
    balancing: Balancing,
    speeds: [f64; 2],
    headers: &[(&str, &str)],
    text: &str,
    count: usize,
) -> [u64; 2] {
    let engines = [Engine::start(Mood::Good).await, Engine::start(Mood::Good).await];
    let upstreams = engines.iter().zip(speeds).map(|(engine, speed)| Upstream {
        speed: ReplicaSpeed { prompt_tokens_per_s: speed, ..SPEED },
        ..upstream("m", engine.address)
    });
    let config = RoutesConfig { balancing, ..constant(upstreams.collect(), None) };
    let gateway = Running::start(config, Settings { limits: limits(), ..Settings::default() }).await;
    for _ in 0..count {
        let answer = send_with(gateway.address, "POST", CHAT, headers, question("m", text)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    engines.each_ref().map(Engine::requests)
}

#[tokio::test]
async fn replicas_are_picked_as_asked() {
    let by = |balancing| shares(balancing, [1e4, 2e4], &[], "hello there", 12);
    assert_eq!(by(Balancing::RoundRobin).await, [6, 6]);
    assert_eq!(by(Balancing::LeastRequests).await, [12, 0], "idle, the first");
    assert_eq!(by(Balancing::LeastExpectedFinish).await, [0, 12], "idle, the faster");
    let [one, other] = by(Balancing::PowerOfTwo).await;
    assert_eq!(one + other, 12);
}

/// A session, and a long beginning seen before, stay where they are, though another replica is a little faster.
#[tokio::test]
async fn sessions_and_prefixes_stay() {
    let engines = [Engine::start(Mood::Good).await, Engine::start(Mood::Good).await];
    let upstreams = engines.iter().zip([1e4, 1.1e4]).map(|(engine, speed)| Upstream {
        speed: ReplicaSpeed { prompt_tokens_per_s: speed, ..SPEED },
        ..upstream("m", engine.address)
    });
    let gateway = gateway(upstreams.collect(), None).await;
    let session = [("x-boute-session", "s1")];
    let long = "word ".repeat(4000);
    // The faster is made busy: both go to the slower one.
    engines[1].set(Mood::Slow(std::time::Duration::from_millis(300)));
    let busy = send(gateway.address, "POST", CHAT, question("m", &"other ".repeat(8000)));
    let placed = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        send_with(gateway.address, "POST", CHAT, &session, question("m", "hi")).await;
        send(gateway.address, "POST", CHAT, question("m", &long)).await
    };
    tokio::join!(busy, placed);
    assert_eq!(engines.each_ref().map(Engine::requests), [2, 1]);
    send_with(gateway.address, "POST", CHAT, &session, question("m", "hi again")).await;
    send(gateway.address, "POST", CHAT, question("m", &format!("{long} and more"))).await;
    assert_eq!(engines.each_ref().map(Engine::requests), [4, 1]);
    send(gateway.address, "POST", CHAT, question("m", "hi")).await;
    assert_eq!(engines[1].requests(), 2, "who is new goes to the faster one");
}

/// What others have an engine do, by its own word, keeps our requests away from it.
#[tokio::test]
async fn load_by_others_is_seen() {
    let busy = crate::mock("m").await;
    let direct = tokio::spawn(async move { send(busy, "POST", CHAT, ask("m", 2000, true)).await });
    let idle = Engine::start(Mood::Good).await;
    let gateway = gateway(vec![upstream("m", busy), upstream("m", idle.address)], None).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    for _ in 0..5 {
        send(gateway.address, "POST", CHAT, question("m", "hi")).await;
    }
    assert_eq!(idle.requests(), 5);
    direct.abort();
}

/// An engine that fails requests and passes its health checks is known to be well again by a request alone.
#[tokio::test]
async fn a_model_comes_back_from_its_fallback() {
    let (gateway, _small, large) = two_models().await;
    large.set(Mood::Status(500));
    let ask = || send(gateway.address, "POST", CHAT, question("large", "hi"));
    for _ in 0..3 {
        assert_eq!(ask().await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(header(&ask().await, "x-boute-reason"), "fallback from large");
    large.set(Mood::Good);
    for _ in 0..100 {
        if header(&ask().await, "x-boute-model") == "large" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("well again, and not asked");
}
