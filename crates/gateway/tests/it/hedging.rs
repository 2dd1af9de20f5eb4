//! A second replica for streams that are slow to begin: one answer, nobody left behind.

use std::time::Duration;

use boute_gateway::Settings;

use crate::engine::{Engine, Mood};
use crate::{CHAT, Running, ask, constant, eventually, limits, send, upstream};

/// Two engines, and a gateway that has seen eleven streams of the first.
async fn hedging() -> (Running, Engine, Engine) {
    let (one, two) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let upstreams = vec![upstream("m", one.address), upstream("m", two.address)];
    let settings = Settings { limits: limits(), hedge: Some(0.9), ..Settings::default() };
    let gateway = Running::start(constant(upstreams, None), settings).await;
    for _ in 0..11 {
        assert!(send(gateway.address, "POST", CHAT, ask("m", 3, true)).await.text.ends_with("[DONE]\n\n"));
    }
    // They have seen the same prompt: it stays where it was.
    if one.requests() > 0 { (gateway, one, two) } else { (gateway, two, one) }
}

async fn winner(gateway: &Running, name: &str) -> f64 {
    gateway.is_idle().await;
    gateway.metric(&format!("boute_hedges_total{{winner=\"{name}\"}}"))
}

#[tokio::test]
async fn a_silent_replica_is_overtaken_and_let_go() {
    let (gateway, silent, other) = hedging().await;
    silent.set(Mood::Silent);
    let before = winner(&gateway, "second").await;
    let answer = send(gateway.address, "POST", CHAT, ask("m", 3, true)).await;
    assert_eq!(answer.text.matches("\"content\":\"x\"").count(), 3, "one answer: {}", answer.text);
    assert_eq!(answer.headers["x-boute-attempts"], "2");
    eventually("the other is let go", || silent.cancelled() == 1).await;
    assert_eq!(winner(&gateway, "second").await - before, 1.0);
    assert_eq!(gateway.metric("boute_replica_failures_total"), 0.0, "slow is not broken");
    assert!(other.requests() >= 1);
    // The prompt is known there now.
    let next = send(gateway.address, "POST", CHAT, ask("m", 3, true)).await;
    assert_eq!(next.headers["x-boute-replica"], answer.headers["x-boute-replica"]);
}

#[tokio::test]
async fn the_first_may_still_win() {
    let (gateway, first, second) = hedging().await;
    first.set(Mood::Slow(Duration::from_millis(200)));
    second.set(Mood::Silent);
    let answer = send(gateway.address, "POST", CHAT, ask("m", 3, true)).await;
    assert!(answer.text.ends_with("[DONE]\n\n"), "{answer:?}");
    eventually("the second is let go", || second.cancelled() == 1).await;
    assert!(winner(&gateway, "first").await >= 1.0);
}

/// When the slow one turns out to be dead, the other is not given up.
#[tokio::test]
async fn the_failure_of_one_leaves_the_other() {
    let (gateway, dying, slow) = hedging().await;
    dying.set(Mood::Down);
    slow.set(Mood::Slow(Duration::from_millis(250)));
    let answer = send(gateway.address, "POST", CHAT, ask("m", 3, true)).await;
    assert!(answer.text.ends_with("[DONE]\n\n") && answer.headers["x-boute-attempts"] == "2", "{answer:?}");
    assert!(winner(&gateway, "second").await >= 1.0);
}

#[tokio::test]
async fn whole_answers_are_waited_for() {
    let (gateway, slow, other) = hedging().await;
    slow.set(Mood::Slow(Duration::from_millis(300)));
    let before = other.requests();
    let answer = send(gateway.address, "POST", CHAT, ask("m", 3, false)).await;
    assert_eq!((&answer.headers["x-boute-attempts"], other.requests()), (&"1".parse().unwrap(), before));
}
