//! Serving HTTP/1.1: connections within limits, with or without TLS, drained when asked to stop.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::openai::Failure;
use crate::tls::Tls;

/// Largest request body.
pub(crate) const LARGEST_BODY: usize = 32 << 20;
/// Most bytes of a request's head, and most headers.
const LARGEST_HEAD: usize = 64 << 10;
const MOST_HEADERS: usize = 128;
/// Most bytes of an answer that a connection holds for a client that does not read, and of what an engine has sent meanwhile.
pub(crate) const BUFFER: usize = 64 << 10;
/// A listener that has no file descriptor left tries again after this long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// To send the head of a request, or to keep a connection idle.
    pub head: Duration,
    /// To send a request's body.
    pub body: Duration,
    /// To take more of an answer once its buffers are full.
    pub reading: Duration,
    /// To end what it does when the server stops.
    pub drain: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            head: Duration::from_mins(1),
            body: Duration::from_mins(1),
            reading: Duration::from_mins(2),
            drain: Duration::from_secs(30),
        }
    }
}

/// The answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct BrokenOff;

pub(crate) type Body = UnsyncBoxBody<Bytes, BrokenOff>;
pub(crate) type Request = hyper::Request<Incoming>;
pub(crate) type Response = hyper::Response<Body>;

/// What answers requests.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one request of the client at `peer`. Dropped when the client goes.
    fn answer(self: Arc<Self>, request: Request, peer: IpAddr) -> impl Future<Output = Response> + Send;
}

/// Serves on `listener` until `stop` says so; then waits for the answers under way.
pub(crate) async fn serve<S: Service>(
    service: Arc<S>,
    listener: TcpListener,
    limits: ClientLimits,
    tls: Option<Tls>,
    mut stop: watch::Receiver<bool>,
) {
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        let Ok((socket, peer)) = accepted else {
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        // A socket that refuses the option still works.
        let _ = socket.set_nodelay(true);
        let (service, tls, stop, alive) = (Arc::clone(&service), tls.clone(), stop.clone(), alive.clone());
        tokio::spawn(async move {
            accepted_connection(service, socket, peer, limits, tls, stop).await;
            drop(alive);
        });
    }
    drop((listener, alive));
    // Whoever is not done by then is cut off when the process ends.
    let _ = timeout(limits.drain, all_gone.recv()).await;
}

/// Serves until the task is dropped.
pub(crate) async fn serve_forever<S: Service>(service: Arc<S>, listener: TcpListener) {
    let (_keep, stop) = watch::channel(false);
    serve(service, listener, ClientLimits::default(), None, stop).await;
}

/// Resolves when told to stop; never if nobody is left to tell.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn accepted_connection<S: Service>(
    service: Arc<S>,
    socket: TcpStream,
    peer: SocketAddr,
    limits: ClientLimits,
    tls: Option<Tls>,
    stop: watch::Receiver<bool>,
) {
    match tls {
        None => connection(service, socket, peer, limits, stop).await,
        Some(tls) => {
            if let Ok(Ok(socket)) = timeout(limits.head, tls.accept(socket)).await {
                connection(service, socket, peer, limits, stop).await;
            }
        }
    }
}

async fn connection<S: Service>(
    service: Arc<S>,
    socket: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    limits: ClientLimits,
    mut stop: watch::Receiver<bool>,
) {
    let socket = TokioIo::new(Patient { socket, limit: limits.reading, stalled: None });
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request, peer.ip()).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_header_size(LARGEST_HEAD)
            .max_headers(MOST_HEADERS)
            .max_buf_size(BUFFER)
            .serve_connection(socket, answer)
    );
    // How a connection ended is nobody's business: requests have their own records.
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = stopped(&mut stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A socket that gives up on a peer which takes nothing for too long.
struct Patient<S> {
    socket: S,
    limit: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Passes on what a write came to; an error if it has waited too long.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, bytes);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Reads a whole body, up to [`LARGEST_BODY`] and within `limit`.
pub(crate) async fn read_body(body: Incoming, limit: Duration) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > LARGEST_BODY as u64 {
        return Err(Failure::too_large(LARGEST_BODY));
    }
    let read = timeout(limit, Limited::new(body, LARGEST_BODY).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::too_large(LARGEST_BODY)),
        Ok(Err(error)) => Err(Failure::bad_request(format!("the body broke off: {error}"), None)),
        Err(_) => Err(Failure::slow_client()),
    }
}

/// A body that is there already.
pub(crate) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

/// JSON text as a response.
pub(crate) fn json_response(json: impl Into<Bytes>) -> Response {
    with_type(json, "application/json")
}

/// Plain text as a response.
pub(crate) fn text_response(text: impl Into<Bytes>) -> Response {
    with_type(text, "text/plain; version=0.0.4; charset=utf-8")
}

fn with_type(body: impl Into<Bytes>, kind: &'static str) -> Response {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
