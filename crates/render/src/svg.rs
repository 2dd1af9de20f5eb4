//! Drawings, as SVG text. Colours are CSS variables of the page, so that light and dark need one drawing.

use std::fmt::Write;

use boute_spec::outcome::{Outcome, quantile};
use boute_spec::plan::{FrontPoint, Instances, Interval, PlanDraft, Predicted, PredictedMs, Role};
use boute_spec::slo::{Metric, Percentile, SloTarget};

use crate::engines::{counted, of_engines, parallelism};
use crate::terminal::time;

/// Text made safe for HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A drawing that stands alone: with fixed greys and a blue that read on light and dark.
pub(crate) fn standalone(drawing: &str) -> String {
    let style = "<style>text{font:14px system-ui,sans-serif;fill:#7d8590}.direct{font-weight:600}.grid{stroke:#8b949e66}svg{--series-1:#2f81f7;--muted:#8b949e66}</style>";
    drawing.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1).replacen(
        '>',
        &format!(">{style}"),
        1,
    )
}

/// The series colour of a model, by its place.
pub(crate) fn series(index: usize) -> String {
    format!("var(--series-{})", index % 4 + 1)
}

/// A value axis: round steps that cover a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let raw = span / 4.0;
    let magnitude = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|factor| factor * magnitude).find(|step| *step >= raw);
    let step = step.unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// A linear scale from values to pixels.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Covers `values` with some air.
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let air = ((high - low) * 0.08).max(high.abs() * 0.01).max(1e-6);
        Self { low: (low - air).max(0.0), high: high + air, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

/// The front: cost to the right, quality upwards. Points can be focused; the page's script shows their plan.
pub(crate) fn front(points: &[FrontPoint], floor: Option<f64>) -> String {
    let (width, height, left, bottom, top, right) = (640.0, 340.0, 56.0, 44.0, 16.0, 20.0);
    let costs = points.iter().map(|point| point.cost_usd_per_hour);
    let qualities = points.iter().map(|point| point.quality).chain(floor);
    let x = Scale::over(costs, left, width - right);
    let y = Scale::over(qualities, height - bottom, top);
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"group\" aria-label=\"Cost and quality of the best plans\">"
    );
    for tick in ticks(y.low, y.high) {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.2}</text>",
            width - right,
            left - 8.0,
            at + 4.0
        );
    }
    for tick in ticks(x.low, x.high) {
        let at = x.at(tick);
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">${tick}</text>",
            height - bottom + 18.0
        );
    }
    let _ = write!(
        out,
        "<line class=\"axis\" x1=\"{left}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>",
        width - right,
        height - bottom,
        height - bottom
    );
    let _ = write!(
        out,
        "<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"end\">rent per hour</text><text class=\"label\" x=\"{left}\" y=\"11\">mean score</text>",
        width - right,
        height - 6.0
    );
    if let Some(floor) = floor {
        let at = y.at(floor);
        let _ = write!(
            out,
            "<line class=\"floor\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"label\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">floor</text>",
            width - right,
            width - right,
            at - 5.0
        );
    }
    let path: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x.at(point.cost_usd_per_hour), y.at(point.quality)))
        .collect();
    let _ = write!(out, "<polyline class=\"front\" points=\"{}\"/>", path.join(" "));
    for (index, point) in points.iter().enumerate() {
        let (cx, cy) = (x.at(point.cost_usd_per_hour), y.at(point.quality));
        let (class, radius) = if point.chosen { ("point chosen", 8.0) } else { ("point", 5.5) };
        let title = format!(
            "${:.2} per hour, quality {:.3}: {}",
            point.cost_usd_per_hour, point.quality, point.fleet
        );
        // One stop of the tabulator for all points: the arrow keys go from point to point.
        let stop = if point.chosen { 0 } else { -1 };
        let _ = write!(
            out,
            "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius}\" tabindex=\"{stop}\" role=\"button\" aria-pressed=\"{1}\" data-point=\"{index}\" aria-label=\"{0}\"><title>{0}</title></circle>",
            escape(&title),
            point.chosen
        );
        if point.chosen {
            let _ = write!(
                out,
                "<text class=\"direct\" x=\"{:.1}\" y=\"{:.1}\">this plan, ${:.2}</text>",
                cx + 13.0,
                cy + 16.0,
                point.cost_usd_per_hour
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// The fleet: one box per GPU, joined into replicas, coloured by model; GPUs that only compute prompts are paler.
pub(crate) fn fleet(plan: &PlanDraft) -> String {
    let (cell, gap, per_row) = (26.0, 5.0, 18_usize);
    let models: Vec<&str> = plan.routing.models.iter().map(|share| share.model.as_str()).collect();
    let mut out = String::new();
    let mut y = 0.0;
    for group in &plan.deployment.groups {
        let colour = series(models.iter().position(|model| *model == group.model).unwrap_or_default());
        let label = format!(
            "{}× {} · {} · ${:.2}/h",
            group.replicas,
            group.model,
            of_engines(group, |it| format!("{}{} on {}", counted(it), parallelism(it), it.gpu)),
            group.usd_per_hour.get()
        );
        let _ = write!(out, "<text class=\"direct\" x=\"0\" y=\"{:.1}\">{}</text>", y + 14.0, escape(&label));
        y += 22.0;
        let prefilling: u32 =
            group.instances().iter().filter(|it| it.role == Role::Prefill).map(Instances::gpus).sum();
        let gpus = group.gpus_per_replica() as usize;
        let replicas_per_row = (per_row / gpus).max(1);
        for replica in 0..group.replicas as usize {
            let (row, column) = (replica / replicas_per_row, replica % replicas_per_row);
            let x0 = column as f64 * (gpus as f64 * cell + gap + 4.0);
            let y0 = y + row as f64 * (cell + gap);
            for gpu in 0..gpus {
                let paler = if gpu < prefilling as usize { " fill-opacity=\"0.5\"" } else { "" };
                let _ = write!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{y0:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"4\" fill=\"{colour}\"{paler}/>",
                    x0 + gpu as f64 * cell,
                    cell - 3.0,
                    cell - 3.0
                );
            }
        }
        let rows = (group.replicas as usize).div_ceil(replicas_per_row);
        y += rows as f64 * (cell + gap) + 14.0;
    }
    format!(
        "<svg viewBox=\"0 0 640 {y:.0}\" role=\"img\" aria-label=\"The fleet: one box per GPU\">{out}</svg>"
    )
}

/// Predicted percentiles with their intervals, and the limits they must keep, on a logarithmic axis.
pub(crate) fn promised(predicted: &Predicted, slo: &[SloTarget]) -> String {
    let rows: Vec<(Metric, Percentile, PredictedMs)> =
        [(Metric::Ttft, &predicted.ttft), (Metric::Tpot, &predicted.tpot), (Metric::E2e, &predicted.e2e)]
            .into_iter()
            .flat_map(|(metric, at)| {
                [(Percentile::P50, at.p50), (Percentile::P95, at.p95), (Percentile::P99, at.p99)]
                    .map(|(percentile, time)| (metric, percentile, time))
            })
            .collect();
    let limits = |metric: Metric, percentile: Percentile| {
        slo.iter()
            .filter(move |it| (it.metric, it.percentile) == (metric, percentile) && it.model.is_none())
            .map(|it| it.limit_s.get() * 1e3)
    };
    let (width, row_height, left) = (640.0, 28.0, 84.0);
    let height = rows.len() as f64 * row_height + 30.0;
    let values = rows.iter().flat_map(|(metric, percentile, at)| {
        [at.low_ms, at.high_ms].into_iter().chain(limits(*metric, *percentile)).map(|ms| ms.max(1.0).log10())
    });
    let x = Scale::over(values, left + 8.0, width - 70.0);
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Latency predicted, with intervals and limits\"><text class=\"label\" x=\"{left}\" y=\"13\">bar: 80% interval; dashes: the limit; axis logarithmic</text>"
    );
    for (index, (metric, percentile, at)) in rows.iter().enumerate() {
        let y = 30.0 + index as f64 * row_height + row_height / 2.0;
        let [low, value, high] = [at.low_ms, at.value_ms, at.high_ms].map(|ms| x.at(ms.max(1.0).log10()));
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{} {}</text><line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><line class=\"interval\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><circle class=\"chosen\" cx=\"{value:.1}\" cy=\"{y:.1}\" r=\"6\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\">{}</text>",
            left - 8.0,
            y + 4.0,
            metric.name().to_uppercase(),
            percentile.name(),
            width - 66.0,
            width - 60.0,
            y + 4.0,
            time(at.value_ms)
        );
        for limit in limits(*metric, *percentile) {
            let limit_at = x.at(limit.max(1.0).log10());
            let _ = write!(
                out,
                "<line class=\"floor\" x1=\"{limit_at:.1}\" x2=\"{limit_at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"><title>limit {}</title></line>",
                y - 12.0,
                y + 12.0,
                time(limit)
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// Percentiles promised, simulated and measured, as dots on one line each.
pub(crate) fn latency(columns: &[(&str, &Outcome)]) -> String {
    let rows: Vec<(Metric, Percentile)> = [Metric::Ttft, Metric::E2e]
        .into_iter()
        .flat_map(|metric| {
            [Percentile::P50, Percentile::P95, Percentile::P99].map(|percentile| (metric, percentile))
        })
        .collect();
    let (width, row_height, left) = (640.0, 30.0, 84.0);
    let height = rows.len() as f64 * row_height + 34.0;
    let values = rows.iter().flat_map(|(metric, percentile)| {
        columns.iter().map(move |(_, outcome)| outcome.percentile_ms(*metric, *percentile).max(1.0).log10())
    });
    let x = Scale::over(values, left + 8.0, width - 70.0);
    let mut out =
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Latency percentiles\">");
    for (index, (name, _)) in columns.iter().enumerate() {
        let at = left + 12.0 + index as f64 * 130.0;
        let _ = write!(
            out,
            "<circle cx=\"{at}\" cy=\"10\" r=\"5\" fill=\"{}\"/><text class=\"label\" x=\"{}\" y=\"14\">{}</text>",
            series(index),
            at + 10.0,
            escape(name)
        );
    }
    for (index, (metric, percentile)) in rows.iter().enumerate() {
        let y = 34.0 + index as f64 * row_height + row_height / 2.0;
        let name = format!("{} {}", metric.name().to_uppercase(), percentile.name());
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text><line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            left - 8.0,
            y + 4.0,
            width - 66.0
        );
        for (series_index, (_, outcome)) in columns.iter().enumerate() {
            let value = outcome.percentile_ms(*metric, *percentile);
            let at = x.at(value.max(1.0).log10());
            let _ = write!(
                out,
                "<circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"6\" fill=\"{}\"><title>{}</title></circle>",
                series(series_index),
                time(value)
            );
            if series_index + 1 == columns.len() {
                let _ = write!(
                    out,
                    "<text class=\"tick\" x=\"{}\" y=\"{:.1}\">{}</text>",
                    width - 60.0,
                    y + 4.0,
                    time(value)
                );
            }
        }
    }
    out.push_str("</svg>");
    out
}

/// Horizontal bars with their value written at the end; `marked` is drawn in the first colour.
pub(crate) fn bars(rows: &[(String, f64, String)], marked: usize, label: &str) -> String {
    let (width, row_height, left) = (640.0, 34.0, 170.0);
    let longest = rows.iter().map(|(_, value, _)| *value).fold(1e-9, f64::max);
    let height = rows.len() as f64 * row_height + 6.0;
    let mut out =
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(label));
    for (index, (name, value, text)) in rows.iter().enumerate() {
        let y = index as f64 * row_height + 4.0;
        let length = value / longest * (width - left - 150.0);
        let colour = if index == marked { series(0) } else { "var(--muted)".into() };
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{left}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"22\" rx=\"4\" fill=\"{colour}\"/><text class=\"direct\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 10.0,
            y + 16.0,
            escape(name),
            left + length + 8.0,
            y + 16.0,
            escape(text)
        );
    }
    out.push_str("</svg>");
    out
}

/// Where a plan is on the curve of its router.
pub(crate) struct OnCurve {
    /// Share of the stronger model.
    pub(crate) share: f64,
    /// Expected mean score, with its interval.
    pub(crate) quality: Interval,
    /// What is promised on unseen queries.
    pub(crate) certified: f64,
}

/// Quality over the share of queries that the stronger model answers; the plan with its interval and what is certified.
pub(crate) fn quality_curve(curve: &[(f64, f64)], chosen: Option<&OnCurve>) -> String {
    let (width, height, left, bottom, top, right) = (640.0, 280.0, 56.0, 44.0, 18.0, 20.0);
    let x = Scale { low: 0.0, high: 1.0, from: left, to: width - right };
    let interval = chosen.into_iter().flat_map(|at| [at.quality.low, at.quality.high, at.certified]);
    let y = Scale::over(curve.iter().map(|(_, quality)| *quality).chain(interval), height - bottom, top);
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Quality over the share of the stronger model\">"
    );
    for tick in ticks(y.low, y.high) {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.2}</text>",
            width - right,
            left - 8.0,
            at + 4.0
        );
    }
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{:.0}%</text>",
            x.at(tick),
            height - bottom + 18.0,
            tick * 100.0
        );
    }
    let _ = write!(
        out,
        "<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"end\">queries to the stronger model</text><text class=\"label\" x=\"{left}\" y=\"12\">mean score</text>",
        width - right,
        height - 6.0
    );
    if let (Some(first), Some(last)) = (curve.first(), curve.last()) {
        let _ = write!(
            out,
            "<line class=\"random\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            x.at(0.0),
            y.at(first.1),
            x.at(1.0),
            y.at(last.1)
        );
        let middle = f64::midpoint(first.1, last.1);
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">at random</text>",
            x.at(0.5) + 10.0,
            y.at(middle) + 20.0
        );
    }
    let path: Vec<String> =
        curve.iter().map(|(share, quality)| format!("{:.1},{:.1}", x.at(*share), y.at(*quality))).collect();
    let _ = write!(out, "<polyline class=\"front\" points=\"{}\"/>", path.join(" "));
    if let Some(at) = chosen {
        let (cx, low, high) = (x.at(at.share), y.at(at.quality.low), y.at(at.quality.high));
        let (cy, certified) = (y.at(at.quality.value), y.at(at.certified));
        // The label goes where there is room.
        let (gap, anchor) = if at.share > 0.5 { (-12.0, "end") } else { (12.0, "start") };
        let _ = write!(
            out,
            "<line class=\"interval\" x1=\"{cx:.1}\" x2=\"{cx:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/><line class=\"floor\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{certified:.1}\" y2=\"{certified:.1}\"/><circle class=\"chosen\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"7\"/>",
            cx - 9.0,
            cx + 9.0
        );
        let _ = write!(
            out,
            "<text class=\"direct\" x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"{anchor}\">this plan</text><text class=\"label\" x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"{anchor}\">certified ≥ {3:.3}</text>",
            cx + gap,
            cy - 6.0,
            certified.max(cy + 14.0) + 4.0,
            at.certified
        );
    }
    out.push_str("</svg>");
    out
}

/// [`quality_curve`] with a certified policy: its share, and a bar from the lower bound of its quality to the mean.
pub(crate) fn certified_curve(curve: &[(f64, f64)], certified: Option<(f64, (f64, f64))>) -> String {
    let drawing = quality_curve(curve, None);
    let Some((share, (low, mean))) = certified else { return drawing };
    // The same scales as the curve's.
    let x = Scale { low: 0.0, high: 1.0, from: 56.0, to: 620.0 };
    let y = Scale::over(curve.iter().map(|(_, quality)| *quality), 236.0, 18.0);
    let (at, top, bottom) = (x.at(share), y.at(mean), y.at(low).min(236.0));
    let bar = format!(
        "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"6\" height=\"{:.1}\" rx=\"3\" fill=\"{}\"/><text class=\"direct\" x=\"{:.1}\" y=\"{:.1}\">certified</text></svg>",
        at - 3.0,
        (bottom - top).max(2.0),
        series(1),
        at + 9.0,
        bottom - 4.0
    );
    drawing.replace("</svg>", &bar)
}

/// Mean score over mean prediction, a dot per bin with an area that grows with its queries.
pub(crate) fn calibration(bins: &[(f64, f64, usize)]) -> String {
    let (size, left, bottom) = (300.0, 44.0, 34.0);
    let x = Scale { low: 0.0, high: 1.0, from: left, to: size - 10.0 };
    let y = Scale { low: 0.0, high: 1.0, from: size - bottom, to: 10.0 };
    let mut out = format!(
        "<svg viewBox=\"0 0 640 {size}\" role=\"img\" aria-label=\"Mean score over prediction\"><line class=\"random\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        x.at(0.0),
        y.at(0.0),
        x.at(1.0),
        y.at(1.0)
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text><text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            x.at(tick),
            size - bottom + 18.0,
            left - 6.0,
            y.at(tick) + 4.0
        );
    }
    let most = bins.iter().map(|(_, _, queries)| *queries).max().unwrap_or(1).max(1) as f64;
    for (predicted, actual, queries) in bins {
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{}\"><title>predicted {predicted:.2}, scored {actual:.2}, {queries} queries</title></circle>",
            x.at(*predicted),
            y.at(*actual),
            2.0 + 7.0 * (*queries as f64 / most).sqrt(),
            series(0)
        );
    }
    let _ = write!(
        out,
        "<text class=\"label\" x=\"{}\" y=\"{}\">predicted, to the right; scored, upwards</text></svg>",
        size + 10.0,
        size - bottom
    );
    out
}

/// Gains beyond this are drawn here, hollow: a baseline that carries next to nothing would hide all others.
const FARTHEST_GAIN: f64 = 5.0;

/// Gains as dots on one line per row, each row's ascending, with a bar from quartile to quartile and the median written at
/// the end; rows without gains say so.
pub(crate) fn gains(rows: &[(String, &[f64])], label: &str) -> String {
    let (width, row_height, left, right) = (720.0, 26.0, 210.0, 90.0);
    let height = rows.len() as f64 * row_height + 30.0;
    let all = rows.iter().flat_map(|(_, gains)| gains.iter().copied());
    let low = all.clone().fold(0.0, f64::min);
    let high = all.fold(0.01, f64::max).min(FARTHEST_GAIN);
    let air = (high - low) * 0.03;
    let x = Scale { low: low - air, high: high + air, from: left, to: width - right };
    let mut out =
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(label));
    for tick in ticks(x.low, x.high) {
        let at = x.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{0}\"/><text class=\"tick\" x=\"{at:.1}\" y=\"{1}\" text-anchor=\"middle\">{2:+.0}%</text>",
            height - 24.0,
            height - 8.0,
            tick * 100.0
        );
    }
    for (index, (name, gains)) in rows.iter().enumerate() {
        let y = index as f64 * row_height + 16.0;
        let text = if gains.is_empty() {
            "no cell".into()
        } else {
            format!("{:+.1}%", quantile(gains, 0.5) * 100.0)
        };
        let (from, to) = (x.at(quantile(gains, 0.25)), x.at(quantile(gains, 0.75)));
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" rx=\"3\" fill=\"var(--muted)\"/><text class=\"direct\" x=\"{}\" y=\"{:.1}\">{text}</text>",
            left - 10.0,
            y + 5.0,
            escape(name),
            y - 8.0,
            to - from,
            width - right + 10.0,
            y + 5.0
        );
        for gain in *gains {
            let _ = write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\" stroke=\"{1}\" fill=\"{1}\" fill-opacity=\"{2}\"/>",
                x.at(gain.min(FARTHEST_GAIN)),
                series(0),
                if *gain > FARTHEST_GAIN { 0.0 } else { 0.6 }
            );
        }
    }
    out.push_str("</svg>");
    out
}
