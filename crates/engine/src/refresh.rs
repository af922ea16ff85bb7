//! The automatic refresh. It is quiet: what resolves to Always asks the registry, by one node; the
//! rest is looked at. It becomes an operation only when something must be pulled.

use std::time::Duration;

use crate::{
    Engine, Now,
    cache::{Cache, CacheIdx},
    cell::Flags,
    operation::Kind,
};

impl Cache {
    /// May a refresh go on, or begin? What says no now comes back with an event.
    fn may_refresh(&self) -> bool {
        let busy = self.operation.is_some() || self.purged || self.first_round;
        !(busy || self.held() || self.stale || self.object.deleting)
    }
}

impl Engine {
    pub(crate) fn refresh_quietly(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if !cache.may_refresh() {
            return;
        }
        if cache.refresh_at.is_none() && cache.refresh_interval(&self.settings).is_some() {
            let since = cache.refreshed.or(cache.told.completed).unwrap_or(now.wall);
            let elapsed = u64::try_from(now.wall.0 - since.0).unwrap_or(0);
            cache.schedule_refresh(now.tick, &self.settings, Duration::from_secs(elapsed));
        }
        if let Some(stamp) = cache.refreshing {
            if cache.must_pull {
                // What was looked at and asked since then counts.
                self.begin(at, Kind::Refresh, stamp, now);
            }
        } else if cache.refresh_at.is_some_and(|at| at <= now.tick) {
            cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
            let stamp = self.next_stamp(now);
            if let Some(cache) = self.caches.get_mut(&at) {
                cache.refreshing = Some(stamp);
                cache.must_pull = false;
            }
            self.touch_cache(at);
        }
    }

    /// Ends a quiet refresh that no node is needed for any more. Call it when all nodes are planned.
    pub(crate) fn end_refresh(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if cache.refreshing.is_none() {
            return;
        }
        if cache.must_pull {
            if cache.may_refresh() {
                self.dirty_caches.insert(at);
            }
        } else if cache.counts.flagged(Flags::REFRESH_OPEN) == 0 {
            cache.refreshing = None;
            cache.refreshed = Some(now.wall);
        }
    }
}
