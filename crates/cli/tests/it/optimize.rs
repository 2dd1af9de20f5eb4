//! `boute optimize` as a program in another language meets it: lines in, lines out.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use super::*;

const SPACE: &str = r#"{"space": [
    {"name": "x", "type": "real", "low": 0, "high": 2},
    {"name": "n", "type": "int", "low": 1, "high": 8},
    {"name": "kind", "type": "cat", "values": ["a", true, 3]}],
  "objectives": ["f", "g"], "constraints": ["c"], "reference": [10, 10], "seed": 3, "initial": 4}"#;

/// Answers to `lines`, one per line; the loop must outlive them all.
fn answers(arguments: &[&str], lines: &[String]) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_boute"))
        .arg("optimize")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn told(id: usize) -> String {
    let (f, g) = (id as f64, 5.0 - id as f64);
    json!({"tell": [{"id": id, "objectives": {"f": f, "g": g}, "constraints": {"c": 1.0}}]}).to_string()
}

#[test]
fn what_is_asked_is_told_and_the_front_comes_back() {
    let folder = Folder::new("optimize");
    let space = folder.file("space.json", SPACE);
    let lines: Vec<String> = (0..5).flat_map(|id| [r#"{"ask":1}"#.to_owned(), told(id)]).collect();
    let got = answers(&["--space", &space], &lines);
    assert_eq!(got.len(), 10);
    let candidate = &got[8]["candidates"][0];
    assert_eq!(candidate["id"], 4);
    assert!((0.0..=2.0).contains(&candidate["x"]["x"].as_f64().unwrap()));
    assert!((1..=8).contains(&candidate["x"]["n"].as_i64().unwrap()));
    assert!([json!("a"), json!(true), json!(3)].contains(&candidate["x"]["kind"]));
    assert_eq!(got[9]["evaluations"], 5);
    assert_eq!(got[9]["front"].as_array().unwrap().len(), 5);
    assert_eq!(got[9]["hypervolume"].as_f64(), Some(80.0), "the staircase under (10, 10)");
}

#[test]
fn a_bad_line_is_answered_and_changes_nothing() {
    let folder = Folder::new("optimize-bad");
    let space = folder.file("space.json", SPACE);
    let bad = [
        "{",
        "[]",
        r#"{"ask":-1}"#,
        r#"{"ask":1000000}"#,
        r#"{"forget":1}"#,
        r#"{"tell":[{"id":7,"objectives":{"f":1,"g":1},"constraints":{"c":1}}]}"#,
        r#"{"tell":[{"id":0,"objectives":{"f":NaN,"g":1},"constraints":{"c":1}}]}"#,
        r#"{"tell":[{"id":0,"objectives":{"f":null,"g":1},"constraints":{"c":1}}]}"#,
        r#"{"tell":[{"id":0,"objectives":{"f":1},"constraints":{"c":1}}]}"#,
        r#"{"tell":[{"id":0,"objectives":{"f":1,"g":1,"h":1},"constraints":{"c":1}}]}"#,
        r#"{"tell":[{"x":{"x":9,"n":1,"kind":"a"},"objectives":{"f":1,"g":1},"constraints":{"c":1}}]}"#,
        "\u{0}",
    ];
    let mut lines = vec![r#"{"ask":1}"#.to_owned()];
    lines.extend(bad.map(str::to_owned));
    lines.push(told(0));
    let got = answers(&["--space", &space], &lines);
    assert_eq!(got.len(), lines.len());
    for (line, answer) in bad.iter().zip(&got[1..]) {
        assert!(answer["error"].as_str().is_some_and(|text| !text.is_empty()), "{line}: {answer}");
    }
    assert_eq!(got.last().unwrap()["evaluations"], 1);
}

#[test]
fn a_stored_study_goes_on_as_if_it_had_not_stopped() {
    let folder = Folder::new("optimize-study");
    let space = folder.file("space.json", SPACE);
    let lines: Vec<String> = (0..7).flat_map(|id| [r#"{"ask":1}"#.to_owned(), told(id)]).collect();
    let whole = folder.path("whole.json");
    answers(&["--space", &space, "--study", &whole], &lines);
    let parts = folder.path("parts.json");
    for line in &lines {
        answers(&["--space", &space, "--study", &parts], std::slice::from_ref(line));
    }
    assert_eq!(fs::read(whole).unwrap(), fs::read(&parts).unwrap());
    let other = folder.file("other.json", &SPACE.replace("\"seed\": 3", "\"seed\": 4"));
    let said = refused(2, &["optimize", "--space", &other, "--study", &parts]);
    assert!(said.contains("a study of another problem"), "{said}");
}

#[test]
fn a_space_that_makes_no_sense_is_refused_by_name() {
    let folder = Folder::new("optimize-space");
    for (from, to, message) in [
        ("\"high\": 2", "\"high\": 0", "variable `x`: `low` 0 must be below `high` 0"),
        ("\"type\": \"int\"", "\"type\": \"integer\"", "unknown variant `integer`"),
        ("\"name\": \"n\"", "\"name\": \"x\"", "variable `x` is there twice"),
        ("\"reference\": [10, 10]", "\"reference\": [10]", "reference values: 1 given, 2 expected"),
        ("\"seed\"", "\"sead\"", "unknown field `sead`"),
    ] {
        let space = folder.file("space.json", &SPACE.replace(from, to));
        let said = refused(2, &["optimize", "--space", &space]);
        assert!(said.contains(message), "{said}");
    }
}
