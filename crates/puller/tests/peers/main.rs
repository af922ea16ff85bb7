//! Layers from one puller to another, each beside a runtime of its own.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod hostile;
mod leases;
mod rogue;
mod share;
mod world;
