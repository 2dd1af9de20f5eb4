//! Connections to one replica: kept while they are good, and driven by the task that answers the client, so that a token
//! passes without waking another.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Idle connections are dropped before engines close them (llama.cpp says after 5 s).
const IDLE: Duration = Duration::from_secs(4);
const CONNECT: Duration = Duration::from_secs(5);

/// A request to a replica.
pub(crate) type Outgoing = hyper::Request<Full<Bytes>>;

/// Where a replica is, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct Pool {
    address: String,
    pub(crate) host: HeaderValue,
    idle: Mutex<Vec<(Wire, Instant)>>,
}

impl Pool {
    /// For `http://host[:port]`; `None` if `url` is none.
    pub(crate) fn new(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        if uri.scheme_str() != Some("http") || uri.path() != "/" || uri.query().is_some() {
            return None;
        }
        let host = uri.host()?;
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let host = HeaderValue::from_str(uri.authority()?.as_str()).ok()?;
        Some(Self { address, host, idle: Mutex::default() })
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
        let socket = timeout(CONNECT, TcpStream::connect(&self.address)).await??;
        socket.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
        Ok(Wire { sender, connection, ended: false })
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
    connection: Connection<TokioIo<TcpStream>, Full<Bytes>>,
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
