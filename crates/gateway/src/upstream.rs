//! Connections to one replica: kept while they are good, and driven by the task that answers the client, so that a token
//! passes without waking another.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::credentials::{UpstreamKeys, UpstreamTls};
use crate::http::BUFFER;

/// Idle connections are dropped before engines close them (llama.cpp says after 5 s).
const IDLE: Duration = Duration::from_secs(4);
const CONNECT: Duration = Duration::from_secs(5);
/// Largest answer that is read as a whole.
const LARGEST_PAGE: usize = 4 << 20;

/// A request to a replica.
pub(crate) type Outgoing = hyper::Request<Full<Bytes>>;

/// Where a replica is.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    https: bool,
    pub(crate) authority: Authority,
    /// What stands before `/v1`; hosted engines have it.
    prefix: String,
}

impl Address {
    /// Of `http[s]://host[:port][/prefix][/v1]`; `None` if `url` is none.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = plain(url).parse().ok()?;
        let https = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority()?.clone();
        // Credentials in a URL would reach logs and metrics.
        let right = uri.query().is_none() && !authority.as_str().contains('@');
        let prefix = uri.path().trim_end_matches('/').to_owned();
        right.then_some(Self { https, authority, prefix })
    }

    /// What is looked up and connected to: `host:port`.
    pub(crate) fn socket(&self) -> String {
        let port = self.authority.port_u16().unwrap_or(if self.https { 443 } else { 80 });
        format!("{}:{port}", self.authority.host())
    }

    /// The URL of the same place at one of its socket addresses.
    pub(crate) fn at(&self, socket: SocketAddr) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{socket}{}", self.prefix)
    }
}

/// A URL without what clients like to add to it.
pub(crate) fn plain(url: &str) -> &str {
    url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/')
}

/// What a connection to an engine runs over: TCP, or TLS on it.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Socket for S {}

/// Where a replica is, how it is spoken to, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What is connected to.
    socket: String,
    /// Over HTTPS: what is trusted, and whose certificate it must be.
    tls: Option<(UpstreamTls, ServerName<'static>)>,
    pub(crate) host: HeaderValue,
    /// What the engine wants to see, in place of what the client showed.
    pub(crate) key: Option<HeaderValue>,
    prefix: String,
    idle: Mutex<Vec<(Wire, Instant)>>,
}

impl Pool {
    /// For an engine at `url`, called by the name in `host` if that is not the URL's; `None` if one of them is none.
    pub(crate) fn new(url: &str, host: Option<&str>, tls: &UpstreamTls, keys: &UpstreamKeys) -> Option<Self> {
        let address = Address::parse(url)?;
        let name = match host {
            Some(host) => host.parse().ok()?,
            None => address.authority.clone(),
        };
        let tls = if address.https {
            let subject = name.host().trim_matches(['[', ']']).to_owned();
            Some((tls.clone(), ServerName::try_from(subject).ok()?))
        } else {
            None
        };
        Some(Self {
            socket: address.socket(),
            tls,
            host: HeaderValue::from_str(name.as_str()).ok()?,
            key: keys.of(&name).cloned(),
            prefix: address.prefix,
            idle: Mutex::default(),
        })
    }

    /// Writes to whom a request goes, and by whose leave.
    pub(crate) fn introduce(&self, headers: &mut HeaderMap) {
        headers.insert(header::HOST, self.host.clone());
        if let Some(key) = &self.key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
    }

    /// Where the engine has what clients call `path`.
    pub(crate) fn target(&self, path: Option<&PathAndQuery>) -> Uri {
        let Some(path) = path else { return Uri::default() };
        if self.prefix.is_empty() {
            return path.clone().into();
        }
        format!("{}{path}", self.prefix).parse().unwrap_or_default()
    }

    /// An idle connection that still stands.
    pub(crate) fn take(&self) -> Option<Wire> {
        loop {
            let (mut wire, since) = self.idle.lock().ok()?.pop()?;
            if since.elapsed() < IDLE && wire.stands() {
                return Some(wire);
            }
        }
    }

    /// A new connection. The name is looked up each time: addresses change.
    pub(crate) async fn connect(&self) -> io::Result<Wire> {
        let socket = timeout(CONNECT, self.open()).await??;
        let shaken = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(socket)).await;
        let (sender, connection) = shaken.map_err(io::Error::other)?;
        Ok(Wire { sender, connection, ended: false })
    }

    async fn open(&self) -> io::Result<Box<dyn Socket>> {
        let socket = TcpStream::connect(&self.socket).await?;
        socket.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(socket),
            Some((tls, name)) => Box::new(tls.0.connect(name.clone(), socket).await?),
        })
    }

    /// A small request on a kept or a new connection, and its whole answer; an error if there is none, or too much of it.
    pub(crate) async fn ask(&self, request: impl Fn() -> Outgoing) -> io::Result<(StatusCode, Vec<u8>)> {
        let kept = match self.take() {
            Some(mut wire) => wire.send(request()).await.ok().map(|answer| (wire, answer)),
            None => None,
        };
        let (mut wire, answer) = if let Some(kept) = kept {
            kept
        } else {
            let mut wire = self.connect().await?;
            let answer = wire.send(request()).await.map_err(io::Error::other)?;
            (wire, answer)
        };
        let (head, mut body) = answer.into_parts();
        let mut whole = Vec::new();
        while let Some(frame) = wire.frame(&mut body).await {
            whole.extend_from_slice(&frame.map_err(io::Error::other)?.into_data().unwrap_or_default());
            if whole.len() > LARGEST_PAGE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        self.give_back(wire);
        Ok((head.status, whole))
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn give_back(&self, mut wire: Wire) {
        if wire.stands()
            && let Ok(mut idle) = self.idle.lock()
        {
            let now = Instant::now();
            // The oldest are at the front: the last used is taken first.
            let old = idle.iter().take_while(|(_, since)| now.duration_since(*since) >= IDLE).count();
            idle.drain(..old);
            idle.push((wire, now));
        }
    }

    /// Drops all idle connections: the replica has gone, or is another one now.
    pub(crate) fn forget(&self) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.clear();
        }
    }
}

/// One connection. Nobody drives it but the holder.
#[derive(Debug)]
pub(crate) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<Box<dyn Socket>>, Full<Bytes>>,
    ended: bool,
}

impl Wire {
    fn drive(&mut self, context: &mut Context<'_>) {
        if !self.ended {
            self.ended = Pin::new(&mut self.connection).poll(context).is_ready();
        }
    }

    /// Whether a request can be sent: the peer has not closed, and the last answer is over.
    fn stands(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.ended && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, request: Outgoing) -> hyper::Result<hyper::Response<Incoming>> {
        let mut answer = pin!(self.sender.send_request(request));
        let (connection, ended) = (&mut self.connection, &mut self.ended);
        std::future::poll_fn(|context| {
            if !*ended {
                *ended = Pin::new(&mut *connection).poll(context).is_ready();
            }
            answer.as_mut().poll(context)
        })
        .await
    }

    /// The next piece of an answer's body.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // Only driving the connection, below and by us, brings the body on: its own wake-ups would be to no purpose.
        let mut quiet = Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(&mut quiet) {
            return Poll::Ready(frame);
        }
        self.drive(context);
        Pin::new(body).poll_frame(&mut quiet)
    }

    /// The same, waiting for it.
    pub(crate) async fn frame(&mut self, body: &mut Incoming) -> Option<hyper::Result<Frame<Bytes>>> {
        std::future::poll_fn(|context| self.poll_frame(body, context)).await
    }
}
