//! See `kubefledged-controller --help`.

use clap::Parser as _;
use kubefledged_controller::{app, args::Cli};

/// A wave over thousands of nodes leaves glibc's heap in pieces: more time, and memory that never comes
/// back (docs/performance.md). How it is set: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    app::main(Cli::parse())
}
