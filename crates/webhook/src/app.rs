//! The process: its listeners and its parts that run at the same time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use kube::Client;
use kubefledged_process::{
    Guard, Metrics as Exposition, Readiness, admin,
    metrics::registry,
    net,
    tls::{self, Failures, Served},
};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Rules,
    certificate::{Keeper, Names},
    handlers,
    metrics::Metrics,
    server,
};

/// Configuration of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the Secret with the certificate and of the webhook's configuration.
    pub names: Names,
    /// What an `ImageCache` may ask for.
    pub rules: Rules,
    /// Port for the API server. 0 takes a free one.
    pub listen_port: u16,
    /// Port of probes and metrics. 0 takes a free one.
    pub http_port: u16,
    /// Time for which the process still serves after SIGTERM.
    pub shutdown_delay: Duration,
}

/// A process with open listeners that does not serve yet.
#[must_use = "call run, or the listeners close"]
pub struct Bound {
    config: Config,
    client: Client,
    readiness: Readiness,
    exposition: Exposition,
    metrics: Metrics,
    stopping: Guard,
    keeper: Keeper,
    current: watch::Receiver<Option<Arc<Served>>>,
    failures: Failures,
    tls_listener: TcpListener,
    http_listener: TcpListener,
}

/// Opens the listeners.
pub fn build(config: Config, client: Client) -> anyhow::Result<Bound> {
    let readiness = Readiness::default();
    let stopping = readiness.register("shutdown");
    stopping.set_ready();
    let (served, current) = watch::channel(None);
    let keeper = Keeper::new(
        config.names.clone(),
        served,
        readiness.register("certificate"),
        readiness.register("configuration"),
    );
    let mut registry = registry(env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::register(&mut registry);
    let failures = Failures::register(&mut registry);
    let tls_listener = listen(config.listen_port, "--listen-port")?;
    let http_listener = listen(config.http_port, "--http-port")?;
    Ok(Bound {
        config,
        client,
        readiness,
        exposition: Exposition::new(registry),
        metrics,
        stopping,
        keeper,
        current,
        failures,
        tls_listener,
        http_listener,
    })
}

fn listen(port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = net::bind(port);
    listener.with_context(|| format!("listen on port {port}: set another with {flag}"))
}

impl Bound {
    /// Returns the address for the API server.
    pub fn tls_address(&self) -> std::io::Result<SocketAddr> {
        self.tls_listener.local_addr()
    }

    /// Returns the address of probes and metrics.
    pub fn http_address(&self) -> std::io::Result<SocketAddr> {
        self.http_listener.local_addr()
    }

    /// Runs until the token is cancelled and running requests have ended. If a part ends earlier,
    /// returns an error that names it.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            client,
            readiness,
            exposition,
            metrics,
            stopping,
            keeper,
            current,
            failures,
            tls_listener,
            http_listener,
        } = self;
        let router = handlers::router(readiness.clone(), metrics, config.rules.clone());
        let stop_serving = CancellationToken::new();
        let delay = async {
            shutdown.cancelled().await;
            stopping.set_pending("shutting down");
            sleep(config.shutdown_delay).await;
            stop_serving.cancel();
        };
        let incoming = tls::incoming(tls_listener, current, failures, stop_serving.clone());
        let serving = server::serve(incoming, router, stop_serving.clone());
        // Probes are answered and the certificate is followed to the very end.
        let probes = admin::serve(
            http_listener,
            readiness,
            exposition,
            CancellationToken::new(),
        );
        let certificates = Box::pin(keeper.follow(client));
        tokio::select! {
            ((), ()) = async { tokio::join!(delay, serving) } => Ok(()),
            () = certificates => bail!("the watch of the certificate or of the configuration has ended"),
            () = probes => bail!("the server of probes and metrics has ended"),
        }
    }
}
