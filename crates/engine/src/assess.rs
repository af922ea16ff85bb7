//! How one node stands with one cache.

use kubefledged_api_types::names::failure;

use crate::{
    Engine, Tick,
    cache::{Cache, CacheIdx},
    cell::{Cell, CellState, Flags},
    node::{NodeIdx, Stamp},
    operation::Kind,
    plan::Scene,
    removal::Debt,
    wants::Pattern,
};

/// Sums over the wanted images of a node.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
struct Sums {
    missing_failed: bool,
    pulling: bool,
    open: bool,
    refresh_open: bool,
}

impl Engine {
    pub(crate) fn assess(&self, at: CacheIdx, idx: NodeIdx, now: Tick, scene: &mut Scene) -> Cell {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        let pattern = cache.pattern(idx);
        let mut cell = Cell {
            pattern: cache.cells[idx].pattern,
            epochs: (node.epoch, cache.epoch),
            ..Cell::default()
        };
        let settled = self.settle_debts(cache, idx, now, scene, &mut cell);
        let removes = cache
            .operation
            .as_ref()
            .is_some_and(|op| op.removes.contains(idx));
        cell.done = !removes || settled;
        let since = cache.unpin.map_or(0, |unpin| unpin.since);
        let answers = node.callable() && !node.unreachable(now, self.settings.puller_grace);
        let pins = node.upkeep.reported < since
            || !self.unwanted_pins(idx, Tick(u64::MAX), scene).is_empty();
        cell.flags
            .set(Flags::PINS_OPEN, since > 0 && answers && pins);
        if !pattern.wants.is_empty() && node.eligibility().is_ok() {
            self.assess_wants(cache, pattern, idx, now, scene, &mut cell);
            cell.flags
                .set(Flags::THROTTLED, scene.throttled.contains(&at));
        }
        if cell.wake != Tick(0) {
            scene.wake_at(cell.wake);
        }
        cell
    }

    fn assess_wants(
        &self,
        cache: &Cache,
        pattern: &Pattern,
        idx: NodeIdx,
        now: Tick,
        scene: &Scene,
        cell: &mut Cell,
    ) {
        let node = &self.nodes[idx];
        let grace = self.settings.puller_grace;
        let unreachable = node.unreachable(now, grace);
        if let (Some(since), false) = (node.silent_since, unreachable) {
            wake(cell, since.after(grace));
        }
        cell.want = u32::try_from(pattern.wants.len()).unwrap_or(u32::MAX);
        cell.have = u32::try_from(node.looks.holds_of(&pattern.images)).unwrap_or(u32::MAX);
        let valid =
            |image: &&_| pattern.invalid == 0 || self.names.images.get(**image).invalid.is_none();
        let oldest = node
            .looks
            .oldest(pattern.wants.iter().map(|want| &want.image).filter(valid));
        cell.looked = if oldest == Stamp::MAX {
            self.stamp
        } else {
            oldest
        };
        let sums = self.sum(cache, pattern, idx, now, scene, cell);
        cell.done &= unreachable || !sums.open;
        cell.state = if unreachable {
            CellState::Unreachable
        } else if sums.missing_failed {
            CellState::Failed
        } else if sums.pulling && cell.have < cell.want {
            CellState::Pulling
        } else if cell.have < cell.want || cell.looked == 0 {
            CellState::Pending
        } else {
            CellState::Ready
        };
        cell.flags
            .set(Flags::UNSEEN, !unreachable && cell.looked == 0);
        cell.flags
            .set(Flags::REFRESH_OPEN, !unreachable && sums.refresh_open);
        cell.flags.set(
            Flags::UNPINNABLE,
            cache.pinned && node.upkeep.can_pin == Some(false),
        );
        cell.flags
            .set(Flags::DISK, cache.pinned && node.upkeep.disk_full);
    }

    /// Looks at every wanted image, unless nothing can be found.
    fn sum(
        &self,
        cache: &Cache,
        pattern: &Pattern,
        idx: NodeIdx,
        now: Tick,
        scene: &Scene,
        cell: &mut Cell,
    ) -> Sums {
        let node = &self.nodes[idx];
        let since = cache.pulls_since(idx);
        let mut sums = Sums::default();
        let quiet = node.attempts.is_empty() && cell.have == cell.want && !cache.pinned;
        let asked = since.max(cache.refreshing.unwrap_or(0));
        let answered = asked == 0 || (!pattern.always && cell.looked >= asked);
        if quiet && answered && !node.loses() {
            return sums;
        }
        let trouble = self.names.scopes.trouble(cache.scope);
        // What is missing is on its way, or will be: nothing has gone wrong here.
        let hopeful = node.attempts.is_empty() && !node.loses() && trouble.is_none();
        if hopeful && cell.have < cell.want && pattern.invalid == 0 && !cache.pinned {
            sums.pulling = !scene.pulling.is_disjoint(&pattern.images);
            sums.open = since > 0;
            sums.refresh_open = cache.refreshing.is_some();
            return sums;
        }
        let blamed = trouble.filter(|t| t.since.after(self.settings.puller_grace) <= now);
        for want in &pattern.wants {
            if self.names.images.get(want.image).invalid.is_some() {
                cell.failing += 1;
                sums.missing_failed = true;
                continue;
            }
            let holds = node.looks.holds(want.image);
            let attempt = node.attempts.get(&(want.image, cache.scope));
            let failing = self.failure(cache, idx, want);
            let failed = failing.is_some() || (!holds && blamed.is_some());
            cell.failing += u32::from(failed);
            sums.missing_failed |= failed && !holds;
            sums.pulling |= scene.pulling.contains(want.image.index());
            let closed = |since: Stamp| {
                attempt.is_some_and(|attempt| attempt.stamp >= since)
                    || self.fresh_since(idx, want, since)
                    || (holds && self.asked_in_vain(want.image, cache.scope, since))
                    || (!holds && blamed.is_some())
            };
            sums.open |= since > 0 && !closed(since);
            sums.refresh_open |= cache.refreshing.is_some_and(|since| !closed(since));
            cell.flags.set(
                Flags::LOSING,
                node.keeps_losing(want.image, now) && !node.looks.get(want.image).pinned,
            );
            let Some(attempt) = attempt else {
                wake_if(cell, node.heals_at(want.image, now).filter(|_| !holds));
                continue;
            };
            wake_if(cell, attempt.not_before.filter(|at| *at > now));
            let reason = failing.map(|attempt| &*attempt.reason);
            cell.flags
                .set(Flags::DISK, reason == Some(failure::DISK_PRESSURE));
            cell.flags
                .set(Flags::THROTTLED, reason == Some(failure::RATE_LIMITED));
        }
        if let Some(trouble) = trouble {
            wake_if(cell, Some(trouble.not_before).filter(|at| *at > now));
            let blame_at = trouble.since.after(self.settings.puller_grace);
            wake_if(cell, Some(blame_at).filter(|at| *at > now));
        }
        if cache.pinned {
            wake_if(
                cell,
                Some(node.upkeep.pin_not_before).filter(|at| *at > now),
            );
        }
        sums
    }

    /// As new as this, and looked at since.
    fn fresh_since(&self, idx: NodeIdx, want: &crate::wants::Want, since: Stamp) -> bool {
        let look = self.nodes[idx].looks.get(want.image);
        look.looked >= since && self.fresh(idx, want, since)
    }

    /// Does this node owe nothing that an operation of the cache waits for? A deletion also waits
    /// for what failed, until its deadline.
    fn settle_debts(
        &self,
        cache: &Cache,
        idx: NodeIdx,
        now: Tick,
        scene: &Scene,
        cell: &mut Cell,
    ) -> bool {
        if cache.owed.is_empty() {
            return true;
        }
        let node = &self.nodes[idx];
        let patient = node
            .silent_since
            .map(|since| since.after(self.settings.puller_grace));
        let gone = !node.runs_puller() || patient.is_some_and(|at| at <= now);
        let deleting = cache.runs(Kind::Delete);
        let stamp = cache.operation.as_ref().map_or(0, |op| op.stamp);
        let (mut settled, mut owes) = (true, false);
        for (image, owed) in &cache.owed {
            if scene.wanted.contains(image.index()) {
                continue;
            }
            match owed.debt(idx, stamp, now) {
                Debt::Gone => {}
                Debt::Kept(again) => wake(cell, again),
                Debt::Failed(again) => {
                    wake(cell, again);
                    settled &= !deleting;
                }
                Debt::Due => {
                    settled = false;
                    owes = true;
                }
            }
        }
        cell.flags
            .set(Flags::OWES, owes && node.callable() && !gone);
        if let Some(at) = patient.filter(|_| !settled && !gone) {
            wake(cell, at);
        }
        settled || gone
    }
}

fn wake(cell: &mut Cell, at: Tick) {
    if cell.wake == Tick(0) || at < cell.wake {
        cell.wake = at;
    }
}

fn wake_if(cell: &mut Cell, at: Option<Tick>) {
    if let Some(at) = at {
        wake(cell, at);
    }
}
