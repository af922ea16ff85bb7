//! Deletion of an object that our finalizer holds: its images go first, or at least our pins.

use kubefledged_api_types::DeletionPolicy;

use crate::{
    Command, Engine, Now, Severity, Tick, WriteError,
    cache::{Cache, CacheIdx, Unpin},
    caches::{ANSWER_LIMIT, event, removals_dropped},
    cell::Flags,
    operation::Kind,
    writes::{WRITE_RETRY, older},
};

impl Engine {
    /// Puts the finalizer on before anything is pulled that needs it, and takes it off when nothing
    /// does any more.
    pub(crate) fn decide_finalizer(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        let needed = cache.spec().needs_finalizer() || cache.unpin.is_some();
        if needed == cache.object.finalizer || cache.finalizing.is_some_and(|at| at > now.tick) {
            return;
        }
        // An object that only loses its pins has the finalizer already, or never had it.
        if needed && !cache.spec().needs_finalizer() {
            return;
        }
        self.set_finalizer(at, needed, now.tick);
    }

    fn set_finalizer(&mut self, at: CacheIdx, present: bool, now: Tick) {
        if let Some(cache) = self.caches.get_mut(&at) {
            cache.finalizing = Some(now.after(ANSWER_LIMIT));
            cache.awaits_finalizer = true;
            self.outbox.push(Command::SetFinalizer {
                key: cache.object.key.clone(),
                uid: cache.object.uid.clone(),
                present,
            });
        }
    }

    pub(crate) fn finalizer_written(
        &mut self,
        now: Now,
        key: &crate::CacheKey,
        result: Result<Option<String>, WriteError>,
    ) {
        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        cache.awaits_finalizer = false;
        match result {
            Ok(version) => {
                cache.finalizing = None;
                cache.released |= cache.object.deleting;
                cache.object.finalizer = !cache.object.deleting && cache.spec().needs_finalizer();
                if let Some(version) = version
                    && !older(&version, &cache.object.resource_version)
                {
                    cache.object.resource_version = version;
                }
                // Work may have waited for it.
                if let Some(at) = self.cache_index.get(key).copied() {
                    self.touch_cache(at);
                }
            }
            Err(WriteError::Gone) => {}
            Err(WriteError::Conflict | WriteError::Failed(_)) => {
                cache.finalizing = Some(now.tick.after(WRITE_RETRY));
            }
        }
    }

    /// The object is being deleted.
    pub(crate) fn decide_deletion(&mut self, at: CacheIdx, now: Now) {
        let stamp = self.next_stamp(now);
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if !cache.object.finalizer {
            // Somebody else holds it: it wants nothing, and nothing of it is ours to do.
            if !cache.released {
                cache.abort(now.wall);
            }
            cache.operation = None;
            return;
        }
        let policy = match &cache.invalid {
            None => cache.spec().deletion_policy(),
            // What it wanted is not known any more.
            Some(_) => DeletionPolicy::Retain,
        };
        if cache.deletion == Some(policy) {
            return;
        }
        cache.deletion = Some(policy);
        if !cache.runs(Kind::Delete) {
            cache.begin(Kind::Delete, stamp, now.wall);
        }
        let until = now.tick.after(self.settings.purge_deadline);
        if cache.unpin.is_none() && cache.pinned {
            cache.unpin = Some(Unpin {
                since: stamp,
                until,
            });
        }
        if policy == DeletionPolicy::Purge {
            cache.owe(&fixedbitset::FixedBitSet::new(), now.wall);
        } else if !cache.owed.is_empty() {
            let event = removals_dropped(cache);
            cache.owed.clear();
            self.outbox.push(event);
        }
        self.enlist(at);
        self.touch_cache(at);
    }

    /// In seconds since the epoch: when a deletion waits for nobody any more.
    pub(crate) fn deletion_deadline(&self, cache: &Cache) -> Option<i64> {
        let began = cache
            .purge
            .as_ref()
            .filter(|_| cache.runs(Kind::Delete))?
            .start_time?;
        let limit = i64::try_from(self.settings.purge_deadline.as_secs()).unwrap_or(i64::MAX);
        Some(began.0.saturating_add(limit))
    }

    /// Takes the finalizer off when every node that answers is done, or the deadline has passed.
    pub(crate) fn advance_deletion(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get(&at) else {
            return;
        };
        let open = cache.operation.as_ref().is_some_and(|op| op.open > 0);
        let done = !open && cache.unpinned(now.tick);
        let late = self
            .deletion_deadline(cache)
            .is_some_and(|at| at <= now.wall.0);
        if !(done || late) || cache.finalizing.is_some_and(|at| at > now.tick) {
            return;
        }
        if cache.finalizing.is_none() {
            self.outbox.extend(self.leftovers(cache));
        }
        self.set_finalizer(at, false, now.tick);
    }

    /// What a deleted object leaves on nodes.
    fn leftovers(&self, cache: &Cache) -> Option<Command> {
        let mut nodes: Vec<&str> = Vec::new();
        let mut left = 0;
        for (idx, node) in self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.runs_puller())
        {
            let owes = cache.owed.values().any(|owed| !owed.done.contains(idx));
            let pins = cache.cells[idx].flags.has(Flags::PINS_OPEN);
            if owes || pins {
                left += 1;
                if nodes.len() < 10 {
                    nodes.push(node.hostname());
                }
            }
        }
        (left > 0).then(|| {
            let kept = cache.kept().map_or(0, |kept| kept.in_use + kept.pinned + kept.shared);
            let text = format!(
                "deleted although images, or our protection of them, are left on {left} nodes ({kept} images kept on purpose): {}",
                nodes.join(", ")
            );
            event(cache, Severity::Warning, "ImagesLeft", "Deleting", text)
        })
    }
}
