//! Outcomes of batches become observations, failed attempts and confirmed removals.

use std::time::Duration;

use kubefledged_api_types::names::failure;

use super::{Engine, batches::LONG, timers::Timer};
use crate::{
    ids::{IdSet, ImageId, Index, NodeIdx, ScopeId, Stamp},
    model::{
        backoff,
        images::RegistryAnswer,
        in_flight::{Flight, Pull, Task},
        node::{Attempt, NoRoom},
        peers::Origin,
        pending::AnswerContext,
    },
    plan::pins::bare_id,
    vocabulary::{
        BatchId, CheckReport, FailureClass, ImageOutcome, ImageResult, Now, ObservedImage,
        PinResult, Tick,
    },
};

/// Longest wait for room on a disk whose fill level does not fall.
const ROOM_WAIT: Duration = Duration::from_secs(3600);
/// Pause before a pin that failed is tried again.
const PIN_RETRY: Duration = Duration::from_secs(300);

/// An answer of a registry brings at least so many bytes: requests are work too, and some runtimes tell no size.
const LEAST_BYTES: u64 = 1 << 20;

/// One image of a batch that has an outcome.
struct Answered {
    node: NodeIdx,
    image: ImageId,
    stamp: Stamp,
    now: Tick,
}

/// A pull that failed.
struct FailedPull<'a> {
    class: FailureClass,
    reason: String,
    message: String,
    reference: &'a str,
    credentials: ScopeId,
}

impl Engine {
    pub(crate) fn outcomes(&mut self, now: Now, id: BatchId, outcomes: Vec<ImageOutcome>) {
        let Some(mut flight) = self.model.in_flight.take(id) else {
            return;
        };
        self.touch_node(flight.node);
        let Flight { node, stamp, task } = &mut flight;
        let answered = |image| Answered {
            node: *node,
            image,
            stamp: *stamp,
            now: now.tick,
        };
        match task {
            Task::Pull(pull) => {
                for outcome in outcomes {
                    self.pull_answered(*node, *stamp, pull, outcome, now.tick);
                }
                self.recount(id, pull, now.tick);
            }
            Task::Check { images } => {
                let pinned = self.pinned(*node);
                for outcome in outcomes {
                    if let Some(image) = images.get(outcome.index) {
                        self.check_answered(&answered(*image), outcome, &pinned);
                    }
                }
            }
            Task::Remove { images, unpin } => {
                for ImageOutcome { index, result, .. } in outcomes {
                    if let Some(image) = images.get(index) {
                        self.removal_answered(&answered(*image), &result);
                    } else if let Some(id) = unpin.get(index - images.len()) {
                        self.unpin_answered(*node, id, &result, now.tick);
                    }
                }
            }
        }
        self.model.in_flight.put_back(id, flight);
    }

    /// A pull batch has fewer open images, and is not long any more.
    fn recount(&mut self, id: BatchId, pull: &mut Pull, now: Tick) {
        let registry = self.model.names.registries.get_mut(pull.registry);
        registry.give_back(pull.cost, pull.long);
        pull.cost = pull.cost_now();
        pull.long = false;
        registry.take(pull.cost, now);
        let long = (pull.cost > 0).then(|| now.after(LONG));
        self.agenda.timers.set(Timer::Long(id), long);
        self.serve_soon(pull.registry);
    }

    /// One image of a pull batch has an outcome.
    fn pull_answered(
        &mut self,
        node: NodeIdx,
        stamp: Stamp,
        pull: &mut Pull,
        outcome: ImageOutcome,
        now: Tick,
    ) {
        let pulled = pull.images.get_mut(outcome.index);
        let Some(pulled) = pulled.filter(|pulled| pulled.open) else {
            return;
        };
        pulled.open = false;
        let (image, cache) = (pulled.id, pulled.cache);
        self.end_pull(cache, node);
        self.model.nodes[node].running.remove(image);
        let (reference, asked) = (pulled.reference.clone(), pulled.asks_registry);
        self.model.names.scopes.answered(pull.credentials);
        let supply = pulled.supply.clone();
        self.supply_answered(node, image, &supply, &outcome.result, now);
        self.model.peers.moved.add(outcome.moved);
        let answered = Answered {
            node,
            image,
            stamp,
            now,
        };
        match outcome.result {
            // Nobody checks an image that no cache desires: nobody would notice if it vanished.
            ImageResult::Present | ImageResult::Pulled
                if !self.model.nodes[node].desired.contains(image) =>
            {
                self.end_probe(image, pull.credentials, node);
            }
            ImageResult::Present | ImageResult::Pulled => {
                let asked = asked || outcome.result == ImageResult::Pulled;
                if asked {
                    self.registry_answered(pull, &outcome, now);
                }
                let moved = self.image_is_present(&answered, &outcome, asked);
                if let Some(cache) = self.model.caches.get_mut(cache).filter(|_| moved) {
                    cache.refresh.found();
                }
                self.pin_answered(&answered, &outcome.pin, outcome.observed);
                self.end_probe(image, pull.credentials, node);
            }
            ImageResult::Failed { reason, message } => {
                let class = FailureClass::of(&reason);
                let registry = self.model.names.registries.get_mut(pull.registry);
                let says = registry.says(&message);
                if class == FailureClass::RateLimited && says {
                    registry.rate_limited(node, pull.began, now);
                } else if reason == failure::REGISTRY_UNAVAILABLE && says {
                    registry.failed(node, now);
                }
                self.fail_probe(image, pull.credentials, node, stamp, class);
                let failed = FailedPull {
                    class,
                    reason,
                    message,
                    reference: &reference,
                    credentials: pull.credentials,
                };
                self.note_failure(&answered, &failed);
            }
            // No cache desired it, or a later removal won. It is planned again if a cache desires it.
            _ => self.end_probe(image, pull.credentials, node),
        }
    }

    /// The registry answered a pull: its budget may grow.
    fn registry_answered(&mut self, pull: &Pull, outcome: &ImageOutcome, now: Tick) {
        if pull.origin == Origin::Peers {
            return;
        }
        let size = outcome.observed.as_ref().map_or(0, |image| image.size);
        let brought = if outcome.result == ImageResult::Pulled {
            size
        } else {
            0
        };
        let registry = self.model.names.registries.get_mut(pull.registry);
        registry.answered(brought.max(LEAST_BYTES), pull.began, now);
    }

    /// Remembers a failed attempt.
    fn note_failure(&mut self, answered: &Answered, failed: &FailedPull<'_>) {
        let (image, stamp) = (answered.image, answered.stamp);
        let seed = self.model.settings.seed;
        let node = &mut self.model.nodes[answered.node];
        let spread = node.spread(seed, failed.reference.as_bytes());
        let key = (image, failed.credentials);
        let before = node.attempts.get(&key);
        let tries = before.map_or(0, |attempt| attempt.tries) + 1;
        let wait = backoff::after_failure(failed.class, tries, spread);
        let attempt = Attempt {
            stamp,
            since: before.map_or(stamp, |attempt| attempt.since),
            tries,
            not_before: wait.map(|wait| answered.now.after(wait)),
            class: failed.class,
            no_room: (failed.class == FailureClass::DiskPressure).then(|| NoRoom {
                level: None,
                until: answered.now.after(ROOM_WAIT),
            }),
            reason: self.model.texts.share(&failed.reason),
            message: self.model.texts.share_message(&failed.message),
        };
        node.attempts.insert(key, attempt);
        // A failed pull is an observation too; otherwise the image would be checked again.
        node.observed.look(image, stamp);
    }

    /// A pull found or brought an image. True if it is another image than before.
    fn image_is_present(
        &mut self,
        answered: &Answered,
        outcome: &ImageOutcome,
        asked_registry: bool,
    ) -> bool {
        let (image, stamp) = (answered.image, answered.stamp);
        let observed = outcome.observed.as_ref();
        let digest = observed.and_then(|observed| self.model.names.images.digest(image, observed));
        let node = &mut self.model.nodes[answered.node];
        node.forget_attempts(image);
        node.observed.observe(image, true, stamp);
        let observation = node.observed.get_mut(image);
        let moved = observation.digest.is_some() && observation.digest != digest;
        observation.digest = digest;
        if asked_registry {
            observation.fetched = observation.fetched.max(Some(stamp));
            let last = &mut self.model.names.images.get_mut(image).registry_answer;
            if last.is_some_and(|last| last.digest != digest) {
                self.model.peers.outdates(image);
            }
            if last.is_none_or(|last| last.stamp <= stamp) {
                *last = Some(RegistryAnswer { stamp, digest });
            }
        }
        let pinned = outcome.pin == PinResult::Pinned;
        node.observed.set_pinned(image, pinned);
        if let Some(observed) = observed {
            node.observed.measure(image, observed);
        }
        moved
    }

    fn pin_answered(
        &mut self,
        answered: &Answered,
        pin: &PinResult,
        observed: Option<ObservedImage>,
    ) {
        let runtime = &mut self.model.nodes[answered.node].runtime;
        match pin {
            PinResult::NotAsked => {}
            PinResult::Pinned => {
                runtime.can_pin = Some(true);
                if let Some(observed) = observed {
                    let pin = bare_id(&observed.image_id);
                    runtime.ids.insert(answered.image, pin.into());
                    // Noted before the next report, because the pin may have to go before that.
                    if !runtime.pins.iter().any(|known| bare_id(known) == pin) {
                        runtime.pins.push(observed.image_id.into());
                    }
                }
            }
            // A runtime that has shown one pin may show the next one late.
            PinResult::Unsupported if runtime.can_pin == Some(true) => {
                runtime.pin_retry_at = Some(answered.now.after(PIN_RETRY));
            }
            PinResult::Unsupported => runtime.can_pin = Some(false),
            PinResult::DiskPressure => runtime.disk_full = true,
            PinResult::Failed(_) => runtime.pin_retry_at = Some(answered.now.after(PIN_RETRY)),
        }
    }

    /// A check has observed one image.
    fn check_answered(
        &mut self,
        answered: &Answered,
        outcome: ImageOutcome,
        pinned: &IdSet<ImageId>,
    ) {
        let Answered {
            node: idx,
            image,
            stamp,
            now,
        } = *answered;
        let before = self.model.nodes[idx].observed.holds(image);
        let present = match outcome.result {
            ImageResult::Present => true,
            ImageResult::Absent | ImageResult::Pulling => false,
            // A failed check is an observation too; otherwise it would be repeated at once.
            _ => before,
        };
        let digest = outcome
            .observed
            .as_ref()
            .map(|observed| self.model.names.images.digest(image, observed));
        let seed = self.model.settings.seed;
        let node = &mut self.model.nodes[idx];
        if !node.desired.contains(image) {
            return;
        }
        let running = outcome.result == ImageResult::Pulling;
        node.running.set(image, running);
        if before && outcome.result == ImageResult::Absent {
            let name = node.name.clone();
            let name = name.as_ref().map_or("", |name| &name.0).as_bytes();
            let spread = |count: u32| backoff::hash(seed, &[name, &count.to_le_bytes()]);
            node.losses.lost(image, node.runtime.disk, now, spread);
            self.model.lost += 1;
        }
        if present && !before {
            node.forget_attempts(image);
        }
        node.observed.observe(image, present, stamp);
        let answer = self.model.names.images.get(image).registry_answer;
        if let Some(digest) = digest
            && answer.is_some_and(|answer| answer.digest != digest)
        {
            self.model.peers.outdates(image);
        }
        if let (Some(digest), Some(observed)) = (digest, outcome.observed) {
            node.observed.get_mut(image).digest = digest;
            node.observed.set_pinned(image, observed.pinned);
            node.observed.measure(image, &observed);
            if pinned.contains(image) {
                let id = bare_id(&observed.image_id).into();
                node.runtime.ids.insert(image, id);
            }
        }
    }

    /// Images that caches pin on a node.
    fn pinned(&self, idx: NodeIdx) -> IdSet<ImageId> {
        let mut pinned = IdSet::default();
        let pinning = self.model.caches.values();
        for cache in pinning.filter(|cache| cache.desired.pinned) {
            pinned.union_with(&cache.set(idx).images);
        }
        pinned
    }

    /// A check reports of the node.
    pub(crate) fn checked(&mut self, now: Tick, id: BatchId, report: CheckReport) {
        let Some(flight) = self.model.in_flight.get(id) else {
            return;
        };
        let (idx, stamp) = (flight.node, flight.stamp);
        let seed = self.model.settings.seed;
        self.model.nodes[idx].report(report, stamp, now, seed);
        self.touch_node(idx);
    }

    /// A removal has an outcome for one image.
    fn removal_answered(&mut self, answered: &Answered, result: &ImageResult) {
        let (idx, image) = (answered.node, answered.image);
        let settings = &self.model.settings;
        let node = &mut self.model.nodes[idx];
        if matches!(result, ImageResult::Removed | ImageResult::Absent)
            && node.desired.contains(image)
        {
            // A cache desires it again: it is pulled again.
            node.observed.observe(image, false, answered.stamp);
        }
        let number = u32::try_from(image.index()).unwrap_or(u32::MAX);
        let at = AnswerContext {
            stamp: answered.stamp,
            now: answered.now,
            check_interval: settings.check_interval,
            spread: node.spread(settings.seed, &number.to_le_bytes()),
        };
        for (cache, known) in self.model.caches.iter_mut() {
            if let Some(pending) = known.applied.pending.get_mut(&image) {
                pending.answered(idx, result.clone(), at);
                self.agenda.caches.insert(cache);
            }
        }
    }

    /// The removal of one of our pins has an outcome.
    fn unpin_answered(&mut self, idx: NodeIdx, id: &str, result: &ImageResult, now: Tick) {
        let runtime = &mut self.model.nodes[idx].runtime;
        if matches!(result, ImageResult::Removed | ImageResult::Absent) {
            runtime.pins.retain(|pin| **pin != *id);
        } else {
            runtime.pin_retry_at = Some(now.after(PIN_RETRY));
        }
    }
}
