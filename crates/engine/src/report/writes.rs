//! Writes to the API server: when a status is written, and what the answers mean.

use std::time::Duration;

use kubefledged_api_types::names::PURGE_ANNOTATION;

use super::{WRITE_RETRY, events::announce, status, written};
use crate::{
    commit::Engine,
    ids::{CacheIdx, IdSet},
    model::{
        last_operation::Identity,
        writer::{StatusWrite, WriterState},
    },
    vocabulary::{CacheKey, Command, Now, WriteError},
};

/// Progress is written at most this often; the begin and the end of an operation are written at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

impl Engine {
    /// Writes the status if it is time and it differs from what is written.
    pub(crate) fn write_status(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        if cache.finalizer.in_flight() || cache.deletion.is_released() {
            return;
        }
        let (last, known) = (&cache.last, &cache.object.status);
        let transition =
            (last.phase.as_str(), last.started) != (known.status.as_str(), known.start_time);
        if !cache.writer.may_write(now.tick, transition) {
            return;
        }
        self.settle(at, now);
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        let desired = status::project(&self.model, cache, now);
        let interval = self.model.settings.check_interval.as_secs();
        let interval = i64::try_from(interval).unwrap_or(i64::MAX);
        let differs = status::differs(&desired, &cache.object.status, interval);
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let writer = &mut cache.writer;
        writer.unsaved = false;
        writer.state = WriterState::Ready;
        writer.not_before = Some(now.tick.after(WRITE_INTERVAL));
        if !differs {
            return;
        }
        let over = cache.object.resource_version.clone();
        writer.sent = Identity::of(&desired);
        writer.state = WriterState::InFlight(Box::new(StatusWrite {
            status: desired.clone(),
            over: over.clone(),
        }));
        self.agenda.outbox.push(Command::WriteStatus {
            key: cache.object.key.clone(),
            resource_version: over,
            status: Box::new(desired),
        });
    }

    /// Drops pending removals that are done or given up. It reads every node, so it runs only before a write.
    fn settle(&mut self, at: CacheIdx, now: Now) {
        let model = &mut self.model;
        let cache = model.caches.get_mut(at);
        let Some(cache) = cache.filter(|cache| !cache.applied.pending.is_empty()) else {
            return;
        };
        let mut holders = IdSet::with_capacity(model.nodes.slots());
        let mut silent = IdSet::with_capacity(model.nodes.slots());
        for (idx, node) in model.nodes.iter() {
            if node.runs_puller() {
                holders.insert(idx);
            }
            if node.puller.is_none() || node.contact.failures > 0 {
                silent.insert(idx);
            }
        }
        cache.applied.settle(&holders, &silent, now.wall);
    }

    pub(crate) fn status_written(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<String, WriteError>,
    ) {
        let Some(cache) = self.change_cache(key) else {
            return;
        };
        let Some(write) = cache.writer.answered() else {
            return;
        };
        let recorded = cache.recorded();
        match result {
            Ok(version) => {
                written(&mut cache.object, version);
                cache.object.status = write.status;
                cache.compare_names();
                let changed = cache.recorded() != recorded;
                let event = announce(cache);
                self.agenda.outbox.extend(event);
                if let Some(at) = self.model.caches.find(key).filter(|_| changed) {
                    self.touch_cache(at);
                }
            }
            Err(WriteError::Conflict) => {
                // The watch may have brought the newer object already.
                let same = cache.object.resource_version == write.over;
                cache.writer.state = if same {
                    WriterState::AwaitsObject
                } else {
                    WriterState::BackOff
                };
                cache.writer.not_before = Some(now.tick.after(WRITE_INTERVAL));
                cache.writer.unsaved = true;
            }
            Err(WriteError::Gone) => cache.deletion = cache.deletion.release(),
            Err(WriteError::Failed(_)) => {
                cache.writer.state = WriterState::BackOff;
                cache.writer.not_before = Some(now.tick.after(WRITE_RETRY));
                cache.writer.unsaved = true;
            }
        }
    }

    pub(crate) fn annotation_cleared(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<Option<String>, WriteError>,
    ) {
        let Some(cache) = self.change_cache(key) else {
            return;
        };
        // A late answer to what an earlier operation asked for does not concern this one.
        let waiting = cache.operation.as_mut();
        let Some(operation) = waiting.filter(|operation| operation.clearing.is_some()) else {
            return;
        };
        if matches!(result, Err(WriteError::Failed(_) | WriteError::Conflict)) {
            operation.clearing = Some(now.tick.after(WRITE_RETRY));
            return;
        }
        operation.clearing = None;
        let mut requests = operation.requests.iter();
        let Some(position) = requests.position(|request| request.value.is_empty()) else {
            return;
        };
        let request = operation.requests.remove(position);
        if let Ok(Some(version)) = result {
            let value = match request.annotation {
                PURGE_ANNOTATION => &mut cache.object.purge,
                _ => &mut cache.object.refresh,
            };
            *value = None;
            written(&mut cache.object, version);
        }
    }
}
