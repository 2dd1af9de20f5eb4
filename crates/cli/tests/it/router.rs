//! `boute router` beyond training: promises, explanations, imports, the page.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(feature = "embeddings")]
use std::process::Command;

use serde_json::Value;

use crate::{Folder, boute, refused, text};

/// 1,200 made-up queries: the small model fails at sums, the large one seldom fails, but more often at letters.
fn data() -> String {
    let mut lines = String::new();
    for at in 0..1200_u32 {
        let sum = at % 3 == 0;
        let (task, prompt) = if sum {
            ("maths", format!("Compute {} + {} and halve it.", at * 7, at * 13 % 101))
        } else {
            ("chat", format!("Write a friendly letter number {at} about the garden and its flowers."))
        };
        let small = f64::from(u8::from(if sum { at % 5 == 0 } else { at % 10 != 1 }));
        let large = f64::from(u8::from(if sum { at % 10 != 1 } else { at % 5 != 1 }));
        let split = ["train", "validation", "train", "test"][at as usize / 3 % 4];
        let _ = writeln!(
            lines,
            r#"{{"id":"{at}","task":"{task}","split":"{split}","prompt":"{prompt}","scores":{{"small":{small},"large":{large}}},"output_tokens":{{"small":{},"large":80}}}}"#,
            if sum { 200 + at % 50 } else { 40 + at % 20 }
        );
    }
    lines
}

#[test]
fn promises_are_certified_explained_and_drawn() {
    let folder = Folder::new("router-certify");
    let [file, router, certificate, page] =
        ["data.jsonl", "router.json", "certificate.json", "page.html"].map(|name| folder.path(name));
    fs::write(&file, data()).unwrap();
    assert_eq!(
        boute(&["router", "train", &file, "--models", "small,large", "-o", &router]).status.code(),
        Some(0)
    );
    let certify = ["router", "certify", &router, &file];
    let ask = |more: &[&str]| boute(&[&certify[..], more].concat());
    let output = ask(&[
        "--max-loss",
        "0.05",
        "--group",
        "maths=0.1",
        "--cost",
        "small=1",
        "--cost",
        "large=9",
        "-o",
        &certificate,
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["certified"], true, "{made}");
    // Sums are a third of the queries: to send them to the large model is enough.
    let large = made["shares"][1].as_f64().unwrap();
    assert!((0.15..0.6).contains(&large), "{large}");
    assert!(made["promises"].as_array().unwrap().iter().all(|promise| promise["holds"] == true));
    assert!(made["cost"][0].as_f64().unwrap() < 6.0);

    // What cannot be promised is refused, with exit status 1; nonsense with 2.
    assert_eq!(ask(&["--floor", "0.99"]).status.code(), Some(1));
    assert!(
        refused(2, &[&certify[..], &["--max-loss", "0.05", "--mix", "poems=1"]].concat()).contains("poems")
    );
    assert!(refused(2, &[&certify[..], &["--floor", "85"]].concat()).contains("0.95, not 95"));
    // A judge that may be off by more than the loss allows leaves no room.
    assert!(text(&ask(&["--max-loss", "0.05", "--judge-error", "0.03"]).stdout).contains("refused"));
    // A mix with more sums needs the large model more often.
    let share = |more: &[&str]| {
        let output = ask(&[&["--max-loss", "0.05", "--json"], more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["shares"][1].as_f64().unwrap()
    };
    let (own, mixed) = (share(&[]), share(&["--mix", "maths=0.9", "--mix", "chat=0.1"]));
    assert!(mixed > own, "{mixed} {own}");
    // Shares are those of the mix: the large model answers all sums.
    let sums = share(&["--mix", "maths=1"]);
    assert!(sums > 0.9, "{sums}");
    // Where the better model is the cheaper one, nothing else is worth it.
    assert_eq!(share(&["--cost", "small=9", "--cost", "large=1"]), 1.0);
    // What the router was trained on vouches for nothing, and neither does a coin.
    let said = refused(2, &[&certify[..], &["--max-loss", "0.05", "--split", "all"]].concat());
    assert!(said.contains("trained on queries"), "{said}");
    let said = refused(2, &[&certify[..], &["--max-loss", "0.05", "--confidence", "0.3"]].concat());
    assert!(said.contains("breaks"), "{said}");
    let said = refused(2, &[&certify[..], &["--floor", "-0.1"]].concat());
    assert!(said.contains("not between 0 and 1"), "{said}");
    // A refusal leaves no certificate behind.
    let none = folder.path("none.json");
    assert_eq!(ask(&["--floor", "0.99", "-o", &none]).status.code(), Some(1));
    assert!(!Path::new(&none).exists());
    // A certificate is of one router.
    let other = folder.path("other.json");
    let train = ["router", "train", &file, "--models", "small,large", "--seed", "1", "-o", &other];
    assert_eq!(boute(&train).status.code(), Some(0));
    let said = refused(2, &["router", "explain", &other, "x", "--certificate", &certificate]);
    assert!(said.contains("of another router"), "{said}");
    assert!(refused(2, &["router", "train", &file, "-o", &file]).contains("is the quality data"));
    let more = data() + r#"{"id":"half","prompt":"Compute 2 + 2.","scores":{"small":1}}"#;
    fs::write(&other, more).unwrap();
    let trained =
        boute(&["router", "train", &other, "--models", "small,large", "-o", &folder.path("half.json")]);
    assert!(text(&trained.stderr).contains("1 of 1201 queries lack a score"), "{}", text(&trained.stderr));
    assert!(refused(2, &["router", "train", &file, "--models", "small,small"]).contains("named twice"));

    let explain = |prompt: &str| {
        let output = boute(&["router", "explain", &router, prompt, "--certificate", &certificate, "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let sum = explain("Compute 70 + 13 and halve it.");
    assert_eq!(sum["model"], "large", "{sum}");
    let letter = explain("Write a friendly letter number 9 about the garden and its flowers.");
    assert_eq!(letter["model"], "small", "{letter}");
    assert!(letter["models"][0]["answer_tokens"][1].as_f64().unwrap() < 80.0, "{letter}");
    assert_eq!(explain("Quid agis, domine? Salve iterum.")["model"], "large", "novel queries are safe");

    let eval = ["router", "eval", &router, &file, "--cost", "small=1", "--cost", "large=9"];
    let output = boute(&[&eval[..], &["--report", &page, "--certificate", &certificate, "--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["pair"]["apgr"].as_f64().unwrap() > 0.7, "{report}");
    assert!(report["pool"]["saved_at_best"].as_f64().unwrap() > 0.2, "{report}");
    assert!(report.get("against").is_none());
    let beside = boute(&[&eval[..], &["--against", &router]].concat());
    assert!(text(&beside.stdout).contains("APGR: +0.0000 (+0.0000 to +0.0000)"), "{}", text(&beside.stdout));
    assert!(fs::read_to_string(&page).unwrap().contains("certified"));
}

#[test]
fn tables_of_others_are_read() {
    let folder = Folder::new("router-import");
    let [routellm, bench, out] = ["mmlu_law.csv", "bench.csv", "data.jsonl"].map(|name| folder.path(name));
    fs::write(&routellm, "prompt,weak,strong\n\"Is this, law?\",True,False\n").unwrap();
    fs::write(
        &bench,
        "sample_id,prompt,eval_name,m,m|model_response,m|total_cost,oracle_model_to_route_to\nx.1,\"two\nlines\",gsm8k,0.5,a long answer,0.001,m\n",
    )
    .unwrap();
    assert_eq!(boute(&["router", "import", &routellm, &bench, "-o", &out]).status.code(), Some(0));
    let lines: Vec<Value> =
        fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["scores"], serde_json::json!({ "weak": 1.0, "strong": 0.0 }));
    assert_eq!((lines[1]["task"].as_str(), lines[1]["prompt"].as_str()), (Some("gsm8k"), Some("two\nlines")));
    assert_eq!(lines[1]["scores"], serde_json::json!({ "m": 0.5 }));
    fs::write(&bench, "prompt,m\nx,seven\n").unwrap();
    assert!(refused(2, &["router", "import", &bench, "-o", &out]).contains("`seven`"));
    let missing = refused(2, &["router", "import", &routellm, "-o", &out, "--models", "weak,other"]);
    assert!(missing.contains("no column `other`"), "{missing}");
    // Rows that nobody has scored are no queries, and none are no data.
    fs::write(&bench, "prompt,m\nx,\n").unwrap();
    assert!(refused(2, &["router", "import", &bench, "-o", &out]).contains("no query has a score"));
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 2, "what was there stays");
}

/// A BERT of two layers with random weights.
fn tiny_bert() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../router/tests/oracle/bert")
}

#[test]
fn embeddings_are_asked_of_a_folder_that_has_them() {
    let folder = Folder::new("router-embeddings");
    let file = folder.file("data.jsonl", &data());
    let train = |model: &str| refused(2, &["router", "train", &file, "--embeddings", model]);
    assert!(train(&folder.path("none")).contains("config.json: cannot be read"));
    if !cfg!(feature = "embeddings") {
        let message = train(&tiny_bert().display().to_string());
        assert!(message.contains("built without sentence embeddings"), "{message}");
        assert!(message.contains("--features embeddings"), "{message}");
    }
}

#[cfg(feature = "embeddings")]
#[test]
fn ensembles_are_used_with_their_own_model_or_not_at_all() {
    let folder = Folder::new("router-ensemble");
    let file = folder.file("data.jsonl", &data());
    let [router, ensemble, other, cache] =
        ["router.json", "ensemble.json", "other", "cache"].map(|name| folder.path(name));
    let model = tiny_bert().display().to_string();
    let with = |model: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boute"));
        command.args(arguments).env("BOUTE_EMBEDDINGS", model).env("BOUTE_CACHE", &cache);
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let train = ["router", "train", &file, "--models", "small,large", "-o"];
    assert_eq!(boute(&[&train[..], &[&router]].concat()).status.code(), Some(0));
    let (code, said) = with(&model, &[&train[..], &[&ensemble, "--embeddings", &model]].concat());
    assert_eq!(code, Some(0), "{said}");
    let kept = fs::read_dir(folder.0.join("cache/embeddings")).unwrap().next().unwrap().unwrap();
    assert_eq!(kept.metadata().unwrap().len(), 600 * (64 + 4 * 32), "what it has read");

    let eval = ["router", "eval", &ensemble, &file, "--against", &router];
    let (code, said) = with(&model, &eval);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("more than the other router"), "{said}");
    assert_eq!(with(&model, &eval).1, said, "from the cache");
    assert_eq!(with(&model, &["router", "certify", &ensemble, &file, "--max-loss", "0.05"]).0, Some(0));
    let explain = ["router", "explain", &ensemble, "Compute 70 + 13 and halve it."];
    assert!(with(&model, &explain).1.contains("sentence embedding"));

    assert!(refused(2, &explain).contains("`BOUTE_EMBEDDINGS=FOLDER`"));
    fs::create_dir(&other).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(tiny_bert().join(name), Path::new(&other).join(name)).unwrap();
    }
    assert_eq!(with(&other, &explain).0, Some(0), "a copy is the same model");
    let config = fs::read_to_string(tiny_bert().join("config.json")).unwrap();
    fs::write(Path::new(&other).join("config.json"), config + "\n").unwrap();
    let (code, said) = with(&other, &explain);
    assert!(code == Some(2) && said.contains("and given is the model"), "{said}");
}

#[test]
fn routers_of_other_versions_are_refused_as_such() {
    let folder = Folder::new("router-version");
    let router = folder.path("router.json");
    fs::write(&router, r#"{"version": 1, "kind": "hashed words, logistic heads"}"#).unwrap();
    let message = refused(2, &["router", "explain", &router, "hello"]);
    assert!(message.contains("a router of version 1; this boute reads version 2"), "{message}");
    assert!(message.contains("boute router train"), "{message}");
}
