//! One module per subcommand; each has its arguments and a `run`.

pub(crate) mod autopilot;
pub(crate) mod bench;
pub(crate) mod catalog;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod init;
pub(crate) mod mock;
pub(crate) mod optimize;
pub(crate) mod perf;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod quality;
pub(crate) mod reference;
pub(crate) mod replan;
pub(crate) mod report;
pub(crate) mod router;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod simulate;
