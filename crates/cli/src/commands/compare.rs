//! `boute compare`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use boute_planner::assemble::in_words;
use boute_planner::score::{Scoring, unloaded_e2e_p95_s};
use boute_planner::{Database, Lever, PlanError, Prepared, Problem, Strategy};
use boute_render::comparison::{Reading, Summary, markdown, page, pictures, score_table, summarise};
use boute_router::certify::FloorRule;
use boute_spec::file::Robust;
use boute_spec::file::{QualityEntry, Spec, Traffic};
use boute_spec::grid::{Cell, Goal, Grid};
use boute_spec::parse::parse_grid;
use boute_spec::plan::Plan;
use boute_spec::score::{CellName, CellResult, Seconds};
use boute_spec::slo::{Metric, Percentile, SloTarget};
use boute_spec::units;
use boute_spec::workload::Trace;

use crate::cache::database;
use crate::failure::{Ending, Failure};
use crate::files::{Input, beside, write_whole};
use crate::load::{Choices, Loaded, load, offers, resolve};
use crate::printer::Printer;
use crate::progress::{Progress, catch_ctrl_c, stop_requested};
use crate::results::Results;

/// Plans by every strategy on the same candidates and table, and scores the plans by simulation on a third window of the
/// trace and on held-out queries. See docs/compare.md.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The spec, `boute.yaml`.
    #[arg(required_unless_present = "grid", conflicts_with = "grid")]
    spec: Option<PathBuf>,
    /// A grid of scenarios instead of one spec, such as `grids/ci.yaml`.
    #[arg(long, requires = "output")]
    grid: Option<PathBuf>,
    /// Strategies, separated by commas; all of them if left out.
    #[arg(long, value_delimiter = ',')]
    strategies: Vec<Strategy>,
    /// The default strategy, and it without each of its parts in turn: routing, GPU types, parallelism, joint search, repair,
    /// conditional lengths.
    #[arg(long, conflicts_with = "strategies")]
    attribution: bool,
    /// Folder for the results of a grid: one line per cell and strategy, summary, pictures, page. Run again with the same
    /// folder, a grid goes on where it was stopped.
    #[arg(long, short, requires = "grid")]
    output: Option<PathBuf>,
    /// Seed of every random choice; a grid has its own.
    #[arg(long, default_value_t = 0, conflicts_with = "grid")]
    seed: u64,
    /// Use this cloud's prices only.
    #[arg(long)]
    cloud: Option<String>,
}

impl Args {
    fn contenders(&self) -> Vec<Contender> {
        if self.attribution {
            let without = Lever::ALL.map(Contender::Without);
            return [Contender::Strategy(Strategy::Default)].into_iter().chain(without).collect();
        }
        let all = if self.strategies.is_empty() { &Strategy::ALL[..] } else { &self.strategies };
        let mut seen = BTreeSet::new();
        all.iter().filter(|strategy| seen.insert(**strategy)).map(|it| Contender::Strategy(*it)).collect()
    }

    fn choices(&self, seed: u64) -> Choices {
        Choices { cloud: self.cloud.clone(), seed, router_file: "plan.router.json".into(), scoring: true }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
enum Contender {
    Strategy(Strategy),
    /// The default strategy without a part of it.
    Without(Lever),
}

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::Strategy(strategy) => strategy.name(),
            Self::Without(lever) => lever.name(),
        }
    }

    fn draft(
        self,
        prepared: &Prepared<'_>,
        progress: boute_planner::Progress<'_>,
    ) -> Result<Plan, PlanError> {
        let draft = match self {
            Self::Strategy(strategy) => prepared.draft(strategy, progress),
            Self::Without(lever) => prepared.draft_without(lever, progress),
        };
        draft.map(|(plan, _)| plan)
    }
}

/// Begins the reason for no plan where boute is to blame.
const FAULT: &str = "fault: ";

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    catch_ctrl_c(&runtime);
    match (&args.spec, &args.grid, &args.output) {
        (Some(spec), _, _) => compare_spec(args, spec, printer),
        (None, Some(grid), Some(folder)) => compare_grid(args, grid, folder, printer),
        _ => Err(Failure::unexpected("neither a spec nor a grid was given")),
    }
}

fn compare_spec(args: &Args, spec: &Path, printer: Printer) -> Result<Ending, Failure> {
    let loaded = load(spec, &args.choices(args.seed))?;
    for note in &loaded.notes {
        printer.say(note);
    }
    let contenders = args.contenders();
    let progress = Progress::new(printer.quiet);
    let case = Case::of_spec(spec, loaded)?;
    let mut results = Vec::new();
    let ended = case.run(&contenders, &database(), &|message| progress.at(message, 0, 1), &mut |result| {
        results.push(result);
        Ok(())
    })?;
    progress.finish();
    if ended == Ended::Stopped {
        printer.say("stopped: not all strategies were tried");
    }
    printer.text(score_table(&results));
    printer.data(&results)?;
    Ok(if ended == Ended::Stopped { Ending::Unmet } else { Ending::Done })
}

fn compare_grid(args: &Args, path: &Path, folder: &Path, printer: Printer) -> Result<Ending, Failure> {
    let input = Input::read(path)?;
    let grid = parse_grid(&input.name, &input.text).map_err(Failure::told)?;
    let mut results = Results::open(folder, &input.sha256)?;
    let contenders = args.contenders();
    let cells: Vec<(Cell, CellName, Vec<Contender>)> = grid
        .cells()
        .into_iter()
        .map(|cell| {
            let name = grid.name(&cell);
            let left = contenders.iter().copied().filter(|it| !results.has(&name, it.name())).collect();
            (cell, name, left)
        })
        .filter(|(_, _, left): &(_, _, Vec<Contender>)| !left.is_empty())
        .collect();
    let total: u64 = cells.iter().map(|(_, _, left)| left.len() as u64).sum();
    let mut maker = Maker { args, grid: &grid, input: &input, path, base: None, printer };
    let database = database();
    let progress = Progress::new(printer.quiet);
    let mut done = 0;
    let mut stopped = false;
    for (cell, name, left) in cells {
        let case = maker.case(&cell, name)?;
        let done_here = AtomicU64::new(0);
        let show = |message: &str| progress.at(message, done + done_here.load(Ordering::Relaxed), total);
        let ended = case.run(&left, &database, &show, &mut |result| {
            done_here.fetch_add(1, Ordering::Relaxed);
            results.add(result)
        })?;
        done += done_here.into_inner();
        if ended == Ended::Stopped {
            stopped = true;
            break;
        }
    }
    progress.finish();
    report(&results, &grid, &input, folder, printer)?;
    if stopped {
        printer.say(format_args!("stopped after {done} of {total}; the same command goes on from here"));
    }
    let faults = results.all().iter().filter(|result| result.fleet.starts_with(FAULT)).count();
    if faults > 0 {
        return Err(Failure::unexpected(format_args!(
            "{faults} plans were refused by their own checks; see `{FAULT}` in results.jsonl"
        )));
    }
    Ok(if stopped { Ending::Unmet } else { Ending::Done })
}

/// Summary, pictures and page in the folder; tables on stdout.
fn report(
    results: &Results,
    grid: &Grid,
    input: &Input,
    folder: &Path,
    printer: Printer,
) -> Result<(), Failure> {
    let results = results.all();
    let summaries: Vec<Summary> =
        [Reading::Strict, Reading::ByMean].into_iter().map(|reading| summarise(results, reading)).collect();
    let provenance = format!(
        "{} of {} cells of {} (SHA-256 {}), boute {}. Planned on simulated tables, scored by simulation of the whole fleet on a third window of each trace and on held-out queries. Times come from a cost model fitted to measurements, prices from the catalogue (SHA-256 {}).",
        summaries[0].cells,
        grid.cells().len(),
        input.name,
        &input.sha256[..12],
        env!("CARGO_PKG_VERSION"),
        &boute_spec::catalog::Catalog::builtin().digest()[..12],
    );
    write_whole(&folder.join("summary.md"), markdown(&summaries, &provenance).as_bytes())?;
    write_whole(&folder.join("summary.html"), page(&summaries, &provenance).as_bytes())?;
    for (name, picture) in pictures(&summaries[0]) {
        write_whole(&folder.join(name), picture.as_bytes())?;
    }
    for summary in &summaries {
        printer.text(format_args!("{}\n", summary.text()));
    }
    printer.say(format_args!("wrote {}", folder.join("summary.html").display()));
    printer.data(&serde_json::json!({ "results": results, "summaries": summaries }))
}

/// Makes the problems of cells; keeps what neighbouring cells share.
struct Maker<'a> {
    args: &'a Args,
    grid: &'a Grid,
    input: &'a Input,
    path: &'a Path,
    base: Option<Base>,
    printer: Printer,
}

/// What the cells of one trace, model set, seed and GPU set share.
struct Base {
    key: (usize, usize, u64),
    loaded: Loaded,
    gpus: Option<(usize, f64)>,
}

impl Maker<'_> {
    fn case(&mut self, cell: &Cell, name: CellName) -> Result<Case, Failure> {
        let key = (cell.trace, cell.models, cell.seed);
        let mut base = match self.base.take() {
            Some(base) if base.key == key => base,
            _ => self.load(cell)?,
        };
        let unloaded_s = match base.gpus {
            Some((gpus, unloaded_s)) if gpus == cell.gpus => unloaded_s,
            _ => {
                let gpus = &self.grid.gpus[cell.gpus].gpus;
                base.loaded.problem.offers = offers(gpus, self.args.cloud.as_deref(), &mut Vec::new())?;
                // Where no model fits, no limit is met: the planner says so.
                let unloaded_s = unloaded_e2e_p95_s(&base.loaded.problem).unwrap_or(1.0);
                base.gpus = Some((cell.gpus, unloaded_s));
                unloaded_s
            }
        };
        let limit_s = units::Seconds::new(self.grid.slo[cell.slo].get() * unloaded_s).unwrap_or_default();
        let slo = SloTarget { metric: Metric::E2e, percentile: Percentile::P95, limit_s, model: None };
        let shared = &base.loaded.problem;
        let mut problem = Problem {
            slo: vec![slo],
            floor: Some(floor(shared, self.grid.floors[cell.floor].get())),
            confidence: self.grid.confidence.get(),
            ..shared.clone()
        };
        problem.objective = self.grid.goals[cell.goal].objective();
        match self.grid.goals[cell.goal] {
            Goal::MaxRate(budget) => problem.budget = Some(budget.get()),
            Goal::MinCost(rate) => {
                problem.rate = rate.get();
                problem.planning_trace = shared.planning_trace.at_rate(problem.rate);
                problem.verification_trace = shared.verification_trace.at_rate(problem.rate);
            }
        }
        let window = scoring_window(&base.loaded)?.clone();
        self.base = Some(base);
        Ok(Case { name, problem, window })
    }

    /// Trace, models, router and scored queries. Requests that some model cannot hold are left out of all windows.
    fn load(&self, cell: &Cell) -> Result<Base, Failure> {
        let (trace, models) = (&self.grid.traces[cell.trace], &self.grid.models[cell.models]);
        let spec = Spec {
            models: models.models.clone(),
            gpus: self.grid.gpus[cell.gpus].gpus.clone(),
            traffic: Traffic { trace: trace.trace.clone(), rate: None, lengths: trace.lengths },
            slo: Vec::new(),
            quality: Some(QualityEntry {
                data: models.quality.clone(),
                router: None,
                floor: None,
                confidence: self.grid.confidence,
                cascade: None,
            }),
            objective: boute_spec::plan::Objective::MinCost,
            budget: None,
            robust: Robust::USUAL,
            disaggregate: false,
        };
        let open = |name: &str| Input::read(&beside(self.path, name));
        let choices = self.args.choices(cell.seed);
        let mut loaded = resolve(&spec, self.input.digest("grid"), &choices, &open)?;
        let too_long = keep_what_fits(&mut loaded)?;
        if too_long > 0 {
            self.printer.say(format_args!(
                "{}, {}: {too_long} requests longer than a model's context left out",
                trace.id, models.id
            ));
        }
        Ok(Base { key: (cell.trace, cell.models, cell.seed), loaded, gpus: None })
    }
}

/// This share of the way from the smallest model's mean score on the planning queries to the largest model's, stated
/// relative to the largest model, as a spec can.
fn floor(problem: &Problem, share: f64) -> FloorRule {
    let size = |model: &usize| problem.models[*model].shape.parameters();
    let models = 0..problem.models.len();
    let smallest = models.clone().min_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or_default();
    let largest = models.max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or_default();
    let mean = |model: usize| {
        let queries = problem.quality.as_ref().map(|quality| &quality.planning);
        queries.map_or(0.0, |queries| {
            (0..queries.len()).map(|query| queries.actual(query, model)).sum::<f64>() / queries.len() as f64
        })
    };
    let (low, high) = (mean(smallest), mean(largest));
    FloorRule::Relative { share: (low + share * (high - low)) / high.max(1e-9), model: largest }
}

fn scoring_window(loaded: &Loaded) -> Result<&Trace, Failure> {
    loaded.scoring.as_ref().ok_or_else(|| Failure::unexpected("no window was kept for scoring"))
}

/// Leaves out requests whose prompt and answer exceed the context of some model; how many.
fn keep_what_fits(loaded: &mut Loaded) -> Result<usize, Failure> {
    let problem = &loaded.problem;
    let scales = problem.output_scales();
    let context = problem.models.iter().map(|model| model.shape.max_context).min().unwrap_or(u32::MAX);
    let fits = |request: &boute_spec::workload::TraceRequest| {
        scales.iter().enumerate().all(|(model, scale)| {
            let (prompt, answer) = problem.tokens(request, None, model, *scale);
            prompt.saturating_add(answer) <= context
        })
    };
    let keep = |trace: &Trace| {
        let kept: Vec<_> = trace.requests().iter().filter(|request| fits(request)).cloned().collect();
        let left_out = trace.requests().len() - kept.len();
        let kept = Trace::new(kept).map_err(|error| {
            Failure::input(error, format_args!("give traffic of at most {context} tokens per request"))
        })?;
        Ok((kept.at_rate(problem.rate), left_out))
    };
    let (planning, verification, scoring) =
        (keep(&problem.planning_trace)?, keep(&problem.verification_trace)?, keep(scoring_window(loaded)?)?);
    loaded.problem.planning_trace = planning.0;
    loaded.problem.verification_trace = verification.0;
    loaded.scoring = Some(scoring.0);
    Ok(planning.1 + verification.1 + scoring.1)
}

/// One problem that all strategies are tried on.
struct Case {
    name: CellName,
    problem: Problem,
    window: Trace,
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Whole,
    Stopped,
}

impl Case {
    fn of_spec(spec: &Path, loaded: Loaded) -> Result<Self, Failure> {
        let window = scoring_window(&loaded)?.clone();
        let problem = loaded.problem;
        let limits: Vec<String> = problem.slo.iter().map(ToString::to_string).collect();
        let budget = problem.budget.map(|budget| format!(", at most ${budget:.2}/h")).unwrap_or_default();
        let name = CellName {
            trace: spec.display().to_string(),
            models: problem.model_ids().join(" + "),
            gpus: problem.offers.iter().map(|offer| offer.gpu.name.as_str()).collect::<Vec<_>>().join(" + "),
            goal: format!("{} {:.2} req/s{budget}", problem.objective.name(), problem.rate),
            floor: match problem.floor {
                None => "none".into(),
                Some(FloorRule::Absolute(floor)) => floor.to_string(),
                Some(FloorRule::Relative { share, model }) => {
                    format!("{share} of {}", problem.models[model].id)
                }
            },
            slo: limits.join(", "),
            seed: problem.seed,
        };
        Ok(Self { name, problem, window })
    }

    /// Plans by each of `contenders` and scores; `each` is given every result as soon as it is there. What is stopped
    /// half-way is no result.
    fn run(
        &self,
        contenders: &[Contender],
        database: &Database,
        show: &(dyn Fn(&str) + Sync),
        each: &mut dyn FnMut(CellResult) -> Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        let progress = |step: &boute_planner::Step| {
            show(&step.message);
            stop_requested()
        };
        let start = Instant::now();
        let prepared = match Prepared::new(&self.problem, database, &progress) {
            Err(error @ PlanError::Infeasible(_)) => Err(why(&error)),
            Err(PlanError::Stopped) => return Ok(Ended::Stopped),
            other => Ok(other.map_err(Failure::unexpected)?),
        };
        let shared = start.elapsed().as_secs_f64();
        let mut scoring = Scoring::new(&self.problem, &self.window);
        for &contender in contenders {
            let start = Instant::now();
            let plan = match &prepared {
                Ok(prepared) => contender.draft(prepared, &progress).map_err(|error| why(&error)),
                Err(why) => Err(why.clone()),
            };
            let planning = start.elapsed().as_secs_f64();
            show(&format!("scoring `{}`", contender.name()));
            let start = Instant::now();
            let score = plan.as_ref().ok().and_then(|plan| scoring.score(plan, &stop_requested));
            if stop_requested() {
                return Ok(Ended::Stopped);
            }
            let seconds = Seconds { shared, planning, scoring: start.elapsed().as_secs_f64() };
            let (fleet, gap) = match &plan {
                Ok(plan) => (in_words(&plan.deployment), plan.bound.as_ref().map(|bound| bound.gap)),
                Err(why) => (why.clone(), None),
            };
            each(CellResult {
                cell: self.name.clone(),
                objective: self.problem.objective,
                strategy: contender.name().into(),
                score,
                fleet,
                gap,
                seconds,
            })?;
        }
        Ok(Ended::Whole)
    }
}

/// Why a strategy has no plan, in a line. A plan that the checks refuse is a fault of boute, and says so.
fn why(error: &PlanError) -> String {
    match error {
        PlanError::Infeasible(infeasible) => infeasible.reason.clone(),
        PlanError::Stopped | PlanError::OtherProblem(_) => error.to_string(),
        PlanError::Invalid(invalid) => format!("{FAULT}{}", invalid.to_string().replace('\n', " ")),
    }
}
