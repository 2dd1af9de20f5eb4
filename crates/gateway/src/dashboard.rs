//! The operators' page: what happens now beside what was planned. `/dashboard` is the page, `/dashboard/state` what it shows,
//! as JSON, and `/dashboard/events` the same every second, as server-sent events. All of it can only be read.
//!
//! Counts and histograms are sums since the start, as in the metrics; the page takes differences, so that the gateway keeps
//! nothing for it and any number of pages may be open.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use boute_spec::plan::PlanDraft;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{Interval, interval};

use crate::http::{BrokenOff, Response, full, json_response};
use crate::serve::Inner;

const PAGE: &str = include_str!("dashboard.html");
/// The page brings all it needs, and asks nobody but this gateway.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Between two states that the page is told.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of the autopilot's journal that are looked at, from its end, and entries that are shown.
const JOURNAL_TAIL: u64 = 64 << 10;
const JOURNAL_ENTRIES: usize = 12;

/// What is at `path`, if that is the dashboard's.
pub(crate) fn answer(gateway: &Arc<Inner>, path: &str) -> Option<Response> {
    match path {
        "/dashboard" => Some(page()),
        "/dashboard/state" => Some(json_response(state(gateway).to_string())),
        "/dashboard/events" => Some(events(gateway)),
        _ => None,
    }
}

fn page() -> Response {
    let mut response = Response::new(full(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

fn events(gateway: &Arc<Inner>) -> Response {
    let events = Events { gateway: Arc::clone(gateway), tick: interval(EVERY) };
    let mut response = Response::new(events.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A state at each tick, until the gateway stops.
struct Events {
    gateway: Arc<Inner>,
    tick: Interval,
}

impl Body for Events {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.tick.poll_tick(context).map(|_| {
            let event = || Ok(Frame::data(format!("data: {}\n\n", state(&self.gateway)).into()));
            (!self.gateway.stopping.load(Relaxed)).then(event)
        })
    }
}

fn state(gateway: &Inner) -> Value {
    let (routes, now) = (gateway.routes(), gateway.now_ms());
    let (in_flight, waiting) = gateway.admission.counts();
    let models: Vec<Value> = routes
        .models
        .iter()
        .map(|model| {
            let mut state = model.traffic.state();
            state["model"] = json!(&*model.name);
            state["scores"] = gateway.quality.state(&model.name);
            state
        })
        .collect();
    let replicas: Vec<Value> = routes.replicas().map(|replica| replica.describe(now)).collect();
    json!({
        "uptime_ms": now,
        "plan_swaps": gateway.plan_swaps.get(),
        "in_flight": in_flight,
        "waiting": waiting,
        "errors": gateway.errors.counts(),
        "models": models,
        "replicas": replicas,
        "plan": routes.plan.as_deref().map(plan),
        "certificate": routes.watch.as_ref().map(|watch| watch.watched.status()),
        "journal": gateway.journal.as_deref().map(journal).unwrap_or_default(),
    })
}

/// What the autopilot did of late, the last first; nothing if it keeps no journal.
fn journal(path: &Path) -> Vec<Value> {
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(JOURNAL_TAIL)))?;
        let mut tail = Vec::new();
        file.take(JOURNAL_TAIL).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = tail().unwrap_or_default();
    let entries =
        tail.split(|byte| *byte == b'\n').rev().filter_map(|line| serde_json::from_slice(line).ok());
    entries.filter_map(|entry: Value| told(&entry)).take(JOURNAL_ENTRIES).collect()
}

/// An entry of the journal in words; `None` for mere observations.
fn told(entry: &Value) -> Option<Value> {
    let event = entry["event"].as_str()?;
    let text = match event {
        "observed" => return None,
        "decided" | "dry_run" => {
            let why: Vec<&str> = entry["why"].as_array()?.iter().filter_map(Value::as_str).collect();
            let answer = entry["answer"].as_str().unwrap_or("no plan");
            format!("{} ({}): {}", answer, entry["trigger"].as_str()?, why.join("; "))
        }
        "failed" => format!("act {}: {}", entry["number"], entry["error"].as_str()?),
        "adopted" => format!("a plan for {} requests/s", entry["rate"]),
        _ => format!("act {}", entry["number"]),
    };
    Some(json!({"at_s": entry["at_s"], "event": event.replace('_', " "), "text": text}))
}

/// What a plan promises, in brief.
fn plan(plan: &PlanDraft) -> Value {
    let promises: Vec<Value> = plan
        .targets
        .slo
        .iter()
        .map(|target| {
            json!({
                "promise": target.to_string(),
                "metric": target.metric.name(),
                "share": target.percentile.share(),
                "limit_s": target.limit_s.get(),
                "model": target.model,
            })
        })
        .collect();
    let groups = plan.deployment.groups.iter().map(|group| {
        json!({
            "id": group.id, "model": group.model, "gpu": group.gpu, "tp": group.tp, "pp": group.pp,
            "replicas": group.replicas, "usd_per_hour": group.usd_per_hour,
        })
    });
    json!({
        "objective": plan.targets.objective,
        "rate": plan.predicted.rate,
        "usd_per_hour": plan.predicted.cost_usd_per_hour,
        "usd_per_million_tokens": plan.predicted.usd_per_million_tokens,
        "promises": promises,
        "floor": plan.targets.floor,
        "quality": plan.predicted.quality.value,
        "shares": plan.routing.models,
        "groups": groups.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_from_its_end() {
        let path = std::env::temp_dir().join(format!("boute-journal-{}.jsonl", std::process::id()));
        let decided = r#"{"at_s":9,"event":"dry_run","trigger":"rate_up","answer":"move","why":["a","b"]}"#;
        let lines = [
            "half a line}",
            r#"{"at_s":1,"event":"observed","interval":3}"#,
            r#"{"at_s":5,"event":"done","number":1}"#,
        ];
        std::fs::write(&path, [lines.join("\n").as_str(), decided, "{\"at_s\": 10, \"ev"].join("\n"))
            .unwrap();
        let told: Vec<String> =
            journal(&path).iter().map(|entry| format!("{} {}", entry["event"], entry["text"])).collect();
        assert_eq!(told, [r#""dry run" "move (rate_up): a; b""#, r#""done" "act 1""#]);
        assert!(journal(Path::new("/no/such/journal")).is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
