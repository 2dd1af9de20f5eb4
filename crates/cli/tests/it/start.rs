//! The first minutes: a spec to start with, a look at what is there, quality data of one's own, shells.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::spawn;

use serde_json::{Value, json};

use crate::{Folder, boute, refused, text};

#[test]
fn every_preset_checks_and_is_not_written_over() {
    let folder = Folder::new("init");
    for preset in ["chat", "rag", "code", "agents"] {
        let path = folder.path(preset);
        let made = boute(&["init", &path, "--preset", preset, "--rate", "3 req/s", "--json"]);
        assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
        let files: Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(files["files"].as_array().unwrap().len(), 5);
        let spec = format!("{path}/boute.yaml");
        assert_eq!(boute(&["check", &spec]).status.code(), Some(0));
        let written = fs::read_to_string(&spec).unwrap();
        assert!(written.starts_with("# yaml-language-server: $schema=./boute.schema.json\n"), "{written}");
        assert!(written.contains("rate: 3 req/s"), "{written}");
        assert!(refused(2, &["init", &path, "--preset", preset]).contains("is there already"));
        assert_eq!(boute(&["init", &path, "--preset", preset, "--force"]).status.code(), Some(0));
    }
    assert!(refused(2, &["init", &folder.path("x")]).contains("--preset"), "off a terminal nothing is asked");
    let said = refused(2, &["init", &folder.path("x"), "--preset", "chat", "--rate", "3"]);
    assert!(said.contains("has no unit") && !folder.0.join("x").exists(), "{said}");
}

#[test]
fn a_fresh_spec_becomes_a_plan_and_a_report() {
    let folder = Folder::new("fresh");
    let path = |name: &str| folder.path(name);
    assert_eq!(boute(&["init", &path(""), "--preset", "chat"]).status.code(), Some(0));
    let planned = boute(&["plan", &path("boute.yaml"), "-o", &path("plan.json")]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let shown = text(&planned.stdout);
    let parts =
        ["Asked", "Fleet", "Routing", "Promised", "per 1,000 requests", "Cost and quality", "What binds"];
    let places: Vec<usize> =
        parts.iter().map(|part| shown.find(part).unwrap_or_else(|| panic!("{part}: {shown}"))).collect();
    assert!(places.is_sorted(), "{shown}");
    assert!(text(&planned.stderr).contains("Next: boute explain"), "what to type next is said");
    assert!(
        !shown.contains('\x1b') && !text(&planned.stderr).contains('\x1b'),
        "no control codes off a terminal"
    );
    let report = path("report.html");
    assert_eq!(boute(&["report", &path("plan.json"), "-o", &report]).status.code(), Some(0));
    assert!(fs::read_to_string(&report).unwrap().starts_with("<!doctype html>"));
    let said = refused(2, &["report", &path("plan.json"), "--measured", &path("boute.yaml")]);
    assert!(said.contains("is no outcome"), "{said}");
}

#[test]
fn the_doctor_says_what_is_wrong_and_fails() {
    let url = format!("http://{}", engine(|_| "four".into()));
    let looked = boute(&["doctor", &url, "--json"]);
    let checks: Value = serde_json::from_slice(&looked.stdout).unwrap();
    let of = |url: &str| {
        let all = checks["checks"].as_array().unwrap().iter().filter(|check| check["name"] == url);
        all.map(|check| format!("{} {}", check["level"], check["found"])).collect::<Vec<_>>().join("\n")
    };
    assert!(of(&url).contains("\"ok\" \"serves small\""), "{checks}");
    assert!(of(&url).contains("\"ok\" \"version 0.11.0"), "{checks}");
    assert!(of(&url).contains("/metrics of vLLM: 1 running, 0 waiting"), "{checks}");
    assert_eq!(looked.status.code(), Some(0), "{checks}");
    let said = refused(1, &["doctor", "http://127.0.0.1:1", "--patience", "1"]);
    assert!(said.contains("fail  http://127.0.0.1:1") && said.contains("help"), "{said}");
    refused(2, &["doctor", "--patience", "0"]);
}

#[test]
fn quality_data_is_collected_and_goes_on_where_it_stopped() {
    let folder = Folder::new("collect");
    // Sums of two numbers: the small model is wrong where both are odd, and fails once on the way.
    let numbers = |prompt: &str| -> Vec<u64> {
        prompt.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let small = engine(move |prompt| {
        let [a, b] = numbers(prompt)[..] else { return "none".into() };
        format!("It is {}.", if a % 2 == 1 && b % 2 == 1 { a } else { a + b })
    });
    let large = engine(move |prompt| format!("It is {}.", numbers(prompt).iter().sum::<u64>()));
    let rows = |count: u64| -> String {
        let row = |n: u64| json!({"prompt": format!("{n} + {}", n / 3), "answer": (n + n / 3).to_string()});
        (0..count).map(|n| row(n).to_string()).collect::<Vec<_>>().join("\n")
    };
    let output = folder.path("quality.jsonl");
    let endpoints = [format!("small=http://{small}"), format!("large=http://{large}/v1")];
    let collect = |count: u64, more: &[&str]| {
        let prompts = folder.file("prompts.jsonl", &rows(count));
        let fixed = ["quality", "collect", &prompts, "-o", &output, "--json"];
        let ends = ["--endpoint", &endpoints[0], "--endpoint", &endpoints[1]];
        boute(&[&fixed[..], &ends, more].concat())
    };
    let first = collect(10, &["--judge", "numeric"]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    // A line that was cut off is asked again, the others are not.
    let mut bytes = fs::read(&output).unwrap();
    bytes.truncate(bytes.len() - 5);
    fs::write(&output, bytes).unwrap();
    let again = collect(24, &["--judge", "numeric", "--concurrency", "3"]);
    let told: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&told["known"], &told["scored"]), (&json!(9), &json!(15)), "{told}");

    let mut lines: Vec<Value> = fs::read_to_string(&output)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.sort_by_key(|line| line["id"].as_str().unwrap()[5..].parse::<u64>().unwrap());
    assert_eq!(lines.len(), 24);
    for (n, line) in (0_u64..).zip(&lines) {
        let both_odd = n % 2 == 1 && (n / 3) % 2 == 1;
        // Where one number is zero, the first is the sum.
        assert_eq!(
            line["scores"],
            json!({"small": if both_odd { 0.0 } else { 1.0 }, "large": 1.0}),
            "{line}"
        );
        assert_eq!(line["output_tokens"], json!({"small": 7, "large": 7}));
    }
    assert_eq!(boute(&["check", &output]).status.code(), Some(0));

    let by = |judge: &[&str]| {
        fs::remove_file(&output).unwrap();
        let told = collect(6, judge);
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        told["mean"]["large"].as_f64().unwrap()
    };
    assert_eq!(by(&["--judge", "regex", "--pattern", "It is ([0-9]+)"]), 1.0);
    assert_eq!(by(&["--judge", "exact"]), 0.0);
    assert_eq!(by(&["--judge", "command", "--command", "grep -q 'It is [01]'"]), 2.0 / 6.0);
    let judge = format!("http://{}", engine(|_| "Fine.\nGrade: 7".into()));
    let graded = by(&["--judge", "llm", "--judge-url", &judge, "--judge-model", "j"]);
    assert!((graded - 0.7).abs() < 1e-12, "{graded}");

    let prompts = folder.file("bare.jsonl", "{\"prompt\": \"1 + 1\"}\n");
    let base = ["quality", "collect", &prompts, "-o", &output];
    let said = refused(2, &[&base[..], &["--judge", "exact", "--endpoint", &endpoints[0]]].concat());
    assert!(said.contains("bare.jsonl:1") && said.contains("no `answer`"), "{said}");
    let said =
        refused(2, &[&base[..], &["--judge", "command", "--command", "true", "--endpoint", "x"]].concat());
    assert!(said.contains("MODEL=http://HOST:PORT"), "{said}");
    refused(2, &[&base[..], &["--judge", "regex", "--endpoint", &endpoints[0]]].concat());
    let other = ["--judge", "command", "--command", "true", "--endpoint", "new=http://127.0.0.1:1"];
    assert!(refused(2, &[&base[..], &other].concat()).contains("no query has a score of `new`"));
}

#[test]
fn shells_are_told_names_of_the_catalogue() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(text(&boute(&["completions", shell]).stdout).contains("BOUTE_COMPLETE"), "{shell}");
    }
    let asked = Command::new(env!("CARGO_BIN_EXE_boute"))
        .args(["--", "boute", "mock", "--gpu", "H100"])
        .envs([("BOUTE_COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "3"), ("_CLAP_IFS", "\n")])
        .output()
        .unwrap();
    assert!(text(&asked.stdout).lines().any(|line| line == "H100-SXM"), "{}", text(&asked.stdout));
}

#[test]
fn man_pages_are_written() {
    let folder = Folder::new("man");
    assert_eq!(boute(&["reference", "--man", &folder.path("man")]).status.code(), Some(0));
    let page = fs::read_to_string(folder.path("man/boute-plan.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("Ctrl\\-C"), "{page}");
}

/// An engine that speaks enough of OpenAI's API and of vLLM's; `reply` answers a prompt.
fn engine(reply: impl Fn(&str) -> String + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, reply) = (socket.unwrap(), reply.clone());
            spawn(move || {
                let request = read_request(&mut socket);
                let body = match request.split(' ').nth(1).unwrap_or_default() {
                    "/health" => String::new(),
                    "/v1/models" => json!({"data": [{"id": "small"}]}).to_string(),
                    "/version" => json!({"version": "0.11.0"}).to_string(),
                    "/metrics" => "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n".into(),
                    _ => {
                        let (_, body) = request.split_once("\r\n\r\n").unwrap();
                        let asked: Value = serde_json::from_str(body).unwrap();
                        let said = reply(asked["messages"][0]["content"].as_str().unwrap());
                        let usage = json!({"prompt_tokens": 5, "completion_tokens": 7});
                        json!({"choices": [{"message": {"content": said}}], "usage": usage}).to_string()
                    }
                };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = socket.write_all((head + &body).as_bytes());
            });
        }
    });
    address
}

/// Head and body.
fn read_request(socket: &mut impl Read) -> String {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut piece).unwrap();
        request.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if count == 0 || body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}
