//! The gateway: its state, and its life from a configuration through its changes to the last answer.
//!
//! A request goes through `endpoints` (who answers it), `forward` (which model, which replica), `attempt` (one of them), `respond` and
//! `relay` (its answer). When the client goes, in whatever phase, the upstream connection goes with it.

use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use boute_router::cascade::Budget;
use boute_router::monitor::Alarm;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admission::{Admission, AdmissionLimits};
use crate::affinity::Affinity;
use crate::credentials::{UpstreamKeys, UpstreamTls};
use crate::decisions::DecisionLog;
use crate::discovery::Fleet;
use crate::embedding::Embedding;
use crate::http::{ClientLimits, serve};
use crate::keys::Keys;
use crate::kubernetes::{Cluster, KubernetesApi};
use crate::metrics::{Counter, CounterOf, Histogram, OVERHEAD_S};
use crate::quality::Quality;
use crate::recent::Recent;
use crate::replica::Replica;
use crate::retry::RetryBudget;
use crate::routes::{GatewayError, Routes, RoutesConfig};
use crate::tls::Tls;
use crate::trace::{Exporter, Tracer};
use crate::upstream::Pool;

/// Sessions whose model is remembered: one generation of [`Recent`].
const SESSIONS: usize = 1 << 15;

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
    pub(crate) log_prompts: bool,
    pub(crate) journal: Option<std::path::PathBuf>,
    pub(crate) allow_origins: Vec<String>,
    upstream_tls: UpstreamTls,
    pub(crate) hedge: Option<f64>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) tracer: Option<Arc<Tracer>>,
    exporter: Mutex<Option<Exporter>>,
    fleet: Mutex<Fleet>,
    routes: RwLock<Arc<Routes>>,
    pub(crate) keys: RwLock<Option<Arc<Keys>>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) affinity: Affinity,
    pub(crate) quality: Quality,
    pub(crate) embedding: Embedding,
    /// The model that last answered each session.
    pub(crate) sessions: Mutex<Recent<Arc<str>>>,
    pub(crate) lots: RandomState,
    pub(crate) drawn: AtomicU64,
    pub(crate) budget: RetryBudget,
    started: Instant,
    pub(crate) started_ms: u64,
    pub(crate) next_id: AtomicU64,
    pub(crate) turn: AtomicU64,
    pub(crate) stopping: AtomicBool,
    pub(crate) retries: CounterOf,
    pub(crate) hedges: CounterOf,
    pub(crate) second_answers: Mutex<Budget>,
    pub(crate) cascades: CounterOf,
    pub(crate) errors: CounterOf,
    pub(crate) plan_swaps: Counter,
    pub(crate) failed_lookups: Counter,
    pub(crate) overhead: Histogram,
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
            embedding: Embedding::default(),
            sessions: Mutex::new(Recent::new(SESSIONS)),
            lots: RandomState::new(),
            drawn: AtomicU64::new(0),
            budget: RetryBudget::default(),
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
            second_answers: Mutex::default(),
            cascades: CounterOf::default(),
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
}
