//! A Grafana dashboard of the gateway's metrics beside the engines' own, and Prometheus alerts on what the plan promises.

use boute_spec::plan::Plan;
use boute_spec::slo::{Metric, SloTarget};
use serde_json::{Value, json};

use super::{ExportFile, header, origin, plan_id, promise, yaml};

/// Bucket edges of the gateway's histograms in seconds; a promise is watched at the first edge that is not below it.
const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TPOT_S: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Width of the dashboard, and of a panel, in Grafana's grid.
const GRID: u64 = 24;
const PANEL: [u64; 2] = [8, 7];

pub(super) fn files(plan: &Plan) -> Vec<ExportFile> {
    let dashboard = serde_json::to_string_pretty(&dashboard(plan)).unwrap_or_default() + "\n";
    let alerts =
        yaml::documents(&header(plan), &[json!({"groups": [{"name": "boute", "rules": alerts(plan)}]})]);
    let readme = format!(
        "# Watching this plan\n\nPlan {}; predicted: {}.\n\nImport `dashboard.json` into Grafana; load `alerts.yaml` into Prometheus:\n\n    rule_files: [alerts.yaml]\n    scrape_configs:\n    - job_name: boute\n      static_configs: [{{targets: [GATEWAY:8081]}}]\n    - job_name: engines\n      static_configs: [{{targets: [ENGINE:8000]}}]\n\n    promtool check rules alerts.yaml\n\nIn Kubernetes, scrape the pods labelled `app.kubernetes.io/name=boute-gateway` (port 8081) and\n`app.kubernetes.io/component=engine` (port 8000) from the namespace `monitoring`.\n",
        plan_id(plan),
        promise(plan)
    );
    vec![
        ExportFile::new("dashboard.json", dashboard),
        ExportFile::new("alerts.yaml", alerts),
        ExportFile::new("README.md", readme),
    ]
}

/// Title, unit and queries (expression, legend) of a panel.
type Panel = (&'static str, &'static str, Vec<(String, &'static str)>);

fn dashboard(plan: &Plan) -> Value {
    let rows = [("Promises", promises(plan)), ("Gateway", gateway()), ("Engines", engines())];
    let mut panels = Vec::new();
    let mut top = 0;
    for (row, contents) in rows {
        panels.push(
            json!({"type": "row", "title": row, "collapsed": false, "panels": [], "id": panels.len() + 1,
            "gridPos": {"x": 0, "y": top, "w": GRID, "h": 1}}),
        );
        top += 1;
        let [width, height] = PANEL;
        let across = GRID / width;
        let count = contents.len() as u64;
        for (index, (title, unit, queries)) in (0..).zip(contents) {
            let place = json!({"x": index % across * width, "y": top + index / across * height, "w": width, "h": height});
            panels.push(panel(panels.len() + 1, title, unit, &queries, &place));
        }
        top += count.div_ceil(across) * height;
    }
    json!({
        "title": format!("boute: plan {}", plan_id(plan)),
        "description": format!("{} Predicted: {}.", origin(plan), promise(plan)),
        "uid": format!("boute-{}", plan_id(plan)),
        "tags": ["boute", "llm"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{
            "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus",
        }]},
        "panels": panels,
    })
}

fn panel(id: usize, title: &str, unit: &str, queries: &[(String, &str)], place: &Value) -> Value {
    let targets: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(index, (expression, legend))| {
            json!({"refId": format!("Q{index}"), "expr": expression, "legendFormat": legend, "range": true})
        })
        .collect();
    json!({
        "id": id, "type": "timeseries", "title": title, "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    })
}

/// A percentile of one of the gateway's histograms, by model.
fn quantile(share: f64, metric: &str, by: &str) -> String {
    format!("histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket[5m])))")
}

/// What was promised, as it is; the promise itself is the second line.
fn promises(plan: &Plan) -> Vec<Panel> {
    let titled = |metric| match metric {
        Metric::Ttft => "Time to the first token",
        Metric::Tpot => "Time per further token",
        Metric::E2e => "Time to the last token",
    };
    let panel = |slo: &SloTarget| {
        let (metric, _) = histogram(slo.metric);
        let share = slo.percentile.share();
        let selected = of_model(slo);
        let measured =
            format!("histogram_quantile({share}, sum by (le) (rate({metric}_bucket{selected}[5m])))");
        (
            titled(slo.metric),
            "s",
            vec![(measured, slo.percentile.name()), (limit_s(slo).to_string(), "promised")],
        )
    };
    let mut panels: Vec<Panel> = plan.targets.slo.iter().map(panel).collect();
    panels.push((
        "Score the router expects",
        "none",
        vec![
            (mean("boute_router_score", "model"), "{{model}}"),
            (mean("boute_feedback_score", "model"), "{{model}}, by clients"),
        ],
    ));
    panels.push(("Certificate void", "none", vec![("max(boute_certificate_void)".into(), "void")]));
    panels
}

fn mean(metric: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({metric}_sum[5m])) / sum by ({by}) (rate({metric}_count[5m]))")
}

fn gateway() -> Vec<Panel> {
    let model = "gen_ai_response_model";
    let by_model = "{{gen_ai_response_model}}";
    let rate = |metric: &str, by: &str| format!("sum by ({by}) (rate({metric}[5m]))");
    vec![
        ("Requests by model", "reqps", vec![(rate("boute_decisions_total", "model"), "{{model}}")]),
        ("Answers by ending", "reqps", vec![(rate("boute_answers_total", "ending"), "{{ending}}")]),
        (
            "Tokens",
            "short",
            vec![(rate("gen_ai_client_token_usage_sum", "gen_ai_token_type"), "{{gen_ai_token_type}}/s")],
        ),
        (
            "Time to the first token, p95",
            "s",
            vec![(quantile(0.95, "gen_ai_server_time_to_first_token_seconds", model), by_model)],
        ),
        (
            "Time per further token, p95",
            "s",
            vec![(quantile(0.95, "gen_ai_server_time_per_output_token_seconds", model), by_model)],
        ),
        (
            "Time to the last token, p95",
            "s",
            vec![(quantile(0.95, "gen_ai_server_request_duration_seconds", model), by_model)],
        ),
        (
            "In flight and in the queue",
            "short",
            vec![
                ("sum(boute_requests_in_flight)".into(), "in flight"),
                ("sum(boute_requests_waiting)".into(), "waiting"),
            ],
        ),
        (
            "In flight by replica",
            "short",
            vec![("sum by (replica) (boute_replica_in_flight)".into(), "{{replica}}")],
        ),
        (
            "Replicas that are well",
            "short",
            vec![("sum by (model) (min by (model, url) (boute_replica_well))".into(), "{{model}}")],
        ),
        (
            "Failures, backpressure, retries",
            "reqps",
            vec![
                (rate("boute_replica_failures_total", "replica"), "failures of {{replica}}"),
                (rate("boute_replica_backpressure_total", "replica"), "backpressure of {{replica}}"),
                (rate("boute_retries_total", "reason"), "retries: {{reason}}"),
            ],
        ),
        ("Errors by code", "reqps", vec![(rate("boute_errors_total", "error_type"), "{{error_type}}")]),
        (
            "What the gateway adds",
            "s",
            vec![
                (
                    "histogram_quantile(0.5, sum by (le) (rate(boute_gateway_overhead_seconds_bucket[5m])))"
                        .into(),
                    "p50",
                ),
                (
                    "histogram_quantile(0.99, sum by (le) (rate(boute_gateway_overhead_seconds_bucket[5m])))"
                        .into(),
                    "p99",
                ),
            ],
        ),
    ]
}

/// vLLM's metrics under their names of 0.33, or else those that older releases have.
fn engines() -> Vec<Panel> {
    let by = "{{instance}}";
    let or = |new: String, old: String| format!("({new}) or ({old})");
    let p95 = |metric: &str| quantile(0.95, metric, "instance");
    let ratio = |hits: &str, queries: &str| {
        format!("sum by (instance) (rate({hits}[5m])) / sum by (instance) (rate({queries}[5m]))")
    };
    vec![
        (
            "vLLM: running and waiting",
            "short",
            vec![
                ("vllm:num_requests_running".into(), "{{instance}} running"),
                ("vllm:num_requests_waiting".into(), "{{instance}} waiting"),
            ],
        ),
        (
            "vLLM: KV cache in use",
            "percentunit",
            vec![(or("vllm:kv_cache_usage_perc".into(), "vllm:gpu_cache_usage_perc".into()), by)],
        ),
        (
            "vLLM: prefix cache hits",
            "percentunit",
            vec![(
                or(
                    ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
                    ratio("vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_queries_total"),
                ),
                by,
            )],
        ),
        ("vLLM: time to the first token, p95", "s", vec![(p95("vllm:time_to_first_token_seconds"), by)]),
        (
            "vLLM: time between tokens, p95",
            "s",
            vec![(
                or(p95("vllm:inter_token_latency_seconds"), p95("vllm:time_per_output_token_seconds")),
                by,
            )],
        ),
        ("vLLM: time in its queue, p95", "s", vec![(p95("vllm:request_queue_time_seconds"), by)]),
        (
            "vLLM: tokens",
            "short",
            vec![
                ("sum by (instance) (rate(vllm:prompt_tokens_total[5m]))".into(), "{{instance}} prompts/s"),
                (
                    "sum by (instance) (rate(vllm:generation_tokens_total[5m]))".into(),
                    "{{instance}} answers/s",
                ),
            ],
        ),
        (
            "vLLM: preemptions",
            "short",
            vec![("sum by (instance) (rate(vllm:num_preemptions_total[5m]))".into(), by)],
        ),
    ]
}

/// The histogram behind a metric, and its bucket edges.
const fn histogram(metric: Metric) -> (&'static str, &'static [f64]) {
    match metric {
        Metric::Ttft => ("gen_ai_server_time_to_first_token_seconds", &TTFT_S),
        Metric::Tpot => ("gen_ai_server_time_per_output_token_seconds", &TPOT_S),
        Metric::E2e => ("gen_ai_server_request_duration_seconds", &E2E_S),
    }
}

fn limit_s(slo: &SloTarget) -> f64 {
    slo.limit_s.get()
}

/// The label that selects a promise's model.
fn of_model(slo: &SloTarget) -> String {
    match &slo.model {
        Some(model) => format!("{{gen_ai_response_model={}}}", Value::from(model.as_str())),
        None => String::new(),
    }
}

fn alerts(plan: &Plan) -> Vec<Value> {
    let mut rules: Vec<Value> = plan.targets.slo.iter().flat_map(burn).collect();
    rules.push(rule(
        "BouteReplicaDown",
        "min by (model, url) (boute_replica_well) == 0",
        "2m",
        "warning",
        "A replica of {{ $labels.model }} at {{ $labels.url }} is left out.",
    ));
    rules.push(rule(
        "BouteModelDown",
        "max by (model) (boute_replica_well) == 0",
        "30s",
        "critical",
        "No replica of {{ $labels.model }} is well.",
    ));
    rules.push(rule(
        "BouteQueue",
        "sum(boute_requests_waiting) > 0",
        "5m",
        "warning",
        "Requests have waited at the gateway for five minutes: the traffic is above what the fleet was planned for.",
    ));
    rules.push(rule(
        "BouteRefusals",
        "sum(rate(boute_errors_total[5m])) > 0.01 * sum(rate(boute_decisions_total[5m]))",
        "5m",
        "warning",
        "More than one request in a hundred gets an error from the gateway.",
    ));
    rules.push(rule(
        "BouteCertificateVoid",
        "max(boute_certificate_void) == 1",
        "0s",
        "warning",
        "The plan's promise of quality no longer holds for these queries: plan again.",
    ));
    rules.push(rule(
        "BouteOverPlannedRate",
        &format!("sum(rate(boute_decisions_total[15m])) > {}", plan.predicted.max_rate.get()),
        "15m",
        "warning",
        "The traffic is above the highest rate at which the plan keeps its promises: plan again.",
    ));
    rules
}

/// Alerts on how fast a promise's budget of slow requests is used up: over an hour and the last five minutes when it is
/// six times too fast, over six hours and the last half hour when it is too fast at all (multi-window burn rates as in
/// Google's SRE workbook, chapter 5).
fn burn(slo: &SloTarget) -> [Value; 2] {
    let (metric, edges) = histogram(slo.metric);
    let limit = limit_s(slo);
    let edge = edges.iter().find(|edge| **edge >= limit).or(edges.last()).copied().unwrap_or(limit);
    let of = of_model(slo);
    let comma = if of.is_empty() { "{" } else { "," };
    // Prometheus 3 stores whole edges as `20.0`, Prometheus 2 as they are written.
    let le = if edge.fract() == 0.0 { format!("{edge}|{edge}.0") } else { edge.to_string() };
    let within = format!("{}{comma}le=~\"{le}\"}}", of.trim_end_matches('}'));
    let budget = 1.0 - slo.percentile.share();
    let slow = |window: &str| {
        format!("1 - sum(rate({metric}_bucket{within}[{window}])) / sum(rate({metric}_count{of}[{window}]))")
    };
    let words = slo.to_string();
    // A budget of half the requests cannot be used up six times as fast.
    [
        ("Fast", 6.0_f64.min(0.5 / budget + 0.5), ["1h", "5m"], "critical"),
        ("Slow", 1.0, ["6h", "30m"], "warning"),
    ]
    .map(|(name, factor, windows, severity)| {
        let threshold = (factor * budget * 1e4).round() / 1e4;
        let [long, short] = windows.map(|window| format!("({}) > {threshold}", slow(window)));
        rule(
            &format!("BouteSlo{name}"),
            &format!("{long} and {short}"),
            "0s",
            severity,
            &format!(
                "Promised: {words}. More than {:.1} % of the requests are slower than {edge} s.",
                threshold * 100.0
            ),
        )
    })
}

fn rule(name: &str, expression: &str, hold: &str, severity: &str, summary: &str) -> Value {
    json!({
        "alert": name, "expr": expression, "for": hold, "labels": {"severity": severity},
        "annotations": {"summary": summary},
    })
}
