//! A whole plan on this machine: every replica emulated on a port of its own, the gateway before them.

use std::net::SocketAddr;
use std::sync::Arc;

use boute_perf::FitError;
use boute_router::Scorer;
use boute_sim::fleet::replica;
use boute_spec::plan::PlanDraft;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::mock::{MockConfig, serve_mock};
use crate::replica::Upstream;
use crate::routes::{GatewayError, RoutesConfig};
use crate::serve::{Gateway, Settings};

/// Why a plan cannot be emulated.
#[derive(Debug, thiserror::Error)]
pub enum EmulationError {
    /// A group does not fit.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The gateway cannot start.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// No port.
    #[error("cannot listen on the loopback interface: {0}")]
    Listen(#[from] std::io::Error),
}

/// An emulated fleet behind its gateway; it stops when dropped.
pub struct RunningFleet {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// Its replicas.
    pub replicas: EmulatedReplicas,
    _tasks: JoinSet<()>,
}

/// Starts all replicas of `plan` on loopback ports, and its gateway on `listener`.
///
/// # Errors
/// If a replica does not fit, ports are short, or policy and scorer do not fit together.
///
/// # Panics
/// If a group's model or GPU is not listed: a checked plan lists them.
pub async fn emulate_fleet(
    plan: &PlanDraft,
    scorer: Option<Scorer>,
    time_scale: f64,
    listener: TcpListener,
) -> Result<RunningFleet, EmulationError> {
    let replicas = EmulatedReplicas::start(plan, time_scale).await?;
    let address = listener.local_addr()?;
    let routes = RoutesConfig::of_plan(plan, scorer.map(Arc::new), replicas.upstreams.clone());
    let gateway = Gateway::new(routes, Settings::default())?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (_keep, stop) = watch::channel(false);
        gateway.serve(listener, None, stop).await;
    });
    Ok(RunningFleet { gateway: address, replicas, _tasks: tasks })
}

/// Emulated replicas on loopback ports; they stop when dropped.
pub struct EmulatedReplicas {
    /// What the gateway needs to know of them.
    pub upstreams: Vec<Upstream>,
    _tasks: JoinSet<()>,
}

impl EmulatedReplicas {
    /// Starts all replicas of `plan`; `time_scale` is virtual seconds per second.
    ///
    /// # Errors
    /// If a replica does not fit, or ports are short.
    ///
    /// # Panics
    /// If a group's model or GPU is not listed: a checked plan lists them.
    pub async fn start(plan: &PlanDraft, time_scale: f64) -> Result<Self, EmulationError> {
        let mut tasks = JoinSet::new();
        let mut upstreams = Vec::new();
        for group in &plan.deployment.groups {
            let model =
                plan.models.iter().find(|it| it.id == group.model).expect("a checked plan lists its models");
            let gpu =
                plan.gpus.iter().find(|it| it.name == group.gpu).expect("a checked plan lists its GPUs");
            let Some(index) = plan.routing.models.iter().position(|it| it.model == group.model) else {
                continue;
            };
            let share = &plan.routing.models[index];
            let spec = replica(group, model, gpu, index, share)?;
            for _ in 0..group.replicas {
                let socket = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
                upstreams.push(Upstream {
                    speed: spec.speed,
                    expected_output_tokens: Some(spec.expected_output_tokens),
                    ..Upstream::at(&group.model, &format!("http://{}", socket.local_addr()?))
                });
                let config = MockConfig {
                    model: group.model.clone(),
                    engine: spec.config,
                    step_time: spec.step_time.clone(),
                    request_time: spec.request_time,
                    time_scale,
                    output_length_scale: share.output_length_scale,
                };
                tasks.spawn(serve_mock(config, socket));
            }
        }
        Ok(Self { upstreams, _tasks: tasks })
    }
}
