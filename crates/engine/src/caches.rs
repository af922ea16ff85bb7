//! What happens to caches, and what follows from it: compile, begin, end.

use std::{collections::BTreeMap, time::Duration};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::names::{reason, status};

use crate::{
    CacheKey, CacheObject, Command, Engine, InvalidCache, Now, Severity, Tick, UselessSecrets,
    alarms::Alarm,
    cache::{Cache, CacheIdx, Unpin},
    cell::{Cell, CellState},
    node::Stamp,
    operation::{Kind, spec_hash},
    removal::PATIENCE,
    writes::{announce, older},
};

/// Before a command that was not answered is given again.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

impl Engine {
    pub(crate) fn cache_applied(&mut self, now: Now, object: CacheObject) {
        let Some(at) = self.known(&object.key, &object.uid) else {
            self.take_up(now, object, None);
            return;
        };
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if older(&object.resource_version, &cache.object.resource_version) {
            return;
        }
        if self.begun && !cache.released && cache.led_by_another(&object) {
            return self.take_up_again(at, now, object);
        }
        let (held, recorded) = (cache.held(), cache.recorded());
        let deleting = cache.object.deleting != object.deleting;
        cache.object = object;
        cache.invalid = None;
        cache.stale = false;
        cache.compare_names();
        // The watch may be faster than the answer to our write.
        let event = announce(cache);
        let freed = (cache.held(), cache.recorded()) != (held, recorded);
        self.outbox.extend(event.filter(|_| self.begun));
        self.dirty_caches.insert(at);
        if freed || deleting {
            self.touch_cache(at);
        }
    }

    /// The last spec that could be used stays wanted; nothing new is started.
    pub(crate) fn cache_invalid(&mut self, now: Now, invalid: InvalidCache) {
        let message = invalid.message.clone();
        let known = self.known(&invalid.key, &invalid.uid);
        let Some(cache) = known.and_then(|at| self.caches.get_mut(&at)) else {
            let object = CacheObject {
                key: invalid.key,
                uid: invalid.uid,
                resource_version: invalid.resource_version,
                generation: invalid.generation,
                spec: kubefledged_api_types::ImageCacheSpec::default(),
                status: invalid.status,
                refresh: None,
                purge: None,
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
        cache.stale = false;
        self.dirty_caches.extend(known);
        if let Some(at) = known {
            self.touch_cache(at);
        }
    }

    /// The cache of this name, if it is still the same object.
    fn known(&mut self, key: &CacheKey, uid: &str) -> Option<CacheIdx> {
        let at = *self.cache_index.get(key)?;
        if self.caches.get(&at)?.object.uid == uid {
            return Some(at);
        }
        self.cache_deleted(key);
        None
    }

    /// A cache at first sight, or at the beginning of a term.
    pub(crate) fn take_up(&mut self, now: Now, object: CacheObject, invalid: Option<String>) {
        self.last_cache += 1;
        let at = self.last_cache;
        self.cache_index.insert(object.key.clone(), at);
        self.place(at, now, object, invalid);
    }

    /// Another leader began or ended an operation that we had not heard of when we took the lead: what
    /// it wrote counts, as it would for a new leader.
    fn take_up_again(&mut self, at: CacheIdx, now: Now, object: CacheObject) {
        let old = self.caches.remove(&at);
        self.place(at, now, object, None);
        if let (Some(cache), Some(old)) = (self.caches.get_mut(&at), old) {
            cache.pulling = old.pulling;
            cache.owe_anew(old.applied, now.wall);
        }
    }

    fn place(&mut self, at: CacheIdx, now: Now, object: CacheObject, invalid: Option<String>) {
        let nodes = self.nodes.len();
        let mut cache = Cache::adopt(
            object,
            invalid,
            &mut self.names,
            &self.settings,
            nodes,
            now.wall,
        );
        let stamp = self.next_stamp(now);
        cache.resume(stamp);
        if cache.object.finalizer && !cache.spec().needs_finalizer() {
            // It was pinned before.
            let until = now.tick.after(self.settings.purge_deadline);
            cache.unpin = Some(Unpin {
                since: stamp,
                until,
            });
        }
        let resumed = cache.operation.is_some();
        self.caches.insert(at, cache);
        self.match_nodes(at);
        if resumed {
            self.enlist(at);
        }
        self.dirty_caches.insert(at);
        self.touch_cache(at);
    }

    pub(crate) fn cache_deleted(&mut self, key: &CacheKey) {
        let Some(at) = self.cache_index.remove(key) else {
            return;
        };
        self.dirty_caches.remove(&at);
        self.alarms.set(Alarm::Cache(at), None);
        let Some(cache) = self.caches.remove(&at) else {
            return;
        };
        if self.begun && !cache.owed.is_empty() && !cache.released {
            self.outbox.push(removals_dropped(&cache));
        }
        // Its pulls are cancelled where nobody else wants them.
        for node in 0..self.nodes.len() {
            self.touch_node(node);
        }
        self.sweep_images();
    }

    /// Which nodes are for which lists of a cache.
    fn match_nodes(&mut self, at: CacheIdx) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        for (cell, node) in cache.cells.iter_mut().zip(&self.nodes) {
            cell.pattern = match (&node.name, &node.facts) {
                (Some(name), Some(facts)) => cache.wants.meet(name, facts, &self.names.images),
                _ => 0,
            };
        }
    }

    /// Forgets images that no cache names any more.
    fn sweep_images(&mut self) {
        if self.names.images.len() < self.sweep_at.max(256) {
            return;
        }
        let mut named = FixedBitSet::with_capacity(self.names.images.len());
        for cache in self.caches.values() {
            named.grow(cache.ids.len());
            named.union_with(&cache.ids);
            for image in cache.applied.keys() {
                named.grow_and_insert(image.index());
            }
        }
        for image in self.live.values().flat_map(crate::batches::Live::images) {
            named.grow_and_insert(image.index());
        }
        for image in self.names.images.sweep(&named) {
            for node in &mut self.nodes {
                node.forget_image(image);
            }
            self.scouts.retain(|(known, _), _| *known != image);
        }
        self.sweep_at = self.names.images.len() * 2;
    }

    /// What is to begin.
    pub(crate) fn decide(&mut self, at: CacheIdx, now: Now) {
        self.compile(at, now);
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if cache.stale {
            return;
        }
        if let Some(message) = cache.invalid.clone().filter(|_| !cache.object.deleting) {
            tell_invalid(cache, message, now);
            return;
        }
        if cache.object.deleting {
            self.decide_deletion(at, now);
            return;
        }
        self.decide_finalizer(at, now);
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if let Some(kind) = cache.due() {
            let stamp = self.next_stamp(now);
            self.begin(at, kind, stamp, now);
            return;
        }
        let same = |cache: &Cache| {
            let purge = cache.purge.as_ref();
            purge.is_some_and(|purge| purge.cache_spec_hash == spec_hash(cache.spec()))
        };
        if cache.purged && same(cache) {
            cache.covered = cache.wants_hash;
        }
        self.refresh_quietly(at, now);
    }

    /// Takes up another spec. What is wanted elsewhere begins an operation later.
    fn compile(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if cache.compiled == Some(cache.object.generation) || cache.invalid.is_some() {
            return;
        }
        let was_pinned = cache.pinned;
        cache.compile(&mut self.names, &self.settings);
        cache.refresh_at = None;
        if cache.object.deleting {
            // Its pins go, whatever it says now.
        } else if cache.pinned {
            cache.unpin = None;
        } else if was_pinned {
            let until = now.tick.after(self.settings.purge_deadline);
            cache.unpin = Some(Unpin {
                since: self.stamp + 1,
                until,
            });
            self.next_stamp(now);
        }
        self.match_nodes(at);
        self.touch_cache(at);
        self.sweep_images();
    }

    pub(crate) fn begin(&mut self, at: CacheIdx, kind: Kind, stamp: Stamp, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        cache.begin(kind, stamp, now.wall);
        cache.bad_secrets.clear();
        self.enlist(at);
        self.touch_cache(at);
    }

    /// The nodes of an operation: those eligible and matched at its start; those whose puller
    /// answers where something is to be removed.
    pub(crate) fn enlist(&mut self, at: CacheIdx) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        let mut pulls = FixedBitSet::with_capacity(self.nodes.len());
        let mut removes = FixedBitSet::with_capacity(self.nodes.len());
        for (idx, node) in self.nodes.iter().enumerate() {
            let eligible = node.eligibility().is_ok();
            pulls.set(idx, eligible && !cache.pattern(idx).wants.is_empty());
            removes.set(idx, node.callable() && !cache.owed.is_empty());
            cache.cells[idx].done = false;
        }
        if let Some(operation) = &mut cache.operation {
            operation.open = pulls.union_count(&removes);
            operation.worked = operation.open > 0;
            (operation.pulls, operation.removes) = (pulls, removes);
        }
    }

    /// Ends what is complete and writes what has changed.
    pub(crate) fn advance(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        cache.first_round &= cache.counts.flagged(crate::cell::Flags::UNSEEN) > 0;
        if cache.runs(Kind::Delete) {
            self.advance_deletion(at, now);
        } else if cache.complete() {
            self.end(at, now);
        } else if cache.unpin.is_some() && !cache.object.deleting && cache.unpinned(now.tick) {
            cache.unpin = None;
            self.dirty_caches.insert(at);
        }
        self.end_refresh(at, now);
        if let Some(cache) = self.caches.get_mut(&at) {
            cache.heal(now.wall);
            cache.unwritten = true;
        }
        self.serve_waiting_nodes(at);
        self.write_status(at, now);
        self.set_cache_alarm(at, now);
    }

    fn end(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if let Some((annotation, value)) = cache.to_clear(now.tick) {
            if let Some(operation) = &mut cache.operation {
                operation.clearing = Some(now.tick.after(ANSWER_LIMIT));
            }
            let key = cache.object.key.clone();
            self.outbox.push(Command::ClearAnnotation {
                key,
                annotation,
                value,
            });
            return;
        }
        let Some(operation) = &cache.operation else {
            return;
        };
        if operation.clearing.is_some() {
            return;
        }
        let failed = |cell: &Cell| cell.failing > 0 || cell.state == CellState::Unreachable;
        let failed = operation
            .pulls
            .ones()
            .any(|node| failed(&cache.cells[node]));
        cache.finish(failed, now.wall);
        cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
        if let Some(kept) = cache.kept() {
            let text = format!(
                "images kept on nodes: {} in use, {} pinned by somebody else, {} with other names",
                kept.in_use, kept.pinned, kept.shared
            );
            let event = event(cache, Severity::Warning, "ImagesKept", "Removing", text);
            self.outbox.push(event);
        }
        // A spec edited meanwhile, or a request made meanwhile, is taken up.
        self.dirty_caches.insert(at);
        self.touch_cache(at);
    }

    fn set_cache_alarm(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get(&at) else {
            return;
        };
        let idle = cache.operation.is_none() && !cache.purged && !cache.held();
        let refresh = cache
            .refresh_at
            .filter(|_| idle && !cache.first_round && !cache.object.deleting);
        let waits = cache.write.is_none() && !cache.stale && cache.unwritten;
        let write = waits.then_some(cache.write_after);
        let clear = cache.operation.as_ref().and_then(|op| op.clearing);
        let unpin = cache.unpin.map(|unpin| unpin.until);
        let given_up = cache
            .owed
            .values()
            .map(|owed| owed.since.0 + PATIENCE)
            .min();
        let given_up = given_up
            .filter(|at| *at > now.wall.0)
            .map(|at| in_seconds(at, now));
        let deletion = self.deletion_deadline(cache).map(|at| in_seconds(at, now));
        let all = [
            refresh,
            write,
            clear,
            unpin,
            cache.finalizing,
            given_up,
            deletion,
        ];
        let at_next = all.into_iter().flatten().filter(|at| *at > now.tick).min();
        self.alarms.set(Alarm::Cache(at), at_next);
    }
}

fn in_seconds(wall: i64, now: Now) -> Tick {
    let seconds = u64::try_from(wall - now.wall.0).unwrap_or(0);
    now.tick.after(Duration::from_secs(seconds))
}

/// What a spec that cannot be used makes of the status.
fn tell_invalid(cache: &mut Cache, message: String, now: Now) {
    if cache.told.reason == reason::INVALID && cache.told.message == message {
        return;
    }
    cache.operation = None;
    cache.told = crate::cache::Told {
        status: status::FAILED.to_owned(),
        reason: reason::INVALID.to_owned(),
        message,
        started: Some(now.wall),
        completed: Some(now.wall),
    };
}

pub(crate) fn removals_dropped(cache: &Cache) -> Command {
    let names: Vec<&str> = cache
        .owed
        .values()
        .take(10)
        .map(|owed| &*owed.reference)
        .collect();
    let text = format!(
        "the object is deleted with its images retained: {} names that were still to be removed stay on nodes, among them {}",
        cache.owed.len(),
        names.join(", ")
    );
    event(cache, Severity::Warning, "RemovalDropped", "Deleting", text)
}

/// A Kubernetes Event on a cache.
pub(crate) fn event(
    cache: &Cache,
    severity: Severity,
    reason: &str,
    action: &str,
    message: String,
) -> Command {
    Command::EmitEvent {
        key: cache.object.key.clone(),
        uid: cache.object.uid.clone(),
        severity,
        reason: reason.to_owned(),
        action: action.to_owned(),
        message,
    }
}

/// Why a secret is no use that does not exist.
const NOT_FOUND: &str = "not found";

impl Engine {
    /// Secrets that are no use hinder nothing, as with the kubelet; but somebody should know. One
    /// that has become of use is not spoken of any more.
    pub(crate) fn secrets_read(&mut self, key: &CacheKey, useless: UselessSecrets) {
        let missing = useless.missing.into_iter();
        let missing = missing.map(|name| (name, NOT_FOUND.to_owned()));
        let all: BTreeMap<String, String> = missing.chain(useless.unusable).collect();
        let Some(at) = self.cache_index.get(key) else {
            return;
        };
        let Some(cache) = self.caches.get_mut(at).filter(|c| c.bad_secrets != all) else {
            return;
        };
        self.dirty_caches.insert(*at);
        let before = std::mem::replace(&mut cache.bad_secrets, all);
        let new = cache.bad_secrets.iter();
        let new: Vec<_> = new
            .filter(|(name, why)| before.get(*name) != Some(why))
            .collect();
        if new.is_empty() {
            return;
        }
        let texts: Vec<String> = new
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        let text = format!(
            "imagePullSecrets of namespace {} that images are pulled without: {}",
            key.namespace,
            texts.join("; ")
        );
        let reason = if new.iter().all(|(_, why)| *why == NOT_FOUND) {
            "ImagePullSecretNotFound"
        } else {
            "ImagePullSecretInvalid"
        };
        let event = event(cache, Severity::Warning, reason, "Pulling", text);
        self.outbox.push(event);
    }
}
