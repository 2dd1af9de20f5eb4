//! Health checks: every replica is asked how it is and what it has to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::http::uri::PathAndQuery;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::engine_metrics::EngineLoad;
use crate::replica::{Replica, Seen};
use crate::serve::Inner;

/// A check that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// Checks all replicas again and again; never ends.
    pub(crate) async fn watch_replicas(&self) {
        let mut ticks = interval(self.limits.check_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut checks = JoinSet::new();
            for replica in self.routes().replicas() {
                let replica = Arc::clone(replica);
                checks.spawn(async move { check(&replica).await });
            }
            while checks.join_next().await.is_some() {}
        }
    }
}

/// Asks for `/health` (any answer but an error of the server's is a sign of life) and, where there are any, for metrics.
async fn check(replica: &Replica) {
    let health = timeout(PATIENCE, get(replica, "/health")).await;
    let seen = match &health {
        Ok(Ok((status, _))) if !status.is_server_error() => Seen::Well,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Seen::Gone,
        _ => Seen::Ill,
    };
    replica.checked(seen);
    if seen == Seen::Well
        && let Ok(Ok((StatusCode::OK, page))) = timeout(PATIENCE, get(replica, "/metrics")).await
        && let Some(load) = std::str::from_utf8(&page).ok().and_then(EngineLoad::parse)
    {
        replica.engine_says(load);
    }
}

async fn get(replica: &Replica, path: &'static str) -> io::Result<(StatusCode, Vec<u8>)> {
    let request = || {
        let mut request = hyper::Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = replica.pool.target(Some(&PathAndQuery::from_static(path)));
        replica.pool.introduce(request.headers_mut());
        request
    };
    replica.pool.ask(request).await
}
