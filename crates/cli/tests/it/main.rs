//! The binary as a user meets it: commands end to end on real data, and clear errors for bad input.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod autopilot;
mod compare;
mod disaggregate;
mod explain;
mod export;
mod optimize;
mod router;
mod serve;
mod start;

#[path = "../../../render/src/fixture.rs"]
#[expect(dead_code, reason = "other tests use the other plans")]
mod fixture;

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
    assert!(fs::metadata(folder.path("run/plan.router.json")).is_ok(), "the router goes along");

    // Another router beside the plan is noticed.
    fs::write(folder.path("plan.router.json"), "{}").unwrap();
    assert!(refused(2, &simulate).contains("is not the router that"));
    assert!(refused(2, &["export", "k8s", &plan_file, "--check"]).contains("is not the router that"));
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
    let small = ["--model", "llama-3.1-8b", "--gpu", "L40S"];
    let unprofiled = folder.file("profile.json", "{\"version\": 1}");
    let said = refused(2, &[&["mock", "--profile", &unprofiled][..], &small].concat());
    assert!(said.contains("not a profile"), "{said}");
    let profile = folder.path("new.json");
    let said = refused(2, &[&["profile", "http://127.0.0.1:1", "-o", &profile][..], &small].concat());
    assert!(said.contains("/v1/models") && !Path::new(&profile).exists(), "{said}");
    let odd = ["profile", "http://127.0.0.1:1", "--tp", "3"];
    assert!(refused(2, &[&odd[..], &small].concat()).contains("TP a power of two"));
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
fn what_a_newcomer_mistakes_is_told() {
    let folder = Folder::new("mistakes");
    let spec = folder.file("boute.yaml", &spec("budget", "budget"));
    let (plan, router) = (folder.file("plan.json", "{\"deployment\": {}}"), folder.file("router.json", "{}"));
    let (here, lines) = (folder.path(""), folder.file("lines.txt", "a=http://127.0.0.1:1\n\nllama\n"));
    let nowhere = folder.path("no/plan.json");
    for (arguments, says) in [
        (&["explain", &spec][..], "is no plan"),
        (&["serve", &spec, "--emulate"], "is no plan"),
        (&["plan", &plan], "is a plan, and a spec is wanted"),
        (&["router", "eval", &plan, &router], "is a plan, and a router is wanted"),
        (&["plan", &here], "name a file in it"),
        (&["plan", &spec, "-o", &nowhere], "there is no folder"),
        (&["plan", &spec, "--report", &here], "it is a folder"),
        (&["demo", "-o", &spec], "cannot write"),
        (&["serve", "--replica-file", &lines], "lines.txt:3: `llama` has no `=`"),
        (&["serve", "--listen", "8080"], "write it like `127.0.0.1:8080`"),
        (&["router", "certify", &router, &router, "--floor", "80%"], "a share between 0 and 1"),
        (&["init", &folder.path("x"), "--preset", "chat", "--budget", "0/h"], "--budget '$80/h'"),
        (&["autopilot", "status", &nowhere], "cannot read"),
    ] {
        let said = refused(2, arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert!(refused(1, &["catalog", "gpus", "nothing like this"]).contains("nothing in this list"));
    assert!(refused(1, &["doctor", "127.0.0.1:8080"]).contains("is not an http:// address"));
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

#[test]
fn one_replica_is_simulated_on_a_foreign_cost_model() {
    let folder = Folder::new("step-time");
    let basis = r#"["1","T","A","D>0","K","max(T-128,0)","max(T-256,0)","P>0"]"#;
    let step = |basis: &str, seconds: &str| format!("{{\"basis\": {basis}, \"seconds\": {seconds}}}");
    let good = folder.file("step.json", &step(basis, "[0.01, 0, 0, 0, 0, 0, 0, 0]"));
    let rows = "arrival_s,prefill_tokens,decode_tokens\n0,1000,3\n0.005,10,2\n";
    let requests = folder.file("requests.csv", rows);
    let (outcome_file, rows_file) = (folder.path("outcome.json"), folder.path("rows.csv"));
    let simulate = |step: &str, requests: &str, more: &[&str]| {
        let outputs = ["-o", &outcome_file, "--per-request", &rows_file, "--json"];
        [&["simulate", "--step-time", step, "--requests", requests], &outputs[..], more]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |arguments: &[String]| boute(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let output = run(&simulate(&good, &requests, &[]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let outcome: Value = serde_json::from_str(&fs::read_to_string(&outcome_file).unwrap()).unwrap();
    assert_eq!((&outcome["completed"], &outcome["source"]), (&2.into(), &"simulated".into()));
    // Steps of 10 ms: 512 tokens; the rest and the second prompt; two of decoding.
    let want = "arrival_s,prefill_tokens,decode_tokens,ttft_s,tpot_s,e2e_s\n\
                0,1000,3,0.020000000,0.010000000,0.040000000\n\
                0.005,10,2,0.015000000,0.010000000,0.025000000\n";
    assert_eq!(fs::read_to_string(&rows_file).unwrap(), want);
    // A request larger than the cache is refused, the rest answered.
    let output = run(&simulate(&good, &requests, &["--kv-tokens", "64"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(fs::read_to_string(&rows_file).unwrap().contains("0,1000,3,,,\n"));

    let bad = |name: &str, seconds: &str| folder.file(name, &step(basis, seconds));
    let negative = bad("negative.json", "[-0.01, 0, 0, 0, 0, 0, 0, 0]");
    let short = bad("short.json", "[0.01]");
    let huge = bad("huge.json", "[1e300, 0, 0, 0, 0, 0, 0, 0]");
    let unknown = folder.file("unknown.json", &step("[\"1\", \"batch\"]", "[0.01, 1]"));
    let unsorted = folder.file("unsorted.csv", &format!("{rows}0.001,10,2\n"));
    let zero = folder.file("zero.csv", &format!("{rows}1,0,2\n"));
    for (step, requests, more, said) in [
        (
            &negative,
            &requests,
            &[][..],
            "a step of 1 prompt tokens and 0 decoding sequences would take -0.01 s",
        ),
        (&short, &requests, &[], "`basis` has 8 terms, `seconds` 1"),
        (&huge, &requests, &[], "would end after more than 213 days"),
        (&unknown, &requests, &[], "`batch` in `basis` is not a term"),
        (&good, &unsorted, &[], "unsorted.csv:4: request 2 arrives before request 1"),
        (&good, &zero, &[], "zero.csv:4:"),
        (&good, &"7".to_owned(), &[], "`--requests` is not a file"),
        (&good, &requests, &["--max-num-seqs", "600"], "a step of 512 tokens cannot hold 600 sequences"),
        (&good, &requests, &["--trace", "t.csv"], "cannot be used with"),
    ] {
        let arguments = simulate(step, requests, more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let told = refused(2, &arguments);
        assert!(told.contains(said), "{said}: {told}");
    }
    assert!(refused(2, &["simulate"]).contains("<PLAN>"));
    assert!(refused(2, &["simulate", "--step-time", &good]).contains("--requests"));
}

/// The published way to run Llama-3.1-8B, in the columns of aiconfigurator's sample.
const ROWS: &str = "\
id,model_path,system,backend,precision,isl,osl,concurrency,tp_size,ttft_ms,tpot_ms
a,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,vllm,fp8,1024,256,16,1,100,7
b,meta-llama/Llama-3.1-70B,h200_sxm,vllm,fp8,1024,1024,8,2,,
\"c,1\",deepseek-ai/DeepSeek-R1,b200_sxm,sglang,fp4,1024,1024,64,8,,
d,some/unknown-model,h100_sxm,vllm,fp8,1024,256,16,1,,
";

#[test]
fn rows_are_estimated() {
    let folder = Folder::new("perf");
    let rows = folder.file("rows.csv", ROWS);
    let predictions = folder.path("predictions.csv");
    let output = boute(&["perf", "estimate", "--rows", &rows, "-o", &predictions]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("1 rows left out: unknown model `some/unknown-model`"), "{said}");
    let written = fs::read_to_string(&predictions).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(
        lines[0],
        "id,pred_ttft_ms,pred_tpot_ms,source,ttft_low_ms,ttft_high_ms,tpot_low_ms,tpot_high_ms"
    );
    assert_eq!(lines.len(), 4);
    let first: Vec<&str> = lines[1].split(',').collect();
    assert_eq!((first[0], first[3]), ("a", "fitted"));
    let ms: Vec<f64> = [1, 2, 4, 5, 6, 7].map(|column: usize| first[column].parse().unwrap()).to_vec();
    assert!((20.0..300.0).contains(&ms[0]) && (4.0..15.0).contains(&ms[1]), "{ms:?}");
    assert!(ms[2] <= ms[0] && ms[0] <= ms[3] && ms[4] <= ms[1] && ms[1] <= ms[5], "{ms:?}");
    assert!(lines[3].starts_with("\"c,1\","), "{}", lines[3]);

    let json = boute(&["perf", "estimate", "--rows", &rows, "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[0]["source"], "fitted");
    assert_eq!(boute(&["perf", "estimate", "--rows", &rows]).stdout, written.as_bytes());
}

#[test]
fn rows_that_cannot_be_read_are_refused() {
    let folder = Folder::new("perf-bad");
    let estimate = |text: &str| {
        let rows = folder.file("rows.csv", text);
        let said = refused(2, &["perf", "estimate", "--rows", &rows, "-o", &folder.path("none.csv")]);
        assert!(!Path::new(&folder.path("none.csv")).exists());
        said.replace(&folder.0.display().to_string(), "")
    };
    insta::assert_snapshot!(estimate(""), @r"
    error: `/rows.csv`: no column `id`
      help: the columns are those of aiconfigurator's silicon sample, see `boute perf estimate --help`
    ");
    insta::assert_snapshot!(estimate(&ROWS.replace("1024,256,16,1,100", "1024,-256,16,1,100")), @r"
    error: `/rows.csv`: line 2: `osl` is `-256`, not a count
      help: the columns are those of aiconfigurator's silicon sample, see `boute perf estimate --help`
    ");
    insta::assert_snapshot!(estimate(&ROWS.replace("1024,256,16,1,100", "NaN,256,16,1,100")), @r"
    error: `/rows.csv`: line 2: `isl` is `NaN`, not a count
      help: the columns are those of aiconfigurator's silicon sample, see `boute perf estimate --help`
    ");
    refused(2, &["perf", "estimate", "--rows", &folder.path("missing.csv")]);
}

#[test]
fn a_replica_is_explained() {
    let asked =
        ["perf", "explain", "--model", "llama-3.1-70b", "--gpu", "H100-SXM", "--dtype", "fp8", "--tp", "2"];
    let output = boute(&[&asked[..], &["--json"]].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sum =
        |of: &str| told[of].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum::<f64>();
    assert!((sum("ttft") / told["ttft_s"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(sum("decode_step") <= told["tpot_s"].as_f64().unwrap());
    assert_eq!(told["binds"], "bandwidth");
    let shown = text(&boute(&asked).stdout);
    assert!(shown.contains("decoding is bound by bandwidth") && shown.contains("80 % interval"), "{shown}");

    let said = refused(2, &["perf", "explain", "--model", "llama-3.1-70b", "--gpu", "L40S"]);
    assert!(said.contains("it fits at TP 4"), "{said}");
    refused(2, &["perf", "explain", "--model", "llama-3.1-8b", "--gpu", "L40S", "--prompt-tokens", "0"]);
    // A slower link between the GPUs of a node never helps.
    let tpot = |link: &str| {
        let output = boute(&[
            "perf",
            "explain",
            "--model",
            "llama-3.1-70b",
            "--gpu",
            "L40S",
            "--tp",
            "8",
            "--link",
            link,
            "--json",
        ]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["tpot_s"].as_f64().unwrap()
    };
    assert!(tpot("2GB/s") > tpot("25GB/s"));
}
