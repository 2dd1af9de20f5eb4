//! The gateway: scores the prompt, decides the model, picks the replica, and passes bytes through.
//!
//! A request is read far enough to know its model and text; `model` is spliced, every other byte is forwarded as it came,
//! and so is the answer. An upstream that cannot be reached before the first byte is retried once on another replica and
//! avoided for a second; one that dies mid-stream becomes an error event and a broken connection, never a clean end.
//! When the client goes, the upstream request goes with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt;
use boute_router::balance::{ReplicaLoad, ReplicaSpeed, RequestSize, least_expected_finish};
use boute_router::decide::{Decider, UnknownModel};
use boute_router::{Scorer, Scratch};
use boute_spec::policy::RoutingPolicy;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Sleep;

use crate::metrics::{Counter, Histogram, describe, sample};
use crate::mock::json_response;
use crate::openai::{Failure, Peek, prompt_tokens, read_body};

/// Model name by which the plan's policy decides.
pub const AUTO: &str = "auto";
/// A replica that could not be reached is avoided for this long.
const AVOID: Duration = Duration::from_secs(1);
/// Idle connections to replicas are closed before engines close them (llama.cpp says 5 s).
const IDLE: Duration = Duration::from_secs(4);
const CONNECT: Duration = Duration::from_secs(5);
/// Between telling a client that its stream is broken and breaking it off.
const FAREWELL: Duration = Duration::from_millis(50);
/// Answer length the balancer expects where nothing is known.
const EXPECTED_ANSWER: u32 = 256;

/// One engine that answers.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Model it serves, by the name it knows.
    pub model: String,
    /// Its address, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// What the balancer knows of its speed.
    pub speed: ReplicaSpeed,
    /// Answer length the balancer expects of it; `None` if not known.
    pub expected_output_tokens: Option<u32>,
}

/// What the gateway serves.
#[derive(Debug)]
pub struct GatewayConfig {
    /// How `auto` is decided; `None` if only concrete models are served.
    pub policy: Option<RoutingPolicy>,
    /// Scores prompts for the policy; not needed for a constant policy.
    pub scorer: Option<Scorer>,
    /// The engines.
    pub upstreams: Vec<Upstream>,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The policy names a model without scores.
    #[error(transparent)]
    Policy(#[from] UnknownModel),
    /// A replica's address is none.
    #[error("`{url}` is not an address of a replica; write it like `http://127.0.0.1:8000`")]
    Url {
        /// What was given.
        url: String,
    },
    /// A model that the policy sends queries to has no replica.
    #[error("the policy sends queries to `{model}`, but no replica serves it; add `--replica {model}=URL`")]
    NoReplica {
        /// The model.
        model: String,
    },
}

#[derive(Debug, Default)]
struct Load {
    in_flight: AtomicU32,
    waiting_prompt_tokens: AtomicU64,
    expected_answer_tokens: AtomicU64,
    /// Milliseconds since the gateway's start until which the replica is avoided.
    avoid_until_ms: AtomicU64,
}

struct Replica {
    model: String,
    url: String,
    speed: ReplicaSpeed,
    expected_output_tokens: u32,
    load: Load,
    requests: Counter,
    failures: Counter,
}

impl Replica {
    fn snapshot(&self) -> ReplicaLoad {
        ReplicaLoad {
            in_flight: self.load.in_flight.load(Ordering::Relaxed),
            waiting_prompt_tokens: self.load.waiting_prompt_tokens.load(Ordering::Relaxed),
            expected_answer_tokens: self.load.expected_answer_tokens.load(Ordering::Relaxed),
        }
    }
}

struct Gateway {
    decider: Option<Decider>,
    /// Models in the decider's order of scores.
    scored: Vec<String>,
    scorer: Option<Scorer>,
    models: Vec<String>,
    replicas: Vec<Arc<Replica>>,
    client: Client<HttpConnector, Full<Bytes>>,
    started: Instant,
    next_id: AtomicU64,
    decisions: Vec<Counter>,
    retries: Counter,
    errors: Counter,
    overhead: Histogram,
    ttft: Arc<Histogram>,
}

/// A gateway that is ready to serve.
pub struct ReadyGateway(Arc<Gateway>);

impl ReadyGateway {
    /// Checks the configuration.
    ///
    /// # Errors
    /// If policy, scorer and replicas do not fit together.
    pub fn new(config: GatewayConfig) -> Result<Self, GatewayError> {
        let mut models: Vec<String> =
            config.upstreams.iter().map(|upstream| upstream.model.clone()).collect();
        models.sort();
        models.dedup();
        let scored = config.scorer.as_ref().map_or_else(|| models.clone(), |scorer| scorer.models().to_vec());
        let decider = config.policy.as_ref().map(|policy| Decider::new(policy, &scored)).transpose()?;
        if let Some(policy) = &config.policy
            && let Some(missing) =
                policy.models().into_iter().find(|model| !models.iter().any(|it| it == model))
        {
            return Err(GatewayError::NoReplica { model: missing.into() });
        }
        let replicas = config.upstreams.into_iter().map(replica).collect::<Result<Vec<_>, _>>()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self(Arc::new(Gateway {
            decider,
            scorer: config.scorer,
            decisions: models.iter().map(|_| Counter::default()).collect(),
            scored,
            models,
            replicas,
            client,
            started: Instant::now(),
            next_id: AtomicU64::new(0),
            retries: Counter::default(),
            errors: Counter::default(),
            overhead: Histogram::default(),
            ttft: Arc::default(),
        })))
    }

    /// Serves on `listener` until the task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let router = Router::new()
            .route("/v1/chat/completions", post(relay))
            .route("/v1/completions", post(relay))
            .route("/v1/models", get(models))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .fallback(any(|| async { Failure::no_such_path(StatusCode::NOT_FOUND).response() }))
            .method_not_allowed_fallback(|| async {
                Failure::no_such_path(StatusCode::METHOD_NOT_ALLOWED).response()
            })
            .with_state(self.0);
        listen(router, listener).await;
    }
}

/// Serves `router` with small packets sent at once.
pub(crate) async fn listen(router: Router, listener: TcpListener) {
    let listener = listener.tap_io(|stream| {
        // A socket that refuses the option still works.
        let _ = stream.set_nodelay(true);
    });
    // `axum::serve` ends only when its task does.
    let _ = axum::serve(listener, router).await;
}

fn replica(upstream: Upstream) -> Result<Arc<Replica>, GatewayError> {
    let url = upstream.url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let valid =
        url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.authority().is_some());
    if !valid {
        return Err(GatewayError::Url { url: upstream.url });
    }
    Ok(Arc::new(Replica {
        model: upstream.model,
        url,
        speed: upstream.speed,
        expected_output_tokens: upstream.expected_output_tokens.unwrap_or(EXPECTED_ANSWER),
        load: Load::default(),
        requests: Counter::default(),
        failures: Counter::default(),
    }))
}

/// Who answers a request, and why.
struct Choice {
    model: String,
    margin: Option<f32>,
    reason: &'static str,
}

impl Gateway {
    fn choose(&self, asked: &str, text: &str) -> Result<Choice, Failure> {
        let unknown = || Failure::unknown_model(asked, &self.names().join(", "));
        if asked != AUTO {
            let known = self.models.iter().any(|model| model == asked);
            return known
                .then(|| Choice { model: asked.to_owned(), margin: None, reason: "asked" })
                .ok_or_else(unknown);
        }
        let decider = self.decider.as_ref().ok_or_else(unknown)?;
        let mut scores = vec![0.0; self.scored.len()];
        if let Some(scorer) = &self.scorer {
            thread_local! {
                static SCRATCH: std::cell::RefCell<Scratch> = std::cell::RefCell::default();
            }
            SCRATCH.with_borrow_mut(|scratch| scorer.score(text, scratch, &mut scores));
        }
        let decision = decider.decide(&scores);
        let reason = if decision.margin.is_finite() { "policy" } else { "constant" };
        Ok(Choice { model: self.scored[decision.model].clone(), margin: Some(decision.margin), reason })
    }

    /// `auto`, if there is a policy, and the concrete models.
    fn names(&self) -> Vec<&str> {
        let auto = self.decider.iter().map(|_| AUTO);
        auto.chain(self.models.iter().map(String::as_str)).collect()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The replica of `model` that is expected to finish first, `but` excepted; avoided ones only if there is no other.
    fn pick(&self, model: &str, but: Option<usize>, size: RequestSize) -> Option<usize> {
        let now = self.now_ms();
        let loads: Vec<(usize, ReplicaLoad)> = self
            .replicas
            .iter()
            .enumerate()
            .filter(|(index, replica)| replica.model == model && Some(*index) != but)
            .map(|(index, replica)| (index, replica.snapshot()))
            .collect();
        let well = |index: usize| self.replicas[index].load.avoid_until_ms.load(Ordering::Relaxed) <= now;
        let any_well = loads.iter().any(|(index, _)| well(*index));
        let candidates = loads.iter().filter(|(index, _)| !any_well || well(*index));
        least_expected_finish(
            candidates.map(|(index, load)| (*index, load, &self.replicas[*index].speed)),
            size,
        )
    }
}

/// A request's place on a replica; gives everything back when dropped, whatever happened.
struct Place {
    replica: Arc<Replica>,
    prompt_tokens: u64,
    answer_tokens: u64,
}

impl Place {
    fn take(replica: &Arc<Replica>, prompt_tokens: u32) -> Self {
        let place = Self {
            replica: Arc::clone(replica),
            prompt_tokens: u64::from(prompt_tokens),
            answer_tokens: u64::from(replica.expected_output_tokens),
        };
        let load = &place.replica.load;
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        load.waiting_prompt_tokens.fetch_add(place.prompt_tokens, Ordering::Relaxed);
        load.expected_answer_tokens.fetch_add(place.answer_tokens, Ordering::Relaxed);
        place
    }

    /// The first token has come: the prompt is done.
    fn begun(&mut self) {
        self.replica.load.waiting_prompt_tokens.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
        self.prompt_tokens = 0;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let load = &self.replica.load;
        load.in_flight.fetch_sub(1, Ordering::Relaxed);
        load.waiting_prompt_tokens.fetch_sub(self.prompt_tokens, Ordering::Relaxed);
        load.expected_answer_tokens.fetch_sub(self.answer_tokens, Ordering::Relaxed);
    }
}

async fn relay(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    let arrived = Instant::now();
    let number = gateway.next_id.fetch_add(1, Ordering::Relaxed);
    let id = request.headers().get("x-request-id").cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&format!("boute-{number:x}")).unwrap_or(HeaderValue::from_static("boute"))
    });
    let mut response = forward(&gateway, request, &id, arrived).await.unwrap_or_else(|failure| {
        gateway.errors.add(1);
        failure.response()
    });
    response.headers_mut().insert("x-request-id", id);
    response
}

async fn forward(
    gateway: &Gateway,
    request: Request<Body>,
    id: &HeaderValue,
    arrived: Instant,
) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    let peek = Peek::read(&body)?;
    let text = peek.text()?;
    let choice = gateway.choose(&peek.model()?, &text)?;
    if let Some(index) = gateway.models.iter().position(|model| *model == choice.model) {
        gateway.decisions[index].add(1);
    }
    let prompt_tokens = prompt_tokens(&parts.headers, &text);
    let upstream_body = peek.with_model(&body, &choice.model);
    let mut tried = None;
    let mut cause = String::new();
    for attempt in 1..=2 {
        let expected = gateway.replicas.iter().find(|replica| replica.model == choice.model);
        let answer_tokens = expected.map_or(EXPECTED_ANSWER, |replica| replica.expected_output_tokens);
        let size = RequestSize { prompt_tokens, answer_tokens };
        let Some(picked) = gateway.pick(&choice.model, tried, size) else { break };
        let replica = &gateway.replicas[picked];
        let place = Place::take(replica, prompt_tokens);
        replica.requests.add(1);
        let request =
            upstream_request(replica, &parts.method, &parts.uri, &parts.headers, id, &upstream_body)?;
        if attempt == 1 {
            gateway.overhead.observe(arrived.elapsed());
        } else {
            gateway.retries.add(1);
        }
        match gateway.client.request(request).await {
            Ok(response) => {
                let busy = matches!(
                    response.status(),
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                );
                let other = gateway.pick(&choice.model, Some(picked), size);
                if busy && attempt == 1 && other.is_some() {
                    // Backpressure is no fault of the replica's: one try elsewhere, then it is passed on.
                    tried = Some(picked);
                    continue;
                }
                return Ok(relayed(response, place, &choice, attempt, arrived, &gateway.ttft));
            }
            Err(error) => {
                replica.failures.add(1);
                let until = gateway.now_ms() + AVOID.as_millis() as u64;
                replica.load.avoid_until_ms.store(until, Ordering::Relaxed);
                cause = error.to_string();
                tried = Some(picked);
            }
        }
    }
    Err(if cause.is_empty() {
        Failure::no_replica(&choice.model)
    } else {
        Failure::unreachable(&choice.model, &cause)
    })
}

/// Headers that concern one connection only, or that we set ourselves.
const OWN_HEADERS: [HeaderName; 8] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];

fn upstream_request(
    replica: &Replica,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    id: &HeaderValue,
    body: &Bytes,
) -> Result<hyper::Request<Full<Bytes>>, Failure> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(format!("{}{path}", replica.url))
        .body(Full::new(body.clone()))
        .map_err(|error| Failure::bad_request(format!("the request cannot be forwarded: {error}"), None))?;
    for (name, value) in headers.iter().filter(|(name, _)| !OWN_HEADERS.contains(name)) {
        request.headers_mut().append(name.clone(), value.clone());
    }
    request.headers_mut().insert("x-request-id", id.clone());
    Ok(request)
}

fn relayed(
    response: hyper::Response<Incoming>,
    place: Place,
    choice: &Choice,
    attempts: u32,
    arrived: Instant,
    ttft: &Arc<Histogram>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let streams = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"));
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    let mut say = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            parts.headers.insert(name, value);
        }
    };
    say("x-boute-model", &choice.model);
    say("x-boute-replica", &place.replica.url);
    say("x-boute-reason", choice.reason);
    say("x-boute-attempts", &attempts.to_string());
    if let Some(margin) = choice.margin.filter(|margin| margin.is_finite()) {
        say("x-boute-score", &format!("{margin:.4}"));
    }
    if streams {
        say("cache-control", "no-cache");
        say("x-accel-buffering", "no");
    }
    let relay = Relay {
        upstream: body,
        place,
        streams,
        begun: false,
        closing: None,
        arrived,
        ttft: Arc::clone(ttft),
    };
    Response::from_parts(parts, Body::new(relay))
}

/// An answer on its way: frames pass unchanged; the place on the replica is held until the end.
struct Relay {
    upstream: Incoming,
    place: Place,
    streams: bool,
    begun: bool,
    /// Set when the replica has died and the client was told: when the connection is broken off.
    closing: Option<Pin<Box<Sleep>>>,
    arrived: Instant,
    ttft: Arc<Histogram>,
}

/// The replica died while it answered.
#[derive(Debug, thiserror::Error)]
#[error("the replica broke off")]
struct BrokenOff;

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(closing) = &mut self.closing {
            return closing.as_mut().poll(context).map(|()| Some(Err(BrokenOff)));
        }
        let polled = Pin::new(&mut self.upstream).poll_frame(context);
        let Poll::Ready(frame) = polled else { return Poll::Pending };
        match frame {
            None => Poll::Ready(None),
            Some(Ok(frame)) => {
                if !self.begun {
                    self.begun = true;
                    self.place.begun();
                    self.ttft.observe(self.arrived.elapsed());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.place.replica.failures.add(1);
                if !self.streams {
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
                // A client that reads events is told, and then cut off: without [DONE] it knows that this is not the end.
                // The pause lets the event leave: breaking off discards what is still buffered.
                self.closing = Some(Box::pin(tokio::time::sleep(FAREWELL)));
                let failure = Failure::unreachable(&self.place.replica.model, &error.to_string());
                Poll::Ready(Some(Ok(Frame::data(format!("data: {}\n\n", failure.json()).into()))))
            }
        }
    }
}

async fn models(State(gateway): State<Arc<Gateway>>) -> Response<Body> {
    let data: Vec<_> = gateway
        .names()
        .into_iter()
        .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "boute"}))
        .collect();
    json_response(&json!({"object": "list", "data": data}))
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response<Body> {
    let now = gateway.now_ms();
    let well = |replica: &&Arc<Replica>| replica.load.avoid_until_ms.load(Ordering::Relaxed) <= now;
    let count = gateway.replicas.iter().filter(well).count();
    json_response(&json!({"status": "ok", "replicas": gateway.replicas.len(), "replicas_well": count}))
}

/// Reads one number of a replica.
type Read = fn(&Replica) -> u64;

async fn metrics(State(gateway): State<Arc<Gateway>>) -> String {
    let mut out = String::new();
    describe(&mut out, "boute_decisions_total", "counter", "Requests by the model that was chosen.");
    for (model, count) in gateway.models.iter().zip(&gateway.decisions) {
        sample(&mut out, "boute_decisions_total", &format!("model=\"{model}\""), count.get());
    }
    let of_replicas: [(&str, &str, &str, Read); 4] = [
        ("boute_replica_requests_total", "counter", "Requests sent to a replica.", |it| it.requests.get()),
        ("boute_replica_failures_total", "counter", "Replicas not reached or broken off.", |it| {
            it.failures.get()
        }),
        ("boute_replica_in_flight", "gauge", "Requests in flight.", |it| u64::from(it.snapshot().in_flight)),
        ("boute_replica_waiting_prompt_tokens", "gauge", "Prompt tokens without a first token.", |it| {
            it.snapshot().waiting_prompt_tokens
        }),
    ];
    for (name, kind, help, read) in of_replicas {
        describe(&mut out, name, kind, help);
        for replica in &gateway.replicas {
            let labels = format!("model=\"{}\",replica=\"{}\"", replica.model, replica.url);
            sample(&mut out, name, &labels, read(replica));
        }
    }
    for (name, help, counter) in [
        ("boute_retries_total", "Requests tried on a second replica.", &gateway.retries),
        ("boute_errors_total", "Requests that the gateway answered with an error.", &gateway.errors),
    ] {
        describe(&mut out, name, "counter", help);
        sample(&mut out, name, "", counter.get());
    }
    let overhead = "boute_gateway_overhead_seconds";
    describe(&mut out, overhead, "histogram", "From a request's arrival to its being sent on.");
    gateway.overhead.write(&mut out, overhead, "");
    let ttft = "gen_ai_server_time_to_first_token_seconds";
    describe(&mut out, ttft, "histogram", "From a request's arrival to the first byte of its answer.");
    gateway.ttft.write(&mut out, ttft, "");
    out
}
