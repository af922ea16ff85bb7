//! Binary of the admission webhook.

use clap::Parser as _;
use kubefledged_process::{log, shutdown};
use kubefledged_webhook::{app, args::Args};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    log::init(&args.log)?;
    args.warn_of_flags_without_effect();
    let shutdown = shutdown::signal()?;
    let client = kube::Client::try_default().await?;
    app::build(args.into(), client)?.run(shutdown).await
}
