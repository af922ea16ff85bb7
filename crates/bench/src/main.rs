//! `make bench-fleet`: thousands of simulated pullers behind a real API server and a real controller.

mod cluster;
mod controller;
mod fleet;
mod model;
mod report;
mod run;
mod scenario;
mod serve;
mod service;
mod soak;
mod world;

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    let args = run::Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    tokio::runtime::Runtime::new()?.block_on(run::run(args))
}
