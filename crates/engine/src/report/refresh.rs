//! The automatic refresh. It is quiet: one node asks the registry for images with the policy Always, and all
//! others are checked. It becomes an operation only if something must be pulled.

use std::time::Duration;

use crate::{
    commit::Engine,
    ids::CacheIdx,
    model::{
        cache::{Cache, QuietRefresh},
        node_status::Flags,
        operation::Kind,
    },
    vocabulary::Now,
};

impl Cache {
    /// May a refresh begin or go on? If not, an event will change that.
    fn may_refresh(&self) -> bool {
        let busy = self.operation.is_some() || self.history.purged || self.nodes.first_round;
        !(busy || self.held() || self.writer.awaits_object() || self.object.deleting)
    }
}

impl Engine {
    /// Schedules and begins automatic refreshes.
    pub(crate) fn refresh_quietly(&mut self, at: CacheIdx, now: Now) {
        let model = &mut self.model;
        let Some(cache) = model.caches.get_mut(at) else {
            return;
        };
        if !cache.may_refresh() {
            return;
        }
        if cache.refresh.next.is_none() && cache.refresh_interval(&model.settings).is_some() {
            let since = cache.refresh.last.or(cache.last.completed);
            let since = since.unwrap_or(now.wall);
            let elapsed = u64::try_from(now.wall.0 - since.0).unwrap_or(0);
            cache.schedule_refresh(now.tick, &model.settings, Duration::from_secs(elapsed));
        }
        if let Some(quiet) = cache.refresh.quiet {
            if quiet.must_pull {
                // What was observed and asked since then counts.
                self.begin(at, Kind::Refresh, quiet.since, now);
            }
        } else if cache.refresh.next.is_some_and(|next| next <= now.tick)
            || (cache.refresh.owed && cache.nodes.counts.nodes.unreachable == 0)
        {
            cache.refresh.owed = false;
            cache.schedule_refresh(now.tick, &model.settings, Duration::ZERO);
            let since = model.clock.next(now.wall, model.settings.check_interval);
            cache.refresh.quiet = Some(QuietRefresh {
                since,
                must_pull: false,
            });
            self.touch_cache(at);
        }
    }

    /// Ends a quiet refresh that waits for no node any more. Call it when all nodes are planned.
    pub(crate) fn end_refresh(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.model.caches.get_mut(at) else {
            return;
        };
        let Some(quiet) = cache.refresh.quiet else {
            return;
        };
        if quiet.must_pull {
            if cache.may_refresh() {
                self.agenda.caches.insert(at);
            }
        } else if cache.nodes.counts.flagged(Flags::REFRESH_OPEN) == 0 {
            cache.refresh.quiet = None;
            cache.refresh.last = Some(now.wall);
        }
    }
}
