//! Writes to the API server: when a status is written, and what the answers mean.

use std::time::Duration;

use kubefledged_api_types::{ImageCacheStatus, names::PURGE_ANNOTATION};

use super::{WRITE_RETRY, events::announce, status, written};
use crate::{
    commit::Engine,
    ids::{CacheIdx, IdSet},
    model::{
        applied::GIVE_UP_AFTER,
        backoff,
        last_operation::Identity,
        writer::{StatusWrite, WriterState},
    },
    vocabulary::{CacheKey, Command, Now, WriteError},
};

/// Progress is written at most this often; the begin and the end of an operation are written at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two writes of progress of any objects, where many are in progress: so long for each of them.
const SHARE: Duration = Duration::from_millis(100);
/// The longest that progress waits because of others.
const MAX_SHARE: Duration = Duration::from_secs(5);
/// Every write stores the whole object again: for each so many bytes of it progress waits a second more.
const BYTES_PER_SECOND: usize = 16 << 10;
/// The progress of an object of this size is written at doubling intervals, from the begin of an operation or from a
/// change of its names.
const LARGE: usize = 128 << 10;
/// The longest of them.
const MAX_INTERVAL: Duration = Duration::from_secs(1800);

/// Time until the next write of an object of so many bytes that records new names.
fn names_interval(bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes / BYTES_PER_SECOND).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).max(WRITE_INTERVAL)
}

/// Time until the next write of progress, after so many repeated writes of an operation of an object of so many
/// bytes, while so many objects are in progress.
fn progress_interval(bytes: usize, repeats: u32, objects: u32) -> Duration {
    let share = SHARE.saturating_mul(objects).min(MAX_SHARE);
    let base = names_interval(bytes).max(share);
    if bytes < LARGE {
        return base;
    }
    base.saturating_mul(1 << repeats.min(16)).min(MAX_INTERVAL)
}

/// About how many bytes the API server stores for an object with this status: the names stand in the spec too.
fn stored_bytes(status: &ImageCacheStatus) -> usize {
    let names = status.applied_images.iter();
    let names: usize = names.map(|image| 2 * image.name.len() + 24).sum();
    let failures = status.failures.values().flatten();
    names
        + failures
            .map(|failure| failure.message.len() + 64)
            .sum::<usize>()
}

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
        let names = cache.names_due().is_some_and(|at| at <= now.tick);
        if !cache.writer.may_write(now.tick, transition || names) {
            return;
        }
        self.settle(at, now);
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        let mut desired = status::project(&self.model, cache, now);
        if cache.writer.is_short(now.tick) {
            status::shorten(&mut desired, &cache.object.status);
        }
        let bytes = stored_bytes(&desired);
        let interval = self.model.settings.check_interval.as_secs();
        let interval = i64::try_from(interval).unwrap_or(i64::MAX);
        let differs = status::differs(&desired, &cache.object.status, interval);
        let caches = self.model.caches.values();
        let running = caches.filter(|cache| cache.operation.is_some()).count();
        let running = u32::try_from(running).unwrap_or(u32::MAX);
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let writer = &mut cache.writer;
        writer.unsaved = false;
        writer.state = WriterState::Ready;
        let identity = Identity::of(&desired);
        // Workloads change the names without an operation.
        let same_names = desired.applied_images == cache.object.status.applied_images;
        let repeats = if writer.sent == identity && same_names {
            writer.repeats + 1
        } else {
            0
        };
        writer.not_before = Some(now.tick.after(progress_interval(bytes, repeats, running)));
        writer.names_not_before = Some(now.tick.after(names_interval(bytes)));
        if !differs {
            return;
        }
        writer.repeats = repeats;
        let over = cache.object.resource_version.clone();
        writer.sent = identity;
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
        let give_up = Duration::from_secs(GIVE_UP_AFTER.unsigned_abs());
        for (idx, node) in model.nodes.iter() {
            if node.runs_puller() {
                holders.insert(idx);
            }
            let since = node.contact.silent_since;
            if since.is_some_and(|since| since.after(give_up) <= now.tick) {
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
        let seed = self.model.settings.seed;
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
                cache.writer.after_oversize(now.tick);
                cache.compare_names();
                let changed = cache.recorded() != recorded;
                let events = announce(cache);
                self.agenda.outbox.extend(events);
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
            Err(WriteError::TooLarge(_)) => {
                let spread = backoff::hash(seed, &[key.name.as_bytes()]);
                cache.writer.too_large(now.tick, spread);
                cache.writer.state = WriterState::BackOff;
                cache.writer.not_before = Some(now.tick.after(WRITE_RETRY));
                cache.writer.unsaved = true;
            }
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
        if matches!(
            result,
            Err(WriteError::Failed(_) | WriteError::TooLarge(_) | WriteError::Conflict)
        ) {
            operation.clearing = Some(now.tick.after(WRITE_RETRY));
            return;
        }
        operation.clearing = None;
        let mut requests = operation.requests.iter();
        let Some(position) = requests.position(|request| request.value.is_empty()) else {
            return;
        };
        let request = operation.requests.remove(position);
        let value = match request.annotation {
            PURGE_ANNOTATION => &mut cache.object.purge,
            _ => &mut cache.object.refresh,
        };
        // It is gone, whoever took it off. The watch may have brought another one.
        value.take_if(|value| *value == request.value);
        if let Ok(Some(version)) = result {
            written(&mut cache.object, version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_a_small_object_is_written_every_second_and_of_a_large_one_ever_less_often() {
        let seconds = |bytes, repeats| progress_interval(bytes, repeats, 1).as_secs();
        assert_eq!((seconds(0, 0), seconds(5_000, 90)), (1, 1));
        assert_eq!(seconds(100_000, 9), 6);
        assert_eq!((seconds(800_000, 0), seconds(800_000, 1)), (48, 96));
        assert_eq!(seconds(800_000, 40), 1800);
    }

    #[test]
    fn ten_statuses_a_second_tell_of_progress_however_many_objects_are_in_progress() {
        let millis = |objects| progress_interval(0, 3, objects).as_millis();
        assert_eq!((millis(0), millis(10), millis(20)), (1000, 1000, 2000));
        assert_eq!((millis(50), millis(u32::MAX)), (5000, 5000));
        assert_eq!(progress_interval(100_000, 9, 20).as_secs(), 6);
    }

    #[test]
    fn an_hour_of_six_large_caches_stores_at_most_fifty_megabytes() {
        // 20,000 names of 20 bytes, in the spec and in the status.
        let bytes = 20_000 * (2 * 20 + 24);
        assert!(bytes < 1_300_000);
        let stored = 900_000_u64;
        let (mut at, mut writes) = (Duration::ZERO, 0);
        while at < Duration::from_secs(3600) {
            at += progress_interval(bytes, writes, 6);
            writes += 1;
        }
        // And names before the first pull, the begin and the end.
        let all = 6 * stored * u64::from(writes + 3);
        assert!(all <= 50_000_000, "{all}");
    }
}
