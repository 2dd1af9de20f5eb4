//! The binary as a user meets it: commands end to end on real data, and clear errors for bad input.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod optimize;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder of its own for a test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("boute-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn boute(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_boute")).args(arguments).env("NO_COLOR", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that must fail with `code`; what it says.
fn refused(code: i32, arguments: &[&str]) -> String {
    let output = boute(arguments);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The example spec with one thing replaced, its data files named absolutely.
fn spec(from: &str, to: &str) -> String {
    let data = examples().join("data").canonicalize().unwrap();
    let good = fs::read_to_string(examples().join("llama-8b-70b.yaml")).unwrap();
    assert!(good.contains(from), "{from}");
    good.replace(from, to).replace("data/", &format!("{}/", data.display()))
}

#[test]
fn a_spec_becomes_a_plan_that_keeps_its_promises_the_same_each_time() {
    let folder = Folder::new("plan");
    let spec = examples().join("llama-8b-70b.yaml").display().to_string();
    let plan_file = folder.path("plan.json");
    let report = folder.path("report.html");
    let first = boute(&["plan", &spec, "--json", "-q", "-o", &plan_file, "--report", &report]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let again = boute(&["plan", &spec, "--json", "-q", "-o", &plan_file]);
    assert_eq!(text(&first.stdout), text(&again.stdout));
    let plan: Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(plan["verification"]["passed"], true);
    assert!(plan["bound"]["gap"].as_f64().unwrap() < 0.05);
    assert!(fs::read_to_string(report).unwrap().starts_with("<!doctype html>"));

    assert_eq!(boute(&["check", &plan_file]).status.code(), Some(0));
    let trace = examples().join("data/azure2023_conv.csv.gz").display().to_string();
    let quality = examples().join("data/mmlu_pro_llama.jsonl.gz").display().to_string();
    let outcome_file = folder.path("outcome.json");
    let simulate = ["simulate", &plan_file, "--trace", &trace, "--rate", "20 req/s", "--requests", "3000"];
    let routed = boute(&[&simulate[..], &["--quality", &quality, "-o", &outcome_file, "--json"]].concat());
    assert_eq!(routed.status.code(), Some(0), "{}", text(&routed.stderr));
    let outcome: Value = serde_json::from_slice(&routed.stdout).unwrap();
    assert_eq!((&outcome["completed"], &outcome["failed"]), (&3000.into(), &0.into()));
    assert_eq!(outcome, serde_json::from_str::<Value>(&fs::read_to_string(outcome_file).unwrap()).unwrap());
    let drawn = boute(&simulate);
    assert!(text(&drawn.stdout).contains("3000 answered, 0 failed"));

    let run = folder.path("run");
    assert_eq!(boute(&["export", "shell", &plan_file, "-o", &run]).status.code(), Some(0));
    for entry in fs::read_dir(run).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            assert!(
                Command::new("sh").arg("-n").arg(&path).status().unwrap().success(),
                "{}",
                path.display()
            );
        }
    }

    // Another router beside the plan is noticed.
    fs::write(folder.path("plan.router.json"), "{}").unwrap();
    assert!(refused(2, &simulate).contains("is not the router that"));
}

#[test]
fn a_router_is_trained_and_judged() {
    let folder = Folder::new("router");
    let data = examples().join("data/mmlu_pro_llama.jsonl.gz").display().to_string();
    let router = folder.path("router.json");
    assert_eq!(boute(&["router", "train", &data, "-o", &router]).status.code(), Some(0));
    let first = fs::read(&router).unwrap();
    assert_eq!(boute(&["router", "train", &data, "-o", &router]).status.code(), Some(0));
    assert!(first == fs::read(&router).unwrap(), "the same data and seed give the same bytes");
    let output = boute(&["router", "eval", &router, &data, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // MMLU-Pro: no method measured is far above 0.54; routing at random has 0.5.
    assert!(report["pair"]["apgr"].as_f64().unwrap() > 0.51, "{report}");
    assert!(report["models"][0]["auc"].as_f64().unwrap() > 0.62, "{report}");
    assert!(report["models"][0]["ece"].as_f64().unwrap() < 0.04, "{report}");
    assert!(text(&boute(&["router", "eval", &router, &data]).stdout).contains("APGR"));
}

#[test]
fn what_is_built_in_is_listed() {
    for list in ["gpus", "models", "prices"] {
        let rows: Value = serde_json::from_slice(&boute(&["catalog", list, "--json"]).stdout).unwrap();
        assert!(rows.as_array().unwrap().len() >= 20, "{list}");
    }
    assert!(text(&boute(&["catalog", "gpus", "h100"]).stdout).contains("H100-SXM"));
    let schema: Value = serde_json::from_slice(&boute(&["schema"]).stdout).unwrap();
    assert_eq!(schema["title"], "boute.yaml");
    assert!(text(&boute(&["completions", "bash"]).stdout).contains("boute"));
}

#[test]
fn bad_specs_are_refused_with_place_and_remedy() {
    let folder = Folder::new("specs");
    for (from, to, says) in [
        ("id: llama-3.1-8b", "id: llama-3.1-9b", "unknown model `llama-3.1-9b`"),
        ("type: L40S", "type: L40X", "did you mean `L40"),
        ("stock: 32", "stock: -1", "is not a stock"),
        ("type: L40S, stock: 32", "type: L40S, price: -$1/h", "is not a price per hour"),
        ("budget: $80/h", "budget: $0/h", "the budget is zero"),
        ("budget: $80/h", "budget: .nan", "`.nan`"),
        ("rate: 20 req/s", "rate: 20", "has no unit"),
        ("85% of llama-3.1-70b", "1.7", "is not a fraction between 0 and 1"),
        ("slo:", "slow:", "did you mean `slo`?"),
        ("data/azure2023_conv.csv.gz", "data/nothing.csv", "cannot read"),
        ("data/mmlu_pro_llama.jsonl.gz", "data/README.md", "README.md:1:"),
    ] {
        let file = folder.file("boute.yaml", &spec(from, to));
        let said = refused(2, &["plan", &file, "--json"]);
        assert!(said.contains(says), "{to}: {said}");
        assert!(said.contains("help"), "{to}: {said}");
    }
}

#[test]
fn too_few_queries_are_refused() {
    let folder = Folder::new("few");
    let rows = |count: usize, split: &str| -> String {
        let row = |id| {
            format!(
                "{{\"id\":\"{split}{id}\",\"prompt\":\"q {id}\",\"split\":\"{split}\",\"scores\":{{\"llama-3.1-8b\":0,\"llama-3.1-70b\":1}}}}\n"
            )
        };
        (0..count).map(row).collect()
    };
    for (data, says) in [
        (rows(20, "train"), "in the training part"),
        (rows(200, "train"), "in the validation part"),
        (rows(200, "train") + &rows(200, "validation"), "in the test part"),
    ] {
        let data = folder.file("quality.jsonl", &data);
        let file = folder.file("boute.yaml", &spec("data/mmlu_pro_llama.jsonl.gz", &data));
        let said = refused(2, &["plan", &file]);
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn bad_data_is_refused() {
    let folder = Folder::new("data");
    for (name, contents, says) in [
        ("empty.csv", "", "the trace is empty"),
        ("order.csv", "arrival_time_s,input_tokens,output_tokens\n5,1,1\n4,1,1\n", "arrives before"),
        ("nan.csv", "arrival_time_s,input_tokens,output_tokens\nNaN,1,1\n", "NaN"),
        ("cut.jsonl", "{\"timestamp\": 1, \"input_le", "cut.jsonl:1"),
        ("cut.json", "{\"version\": 1, ", "cut.json:1"),
        ("what.txt", "", "no extension that tells what it is"),
    ] {
        let said = refused(2, &["check", &folder.file(name, contents)]);
        assert!(said.contains(says), "{name}: {said}");
    }
    assert!(refused(2, &["check", &folder.path("missing.yaml")]).contains("cannot read"));
    assert!(refused(2, &["serve"]).contains("nothing to send requests to"));
    assert!(refused(2, &["mock", "--model", "llama-3.1-70b", "--gpu", "L4"]).contains("needs"));
    assert!(
        refused(
            2,
            &[
                "bench",
                "http://127.0.0.1:1",
                "--trace",
                &folder.file("t.csv", "arrival_time_s,input_tokens,output_tokens\n0,1,1\n")
            ]
        )
        .contains("/v1/models")
    );
    refused(2, &["plan"]);
    refused(2, &["plan", "x.yaml", "--strategy", "magic"]);
}

#[test]
fn what_cannot_be_is_answered_with_the_way_out() {
    let folder = Folder::new("infeasible");
    for (from, to, says) in [
        ("85% of llama-3.1-70b", "0.95", "lower the floor to"),
        ("budget: $80/h", "budget: $5/h", "raise the budget to"),
    ] {
        let file = folder.file("boute.yaml", &spec(from, to));
        let plan = folder.path("plan.json");
        let said = refused(1, &["plan", &file, "-o", &plan]);
        assert!(said.contains(says), "{said}");
        assert!(!Path::new(&plan).exists(), "nothing is written");
    }
}
