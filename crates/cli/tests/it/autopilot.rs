//! `boute replan` and `boute autopilot` on the example: answers, dry run, holds, and kill −9 at random points.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{Folder, boute, examples, refused, spec, text};

/// A plan of the example at 20 requests/s whose answers take no time to drain, so that a move need not wait.
fn planned(folder: &Folder) -> (String, f64) {
    let spec_file = folder.file("boute.yaml", &spec("rate: 20 req/s", "rate: 20 req/s"));
    let plan_file = folder.path("plan.json");
    let output = boute(&["plan", &spec_file, "-q", "--strategy", "exact", "-o", &plan_file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut plan: Value = serde_json::from_str(&fs::read_to_string(&plan_file).unwrap()).unwrap();
    for key in ["value_ms", "low_ms", "high_ms"] {
        plan["predicted"]["e2e"]["p99"][key] = 1.0.into();
    }
    fs::write(&plan_file, serde_json::to_string(&plan).unwrap()).unwrap();
    (plan_file, plan["predicted"]["cost_usd_per_hour"].as_f64().unwrap())
}

/// The log of a gateway that has had `rate` requests per second for the last two minutes.
fn decisions(folder: &Folder, rate: u64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let lines = (0..120 * rate).map(|number| {
        let at_ms = now_ms - 120_000 + number * 1000 / rate;
        format!(
            "{{\"timestamp\":{at_ms},\"input_length\":{},\"output_length\":{},\"decision\":{{\"model\":\"llama-3.1-70b\",\
             \"reason\":\"asked\"}}}}\n",
            400 + number * 37 % 1500,
            50 + number * 53 % 320
        )
    });
    folder.file("decisions.jsonl", &lines.collect::<String>())
}

fn journal(plan_file: &str) -> Vec<Value> {
    let text = fs::read_to_string(format!("{plan_file}.autopilot/journal.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn replanning_answers_stay_move_and_no() {
    let folder = Folder::new("replan");
    let (plan_file, cost) = planned(&folder);
    let trace = examples().join("data/azure2023_conv.csv.gz").display().to_string();
    let asked = |more: &[&str]| {
        let arguments = [&["replan", &plan_file, "--trace", &trace, "-q", "--json"], more].concat();
        let output = boute(&arguments);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), value, text(&output.stderr))
    };
    let (code, stay, said) = asked(&["--rate", "20 req/s"]);
    assert_eq!((code, &stay["answer"]), (Some(0), &"stay".into()), "{said} {stay}");

    let new_file = folder.path("new.json");
    let (code, less, said) = asked(&["--rate", "8 req/s", "-o", &new_file]);
    assert_eq!((code, &less["answer"]), (Some(0), &"move".into()), "{said} {less}");
    assert!(less["saving_usd_per_hour"].as_f64().unwrap() > 0.2 * cost);
    let steps: Vec<&str> = less["moving"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps.last(), Some(&"stop"));
    assert_eq!(boute(&["check", &new_file, "-q"]).status.code(), Some(0));

    // A plan in the place of the old only where that is all there is to do.
    let before = fs::read_to_string(&plan_file).unwrap();
    let roundabout =
        folder.path("../").clone() + folder.0.file_name().unwrap().to_str().unwrap() + "/plan.json";
    for place in [&["--apply"][..], &["-o", &plan_file], &["-o", &roundabout]] {
        let (code, ..) = asked(&[&["--rate", "8 req/s"], place].concat());
        assert_eq!((code, fs::read_to_string(&plan_file).unwrap()), (Some(0), before.clone()), "{place:?}");
    }

    let (code, no, _) = asked(&[
        "--rate",
        "20 req/s",
        "--lost",
        "L40S:32",
        "--lost",
        "A100-80GB:32",
        "--lost",
        "H100-SXM:15",
    ]);
    assert!(code == Some(1) && no["infeasible"].is_string(), "{code:?} {no}");
    let prices = folder.file("prices", "L40S $0.50/h # spot\nB200 $3/h\n");
    let said = refused(2, &["replan", &plan_file, "--trace", &trace, "--prices", &prices]);
    assert!(said.contains("prices:2:") && said.contains("not in the spec"), "{said}");
    assert!(refused(2, &["replan", &plan_file, "--trace", &trace, "--lost", "two"]).contains("H100-SXM:2"));
}

#[test]
fn a_dry_run_says_what_it_would_do_and_a_pin_silences_it() {
    let folder = Folder::new("autopilot-dry");
    let (plan_file, _) = planned(&folder);
    let log = decisions(&folder, 6);
    let before = fs::read_to_string(&plan_file).unwrap();
    let look = ["autopilot", &plan_file, "--decisions", &log, "--interval", "1min", "--once", "-q"];
    assert_eq!(boute(&["autopilot", "pin", &plan_file]).status.code(), Some(0));
    assert_eq!(boute(&look).status.code(), Some(0));
    assert!(journal(&plan_file).iter().all(|record| record["event"] != "dry_run"));
    assert_eq!(boute(&["autopilot", "release", &plan_file]).status.code(), Some(0));
    let output = boute(&look);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let records = journal(&plan_file);
    let decided = records.iter().find(|record| record["event"] == "dry_run").expect("a decision");
    assert_eq!((&decided["answer"], &decided["trigger"]), (&"move".into(), &"rate_down".into()), "{decided}");
    assert!(decided["inputs"]["recent"].is_string() && decided["why"][0].is_string());
    assert_eq!(fs::read_to_string(&plan_file).unwrap(), before);
    let status: Value =
        serde_json::from_slice(&boute(&["autopilot", "status", &plan_file, "--json"]).stdout).unwrap();
    assert_eq!((&status["hold"], &status["last"]["answer"]), (&"none".into(), &"move".into()));
    // A restart observes nothing twice.
    assert_eq!(boute(&look).status.code(), Some(0));
    let intervals: Vec<u64> =
        journal(&plan_file).iter().filter_map(|record| record["interval"].as_u64()).collect();
    assert_eq!(intervals.len(), intervals.iter().collect::<BTreeSet<_>>().len(), "{intervals:?}");

    // What a crash cut off is cut away; whatever else is no record is refused, and nothing is lost.
    let journal_file = format!("{plan_file}.autopilot/journal.jsonl");
    let whole = fs::read(&journal_file).unwrap();
    fs::write(&journal_file, [&whole[..], b"{\"at_s\": \xf0\x9f"].concat()).unwrap();
    assert_eq!(boute(&look).status.code(), Some(0));
    assert!(fs::read(&journal_file).unwrap().starts_with(&whole));
    let lines = text(&whole).lines().count();
    for (spoilt, line) in [([b"\xff", &whole[..]].concat(), 1), ([&whole[..], b"{}\n"].concat(), lines + 1)] {
        fs::write(&journal_file, &spoilt).unwrap();
        for command in [&look[..], &["autopilot", "status", &plan_file]] {
            assert!(refused(2, command).contains(&format!("journal.jsonl:{line}: no record")));
        }
        assert_eq!(fs::read(&journal_file).unwrap(), spoilt);
    }
}

/// The spec of [`planned`] with other quality data: a query less, so that another router is trained.
fn with_other_queries(folder: &Folder) -> String {
    let packed = fs::read(examples().join("data/mmlu_pro_llama.jsonl.gz")).unwrap();
    let mut queries = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut queries).unwrap();
    let fewer = folder.file("fewer.jsonl", queries.split_once('\n').unwrap().1);
    let spec = spec("rate: 20 req/s", "rate: 20 req/s");
    let from = spec.find("data: ").unwrap() + "data: ".len();
    let until = from + spec[from..].find('\n').unwrap();
    folder.file("other.yaml", &format!("{}{fewer}{}", &spec[..from], &spec[until..]))
}

fn serves(plan_file: &str) {
    let output = boute(&["export", "k8s", plan_file, "--check", "-q"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn another_router_replaces_none_that_a_plan_needs() {
    let folder = Folder::new("replan-router");
    let (plan_file, _) = planned(&folder);
    let (other, new_file) = (with_other_queries(&folder), folder.path("new.json"));
    let trace = examples().join("data/azure2023_conv.csv.gz").display().to_string();
    for rate in ["8 req/s", "7 req/s"] {
        let replan = ["replan", &plan_file, "--trace", &trace, "--spec", &other, "--rate", rate, "-q"];
        let output = boute(&[&replan[..], &["-o", &new_file]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serves(&plan_file);
        serves(&new_file);
    }
    // A plan in the place of another takes its router's place too; what else has that name is left.
    let named = |plan_file: &str| -> String {
        let plan: Value = serde_json::from_str(&fs::read_to_string(plan_file).unwrap()).unwrap();
        plan["routing"]["router"].as_str().unwrap().to_owned()
    };
    assert_eq!((named(&plan_file), named(&new_file)), ("plan.router.json".into(), "new.router.json".into()));
    let plan = |output: &str| boute(&["plan", &other, "-q", "--strategy", "exact", "-o", output]);
    assert_eq!(plan(&plan_file).status.code(), Some(0));
    assert_eq!(named(&plan_file), "plan.router.json");
    let (third, router) = (folder.path("third.json"), folder.file("third.router.json", "{}"));
    assert_eq!(plan(&third).status.code(), Some(0));
    assert_ne!(named(&third), "third.router.json");
    assert_eq!(fs::read_to_string(router).unwrap(), "{}");
    serves(&plan_file);
    serves(&third);
}

#[test]
fn every_plan_of_a_move_has_its_own_router() {
    let folder = Folder::new("autopilot-router");
    let (plan_file, _) = planned(&folder);
    let (log, other) = (decisions(&folder, 6), with_other_queries(&folder));
    let old = folder.path("old.json");
    fs::copy(&plan_file, &old).unwrap();
    let (bin, run) = (env!("CARGO_BIN_EXE_boute"), folder.path("run"));
    let apply = format!("'{bin}' export k8s \"$BOUTE_PLAN\" -o '{run}'");
    let look = |apply: &str| {
        let look =
            ["autopilot", &plan_file, "--decisions", &log, "--spec", &other, "--interval", "1min", "--once"];
        let live = ["--live", "--apply", apply, "--machine", "0s", "--warm-up", "0s", "--load", "1000TB/s"];
        let output = boute(&[&look[..], &live].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let records = journal(&plan_file);
        assert!(records.iter().all(|record| record["event"] != "failed"), "{}", text(&output.stderr));
        records
    };
    // Pinned in the middle of it, it pauses, and goes on when released.
    let records = look(&format!("{apply} && '{bin}' autopilot pin '{plan_file}'"));
    let decision = records.iter().find(|record| record["event"] == "decided").expect("a decision");
    let acts = decision["acts"].as_array().unwrap();
    let first = acts.iter().position(|act| act["act"] == "fleet").expect("another fleet");
    let done = |records: &[Value]| records.iter().filter(|record| record["event"] == "done").count();
    assert_eq!((done(&records), done(&look(&apply))), (first + 1, first + 1), "{decision}");
    assert_eq!(boute(&["autopilot", "release", &plan_file]).status.code(), Some(0));
    let end = SystemTime::now() + Duration::from_mins(1);
    while done(&look(&apply)) < acts.len() {
        assert!(SystemTime::now() < end, "{decision}");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_ne!(fs::read(&plan_file).unwrap(), fs::read(&old).unwrap());
    serves(&plan_file);
    serves(&old);
}

#[test]
fn what_cannot_be_read_for_a_moment_is_told_once_and_read_later() {
    let folder = Folder::new("autopilot-inputs");
    let (plan_file, _) = planned(&folder);
    let (log, prices) = (decisions(&folder, 6), folder.file("prices", "L40S $0.50/h\n"));
    let plan = fs::read_to_string(&plan_file).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_boute"))
        .args(["autopilot", &plan_file, "--decisions", &log, "--prices", &prices, "--interval", "1min"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let decisions = || {
        let text = fs::read_to_string(format!("{plan_file}.autopilot/journal.jsonl")).unwrap_or_default();
        text.matches("\"event\":\"dry_run\"").count()
    };
    let mut decided = |count: usize| {
        let end = SystemTime::now() + Duration::from_mins(1);
        while decisions() < count {
            assert!(child.try_wait().unwrap().is_none() && SystemTime::now() < end, "{count} decisions");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    decided(1);
    // Longer than two looks each; then other prices, which are a reason to ask.
    fs::write(&prices, "L40S $").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    fs::write(&plan_file, &plan[..plan.len() / 2]).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    fs::write(&prices, "L40S $0.60/h\n").unwrap();
    fs::write(&plan_file, &plan).unwrap();
    decided(decisions() + 1);
    child.kill().unwrap();
    let said = text(&child.wait_with_output().unwrap().stderr);
    assert!(said.contains("prices:1:"), "{said}");
    assert_eq!(said.matches("until this can be read").count(), 2, "{said}");
}

#[test]
fn what_cannot_be_meant_is_refused_and_what_is_not_there_is_told() {
    let folder = Folder::new("autopilot-told");
    let (plan_file, _) = planned(&folder);
    let nowhere = folder.path("nowhere");
    let look = ["autopilot", &plan_file, "--once", "--decisions", &nowhere, "--admin", "127.0.0.1:1"];
    let output = boute(&look);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("nowhere` is not there yet") && said.contains("alarms are missed"), "{said}");
    folder.file("nowhere", "no log\nat all\n");
    assert!(refused(2, &look).contains("no line of"));
    for (more, said) in [
        (&["--least-gain", "nan"][..], "from 0 on"),
        (&["--least-gain=-50"], "from 0 on"),
        (&["--moves-per-day", "0"], "zero"),
    ] {
        assert!(refused(2, &[&look[..], more].concat()).contains(said), "{more:?}");
    }
    // A log that the gateway is writing: its last line is not whole.
    let log = decisions(&folder, 6);
    let replan = ["replan", &plan_file, "-q", "--trace", &log];
    assert!(refused(2, &[&replan[..], &["--rate", "0 req/s"]].concat()).contains("above 0"));
    let lines = fs::read_to_string(&log).unwrap();
    fs::write(&log, &lines[..lines.len() - 20]).unwrap();
    let output = boute(&replan);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

/// An autopilot whose command notes when it begins and ends, and takes a while.
fn live(plan_file: &str, log: &str, applied: &Path) -> Child {
    let command = format!(
        "echo begin $(basename $BOUTE_PLAN) >> {0}; sleep 0.1; echo end $(basename $BOUTE_PLAN) >> {0}",
        applied.display()
    );
    Command::new(env!("CARGO_BIN_EXE_boute"))
        .args([
            "autopilot",
            plan_file,
            "--decisions",
            log,
            "--interval",
            "1min",
            "-q",
            "--live",
            "--apply",
            &command,
        ])
        .args(["--machine", "0s", "--warm-up", "0s", "--load", "1000TB/s"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Kills the autopilot at random points of carrying out a move.
#[test]
fn killed_at_200_random_points_it_ends_where_it_would_have() {
    let folder = Folder::new("autopilot-killed");
    let (plan_file, _) = planned(&folder);
    let log = decisions(&folder, 6);
    let (applied, state) = (folder.0.join("applied"), format!("{plan_file}.autopilot"));
    let first = fs::read_to_string(&plan_file).unwrap();
    // It decides, and is killed as soon as it has.
    let mut child = live(&plan_file, &log, &applied);
    let decided = || {
        let text = fs::read_to_string(format!("{state}/journal.jsonl")).unwrap_or_default();
        text.contains("\"event\":\"decided\"")
    };
    while !decided() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let records = journal(&plan_file);
    let decision = records.iter().find(|record| record["event"] == "decided").unwrap().clone();
    assert_eq!(decision["answer"], "move");
    let last = decision["to"].as_str().unwrap().to_owned();
    let fleets: Vec<String> = decision["acts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|act| act["act"] == "fleet")
        .map(|act| format!("{}.json", act["plan"].as_str().unwrap()))
        .collect();
    // The moment after the decision, to begin from again.
    let snapshot = folder.0.join("snapshot");
    copy(Path::new(&state), &snapshot);
    let lines = fs::read_to_string(snapshot.join("journal.jsonl")).unwrap();
    let until = lines.find("\"event\":\"decided\"").unwrap();
    let whole = until + lines[until..].find('\n').unwrap() + 1;
    fs::write(snapshot.join("journal.jsonl"), &lines[..whole]).unwrap();
    let (mut left, mut random) = (200, 12345_u64);
    while left > 0 {
        let _ = fs::remove_dir_all(&state);
        let _ = fs::remove_file(&applied);
        copy(&snapshot, Path::new(&state));
        fs::write(&plan_file, &first).unwrap();
        loop {
            let mut child = live(&plan_file, &log, &applied);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if left > 0 {
                std::thread::sleep(Duration::from_millis((random >> 33) % 200));
                // One that was refused, because a command of the one before still runs, was not killed.
                left -= u64::from(child.try_wait().unwrap().is_none());
            } else {
                let end = SystemTime::now() + Duration::from_secs(20);
                while SystemTime::now() < end && !done(&plan_file, decision["acts"].as_array().unwrap().len())
                {
                    std::thread::sleep(Duration::from_millis(20));
                    if child.try_wait().unwrap().is_some() {
                        child = live(&plan_file, &log, &applied);
                    }
                }
            }
            let _ = child.kill();
            child.wait().unwrap();
            // Whenever it is killed, a whole plan is in place: the old or the new.
            let text = fs::read_to_string(&plan_file).unwrap();
            assert!(text == first || boute_digest(&text) == last, "half a plan");
            if done(&plan_file, decision["acts"].as_array().unwrap().len()) {
                break;
            }
        }
        assert_eq!(boute_digest(&fs::read_to_string(&plan_file).unwrap()), last);
        let said = fs::read_to_string(&applied).unwrap();
        let mut order: Vec<&str> = Vec::new();
        for pair in said.lines().collect::<Vec<_>>().chunks(2) {
            let [begin, end] = pair else { panic!("{said}") };
            let name = begin.strip_prefix("begin ").unwrap();
            assert_eq!(end.strip_prefix("end "), Some(name), "two at once: {said}");
            order.push(name);
        }
        order.dedup();
        assert_eq!(order, fleets, "the same fleets in the same order");
    }
}

fn done(plan_file: &str, acts: usize) -> bool {
    let text = fs::read_to_string(format!("{plan_file}.autopilot/journal.jsonl")).unwrap_or_default();
    text.contains(&format!("\"event\":\"done\",\"number\":{}}}", acts - 1))
}

fn boute_digest(plan: &str) -> String {
    boute_spec::digest::sha256_hex(plan.as_bytes())
}
