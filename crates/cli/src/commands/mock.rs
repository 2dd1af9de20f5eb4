//! `boute mock`.

use std::net::SocketAddr;
use std::path::PathBuf;

use boute_gateway::{MockConfig, serve_mock};
use boute_perf::{Calibration, ReplicaConfig, ReplicaModel, default_engine};
use boute_sim::EngineConfig;
use boute_spec::catalog::Catalog;
use tokio::net::TcpListener;

use crate::commands::bench::check_time_scale;
use crate::commands::profile::read_speed;
use crate::complete;
use crate::failure::{Ending, Failure};
use crate::printer::Printer;

/// Runs one emulated vLLM replica: the simulator's engine in real time behind OpenAI's API. It answers with filler of the
/// length asked for by `max_tokens`, at the speed the model would have on the GPU.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Catalogue name of the model.
    #[arg(long, add = complete::models())]
    model: String,
    /// Catalogue name of the GPU type.
    #[arg(long, add = complete::gpus())]
    gpu: String,
    /// Tensor parallelism.
    #[arg(long, default_value_t = 1)]
    tp: u32,
    /// Pipeline parallelism.
    #[arg(long, default_value_t = 1)]
    pp: u32,
    /// Longest prompt plus answer, in tokens.
    #[arg(long, default_value_t = 16_384)]
    max_model_len: u32,
    /// Run at the speed that `boute profile` measured.
    #[arg(long)]
    profile: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8001", value_parser = socket_address)]
    listen: SocketAddr,
    /// Virtual seconds per second.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
}

pub(crate) fn run(args: &Args, printer: Printer) -> Result<Ending, Failure> {
    check_time_scale(args.time_scale)?;
    raise_descriptor_limit();
    let catalog = Catalog::builtin();
    let model = catalog.model(&args.model).map_err(Failure::told)?.clone();
    let gpu = catalog.gpu(&args.gpu).map_err(Failure::told)?.clone();
    let engine = default_engine(&gpu, &model.shape, args.max_model_len);
    let mut config = ReplicaConfig::new(model, gpu, args.tp, args.pp, engine);
    config.speed = args.profile.as_deref().map(read_speed).transpose()?;
    let step_time = ReplicaModel::new(&config, Calibration::builtin()).map_err(Failure::told)?;
    let mock = MockConfig {
        model: args.model.clone(),
        engine: EngineConfig::new(&config.engine, step_time.memory().kv_cache_tokens),
        request_time: step_time.request_time(),
        step_time,
        time_scale: args.time_scale,
        output_length_scale: 1.0,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::unexpected)?;
    runtime.block_on(async {
        let listener = bind(args.listen, "--listen").await?;
        printer.say(format_args!("{} on {} at http://{}/v1", args.model, args.gpu, args.listen));
        tokio::select! {
            () = serve_mock(mock, listener) => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(Ending::Done)
    })
}

/// Lets the process have as many connections as it may: systems start it with fewer, for the sake of programs that use
/// `select`. Where that fails, what there is must do.
pub(crate) fn raise_descriptor_limit() {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
}

/// An address to listen on.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let numbers = text.replace("localhost:", "127.0.0.1:");
    numbers.parse().map_err(|_| {
        "write it like `127.0.0.1:8080`, or `0.0.0.0:8080` to be reached from elsewhere".to_owned()
    })
}

/// Listens where `option` says, or says why not.
pub(crate) async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::input(
            format_args!("cannot listen on {address}: {error}"),
            format_args!("choose another with `{option} HOST:PORT`"),
        )
    })
}
