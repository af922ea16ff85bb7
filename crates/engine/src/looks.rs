//! What was seen of images on one node: only of those that some cache wants there.

use fixedbitset::FixedBitSet;

use crate::{images::Digest, images::ImageId, node::Stamp};

/// What was last seen of one image on one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    image: ImageId,
    /// Stamp of the batch that looked last; 0: nobody has looked.
    pub looked: Stamp,
    /// Stamp of the batch that asked the registry last.
    pub fetched: Stamp,
    /// Which one it is.
    pub digest: Digest,
    /// Protected from garbage collection.
    pub pinned: bool,
}

/// Looks, sorted by image.
#[derive(Debug, Default)]
pub struct Looks {
    all: Vec<Look>,
    present: FixedBitSet,
}

impl Looks {
    /// What was last seen of an image.
    pub fn get(&self, image: ImageId) -> Look {
        let at = self.all.binary_search_by_key(&image, |look| look.image);
        at.map_or_else(|_| Look::default(), |at| self.all[at])
    }

    /// To note what was seen.
    pub fn get_mut(&mut self, image: ImageId) -> &mut Look {
        let at = self.all.binary_search_by_key(&image, |look| look.image);
        let at = at.unwrap_or_else(|at| {
            self.all.insert(
                at,
                Look {
                    image,
                    ..Look::default()
                },
            );
            at
        });
        &mut self.all[at]
    }

    /// Was it there when last looked at?
    pub fn holds(&self, image: ImageId) -> bool {
        self.present.contains(image.index())
    }

    /// All that were there when last looked at.
    pub fn present(&self) -> &FixedBitSet {
        &self.present
    }

    /// How many of these it holds.
    pub fn holds_of(&self, images: &FixedBitSet) -> usize {
        images.intersection_count(&self.present)
    }

    /// Somebody looked.
    pub fn saw(&mut self, image: ImageId, present: bool, stamp: Stamp) {
        let look = self.get_mut(image);
        look.looked = look.looked.max(stamp);
        if !present {
            (look.digest, look.pinned) = (Digest::default(), false);
        }
        if present {
            self.present.grow_and_insert(image.index());
        } else if self.present.contains(image.index()) {
            self.present.remove(image.index());
        }
    }

    /// The stamp of the oldest look at any of these images, sorted.
    pub fn oldest<'a>(&self, images: impl Iterator<Item = &'a ImageId>) -> Stamp {
        let mut images = images.peekable();
        let first = images.peek().copied().copied();
        let from = first.map_or(0, |first| {
            self.all.partition_point(|look| look.image < first)
        });
        let mut known = self.all[from..].iter();
        let mut oldest = Stamp::MAX;
        for image in images {
            let look = known.by_ref().find(|look| look.image >= *image);
            match look {
                Some(look) if look.image == *image => oldest = oldest.min(look.looked),
                _ => return 0,
            }
        }
        oldest
    }

    /// Keeps what is wanted.
    pub fn keep(&mut self, wanted: &FixedBitSet) {
        self.all.retain(|look| wanted.contains(look.image.index()));
        self.present.intersect_with(wanted);
    }

    /// Its number means another image from now on.
    pub fn forget(&mut self, image: ImageId) {
        if let Ok(at) = self.all.binary_search_by_key(&image, |look| look.image) {
            self.all.remove(at);
        }
        if self.present.contains(image.index()) {
            self.present.remove(image.index());
        }
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Look>() + self.present.len().div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_look_counts_and_an_image_nobody_looked_at_is_older_than_all() {
        let mut looks = Looks::default();
        let ids = [ImageId(1), ImageId(4), ImageId(9)];
        looks.saw(ids[2], true, 5);
        looks.saw(ids[0], false, 7);
        assert_eq!(looks.oldest(ids.iter()), 0);
        looks.saw(ids[1], true, 6);
        assert_eq!(looks.oldest(ids.iter()), 5);
        assert_eq!(looks.oldest(ids[..2].iter()), 6);
        assert_eq!(looks.oldest([].iter()), Stamp::MAX);
        assert_eq!(looks.oldest([ImageId(0)].iter()), 0);
    }

    #[test]
    fn only_wanted_images_are_remembered() {
        let mut looks = Looks::default();
        looks.saw(ImageId(1), true, 5);
        looks.saw(ImageId(2), true, 5);
        let mut wanted = FixedBitSet::with_capacity(3);
        wanted.insert(2);
        looks.keep(&wanted);
        assert!(!looks.holds(ImageId(1)) && looks.holds(ImageId(2)));
        assert_eq!(
            (looks.get(ImageId(1)).looked, looks.get(ImageId(2)).looked),
            (0, 5)
        );
    }
}
