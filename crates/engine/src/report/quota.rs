//! How many images the caches of one namespace may name. What is beyond is treated like an invalid spec, until
//! there is room.

use std::sync::Arc;

use crate::{
    commit::Engine,
    ids::CacheIdx,
    model::{cache::Cache, sources::Sources},
    vocabulary::{CacheKey, CacheObject, InvalidCache, Now},
};

impl Engine {
    /// Why a cache is not taken up: with it its namespace would name too many images.
    pub(super) fn refusal(&self, object: &CacheObject) -> Option<String> {
        let most = self.model.settings.max_namespace_images;
        let own = names(object);
        // Before a term begins nothing is taken up, and then those with images on nodes come first.
        if object.deleting || own == 0 || !self.model.leadership.begun {
            return None;
        }
        let known = self.model.caches.find(&object.key);
        let known = known.and_then(|at| self.model.caches.get(at));
        if known.is_some_and(|known| known.invalid.is_none() && names(&known.object) >= own) {
            return None;
        }
        let others = self.model.caches.values().filter(|cache| {
            cache.object.key.namespace == object.key.namespace && cache.object.key != object.key
        });
        let all: usize = others.map(names_of).sum::<usize>() + own;
        (all > most).then(|| {
            format!(
                "the ImageCaches of namespace {} would name {all} images, and {most} are allowed: use fewer images, or raise the controller's --max-images-per-namespace",
                object.key.namespace
            )
        })
    }

    /// How many names a cache may take from workloads: as many as its namespace has room for.
    pub(super) fn room_for_names(&self, at: CacheIdx) -> usize {
        let Some(cache) = self
            .model
            .caches
            .get(at)
            .filter(|cache| cache.sources.is_some())
        else {
            return 0;
        };
        let key = &cache.object.key;
        let all = self.model.caches.values();
        let others = all.filter(|other| {
            other.object.key.namespace == key.namespace && other.object.key != *key
        });
        let taken = others.map(names_of).sum::<usize>() + names(&cache.object);
        self.model
            .settings
            .max_namespace_images
            .saturating_sub(taken)
    }

    /// Treats an object like one whose spec is invalid, and keeps it until there is room.
    pub(super) fn refuse(&mut self, now: Now, object: CacheObject, message: String) {
        let kept = object.clone();
        self.cache_invalid(
            now,
            InvalidCache {
                key: object.key,
                uid: object.uid,
                resource_version: object.resource_version,
                generation: object.generation,
                status: object.status,
                refresh: object.refresh,
                purge: object.purge,
                purge_came_later: object.purge_came_later,
                finalizer: object.finalizer,
                deleting: object.deleting,
                message,
            },
        );
        self.model.refused.insert(kept.key.clone(), kept);
    }

    /// Takes up caches of a namespace that have room now.
    pub(super) fn retry_refused(&mut self, now: Now, namespace: &Arc<str>) {
        let waiting: Vec<CacheKey> = self.model.refused.keys().cloned().collect();
        for key in waiting
            .into_iter()
            .filter(|key| key.namespace == *namespace)
        {
            let has_room = self.model.refused.get(&key);
            if has_room.is_some_and(|object| self.refusal(object).is_none())
                && let Some(object) = self.model.refused.remove(&key)
            {
                // Its status was written meanwhile, and its spec was not compiled.
                let known = self.model.caches.find(&key);
                let object = match known.and_then(|at| self.model.caches.get_mut(at)) {
                    Some(known) => {
                        known.desired.generation = None;
                        object.with_written(&known.object)
                    }
                    None => object,
                };
                self.apply_cache(now, object);
            }
        }
    }
}

/// How many images a cache has, with those that workloads name.
fn names_of(cache: &Cache) -> usize {
    let sources = cache.sources.as_ref();
    names(&cache.object) + sources.map_or(0, Sources::count)
}

/// How many images a spec names.
fn names(object: &CacheObject) -> usize {
    object
        .spec
        .cache_spec
        .iter()
        .map(|list| list.images.len())
        .sum()
}
