//! Which replicas there are: those that are named, those found behind names, those that operators add; less those they remove.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::kubernetes::KubernetesService;
use crate::replica::Upstream;
use crate::routes::{GatewayError, RoutesConfig};
use crate::serve::{Gateway, Inner};
use crate::upstream::Address;

/// Names are looked up this often: as often as Envoy does (`dns_refresh_rate`).
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// Not more often than this, whatever changes.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// A name that takes longer is left for the next time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the replicas are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fleet {
    pub(crate) config: RoutesConfig,
    /// By model and URL: what is behind it.
    found: BTreeMap<(String, String), Vec<SocketAddr>>,
    pub(crate) added: Vec<Upstream>,
    pub(crate) removed: Vec<String>,
    pub(crate) next_id: u64,
}

impl Fleet {
    /// The replicas, each once.
    pub(crate) fn upstreams(&self) -> Vec<Upstream> {
        let found = self.config.discover.iter().flat_map(|service| {
            let sockets = self.found.get(&key(service)).map(Vec::as_slice).unwrap_or_default();
            sockets.iter().filter_map(|socket| replica_at(service, *socket))
        });
        let mut upstreams: Vec<Upstream> = Vec::new();
        for upstream in self.config.upstreams.iter().cloned().chain(found).chain(self.added.iter().cloned()) {
            if !upstreams.iter().any(|it| it.model == upstream.model && it.url == upstream.url) {
                upstreams.push(upstream);
            }
        }
        upstreams.retain(|upstream| !self.removed.contains(&upstream.url));
        upstreams
    }
}

fn key(service: &Upstream) -> (String, String) {
    (service.model.clone(), service.url.clone())
}

/// What stands in [`RoutesConfig::discover`].
enum Behind {
    /// The addresses of a host name.
    Name(Address),
    /// The endpoints of a Service.
    Service(KubernetesService),
}

impl Behind {
    fn parse(url: &str) -> Result<Self, GatewayError> {
        let service = KubernetesService::parse(url).map(Self::Service);
        let place = service.or_else(|| Address::parse(url).map(Self::Name));
        place.ok_or_else(|| GatewayError::Url { url: url.to_owned() })
    }

    /// The URL of the replica at `socket`.
    fn at(&self, socket: SocketAddr) -> String {
        match self {
            Self::Name(address) => address.at(socket),
            Self::Service(_) => format!("http://{socket}"),
        }
    }
}

/// Whether `url` names something that replicas can be behind.
pub(crate) fn check(url: &str) -> Result<(), GatewayError> {
    Behind::parse(url).map(|_| ())
}

/// The replica of `service` at `socket`. It is called by the name that it was found behind.
fn replica_at(service: &Upstream, socket: SocketAddr) -> Option<Upstream> {
    let behind = Behind::parse(&service.url).ok()?;
    let host = match &behind {
        Behind::Name(address) => Some(address.authority.to_string()),
        Behind::Service(_) => None,
    };
    Some(Upstream { url: behind.at(socket), host, ..service.clone() })
}

impl Gateway {
    /// Says who is behind a name of [`RoutesConfig::discover`] now: a replica at each of `sockets`. Those that are there
    /// already stay as they are; those that have gone end what they have.
    ///
    /// # Errors
    /// If the name's URL is none.
    pub fn set_found(&self, model: &str, url: &str, sockets: Vec<SocketAddr>) -> Result<(), GatewayError> {
        self.0.set_found((model.to_owned(), url.to_owned()), sockets)
    }
}

impl Inner {
    fn set_found(&self, key: (String, String), mut sockets: Vec<SocketAddr>) -> Result<(), GatewayError> {
        sockets.sort_unstable();
        sockets.dedup();
        if self.fleet().found.get(&key) == Some(&sockets) {
            return Ok(());
        }
        let behind = Behind::parse(&key.1)?;
        self.change(|fleet| {
            let before = fleet.found.insert(key, sockets.clone()).unwrap_or_default();
            // An address that has gone may come back as another replica's: nobody has removed that one.
            let gone = |url: &String| {
                before.iter().any(|socket| !sockets.contains(socket) && *url == behind.at(*socket))
            };
            fleet.removed.retain(|url| !gone(url));
            Ok(())
        })
    }

    /// Looks up all names again and again, and Services as soon as they change; never ends.
    pub(crate) async fn watch_names(&self) {
        loop {
            let watched = self.look_up_names().await;
            sleep(AT_MOST_EVERY).await;
            // What is not told within that time is looked up all the same.
            let _ = timeout(LOOK_UP_EVERY, self.changed(watched)).await;
        }
    }

    /// Looks up all names once. One that cannot be looked up keeps those that were found last: health checks know better
    /// than a resolver that is away. Returns the Services among them, and their versions.
    pub(crate) async fn look_up_names(&self) -> Vec<(KubernetesService, String)> {
        let services = self.fleet().config.discover.clone();
        let mut lookups = JoinSet::new();
        let mut watched = Vec::new();
        for service in services {
            match (Behind::parse(&service.url), &self.cluster) {
                (Ok(Behind::Name(address)), _) => drop(lookups.spawn(async move {
                    let found = timeout(PATIENCE, lookup_host(address.socket())).await.ok()?.ok()?;
                    Some((key(&service), found.collect(), None))
                })),
                (Ok(Behind::Service(name)), Some(cluster)) => {
                    let cluster = Arc::clone(cluster);
                    lookups.spawn(async move {
                        let (found, version) = cluster.look_up(&name).await?;
                        Some((key(&service), found, Some((name, version))))
                    });
                }
                // A place that is none was refused when it was configured; without a cluster there are no Services.
                _ => {}
            }
        }
        while let Some(found) = lookups.join_next().await {
            match found {
                Ok(Some((key, sockets, version))) => {
                    let _ = self.set_found(key, sockets);
                    watched.extend(version);
                }
                _ => self.failed_lookups.add(1),
            }
        }
        watched
    }

    /// Resolves when one of the Services is another than in that version.
    async fn changed(&self, services: Vec<(KubernetesService, String)>) {
        let mut changes = JoinSet::new();
        for (service, version) in services {
            let Some(cluster) = self.cluster.clone() else { continue };
            changes.spawn(async move { cluster.changed(&service, &version).await });
        }
        if changes.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
