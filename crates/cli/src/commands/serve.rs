//! `boute serve`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use boute_gateway::{
    AdmissionLimits, EmulatedReplicas, Gateway, Keys, KubernetesApi, Limits, RoutesConfig, Settings, Tls,
    Upstream, UpstreamKeys, UpstreamTls, WhenVoid,
};
use boute_router::Scorer;
use boute_router::balance::{Balancing, ReplicaSpeed};
use boute_sim::fleet;
use boute_spec::plan::{Deployment, Plan};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::commands::autopilot;
use crate::commands::bench::check_time_scale;
use crate::commands::mock::{bind, raise_descriptor_limit, socket_address};
use crate::failure::{Ending, Failure};
use crate::files::{Input, read_plan};
use crate::printer::Printer;
use crate::replay::scorer_of;

/// Files are looked at this often for changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Serves a plan: the OpenAI-compatible gateway before live replicas (`--replica`) or emulated ones (`--emulate`). Without
/// a plan it balances concrete models only. A changed plan or file of keys is taken over without dropping a request;
/// SIGTERM ends it once the answers under way have ended.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan; its router must be beside it.
    plan: Option<PathBuf>,
    /// Start an emulated replica for each one of the plan.
    #[arg(long, requires = "plan", conflicts_with = "replicas")]
    emulate: bool,
    /// A live replica, such as `llama-3.1-8b=http://10.0.0.5:8001`; once for each, in the order of the plan's groups. An engine
    /// that knows the model by another name has that after a `#`: `llama-3.1-8b=http://10.0.0.5:8001#meta-llama/Llama-3.1-8B`.
    #[arg(long = "replica", value_name = "MODEL=URL")]
    replicas: Vec<String>,
    /// Live replicas, a line `MODEL=URL` each, after those of the command line; a change is taken over while it runs.
    #[arg(long, value_name = "FILE", conflicts_with = "emulate")]
    replica_file: Option<PathBuf>,
    /// A name with a replica at each of its addresses, such as a headless Service's: `llama-3.1-8b=http://engines.llm:8000`;
    /// looked up every 5 s; or a Service whose endpoints the cluster's API tells: `llama-3.1-8b=k8s://engines.llm:8000`. Once
    /// for each group of the plan, in its order.
    #[arg(long, value_name = "MODEL=URL", conflicts_with = "emulate")]
    discover: Vec<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = socket_address)]
    listen: SocketAddr,
    /// Address for operators: metrics, and replicas that come and go. Whoever reaches it may do anything. Without: the
    /// next port after `--listen`, on the loopback interface, or any that is free.
    #[arg(long, value_parser = socket_address)]
    admin: Option<SocketAddr>,
    /// Virtual seconds per second, for emulated replicas.
    #[arg(long, default_value_t = 1.0, requires = "emulate")]
    time_scale: f64,
    #[command(flatten)]
    routing: RoutingArgs,
    #[command(flatten)]
    engines: EngineArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Routing")]
struct RoutingArgs {
    /// Another name for a model, or for a form of `auto`: `gpt-4o=auto:0.8`.
    #[arg(long = "alias", value_name = "NAME=MODEL")]
    aliases: Vec<String>,
    /// Who may answer in a model's place while it has no healthy replica: `llama-3.1-70b=llama-3.1-8b`; several in order,
    /// with commas. Without, nobody.
    #[arg(long, value_name = "MODEL=MODEL,…")]
    fallback: Vec<String>,
    /// Ask a second replica when a stream has not begun in the time in which this share of its model's do, such as 95%; who
    /// begins first answers. Without, never.
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    hedge: Option<f64>,
    /// How a replica is picked: least-expected-finish, round-robin, least-requests or power-of-two.
    #[arg(long, default_value = Balancing::LeastExpectedFinish.name())]
    balance: Balancing,
    /// What becomes of `auto` when the plan's promise of quality is void, since queries or answers are no longer those it was
    /// made on: safe-model (the best model of the plan answers everything), or report (the policy goes on). Either way a
    /// metric rises, and `/admin/certificate` tells why.
    #[arg(long, value_name = "WHAT", default_value = "safe-model")]
    when_void: WhenVoid,
    /// Share of the queries for which the model is drawn by lot among the policy's, so that it becomes known what the others
    /// would have scored; 0.01 is usual. Such answers are outside the promise of quality.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    explore: f64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engines that want to be convinced")]
struct EngineArgs {
    /// Certificate authorities in PEM that engines behind `https://` may have theirs from, besides the well-known ones.
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// API keys of engines: lines `HOST KEY`. Each goes to that host only, in place of what clients send.
    #[arg(long, value_name = "FILE")]
    upstream_keys: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Access and logs")]
struct AccessArgs {
    /// API keys, as hashes: lines `NAME SHA256 [requests/min=N] [tokens/min=N]`. Without, everybody is served.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Certificate chain in PEM; with `--tls-key`, HTTPS is served.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Origin of web pages that may ask, such as `https://chat.example.org`; `*` for all.
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    allow_origins: Vec<String>,
    /// Append a line of JSON per answer: a trace that `plan`, `simulate` and `bench` read.
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Send traces as OTLP over HTTP (JSON) to this collector, such as `http://127.0.0.1:4318`. Callers' traces are continued.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
    /// Log prompts too.
    #[arg(long, requires = "decisions")]
    log_prompts: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Requests at once.
    #[arg(long, value_name = "N", default_value_t = AdmissionLimits::default().in_flight)]
    max_in_flight: usize,
    /// Requests that wait beyond those; further ones are answered 429.
    #[arg(long, value_name = "N", default_value_t = AdmissionLimits::default().waiting)]
    max_waiting: usize,
    /// Seconds until a replica must begin its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().first_byte.as_secs())]
    first_byte_timeout: u64,
    /// Seconds a replica may be silent within an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().silence.as_secs())]
    silence_timeout: u64,
    /// Seconds an answer may take.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().answer.as_secs())]
    answer_timeout: u64,
    /// Seconds that answers under way are given when the gateway is told to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().client.drain.as_secs())]
    drain: u64,
}

/// A share of most streams, as a percentage.
fn share(text: &str) -> Result<f64, String> {
    let percent =
        text.trim_end_matches('%').parse::<f64>().ok().filter(|percent| (50.0..=99.9).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or_else(|| "write a percentage from 50% to 99.9%".into())
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        let mut limits = Limits {
            first_byte: Duration::from_secs(self.first_byte_timeout),
            silence: Duration::from_secs(self.silence_timeout),
            answer: Duration::from_secs(self.answer_timeout),
            ..Limits::default()
        };
        limits.admission.in_flight = self.max_in_flight;
        limits.admission.waiting = self.max_waiting;
        limits.client.drain = Duration::from_secs(self.drain);
        limits
    }
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_time_scale(args.time_scale)?;
    if !(0.0..=1.0).contains(&args.routing.explore) {
        let message = format_args!("{} is no share of the queries", args.routing.explore);
        return Err(Failure::input(message, "`--explore 0.01` draws the model of one in a hundred"));
    }
    if !args.emulate && args.replicas.is_empty() && args.replica_file.is_none() && args.discover.is_empty() {
        let hint = "name live engines with `--replica MODEL=URL`, or add `--emulate` to a plan";
        return Err(Failure::input("there is nothing to send requests to", hint));
    }
    let planned = args.plan.as_deref().map(Planned::read).transpose()?;
    if let Some(Planned { plan, .. }) = planned.as_ref().filter(|_| args.emulate)
        && let Some(group) = plan.deployment.groups.iter().find(|group| group.disaggregated.is_some())
    {
        return Err(Failure::input(
            format_args!("group `{}` is disaggregated, and no engine is emulated in two parts", group.id),
            "`boute simulate` says what it does; on GPUs, run what `boute export shell` writes; or plan without \
             `disaggregate`",
        ));
    }
    raise_descriptor_limit();
    let tls = tls(&args.access)?;
    let keys = args.access.keys.as_deref().map(read_keys).transpose()?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    let ending = runtime.block_on(async {
        let emulated = match &planned {
            Some(planned) if args.emulate => {
                let started = EmulatedReplicas::start(&planned.plan, args.time_scale).await;
                Some(started.map_err(Failure::told)?)
            }
            _ => None,
        };
        let routes = |planned: Option<&Planned>| match &emulated {
            Some(emulated) => routes(args, planned, emulated.upstreams.clone()),
            None => routes(args, planned, named_replicas(args, planned.map(|it| &it.plan))?),
        };
        let settings = Settings {
            limits: args.limits.limits(),
            decisions: args.access.decisions.clone(),
            log_prompts: args.access.log_prompts,
            journal: args.plan.as_deref().map(autopilot::journal_of),
            allow_origins: args.access.allow_origins.clone(),
            upstream_tls: upstream_tls(&args.engines)?,
            kubernetes: kubernetes(args)?,
            otlp: args.access.otlp.clone(),
            hedge: args.routing.hedge,
        };
        let gateway = Gateway::new(routes(planned.as_ref())?, settings).map_err(Failure::told)?;
        gateway.set_keys(keys);
        let listener = bind(args.listen, "--listen").await?;
        let admin = bind_admin(args, printer).await?;
        let replicas = match &emulated {
            Some(emulated) => format!("{} emulated replicas", emulated.upstreams.len()),
            None => format!("{} replicas", named_replicas(args, None)?.len()),
        };
        let operators = admin.local_addr().map_err(Failure::unexpected)?;
        let found = match &*args.discover {
            [] => String::new(),
            names => format!(" and those at {}", names.join(", ")),
        };
        printer.say(format_args!(
            "{replicas}{found} behind {}://{}/v1; http://{operators}/dashboard shows what happens, \
             http://{operators}/metrics counts it",
            if tls.is_some() { "https" } else { "http" },
            listener.local_addr().map_err(Failure::unexpected)?,
        ));
        let (stop, stopping) = watch::channel(false);
        let watched = watch_files(args, &gateway, &routes, printer);
        tokio::select! {
            ((), ()) = async {
                tokio::join!(
                    gateway.serve(listener, tls, stopping.clone()),
                    gateway.serve_admin(admin, stopping.clone()),
                )
            } => {}
            never = watched => never,
            () = told_to_stop(&stop, printer) => {}
        }
        Ok(Ending::Done)
    });
    // The log's last lines are written when the gateway goes; nothing else is waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ending
}

/// A plan and its router.
struct Planned {
    plan: Plan,
    scorer: Option<Arc<Scorer>>,
}

impl Planned {
    fn read(path: &Path) -> Result<Self, Failure> {
        let plan = read_plan(path)?;
        let scorer = scorer_of(&plan, path)?.map(Arc::new);
        Ok(Self { plan, scorer })
    }
}

fn read_keys(path: &Path) -> Result<Keys, Failure> {
    let input = Input::read(path)?;
    Keys::parse(&input.name, &input.text).map_err(Failure::told)
}

fn tls(args: &AccessArgs) -> Result<Option<Tls>, Failure> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let (certificate, key) = (Input::read(certificate)?, Input::read(key)?);
    Tls::new(certificate.text.as_bytes(), key.text.as_bytes()).map(Some).map_err(Failure::told)
}

fn upstream_tls(args: &EngineArgs) -> Result<UpstreamTls, Failure> {
    let Some(path) = &args.upstream_ca else { return Ok(UpstreamTls::default()) };
    UpstreamTls::new(Input::read(path)?.text.as_bytes()).map_err(Failure::told)
}

/// The cluster's API, if a Service of it is named.
fn kubernetes(args: &Args) -> Result<Option<KubernetesApi>, Failure> {
    let Some(named) = args.discover.iter().find(|named| named.contains("=k8s://")) else { return Ok(None) };
    let missing = || {
        Failure::input(
            format_args!(
                "`{named}` is looked up in the cluster that the gateway runs in, and it runs in none"
            ),
            "run it as a pod whose service account may list and watch EndpointSlices, or name a host: `http://…`",
        )
    };
    KubernetesApi::in_cluster().map(Some).ok_or_else(missing)
}

/// Listens for operators: where they say, or else on the next port, or else, if somebody has that, on any.
async fn bind_admin(args: &Args, printer: Printer) -> Result<TcpListener, Failure> {
    if let Some(address) = args.admin {
        return bind(address, "--admin").await;
    }
    let next = args.listen.port().checked_add(1).filter(|port| *port > 1).unwrap_or(0);
    if let Ok(listener) = bind((Ipv4Addr::LOCALHOST, next).into(), "--admin").await {
        return Ok(listener);
    }
    printer.say(format_args!("port {next} is taken: operators get another; `--admin HOST:PORT` chooses it"));
    bind((Ipv4Addr::LOCALHOST, 0).into(), "--admin").await
}

/// What is served: by the plan, if there is one, and by the command line.
fn routes(args: &Args, planned: Option<&Planned>, upstreams: Vec<Upstream>) -> Result<RoutesConfig, Failure> {
    let mut routes = match planned {
        Some(planned) => RoutesConfig::of_plan(&planned.plan, planned.scorer.clone(), upstreams),
        None => RoutesConfig { upstreams, ..RoutesConfig::default() },
    };
    routes.balancing = args.routing.balance;
    routes.discover = discovered(args, planned.map(|it| &it.plan))?;
    if let Some(path) = &args.engines.upstream_keys {
        let input = Input::read(path)?;
        routes.upstream_keys = UpstreamKeys::parse(&input.name, &input.text).map_err(Failure::told)?;
    }
    routes.when_void = args.routing.when_void;
    routes.explore = args.routing.explore;
    for alias in &args.routing.aliases {
        let (name, model) = pair(alias, "--alias", "gpt-4o=auto")?;
        routes.aliases.insert(name.into(), model.into());
    }
    for fallback in &args.routing.fallback {
        let (model, others) = pair(fallback, "--fallback", "llama-3.1-70b=llama-3.1-8b")?;
        routes.fallback.insert(model.into(), others.split(',').map(|other| other.trim().into()).collect());
    }
    Ok(routes)
}

fn pair<'a>(text: &'a str, option: &str, example: &str) -> Result<(&'a str, &'a str), Failure> {
    let pair = text.split_once('=').filter(|(left, right)| !left.is_empty() && !right.is_empty());
    pair.ok_or_else(|| {
        Failure::input(
            format_args!("`{text}` has no `=` between two names"),
            format_args!("write it like `{option} {example}`"),
        )
    })
}

/// The live replicas named on the command line and in the file; the n-th of a model is the plan's n-th.
fn named_replicas(args: &Args, plan: Option<&Plan>) -> Result<Vec<Upstream>, Failure> {
    let mut replicas = args.replicas.clone();
    if let Some(path) = &args.replica_file {
        let input = Input::read(path)?;
        let lines = (1..).zip(input.text.lines().map(uncommented));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            if !line.contains('=') {
                let hint = "each line is `MODEL=URL`, such as `llama-3.1-8b=http://10.0.0.5:8001`";
                return Err(Failure::input(
                    format_args!("{}:{number}: `{line}` has no `=`", input.name),
                    hint,
                ));
            }
            replicas.push(line.to_owned());
        }
    }
    let planned = plan.map(|plan| speeds(plan, &plan.deployment)).transpose()?.unwrap_or_default();
    upstreams(&replicas, "--replica", &planned)
}

/// A line without its comment; a `#` within a word is part of a URL.
fn uncommented(line: &str) -> &str {
    let begins = |at: usize| line[..at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').find(|(at, _)| begins(*at));
    comment.map_or(line, |(at, _)| &line[..at]).trim()
}

/// The names with replicas behind them; the n-th of a model is the plan's n-th group.
fn discovered(args: &Args, plan: Option<&Plan>) -> Result<Vec<Upstream>, Failure> {
    let of_groups = |plan: &Plan| {
        let mut one_each = plan.deployment.clone();
        one_each.groups.iter_mut().for_each(|group| group.replicas = 1);
        speeds(plan, &one_each)
    };
    let planned = plan.map(of_groups).transpose()?.unwrap_or_default();
    upstreams(&args.discover, "--discover", &planned)
}

/// Speed and expected answer length of a plan's replicas, by model.
type Speeds = BTreeMap<String, Vec<(ReplicaSpeed, u32)>>;

fn speeds(plan: &Plan, deployment: &Deployment) -> Result<Speeds, Failure> {
    let shares = &plan.routing.models;
    let mut speeds = Speeds::new();
    for spec in fleet::replicas(deployment, &plan.models, &plan.gpus, shares).map_err(Failure::told)? {
        let of_model = speeds.entry(shares[spec.model].model.clone()).or_default();
        of_model.push((spec.speed, spec.expected_output_tokens));
    }
    Ok(speeds)
}

/// What each `MODEL=URL` names; the n-th of a model has the n-th speed.
fn upstreams(named: &[String], option: &str, planned: &Speeds) -> Result<Vec<Upstream>, Failure> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    named
        .iter()
        .map(|named| {
            let (model, url) = pair(named, option, "llama-3.1-8b=http://127.0.0.1:8001")?;
            let index = seen.entry(model).or_default();
            let known =
                planned.get(model).and_then(|of_model| of_model.get(*index).or_else(|| of_model.first()));
            *index += 1;
            let mut upstream = Upstream::at(model, url);
            if let Some((speed, tokens)) = known {
                (upstream.speed, upstream.expected_output_tokens) = (*speed, Some(*tokens));
            }
            Ok(upstream)
        })
        .collect()
}

/// Takes over plan, replicas and keys whenever their files change; what cannot be used is told and left. Tells of alarms, too.
/// Never ends.
async fn watch_files(
    args: &Args,
    gateway: &Gateway,
    routes: &impl Fn(Option<&Planned>) -> Result<RoutesConfig, Failure>,
    printer: Printer,
) -> ! {
    let mut plan = Watched::new(args.plan.as_deref());
    let mut replicas = Watched::new(args.replica_file.as_deref());
    let mut upstream_keys = Watched::new(args.engines.upstream_keys.as_deref());
    let mut keys = Watched::new(args.access.keys.as_deref());
    let mut void = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let alarm = gateway.alarm();
        if let Some(alarm) = alarm.as_ref().filter(|alarm| void.as_ref() != Some(*alarm)) {
            printer.error(&format!("the plan's promise of quality is void: {alarm}"));
        }
        void = alarm;
        if let Some(path) = plan.changed().or_else(|| replicas.changed()).or_else(|| upstream_keys.changed())
        {
            let planned = tokio::task::block_in_place(|| args.plan.as_deref().map(Planned::read).transpose());
            let swapped = planned
                .and_then(|planned| routes(planned.as_ref()))
                .and_then(|routes| gateway.swap(routes).map_err(Failure::told));
            tell(printer, path, swapped);
        }
        if let Some(path) = keys.changed() {
            tell(printer, path, read_keys(path).map(|keys| gateway.set_keys(Some(keys))));
        }
    }
}

fn tell(printer: Printer, path: &Path, taken: Result<(), Failure>) {
    let path = path.display();
    match taken {
        Ok(()) => printer.say(format_args!("`{path}` has changed and is in force")),
        Err(Failure::Input(why) | Failure::Unexpected(why)) => {
            printer.error(&format!("`{path}` has changed, but the old one stays: {why}"));
        }
    }
}

/// A file and what it was when last looked at.
struct Watched<'a> {
    path: Option<&'a Path>,
    seen: Option<(SystemTime, u64)>,
}

impl<'a> Watched<'a> {
    fn new(path: Option<&'a Path>) -> Self {
        Self { path, seen: path.and_then(stamp) }
    }

    /// The path, if the file is another than before. A file that is away for a moment is waited for.
    fn changed(&mut self) -> Option<&'a Path> {
        let now = self.path.and_then(stamp)?;
        (self.seen.replace(now) != Some(now)).then_some(self.path?)
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Tells to stop at the first SIGTERM or Ctrl-C; resolves at the second.
async fn told_to_stop(stop: &watch::Sender<bool>, printer: Printer) {
    interrupted().await;
    printer.say("stopping: answers under way may end; once more to break them off");
    // Nobody listens any more if serving has ended already.
    let _ = stop.send(true);
    interrupted().await;
}

#[cfg(unix)]
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(not(unix))]
async fn interrupted() {
    // Without signals it runs until it is killed.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
