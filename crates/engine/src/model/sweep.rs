//! Frees numbers: of images, registries and credential scopes that nothing names any more. Without it a
//! tenant who edits a list again and again fills the memory.

use super::{Model, cache::Cache, in_flight::Task};
use crate::{
    ids::{IdSet, ImageId, RegistryId, ScopeId},
    vocabulary::Tick,
};

/// Fewer names than this are not swept.
const FEW: usize = 256;

/// Numbers that something uses.
#[derive(Default)]
struct InUse {
    images: IdSet<ImageId>,
    registries: IdSet<RegistryId>,
    scopes: IdSet<ScopeId>,
}

impl InUse {
    fn cache(&mut self, cache: &Cache) {
        self.images.union_with(&cache.desired.images);
        self.images.extend(cache.desired.kept.keys().copied());
        self.images.extend(cache.applied.names.keys().copied());
        self.scopes.extend(cache.desired.scopes.iter().copied());
    }
}

impl Model {
    /// Frees what nothing names any more, once there is twice as much as after the last time. Returns the
    /// registries that were freed.
    pub fn sweep_names(&mut self, now: Tick) -> Vec<RegistryId> {
        let names = &self.names;
        let count = names.images.len() + names.registries.len() + names.scopes.len();
        if count < self.names.sweep_at.max(FEW) {
            return Vec::new();
        }
        let mut used = self.in_use();
        let gone = self.names.images.sweep(&used.images);
        for (_, image) in self.names.images.iter() {
            used.registries.insert(image.registry);
        }
        let registries = self.names.registries.sweep(&used.registries, now);
        let scopes = self.names.scopes.sweep(&used.scopes);
        for node in self.nodes.iter_mut() {
            node.forget_numbers(&gone, &scopes);
        }
        self.probes
            .retain(|(image, scope), _| !gone.contains(*image) && !scopes.contains(*scope));
        self.peers.forget_images(&gone);
        let names = &mut self.names;
        names.sweep_at = 2 * (names.images.len() + names.registries.len() + names.scopes.len());
        registries
    }

    fn in_use(&self) -> InUse {
        let mut used = InUse {
            images: IdSet::with_capacity(self.names.images.len()),
            ..InUse::default()
        };
        for cache in self.caches.values() {
            used.cache(cache);
        }
        for (_, flight) in self.in_flight.after(None) {
            used.images.extend(flight.images());
            if let Task::Pull(pull) = &flight.task {
                used.registries.insert(pull.registry);
                used.scopes.insert(pull.credentials);
            }
        }
        used
    }
}
