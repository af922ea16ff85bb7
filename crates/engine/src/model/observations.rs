//! Observations of images on one node: only of images that some cache desires there.

use super::{backoff, images::Digest};
use crate::{
    ids::{IdSet, ImageId, Stamp},
    vocabulary::ObservedImage,
};

/// The last observation of one image on one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation {
    image: ImageId,
    /// Stamp of the batch that observed it last; `None`: no batch has.
    pub checked: Option<Stamp>,
    /// Stamp of the last batch that asked the registry for it; `None`: no batch has.
    pub fetched: Option<Stamp>,
    /// Which image it is; `None`: not known.
    pub digest: Option<Digest>,
    /// Its size in KiB, as the node's runtime counts it; 0: absent or not known.
    kib: u32,
    /// Hash of its id: names with an equal one are one image.
    same: u32,
}

/// How far back the observations of a set of images reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oldest {
    /// The set is empty.
    NoImage,
    /// Stamp of the oldest observation; `None`: some image was never observed.
    At(Option<Stamp>),
}

/// Observations, sorted by image.
#[derive(Debug, Default)]
pub struct Observations {
    all: Vec<Observation>,
    present: IdSet<ImageId>,
    /// Those of them of which a volume would be empty.
    unmountable: IdSet<ImageId>,
    /// Those of them that are protected from garbage collection.
    pinned: IdSet<ImageId>,
    /// Rises with every change of a size.
    revision: u32,
    /// No observation is newer; `None`: there is none.
    newest: Option<Stamp>,
}

impl Observations {
    /// As long as it is the same, every [`Self::size`] is.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Was any image observed since this stamp? False is certain; an image that was may be forgotten.
    pub fn any_since(&self, since: Stamp) -> bool {
        self.newest >= Some(since)
    }

    /// The last observation of an image.
    pub fn get(&self, image: ImageId) -> Observation {
        let at = self.all.binary_search_by_key(&image, |known| known.image);
        at.map_or_else(|_| Observation::default(), |at| self.all[at])
    }

    /// The last observation of an image, to be changed.
    pub fn get_mut(&mut self, image: ImageId) -> &mut Observation {
        let at = self.all.binary_search_by_key(&image, |known| known.image);
        let at = at.unwrap_or_else(|at| {
            let new = Observation {
                image,
                ..Observation::default()
            };
            self.all.insert(at, new);
            at
        });
        &mut self.all[at]
    }

    /// Was the image present at the last check?
    pub fn holds(&self, image: ImageId) -> bool {
        self.present.contains(image)
    }

    /// All images that were present at the last check.
    pub fn present(&self) -> &IdSet<ImageId> {
        &self.present
    }

    /// Images that are present, and of which a volume would be empty.
    pub fn unmountable(&self) -> &IdSet<ImageId> {
        &self.unmountable
    }

    /// How many of these images were present at the last check.
    pub fn count_present(&self, images: &IdSet<ImageId>) -> usize {
        images.shared(&self.present)
    }

    /// Notes that a batch looked at an image, even if it did not learn whether it is there.
    pub fn look(&mut self, image: ImageId, stamp: Stamp) -> &mut Observation {
        self.newest = self.newest.max(Some(stamp));
        let known = self.get_mut(image);
        known.checked = known.checked.max(Some(stamp));
        known
    }

    /// Notes that a batch observed an image.
    pub fn observe(&mut self, image: ImageId, present: bool, stamp: Stamp) {
        let known = self.look(image, stamp);
        if present {
            self.present.insert(image);
        } else {
            let changes = known.kib > 0;
            (known.digest, known.kib) = (None, 0);
            self.revision += u32::from(changes);
            for set in [&mut self.present, &mut self.unmountable, &mut self.pinned] {
                set.remove(image);
            }
        }
    }

    /// Is the image protected from garbage collection?
    pub fn is_pinned(&self, image: ImageId) -> bool {
        self.pinned.contains(image)
    }

    /// Notes whether an image is protected from garbage collection.
    pub fn set_pinned(&mut self, image: ImageId, pinned: bool) {
        self.pinned.set(image, pinned);
    }

    /// Notes the id and the size of an image that was observed.
    pub fn measure(&mut self, image: ImageId, observed: &ObservedImage) {
        let kib = u32::try_from(observed.size.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let same = (backoff::hash(0, &[observed.image_id.as_bytes()]) >> 32) as u32;
        let known = self.get_mut(image);
        let changes = (known.kib, known.same) != (kib, same);
        (known.kib, known.same) = (kib, same);
        self.revision += u32::from(changes);
        if observed.unmountable {
            self.unmountable.insert(image);
        } else {
            self.unmountable.remove(image);
        }
    }

    /// The oldest observation of any of these images, which are sorted.
    pub fn oldest(&self, images: impl Iterator<Item = ImageId>) -> Oldest {
        let mut images = images.peekable();
        let Some(first) = images.peek().copied() else {
            return Oldest::NoImage;
        };
        let from = self.all.partition_point(|known| known.image < first);
        let mut known = self.all[from..].iter();
        let mut oldest: Option<Stamp> = None;
        for image in images {
            let found = known.by_ref().find(|known| known.image >= image);
            let checked = found.filter(|found| found.image == image);
            let Some(checked) = checked.and_then(|found| found.checked) else {
                return Oldest::At(None);
            };
            oldest = Some(oldest.map_or(checked, |oldest| oldest.min(checked)));
        }
        Oldest::At(oldest)
    }

    /// Bytes that these images, which are sorted, take on the node. An image with several names counts once.
    pub fn size(&self, images: impl Iterator<Item = ImageId>) -> u64 {
        if self.all.is_empty() {
            return 0;
        }
        let mut images = images.peekable();
        let Some(first) = images.peek().copied() else {
            return 0;
        };
        let from = self.all.partition_point(|known| known.image < first);
        let mut known = self.all[from..].iter().peekable();
        let mut held: Vec<(u32, u32)> = Vec::new();
        for image in images {
            while known.next_if(|known| known.image < image).is_some() {}
            let found = known.peek().filter(|found| found.image == image);
            held.extend(
                found
                    .filter(|found| found.kib > 0)
                    .map(|found| (found.same, found.kib)),
            );
        }
        held.sort_unstable();
        held.dedup_by_key(|(same, _)| *same);
        held.iter().map(|(_, kib)| u64::from(*kib) << 10).sum()
    }

    /// Drops the observations of all other images, and takes the room for these: hardly more, because most of a large
    /// fleet's memory is here, and a little, because one image more is a common edit.
    pub fn keep_only(&mut self, desired: &IdSet<ImageId>) {
        let before = self.all.len();
        self.all.retain(|known| desired.contains(known.image));
        self.revision += u32::from(self.all.len() != before);
        let room = desired.len();
        if self.all.capacity() > room + room / 4 {
            self.all.shrink_to(room);
        }
        if self.all.capacity() < room {
            let spare = room / 128;
            self.all.reserve_exact(room + spare - self.all.len());
        }
        self.present.intersect_with(desired);
        self.unmountable.intersect_with(desired);
        self.pinned.intersect_with(desired);
    }

    /// Drops the observations of images whose numbers will mean others.
    pub fn forget(&mut self, images: &IdSet<ImageId>) {
        self.all.retain(|known| !images.contains(known.image));
        self.revision += 1;
        for image in images.iter() {
            for set in [&mut self.present, &mut self.unmountable, &mut self.pinned] {
                set.remove(image);
            }
        }
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        let sets = [&self.present, &self.unmountable, &self.pinned];
        let sets: usize = sets.into_iter().map(IdSet::bytes).sum();
        self.all.capacity() * size_of::<Observation>() + sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Index;

    fn stamp(number: u32) -> Stamp {
        Stamp::FIRST.plus(number - 1)
    }

    #[test]
    fn the_oldest_observation_counts_and_an_unchecked_image_is_older_than_all() {
        let mut observations = Observations::default();
        let ids = [1, 4, 9].map(ImageId::from_index);
        let oldest =
            |observations: &Observations, ids: &[ImageId]| observations.oldest(ids.iter().copied());
        observations.observe(ids[2], true, stamp(5));
        observations.observe(ids[0], false, stamp(7));
        assert_eq!(oldest(&observations, &ids), Oldest::At(None));
        observations.observe(ids[1], true, stamp(6));
        assert_eq!(oldest(&observations, &ids), Oldest::At(Some(stamp(5))));
        assert_eq!(oldest(&observations, &ids[..2]), Oldest::At(Some(stamp(6))));
        assert_eq!(oldest(&observations, &[]), Oldest::NoImage);
        let other = [ImageId::from_index(0)];
        assert_eq!(oldest(&observations, &other), Oldest::At(None));
    }

    #[test]
    fn an_image_with_two_names_takes_its_room_once() {
        let mut observations = Observations::default();
        let ids = [1, 4, 9].map(ImageId::from_index);
        for (image, id) in ids.into_iter().zip(["a", "b", "a"]) {
            observations.observe(image, true, stamp(5));
            let observed = ObservedImage {
                image_id: id.to_owned(),
                size: 5 << 20,
                ..ObservedImage::default()
            };
            observations.measure(image, &observed);
        }
        assert_eq!(observations.size(ids.into_iter()), 10 << 20);
        assert_eq!(observations.size(ids[1..].iter().copied()), 10 << 20);
        observations.observe(ids[1], false, stamp(6));
        assert_eq!(observations.size(ids.into_iter()), 5 << 20);
    }

    #[test]
    fn only_desired_images_are_remembered() {
        let mut observations = Observations::default();
        let [one, two] = [1, 2].map(ImageId::from_index);
        observations.observe(one, true, stamp(5));
        observations.observe(two, true, stamp(5));
        observations.keep_only(&[two].into_iter().collect());
        assert!(!observations.holds(one) && observations.holds(two));
        assert_eq!(observations.get(one).checked, None);
        assert_eq!(observations.get(two).checked, Some(stamp(5)));
    }

    #[test]
    fn observations_take_no_more_room_than_the_desired_images_need() {
        let mut observations = Observations::default();
        for count in [100, 101, 1000, 30] {
            let desired: IdSet<ImageId> = (0..count).map(ImageId::from_index).collect();
            observations.keep_only(&desired);
            for image in desired.iter() {
                observations.observe(image, true, stamp(5));
            }
            let room = observations.all.capacity();
            assert!((count..=count + count / 4).contains(&room), "{room}");
        }
    }
}
