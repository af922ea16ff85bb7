//! Images that vanished from a node although we did not remove them: the kubelet's garbage collection
//! took them, or a person did.

use std::{collections::BTreeMap, time::Duration};

use super::backoff;
use crate::{
    ids::ImageId,
    vocabulary::{Disk, Tick},
};

/// A loss counts as the next of a row within this time.
const MEMORY: Duration = Duration::from_secs(3600);
/// So many losses in a row are no accident.
const REPEATED: u32 = 3;
/// The kubelet begins to remove images above its own threshold and frees a few per cent, so that a loss is found
/// somewhat below it. A loss at so much below our watermark, which is below that threshold, is the disk's fault.
const BELOW_WATERMARK: u8 = 10;
/// Back-off before lost images are pulled again.
const HEAL_RETRY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// A row of losses.
#[derive(Clone, Copy, Debug)]
struct Row {
    count: u32,
    /// When the last one was found.
    last: Tick,
    /// How full the image file system was then, in per cent; `None`: not known.
    level: Option<u8>,
}

impl Row {
    fn next(before: Option<Self>, level: Option<u8>, now: Tick) -> Self {
        let before = before.filter(|row| row.last.after(MEMORY) > now);
        Self {
            count: before.map_or(0, |row| row.count) + 1,
            last: now,
            level,
        }
    }
}

/// The losses of one node.
#[derive(Debug, Default)]
pub struct Losses {
    images: BTreeMap<ImageId, Row>,
    /// Checks in a row that found a loss.
    checks: Option<Row>,
    /// Lost images are not pulled again before this.
    heal_at: Option<Tick>,
}

impl Losses {
    /// Notes that a check did not find an image that was present before. After the first check with a loss
    /// images are pulled again at once, after each further one later, so that a node under disk pressure
    /// does not pull all the time. `disk`: as that check found it; `spread` maps a count to a hash for jitter.
    pub fn lost(
        &mut self,
        image: ImageId,
        disk: Option<Disk>,
        now: Tick,
        spread: impl Fn(u32) -> u64,
    ) {
        let level = disk.and_then(|disk| disk.used_percent());
        let row = Row::next(self.images.get(&image).copied(), level, now);
        self.images.insert(image, row);
        if self.checks.is_some_and(|checks| checks.last == now) {
            return;
        }
        let checks = Row::next(self.checks, level, now);
        self.checks = Some(checks);
        if checks.count > 1 {
            let (first, most) = HEAL_RETRY;
            let wait = backoff::wait(first, most, checks.count - 1, spread(checks.count));
            self.heal_at = Some(now.after(wait));
        }
    }

    /// When a lost image may be pulled again; `None`: now, or it was not lost.
    pub fn heals_at(&self, image: ImageId, now: Tick) -> Option<Tick> {
        self.heal_at
            .filter(|at| *at > now && self.images.contains_key(&image))
    }

    /// At which level of the disk this image was lost, and until when that counts, if the disk is as full as then:
    /// pulled now, the image would be lost again. Within an hour the kubelet's thresholds are the same; after that it
    /// is tried.
    pub fn level_reached(
        &self,
        image: ImageId,
        disk: Option<Disk>,
        now: Tick,
    ) -> Option<(u8, Tick)> {
        let (row, disk) = (self.images.get(&image)?, disk?);
        let (level, until) = (row.level?, row.last.after(MEMORY));
        let its_fault = level >= disk.watermark_percent.saturating_sub(BELOW_WATERMARK);
        let full = disk.used_percent() >= Some(level);
        (its_fault && full && until > now).then_some((level, until))
    }

    /// Was this image lost within the last hour?
    pub fn contains(&self, image: ImageId) -> bool {
        self.images.contains_key(&image)
    }

    /// Was no image lost within the last hour?
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Is this image lost again and again?
    pub fn repeats(&self, image: ImageId, now: Tick) -> bool {
        let row = self.images.get(&image);
        row.is_some_and(|row| row.count >= REPEATED && row.last.after(MEMORY) > now)
    }

    /// Drops losses that are too old to count.
    pub fn expire(&mut self, now: Tick) {
        self.images.retain(|_, row| row.last.after(MEMORY) > now);
    }

    /// Drops the losses of all other images.
    pub fn retain(&mut self, keep: impl Fn(&ImageId) -> bool) {
        self.images.retain(|image, _| keep(image));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Index;

    const S: u64 = 1000;

    fn lose(losses: &mut Losses, image: ImageId, second: u64) {
        losses.lost(image, None, Tick(second * S), |_| 0);
    }

    #[test]
    fn an_image_lost_once_is_pulled_at_once_and_after_each_further_loss_later() {
        let mut losses = Losses::default();
        let [image, other] = [3, 4].map(ImageId::from_index);
        lose(&mut losses, image, 100);
        assert_eq!(losses.heals_at(image, Tick(100 * S)), None);
        lose(&mut losses, image, 400);
        let second = losses.heals_at(image, Tick(400 * S)).unwrap();
        assert!(
            second > Tick(420 * S) && second < Tick(440 * S),
            "{second:?}"
        );
        assert_eq!(
            losses.heals_at(other, Tick(400 * S)),
            None,
            "it was not lost"
        );
        lose(&mut losses, image, 700);
        assert!(losses.heals_at(image, Tick(700 * S)).unwrap() > Tick(740 * S));
        assert!(losses.repeats(image, Tick(701 * S)));
        assert!(
            !losses.repeats(image, Tick(4301 * S)),
            "an hour without a loss"
        );
    }

    #[test]
    fn an_image_lost_on_a_full_disk_is_not_pulled_while_the_disk_is_as_full() {
        let mut losses = Losses::default();
        let image = ImageId::from_index(3);
        let disk = |available| {
            Some(Disk {
                capacity: 100,
                available,
                watermark_percent: 80,
            })
        };
        let lose = |losses: &mut Losses, free, second: u64| {
            losses.lost(image, disk(free), Tick(second * S), |_| 0);
        };
        let level = |losses: &Losses, free, second: u64| {
            let reached = losses.level_reached(image, disk(free), Tick(second * S));
            reached.map(|(level, _)| level)
        };
        lose(&mut losses, 31, 100);
        assert_eq!(level(&losses, 31, 100), None, "69 %");
        lose(&mut losses, 22, 200);
        assert_eq!(level(&losses, 22, 200), Some(78));
        assert_eq!(level(&losses, 23, 300), None);
        assert_eq!(level(&losses, 15, 400), Some(78));
        assert_eq!(level(&losses, 15, 3800), None, "an hour");
    }

    #[test]
    fn several_images_lost_in_one_check_count_once_for_the_back_off() {
        let mut losses = Losses::default();
        for image in 0..50 {
            lose(&mut losses, ImageId::from_index(image), 100);
        }
        let image = ImageId::from_index(1);
        assert_eq!(losses.heals_at(image, Tick(100 * S)), None);
    }
}
