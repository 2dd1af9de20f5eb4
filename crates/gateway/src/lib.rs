//! The data plane, the only asynchronous crate: OpenAI-compatible gateway, emulated replica, load generator.

pub mod bench;
pub mod emulate;
pub mod engine_metrics;
mod metrics;
pub mod mock;
mod openai;
pub mod profile;
pub mod serve;

pub use bench::{BenchConfig, BenchRequest, BenchResult, bench, served_models};
pub use emulate::{EmulationError, RunningFleet, emulate_fleet};
pub use mock::{MockConfig, serve_mock};
pub use serve::{AUTO, GatewayConfig, GatewayError, ReadyGateway, Upstream};
