//! One node: its facts, its puller, what was observed there, and what is in flight.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    backoff, facts::Facts, gate::Gate, losses::Losses, observations::Observations, peers::NodePeers,
};
use crate::{
    ids::{IdSet, ImageId, ScopeId, Stamp},
    vocabulary::{BatchId, CheckReport, Disk, FailureClass, Ineligible, NodeName, Puller, Tick},
};

/// How many pulls a puller runs at a time, if it does not say.
const DEFAULT_PARALLEL_PULLS: u32 = 2;
/// Back-off after calls that failed.
const CALL_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Back-off after reports without pins.
const REPORT_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Failed attempts to pull an image. They are dropped when the image is present.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Stamp of the last batch that failed.
    pub stamp: Stamp,
    /// Stamp of the first batch of this row of failures.
    pub since: Stamp,
    /// How many failed in a row.
    pub tries: u32,
    /// The pull is not tried again before this; `None`: not before a refresh or an edit.
    pub not_before: Option<Tick>,
    /// What the failure means for further attempts.
    pub class: FailureClass,
    /// For a disk without room: as long as it is as full as in the first report afterwards, the pull is not tried
    /// again.
    pub no_room: Option<NoRoom>,
    /// Reason of the last failure, one of `names::failure`.
    pub reason: Arc<str>,
    /// Message of the last failure.
    pub message: Arc<str>,
}

/// A disk that had no room for a pull.
#[derive(Clone, Copy, Debug)]
pub struct NoRoom {
    /// How full it was in the first report after the failure, in per cent; `None`: there was no report yet.
    pub level: Option<u8>,
    /// The pull is tried again then, in any case.
    pub until: Tick,
}

impl NoRoom {
    /// Until when the pull waits for room, if the disk is so full now; `None`: it does not wait.
    pub fn waits(self, used: Option<u8>, now: Tick) -> Option<Tick> {
        let full = self.level.is_some_and(|level| used >= Some(level));
        (full && self.until > now).then_some(self.until)
    }
}

/// How well the node's puller can be reached.
#[derive(Debug, Default)]
pub struct Contact {
    /// Since when the node has had no puller that answers; `None`: it has one.
    pub silent_since: Option<Tick>,
    /// Calls that failed in a row.
    pub failures: u32,
    /// No call begins before this.
    pub not_before: Option<Tick>,
    /// Since the last call it was said that another one follows as soon as a registry has room.
    pub kept: bool,
}

/// When the node is checked.
#[derive(Debug, Default)]
pub struct CheckSchedule {
    /// Every observation must be at least this new; `None`: any will do.
    pub since: Option<Stamp>,
    /// When `since` is raised next; `None`: nothing is desired on the node.
    pub next: Option<Tick>,
}

/// The instance of the node's puller.
#[derive(Debug, Default)]
pub struct Instance {
    /// Stamp taken when this instance was first seen: older observations do not count. `None`: the node
    /// never had a puller.
    pub since: Option<Stamp>,
    /// The same if the node joined a running fleet: images with the policy Always are then fetched.
    pub joined: Option<Stamp>,
}

/// What the node's puller reports of pins and disk.
#[derive(Debug, Default)]
pub struct RuntimeReport {
    /// Stamp of the last check that brought a report.
    pub reported: Option<Stamp>,
    /// Reports in a row that did not say which images carry our pin.
    without_pins: u32,
    /// After such a report: no check for the sake of a report begins before this.
    pub retry_at: Option<Tick>,
    /// Ids of images that carry our pin.
    pub pins: Vec<Arc<str>>,
    /// Ids of images that must be pinned, as far as they were observed.
    pub ids: BTreeMap<ImageId, Arc<str>>,
    /// Whether the runtime lets us pin images; `None`: not known.
    pub can_pin: Option<bool>,
    /// Whether the runtime can take layers from other nodes and hand them on; `None`: not known.
    pub can_share: Option<bool>,
    /// The image file system at the last check; `None`: not known.
    pub disk: Option<Disk>,
    /// It is above its watermark, as that check or a pin since then found.
    pub disk_full: bool,
    /// Pinning failed; it is not tried again before this.
    pub pin_retry_at: Option<Tick>,
    /// How many pulls the puller runs at a time; 0: it does not say.
    parallel_pulls: u32,
}

impl RuntimeReport {
    /// How full the image file system was at the last check, in per cent; `None`: not known.
    pub fn used_percent(&self) -> Option<u8> {
        self.disk?.used_percent()
    }

    /// May pins be changed now?
    pub fn may_pin(&self, now: Tick) -> bool {
        self.pin_retry_at.is_none_or(|at| at <= now)
    }

    /// May a check begin that is only for the sake of a report?
    pub fn may_ask(&self, now: Tick) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }
}

/// How a node stands with all caches together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// Not known yet: a leader has just begun.
    #[default]
    New,
    /// Not eligible.
    Ineligible,
    /// Eligible, and some desired image is absent.
    Cold,
    /// Every desired image is present.
    Warm,
    /// Some desired image is absent and its pull failed.
    Stuck,
}

/// One node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name; `None`: the slot is free.
    pub name: Option<NodeName>,
    /// Facts of the Node object; `None`: there is none.
    pub facts: Option<Facts>,
    /// The puller that is ready there.
    pub puller: Option<Puller>,
    /// The instance of that puller.
    pub instance: Instance,
    /// How well it can be reached.
    pub contact: Contact,
    /// When it is checked.
    pub checks: CheckSchedule,
    /// Images that some cache desires there.
    pub desired: IdSet<ImageId>,
    /// Observations of them.
    pub observed: Observations,
    /// Images that its puller was pulling at the last check, for an earlier call or another leader.
    pub running: IdSet<ImageId>,
    /// Images whose pulls failed, by the credentials that were used.
    pub attempts: BTreeMap<(ImageId, ScopeId), Attempt>,
    /// Images that vanished.
    pub losses: Losses,
    /// Pins and disk.
    pub runtime: RuntimeReport,
    /// Batches in flight.
    pub in_flight: BTreeSet<BatchId>,
    /// How it stands with all caches together.
    pub state: NodeState,
    /// Since when it is eligible and not warm yet; `None`: it is warm, or that is not known.
    pub cold_since: Option<Tick>,
    /// Whether it is held until it has its images.
    pub gate: Gate,
    /// What it takes from other nodes and hands on to them.
    pub peers: NodePeers,
    /// Rises with every change: caches compute its status anew.
    pub epoch: u32,
}

impl Node {
    /// May it get images?
    pub fn eligibility(&self) -> Result<(), Ineligible> {
        let facts = self.facts.as_ref().ok_or(Ineligible::Unknown)?;
        facts.eligible?;
        if facts.placement.is_selected() || self.puller.is_some() {
            Ok(())
        } else {
            Err(Ineligible::NoPullerPlanned)
        }
    }

    /// How many pulls its puller runs at a time.
    pub fn parallel_pulls(&self) -> u32 {
        match self.runtime.parallel_pulls {
            0 => DEFAULT_PARALLEL_PULLS,
            reported => reported,
        }
    }

    /// Could a puller run there, so that it may hold images of ours?
    pub fn runs_puller(&self) -> bool {
        let facts = self.facts.as_ref();
        facts.is_some_and(|facts| {
            facts.runs_puller && (facts.placement.is_selected() || self.puller.is_some())
        })
    }

    /// The name that `status.failures` shows.
    pub fn hostname(&self) -> &str {
        let label = self.facts.as_ref().and_then(Facts::hostname);
        label
            .or(self.name.as_ref().map(|name| &*name.0))
            .unwrap_or_default()
    }

    /// A hash of the node's name, for jitter.
    pub fn spread(&self, seed: u64, part: &[u8]) -> u64 {
        let name = self.name.as_ref().map_or("", |name| &name.0);
        backoff::hash(seed, &[name.as_bytes(), part])
    }

    /// Drops everything that was observed, because another leader may have acted meanwhile.
    pub fn forget(&mut self) {
        let old = std::mem::take(self);
        *self = Self {
            name: old.name,
            facts: old.facts,
            puller: old.puller,
            epoch: old.epoch,
            ..Self::default()
        };
    }

    /// Has its puller been silent for longer than the grace time?
    pub fn unreachable(&self, now: Tick, grace: Duration) -> bool {
        let silent = self.contact.silent_since;
        silent.is_some_and(|since| since.after(grace) <= now)
    }

    /// Is there a puller to call, and a Node?
    pub fn callable(&self) -> bool {
        self.puller.is_some() && self.facts.is_some()
    }

    /// Notes that a call to its puller failed. What becomes of the node meanwhile is not known: its puller
    /// must report again, also what it was no longer asked for because it did not answer.
    pub fn call_failed(&mut self, now: Tick, seed: u64) {
        let failures = self.contact.failures + 1;
        let spread = self.spread(seed, &failures.to_le_bytes());
        let (first, most) = CALL_RETRY;
        let wait = backoff::wait(first, most, failures, spread);
        self.contact.failures = failures;
        self.contact.silent_since.get_or_insert(now);
        self.contact.not_before = Some(now.after(wait));
        self.runtime.reported = None;
    }

    /// Notes that a call to its puller was answered.
    pub fn call_answered(&mut self) {
        self.contact = Contact::default();
    }

    /// Notes the report of a check.
    pub fn report(&mut self, report: CheckReport, stamp: Stamp, now: Tick, seed: u64) {
        let spread = self.spread(seed, b"report");
        let runtime = &mut self.runtime;
        if report.pins_unknown {
            runtime.without_pins += 1;
            let (first, most) = REPORT_RETRY;
            let wait = backoff::wait(first, most, runtime.without_pins, spread);
            runtime.retry_at = Some(now.after(wait));
        } else {
            runtime.without_pins = 0;
            runtime.reported = runtime.reported.max(Some(stamp));
            runtime.pins = report.pinned_by_us;
        }
        runtime.disk = report.disk;
        runtime.disk_full = report.disk.is_some_and(|disk| disk.is_full());
        if let Some(used) = runtime.used_percent() {
            for attempt in self.attempts.values_mut() {
                if let Some(no_room) = &mut attempt.no_room {
                    no_room.level.get_or_insert(used);
                }
            }
        }
        runtime.can_pin = report.can_pin.or(runtime.can_pin);
        runtime.can_share = report.can_share.or(runtime.can_share);
        runtime.parallel_pulls = report.parallel_pulls;
    }

    /// Sets which images are desired. Nothing is remembered of other images, because nobody checks them.
    pub fn desire(&mut self, desired: &IdSet<ImageId>) {
        let keep = |image: &ImageId| desired.contains(*image);
        self.observed.keep_only(desired);
        self.attempts.retain(|(image, _), _| keep(image));
        self.losses.retain(keep);
        self.runtime.ids.retain(|image, _| keep(image));
        self.desired.clone_from(desired);
    }

    /// Drops what is known of images and credentials whose numbers will mean others.
    pub fn forget_numbers(&mut self, images: &IdSet<ImageId>, scopes: &IdSet<ScopeId>) {
        let keep = |image: &ImageId| !images.contains(*image);
        self.observed.forget(images);
        for image in images.iter() {
            self.running.remove(image);
        }
        self.attempts
            .retain(|(image, scope), _| keep(image) && !scopes.contains(*scope));
        self.losses.retain(keep);
        self.runtime.ids.retain(|image, _| keep(image));
        self.peers.forget_images(images);
    }

    /// Until when a failed pull waits for room on the disk; `None`: it does not. Below the watermark it is tried with
    /// the usual back-off: room may have been made before the first report.
    pub fn waits_for_room(&self, attempt: &Attempt, now: Tick) -> Option<Tick> {
        attempt
            .no_room
            .filter(|_| self.runtime.disk_full)?
            .waits(self.runtime.used_percent(), now)
    }

    /// Drops the failed attempts at an image, because it is present.
    pub fn forget_attempts(&mut self, image: ImageId) {
        self.attempts.retain(|(failed, _), _| *failed != image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_at_its_watermark() {
        let mut node = Node::default();
        let report = |available| CheckReport {
            disk: Some(Disk {
                capacity: 100,
                available,
                watermark_percent: 80,
            }),
            ..CheckReport::default()
        };
        node.report(report(21), Stamp::FIRST, Tick(0), 0);
        assert!(!node.runtime.disk_full);
        node.report(report(20), Stamp::FIRST, Tick(0), 0);
        assert!(node.runtime.disk_full);
        node.report(CheckReport::default(), Stamp::FIRST, Tick(0), 0);
        assert!(
            !node.runtime.disk_full,
            "a disk that cannot be seen is not full"
        );
    }
}
