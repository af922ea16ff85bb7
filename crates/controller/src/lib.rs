//! The controller. What decides is the crate `kubefledged_engine`; here are its senses (`inputs`)
//! and hands (`effects`), and the loop between them (`driver`). `certificates` keeps the CA and all
//! that it signs.

pub mod app;
pub mod args;
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
pub mod verify;
