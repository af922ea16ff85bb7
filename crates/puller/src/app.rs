//! Starts the parts of the puller and connects them.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::Context as _;
use futures::FutureExt as _;
use kubefledged_process::{
    Guard, Metrics as Exposition, Readiness, admin, debug as endpoint, log, metrics as measured,
    net, shutdown,
    tls::{self, Failures},
};
use kubefledged_proto::{
    peer::peer_service_server::PeerServiceServer,
    puller::puller_service_server::PullerServiceServer,
};
use kubefledged_queue::{Queue, Settings};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Channel};

use crate::{
    args::Args,
    authorize::{Authorize, Connection, Roles},
    containerd::Containerd,
    cri::{self, Cri},
    debug::{self, Debug},
    disk,
    driver::Driver,
    marks::Marks,
    metrics::Metrics,
    node::{Abilities, Node},
    peers::{Limits, Peers, Surroundings},
    plugins::Plugins,
    runtime::{self, Found, Search},
    service::Service,
};

/// Maximum number of requests in flight on one connection. A stream counts until its first message.
const REQUESTS: usize = 8;

/// Runs the process with its flags.
pub fn main(args: Args) -> anyhow::Result<()> {
    log::init(&args.log)?;
    // One thread is enough, because a puller mostly waits for its runtime, and it runs on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let token = shutdown::signal()?;
        build(args).await?.run(token).await
    })
}

/// A puller with open listeners that does not serve yet.
pub struct Bound {
    /// Address of the gRPC service.
    pub grpc_address: SocketAddr,
    /// Address of probes and metrics.
    pub http_address: SocketAddr,
    /// Address of the debug endpoint. `None` if it is off.
    pub debug_address: Option<SocketAddr>,
    args: Args,
    plugins: Plugins,
    grpc: TcpListener,
    http: TcpListener,
    debug: Option<TcpListener>,
}

/// Opens the listeners.
pub async fn build(args: Args) -> anyhow::Result<Bound> {
    anyhow::ensure!(
        !args.node_name.is_empty(),
        "--node-name is empty: set NODE_NAME from spec.nodeName"
    );
    let plugins = plugins(&args);
    let grpc = net::bind(args.listen_port).context("cannot listen on --listen-port")?;
    let http = net::bind(args.http_port).context("cannot listen on --http-port")?;
    let debug = args.debug_address.bind().await;
    let debug = debug.context("cannot listen on --debug-address")?;
    Ok(Bound {
        grpc_address: grpc.local_addr()?,
        http_address: http.local_addr()?,
        debug_address: debug.as_ref().map(TcpListener::local_addr).transpose()?,
        args,
        plugins,
        grpc,
        http,
        debug,
    })
}

fn plugins(args: &Args) -> Plugins {
    match (
        &args.credential_provider_config,
        &args.credential_provider_bin_dir,
    ) {
        (Some(config), Some(directory)) => Plugins::load(config, directory),
        _ => Plugins::default(),
    }
}

fn node(args: &Args, (channel, bulk): (Channel, Channel), plugins: Plugins) -> Node {
    Node {
        cri: Cri::new(channel.clone()),
        containerd: Containerd::new(channel, bulk),
        disk: (args.disk_watermark < 100)
            .then(|| disk::path(args.image_fs_path.as_deref()))
            .flatten(),
        plugins,
        marks: Marks::load(args.state_dir.as_deref()),
        peers: None,
    }
}

/// Returns layers from other nodes and for them. `None`: the flag switches them off.
fn peers(
    args: &Args,
    node: &Node,
    served: &watch::Receiver<Option<Arc<tls::Served>>>,
    (failures, metrics): (&Failures, &Metrics),
    abilities: &watch::Receiver<Abilities>,
) -> anyhow::Result<Option<Peers>> {
    if !args.peers {
        return Ok(None);
    }
    let around = Surroundings {
        namespace: args.namespace.as_str().into(),
        node: args.node_name.as_str().into(),
        containerd: node.containerd.clone(),
        served: served.clone(),
        failures: failures.clone(),
        metrics: metrics.clone(),
        disk: node.disk.clone().map(|path| (path, args.disk_watermark)),
        abilities: abilities.clone(),
    };
    let limits = Limits {
        uploads: args.max_peer_uploads.into(),
        upload_rate: args.max_peer_upload_rate,
        download_rate: args.max_peer_download_rate,
    };
    Peers::new(around, limits).map(Some)
}

/// Serves gRPC on connections that were accepted already, to the roles that may call each service.
async fn serve(
    connections: mpsc::Receiver<io::Result<tls::Stream>>,
    routes: Routes,
    service: Service,
    roles: Roles,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let peers = service.node.peers.clone().map(PeerServiceServer::new);
    let routes = match peers {
        Some(peers) => routes.add_service(peers),
        None => routes,
    };
    let service = PullerServiceServer::new(service)
        .max_decoding_message_size(kubefledged_contract::MESSAGE_LIMIT);
    let connections = ReceiverStream::new(connections).map(|stream| stream.map(Connection::new));
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(kubefledged_contract::KEEP_ALIVE))
        .layer(Authorize(roles))
        // Requests are read whole; this limits the memory of large ones.
        .concurrency_limit_per_connection(REQUESTS)
        .add_routes(routes.add_service(service))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
        .context("gRPC cannot be served")
}

fn settings(args: &Args, node: &Node, runtime: &str) -> Settings {
    Settings {
        max_parallel_pulls: args.max_parallel_pulls.into(),
        protected_images: args.protected_images.clone(),
        runtime: cri::runtime(runtime),
        own_images: args.own_images.clone(),
        disk_watermark: node.disk.as_ref().map(|_| args.disk_watermark),
        no_progress: args.no_progress_limit.0,
        credential_providers: !node.plugins.is_empty(),
        ..Settings::default()
    }
}

/// Returns metrics that are updated at each scrape: the disk, and the queue once there is one.
fn exposition(
    registry: Registry,
    metrics: &Metrics,
    args: &Args,
    shown: watch::Receiver<Option<Debug>>,
) -> Exposition {
    let (metrics, disk) = (metrics.clone(), disk::path(args.image_fs_path.as_deref()));
    Exposition::new(registry).before(move || {
        metrics.measure(disk.as_deref());
        let (metrics, shown) = (metrics.clone(), shown.borrow().clone());
        async move {
            if let Some(shown) = shown
                && let Ok((_, totals)) = shown.view(0, 0).await
            {
                metrics.queued(totals.waiting, totals.running);
                let peers = shown.node.peers.as_ref();
                metrics.uploads(peers.map_or(0, Peers::uploads));
            }
        }
    })
}

impl Bound {
    /// Runs until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            args,
            plugins,
            grpc,
            http,
            debug,
            ..
        } = self;
        let mut registry = measured::registry(env!("CARGO_PKG_VERSION"));
        let metrics = Metrics::register(&mut registry);
        let failures = Failures::register(&mut registry);
        let mut tasks = Tasks::default();
        plugins.check();

        // Probes are served first, because liveness does not depend on the runtime.
        let readiness = Readiness::default();
        let ready = readiness.register("runtime");
        let certificates = readiness.register("certificates");
        let (shown, inbox) = watch::channel(None);
        let exposition = exposition(registry, &metrics, &args, inbox);
        tasks.endless(admin::serve(http, readiness, exposition, shutdown.clone()));
        let (served, identity) = watch::channel(None);
        let directory = args.tls_dir.clone();
        tasks.endless(tls::files::follow(
            directory,
            served,
            certificates,
            shutdown.clone(),
        ));

        let search = Search {
            flag: args.cri_socket_path.clone(),
            run_dir: args.host_run_dir.clone(),
            pod_uid: args.pod_uid.clone(),
        };
        let Some(found) = search.wait(&ready, &shutdown).await else {
            return Ok(());
        };
        let services = Services {
            args,
            plugins,
            metrics,
            failures,
            identity,
            ready,
            shown,
            search,
            shutdown: shutdown.clone(),
        };
        services.start(&mut tasks, found, grpc, debug).await?;
        tasks.ended(&shutdown).await
    }
}

/// What the services of a puller need once its runtime is found.
struct Services {
    args: Args,
    plugins: Plugins,
    metrics: Metrics,
    failures: Failures,
    /// The certificate that is served.
    identity: watch::Receiver<Option<Arc<tls::Served>>>,
    /// Whether the runtime answers.
    ready: Guard,
    /// Where metrics find the queue.
    shown: watch::Sender<Option<Debug>>,
    /// How the runtime is found again if its socket moves.
    search: Search,
    shutdown: CancellationToken,
}

impl Services {
    /// Starts the queue's driver, the watch over the runtime, gRPC and the debug endpoint.
    async fn start(
        self,
        tasks: &mut Tasks,
        (socket, channel, version): Found,
        grpc: TcpListener,
        debug: Option<TcpListener>,
    ) -> anyhow::Result<()> {
        let Self { args, shutdown, .. } = self;
        let bulk = cri::connect_for_layers(socket.clone());
        let mut node = node(&args, (channel, bulk), self.plugins);
        let counter = Arc::new(AtomicU64::new(1));
        let (report, abilities) = watch::channel(Abilities::default());
        let counts = (&self.failures, &self.metrics);
        node.peers = peers(&args, &node, &self.identity, counts, &abilities)?;
        let up = self.metrics.cri_up.clone();
        let queue = Queue::new(settings(&args, &node, &version.runtime_name));
        let (driver, inputs) =
            Driver::new(queue, node.clone(), self.metrics, report, counter.clone());
        // Before the first request, the way in which this runtime removes images must be known.
        let known = runtime::report(&node, &inputs).await.then_some(version);
        let service = Service {
            node_name: args.node_name.as_str().into(),
            instance: args.pod_uid.as_str().into(),
            max_parallel_pulls: args.max_parallel_pulls.into(),
            node: node.clone(),
            abilities,
            inputs: inputs.clone(),
            shutdown: shutdown.clone(),
            counter,
            identity: self.identity.clone(),
        };
        let debugged = Debug {
            node_name: service.node_name.clone(),
            socket: socket.clone(),
            node: node.clone(),
            inputs: inputs.clone(),
            unknown: driver.unknown_errors(),
        };
        self.shown.send_replace(Some(debugged.clone()));
        let routes = debug::routes(debugged).await?;
        let debugging = endpoint::serve(debug, routes.clone(), shutdown.clone());
        tasks.fallible(async {
            debugging
                .await
                .context("the debug endpoint cannot be served")
        });
        let connections = tls::incoming(grpc, self.identity, self.failures, shutdown.clone());
        let roles = Roles::of(&args.namespace);
        tasks.fallible(serve(connections, routes, service, roles, shutdown.clone()));
        let peers = node.peers.clone();
        let watching = runtime::watch(
            (self.search, socket),
            node,
            known,
            self.ready,
            up,
            inputs,
            shutdown.clone(),
        );
        tasks.fallible(watching);
        if let Some(peers) = peers {
            tasks.endless(peers.run(shutdown.clone()));
        }
        tasks.endless(driver.run(shutdown));
        Ok(())
    }
}

/// The tasks of the process, each of which runs until the shutdown.
#[derive(Default)]
struct Tasks(JoinSet<anyhow::Result<()>>);

impl Tasks {
    fn fallible(&mut self, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.0.spawn(task);
    }

    fn endless(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task.map(Ok));
    }

    /// Waits for all tasks. A task that ends before the shutdown ends the process.
    async fn ended(mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        while let Some(ended) = self.0.join_next().await {
            ended.context("a task ended")??;
            anyhow::ensure!(
                shutdown.is_cancelled(),
                "a task ended before the process did"
            );
        }
        Ok(())
    }
}
