//! A plan with disaggregated replicas goes the whole way.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::{Folder, boute, examples, refused, text};

#[test]
fn a_disaggregated_plan_is_simulated_explained_and_exported() {
    let folder = Folder::new("disaggregate");
    let trace = examples().join("data/azure2023_code.csv.gz").canonicalize().unwrap().display().to_string();
    let spec = folder.file(
        "boute.yaml",
        &format!(
            "apiVersion: boute/v1\nmodels: [{{id: llama-3.1-8b}}]\ngpus: [{{type: L40S, price: $0.86/h}}, {{type: \
             H100-SXM, price: $2.40/h}}]\ntraffic: {{trace: {trace}, rate: 10 req/s}}\nslo: {{tpot_p99: 30ms, ttft_p95: \
             3s}}\ndisaggregate: true\n"
        ),
    );
    let plan = folder.path("plan.json");
    let report = folder.path("report.html");
    let planned = boute(&["plan", &spec, "--json", "-q", "-o", &plan, "--report", &report]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let written: Value = serde_json::from_slice(&planned.stdout).unwrap();
    let group = &written["deployment"]["groups"][0];
    assert!(group["disaggregated"]["prefill"]["instances"].as_u64().unwrap() > 0, "{group}");
    assert!(fs::read_to_string(report).unwrap().contains(" → "));
    assert_eq!(boute(&["check", &plan]).status.code(), Some(0));

    let simulated = boute(&["simulate", &plan, "--trace", &trace, "--rate", "10 req/s", "--json"]);
    let outcome: Value = serde_json::from_slice(&simulated.stdout).unwrap();
    assert_eq!(outcome["failed"], 0);
    assert!(outcome["p99_tpot_ms"].as_f64().unwrap() < 30.0, "{outcome}");

    let explained = boute(&["explain", &plan, "--spec", &spec]);
    let said = text(&explained.stdout) + &text(&explained.stderr);
    assert!(said.contains("without disaggregation"), "{said}");

    let run = folder.path("run");
    assert_eq!(boute(&["export", "shell", &plan, "-o", &run]).status.code(), Some(0));
    let scripts = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let scripts: Vec<_> = scripts.filter(|path| path.extension().is_some_and(|it| it == "sh")).collect();
    assert_eq!(scripts.len(), 4, "{scripts:?}");
    for path in scripts {
        assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success(), "{}", path.display());
    }

    let said = refused(2, &["serve", &plan, "--emulate"]);
    assert!(said.contains("is disaggregated") && said.contains("boute simulate"), "{said}");
}
