//! The certificate of a plan, watched while it is served. A query that the policy decides on is compared with the calibration's,
//! its feedback with what the calibration vouches for (`boute_router::monitor`). An alarm voids the certificate until an
//! operator lifts it or a plan with other routing comes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use boute_router::monitor::{Alarm, Monitor};
use boute_spec::certificate::Certificate;
use boute_spec::policy::RoutingPolicy;
use serde_json::json;

use crate::metrics::{CounterOf, Histogram, SCORES, describe, label, sample};
use crate::recent::Recent;

/// Chance of a false alarm of feedback, ever; likewise of drift.
const FALSE_ALARMS: f64 = 0.05;
/// The monitor's tests speak of queries that come independently of each other: a text that comes again, and the turns of a
/// session, count once within so many queries, the longest window that it compares.
const COUNTED_ONCE: usize = 2000;

/// What becomes of `auto` when the certificate is void.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenVoid {
    /// The certificate's safe model answers.
    #[default]
    SafeModel,
    /// The policy decides on; the alarm is only told.
    Report,
}

impl std::str::FromStr for WhenVoid {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "safe-model" => Ok(Self::SafeModel),
            "report" => Ok(Self::Report),
            other => Err(format!("`{other}` is not one of safe-model, report")),
        }
    }
}

/// One certificate of one policy, and what was seen since.
#[derive(Debug)]
pub(crate) struct Watched {
    certificate: Certificate,
    policy: RoutingPolicy,
    /// What each model was expected to score, for the calibration's queries and for those that came.
    scores: Vec<Scores>,
    seen: Mutex<Seen>,
    void: AtomicBool,
    alarms: CounterOf,
}

#[derive(Debug)]
struct Scores {
    planned: Histogram,
    seen: Histogram,
}

#[derive(Debug)]
struct Seen {
    monitor: Monitor,
    once: Recent<()>,
    /// Of the last query; kept for its memory.
    scores: Vec<f32>,
    queries: u64,
    void_since: Option<SystemTime>,
}

impl Seen {
    fn nothing(certificate: &Certificate) -> Self {
        Self {
            monitor: Monitor::new(certificate.reference.clone(), FALSE_ALARMS),
            once: Recent::new(COUNTED_ONCE),
            scores: Vec::new(),
            queries: 0,
            void_since: None,
        }
    }
}

impl Watched {
    pub(crate) fn new(certificate: Certificate, policy: RoutingPolicy) -> Self {
        let reference = &certificate.reference;
        let scores = reference.models.iter().zip(&reference.quantiles).map(|(_, quantiles)| {
            let scores = Scores { planned: Histogram::new(&SCORES), seen: Histogram::new(&SCORES) };
            quantiles.0.iter().for_each(|score| scores.planned.observe(f64::from(*score)));
            scores
        });
        Self {
            scores: scores.collect(),
            seen: Mutex::new(Seen::nothing(&certificate)),
            certificate,
            policy,
            void: AtomicBool::new(false),
            alarms: CounterOf::default(),
        }
    }

    /// Whether this is about the same certificate of the same policy: then it is as void as before.
    pub(crate) fn is_of(&self, certificate: &Certificate, policy: &RoutingPolicy) -> bool {
        self.certificate == *certificate && self.policy == *policy
    }

    pub(crate) fn is_void(&self) -> bool {
        self.void.load(Relaxed)
    }

    /// The policy is to decide on a query, known by `key`: its scores in the order of the certificate's models, its novelty.
    pub(crate) fn observe(&self, key: u64, scores: impl Iterator<Item = f32>, novelty: f32) {
        let seen = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.once.get(key).is_some() {
            return;
        }
        seen.once.insert(key, ());
        seen.scores.clear();
        seen.scores.extend(scores);
        for (of, score) in self.scores.iter().zip(&seen.scores) {
            of.seen.observe(f64::from(*score));
        }
        if self.is_void() {
            return;
        }
        seen.queries += 1;
        let alarm = seen.monitor.observe(&seen.scores, novelty);
        self.note(seen, alarm.as_ref());
    }

    /// An answer that the policy had decided on was judged.
    pub(crate) fn feedback(&self, model: &str, score: f64) {
        let Some(model) = self.certificate.reference.models.iter().position(|known| known == model) else {
            return;
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = seen.monitor.feedback("", model, score);
        self.note(&mut seen, alarm.as_ref());
    }

    fn note(&self, seen: &mut Seen, alarm: Option<&Alarm>) {
        let Some(alarm) = alarm else { return };
        self.alarms.add(match alarm {
            Alarm::Drift { .. } => "drift",
            Alarm::Drop { .. } => "drop",
        });
        seen.void_since = Some(SystemTime::now());
        self.void.store(true, Relaxed);
    }

    /// Watches anew, as if nothing had been seen.
    pub(crate) fn lift(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Seen::nothing(&self.certificate);
        self.void.store(false, Relaxed);
    }

    /// What voided it.
    pub(crate) fn alarm(&self) -> Option<Alarm> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).monitor.alarm().cloned()
    }

    /// For operators.
    pub(crate) fn status(&self) -> serde_json::Value {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = seen.monitor.alarm();
        let since = seen.void_since.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let scores = self.certificate.reference.models.iter().zip(&self.scores).map(
            |(model, of)| json!({"model": model, "planned": of.planned.state(), "seen": of.seen.state()}),
        );
        json!({
            "state": if alarm.is_some() { "void" } else { "valid" },
            "safe_model": self.certificate.safe_model,
            "alarm": alarm,
            "because": alarm.map(ToString::to_string),
            "void_since_unix_s": since.map(|since| since.as_secs()),
            "calibration_queries": self.certificate.reference.queries,
            "queries": seen.queries,
            "scores": scores.collect::<Vec<_>>(),
            "feedback": seen.monitor.answers().collect::<Vec<_>>(),
        })
    }

    /// Appends the metrics.
    pub(crate) fn write(&self, out: &mut String) {
        let name = "boute_certificate_void";
        describe(out, name, "gauge", "1 if the plan's promise of quality no longer holds.");
        let safe = format!("safe_model=\"{}\"", label(&self.certificate.safe_model));
        sample(out, name, &safe, u8::from(self.is_void()));
        let name = "boute_certificate_alarms_total";
        describe(out, name, "counter", "Alarms that voided it: other queries, worse answers.");
        self.alarms.write(out, name, "alarm");
    }
}
