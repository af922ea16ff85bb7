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
    let mut config = kube::Config::infer().await?;
    // Whoever asks here has a back-off of its own.
    config.default_retry = false;
    let client = kube::Client::try_from(config)?;
    app::build(args.into(), client)?.run(shutdown).await
}
