//! Writes to the API server: when a status is written, and what its answer means.

use std::time::Duration;

use fixedbitset::FixedBitSet;
use kubefledged_api_types::names;

use crate::{
    CacheKey, Command, Engine, Now, Severity, WriteError,
    cache::{Cache, CacheIdx, Write, identity},
    caches::event,
    status,
};

/// Progress alone is written at most this often; beginnings and ends at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Before a failed write is tried again.
pub(crate) const WRITE_RETRY: Duration = Duration::from_secs(2);

impl Engine {
    pub(crate) fn write_status(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get(&at) else {
            return;
        };
        if cache.write.is_some() || cache.awaits_finalizer || cache.stale || cache.released {
            return;
        }
        let (told, known) = (&cache.told, &cache.object.status);
        let turned = (&told.status, told.started) != (&known.status, known.start_time);
        if cache.write_after > now.tick && (cache.write_failed || !turned) {
            return;
        }
        self.settle(at, now);
        let Some(cache) = self.caches.get(&at) else {
            return;
        };
        let desired = status::project(self, cache, now);
        let check_secs = i64::try_from(self.settings.check_interval.as_secs()).unwrap_or(i64::MAX);
        let differs = status::differs(&desired, &cache.object.status, check_secs);
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        cache.unwritten = false;
        cache.write_failed = false;
        cache.write_after = now.tick.after(WRITE_INTERVAL);
        if !differs {
            return;
        }
        let over = cache.object.resource_version.clone();
        cache.sent = identity(&desired);
        cache.write = Some(Write {
            status: desired.clone(),
            over: over.clone(),
        });
        self.outbox.push(Command::WriteStatus {
            key: cache.object.key.clone(),
            resource_version: over,
            status: Box::new(desired),
        });
    }

    /// Reads every node: only where something is owed, and only before a write.
    fn settle(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self
            .caches
            .get_mut(&at)
            .filter(|cache| !cache.owed.is_empty())
        else {
            return;
        };
        let mut owing = FixedBitSet::with_capacity(self.nodes.len());
        let mut silent = FixedBitSet::with_capacity(self.nodes.len());
        for (idx, node) in self.nodes.iter().enumerate() {
            owing.set(idx, node.runs_puller());
            silent.set(idx, node.puller.is_none() || node.call_failures > 0);
        }
        cache.settle(&owing, &silent, now.wall);
    }

    pub(crate) fn status_written(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<String, WriteError>,
    ) {
        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        let Some(write) = cache.write.take() else {
            return;
        };
        let recorded = cache.recorded();
        match result {
            Ok(version) => {
                if !older(&version, &cache.object.resource_version) {
                    cache.object.resource_version = version;
                }
                cache.object.status = write.status;
                cache.compare_names();
                let freed = cache.recorded() != recorded;
                let event = announce(cache);
                self.outbox.extend(event);
                if let Some(at) = self.cache_index.get(key).copied().filter(|_| freed) {
                    self.touch_cache(at);
                }
            }
            Err(WriteError::Conflict) => {
                // The watch may have brought the newer object already.
                cache.stale = cache.object.resource_version == write.over;
                cache.write_after = now.tick.after(WRITE_INTERVAL);
                (cache.unwritten, cache.write_failed) = (true, true);
            }
            Err(WriteError::Gone) => cache.released = true,
            Err(WriteError::Failed(_)) => {
                cache.write_after = now.tick.after(WRITE_RETRY);
                (cache.unwritten, cache.write_failed) = (true, true);
            }
        }
    }

    pub(crate) fn annotation_cleared(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<Option<String>, WriteError>,
    ) {
        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        // A late answer to what an operation before this one asked for is none of this one's.
        let waiting = cache.operation.as_mut();
        let Some(operation) = waiting.filter(|operation| operation.clearing.is_some()) else {
            return;
        };
        if matches!(result, Err(WriteError::Failed(_) | WriteError::Conflict)) {
            operation.clearing = Some(now.tick.after(WRITE_RETRY));
            return;
        }
        operation.clearing = None;
        let empty = operation
            .handles
            .iter()
            .position(|(_, value)| value.is_empty());
        let Some(position) = empty else {
            return;
        };
        let (annotation, _) = operation.handles.remove(position);
        if let Ok(Some(version)) = result {
            let value = match annotation {
                names::PURGE_ANNOTATION => &mut cache.object.purge,
                _ => &mut cache.object.refresh,
            };
            *value = None;
            if !older(&version, &cache.object.resource_version) {
                cache.object.resource_version = version;
            }
        }
    }
}

/// Resource versions of one object are comparable numbers in every Kubernetes; where they are not
/// numbers, the later event wins.
pub(crate) fn older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(a), Ok(b)) if a < b)
}

/// The Kubernetes Event that tells of a written change: one at the begin of an operation and one at
/// its end.
pub(crate) fn announce(cache: &mut Cache) -> Option<Command> {
    let after = &cache.object.status;
    let now = (after.status.clone(), after.start_time);
    if now == cache.announced || after.status.is_empty() {
        return None;
    }
    cache.announced = now;
    let severity = match after.status.as_str() {
        names::status::FAILED => Severity::Warning,
        _ => Severity::Normal,
    };
    // Begin and end of an operation differ in their action, or they would be merged into one.
    Some(event(
        cache,
        severity,
        &after.reason,
        &after.status,
        after.message.clone(),
    ))
}
