//! Puts the parts together.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context as _;
use kubefledged_process::{
    Guard, Readiness, admin, log, net, shutdown,
    tls::{self, Failures},
};
use kubefledged_proto::puller::puller_service_server::PullerServiceServer;
use kubefledged_queue::{PullOutcome, Queue, RemoveResult, Settings};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    authorize::{Authorize, Connection, Roles},
    cri::{self, Cri},
    driver::{Driver, pull_label, removal_label},
    service::Service,
};

/// Between looks at the runtime.
const LOOK: Duration = Duration::from_secs(5);
/// While it does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What the command line asks for.
pub fn main(args: Args) -> anyhow::Result<()> {
    log::init(&args.log)?;
    // One thread: a puller waits for its runtime, and runs on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let token = shutdown::signal()?;
        build(args).await?.run(token).await
    })
}

/// A puller that listens and has not begun.
pub struct Bound {
    /// Where gRPC is served.
    pub grpc_address: SocketAddr,
    /// Where probes and metrics are served.
    pub http_address: SocketAddr,
    args: Args,
    grpc: TcpListener,
    http: TcpListener,
}

/// Listens.
pub async fn build(args: Args) -> anyhow::Result<Bound> {
    anyhow::ensure!(
        !args.node_name.is_empty(),
        "--node-name is empty: set NODE_NAME from spec.nodeName"
    );
    let grpc = net::bind(args.listen_port)
        .await
        .context("cannot listen on --listen-port")?;
    let http = net::bind(args.http_port)
        .await
        .context("cannot listen on --http-port")?;
    Ok(Bound {
        grpc_address: grpc.local_addr()?,
        http_address: http.local_addr()?,
        args,
        grpc,
        http,
    })
}

impl Bound {
    /// Runs until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            args, grpc, http, ..
        } = self;
        let readiness = Readiness::default();
        let mut registry = Registry::with_prefix("kubefledged");
        let metrics = Metrics::register(&mut registry);
        let failures = Failures::register(&mut registry);

        let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
        // Probes answer first: liveness does not depend on the runtime.
        let ready = readiness.register("runtime");
        let certificates = readiness.register("certificates");
        let admin = admin::serve(
            http,
            readiness,
            Arc::new(Mutex::new(registry)),
            shutdown.clone(),
        );
        tasks.spawn(async move { admin.await.context("probes and metrics cannot be served") });

        let (served, identity) = watch::channel(None);
        let follow =
            tls::files::follow(args.tls_dir.clone(), served, certificates, shutdown.clone());
        tasks.spawn(async move {
            follow.await;
            Ok(())
        });

        let Some((cri, runtime_name)) = wait_for_runtime(&args, &ready, &shutdown).await else {
            return Ok(());
        };
        let queue = Queue::new(Settings {
            max_parallel_pulls: args.max_parallel_pulls.into(),
            protected_images: args.protected_images.clone(),
            runtime: cri::runtime(&runtime_name),
        });
        let up = metrics.cri_up.clone();
        let (driver, inputs) = Driver::new(queue, cri.clone(), metrics);
        let service = Service {
            node_name: args.node_name.as_str().into(),
            instance: args.pod_uid.as_str().into(),
            max_parallel_pulls: args.max_parallel_pulls.into(),
            cri: cri.clone(),
            inputs,
            shutdown: shutdown.clone(),
            counter: Arc::new(AtomicU64::new(1)),
            identity: identity.clone(),
        };
        let connections = tls::incoming(grpc, identity, failures, shutdown.clone());
        let connections =
            ReceiverStream::new(connections).map(|stream| stream.map(Connection::new));
        let serve = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .layer(Authorize(Roles::of(&args.namespace)))
            .add_service(PullerServiceServer::new(service))
            .serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned());
        tasks.spawn(async move { serve.await.context("gRPC cannot be served") });
        tasks.spawn(watch_runtime(cri, ready, up, shutdown.clone()));
        let drive = driver.run(shutdown.clone());
        tasks.spawn(async move {
            drive.await;
            Ok(())
        });
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task ended")??;
            anyhow::ensure!(
                shutdown.is_cancelled(),
                "a task ended before the process did"
            );
        }
        Ok(())
    }
}

/// Waits until a runtime answers. None: the process ends before.
async fn wait_for_runtime(
    args: &Args,
    ready: &Guard,
    shutdown: &CancellationToken,
) -> Option<(Cri, String)> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return None,
            found = find_runtime(args) => match found {
                Ok(found) => {
                    ready.set_ready();
                    return Some(found);
                }
                Err(error) => ready.set_pending(format!("{error:#}")),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// The first runtime that answers. Where Docker is installed, containerd's socket is there too,
/// with CRI switched off.
async fn find_runtime(args: &Args) -> anyhow::Result<(Cri, String)> {
    let mut refusals = Vec::new();
    for socket in cri::sockets(args.cri_socket_path.as_deref(), &args.host_run_dir)? {
        let cri = Cri::new(socket.clone())?;
        match tokio::time::timeout(LOOK, cri.version()).await {
            Ok(Ok(version)) => {
                tracing::info!(
                    runtime = version.runtime_name,
                    version = version.runtime_version,
                    socket = %socket.display(),
                    "runtime found"
                );
                return Ok((cri, version.runtime_name));
            }
            Ok(Err(status)) => {
                refusals.push(format!("{}: {}", socket.display(), status.message()));
            }
            Err(_) => refusals.push(format!("{}: no answer in time", socket.display())),
        }
    }
    anyhow::bail!("no runtime answers: {}", refusals.join(", "))
}

/// Readiness follows the runtime.
async fn watch_runtime(
    cri: Cri,
    ready: Guard,
    up: Gauge,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let answer = tokio::time::timeout(LOOK, cri.version()).await;
        let answers = matches!(answer, Ok(Ok(_)));
        up.set(answers.into());
        match answer {
            Ok(Ok(_)) => ready.set_ready(),
            Ok(Err(status)) => {
                let why = format!("the runtime does not answer: {}", status.message());
                ready.set_pending(why);
            }
            Err(_) => ready.set_pending("the runtime does not answer in time"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(if answers { LOOK } else { RETRY }) => {}
        }
    }
}

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    pulls: Family<Vec<(&'static str, String)>, Counter>,
    durations: Histogram,
    removals: Family<Vec<(&'static str, String)>, Counter>,
    cri_up: Gauge,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            pulls: Family::default(),
            durations: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
            removals: Family::default(),
            cri_up: Gauge::default(),
        };
        registry.register(
            "image_pulls",
            "Ended pulls by result and reason",
            metrics.pulls.clone(),
        );
        registry.register_with_unit(
            "image_pull_duration",
            "From the first runtime call to the end of a pull",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register(
            "image_removals",
            "Ended removals by result",
            metrics.removals.clone(),
        );
        registry.register(
            "cri_up",
            "Whether the container runtime answered when it was last asked",
            metrics.cri_up.clone(),
        );
        metrics
    }

    /// A pull ended.
    pub fn pulled(&self, outcome: &PullOutcome) {
        let (result, reason) = pull_label(&outcome.result);
        let labels = vec![("result", result.to_owned()), ("reason", reason.to_owned())];
        self.pulls.get_or_create(&labels).inc();
        if outcome.attempts > 0 {
            self.durations.observe(outcome.took.as_secs_f64());
        }
    }

    /// A removal ended.
    pub fn removed(&self, result: &RemoveResult) {
        let labels = vec![("result", removal_label(result).to_owned())];
        self.removals.get_or_create(&labels).inc();
    }
}
