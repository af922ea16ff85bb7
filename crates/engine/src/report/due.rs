//! When something about a cache is due although nothing happens.

use std::time::Duration;

use crate::{
    commit::{Engine, timers::Timer},
    ids::CacheIdx,
    model::{applied::GIVE_UP_AFTER, sources::Sources},
    vocabulary::{Now, Tick},
};

impl Engine {
    /// Sets when something about a cache is due although nothing happens.
    pub(super) fn time_cache(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get(at) else {
            return;
        };
        let idle = cache.operation.is_none() && !cache.history.purged && !cache.held();
        let refreshes = idle && !cache.nodes.first_round && !cache.object.deleting;
        let pending = cache.applied.pending.values();
        let given_up = pending
            .map(|pending| pending.since.0 + GIVE_UP_AFTER)
            .min()
            .filter(|at| *at > now.wall.0);
        let sources = cache.sources.as_ref();
        let all = [
            cache.refresh.next.filter(|_| refreshes),
            cache.writer.writes_at(),
            cache.writer.writes_at().and(cache.names_due()),
            cache.operation.as_ref().and_then(|op| op.clearing),
            cache.unpin.map(|unpin| unpin.until),
            cache.finalizer.not_before(),
            given_up.map(|at| in_seconds(at, now)),
            sources.and_then(|sources| Some(in_seconds(sources.next?.0, now))),
            sources.and_then(Sources::tells_at),
            self.deletion_deadline(cache).map(|at| in_seconds(at, now)),
        ];
        let next = all.into_iter().flatten().filter(|at| *at > now.tick).min();
        self.agenda.timers.set(Timer::Cache(at), next);
    }
}

/// The tick of a wall-clock time in seconds since the epoch.
fn in_seconds(wall: i64, now: Now) -> Tick {
    let seconds = u64::try_from(wall - now.wall.0).unwrap_or(0);
    now.tick.after(Duration::from_secs(seconds))
}
