//! A live engine is measured: an emulated one, whose speed is known, and some that misbehave.

use std::convert::Infallible;
use std::time::Duration;

use boute_gateway::profile::{Load, ProfileConfig, ProfileError, profile};
use boute_gateway::{MockConfig, serve_mock};
use boute_perf::profile::{Fit, Point, Summary};
use boute_perf::{Calibration, ClosedLoop, ReplicaConfig, ReplicaModel, Speed, default_engine};
use boute_sim::EngineConfig;
use boute_spec::catalog::Catalog;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::listener;

const fn load(prompt_tokens: u32, answer_tokens: u32, clients: u32) -> Load {
    Load { prompt_tokens, answer_tokens, clients }
}

fn config(url: String, loads: &[Load], seconds: u64) -> ProfileConfig {
    ProfileConfig {
        url,
        model: None,
        loads: loads.to_vec(),
        budget: Duration::from_secs(seconds),
        patience: Duration::from_secs(10),
        seed: 1,
    }
}

/// An engine with a third more time per step than the model of it says is found out, within 5 %.
#[tokio::test(flavor = "multi_thread")]
async fn the_speed_of_an_emulated_engine_is_recovered() {
    let catalog = Catalog::builtin();
    let (model, gpu) = (catalog.model("llama-3.1-8b").unwrap().clone(), catalog.gpu("L40S").unwrap().clone());
    let engine = default_engine(&gpu, &model.shape, 8192);
    let guessed = ReplicaConfig::new(model, gpu, 1, 1, engine);
    let truth = Speed { compute: 1.4, bandwidth: 1.3, step_us: 1000.0, request_ms: 40.0 };
    let real = ReplicaConfig { speed: Some(truth), ..guessed.clone() };
    let real = ReplicaModel::new(&real, Calibration::builtin()).unwrap();
    let (listener, address) = listener().await;
    let mock = MockConfig {
        model: "m".into(),
        engine: EngineConfig::new(&guessed.engine, real.memory().kv_cache_tokens),
        step_time: real.clone(),
        request_time: real.request_time(),
        time_scale: 1.0,
        output_length_scale: 1.0,
    };
    tokio::spawn(serve_mock(mock, listener));

    let loads = [
        load(128, 24, 1),
        load(1024, 24, 1),
        load(4096, 24, 1),
        load(128, 24, 8),
        load(1024, 24, 8),
        load(256, 24, 24),
    ];
    let measured = profile(&config(format!("http://{address}/v1"), &loads, 18), |_, _| ()).await.unwrap();
    assert_eq!((measured.loads.len(), measured.model.as_str()), (6, "m"));
    let points: Vec<Point<'_>> = measured
        .loads
        .iter()
        .map(|found| {
            let mean = |of: Vec<f64>| Summary::of(of).unwrap().mean;
            assert!(found.errors.is_empty(), "{:?}", found.errors);
            let timings = &found.timings;
            let prompt = timings.iter().filter_map(|timing| timing.prompt_tokens.map(f64::from)).collect();
            let answer = timings.iter().map(|timing| f64::from(timing.answer_tokens)).collect();
            Point {
                config: &guessed,
                load: ClosedLoop {
                    prompt_tokens: mean(prompt) as u32,
                    answer_tokens: mean(answer) as u32,
                    clients: f64::from(found.load.clients),
                },
                ttft_s: mean(timings.iter().map(|timing| timing.ttft_s).collect()),
                tpot_s: mean(timings.iter().filter_map(|timing| timing.tpot_s).collect()),
            }
        })
        .collect();
    let fit = Fit::new(&points, &Calibration::builtin().without_bursts(), [0.0; 2]);
    assert!(fit.before.tpot > 0.15 && fit.after.tpot < 0.05, "{fit:?}");
    assert!(fit.after.ttft < fit.before.ttft, "{fit:?}");
    let found = ReplicaConfig { speed: Some(fit.speed), ..guessed.clone() };
    let found = ReplicaModel::new(&found, Calibration::builtin()).unwrap();
    for (decodes, context) in [(1, 500), (8, 1000), (32, 500)] {
        let ratio = found.decode_step_s(decodes, context) / real.decode_step_s(decodes, context);
        assert!((ratio - 1.0).abs() < 0.05, "{decodes} sequences: {ratio}, {fit:?}");
    }
}

/// Serves a chat endpoint that does as it likes.
async fn engine(chat: fn(Value) -> (u16, String)) -> String {
    let answer = move |request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let (status, text) = match path.as_str() {
            "/v1/models" => (200, json!({"data": [{"id": "m", "max_model_len": 2000}]}).to_string()),
            "/v1/chat/completions" => chat(serde_json::from_slice(&body).unwrap()),
            _ => (404, String::new()),
        };
        Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
    };
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    format!("http://{address}")
}

/// Ten bytes of prompt are a token; answers have three parts at once.
fn good(body: &Value) -> (u16, String) {
    let prompt = body["messages"][0]["content"].as_str().unwrap().len() / 10;
    if body["stream"] == false {
        return (200, json!({"usage": {"prompt_tokens": prompt}}).to_string());
    }
    let part = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n".repeat(3);
    (200, format!("{part}data: [DONE]\n\n"))
}

#[tokio::test]
async fn engines_that_know_less_are_measured_too() {
    let plain = |body: Value| {
        let known = body.get("ignore_eos").is_none();
        if known { good(&body) } else { (400, json!({"error": {"message": "unknown field"}}).to_string()) }
    };
    let url = engine(plain).await;
    let measured = profile(&config(url, &[load(100, 3, 2), load(5000, 3, 1)], 0), |_, _| ()).await.unwrap();
    assert_eq!(measured.loads.len(), 0, "no time, no load");
    let url = engine(plain).await;
    let measured = profile(&config(url, &[load(100, 3, 2), load(5000, 3, 1)], 1), |_, _| ()).await.unwrap();
    assert!(measured.loads[0].timings.len() >= 2);
    assert_eq!(measured.loads[0].timings[0].answer_tokens, 3);
    assert_eq!((measured.loads.len(), measured.metrics), (1, None));
    let notes = measured.notes.join("\n");
    assert!(notes.contains("ignore_eos") && notes.contains("longer than the engine's context"), "{notes}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_said() {
    let said = async |url: String| {
        let config =
            ProfileConfig { patience: Duration::from_millis(300), ..config(url, &[load(100, 3, 1)], 1) };
        profile(&config, |_, _| ()).await.unwrap_err()
    };
    let (dead, address) = listener().await;
    drop(dead);
    let refused = said(format!("http://{address}")).await.to_string();
    assert!(refused.contains("refused") && refused.contains("help: start the engine"), "{refused}");
    let (silent, address) = listener().await;
    let hangs = said(format!("http://{address}")).await.to_string();
    assert!(hangs.contains("no answer within 0.3 s"), "{hangs}");
    drop(silent);
    for url in ["https://127.0.0.1:1", "127.0.0.1:1", "", "http://"] {
        assert!(matches!(said(url.into()).await, ProfileError::Url { .. }), "{url}");
    }
    let url = engine(|body| good(&body)).await;
    let other = ProfileConfig { model: Some("x".into()), ..config(url, &[], 1) };
    let other = profile(&other, |_, _| ()).await.unwrap_err().to_string();
    assert!(other.contains("does not serve `x`; it serves m"), "{other}");
    for (chat, says) in [
        (engine(|_| (500, "{\"error\":{\"message\":\"out of memory\"}}".into())).await, "out of memory"),
        (engine(|_| (200, "<html>".into())).await, "not JSON"),
        (engine(|_| (200, "{}".into())).await, "no `usage.prompt_tokens`"),
        (
            engine(|body| good(&json!({"messages": body["messages"], "stream": false}))).await,
            "without [DONE]",
        ),
    ] {
        let probe = said(chat).await.to_string();
        assert!(probe.contains(says), "{probe}");
    }
}

/// An engine that fails after it was tried out: the load is there, without answers, with what went wrong.
#[tokio::test]
async fn later_failures_are_listed() {
    let url = engine(|body| {
        let short = body["max_tokens"].as_u64() <= Some(8);
        if short { good(&body) } else { (503, "{\"error\":{\"message\":\"full\"}}".into()) }
    })
    .await;
    let measured = profile(&config(url, &[load(100, 40, 2)], 60), |_, _| ()).await.unwrap();
    assert_eq!(measured.loads[0].timings, []);
    assert!(measured.loads[0].errors["status 503: full"] >= 5, "{:?}", measured.loads[0].errors);
}
