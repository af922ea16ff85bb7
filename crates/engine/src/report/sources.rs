//! Workloads as a source of images: their events, what follows from them for caches, and which of them are watched.
//! Nothing here begins an operation: people do that. What is desired changes, and the conditions follow.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{causes::plural, events::event};
use crate::{
    commit::Engine,
    ids::{CacheIdx, ImageId},
    model::{
        cache::Cache,
        sources::{Named, Sources},
        workloads::Change,
    },
    vocabulary::{
        Command, Labels, Now, Severity, WatchFailure, WatchId, Watched, Workload, WorkloadKey,
    },
};

/// Shortest time between two Events of one cache about names that came and went.
const EVENT_PAUSE: Duration = Duration::from_secs(60);
/// Most names of each kind that one Event lists.
const MAX_NAMES: usize = 5;

impl Engine {
    pub(crate) fn workload_applied(&mut self, id: WatchId, key: WorkloadKey, workload: Workload) {
        if let Some(change) = self.model.workloads.apply(id, key, workload) {
            self.workload_changed(&change);
        }
    }

    pub(crate) fn workload_deleted(&mut self, id: WatchId, key: &WorkloadKey) {
        if let Some(change) = self.model.workloads.delete(id, key) {
            self.workload_changed(&change);
        }
    }

    fn workload_changed(&mut self, change: &Change) {
        let model = &mut self.model;
        for at in &model.workloads.followers {
            let cache = model.caches.get_mut(*at);
            if let Some(sources) = cache.and_then(|cache| cache.sources.as_mut()) {
                sources.change(change, &model.workloads);
                if sources.stale && !sources.is_opening() {
                    self.agenda.caches.insert(*at);
                }
            }
        }
    }

    pub(crate) fn namespace_applied(&mut self, id: WatchId, name: Arc<str>, labels: Labels) {
        let workloads = &mut self.model.workloads;
        if workloads.apply_namespace(id, name, labels) {
            self.namespaces_changed();
        }
    }

    pub(crate) fn namespace_deleted(&mut self, id: WatchId, name: &str) {
        if self.model.workloads.delete_namespace(id, name) {
            self.namespaces_changed();
        }
    }

    /// Other workloads are selected, unless the first list of Namespaces is still being received.
    fn namespaces_changed(&mut self) {
        let watch = self.model.workloads.watch(&Watched::Namespaces);
        if watch.is_some_and(|watch| watch.since.is_some()) {
            self.reread(&Watched::Namespaces);
        }
    }

    pub(crate) fn watch_listing(&mut self, id: WatchId) {
        self.model.workloads.listing(id);
    }

    pub(crate) fn watch_synced(&mut self, now: Now, id: WatchId) {
        let Some((target, gone)) = self.model.workloads.synced(id, now.wall) else {
            return;
        };
        for key in gone {
            self.workload_deleted(id, &key);
        }
        self.reread(&target);
    }

    pub(crate) fn watch_failed(&mut self, id: WatchId, failure: WatchFailure) {
        if let Some(target) = self.model.workloads.failed(id, failure) {
            self.reread(&target);
        }
    }

    /// Lets the caches decide anew that read this.
    fn reread(&mut self, target: &Watched) {
        let model = &mut self.model;
        for at in &model.workloads.followers {
            let cache = model.caches.get_mut(*at);
            let sources = cache.and_then(|cache| cache.sources.as_mut());
            if let Some(sources) = sources.filter(|sources| sources.reads(target)) {
                if *target == Watched::Namespaces {
                    sources.fill(&model.workloads);
                }
                sources.stale = true;
                self.agenda.caches.insert(*at);
            }
        }
    }

    /// Takes up what workloads name now.
    pub(crate) fn follow(&mut self, at: CacheIdx, now: Now) {
        let most = self.room_for_names(at);
        let model = &mut self.model;
        let Some(cache) = model.caches.get_mut(at) else {
            return;
        };
        let Some(sources) = &mut cache.sources else {
            return;
        };
        let over = sources.next.is_some_and(|next| next <= now.wall);
        if !sources.stale && !over {
            return;
        }
        let (was_opening, was_known) = (sources.is_opening(), sources.is_known());
        sources.read(&model.workloads);
        let renewed = std::mem::take(&mut sources.renewed);
        let opened = was_opening && !sources.is_opening();
        if sources.is_opening() && !renewed {
            return;
        }
        let learned = !was_known && sources.is_known();
        if renewed && !sources.is_known() {
            // What an edit drops from the spec may be named by workloads that are not read yet.
            let applied = &cache.applied;
            let dropped = applied.names.iter().filter(|(image, _)| {
                !applied.pending.contains_key(image) && !cache.desired.images.contains(**image)
            });
            for (_, name) in dropped {
                sources.retention.adopt(name, None);
            }
        }
        sources.stale = sources.is_opening();
        let before = sources.resolve(&model.workloads, most, now.wall);
        if let Some(before) = &before {
            if !was_opening && !renewed {
                note(cache, before);
            }
            cache.compile_named(&mut model.names, &model.settings);
            model.match_nodes(at);
        }
        self.apply_named(at, now);
        if opened {
            self.enlist(at, now.tick);
        }
        if before.is_some() || opened || learned {
            self.touch_cache(at);
            self.sweep_names(now.tick);
        }
    }

    /// Lists what is desired now, and makes the removal of the rest pending, without an operation.
    fn apply_named(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let idle = cache.history.purged || cache.object.deleting || cache.held();
        let pulls = cache.operation.as_ref().is_none_or(|op| op.kind.pulls());
        // An edit is taken up by the operation that it begins.
        if idle || !pulls || cache.history.covered != Some(cache.desired.hash) {
            return;
        }
        let Some(sources) = &cache.sources else {
            return;
        };
        let (applied, desired) = (&mut cache.applied, &cache.desired);
        let others = applied.names.iter();
        // A name that has no room stays where it is, because workloads name it.
        let homeless: Vec<ImageId> = others
            .filter(|(image, name)| !desired.holds(**image) && sources.retention.is_named(name))
            .map(|(image, _)| *image)
            .collect();
        for image in homeless {
            applied.forget(image);
        }
        applied.remove_undesired(desired, now.wall);
        applied.apply(desired);
        cache.compare_names();
    }

    /// Tells of names that came and went, not too often.
    pub(crate) fn tell_names(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let Some(sources) = &mut cache.sources else {
            return;
        };
        let untold = &mut sources.untold;
        let waits = untold.not_before.is_some_and(|at| at > now.tick);
        if waits || untold.came.is_empty() && untold.went.is_empty() {
            return;
        }
        untold.not_before = Some(now.tick.after(EVENT_PAUSE));
        let (came, went) = (
            std::mem::take(&mut untold.came),
            std::mem::take(&mut untold.went),
        );
        let text = format!(
            "workloads name {}{}, and no longer {}{}",
            plural(came.len(), "new image"),
            listed(&came),
            plural(went.len(), "image"),
            listed(&went)
        );
        let event = event(cache, Severity::Normal, "ImagesChanged", "Following", text);
        self.agenda.outbox.push(event);
    }

    /// Sends which watches are wanted, if others are than before.
    pub(crate) fn update_watches(&mut self) {
        let model = &mut self.model;
        if !std::mem::take(&mut model.workloads.stale) {
            return;
        }
        let followers = model.workloads.followers.iter();
        let caches = followers.filter_map(|at| model.caches.get(*at));
        let sources = caches.filter_map(|cache| cache.sources.as_ref());
        let targets: BTreeSet<Watched> = sources.flat_map(Sources::targets).collect();
        if let Some(all) = model.workloads.want(&targets) {
            self.agenda.outbox.push(Command::Watch(all));
        }
    }
}

/// Notes which names came and went. A name that came back before anybody was told is no news.
fn note(cache: &mut Cache, before: &Named) {
    let Some(sources) = &mut cache.sources else {
        return;
    };
    let names = |named: &Named| -> BTreeSet<Arc<str>> {
        let images = named.images.iter();
        images.map(|image| image.reference.clone()).collect()
    };
    let (old, new) = (names(before), names(&sources.named));
    let untold = &mut sources.untold;
    for name in new.difference(&old) {
        if !untold.went.remove(name) {
            untold.came.insert(name.clone());
        }
    }
    for name in old.difference(&new) {
        if !untold.came.remove(name) {
            untold.went.insert(name.clone());
        }
    }
}

/// The first names: ` (a, b, …)`.
fn listed(names: &BTreeSet<Arc<str>>) -> String {
    let some: Vec<&str> = names.iter().take(MAX_NAMES).map(|name| &**name).collect();
    let more = if names.len() > MAX_NAMES { ", …" } else { "" };
    match some.len() {
        0 => String::new(),
        _ => format!(" ({}{more})", some.join(", ")),
    }
}
