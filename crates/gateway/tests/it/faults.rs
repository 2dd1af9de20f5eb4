//! Replicas and clients that fail in every phase: what the other side sees, and that nothing is left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boute_gateway::{Settings, Upstream};
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, Mood};
use crate::{Answer, CHAT, Running, ask, constant, eventually, gateway, limits, send, upstream};

fn before(engines: &[&Engine]) -> Vec<Upstream> {
    engines.iter().map(|engine| upstream("m", engine.address)).collect()
}

async fn chat(gateway: &Running, stream: bool) -> Answer {
    send(gateway.address, "POST", CHAT, ask("m", 3, stream)).await
}

fn is_whole(answer: &Answer) -> bool {
    answer.status == StatusCode::OK
        && !answer.broken
        && (answer.text.ends_with("data: [DONE]\n\n") || answer.text.ends_with("}}"))
}

/// Whatever goes wrong before the first byte: the other replica answers, and the client sees nothing of it.
#[tokio::test]
async fn what_fails_before_the_first_byte_is_tried_elsewhere() {
    for (mood, reason) in [
        (Mood::DiesBeforeHead, "broken"),
        (Mood::DiesAfterHead, "broken"),
        (Mood::HalfCloses, "broken"),
        (Mood::Garbage, "broken"),
        (Mood::Status(500), "status"),
        (Mood::Status(502), "status"),
        (Mood::Status(429), "busy"),
        (Mood::Status(503), "busy"),
        (Mood::Silent, "slow"),
        (Mood::Down, "down"),
    ] {
        let (bad, good) = (Engine::start(mood).await, Engine::start(Mood::Good).await);
        let mut settings = Settings { limits: limits(), ..Settings::default() };
        if mood == Mood::Silent {
            settings.limits.first_byte = Duration::from_millis(200);
        }
        let gateway = Running::start(constant(before(&[&bad, &good]), None), settings).await;
        for stream in [true, false] {
            let answer = chat(&gateway, stream).await;
            assert!(is_whole(&answer), "{mood:?}: {answer:?}");
        }
        assert!(gateway.metric(&format!("boute_retries_total{{reason=\"{reason}\"}}")) >= 1.0, "{mood:?}");
        gateway.is_idle().await;
    }
}

#[tokio::test]
async fn a_dead_or_nameless_replica_is_passed_over() {
    let (mut dead, good) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    dead.kill().await;
    let mut upstreams = before(&[&dead, &good]);
    upstreams.push(Upstream { url: "http://no-such-host.invalid:80".into(), ..upstreams[0].clone() });
    let gateway = gateway(upstreams, None).await;
    for _ in 0..6 {
        assert!(is_whole(&chat(&gateway, true).await));
    }
    assert_eq!(good.requests(), 6);
    assert!(gateway.metric("boute_retries_total{reason=\"unreachable\"}") <= 2.0, "they are left out");
}

/// With nobody else to ask, an engine's error is passed on as it is, in one try.
#[tokio::test]
async fn errors_of_the_only_replica_are_passed_on() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(before(&[&engine]), None).await;
    for status in [400, 401, 404, 422, 429, 500, 503] {
        engine.set(Mood::Status(status));
        let tries = engine.requests();
        let answer = chat(&gateway, true).await;
        assert_eq!((answer.status.as_u16(), engine.requests() - tries), (status, 1));
        assert_eq!(answer.headers["retry-after"], "7");
        assert!(answer.text.contains("told to"), "{}", answer.text);
    }
    engine.set(Mood::DiesBeforeHead);
    let answer = chat(&gateway, false).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.text.contains("\"replica_unreachable\""), "{}", answer.text);
    engine.set(Mood::Good);
    assert!(is_whole(&chat(&gateway, true).await), "it is asked all the same");
    gateway.is_idle().await;
}

/// Backpressure and clients' own mistakes are nobody's failure: the breaker stays closed.
#[tokio::test]
async fn backpressure_does_not_open_the_breaker() {
    let (one, two) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let gateway = gateway(before(&[&one, &two]), None).await;
    for status in [429, 503, 400, 404] {
        one.set(Mood::Status(status));
        two.set(Mood::Status(status));
        let before = one.requests() + two.requests();
        for _ in 0..10 {
            assert_eq!(chat(&gateway, false).await.status.as_u16(), status);
        }
        let tries = one.requests() + two.requests() - before;
        assert_eq!(
            tries,
            if matches!(status, 429 | 503) { 20 } else { 10 },
            "one other try, for backpressure"
        );
    }
    assert_eq!(
        (gateway.metric("boute_replica_failures_total"), gateway.metric("boute_replica_well")),
        (0.0, 2.0)
    );
}

/// A replica that keeps failing is left out, and is back a second after it is well again.
#[tokio::test]
async fn the_breaker_opens_and_recovers_in_time() {
    let (bad, good) = (Engine::start(Mood::Status(500)).await, Engine::start(Mood::Good).await);
    let gateway = gateway(before(&[&bad, &good]), None).await;
    for _ in 0..12 {
        assert!(is_whole(&chat(&gateway, false).await));
    }
    assert_eq!((bad.requests(), gateway.metric("boute_replica_well")), (3, 1.0), "three failures, then none");
    bad.set(Mood::Good);
    let opened = Instant::now();
    while bad.requests() == 3 {
        assert!(is_whole(&chat(&gateway, false).await));
        assert!(opened.elapsed() < Duration::from_secs(2), "left out for one second");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gateway.metric("boute_replica_well"), 2.0);
}

#[tokio::test]
async fn all_replicas_gone_and_back() {
    let (mut one, mut two) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let gateway = gateway(before(&[&one, &two]), None).await;
    assert!(is_whole(&chat(&gateway, true).await));
    tokio::join!(one.kill(), two.kill());
    let answer = chat(&gateway, true).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    eventually("the checks have seen it", || gateway.metric("boute_replica_well") == 0.0).await;
    assert_eq!(chat(&gateway, true).await.status, StatusCode::BAD_GATEWAY);
    one.revive();
    two.revive();
    assert!(is_whole(&chat(&gateway, true).await), "the first request finds them");
    eventually("both are back", || gateway.metric("boute_replica_well") == 2.0).await;
    gateway.is_idle().await;
}

/// After the first byte a death is told, and is no clean end.
#[tokio::test]
async fn a_death_mid_stream_is_no_clean_end() {
    for mood in [Mood::DiesBetweenTokens, Mood::SilentBetweenTokens, Mood::EndsEarly] {
        let engine = Engine::start(mood).await;
        let gateway = gateway(before(&[&engine]), None).await;
        let answer = chat(&gateway, true).await;
        assert!(answer.broken, "{mood:?}");
        assert_eq!(answer.text.matches("\"content\":\"x\"").count(), 2, "{mood:?}");
        assert!(answer.text.contains("data: {\"error\":{\"code\":\"replica_broke_off\""), "{}", answer.text);
        assert!(!answer.text.contains("[DONE]"), "{}", answer.text);
        assert_eq!(gateway.metric("boute_replica_failures_total"), 1.0);
        gateway.is_idle().await;
        // A good beginning does not make up for it: the third in a row opens the breaker.
        for _ in 0..2 {
            assert!(chat(&gateway, true).await.broken, "{mood:?}");
        }
        assert_eq!(gateway.metric("boute_replica_well"), 0.0, "{mood:?}");
    }
}

/// Slow is not dead: an answer may take longer than its engine may be silent.
#[tokio::test]
async fn a_slow_replica_is_waited_for() {
    let engine = Engine::start(Mood::Slow(Duration::from_millis(150))).await;
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.silence = Duration::from_millis(400);
    let gateway = Running::start(constant(before(&[&engine]), None), settings).await;
    let began = Instant::now();
    assert!(is_whole(&chat(&gateway, true).await) && began.elapsed() > Duration::from_millis(400));
    assert_eq!((engine.requests(), gateway.metric("boute_replica_failures_total")), (1, 0.0));
}

/// Keep-alive ends when the engine thinks so: that is no failure and costs no retry.
#[tokio::test]
async fn a_connection_that_the_engine_closed_is_replaced() {
    let engine = Engine::start(Mood::ClosesAfterwards).await;
    let gateway = gateway(before(&[&engine]), None).await;
    for stream in [true, false, true, false, true, false] {
        let answer = chat(&gateway, stream).await;
        assert!(is_whole(&answer) && answer.headers["x-boute-attempts"] == "1", "{answer:?}");
    }
    assert_eq!(gateway.metric("boute_replica_failures_total"), 0.0);
}

/// Sends a request and goes: when `waits_for` has come, or at once.
async fn go_away(gateway: &Running, stream: bool, waits_for: Option<&str>, engine: &Engine) {
    let before = engine.requests();
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let body = ask("m", 3, stream);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    eventually("the engine has the request", || engine.requests() > before).await;
    let mut read = String::new();
    while waits_for.is_some_and(|text| !read.contains(text)) {
        let mut piece = [0; 1024];
        let count = socket.read(&mut piece).await.unwrap();
        read.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
}

/// In whatever phase a client goes, the engine hears of it and nothing is left behind.
#[tokio::test]
async fn a_client_that_goes_frees_the_replica() {
    let engine = Engine::start(Mood::Good).await;
    let gateway = gateway(before(&[&engine]), None).await;
    let hour = Duration::from_hours(1);
    for (mood, stream, waits_for) in [
        (Mood::Silent, false, None),
        (Mood::Silent, true, None),
        (Mood::Slow(hour), false, None),
        (Mood::Endless, true, Some("content")),
        (Mood::Slow(Duration::from_millis(200)), true, Some("content")),
    ] {
        engine.set(mood);
        let before = engine.cancelled();
        go_away(&gateway, stream, waits_for, &engine).await;
        eventually("the engine hears of it", || engine.cancelled() > before).await;
        gateway.is_idle().await;
    }
    engine.set(Mood::Good);
    assert!(is_whole(&chat(&gateway, true).await));
    assert_eq!(gateway.metric("boute_replica_failures_total"), 0.0, "that is not the replica's fault");
}

/// Who goes before an engine has heard of them: while the body comes, and while waiting in line.
#[tokio::test]
async fn a_client_that_goes_before_its_turn_is_forgotten() {
    let engine = Engine::start(Mood::Slow(Duration::from_millis(100))).await;
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.admission.in_flight = 1;
    let gateway = Running::start(constant(before(&[&engine]), None), settings).await;
    let body = ask("m", 3, true);
    let whole = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let send_and_go = async |text: &str| {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    };
    send_and_go(&whole[..whole.len() - 1]).await;
    let waits = async {
        eventually("the only place is taken", || engine.requests() == 1).await;
        send_and_go(&whole).await;
    };
    let (answer, ()) = tokio::join!(chat(&gateway, true), waits);
    assert!(is_whole(&answer) && is_whole(&chat(&gateway, true).await), "the place is free again");
    assert_eq!(engine.requests(), 2);
    gateway.is_idle().await;
}

/// One of three replicas is killed under load: who had no byte yet is answered by another, who had is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_killed_under_load_fails_nobody_who_had_no_byte() {
    let mood = Mood::Slow(Duration::from_millis(5));
    let mut engines = [Engine::start(mood).await, Engine::start(mood).await, Engine::start(mood).await];
    let gateway = Arc::new(gateway(before(&engines.each_ref()), None).await);
    let clients: Vec<_> = (0..24)
        .map(|client| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let mut broken = 0;
                for turn in 0..30 {
                    let answer = chat(&gateway, (client + turn) % 2 == 0).await;
                    // A broken stream was told so; anything else that is not whole is a failure.
                    if answer.broken && answer.text.contains("replica_broke_off") {
                        broken += 1;
                    } else {
                        assert!(is_whole(&answer), "{answer:?}");
                    }
                }
                broken
            })
        })
        .collect();
    sleep(Duration::from_millis(200)).await;
    engines[1].kill().await;
    sleep(Duration::from_millis(300)).await;
    engines[1].revive();
    let mut broken = 0;
    for client in clients {
        broken += client.await.unwrap();
    }
    assert!(broken <= 24, "at most those that were streaming from it");
    let before = engines[1].requests();
    eventually("it is well again", || gateway.metric("boute_replica_well") == 3.0).await;
    let (a, b, c) = tokio::join!(chat(&gateway, true), chat(&gateway, true), chat(&gateway, true));
    assert!([a, b, c].iter().all(is_whole));
    assert_eq!(engines[1].requests(), before + 1, "it has work again");
    gateway.is_idle().await;
}

/// A client that takes nothing holds neither memory nor the replica for long.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let engine = Engine::start(Mood::Endless).await;
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.client.reading = Duration::from_millis(300);
    let gateway = Running::start(constant(before(&[&engine]), None), settings).await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let body = ask("m", 3, true);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    eventually("the engine is let go", || engine.cancelled() == 1).await;
    gateway.is_idle().await;
}

/// Requests that never end coming are given up: their heads and their bodies.
#[tokio::test]
async fn slow_requests_are_given_up() {
    let engine = Engine::start(Mood::Good).await;
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.client.head = Duration::from_millis(200);
    settings.limits.client.body = Duration::from_millis(200);
    let gateway = Running::start(constant(before(&[&engine]), None), settings).await;
    for (sent, answered) in [
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n", ""),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", "408"),
        ("GARBAGE\r\n\r\n", "400"),
    ] {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = timeout(Duration::from_secs(3), socket.read_to_string(&mut answer)).await;
        assert!(read.is_ok() && answer.contains(answered), "{sent}: {answer}");
    }
    let many = (0..200).map(|number| format!("x-{number}: y\r\n")).collect::<Vec<_>>().concat();
    let long = format!("x-long: {}\r\n", "y".repeat(100 << 10));
    for headers in [many, long] {
        // Too many headers, and too long a one.
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        // The answer may come, and the connection break, before all is sent.
        let _ = socket.write_all(request.as_bytes()).await;
        let mut answer = vec![0; 64];
        let count = socket.read(&mut answer).await.unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    }
    assert_eq!(engine.requests(), 0);
}
