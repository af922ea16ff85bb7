//! Credentials of the node's credential providers. These are the kubelet's plugins with the kubelet's
//! configuration (`CredentialProviderConfig` of kubelet.config.k8s.io/v1), run as the kubelet runs them.
//! They log in to the registry of the node's cloud.

mod cache;
mod config;
mod exec;
mod program;

use std::{path::Path, sync::Arc};

use futures::future::join_all;
use kubefledged_image::{ImageRef, Keyring};
use kubefledged_proto::puller::Credential;
use tokio::{
    sync::Mutex,
    time::{Instant, error::Elapsed},
};

use cache::{Cache, KeyType};
use config::{Provider, Skipped};

/// The configured providers. Clones share the cache.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    providers: Arc<[Entry]>,
    skipped: Arc<[Skipped]>,
}

#[derive(Debug)]
struct Entry {
    provider: Provider,
    /// Held while the plugin runs, so that the same request is not made twice at the same time.
    cache: Mutex<Cache>,
}

impl Plugins {
    /// Reads the kubelet's configuration, a file or a directory; the plugins lie in another
    /// directory, under their names. What is wrong is logged and reported with the images that it
    /// concerns: the other providers work, and so do imagePullSecrets.
    pub fn load(config: &Path, directory: &Path) -> Self {
        let config::Providers { used, skipped } = config::load(config, directory);
        for Skipped { why, .. } in &skipped {
            tracing::error!(
                error = why,
                "in --credential-provider-config: something is not used"
            );
        }
        let entries = used.into_iter().map(|provider| Entry {
            provider,
            cache: Mutex::default(),
        });
        Self {
            providers: entries.collect(),
            skipped: skipped.into(),
        }
    }

    /// Whether there is none, and none that is skipped.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty() && self.skipped.is_empty()
    }

    /// Logs which plugins cannot run, and why. A plugin may need a shell or a loader, and our image has neither.
    /// The plugins are kept, and a pull that needs one reports its error.
    pub fn check(&self) {
        for Entry { provider, .. } in self.providers.iter() {
            match program::check(&provider.program) {
                Ok(()) => tracing::info!(provider = provider.name, "credential provider can run"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        provider = provider.name,
                        error,
                        "credential provider cannot run"
                    );
                }
            }
        }
    }

    /// What the providers give for an image, in the order of the kubelet, and what went wrong. They
    /// are asked at the same time: one that hangs holds up no other.
    pub async fn credentials(&self, name: &str) -> (Vec<Credential>, Option<String>) {
        let Ok(image) = ImageRef::parse(name) else {
            return (Vec::new(), None);
        };
        let mut keyring = Keyring::default();
        let concerned = self
            .skipped
            .iter()
            .filter(|skipped| skipped.concerns(&image));
        let mut trouble: Vec<String> = concerned.map(|skipped| skipped.why.clone()).collect();
        let fitting = self.providers.iter();
        let fitting = fitting.filter(|entry| config::fit(&entry.provider.images, &image));
        let asked = fitting.map(|entry| async { (&entry.provider.name, entry.ask(&image).await) });
        for (provider, answer) in join_all(asked).await {
            match answer {
                // Those of several providers for one key are all tried.
                Ok(found) => {
                    for (key, login) in found {
                        keyring.add(&key, login);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        provider,
                        image = name,
                        error,
                        "no credentials from a provider"
                    );
                    trouble.push(format!("credential provider {provider}: {error}"));
                }
            }
        }
        let found = keyring.matching(&image).into_iter().cloned().collect();
        (found, (!trouble.is_empty()).then(|| trouble.join("; ")))
    }
}

/// Credentials of a provider by registry key.
type Logins = Vec<(String, Credential)>;

impl Entry {
    async fn ask(&self, image: &ImageRef) -> Result<Logins, String> {
        let mut cache = self.cache.lock().await;
        if let Some(known) = cache.get(image, Instant::now()) {
            return known;
        }
        match exec::ask(&self.provider, image).await {
            Ok(answer) => {
                let keep = answer
                    .cache_duration
                    .or(self.provider.default_cache_duration);
                cache.put(answer.key_type, image, &answer.logins, keep, Instant::now());
                Ok(answer.logins)
            }
            Err(error) => {
                // One that hangs does so whatever it is asked.
                let concerns = if error.is::<Elapsed>() {
                    KeyType::Global
                } else {
                    KeyType::Image
                };
                let error = format!("{error:#}");
                cache.failed(concerns, image, &error, Instant::now());
                Err(error)
            }
        }
    }
}
