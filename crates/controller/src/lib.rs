//! The controller. The crate `kubefledged_engine` decides. In this crate, `inputs` watch the cluster, `effects`
//! carry out commands, and `driver` is the loop that connects them. `certificates` reconciles the CA and the
//! certificates that it issues.

pub mod app;
pub mod args;
mod budgets;
pub mod certificates;
pub mod checks;
pub mod cleanup;
pub mod crd;
pub mod debug;
pub mod driver;
pub mod effects;
pub mod inputs;
pub mod lease;
pub mod metrics;
pub mod runtimes;
pub mod traces;
pub mod verify;
