//! Common parts of the kubefledged processes: flags for logs and probes, readiness, shutdown,
//! listeners, metrics, traces, and TLS with certificates that change while the process runs.

#![deny(missing_docs)]

pub mod admin;
#[cfg(feature = "grpc")]
pub mod debug;
pub mod log;
pub mod metrics;
pub mod net;
pub mod places;
pub mod readiness;
pub mod shutdown;
pub mod tls;
#[cfg(feature = "traces")]
pub mod traces;
mod usage;

pub use admin::AdminArgs;
pub use log::LogArgs;
pub use metrics::Metrics;
pub use readiness::{Guard, Readiness};
