//! Events of `ImageCache` objects, and what follows from them: the spec is compiled, operations begin and end.

use std::{collections::BTreeSet, time::Duration};

use kubefledged_api_types::DeletionPolicy;

use super::{
    ANSWER_LIMIT,
    events::{announce, event, removals_dropped},
    is_older,
};
use crate::{
    commit::{Engine, timers::Timer},
    ids::{CacheIdx, IdSet, Stamp},
    model::{
        cache::{Cache, Deletion, Unpin},
        last_operation::{LastOperation, Subject},
        node_status::{Flags, NodeStatus},
        operation::{Kind, Operation},
        pending,
        writer::FinalizerWrite,
    },
    vocabulary::{
        CacheKey, CacheObject, Command, InvalidCache, Now, PullState, Severity, Source, Tick,
    },
};

impl Engine {
    pub(crate) fn cache_applied(&mut self, now: Now, object: CacheObject) {
        let namespace = object.key.namespace.clone();
        self.apply_cache(now, object);
        self.retry_refused(now, &namespace);
    }

    pub(super) fn apply_cache(&mut self, now: Now, object: CacheObject) {
        if let Some(message) = self.refusal(&object) {
            self.refuse(now, object, message);
            return;
        }
        self.model.refused.remove(&object.key);
        let Some(at) = self.known(&object.key, &object.uid, now.tick) else {
            self.take_up(now, object, None);
            return;
        };
        let begun = self.model.leadership.begun;
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let version = &object.resource_version;
        let restored = cache.writer.listed_over.as_ref();
        let restored = restored.is_some_and(|before| is_older(version, before));
        if is_older(version, &cache.object.resource_version) && !restored {
            return;
        }
        if begun && !cache.deletion.is_released() && cache.led_by_another(&object) {
            return self.take_up_again(at, now, object);
        }
        let (held, recorded) = (cache.held(), cache.recorded());
        let deleting = cache.object.deleting != object.deleting;
        if cache.object.generation != object.generation {
            cache.writer.try_whole(now.tick);
        }
        cache.object = object;
        cache.invalid = None;
        if !cache.object.deleting {
            // Whatever an answer said: it is there.
            cache.deletion = Deletion::None;
        }
        cache.writer.object_came();
        cache.compare_names();
        // The watch may be faster than the answer to our write.
        let events = announce(cache);
        let changed = (cache.held(), cache.recorded()) != (held, recorded);
        if begun {
            self.agenda.outbox.extend(events);
        }
        self.agenda.caches.insert(at);
        if changed || deleting {
            self.touch_cache(at);
        }
    }

    /// A list begins. A cache that it brings in an older version than we know now was set back; an older version
    /// than a write of ours that is answered meanwhile is only late.
    pub(crate) fn listing(&mut self, source: Source) {
        if source == Source::Caches {
            for (_, cache) in self.model.caches.iter_mut() {
                cache.writer.listed_over = Some(cache.object.resource_version.clone());
            }
        }
    }

    /// A list is complete.
    pub(crate) fn synced(&mut self, source: Source) {
        self.model.leadership.synced(source);
        if source == Source::Caches {
            for (_, cache) in self.model.caches.iter_mut() {
                cache.writer.listed_over = None;
            }
        }
    }

    /// The last spec that could be parsed stays desired; nothing new is started.
    pub(crate) fn cache_invalid(&mut self, now: Now, invalid: InvalidCache) {
        let message = invalid.message.clone();
        let known = self.known(&invalid.key, &invalid.uid, now.tick);
        let Some((at, cache)) = known.and_then(|at| Some((at, self.model.caches.get_mut(at)?)))
        else {
            let object = CacheObject {
                key: invalid.key,
                uid: invalid.uid,
                resource_version: invalid.resource_version,
                generation: invalid.generation,
                spec: kubefledged_api_types::ImageCacheSpec::default(),
                status: invalid.status,
                refresh: invalid.refresh,
                purge: invalid.purge,
                purge_came_later: invalid.purge_came_later,
                deleting: invalid.deleting,
                finalizer: invalid.finalizer,
            };
            self.take_up(now, object, Some(message));
            return;
        };
        cache.object.resource_version = invalid.resource_version;
        cache.object.generation = invalid.generation;
        cache.object.deleting = invalid.deleting;
        cache.object.finalizer = invalid.finalizer;
        cache.object.status = invalid.status;
        cache.invalid = Some(message);
        cache.writer.object_came();
        self.agenda.caches.insert(at);
        self.touch_cache(at);
    }

    /// The cache of this name, if it is still the same object.
    fn known(&mut self, key: &CacheKey, uid: &str, now: Tick) -> Option<CacheIdx> {
        let at = self.model.caches.find(key)?;
        if self.model.caches.get(at)?.object.uid == uid {
            return Some(at);
        }
        self.cache_deleted(key, now);
        None
    }

    /// Takes up a cache that is seen for the first time, or for the first time in a term.
    pub(crate) fn take_up(&mut self, now: Now, object: CacheObject, invalid: Option<String>) {
        let at = self.model.caches.number(object.key.clone());
        self.place(at, now, object, invalid);
    }

    /// Another leader began or ended an operation that we had not heard of when we took the lead. What it wrote
    /// counts, as it would for a new leader.
    fn take_up_again(&mut self, at: CacheIdx, now: Now, object: CacheObject) {
        let old = self.place(at, now, object, None);
        if let (Some(cache), Some(old)) = (self.model.caches.get_mut(at), old) {
            cache.pulling.active = old.pulling.active;
            cache.adopt_names(old.applied.names, now.wall);
        }
    }

    /// Sets the cache of a number, and returns the one before.
    fn place(
        &mut self,
        at: CacheIdx,
        now: Now,
        object: CacheObject,
        invalid: Option<String>,
    ) -> Option<Cache> {
        let nodes = self.model.nodes.slots();
        let model = &mut self.model;
        let mut cache = Cache::adopt(
            object,
            invalid,
            &mut model.names,
            &model.settings,
            nodes,
            now.wall,
        );
        let stamp = model.next_stamp(now);
        cache.resume(stamp);
        if cache.object.finalizer && !cache.spec().needs_finalizer() {
            // It was pinned before.
            let until = now.tick.after(model.settings.purge_deadline);
            cache.unpin = Some(Unpin {
                since: stamp,
                until,
            });
        }
        let resumed = cache.operation.is_some();
        let old = model.caches.set(at, cache);
        model.read_sources(at);
        model.match_nodes(at);
        if resumed {
            self.enlist(at, now.tick);
        }
        self.agenda.caches.insert(at);
        self.touch_cache(at);
        old
    }

    pub(crate) fn cache_gone(&mut self, now: Now, key: &CacheKey) {
        self.model.refused.remove(key);
        self.cache_deleted(key, now.tick);
        self.retry_refused(now, &key.namespace);
    }

    pub(crate) fn cache_deleted(&mut self, key: &CacheKey, now: Tick) {
        let Some((at, cache)) = self.model.caches.remove(key) else {
            return;
        };
        self.model.workloads.stale |= self.model.workloads.followers.remove(&at);
        self.agenda.caches.remove(&at);
        self.agenda.timers.set(Timer::Cache(at), None);
        let Some(cache) = cache else {
            return;
        };
        // The watch may bring the deletion before the answer about the finalizer whose removal made it.
        let purged = cache.deletion.policy() == Some(DeletionPolicy::Purge);
        let released =
            cache.deletion.is_released() || purged && cache.finalizer != FinalizerWrite::Idle;
        if self.model.leadership.begun && !cache.applied.pending.is_empty() && !released {
            self.agenda.outbox.push(removals_dropped(&cache));
        }
        // Its pulls are cancelled where no other cache desires them.
        for node in self.model.nodes.iter_mut() {
            node.epoch += 1;
        }
        self.touch_all_nodes();
        self.sweep_names(now);
    }

    /// Forgets names that nothing uses any more.
    pub(super) fn sweep_names(&mut self, now: Tick) {
        for registry in self.model.sweep_names(now) {
            self.agenda.timers.set(Timer::Registry(registry), None);
        }
    }

    /// Decides what begins.
    pub(crate) fn decide(&mut self, at: CacheIdx, now: Now) {
        self.compile(at, now);
        self.follow(at, now);
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        if cache.writer.awaits_object() {
            return;
        }
        if cache.object.deleting {
            self.decide_deletion(at, now);
            return;
        }
        if let Some(message) = &cache.invalid {
            let same = cache.last.subject == Subject::InvalidSpec && cache.last.message == *message;
            if !same {
                cache.operation = None;
                cache.last = LastOperation::invalid(message.clone(), now.wall);
            }
            return;
        }
        self.decide_finalizer(at, now);
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        if let Some(kind) = cache.due() {
            let stamp = self.model.next_stamp(now);
            self.begin(at, kind, stamp, now);
            return;
        }
        let purge = cache.history.purge.as_ref();
        let same = purge.is_some_and(|purge| purge.cache_spec_hash == cache.desired.purge_hash);
        if cache.history.purged && same {
            cache.history.covered = Some(cache.desired.hash);
            if let Some(purge) = purge.filter(|_| cache.last.subject == Subject::InvalidSpec) {
                cache.last = LastOperation::purged(purge, !cache.applied.pending.is_empty());
            }
        }
        self.refresh_quietly(at, now);
    }

    /// Compiles another spec. If something else is desired, an operation begins later.
    fn compile(&mut self, at: CacheIdx, now: Now) {
        let model = &mut self.model;
        let Some(cache) = model.caches.get_mut(at) else {
            return;
        };
        if cache.desired.generation == Some(cache.object.generation) || cache.invalid.is_some() {
            return;
        }
        let was_pinned = cache.desired.pinned;
        model.read_sources(at);
        let Some(cache) = model.caches.get_mut(at) else {
            return;
        };
        cache.compile(&mut model.names, &model.settings);
        cache.refresh.next = None;
        if cache.object.deleting {
            // Its pins are removed, whatever it says now.
        } else if cache.desired.pinned {
            cache.unpin = None;
        } else if was_pinned {
            let since = model.clock.next(now.wall, model.settings.check_interval);
            let until = now.tick.after(model.settings.purge_deadline);
            cache.unpin = Some(Unpin { since, until });
        }
        model.match_nodes(at);
        self.touch_cache(at);
        self.sweep_names(now.tick);
    }

    pub(crate) fn begin(&mut self, at: CacheIdx, kind: Kind, stamp: Stamp, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        cache.begin(kind, stamp, now.wall);
        cache.bad_secrets.clear();
        self.enlist(at, now.tick);
        self.touch_cache(at);
    }

    /// Sets the nodes of an operation: eligible ones that a list selects, and, if names are pending removal, those
    /// whose puller answers or may do so within the grace time. A new leader may come before any puller.
    pub(crate) fn enlist(&mut self, at: CacheIdx, now: Tick) {
        let model = &mut self.model;
        let grace = model.settings.puller_grace;
        let Some(cache) = model.caches.get_mut(at) else {
            return;
        };
        let mut pulls = IdSet::with_capacity(model.nodes.slots());
        let mut removes = IdSet::with_capacity(model.nodes.slots());
        for (idx, node) in model.nodes.iter() {
            if node.eligibility().is_ok() && !cache.set(idx).is_empty() {
                pulls.insert(idx);
            }
            let awaited = node.runs_puller() && !node.unreachable(now, grace);
            if (node.callable() || awaited) && !cache.applied.pending.is_empty() {
                removes.insert(idx);
            }
        }
        for row in &mut cache.nodes.rows {
            row.done = false;
        }
        if let Some(operation) = &mut cache.operation {
            operation.enlist(pulls, removes);
        }
    }

    /// Ends what is complete, and writes what has changed.
    pub(crate) fn advance(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let unchecked = cache.nodes.counts.flagged(Flags::UNCHECKED) > 0;
        let opening = cache.reads_workloads();
        cache.nodes.first_round &= unchecked || opening;
        if cache.runs(Kind::Delete) {
            self.advance_deletion(at, now);
        } else if cache.is_complete() {
            self.end(at, now);
        } else if cache.unpin.is_some() && !cache.object.deleting && cache.unpinned(now.tick) {
            cache.unpin = None;
            self.agenda.caches.insert(at);
        }
        self.end_refresh(at, now);
        if let Some(cache) = self.model.caches.get_mut(at) {
            cache.heal(now.wall);
            cache.writer.unsaved = true;
        }
        self.serve_nodes(at);
        self.tell_names(at, now);
        self.write_status(at, now);
        self.time_cache(at, now);
    }

    /// Ends an operation whose nodes are done: its annotations are removed first.
    fn end(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        if let Some(request) = cache.to_clear(now.tick).cloned() {
            if let Some(operation) = &mut cache.operation {
                operation.clearing = Some(now.tick.after(ANSWER_LIMIT));
            }
            self.agenda.outbox.push(Command::ClearAnnotation {
                key: cache.object.key.clone(),
                annotation: request.annotation,
                value: request.value,
            });
            return;
        }
        let Some(operation) = &cache.operation else {
            return;
        };
        if operation.clearing.is_some() {
            return;
        }
        let failed = any_failed(operation, cache);
        cache.finish(failed, now.wall);
        cache.schedule_refresh(now.tick, &self.model.settings, Duration::ZERO);
        if let Some(kept) = pending::kept(cache.applied.pending.values()) {
            let text = format!(
                "images kept on nodes: {} in use, {} pinned by somebody else, {} with other names",
                kept.in_use, kept.pinned, kept.shared
            );
            let event = event(cache, Severity::Warning, "ImagesKept", "Removing", text);
            self.agenda.outbox.push(event);
        }
        // An edit or a request that came meanwhile is taken up.
        self.agenda.caches.insert(at);
        self.touch_cache(at);
    }

    /// Caches that have changed.
    pub(crate) fn take_changed_caches(&mut self) -> BTreeSet<CacheIdx> {
        std::mem::take(&mut self.agenda.caches)
    }
}

/// Has some node of an operation a failed image, or no puller that answers?
fn any_failed(operation: &Operation, cache: &Cache) -> bool {
    let failed = |row: &NodeStatus| row.failing > 0 || row.state == PullState::Unreachable;
    operation.pulls.iter().any(|node| failed(cache.row(node)))
}
