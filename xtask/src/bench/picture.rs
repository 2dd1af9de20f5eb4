//! Pictures of benchmarks, as SVG that reads on light and dark pages.

use std::fmt::Write;

use boute_mobo::Study;

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#333}.axis{stroke:#888;fill:none}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}}</style>";
/// From pale to strong: a sequence reads as an order.
const COLOURS: [&str; 4] = ["#9ecae1", "#4292c6", "#e6862e", "#b3261e"];

/// A range of values along a range of pixels.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn at(self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

/// The front of two objectives after the design and after more evaluations; evaluations are dots, later ones stronger.
pub(super) fn front_over_iterations(study: &Study, reference: &[f64], name: &str) -> String {
    let total = study.evaluations().len();
    let stages = [study.problem().initial(), total / 4, total / 2, total];
    let x = Scale { low: 0.0, high: reference[0] * 1.05, from: 60.0, to: 620.0 };
    let y = Scale { low: 0.0, high: reference[1] * 1.05, from: 360.0, to: 30.0 };
    let mut out = begin(640, 410, &format!("{name}: the front over {total} evaluations"));
    axes(&mut out, x, y, "first objective", "second objective");
    for (at, evaluation) in study.evaluations().iter().enumerate() {
        let Some(outcome) = &evaluation.outcome else { continue };
        let (f, g) = (outcome.objectives[0], outcome.objectives[1]);
        if f < x.high && g < y.high {
            let stage = stages.iter().position(|stage| at < *stage).unwrap_or(3);
            let _ = write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>",
                x.at(f),
                y.at(g),
                COLOURS[stage]
            );
        }
    }
    for (stage, count) in stages.iter().enumerate() {
        let mut front: Vec<&[f64]> = (study.front_after(*count).into_iter())
            .filter_map(|at| study.evaluations()[at].outcome.as_ref())
            .map(|outcome| outcome.objectives.as_slice())
            .filter(|point| point[0] < reference[0] && point[1] < reference[1])
            .collect();
        front.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let mut path = String::new();
        let mut height = y.at(reference[1]);
        for point in front {
            let _ = write!(path, "{:.1},{height:.1} ", x.at(point[0]));
            height = y.at(point[1]);
            let _ = write!(path, "{:.1},{height:.1} ", x.at(point[0]));
        }
        let _ = write!(path, "{:.1},{height:.1}", x.at(reference[0]));
        let colour = COLOURS[stage];
        let _ = write!(
            out,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
        let row = 50.0 + 18.0 * stage as f64;
        let _ = write!(
            out,
            "<circle cx=\"430\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/><text x=\"442\" y=\"{row:.1}\">after {count} evaluations, HV {:.2}</text>",
            row - 4.0,
            study.hypervolume_after(*count)
        );
    }
    out + "</svg>\n"
}

/// Seconds as one size grows and the others stay; both axes logarithmic, one panel per size.
pub(super) fn growth(title: &str, panels: &[(&str, Vec<(usize, f64)>)]) -> String {
    let mut out = begin(220 * panels.len(), 260, title);
    let seconds = panels.iter().flat_map(|(_, points)| points.iter().map(|point| point.1.log10()));
    let low = seconds.clone().fold(f64::INFINITY, f64::min).floor();
    let high = seconds.fold(f64::NEG_INFINITY, f64::max).ceil();
    for (panel, (label, points)) in panels.iter().enumerate() {
        let left = 220.0 * panel as f64;
        let ends =
            [points.first(), points.last()].map(|point| point.map_or(1.0, |point| (point.0 as f64).log10()));
        let x = Scale { low: ends[0], high: ends[1], from: left + 55.0, to: left + 200.0 };
        let y = Scale { low, high, from: 210.0, to: 40.0 };
        let _ = write!(out, "<path class=\"axis\" d=\"M{0:.1},40V210H{1:.1}\"/>", left + 50.0, left + 205.0);
        for power in low as i32..=high as i32 {
            let at = y.at(f64::from(power));
            let value = 10_f64.powi(power);
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                left + 46.0,
                at + 4.0
            );
        }
        let path: Vec<String> = points
            .iter()
            .map(|(size, seconds)| {
                format!("{:.1},{:.1}", x.at((*size as f64).log10()), y.at(seconds.log10()))
            })
            .collect();
        let _ = write!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"250\">{label}</text>",
            path.join(" "),
            COLOURS[1],
            left + 60.0
        );
        for (size, seconds) in points {
            let (cx, cy) = (x.at((*size as f64).log10()), y.at(seconds.log10()));
            let _ = write!(
                out,
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{}\"/><text x=\"{cx:.1}\" y=\"228\" text-anchor=\"middle\">{size}</text>",
                COLOURS[1]
            );
        }
    }
    out + "</svg>\n"
}

fn begin(width: usize, height: usize, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">{STYLE}\
         <text x=\"{}\" y=\"18\" text-anchor=\"middle\">{title}</text>",
        width / 2
    )
}

fn axes(out: &mut String, x: Scale, y: Scale, across: &str, up: &str) {
    let _ = write!(out, "<path class=\"axis\" d=\"M{0},{1}V{2}H{3}\"/>", x.from, y.to, y.from, x.to);
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (a, b) = (x.low + share * (x.high - x.low), y.low + share * (y.high - y.low));
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{a:.1}</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{b:.1}</text>",
            x.at(a),
            y.from + 18.0,
            x.from - 6.0,
            y.at(b) + 4.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"340\" y=\"{:.1}\" text-anchor=\"middle\">{across}</text><text transform=\"translate(16,200) rotate(-90)\" text-anchor=\"middle\">{up}</text>",
        y.from + 38.0
    );
}
