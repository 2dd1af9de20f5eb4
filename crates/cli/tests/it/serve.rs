//! `boute serve` as an operator meets it: files that change, and the end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use boute_spec::digest::sha256_hex;

use crate::{Folder, refused};

/// An engine that answers every request after `pause`.
fn engine(pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for socket in listener.incoming() {
            spawn(move || {
                let (mut socket, mut piece) = (socket.unwrap(), [0; 4096]);
                while let Ok(count @ 1..) = socket.read(&mut piece) {
                    if piece[..count].starts_with(b"POST") {
                        sleep(pause);
                    }
                    let body = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    if socket.write_all((head + body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A gateway that is killed if the test fails.
struct Serving {
    process: Child,
    port: u16,
    admin: u16,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        let (port, admin) = (free_port(), free_port());
        let process = Command::new(env!("CARGO_BIN_EXE_boute"))
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--admin",
                &format!("127.0.0.1:{admin}"),
            ])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let serving = Self { process, port, admin };
        until("it listens", || get(serving.port, "/health", "").contains("\"ok\""));
        serving
    }
}

/// The whole answer to GET, or what there was of it.
pub(crate) fn get(port: u16, path: &str, headers: &str) -> String {
    exchange(port, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"))
}

pub(crate) fn exchange(port: u16, request: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = socket.write_all(request.as_bytes());
        let _ = socket.read_to_string(&mut answer);
    }
    answer
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "not so within 20 s: {what}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn files_are_taken_over_and_sigterm_ends_what_is_under_way() {
    let folder = Folder::new("serve");
    let engine = engine(Duration::from_millis(600));
    let line = |name: &str| format!("{name} {}\n", sha256_hex(format!("{name}-key").as_bytes()));
    let keys = folder.file("keys", &line("alice"));
    let replicas = folder.file("replicas", &format!("# one\nm=http://{engine}\n"));
    let log = folder.path("decisions.jsonl");
    let mut serving = Serving::start(&["--replica-file", &replicas, "--keys", &keys, "--decisions", &log]);
    let port = serving.port;
    let models = |key: &str| get(port, "/v1/models", &format!("authorization: Bearer {key}-key\r\n"));
    assert!(models("bob").starts_with("HTTP/1.1 401") && models("alice").contains("\"m\""));
    fs::write(&keys, line("bob")).unwrap();
    until("the new keys are in force", || models("bob").contains("\"m\""));
    assert!(models("alice").starts_with("HTTP/1.1 401"));
    fs::write(&keys, "nonsense").unwrap();
    fs::write(&replicas, format!("m=http://{engine}\nn=http://{engine}/v1#theirs # two\n")).unwrap();
    until("the new replica is there", || models("bob").contains("\"n\""));
    assert!(get(serving.admin, "/admin/replicas", "").contains("\"asked_as\":\"theirs\""));
    let metrics = get(serving.admin, "/metrics", "");
    assert!(metrics.contains("boute_plan_swaps_total{} 1\n"), "{metrics}");

    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let post = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer bob-key\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = spawn(move || exchange(port, &post));
    sleep(Duration::from_millis(200));
    let pid = serving.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let answer = asked.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"prompt_tokens\":5"), "{answer}");
    assert!(serving.process.wait().unwrap().success());
    let mut said = String::new();
    serving.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the old one stays") && said.contains("stopping"), "{said}");
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.contains("\"input_length\":5,\"output_length\":2"), "{lines}");
}

#[test]
fn what_cannot_be_served_is_said() {
    let folder = Folder::new("serve-bad");
    let replica = ["serve", "--replica", "m=http://127.0.0.1:1"];
    let with = |more: &[&str]| refused(2, &[&replica[..], more].concat());
    assert!(with(&["--alias", "gpt"]).contains("--alias gpt-4o=auto"));
    assert!(with(&["--alias", "gpt=other"]).contains("an alias names `other`"));
    assert!(with(&["--fallback", "m=other"]).contains("the fallback names `other`"));
    assert!(with(&["--balance", "best"]).contains("power-of-two"));
    assert!(with(&["--keys", &folder.file("keys", "alice secret")]).contains("keys:1: `alice` has no hash"));
    let nonsense = folder.file("cert.pem", "nonsense");
    assert!(with(&["--tls-cert", &nonsense, "--tls-key", &nonsense]).contains("give PEM text"));
    assert!(with(&["--upstream-ca", &nonsense]).contains("give PEM text"));
    assert!(with(&["--upstream-keys", &folder.file("host", "api.example.com")]).contains("write `HOST KEY`"));
    assert!(with(&["--discover", "m=k8s://engines.llm"]).contains("and it runs in none"));
    assert!(with(&["--discover", "m=ftp://x"]).contains("`ftp://x` is not an address"));
    assert!(with(&["--hedge", "2"]).contains("50% to 99.9%"));
    assert!(with(&["--otlp", "collector"]).contains("not an address of a collector"));
    assert!(with(&["--decisions", "/no/such/folder/log"]).contains("cannot be written"));
    assert!(refused(2, &["serve", "--replica", "http://x"]).contains("--replica llama-3.1-8b=http"));
}

/// The port after the gateway's may be another's; operators then hear of the one they get.
#[test]
fn the_admin_port_gives_way() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("127.0.0.1:{}", taken.local_addr().unwrap().port() - 1);
    let mut process = Command::new(env!("CARGO_BIN_EXE_boute"))
        .args(["serve", "--discover", "m=http://localhost:1", "--listen", &listen])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (gave_way, serves) = (said.next().unwrap(), said.next().unwrap());
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(gave_way.contains("is taken") && gave_way.contains("--admin HOST:PORT"), "{gave_way}");
    let (_, admin) = serves.split_once("; http://127.0.0.1:").unwrap();
    let (admin, _) = admin.split_once("/dashboard").unwrap();
    let admin: u16 = admin.parse().unwrap();
    assert!(admin > 0 && admin != taken.local_addr().unwrap().port(), "{serves}");
    assert!(serves.contains(&listen) && serves.contains("those at m=http://localhost:1 behind"), "{serves}");
}
