//! One node: what it is, who pulls there, what it was last seen to hold, what is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;

use crate::{
    BatchId, CheckReport, NodeName, Puller, Tick, backoff,
    facts::{Facts, Ineligible},
    images::ImageId,
    looks::Looks,
    scope::ScopeId,
    turns::Mood,
};

/// Slot of a node; free slots are used again.
pub type NodeIdx = usize;

/// Counts operations and batches: an outcome is newer than an operation if the batch it came from
/// began after it. 0 is never.
pub type Stamp = u32;

/// How long after a loss another one counts as the next of a row.
const LOSS_MEMORY: Duration = Duration::from_secs(3600);
/// So many losses in a row are a pattern.
const PATTERN: u32 = 3;

/// Pulls that a puller runs at a time, where it does not say.
const PARALLEL: u32 = 2;

/// Why an image is not there, while it is not.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Of the batch that failed.
    pub stamp: Stamp,
    /// Of the first one that failed in a row.
    pub since: Stamp,
    /// In a row.
    pub tries: u32,
    /// Not tried again before; `None`: until a refresh or an edit.
    pub not_before: Option<Tick>,
    /// One word.
    pub reason: Arc<str>,
    /// A sentence.
    pub message: Arc<str>,
}

/// Something vanished that we had not removed.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// In a row.
    count: u32,
    /// The last one.
    at: Tick,
}

/// What a node's puller says of pins and disk.
#[derive(Debug, Default)]
pub struct Upkeep {
    /// Stamp of the last check that brought a report.
    pub reported: Stamp,
    /// Reports in a row that did not say which pins are ours.
    unknown: u32,
    /// After such a one: no check for the sake of its report before.
    pub report_not_before: Tick,
    /// Ids that carry our pin.
    pub pins: Vec<Arc<str>>,
    /// Ids of images that are to be pinned, where they were seen.
    pub ids: BTreeMap<ImageId, Arc<str>>,
    /// Whether the runtime lets us pin.
    pub can_pin: Option<bool>,
    /// The file system of the images is above its watermark.
    pub disk_full: bool,
    /// Pinning failed; not before.
    pub pin_not_before: Tick,
    /// How many pulls its puller runs at a time; 0: it does not say.
    parallel_pulls: u32,
}

/// One node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name; `None` in a free slot.
    pub name: Option<NodeName>,
    /// As the API server has it.
    pub facts: Option<Facts>,
    /// Who answers there.
    pub puller: Option<Puller>,
    /// Stamp of the first sight of this puller instance: older looks are looked again.
    pub instance_stamp: Stamp,
    /// The same, if the node is new: what is always pulled asks the registry. Else 0.
    pub joined: Stamp,
    /// Since when a node has had no puller that answers.
    pub silent_since: Option<Tick>,
    /// Calls that failed in a row.
    pub call_failures: u32,
    /// No call before.
    pub not_before: Tick,
    /// Everything is looked at again that was seen before.
    pub look_again: Stamp,
    /// When that is next raised.
    pub check_at: Tick,
    /// What it was seen to hold.
    pub looks: Looks,
    /// Images that some cache wants here.
    pub wanted: FixedBitSet,
    /// Images that failed, by whose credentials were used.
    pub attempts: BTreeMap<(ImageId, ScopeId), Attempt>,
    /// Images that vanished.
    losses: BTreeMap<ImageId, Loss>,
    /// Checks in a row that saw a loss, and when what was lost is pulled again.
    lost_checks: Option<Loss>,
    /// What was lost is not pulled again before.
    pub heal_not_before: Tick,
    /// Pins and disk.
    pub upkeep: Upkeep,
    /// Calls under way.
    pub live: BTreeSet<BatchId>,
    /// How it stands with all caches together.
    pub mood: Mood,
    /// Since when it could get images, until it has all of them.
    pub cold_since: Option<Tick>,
    /// Rises when something about it has changed: caches assess it anew.
    pub epoch: u32,
}

impl Node {
    /// May it get images? The one question that everything asks.
    pub fn eligibility(&self) -> Result<(), Ineligible> {
        self.facts
            .as_ref()
            .map_or(Err(Ineligible::Unknown), |facts| facts.eligible)
    }

    /// How many pulls its puller runs at a time.
    pub fn parallel_pulls(&self) -> u32 {
        match self.upkeep.parallel_pulls {
            0 => PARALLEL,
            said => said,
        }
    }

    /// Could it hold images of ours, and owe their removal?
    pub fn runs_puller(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.runs_puller)
    }

    /// As it stands in `status.failures`.
    pub fn hostname(&self) -> &str {
        let label = self.facts.as_ref().and_then(Facts::hostname);
        label
            .or(self.name.as_ref().map(|name| &*name.0))
            .unwrap_or_default()
    }

    /// For jitter.
    pub fn spread(&self, seed: u64, part: &[u8]) -> u64 {
        let name = self.name.as_ref().map_or("", |name| &name.0);
        backoff::hash(seed, &[name.as_bytes(), part])
    }

    /// Whatever was seen is not known any more: another leader may have acted meanwhile.
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

    /// Has its puller been silent beyond the grace time?
    pub fn unreachable(&self, now: Tick, grace: Duration) -> bool {
        self.silent_since
            .is_some_and(|since| since.after(grace) <= now)
    }

    /// May it be called now?
    pub fn callable(&self) -> bool {
        self.puller.is_some() && self.facts.is_some()
    }

    /// A call to its puller failed.
    pub fn call_failed(&mut self, now: Tick, seed: u64) {
        self.call_failures += 1;
        self.silent_since.get_or_insert(now);
        let spread = self.spread(seed, &self.call_failures.to_le_bytes());
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(30));
        self.not_before = now.after(backoff::wait(first, most, self.call_failures, spread));
    }

    /// A call to its puller was answered.
    pub fn call_answered(&mut self) {
        self.call_failures = 0;
        self.not_before = Tick(0);
        self.silent_since = None;
    }

    /// Takes in the report of a check.
    pub fn reported(&mut self, report: CheckReport, stamp: Stamp, now: Tick, seed: u64) {
        let spread = self.spread(seed, b"report");
        let upkeep = &mut self.upkeep;
        if report.pins_unknown {
            upkeep.unknown += 1;
            let (first, most) = (Duration::from_secs(5), Duration::from_secs(300));
            upkeep.report_not_before =
                now.after(backoff::wait(first, most, upkeep.unknown, spread));
        } else {
            upkeep.unknown = 0;
            upkeep.reported = upkeep.reported.max(stamp);
            upkeep.pins = report.pinned_by_us;
        }
        upkeep.can_pin = report.can_pin.or(upkeep.can_pin);
        upkeep.parallel_pulls = report.parallel_pulls;
        upkeep.disk_full = report.disk.is_some_and(|disk| {
            let used = disk.capacity.saturating_sub(disk.available);
            disk.capacity > 0
                && u128::from(used) * 100
                    >= u128::from(disk.capacity) * u128::from(disk.watermark_percent)
        });
    }

    /// These images are wanted from now on. What was seen of others is not kept: nobody looks after
    /// them.
    pub fn want(&mut self, wanted: &FixedBitSet) {
        let wants = |image: &ImageId| wanted.contains(image.index());
        self.looks.keep(wanted);
        self.attempts.retain(|(image, _), _| wants(image));
        self.losses.retain(|image, _| wants(image));
        self.upkeep.ids.retain(|image, _| wants(image));
        self.wanted.clone_from(wanted);
    }

    /// A check did not find what was there before, and that we had not removed. The first loss is
    /// mended at once, the next ones ever later: a node under disk pressure is not thrashed.
    pub fn lost(&mut self, image: ImageId, now: Tick, seed: u64) {
        let next = |before: Option<&Loss>| match before {
            Some(loss) if loss.at.after(LOSS_MEMORY) > now => loss.count + 1,
            _ => 1,
        };
        let count = next(self.losses.get(&image));
        self.losses.insert(image, Loss { count, at: now });
        if self.lost_checks.is_some_and(|checks| checks.at == now) {
            return;
        }
        let count = next(self.lost_checks.as_ref());
        self.lost_checks = Some(Loss { count, at: now });
        if count > 1 {
            let spread = self.spread(seed, &count.to_le_bytes());
            let (first, most) = (Duration::from_secs(30), Duration::from_secs(600));
            self.heal_not_before = now.after(backoff::wait(first, most, count - 1, spread));
        }
    }

    /// When a lost image may be pulled again, if that is still to come.
    pub fn heals_at(&self, image: ImageId, now: Tick) -> Option<Tick> {
        let waits = self.heal_not_before > now && self.losses.contains_key(&image);
        waits.then_some(self.heal_not_before)
    }

    /// Has it vanished of late?
    pub fn has_lost(&self, image: ImageId) -> bool {
        self.losses.contains_key(&image)
    }

    /// Has anything vanished of late?
    pub fn loses(&self) -> bool {
        !self.losses.is_empty()
    }

    /// Does it vanish again and again soon after it was pulled?
    pub fn keeps_losing(&self, image: ImageId, now: Tick) -> bool {
        let loss = self.losses.get(&image);
        loss.is_some_and(|loss| loss.count >= PATTERN && loss.at.after(LOSS_MEMORY) > now)
    }

    /// Forgets losses that are too old to count.
    pub fn forget_losses(&mut self, now: Tick) {
        self.losses
            .retain(|_, loss| loss.at.after(LOSS_MEMORY) > now);
    }

    /// An image's number means another image from now on.
    pub fn forget_image(&mut self, image: ImageId) {
        self.looks.forget(image);
        self.attempts.retain(|(failed, _), _| *failed != image);
        self.losses.remove(&image);
        self.upkeep.ids.remove(&image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    const S: u64 = 1000;

    #[test]
    fn a_first_loss_is_mended_at_once_and_each_further_one_later() {
        let mut node = Node::default();
        let image = ImageId(3);
        node.lost(image, Tick(100 * S), 0);
        assert_eq!(node.heals_at(image, Tick(100 * S)), None);
        node.lost(image, Tick(400 * S), 0);
        let second = node.heals_at(image, Tick(400 * S)).unwrap();
        assert!(
            second > Tick(420 * S) && second < Tick(440 * S),
            "{second:?}"
        );
        assert_eq!(
            node.heals_at(ImageId(4), Tick(400 * S)),
            None,
            "it was not lost"
        );
        node.lost(image, Tick(700 * S), 0);
        assert!(node.heals_at(image, Tick(700 * S)).unwrap() > Tick(740 * S));
        assert!(node.keeps_losing(image, Tick(701 * S)));
        assert!(
            !node.keeps_losing(image, Tick(4301 * S)),
            "an hour without one"
        );
    }

    #[test]
    fn several_images_lost_in_one_check_are_one_step_of_the_back_off() {
        let mut node = Node::default();
        for image in 0..50 {
            node.lost(ImageId(image), Tick(100 * S), 0);
        }
        assert_eq!(node.heals_at(ImageId(1), Tick(100 * S)), None);
    }

    #[test]
    fn a_disk_is_full_from_its_watermark_on() {
        let mut node = Node::default();
        let report = |available| CheckReport {
            disk: Some(Disk {
                capacity: 100,
                available,
                watermark_percent: 80,
            }),
            ..CheckReport::default()
        };
        node.reported(report(21), 1, Tick(0), 0);
        assert!(!node.upkeep.disk_full);
        node.reported(report(20), 2, Tick(0), 0);
        assert!(node.upkeep.disk_full);
        node.reported(CheckReport::default(), 3, Tick(0), 0);
        assert!(!node.upkeep.disk_full, "it cannot be seen");
    }
}
