//! The gateway: scores the prompt, decides the model, picks the replica, and passes bytes through.
//!
//! A request is read far enough to know its model and text; `model` is spliced, every other byte is forwarded as it came,
//! and so is the answer. Until the first byte of an answer is there, another replica may be tried, within a budget; after
//! that a replica's death becomes an error event and a broken connection, never a clean end. When the client goes, in
//! whatever phase, the upstream connection goes with it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use boute_router::balance::{Balancing, Candidate, RequestSize, pick};
use boute_router::monitor::Alarm;
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::response;
use hyper::{Method, StatusCode, Uri};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::admission::{Admission, AdmissionLimits, Permit};
use crate::affinity::{Affinity, Blocks};
use crate::credentials::{UpstreamKeys, UpstreamTls};
use crate::decisions::DecisionLog;
use crate::discovery::Fleet;
use crate::hedge::Sent;
use crate::http::{ClientLimits, Request, Response, Service, full, json_response, read_body, serve};
use crate::keys::{Key, Keys};
use crate::kubernetes::{Cluster, KubernetesApi};
use crate::metrics::{Counter, CounterOf, Histogram, OVERHEAD_S};
use crate::openai::{Endpoint, Failure, Peek, openai_error};
use crate::quality::Quality;
use crate::recent::{Recent, hash};
use crate::relay::{Begun, Relay, Story};
use crate::replica::{Fault, Place, Replica};
use crate::routes::{Choice, GatewayError, Model, Query, Routes, RoutesConfig, Turn, header_text};
use crate::sse::Watch;
use crate::tls::Tls;
use crate::trace::{Exporter, Span, TRACEPARENT, Tracer};
use crate::traffic::Ending;
use crate::upstream::{Outgoing, Pool, Wire};

/// Replicas that one request is sent to, at most.
const MOST_ATTEMPTS: usize = 3;
/// Longest error of an engine that is passed on.
const LONGEST_ERROR: usize = 64 << 10;
/// A kept connection that breaks off this soon was closed by the engine before the request came.
const STALE: Duration = Duration::from_millis(100);

/// Sessions whose model is remembered: one generation of [`Recent`].
const SESSIONS: usize = 1 << 15;

const SESSION: HeaderName = HeaderName::from_static("x-boute-session");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// What clients may take.
    pub client: ClientLimits,
    /// How much is taken on at once.
    pub admission: AdmissionLimits,
    /// Until a replica gives the first byte of its answer.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub silence: Duration,
    /// A whole answer.
    pub answer: Duration,
    /// Between two health checks of a replica.
    pub check_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client: ClientLimits::default(),
            admission: AdmissionLimits::default(),
            first_byte: Duration::from_mins(5),
            silence: Duration::from_mins(2),
            answer: Duration::from_mins(30),
            check_every: Duration::from_secs(1),
        }
    }
}

/// What does not change while a gateway runs.
#[derive(Debug, Default)]
pub struct Settings {
    /// How long things may take.
    pub limits: Limits,
    /// Where decisions are logged, if anywhere.
    pub decisions: Option<std::path::PathBuf>,
    /// Whether prompts are logged with them.
    pub log_prompts: bool,
    /// The autopilot's journal, for the dashboard; it need not be there.
    pub journal: Option<std::path::PathBuf>,
    /// Origins of web pages that may ask; `*` for all.
    pub allow_origins: Vec<String>,
    /// Which certificates of engines are trusted.
    pub upstream_tls: UpstreamTls,
    /// The cluster in which Services of [`RoutesConfig::discover`] are looked up.
    pub kubernetes: Option<KubernetesApi>,
    /// The collector that traces go to, if any, such as `http://127.0.0.1:4318`.
    pub otlp: Option<String>,
    /// Another replica is asked too when a stream has not begun in the time in which this share of its model's do.
    pub hedge: Option<f64>,
}

/// A gateway; clones are the same one.
#[derive(Clone)]
pub struct Gateway(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) limits: Limits,
    pub(crate) decisions: Option<DecisionLog>,
    log_prompts: bool,
    pub(crate) journal: Option<std::path::PathBuf>,
    allow_origins: Vec<String>,
    upstream_tls: UpstreamTls,
    hedge: Option<f64>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) tracer: Option<Arc<Tracer>>,
    exporter: Mutex<Option<Exporter>>,
    fleet: Mutex<Fleet>,
    routes: RwLock<Arc<Routes>>,
    keys: RwLock<Option<Arc<Keys>>>,
    pub(crate) admission: Arc<Admission>,
    affinity: Affinity,
    pub(crate) quality: Quality,
    /// The model that last answered each session.
    sessions: Mutex<Recent<Arc<str>>>,
    lots: RandomState,
    drawn: AtomicU64,
    budget: RetryBudget,
    started: Instant,
    started_ms: u64,
    next_id: AtomicU64,
    turn: AtomicU64,
    pub(crate) stopping: AtomicBool,
    pub(crate) retries: CounterOf,
    pub(crate) hedges: CounterOf,
    pub(crate) errors: CounterOf,
    pub(crate) plan_swaps: Counter,
    pub(crate) failed_lookups: Counter,
    pub(crate) overhead: Histogram,
}

/// Retries are a tenth of the requests, and a hundred at once at most: a failing fleet is not asked more than it was.
#[derive(Debug)]
struct RetryBudget(AtomicI64);

impl RetryBudget {
    const COST: i64 = 10;
    const MOST: i64 = 100 * Self::COST;

    fn earn(&self) {
        if self.0.load(Relaxed) < Self::MOST {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| (left >= Self::COST).then(|| left - Self::COST)).is_ok()
    }
}

impl Gateway {
    /// Checks the configuration and opens the log.
    ///
    /// # Errors
    /// If policy, scorer, replicas and names do not fit together, or the log cannot be written.
    pub fn new(config: RoutesConfig, settings: Settings) -> Result<Self, GatewayError> {
        let collector = settings.otlp.map(|url| {
            let pool = Pool::new(&url, None, &settings.upstream_tls, &UpstreamKeys::default());
            pool.ok_or(GatewayError::Collector { url })
        });
        let (tracer, exporter) = collector.transpose()?.map(Tracer::new).unzip();
        let inner = Inner {
            limits: settings.limits,
            decisions: settings.decisions.as_deref().map(DecisionLog::open).transpose()?,
            log_prompts: settings.log_prompts,
            journal: settings.journal,
            allow_origins: settings.allow_origins,
            upstream_tls: settings.upstream_tls,
            hedge: settings.hedge,
            cluster: settings.kubernetes.map(Cluster::new).transpose()?.map(Arc::new),
            tracer,
            exporter: Mutex::new(exporter),
            fleet: Mutex::default(),
            routes: RwLock::new(Arc::new(Routes::new(
                RoutesConfig::default(),
                |_| None,
                |_| Arc::default(),
                None,
            )?)),
            keys: RwLock::default(),
            admission: Admission::new(settings.limits.admission),
            affinity: Affinity::default(),
            quality: Quality::default(),
            sessions: Mutex::new(Recent::new(SESSIONS)),
            lots: RandomState::new(),
            drawn: AtomicU64::new(0),
            budget: RetryBudget(AtomicI64::new(RetryBudget::MOST)),
            started: Instant::now(),
            started_ms: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis() as u64,
            next_id: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            retries: CounterOf::default(),
            hedges: CounterOf::default(),
            errors: CounterOf::default(),
            plan_swaps: Counter::default(),
            failed_lookups: Counter::default(),
            overhead: Histogram::new(&OVERHEAD_S),
        };
        inner.change(|fleet| {
            fleet.config = config;
            Ok(())
        })?;
        Ok(Self(Arc::new(inner)))
    }

    /// Serves another configuration from now on; requests under way end as they began.
    ///
    /// # Errors
    /// If it does not fit together; then the old one stays.
    pub fn swap(&self, config: RoutesConfig) -> Result<(), GatewayError> {
        self.0.change(|fleet| {
            fleet.config = config;
            Ok(())
        })?;
        self.0.plan_swaps.add(1);
        Ok(())
    }

    /// What voided the certificate of the plan, if anything did.
    pub fn alarm(&self) -> Option<Alarm> {
        self.0.routes().watch.as_ref().and_then(|watch| watch.watched.alarm())
    }

    /// Only these keys are served from now on; everybody, if there are none.
    pub fn set_keys(&self, keys: Option<Keys>) {
        let mut held = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        *held = keys.map(|mut keys| {
            if let Some(before) = &*held {
                keys.carry_over(before);
            }
            Arc::new(keys)
        });
    }

    /// Serves clients on `listener`, and checks the replicas' health, until `stop` says so; then waits for the answers under
    /// way, within the limit.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Tls>, stop: watch::Receiver<bool>) {
        let inner = &self.0;
        let stopping = async {
            let mut stop = stop.clone();
            if stop.wait_for(|stop| *stop).await.is_ok() {
                inner.stopping.store(true, Relaxed);
            }
        };
        // Nobody is let in before it is known who is there.
        inner.look_up_names().await;
        let served = serve(Arc::clone(inner), listener, inner.limits.client, tls, stop.clone());
        let mut exporter = inner.exporter.lock().unwrap_or_else(PoisonError::into_inner).take();
        let export = async {
            match &mut exporter {
                Some(exporter) => exporter.run().await,
                None => std::future::pending().await,
            }
        };
        let watched = async {
            tokio::select! {
                () = inner.watch_replicas() => {}
                () = inner.watch_names() => {}
                () = export => {}
                () = served => {}
            }
        };
        tokio::join!(stopping, watched);
        if let Some(exporter) = &mut exporter {
            exporter.flush().await;
        }
    }
}

impl Inner {
    /// Changes what is served, all or nothing.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut Fleet) -> Result<(), GatewayError>,
    ) -> Result<(), GatewayError> {
        let mut fleet = self.fleet();
        let mut next = fleet.clone();
        change(&mut next)?;
        let now = self.routes();
        let config = RoutesConfig { upstreams: next.upstreams(), ..next.config.clone() };
        let routes = Routes::new(
            config,
            |upstream| {
                let (host, keys) = (upstream.host.as_deref(), &next.config.upstream_keys);
                let pool = Pool::new(&upstream.url, host, &self.upstream_tls, keys)?;
                let old = now.replicas().find(|it| it.model == upstream.model && it.serves(&upstream.url));
                if let Some(old) = old.filter(|old| old.is_as(upstream, &pool)) {
                    return Some(Arc::clone(old));
                }
                let id = old.map_or(next.next_id, |old| old.id);
                next.next_id += u64::from(old.is_none());
                Some(Arc::new(Replica::new(upstream, pool, id, old.map(|old| &**old))))
            },
            |model| {
                let old = now.models.iter().find(|old| &*old.name == model);
                old.map(|old| Arc::clone(&old.traffic)).unwrap_or_default()
            },
            now.watch.as_ref().map(|watch| &watch.watched),
        )?;
        *fleet = next;
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
        Ok(())
    }

    pub(crate) fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn key_of(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, Failure> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().map(|keys| keys.owner(headers).cloned()).transpose()
    }
}

impl Service for Inner {
    async fn answer(self: Arc<Self>, request: Request, peer: IpAddr) -> Response {
        let arrived = Instant::now();
        let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| self.request_id());
        let origin = request.headers().get(header::ORIGIN).filter(|origin| self.allows(origin)).cloned();
        let mut response = match self.dispatch(request, peer, &id, arrived).await {
            Ok(response) => response,
            Err(failure) => {
                self.errors.add(failure.code.unwrap_or("invalid_request"));
                failure.response()
            }
        };
        response.headers_mut().insert(REQUEST_ID, id);
        if let Some(origin) = origin {
            allow_origin(response.headers_mut(), origin);
        }
        response
    }
}

impl Inner {
    /// An id for a request that has none: when this process began, and a count.
    fn request_id(&self) -> HeaderValue {
        let count = self.next_id.fetch_add(1, Relaxed);
        let text = format!("boute-{:x}-{count:x}", self.started_ms);
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("boute"))
    }

    async fn dispatch(
        self: &Arc<Self>,
        request: Request,
        peer: IpAddr,
        id: &HeaderValue,
        arrived: Instant,
    ) -> Result<Response, Failure> {
        let (method, path) = (request.method(), request.uri().path());
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if *method == Method::OPTIONS {
            return Ok(preflight());
        }
        if path == "/health" && reads {
            return Ok(self.health());
        }
        let key = self.key_of(request.headers())?;
        if let Some(endpoint) = Endpoint::of(path) {
            if *method != Method::POST {
                return Err(Failure::wrong_method(method, "POST"));
            }
            let asked = Asked { endpoint, id, arrived, key, peer };
            return self.forward(request, asked).await;
        }
        match path {
            "/v1/models" if reads => Ok(self.models()),
            "/v1/models" | "/health" => Err(Failure::wrong_method(method, "GET")),
            "/v1/feedback" if *method == Method::POST => {
                let body = read_body(request.into_body(), self.limits.client.body).await?;
                self.feedback(&body, key.as_deref())
            }
            "/v1/feedback" => Err(Failure::wrong_method(method, "POST")),
            _ => match path.strip_prefix("/v1/models/").filter(|_| reads) {
                Some(name) => self.model(name),
                None => Err(Failure::no_such_path()),
            },
        }
    }

    pub(crate) fn health(&self) -> Response {
        let (routes, now) = (self.routes(), self.now_ms());
        let well = routes.replicas().filter(|replica| replica.is_well(now)).count();
        let stopping = self.stopping.load(Relaxed);
        let status = if stopping { "stopping" } else { "ok" };
        let all = routes.replicas().count();
        let json = json!({"status": status, "replicas": all, "replicas_well": well});
        let mut response = json_response(json.to_string());
        if stopping {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    fn models(&self) -> Response {
        let routes = self.routes();
        let data: Vec<_> = routes.names().into_iter().map(model_json).collect();
        json_response(json!({"object": "list", "data": data}).to_string())
    }

    fn model(&self, name: &str) -> Result<Response, Failure> {
        let routes = self.routes();
        let names = routes.names();
        if names.contains(&name) {
            return Ok(json_response(model_json(name).to_string()));
        }
        Err(Failure::unknown_model(name, &names.join(", ")))
    }

    fn feedback(&self, body: &[u8], key: Option<&Key>) -> Result<Response, Failure> {
        let feedback = self.quality.feedback(body, key.map_or(0, |key| key.number))?;
        if let Some(log) = &self.decisions {
            log.rated(&feedback);
        }
        let json =
            json!({"request_id": feedback.request_id, "model": &*feedback.model, "score": feedback.score});
        Ok(json_response(json.to_string()))
    }

    /// A further turn of a session, which is its key's own.
    fn turn_of(&self, session: &str, asked: &Asked<'_>) -> Turn {
        let key = hash((asked.key.as_ref().map(|key| key.number), session));
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { key, previous: sessions.get(key).cloned() }
    }

    /// A number in [0, 1) that no client foresees.
    fn draw(&self) -> f64 {
        let bits = self.lots.hash_one(self.drawn.fetch_add(1, Relaxed));
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.allow_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }
}

fn model_json(id: &str) -> serde_json::Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "boute"})
}

/// What a browser asks before it sends a request of a web page.
fn preflight() -> Response {
    let mut response = hyper::Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    response
}

fn allow_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*, authorization"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
        (header::ACCESS_CONTROL_MAX_AGE, "3600"),
        (header::VARY, "origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
}

/// One request, before it is read.
struct Asked<'a> {
    endpoint: Endpoint,
    id: &'a HeaderValue,
    arrived: Instant,
    key: Option<Arc<Key>>,
    peer: IpAddr,
}

/// One request, read and decided on: what each attempt needs.
pub(crate) struct Ready<'a> {
    asked: Asked<'a>,
    name: String,
    choice: Choice,
    uri: Uri,
    headers: HeaderMap,
    prompt_tokens: u32,
    text: String,
    session: Option<String>,
    streams: bool,
    needs_usage: bool,
    span: Option<Span>,
    permit: Permit,
}

/// What became of one attempt.
pub(crate) enum Attempt {
    Answered(Box<Answer>),
    /// The answer is given up; with a fault if the replica is to blame for it.
    Failed {
        why: &'static str,
        cause: String,
        fault: Option<Fault>,
    },
}

/// The head of an answer and its first piece.
pub(crate) struct Answer {
    head: response::Parts,
    body: Incoming,
    first: Option<Bytes>,
    wire: Wire,
    span: Option<Span>,
}

impl Inner {
    async fn forward(self: &Arc<Self>, request: Request, asked: Asked<'_>) -> Result<Response, Failure> {
        if let Some(key) = &asked.key {
            key.admit()?;
        }
        let (parts, body) = request.into_parts();
        let body = read_body(body, self.limits.client.body).await?;
        let mut peek = Peek::read(&body)?;
        let name = peek.model()?.into_owned();
        let text = peek.text(asked.endpoint)?;
        let routes = self.routes();
        let turn = header_text(&parts.headers, &SESSION).map(|session| self.turn_of(session, &asked));
        let choice = routes.choose(&Query {
            asked: &name,
            endpoint: asked.endpoint,
            text: &text.text,
            headers: &parts.headers,
            turn: turn.as_ref(),
            draw: self.draw(),
        })?;
        if let Some(turn) = turn.filter(|_| choice.sticks) {
            let model = Arc::clone(&routes.models[choice.model].name);
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(turn.key, model);
        }
        let client = asked.key.as_ref().map_or_else(|| client_of(asked.peer), |key| key.number);
        let permit = self.admission.enter(client).await.ok_or_else(Failure::overloaded)?;
        self.budget.earn();
        let mut span = self.tracer.as_ref().and_then(|tracer| tracer.request(&parts.headers));
        if let Some(span) = &mut span {
            span.name(asked.endpoint.operation(), &name);
        }
        let ready = Ready {
            span,
            prompt_tokens: text.tokens(&parts.headers),
            session: header_text(&parts.headers, &SESSION).map(str::to_owned),
            text: text.text,
            headers: forwarded_headers(parts.headers, asked.id, asked.key.is_some()),
            uri: parts.uri,
            streams: peek.streams(),
            needs_usage: peek.needs_usage(asked.endpoint),
            asked,
            name,
            choice,
            permit,
        };
        self.send(&routes, ready, &peek, &body).await
    }

    /// Tries the model that was chosen, then those that may answer in its place.
    async fn send(
        self: &Arc<Self>,
        routes: &Routes,
        mut ready: Ready<'_>,
        peek: &Peek<'_>,
        body: &Bytes,
    ) -> Result<Response, Failure> {
        let chosen = &routes.models[ready.choice.model];
        let now = self.now_ms();
        let is_well = |model: &Model| model.replicas.iter().any(|replica| replica.is_well(now));
        let order: Vec<&Model> = std::iter::once(chosen)
            .chain(chosen.fallback.iter().map(|model| &routes.models[*model]))
            .collect();
        let mut failure = None;
        for (place, model) in order.iter().enumerate() {
            if !is_well(model) && order[place + 1..].iter().any(|later| is_well(later)) {
                continue;
            }
            if place > 0 {
                ready.choice.reason = format!("fallback from {}", chosen.name).into();
                (ready.choice.score, ready.choice.propensity, ready.choice.certificate) = (None, None, None);
            }
            let body = peek.rewritten(body, &model.name, ready.needs_usage);
            match self.try_replicas(routes, model, ready, &body).await {
                Ok(response) => return Ok(response),
                Err((returned, why)) => (ready, failure) = (*returned, Some(why)),
            }
        }
        let failure = failure.unwrap_or_else(|| Failure::no_replica(&chosen.name));
        if let Some(span) = &mut ready.span {
            span.set("error.type", failure.code.unwrap_or_default());
        }
        Err(failure)
    }

    /// Tries replicas of `model` until one answers. Gives the request back if none does.
    async fn try_replicas<'a>(
        self: &Arc<Self>,
        routes: &Routes,
        model: &Model,
        ready: Ready<'a>,
        body: &Bytes,
    ) -> Result<Response, (Box<Ready<'a>>, Failure)> {
        let answer_tokens = model.replicas.first().map_or(1, |replica| replica.expected_output_tokens);
        let size = RequestSize { prompt_tokens: ready.prompt_tokens, answer_tokens };
        let blocks = (model.replicas.len() > 1)
            .then(|| Blocks::new(&model.name, &ready.text, ready.session.as_deref()));
        let mut tried: Vec<u64> = Vec::new();
        let mut failure = Failure::no_replica(&model.name);
        while tried.len() < MOST_ATTEMPTS {
            let Some(replica) = self.pick(routes, model, &tried, size, blocks.as_ref()) else { break };
            if let Some(blocks) = &blocks {
                self.affinity.sent(blocks, replica.id);
            }
            let place = Place::take(replica, ready.prompt_tokens);
            if tried.is_empty() {
                model.traffic.decisions.add(1);
                self.overhead.observe_time(ready.asked.arrived.elapsed());
            }
            tried.push(replica.id);
            let ((replica, place), attempt) = match self.hedge.filter(|_| ready.streams) {
                None => ((replica, place), self.attempt(replica, &ready, body).await),
                Some(share) => {
                    let begins = &model.traffic.begins;
                    let another = || self.hedge_with(routes, model, &mut tried, size, blocks.as_ref());
                    // Boxed: whoever does not hedge has no room for two attempts.
                    let raced =
                        Box::pin(self.hedged(share, begins, &ready, body, (replica, place), another)).await;
                    if let Some(blocks) = &blocks {
                        self.affinity.sent(blocks, raced.0.0.id);
                    }
                    raced
                }
            };
            let attempts = tried.len() as u32;
            let more = tried.len() < MOST_ATTEMPTS.min(model.replicas.len());
            self.book(replica, &attempt);
            let (why, refused) = match attempt {
                Attempt::Answered(answer) => match verdict(answer.head.status) {
                    Verdict::Busy if more && attempts == 1 => ("busy", false),
                    Verdict::Failed if more && self.budget.spend() => ("status", false),
                    _ => return Ok(self.respond(model, replica, ready, *answer, place, attempts).await),
                },
                Attempt::Failed { why, cause, fault } => {
                    failure = match why {
                        "slow" => Failure::too_slow(&model.name),
                        _ => Failure::unreachable(&model.name, &cause),
                    };
                    // Nothing was sent to who could not be reached: trying another costs nobody anything.
                    (why, !more || (fault != Some(Fault::Unreachable) && !self.budget.spend()))
                }
            };
            if refused {
                break;
            }
            self.retries.add(why);
        }
        Err((Box::new(ready), failure))
    }

    /// A second replica for a request that waits for its first byte, if one is well and the budget allows it.
    fn hedge_with<'m>(
        &self,
        routes: &Routes,
        model: &'m Model,
        tried: &mut Vec<u64>,
        size: RequestSize,
        blocks: Option<&Blocks>,
    ) -> Option<Sent<'m>> {
        if tried.len() >= MOST_ATTEMPTS {
            return None;
        }
        let replica = self.pick(routes, model, tried, size, blocks)?;
        (replica.is_well(self.now_ms()) && self.budget.spend()).then(|| {
            tried.push(replica.id);
            (replica, Place::take(replica, size.prompt_tokens))
        })
    }

    /// Books what an attempt says of its replica.
    pub(crate) fn book(&self, replica: &Replica, attempt: &Attempt) {
        let fault = match attempt {
            Attempt::Failed { fault, .. } => *fault,
            Attempt::Answered(answer) => match verdict(answer.head.status) {
                Verdict::Fine => None,
                Verdict::Busy => return replica.counts.backpressure.add(1),
                Verdict::Failed => Some(Fault::Failed),
            },
        };
        if let Some(fault) = fault {
            replica.failed(fault, self.now_ms());
        }
    }

    /// A replica of `model` that was not `tried`: one whose trial is due, or the best of those that are well, or else of all.
    fn pick<'m>(
        &self,
        routes: &Routes,
        model: &'m Model,
        tried: &[u64],
        size: RequestSize,
        blocks: Option<&Blocks>,
    ) -> Option<&'m Arc<Replica>> {
        let turn = self.turn.fetch_add(1, Relaxed);
        if let ([only], []) = (&*model.replicas, tried) {
            return Some(only);
        }
        let now = self.now_ms();
        let untried = || model.replicas.iter().enumerate().filter(|(_, it)| !tried.contains(&it.id));
        if let Some((_, on_trial)) = untried().find(|(_, replica)| replica.take_trial(now)) {
            return Some(on_trial);
        }
        let seen = blocks
            .filter(|_| routes.balancing == Balancing::LeastExpectedFinish)
            .and_then(|blocks| self.affinity.seen(blocks, size.prompt_tokens));
        let candidate = |(index, replica): (usize, &Arc<Replica>)| Candidate {
            index,
            load: replica.load(),
            speed: replica.speed,
            cached_tokens: seen.filter(|(id, _)| *id == replica.id).map_or(0, |(_, tokens)| tokens),
        };
        let mut candidates: Vec<Candidate> =
            untried().filter(|(_, replica)| replica.is_well(now)).map(candidate).collect();
        if candidates.is_empty() {
            candidates = untried().map(candidate).collect();
        }
        pick(routes.balancing, &candidates, size, turn).map(|index| &model.replicas[index])
    }

    /// Sends the request to one replica and waits for the first piece of its answer.
    pub(crate) async fn attempt(&self, replica: &Replica, ready: &Ready<'_>, body: &Bytes) -> Attempt {
        let mut span = ready.span.as_ref().and_then(Span::attempt);
        let traceparent = span.as_ref().and_then(Span::traceparent);
        let outgoing = || outgoing(replica, ready, body, traceparent.as_ref());
        let failed = |why, cause: String, fault| Attempt::Failed { why, cause, fault };
        if let Some(span) = &mut span {
            span.name(ready.asked.endpoint.operation(), &replica.model);
            span.set("gen_ai.provider.name", "openai");
            span.set("server.address", replica.pool.host.to_str().unwrap_or_default());
            span.set("boute.replica", &*replica.name);
        }
        let mut attempt = tokio::select! {
            biased;
            exchanged = timeout(self.limits.first_byte, exchange(replica, outgoing)) => match exchanged {
                Ok(Ok(answer)) => Attempt::Answered(answer),
                Ok(Err((Fault::Unreachable, cause))) => failed("unreachable", cause, Some(Fault::Unreachable)),
                Ok(Err((fault, cause))) => failed("broken", cause, Some(fault)),
                Err(_) => failed("slow", String::new(), Some(Fault::Failed)),
            },
            () = replica.gone_down() => failed("down", "it went down".into(), None),
        };
        match &mut attempt {
            Attempt::Answered(answer) => answer.span = span,
            Attempt::Failed { why, .. } => {
                if let Some(span) = &mut span {
                    span.set("error.type", *why);
                }
            }
        }
        attempt
    }

    /// Passes an answer on.
    async fn respond(
        self: &Arc<Self>,
        model: &Model,
        replica: &Arc<Replica>,
        ready: Ready<'_>,
        answer: Answer,
        place: Place,
        attempts: u32,
    ) -> Response {
        let Answer { mut head, mut body, first, mut wire, span: attempt } = answer;
        let streams = is_event_stream(&head.headers);
        let closes = head.headers.get(header::TRANSFER_ENCODING).is_none()
            && head.headers.get(header::CONTENT_LENGTH).is_none();
        strip_hop_by_hop(&mut head.headers);
        if streams {
            // The counts that were asked for in the client's stead are taken out again.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        say(&mut head.headers, replica, &ready, &model.name, attempts);
        let status = head.status;
        let Ready { asked, name, choice, prompt_tokens, text, session, needs_usage, span, permit, .. } =
            ready;
        let client = asked.key.as_ref().map_or(0, |key| key.number);
        self.quality.decided(asked.id.as_bytes(), &model.name, &choice, client);
        let story = Story {
            gateway: Arc::clone(self),
            arrived: asked.arrived,
            endpoint: asked.endpoint,
            id: asked.id.clone(),
            asked: name,
            model: Arc::clone(&model.name),
            traffic: Arc::clone(&model.traffic),
            choice,
            replica: Arc::clone(replica),
            attempts,
            status: status.as_u16(),
            prompt_tokens,
            session,
            prompt: self.log_prompts.then_some(text),
            key: asked.key,
            spans: [attempt, span],
            permit,
        };
        if status.is_client_error() || status.is_server_error() {
            let error = rest_of(&mut wire, &mut body, first).await;
            replica.pool.give_back(wire);
            drop(place);
            story.end(Ending::Error, None, None, 0);
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return hyper::Response::from_parts(head, full(openai_error(status, &error)));
        }
        let mut watch = Watch::new(streams, needs_usage);
        if !streams && body.is_end_stream() {
            // All is there already.
            let whole = watch.pass(first.unwrap_or_default());
            replica.pool.give_back(wire);
            drop(place);
            let now = Instant::now();
            story.traffic.ttft.observe_time(now.duration_since(story.arrived));
            story.end(Ending::Done, Some(now), watch.usage(), 0);
            return hyper::Response::from_parts(head, full(whole));
        }
        let ends_with_done = streams && closes && asked.endpoint != Endpoint::Responses;
        let begun = Begun { wire, body, first, place, watch, streams, ends_with_done };
        let relay = http_body_util::BodyExt::boxed_unsync(Relay::new(begun, story));
        hyper::Response::from_parts(head, relay)
    }
}

/// What a status says of a replica.
#[derive(PartialEq)]
enum Verdict {
    Fine,
    /// Backpressure is no fault: one try elsewhere, then it is passed on.
    Busy,
    Failed,
}

fn verdict(status: StatusCode) -> Verdict {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Verdict::Busy,
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Verdict::Failed
        }
        _ => Verdict::Fine,
    }
}

impl Attempt {
    /// Whether it came to an answer that nobody else would give better.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self, Self::Answered(answer) if verdict(answer.head.status) == Verdict::Fine)
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    header_text(headers, &header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// Whose turn it is, where clients have no keys.
fn client_of(peer: IpAddr) -> u64 {
    match peer {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        // A network's worth of addresses is one client's.
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// Headers of one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        let named = named.to_str().unwrap_or_default().split(',').map(str::trim);
        // Length and kind of the body stay whatever the peer says of them.
        for name in named.filter(|name| !name.starts_with("content-")) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in &HOP_BY_HOP[1..] {
        headers.remove(name);
    }
}

/// The client's headers as a replica gets them. Our own keys are not for replicas, and a copy of the answer must be
/// readable.
fn forwarded_headers(mut headers: HeaderMap, id: &HeaderValue, keyed: bool) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::ACCEPT_ENCODING] {
        headers.remove(name);
    }
    if keyed {
        headers.remove(header::AUTHORIZATION);
    }
    headers.insert(REQUEST_ID, id.clone());
    headers
}

fn outgoing(
    replica: &Replica,
    ready: &Ready<'_>,
    body: &Bytes,
    traceparent: Option<&HeaderValue>,
) -> Outgoing {
    let mut request = hyper::Request::new(Full::new(body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = replica.pool.target(ready.uri.path_and_query());
    *request.headers_mut() = ready.headers.clone();
    if let Some(traceparent) = traceparent {
        request.headers_mut().insert(TRACEPARENT, traceparent.clone());
    }
    replica.pool.introduce(request.headers_mut());
    request
}

/// Sends a request until the first piece of its answer is there. A kept connection that turns out to be closed is no fault
/// of anybody's: a new one is made.
async fn exchange(
    replica: &Replica,
    outgoing: impl Fn() -> Outgoing,
) -> Result<Box<Answer>, (Fault, String)> {
    let connect =
        || async { replica.pool.connect().await.map_err(|error| (Fault::Unreachable, error.to_string())) };
    let broken = |error: hyper::Error| (Fault::Failed, error.to_string());
    let fresh = || async {
        let mut wire = connect().await?;
        let head = wire.send(outgoing()).await.map_err(broken)?;
        Ok((wire, head))
    };
    let (mut wire, head) = if let Some(mut wire) = replica.pool.take() {
        let sent = Instant::now();
        match wire.send(outgoing()).await {
            Ok(head) => (wire, head),
            Err(_) if sent.elapsed() < STALE => {
                replica.pool.forget();
                fresh().await?
            }
            Err(error) => return Err(broken(error)),
        }
    } else {
        fresh().await?
    };
    let (head, mut body) = head.into_parts();
    let first = loop {
        match wire.frame(&mut body).await {
            None => break None,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    break Some(data);
                }
            }
            Some(Err(error)) => return Err(broken(error)),
        }
    };
    if first.is_none() && is_event_stream(&head.headers) {
        return Err((Fault::Failed, "its stream ended before it began".into()));
    }
    Ok(Box::new(Answer { head, body, first, wire, span: None }))
}

/// The rest of an error's body; as much of it as matters.
async fn rest_of(wire: &mut Wire, body: &mut Incoming, first: Option<Bytes>) -> Bytes {
    let mut whole = BytesMut::from(&*first.unwrap_or_default());
    while whole.len() < LONGEST_ERROR {
        let Some(Ok(frame)) = wire.frame(body).await else { break };
        whole.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    whole.freeze()
}

/// Tells the client what was chosen, and why.
fn say(headers: &mut HeaderMap, replica: &Replica, ready: &Ready<'_>, model: &str, attempts: u32) {
    let mut say = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    say("x-boute-model", model);
    say("x-boute-replica", &replica.name);
    say("x-boute-reason", &ready.choice.reason);
    if let Some(score) = ready.choice.score {
        say("x-boute-score", &format!("{score:.4}"));
    }
    if let Some(threshold) = ready.choice.threshold {
        say("x-boute-threshold", &threshold.to_string());
    }
    headers.insert("x-boute-attempts", HeaderValue::from(attempts));
    if ready.streams {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
}
