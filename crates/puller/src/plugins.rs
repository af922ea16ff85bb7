//! Credentials of the node's credential providers. These are the kubelet's plugins with the kubelet's
//! configuration (`CredentialProviderConfig` of kubelet.config.k8s.io/v1), run as the kubelet runs them.
//! They log in to the registry of the node's cloud.

mod cache;
mod config;
mod exec;
mod program;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::Context as _;
use kubefledged_image::{ImageRef, Keyring};
use kubefledged_proto::puller::Credential;
use tokio::sync::Mutex;

use cache::Cache;
use config::Provider;

/// The configured providers. Clones share the cache.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    providers: Arc<[Entry]>,
}

#[derive(Debug)]
struct Entry {
    provider: Provider,
    /// Held while the plugin runs, so that the same request is not made twice at the same time.
    cache: Mutex<Cache>,
}

impl Plugins {
    /// Reads the kubelet's configuration. The plugins are files with their names in one directory.
    ///
    /// # Errors
    /// The configuration cannot be read or is invalid. The error names the field.
    pub fn load(config: &Path, directory: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(config).with_context(|| {
            format!(
                "cannot read --credential-provider-config {}",
                config.display()
            )
        })?;
        let providers = config::parse(&text, directory)
            .with_context(|| format!("in --credential-provider-config {}", config.display()))?;
        let entries = providers.into_iter().map(|provider| Entry {
            provider,
            cache: Mutex::default(),
        });
        Ok(Self {
            providers: entries.collect(),
        })
    }

    /// Returns whether there is no provider.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty()
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

    /// Returns the credentials of the providers for an image, in the kubelet's order, and the errors.
    pub async fn credentials(&self, name: &str) -> (Vec<Credential>, Option<String>) {
        let Ok(image) = ImageRef::parse(name) else {
            return (Vec::new(), None);
        };
        let mut keyring = Keyring::default();
        let mut keys = BTreeSet::new();
        let mut trouble = Vec::new();
        for entry in self.providers.iter() {
            if !entry.provider.fits(&image) {
                continue;
            }
            match entry.ask(&image).await {
                // Of several providers for one key the first one counts.
                Ok(found) => {
                    for (key, login) in found {
                        if keys.insert(key.clone()) {
                            keyring.add(&key, login);
                        }
                    }
                }
                Err(error) => {
                    let provider = &entry.provider.name;
                    let error = format!("{error:#}");
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
    async fn ask(&self, image: &ImageRef) -> anyhow::Result<Logins> {
        let mut cache = self.cache.lock().await;
        let now = tokio::time::Instant::now();
        if let Some(known) = cache.get(image, now) {
            return Ok(known);
        }
        let answer = exec::ask(&self.provider, image).await?;
        let keep = answer
            .cache_duration
            .or(self.provider.default_cache_duration);
        cache.put(answer.key_type, image, &answer.logins, keep, now);
        Ok(answer.logins)
    }
}
