//! See `kubefledged-controller --help`.

use clap::Parser as _;
use kubefledged_controller::{app, args::Cli};

/// jemalloc, because waves over thousands of nodes fragment the heap of glibc, which then takes more time and
/// returns no memory (docs/performance.md). `.cargo/config.toml` sets its options.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    app::main(Cli::parse())
}
