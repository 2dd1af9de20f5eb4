//! The promise of a plan while it is served: what voids it, what does not, and what is outside it.

use std::net::SocketAddr;
use std::sync::Arc;

use boute_gateway::{RoutesConfig, Settings, WhenVoid};
use boute_router::decide::Decider;
use boute_router::policy::assign;
use boute_router::{Scorer, monitor};
use boute_spec::certificate::Certificate;
use boute_spec::policy::{ModelPenalty, RoutingPolicy};
use boute_spec::workload::{QualityData, Query, Split};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::engine::{Engine, Mood};
use crate::{Answer, CHAT, Running, eventually, limits, listener, send, send_with, upstream};

/// Numbers that look drawn.
struct Lots(u64);

impl Lots {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1_u64 << 24) as f64
    }

    fn below(&mut self, count: usize) -> usize {
        (self.draw() * count as f64) as usize
    }

    /// A question of one of many texts.
    fn question(&mut self, hard: bool) -> String {
        const WORDS: [&str; 12] = [
            "rivers", "planets", "bread", "chess", "glass", "sleep", "copper", "trains", "poems", "markets",
            "bees", "ice",
        ];
        let kind = if hard { "hard proof" } else { "easy question" };
        let [a, b, c, d] = [0; 4].map(|_| WORDS[self.below(WORDS.len())]);
        format!("{kind} about {a} and {b} or {c} with {d}")
    }
}

/// Half of the questions are hard; there the small model scores 0.2 in the mean, elsewhere 0.9; the large one 0.95 everywhere.
fn data() -> QualityData {
    let mut lots = Lots(1);
    let queries = (0..1200).map(|number| {
        let hard = number % 2 == 1;
        let mut right = |chance: f64| f32::from(u8::from(lots.draw() < chance));
        let scores = vec![right(if hard { 0.2 } else { 0.9 }), right(0.95)];
        Query {
            id: number.to_string(),
            prompt: lots.question(hard),
            task: String::new(),
            split: if number < 700 { Split::Train } else { Split::Validation },
            prompt_tokens: None,
            scores,
            output_tokens: vec![10, 10],
        }
    });
    QualityData { models: vec!["small".into(), "large".into()], queries: queries.collect() }
}

/// By which the large model must be better by `lambda`.
fn policy(lambda: f64) -> RoutingPolicy {
    let penalty = |model: &str, lambda| ModelPenalty { model: model.into(), lambda };
    RoutingPolicy::Utility { penalties: vec![penalty("small", 0.0), penalty("large", lambda)] }
}

struct Served {
    gateway: Running,
    admin: SocketAddr,
    config: RoutesConfig,
    _engines: [Engine; 2],
    _keep: watch::Sender<bool>,
}

async fn served(change: impl FnOnce(&mut RoutesConfig, &mut Settings)) -> Served {
    let data = data();
    let scorer = Scorer::train(&data, 0, "").unwrap();
    let calibration = scorer.score_queries(&data.models, data.split(Split::Validation));
    let assignment = assign(&Decider::new(&policy(0.3), &data.models).unwrap(), &calibration);
    let answered = |query: usize, model: usize| assignment[query] == model;
    let engines = [Engine::start(Mood::Good).await, Engine::start(Mood::Good).await];
    let mut config = RoutesConfig {
        policy: Some(policy(0.3)),
        scorer: Some(Arc::new(scorer)),
        upstreams: vec![upstream("small", engines[0].address), upstream("large", engines[1].address)],
        usd_per_million_tokens: [("small", 0.1), ("large", 1.0)].map(|(m, usd)| (m.to_owned(), usd)).into(),
        certificate: Some(Certificate {
            safe_model: "large".into(),
            reference: monitor::reference(&calibration, answered, &[], |_| None, 0.025),
        }),
        ..RoutesConfig::default()
    };
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    change(&mut config, &mut settings);
    let gateway = Running::start(config.clone(), settings).await;
    let (admin, address) = listener().await;
    let (keep, stop) = watch::channel(false);
    let served = gateway.gateway.clone();
    tokio::spawn(async move { served.serve_admin(admin, stop).await });
    Served { gateway, admin: address, config, _engines: engines, _keep: keep }
}

impl Served {
    async fn ask(&self, text: &str, headers: &[(&str, &str)]) -> Answer {
        let body = json!({"model": "auto", "messages": [{"role": "user", "content": text}]}).to_string();
        let answer = send_with(self.gateway.address, "POST", CHAT, headers, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer
    }

    /// Model and reason.
    async fn chosen(&self, text: &str, headers: &[(&str, &str)]) -> [String; 2] {
        let answer = self.ask(text, headers).await;
        ["x-boute-model", "x-boute-reason"].map(|name| answer.headers[name].to_str().unwrap().to_owned())
    }

    async fn rate(&self, answer: &Answer, score: f64) {
        let id = answer.headers["x-request-id"].to_str().unwrap();
        let body = json!({"request_id": id, "score": score}).to_string();
        let rated = send(self.gateway.address, "POST", "/v1/feedback", body).await;
        assert_eq!(rated.status, StatusCode::OK, "{}", rated.text);
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&send(self.admin, "GET", "/admin/certificate", "").await.text).unwrap()
    }

    fn is_void(&self) -> bool {
        self.gateway.metric("boute_certificate_void") == 1.0
    }
}

const EASY: &str = "easy question about bees and ice or bread with glass";

/// Queries as in the calibration, scored as there, and one text over and over.
#[tokio::test]
async fn ordinary_traffic_voids_nothing() {
    let served = served(|_, _| ()).await;
    let mut lots = Lots(7);
    for number in 0..300 {
        let hard = number % 2 == 0;
        let answer = served.ask(&lots.question(hard), &[]).await;
        assert_eq!(answer.headers["x-boute-model"], if hard { "large" } else { "small" });
        served.rate(&answer, if lots.draw() < 0.92 { 1.0 } else { 0.0 }).await;
    }
    for _ in 0..100 {
        served.ask(EASY, &[]).await;
    }
    let turn = [("x-boute-session", "s")];
    for _ in 0..100 {
        served.ask(&lots.question(true), &turn).await;
    }
    let status = served.status().await;
    assert_eq!((&status["state"], served.is_void()), (&json!("valid"), false), "{status}");
    let count = status["queries"].as_u64().unwrap();
    assert!((290..=302).contains(&count), "texts and sessions that come again count once: {count}");
    let scores = status["scores"].as_array().unwrap();
    assert_eq!(scores.iter().map(|of| &of["model"]).collect::<Vec<_>>(), ["small", "large"]);
    for of in scores {
        assert_eq!(of["seen"]["count"], status["queries"]);
        let [planned, seen] = ["planned", "seen"]
            .map(|of_whom| of[of_whom]["sum"].as_f64().unwrap() / of[of_whom]["count"].as_f64().unwrap());
        assert!((planned - seen).abs() < 0.05, "ordinary queries are as those of the plan: {of}");
    }
    let answers: u64 =
        status["feedback"].as_array().unwrap().iter().map(|of| of["answers"].as_u64().unwrap()).sum();
    assert_eq!(answers, 300);
}

/// Bad scores void the certificate; then the safe model answers `auto`, until an operator or another policy lifts it.
#[tokio::test]
async fn a_drop_moves_to_the_safe_end() {
    let served = served(|_, _| ()).await;
    let gateway = &served.gateway;
    let mut lots = Lots(8);
    // Neither what somebody else decided nor a second opinion on one answer is a sample.
    let named = json!({"model": "small", "messages": [{"role": "user", "content": EASY}]}).to_string();
    let first = served.ask(EASY, &[]).await;
    for _ in 0..60 {
        let answer = send(gateway.address, "POST", CHAT, named.clone()).await;
        served.rate(&answer, 0.0).await;
        served.rate(&first, 0.0).await;
    }
    assert!(!served.is_void());
    let mut until = 0;
    while !served.is_void() && until < 100 {
        let answer = served.ask(&lots.question(until % 2 == 0), &[]).await;
        let small = answer.headers["x-boute-model"] == "small";
        served.rate(&answer, if small { 0.0 } else { 1.0 }).await;
        until += 1;
    }
    assert!((6..80).contains(&until), "void after {until}");
    assert_eq!(served.chosen(EASY, &[]).await, ["large", "certificate void"]);
    assert_eq!(served.chosen(EASY, &[("x-boute-max-cost", "0.5")]).await, ["small", "policy"]);
    assert_eq!(served.chosen(EASY, &[("x-boute-floor", "0.5")]).await, ["small", "floor"]);
    let status = served.status().await;
    assert_eq!((&status["state"], &status["alarm"]["alarm"]), (&json!("void"), &json!("drop")), "{status}");
    assert!(status["because"].as_str().unwrap().contains("`small`"), "{status}");
    assert!(status["void_since_unix_s"].as_u64().is_some_and(|at| at > 1_700_000_000), "{status}");
    assert_eq!(gateway.metric("boute_certificate_alarms_total{alarm=\"drop\"}"), 1.0);

    gateway.gateway.swap(served.config.clone()).unwrap();
    assert!(served.is_void(), "the same promise is as void as before");
    gateway.gateway.swap(RoutesConfig { policy: Some(policy(0.2)), ..served.config.clone() }).unwrap();
    assert!(!served.is_void() && gateway.gateway.alarm().is_none());

    let path = "/admin/certificate/alarm";
    assert_eq!(send(served.admin, "GET", path, "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(send(served.admin, "DELETE", path, "").await.status, StatusCode::OK);
    gateway.gateway.swap(RoutesConfig { certificate: None, ..served.config.clone() }).unwrap();
    assert_eq!(served.status().await["state"], "none");
    assert_eq!(send(served.admin, "DELETE", path, "").await.status, StatusCode::BAD_REQUEST);
}

/// Hard questions only: the scores move. An operator may lift the alarm, and may prefer to be told only.
#[tokio::test]
async fn other_queries_are_noticed_and_operators_decide() {
    let mut lots = Lots(9);
    for when_void in [WhenVoid::SafeModel, WhenVoid::Report] {
        let served = served(|config, _| config.when_void = when_void).await;
        for number in 0..50 {
            // The shortest window that is looked at has 25 queries.
            assert!(number >= 25 || !served.is_void(), "after {number}");
            served.ask(&lots.question(true), &[]).await;
        }
        let status = served.status().await;
        assert_eq!((served.is_void(), &status["alarm"]["alarm"]), (true, &json!("drift")), "{status}");
        let then = served.chosen(EASY, &[]).await;
        if when_void == WhenVoid::Report {
            assert_eq!(then, ["small", "policy"]);
            continue;
        }
        assert_eq!(then, ["large", "certificate void"]);
        let lifted = send(served.admin, "DELETE", "/admin/certificate/alarm", "").await;
        assert!(lifted.text.contains("\"valid\""), "{}", lifted.text);
        assert_eq!(served.chosen(EASY, &[]).await, ["small", "policy"]);
    }
}

/// A plan of one model scores nothing, but its answers may get worse, too.
#[tokio::test]
async fn a_constant_policy_is_watched_by_its_answers() {
    let constant = RoutingPolicy::Constant { model: "large".into() };
    let served = served(|config, _| (config.policy, config.scorer) = (Some(constant), None)).await;
    let mut until = 0;
    while !served.is_void() && until < 100 {
        let answer = served.ask(EASY, &[]).await;
        assert_eq!(answer.headers["x-boute-reason"], "constant");
        served.rate(&answer, 0.0).await;
        until += 1;
    }
    assert!((3..80).contains(&until), "void after {until}");
    assert_eq!(served.chosen(EASY, &[]).await, ["large", "certificate void"]);
}

/// A session does not go back to a worse model; each is its own.
#[tokio::test]
async fn sessions_move_up_only() {
    let served = served(|_, _| ()).await;
    let hard = Lots(3).question(true);
    let turn = [("x-boute-session", "a")];
    assert_eq!(served.chosen(EASY, &turn).await, ["small", "policy"]);
    assert_eq!(served.chosen(&hard, &turn).await, ["large", "policy"]);
    assert_eq!(served.chosen(EASY, &turn).await, ["large", "session"]);
    assert_eq!(served.chosen(EASY, &[("x-boute-session", "b")]).await, ["small", "policy"]);
    let dear = [("x-boute-session", "a"), ("x-boute-max-cost", "0.5")];
    assert_eq!(served.chosen(EASY, &dear).await, ["small", "policy"]);
    assert_eq!(served.chosen(EASY, &turn).await, ["large", "session"], "a price limit is for one turn");
    let floor = [("x-boute-session", "a"), ("x-boute-floor", "0.5")];
    assert_eq!(
        served.chosen(EASY, &floor).await,
        ["small", "floor"],
        "who asks for more than `auto` gets it"
    );
}

/// Some answers come from a model drawn by lot, with the chance of it in the log; not in sessions.
#[tokio::test]
async fn models_are_explored_with_known_chances() {
    let path = std::env::temp_dir().join(format!("boute-explored-{}.jsonl", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let served = served(|config, settings| {
        config.explore = 0.4;
        settings.decisions = Some(path.clone());
    })
    .await;
    let mut explored = 0;
    for _ in 0..200 {
        match served.chosen(EASY, &[]).await.each_ref().map(String::as_str) {
            ["small", "policy"] => {}
            ["large", "exploration"] => explored += 1,
            other => panic!("{other:?}"),
        }
    }
    // 0.2 of 200, within four standard deviations.
    assert!((18..63).contains(&explored), "{explored}");
    assert_eq!(served.chosen(EASY, &[("x-boute-session", "a")]).await, ["small", "policy"]);
    let written = || std::fs::read_to_string(&path).unwrap();
    eventually("the log is written", || written().lines().count() == 201).await;
    let mut stated = 0;
    for line in written().lines() {
        let decision = serde_json::from_str::<Value>(line).unwrap()["decision"].take();
        let Some(propensity) = decision["propensity"].as_f64() else { continue };
        let want = if decision["reason"] == "exploration" { 0.2 } else { 0.8 };
        assert!((propensity - want).abs() < 1e-9, "{decision}");
        stated += 1;
    }
    assert_eq!(stated, 200, "all but the session's");
    for file in [path.clone(), path.with_extension("jsonl.feedback.jsonl")] {
        let _ = std::fs::remove_file(file);
    }
}
