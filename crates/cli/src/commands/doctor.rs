//! `boute doctor`.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boute_gateway::engine_metrics::{EngineLoad, EngineMetrics};
use boute_gateway::{AUTO, HttpClient};
use boute_spec::catalog::Catalog;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Ending, Failure};
use crate::printer::Printer;

/// Prices older than this are likely to have changed.
const PRICES_AGE_DAYS: i64 = 90;
/// Clocks that differ by more make logs and traces of several machines disagree.
const SKEW_S: i64 = 5;
/// A streamed request takes two sockets of the gateway.
const OPEN_FILES: u64 = 4096;
const DAY_S: i64 = 86_400;

/// Looks at what can go wrong before it does: the clock, the age of the catalogue's prices, limits of this machine, GPU labels
/// of the Kubernetes cluster if `kubectl` is here, and the engines and gateways at the given URLs. Nothing else is asked.
///
/// Exit status 1 if a check failed; a warning is no failure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Engines and gateways, such as `http://10.0.0.5:8000`.
    urls: Vec<String>,
    /// Seconds to wait for each answer.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    patience: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=3600.0).contains(seconds))
        .ok_or_else(|| format!("`{text}` is no number of seconds between 0.001 and 3600"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Check {
    level: Level,
    /// Of what.
    name: String,
    found: String,
    /// What to do about it; empty if nothing.
    help: String,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, name: name.into(), found: found.into(), help: String::new() }
    }

    fn warn(name: &str, found: impl Into<String>, help: &str) -> Self {
        Self { level: Level::Warn, name: name.into(), found: found.into(), help: help.into() }
    }

    fn fail(name: &str, found: impl Into<String>, help: &str) -> Self {
        Self { level: Level::Fail, name: name.into(), found: found.into(), help: help.into() }
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let mut checks = vec![prices(now_s), open_files()];
    checks.extend(kubernetes());
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    let client = HttpClient::new(Duration::from_secs_f64(args.patience));
    for url in &args.urls {
        checks.extend(runtime.block_on(server(&client, url, now_s)));
    }
    for check in &checks {
        printer.text(line(check));
    }
    if args.urls.is_empty() {
        printer.say("no server was asked: `boute doctor http://HOST:PORT …` looks at engines and gateways");
    }
    printer.data(&serde_json::json!({ "checks": checks }))?;
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { Ending::Unmet } else { Ending::Done })
}

fn line(check: &Check) -> String {
    let (word, colour) = match check.level {
        Level::Ok => ("ok  ", "32"),
        Level::Warn => ("warn", "33"),
        Level::Fail => ("fail", "31"),
    };
    let help = if check.help.is_empty() { String::new() } else { format!("\n      help: {}", check.help) };
    format!("\x1b[{colour}m{word}\x1b[0m  {}: {}{help}\n", check.name, check.found)
}

/// The clock is judged by the prices too: it cannot be earlier than they are.
fn prices(now_s: i64) -> Check {
    let dates = Catalog::builtin().prices().iter().map(|price| price.date.as_str());
    let days: Vec<i64> = dates.filter_map(days_of).collect();
    let (Some(oldest), Some(newest)) = (days.iter().min(), days.iter().max()) else {
        return Check::warn("prices", "the catalogue's have no date", "give `price` in the spec");
    };
    let today = now_s.div_euclid(DAY_S);
    if today < *newest {
        return Check::fail(
            "clock",
            format!("it says {}, before the newest price was seen", date_of(today)),
            "set the clock of this machine (NTP)",
        );
    }
    let found =
        format!("list prices of {} to {}; today is {}", date_of(*oldest), date_of(*newest), date_of(today));
    if today - oldest > PRICES_AGE_DAYS {
        let help = "prices of rented GPUs move: give those you pay as `price: $2.50/h` in the spec";
        return Check::warn("prices", format!("{found}: older than {PRICES_AGE_DAYS} days"), help);
    }
    Check::ok("prices", found)
}

/// Soft limit of open files, where the system tells (Linux).
fn open_files() -> Check {
    let name = "open files";
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    match soft.map(str::parse::<u64>) {
        None => Check::ok(name, "this system does not tell its limit: `ulimit -n` does"),
        Some(Ok(limit)) if limit < OPEN_FILES => Check::warn(
            name,
            format!("at most {limit}; a gateway needs two per request in flight"),
            "`ulimit -n 65536` in the shell that starts it, or LimitNOFILE= in its unit",
        ),
        Some(limit) => {
            Check::ok(name, limit.map_or_else(|_| "no limit".into(), |limit| format!("at most {limit}")))
        }
    }
}

/// GPU nodes and their labels, as the cluster that `kubectl` talks to has them; nothing without `kubectl`.
fn kubernetes() -> Option<Check> {
    let name = "kubernetes";
    let output =
        Command::new("kubectl").args(["get", "nodes", "-o", "json", "--request-timeout=5s"]).output().ok()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it failed without a word").to_owned();
        return Some(Check::warn(
            name,
            format!("kubectl: {said}"),
            "only needed to run plans on Kubernetes; check your kubeconfig",
        ));
    }
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Some(gpu_nodes(&list))
}

/// Labels by which nodes tell their GPUs: NVIDIA's GPU Feature Discovery, GKE, Karpenter on EKS.
const GPU_LABELS: [&str; 3] =
    ["nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name"];

fn gpu_nodes(list: &Value) -> Check {
    let name = "kubernetes";
    let nodes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut gpus, mut unlabelled) = (BTreeMap::<String, u64>::new(), 0);
    for node in nodes {
        let count =
            node["status"]["allocatable"]["nvidia.com/gpu"].as_str().and_then(|count| count.parse().ok());
        let Some(count @ 1..) = count else { continue };
        let labels = &node["metadata"]["labels"];
        match GPU_LABELS.iter().find_map(|label| Some((label, labels[*label].as_str()?))) {
            Some((label, value)) => *gpus.entry(format!("{label}={value}")).or_default() += count,
            None => unlabelled += 1,
        }
    }
    let found: Vec<String> = gpus.iter().map(|(label, count)| format!("{count} GPUs {label}")).collect();
    if unlabelled > 0 {
        return Check::warn(
            name,
            format!("{unlabelled} nodes have GPUs but no label that says which; {}", found.join(", ")),
            "install NVIDIA's GPU Feature Discovery: exports choose nodes by `nvidia.com/gpu.product`",
        );
    }
    if found.is_empty() {
        return Check::warn(
            name,
            format!("none of {} nodes offers `nvidia.com/gpu`", nodes.len()),
            "install the NVIDIA device plugin, or add GPU nodes",
        );
    }
    Check::ok(name, found.join(", "))
}

/// An engine or a gateway.
async fn server(client: &HttpClient, url: &str, now_s: i64) -> Vec<Check> {
    let base = url.trim_end_matches('/').trim_end_matches("/v1");
    if !url.starts_with("http://") {
        let help = "give one such as http://127.0.0.1:8080; https:// is not asked";
        return vec![Check::fail(url, "is not an http:// address", help)];
    }
    let health = match client.get(&format!("{base}/health")).await {
        Ok(health) => health,
        Err(cause) => {
            let help = "is it running, and is this its address? Plain http:// is asked; `curl -i URL/health` shows more";
            return vec![Check::fail(base, format!("/health: {cause}"), help)];
        }
    };
    let mut checks = vec![match health.status {
        200..300 => Check::ok(base, "/health is well"),
        404 => Check::warn(
            base,
            "has no /health",
            "health checks will take any answer but 5xx for a sign of life",
        ),
        status => Check::fail(
            base,
            format!("/health says {status}"),
            "see its log; an engine that is loading weights says 503",
        ),
    }];
    checks.extend(skew(base, health.date.as_deref(), now_s));
    let (listed, is_gateway) = models(client, base).await;
    checks.push(listed);
    if !is_gateway {
        checks.push(version(client, base).await);
        checks.push(metrics(client, base).await);
    }
    checks
}

fn skew(base: &str, date: Option<&str>, now_s: i64) -> Option<Check> {
    let skew = seconds_of(date?)? - now_s;
    (skew.abs() > SKEW_S).then(|| {
        Check::warn(
            base,
            format!("its clock is {skew:+} s from this machine's"),
            "run NTP on both: logs and traces are joined by time",
        )
    })
}

/// What is served, and whether it is a gateway of ours.
async fn models(client: &HttpClient, base: &str) -> (Check, bool) {
    let answer = match client.get(&format!("{base}/v1/models")).await {
        Ok(answer) if answer.is_success() => answer,
        Ok(answer) if matches!(answer.status, 401 | 403) => {
            let help = "it wants an API key; `boute serve` asks engines without one";
            return (Check::fail(base, format!("/v1/models says {}", answer.status), help), false);
        }
        Ok(answer) => {
            let help = "it does not speak OpenAI's API at this address";
            return (Check::fail(base, format!("/v1/models says {}", answer.status), help), false);
        }
        Err(cause) => {
            let help = "it does not speak OpenAI's API at this address";
            return (Check::fail(base, format!("/v1/models: {cause}"), help), false);
        }
    };
    let list: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let models = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
    if ids.is_empty() {
        let help = "an engine lists what it serves; is the model still loading?";
        return (Check::fail(base, "/v1/models lists nothing", help), false);
    }
    let is_gateway = ids.contains(&AUTO);
    let kind = if is_gateway { "a gateway that routes, with" } else { "serves" };
    (Check::ok(base, format!("{kind} {}", ids.join(", "))), is_gateway)
}

/// vLLM's, `SGLang`'s or llama.cpp's way of telling its version.
async fn version(client: &HttpClient, base: &str) -> Check {
    for (path, key) in [("/version", "version"), ("/server_info", "version"), ("/props", "build_info")] {
        let Ok(answer) = client.get(&format!("{base}{path}")).await else { continue };
        let value: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        if answer.is_success()
            && let Some(version) = value[key].as_str()
        {
            return Check::ok(base, format!("version {version} (by {path})"));
        }
    }
    Check::warn(
        base,
        "does not tell its version",
        "plans are made for vLLM's V1 engine (0.8 and later): check by hand",
    )
}

async fn metrics(client: &HttpClient, base: &str) -> Check {
    let page = match client.get(&format!("{base}/metrics")).await {
        Ok(answer) if answer.is_success() => answer.body,
        Ok(answer) => return no_metrics(base, &format!("/metrics says {}", answer.status)),
        Err(cause) => return no_metrics(base, &format!("/metrics: {cause}")),
    };
    let Some(load) = EngineLoad::parse(&page) else {
        return no_metrics(base, "/metrics names no load that boute knows");
    };
    let engine = EngineMetrics::parse(&page).map_or("an engine", |metrics| metrics.engine.name());
    Check::ok(base, format!("/metrics of {engine}: {} running, {} waiting", load.running, load.waiting))
}

fn no_metrics(base: &str, found: &str) -> Check {
    let help =
        "the balancer then goes by its own count alone; llama.cpp wants --metrics, SGLang --enable-metrics";
    Check::warn(base, found, help)
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
fn days_of(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    Some(days_from_civil(year, month, day))
}

/// Proleptic Gregorian calendar, by Howard Hinnant's `days_from_civil`.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse, as `YYYY-MM-DD`.
fn date_of(days: i64) -> String {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Seconds since 1970 of an HTTP date: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn seconds_of(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = date.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = parts[..] else { return None };
    let (month, _) = (1..).zip(MONTHS).find(|(_, name)| *name == month)?;
    let days = days_from_civil(year.parse().ok()?, month, day.parse().ok()?);
    let number = |text: &str| text.parse::<i64>().ok();
    Some(days * DAY_S + number(hour)? * 3600 + number(minute)? * 60 + number(second)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_written() {
        assert_eq!(seconds_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for (days, date) in
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (20_782, "2026-11-25"), (-1, "1969-12-31")]
        {
            assert_eq!((days_of(date), date_of(days).as_str()), (Some(days), date));
        }
        assert_eq!((days_of("soon"), seconds_of("today")), (None, None));
    }

    #[test]
    fn prices_age_and_clocks_are_judged() {
        let newest =
            Catalog::builtin().prices().iter().filter_map(|price| days_of(&price.date)).max().unwrap();
        assert_eq!(prices((newest - 1) * DAY_S).level, Level::Fail);
        assert_eq!(prices((newest + 400) * DAY_S).level, Level::Warn);
        assert!(skew("x", Some("Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_777 + 3).is_none());
        assert_eq!(skew("x", Some("Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_700).unwrap().level, Level::Warn);
    }

    #[test]
    fn gpu_nodes_are_counted_by_label() {
        let node = |label: Option<&str>, gpus: &str| {
            let labels =
                label.map_or(serde_json::json!({}), |label| serde_json::json!({ label: "NVIDIA-L40S" }));
            serde_json::json!({"metadata": {"labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": gpus}}})
        };
        let of = |nodes: &[Value]| gpu_nodes(&serde_json::json!({ "items": nodes }));
        let labelled = of(&[node(Some(GPU_LABELS[0]), "8"), node(Some(GPU_LABELS[0]), "4")]);
        assert_eq!(
            (labelled.level, labelled.found.as_str()),
            (Level::Ok, "12 GPUs nvidia.com/gpu.product=NVIDIA-L40S")
        );
        assert_eq!(of(&[node(None, "8")]).level, Level::Warn);
        assert_eq!(of(&[node(None, "0")]).level, Level::Warn);
    }
}
