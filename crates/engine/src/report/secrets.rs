//! Pull secrets that do not exist or cannot be used.

use std::collections::BTreeMap;

use super::events::event;
use crate::{
    commit::Engine,
    model::cache::Cache,
    vocabulary::{CacheKey, CredentialScope, SecretProblems, Severity},
};

/// What is wrong with a secret that does not exist.
const NOT_FOUND: &str = "not found";

impl Engine {
    /// Pulls go on without a secret that has a problem, but an Event tells of it. A secret that can be used again
    /// is not mentioned any more.
    pub(crate) fn secrets_read(
        &mut self,
        keys: &[CacheKey],
        scope: &CredentialScope,
        problems: SecretProblems,
    ) {
        let missing = problems.missing.into_iter();
        let missing = missing.map(|name| (name, NOT_FOUND.to_owned()));
        let all = missing.chain(problems.unusable).collect();
        for key in keys {
            self.secrets_are_bad(key, scope, &all);
        }
    }

    /// `all`: what is wrong with secrets of the scope, by name.
    fn secrets_are_bad(
        &mut self,
        key: &CacheKey,
        scope: &CredentialScope,
        all: &BTreeMap<String, String>,
    ) {
        let Some(at) = self.model.caches.find(key) else {
            return;
        };
        let cache = self.model.caches.get_mut(at);
        let known = |cache: &Cache| cache.bad_secrets.get(scope).cloned().unwrap_or_default();
        let Some((before, cache)) = cache
            .map(|cache| (known(cache), cache))
            .filter(|(before, _)| before != all)
        else {
            return;
        };
        self.agenda.caches.insert(at);
        let namespace = scope.namespace.clone();
        let new = all.iter();
        let new: Vec<_> = new
            .filter(|(name, why)| before.get(*name) != Some(why))
            .collect();
        let not_found = new.iter().all(|(_, why)| *why == NOT_FOUND);
        let none = new.is_empty();
        let texts: Vec<String> = new
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        let text = format!(
            "imagePullSecrets of namespace {} that images are pulled without: {}",
            namespace,
            texts.join("; ")
        );
        if all.is_empty() {
            cache.bad_secrets.remove(scope);
        } else {
            cache.bad_secrets.insert(scope.clone(), all.clone());
        }
        if none {
            return;
        }
        let reason = if not_found {
            "ImagePullSecretNotFound"
        } else {
            "ImagePullSecretInvalid"
        };
        let event = event(cache, Severity::Warning, reason, "Pulling", text);
        self.agenda.outbox.push(event);
    }
}
