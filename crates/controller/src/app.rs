//! Starts the parts of the controller and connects them.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, runtime::watcher};
use kubefledged_engine::{Engine, Event, Source};
use kubefledged_process::{
    Metrics as Exposition, Readiness, admin, debug as endpoint, log, metrics as measured, net,
    shutdown,
    tls::{self, Connector, Failures},
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    args::{Cli, Command, RunArgs},
    budgets,
    certificates::{self, Keeper},
    checks::Checks,
    cleanup, crd,
    debug::{self, Debug},
    driver::{self, Asking},
    effects::{
        Effects, credentials::Credentials, dial, dialer::Dialer, objects::Objects,
        peers::Entitlements, pullers::Pullers,
    },
    inputs::{
        self,
        caches::{Caches, StoredCache},
        nodes::{LeanNode, Nodes},
        placement::{LeanDaemonSet, Placements},
        pullers::LeanSlice,
        starting::Reach,
        workloads::Wanted,
    },
    lease::{self, Candidate, Followers, Term},
    metrics::Metrics,
    runtimes::KubeletRuntimes,
    traces::Spans,
    verify,
};

/// Tasks of the process, each with its name.
type Tasks = JoinSet<&'static str>;

/// Runs the command of the command line.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    let Cli { command, run } = cli;
    let run = match &command {
        None => run,
        Some(Command::Crd) => {
            print!("{}", crd::yaml()?);
            return Ok(());
        }
        Some(Command::Cleanup(once) | Command::Verify(once)) => once.run.clone(),
    };
    log::init(&run.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        match command {
            Some(Command::Cleanup(once)) => cleanup::run(run, once.timeout.0).await,
            Some(Command::Verify(once)) => verify::run(run, once.timeout.0).await,
            _ => {
                run.obsolete.warn();
                let token = shutdown::signal()?;
                build(run).await?.run(token).await
            }
        }
    });
    // The name of a collector may just be looked up; nobody waits for that.
    runtime.shutdown_background();
    ended
}

/// A controller with open listeners that does not run yet.
pub struct Bound {
    args: RunArgs,
    client: Client,
    lease: Client,
    http: TcpListener,
    debug: Option<TcpListener>,
    spans: Spans,
}

/// How to reach the API server. A client asks once: whoever asks has a back-off of its own, which knows what is still
/// worth asking.
pub(crate) async fn api_server() -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::infer()
        .await
        .context("cannot find the API server: run in a pod, or set KUBECONFIG")?;
    config.default_retry = false;
    Ok(config)
}

/// Connects to the API server and opens the listeners.
pub async fn build(args: RunArgs) -> anyhow::Result<Bound> {
    let config = api_server().await?;
    // The Lease has connections of its own: whatever else is read, leadership must not wait for it.
    let lease = Client::try_from(config.clone());
    let lease = lease.context("cannot make a client for the API server")?;
    let client = Client::try_from(config).context("cannot make a client for the API server")?;
    let http = net::bind(args.http_port).context("cannot listen on --http-port")?;
    let debug = args.debug_address.bind().await;
    let debug = debug.context("cannot listen on --debug-address")?;
    let spans = Spans::new(&args)?;
    Ok(Bound {
        args,
        client,
        lease,
        http,
        debug,
        spans,
    })
}

impl Bound {
    /// Runs until the token is cancelled. A background task that ends earlier ends the process.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let spans = self.spans.clone();
        let ended = self.work(shutdown).await;
        spans.flush().await;
        ended
    }

    async fn work(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (args, client) = (self.args, self.client);
        let readiness = Readiness::default();
        let (events, inbox) = mpsc::channel(4096);
        let (raise_term, raised) = watch::channel(0);
        let (led, leading) = watch::channel(false);
        let mut tasks: Tasks = JoinSet::new();

        let mut registry = measured::registry(env!("CARGO_PKG_VERSION"));
        let metrics = Metrics::register(&mut registry);
        let certificates = certificates::Metrics::register(&mut registry);
        let failures = Failures::register(&mut registry);
        let (stand, standing) = watch::channel(None);
        let (engine, questions) = Asking::new();
        let exposition = exposition(registry, &metrics, &engine, &standing);
        let admin = admin::serve(self.http, readiness.clone(), exposition, shutdown.clone());
        spawn(&mut tasks, admin, "admin");
        let passed = CancellationToken::new();
        let check = checks(&args, &client);
        let search = metrics.rivals.clone();
        let guard = readiness.register("checks");
        // Not one of `tasks`: it may end.
        tokio::spawn(check.run(guard, passed.clone(), search));

        // Leadership passes through here, so that certificates know it too.
        let (to_engine, engine_inbox) = mpsc::channel(4096);
        tasks.spawn(relay(inbox, to_engine, led));
        let acts = TaskTracker::new();
        let (hold, holder) = watch::channel(String::new());
        let followers = Followers {
            standing: stand,
            holder: hold,
            events: events.clone(),
            acts: acts.clone(),
        };
        let candidate = candidate(&mut tasks, &args, &self.lease, engine.clone());
        let election = lease::run(candidate, followers, raised, shutdown.clone());
        let releasing = tokio::spawn(begun(election, passed.clone(), shutdown.clone()));

        let ends = (leading, shutdown.clone());
        let certified = certify(&mut tasks, &args, &client, (certificates, failures), ends)?;
        let connector = certified.0.clone();
        let reach: Reach =
            Arc::new(move |address| dial::answers(connector.clone(), address).boxed());
        let inputs = (&client, &args, reach);
        let kubelets = watch_inputs(&mut tasks, inputs, &events, &readiness, &passed);
        let pullers = pullers(&args, &client, raise_term, (certified, kubelets), &metrics);
        let shown = Debug {
            engine,
            pullers: Arc::new(pullers.clone()),
            standing: standing.clone(),
            holder,
            namespace: args.namespace.as_str().into(),
        };
        serve_debug(&mut tasks, self.debug, shown, shutdown.clone()).await?;
        let objects = Objects::new(client.clone(), args.pod_name.clone());
        let acting = (events, standing, acts, self.spans);
        let effects = effects(&mut tasks, client, (pullers, objects), acting);
        let engine = Engine::new(args.settings());
        let ends = shutdown.clone();
        let drive = driver::run(engine, engine_inbox, questions, effects, metrics, ends);
        spawn(&mut tasks, drive, "driver");

        ended(&mut tasks, &shutdown).await?;
        // The Lease is given back before the process ends: the next one takes over at once.
        releasing.await.context("the Lease could not be released")
    }
}

/// Returns what carries out commands, and starts the watches of workloads that it controls.
fn effects(
    tasks: &mut Tasks,
    client: Client,
    (pullers, objects): (Pullers, Objects),
    (events, standing, acts, spans): (
        mpsc::Sender<Event>,
        watch::Receiver<Option<Term>>,
        TaskTracker,
        Spans,
    ),
) -> Effects {
    let (watches, wanted) = watch::channel(Wanted::new());
    let reads = inputs::workloads::run(client, wanted, standing.clone(), events.clone());
    spawn(tasks, reads, "workloads");
    Effects {
        pullers: pullers.traced(spans.clone()),
        objects,
        events,
        standing,
        acts,
        watches,
        spans,
    }
}

fn checks(args: &RunArgs, client: &Client) -> Checks {
    Checks {
        client: client.clone(),
        namespace: args.namespace.clone(),
        deployment: args.deployment_name.clone(),
        webhook_configuration: args.webhook_configuration.clone(),
    }
}

/// Returns the candidate, and starts what keeps up to date what it tells the next leader.
fn candidate(tasks: &mut Tasks, args: &RunArgs, client: &Client, engine: Asking) -> Candidate {
    let (tell, budgets) = watch::channel(None);
    spawn(tasks, budgets::publish(engine, tell), "budgets");
    Candidate::new(args, client, budgets)
}

/// Waits for the shutdown. A task that ends before is an error.
async fn ended(tasks: &mut Tasks, shutdown: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = tasks.join_next() => {
            anyhow::ensure!(shutdown.is_cancelled(), "task {ended:?} ended");
        }
    }
    Ok(())
}

/// Takes part in the election from the moment at which the checks have passed.
async fn begun(
    election: impl Future<Output = ()>,
    passed: CancellationToken,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = passed.cancelled() => election.await,
        () = shutdown.cancelled() => {}
    }
}

/// Connects to pullers, and entitles them to layers of each other.
type Certified = (Connector, Entitlements);

/// Starts the reconciliation of certificates, and returns what uses them.
fn certify(
    tasks: &mut Tasks,
    args: &RunArgs,
    client: &Client,
    (metrics, failures): (certificates::Metrics, Failures),
    (leading, shutdown): (watch::Receiver<bool>, CancellationToken),
) -> anyhow::Result<Certified> {
    let (identity, current) = watch::channel(None);
    let (peers, authority) = watch::channel(None);
    let name = tls::names::puller(&args.namespace);
    let connector =
        Connector::new(current, name, failures).context("--namespace is not the name of one")?;
    let keeper = Keeper::new(
        args.certificates(),
        client.clone(),
        metrics,
        (identity, peers),
        connector.clone(),
        Arc::new(|| Timestamp::now().as_second()),
    );
    spawn(tasks, keeper.run(leading, shutdown), "certificates");
    Ok((connector, Entitlements::new(authority)))
}

/// Returns metrics that ask the engine at each scrape.
fn exposition(
    registry: Registry,
    metrics: &Metrics,
    engine: &Asking,
    standing: &watch::Receiver<Option<Term>>,
) -> Exposition {
    let (metrics, engine, standing) = (metrics.clone(), engine.clone(), standing.clone());
    Exposition::new(registry).before(move || {
        let (metrics, engine, standing) = (metrics.clone(), engine.clone(), standing.clone());
        async move { metrics.measure(&engine, &standing).await }
    })
}

/// What people see of the engine. The process ends without waiting for those who still look.
async fn serve_debug(
    tasks: &mut Tasks,
    listener: Option<TcpListener>,
    shown: Debug,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (routes, follow) = debug::routes(shown).await?;
    tokio::spawn(follow);
    let serve = endpoint::serve(listener, routes, shutdown);
    tasks.spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(%error, "the debug endpoint cannot be served");
        }
        "debug"
    });
    Ok(())
}

fn pullers(
    args: &RunArgs,
    client: &Client,
    raise_term: watch::Sender<u64>,
    ((connector, entitlements), kubelets): (Certified, KubeletRuntimes),
    metrics: &Metrics,
) -> Pullers {
    let dialer = Dialer {
        connector,
        metrics: metrics.clone(),
        kubelets,
    };
    let service_account = args.service_account_name.as_deref().map(Arc::from);
    let credentials = Credentials::new(client.clone(), service_account);
    Pullers::new(
        dialer,
        credentials,
        entitlements,
        raise_term,
        args.max_dials as usize,
        args.max_connections as usize,
    )
}

/// Passes events on, and changes of leadership also to the certificates.
async fn relay(
    mut inbox: mpsc::Receiver<Event>,
    engine: mpsc::Sender<Event>,
    led: watch::Sender<bool>,
) -> &'static str {
    while let Some(event) = inbox.recv().await {
        if let Event::Leadership(term) = &event {
            led.send_replace(term.is_some());
        }
        if engine.send(event).await.is_err() {
            break;
        }
    }
    "relay"
}

/// Starts the watches after the checks have passed. Returns what they note of the kubelets.
fn watch_inputs(
    tasks: &mut Tasks,
    (client, args, reach): (&Client, &RunArgs, Reach),
    events: &mpsc::Sender<Event>,
    readiness: &Readiness,
    passed: &CancellationToken,
) -> KubeletRuntimes {
    let kubelets = KubeletRuntimes::default();
    let all = watcher::Config::default();
    let caches: Api<StoredCache> = Api::all(client.clone());
    let guard = readiness.register("ImageCaches");
    let watch = inputs::watch(
        caches,
        all.clone(),
        Source::Caches,
        Caches,
        events.clone(),
        guard,
    );
    spawn_after(tasks, passed, watch, "ImageCaches");
    let nodes: Api<LeanNode> = Api::all(client.clone());
    let (guard, input) = (readiness.register("Nodes"), Nodes::new(kubelets.clone()));
    let watch = inputs::watch(
        nodes,
        all.clone(),
        Source::Nodes,
        input,
        events.clone(),
        guard,
    );
    spawn_after(tasks, passed, watch, "Nodes");
    let slices: Api<LeanSlice> = Api::namespaced(client.clone(), &args.namespace);
    let service = format!("kubernetes.io/service-name={}", args.puller_service);
    let (guard, input) = (
        readiness.register("EndpointSlices"),
        inputs::pullers::Pullers::new(reach),
    );
    let watch = inputs::watch(
        slices,
        all.clone().labels(&service),
        Source::Pullers,
        input,
        events.clone(),
        guard,
    );
    spawn_after(tasks, passed, watch, "EndpointSlices");
    let sets: Api<LeanDaemonSet> = Api::namespaced(client.clone(), &args.namespace);
    let only = all.fields(&format!("metadata.name={}", args.puller_daemonset));
    // Where it may not be read, the controller works without it.
    let guard = Readiness::default().register("DaemonSet");
    let input = Placements::default();
    let watch = inputs::watch(sets, only, Source::Placement, input, events.clone(), guard);
    spawn_after(tasks, passed, watch, "DaemonSet");
    kubelets
}

fn spawn(tasks: &mut Tasks, task: impl Future<Output = ()> + Send + 'static, name: &'static str) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

fn spawn_after(
    tasks: &mut Tasks,
    passed: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
    name: &'static str,
) {
    let passed = passed.clone();
    tasks.spawn(async move {
        passed.cancelled().await;
        task.await;
        name
    });
}
