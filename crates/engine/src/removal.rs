//! Names that a cache no longer wants: owed until every node has confirmed that they are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{AppliedImage, Timestamp, names::failure, status::KeptCounts};

use crate::{
    ImageResult, Tick, backoff,
    cache::Cache,
    images::ImageId,
    node::{NodeIdx, Stamp},
};

/// How long a node that does not answer may owe a removal.
pub const PATIENCE: i64 = 24 * 3600;
/// Most bytes of owed names in one status; etcd takes 1.5 MiB in all.
const MOST_OWED: usize = 800 * 1024;

/// One name, owed.
#[derive(Debug)]
pub struct Owed {
    /// As it was written.
    pub reference: Arc<str>,
    /// Since when.
    pub since: Timestamp,
    /// Nodes that confirmed.
    pub done: FixedBitSet,
    /// Nodes that keep it on purpose: why, and when to ask again.
    pub kept: BTreeMap<NodeIdx, (String, Tick)>,
    /// Nodes that could not.
    pub failed: BTreeMap<NodeIdx, Failed>,
}

/// A removal that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Of the batch that failed.
    pub stamp: Stamp,
    /// In a row.
    pub tries: u32,
    /// Not tried again before.
    pub not_before: Tick,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// How one node stands with one owed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debt {
    /// To be removed now.
    Due,
    /// It is gone.
    Gone,
    /// It is kept on purpose, and looked at again then.
    Kept(Tick),
    /// It could not be removed, and is tried again then.
    Failed(Tick),
}

impl Owed {
    /// Nobody has confirmed yet.
    pub fn new(reference: Arc<str>, since: Timestamp) -> Self {
        Self {
            reference,
            since,
            done: FixedBitSet::new(),
            kept: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// How a node stands. `stamp`: of the operation under way, or 0.
    pub fn debt(&self, node: NodeIdx, stamp: Stamp, now: Tick) -> Debt {
        if self.done.contains(node) {
            return Debt::Gone;
        }
        match (self.kept.get(&node), self.failed.get(&node)) {
            (Some((_, again)), _) if *again > now => Debt::Kept(*again),
            // An operation tries what failed before it began at once.
            (None, Some(failed)) if failed.stamp >= stamp && failed.not_before > now => {
                Debt::Failed(failed.not_before)
            }
            _ => Debt::Due,
        }
    }

    /// What a node answered.
    pub fn answered(&mut self, node: NodeIdx, result: ImageResult, at: Answered) {
        if self.done.contains(node) {
            // It was gone, and another cache brought it back: its removal is that one's to do.
            return;
        }
        self.kept.remove(&node);
        let before = self.failed.remove(&node);
        match result {
            ImageResult::Removed | ImageResult::Absent => self.done.grow_and_insert(node),
            ImageResult::Kept(reason) => {
                self.kept
                    .insert(node, (reason, at.now.after(at.look_again)));
            }
            ImageResult::Failed { reason, message } => {
                let tries = before.map_or(0, |failed| failed.tries) + 1;
                let (first, most) = (Duration::from_secs(10), Duration::from_secs(300));
                let not_before = at.now.after(backoff::wait(first, most, tries, at.spread));
                let failed = Failed {
                    stamp: at.stamp,
                    tries,
                    not_before,
                    reason,
                    message,
                };
                self.failed.insert(node, failed);
            }
            // Superseded by a later pull, or nonsense: asked again if still owed.
            _ => {}
        }
    }

    /// It is wanted there again. True: something was known of its removal that says nothing any more.
    pub fn reclaimed(&mut self, node: NodeIdx) -> bool {
        let kept = self.kept.remove(&node).is_some();
        self.failed.remove(&node).is_some() || kept
    }

    /// A node is gone: what it owed went with it.
    pub fn forget(&mut self, node: NodeIdx) {
        if self.done.contains(node) {
            self.done.remove(node);
        }
        self.kept.remove(&node);
        self.failed.remove(&node);
    }
}

/// The circumstances of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Of the batch.
    pub stamp: Stamp,
    /// When it came.
    pub now: Tick,
    /// When what is kept is looked at again.
    pub look_again: Duration,
    /// For jitter.
    pub spread: u64,
}

impl Cache {
    /// Every wanted name may lie on nodes from now on, and none of them is owed.
    pub fn apply_wanted(&mut self) {
        for want in self.wants.all() {
            self.applied.insert(want.image, want.reference.clone());
            self.owed.remove(&want.image);
        }
    }

    /// Names that may lie on nodes and that `keep` does not want are owed from now on.
    pub fn owe(&mut self, keep: &FixedBitSet, now: Timestamp) {
        for (image, reference) in &self.applied {
            if !keep.contains(image.index()) {
                let owed = self.owed.entry(*image);
                owed.or_insert_with(|| Owed::new(reference.clone(), now));
            }
        }
    }

    /// `status.appliedImages`, sorted by name.
    pub fn applied_status(&self) -> Vec<AppliedImage> {
        let name = |(image, reference): (&ImageId, &Arc<str>)| AppliedImage {
            name: reference.to_string(),
            since: self.owed.get(image).map(|owed| owed.since),
        };
        let names: BTreeSet<AppliedImage> = self.applied.iter().map(name).collect();
        names.into_iter().collect()
    }

    /// Takes names off the list that every node has confirmed, and gives up what silent nodes have
    /// owed for too long, or what the status cannot hold. `owing`: nodes that could hold images of
    /// ours; `silent`: those of them that do not answer.
    pub fn settle(&mut self, owing: &FixedBitSet, silent: &FixedBitSet, now: Timestamp) {
        let mut gone: Vec<ImageId> = Vec::new();
        for (image, owed) in &self.owed {
            let mut open = owing.difference(&owed.done).peekable();
            if open.peek().is_none() {
                gone.push(*image);
            } else if now.0 - owed.since.0 >= PATIENCE && open.all(|node| silent.contains(node)) {
                self.abandoned = true;
                gone.push(*image);
            }
        }
        for image in gone {
            self.owed.remove(&image);
            self.applied.remove(&image);
        }
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        let mut bytes: usize = self.owed.values().map(|owed| owed.reference.len()).sum();
        while bytes > MOST_OWED
            && let Some((image, owed)) =
                self.owed.iter().min_by_key(|(id, owed)| (owed.since, **id))
        {
            bytes -= owed.reference.len();
            let image = *image;
            self.owed.remove(&image);
            self.applied.remove(&image);
            self.abandoned = true;
        }
    }

    /// What was asked to go and stays on purpose.
    pub fn kept(&self) -> Option<KeptCounts> {
        let mut counts = KeptCounts::default();
        for (reason, _) in self.owed.values().flat_map(|owed| owed.kept.values()) {
            match reason.as_str() {
                failure::IN_USE => counts.in_use += 1,
                failure::PINNED => counts.pinned += 1,
                _ => counts.shared += 1,
            }
        }
        (counts != KeptCounts::default()).then_some(counts)
    }

    /// Could some removal not be done?
    pub fn removals_failed(&self) -> bool {
        self.owed.values().any(|owed| !owed.failed.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Answered = Answered {
        stamp: 5,
        now: Tick(1000),
        look_again: Duration::from_secs(300),
        spread: 0,
    };

    fn owed() -> Owed {
        Owed::new("a:1".into(), Timestamp(7))
    }

    #[test]
    fn what_is_gone_is_not_asked_for_again_until_its_node_is_another() {
        let mut owed = owed();
        assert_eq!(owed.debt(3, 0, Tick(0)), Debt::Due);
        owed.answered(3, ImageResult::Absent, NOW);
        assert_eq!(owed.debt(3, 9, Tick(u64::MAX)), Debt::Gone);
        assert_eq!(owed.debt(4, 0, Tick(0)), Debt::Due);
        owed.forget(3);
        assert_eq!(owed.debt(3, 0, Tick(0)), Debt::Due);
    }

    #[test]
    fn what_was_gone_and_came_back_for_another_cache_is_no_failure_here() {
        let mut owed = owed();
        owed.answered(3, ImageResult::Removed, NOW);
        let result = ImageResult::Failed {
            reason: "ErrImageRemove".into(),
            message: "m".into(),
        };
        owed.answered(3, result, NOW);
        owed.answered(3, ImageResult::Kept("InUse".into()), NOW);
        assert!(owed.failed.is_empty() && owed.kept.is_empty());
        assert_eq!(owed.debt(3, 0, Tick(u64::MAX)), Debt::Gone);
    }

    #[test]
    fn what_is_kept_is_looked_at_again_with_the_next_check() {
        let mut owed = owed();
        owed.answered(3, ImageResult::Kept("InUse".into()), NOW);
        assert_eq!(owed.debt(3, 9, Tick(1000)), Debt::Kept(Tick(301_000)));
        assert_eq!(owed.debt(3, 9, Tick(301_000)), Debt::Due);
    }

    #[test]
    fn what_failed_waits_unless_a_newer_operation_asks() {
        let mut owed = owed();
        let result = ImageResult::Failed {
            reason: "ErrImageRemove".into(),
            message: "m".into(),
        };
        owed.answered(3, result, NOW);
        assert!(matches!(owed.debt(3, 5, Tick(1000)), Debt::Failed(_)));
        assert_eq!(owed.debt(3, 6, Tick(1000)), Debt::Due);
    }
}
