//! Terms that pullers claim to have seen, by the rule of the contract, and a warning about those that are not
//! believed.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kubefledged_contract::terms;
use kubefledged_engine::NodeName;
use kubefledged_process::log::Pace;
use tokio::time::Instant;

/// Between two log lines about claims that are not believed.
const QUIET: Duration = Duration::from_secs(60);

/// What pullers said of terms.
#[derive(Debug)]
pub struct Claims {
    said: Mutex<terms::Claims<NodeName, Instant>>,
    pace: Pace,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            pace: Pace::new(1, QUIET),
        }
    }
}

impl Claims {
    /// The puller of this node has seen `claimed` in a call of `term`. The term to lead above, where that is
    /// believed now.
    pub fn heard(&self, node: &NodeName, claimed: u64, term: u64, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = said.heard(node, claimed, term, now);
        if claimed > term
            && believed.is_none()
            && let Some(unlogged) = self.pace.due(now)
        {
            let node = &*node.0;
            tracing::warn!(
                node,
                claimed,
                term,
                unlogged,
                "a puller claims to have seen a later leader and no other does: it is not believed; if it \
                 refuses work, delete its pod"
            );
        }
        believed
    }
}
