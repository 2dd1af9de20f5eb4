//! One replica as the gateway sees it: its load, its health, its connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use boute_router::balance::{ReplicaLoad, ReplicaSpeed};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::affinity::ReplicaId;
use crate::engine_metrics::EngineLoad;
use crate::metrics::Counter;
use crate::upstream::{Pool, plain};

/// Failures in a row after which a replica is left out.
const FAILURES: u32 = 3;
/// How long it is left out at first, and at most: each further failure doubles the time.
const OUT_MS: u64 = 1000;
const LONGEST_OUT_MS: u64 = 8000;
/// While it is on trial, one request this often.
const TRIAL_EVERY_MS: u64 = 1000;
/// Health checks in a row that fail before a replica counts as down.
const FAILED_CHECKS: u32 = 3;
/// Answer length the balancer expects where nothing is known.
const EXPECTED_ANSWER: u32 = 256;

/// What the balancer takes for a replica's speed where nothing is known: all are equal.
const EQUAL_SPEED: ReplicaSpeed = ReplicaSpeed {
    prompt_tokens_per_s: 10_000.0,
    answer_tokens_per_s: 1_000.0,
    seconds_per_answer_token: 0.02,
};

/// One engine that answers.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Model it serves.
    pub model: String,
    /// Its address, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// The name by which it knows the model, where that is another (vLLM's `--served-model-name`).
    pub served_name: Option<String>,
    /// `host` or `host:port` that it is called by, in requests and certificates, where that is not the URL's.
    pub host: Option<String>,
    /// What the balancer knows of its speed.
    pub speed: ReplicaSpeed,
    /// Answer length the balancer expects of it; `None` if not known.
    pub expected_output_tokens: Option<u32>,
}

impl Upstream {
    /// The engine at `URL` or `URL#NAME`, NAME being the model's there; nothing is known of its speed.
    pub fn at(model: &str, place: &str) -> Self {
        let (url, served_name) = place.split_once('#').unwrap_or((place, ""));
        let served_name = Some(served_name).filter(|name| !name.is_empty() && *name != model);
        Self {
            model: model.to_owned(),
            url: url.to_owned(),
            served_name: served_name.map(str::to_owned),
            host: None,
            speed: EQUAL_SPEED,
            expected_output_tokens: None,
        }
    }
}

/// Requests on a replica, counted by whoever sends them.
#[derive(Debug, Default)]
struct Load {
    in_flight: AtomicU32,
    waiting_prompt_tokens: AtomicU64,
    expected_answer_tokens: AtomicU64,
    /// What others have there, by the engine's own word.
    foreign_running: AtomicU32,
    foreign_waiting: AtomicU32,
}

/// Why requests to a replica failed, in a row.
#[derive(Debug, Default)]
struct Health {
    failures: AtomicU32,
    /// Milliseconds since the gateway's start until which it is left out.
    out_until_ms: AtomicU64,
    /// Whether it could not be reached: a health check that reaches it ends that.
    unreachable: AtomicBool,
    failed_checks: AtomicU32,
}

/// How a replica failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens there.
    Unreachable,
    /// It listened, and broke off, was silent for too long, or answered 500, 502 or 504.
    Failed,
}

/// What a health check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It answers.
    Well,
    /// It does not answer in time, or says that it is ill: a few of these in a row count.
    Ill,
    /// Nobody listens there: that counts at once.
    Gone,
}

/// Counts of one replica, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    pub(crate) backpressure: Counter,
}

/// A replica and all that is known of it.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Never given to another.
    pub(crate) id: ReplicaId,
    /// How clients hear of it: its model and its id.
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) url: String,
    /// The name by which the engine knows the model, where that is another.
    pub(crate) served_name: Option<String>,
    pub(crate) speed: ReplicaSpeed,
    pub(crate) expected_output_tokens: u32,
    pub(crate) pool: Pool,
    pub(crate) counts: Arc<Counts>,
    load: Arc<Load>,
    health: Arc<Health>,
    went_down: Arc<Notify>,
}

impl Replica {
    /// Whether it is at `url`.
    pub(crate) fn serves(&self, url: &str) -> bool {
        self.url == plain(url)
    }

    /// Whether a new replica for `upstream`, with that pool, would know nothing else.
    pub(crate) fn is_as(&self, upstream: &Upstream, pool: &Pool) -> bool {
        let expected = upstream.expected_output_tokens.unwrap_or(EXPECTED_ANSWER);
        self.speed == upstream.speed
            && self.expected_output_tokens == expected
            && self.served_name == upstream.served_name
            && self.pool.host == pool.host
            && self.pool.key == pool.key
    }

    /// What is known of `before`, the same replica under an older plan, is kept.
    pub(crate) fn new(upstream: &Upstream, pool: Pool, id: ReplicaId, before: Option<&Self>) -> Self {
        let url = plain(&upstream.url).to_owned();
        Self {
            id,
            name: format!("{}-{id}", upstream.model),
            model: upstream.model.clone(),
            pool,
            url,
            served_name: upstream.served_name.clone(),
            speed: upstream.speed,
            expected_output_tokens: upstream.expected_output_tokens.unwrap_or(EXPECTED_ANSWER),
            counts: before.map(|it| Arc::clone(&it.counts)).unwrap_or_default(),
            load: before.map(|it| Arc::clone(&it.load)).unwrap_or_default(),
            health: before.map(|it| Arc::clone(&it.health)).unwrap_or_default(),
            went_down: before.map(|it| Arc::clone(&it.went_down)).unwrap_or_default(),
        }
    }

    /// The model's name in requests to it.
    pub(crate) fn asked_as(&self) -> &str {
        self.served_name.as_deref().unwrap_or(&self.model)
    }

    /// Its load, that by others included.
    pub(crate) fn load(&self) -> ReplicaLoad {
        let load = &self.load;
        let (running, waiting) = (load.foreign_running.load(Relaxed), load.foreign_waiting.load(Relaxed));
        let answer = u64::from(self.expected_output_tokens);
        ReplicaLoad {
            in_flight: load.in_flight.load(Relaxed) + running + waiting,
            waiting_prompt_tokens: load.waiting_prompt_tokens.load(Relaxed),
            expected_answer_tokens: load.expected_answer_tokens.load(Relaxed)
                + answer * u64::from(running + waiting),
        }
    }

    /// Requests that this gateway has there.
    pub(crate) fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }

    /// Books what the engine says of its load: what is not ours is others'.
    pub(crate) fn engine_says(&self, engine: EngineLoad) {
        let others = (engine.running + engine.waiting).saturating_sub(self.in_flight());
        let waiting = engine.waiting.min(others);
        self.load.foreign_waiting.store(waiting, Relaxed);
        self.load.foreign_running.store(others - waiting, Relaxed);
    }

    /// Whether nothing speaks against it.
    pub(crate) fn is_well(&self, now_ms: u64) -> bool {
        self.may_be_asked(now_ms) && self.health.failures.load(Relaxed) < FAILURES
    }

    /// Whether it is well, or was left out long enough to be tried.
    pub(crate) fn may_be_asked(&self, now_ms: u64) -> bool {
        self.is_up() && !self.is_out(now_ms)
    }

    /// Whether its health checks do not fail.
    fn is_up(&self) -> bool {
        self.health.failed_checks.load(Relaxed) < FAILED_CHECKS
    }

    fn is_out(&self, now_ms: u64) -> bool {
        self.health.out_until_ms.load(Relaxed) > now_ms
    }

    /// Whether it was left out long enough to be tried with one request; taken by the one who is told so.
    pub(crate) fn take_trial(&self, now_ms: u64) -> bool {
        let until = self.health.out_until_ms.load(Relaxed);
        let failed = self.health.failures.load(Relaxed) >= FAILURES;
        let next = now_ms + TRIAL_EVERY_MS;
        self.is_up()
            && failed
            && until <= now_ms
            && self.health.out_until_ms.compare_exchange(until, next, Relaxed, Relaxed).is_ok()
    }

    /// An answer has come that the replica need not be ashamed of.
    pub(crate) fn succeeded(&self) {
        // Read first: nearly always there is nothing to change.
        if self.health.failures.load(Relaxed) > 0 {
            self.health.failures.store(0, Relaxed);
            self.health.out_until_ms.store(0, Relaxed);
            self.health.unreachable.store(false, Relaxed);
        }
    }

    /// A request has failed by the replica's fault.
    pub(crate) fn failed(&self, fault: Fault, now_ms: u64) {
        self.counts.failures.add(1);
        self.pool.forget();
        let health = &self.health;
        let before = health.failures.fetch_add(1, Relaxed);
        if fault == Fault::Unreachable {
            health.unreachable.store(true, Relaxed);
            health.failures.fetch_max(FAILURES, Relaxed);
        }
        let failures = (before + 1).max(if fault == Fault::Unreachable { FAILURES } else { 0 });
        if failures >= FAILURES {
            let doublings = (failures - FAILURES).min(16);
            let out_ms = (OUT_MS << doublings).min(LONGEST_OUT_MS);
            health.out_until_ms.fetch_max(now_ms + out_ms, Relaxed);
        }
    }

    /// A health check has come out so.
    pub(crate) fn checked(&self, seen: Seen) {
        let health = &self.health;
        if seen == Seen::Well {
            health.failed_checks.store(0, Relaxed);
            if health.unreachable.load(Relaxed) {
                self.succeeded();
            }
            return;
        }
        // Whoever comes back was started anew: what it did before is not held against it.
        health.unreachable.fetch_or(seen == Seen::Gone, Relaxed);
        let counted = if seen == Seen::Gone { FAILED_CHECKS } else { 1 };
        let before = health.failed_checks.fetch_add(counted, Relaxed);
        if before < FAILED_CHECKS && before + counted >= FAILED_CHECKS {
            self.pool.forget();
            self.went_down.notify_waiters();
        }
    }

    /// Resolves when the replica goes down.
    pub(crate) async fn gone_down(&self) {
        self.went_down.notified().await;
    }

    /// `well`, `out` after failures, or `down` by its health checks.
    pub(crate) fn state(&self, now_ms: u64) -> &'static str {
        match (self.is_up(), self.is_well(now_ms)) {
            (false, _) => "down",
            (true, false) => "out",
            (true, true) => "well",
        }
    }

    /// All of it as JSON, for operators.
    pub(crate) fn describe(&self, now_ms: u64) -> Value {
        json!({
            "name": self.name,
            "model": self.model,
            "url": self.url,
            "asked_as": self.asked_as(),
            "state": self.state(now_ms),
            "out_for_ms": self.out_for(now_ms).as_millis() as u64,
            "in_flight": self.in_flight(),
            "load": self.load().in_flight,
            "requests": self.counts.requests.get(),
            "failures": self.counts.failures.get(),
        })
    }

    /// How long the breaker leaves it out, for who wants to know.
    pub(crate) fn out_for(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.health.out_until_ms.load(Relaxed).saturating_sub(now_ms))
    }
}

/// A request's place on a replica; gives everything back when dropped, whatever happened.
#[derive(Debug)]
pub(crate) struct Place {
    load: Arc<Load>,
    /// One, until the answer has ended.
    requests: u32,
    prompt_tokens: u64,
    answer_tokens: u64,
}

impl Place {
    /// Takes it.
    pub(crate) fn take(replica: &Replica, prompt_tokens: u32) -> Self {
        let (prompt_tokens, answer_tokens) =
            (u64::from(prompt_tokens), u64::from(replica.expected_output_tokens));
        let load = Arc::clone(&replica.load);
        load.in_flight.fetch_add(1, Relaxed);
        load.waiting_prompt_tokens.fetch_add(prompt_tokens, Relaxed);
        load.expected_answer_tokens.fetch_add(answer_tokens, Relaxed);
        replica.counts.requests.add(1);
        Self { load, requests: 1, prompt_tokens, answer_tokens }
    }

    /// The first token has come: the prompt is done.
    pub(crate) fn begun(&mut self) {
        self.load.waiting_prompt_tokens.fetch_sub(self.prompt_tokens, Relaxed);
        self.prompt_tokens = 0;
    }

    /// The replica has given all of the answer.
    pub(crate) fn done(&mut self) {
        self.begun();
        self.load.in_flight.fetch_sub(std::mem::take(&mut self.requests), Relaxed);
        self.load.expected_answer_tokens.fetch_sub(std::mem::take(&mut self.answer_tokens), Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{UpstreamKeys, UpstreamTls};

    fn replica() -> Replica {
        let speed = ReplicaSpeed {
            prompt_tokens_per_s: 1e4,
            answer_tokens_per_s: 1e3,
            seconds_per_answer_token: 0.01,
        };
        let upstream = Upstream {
            speed,
            expected_output_tokens: Some(10),
            ..Upstream::at("m", "http://127.0.0.1:1/v1/")
        };
        let pool = Pool::new(&upstream.url, None, &UpstreamTls::default(), &UpstreamKeys::default()).unwrap();
        Replica::new(&upstream, pool, 0, None)
    }

    #[test]
    fn three_failures_in_a_row_leave_it_out_and_a_trial_brings_it_back() {
        let replica = replica();
        for _ in 0..2 {
            replica.failed(Fault::Failed, 0);
            replica.failed(Fault::Failed, 0);
            assert!(replica.is_well(0));
            replica.succeeded();
        }
        (0..3).for_each(|_| replica.failed(Fault::Failed, 0));
        assert_eq!((replica.is_well(0), replica.take_trial(999), replica.state(0)), (false, false, "out"));
        assert!(replica.take_trial(1000) && !replica.take_trial(1000), "one request at a time");
        replica.failed(Fault::Failed, 1000);
        assert!(!replica.take_trial(2999) && replica.take_trial(3000), "twice as long");
        for _ in 0..40 {
            replica.failed(Fault::Failed, 3000);
        }
        assert_eq!(replica.out_for(3000), Duration::from_millis(LONGEST_OUT_MS));
        replica.succeeded();
        assert!(replica.is_well(3000));
    }

    #[test]
    fn what_cannot_be_reached_is_out_until_a_check_reaches_it() {
        let replica = replica();
        replica.failed(Fault::Unreachable, 0);
        assert!(!replica.is_well(0));
        replica.checked(Seen::Well);
        assert!(replica.is_well(0));
        (0..3).for_each(|_| replica.failed(Fault::Failed, 0));
        replica.checked(Seen::Well);
        assert!(!replica.is_well(0), "who answers 500 may well pass its checks");
        replica.succeeded();
        (0..3).for_each(|_| replica.checked(Seen::Ill));
        assert_eq!(replica.state(10_000), "down");
        replica.checked(Seen::Well);
        assert_eq!(replica.state(10_000), "well");
        (0..9).for_each(|_| replica.failed(Fault::Failed, 10_000));
        replica.checked(Seen::Gone);
        assert_eq!(replica.state(10_000), "down");
        replica.checked(Seen::Well);
        assert_eq!(replica.state(10_000), "well", "it was started anew");
    }

    #[test]
    fn load_is_given_back_and_others_load_is_seen() {
        let replica = replica();
        let mut place = Place::take(&replica, 7);
        assert_eq!((replica.load().in_flight, replica.load().waiting_prompt_tokens), (1, 7));
        place.begun();
        assert_eq!(replica.load().waiting_prompt_tokens, 0);
        replica.engine_says(EngineLoad { running: 3, waiting: 1 });
        assert_eq!((replica.load().in_flight, replica.load().expected_answer_tokens), (4, 40));
        drop(place);
        replica.engine_says(EngineLoad { running: 0, waiting: 0 });
        assert_eq!(replica.load(), ReplicaLoad::default());
    }
}
