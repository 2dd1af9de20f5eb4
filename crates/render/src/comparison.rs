//! Strategies compared over the cells of a grid: counts, gains, losses; as text, Markdown, pictures and a page.
//!
//! A strategy's result in a cell is *infeasible* (it found no plan), *not met* (its plan was scored and a promise did not
//! hold) or *met*. With `min_cost` a plan is met if all latency promises hold at the given rate and the floor holds; with
//! `max_rate` what counts is the largest rate at which they hold, so the floor must hold and that rate exist. The floor is
//! read in two ways: *strict*, at the lower end of the 95 % interval, and *by mean*.
//!
//! The gain of one strategy over another in a cell where both are met is
//! ```text
//! max_rate: rate / other's rate − 1          min_cost: 1 − rent / other's rent
//! ```
//! There is no ratio where one of them is not met or infeasible; such cells are counted instead.

use std::collections::BTreeMap;
use std::fmt::Write;

use boute_spec::outcome::quantile;
use boute_spec::plan::Objective;
use boute_spec::score::{CellName, CellResult, Score};
use serde::Serialize;

use crate::report::{document, html_table, section};
use crate::svg::{escape, gains, standalone};

/// What is compared with the others.
const SUBJECT: &str = "default";
/// What a team could do without a joint search. The other strategies are searches, and reported apart.
const BASELINES: [&str; 8] = [
    "homogeneous",
    "heterogeneous-single",
    "routing-uniform",
    "routing-proportional",
    "sequential",
    "alternating",
    "cascadia",
    "agh",
];
/// The best met baseline of each cell.
pub const BEST_BASELINE: &str = "best baseline";
/// The largest rate is known to 1 %: gains below that are ties.
const RATE_TIE: f64 = 0.01;
/// Rents are exact.
const COST_TIE: f64 = 1e-6;

/// How a floor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// It must hold at the lower end of the 95 % interval.
    Strict,
    /// The mean must reach it.
    ByMean,
}

/// What a comparison came to, under one reading of the floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How the floor is read.
    pub reading: Reading,
    /// Cells with a result.
    pub cells: usize,
    /// Results per strategy.
    pub strategies: Vec<Counts>,
    /// `default` against the best baseline of each cell, then against every other strategy.
    pub against: Vec<Versus>,
    /// Gains of `default` over the best baseline, by level of each dimension.
    pub levels: Vec<Level>,
}

/// How often a strategy's plans were met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counts {
    /// The strategy.
    pub strategy: String,
    /// Every promise held.
    pub met: usize,
    /// A plan that did not keep a promise.
    pub not_met: usize,
    /// No plan.
    pub infeasible: usize,
    /// Cells in which no strategy is better, by more than a tie.
    pub best: usize,
    /// Median seconds of its own planning.
    pub planning_s_median: f64,
}

/// `default` against another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Versus {
    /// The other.
    pub strategy: String,
    /// Whether it is a baseline, not a search of the same kind.
    pub baseline: bool,
    /// Better, or met alone.
    pub wins: usize,
    /// The same.
    pub ties: usize,
    /// Worse, or only the other is met.
    pub losses: usize,
    /// Wins where the other is not met or infeasible.
    pub alone: usize,
    /// Cells where neither is met.
    pub neither: usize,
    /// Rate gained, in cells with `max_rate` where both are met.
    pub performance: Option<Spread>,
    /// Rent saved, in cells with `min_cost` where both are met.
    pub saving: Option<Spread>,
    /// Cells lost.
    pub lost: Vec<Loss>,
    /// All gains, ascending.
    pub gains: Vec<f64>,
}

/// A cell that `default` loses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// The cell.
    pub cell: CellName,
    /// Who wins.
    pub to: String,
    /// Below zero; `None` where `default` is not met or infeasible.
    pub gain: Option<f64>,
}

/// How gains are spread over cells.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub cells: usize,
    /// The least.
    pub worst: f64,
    /// A quarter is below.
    pub lower_quartile: f64,
    /// Half is below.
    pub median: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// A quarter is above.
    pub upper_quartile: f64,
    /// The most.
    pub best: f64,
}

impl Spread {
    /// Of ascending values; `None` for none.
    fn of(sorted: &[f64]) -> Option<Self> {
        Some(Self {
            cells: sorted.len(),
            worst: *sorted.first()?,
            lower_quartile: quantile(sorted, 0.25),
            median: quantile(sorted, 0.5),
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            upper_quartile: quantile(sorted, 0.75),
            best: *sorted.last()?,
        })
    }
}

/// Gains in the cells of one level of a dimension.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Level {
    /// Dimension.
    pub dimension: &'static str,
    /// Level.
    pub level: String,
    /// Gains, ascending.
    pub gains: Vec<f64>,
}

impl Reading {
    fn met(self, result: &CellResult) -> bool {
        let floor_met = |score: &Score| match self {
            Self::Strict => score.floor_met,
            Self::ByMean => score.floor_met_by_mean,
        };
        result.score.as_ref().is_some_and(|score| {
            let carried =
                if result.objective == Objective::MaxRate { score.max_rate > 0.0 } else { score.rate_met };
            carried && floor_met(score)
        })
    }
}

/// The gain of `a` over `b`, both met.
fn gain(a: &CellResult, b: &CellResult) -> f64 {
    let (Some(ours), Some(theirs)) = (&a.score, &b.score) else { return 0.0 };
    match a.objective {
        Objective::MaxRate => ours.max_rate / theirs.max_rate - 1.0,
        _ => 1.0 - ours.cost_usd_per_hour / theirs.cost_usd_per_hour,
    }
}

/// Gains up to this much either way are ties.
const fn tie(objective: Objective) -> f64 {
    if matches!(objective, Objective::MaxRate) { RATE_TIE } else { COST_TIE }
}

/// Results of a cell, by strategy.
type ByStrategy<'a> = BTreeMap<&'a str, &'a CellResult>;

/// Sums results up.
pub fn summarise(results: &[CellResult], reading: Reading) -> Summary {
    let mut cells: BTreeMap<&CellName, ByStrategy<'_>> = BTreeMap::new();
    let mut strategies: Vec<&str> = Vec::new();
    for result in results {
        cells.entry(&result.cell).or_default().insert(&result.strategy, result);
        if !strategies.contains(&result.strategy.as_str()) {
            strategies.push(&result.strategy);
        }
    }
    let rivals = strategies.iter().filter(|strategy| **strategy != SUBJECT);
    let alone = |strategy: &&str| versus(strategy, &cells, reading, &[*strategy]);
    Summary {
        reading,
        cells: cells.len(),
        strategies: strategies.iter().map(|strategy| counts(strategy, &cells, reading)).collect(),
        against: [versus(BEST_BASELINE, &cells, reading, &BASELINES)]
            .into_iter()
            .chain(rivals.map(alone))
            .filter(|versus| versus.wins + versus.ties + versus.losses + versus.neither > 0)
            .collect(),
        levels: levels(&cells, reading),
    }
}

/// The best of the met results of `strategies`; the first of equals.
fn best_of<'a>(cell: &ByStrategy<'a>, strategies: &[&str], reading: Reading) -> Option<&'a CellResult> {
    let met = strategies.iter().filter_map(|strategy| cell.get(strategy)).filter(|at| reading.met(at));
    met.copied().reduce(|best, other| if gain(other, best) > 0.0 { other } else { best })
}

fn counts(strategy: &str, cells: &BTreeMap<&CellName, ByStrategy<'_>>, reading: Reading) -> Counts {
    let results: Vec<&CellResult> = cells.values().filter_map(|cell| cell.get(strategy).copied()).collect();
    let met = results.iter().filter(|result| reading.met(result)).count();
    let infeasible = results.iter().filter(|result| result.score.is_none()).count();
    let is_best = |cell: &&ByStrategy<'_>| {
        let ours = cell.get(strategy).filter(|result| reading.met(result));
        let all: Vec<&str> = cell.keys().copied().collect();
        ours.zip(best_of(cell, &all, reading))
            .is_some_and(|(ours, best)| gain(best, ours) <= tie(ours.objective))
    };
    let mut planning: Vec<f64> = results.iter().map(|result| result.seconds.planning).collect();
    planning.sort_unstable_by(f64::total_cmp);
    Counts {
        strategy: strategy.into(),
        met,
        not_met: results.len() - met - infeasible,
        infeasible,
        best: cells.values().filter(is_best).count(),
        planning_s_median: quantile(&planning, 0.5),
    }
}

/// `default` against the best of `others` in each cell where both were tried.
fn versus(
    name: &str,
    cells: &BTreeMap<&CellName, ByStrategy<'_>>,
    reading: Reading,
    others: &[&str],
) -> Versus {
    let mut versus = Versus {
        strategy: name.into(),
        baseline: others.iter().all(|strategy| BASELINES.contains(strategy)),
        wins: 0,
        ties: 0,
        losses: 0,
        alone: 0,
        neither: 0,
        performance: None,
        saving: None,
        lost: Vec::new(),
        gains: Vec::new(),
    };
    let (mut performance, mut saving) = (Vec::new(), Vec::new());
    for (name, cell) in cells {
        if !others.iter().any(|strategy| cell.contains_key(strategy)) {
            continue;
        }
        let Some(ours) = cell.get(SUBJECT) else { continue };
        let ours = Some(*ours).filter(|result| reading.met(result));
        let theirs = best_of(cell, others, reading);
        let gained = ours.zip(theirs).map(|(ours, theirs)| gain(ours, theirs));
        match (ours, theirs) {
            (None, None) => versus.neither += 1,
            (Some(_), None) => {
                versus.wins += 1;
                versus.alone += 1;
            }
            (_, Some(theirs)) if gained.is_none_or(|gained| gained < -tie(theirs.objective)) => {
                versus.losses += 1;
                let loss = Loss { cell: (*name).clone(), to: theirs.strategy.clone(), gain: gained };
                versus.lost.push(loss);
            }
            (_, Some(theirs)) if gained.is_some_and(|gained| gained > tie(theirs.objective)) => {
                versus.wins += 1;
            }
            _ => versus.ties += 1,
        }
        if let (Some(gained), Some(theirs)) = (gained, theirs) {
            let of = if theirs.objective == Objective::MaxRate { &mut performance } else { &mut saving };
            of.push(gained);
        }
    }
    performance.sort_unstable_by(f64::total_cmp);
    saving.sort_unstable_by(f64::total_cmp);
    versus.performance = Spread::of(&performance);
    versus.saving = Spread::of(&saving);
    versus.gains = [performance, saving].concat();
    versus.gains.sort_unstable_by(f64::total_cmp);
    versus
}

/// Gains over the best baseline, by level of each dimension.
fn levels(cells: &BTreeMap<&CellName, ByStrategy<'_>>, reading: Reading) -> Vec<Level> {
    let mut gains: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    let mut dimensions = [""; 6];
    for (name, cell) in cells {
        let ours = cell.get(SUBJECT).filter(|result| reading.met(result));
        let Some((ours, theirs)) = ours.zip(best_of(cell, &BASELINES, reading)) else { continue };
        for (index, (dimension, level)) in name.levels().into_iter().enumerate() {
            dimensions[index] = dimension;
            gains.entry((index, level.to_owned())).or_default().push(gain(ours, theirs));
        }
    }
    gains
        .into_iter()
        .map(|((index, level), mut gains)| {
            gains.sort_unstable_by(f64::total_cmp);
            Level { dimension: dimensions[index], level, gains }
        })
        .collect()
}

/// One table, for any medium.
struct Table {
    caption: &'static str,
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

fn per_cent(gain: f64) -> String {
    format!("{:+.1} %", gain * 100.0)
}

fn spread_row(name: &str, what: &str, spread: &Spread) -> Vec<String> {
    let Spread { cells, worst, lower_quartile, median, mean, upper_quartile, best } = *spread;
    let gains = [median, mean, lower_quartile, upper_quartile, worst, best].map(per_cent);
    [vec![name.to_owned(), what.to_owned(), cells.to_string()], gains.to_vec()].concat()
}

impl Summary {
    fn tables(&self) -> Vec<Table> {
        let counts = self.strategies.iter().map(|at| {
            let numbers = [at.met, at.not_met, at.infeasible, at.best].map(|count| count.to_string());
            let seconds = format!("{:.2}", at.planning_s_median);
            [vec![at.strategy.clone()], numbers.to_vec(), vec![seconds]].concat()
        });
        let duels = self.against.iter().map(|at| {
            let numbers = [at.wins, at.ties, at.losses, at.alone, at.neither].map(|count| count.to_string());
            [vec![at.strategy.clone()], numbers.to_vec()].concat()
        });
        let gains = self.against.iter().flat_map(|at| {
            let of = |what: &str, spread: &Option<Spread>| {
                spread.as_ref().map(|spread| spread_row(&at.strategy, what, spread))
            };
            [of("rate gained", &at.performance), of("rent saved", &at.saving)].into_iter().flatten()
        });
        let losses = self.against.iter().filter(|at| at.strategy == BEST_BASELINE).flat_map(|at| &at.lost);
        let losses = losses.map(|loss| {
            let by = loss.gain.map_or_else(|| "only it is met".into(), per_cent);
            vec![loss.cell.to_string(), loss.to.clone(), by]
        });
        vec![
            Table {
                caption: "Results per strategy, in cells",
                header: &["strategy", "met", "not met", "infeasible", "best", "planning, median s"],
                rows: counts.collect(),
            },
            Table {
                caption: "`default` against the others, in cells",
                header: &["against", "wins", "ties", "losses", "wins where only it is met", "neither met"],
                rows: duels.collect(),
            },
            Table {
                caption: "Gains of `default`, in cells where both are met",
                header: &["against", "what", "cells", "median", "mean", "25 %", "75 %", "worst", "best"],
                rows: gains.collect(),
            },
            Table {
                caption: "Cells that `default` loses to the best baseline",
                header: &["cell", "to", "gain"],
                rows: losses.collect(),
            },
        ]
    }

    fn title(&self) -> String {
        let reading = match self.reading {
            Reading::Strict => "the floor must hold at the lower end of the 95 % interval",
            Reading::ByMean => "the mean must reach the floor",
        };
        format!("{} cells, {reading}", self.cells)
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let tables = self.tables().into_iter().filter(|table| !table.rows.is_empty());
        tables.fold(format!("{}\n", self.title()), |out, table| {
            format!("{out}\n{}\n{}\n", table.caption, crate::terminal::table(table.header, table.rows, 1))
        })
    }

    fn picture_by_baseline(&self) -> String {
        let rows: Vec<(String, &[f64])> = self
            .against
            .iter()
            .filter(|at| at.baseline)
            .map(|at| (at.strategy.clone(), at.gains.as_slice()))
            .collect();
        gains(&rows, "Gains of the default strategy over each baseline, one dot per cell")
    }

    fn picture_by_level(&self) -> String {
        let name = |level: &Level| format!("{} {}", level.dimension, level.level);
        let rows: Vec<(String, &[f64])> =
            self.levels.iter().map(|level| (name(level), level.gains.as_slice())).collect();
        gains(&rows, "Gains of the default strategy over the best baseline, one dot per cell")
    }
}

/// Results of one cell, a strategy per line.
pub fn score_table(results: &[CellResult]) -> String {
    let header = [
        "strategy",
        "$/h",
        "req/s",
        "max req/s",
        "E2E p95",
        "quality",
        "95 % from",
        "promises",
        "plan, s",
        "fleet",
    ];
    let rows = results.iter().map(|result| {
        let Some(score) = &result.score else {
            let blank = vec!["–".to_owned(); 6];
            let end =
                ["infeasible".to_owned(), format!("{:.2}", result.seconds.planning), result.fleet.clone()];
            return [vec![result.strategy.clone()], blank, end.to_vec()].concat();
        };
        let share = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.4}"));
        let met = if Reading::Strict.met(result) {
            "met"
        } else if Reading::ByMean.met(result) {
            "met by mean"
        } else {
            "not met"
        };
        vec![
            result.strategy.clone(),
            format!("{:.2}", score.cost_usd_per_hour),
            format!("{:.2}", score.rate),
            format!("{:.2}", score.max_rate),
            crate::terminal::time(score.p95_e2el_ms),
            share(score.quality),
            share(score.quality_low),
            met.into(),
            format!("{:.2}", result.seconds.planning),
            result.fleet.clone(),
        ]
    });
    crate::terminal::table(&header, rows.collect(), 1) + "\n"
}

/// A picture of a summary: its file name and SVG text, to stand alone.
pub fn pictures(summary: &Summary) -> [(&'static str, String); 2] {
    [
        ("gains-by-baseline.svg", standalone(&summary.picture_by_baseline())),
        ("gains-by-level.svg", standalone(&summary.picture_by_level())),
    ]
}

/// `summary.md`.
pub fn markdown(summaries: &[Summary], provenance: &str) -> String {
    let mut out = format!("# Strategies compared\n\n{provenance}\n");
    for summary in summaries {
        let _ = write!(out, "\n## {}\n", summary.title());
        for table in summary.tables().into_iter().filter(|table| !table.rows.is_empty()) {
            let line = |cells: &mut dyn Iterator<Item = String>| {
                format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
            };
            let _ = write!(out, "\n{}\n\n", table.caption);
            out.push_str(&line(&mut table.header.iter().map(ToString::to_string)));
            out.push_str(&line(&mut table.header.iter().map(|_| "---".to_owned())));
            for row in table.rows {
                out.push_str(&line(&mut row.into_iter().map(|cell| cell.replace('|', "\\|"))));
            }
        }
    }
    out
}

/// One self-contained page.
pub fn page(summaries: &[Summary], provenance: &str) -> String {
    let mut body =
        format!("<header><h1>Strategies compared</h1><p class=\"lead\">{}</p></header>", escape(provenance));
    for summary in summaries {
        let mut content = String::new();
        for table in summary.tables().into_iter().filter(|table| !table.rows.is_empty()) {
            let rows = table.rows.into_iter().map(|row| row.iter().map(|cell| escape(cell)).collect());
            content.push_str(&html_table(&escape(table.caption), table.header, rows));
        }
        let pictures = [
            ("Gains over each baseline", summary.picture_by_baseline()),
            ("Gains over the best baseline, by level", summary.picture_by_level()),
        ];
        for (title, picture) in pictures {
            let _ = write!(content, "<h3>{title}</h3>{picture}");
        }
        section(&mut body, &escape(&summary.title()), &content);
    }
    document("boute: strategies compared", &body, "")
}

#[cfg(test)]
mod tests {
    use boute_spec::outcome::OutcomeSource;
    use boute_spec::score::Seconds;

    use super::*;

    fn result(cell: u64, objective: Objective, strategy: &str, value: Option<f64>) -> CellResult {
        let score = |value: f64| Score {
            source: OutcomeSource::Simulated,
            cost_usd_per_hour: value,
            rate: 1.0,
            rate_met: true,
            max_rate: value,
            p95_ttft_ms: 1.0,
            p95_tpot_ms: 1.0,
            p95_e2el_ms: 1.0,
            quality: Some(0.6),
            quality_low: Some(0.55),
            floor: Some(0.5),
            floor_met: true,
            floor_met_by_mean: true,
        };
        let level = |name: &str| name.to_owned();
        CellResult {
            cell: CellName {
                trace: level("chat"),
                models: level("two"),
                gpus: level("all"),
                goal: objective.name().into(),
                floor: level("0.7"),
                slo: level("4×"),
                seed: cell,
            },
            objective,
            strategy: strategy.into(),
            score: value.map(score),
            fleet: String::new(),
            gap: None,
            seconds: Seconds { planning: 1.0, ..Seconds::default() },
        }
    }

    /// Rents (`min_cost`) of default, uniform and sequential in five cells; then rates in one.
    fn results() -> Vec<CellResult> {
        let rents = [
            [Some(8.0), Some(16.0), Some(10.0)],
            [Some(11.0), Some(16.0), Some(10.0)],
            [Some(10.0), None, Some(10.0)],
            [Some(10.0), None, None],
            [None, Some(9.0), None],
        ];
        let names = ["default", "routing-uniform", "sequential"];
        let mut results: Vec<CellResult> = rents
            .iter()
            .zip(0..)
            .flat_map(|(rents, cell)| {
                rents.iter().zip(names).map(move |(rent, name)| result(cell, Objective::MinCost, name, *rent))
            })
            .collect();
        results.push(result(9, Objective::MaxRate, "default", Some(30.0)));
        results.push(result(9, Objective::MaxRate, "routing-uniform", Some(20.0)));
        results.push(result(9, Objective::MaxRate, "random", Some(40.0)));
        results
    }

    #[test]
    fn gains_are_ratios_only_where_both_are_met_and_every_cell_is_counted() {
        let summary = summarise(&results(), Reading::Strict);
        assert_eq!(summary.cells, 6);
        let default = &summary.strategies[0];
        assert_eq!((default.met, default.not_met, default.infeasible, default.best), (5, 0, 1, 3));
        let best = &summary.against[0];
        assert_eq!(best.strategy, BEST_BASELINE);
        assert_eq!((best.wins, best.ties, best.losses, best.alone, best.neither), (3, 1, 2, 1, 0));
        let saving = best.saving.unwrap();
        assert_eq!((saving.cells, saving.median), (3, 0.0));
        assert!((saving.best - 0.2).abs() < 1e-12 && (saving.worst + 0.1).abs() < 1e-12, "{saving:?}");
        assert_eq!(best.performance.unwrap().median, 0.5);
        assert_eq!(best.lost[0].to, "sequential");
        assert_eq!((best.lost[1].to.as_str(), best.lost[1].gain), ("routing-uniform", None));
        let random = summary.against.iter().find(|at| at.strategy == "random").unwrap();
        assert_eq!((random.baseline, random.losses), (false, 1));
        let sum = |at: &Versus| at.wins + at.ties + at.losses + at.neither;
        assert!(summary.against.iter().all(|at| sum(at) <= 6 && at.alone <= at.wins));
    }

    #[test]
    fn a_floor_missed_at_the_lower_end_is_not_met_in_the_strict_reading_only() {
        let mut results = results();
        results[0].score.as_mut().unwrap().floor_met = false;
        assert_eq!(summarise(&results, Reading::Strict).strategies[0].not_met, 1);
        assert_eq!(summarise(&results, Reading::ByMean).strategies[0].not_met, 0);
        results[0].score.as_mut().unwrap().rate_met = false;
        assert_eq!(summarise(&results, Reading::ByMean).strategies[0].not_met, 1);
    }

    #[test]
    fn a_summary_reads_well_in_every_medium() {
        let summary = summarise(&results(), Reading::Strict);
        insta::assert_snapshot!(summary.text(), @r"
        6 cells, the floor must hold at the lower end of the 95 % interval

        Results per strategy, in cells
         strategy         met  not met  infeasible  best  planning, median s
         default            5        0           1     3                1.00
         routing-uniform    4        0           2     1                1.00
         sequential         3        0           2     2                1.00
         random             1        0           0     1                1.00

        `default` against the others, in cells
         against          wins  ties  losses  wins where only it is met  neither met
         best baseline       3     1       2                          1            0
         routing-uniform     5     0       1                          2            0
         sequential          2     1       1                          1            1
         random              0     0       1                          0            0

        Gains of `default`, in cells where both are met
         against                 what  cells   median     mean     25 %     75 %    worst     best
         best baseline    rate gained      1  +50.0 %  +50.0 %  +50.0 %  +50.0 %  +50.0 %  +50.0 %
         best baseline     rent saved      3   +0.0 %   +3.3 %   -5.0 %  +10.0 %  -10.0 %  +20.0 %
         routing-uniform  rate gained      1  +50.0 %  +50.0 %  +50.0 %  +50.0 %  +50.0 %  +50.0 %
         routing-uniform   rent saved      2  +40.6 %  +40.6 %  +35.9 %  +45.3 %  +31.2 %  +50.0 %
         sequential        rent saved      3   +0.0 %   +3.3 %   -5.0 %  +10.0 %  -10.0 %  +20.0 %
         random           rate gained      1  -25.0 %  -25.0 %  -25.0 %  -25.0 %  -25.0 %  -25.0 %

        Cells that `default` loses to the best baseline
         cell                                                              to            gain
         chat, two, all, min_cost, floor 0.7, slo 4×, seed 1       sequential         -10.0 %
         chat, two, all, min_cost, floor 0.7, slo 4×, seed 4  routing-uniform  only it is met
        ");
        let markdown = markdown(std::slice::from_ref(&summary), "by a test");
        assert!(markdown.contains("| best baseline | rent saved | 3 | +0.0 % |"), "{markdown}");
        let page = page(std::slice::from_ref(&summary), "a < b");
        assert!(page.starts_with("<!doctype html>") && page.contains("a &lt; b"));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
        for (_, picture) in pictures(&summary) {
            assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</svg>"));
            assert!(!picture.contains("NaN"));
        }
        let nothing = summarise(&[], Reading::Strict);
        assert!(pictures(&nothing).iter().all(|(_, picture)| !picture.contains("NaN")));
    }
}
