//! Desired images, and what nodes must hold that the same lists select.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubefledged_api_types::ImagePullPolicy;

use super::images::Images;
use crate::ids::{IdSet, ImageId, RegistryId, ScopeId};

/// Why an image is desired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DesiredBy {
    /// A list of the spec names it.
    Spec {
        /// Index of the list in `spec.cacheSpec`.
        list: u32,
    },
    /// A workload names it.
    Workload {
        /// Index of the list in `spec.cacheSpec` whose source selects the workload.
        list: u32,
    },
}

impl DesiredBy {
    /// Index of the list in `spec.cacheSpec`.
    pub fn list(self) -> u32 {
        match self {
            Self::Spec { list } | Self::Workload { list } => list,
        }
    }
}

/// One image that a cache desires on a node, and how it is pulled.
#[derive(Clone, Debug)]
pub struct DesiredImage {
    /// Which image.
    pub image: ImageId,
    /// Its name, as the user wrote it.
    pub reference: Arc<str>,
    /// Why it is desired. Of several reasons this is the first.
    pub by: DesiredBy,
    /// The pull secrets that may hold its registry's password.
    pub credentials: ScopeId,
    /// Whether a present image is good enough.
    pub policy: ImagePullPolicy,
    /// Higher first.
    pub priority: i32,
    /// Longest time for one attempt; `None`: only progress is watched.
    pub deadline: Option<Duration>,
}

impl DesiredImage {
    /// Joins two wishes for one image: the more urgent one, the longer deadline, and Always if either says
    /// so.
    fn join(&mut self, other: &Self) {
        self.priority = self.priority.max(other.priority);
        self.deadline = longer(self.deadline, other.deadline);
        if other.policy == ImagePullPolicy::Always {
            self.policy = other.policy;
        }
    }
}

/// The longer of two deadlines, where `None` is no deadline and so longer than every other.
pub fn longer(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.zip(other).map(|(one, other)| one.max(other))
}

/// What nodes that the same lists select must hold.
#[derive(Debug, Default)]
pub struct ImageSet {
    /// Sorted by image.
    pub desired: Vec<DesiredImage>,
    /// The same as a set.
    pub images: IdSet<ImageId>,
    /// How many names cannot be parsed.
    pub invalid: usize,
    /// Some image has the policy Always.
    pub always: bool,
    /// The highest priority of any image.
    pub priority: i32,
    /// The registry of all images; `None`: they have several.
    pub registry: Option<RegistryId>,
}

impl ImageSet {
    /// The images of lists, each once.
    pub fn of<'a>(all: impl Iterator<Item = &'a DesiredImage>, images: &Images) -> Self {
        let mut joined: BTreeMap<ImageId, DesiredImage> = BTreeMap::new();
        for desired in all {
            let first = joined.entry(desired.image);
            first
                .and_modify(|known| known.join(desired))
                .or_insert_with(|| desired.clone());
        }
        let desired: Vec<DesiredImage> = joined.into_values().collect();
        let image = |desired: &DesiredImage| images.get(desired.image);
        let first = desired.first().map(|first| image(first).registry);
        Self {
            registry: first.filter(|first| desired.iter().all(|d| image(d).registry == *first)),
            images: desired.iter().map(|desired| desired.image).collect(),
            invalid: desired
                .iter()
                .filter(|desired| image(desired).invalid.is_some())
                .count(),
            always: desired
                .iter()
                .any(|desired| desired.policy == ImagePullPolicy::Always),
            priority: desired.iter().map(|d| d.priority).max().unwrap_or(0),
            desired,
        }
    }

    /// How an image of the set is pulled; `None`: it is not in the set.
    pub fn get(&self, image: ImageId) -> Option<&DesiredImage> {
        let at = self
            .desired
            .binary_search_by_key(&image, |desired| desired.image);
        at.ok().map(|at| &self.desired[at])
    }

    /// Is nothing desired?
    pub fn is_empty(&self) -> bool {
        self.desired.is_empty()
    }
}

/// The longest deadline of an image in any of these sets; `None`: only progress is watched.
pub fn longest_deadline(sets: &[&ImageSet], image: ImageId) -> Option<Duration> {
    let sets = sets.iter().filter(|set| set.images.contains(image));
    let deadlines = sets.filter_map(|set| Some(set.get(image)?.deadline));
    let longest = deadlines.reduce(longer).flatten();
    longest.filter(|longest| !longest.is_zero())
}
