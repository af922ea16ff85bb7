//! Calls under way, and what became of them.

use std::{sync::Arc, time::Duration};

use kubefledged_api_types::names::failure;

use crate::{
    Batch, BatchEnd, BatchId, CheckReport, Command, Engine, ImageOutcome, ImageResult, Now,
    PinResult, Seen, Tick, Work,
    alarms::Alarm,
    backoff,
    cache::CacheIdx,
    images::ImageId,
    node::{Attempt, NodeIdx, Stamp},
    registry::RegistryId,
    removal::Answered,
    scope::ScopeId,
};

/// A pull batch that says nothing for so long is long: the puller counts likewise.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// A batch that says nothing for so long has lost its effect; a backstop, effects end earlier.
const CHECK_DEADLINE: Duration = Duration::from_secs(60);
const WORK_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Before a pin that failed is tried again.
const PIN_RETRY: Duration = Duration::from_secs(300);

/// A call under way.
#[derive(Debug)]
pub struct Live {
    /// Where.
    pub node: NodeIdx,
    /// Outcomes are as new as its begin.
    pub stamp: Stamp,
    /// What it does.
    pub work: LiveWork,
}

/// What a call does.
#[derive(Debug)]
pub enum LiveWork {
    /// Pulls.
    Pull(LivePull),
    /// Removes names, and takes pins off.
    Remove {
        /// The names.
        images: Vec<ImageId>,
        /// The ids.
        unpin: Vec<Arc<str>>,
    },
    /// Looks.
    Check {
        /// At these.
        images: Vec<ImageId>,
    },
}

/// A pull batch.
#[derive(Debug)]
pub struct LivePull {
    /// For which cache.
    pub cache: CacheIdx,
    /// With whose credentials.
    pub scope: ScopeId,
    /// From where.
    pub registry: RegistryId,
    /// What.
    pub images: Vec<LiveImage>,
    /// Pulls that the puller runs at a time, and those that count in the registry's budget.
    pub parallel: u32,
    /// See `parallel`.
    pub cost: u32,
    /// It has left the budget.
    pub long: bool,
}

/// One image of a pull batch.
#[derive(Debug)]
pub struct LiveImage {
    /// Which.
    pub id: ImageId,
    /// As written.
    pub reference: Arc<str>,
    /// The registry is asked.
    pub always: bool,
    /// Nothing was heard of it yet.
    pub open: bool,
    /// Its end was asked for.
    pub cancelled: bool,
}

impl LiveWork {
    /// A batch that is silent for so long counts as lost.
    pub fn deadline(&self) -> Duration {
        match self {
            Self::Check { .. } => CHECK_DEADLINE,
            Self::Pull(_) | Self::Remove { .. } => WORK_DEADLINE,
        }
    }
}

impl Live {
    /// All images that it is about.
    pub fn images(&self) -> Vec<ImageId> {
        match &self.work {
            LiveWork::Pull(pull) => pull.images.iter().map(|image| image.id).collect(),
            LiveWork::Remove { images, .. } | LiveWork::Check { images } => images.clone(),
        }
    }
}

impl LivePull {
    /// What it counts in the budget.
    pub fn cost_of(open: usize, parallel: u32) -> u32 {
        u32::try_from(open).unwrap_or(u32::MAX).min(parallel)
    }

    /// Images without an outcome.
    pub fn open(&self) -> usize {
        self.images.iter().filter(|image| image.open).count()
    }
}

impl Engine {
    /// Starts a call to a node.
    pub(crate) fn start(
        &mut self,
        idx: NodeIdx,
        work: Work,
        live: LiveWork,
        now: Now,
    ) -> Option<BatchId> {
        let node = &self.nodes[idx];
        let (name, puller) = (node.name.clone()?, node.puller.clone()?);
        let stamp = self.next_stamp(now);
        self.seq += 1;
        self.last_batch += 1;
        let id = BatchId(self.last_batch);
        self.nodes[idx].live.insert(id);
        let lost = now.tick.after(live.deadline());
        self.alarms.set(Alarm::Lost(id), Some(lost));
        let mut cache = None;
        if let LiveWork::Pull(pull) = &live {
            cache = self
                .caches
                .get(&pull.cache)
                .map(|cache| cache.object.key.clone());
            self.alarms.set(Alarm::Long(id), Some(now.tick.after(LONG)));
            self.names.registries.get_mut(pull.registry).take(pull.cost);
            if let Some(cache) = self.caches.get_mut(&pull.cache) {
                *cache.pulling.entry(idx).or_default() += 1;
            }
        }
        self.live.insert(
            id,
            Live {
                node: idx,
                stamp,
                work: live,
            },
        );
        self.outbox.push(Command::StartBatch(Box::new(Batch {
            id,
            term: self.term.unwrap_or_default(),
            seq: self.seq,
            node: name,
            puller,
            cache,
            work,
        })));
        Some(id)
    }

    /// Nothing more comes from a call: its places are free again.
    pub(crate) fn drop_live(&mut self, id: BatchId) -> Option<Live> {
        let live = self.live.remove(&id)?;
        self.alarms.set(Alarm::Lost(id), None);
        self.alarms.set(Alarm::Long(id), None);
        self.nodes[live.node].live.remove(&id);
        self.touch_node(live.node);
        if let LiveWork::Pull(pull) = &live.work {
            self.names
                .registries
                .get_mut(pull.registry)
                .give_back(pull.cost, pull.long);
            self.alarms
                .set(Alarm::Registry(pull.registry), Some(Tick(0)));
            if let Some(cache) = self.caches.get_mut(&pull.cache) {
                let batches = cache.pulling.entry(live.node).or_default();
                *batches = batches.saturating_sub(1);
                if *batches == 0 {
                    cache.pulling.remove(&live.node);
                }
            }
            self.dirty_caches.insert(pull.cache);
            for image in pull.images.iter().filter(|image| image.open) {
                self.scout_left(image.id, pull.scope, live.node);
            }
        }
        Some(live)
    }

    /// Nodes that wait for a registry, as far as it has room.
    pub(crate) fn serve_waiting(&mut self, id: RegistryId, now: Tick) {
        let ceiling = self.settings.max_registry_pulls;
        let free = self.names.registries.get_mut(id).free(ceiling, now);
        for _ in 0..free {
            let Some(node) = self.names.registries.get_mut(id).next_waiting() else {
                break;
            };
            self.touch_node(node);
        }
        let next = self.names.registries.get(id).alarm(ceiling);
        self.alarms
            .set(Alarm::Registry(id), next.filter(|at| *at > now));
    }

    /// Nodes that wait for `spec.maxConcurrentNodes`, as far as there is room.
    pub(crate) fn serve_waiting_nodes(&mut self, at: CacheIdx) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        let free = cache.node_limit().saturating_sub(cache.pulling.len());
        let mut served = Vec::new();
        while served.len() < free
            && let Some(node) = cache.waiting.pop_first()
        {
            served.push(node);
        }
        for node in served {
            self.touch_node(node);
        }
    }

    pub(crate) fn batch_is_long(&mut self, id: BatchId, now: Tick) {
        let Some(Live {
            work: LiveWork::Pull(pull),
            node,
            ..
        }) = self.live.get_mut(&id)
        else {
            return;
        };
        pull.long = true;
        let (registry, node) = (pull.registry, *node);
        self.names.registries.get_mut(registry).leave(pull.cost);
        self.serve_waiting(registry, now);
        self.touch_node(node);
    }

    pub(crate) fn outcomes(&mut self, now: Now, id: BatchId, outcomes: Vec<ImageOutcome>) {
        let Some(live) = self.live.remove(&id) else {
            return;
        };
        self.touch_node(live.node);
        let mut live = live;
        match &mut live.work {
            LiveWork::Pull(pull) => {
                for outcome in outcomes {
                    self.pulled(live.node, live.stamp, pull, outcome, now);
                }
                self.recount(id, pull, now.tick);
            }
            LiveWork::Check { images } => {
                for outcome in outcomes {
                    if let Some(image) = images.get(outcome.index).copied() {
                        self.looked(live.node, live.stamp, image, outcome, now.tick);
                    }
                }
            }
            LiveWork::Remove { images, unpin } => {
                for ImageOutcome { index, result, .. } in outcomes {
                    match images.get(index).copied() {
                        Some(image) => {
                            self.removed(live.node, live.stamp, image, &result, now.tick);
                        }
                        None => {
                            if let Some(id) = unpin.get(index - images.len()) {
                                self.unpinned(live.node, id, &result, now.tick);
                            }
                        }
                    }
                }
            }
        }
        self.live.insert(id, live);
    }

    /// A batch has fewer open images, and was heard of.
    fn recount(&mut self, id: BatchId, pull: &mut LivePull, now: Tick) {
        let registry = self.names.registries.get_mut(pull.registry);
        registry.give_back(pull.cost, pull.long);
        pull.cost = LivePull::cost_of(pull.open(), pull.parallel);
        pull.long = false;
        registry.take(pull.cost);
        self.alarms
            .set(Alarm::Long(id), (pull.cost > 0).then(|| now.after(LONG)));
        self.alarms
            .set(Alarm::Registry(pull.registry), Some(Tick(0)));
        self.dirty_caches.insert(pull.cache);
    }

    /// One image of a pull batch has an outcome.
    fn pulled(
        &mut self,
        idx: NodeIdx,
        stamp: Stamp,
        pull: &mut LivePull,
        outcome: ImageOutcome,
        now: Now,
    ) {
        let Some(image) = pull
            .images
            .get_mut(outcome.index)
            .filter(|image| image.open)
        else {
            return;
        };
        image.open = false;
        let (id, scope) = (image.id, pull.scope);
        self.names.scopes.answered(scope);
        match outcome.result {
            // Nobody looks after what nobody wants: it may go unnoticed.
            ImageResult::Present | ImageResult::Pulled
                if !self.nodes[idx].wanted.contains(id.index()) =>
            {
                self.scout_left(id, scope, idx);
            }
            ImageResult::Present | ImageResult::Pulled => {
                let asked = image.always || outcome.result == ImageResult::Pulled;
                self.nodes[idx]
                    .attempts
                    .retain(|(failed, _), _| *failed != id);
                self.nodes[idx].looks.saw(id, true, stamp);
                let digest = outcome
                    .seen
                    .as_ref()
                    .map(|seen| self.names.images.digest(id, seen));
                let digest = digest.unwrap_or_default();
                let look = self.nodes[idx].looks.get_mut(id);
                let moved = look.digest.known() && !look.digest.same(digest);
                look.digest = digest;
                look.pinned = outcome.pin == PinResult::Pinned;
                if asked {
                    look.fetched = look.fetched.max(stamp);
                    let news = &mut self.names.images.get_mut(id).news;
                    if news.is_none_or(|(last, _)| last <= stamp) {
                        *news = Some((stamp, digest));
                    }
                }
                if let Some(cache) = self.caches.get_mut(&pull.cache).filter(|_| moved) {
                    cache.must_pull |= cache.refreshing.is_some();
                }
                self.pin_answered(idx, id, &outcome.pin, outcome.seen, now.tick);
                self.scout_left(id, scope, idx);
            }
            ImageResult::Failed { reason, message } => {
                if reason == failure::RATE_LIMITED {
                    self.names
                        .registries
                        .get_mut(pull.registry)
                        .rate_limited(now.tick);
                }
                self.scout_failed(id, scope, idx, stamp, &reason);
                let spread = self.nodes[idx].spread(self.settings.seed, image.reference.as_bytes());
                let node = &mut self.nodes[idx];
                let before = node.attempts.get(&(id, scope));
                let tries = before.map_or(0, |attempt| attempt.tries) + 1;
                let since = before.map_or(stamp, |attempt| attempt.since);
                let wait = backoff::after_failure(&reason, tries, spread);
                let wait = wait.map(|wait| wait.max(outcome.retry_after.unwrap_or_default()));
                let attempt = Attempt {
                    stamp,
                    since,
                    tries,
                    not_before: wait.map(|wait| now.tick.after(wait)),
                    reason: reason.into(),
                    message: message.into(),
                };
                node.attempts.insert((id, scope), attempt);
                // It is as it was; a failed pull is a look, too, or it would be looked at again.
                node.looks.get_mut(id).looked = stamp;
            }
            // Nobody wanted it, or a later removal won: planned again if somebody wants it.
            _ => self.scout_left(id, scope, idx),
        }
    }

    fn pin_answered(
        &mut self,
        idx: NodeIdx,
        id: ImageId,
        pin: &PinResult,
        seen: Option<Seen>,
        now: Tick,
    ) {
        let upkeep = &mut self.nodes[idx].upkeep;
        match pin {
            PinResult::NotAsked => {}
            PinResult::Pinned => {
                upkeep.can_pin = Some(true);
                if let Some(seen) = seen {
                    let pin = bare(&seen.image_id);
                    upkeep.ids.insert(id, pin.into());
                    // Known before the next report: it may have to go until then.
                    if !upkeep.pins.iter().any(|known| bare(known) == pin) {
                        upkeep.pins.push(seen.image_id.into());
                    }
                }
            }
            PinResult::Unsupported => upkeep.can_pin = Some(false),
            PinResult::DiskPressure => upkeep.disk_full = true,
            PinResult::Failed(_) => upkeep.pin_not_before = now.after(PIN_RETRY),
        }
    }

    /// A check has seen one image.
    fn looked(
        &mut self,
        idx: NodeIdx,
        stamp: Stamp,
        id: ImageId,
        outcome: ImageOutcome,
        now: Tick,
    ) {
        let before = self.nodes[idx].looks.holds(id);
        let wanted = self.nodes[idx].wanted.contains(id.index());
        let pinned = self.pin_wanted(idx, id);
        let present = match outcome.result {
            ImageResult::Present => true,
            ImageResult::Absent | ImageResult::Pulling => false,
            // A failed look is a look too, or it would be repeated at once.
            _ => before,
        };
        let digest = outcome
            .seen
            .as_ref()
            .map(|seen| self.names.images.digest(id, seen));
        let node = &mut self.nodes[idx];
        if !wanted {
            return;
        }
        if before && outcome.result == ImageResult::Absent {
            node.lost(id, now, self.settings.seed);
            self.lost += 1;
        }
        if present && !before {
            node.attempts.retain(|(failed, _), _| *failed != id);
        }
        node.looks.saw(id, present, stamp);
        if let (Some(digest), Some(seen)) = (digest, outcome.seen) {
            let look = node.looks.get_mut(id);
            (look.digest, look.pinned) = (digest, seen.pinned);
            if pinned {
                node.upkeep.ids.insert(id, bare(&seen.image_id).into());
            }
        }
    }

    pub(crate) fn checked(&mut self, now: Tick, id: BatchId, report: CheckReport) {
        let Some(live) = self.live.get(&id) else {
            return;
        };
        let (idx, stamp) = (live.node, live.stamp);
        if self.term.is_some_and(|term| report.highest_term > term) {
            self.outbox.push(Command::RaiseTerm {
                seen_term: report.highest_term,
            });
        }
        let seed = self.settings.seed;
        self.nodes[idx].reported(report, stamp, now, seed);
        self.touch_node(idx);
    }

    fn removed(
        &mut self,
        idx: NodeIdx,
        stamp: Stamp,
        id: ImageId,
        result: &ImageResult,
        now: Tick,
    ) {
        if matches!(result, ImageResult::Removed | ImageResult::Absent)
            && self.nodes[idx].wanted.contains(id.index())
        {
            // Wanted again meanwhile: it is pulled anew.
            self.nodes[idx].looks.saw(id, false, stamp);
        }
        let spread = self.nodes[idx].spread(self.settings.seed, &id.0.to_le_bytes());
        let at = Answered {
            stamp,
            now,
            look_again: self.settings.check_interval,
            spread,
        };
        for (key, cache) in &mut self.caches {
            if let Some(owed) = cache.owed.get_mut(&id) {
                owed.answered(idx, result.clone(), at);
                self.dirty_caches.insert(*key);
            }
        }
    }

    fn unpinned(&mut self, idx: NodeIdx, id: &str, result: &ImageResult, now: Tick) {
        let upkeep = &mut self.nodes[idx].upkeep;
        if matches!(result, ImageResult::Removed | ImageResult::Absent) {
            upkeep.pins.retain(|pin| **pin != *id);
        } else {
            upkeep.pin_not_before = now.after(PIN_RETRY);
        }
    }

    pub(crate) fn batch_ended(&mut self, now: Now, id: BatchId, end: BatchEnd) {
        let Some(live) = self.drop_live(id) else {
            return;
        };
        let seed = self.settings.seed;
        let node = &mut self.nodes[live.node];
        // A puller that ends a pull without a word about some image would be asked again at once.
        let mute = matches!(&live.work, LiveWork::Pull(pull)
            if pull.images.iter().any(|image| image.open && !image.cancelled));
        match end {
            BatchEnd::Done if mute => node.call_failed(now.tick, seed),
            BatchEnd::Done => {
                node.call_answered();
                let known = node.upkeep.report_not_before <= now.tick;
                if known && matches!(live.work, LiveWork::Check { .. }) {
                    // Also where the report itself did not come.
                    node.upkeep.reported = node.upkeep.reported.max(live.stamp);
                }
            }
            BatchEnd::Lost | BatchEnd::Unreachable => node.call_failed(now.tick, seed),
            BatchEnd::Refused { seen_term } => {
                node.not_before = now.tick.after(Duration::from_secs(1));
                self.outbox.push(Command::RaiseTerm { seen_term });
            }
            BatchEnd::CredentialsFailed(message) => {
                if let LiveWork::Pull(pull) = live.work {
                    self.names
                        .scopes
                        .failed(pull.scope, message, now.tick, seed);
                }
            }
        }
    }
}

/// An id without the name of its hash: runtimes write it with and without.
pub(crate) fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}
