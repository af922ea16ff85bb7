//! Credential scopes as small numbers, and whether their secrets can be read.

use std::{collections::BTreeMap, time::Duration};

use super::backoff;
use crate::{
    ids::{Index, ScopeId},
    vocabulary::{CredentialScope, Tick},
};

/// The API server did not answer for a scope's secrets.
#[derive(Clone, Debug)]
pub struct Outage {
    /// When the first look-up failed.
    pub since: Tick,
    /// Look-ups that failed in a row.
    pub tries: u32,
    /// No pull with these credentials begins before this.
    pub retry_at: Tick,
    /// The API server's error.
    pub message: String,
}

impl Outage {
    /// When images begin to count as failed because of it.
    pub fn blamed_from(&self, grace: Duration) -> Tick {
        self.since.after(grace)
    }
}

#[derive(Debug)]
struct Scope {
    scope: CredentialScope,
    outage: Option<Outage>,
}

/// All scopes that were ever named. There is one for each combination of secrets.
#[derive(Debug, Default)]
pub struct Scopes {
    ids: BTreeMap<CredentialScope, ScopeId>,
    all: Vec<Scope>,
}

impl Scopes {
    /// The number of a scope; a new scope gets one.
    pub fn intern(&mut self, scope: CredentialScope) -> ScopeId {
        if let Some(id) = self.ids.get(&scope) {
            return *id;
        }
        let id = ScopeId::from_index(self.all.len());
        self.ids.insert(scope.clone(), id);
        self.all.push(Scope {
            scope,
            outage: None,
        });
        id
    }

    /// The secrets of a scope.
    pub fn get(&self, id: ScopeId) -> &CredentialScope {
        &self.all[id.index()].scope
    }

    /// The outage that keeps a scope from being read; `None`: it can be read.
    pub fn outage(&self, id: ScopeId) -> Option<&Outage> {
        self.all[id.index()].outage.as_ref()
    }

    /// Notes that a scope could not be read. Answers to look-ups that began together count once.
    pub fn failed(&mut self, id: ScopeId, message: String, now: Tick, seed: u64) {
        let scope = &mut self.all[id.index()];
        let (since, tries) = match &scope.outage {
            Some(known) if known.retry_at > now => return,
            Some(known) => (known.since, known.tries + 1),
            None => (now, 1),
        };
        let most = Duration::from_secs(60);
        let spread = backoff::hash(
            seed,
            &[scope.scope.namespace.as_bytes(), &tries.to_le_bytes()],
        );
        let wait = backoff::wait(Duration::from_secs(2), most, tries, spread);
        scope.outage = Some(Outage {
            since,
            tries,
            retry_at: now.after(wait),
            message,
        });
    }

    /// Notes that a scope was read.
    pub fn answered(&mut self, id: ScopeId) {
        self.all[id.index()].outage = None;
    }
}
