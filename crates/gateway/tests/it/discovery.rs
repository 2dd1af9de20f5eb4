//! Replicas that are found behind names, and engines that are spoken to over HTTPS and with keys.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boute_gateway::{KubernetesApi, RoutesConfig, Settings, Upstream, UpstreamKeys, UpstreamTls};
use hyper::StatusCode;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::engine::{Engine, Mood};
use crate::{Answer, CHAT, Running, ask, eventually, limits, listener, send, send_with, upstream};

const CERTIFICATE: &[u8] = include_bytes!("data/cert.pem");

fn at(url: &str) -> Upstream {
    Upstream { url: url.into(), ..upstream("m", "127.0.0.1:1".parse().unwrap()) }
}

async fn start(config: RoutesConfig) -> Running {
    let upstream_tls = UpstreamTls::new(CERTIFICATE).unwrap();
    Running::start(config, Settings { limits: limits(), upstream_tls, ..Settings::default() }).await
}

async fn chat(gateway: &Running) -> Answer {
    send(gateway.address, "POST", CHAT, ask("m", 3, true)).await
}

/// A replica per address: new ones are used at once, gone ones end what they have, and what is known of the rest stays.
#[tokio::test]
async fn replicas_behind_a_name_come_and_go() {
    let name = "http://engines.invalid:8000/v1";
    let gateway = start(RoutesConfig { discover: vec![at(name)], ..RoutesConfig::default() }).await;
    let nobody = chat(&gateway).await;
    assert_eq!((nobody.status, nobody.text.contains("no_replica")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert_eq!(gateway.metric("boute_lookup_failures_total"), 1.0, "there is no such name");
    let (one, two) =
        (Engine::start(Mood::Slow(Duration::from_millis(150))).await, Engine::start(Mood::Good).await);
    let found = |sockets: &[SocketAddr]| gateway.gateway.set_found("m", name, sockets.to_vec()).unwrap();
    found(&[one.address, one.address]);
    let going = async {
        eventually("the stream is under way", || one.requests() == 1).await;
        found(&[two.address, one.address]);
        assert_eq!(chat(&gateway).await.headers["x-boute-replica"], "m-1", "the other has something to do");
        found(&[two.address]);
        for _ in 0..2 {
            assert_eq!(chat(&gateway).await.headers["x-boute-replica"], "m-1");
        }
        found(&[two.address, one.address]);
    };
    let (stream, ()) = tokio::join!(chat(&gateway), going);
    assert!(stream.text.ends_with("[DONE]\n\n") && !stream.broken, "{stream:?}");
    assert_eq!((one.requests(), one.cancelled(), two.requests()), (1, 0, 3));
    assert!(two.last().contains("host: engines.invalid:8000\r\n"), "called by its name: {}", two.last());
    gateway.is_idle().await;
    let nowhere = gateway.gateway.set_found("m", "ftp://x", vec![one.address]);
    assert!(nowhere.is_err() && gateway.metric("boute_replica_well") == 2.0);
}

#[tokio::test]
async fn a_name_is_looked_up_before_the_first_request() {
    let engine = Engine::start(Mood::Good).await;
    let name = format!("http://localhost:{}", engine.address.port());
    let gateway = start(RoutesConfig { discover: vec![at(&name)], ..RoutesConfig::default() }).await;
    assert_eq!(chat(&gateway).await.status, StatusCode::OK);
    assert!(gateway.gateway.metrics().contains(&format!("url=\"http://{}\"", engine.address)));
}

/// As much of a cluster's API as lists the endpoints of one Service, and tells of a change.
#[derive(Default)]
struct Api {
    endpoints: Mutex<Vec<SocketAddr>>,
    version: AtomicU64,
    changed: Notify,
}

impl Api {
    async fn start() -> (Arc<Self>, String) {
        let (listener, address) = listener().await;
        let api = Arc::<Self>::default();
        let served = Arc::clone(&api);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let api = Arc::clone(&served);
                tokio::spawn(async move { api.serve(socket).await });
            }
        });
        (api, format!("http://{address}"))
    }

    fn set(&self, endpoints: &[SocketAddr]) {
        *self.endpoints.lock().unwrap() = endpoints.to_vec();
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    async fn serve(&self, mut socket: TcpStream) {
        let mut piece = vec![0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut piece).await {
            let request = String::from_utf8_lossy(&piece[..count]).into_owned();
            let path = "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices\
                        ?labelSelector=kubernetes.io%2Fservice-name%3Dengines&";
            assert!(request.starts_with(&format!("GET {path}")), "{request}");
            assert!(request.contains("authorization: Bearer token-1\r\n"), "{request}");
            let body = if request.contains("&watch=true&") {
                let changed = self.changed.notified();
                if request.contains(&format!("&resourceVersion={} ", self.version.load(Ordering::SeqCst))) {
                    changed.await;
                }
                "{\"type\":\"MODIFIED\",\"object\":{}}\n".to_owned()
            } else {
                self.list()
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if socket.write_all((head + &body).as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn list(&self) -> String {
        let endpoints = self.endpoints.lock().unwrap().clone();
        let slices: Vec<_> = endpoints
            .iter()
            .map(|it| {
                let endpoint = json!({"addresses": [it.ip()], "conditions": {"ready": true}});
                json!({"addressType": "IPv4", "endpoints": [endpoint], "ports": [{"port": it.port()}]})
            })
            .collect();
        let version = self.version.load(Ordering::SeqCst).to_string();
        json!({"metadata": {"resourceVersion": version}, "items": slices}).to_string()
    }
}

#[tokio::test]
async fn endpoints_of_a_service_are_watched() {
    let (one, two) = (Engine::start(Mood::Good).await, Engine::start(Mood::Good).await);
    let (api, url) = Api::start().await;
    api.set(&[one.address]);
    let token = std::env::temp_dir().join(format!("boute-token-{}", std::process::id()));
    std::fs::write(&token, "token-1\n").unwrap();
    let settings = Settings {
        limits: limits(),
        kubernetes: Some(KubernetesApi { url, token: token.clone(), tls: UpstreamTls::default() }),
        ..Settings::default()
    };
    let config = RoutesConfig { discover: vec![at("k8s://engines.llm")], ..RoutesConfig::default() };
    let gateway = Running::start(config, settings).await;
    assert_eq!((chat(&gateway).await.status, one.requests()), (StatusCode::OK, 1));
    // Sooner than it would be listed again.
    for there in [&two, &one] {
        api.set(&[there.address]);
        let url = format!("url=\"http://{}\"", there.address);
        eventually("it is found", || gateway.gateway.metrics().contains(&url)).await;
    }
    std::fs::remove_file(&token).unwrap();
}

/// HTTPS before `engine`, with the certificate of `localhost`.
async fn https(engine: SocketAddr) -> u16 {
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("data/key.pem")).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(socket).await else { return };
                let mut engine = TcpStream::connect(engine).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut engine).await;
            });
        }
    });
    address.port()
}

#[tokio::test]
async fn engines_behind_https_want_their_own_key() {
    let engine = Engine::start(Mood::Good).await;
    let port = https(engine.address).await;
    let config = RoutesConfig {
        upstreams: vec![at(&format!("https://localhost:{port}/hosted/v1"))],
        upstream_keys: UpstreamKeys::parse("keys", "localhost sk-engine").unwrap(),
        ..RoutesConfig::default()
    };
    let gateway = start(config.clone()).await;
    for _ in 0..2 {
        let client = [("authorization", "Bearer sk-client")];
        let answer = send_with(gateway.address, "POST", CHAT, &client, ask("m", 3, true)).await;
        assert!(answer.text.ends_with("[DONE]\n\n"), "{answer:?}");
        let last = engine.last();
        assert!(last.starts_with("POST /hosted/v1/chat/completions HTTP/1.1\r\n"), "{last}");
        assert!(last.contains("Bearer sk-engine\r\n") && !last.contains("sk-client"), "{last}");
    }
    let replaced = UpstreamKeys::parse("keys", "localhost sk-next").unwrap();
    gateway.gateway.swap(RoutesConfig { upstream_keys: replaced, ..config }).unwrap();
    assert_eq!(chat(&gateway).await.headers["x-boute-replica"], "m-0", "the same replica");
    assert!(engine.last().contains("Bearer sk-next\r\n"), "{}", engine.last());
    gateway.is_idle().await;
}

/// Who cannot prove to be the engine that was named gets no request.
#[tokio::test]
async fn impostors_are_not_spoken_to() {
    let engine = Engine::start(Mood::Good).await;
    let port = https(engine.address).await;
    let named = format!("https://localhost:{port}");
    let serving = |host: Option<&str>| RoutesConfig {
        upstreams: vec![Upstream { host: host.map(str::to_owned), ..at(&named) }],
        ..RoutesConfig::default()
    };
    let unknown_authority =
        Running::start(serving(None), Settings { limits: limits(), ..Settings::default() }).await;
    let another_name = start(serving(Some("engines.example"))).await;
    for gateway in [unknown_authority, another_name] {
        let answer = chat(&gateway).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert!(answer.text.contains("certificate"), "{}", answer.text);
        gateway.is_idle().await;
    }
    assert_eq!(engine.requests(), 0);
    // One that is found by its address proves the name that it was found behind.
    let gateway = start(RoutesConfig { discover: vec![at(&named)], ..RoutesConfig::default() }).await;
    assert_eq!(chat(&gateway).await.status, StatusCode::OK);
}
