//! Which replicas there are: those that are named, those found behind names, those that operators add; less those they remove.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::replica::Upstream;
use crate::routes::{GatewayError, RoutesConfig};
use crate::serve::{Gateway, Inner};
use crate::upstream::Address;

/// Names are looked up this often: as often as Envoy does (`dns_refresh_rate`), and as Kubernetes' answers hold.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
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

/// The replica of `service` at `socket`. It is called by the service's name.
fn replica_at(service: &Upstream, socket: SocketAddr) -> Option<Upstream> {
    let address = Address::parse(&service.url)?;
    Some(Upstream { url: address.at(socket), host: Some(address.authority.to_string()), ..service.clone() })
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
        let address = Address::parse(&key.1).ok_or_else(|| GatewayError::Url { url: key.1.clone() })?;
        self.change(|fleet| {
            let before = fleet.found.insert(key, sockets.clone()).unwrap_or_default();
            // An address that has gone may come back as another replica's: nobody has removed that one.
            let gone = |url: &String| {
                before.iter().any(|socket| !sockets.contains(socket) && *url == address.at(*socket))
            };
            fleet.removed.retain(|url| !gone(url));
            Ok(())
        })
    }

    /// Looks up all names again and again; never ends.
    pub(crate) async fn watch_names(&self) {
        loop {
            sleep(LOOK_UP_EVERY).await;
            self.look_up_names().await;
        }
    }

    /// Looks up all names once. One that cannot be looked up keeps those that were found last: health checks know better
    /// than a resolver that is away.
    pub(crate) async fn look_up_names(&self) {
        let services = self.fleet().config.discover.clone();
        let mut lookups = JoinSet::new();
        for service in services {
            let Some(address) = Address::parse(&service.url) else { continue };
            lookups.spawn(async move {
                let found = timeout(PATIENCE, lookup_host(address.socket())).await;
                found.ok()?.ok().map(|sockets| (key(&service), sockets.collect()))
            });
        }
        while let Some(found) = lookups.join_next().await {
            if let Ok(Some((key, sockets))) = found {
                // A URL that is none was refused when it was configured.
                let _ = self.set_found(key, sockets);
            }
        }
    }
}
