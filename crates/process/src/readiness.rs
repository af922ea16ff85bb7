//! Readiness as a set of named guards. The process is ready when no guard is pending; `/readyz` lists
//! the pending ones.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The guards that `/readyz` reports. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

/// One condition that readiness waits for.
#[derive(Debug)]
#[must_use = "dropping the guard leaves its last state for good"]
pub struct Guard {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a condition to wait for. It is pending until its guard is set ready.
    pub fn register(&self, name: &'static str) -> Guard {
        self.set(name, Some("starting".to_owned()));
        Guard {
            name,
            readiness: self.clone(),
        }
    }

    /// Returns name and reason of each pending condition.
    pub fn pending(&self) -> Vec<(&'static str, String)> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .iter()
            .map(|(name, why)| (*name, why.clone()))
            .collect()
    }

    fn set(&self, name: &'static str, why: Option<String>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pending.get(name).cloned();
        match &why {
            Some(why) => pending.insert(name, why.clone()),
            None => pending.remove(name),
        };
        drop(pending);
        if before != why {
            if let Some(why) = why {
                tracing::info!(name, why, "not ready");
            } else {
                tracing::info!(name, "ready");
            }
        }
    }
}

impl Guard {
    /// Marks the condition as met.
    pub fn set_ready(&self) {
        self.readiness.set(self.name, None);
    }

    /// Marks the condition as pending. `why` tells a person what to do.
    pub fn set_pending(&self, why: impl Into<String>) {
        self.readiness.set(self.name, Some(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_guard_says_so_and_a_guard_may_take_it_back() {
        let readiness = Readiness::default();
        let a = readiness.register("a");
        let b = readiness.register("b");
        a.set_ready();
        assert_eq!(readiness.pending(), [("b", "starting".to_owned())]);
        b.set_ready();
        assert!(readiness.pending().is_empty());
        a.set_pending("gone");
        assert_eq!(readiness.pending(), [("a", "gone".to_owned())]);
    }
}
