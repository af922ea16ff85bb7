//! Reconciles the certificates: when one of their objects changes, and every minute of the wall clock. The
//! timers of a machine that slept do not know how much time passed; the wall clock does.

mod manage;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use kubefledged_process::tls::{Connector, Identity};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::inputs::pullers::LeanSlice;

use super::{
    events::Expiry,
    fleet::Fleet,
    metrics::Metrics,
    parsed::{Certificate, Pair},
    peers::PeerAuthority,
    roles::Role,
    secrets::{Found, Secrets},
    webhook,
};

/// Time between two reconciliations if nothing changes.
const LOOK: Duration = Duration::from_secs(60);
/// Time between two reconciliations while a CA is being replaced.
const LOOK_CLOSELY: Duration = Duration::from_secs(5);
/// Changes within this time cause one reconciliation.
const TOGETHER: Duration = Duration::from_millis(100);
/// Back-off after a failure. It doubles with each further failure, up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(2);
/// Minimum time for which everything has been published before the next step. By then also the API server,
/// which cannot be asked, knows the new caBundle.
pub const FLOOR: i64 = 30;

/// Who issues the certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The leading controller
    Managed,
    /// cert-manager, with Certificates of the chart; its cainjector writes caBundle
    CertManager,
    /// Somebody else, in the same Secrets; the leading controller writes caBundle
    Provided,
}

/// Names of the objects that are reconciled.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who issues the certificates.
    pub mode: Mode,
    /// Namespace of the Secrets and Services.
    pub namespace: String,
    /// Prefix of the names of the Secrets.
    pub prefix: String,
    /// Deployment that owns the Secrets.
    pub deployment: String,
    /// Service of the webhook.
    pub webhook_service: String,
    /// The `ValidatingWebhookConfiguration`. Empty: there is no webhook.
    pub webhook_configuration: String,
    /// Headless Service of the pullers.
    pub puller_service: String,
    /// Name of this pod, which reports Events.
    pub pod_name: String,
}

/// Where the controller's certificate goes: to connections, and to what pullers get for each other.
pub type Presented = (
    watch::Sender<Option<Arc<ClientConfig>>>,
    watch::Sender<Option<Arc<PeerAuthority>>>,
);

/// The wall clock, in seconds since the epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Reconciles the certificates.
pub struct Keeper {
    settings: Settings,
    client: Client,
    secrets: Secrets,
    fleet: Fleet,
    expiry: Expiry,
    metrics: Metrics,
    clock: Clock,
    /// The identity with which the controller connects to pullers.
    identity: watch::Sender<Option<Arc<ClientConfig>>>,
    /// What pullers get to take layers from each other.
    peers: watch::Sender<Option<Arc<PeerAuthority>>>,
    /// The PEM texts of that identity, and who issues for pullers.
    presented: String,
    /// Time since which everything that is published has been unchanged.
    published_since: Option<i64>,
}

impl Keeper {
    /// `identity` and `peers` are set as soon as there is a certificate. `connector` connects to pullers.
    pub fn new(
        settings: Settings,
        client: Client,
        metrics: Metrics,
        (identity, peers): Presented,
        connector: Connector,
        clock: Clock,
    ) -> Self {
        let slices: Api<LeanSlice> = Api::namespaced(client.clone(), &settings.namespace);
        let deployment = settings.deployment.clone();
        Self {
            secrets: Secrets::new(client.clone(), &settings.namespace, deployment),
            fleet: Fleet::new(slices, settings.puller_service.clone(), connector),
            expiry: Expiry::new(client.clone(), &settings.namespace, &settings.pod_name),
            settings,
            client,
            metrics,
            clock,
            identity,
            peers,
            presented: String::new(),
            published_since: None,
        }
    }

    /// Reconciles while this process leads.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>, shutdown: CancellationToken) {
        loop {
            if *leading.borrow_and_update() {
                self.published_since = None;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    changed = leading.changed() => if changed.is_err() { return },
                    () = self.keep() => {}
                }
                self.metrics.clear();
            } else {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    changed = leading.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    /// Reconciles for ever.
    async fn keep(&mut self) {
        let mut changes = self.changes();
        let mut retry = RETRY;
        loop {
            let wait = match self.look().await {
                Ok(wait) => {
                    retry = RETRY;
                    wait
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot reconcile the certificates, trying again"
                    );
                    let wait = retry;
                    retry = LOOK.min(2 * retry);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Some(()) = changes.next() => {
                    // Changes often come in groups.
                    tokio::time::sleep(TOGETHER).await;
                    while let Some(Some(())) = changes.next().now_or_never() {}
                }
            }
        }
    }

    /// Notifies when one of the objects changes. Each object is watched by its name, which needs no right
    /// to read others.
    fn changes(&self) -> SelectAll<BoxStream<'static, ()>> {
        let mut names: Vec<String> = Role::ALL.map(|role| self.secret(role)).into();
        if self.settings.mode == Mode::Managed {
            names.push(self.ca_secret());
        }
        let mut changes = SelectAll::new();
        for name in names {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.namespace);
            let watch = watcher::watch_object(api, &name).default_backoff();
            changes.push(watch.map(|_| ()).boxed());
        }
        let configuration = &self.settings.webhook_configuration;
        if !configuration.is_empty() && self.settings.mode != Mode::CertManager {
            let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
            let watch = watcher::watch_object(api, configuration).default_backoff();
            changes.push(watch.map(|_| ()).boxed());
        }
        changes
    }

    /// Reconciles once. Returns the time until the next reconciliation.
    pub async fn look(&mut self) -> anyhow::Result<Duration> {
        match self.settings.mode {
            Mode::Managed => self.manage().await,
            Mode::CertManager => self.follow().await,
            Mode::Provided => {
                let wait = self.follow().await?;
                let webhook = self.read(&self.secret(Role::Webhook)).await?;
                anyhow::ensure!(
                    self.settings.webhook_configuration.is_empty() || !webhook.bundle().is_empty(),
                    "Secret {} has no ca.crt: the API server must know whom to trust",
                    self.secret(Role::Webhook)
                );
                self.publish(&webhook.bundle()).await?;
                Ok(wait)
            }
        }
    }

    /// Reads certificates that somebody else issues.
    async fn follow(&mut self) -> anyhow::Result<Duration> {
        for role in Role::ALL {
            let name = self.secret(role);
            let found = self.read(&name).await?;
            if role == Role::Controller {
                let pair = found.pair().with_context(|| format!("Secret {name}"))?;
                self.present(&pair, &found.bundle(), None)?;
            }
            if let Ok(pair) = found.pair() {
                self.tell_expiry(role.label(), &name, &found, &pair.certificate)
                    .await;
            }
        }
        Ok(LOOK)
    }

    /// Connects to pullers with this identity from now on, and issues certificates for them by this CA, if we have one.
    fn present(&mut self, pair: &Pair, bundle: &str, issuer: Option<&Pair>) -> anyhow::Result<()> {
        let by = issuer.map_or("", |ca| ca.certificate.pem.as_str());
        let presented = format!("{}{bundle}{by}", pair.certificate.pem);
        if presented == self.presented {
            return Ok(());
        }
        let certificate = pair.certificate.pem.as_bytes();
        let identity = Identity::from_pem(certificate, pair.key.as_bytes(), bundle.as_bytes())?;
        let peers = PeerAuthority::new(&identity, &self.settings.namespace, issuer)?;
        self.identity
            .send_replace(Some(Arc::new(identity.client()?)));
        self.peers.send_replace(Some(Arc::new(peers)));
        self.presented = presented;
        Ok(())
    }

    async fn publish(&self, bundle: &str) -> anyhow::Result<bool> {
        webhook::publish(&self.client, &self.settings.webhook_configuration, bundle)
            .await
            .context("write caBundle")
    }

    async fn tell_expiry(
        &mut self,
        label: &'static str,
        secret: &str,
        found: &Found,
        certificate: &Certificate,
    ) {
        self.metrics.ends(label, certificate.not_after);
        let now = (self.clock)();
        self.expiry
            .look(secret, found.uid(), certificate, now)
            .await;
    }

    async fn read(&self, name: &str) -> anyhow::Result<Found> {
        let found = self.secrets.read(name).await;
        found.with_context(|| format!("read Secret {name}"))
    }

    fn ca_secret(&self) -> String {
        format!("{}-ca", self.settings.prefix)
    }

    fn secret(&self, role: Role) -> String {
        role.secret(&self.settings.prefix)
    }

    fn names(&self, role: Role) -> Vec<String> {
        role.names(&self.settings.namespace, &self.settings.webhook_service)
    }
}
