//! `boute autopilot`.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boute_gateway::HttpClient;
use boute_planner::autopilot::{
    Act, Autopilot, Decision, Entry, Hold, Question, Record, Scene, Settings, Signals, digest,
};
use boute_planner::mix::ScoreMix;
use boute_planner::rents::Rents;
use boute_planner::replan::Answer;
use boute_planner::{Database, PlanError, Problem};
use boute_spec::digest::sha256_hex;
use boute_spec::plan::Plan;
use boute_spec::units::Seconds;
use boute_spec::workload::TraceRequest;
use tokio::runtime::Runtime;

use crate::cache::database;
use crate::commands::explain::spec_of;
use crate::decisions::in_order;
use crate::failure::{Ending, Failure};
use crate::files::{Input, beside, read_plan, write_all_whole, write_whole};
use crate::load::{Choices, Loaded, load, router_file_of};
use crate::market::{Gpus, MovingArgs, apply_prices, offers_digest};
use crate::printer::Printer;
use crate::progress::{catch_ctrl_c, stop_requested};
use crate::replay::router_of;

mod folder;
mod tail;

use folder::{Folder, Journal};
use tail::Traffic;

/// Seconds that the gateway's metrics may take.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);
/// The metric by which a gateway says that its certificate no longer holds.
const VOID: &str = "boute_certificate_void";

/// Keeps a plan true: follows the gateway's log of decisions, forecasts the rate, plans again when rate, lengths, queries, prices
/// or stock are not what they were, and routes otherwise or moves the fleet, if that is worth it.
///
/// Without `--live` it only says in its journal what it would do. All it keeps is in `PLAN.autopilot/`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    said: Option<Said>,
    #[command(flatten)]
    run: Option<RunArgs>,
    /// Beside the loop's arguments and not among them: clap takes optional arguments that hold others for absent.
    #[command(flatten)]
    moving: MovingArgs,
}

/// What a person says to it, at any time.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Said {
    /// Say what runs, what is under way, and what was decided last.
    Status(PlanArg),
    /// Leave fleet and routing as they are; a move under way pauses before its next step.
    Pin(PlanArg),
    /// Leave the fleet as it is, also in the middle of a move; queries may be routed otherwise.
    Freeze(PlanArg),
    /// Go on after `pin` or `freeze`, with a move that was under way too.
    Release(PlanArg),
    /// Say which GPUs are lost, all in all; without any, that none is.
    Lost {
        #[command(flatten)]
        plan: PlanArg,
        /// Such as `H100-SXM:2`.
        gpus: Vec<Gpus>,
    },
}

/// Which plan.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArg {
    /// The plan.
    plan: PathBuf,
}

/// The loop.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The plan that the gateway serves.
    plan: PathBuf,
    /// The gateway's log of decisions (`boute serve --decisions FILE`).
    #[arg(long, value_name = "FILE")]
    decisions: PathBuf,
    /// The gateway's admin interface, to hear from its metrics when quality no longer holds.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// The spec, looked at again whenever it changes; without, the file that the plan names.
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Prices as they are, looked at again whenever they change: lines such as `H100-SXM $2.40/h`.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Use this cloud's prices only, as the plan did.
    #[arg(long)]
    cloud: Option<String>,
    /// Act: without, nothing is done.
    #[arg(long)]
    live: bool,
    /// The command that has the fleet of the plan in `$BOUTE_PLAN` running; it may be run again for the same plan. Without, the
    /// fleet stays as it is. Such as `boute export k8s "$BOUTE_PLAN" -o run/ && kubectl apply --server-side -f run/`;
    /// what also deletes groups that are gone is in docs/operating.md.
    #[arg(long, value_name = "COMMAND", requires = "live")]
    apply: Option<String>,
    /// Traffic is observed in intervals of this length.
    #[arg(long, value_name = "TIME", default_value = "15min")]
    interval: Seconds,
    /// A smaller fleet is looked for at most this often.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    every: Seconds,
    /// The moments of the day's moves are chosen for this time to come, at most a day.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ahead: Seconds,
    /// Moves to another fleet within a day, at most.
    #[arg(long, value_name = "N", default_value = "6")]
    moves_per_day: NonZeroUsize,
    /// Look once, do what is due, and end.
    #[arg(long)]
    once: bool,
}

/// Where the journal of a plan's autopilot is, if there is one.
pub(crate) fn journal_of(plan: &Path) -> PathBuf {
    Folder::of(plan).path(folder::JOURNAL)
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    match (&args.said, &args.run) {
        (Some(said), _) => say(said, printer),
        (None, Some(run)) => Pilot::start(run, &args.moving, printer)?.fly(),
        (None, None) => Err(Failure::input("no plan is given", "`boute autopilot PLAN --decisions FILE`")),
    }
}

fn say(said: &Said, printer: Printer) -> Result<Ending, Failure> {
    let (Said::Status(of)
    | Said::Pin(of)
    | Said::Freeze(of)
    | Said::Release(of)
    | Said::Lost { plan: of, .. }) = said;
    fs::metadata(&of.plan).map_err(|error| Failure::unreadable(&of.plan, &error))?;
    let hold = |plan: &PlanArg, hold| Folder::of(&plan.plan).set_hold(hold).map(|()| Ending::Done);
    match said {
        Said::Status(plan) => status(&Folder::of(&plan.plan), printer),
        Said::Pin(plan) => hold(plan, Hold::Pin),
        Said::Freeze(plan) => hold(plan, Hold::Freeze),
        Said::Release(plan) => hold(plan, Hold::None),
        Said::Lost { plan, gpus } => {
            Folder::of(&plan.plan).set_lost(&Gpus::by_type(gpus)).map(|()| Ending::Done)
        }
    }
}

fn status(folder: &Folder, printer: Printer) -> Result<Ending, Failure> {
    let mut autopilot = Autopilot::new(Settings::default());
    for record in &folder.records()? {
        autopilot.note(record);
    }
    let (now_s, last) = (now_s(), autopilot.last_decision());
    printer.data(&serde_json::json!({
        "hold": folder.hold(),
        "lost": folder.lost()?,
        "running": autopilot.running(),
        "under_way": autopilot.under_way(),
        "moves_today": autopilot.moves_today(now_s),
        "last": last,
    }))?;
    let hold = match folder.hold() {
        Hold::None => "free",
        Hold::Freeze => "fleet frozen",
        Hold::Pin => "pinned",
    };
    let running = autopilot.running().map_or("no plan yet", |digest| &digest[..12]);
    let acts = autopilot.under_way().len();
    printer.text(format_args!(
        "{hold}; runs {running}; {acts} acts under way; {} moves within a day\n",
        autopilot.moves_today(now_s)
    ));
    if let Some(last) = last {
        printer.text(format_args!("last: {}\n", in_words(last)));
    }
    Ok(Ending::Done)
}

fn in_words(decision: &Decision) -> String {
    let answer = match decision.answer {
        Some(Answer::Stay) => "stay",
        Some(Answer::ReRoute) => "re-route",
        Some(Answer::Move) => "move",
        None => "nothing can be done",
    };
    // By the name that the journal and the documentation give it.
    let trigger = serde_json::json!(decision.trigger);
    let (trigger, why) = (trigger.as_str().unwrap_or_default(), decision.why.join("; "));
    format!("{answer}, for {:.2} req/s ({trigger}): {why}", decision.rate)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The loop with all it holds.
struct Pilot<'a> {
    args: &'a RunArgs,
    printer: Printer,
    folder: Folder,
    journal: Journal,
    autopilot: Autopilot,
    traffic: Traffic,
    database: Database,
    /// Spec and prices as they were read last, by their digests.
    loaded: Option<(String, Loaded)>,
    /// What the table of replicas was simulated for last, where that is not the spec's traffic.
    measured: Option<Problem>,
    /// What fleets rent for, as far as it was asked.
    rents: Rents,
    runtime: Runtime,
    /// Asks the gateway.
    client: HttpClient,
    /// Whether it has looked once, so that what it is given has been of use.
    looked: bool,
    /// Which input cannot be read now.
    unreadable: Told,
    /// Why the gateway's metrics cannot be read now.
    unheard: Told,
}

/// What is told once, and not at every look.
#[derive(Debug, Default)]
struct Told(Option<String>);

impl Told {
    /// Says what is so, unless it was so; `None` if nothing is.
    fn tell(&mut self, printer: Printer, what: Option<String>) {
        if let Some(what) = what.as_ref().filter(|what| self.0.as_ref() != Some(what)) {
            printer.say(what);
        }
        self.0 = what;
    }
}

impl<'a> Pilot<'a> {
    fn start(args: &'a RunArgs, moving: &MovingArgs, printer: Printer) -> Result<Self, Failure> {
        let interval_s = args.interval.get() as u64;
        if interval_s == 0 || 86_400 % interval_s != 0 {
            return Err(Failure::input("`--interval` does not divide a day", "take 15min, 5min or 1min"));
        }
        read_plan(&args.plan)?;
        if !args.decisions.exists() {
            printer.say(format_args!(
                "`{}` is not there yet: nothing is known of the traffic until `boute serve --decisions` writes it",
                args.decisions.display()
            ));
        }
        let folder = Folder::of(&args.plan);
        let (journal, records) = Journal::open(&folder)?;
        let mut autopilot = Autopilot::new(Settings {
            interval_s,
            every_s: args.every.get() as u64,
            ahead_s: args.ahead.get() as u64,
            moves_per_day: args.moves_per_day.get(),
            terms: moving.terms(),
        });
        for record in &records {
            autopilot.note(record);
        }
        let traffic = Traffic::follow(&args.decisions, interval_s, autopilot.next_interval());
        Ok(Self {
            args,
            printer,
            folder,
            journal,
            autopilot,
            traffic,
            database: database(),
            loaded: None,
            measured: None,
            rents: Rents::default(),
            runtime: Runtime::new().map_err(Failure::unexpected)?,
            client: HttpClient::new(METRICS_TIMEOUT),
            looked: false,
            unreadable: Told::default(),
            unheard: Told::default(),
        })
    }

    fn fly(mut self) -> Result<Ending, Failure> {
        catch_ctrl_c(&self.runtime);
        let pause = Duration::from_secs((self.autopilot.settings().interval_s / 30).clamp(1, 10));
        loop {
            self.look()?;
            self.looked = true;
            if self.args.once {
                return Ok(Ending::Done);
            }
            let until = SystemTime::now() + pause;
            while SystemTime::now() < until {
                if stop_requested() {
                    return Ok(Ending::Done);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Once round: observe, do what is due, plan again if there is reason to.
    fn look(&mut self) -> Result<(), Failure> {
        let Some(running) = self.readable(read_plan(&self.args.plan))? else { return Ok(()) };
        self.adopt(&running)?;
        for observed in self.traffic.ended(now_s()) {
            self.note(Entry::Observed(observed))?;
        }
        if self.readable(self.traffic.understood())?.is_none() {
            return Ok(());
        }
        if self.act()? || !self.autopilot.under_way().is_empty() {
            return Ok(());
        }
        let signals = self.inputs(&running);
        let Some(mut signals) = self.readable(signals)? else { return Ok(()) };
        self.unreadable.tell(self.printer, None);
        let recent = in_order(self.traffic.recent());
        self.learn_rents(&mut signals, &recent, &running)?;
        if let Some(question) = self.autopilot.question(&signals) {
            self.decide(&signals, &question, &recent, &running)?;
            self.act()?;
        }
        Ok(())
    }

    /// `None` for an input that cannot be read at this moment, as someone may be writing it: that is told, and tried again at the next
    /// look. At the first look it is an error.
    fn readable<T>(&mut self, read: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match read {
            Err(Failure::Input(why)) if self.looked => {
                self.unreadable
                    .tell(self.printer, Some(format!("nothing is done until this can be read: {why}")));
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Reads all that a question is asked on but the traffic.
    fn inputs(&mut self, running: &Plan) -> Result<Signals, Failure> {
        self.reload(running)?;
        if self.args.live {
            // Fleets on the way may be routed as what runs is.
            router_of(running, &self.args.plan)?;
        }
        self.signals(running)
    }

    fn note(&mut self, entry: Entry) -> Result<Record, Failure> {
        let record = self.journal.append(now_s(), entry)?;
        self.autopilot.note(&record);
        Ok(record)
    }

    /// A plan that someone else has put in place is taken as it is.
    fn adopt(&mut self, running: &Plan) -> Result<(), Failure> {
        let digest = digest(running);
        let coming = self
            .autopilot
            .under_way()
            .iter()
            .any(|act| matches!(act, Act::Publish { plan, .. } if *plan == digest));
        if self.autopilot.running() != Some(&digest) && !coming {
            self.note(Entry::Adopted { plan: digest, rate: running.predicted.rate.get() })?;
        }
        Ok(())
    }

    /// Does what is due; whether anything was.
    fn act(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        while let Some((number, act)) =
            self.autopilot.next_act(now_s(), self.folder.hold()).map(|(number, act)| (number, act.clone()))
        {
            if !self.args.live {
                break;
            }
            any = true;
            self.note(Entry::Intent { number, act: act.clone() })?;
            match self.perform(&act) {
                Ok(()) => {
                    self.note(Entry::Done { number })?;
                }
                Err(error) => {
                    self.printer.say(format_args!("failed, and will be tried again: {error}"));
                    self.note(Entry::Failed { number, error })?;
                }
            }
        }
        Ok(any)
    }

    fn perform(&self, act: &Act) -> Result<(), String> {
        match act {
            Act::Wait { .. } => Ok(()),
            Act::Publish { plan, .. } => {
                let told = |failure| match failure {
                    Failure::Input(message) | Failure::Unexpected(message) => message,
                };
                let plan = self.folder.plan(plan).map_err(told)?;
                write_whole(&self.args.plan, plan.to_json_pretty().as_bytes()).map_err(told)
            }
            Act::Fleet { plan } => {
                let command =
                    self.args.apply.as_deref().ok_or("there is no `--apply` to move the fleet by")?;
                let lock = self.journal.lock().map_err(|error| error.to_string())?;
                // Standard input is the lock: should we be killed, it is held until the command has ended.
                let status = Command::new("sh")
                    .args(["-c", command])
                    .env("BOUTE_PLAN", self.folder.plan_file(plan))
                    .stdin(Stdio::from(lock))
                    .stdout(Stdio::from(std::io::stderr()))
                    .status()
                    .map_err(|error| error.to_string())?;
                if status.success() { Ok(()) } else { Err(format!("`{command}` ended with {status}")) }
            }
        }
    }

    /// Reads spec and prices again if they are others than last time.
    fn reload(&mut self, running: &Plan) -> Result<(), Failure> {
        let spec = self.args.spec.clone().map_or_else(|| spec_of(running, &self.args.plan), Ok)?;
        let mut name = Input::read(&spec)?.sha256;
        if let Some(prices) = &self.args.prices {
            name.push_str(&Input::read(prices)?.sha256);
        }
        if self.loaded.as_ref().is_some_and(|(then, _)| *then == name) {
            return Ok(());
        }
        let choices = Choices {
            cloud: self.args.cloud.clone(),
            seed: running.seed,
            router_file: router_file_of(&self.args.plan),
            scoring: false,
        };
        let mut loaded = load(&spec, &choices)?;
        if let Some(prices) = &self.args.prices {
            apply_prices(&mut loaded.problem, prices)?;
        }
        (self.loaded, self.measured) = (Some((name, loaded)), None);
        Ok(())
    }

    fn loaded(&self) -> Result<&Loaded, Failure> {
        self.loaded.as_ref().map(|(_, loaded)| loaded).ok_or_else(|| Failure::unexpected("no spec was read"))
    }

    fn signals(&mut self, running: &Plan) -> Result<Signals, Failure> {
        let alarm = self.alarm();
        let problem = &self.loaded()?.problem;
        let queries = problem.quality.as_ref().map(|quality| &quality.planning);
        let hold = match self.folder.hold() {
            // Nothing could move it.
            Hold::None if self.args.live && self.args.apply.is_none() => Hold::Freeze,
            hold => hold,
        };
        Ok(Signals {
            now_s: now_s(),
            offers: offers_digest(problem),
            lost: self.folder.lost()?,
            alarm,
            hold,
            base_mix: queries.and_then(|queries| ScoreMix::expected(queries, &running.routing.policy).ok()),
            stands: problem.robust.rate,
            ..Signals::default()
        })
    }

    /// What the gateway complains about; nothing where it cannot be asked, which is told.
    fn alarm(&mut self) -> Option<String> {
        let admin = self.args.admin.as_deref()?;
        let alarm = self.runtime.block_on(alarm(&self.client, admin));
        let unheard = alarm.as_ref().err().map(|why| {
            format!(
                "the metrics of the gateway at `--admin {admin}` cannot be read, so alarms are missed: {why}"
            )
        });
        self.unheard.tell(self.printer, unheard);
        alarm.ok().flatten()
    }

    /// What fleets rent for that what is to come may need.
    fn learn_rents(
        &mut self,
        signals: &mut Signals,
        recent: &[TraceRequest],
        running: &Plan,
    ) -> Result<(), Failure> {
        let (known, mut rents) = (self.measured.take(), std::mem::take(&mut self.rents));
        let spec = &self.loaded()?.problem;
        let mut measured = known.unwrap_or_else(|| spec.clone());
        let lost = signals.lost.clone();
        let scene = Scene { spec, recent, lost: &lost, running };
        let planner = (&self.database, &stops as boute_planner::Progress<'_>);
        let learnt = self.autopilot.learn_rents(signals, &mut rents, &scene, &mut measured, planner);
        (self.measured, self.rents) = (Some(measured), rents);
        match learnt {
            Ok(()) | Err(PlanError::Stopped) => Ok(()),
            Err(error) => Err(Failure::unexpected(error)),
        }
    }

    fn decide(
        &mut self,
        signals: &Signals,
        question: &Question,
        recent: &[TraceRequest],
        running: &Plan,
    ) -> Result<(), Failure> {
        if let Some((_, loaded)) = &mut self.loaded {
            loaded.name_router(&self.args.plan, Some(running));
        }
        let known = self.measured.take();
        let spec = &self.loaded()?.problem;
        let mut measured = known.unwrap_or_else(|| spec.clone());
        let scene = Scene { spec, recent, lost: &signals.lost, running };
        let answer = match question.answered(&scene, &mut measured, &self.database, &stops) {
            Ok(answer) => Ok(answer),
            Err(PlanError::Infeasible(why)) => Err(why.to_string()),
            Err(PlanError::Stopped) => return Ok(()),
            Err(error) => return Err(Failure::unexpected(error)),
        };
        if stop_requested() {
            return Ok(());
        }
        let mut inputs: BTreeMap<String, String> =
            spec.inputs.iter().map(|input| (input.input.clone(), input.sha256.clone())).collect();
        let lengths =
            recent.iter().map(|it| format!("{} {} {}\n", it.arrival.0, it.input_tokens, it.output_tokens));
        inputs.insert("recent".into(), sha256_hex(lengths.collect::<String>().as_bytes()));
        let (decision, plans) = self
            .autopilot
            .decide(signals, question, &answer, running, inputs)
            .map_err(Failure::unexpected)?;
        self.measured = Some(measured);
        self.printer.say(in_words(&decision));
        if !self.args.live {
            return self.note(Entry::DryRun(decision)).map(drop);
        }
        // Plans and their routers are there before anything names them.
        for plan in plans.values() {
            self.keep_router(plan)?;
            self.folder.keep(plan)?;
        }
        self.note(Entry::Decided(decision)).map(drop)
    }

    /// Has the router of a plan, trained now or that of what runs, where the plan is to be and where it is kept.
    fn keep_router(&self, plan: &Plan) -> Result<(), Failure> {
        let routing = &plan.routing;
        if routing.router.is_empty() {
            return Ok(());
        }
        let places = [&self.args.plan, &self.folder.plan_file(&digest(plan))]
            .map(|plan| beside(plan, &routing.router));
        let trained = self.loaded()?.scorer.as_ref().map(|scorer| scorer.to_json().into_bytes());
        let router = match trained.filter(|router| sha256_hex(router) == routing.router_digest) {
            Some(router) => router,
            None => fs::read(&places[0]).map_err(|error| Failure::unreadable(&places[0], &error))?,
        };
        let lacking = |path: &&PathBuf| !fs::read(path).is_ok_and(|there| there == router);
        let pieces: Vec<_> =
            places.iter().filter(lacking).map(|path| (path.as_path(), &router[..], false)).collect();
        write_all_whole(&pieces)
    }
}

fn stops(_: &boute_planner::Step) -> bool {
    stop_requested()
}

/// What the gateway's metrics say of its certificate; an error if they cannot be read.
async fn alarm(client: &HttpClient, admin: &str) -> Result<Option<String>, String> {
    let metrics = client.get(&format!("http://{admin}/metrics")).await?;
    if !metrics.is_success() {
        return Err(format!("it answers with status {}", metrics.status));
    }
    let void = metrics.body.lines().find(|line| {
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        line.starts_with(VOID) && value.is_some_and(|value| value > 0.0)
    });
    Ok(void.map(str::to_owned))
}
