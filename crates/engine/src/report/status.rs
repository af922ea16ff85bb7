//! The status of a cache, computed whole.

use kubefledged_api_types::{ImageCacheStatus, status::ImageCounts};

use super::{conditions, failures};
use crate::{
    ids::Stamp,
    model::{Model, cache::Cache, node_status::Flags, pending},
    vocabulary::{Now, PullState},
};

/// The status as it must be now. Conditions keep the transition times that were written.
pub fn project(model: &Model, cache: &Cache, now: Now) -> ImageCacheStatus {
    let previous = &cache.object.status;
    let (last, history) = (&cache.last, &cache.history);
    let mut status = ImageCacheStatus {
        status: last.phase.as_str().to_owned(),
        reason: last.subject.as_str().to_owned(),
        message: last.message.clone(),
        start_time: last.started,
        completion_time: last.completed,
        observed_generation: Some(cache.object.generation),
        last_refresh_time: cache.refresh.last,
        last_handled_refresh: history.handled_refresh.clone(),
        last_handled_purge: history.handled_purge.clone(),
        handling_refresh: cache.handling_refresh(),
        purge: history.purge.clone(),
        applied_images: cache.applied.status(&cache.desired),
        ..ImageCacheStatus::default()
    };
    status.lists_without_nodes = cache.desired.unmatched().collect();
    if let Some(sources) = &cache.sources {
        status.sources = sources.status(&model.workloads);
    }
    let gates = model.settings.gate.is_on() && cache.spec().gates_nodes();
    if cache.nodes.first_round {
        // What was written stays until the first round is complete.
        status.nodes = previous.nodes;
        status.images.clone_from(&previous.images);
        status.ready.clone_from(&previous.ready);
        status.last_check_time = previous.last_check_time;
        status.failures.clone_from(&previous.failures);
        status.failure_count = previous.failure_count;
        status.failures_truncated = previous.failures_truncated;
        status.held_nodes = previous.held_nodes.filter(|_| gates);
        status.conditions.clone_from(&previous.conditions);
        // What was written tells of another spec if the object was edited while nobody led.
        let edited = previous.observed_generation != Some(cache.object.generation);
        if previous.conditions.is_empty() || edited {
            status.conditions = conditions::unknown(cache, now.wall);
        }
        return status;
    }
    let counts = &cache.nodes.counts;
    status.nodes = Some(counts.nodes);
    status.images = Some(ImageCounts {
        kept: pending::kept(cache.applied.pending.values()),
        size: human(counts.images.bytes),
        ..counts.images.clone()
    });
    status.held_nodes = gates.then(|| counts.flagged(Flags::HOLDS));
    status.ready = format!("{}/{}", counts.nodes.ready, counts.nodes.desired);
    status.last_check_time = oldest_check(cache).and_then(|stamp| model.clock.at(stamp));
    let causes = failures::list(model, cache, now.tick, &mut status);
    status.conditions = conditions::all(model, cache, &causes, now.wall);
    status
}

/// A number of bytes for people, with three digits: "12.4 GB".
pub fn human(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut tenths, mut unit) = (bytes.saturating_mul(10), 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths = (tenths + 500) / 1000;
        unit += 1;
    }
    let (whole, tenth) = (tenths / 10, tenths % 10);
    match whole {
        0..100 if unit > 0 => format!("{whole}.{tenth} {}", UNITS[unit]),
        _ => format!("{whole} {}", UNITS[unit]),
    }
}

/// Leaves out what has no room in an object that is too large: names stay as they are written, so that images whose
/// names are not recorded are not pulled.
pub fn shorten(status: &mut ImageCacheStatus, written: &ImageCacheStatus) {
    status.applied_images.clone_from(&written.applied_images);
    status.failures.clear();
    status.failures_truncated = status.failure_count.is_some().then_some(true);
}

/// Stamp of the oldest observation that the counts rest on. A node that does not answer does not count.
fn oldest_check(cache: &Cache) -> Option<Stamp> {
    let rows = cache.nodes.rows.iter();
    let counted =
        rows.filter(|row| !matches!(row.state, PullState::NotDesired | PullState::Unreachable));
    counted.filter_map(|row| row.checked).min()
}

/// Is the difference worth a write? The numbers of workloads alone are not, nor is the time of the last check, until it differs by a check interval.
pub fn differs(
    desired: &ImageCacheStatus,
    known: &ImageCacheStatus,
    check_interval_secs: i64,
) -> bool {
    let stale = match (desired.last_check_time, known.last_check_time) {
        (Some(new), Some(old)) => (new.0 - old.0).abs() >= check_interval_secs,
        (new, old) => new != old,
    };
    if stale {
        return true;
    }
    let mut same_check = ImageCacheStatus {
        last_check_time: known.last_check_time,
        ..desired.clone()
    };
    // Pods come and go all the time.
    for (new, old) in same_check.sources.iter_mut().zip(&known.sources) {
        new.workloads = old.workloads;
    }
    same_check != *known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_for_people() {
        let written = [0, 999, 1000, 12_400_000_000, 999_960_000, 123_400_000].map(human);
        assert_eq!(
            written,
            ["0 B", "999 B", "1.0 kB", "12.4 GB", "1.0 GB", "123 MB"]
        );
    }
}
