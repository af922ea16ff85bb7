//! Names that a cache no longer wants: owed until every node has confirmed that they are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{AppliedImage, Timestamp, status::KeptCounts};

use crate::{
    ImageResult, Tick, backoff,
    cache::Cache,
    images::ImageId,
    node::{NodeIdx, Stamp},
};

/// How long a node that does not answer may owe a removal.
pub const PATIENCE: Duration = Duration::from_secs(24 * 3600);

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
    /// Asked again later; nothing an operation waits for.
    Settled {
        /// When it is looked at again.
        again: Option<Tick>,
    },
}

impl Owed {
    /// From now on.
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
            return Debt::Settled { again: None };
        }
        if let Some((_, again)) = self.kept.get(&node) {
            return if *again <= now {
                Debt::Due
            } else {
                Debt::Settled {
                    again: Some(*again),
                }
            };
        }
        match self.failed.get(&node) {
            // An operation tries what failed before it began at once.
            Some(failed) if failed.stamp >= stamp && failed.not_before > now => Debt::Settled {
                again: Some(failed.not_before),
            },
            _ => Debt::Due,
        }
    }

    /// What a node answered.
    pub fn answered(
        &mut self,
        node: NodeIdx,
        result: ImageResult,
        stamp: Stamp,
        now: Tick,
        check_interval: Duration,
        spread: u64,
    ) {
        self.kept.remove(&node);
        let before = self.failed.remove(&node);
        match result {
            ImageResult::Removed | ImageResult::Absent => self.done.grow_and_insert(node),
            ImageResult::Kept(reason) => {
                self.kept.insert(node, (reason, now.after(check_interval)));
            }
            ImageResult::Failed { reason, message } => {
                let tries = before.map_or(0, |failed| failed.tries) + 1;
                let wait = backoff::wait(
                    Duration::from_secs(10),
                    Duration::from_secs(300),
                    tries,
                    spread,
                );
                self.failed.insert(
                    node,
                    Failed {
                        stamp,
                        tries,
                        not_before: now.after(wait),
                        reason,
                        message,
                    },
                );
            }
            // Superseded by a later pull, or nonsense: asked again if still owed.
            _ => {}
        }
    }

    /// A node is gone: what it owed went with it.
    pub fn forget(&mut self, node: NodeIdx) {
        if node < self.done.len() {
            self.done.set(node, false);
        }
        self.kept.remove(&node);
        self.failed.remove(&node);
    }
}

impl Cache {
    /// `status.appliedImages`, sorted by name.
    pub fn applied_status(&self) -> Vec<AppliedImage> {
        let names: BTreeSet<AppliedImage> = self
            .applied
            .iter()
            .map(|(image, reference)| AppliedImage {
                name: reference.to_string(),
                since: self.owed.get(image).map(|owed| owed.since),
            })
            .collect();
        names.into_iter().collect()
    }

    /// Takes names off the list that every node has confirmed, and gives up what silent nodes have
    /// owed for too long. `owing`: nodes that could hold images of ours; `silent`: those of them
    /// that do not answer.
    pub fn settle(&mut self, owing: &FixedBitSet, silent: &FixedBitSet, now: Timestamp) {
        let patience = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
        let mut gone: Vec<ImageId> = Vec::new();
        for (image, owed) in &self.owed {
            let mut open = owing.difference(&owed.done).peekable();
            if open.peek().is_none() {
                gone.push(*image);
            } else if now.0 - owed.since.0 >= patience && open.all(|node| silent.contains(node)) {
                self.abandoned = true;
                gone.push(*image);
            }
        }
        for image in gone {
            self.owed.remove(&image);
            self.applied.remove(&image);
        }
    }

    /// What was asked to go and stays on purpose.
    pub fn kept(&self) -> Option<KeptCounts> {
        use kubefledged_api_types::names::failure;

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
}
