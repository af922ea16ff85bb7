//! Credential scopes as small numbers, and whether their secrets can be read.

use std::{collections::BTreeMap, time::Duration};

use super::backoff;
use crate::{
    ids::{IdSet, Index, ScopeId},
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

/// All scopes in use: one for each combination of secrets. A number is used again after nothing uses its
/// scope any more.
#[derive(Debug, Default)]
pub struct Scopes {
    ids: BTreeMap<CredentialScope, ScopeId>,
    all: Vec<Scope>,
    free: Vec<ScopeId>,
}

impl Scopes {
    /// The number of a scope; a new scope gets one.
    pub fn intern(&mut self, scope: CredentialScope) -> ScopeId {
        if let Some(id) = self.ids.get(&scope) {
            return *id;
        }
        let row = Scope {
            scope: scope.clone(),
            outage: None,
        };
        let id = if let Some(id) = self.free.pop() {
            self.all[id.index()] = row;
            id
        } else {
            self.all.push(row);
            ScopeId::from_index(self.all.len() - 1)
        };
        self.ids.insert(scope, id);
        id
    }

    /// How many scopes have a number.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Frees the numbers of scopes that are not `used`, and returns them.
    pub fn sweep(&mut self, used: &IdSet<ScopeId>) -> IdSet<ScopeId> {
        let unused = |id: &ScopeId| !used.contains(*id);
        let gone: IdSet<ScopeId> = self.ids.values().copied().filter(unused).collect();
        self.ids.retain(|_, id| used.contains(*id));
        self.free.extend(gone.iter());
        gone
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
