//! Registries that do not answer.

use std::collections::BTreeMap;

use kubefledged_api_types::names::failure;

use crate::PullResult;

/// Failures in a row after which a registry has one pull at a time.
const PROBATION: u32 = 3;
/// Registries that are remembered; beyond that all begin anew.
const MOST: usize = 1024;

/// How many pulls in a row each registry left without an answer.
#[derive(Debug, Default)]
pub(super) struct Registries(BTreeMap<String, u32>);

impl Registries {
    /// A pull of it ended. Whatever a registry says, it answers.
    pub fn heard(&mut self, registry: &str, result: &PullResult) {
        let silent = match result {
            PullResult::Failed { reason, .. } => matches!(
                reason.as_str(),
                failure::REGISTRY_UNAVAILABLE | failure::NO_PROGRESS | failure::DEADLINE_EXCEEDED
            ),
            PullResult::Cancelled | PullResult::Superseded => return,
            PullResult::Present | PullResult::Pulled => false,
        };
        if !silent {
            self.0.remove(registry);
            return;
        }
        if self.0.len() >= MOST && !self.0.contains_key(registry) {
            self.0.clear();
        }
        let failures = self.0.entry(registry.to_owned()).or_default();
        *failures = failures.saturating_add(1);
    }

    /// It failed so often that one pull at a time is enough to see whether it is back.
    pub fn on_probation(&self, registry: &str) -> bool {
        self.0
            .get(registry)
            .is_some_and(|failures| *failures >= PROBATION)
    }
}
