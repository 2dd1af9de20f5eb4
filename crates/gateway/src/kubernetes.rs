//! Who is behind a Kubernetes Service: its ready endpoints, by the API of the cluster that the gateway runs in.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::PathAndQuery;
use serde::Deserialize;
use tokio::time::timeout;

use crate::credentials::{UpstreamKeys, UpstreamTls};
use crate::routes::GatewayError;
use crate::upstream::{Outgoing, Pool};

/// Where pods find what they need for the API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the API of a cluster is reached.
#[derive(Debug, Clone)]
pub struct KubernetesApi {
    /// Its address, such as `https://10.96.0.1:443`.
    pub url: String,
    /// The file with the token that is shown; read for each request, since it is replaced from time to time.
    pub token: PathBuf,
    /// Whose certificate it has.
    pub tls: UpstreamTls,
}

impl KubernetesApi {
    /// That of the cluster which this process is a pod of; `None` if it is none.
    pub fn in_cluster() -> Option<Self> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let account = PathBuf::from(ACCOUNT);
        let authority = std::fs::read(account.join("ca.crt")).ok()?;
        let tls = UpstreamTls::new(&authority).ok()?;
        Some(Self { url: format!("https://{host}:{port}"), token: account.join("token"), tls })
    }
}

/// A Service, as in `k8s://NAME.NAMESPACE[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KubernetesService {
    name: String,
    namespace: String,
    /// Of its pods; the first that its endpoints state, if `None`.
    port: Option<u16>,
}

impl KubernetesService {
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let place = url.strip_prefix("k8s://")?.trim_end_matches('/');
        let (host, port) = match place.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (place, None),
        };
        let (name, namespace) = host.split_once('.')?;
        // RFC 1123 labels: nothing that means something in a URL.
        let is_label = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        (is_label(name) && is_label(namespace)).then(|| Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            port,
        })
    }

    fn path(&self, more: &str) -> String {
        let Self { name, namespace, .. } = self;
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}{more}"
        )
    }
}

/// What the API says of a Service.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceList {
    metadata: ListMeta,
    items: Vec<Slice>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

#[derive(Debug, Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Port {
    port: Option<u16>,
}

impl SliceList {
    /// The sockets of all endpoints that are ready; not to say is to be.
    fn sockets(&self, port: Option<u16>) -> Vec<SocketAddr> {
        let of_slice = |slice: &Slice| {
            let stated = slice.ports.iter().flatten().find_map(|port| port.port);
            let ready = slice.endpoints.iter().flatten().filter(|it| it.conditions.ready != Some(false));
            let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
            let sockets = addresses
                .filter_map(|it| Some(SocketAddr::new(it.parse::<IpAddr>().ok()?, port.or(stated)?)));
            sockets.collect::<Vec<_>>()
        };
        self.items.iter().flat_map(of_slice).collect()
    }
}

/// The API of the cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    api: Pool,
    token: PathBuf,
}

impl Cluster {
    pub(crate) fn new(api: KubernetesApi) -> Result<Self, GatewayError> {
        let pool = Pool::new(&api.url, None, &api.tls, &UpstreamKeys::default());
        Ok(Self { api: pool.ok_or(GatewayError::Url { url: api.url })?, token: api.token })
    }

    /// Who is behind `service`, and the version of that state; `None` if the API does not say.
    pub(crate) async fn look_up(&self, service: &KubernetesService) -> Option<(Vec<SocketAddr>, String)> {
        // Version 0: the API may answer from memory.
        let path = service.path("&resourceVersion=0");
        let asked = timeout(PATIENCE, self.api.ask(|| self.request(&path))).await;
        let (StatusCode::OK, page) = asked.ok()?.ok()? else { return None };
        let list: SliceList = serde_json::from_slice(&page).ok()?;
        Some((list.sockets(service.port), list.metadata.resource_version))
    }

    /// Resolves when something has changed since `version`; never if the API does not say.
    pub(crate) async fn changed(&self, service: &KubernetesService, version: &str) {
        let path = service.path(&format!("&watch=true&resourceVersion={version}"));
        if self.first_event(&path).await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    async fn first_event(&self, path: &str) -> Option<()> {
        let mut wire = self.api.connect().await.ok()?;
        let (head, mut body) = wire.send(self.request(path)).await.ok()?.into_parts();
        let event = wire.frame(&mut body).await?;
        (head.status == StatusCode::OK && event.is_ok()).then_some(())
    }

    fn request(&self, path: &str) -> Outgoing {
        let mut request = Outgoing::new(Full::new(Bytes::new()));
        *request.uri_mut() = self.api.target(path.parse::<PathAndQuery>().ok().as_ref());
        self.api.introduce(request.headers_mut());
        let token = std::fs::read_to_string(&self.token).unwrap_or_default();
        if let Ok(mut bearer) = HeaderValue::try_from(format!("Bearer {}", token.trim())) {
            bearer.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_as_in_the_cluster() {
        let service = KubernetesService::parse("k8s://engines.llm:8000").unwrap();
        assert_eq!((&*service.name, &*service.namespace, service.port), ("engines", "llm", Some(8000)));
        assert_eq!(KubernetesService::parse("k8s://engines.llm/").unwrap().port, None);
        for wrong in [
            "k8s://engines",
            "http://engines.llm:1",
            "k8s://a.b:http",
            "k8s://a.b?c",
            "k8s://.b",
            "k8s://a.b.svc",
        ] {
            assert_eq!(KubernetesService::parse(wrong), None, "{wrong}");
        }
    }

    /// As kube-apiserver writes it.
    #[test]
    fn ready_endpoints_are_found() {
        let list = r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"4711"},"items":[
            {"addressType":"IPv4","endpoints":[
                {"addresses":["10.0.0.7"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"a"},
                {"addresses":["10.0.0.8"],"conditions":{"ready":false,"serving":true,"terminating":true}},
                {"addresses":["10.0.0.9"],"conditions":{}}],
             "ports":[{"name":"http","port":8000,"protocol":"TCP"}]},
            {"addressType":"IPv6","endpoints":[{"addresses":["fd00::7"]}],"ports":[{"port":8000}]},
            {"addressType":"FQDN","endpoints":[{"addresses":["a.example"]}],"ports":[{"port":8000}]},
            {"addressType":"IPv4","endpoints":null,"ports":null}]}"#;
        let list: SliceList = serde_json::from_str(list).unwrap();
        let found = |port| list.sockets(port).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(None), ["10.0.0.7:8000", "10.0.0.9:8000", "[fd00::7]:8000"]);
        assert_eq!(found(Some(9))[0], "10.0.0.7:9");
        assert_eq!(list.metadata.resource_version, "4711");
    }
}
