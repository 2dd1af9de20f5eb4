//! `report.html`: one page that works from disk, without any outside resource, in light and dark.

use std::fmt::Write;

use boute_spec::outcome::Outcome;
use boute_spec::plan::Plan;
use serde_json::json;

use crate::StrategyRow;
use crate::engines::{counted, of_engines};
use crate::svg::{OnCurve, bars, escape, fleet, front, latency, promised, quality_curve, series, standalone};
use crate::terminal::time;

/// What a report shows; what is empty or `None` is left out.
#[derive(Debug, Clone, Copy)]
pub struct ReportData<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The plan simulated on the traffic that was measured.
    pub simulated: Option<&'a Outcome>,
    /// The plan measured over HTTP.
    pub measured: Option<&'a Outcome>,
    /// Strategies side by side, this plan's first.
    pub comparison: &'a [StrategyRow],
    /// (share of the stronger model, quality) of the router.
    pub quality_curve: &'a [(f64, f64)],
}

/// The page.
pub fn html(data: &ReportData<'_>) -> String {
    let plan = data.plan;
    let predicted = &plan.predicted;
    let mut body = String::new();
    let _ = write!(
        body,
        "<header><h1>{} for {}</h1><p class=\"lead\">{}</p><dl class=\"tiles\">",
        predicted.cost_usd_per_hour,
        predicted.rate,
        escape(&asked(plan)),
    );
    let verdict =
        if plan.verification.passed { "✓ every promise held" } else { "✗ not every promise held" };
    let gap = plan
        .bound
        .as_ref()
        .map_or_else(|| "not proven".to_owned(), |bound| format!("{:.2}%", bound.gap * 100.0));
    let judged = plan.verification.queries > 0;
    let quality = if judged { format!("≥ {:.4}", predicted.quality_certified) } else { "not known".into() };
    for (name, value) in [
        ("quality promised", quality),
        ("E2E p95", time(predicted.e2e.p95.value_ms)),
        ("per million tokens", format!("${:.3}", predicted.usd_per_million_tokens)),
        ("gap to the optimum", gap),
        ("on other traffic", verdict.to_owned()),
    ] {
        let _ = write!(body, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    body.push_str("</dl></header>");
    if plan.front.len() > 1 {
        let floor = plan.targets.floor.map(boute_spec::units::Fraction::get);
        section(
            &mut body,
            "Cost and quality",
            &format!(
                "<p>Each point is the cheapest fleet for one division of the queries. Hover, click, or use the arrow keys to see its plan.</p>{}{}",
                front(&plan.front, floor),
                inspected(plan)
            ),
        );
    }
    section(&mut body, "The fleet", &format!("{}{}", fleet(plan), groups_table(plan)));
    section(&mut body, "What it costs", &cost(plan));
    section(&mut body, "Who answers", &routing(data));
    section(&mut body, "Latency", &latencies(data));
    if !data.comparison.is_empty() {
        section(&mut body, "Strategies compared", &comparison(data.comparison));
    }
    if !plan.binding.is_empty() {
        section(&mut body, "What binds", &binding(plan));
    }
    section(&mut body, "Where this comes from", &provenance(plan));
    let numbers = json!({
        "plan": plan, "simulated": data.simulated, "measured": data.measured,
        "comparison": data.comparison, "quality_curve": data.quality_curve,
    });
    // `<` inside a script element could end it.
    let numbers = numbers.to_string().replace('<', "\\u003c");
    let scripts = format!(
        "<script type=\"application/json\" id=\"boute-data\">{numbers}</script><script>{SCRIPT}</script>"
    );
    document(&format!("boute: {}", predicted.cost_usd_per_hour), &body, &scripts)
}

/// A page that needs nothing from elsewhere.
pub(crate) fn document(title: &str, body: &str, scripts: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title><link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body><main>{body}</main>{scripts}</body></html>\n"
    )
}

/// One picture: what the strategies cost, for the README.
pub fn cost_picture(rows: &[StrategyRow]) -> String {
    standalone(&comparison_bars(rows))
}

pub(crate) fn section(body: &mut String, title: &str, content: &str) {
    let _ = write!(body, "<section><h2>{title}</h2>{content}</section>");
}

fn asked(plan: &Plan) -> String {
    let targets = &plan.targets;
    let mut parts: Vec<String> = targets.slo.iter().map(ToString::to_string).collect();
    parts.extend(targets.floor.map(|floor| {
        format!("quality ≥ {:.4} with {:.0}% confidence", floor.get(), targets.confidence.get() * 100.0)
    }));
    parts.extend(targets.budget_usd_per_hour.map(|budget| format!("at most {budget}")));
    format!("{}, {}", targets.objective.name(), parts.join(", "))
}

/// Every text in an element of its own.
fn wrapped(tag: &str, texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |mut out, text| {
        let _ = write!(out, "<{tag}>{text}</{tag}>");
        out
    })
}

pub(crate) fn html_table(caption: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut head = String::new();
    for name in header {
        // An empty header is no header: what stands below it are names.
        let _ = match *name {
            "" => write!(head, "<td></td>"),
            name => write!(head, "<th scope=\"col\">{name}</th>"),
        };
    }
    // It may be wider than a telephone: then it scrolls, by the keyboard too.
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>"
    );
    for row in rows {
        let _ = write!(out, "<tr>{}</tr>", wrapped("td", row.iter().map(|cell| escape(cell))));
    }
    out.push_str("</tbody></table></div>");
    out
}

fn groups_table(plan: &Plan) -> String {
    let rows = plan.deployment.groups.iter().map(|group| {
        vec![
            group.model.clone(),
            of_engines(group, |it| it.gpu.to_owned()),
            of_engines(group, |it| format!("{}{} × {}", counted(it), it.tp, it.pp)),
            group.replicas.to_string(),
            group.gpus().to_string(),
            format!("{:.2}", group.usd_per_hour.get()),
            format!("{:.2}", group.planned_rate_per_replica.get()),
        ]
    });
    html_table("Replica groups", &["model", "GPU", "TP × PP", "replicas", "GPUs", "$/h", "req/s each"], rows)
}

/// The place where the script shows the plan of a point; without a script, this plan's.
fn inspected(plan: &Plan) -> String {
    let chosen = plan.front.iter().find(|point| point.chosen);
    let text = chosen.map(|point| escape(&point.fleet)).unwrap_or_default();
    format!("<div id=\"point\" role=\"status\" class=\"note\">{text}</div>")
}

/// The rent by group, and what a token and a request come to.
fn cost(plan: &Plan) -> String {
    let predicted = &plan.predicted;
    let total = predicted.cost_usd_per_hour.get();
    let models: Vec<&str> = plan.routing.models.iter().map(|share| share.model.as_str()).collect();
    let mut bar = String::new();
    for group in &plan.deployment.groups {
        let colour = series(models.iter().position(|model| *model == group.model).unwrap_or_default());
        let percent = group.usd_per_hour.get() / total * 100.0;
        let _ = write!(bar, "<div style=\"width:{percent:.2}%;background:{colour}\"></div>");
    }
    let rows = plan.deployment.groups.iter().map(|group| {
        let usd = group.usd_per_hour.get();
        let requests_per_hour = f64::from(group.replicas) * group.planned_rate_per_replica.get() * 3600.0;
        vec![
            group.model.clone(),
            of_engines(group, |it| it.gpu.to_owned()),
            format!("{usd:.2}"),
            format!("{:.1}%", usd / total * 100.0),
            format!("{:.2}", usd / f64::from(group.gpus().max(1))),
            format!("{:.3}", usd / requests_per_hour * 1e3),
        ]
    });
    let header = ["model", "GPU", "$/h", "share", "$/h per GPU", "$ per 1,000 requests"];
    format!(
        "<p>{} in all: ${:.3} per million tokens, ${:.3} per 1,000 requests at {}. It would carry {}: {:.0}% of that is asked.</p><div class=\"split\" aria-hidden=\"true\">{bar}</div>{}",
        predicted.cost_usd_per_hour,
        predicted.usd_per_million_tokens,
        predicted.usd_per_thousand_requests(),
        predicted.rate,
        predicted.max_rate,
        predicted.rate.get() / predicted.max_rate.get() * 100.0,
        html_table("Rent by replica group", &header, rows)
    )
}

fn binding(plan: &Plan) -> String {
    let rows = plan.binding.iter().map(|it| {
        // The text says all of it; the last part is the worth.
        let worth = it.text.rsplit(" → ").next().unwrap_or_default();
        vec![it.constraint.clone(), it.unit.clone(), worth.to_owned()]
    });
    html_table(
        "Limits that bind, and what one more unit of each is worth",
        &["limit", "one unit more", "worth"],
        rows,
    )
}

fn routing(data: &ReportData<'_>) -> String {
    let plan = data.plan;
    let mut out = String::new();
    let shares = plan.routing.models.iter().enumerate().map(|(index, share)| {
        let percent = share.load_fraction.get() * 100.0;
        format!(
            "<div style=\"width:{percent:.2}%;background:{}\" title=\"{}\"></div>",
            series(index),
            escape(&share.model)
        )
    });
    let _ = write!(
        out,
        "<div class=\"split\" aria-hidden=\"true\">{}</div><ul class=\"legend\">",
        shares.collect::<String>()
    );
    for (index, share) in plan.routing.models.iter().enumerate() {
        let _ = write!(
            out,
            "<li><i style=\"background:{}\"></i>{}: {:.1}% of the queries, quality {:.3}</li>",
            series(index),
            escape(&share.model),
            share.load_fraction.get() * 100.0,
            share.quality.get()
        );
    }
    out.push_str("</ul>");
    if plan.verification.queries == 0 {
        return out;
    }
    let quality = plan.predicted.quality;
    let _ = write!(
        out,
        "<p>Mean score {:.4} [{:.4}, {:.4}] on the planning queries, {:.4} on {} held-out ones; at least {:.4} with {:.0}% confidence.</p>",
        quality.value,
        quality.low,
        quality.high,
        plan.verification.quality,
        plan.verification.queries,
        plan.predicted.quality_certified,
        plan.targets.confidence.get() * 100.0
    );
    if data.quality_curve.len() > 1 {
        let stronger = plan.routing.models.iter().max_by(|a, b| a.quality.get().total_cmp(&b.quality.get()));
        let chosen = stronger.filter(|_| plan.routing.models.len() == 2).map(|share| OnCurve {
            share: share.load_fraction.get(),
            quality,
            certified: plan.predicted.quality_certified,
        });
        out.push_str(&quality_curve(data.quality_curve, chosen.as_ref()));
    }
    out
}

fn latencies(data: &ReportData<'_>) -> String {
    let predicted = &data.plan.predicted;
    let rows =
        [("TTFT", &predicted.ttft), ("TPOT", &predicted.tpot), ("E2E", &predicted.e2e)].map(|(name, at)| {
            let range = format!("{} – {}", time(at.p95.low_ms), time(at.p95.high_ms));
            let source = format!("{:?}", at.p95.source).to_lowercase();
            vec![
                name.into(),
                time(at.p50.value_ms),
                time(at.p95.value_ms),
                time(at.p99.value_ms),
                range,
                source,
            ]
        });
    let header = ["", "p50", "p95", "p99", "p95, 80% interval", "source"];
    let mut out = promised(predicted, &data.plan.targets.slo);
    out.push_str(&html_table("Predicted on the planning traffic", &header, rows.into_iter()));
    let columns: Vec<(&str, &Outcome)> = [("promised", data.simulated), ("measured", data.measured)]
        .into_iter()
        .filter_map(|(name, outcome)| Some((name, outcome?)))
        .collect();
    if !columns.is_empty() {
        let _ = write!(
            out,
            "<h3>Promised and measured over HTTP on emulated replicas (time axis logarithmic)</h3>{}",
            latency(&columns)
        );
    }
    out
}

fn comparison_bars(rows: &[StrategyRow]) -> String {
    let bar = |row: &StrategyRow| {
        let text = match (row.cost_usd_per_hour, row.met) {
            (None, _) => "no plan".to_owned(),
            (Some(cost), true) => format!("${cost:.2}/h"),
            (Some(cost), false) => format!("${cost:.2}/h, promises not met"),
        };
        (row.strategy.clone(), row.cost_usd_per_hour.unwrap_or_default(), text)
    };
    bars(&rows.iter().map(bar).collect::<Vec<_>>(), 0, "Rent per hour by strategy")
}

fn comparison(rows: &[StrategyRow]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.strategy.clone(),
            row.cost_usd_per_hour.map(|cost| format!("{cost:.2}")).unwrap_or_default(),
            row.quality.map(|quality| format!("{quality:.4}")).unwrap_or_default(),
            row.e2e_p95_ms.map(time).unwrap_or_default(),
            if row.met { "met" } else { "not met" }.into(),
            row.fleet.clone(),
        ]
    });
    let header = ["strategy", "$/h", "quality", "E2E p95", "promises", "fleet"];
    format!(
        "{}{}",
        comparison_bars(rows),
        html_table("On traffic and queries nobody planned on", &header, cells)
    )
}

fn provenance(plan: &Plan) -> String {
    let rows = plan.inputs.iter().map(|input| {
        let file = if input.file.is_empty() { "built in" } else { &input.file };
        vec![input.input.clone(), file.to_owned(), input.sha256.clone()]
    });
    format!(
        "<p>boute {}, strategy {}, seed {}; verified by simulating {} other requests, after {} repairs.</p>{}",
        escape(&plan.tool_version),
        escape(&plan.strategy),
        plan.seed,
        plan.verification.requests,
        plan.verification.repairs,
        html_table("Inputs", &["input", "file", "SHA-256"], rows)
    )
}

const STYLE: &str = include_str!("page.css");

const SCRIPT: &str = include_str!("report.js");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plan;

    fn rows() -> Vec<StrategyRow> {
        vec![StrategyRow {
            strategy: "<script>alert(1)</script>".into(),
            cost_usd_per_hour: Some(38.0),
            quality: Some(0.55),
            e2e_p95_ms: Some(16_000.0),
            met: true,
            fleet: "1× a & b".into(),
        }]
    }

    #[test]
    fn the_page_is_self_contained_and_escaped() {
        let plan = plan();
        let page = html(&ReportData {
            plan: &plan,
            simulated: None,
            measured: None,
            comparison: &rows(),
            quality_curve: &[(0.0, 0.43), (0.5, 0.55), (1.0, 0.62)],
        });
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert!(!page.contains("<script>alert"));
        assert_eq!(page.matches("</script>").count(), 2);
        let start = page.find("id=\"boute-data\">").unwrap() + 16;
        let end = start + page[start..].find("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(&page[start..end]).unwrap();
        assert_eq!(data["plan"]["predicted"]["rate"], 20.0);
    }
}
