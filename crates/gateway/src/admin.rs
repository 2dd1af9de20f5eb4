//! The operators' side, on a listener of its own: metrics, and replicas that come and go.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::{Method, header};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::dashboard;
use crate::discovery::Fleet;
use crate::http::{Request, Response, Service, json_response, read_body, serve, text_response};
use crate::metrics::{describe, label, sample};
use crate::openai::Failure;
use crate::replica::{Replica, Upstream};
use crate::serve::{Gateway, Inner};
use crate::traffic::ModelTraffic;

/// Serves the admin interface of a gateway.
struct Admin(Arc<Inner>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicaBody {
    model: String,
    url: String,
}

impl Gateway {
    /// Serves operators on `listener` until `stop` says so: `/dashboard`, `/metrics`, `/health`, replicas under
    /// `/admin/replicas` (GET; POST and DELETE with `{"model": …, "url": …}`), the plan's certificate under
    /// `/admin/certificate` (GET, and DELETE `/admin/certificate/alarm`). Whoever reaches it may do anything: keep it on
    /// loopback.
    pub async fn serve_admin(&self, listener: TcpListener, stop: watch::Receiver<bool>) {
        let admin = Arc::new(Admin(Arc::clone(&self.0)));
        serve(admin, listener, self.0.limits.client, None, stop).await;
    }

    /// The metrics, in Prometheus' text form.
    pub fn metrics(&self) -> String {
        self.0.metrics()
    }
}

impl Service for Admin {
    async fn answer(self: Arc<Self>, request: Request, _: IpAddr) -> Response {
        self.dispatch(request).await.unwrap_or_else(|failure| failure.response())
    }
}

impl Admin {
    async fn dispatch(&self, request: Request) -> Result<Response, Failure> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let reads = matches!(method, Method::GET | Method::HEAD);
        // A page of another site, open in an operator's browser, may not give orders.
        if !reads && request.headers().contains_key(header::ORIGIN) {
            return Err(Failure::bad_request("orders are not taken from web pages".into(), None));
        }
        if let Some(response) = dashboard::answer(&self.0, &path).filter(|_| reads) {
            return Ok(response);
        }
        match path.as_str() {
            "/metrics" if reads => Ok(text_response(self.0.metrics())),
            "/health" if reads => Ok(self.0.health()),
            "/admin/replicas" if reads => Ok(self.replicas()),
            "/admin/replicas" if method == Method::POST || method == Method::DELETE => {
                let body = read_body(request.into_body(), self.0.limits.client.body).await?;
                let ReplicaBody { model, url } = serde_json::from_slice(&body).map_err(|error| {
                    let message = format!("the body is not {{\"model\": …, \"url\": …}}: {error}");
                    Failure::bad_request(message, None)
                })?;
                if method == Method::POST { self.add(&model, &url) } else { self.remove(&model, &url) }
            }
            "/admin/replicas" => Err(Failure::wrong_method(&method, "GET, POST, DELETE")),
            "/admin/certificate" if reads => Ok(self.certificate()),
            "/admin/certificate/alarm" if method == Method::DELETE => self.lift(),
            "/admin/certificate/alarm" => Err(Failure::wrong_method(&method, "DELETE")),
            "/admin/certificate" | "/metrics" | "/health" => Err(Failure::wrong_method(&method, "GET")),
            _ => Err(Failure::no_such_path()),
        }
    }

    fn certificate(&self) -> Response {
        let routes = self.0.routes();
        let none = || json!({ "state": "none" });
        let status = routes.watch.as_ref().map_or_else(none, |watch| watch.watched.status());
        json_response(status.to_string())
    }

    fn lift(&self) -> Result<Response, Failure> {
        let routes = self.0.routes();
        let Some(watch) = &routes.watch else {
            return Err(Failure::bad_request("the plan has no certificate".into(), None));
        };
        watch.watched.lift();
        Ok(self.certificate())
    }

    fn replicas(&self) -> Response {
        let (routes, now) = (self.0.routes(), self.0.now_ms());
        let replicas: Vec<_> = routes.replicas().map(|replica| replica.describe(now)).collect();
        json_response(json!({ "replicas": replicas }).to_string())
    }

    /// A replica more: as fast as the first of its model, for all we know.
    fn add(&self, model: &str, url: &str) -> Result<Response, Failure> {
        let routes = self.0.routes();
        let mut upstream = Upstream::at(model, url);
        if let Some(like) = routes.replicas().find(|replica| replica.model == model) {
            upstream.speed = like.speed;
            upstream.expected_output_tokens = Some(like.expected_output_tokens);
        }
        self.change(move |fleet| {
            fleet.removed.retain(|removed| *removed != upstream.url);
            if !fleet.upstreams().iter().any(|it| it.url == upstream.url && it.model == upstream.model) {
                fleet.added.push(upstream);
            }
        })
    }

    /// A replica less: it gets no further request, and ends those that it has.
    fn remove(&self, model: &str, url: &str) -> Result<Response, Failure> {
        let (routes, url) = (self.0.routes(), &Upstream::at(model, url).url);
        let Some(gone) = routes.replicas().find(|it| it.model == model && it.serves(url)) else {
            let message = format!("no replica of `{model}` is at `{url}`");
            return Err(Failure::bad_request(message, Some("url")));
        };
        let gone = Arc::clone(gone);
        self.change(move |fleet| {
            fleet.added.retain(|it| !(it.model == gone.model && gone.serves(&it.url)));
            if fleet.upstreams().iter().any(|it| it.model == gone.model && gone.serves(&it.url)) {
                fleet.removed.push(gone.url.clone());
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Fleet)) -> Result<Response, Failure> {
        let changed = self.0.change(|fleet| {
            change(fleet);
            Ok(())
        });
        changed.map_err(|error| Failure::bad_request(error.to_string(), None))?;
        Ok(self.replicas())
    }
}

/// Reads one number of a replica.
type Read = fn(&Replica) -> u64;

impl Inner {
    fn metrics(&self) -> String {
        let (routes, now) = (self.routes(), self.now_ms());
        let mut out = String::new();
        ModelTraffic::write(&mut out, routes.models.iter().map(|model| (&*model.name, &*model.traffic)));
        let of_replicas: [(&str, &str, &str, Read); 5] = [
            ("boute_replica_requests_total", "counter", "Requests sent to a replica.", |it| {
                it.counts.requests.get()
            }),
            ("boute_replica_failures_total", "counter", "Failures by the replica's fault.", |it| {
                it.counts.failures.get()
            }),
            ("boute_replica_backpressure_total", "counter", "Answers 429 and 503.", |it| {
                it.counts.backpressure.get()
            }),
            ("boute_replica_in_flight", "gauge", "Requests in flight from here.", |it| {
                u64::from(it.in_flight())
            }),
            ("boute_replica_waiting_prompt_tokens", "gauge", "Prompt tokens without a first token.", |it| {
                it.load().waiting_prompt_tokens
            }),
        ];
        let labels = |replica: &Replica| {
            format!(
                "model=\"{}\",replica=\"{}\",url=\"{}\"",
                label(&replica.model),
                label(&replica.name),
                label(&replica.url)
            )
        };
        for (name, kind, help, read) in of_replicas {
            describe(&mut out, name, kind, help);
            routes.replicas().for_each(|replica| sample(&mut out, name, &labels(replica), read(replica)));
        }
        let name = "boute_replica_well";
        describe(&mut out, name, "gauge", "1 if nothing speaks against the replica.");
        for replica in routes.replicas() {
            sample(&mut out, name, &labels(replica), u8::from(replica.is_well(now)));
        }
        let (in_flight, waiting) = self.admission.counts();
        let late = self.embedding.late.get();
        let (swaps, not_found) = (self.plan_swaps.get(), self.failed_lookups.get());
        let dropped = self.decisions.as_ref().map_or(0, crate::decisions::DecisionLog::dropped);
        let lost = self.tracer.as_ref().map_or(0, |tracer| tracer.dropped.get());
        for (name, kind, help, value) in [
            ("boute_embeddings_late_total", "counter", "Texts sent to the safe model for want of one.", late),
            ("boute_requests_in_flight", "gauge", "Requests inside.", in_flight as u64),
            ("boute_requests_waiting", "gauge", "Requests in the queue.", waiting as u64),
            ("boute_plan_swaps_total", "counter", "Plans swapped in.", swaps),
            ("boute_lookup_failures_total", "counter", "Names that could not be looked up.", not_found),
            ("boute_spans_dropped_total", "counter", "Spans the collector had no time for.", lost),
            ("boute_log_lines_dropped_total", "counter", "Lines the log had no time for.", dropped),
        ] {
            describe(&mut out, name, kind, help);
            sample(&mut out, name, "", value);
        }
        let name = "boute_retries_total";
        describe(&mut out, name, "counter", "Attempts given up for another replica, by reason.");
        self.retries.write(&mut out, name, "reason");
        let name = "boute_hedges_total";
        describe(
            &mut out,
            name,
            "counter",
            "Requests that two replicas were asked at once, by which answered.",
        );
        self.hedges.write(&mut out, name, "winner");
        let name = "boute_cascade_total";
        describe(&mut out, name, "counter", "Answers that a cascade looked at, by what became of them.");
        self.cascades.write(&mut out, name, "outcome");
        let name = "boute_errors_total";
        describe(&mut out, name, "counter", "Requests that the gateway answered with an error, by code.");
        self.errors.write(&mut out, name, "error_type");
        let name = "boute_gateway_overhead_seconds";
        describe(&mut out, name, "histogram", "From a request's arrival to its being sent on.");
        self.overhead.write(&mut out, name, "");
        self.quality.write(&mut out);
        if let Some(watch) = &routes.watch {
            watch.watched.write(&mut out);
        }
        out
    }
}
