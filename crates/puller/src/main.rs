//! See `kubefledged-puller --help`.

use clap::Parser as _;
use kubefledged_puller::{app, args::Args};

fn main() -> anyhow::Result<()> {
    app::main(Args::parse())
}
