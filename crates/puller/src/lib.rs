//! The puller of one node. The crate `kubefledged_queue` decides. This crate contains the gRPC service, the
//! access to the node (runtime, disk, credential providers), and the loop that connects them.

pub mod app;
pub mod args;
pub mod authorize;
pub mod containerd;
pub mod containers;
pub mod cri;
pub mod debug;
pub mod disk;
pub mod driver;
pub mod marks;
mod metrics;
pub mod node;
pub mod peers;
pub mod plugins;
pub mod progress;
mod pull;
pub mod runtime;
pub mod service;
mod unknown;
