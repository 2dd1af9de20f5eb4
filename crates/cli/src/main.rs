//! `boute`: which models on which GPUs with which parallelism, and which query to which model.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::env::{CompleteEnv, Shells};

mod bundled;
mod cache;
mod commands;
mod complete;
mod decisions;
mod docs;
mod encoder;
mod failure;
mod files;
mod load;
mod market;
mod printer;
mod progress;
mod replay;
mod results;

use commands::{
    autopilot, bench, catalog, check, compare, demo, doctor, explain, export, init, mock, optimize, perf,
    plan, profile, quality, reference, replan, report, router, schema, serve, simulate,
};
use failure::{Ending, Failure, exit_code};
use printer::Printer;

/// Plans, serves and exports LLM fleets: which models run on which GPUs with which parallelism, and which query goes
/// to which model, so that quality and tail latency hold at the lowest cost.
///
/// Exit status: 0 done; 1 the answer is no (nothing meets the targets, or a promise was not kept); 2 the input cannot
/// be used; 3 something unexpected. Data goes to stdout, talk to stderr; `NO_COLOR` is heeded.
#[derive(Debug, Parser)]
#[command(name = "boute", version, max_term_width = 100)]
struct Cli {
    /// Print data as JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// No talk on stderr: no notes, no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See all of it in a minute and a half: plan a bundled real scenario, serve it on emulated replicas, replay a
    /// real trace over HTTP, compare what was promised with what was measured. Needs no GPU and no download.
    Demo(demo::Args),
    /// Start a spec: a commented `boute.yaml` and data to try it with.
    Init(init::Args),
    /// Find the fleet and the routing policy for a spec.
    Plan(plan::Args),
    /// Plan a spec, or every cell of a grid, by all strategies, and score the plans on traffic and queries that none of
    /// them was chosen on.
    Compare(compare::Args),
    /// Say why a plan is as it is: what binds, the nearest other plans, why not something else, what if.
    Explain(explain::Args),
    /// Plan again for a fleet that runs: stay, route otherwise, or move.
    Replan(replan::Args),
    /// Keep a plan true as traffic, prices and machines change.
    Autopilot(autopilot::Args),
    /// Draw a plan, and what was simulated and measured, as one page.
    Report(report::Args),
    /// Simulate a plan on a trace, token by token, or one replica with the step times of another cost model.
    Simulate(simulate::Args),
    /// Predict the speed of replicas: TTFT, TPOT, where the time goes and what binds.
    #[command(subcommand)]
    Perf(perf::Command),
    /// Train, evaluate and certify the query router.
    #[command(subcommand)]
    Router(router::Command),
    /// Make quality data from prompts of your own.
    #[command(subcommand)]
    Quality(quality::Command),
    /// Tune anything by measurement: the optimiser alone, as JSON lines on stdin and stdout.
    Optimize(optimize::Args),
    /// Serve a plan: the OpenAI-compatible gateway.
    Serve(Box<serve::Args>),
    /// Run one emulated vLLM replica.
    Mock(mock::Args),
    /// Measure a live OpenAI-compatible engine, and correct the model of its speed.
    Profile(profile::Args),
    /// Replay a trace against an OpenAI-compatible endpoint and time it.
    Bench(bench::Args),
    /// Check a spec, a plan, a trace or quality data; every problem is reported.
    Check(check::Args),
    /// Print the JSON schema of `boute.yaml`, for editors.
    Schema,
    /// List the built-in GPUs, models and prices, with their sources.
    Catalog(catalog::Args),
    /// Write the files that run a plan on real engines, on machines, clouds or clusters.
    Export(export::Args),
    /// Look at the clock, prices, limits, the cluster, and the engines and gateways at some URLs.
    Doctor(doctor::Args),
    /// Print a shell completion script, such as for `source <(boute completions bash)`; it completes models and GPUs too.
    Completions {
        /// Which shell.
        #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
        shell: String,
    },
    /// Write the reference of commands, and man pages.
    #[command(hide = true)]
    Reference(reference::Args),
}

fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).var(COMPLETE).complete();
    let cli = Cli::parse();
    progress::set_quiet(cli.quiet);
    let printer = Printer { json: cli.json, quiet: cli.quiet };
    let result = run(cli.command, printer);
    if let Err(Failure::Input(message) | Failure::Unexpected(message)) = &result {
        printer.error(message);
    }
    ExitCode::from(exit_code(&result))
}

fn run(command: Command, printer: Printer) -> Result<Ending, Failure> {
    match command {
        Command::Demo(args) => demo::run(&args, printer),
        Command::Init(args) => init::run(&args, printer),
        Command::Plan(args) => plan::run(&args, printer),
        Command::Compare(args) => compare::run(&args, printer),
        Command::Explain(args) => explain::run(&args, printer),
        Command::Replan(args) => replan::run(&args, printer),
        Command::Autopilot(args) => autopilot::run(&args, printer),
        Command::Report(args) => report::run(&args, printer),
        Command::Simulate(args) => simulate::run(&args, printer),
        Command::Perf(command) => perf::run(&command, printer),
        Command::Router(command) => router::run(&command, printer),
        Command::Quality(command) => quality::run(&command, printer),
        Command::Optimize(args) => optimize::run(&args, printer),
        Command::Serve(args) => serve::run(&args, printer),
        Command::Mock(args) => mock::run(&args, printer),
        Command::Profile(args) => profile::run(&args, printer),
        Command::Bench(args) => bench::run(&args, printer),
        Command::Check(args) => check::run(&args, printer),
        Command::Schema => schema::run(printer),
        Command::Catalog(args) => catalog::run(&args, printer),
        Command::Export(args) => export::run(&args, printer),
        Command::Doctor(args) => doctor::run(&args, printer),
        Command::Completions { shell } => {
            printer.raw(completion_script(&shell)?);
            Ok(Ending::Done)
        }
        Command::Reference(args) => reference::run(&args, Cli::command(), printer),
    }
}

/// The variable by which a shell asks for completions.
const COMPLETE: &str = "BOUTE_COMPLETE";

/// What a shell runs once, so that it asks this binary for completions.
fn completion_script(shell: &str) -> Result<String, Failure> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(shell).ok_or_else(|| Failure::unexpected(shell))?;
    completer
        .write_registration(COMPLETE, "boute", "boute", "boute", &mut script)
        .map_err(Failure::unexpected)?;
    String::from_utf8(script).map_err(Failure::unexpected)
}
