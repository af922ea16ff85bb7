//! Pull secrets that do not exist or cannot be used.

use std::collections::BTreeMap;

use super::events::event;
use crate::{
    commit::Engine,
    vocabulary::{CacheKey, SecretProblems, Severity},
};

/// What is wrong with a secret that does not exist.
const NOT_FOUND: &str = "not found";

impl Engine {
    /// Pulls go on without a secret that has a problem, but an Event tells of it. A secret that can be used again
    /// is not mentioned any more.
    pub(crate) fn secrets_read(&mut self, key: &CacheKey, problems: SecretProblems) {
        let missing = problems.missing.into_iter();
        let missing = missing.map(|name| (name, NOT_FOUND.to_owned()));
        let all: BTreeMap<String, String> = missing.chain(problems.unusable).collect();
        let Some(at) = self.model.caches.find(key) else {
            return;
        };
        let cache = self.model.caches.get_mut(at);
        let Some(cache) = cache.filter(|cache| cache.bad_secrets != all) else {
            return;
        };
        self.agenda.caches.insert(at);
        let before = std::mem::replace(&mut cache.bad_secrets, all);
        let new = cache.bad_secrets.iter();
        let new: Vec<_> = new
            .filter(|(name, why)| before.get(*name) != Some(why))
            .collect();
        if new.is_empty() {
            return;
        }
        let texts: Vec<String> = new
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        let text = format!(
            "imagePullSecrets of namespace {} that images are pulled without: {}",
            key.namespace,
            texts.join("; ")
        );
        let reason = if new.iter().all(|(_, why)| *why == NOT_FOUND) {
            "ImagePullSecretNotFound"
        } else {
            "ImagePullSecretInvalid"
        };
        let event = event(cache, Severity::Warning, reason, "Pulling", text);
        self.agenda.outbox.push(event);
    }
}
