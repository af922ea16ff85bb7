//! Whose credentials a pull uses, as small numbers, and whether they can be read.

use std::collections::BTreeMap;

use crate::{CredentialScope, Tick, backoff};

/// A credential scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScopeId(pub u32);

/// The API server did not answer for a scope's secrets.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When it began.
    pub since: Tick,
    /// In a row.
    pub tries: u32,
    /// No pull with these credentials before.
    pub not_before: Tick,
    /// A sentence.
    pub message: String,
}

#[derive(Debug)]
struct Scope {
    scope: CredentialScope,
    trouble: Option<Trouble>,
}

/// All scopes ever named: one per combination of secrets, which are few.
#[derive(Debug, Default)]
pub struct Scopes {
    ids: BTreeMap<CredentialScope, ScopeId>,
    all: Vec<Scope>,
}

impl Scopes {
    /// The number of a scope.
    pub fn intern(&mut self, scope: CredentialScope) -> ScopeId {
        if let Some(id) = self.ids.get(&scope) {
            return *id;
        }
        let id = ScopeId(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        self.ids.insert(scope.clone(), id);
        self.all.push(Scope {
            scope,
            trouble: None,
        });
        id
    }

    /// One of them.
    pub fn get(&self, id: ScopeId) -> &CredentialScope {
        &self.all[id.0 as usize].scope
    }

    /// Why it cannot be read, while it cannot.
    pub fn trouble(&self, id: ScopeId) -> Option<&Trouble> {
        self.all[id.0 as usize].trouble.as_ref()
    }

    /// It could not be read. Answers of calls that began together count once.
    pub fn failed(&mut self, id: ScopeId, message: String, now: Tick, seed: u64) {
        use std::time::Duration;

        let scope = &mut self.all[id.0 as usize];
        let (since, tries) = match &scope.trouble {
            Some(known) if known.not_before > now => return,
            Some(known) => (known.since, known.tries + 1),
            None => (now, 1),
        };
        let most = Duration::from_secs(60);
        let spread = backoff::hash(
            seed,
            &[scope.scope.namespace.as_bytes(), &tries.to_le_bytes()],
        );
        let wait = backoff::wait(Duration::from_secs(2), most, tries, spread);
        scope.trouble = Some(Trouble {
            since,
            tries,
            not_before: now.after(wait),
            message,
        });
    }

    /// It could be read.
    pub fn answered(&mut self, id: ScopeId) {
        self.all[id.0 as usize].trouble = None;
    }
}
