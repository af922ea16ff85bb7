//! Which names are removed from a node now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    context::{NodeContext, NodeView},
    node_plan::{MAX_IMAGES, PlannedRemoval},
};
use crate::{
    ids::ImageId,
    model::{
        cache::Cache,
        pending::{PendingRemoval, RemovalState},
    },
    vocabulary::RemovalBlock,
};

/// Most bytes of other names in a removal, twice: desired ones and releasable ones. A puller accepts messages of
/// 8 MiB.
const MAX_NAME_BYTES: usize = 3 << 20;

impl<'m> NodeView<'m> {
    /// Is a name removed from the node now?
    pub fn removal(
        &self,
        cache: &Cache,
        image: ImageId,
        pending: &PendingRemoval,
        context: &NodeContext,
    ) -> Result<(), RemovalBlock> {
        if !cache.may_remove() {
            return Err(if cache.held() {
                RemovalBlock::Suspended
            } else {
                RemovalBlock::NotRecorded
            });
        }
        if context.reads_workloads {
            return Err(RemovalBlock::WorkloadsUnread);
        }
        if context.desired.contains(image) {
            return Err(RemovalBlock::Desired);
        }
        if context.pulling.contains(image) {
            return Err(RemovalBlock::Pulling);
        }
        match pending.state(self.idx, cache.operation_stamp(), self.now) {
            RemovalState::Due if context.removing.contains(image) => Err(RemovalBlock::Removing),
            RemovalState::Due => Ok(()),
            RemovalState::Gone => Err(RemovalBlock::Gone),
            RemovalState::Kept(again) => Err(pending
                .kept
                .get(&self.idx)
                .map_or(RemovalBlock::Gone, |kept| {
                    RemovalBlock::Kept(kept.reason, again)
                })),
            RemovalState::Failed(again) => {
                let failed = pending.failed.get(&self.idx);
                let reason = failed.map(|failed| failed.reason.clone());
                Err(RemovalBlock::Failed(reason.unwrap_or_default(), again))
            }
        }
    }

    /// Plans the removal of names that no cache desires here, and of pins that no cache needs. One removal runs
    /// at a time.
    pub fn plan_removal(&self, context: &NodeContext) -> Option<PlannedRemoval> {
        if context.removal || context.reads_workloads {
            return None;
        }
        let due = self.due_removals(context);
        let unpin = if self.node.runtime.may_pin(self.now) {
            self.unneeded_pins(context)
        } else {
            Vec::new()
        };
        if due.is_empty() && unpin.is_empty() {
            return None;
        }
        let (desired, complete) = some_of(self.desired_there(context));
        if !complete {
            // A check is due: most of these names will turn out to be absent.
            return None;
        }
        let (releasable, _) = some_of(self.releasable(context));
        let only_pulled = self.only_pulled(&due);
        let (images, references): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        Some(PlannedRemoval {
            images,
            references,
            desired,
            releasable,
            only_pulled,
            unpin,
        })
    }

    fn due_removals(&self, context: &NodeContext) -> BTreeMap<ImageId, Arc<str>> {
        let mut due = BTreeMap::new();
        let caches = self.model.caches.values();
        for cache in caches.filter(|cache| !cache.applied.pending.is_empty() && cache.may_remove())
        {
            for (image, pending) in &cache.applied.pending {
                if due.len() < MAX_IMAGES && self.removal(cache, *image, pending, context).is_ok() {
                    due.insert(*image, pending.reference.clone());
                }
            }
        }
        due
    }

    /// Those of the names that some cache removes only where we pulled them.
    fn only_pulled(&self, due: &BTreeMap<ImageId, Arc<str>>) -> Vec<Arc<str>> {
        let caches = self.model.caches.values();
        let careful = caches.filter(|cache| cache.desired.only_pulled);
        let images = careful.flat_map(|cache| cache.applied.pending.keys());
        let names: BTreeSet<&Arc<str>> = images.filter_map(|image| due.get(image)).collect();
        names.into_iter().cloned().collect()
    }

    /// Names that some cache desires or keeps, as far as they can be there. An image that was absent at the last check
    /// has no name on the node, and there may be any number of those.
    fn desired_there<'a>(
        &'a self,
        context: &'a NodeContext,
    ) -> impl Iterator<Item = &'m Arc<str>> + 'a {
        let observed = &self.node.observed;
        let there = move |image: ImageId| {
            let checked = observed.get(image).checked.is_some()
                || self.model.names.images.get(image).invalid.is_some();
            !checked || observed.holds(image) || context.pulling.contains(image)
        };
        let caches = self.model.caches.values();
        let desired = caches.flat_map(|cache| &cache.set(self.idx).desired);
        let desired = desired.map(|desired| (desired.image, &desired.reference));
        let kept = self.model.caches.values().flat_map(Cache::keeps);
        desired
            .chain(kept)
            .filter(move |(image, _)| there(*image))
            .map(|(_, reference)| reference)
    }

    /// Names of ours that may still be there and that no cache desires here. An image with several names can only
    /// be removed with all of them.
    fn releasable<'a>(
        &'a self,
        context: &'a NodeContext,
    ) -> impl Iterator<Item = &'m Arc<str>> + 'a {
        let caches = self.model.caches.values();
        caches
            // An image that we may not have pulled goes only when it is asked about itself.
            .filter(|cache| !cache.desired.only_pulled)
            .flat_map(|cache| &cache.applied.pending)
            .filter(|(image, pending)| {
                !context.desired.contains(**image) && !pending.done.contains(self.idx)
            })
            .map(|(_, pending)| &pending.reference)
    }
}

/// Names, each once, as many as a message has room for; and whether these are all.
fn some_of<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> (Vec<Arc<str>>, bool) {
    let names: BTreeSet<&Arc<str>> = names.collect();
    let mut left = MAX_NAME_BYTES;
    let room = |name: &&Arc<str>| {
        let room = name.len() <= left;
        left = left.saturating_sub(name.len());
        room
    };
    let some: Vec<Arc<str>> = names.iter().copied().take_while(room).cloned().collect();
    let complete = some.len() == names.len();
    (some, complete)
}
