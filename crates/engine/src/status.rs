//! What a cache's status says, computed whole from its state.

use kubefledged_api_types::{ImageCacheStatus, status::ImageCounts};

use crate::{Engine, Now, cache::Cache, cell::CellState, conditions, failures, node::Stamp};

/// The status as it should be. What was written before keeps transition times of conditions.
pub fn project(engine: &Engine, cache: &Cache, now: Now) -> ImageCacheStatus {
    let previous = &cache.object.status;
    let told = &cache.told;
    let mut status = ImageCacheStatus {
        status: told.status.clone(),
        reason: told.reason.clone(),
        message: told.message.clone(),
        start_time: told.started,
        completion_time: told.completed,
        observed_generation: Some(cache.object.generation),
        last_refresh_time: cache.refreshed,
        last_handled_refresh: cache.handled_refresh.clone(),
        last_handled_purge: cache.handled_purge.clone(),
        purge: cache.purge.clone(),
        applied_images: cache.applied_status(),
        ..ImageCacheStatus::default()
    };
    if cache.first_round {
        // What was written stays until the first round is complete.
        status.nodes = previous.nodes;
        status.images = previous.images;
        status.ready.clone_from(&previous.ready);
        status.last_check_time = previous.last_check_time;
        status.failures.clone_from(&previous.failures);
        status.failure_count = previous.failure_count;
        status.failures_truncated = previous.failures_truncated;
        status.conditions.clone_from(&previous.conditions);
        if previous.conditions.is_empty() {
            status.conditions = conditions::unknown(cache, now.wall);
        }
        return status;
    }
    let counts = &cache.counts;
    status.nodes = Some(counts.nodes);
    status.images = Some(ImageCounts {
        kept: cache.kept(),
        ..counts.images
    });
    status.ready = format!("{}/{}", counts.nodes.ready, counts.nodes.desired);
    status.last_check_time = oldest_look(cache).and_then(|stamp| engine.clock.at(stamp));
    failures::list(engine, cache, now.tick, &mut status);
    status.conditions = conditions::all(engine, cache, now.wall);
    status
}

/// The oldest look that the counts rest on; a node that does not answer is in none.
fn oldest_look(cache: &Cache) -> Option<Stamp> {
    let counted = cache.cells.iter().filter(|cell| {
        cell.looked > 0 && !matches!(cell.state, CellState::Out | CellState::Unreachable)
    });
    counted.map(|cell| cell.looked).min()
}

/// Whether the difference is worth a write. The time of the last look alone is not, as long as it
/// is not much older than what is written.
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
    let same_look = ImageCacheStatus {
        last_check_time: known.last_check_time,
        ..desired.clone()
    };
    same_look != *known
}
