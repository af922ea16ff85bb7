//! The plan of one node.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    ids::{CacheIdx, ImageId, RegistryId, ScopeId},
    model::{desired::DesiredImage, in_flight::Pull, node_status::NodeStatus},
    vocabulary::{BatchId, PullItem, Tick},
};

/// Most images in one batch.
pub const MAX_IMAGES: usize = 512;

/// What one node is asked to do, and how it stands.
#[derive(Debug, Default)]
pub struct NodePlan {
    /// Pulls in flight that no cache desires any more.
    pub cancel: Vec<PlannedCancel>,
    /// The removal that begins.
    pub remove: Option<PlannedRemoval>,
    /// The check that begins.
    pub check: Option<PlannedCheck>,
    /// The pulls that begin.
    pub pull: Vec<PlannedPull>,
    /// What other pulls wait for.
    pub waits: Waits,
    /// Registries whose budget was asked for.
    pub asked: BTreeSet<RegistryId>,
    /// Caches whose pulls wait for a registry.
    pub throttled: BTreeSet<CacheIdx>,
    /// Caches whose automatic refresh has found something to pull.
    pub convert: Vec<CacheIdx>,
    /// The node's status in the caches that need it anew.
    pub statuses: Vec<(CacheIdx, NodeStatus)>,
    /// The node must be planned again then, even if nothing happens; `None`: never.
    pub wake: Option<Tick>,
}

/// Pulls of a batch to cancel.
#[derive(Debug)]
pub struct PlannedCancel {
    /// The batch.
    pub batch: BatchId,
    /// Indexes of the images in it.
    pub images: Vec<usize>,
    /// Their names.
    pub references: Vec<Arc<str>>,
}

/// A removal to begin.
#[derive(Debug)]
pub struct PlannedRemoval {
    /// Images whose names are removed.
    pub images: Vec<ImageId>,
    /// Their names.
    pub references: Vec<Arc<str>>,
    /// Names that some cache desires on the node.
    pub desired: Vec<Arc<str>>,
    /// Names of ours that no cache desires any more.
    pub releasable: Vec<Arc<str>>,
    /// Those of `references` that go only where we pulled them.
    pub only_pulled: Vec<Arc<str>>,
    /// Ids from which our pin is removed.
    pub unpin: Vec<Arc<str>>,
}

/// A check to begin.
#[derive(Debug)]
pub struct PlannedCheck {
    /// Images to check.
    pub images: Vec<ImageId>,
    /// Their names.
    pub references: Vec<Arc<str>>,
}

/// A pull batch to begin.
#[derive(Debug)]
pub struct PlannedPull {
    /// What is remembered of it.
    pub pull: Pull,
    /// What is sent.
    pub items: Vec<PullItem>,
    /// It asks the registry on behalf of other nodes.
    pub probes: bool,
}

/// What pulls wait for that do not begin.
#[derive(Debug, Default)]
pub struct Waits {
    /// Registries, with the priority of the pull that waits.
    pub registries: Vec<(RegistryId, i32)>,
    /// Caches that pull on as many nodes as they may.
    pub caches: Vec<CacheIdx>,
    /// Images that other nodes have or fetch.
    pub sources: Vec<Wanted>,
}

/// An image for which a node waits.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which image.
    pub image: ImageId,
    /// The priority of its pull.
    pub priority: i32,
    /// The pull asks the registry for the newest image.
    pub asks: bool,
}

impl Waits {
    /// An image waits for other nodes.
    pub fn sources(&mut self, desired: &DesiredImage, asks: bool) {
        self.sources.push(Wanted {
            image: desired.image,
            priority: desired.priority,
            asks,
        });
    }
}

impl NodePlan {
    /// How many batches begin.
    pub fn batches(&self) -> u32 {
        let others = usize::from(self.remove.is_some()) + usize::from(self.check.is_some());
        u32::try_from(others + self.pull.len()).unwrap_or(u32::MAX)
    }

    /// Does a batch begin that asks the registry for this image on behalf of other nodes?
    pub fn probes(&self, image: ImageId, credentials: ScopeId) -> bool {
        let mut probes = self.pull.iter().filter(|planned| planned.probes);
        probes.any(|planned| {
            planned.pull.credentials == credentials
                && planned.pull.images.iter().any(|pulled| pulled.id == image)
        })
    }

    /// Plan the node again at this time, or earlier if that was asked for before.
    pub fn wake_at(&mut self, at: Tick) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
