//! See `kubefledged-controller --help`.

use clap::Parser as _;
use kubefledged_controller::{app, args::Cli};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    app::main(Cli::parse())
}
