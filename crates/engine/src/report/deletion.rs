//! Deletion of an object that our finalizer holds: its images are removed first, or at least our pins.

use std::collections::BTreeSet;

use kubefledged_api_types::DeletionPolicy;

use super::{
    ANSWER_LIMIT, WRITE_RETRY,
    events::{event, removals_dropped},
    written,
};
use crate::{
    commit::Engine,
    ids::CacheIdx,
    model::{
        cache::{Cache, Unpin},
        node_status::Flags,
        operation::{Kind, Operation},
        pending,
        writer::FinalizerWrite,
    },
    plan::context::NodeContext,
    vocabulary::{CacheKey, Command, Now, Severity, Tick, WriteError},
};

/// Most nodes that one Event names.
const MAX_NODES: usize = 10;
/// Most images that it names.
const MAX_IMAGES: usize = 3;

impl Engine {
    /// Sets the finalizer before anything is pulled that needs it, and removes it when nothing needs it any more.
    pub(crate) fn decide_finalizer(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        let needs = cache.spec().needs_finalizer();
        let needed = needs || cache.unpin.is_some();
        if needed == cache.object.finalizer || cache.finalizer.waits(now.tick) {
            return;
        }
        // An object that only loses its pins has the finalizer already, or never had it.
        if needed && !needs {
            return;
        }
        self.set_finalizer(at, needed, now.tick);
    }

    fn set_finalizer(&mut self, at: CacheIdx, present: bool, now: Tick) {
        if let Some(cache) = self.model.caches.get_mut(at) {
            let again = now.after(ANSWER_LIMIT);
            cache.finalizer = FinalizerWrite::InFlight { again, present };
            self.agenda.outbox.push(Command::SetFinalizer {
                key: cache.object.key.clone(),
                uid: cache.object.uid.clone(),
                present,
            });
        }
    }

    pub(crate) fn finalizer_written(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<Option<String>, WriteError>,
    ) {
        let Some(cache) = self.change_cache(key) else {
            return;
        };
        match result {
            Ok(version) => {
                let sent = std::mem::take(&mut cache.finalizer);
                if let FinalizerWrite::InFlight { present, .. } = sent {
                    if cache.object.deleting && !present {
                        cache.deletion = cache.deletion.release();
                    }
                    cache.object.finalizer = present;
                }
                if let Some(version) = version {
                    written(&mut cache.object, version);
                }
                // Work may have waited for it.
                if let Some(at) = self.model.caches.find(key) {
                    self.touch_cache(at);
                }
            }
            Err(WriteError::Gone) => {
                if let FinalizerWrite::InFlight { again, .. } = cache.finalizer {
                    cache.finalizer = FinalizerWrite::BackOff { again };
                }
            }
            Err(WriteError::Conflict | WriteError::Failed(_) | WriteError::TooLarge(_)) => {
                let again = now.tick.after(WRITE_RETRY);
                cache.finalizer = FinalizerWrite::BackOff { again };
            }
        }
    }

    /// Decides about an object that is being deleted.
    pub(crate) fn decide_deletion(&mut self, at: CacheIdx, now: Now) {
        let stamp = self.model.next_stamp(now);
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        if !cache.object.finalizer {
            // Somebody else holds it. It desires nothing, and nothing of it is ours to do.
            if !cache.deletion.is_released() {
                cache.abort(now.wall);
            }
            cache.operation = None;
            return;
        }
        let policy = match &cache.invalid {
            None => cache.spec().deletion_policy(),
            // The policy is not known any more.
            Some(_) => DeletionPolicy::Retain,
        };
        if cache.deletion.policy() == Some(policy) {
            return;
        }
        cache.deletion = cache.deletion.decide(policy);
        if !cache.runs(Kind::Delete) {
            cache.begin(Kind::Delete, stamp, now.wall);
        }
        let until = now.tick.after(self.model.settings.purge_deadline);
        if cache.unpin.is_none() && cache.desired.pinned {
            cache.unpin = Some(Unpin {
                since: stamp,
                until,
            });
        }
        if policy == DeletionPolicy::Purge {
            cache.applied.remove_others(|_| false, now.wall);
        } else if !cache.applied.pending.is_empty() {
            let event = removals_dropped(cache);
            cache.applied.pending.clear();
            self.agenda.outbox.push(event);
        }
        self.enlist(at, now.tick);
        self.touch_cache(at);
    }

    /// When a deletion waits for no node any more, in seconds since the epoch; `None`: no deletion runs.
    pub(crate) fn deletion_deadline(&self, cache: &Cache) -> Option<i64> {
        let purge = cache.history.purge.as_ref();
        let began = purge.filter(|_| cache.runs(Kind::Delete))?.start_time?;
        let limit = self.model.settings.purge_deadline.as_secs();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Some(began.0.saturating_add(limit))
    }

    /// Removes the finalizer when every node that answers is done, or the deadline has passed.
    pub(crate) fn advance_deletion(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        let nodes_done = cache.operation.as_ref().is_none_or(Operation::is_complete);
        let done = nodes_done && cache.unpinned(now.tick);
        let deadline = self.deletion_deadline(cache);
        let late = deadline.is_some_and(|at| at <= now.wall.0);
        if !(done || late) || cache.finalizer.waits(now.tick) {
            return;
        }
        if cache.finalizer == FinalizerWrite::Idle {
            let event = self.leftovers(cache);
            self.agenda.outbox.extend(event);
        }
        self.set_finalizer(at, false, now.tick);
    }

    /// The Event for what a deleted object leaves on nodes.
    fn leftovers(&self, cache: &Cache) -> Option<Command> {
        let (mut nodes, mut images) = (Vec::new(), BTreeSet::new());
        let with_puller = self.model.nodes.iter();
        for (idx, node) in with_puller.filter(|(_, node)| node.runs_puller()) {
            let desired = NodeContext::of(&self.model, idx).desired;
            let pending = cache.applied.pending.iter();
            // What other caches desire is not left behind: it is theirs.
            let left = pending.filter(|(image, pending)| {
                !pending.done.contains(idx) && !desired.contains(**image)
            });
            let left: Vec<&str> = left.map(|(_, pending)| &*pending.reference).collect();
            images.extend(&left);
            if !left.is_empty() || cache.row(idx).flags.has(Flags::PINS_OPEN) {
                nodes.push(node.hostname());
            }
        }
        (!nodes.is_empty()).then(|| {
            let kept = pending::kept(cache.applied.pending.values());
            let kept = kept.map_or(0, |kept| kept.in_use + kept.pinned + kept.shared);
            let what = if images.is_empty() {
                "our protection of images is".to_owned()
            } else {
                let named: Vec<&str> = images.iter().copied().take(MAX_IMAGES).collect();
                let more = match images.len() - named.len() {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                format!("{}{more} ({kept} kept on purpose) are", named.join(", "))
            };
            let named = nodes[..nodes.len().min(MAX_NODES)].join(", ");
            let text = format!(
                "deleted although {what} left on {} nodes: {named}",
                nodes.len()
            );
            event(cache, Severity::Warning, "ImagesLeft", "Deleting", text)
        })
    }
}
