//! Checks whether an installation works, for `helm test`. It creates nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{apps::v1::DaemonSet, coordination::v1::Lease};
use kube::{Api, Client, api::PostParams};
use kubefledged_api_types::{CacheSpecEntry, ImageCache, ImageCacheSpec, names::refusal};

use crate::{app::api_server, args::RunArgs, lease};

/// Time between attempts while a part is still starting.
const LOOK: Duration = Duration::from_secs(1);

/// Checks until everything works, for at most `limit`, and logs the results.
pub async fn run(args: RunArgs, limit: Duration) -> anyhow::Result<()> {
    let client =
        Client::try_from(api_server().await?).context("cannot make a client for the API server")?;
    let deadline = Instant::now() + limit;
    let installation = Installation { client, args };
    installation.until(deadline, Question::Leader).await?;
    installation.until(deadline, Question::Pullers).await?;
    installation.until(deadline, Question::Accepted).await?;
    if !installation.args.webhook_configuration.is_empty() {
        installation.until(deadline, Question::Refused).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Question {
    /// A controller leads.
    Leader,
    /// Every node that should have a puller has a ready one.
    Pullers,
    /// The webhook accepts a valid `ImageCache`.
    Accepted,
    /// The webhook refuses an invalid one.
    Refused,
}

struct Installation {
    client: Client,
    args: RunArgs,
}

impl Installation {
    async fn until(&self, deadline: Instant, question: Question) -> anyhow::Result<()> {
        loop {
            match self.look(question).await {
                Ok(seen) => {
                    println!("ok: {seen}");
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn look(&self, question: Question) -> anyhow::Result<String> {
        let namespace = &self.args.namespace;
        match question {
            Question::Leader => {
                let name = &self.args.lease_name;
                let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
                let held = leases.get(name).await.context("no controller leads yet")?;
                let holder = lease::read(&held).holder;
                ensure!(
                    !holder.is_empty(),
                    "no controller leads: nobody holds Lease {name}"
                );
                Ok(format!("{holder} leads"))
            }
            Question::Pullers => {
                let name = &self.args.puller_service;
                let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
                let status = sets
                    .get(name)
                    .await
                    .with_context(|| format!("DaemonSet {name}"))?;
                let status = status.status.unwrap_or_default();
                let (ready, desired) = (status.number_ready, status.desired_number_scheduled);
                ensure!(desired > 0, "no node takes a pod of DaemonSet {name}");
                ensure!(ready == desired, "{ready} of {desired} pullers are ready");
                Ok(format!("{ready} of {desired} pullers are ready"))
            }
            Question::Accepted => {
                let created = self.create(&["registry.example.com/team/app:1.0"]).await;
                created.context("a good ImageCache is refused")?;
                Ok("a good ImageCache is accepted".to_owned())
            }
            Question::Refused => match self.create(&[]).await {
                Ok(()) => {
                    anyhow::bail!(
                        "an ImageCache without images is accepted: the webhook is not called"
                    )
                }
                Err(error) if error.to_string().contains(refusal::NO_IMAGES) => {
                    Ok("an ImageCache without images is refused".to_owned())
                }
                Err(error) => Err(error).context("the webhook does not answer"),
            },
        }
    }

    /// Creates an `ImageCache` as a dry run.
    async fn create(&self, images: &[&str]) -> Result<(), kube::Error> {
        let list = CacheSpecEntry {
            images: images.iter().map(ToString::to_string).collect(),
            ..CacheSpecEntry::default()
        };
        let spec = ImageCacheSpec {
            cache_spec: vec![list],
            ..ImageCacheSpec::default()
        };
        let api: Api<ImageCache> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        api.create(&params, &ImageCache::new("kubefledged-verify", spec))
            .await
            .map(drop)
    }
}
