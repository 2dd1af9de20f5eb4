//! `boute`: which models on which GPUs with which parallelism, and which query to which model.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod cache;
mod commands;
mod failure;
mod files;
mod load;
mod printer;
mod progress;
mod replay;
mod results;

use commands::{
    bench, catalog, check, compare, demo, explain, export, mock, optimize, perf, plan, profile, router,
    schema, serve, simulate,
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
    /// Find the fleet and the routing policy for a spec.
    Plan(plan::Args),
    /// Plan a spec, or every cell of a grid, by all strategies, and score the plans on traffic and queries that none of
    /// them was chosen on.
    Compare(compare::Args),
    /// Say why a plan is as it is: what binds, the nearest other plans, why not something else, what if.
    Explain(explain::Args),
    /// Simulate a plan on a trace, token by token, or one replica with the step times of another cost model.
    Simulate(simulate::Args),
    /// Predict the speed of replicas: TTFT, TPOT, where the time goes and what binds.
    #[command(subcommand)]
    Perf(perf::Command),
    /// Train, evaluate and certify the query router.
    #[command(subcommand)]
    Router(router::Command),
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
    /// Write the files that run a plan on real engines.
    #[command(subcommand)]
    Export(export::Command),
    /// Print a shell completion script.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
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
        Command::Plan(args) => plan::run(&args, printer),
        Command::Compare(args) => compare::run(&args, printer),
        Command::Explain(args) => explain::run(&args, printer),
        Command::Simulate(args) => simulate::run(&args, printer),
        Command::Perf(command) => perf::run(&command, printer),
        Command::Router(command) => router::run(&command, printer),
        Command::Optimize(args) => optimize::run(&args, printer),
        Command::Serve(args) => serve::run(&args, printer),
        Command::Mock(args) => mock::run(&args, printer),
        Command::Profile(args) => profile::run(&args, printer),
        Command::Bench(args) => bench::run(&args, printer),
        Command::Check(args) => check::run(&args, printer),
        Command::Schema => schema::run(printer),
        Command::Catalog(args) => catalog::run(&args, printer),
        Command::Export(command) => export::run(&command, printer),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "boute", &mut script);
            printer.raw(String::from_utf8_lossy(&script));
            Ok(Ending::Done)
        }
    }
}
