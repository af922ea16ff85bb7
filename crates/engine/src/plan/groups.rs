//! Which pulls of a node may go in one batch: those from one registry with one set of pull secrets, of any caches.

use std::{cmp::Reverse, collections::BTreeMap};

use super::node_plan::MAX_IMAGES;
use crate::{
    ids::{CacheIdx, RegistryId, ScopeId},
    model::{desired::DesiredImage, in_flight::Pull, peers::Origin},
    vocabulary::PullReason,
};

/// What the pulls of one batch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The highest priority of any image of their caches, so that images of a less urgent cache overtake nobody.
    pub urgency: i32,
    /// Where they ask.
    pub registry: RegistryId,
    /// With which pull secrets.
    pub credentials: ScopeId,
    /// Why.
    pub reason: PullReason,
    /// The registry is asked even if the image is present.
    pub asks_registry: bool,
    /// Where the layers come from.
    pub origin: Origin,
    /// The puller runs them already, for another leader or a call that was lost.
    pub running: bool,
}

impl GroupKey {
    /// Do its pulls fetch nothing from the registry? An image that is present is not fetched.
    pub fn is_free(self) -> bool {
        self.reason == PullReason::Pin || self.origin == Origin::Peers
    }

    /// How much of the registry's budget so many pulls take.
    pub fn cost(self, images: usize, parallel: u32) -> u32 {
        if self.is_free() {
            0
        } else {
            Pull::cost_of(images, parallel)
        }
    }
}

/// An image to pull, for a cache.
#[derive(Clone, Copy)]
pub struct Wish<'m> {
    /// This one.
    pub cache: CacheIdx,
    /// The image.
    pub desired: &'m DesiredImage,
}

/// Pulls of any caches that may go in one batch.
struct Group<'m> {
    wishes: Vec<Wish<'m>>,
    /// There is room for it, beside the groups before it.
    fits: bool,
}

impl Group<'_> {
    /// The highest priority of any image.
    fn priority(&self) -> i32 {
        let all = self.wishes.iter().map(|wish| wish.desired.priority);
        all.max().unwrap_or_default()
    }
}

/// What could start on a node.
#[derive(Default)]
pub struct Groups<'m> {
    all: BTreeMap<GroupKey, Group<'m>>,
    /// How much of each registry's budget the groups take that fit.
    taken: BTreeMap<RegistryId, u32>,
}

impl<'m> Groups<'m> {
    /// Adds what a cache desires. `room`: pulls that the registry has room for.
    pub fn add(&mut self, key: GroupKey, more: Vec<Wish<'m>>, room: u32, parallel: u32) {
        let taken = self.taken.entry(key.registry).or_default();
        let group = self.all.entry(key).or_insert_with(|| Group {
            fits: room > *taken,
            wishes: Vec::new(),
        });
        let before = key.cost(group.wishes.len(), parallel);
        group.wishes.extend(more);
        if group.fits {
            *taken += key.cost(group.wishes.len(), parallel) - before;
        }
    }

    /// How many batches fit that are at least so urgent.
    pub fn places(&self, urgency: i32) -> usize {
        let counts = |(key, group): &(&GroupKey, &Group<'_>)| group.fits && key.urgency >= urgency;
        let counted = self.all.iter().filter(counts);
        counted
            .map(|(_, group)| group.wishes.len().div_ceil(MAX_IMAGES))
            .sum()
    }

    /// Do groups that are at least so urgent use up the room of a registry?
    pub fn exhaust(&self, registry: RegistryId, urgency: i32, room: u32) -> bool {
        let taken = self.taken.get(&registry).copied().unwrap_or_default();
        let urgent = |key: &GroupKey| key.registry == registry && key.urgency >= urgency;
        room <= taken && self.all.keys().any(urgent)
    }

    /// All groups: what runs already, so that it counts, and then the most urgent first.
    pub fn by_urgency(self) -> Vec<(GroupKey, Vec<Wish<'m>>)> {
        let mut all: Vec<_> = self.all.into_iter().collect();
        all.sort_by_key(|(key, group)| (!key.running, Reverse(group.priority())));
        let most_urgent_first = |(key, mut group): (GroupKey, Group<'m>)| {
            let wishes = &mut group.wishes;
            wishes.sort_by_key(|wish| Reverse(wish.desired.priority));
            (key, group.wishes)
        };
        all.into_iter().map(most_urgent_first).collect()
    }
}
