//! A page for operators, on the admin listener: what `/metrics` and the plan say, as pictures that move. It only reads.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use boute_spec::plan::PlanDraft;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::http::{BrokenOff, Response, full};
use crate::serve::Inner;

const PAGE: &str = include_str!("dashboard.html");
/// Between two events.
const EVERY: Duration = Duration::from_secs(1);

/// The page: one file, nothing from elsewhere.
pub(crate) fn page() -> Response {
    with_type(Response::new(full(PAGE)), "text/html; charset=utf-8")
}

/// Server-sent events, one a second, until the reader goes or the gateway stops.
pub(crate) fn events(inner: &Arc<Inner>) -> Response {
    let (mut sender, channel) = Channel::<Bytes, BrokenOff>::new(1);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !inner.stopping.load(Relaxed) {
            ticks.tick().await;
            let event = format!("data: {}\n\n", snapshot(&inner));
            if sender.send_data(event.into()).await.is_err() {
                return;
            }
        }
    });
    let mut response = with_type(Response::new(channel.boxed_unsync()), "text/event-stream");
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn with_type(mut response: Response, kind: &'static str) -> Response {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What is so now.
fn snapshot(inner: &Inner) -> Value {
    let (routes, now) = (inner.routes(), inner.now_ms());
    let replicas: Vec<Value> = routes
        .replicas()
        .map(|it| json!({"name": it.name, "model": it.model, "url": it.url, "state": it.state(now)}))
        .collect();
    json!({
        "now_ms": now, "replicas": replicas, "plan": inner.plan().as_deref().map(promises), "metrics": inner.metrics(),
    })
}

/// What the plan in force promises.
fn promises(plan: &PlanDraft) -> Value {
    let limits: Vec<Value> = plan
        .targets
        .slo
        .iter()
        .map(|it| {
            let share = it.percentile.share();
            json!({"key": it.key(), "metric": it.metric, "share": share, "limit_s": it.limit_s, "model": it.model})
        })
        .collect();
    json!({
        "usd_per_hour": plan.deployment.usd_per_hour(),
        "usd_per_million_tokens": plan.predicted.usd_per_million_tokens,
        "rate": plan.predicted.rate,
        "max_rate": plan.predicted.max_rate,
        "quality": plan.predicted.quality.value,
        "floor": plan.targets.floor,
        "strategy": plan.strategy,
        "limits": limits,
        "models": plan.routing.models,
        "groups": plan.deployment.groups.iter().map(|it| json!({
            "id": it.id, "replicas": it.replicas, "usd_per_hour": it.usd_per_hour,
        })).collect::<Vec<_>>(),
    })
}
