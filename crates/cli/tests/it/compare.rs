//! `boute compare`: a tiny grid end to end, stopped and gone on, and what it refuses to mix.

use std::fmt::Write;
use std::fs;

use serde_json::Value;

use crate::{Folder, boute, examples, refused, text};

/// Three hundred requests in waves, and four cells over them.
fn tiny(folder: &Folder) -> String {
    let mut trace = "arrival_time_s,input_tokens,output_tokens\n".to_owned();
    for index in 0..300 {
        let at = f64::from(index) * 0.2 + f64::from(index % 7) * 0.02;
        let _ = writeln!(trace, "{at:.2},{},{}", 200 + index % 5 * 150, 20 + index % 11 * 15);
    }
    folder.file("trace.csv", &trace);
    let quality = examples().join("data/mmlu_pro_llama.jsonl.gz").canonicalize().unwrap();
    folder.file(
        "grid.yaml",
        &format!(
            "apiVersion: boute/v1
traces: [{{id: waves, trace: trace.csv, lengths: trace}}]
models: [{{id: two, models: [{{id: llama-3.1-8b}}, {{id: llama-3.1-70b}}], quality: {}}}]
gpus: [{{id: two-types, gpus: [{{type: L40S}}, {{type: H100-SXM}}]}}, {{id: none-fit, gpus: [{{type: T4, stock: 0}}]}}]
goals: [{{min_cost: 5 req/s}}, {{max_rate: $40/h}}]
floors: [0.4]
slo: [4]
",
            quality.display()
        ),
    )
}

const STRATEGIES: &str = "default,homogeneous,routing-proportional";

fn compare(grid: &str, output: &str) -> String {
    let run = boute(&["compare", "--grid", grid, "--strategies", STRATEGIES, "-o", output, "-q"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    text(&run.stdout)
}

/// The lines of results without what differs from run to run.
fn results(folder: &str) -> Vec<String> {
    let file = fs::read_to_string(format!("{folder}/results.jsonl")).unwrap();
    assert!(file.ends_with('\n'));
    let mut lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("seconds");
    }
    lines.iter().map(ToString::to_string).collect()
}

#[test]
fn a_grid_is_compared_and_goes_on_where_it_was_stopped() {
    let folder = Folder::new("compare");
    let (grid, whole, parts) = (tiny(&folder), folder.path("whole"), folder.path("parts"));
    let said = compare(&grid, &whole);
    assert!(said.contains("Gains of `default`") && said.contains("infeasible"), "{said}");
    let lines = results(&whole);
    assert_eq!(lines.len(), 1 + 4 * 3);
    for file in ["summary.md", "summary.html", "gains-by-baseline.svg", "gains-by-level.svg"] {
        assert!(fs::metadata(format!("{whole}/{file}")).unwrap().len() > 200, "{file}");
    }

    // Stopped in the middle of the third result.
    let bytes = fs::read(format!("{whole}/results.jsonl")).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    fs::create_dir_all(&parts).unwrap();
    fs::write(format!("{parts}/results.jsonl"), &bytes[..ends[2] + 40]).unwrap();
    compare(&grid, &parts);
    assert_eq!(results(&parts), lines);
    let mtime = |folder: &str| fs::metadata(format!("{folder}/results.jsonl")).unwrap().modified().unwrap();
    let before = mtime(&parts);
    let again =
        boute(&["compare", "--grid", &grid, "--strategies", STRATEGIES, "-o", &parts, "-q", "--json"]);
    assert_eq!(mtime(&parts), before, "nothing was left to do");
    let data: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(data["results"].as_array().unwrap().len(), 12);
    let strict = &data["summaries"][0];
    assert_eq!((&strict["reading"], &strict["cells"]), (&"strict".into(), &4.into()));
    for row in strict["strategies"].as_array().unwrap() {
        let of = |key: &str| row[key].as_u64().unwrap();
        assert_eq!(of("met") + of("not_met") + of("infeasible"), 4, "{row}");
        assert_eq!(of("infeasible"), 2, "two cells offer no GPU: {row}");
    }
    for result in data["results"].as_array().unwrap().iter().filter(|result| !result["score"].is_null()) {
        let score = &result["score"];
        let (rate, max_rate) = (score["rate"].as_f64().unwrap(), score["max_rate"].as_f64().unwrap());
        // Not the other way round: a second of traffic keeps every promise while the backlog grows.
        assert!(score["rate_met"] == true || max_rate < rate, "{score}");
        assert!(max_rate > 0.0 && score["quality_low"].as_f64() < score["quality"].as_f64(), "{score}");
    }

    // Another grid, or a line that is none.
    let changed = folder.file("changed.yaml", &(fs::read_to_string(&grid).unwrap() + "seeds: [1]\n"));
    let said = refused(2, &["compare", "--grid", &changed, "-o", &parts]);
    assert!(said.contains("another grid") && said.contains("give another folder"), "{said}");
    fs::write(format!("{parts}/results.jsonl"), [&bytes[..=ends[1]], b"{}\n"].concat()).unwrap();
    let said = refused(2, &["compare", "--grid", &grid, "-o", &parts]);
    assert!(said.contains("results.jsonl:3:"), "{said}");
}

#[test]
fn a_comparison_needs_a_spec_or_a_grid_with_a_folder() {
    assert!(refused(2, &["compare"]).contains("SPEC"));
    assert!(refused(2, &["compare", "--grid", "grid.yaml"]).contains("--output"));
    let spec = examples().join("llama-8b-70b.yaml").display().to_string();
    let said = refused(2, &["compare", &spec, "--strategies", "best"]);
    assert!(said.contains("strategies are default, exact"), "{said}");
    let said = refused(2, &["compare", "--grid", &spec, "-o", "/tmp/nowhere"]);
    assert!(said.contains("in the grid") && said.contains('^'), "{said}");
}

#[test]
fn the_grids_of_the_repository_are_good_and_name_files_that_are_there() {
    for (name, cells) in [("ci", 24), ("full", 240)] {
        let path = examples().join(format!("../grids/{name}.yaml"));
        let input = fs::read_to_string(&path).unwrap();
        let grid = boute_spec::parse::parse_grid(name, &input).unwrap();
        assert_eq!(grid.cells().len(), cells);
        for file in grid.traces.iter().map(|at| &at.trace).chain(grid.models.iter().map(|at| &at.quality)) {
            assert!(path.with_file_name(file).exists(), "{file}");
        }
    }
}
