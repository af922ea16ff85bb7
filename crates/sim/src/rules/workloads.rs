//! What must hold of caches that follow workloads: what is named is wanted, and what was named not long ago stays.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::ImageCacheStatus;
use kubefledged_engine::{
    CacheKey, CacheObject, Event as EngineEvent, Source, WatchId, Workload, WorkloadKey,
};

use super::View;
use crate::registry::normalized;

/// Names stay at least so long less, in ms: what is decided in the same second counts as later.
const SLACK: u64 = 2_000;

/// Workloads that an engine was told of.
#[derive(Debug, Default)]
pub struct Workloads {
    watch: Option<WatchId>,
    known: BTreeMap<WorkloadKey, Workload>,
    /// Those that the list brought that is being received.
    listed: BTreeSet<WorkloadKey>,
    /// `ImageCaches` as they were told.
    plain: BTreeMap<CacheKey, CacheObject>,
    /// Names that workloads no longer name for a cache.
    unnamed: BTreeMap<(CacheKey, String), Unnamed>,
}

#[derive(Clone, Copy, Debug)]
struct Unnamed {
    at: u64,
    /// The clock of the controller less that of the World, in seconds.
    skew: i64,
    /// Of the spec.
    generation: i64,
}

/// A cache with the images that workloads name in its lists.
pub fn following<'w>(
    object: &CacheObject,
    workloads: &(impl Iterator<Item = (&'w WorkloadKey, &'w Workload)> + Clone),
) -> CacheObject {
    let mut object = object.clone();
    for list in &mut object.spec.cache_spec {
        for source in list
            .images_from
            .iter()
            .filter_map(|source| source.workloads.as_ref())
        {
            let all = source.namespace_selector.is_some();
            let selected = workloads
                .clone()
                .filter(|(key, _)| all || key.namespace == object.key.namespace);
            let images = selected.flat_map(|(_, workload)| &workload.images);
            let names = images.map(|image| image.reference.to_string());
            list.images.extend(names);
        }
    }
    object
}

/// Is it to be purged, or was it?
fn is_purged(object: &CacheObject) -> bool {
    object.purge.is_some() || object.status.purge.is_some()
}

fn names(object: &CacheObject) -> BTreeSet<String> {
    let lists = object.spec.cache_spec.iter();
    lists
        .flat_map(|list| &list.images)
        .map(|name| normalized(name))
        .collect()
}

impl View {
    /// The engine wants another watch of workloads, or none.
    pub fn watches(&mut self, watch: Option<WatchId>) {
        if self.workloads.watch != watch {
            self.workloads.watch = watch;
            self.workloads.known.clear();
            self.workloads.unnamed.clear();
            self.renew(None);
        }
    }

    pub(super) fn sees_cache(&mut self, object: &CacheObject) {
        let key = &object.key;
        let known = self.workloads.plain.get(key);
        if is_purged(object) || object.deleting || known.is_none_or(|known| known.uid != object.uid)
        {
            self.workloads.unnamed.retain(|(cache, _), _| cache != key);
        }
        self.workloads.plain.insert(key.clone(), object.clone());
        let known = self.workloads.known.iter();
        self.caches.insert(key.clone(), following(object, &known));
    }

    /// A status of this cache was written.
    pub(super) fn wrote(&mut self, key: &CacheKey, status: &ImageCacheStatus) {
        let plain = self.workloads.plain.get_mut(key);
        for object in plain.into_iter().chain(self.caches.get_mut(key)) {
            object.status.clone_from(status);
        }
    }

    pub(super) fn misses_cache(&mut self, key: &CacheKey) {
        self.caches.remove(key);
        self.workloads.plain.remove(key);
        self.workloads.unnamed.retain(|(cache, _), _| cache != key);
    }

    pub(super) fn sees_workloads(&mut self, event: &EngineEvent, now: u64, wall: i64) {
        let workloads = &mut self.workloads;
        let ours = |id: &WatchId| workloads.watch == Some(*id);
        match event {
            EngineEvent::WorkloadApplied(id, key, workload) if ours(id) => {
                workloads.known.insert(key.clone(), (**workload).clone());
                workloads.listed.insert(key.clone());
            }
            EngineEvent::WorkloadDeleted(id, key) if ours(id) => {
                workloads.known.remove(key);
            }
            EngineEvent::Listing(Source::Watch(id)) if ours(id) => {
                workloads.listed.clear();
                return;
            }
            EngineEvent::Synced(Source::Watch(id)) if ours(id) => {
                let listed = std::mem::take(&mut workloads.listed);
                workloads.known.retain(|key, _| listed.contains(key));
            }
            _ => return,
        }
        let world = i64::try_from(now / 1000).unwrap_or(i64::MAX);
        self.renew(Some((now, wall - world)));
    }

    /// Computes anew what caches want. `now`: and the skew of the clock.
    fn renew(&mut self, now: Option<(u64, i64)>) {
        let Workloads {
            known,
            plain,
            unnamed,
            ..
        } = &mut self.workloads;
        for (key, object) in plain.iter() {
            let new = following(object, &known.iter());
            let (before, after) = (
                self.caches.get(key).map(names).unwrap_or_default(),
                names(&new),
            );
            if let Some((at, skew)) = now {
                let generation = object.generation;
                for name in before.difference(&after) {
                    let at = Unnamed {
                        at,
                        skew,
                        generation,
                    };
                    unnamed.insert((key.clone(), name.clone()), at);
                }
            }
            unnamed.retain(|(cache, name), _| cache != key || !after.contains(name));
            self.caches.insert(key.clone(), new);
        }
    }

    /// The cache for which a name stays, because a workload named it not long ago. `now`: and the clock.
    pub(super) fn retained(&self, name: &str, now: u64, wall: i64) -> Option<&CacheKey> {
        let world = i64::try_from(now / 1000).unwrap_or(i64::MAX);
        let found = self
            .workloads
            .unnamed
            .iter()
            .find(|((key, known), unnamed)| {
                let Some(object) = self.workloads.plain.get(key).filter(|_| known == name) else {
                    return false;
                };
                let lists = object
                    .spec
                    .cache_spec
                    .iter()
                    .filter(|list| !list.images_from.is_empty());
                // Which list named it is not told: the shortest time holds for all.
                let shortest = lists.map(|list| list.retain_for().as_secs() * 1000).min();
                let mut applied = object.status.applied_images.iter();
                object.generation == unnamed.generation
                    && !is_purged(object)
                    && unnamed.skew == wall - world
                    && applied.any(|image| image.since.is_none() && normalized(&image.name) == name)
                    && shortest.is_some_and(|shortest| now + SLACK < unnamed.at + shortest)
            });
        found.map(|((key, _), _)| key)
    }
}
