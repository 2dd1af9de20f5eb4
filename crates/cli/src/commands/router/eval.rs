//! `boute router eval`.

use std::fmt::Write;
use std::path::PathBuf;

use boute_render::router::{Calibration, RouterPage};
use boute_router::eval::{Comparison, Gain, Ranking, Report, compare, report};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::certify::Certificate;
use super::{Part, assignment, costs, read_router, score};
use crate::failure::{Ending, Failure};
use crate::files::write_whole;
use crate::printer::Printer;

/// Evaluates a router.
#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// The router.
    router: PathBuf,
    /// Per-query scores: JSON lines, plain or gzip.
    data: PathBuf,
    /// The queries to judge it by.
    #[arg(long, value_enum, default_value_t = Part::Test)]
    split: Part,
    /// What an answer of a model costs, in any unit: MODEL=NUMBER, once per model. Adds what the whole pool saves.
    #[arg(long = "cost", value_parser = assignment)]
    costs: Vec<(String, f64)>,
    /// Another router, to be judged on the same queries: what this one gains over it.
    #[arg(long, value_name = "ROUTER")]
    against: Option<PathBuf>,
    /// Write a page with pictures here.
    #[arg(long)]
    report: Option<PathBuf>,
    /// A certificate to draw in the page.
    #[arg(long, requires = "report")]
    certificate: Option<PathBuf>,
}

pub(super) fn run(args: &Eval, printer: Printer) -> Result<Ending, Failure> {
    let (scorer, router) = read_router(&args.router)?;
    let scored = score(&scorer, &args.data, args.split)?;
    let costs = costs(&args.costs, scorer.models())?;
    let tasks: Vec<&str> = scored.tasks.iter().map(String::as_str).collect();
    let report = report(&scored.queries, &tasks, costs.as_deref());
    if let Some(path) = &args.report {
        let certificate = args.certificate.as_ref().map(|path| Certificate::read(path, &router));
        let page = page(&report, certificate.transpose()?.as_ref());
        write_whole(path, page.html().as_bytes())?;
        printer.say(format_args!("wrote {}", path.display()));
    }
    let mut against = None;
    if let Some(path) = &args.against {
        let (other, input) = read_router(path)?;
        if other.models() != scorer.models() {
            let hint = format!(
                "it knows {}, and this one {}",
                other.models().join(", "),
                scorer.models().join(", ")
            );
            return Err(Failure::input(format_args!("`{}` is for other models", input.name), hint));
        }
        against = compare(&scored.queries, &score(&other, &args.data, args.split)?.queries);
    }
    printer.data(&Judged { report: &report, against })?;
    printer.text(as_text(&report));
    if let Some(against) = &against {
        printer.text(gains_as_text(against));
    }
    Ok(Ending::Done)
}

#[derive(Serialize)]
struct Judged<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Comparison>,
}

fn gains_as_text(against: &Comparison) -> String {
    let mut text = "\nmore than the other router, with 95 % interval\n".to_owned();
    for (name, Gain { value, low, high }) in
        [("APGR", against.apgr), ("AUC of the weak model", against.auc), ("Brier score of it", against.brier)]
    {
        let _ = writeln!(text, "  {name}: {value:+.4} ({low:+.4} to {high:+.4})");
    }
    text
}

/// The report as plain numbers for the page.
fn page(report: &Report, certificate: Option<&Certificate>) -> RouterPage {
    let calibration = report.models.iter().map(|model| Calibration {
        model: model.model.clone(),
        bins: model.bins.iter().map(|bin| (bin.predicted, bin.actual, bin.queries)).collect(),
    });
    // The curve is of two models; a policy of more does not lie on it.
    let certificate = certificate.filter(|certificate| certificate.models.len() == 2);
    let certified = certificate.zip(report.pair.as_ref()).and_then(|(certificate, pair)| {
        let at = certificate.models.iter().position(|model| *model == pair.strong)?;
        Some((certificate.shares[at], certificate.quality_interval()?))
    });
    RouterPage {
        queries: report.queries,
        calibration: calibration.collect(),
        curve: report.pair.as_ref().map(|pair| pair.curve.clone()).unwrap_or_default(),
        certified,
        rankings: rankings(report)
            .into_iter()
            .map(|(name, ranking)| (name.to_owned(), [ranking.apgr, ranking.cpt50, ranking.cpt80]))
            .collect(),
    }
}

/// The router's ranking beside what it is to be compared with.
fn rankings(report: &Report) -> Vec<(&'static str, Ranking)> {
    let Some(pair) = &report.pair else { return Vec::new() };
    let random = Ranking { apgr: pair.apgr_random, cpt50: 0.5, cpt80: 0.8 };
    let rows = [
        ("this router", Some(pair.router)),
        ("random", Some(random)),
        ("weak score alone", Some(pair.weak_only)),
        ("task means, known", pair.task_oracle),
        ("oracle", Some(pair.oracle)),
    ];
    rows.into_iter().filter_map(|(name, ranking)| Some((name, ranking?))).collect()
}

fn as_text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["model", "quality", "AUC", "ECE", "Brier"]);
    for model in &report.models {
        let numbers = [model.quality, model.auc, model.ece, model.brier].map(|number| format!("{number:.4}"));
        table.add_row(std::iter::once(model.model.clone()).chain(numbers));
    }
    let mut text = format!("{} queries\n{table}\n", report.queries);
    if let Some(pair) = &report.pair {
        let mut table = Table::new();
        let title = format!("{} → {}", pair.weak, pair.strong);
        table.load_style(presets::NOTHING).set_header([&title, "APGR", "CPT50", "CPT80"]);
        for (name, ranking) in rankings(report) {
            let share = |share: f64| format!("{:.1}%", share * 100.0);
            table.add_row([
                name.to_owned(),
                format!("{:.4}", ranking.apgr),
                share(ranking.cpt50),
                share(ranking.cpt80),
            ]);
        }
        let _ = writeln!(text, "\n{table}\nstandard error of the APGR {:.4}", pair.apgr_standard_error);
    }
    if let Some(pool) = &report.pool {
        let _ = writeln!(
            text,
            "\npool: best single {} {:.4}, router at no price {:.4}, best per task {:.4}, oracle {:.4}\nsaved at the best single's quality {:.0}%, at 95% of it {:.0}%; AIQ {:.4}",
            pool.best_single,
            pool.best.quality,
            pool.unpriced_quality,
            pool.task_oracle_quality,
            pool.oracle_quality,
            pool.saved_at_best * 100.0,
            pool.saved_at_95_percent * 100.0,
            pool.aiq
        );
    }
    text
}
