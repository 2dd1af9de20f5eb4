//! What must hold for any bytes: the body of each fuzz target. `cargo test` replays the seeds through the same functions.
//!
//! Every law also prints the error it gets: a message that points into the text may fail where the parser did not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use boute_gateway::engine_metrics::{EngineLoad, EngineMetrics};
use boute_gateway::openai::{Endpoint, Peek, openai_error};
use boute_gateway::sse::Watch;
use boute_gateway::{Gateway, Keys, RoutesConfig, Settings, Upstream, UpstreamKeys};
use boute_router::{Scorer, Scratch};
use boute_spec::data_file::{parse_quality, parse_requests, parse_trace};
use boute_spec::outcome::Outcome;
use boute_spec::parse::{parse_grid, parse_spec};
use boute_spec::plan::Plan;
use boute_spec::policy::RoutingPolicy;
use bytes::Bytes;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A law, by the name of its target and of the folder of its seeds.
pub type Law = (&'static str, fn(&[u8]));

/// All of them.
pub const LAWS: [Law; 11] = [
    ("peek", peek),
    ("sse", sse),
    ("keys", keys),
    ("metrics", metrics),
    ("request", request),
    ("answer", answer),
    ("spec", spec),
    ("plan", plan),
    ("trace", trace),
    ("quality", quality),
    ("router", router),
];

/// A request body is read, rewritten and read again; an engine's error is put in shape.
pub fn peek(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    is_an_error(&openai_error(StatusCode::BAD_GATEWAY, &body));
    let Ok(peek) = Peek::read(&body) else { return };
    if peek.model().is_err() {
        return;
    }
    for usage in [false, true] {
        let rewritten = peek.rewritten(&body, "a \"model\"", usage);
        let mut again = Peek::read(&rewritten).expect("what was a request stays one");
        assert_eq!(again.model().expect("it has a model"), "a \"model\"");
        assert_eq!(again.streams(), peek.streams());
        for endpoint in Endpoint::ALL {
            let _ = again.text(endpoint);
        }
    }
}

/// However a stream is cut to pieces, what passes without stripping is what came, and with stripping does not depend on the
/// cut. The first byte is the length of the pieces.
pub fn sse(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    assert_eq!(through(Watch::new(true, false), stream, piece), stream);
    let stripping = || Watch::new(true, true);
    let renaming = || Watch::new(true, false).renaming("theirs", "ours");
    for watch in [stripping, renaming] as [fn() -> Watch; 2] {
        assert_eq!(through(watch(), stream, piece), through(watch(), stream, stream.len().max(1)));
    }
}

fn through(mut watch: Watch, stream: &[u8], piece: usize) -> Vec<u8> {
    let mut passed = Vec::new();
    for piece in stream.chunks(piece) {
        passed.extend_from_slice(&watch.pass(Bytes::copy_from_slice(piece)));
    }
    passed.extend_from_slice(&watch.rest());
    passed
}

/// Files of clients' and of engines' keys are read, or told why not.
pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Keys::parse("keys", text) {
        assert!(error.line > 0 && !error.to_string().is_empty());
    }
    if let Err(error) = UpstreamKeys::parse("keys", text) {
        assert!(!error.to_string().is_empty());
    }
}

/// Pages of engines' metrics are read, or they are none.
pub fn metrics(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = EngineLoad::parse(text);
    if let Some(metrics) = EngineMetrics::parse(text) {
        let _ = metrics.since(&metrics).cached_share();
    }
}

/// A client of the gateway is answered, whatever its path, headers and body. The first line is method and path, then
/// headers until an empty line, then the body.
pub fn request(data: &[u8]) {
    let (head, body) = split_at_blank_line(data);
    let framing = ["content-length", "transfer-encoding", "connection", "expect", "upgrade"];
    let mut sent = Vec::new();
    for (number, line) in head.split(|byte| *byte == b'\n').enumerate() {
        // Where head and body end is said below: half a request would be waited for.
        let lower = line.trim_ascii().to_ascii_lowercase();
        if lower.is_empty() || framing.iter().any(|name| lower.starts_with(name.as_bytes())) {
            continue;
        }
        sent.extend_from_slice(line);
        sent.extend_from_slice(if number == 0 { b" HTTP/1.1\r\n" } else { b"\r\n" });
    }
    sent.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    sent.extend_from_slice(body);
    let answered = Stage::with(|stage| stage.ask(&sent, WHOLE_ANSWER));
    let Some((status, body)) = answered else { return };
    assert_ne!(status, 500);
    if status >= 400 && !body.is_empty() {
        is_an_error(&body);
    }
}

/// Whatever an engine says, the gateway goes on; the first byte says whether the client streams.
pub fn answer(data: &[u8]) {
    let Some((streams, answer)) = data.split_first() else { return };
    let body = format!(r#"{{"model":"m","stream":{},"messages":[{{"content":"x"}}]}}"#, streams % 2 == 1);
    let length = body.len();
    let sent = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Stage::with(|stage| {
        // An answer that breaks off may leave nothing for the client but a broken connection.
        if let Some((status, body)) = stage.ask(sent.as_bytes(), answer)
            && status >= 400
        {
            is_an_error(&body);
        }
        let health = stage.ask(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", WHOLE_ANSWER);
        assert_eq!(health.map(|(status, _)| status), Some(200));
    });
}

const WHOLE_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// A gateway before an engine that answers what it is told to, all on this thread.
struct Stage {
    runtime: Runtime,
    gateway: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Stage {
    fn with<T>(act: impl FnOnce(&Self) -> T) -> T {
        thread_local!(static STAGE: Stage = Stage::set());
        STAGE.with(act)
    }

    fn set() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let answer = Arc::new(Mutex::new(Vec::new()));
        let gateway = runtime.block_on(async {
            let engine = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("a bound port");
            let upstream =
                Upstream::at("m", &format!("http://{}", engine.local_addr().expect("a bound port")));
            let config = RoutesConfig {
                policy: Some(RoutingPolicy::Constant { model: "m".into() }),
                upstreams: vec![upstream],
                ..RoutesConfig::default()
            };
            let settings = Settings { otlp: Some("http://127.0.0.1:1".into()), ..Settings::default() };
            let gateway = Gateway::new(config, settings).expect("the parts fit together");
            tokio::spawn(play_engine(engine, Arc::clone(&answer)));
            tokio::spawn(async move {
                let (_keep, stop) = watch::channel(false);
                gateway.serve(listener, None, stop).await;
            });
            address
        });
        Self { runtime, gateway, answer }
    }

    /// Status and body that the gateway answers `request` with, as far as they come.
    fn ask(&self, request: &[u8], answer: &[u8]) -> Option<(u16, Vec<u8>)> {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer.to_vec();
        let mut answer = Vec::new();
        self.runtime.block_on(async {
            let mut socket = TcpStream::connect(self.gateway).await.expect("the gateway listens");
            // Who is refused while still sending is cut off.
            let _ = socket.write_all(request).await;
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = socket.read(&mut piece).await {
                answer.extend_from_slice(&piece[..length]);
                if answer.windows(17).any(|window| window == b"replica_broke_off") {
                    break;
                }
            }
        });
        let (head, body) = split_at_blank_line(&answer);
        let status = std::str::from_utf8(head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
        Some((status.parse().ok()?, body.to_vec()))
    }
}

/// Says what it is told to once a request has come, and hangs up; health checks are answered too, with the same.
async fn play_engine(listener: TcpListener, answer: Arc<Mutex<Vec<u8>>>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let mut read = Vec::new();
            let mut piece = [0; 4096];
            while !is_whole(&read) {
                match socket.read(&mut piece).await {
                    Ok(length @ 1..) => read.extend_from_slice(&piece[..length]),
                    _ => return,
                }
            }
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let _ = socket.write_all(&answer).await;
        });
    }
}

/// Whether all of a request has come.
fn is_whole(request: &[u8]) -> bool {
    let (head, body) = split_at_blank_line(request);
    let lines = String::from_utf8_lossy(head).to_lowercase();
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    head.len() < request.len() && body.len() >= length.unwrap_or(0)
}

/// What stands before and after the first empty line.
fn split_at_blank_line(text: &[u8]) -> (&[u8], &[u8]) {
    let find =
        |end: &[u8]| text.windows(end.len()).position(|window| window == end).map(|at| (at, end.len()));
    let Some((at, length)) = [find(b"\r\n\r\n"), find(b"\n\n")].into_iter().flatten().min() else {
        return (text, &[]);
    };
    (&text[..at], &text[at + length..])
}

fn is_an_error(body: &[u8]) {
    let read: serde_json::Value = serde_json::from_slice(body).expect("an error is JSON");
    assert!(
        ["message", "type", "param", "code"].iter().all(|key| read["error"].get(key).is_some()),
        "{read}"
    );
}

/// A specification or a grid is read, or every problem has a place in it.
pub fn spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What ends a line in YAML.
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    let errors = [parse_spec("boute.yaml", text).err(), parse_grid("grid.yaml", text).err()];
    for errors in errors.into_iter().flatten() {
        assert!(!errors.to_string().is_empty() && !errors.problems.is_empty());
        for problem in &errors.problems {
            assert!((1..=lines + 1).contains(&problem.line), "{errors}");
        }
    }
}

/// A plan or an outcome that is read is written as what is read again.
pub fn plan(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Plan::parse("plan.json", text) {
        Ok(plan) => assert_eq!(Plan::parse("again.json", &plan.to_json_pretty()).as_ref(), Ok(&plan)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match Outcome::parse("outcome.json", text) {
        Ok(outcome) => {
            let written = outcome.to_json_pretty();
            let again = Outcome::parse("again.json", &written).expect("what is written can be read");
            assert_eq!(again.to_json_pretty(), written);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A trace has requests, in order, with tokens; or it is told why it has not.
pub fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for trace in [parse_trace("trace", text), parse_requests("requests", text)] {
        match trace {
            Ok(trace) => {
                let requests = trace.requests();
                assert!(requests.is_sorted_by_key(|request| request.arrival));
                assert!(requests.iter().all(|request| request.input_tokens > 0 && request.output_tokens > 0));
                assert!(trace.rate_per_second() >= 0.0);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Quality data has a score in [0, 1] of each model for each query; or it is told why it has not.
pub fn quality(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_quality("quality", text, &[]) {
        Ok(read) => {
            assert!(!read.queries.is_empty() && !read.models.is_empty());
            for query in &read.queries {
                assert_eq!(query.scores.len(), read.models.len());
                assert!(query.scores.iter().all(|score| (0.0..=1.0).contains(score)));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A router that is read scores any text.
pub fn router(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Scorer::parse("router.json", text) {
        Ok(scorer) => {
            let mut scores = vec![0.0; scorer.models().len()];
            scorer.score("Compute 2 + 2, then prove it.", &mut Scratch::default(), &mut scores);
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
