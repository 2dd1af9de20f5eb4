//! The data plane, the only asynchronous crate: OpenAI-compatible gateway, emulated replica, load generator.

mod admin;
mod admission;
mod affinity;
pub mod bench;
mod checks;
pub mod client;
mod decisions;
pub mod emulate;
pub mod engine_metrics;
mod http;
mod keys;
mod metrics;
pub mod mock;
pub mod openai;
pub mod profile;
mod quality;
mod relay;
mod replica;
mod routes;
pub mod serve;
pub mod sse;
mod tls;
mod traffic;
mod upstream;

pub use admin::EQUAL_SPEED;
pub use admission::AdmissionLimits;
pub use bench::{BenchConfig, BenchRequest, BenchResult, bench, served_models};
pub use client::HttpClient;
pub use emulate::{EmulatedReplicas, EmulationError, RunningFleet, emulate_fleet};
pub use http::ClientLimits;
pub use keys::{Keys, KeysError};
pub use mock::{MockConfig, serve_mock};
pub use replica::Upstream;
pub use routes::{AUTO, GatewayError, RoutesConfig};
pub use serve::{Gateway, Limits, Settings};
pub use tls::{Tls, TlsError};
