//! `boute serve`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use boute_gateway::{GatewayConfig, ReadyGateway, Upstream, emulate_fleet};
use boute_router::balance::ReplicaSpeed;
use boute_sim::fleet;
use boute_spec::plan::Plan;

use crate::commands::bench::check_time_scale;
use crate::commands::mock::bind;
use crate::failure::{Ending, Failure};
use crate::files::Input;
use crate::printer::Printer;
use crate::replay::scorer_of;

/// Without a plan all replicas count as equally fast.
const EQUAL: ReplicaSpeed = ReplicaSpeed {
    prompt_tokens_per_s: 10_000.0,
    answer_tokens_per_s: 1_000.0,
    seconds_per_answer_token: 0.02,
};

/// Serves a plan: the OpenAI-compatible gateway before live replicas (`--replica`) or emulated ones (`--emulate`). Without
/// a plan it balances concrete models only.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plan; its router must be beside it.
    plan: Option<PathBuf>,
    /// Start an emulated replica for each one of the plan.
    #[arg(long, requires = "plan", conflicts_with = "replicas")]
    emulate: bool,
    /// A live replica, such as `llama-3.1-8b=http://10.0.0.5:8001`; once for each, in the order of the plan's groups.
    #[arg(long = "replica", value_name = "MODEL=URL")]
    replicas: Vec<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Virtual seconds per second, for emulated replicas.
    #[arg(long, default_value_t = 1.0, requires = "emulate")]
    time_scale: f64,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_time_scale(args.time_scale)?;
    let loaded = match &args.plan {
        None => None,
        Some(path) => {
            let input = Input::read(path)?;
            let plan = Plan::parse(&input.name, &input.text).map_err(Failure::told)?;
            let scorer = scorer_of(&plan, path)?;
            Some((plan, scorer))
        }
    };
    if let Some((plan, _)) = loaded.as_ref().filter(|_| args.emulate)
        && let Some(group) = plan.deployment.groups.iter().find(|group| group.disaggregated.is_some())
    {
        return Err(Failure::input(
            format_args!("group `{}` is disaggregated, and no engine is emulated in two parts", group.id),
            "`boute simulate` says what it does; on GPUs, run what `boute export shell` writes; or plan without \
             `disaggregate`",
        ));
    }
    if !args.emulate && args.replicas.is_empty() {
        let hint = "name live engines with `--replica MODEL=URL`, or add `--emulate` to a plan";
        return Err(Failure::input("there is nothing to send requests to", hint));
    }
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    runtime.block_on(async {
        let listener = bind(args.listen).await?;
        let address = args.listen;
        let serve = async {
            if args.emulate
                && let Some((plan, scorer)) = loaded
            {
                let fleet =
                    emulate_fleet(&plan, scorer, args.time_scale, listener).await.map_err(Failure::told)?;
                printer.say(format_args!("{} emulated replicas behind http://{address}/v1", fleet.replicas));
                fleet.forever().await;
                return Ok(Ending::Done);
            }
            let plan = loaded.as_ref().map(|(plan, _)| plan);
            let upstreams = upstreams(&args.replicas, plan)?;
            let (policy, scorer) = match loaded {
                Some((plan, scorer)) => (Some(plan.routing.policy.clone()), scorer),
                None => (None, None),
            };
            let gateway =
                ReadyGateway::new(GatewayConfig { policy, scorer, upstreams }).map_err(Failure::told)?;
            printer.say(format_args!("{} replicas behind http://{address}/v1", args.replicas.len()));
            gateway.serve(listener).await;
            Ok(Ending::Done)
        };
        tokio::select! {
            ending = serve => ending,
            _ = tokio::signal::ctrl_c() => Ok(Ending::Done),
        }
    })
}

/// Live replicas; the n-th of a model gets the speed of the plan's n-th.
fn upstreams(replicas: &[String], plan: Option<&Plan>) -> Result<Vec<Upstream>, Failure> {
    let mut planned: BTreeMap<String, Vec<(ReplicaSpeed, u32)>> = BTreeMap::new();
    if let Some(plan) = plan {
        let shares = &plan.routing.models;
        let specs =
            fleet::replicas(&plan.deployment, &plan.models, &plan.gpus, shares).map_err(Failure::told)?;
        for spec in specs {
            let of_model = planned.entry(shares[spec.model].model.clone()).or_default();
            of_model.push((spec.speed, spec.expected_output_tokens));
        }
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    replicas
        .iter()
        .map(|replica| {
            let (model, url) = replica.split_once('=').ok_or_else(|| {
                Failure::input(
                    format_args!("`{replica}` is not MODEL=URL"),
                    "write it like `--replica llama-3.1-8b=http://127.0.0.1:8001`",
                )
            })?;
            let index = seen.entry(model).or_default();
            let known =
                planned.get(model).and_then(|of_model| of_model.get(*index).or_else(|| of_model.first()));
            *index += 1;
            Ok(Upstream {
                model: model.to_owned(),
                url: url.to_owned(),
                speed: known.map_or(EQUAL, |(speed, _)| *speed),
                expected_output_tokens: known.map(|(_, tokens)| *tokens),
            })
        })
        .collect()
}
