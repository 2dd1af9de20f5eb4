//! An engine that does as it is told, on a raw socket: right, or wrong in every way that engines have been seen to be.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Good,
    /// Good, with this long between two tokens.
    Slow(Duration),
    /// A stream whose length is stated.
    Sized,
    /// An error of this status.
    Status(u16),
    /// Answers, and closes the connection without having said so.
    ClosesAfterwards,
    /// Something that is not HTTP.
    Garbage,
    /// Never answers.
    Silent,
    /// Never answers, and fails its health checks.
    Down,
    /// Closes once it has the request.
    DiesBeforeHead,
    /// Sends a head and closes.
    DiesAfterHead,
    /// Ends what it sends once it has the request, and stays.
    HalfCloses,
    /// Closes after two tokens.
    DiesBetweenTokens,
    /// Says nothing more after two tokens.
    SilentBetweenTokens,
    /// A stream that ends with its connection, after two tokens.
    EndsEarly,
    /// Tokens without end, as fast as they are taken.
    Endless,
}

/// What an engine has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicU64,
    pub(crate) running: AtomicU64,
    /// Clients that went before their answer's end.
    pub(crate) cancelled: AtomicU64,
    /// The last request, head and body.
    pub(crate) last: Mutex<String>,
}

pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    pub(crate) seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

impl Engine {
    pub(crate) async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut engine = Self {
            address: listener.local_addr().unwrap(),
            mood: Arc::new(Mutex::new(mood)),
            seen: Arc::default(),
            tasks: JoinSet::new(),
        };
        engine.listen(listener);
        engine
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn cancelled(&self) -> u64 {
        self.seen.cancelled.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> String {
        self.seen.last.lock().unwrap().clone()
    }

    /// As a process that is killed: all connections break, nobody listens.
    pub(crate) async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }

    /// On the same port.
    pub(crate) fn revive(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.listen(socket.listen(64).unwrap());
    }

    fn listen(&mut self, listener: TcpListener) {
        let (mood, seen) = (Arc::clone(&self.mood), Arc::clone(&self.seen));
        self.tasks.spawn(async move {
            // Dropped with the task: so are the connections.
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (mood, seen) = (Arc::clone(&mood), Arc::clone(&seen));
                connections.spawn(async move {
                    serve(socket, &mood, &seen).await;
                });
            }
        });
    }
}

/// Reads one request; `None` when the client closes.
async fn request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some(head) = text.find("\r\n\r\n") {
            let lower = text[..head].to_lowercase();
            let length = lower
                .split("content-length: ")
                .nth(1)
                .map_or(0, |rest| rest.lines().next().unwrap().trim().parse::<usize>().unwrap());
            if buffer.len() >= head + 4 + length {
                let rest = buffer.split_off(head + 4 + length);
                let request = std::mem::replace(buffer, rest);
                return Some(String::from_utf8_lossy(&request).into_owned());
            }
        }
        let mut piece = vec![0; 16 << 10];
        match socket.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(&piece[..count]),
        }
    }
}

async fn serve(mut socket: TcpStream, mood: &Mutex<Mood>, seen: &Seen) {
    let mut buffer = Vec::new();
    while let Some(request) = request(&mut socket, &mut buffer).await {
        let mood = *mood.lock().unwrap();
        if request.starts_with("GET ") {
            let status = if mood == Mood::Down { "500 Down" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        seen.requests.fetch_add(1, Ordering::SeqCst);
        seen.running.fetch_add(1, Ordering::SeqCst);
        (*seen.last.lock().unwrap()).clone_from(&request);
        let streams = request.contains("\"stream\":true");
        let counts = request.contains("\"include_usage\":true");
        let (mut read, mut write) = socket.split();
        let mut byte = [0; 1];
        let kept = tokio::select! {
            kept = answer(&mut write, mood, streams, counts) => {
                // Who cannot send although it would has lost its client.
                let lost = !kept && matches!(mood, Mood::Good | Mood::Slow(_) | Mood::Endless);
                seen.cancelled.fetch_add(u64::from(lost), Ordering::SeqCst);
                kept
            }
            // Nobody sends two requests at once: this is the client's going.
            _ = read.read(&mut byte) => {
                seen.cancelled.fetch_add(1, Ordering::SeqCst);
                false
            }
        };
        seen.running.fetch_sub(1, Ordering::SeqCst);
        if !kept {
            return;
        }
    }
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
const USAGE: &str = r#"{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}"#;

/// False if the connection is to be closed.
async fn answer(
    socket: &mut tokio::net::tcp::WriteHalf<'_>,
    mood: Mood,
    streams: bool,
    counts: bool,
) -> bool {
    if mood == Mood::HalfCloses {
        socket.shutdown().await.unwrap();
        return std::future::pending().await;
    }
    let mut send = async |text: String| socket.write_all(text.as_bytes()).await.is_ok();
    let chunk = |event: &str| format!("{:x}\r\n{event}\r\n", event.len());
    let token = chunk("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n");
    let pause = match mood {
        Mood::Silent | Mood::Down => std::future::pending().await,
        Mood::DiesBeforeHead => return false,
        Mood::Garbage => {
            send("SSH-2.0-OpenSSH_9.2\r\n\r\n".into()).await;
            return false;
        }
        Mood::Status(status) => {
            let body = r#"{"error":{"message":"told to","type":"t","param":null,"code":null}}"#;
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nretry-after: 7\r\n\r\n", body.len());
            return send(head + body).await;
        }
        Mood::DiesAfterHead => {
            send(format!("{HEAD}transfer-encoding: chunked\r\n\r\n")).await;
            return false;
        }
        Mood::EndsEarly => {
            let event = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
            send(format!("{HEAD}connection: close\r\n\r\n{event}{event}")).await;
            return false;
        }
        Mood::Slow(pause) => pause,
        _ => Duration::ZERO,
    };
    if !streams {
        sleep(pause).await;
        let body = format!(r#"{{"choices":[{{"message":{{"content":"x x x"}}}}],"usage":{USAGE}}}"#);
        let sent = send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
        return sent && mood != Mood::ClosesAfterwards;
    }
    if mood == Mood::Sized {
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
        let counted = format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n");
        let body = format!("{event}{}data: [DONE]\n\n", if counts { &counted } else { "" });
        return send(format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len())).await;
    }
    send(format!("{HEAD}transfer-encoding: chunked\r\n\r\n")).await;
    for number in 0.. {
        match mood {
            Mood::DiesBetweenTokens if number == 2 => return false,
            Mood::SilentBetweenTokens if number == 2 => std::future::pending().await,
            Mood::Endless => {}
            _ if number == 3 => break,
            _ => sleep(pause).await,
        }
        if !send(token.clone()).await {
            return false;
        }
    }
    if counts {
        send(chunk(&format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n"))).await;
    }
    send(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n"))).await && mood != Mood::ClosesAfterwards
}
