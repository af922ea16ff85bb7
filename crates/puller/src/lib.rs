//! The puller of one node. What decides is the crate `kubefledged_queue`; here are its gRPC service,
//! its runtime client, and the loop between them.

pub mod app;
pub mod args;
pub mod authorize;
pub mod cri;
pub mod driver;
pub mod service;
