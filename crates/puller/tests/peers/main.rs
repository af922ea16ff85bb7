//! Layers from one puller to another, each beside a runtime of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod hostile;
mod leases;
mod rogue;
mod share;
mod world;
