//! A whole plan on this machine: every replica emulated on a port of its own, the gateway before them.

use std::net::SocketAddr;

use boute_perf::FitError;
use boute_router::Scorer;
use boute_sim::fleet::replica;
use boute_spec::plan::PlanDraft;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::mock::{MockConfig, serve_mock};
use crate::serve::{GatewayConfig, GatewayError, ReadyGateway, Upstream};

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

/// An emulated fleet; it stops when dropped.
pub struct RunningFleet {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// Replicas started.
    pub replicas: usize,
    tasks: JoinSet<()>,
}

impl RunningFleet {
    /// Runs until the process ends.
    pub async fn forever(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
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
    let mut tasks = JoinSet::new();
    let mut upstreams = Vec::new();
    for group in &plan.deployment.groups {
        let model =
            plan.models.iter().find(|it| it.id == group.model).expect("a checked plan lists its models");
        let gpu = plan.gpus.iter().find(|it| it.name == group.gpu).expect("a checked plan lists its GPUs");
        let Some(index) = plan.routing.models.iter().position(|it| it.model == group.model) else { continue };
        let share = &plan.routing.models[index];
        let spec = replica(group, model, gpu, index, share)?;
        for _ in 0..group.replicas {
            let socket = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
            upstreams.push(Upstream {
                model: group.model.clone(),
                url: format!("http://{}", socket.local_addr()?),
                speed: spec.speed,
                expected_output_tokens: Some(spec.expected_output_tokens),
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
    let replicas = upstreams.len();
    let gateway = listener.local_addr()?;
    let ready =
        ReadyGateway::new(GatewayConfig { policy: Some(plan.routing.policy.clone()), scorer, upstreams })?;
    tasks.spawn(ready.serve(listener));
    Ok(RunningFleet { gateway, replicas, tasks })
}
