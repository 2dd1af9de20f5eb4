//! Mixed traffic with random faults for a long time: nothing grows, nothing is left behind. Not among the usual tests:
//! `SOAK_SECONDS=1800 cargo test --release -p boute-gateway --test it -- --ignored soak --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use boute_gateway::{Settings, Upstream};
use hyper::StatusCode;
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, Mood};
use crate::{CHAT, Running, ask, constant, limits, send, upstream};

/// Requests at once.
const CLIENTS: u64 = 32;
/// RSS may differ by this share from the end of the warm-up to the end.
const FLAT: f64 = 0.10;
/// What the allocator may take more without anything being kept.
const SLACK_MIB: f64 = 8.0;

/// Faults that pass, with moods that do not.
const MOODS: [Mood; 12] = [
    Mood::Good,
    Mood::Good,
    Mood::Slow(Duration::from_millis(3)),
    Mood::Slow(Duration::from_millis(30)),
    Mood::Status(429),
    Mood::Status(500),
    Mood::Status(503),
    Mood::ClosesAfterwards,
    Mood::Garbage,
    Mood::DiesBeforeHead,
    Mood::DiesBetweenTokens,
    Mood::SilentBetweenTokens,
];

/// A plain pseudo-random sequence (Numerical Recipes' constants): the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Open sockets and files of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[derive(Default)]
struct Tally {
    whole: AtomicU64,
    told: AtomicU64,
    gone: AtomicU64,
    refused: AtomicU64,
}

async fn client(gateway: Arc<Running>, tally: Arc<Tally>, stop: Arc<AtomicBool>, number: u64) {
    let mut dice = Dice(number);
    while !stop.load(Relaxed) {
        let stream = dice.roll(3) > 0;
        let patience = if dice.roll(10) == 0 { dice.roll(20) } else { 20_000 };
        let answer = send(gateway.address, "POST", CHAT, ask("m", 3, stream));
        match timeout(Duration::from_millis(patience), answer).await {
            Err(_) => &tally.gone,
            Ok(answer) if answer.status != StatusCode::OK => {
                assert!(answer.text.starts_with("{\"error\""), "{answer:?}");
                &tally.refused
            }
            Ok(answer) if answer.broken => {
                assert!(!answer.text.contains("[DONE]"), "{answer:?}");
                &tally.told
            }
            Ok(answer) => {
                assert!(!stream || answer.text.ends_with("data: [DONE]\n\n"), "{answer:?}");
                &tally.whole
            }
        }
        .fetch_add(1, Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or, by SOAK_SECONDS, as long as one likes"]
async fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut engines = Vec::new();
    for _ in 0..4 {
        engines.push(Engine::start(Mood::Good).await);
    }
    let upstreams: Vec<Upstream> = engines.iter().map(|engine| upstream("m", engine.address)).collect();
    let mut settings = Settings { limits: limits(), ..Settings::default() };
    settings.limits.first_byte = Duration::from_millis(500);
    settings.limits.admission.in_flight = 24;
    let gateway = Arc::new(Running::start(constant(upstreams.clone(), None), settings).await);
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (gateway, tally, stop) = (Arc::clone(&gateway), Arc::clone(&tally), Arc::clone(&stop));
            tokio::spawn(client(gateway, tally, stop, number))
        })
        .collect();

    let (started, mut dice, mut settled) = (Instant::now(), Dice(99), 0.0);
    let duration = Duration::from_secs(seconds);
    while started.elapsed() < duration {
        sleep(Duration::from_millis(100)).await;
        let engine = dice.roll(4) as usize;
        match dice.roll(10) {
            0 => {
                engines[engine].kill().await;
                sleep(Duration::from_millis(50)).await;
                engines[engine].revive();
            }
            1 => gateway.gateway.swap(constant(upstreams[dice.roll(2) as usize..].to_vec(), None)).unwrap(),
            _ => engines[engine].set(MOODS[dice.roll(MOODS.len() as u64) as usize]),
        }
        if settled == 0.0 && started.elapsed() > duration / 4 {
            settled = rss_mib();
        }
    }
    stop.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let count = |of: &AtomicU64| of.load(Relaxed);
    let rss = rss_mib();
    eprintln!(
        "{seconds} s: {} whole, {} told of a break, {} refused, {} went; RSS {settled:.1} -> {rss:.1} MiB",
        count(&tally.whole),
        count(&tally.told),
        count(&tally.refused),
        count(&tally.gone)
    );
    assert!(count(&tally.whole) > 20 * seconds, "there was traffic");
    assert!(rss < settled * (1.0 + FLAT) + SLACK_MIB, "RSS grew from {settled:.1} to {rss:.1} MiB");
    gateway.is_idle().await;
    // Idle connections to the replicas are dropped with them: what is left is listeners and the runtime's own.
    for engine in &mut engines {
        engine.kill().await;
    }
    sleep(Duration::from_millis(500)).await;
    assert!(descriptors() < 200, "{} descriptors are open", descriptors());
}
