//! Numbers that stand for things: small, cheap to compare, and of a type each, so that the index of a
//! node cannot be taken for that of an image.

use std::{fmt, marker::PhantomData, num::NonZeroU32};

use fixedbitset::FixedBitSet;

/// A number that stands for one thing in a table or a bit set.
pub trait Index: Copy {
    /// Position in a vector or a bit set.
    fn index(self) -> usize;
    /// The number at a position.
    fn from_index(index: usize) -> Self;
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl Index for $name {
            fn index(self) -> usize {
                self.0 as usize
            }

            fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).unwrap_or(u32::MAX))
            }
        }
    };
}

index! {
    /// Slot of a node. A slot is used again after its node is gone.
    NodeIdx
}
index! {
    /// Number of an `ImageCache` object. It is never used again.
    CacheIdx
}
index! {
    /// Number of an image, whatever its spelling. It is used again after no `ImageCache` names the image.
    ImageId
}
index! {
    /// Number of a registry host.
    RegistryId
}
index! {
    /// Number of a credential scope: the pull secrets that may hold a registry's password.
    ScopeId
}
index! {
    /// Number of a cell: nodes of one zone and one platform, which can take layers from each other.
    CellId
}
index! {
    /// Number of an image set of one `ImageCache`; 0 is the empty set.
    SetIdx
}

/// Counts operations and batches of one process. An observation is newer than an operation if the batch
/// that made it began after the operation: its stamp is larger.
///
/// `Option<Stamp>` orders "never" before every stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(NonZeroU32);

impl Stamp {
    /// The first stamp.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The stamp so many later.
    pub fn plus(self, more: u32) -> Self {
        Self(self.0.saturating_add(more))
    }

    /// As a plain number, at least 1.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of numbers of one kind.
#[derive(PartialEq, Eq)]
pub struct IdSet<I> {
    bits: FixedBitSet,
    of: PhantomData<I>,
}

impl<I> Clone for IdSet<I> {
    fn clone(&self) -> Self {
        Self {
            bits: self.bits.clone(),
            of: PhantomData,
        }
    }

    fn clone_from(&mut self, from: &Self) {
        self.bits.clone_from(&from.bits);
    }
}

impl<I> Default for IdSet<I> {
    fn default() -> Self {
        Self {
            bits: FixedBitSet::new(),
            of: PhantomData,
        }
    }
}

impl<I: Index + fmt::Debug> fmt::Debug for IdSet<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<I: Index> FromIterator<I> for IdSet<I> {
    fn from_iter<T: IntoIterator<Item = I>>(ids: T) -> Self {
        Self {
            bits: ids.into_iter().map(I::index).collect(),
            of: PhantomData,
        }
    }
}

impl<I: Index> Extend<I> for IdSet<I> {
    fn extend<T: IntoIterator<Item = I>>(&mut self, ids: T) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl<I: Index> IdSet<I> {
    /// An empty set with room for so many ids.
    pub fn with_capacity(ids: usize) -> Self {
        Self {
            bits: FixedBitSet::with_capacity(ids),
            of: PhantomData,
        }
    }

    /// Is this id in it?
    pub fn contains(&self, id: I) -> bool {
        self.bits.contains(id.index())
    }

    /// Adds an id.
    pub fn insert(&mut self, id: I) {
        self.bits.grow_and_insert(id.index());
    }

    /// Takes an id out; an id that is not in it is no error.
    pub fn remove(&mut self, id: I) {
        if self.bits.contains(id.index()) {
            self.bits.remove(id.index());
        }
    }

    /// Adds the first `count` ids.
    pub fn insert_first(&mut self, count: usize) {
        self.bits.grow(count);
        self.bits.insert_range(..count);
    }

    /// Takes all ids out and keeps the room.
    pub fn clear(&mut self) {
        self.bits.clear();
    }

    /// Is no id in it?
    pub fn is_empty(&self) -> bool {
        self.bits.is_clear()
    }

    /// How many ids are in it.
    pub fn len(&self) -> usize {
        self.bits.count_ones(..)
    }

    /// How many ids are in both.
    pub fn shared(&self, other: &Self) -> usize {
        self.bits.intersection_count(&other.bits)
    }

    /// How many ids are in one of them or in both.
    pub fn len_with(&self, other: &Self) -> usize {
        self.bits.union_count(&other.bits)
    }

    /// Adds the ids of another set.
    pub fn union_with(&mut self, other: &Self) {
        self.bits.union_with(&other.bits);
    }

    /// Keeps only ids that the other set has, too.
    pub fn intersect_with(&mut self, other: &Self) {
        self.bits.intersect_with(&other.bits);
    }

    /// Has the other set every id of this one?
    pub fn is_subset(&self, other: &Self) -> bool {
        self.bits.is_subset(&other.bits)
    }

    /// Is no id in both?
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.bits.is_disjoint(&other.bits)
    }

    /// Its ids, in rising order.
    pub fn iter(&self) -> impl Iterator<Item = I> {
        self.bits.ones().map(I::from_index)
    }

    /// Ids of this set that the other one lacks, in rising order.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = I> + 'a {
        self.bits.difference(&other.bits).map(I::from_index)
    }

    /// Ids that are in both, in rising order.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = I> + 'a {
        self.bits.intersection(&other.bits).map(I::from_index)
    }

    /// Adds an id or takes it out. True if that changes the set.
    pub fn set(&mut self, id: I, there: bool) -> bool {
        let was = self.contains(id);
        if there {
            self.insert(id);
        } else {
            self.remove(id);
        }
        was != there
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.bits.len().div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_is_older_than_every_stamp() {
        assert!(None < Some(Stamp::FIRST));
        assert!(Stamp::FIRST < Stamp::FIRST.plus(1));
        assert_eq!(size_of::<Option<Stamp>>(), 4);
    }

    #[test]
    fn removing_an_id_that_is_not_in_a_set_changes_nothing() {
        let mut set: IdSet<ImageId> = [ImageId(3)].into_iter().collect();
        set.remove(ImageId(900));
        assert!(set.contains(ImageId(3)) && set.len() == 1);
        set.remove(ImageId(3));
        assert!(set.is_empty());
    }
}
