//! Status of one node in one cache, computed from its pairs.

use super::{
    context::{NodeContext, NodeView},
    node_plan::NodePlan,
};
use crate::{
    ids::{CacheIdx, ImageId, ScopeId, Stamp},
    model::{
        cache::Cache,
        desired::{DesiredImage, ImageSet},
        node_status::{Epochs, Flags, NodeStatus},
        observations::Oldest,
        operation::Kind,
        pending::RemovalState,
        scopes::Outage,
    },
    vocabulary::{FailureClass, PullState, Tick},
};

/// What the pairs of a node add up to.
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
    stalled: bool,
}

/// Computes statuses of one node.
pub struct Assessor<'a, 'm> {
    /// The node.
    pub view: &'a NodeView<'m>,
    /// What is in flight there, planned batches included.
    pub context: &'a NodeContext,
    /// What is planned.
    pub plan: &'a NodePlan,
}

impl Assessor<'_, '_> {
    /// Status of the node in a cache.
    pub fn status(&self, at: CacheIdx) -> NodeStatus {
        let (view, node) = (self.view, self.view.node);
        let cache = &view.model.caches[at];
        let set = cache.set(view.idx);
        let mut status = NodeStatus {
            set: cache.row(view.idx).set,
            epochs: Epochs {
                node: node.epoch,
                cache: cache.nodes.epoch,
            },
            ..NodeStatus::default()
        };
        self.assess_gate(cache, set, &mut status);
        let settled = self.removals_settled(cache, &mut status);
        let removes = cache.operation.as_ref();
        let removes = removes.is_some_and(|op| op.removes.contains(view.idx));
        status.done = !removes || settled;
        if let Some(unpin) = cache.unpin {
            let answers = node.callable() && !view.unreachable();
            let open = node.runtime.reported < Some(unpin.since)
                || !view.unneeded_pins(self.context).is_empty();
            status.flags.set(Flags::PINS_OPEN, answers && open);
        }
        let fit = node.eligibility().is_ok();
        if !set.is_empty() && (fit || cache.pulls_since(view.idx).is_some()) {
            status.flags.set(Flags::UNFIT, !fit);
            self.wake_later(view.model.unfit_until(node).filter(|_| !fit), &mut status);
            self.assess_images(cache, set, &mut status);
            let throttled = self.plan.throttled.contains(&at);
            status.flags.set(Flags::THROTTLED, throttled);
        }
        status
    }

    fn assess_images(&self, cache: &Cache, set: &ImageSet, status: &mut NodeStatus) {
        let (view, node) = (self.view, self.view.node);
        let unreachable = view.unreachable();
        if let (Some(since), false) = (node.contact.silent_since, unreachable) {
            status.wake_at(since.after(view.model.settings.puller_grace));
        }
        status.desired = count(set.desired.len());
        status.present = count(node.observed.count_present(&set.images));
        status.summed = Some(node.observed.revision());
        status.bytes = self.bytes(cache, set, status.summed);
        status.checked = self.oldest_check(set);
        let sums = self.sums(cache, set, status);
        status.done &= unreachable || !sums.open;
        let all_present = status.present >= status.desired;
        status.state = if unreachable {
            PullState::Unreachable
        } else if sums.missing_failed {
            PullState::Failed
        } else if sums.pulling && !all_present {
            PullState::Pulling
        } else if !all_present || status.checked.is_none() {
            PullState::Pending
        } else {
            PullState::Ready
        };
        let runtime = &node.runtime;
        let pinned = cache.desired.pinned;
        let unpinnable = pinned && runtime.can_pin == Some(false);
        let flags = &mut status.flags;
        flags.set(Flags::UNCHECKED, !unreachable && status.checked.is_none());
        flags.set(Flags::REFRESH_OPEN, !unreachable && sums.refresh_open);
        flags.set(Flags::STALLED, !unreachable && sums.stalled);
        flags.set(Flags::UNPINNABLE, unpinnable);
        let artifacts = !set.images.is_disjoint(node.observed.unmountable());
        flags.set(Flags::UNMOUNTABLE, artifacts);
        flags.set(Flags::DISK, pinned && runtime.disk_full);
    }

    /// Bytes that the images take: those of the last status, if no size has changed since.
    fn bytes(&self, cache: &Cache, set: &ImageSet, revision: Option<u32>) -> u64 {
        let last = cache.row(self.view.idx);
        if last.summed == revision {
            return last.bytes;
        }
        let images = set.desired.iter().map(|desired| desired.image);
        self.view.node.observed.size(images)
    }

    /// Stamp of the oldest observation of an image that can be observed.
    pub(super) fn oldest_check(&self, set: &ImageSet) -> Option<Stamp> {
        let images = &self.view.model.names.images;
        let valid = |image: &ImageId| set.invalid == 0 || images.get(*image).invalid.is_none();
        let desired = set.desired.iter().map(|desired| desired.image);
        match self.view.node.observed.oldest(desired.filter(valid)) {
            Oldest::At(oldest) => oldest,
            Oldest::NoImage => self.view.model.clock.last_after(self.plan.batches()),
        }
    }

    /// Adds up the pairs. They are not read one by one where nothing can be wrong with any.
    fn sums(&self, cache: &Cache, set: &ImageSet, status: &mut NodeStatus) -> Sums {
        let (view, node) = (self.view, self.view.node);
        let since = cache.pulls_since(view.idx);
        let refresh = cache.refresh.since();
        let mut sums = Sums::default();
        let calm = node.attempts.is_empty() && node.losses.is_empty() && !cache.desired.pinned;
        let asked = since.max(refresh);
        let answered = asked.is_none() || (!set.always && status.checked >= asked);
        if calm && answered && status.present == status.desired {
            return sums;
        }
        let outage = view.outage(cache);
        if calm && outage.is_none() && status.present < status.desired && set.invalid == 0 {
            // Absent images are on their way, or will be.
            sums.pulling = !self.context.pulling.is_disjoint(&set.images);
            sums.open = since.is_some();
            sums.refresh_open = refresh.is_some();
            return sums;
        }
        for desired in &set.desired {
            self.add(desired, since, refresh, &mut sums, status);
        }
        if let Some(outage) = outage {
            self.wake_for(outage, status);
        }
        if cache.desired.pinned {
            self.wake_later(node.runtime.pin_retry_at, status);
        }
        sums
    }

    /// Adds one pair.
    fn add(
        &self,
        desired: &DesiredImage,
        since: Option<Stamp>,
        refresh: Option<Stamp>,
        sums: &mut Sums,
        status: &mut NodeStatus,
    ) {
        let (view, node, image) = (self.view, self.view.node, desired.image);
        // What was known of a silent node still counts.
        let pair = view.pair(desired, false);
        status.failing += u32::from(pair.fault.is_some());
        sums.missing_failed |= pair.is_missing();
        sums.stalled |= pair.is_missing() && pair.fault.is_some_and(|fault| fault.stays(since));
        if view.model.names.images.get(image).invalid.is_some() {
            return;
        }
        sums.pulling |= self.context.pulling.contains(image);
        let attempt = node.attempts.get(&(image, desired.credentials));
        let closed = |since: Stamp| {
            attempt.is_some_and(|attempt| attempt.stamp >= since)
                || self.is_fresh_since(desired, since)
                || (pair.present && self.probe_failed(image, desired.credentials, since))
                || (!pair.present && view.blamed_outage(desired).is_some())
        };
        sums.open |= since.is_some_and(|since| !closed(since));
        sums.refresh_open |= refresh.is_some_and(|since| !closed(since));
        let lost = !pair.present && node.losses.contains(image);
        let repeats = node.losses.repeats(image, view.now) && !node.observed.is_pinned(image);
        let loses = lost || repeats;
        status.flags.set(Flags::LOSING, loses);
        let Some(attempt) = attempt else {
            if !pair.present {
                self.wake_later(node.losses.heals_at(image, view.now), status);
                let level = node
                    .losses
                    .level_reached(image, node.runtime.disk, view.now);
                self.wake_later(level.map(|(_, until)| until), status);
            }
            return;
        };
        self.wake_later(attempt.not_before, status);
        self.wake_later(node.waits_for_room(attempt, view.now), status);
        if pair.fault.is_some() {
            let is = |class| attempt.class == class;
            status
                .flags
                .set(Flags::DISK, is(FailureClass::DiskPressure));
            status
                .flags
                .set(Flags::THROTTLED, is(FailureClass::RateLimited));
        }
    }

    fn wake_for(&self, outage: &Outage, status: &mut NodeStatus) {
        self.wake_later(Some(outage.retry_at), status);
        let grace = self.view.model.settings.puller_grace;
        self.wake_later(Some(outage.blamed_from(grace)), status);
    }

    fn wake_later(&self, at: Option<Tick>, status: &mut NodeStatus) {
        if let Some(at) = at.filter(|at| *at > self.view.now) {
            status.wake_at(at);
        }
    }

    /// Was the image observed since this stamp, and is it as new as the registry had it then?
    fn is_fresh_since(&self, desired: &DesiredImage, since: Stamp) -> bool {
        let observation = self.view.node.observed.get(desired.image);
        observation.checked >= Some(since) && self.view.is_fresh(desired, Some(since))
    }

    /// Has a freshness probe failed since this stamp, and is no other planned?
    fn probe_failed(&self, image: ImageId, credentials: ScopeId, since: Stamp) -> bool {
        self.view.model.probe_failed(image, credentials, since)
            && !self.plan.probes(image, credentials)
    }

    /// Does the operation wait for no removal on this node? A deletion also waits for removals that failed,
    /// until its deadline.
    fn removals_settled(&self, cache: &Cache, status: &mut NodeStatus) -> bool {
        if cache.applied.pending.is_empty() {
            return true;
        }
        let (view, node) = (self.view, self.view.node);
        let grace = view.model.settings.puller_grace;
        let silent_at = node.contact.silent_since.map(|since| since.after(grace));
        let gone = !node.runs_puller() || silent_at.is_some_and(|at| at <= view.now);
        let deleting = cache.runs(Kind::Delete);
        let (mut settled, mut open) = (true, false);
        for (image, pending) in &cache.applied.pending {
            if self.context.desired.contains(*image) {
                continue;
            }
            match pending.state(view.idx, cache.operation_stamp(), view.now) {
                RemovalState::Gone => {}
                RemovalState::Kept(again) => status.wake_at(again),
                RemovalState::Failed(again) => {
                    status.wake_at(again);
                    settled &= !deleting;
                }
                RemovalState::Due => {
                    settled = false;
                    open = true;
                }
            }
        }
        let flag = open && node.callable() && !gone;
        status.flags.set(Flags::REMOVALS_OPEN, flag);
        if let Some(at) = silent_at.filter(|_| !settled && !gone) {
            status.wake_at(at);
        }
        settled || gone
    }
}

fn count(images: usize) -> u32 {
    u32::try_from(images).unwrap_or(u32::MAX)
}
