//! Cleans up before kubefledged is removed: it removes our pins from nodes, our finalizers from `ImageCache`s, and
//! the Lease. It runs as a Job before `helm uninstall`, or by hand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use kubefledged_api_types::{ImageCache, names};
use kubefledged_contract::controller as contract;
use kubefledged_engine::{ImageResult, NodeName, Puller};
use kubefledged_process::tls::{self, Connector, Failures, Identity};
use kubefledged_proto::puller::puller_service_client::PullerServiceClient;
use serde_json::json;
use tokio::{sync::watch, time::timeout};

use crate::{
    args::RunArgs,
    certificates::{Role, Secrets},
    effects::dial,
    inputs::pullers::{self, LeanSlice},
    lease,
};

/// Maximum number of pullers that are called at the same time.
const AT_A_TIME: usize = 64;
/// Time limit for all calls to one puller.
const PULLER_LIMIT: Duration = Duration::from_secs(10);
/// Time between reads while waiting for another process.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of attempts of a write that conflicts with others.
const TRIES: usize = 5;

/// Cleans up within `limit`. Pins that cannot be removed are only logged. A finalizer that cannot be removed is an
/// error, because its object could never be deleted.
pub async fn run(args: RunArgs, limit: Duration) -> anyhow::Result<()> {
    let cleanup = Cleanup {
        client: Client::try_default()
            .await
            .context("cannot find the API server: run in a pod, or set KUBECONFIG")?,
        args,
    };
    let deadline = Instant::now() + limit;
    // Half of the time for what may fail, the other half is the finalizers'.
    match timeout(limit / 2, cleanup.unpin()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "pins may stay on nodes"),
        Err(_) => tracing::warn!("pins may stay on nodes: the pullers took too long"),
    }
    let left = deadline.saturating_duration_since(Instant::now());
    timeout(left, cleanup.release())
        .await
        .context("finalizers may stay on ImageCaches: no time left, raise --timeout")?
}

struct Cleanup {
    client: Client,
    args: RunArgs,
}

impl Cleanup {
    /// Stops the controller, which would otherwise set the pins again, and removes our pins.
    async fn unpin(&self) -> anyhow::Result<()> {
        let term = self.stop_controller().await? + 1;
        let connector = self.connector().await?;
        let slices: Api<LeanSlice> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let service = format!("kubernetes.io/service-name={}", self.args.puller_service);
        let slices = slices.list(&ListParams::default().labels(&service)).await?;
        let nodes = slices.items.into_iter().flat_map(pullers::ready);
        let results: Vec<_> = stream::iter(nodes)
            .map(|(node, puller)| {
                let connector = connector.clone();
                async move {
                    let unpinned = timeout(PULLER_LIMIT, unpin(connector, &node, &puller, term));
                    let unpinned = unpinned.await.context("no answer");
                    (node, unpinned.flatten())
                }
            })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        let nodes = results.len();
        let mut unpinned = 0;
        for (node, result) in results {
            match result {
                Ok(count) => unpinned += count,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(%node, error, "pins may stay on this node");
                }
            }
        }
        tracing::info!(nodes, unpinned, "pins are removed");
        Ok(())
    }

    /// Scales the controller to 0 and waits until nobody holds the Lease. Returns the last term.
    async fn stop_controller(&self) -> anyhow::Result<u64> {
        let deployments: Api<Deployment> =
            Api::namespaced(self.client.clone(), &self.args.namespace);
        let name = &self.args.deployment_name;
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        let scaled = deployments
            .patch_scale(name, &PatchParams::default(), &none)
            .await;
        let stopped = matches!(&scaled, Err(kube::Error::Api(status)) if status.code == 404);
        if !stopped {
            scaled.with_context(|| format!("cannot scale Deployment {name} to 0"))?;
            while deployments
                .get_scale(name)
                .await?
                .status
                .unwrap_or_default()
                .replicas
                > 0
            {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        let leases = self.leases();
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let Some(lease) = leases.get_opt(&self.args.lease_name).await? else {
                return Ok(0);
            };
            let held = lease::read(&lease);
            if seen.as_ref() != Some(&held.renewed) {
                (seen, since) = (Some(held.renewed), Instant::now());
            }
            if held.holder.is_empty() || since.elapsed() >= lease::DURATION {
                return Ok(held.transitions);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns a connector to the pullers with the controller's certificate.
    async fn connector(&self) -> anyhow::Result<Connector> {
        let name = Role::Controller.secret(&self.args.secret_prefix);
        let deployment = self.args.deployment_name.clone();
        let secrets = Secrets::new(self.client.clone(), &self.args.namespace, deployment);
        let found = secrets.read(&name).await?;
        let pair = found.pair().with_context(|| format!("Secret {name}"))?;
        let (certificate, bundle) = (pair.certificate.pem.as_bytes(), found.bundle());
        let identity = Identity::from_pem(certificate, pair.key.as_bytes(), bundle.as_bytes())?;
        let (_keep, current) = watch::channel(Some(Arc::new(identity.client()?)));
        let puller = tls::names::puller(&self.args.namespace);
        Ok(Connector::new(current, puller, Failures::default())?)
    }

    /// Removes our finalizer from every `ImageCache`, and deletes the Lease.
    async fn release(&self) -> anyhow::Result<()> {
        let caches: Api<ImageCache> = Api::all(self.client.clone());
        let mut freed = 0;
        for attempt in 1.. {
            let listed = match caches.list_metadata(&ListParams::default()).await {
                // No definition, hence no object.
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                listed => listed.context("cannot list ImageCaches")?,
            };
            let mut again = false;
            for cache in listed.items {
                if !cache.finalizers().iter().any(|one| one == names::FINALIZER) {
                    continue;
                }
                let namespace = cache.namespace().unwrap_or_default();
                let name = cache.name_any();
                let others = cache
                    .finalizers()
                    .iter()
                    .filter(|one| *one != names::FINALIZER);
                let patch = json!({"metadata": {
                    "finalizers": others.collect::<Vec<_>>(),
                    "resourceVersion": cache.resource_version(),
                }});
                let api: Api<ImageCache> = Api::namespaced(self.client.clone(), &namespace);
                let patch = Patch::Merge(patch);
                match api
                    .patch_metadata(&name, &PatchParams::default(), &patch)
                    .await
                {
                    Ok(_) => freed += 1,
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(kube::Error::Api(status)) if status.code == 409 && attempt < TRIES => {
                        again = true;
                    }
                    Err(error) => {
                        let what = format!("cannot remove the finalizer of {namespace}/{name}");
                        return Err(error).context(what);
                    }
                }
            }
            if !again {
                break;
            }
        }
        tracing::info!(freed, "finalizers are removed");
        let deleted = self
            .leases()
            .delete(&self.args.lease_name, &DeleteParams::default())
            .await;
        match deleted {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).context("cannot delete the Lease"),
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.args.namespace)
    }
}

/// Removes our pins from a node. Returns their number.
async fn unpin(
    connector: Connector,
    node: &NodeName,
    puller: &Puller,
    term: u64,
) -> anyhow::Result<usize> {
    let (channel, _) = dial::connect(connector, puller.address).await?;
    let mut client = PullerServiceClient::new(channel);
    let response = client.check_images(contract::pins_request(node)).await?;
    let (_, report) = contract::checked(response.into_inner());
    anyhow::ensure!(
        !report.pins_unknown,
        "its container runtime does not say which images we pinned"
    );
    if report.pinned_by_us.is_empty() {
        return Ok(0);
    }
    let pinned = report.pinned_by_us.len();
    // Above the term of every leader, including the terms that only this puller remembers.
    let term = term.max(report.highest_term);
    let request = contract::unpin_request(node, term, &report.pinned_by_us);
    let mut answers = client.remove_images(request).await?.into_inner();
    let (mut gone, mut errors) = (0, Vec::new());
    while let Some(answer) = answers.message().await? {
        for outcome in contract::removed(answer).unwrap_or_default() {
            match outcome.result {
                ImageResult::Removed | ImageResult::Absent => gone += 1,
                ImageResult::Failed { message, .. } => errors.push(message),
                _ => errors.push("a newer request pins the image".to_owned()),
            }
        }
    }
    anyhow::ensure!(
        gone == pinned,
        "{gone} of {pinned} pins are removed: {}",
        errors.join("; ")
    );
    Ok(gone)
}
