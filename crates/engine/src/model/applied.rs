//! The names that may lie on nodes because of one cache: `status.appliedImages`. A name is listed there
//! before its first pull begins, and leaves the list when every node has confirmed its removal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::{AppliedImage, ImageCacheStatus, Timestamp};

use super::{desired::Desired, pending::PendingRemoval};
use crate::ids::{IdSet, ImageId, NodeIdx};

/// How long a removal stays pending for a node that does not answer, in seconds.
pub const GIVE_UP_AFTER: i64 = 24 * 3600;
/// Most bytes of names that are pending removal in one status; etcd takes 1.5 MiB in all.
const MAX_PENDING_BYTES: usize = 800 * 1024;

/// Names of one cache.
#[derive(Debug, Default)]
pub struct Applied {
    /// Names that may lie on nodes, by image.
    pub names: BTreeMap<ImageId, Arc<str>>,
    /// Those of them that are no longer desired and not yet gone everywhere.
    pub pending: BTreeMap<ImageId, PendingRemoval>,
    /// Removals were given up.
    pub abandoned: bool,
    /// The status in the API server lists every name.
    pub recorded: bool,
}

impl Applied {
    /// Takes over a name that the status listed before a restart.
    pub fn adopt(&mut self, image: ImageId, reference: Arc<str>) {
        self.names.insert(image, reference);
    }

    /// Makes a removal pending that no node has confirmed.
    pub fn remove(&mut self, image: ImageId, reference: Arc<str>, since: Timestamp) {
        let pending = PendingRemoval::new(reference, since);
        self.pending.insert(image, pending);
    }

    /// Makes the removal of every name pending that is neither desired nor stays.
    pub fn remove_undesired(&mut self, desired: &Desired, now: Timestamp) {
        self.remove_others(|image| desired.holds(image), now);
    }

    /// Makes the removal of every name pending that is not to be kept.
    pub fn remove_others(&mut self, keep: impl Fn(ImageId) -> bool, now: Timestamp) {
        let others = self.names.iter().filter(|(image, _)| !keep(**image));
        for (image, reference) in others {
            let pending = self.pending.entry(*image);
            pending.or_insert_with(|| PendingRemoval::new(reference.clone(), now));
        }
    }

    /// Drops the names that are not desired and that the API server does not have: nothing is pulled before its name
    /// is recorded.
    pub fn drop_unrecorded(&mut self, desired: &Desired, written: &ImageCacheStatus) {
        let written = names_of(written);
        let pending = &mut self.pending;
        self.names.retain(|image, name| {
            let stays = desired.holds(*image) || written.contains(&**name);
            if !stays {
                pending.remove(image);
            }
            stays
        });
    }

    /// Lists every desired name, and ends its pending removal.
    pub fn apply(&mut self, desired: &Desired) {
        for desired in desired.all() {
            self.names.insert(desired.image, desired.reference.clone());
            self.pending.remove(&desired.image);
        }
    }

    /// Is every desired name listed, and every other name pending removal?
    pub fn covers(&self, desired: &Desired) -> bool {
        let listed = desired.all();
        let mut listed = listed.map(|desired| self.names.contains_key(&desired.image));
        let mut names = self.names.keys();
        listed.all(|listed| listed)
            && names.all(|image| desired.holds(*image) || self.pending.contains_key(image))
    }

    /// Compares the names with those that the API server has.
    pub fn compare(&mut self, written: &ImageCacheStatus) {
        let written = names_of(written);
        self.recorded = self.names.values().all(|name| written.contains(&**name));
    }

    /// Forgets a name that stays where it is and is none of ours any more.
    pub fn forget(&mut self, image: ImageId) {
        self.drop_name(image);
    }

    /// `status.appliedImages`, sorted by name.
    pub fn status(&self, desired: &Desired) -> Vec<AppliedImage> {
        let name = |(image, reference): (&ImageId, &Arc<str>)| {
            let since = self.pending.get(image).map(|pending| pending.since);
            let kept = desired.kept.get(image).filter(|_| since.is_none());
            AppliedImage {
                name: reference.to_string(),
                since,
                retained_since: kept.and_then(|(_, since)| *since),
            }
        };
        let names: BTreeSet<AppliedImage> = self.names.iter().map(name).collect();
        names.into_iter().collect()
    }

    /// Drops removals that every node has confirmed, that silent nodes have not confirmed for too long, or
    /// that the status has no room for. `holders`: nodes that could hold images of ours; `silent`: those of
    /// them that do not answer.
    pub fn settle(&mut self, holders: &IdSet<NodeIdx>, silent: &IdSet<NodeIdx>, now: Timestamp) {
        let mut gone: Vec<ImageId> = Vec::new();
        for (image, pending) in &self.pending {
            let mut open = holders.without(&pending.done).peekable();
            if open.peek().is_none() {
                gone.push(*image);
            } else if now.0 - pending.since.0 >= GIVE_UP_AFTER
                && open.all(|node| silent.contains(node))
            {
                self.abandoned = true;
                gone.push(*image);
            }
        }
        for image in gone {
            self.drop_name(image);
        }
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        let names = self.pending.values();
        let mut bytes: usize = names.map(|pending| pending.reference.len()).sum();
        while bytes > MAX_PENDING_BYTES
            && let Some((image, pending)) = self
                .pending
                .iter()
                .min_by_key(|(id, pending)| (pending.since, **id))
        {
            bytes -= pending.reference.len();
            let image = *image;
            self.drop_name(image);
            self.abandoned = true;
        }
    }

    fn drop_name(&mut self, image: ImageId) {
        self.pending.remove(&image);
        self.names.remove(&image);
    }

    /// Did some removal fail?
    pub fn removals_failed(&self) -> bool {
        let mut pending = self.pending.values();
        pending.any(|pending| !pending.failed.is_empty())
    }
}

/// The names that a status lists.
fn names_of(status: &ImageCacheStatus) -> BTreeSet<&str> {
    let names = status.applied_images.iter();
    names.map(|applied| applied.name.as_str()).collect()
}
