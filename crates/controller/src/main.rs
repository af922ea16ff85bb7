//! See `kubefledged-controller --help`.

use clap::Parser as _;
use kubefledged_controller::{app, args::Cli};

fn main() -> anyhow::Result<()> {
    app::main(Cli::parse())
}
