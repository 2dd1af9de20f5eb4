//! `boute explain` and `boute plan --resume` on the example.

use std::fs;

use serde_json::Value;

use crate::{Folder, boute, refused, spec, text};

#[test]
fn a_plan_finds_its_spec_and_is_explained() {
    let folder = Folder::new("explain");
    let spec_file = folder.file("boute.yaml", &spec("rate: 20 req/s", "rate: 10 req/s"));
    let plan_file = folder.path("plan.json");
    let planned = boute(&["plan", &spec_file, "-q", "--strategy", "exact", "-o", &plan_file]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let plan: Value = serde_json::from_str(&fs::read_to_string(&plan_file).unwrap()).unwrap();

    let output = boute(&["explain", &plan_file, "--why-not", "llama-3.1-70b on 1×L40S", "-q", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(explained["notes"], Value::Array(Vec::new()));
    assert_eq!(explained["binding"], plan["binding"]);
    let (value, cost) = (&explained["plan"]["value"], &plan["predicted"]["cost_usd_per_hour"]);
    assert!((value.as_f64().unwrap() - cost.as_f64().unwrap()).abs() < 1e-6, "{value} {cost}");
    assert!(explained["runners_up"].as_array().unwrap().len() > 2);
    assert_eq!(explained["why_not"]["verdict"], "impossible");
    assert!(explained["why_not"]["reasons"][0].as_str().unwrap().contains("GiB"));

    assert!(refused(2, &["explain", &plan_file, "--why-not", "B200"]).contains("neither a model nor a GPU"));
    assert!(
        refused(2, &["plan", &spec_file, "--seed", "1", "--resume", &plan_file]).contains("seed 0, not 1")
    );

    // Another spec at the same place is said to be another one.
    folder.file("boute.yaml", &spec("rate: 20 req/s", "rate: 11 req/s"));
    let said = text(&boute(&["explain", &plan_file, "-q"]).stdout);
    assert!(said.contains("the spec") && said.contains("changed since the plan was made"), "{said}");
    assert!(refused(2, &["plan", &spec_file, "--resume", &plan_file]).contains("made from another spec"));
    fs::remove_file(&spec_file).unwrap();
    assert!(refused(2, &["explain", &plan_file]).contains("say where it is: `--spec"));
}
