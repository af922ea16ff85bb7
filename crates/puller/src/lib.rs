//! The puller of one node. What decides is the crate `kubefledged_queue`; here are its gRPC service,
//! what it knows of its node (runtime, disk, credential providers), and the loop between them.

pub mod app;
pub mod args;
pub mod authorize;
pub mod containerd;
pub mod cri;
pub mod debug;
pub mod disk;
pub mod driver;
pub mod metrics;
pub mod node;
pub mod plugins;
pub mod progress;
pub mod runtime;
pub mod service;
