//! The node's credential providers: the kubelet's own plugins, with the kubelet's configuration
//! (`CredentialProviderConfig` of kubelet.config.k8s.io/v1) and the kubelet's way to run them. They
//! know how to log in to the registry of the node's cloud.

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

/// The configured providers; clones share the cache.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    providers: Arc<[Entry]>,
}

#[derive(Debug)]
struct Entry {
    provider: Provider,
    /// Held while the plugin runs: the same question is not asked twice at a time.
    cache: Mutex<Cache>,
}

impl Plugins {
    /// Reads the kubelet's configuration; the plugins lie in one directory, under their names.
    ///
    /// # Errors
    /// It cannot be read, or is none; says which field and why.
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

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty()
    }

    /// Names those that cannot run, and why: our image has neither a shell nor a loader, and a
    /// plugin may need both. They are kept; what they refuse is told with the pull that needs it.
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

    /// What the providers give for an image, in the order of the kubelet, and what went wrong.
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

/// What a provider gives: by registry key.
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
