//! Pending removals: names that a cache no longer desires. A removal stays pending until every node has
//! confirmed it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubefledged_api_types::{Timestamp, status::KeptCounts};

use super::backoff;
use crate::{
    ids::{IdSet, NodeIdx, Stamp},
    vocabulary::{ImageResult, KeptReason, Tick},
};

/// Back-off before a removal that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// One name whose removal is pending.
#[derive(Debug)]
pub struct PendingRemoval {
    /// The name, as the user wrote it.
    pub reference: Arc<str>,
    /// Since when it is no longer desired.
    pub since: Timestamp,
    /// Nodes that confirmed the removal.
    pub done: IdSet<NodeIdx>,
    /// Nodes that keep the image on purpose.
    pub kept: BTreeMap<NodeIdx, Kept>,
    /// Nodes where the removal failed.
    pub failed: BTreeMap<NodeIdx, FailedRemoval>,
}

/// An image that a node keeps on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Why it is kept.
    pub reason: KeptReason,
    /// When the node is asked again.
    pub again: Tick,
}

/// A removal that failed.
#[derive(Clone, Debug)]
pub struct FailedRemoval {
    /// Stamp of the batch that failed.
    pub stamp: Stamp,
    /// How many failed in a row.
    pub tries: u32,
    /// When it is tried again.
    pub again: Tick,
    /// One of `names::failure`.
    pub reason: String,
    /// The runtime's error.
    pub message: String,
}

/// State of a pending removal on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalState {
    /// The name is to be removed now.
    Due,
    /// The name is gone.
    Gone,
    /// The image is kept on purpose; the node is asked again then.
    Kept(Tick),
    /// The removal failed; it is tried again then.
    Failed(Tick),
}

/// What belongs to a node's answer.
#[derive(Clone, Copy, Debug)]
pub struct AnswerContext {
    /// Stamp of the batch.
    pub stamp: Stamp,
    /// When the answer came.
    pub now: Tick,
    /// Time until the node is asked again about an image that it keeps.
    pub check_interval: Duration,
    /// A hash, for jitter.
    pub spread: u64,
}

impl PendingRemoval {
    /// A removal that no node has confirmed yet.
    pub fn new(reference: Arc<str>, since: Timestamp) -> Self {
        Self {
            reference,
            since,
            done: IdSet::default(),
            kept: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// State on one node. `operation`: stamp of the operation that runs, if one does. It tries at once what
    /// failed before it began.
    pub fn state(&self, node: NodeIdx, operation: Option<Stamp>, now: Tick) -> RemovalState {
        if self.done.contains(node) {
            return RemovalState::Gone;
        }
        match (self.kept.get(&node), self.failed.get(&node)) {
            (Some(kept), _) if kept.again > now => RemovalState::Kept(kept.again),
            (None, Some(failed)) if Some(failed.stamp) >= operation && failed.again > now => {
                RemovalState::Failed(failed.again)
            }
            _ => RemovalState::Due,
        }
    }

    /// Notes a node's answer. An answer after the confirmation concerns an image that another cache brought
    /// back; that cache removes it.
    pub fn answered(&mut self, node: NodeIdx, result: ImageResult, at: AnswerContext) {
        if self.done.contains(node) {
            return;
        }
        self.kept.remove(&node);
        let before = self.failed.remove(&node);
        match result {
            // An image that we did not pull stays for good: nobody asks again.
            ImageResult::Removed
            | ImageResult::Absent
            | ImageResult::Kept(KeptReason::NotPulled) => self.done.insert(node),
            ImageResult::Kept(reason) => {
                let again = at.now.after(at.check_interval);
                self.kept.insert(node, Kept { reason, again });
            }
            ImageResult::Failed { reason, message } => {
                let tries = before.map_or(0, |failed| failed.tries) + 1;
                let (first, most) = RETRY;
                let failed = FailedRemoval {
                    stamp: at.stamp,
                    tries,
                    again: at.now.after(backoff::wait(first, most, tries, at.spread)),
                    reason,
                    message,
                };
                self.failed.insert(node, failed);
            }
            // A later pull superseded it, or the answer makes no sense: the node is asked again.
            ImageResult::Present
            | ImageResult::Pulled
            | ImageResult::Pulling
            | ImageResult::Cancelled
            | ImageResult::Superseded => {}
        }
    }

    /// Drops what the node said, because a cache desires the image there again. True if there was anything to
    /// drop.
    pub fn desired_again(&mut self, node: NodeIdx) -> bool {
        let kept = self.kept.remove(&node).is_some();
        self.failed.remove(&node).is_some() || kept
    }

    /// Drops everything about a node that is gone.
    pub fn forget(&mut self, node: NodeIdx) {
        self.done.remove(node);
        self.kept.remove(&node);
        self.failed.remove(&node);
    }
}

/// How many images nodes keep on purpose; `None`: none.
pub fn kept<'a>(pending: impl Iterator<Item = &'a PendingRemoval>) -> Option<KeptCounts> {
    let mut counts = KeptCounts::default();
    for kept in pending.flat_map(|pending| pending.kept.values()) {
        match kept.reason {
            KeptReason::InUse => counts.in_use += 1,
            KeptReason::Pinned => counts.pinned += 1,
            KeptReason::SharedImage | KeptReason::SharedArtifact => counts.shared += 1,
            // Such an image is no pending removal.
            KeptReason::NotPulled => {}
        }
    }
    (counts != KeptCounts::default()).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Index;

    const NOW: AnswerContext = AnswerContext {
        stamp: Stamp::FIRST,
        now: Tick(1000),
        check_interval: Duration::from_secs(300),
        spread: 0,
    };

    fn pending() -> PendingRemoval {
        PendingRemoval::new("a:1".into(), Timestamp(7))
    }

    fn node(number: usize) -> NodeIdx {
        NodeIdx::from_index(number)
    }

    fn failed() -> ImageResult {
        ImageResult::Failed {
            reason: "ErrImageRemove".into(),
            message: "m".into(),
        }
    }

    #[test]
    fn a_node_that_confirmed_is_not_asked_again_until_it_is_another_node() {
        let mut pending = pending();
        let end = Tick(u64::MAX);
        assert_eq!(pending.state(node(3), None, Tick(0)), RemovalState::Due);
        pending.answered(node(3), ImageResult::Absent, NOW);
        let later = Some(Stamp::FIRST.plus(4));
        assert_eq!(pending.state(node(3), later, end), RemovalState::Gone);
        assert_eq!(pending.state(node(4), None, Tick(0)), RemovalState::Due);
        pending.forget(node(3));
        assert_eq!(pending.state(node(3), None, Tick(0)), RemovalState::Due);
    }

    #[test]
    fn an_answer_after_the_confirmation_is_no_failure() {
        let mut pending = pending();
        pending.answered(node(3), ImageResult::Removed, NOW);
        pending.answered(node(3), failed(), NOW);
        pending.answered(node(3), ImageResult::Kept(KeptReason::InUse), NOW);
        assert!(pending.failed.is_empty() && pending.kept.is_empty());
        let state = pending.state(node(3), None, Tick(u64::MAX));
        assert_eq!(state, RemovalState::Gone);
    }

    #[test]
    fn a_node_that_keeps_an_image_is_asked_again_at_the_next_check() {
        let mut pending = pending();
        pending.answered(node(3), ImageResult::Kept(KeptReason::InUse), NOW);
        let state = |now| pending.state(node(3), Some(Stamp::FIRST.plus(8)), Tick(now));
        assert_eq!(state(1000), RemovalState::Kept(Tick(301_000)));
        assert_eq!(state(301_000), RemovalState::Due);
    }

    #[test]
    fn a_failed_removal_waits_unless_a_newer_operation_asks() {
        let mut pending = pending();
        pending.answered(node(3), failed(), NOW);
        let state = |operation| pending.state(node(3), Some(operation), Tick(1000));
        assert!(matches!(state(Stamp::FIRST), RemovalState::Failed(_)));
        assert_eq!(state(Stamp::FIRST.plus(1)), RemovalState::Due);
    }
}
