//! One node: what it is, who pulls there, what it was last seen to hold, what is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::names::{EXCLUDE_LABEL, HOSTNAME_LABEL};

use crate::{
    BatchId, NodeFacts, NodeName, Puller, Tick, backoff, event::CredentialScope, images::ImageId,
};

/// Slot of a node; free slots are used again.
pub type NodeIdx = usize;

/// Counts operations and rounds: an outcome is newer than an operation if the batch it came from
/// began after it. 0 is never.
pub type Stamp = u32;

/// Taints of nodes that are about to go or must not get anything more.
const BARRING_TAINTS: [&str; 8] = [
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/out-of-service",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// Why a node gets no images now. It is neither awaited nor a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// There is a puller, but no such Node (yet).
    Unknown,
    /// Its label says so.
    Excluded,
    /// No kubelet of its own: a virtual node.
    Virtual,
    /// Not Linux.
    OtherSystem,
    /// Its Ready condition is not True.
    NotReady,
    /// Cordoned.
    Cordoned,
    /// Under disk pressure, shutting down or chosen for removal.
    Tainted,
}

/// What was last seen of one image on one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Stamp of the batch that looked last.
    pub looked: Stamp,
    /// Stamp of the batch that asked the registry last.
    pub fetched: Stamp,
}

/// Why an image is not there, while it is not.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Of the batch that failed.
    pub stamp: Stamp,
    /// In a row.
    pub tries: u32,
    /// Not tried again before; `None`: until a refresh or an edit.
    pub not_before: Option<Tick>,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: Arc<str>,
}

/// One node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name; `None` in a free slot.
    pub name: Option<NodeName>,
    /// As the API server has it.
    pub facts: Option<NodeFacts>,
    /// Who answers there.
    pub puller: Option<Puller>,
    /// Stamp of the first sight of this puller instance: older looks are looked again.
    pub instance_stamp: Stamp,
    /// The puller came after the first sync: the node is new.
    pub joined: bool,
    /// Since when an eligible node has had no puller that answers.
    pub silent_since: Option<Tick>,
    /// Calls that failed in a row.
    pub call_failures: u32,
    /// No call before.
    pub not_before: Tick,
    /// Images it held when last looked at.
    pub present: FixedBitSet,
    looks: Vec<Look>,
    /// Images that failed, by whose credentials were used.
    pub attempts: BTreeMap<(ImageId, CredentialScope), Attempt>,
    /// Calls under way.
    pub live: BTreeSet<BatchId>,
    /// When it is planned again although nothing happens.
    pub wake: Option<Tick>,
}

impl Node {
    /// May it get images? The one question that everything asks.
    pub fn eligibility(&self) -> Result<(), Ineligible> {
        let facts = self.facts.as_ref().ok_or(Ineligible::Unknown)?;
        self.runs_puller()?;
        if facts
            .labels
            .get(EXCLUDE_LABEL)
            .is_some_and(|v| v != "false")
        {
            return Err(Ineligible::Excluded);
        }
        if !facts.ready {
            return Err(Ineligible::NotReady);
        }
        if facts.unschedulable {
            return Err(Ineligible::Cordoned);
        }
        if facts
            .taints
            .iter()
            .any(|key| BARRING_TAINTS.contains(&key.as_str()))
        {
            return Err(Ineligible::Tainted);
        }
        Ok(())
    }

    /// Could a puller run there at all? Such nodes owe removals while they do not answer.
    pub fn runs_puller(&self) -> Result<(), Ineligible> {
        let facts = self.facts.as_ref().ok_or(Ineligible::Unknown)?;
        let label = |name: &str| facts.labels.get(name).map(String::as_str);
        if label("type") == Some("virtual-kubelet")
            || label("eks.amazonaws.com/compute-type") == Some("fargate")
        {
            return Err(Ineligible::Virtual);
        }
        if label("kubernetes.io/os").is_some_and(|os| os != "linux") {
            return Err(Ineligible::OtherSystem);
        }
        Ok(())
    }

    /// As it stands in `status.failures`.
    pub fn hostname(&self) -> String {
        let label = self
            .facts
            .as_ref()
            .and_then(|f| f.labels.get(HOSTNAME_LABEL));
        match (label, &self.name) {
            (Some(hostname), _) => hostname.clone(),
            (None, Some(name)) => name.to_string(),
            (None, None) => String::new(),
        }
    }

    /// What was last seen of an image.
    pub fn look(&self, image: ImageId) -> Look {
        self.looks.get(image.index()).copied().unwrap_or_default()
    }

    /// Was it there when last looked at?
    pub fn holds(&self, image: ImageId) -> bool {
        self.present.contains(image.index())
    }

    /// Somebody looked.
    pub fn saw(&mut self, image: ImageId, present: bool, stamp: Stamp) {
        let look = self.look_mut(image);
        look.looked = look.looked.max(stamp);
        self.present.grow_and_insert(image.index());
        self.present.set(image.index(), present);
    }

    /// The registry was asked, and what it has is there.
    pub fn fetched(&mut self, image: ImageId, stamp: Stamp) {
        let look = self.look_mut(image);
        look.fetched = look.fetched.max(stamp);
    }

    fn look_mut(&mut self, image: ImageId) -> &mut Look {
        if self.looks.len() <= image.index() {
            self.looks.resize(image.index() + 1, Look::default());
        }
        &mut self.looks[image.index()]
    }

    /// Whatever was seen is not known any more: another leader may have acted meanwhile.
    pub fn forget(&mut self) {
        self.looks.clear();
        self.present.clear();
        self.attempts.clear();
        self.live.clear();
        self.call_failures = 0;
        self.not_before = Tick(0);
        self.silent_since = None;
        self.joined = false;
        self.wake = None;
    }

    /// Has its puller been silent beyond the grace time?
    pub fn unreachable(&self, now: Tick, grace: Duration) -> bool {
        self.silent_since
            .is_some_and(|since| since.after(grace) <= now)
    }

    /// A call to its puller failed.
    pub fn call_failed(&mut self, now: Tick, seed: u64) {
        self.call_failures += 1;
        self.silent_since.get_or_insert(now);
        let name = self.name.as_ref().map_or("", |name| &name.0);
        let spread = backoff::hash(seed, &[name.as_bytes(), &self.call_failures.to_le_bytes()]);
        let wait = backoff::wait(
            Duration::from_millis(500),
            Duration::from_secs(30),
            self.call_failures,
            spread,
        );
        self.not_before = now.after(wait);
    }

    /// A call to its puller was answered.
    pub fn call_answered(&mut self) {
        self.call_failures = 0;
        self.not_before = Tick(0);
        self.silent_since = None;
    }
}
