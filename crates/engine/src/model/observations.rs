//! Observations of images on one node: only of images that some cache desires there.

use super::images::Digest;
use crate::ids::{IdSet, ImageId, Stamp};

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
    /// Whether it is protected from garbage collection.
    pub pinned: bool,
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
}

impl Observations {
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

    /// How many of these images were present at the last check.
    pub fn count_present(&self, images: &IdSet<ImageId>) -> usize {
        images.shared(&self.present)
    }

    /// Notes that a batch observed an image.
    pub fn observe(&mut self, image: ImageId, present: bool, stamp: Stamp) {
        let known = self.get_mut(image);
        known.checked = known.checked.max(Some(stamp));
        if present {
            self.present.insert(image);
        } else {
            (known.digest, known.pinned) = (None, false);
            self.present.remove(image);
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

    /// Drops the observations of all other images.
    pub fn keep_only(&mut self, desired: &IdSet<ImageId>) {
        self.all.retain(|known| desired.contains(known.image));
        self.present.intersect_with(desired);
    }

    /// Drops the observations of images whose numbers will mean others.
    pub fn forget(&mut self, images: &IdSet<ImageId>) {
        self.all.retain(|known| !images.contains(known.image));
        for image in images.iter() {
            self.present.remove(image);
        }
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Observation>() + self.present.bytes()
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
}
