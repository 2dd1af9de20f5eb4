//! Plans and outcomes for people at a terminal. Colour never carries meaning alone.

use std::fmt::Write;

use boute_spec::outcome::Outcome;
use boute_spec::plan::{FrontPoint, PlanDraft, PredictedPercentiles};
use boute_spec::slo::{Metric, Percentile};
use comfy_table::{CellAlignment, Table, presets};

use crate::StrategyRow;
use crate::engines::{counted, of_engines, parallelism};

/// Rows of the chart.
const CHART_ROWS: usize = 12;

/// Bold, where colours are wanted.
fn heading(text: &str, colour: bool) -> String {
    if colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, numbers_from: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in numbers_from..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Milliseconds as people read them.
pub(crate) fn time(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.2} s", ms / 1000.0) }
}

/// A plan: what was asked, the fleet, what is promised, the plans beside it, what binds.
pub fn plan_summary(plan: &PlanDraft, width: usize, colour: bool) -> String {
    let mut out = String::new();
    let predicted = &plan.predicted;
    let targets = &plan.targets;
    let _ = writeln!(out, "{}", heading("Asked", colour));
    out.push_str(&asked(plan));

    let _ = writeln!(out, "\n{}", heading("Fleet", colour));
    let rows = plan.deployment.groups.iter().map(|group| {
        vec![
            group.model.clone(),
            of_engines(group, |it| it.gpu.to_owned()),
            of_engines(group, |it| counted(it) + &parallelism(it)),
            group.replicas.to_string(),
            group.gpus().to_string(),
            format!("{:.2}", group.usd_per_hour.get()),
            format!("{:.2}", group.planned_rate_per_replica.get()),
        ]
    });
    let header = ["model", "GPU", "parallelism", "replicas", "GPUs", "$/h", "req/s each"];
    out.push_str(&table(&header, rows.collect(), 3));

    // Without queries nothing is known of quality.
    let judged = plan.verification.queries > 0;
    let _ = writeln!(out, "\n\n{}", heading("Routing", colour));
    let rows = plan.routing.models.iter().map(|share| {
        vec![
            share.model.clone(),
            format!("{:.1}%", share.load_fraction.get() * 100.0),
            if judged { format!("{:.3}", share.quality.get()) } else { "not known".into() },
        ]
    });
    out.push_str(&table(&["model", "share of queries", "quality of its answers"], rows.collect(), 1));

    let _ = writeln!(out, "\n\n{}", heading("Promised", colour));
    out.push_str(&percentile_rows(&[
        ("TTFT", &predicted.ttft),
        ("TPOT", &predicted.tpot),
        ("E2E", &predicted.e2e),
    ]));
    out.push('\n');
    let quality = predicted.quality;
    if judged {
        let _ = writeln!(
            out,
            "quality    {:.4} [{:.4}, {:.4}]; at least {:.4} with {:.0}% confidence",
            quality.value,
            quality.low,
            quality.high,
            predicted.quality_certified,
            targets.confidence.get() * 100.0
        );
    }
    let _ = writeln!(
        out,
        "cost       {}, ${:.3} per million tokens, ${:.3} per 1,000 requests",
        predicted.cost_usd_per_hour,
        predicted.usd_per_million_tokens,
        predicted.usd_per_thousand_requests()
    );
    let _ = writeln!(
        out,
        "load       {:.0}% of the {} it would carry",
        predicted.rate.get() / predicted.max_rate.get() * 100.0,
        predicted.max_rate
    );
    if let Some(bound) = &plan.bound {
        let _ = writeln!(
            out,
            "optimal    within {:.2}% of the best possible over the same table",
            bound.gap * 100.0
        );
    }
    let check = &plan.verification;
    let verdict = if check.passed { "every promise held" } else { "NOT every promise held" };
    let on_queries = if judged {
        format!(" and {} held-out queries (quality {:.4})", check.queries, check.quality)
    } else {
        String::new()
    };
    let _ = writeln!(
        out,
        "verified   {verdict} on {} other requests{on_queries}, after {} repairs",
        check.requests, check.repairs
    );
    if plan.front.len() > 1 {
        let _ = writeln!(out, "\n{}", heading("Cost and quality", colour));
        out.push_str(&chart(&plan.front, width));
        out.push_str(&neighbours(&plan.front));
    }
    if plan.bound.is_some() {
        let _ = writeln!(out, "\n{}", heading("What binds", colour));
        if plan.binding.is_empty() {
            out.push_str("  whole replicas: no limit is worth anything in steps of one GPU, $1, 0.01 of the floor or 10% latency\n");
        }
        for binding in &plan.binding {
            let _ = writeln!(out, "  {}", binding.text);
        }
    }
    out
}

/// The task as the planner understood it.
fn asked(plan: &PlanDraft) -> String {
    let (targets, rate) = (&plan.targets, plan.predicted.rate);
    let file = |input: &str| plan.inputs.iter().find(|it| it.input == input).map(|it| it.file.as_str());
    let like = |input: &str| file(input).map(|name| format!(", as in {name}")).unwrap_or_default();
    let models: Vec<&str> = plan.routing.models.iter().map(|share| share.model.as_str()).collect();
    let promises: Vec<String> = targets.slo.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("objective", targets.objective.name().to_owned()),
        ("models", models.join(", ")),
        ("traffic", format!("{rate}{}", like("trace"))),
        ("latency", promises.join(", ")),
    ];
    rows.extend(targets.floor.map(|floor| {
        let confidence = targets.confidence.get() * 100.0;
        ("quality", format!("≥ {:.4} with {confidence:.0}% confidence{}", floor.get(), like("quality")))
    }));
    rows.extend(targets.budget_usd_per_hour.map(|budget| ("budget", format!("≤ {budget}"))));
    rows.push(("search", format!("{}, seed {}", plan.strategy, plan.seed)));
    rows.into_iter().fold(String::new(), |mut out, (name, text)| {
        let _ = writeln!(out, "{name:<10} {text}");
        out
    })
}

/// The next cheaper and the next dearer plan of the front.
fn neighbours(front: &[FrontPoint]) -> String {
    let Some(at) = front.iter().position(|point| point.chosen) else { return String::new() };
    let chosen = &front[at];
    let beside = [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter_map(|index| front.get(index));
    beside.fold(String::new(), |mut out, point| {
        let cost = point.cost_usd_per_hour - chosen.cost_usd_per_hour;
        let sign = if cost < 0.0 { '−' } else { '+' };
        let better = format!("{:+.3}", point.quality - chosen.quality).replace('-', "−");
        let _ = writeln!(
            out,
            "  {sign}${:.2}/h: quality {:.3} ({better}), {}",
            cost.abs(),
            point.quality,
            point.fleet
        );
        out
    })
}

/// Where a time goes: a line and a bar for every part.
pub struct Breakdown<'a> {
    /// Of what.
    pub title: &'a str,
    /// Names and seconds.
    pub parts: Vec<(&'a str, f64)>,
}

impl std::fmt::Display for Breakdown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const WIDTH: f64 = 40.0;
        let total: f64 = self.parts.iter().map(|(_, seconds)| seconds).sum();
        writeln!(f, "{}: {:.2} ms", self.title, total * 1e3)?;
        for (name, seconds) in &self.parts {
            let share = if total > 0.0 { seconds / total } else { 0.0 };
            let bar = "█".repeat((share * WIDTH).round() as usize);
            writeln!(f, "  {name:<22} {:>9.2} ms {:>4.0}%  {bar}", seconds * 1e3, share * 100.0)?;
        }
        Ok(())
    }
}

fn percentile_rows(rows: &[(&str, &PredictedPercentiles)]) -> String {
    let rows = rows.iter().map(|(name, at)| {
        let each = [at.p50, at.p95, at.p99].map(|time_at| time(time_at.value_ms));
        let range = format!("{} – {}", time(at.p95.low_ms), time(at.p95.high_ms));
        let source = format!("{:?}", at.p95.source).to_lowercase();
        let mut row = vec![(*name).to_owned()];
        row.extend(each);
        row.extend([range, source]);
        row
    });
    table(&["", "p50", "p95", "p99", "p95, 80% interval", "source"], rows.collect(), 1)
}

/// The front as a chart of characters: cost to the right, quality upwards; the plan is the filled mark.
fn chart(front: &[FrontPoint], width: usize) -> String {
    let columns = width.saturating_sub(12).clamp(20, 72);
    let range = |of: fn(&FrontPoint) -> f64| {
        let values = front.iter().map(of);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        (low, (high - low).max(1e-9))
    };
    let (cheapest, cost_span) = range(|point| point.cost_usd_per_hour);
    let (worst, quality_span) = range(|point| point.quality);
    let mut grid = vec![vec![' '; columns]; CHART_ROWS];
    for point in front.iter().filter(|point| !point.chosen).chain(front.iter().filter(|point| point.chosen)) {
        let column =
            ((point.cost_usd_per_hour - cheapest) / cost_span * (columns - 1) as f64).round() as usize;
        let row = ((point.quality - worst) / quality_span * (CHART_ROWS - 1) as f64).round() as usize;
        grid[CHART_ROWS - 1 - row][column] = if point.chosen { '●' } else { '○' };
    }
    let mut out = String::new();
    for (index, row) in grid.iter().enumerate() {
        let label = match index {
            0 => format!("{:.3}", worst + quality_span),
            last if last == CHART_ROWS - 1 => format!("{worst:.3}"),
            _ => String::new(),
        };
        let _ = writeln!(out, "{label:>6} │{}", row.iter().collect::<String>().trim_end());
    }
    let (left, right) = (format!("${cheapest:.2}/h"), format!("${:.2}/h", cheapest + cost_span));
    let _ = writeln!(out, "       └{}", "─".repeat(columns));
    let _ =
        writeln!(out, "        {left}{right:>gap$}   ● this plan", gap = columns.saturating_sub(left.len()));
    out
}

/// One outcome.
pub fn outcome_summary(outcome: &Outcome) -> String {
    let row = |name: &str, metric: Metric, mean_ms: f64| {
        let mut row = vec![name.to_owned(), time(mean_ms)];
        row.extend(Percentile::ALL.map(|percentile| time(outcome.percentile_ms(metric, percentile))));
        row
    };
    let rows = vec![
        row("TTFT", Metric::Ttft, outcome.mean_ttft_ms),
        row("TPOT", Metric::Tpot, outcome.mean_tpot_ms),
        row("E2E", Metric::E2e, outcome.mean_e2el_ms),
    ];
    let mut out = table(&["", "mean", "p50", "p90", "p95", "p99"], rows, 1);
    let _ = writeln!(
        out,
        "\n{} answered, {} failed in {:.1} s: {:.2} req/s, goodput {:.2} req/s, {:.0} tokens/s",
        outcome.completed,
        outcome.failed,
        outcome.duration,
        outcome.request_throughput,
        outcome.request_goodput,
        outcome.total_token_throughput
    );
    for model in &outcome.models {
        let _ = writeln!(
            out,
            "  {}: {} ({:.1}%), E2E p95 {}",
            model.model,
            model.completed,
            model.load_fraction * 100.0,
            time(model.p95_e2el_ms)
        );
    }
    out
}

/// What was promised beside what was measured.
pub fn promised_against_measured(promised: &Outcome, measured: &Outcome) -> String {
    let mut rows = Vec::new();
    for (name, metric) in [("TTFT", Metric::Ttft), ("TPOT", Metric::Tpot), ("E2E", Metric::E2e)] {
        for percentile in [Percentile::P50, Percentile::P95, Percentile::P99] {
            let (said, was) =
                (promised.percentile_ms(metric, percentile), measured.percentile_ms(metric, percentile));
            let off = if said > 0.0 { format!("{:+.1}%", (was / said - 1.0) * 100.0) } else { String::new() };
            rows.push(vec![format!("{name} {}", percentile.name()), time(said), time(was), off]);
        }
    }
    let rate = |outcome: &Outcome| format!("{:.2}", outcome.request_throughput);
    rows.push(vec!["requests/s".into(), rate(promised), rate(measured), String::new()]);
    rows.push(vec!["failed".into(), promised.failed.to_string(), measured.failed.to_string(), String::new()]);
    table(&["", "promised", "measured", "off by"], rows, 1) + "\n"
}

/// Strategies side by side.
pub fn comparison(rows: &[StrategyRow]) -> String {
    let best = rows.first().and_then(|row| row.cost_usd_per_hour);
    let cells = rows.iter().map(|row| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        let ratio = row.cost_usd_per_hour.zip(best).map(|(cost, best)| format!("{:.2}×", cost / best));
        vec![
            row.strategy.clone(),
            or_dash(row.cost_usd_per_hour.map(|cost| format!("{cost:.2}"))),
            or_dash(ratio),
            or_dash(row.quality.map(|quality| format!("{quality:.4}"))),
            or_dash(row.e2e_p95_ms.map(time)),
            if row.met { "met" } else { "not met" }.into(),
            row.fleet.clone(),
        ]
    });
    table(&["strategy", "$/h", "cost", "quality", "E2E p95", "promises", "fleet"], cells.collect(), 1) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{disaggregated_plan, plan};

    #[test]
    fn a_disaggregated_replica_is_drawn_from_prompt_to_answer() {
        let text = plan_summary(&disaggregated_plan(), 80, false);
        let fleet: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.contains("Fleet"))
            .skip(1)
            .take(3)
            .map(str::trim_end)
            .collect();
        insta::assert_snapshot!(fleet.join("\n"), @r"
        model          GPU              parallelism            replicas  GPUs    $/h  req/s each
        llama-3.1-8b   L40S             TP1                           6     6   6.00        2.00
        llama-3.1-70b  L40S → H100-SXM  2× TP4 → 1× TP4 × PP2         1    16  32.00        8.00
        ");
    }

    #[test]
    fn a_plan_reads_well() {
        let text = plan_summary(&plan(), 80, false);
        insta::assert_snapshot!(text, @r"
        Asked
        objective  min_cost
        models     llama-3.1-8b, llama-3.1-70b
        traffic    20.00 req/s
        latency    e2e_p95 ≤ 20.00s
        quality    ≥ 0.5200 with 95% confidence
        budget     ≤ $60.00/h
        search     exact, seed 0

        Fleet
         model          GPU       parallelism  replicas  GPUs    $/h  req/s each
         llama-3.1-8b   L40S      TP1                 6     6   6.00        2.00
         llama-3.1-70b  H100-SXM  TP4 × PP2           1     8  32.00        8.00

        Routing
         model          share of queries  quality of its answers
         llama-3.1-8b              60.0%                   0.470
         llama-3.1-70b             40.0%                   0.660

        Promised
                  p50      p95      p99  p95, 80% interval  source
         TTFT  180 ms   610 ms   1.20 s    390 ms – 830 ms  fitted
         TPOT   21 ms    34 ms    45 ms      29 ms – 39 ms  fitted
         E2E   4.60 s  16.50 s  21.30 s  14.03 s – 18.98 s  fitted
        quality    0.5460 [0.5180, 0.5740]; at least 0.5221 with 95% confidence
        cost       $38.00/h, $0.386 per million tokens, $0.528 per 1,000 requests
        load       89% of the 22.50 req/s it would carry
        optimal    within 0.53% of the best possible over the same table
        verified   every promise held on 9683 other requests and 1867 held-out queries (quality 0.5502), after 1 repairs

        Cost and quality
         0.615 │                                                                   ○
               │                                                     ○
               │
               │                                           ○
               │                                    ●
               │
               │                           ○
               │                  ○
               │
               │           ○
               │
         0.430 │○
               └────────────────────────────────────────────────────────────────────
                $7.00/h                                                     $64.00/h   ● this plan
          −$7.90/h: quality 0.520 (−0.026), 5× llama-3.1-8b on L40S + 3× llama-3.1-70b on 4×H100-SXM
          +$6.00/h: quality 0.566 (+0.020), 4× llama-3.1-8b on L40S + 5× llama-3.1-70b on 4×H100-SXM

        What binds
          floor: -0.01 → −$2.10/h
          stock L40S: +1 L40S → −$0.40/h
        ");
        assert!(!text.contains('\x1b'));
        assert!(plan_summary(&plan(), 80, true).contains("\x1b[1mFleet"));
    }
}
