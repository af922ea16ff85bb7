//! What a cache wants on nodes that match the same of its lists, computed once for all of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{CacheSpecEntry, ImagePullPolicy};

use crate::{
    NodeName, Settings,
    facts::Facts,
    images::{ImageId, Images},
    registry::{Registries, RegistryId},
    selector::Selector,
};

/// One list of the spec.
#[derive(Debug)]
struct List {
    selector: Selector,
    wants: Vec<Want>,
}

/// One image that a cache wants on a node.
#[derive(Clone, Debug)]
pub struct Want {
    /// Which.
    pub image: ImageId,
    /// As written.
    pub reference: Arc<str>,
    /// Whether a present one will do.
    pub policy: ImagePullPolicy,
    /// Higher first.
    pub priority: i32,
    /// For one attempt, where the list has one.
    pub deadline: Option<Duration>,
}

/// What nodes that match the same lists are to have.
#[derive(Debug, Default)]
pub struct Pattern {
    /// Sorted by image.
    pub wants: Vec<Want>,
    /// The same as a set.
    pub images: FixedBitSet,
    /// Names that do not parse.
    pub invalid: u32,
    /// The registry is asked for some of them.
    pub always: bool,
    /// The highest priority of any.
    pub priority: i32,
    /// Where all of them come from, if that is one place.
    pub registry: Option<RegistryId>,
}

/// Number of a pattern; 0 wants nothing.
pub type PatternIdx = u32;

/// The lists of a cache, compiled, and the patterns that were met.
#[derive(Debug)]
pub struct Wants {
    lists: Vec<List>,
    patterns: Vec<Pattern>,
    met: BTreeMap<Vec<u32>, PatternIdx>,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            lists: Vec::new(),
            patterns: vec![Pattern::default()],
            met: BTreeMap::from([(Vec::new(), 0)]),
        }
    }
}

impl Wants {
    /// Compiles lists.
    pub fn new(
        entries: &[CacheSpecEntry],
        images: &mut Images,
        registries: &mut Registries,
        settings: &Settings,
    ) -> Self {
        let list = |entry: &CacheSpecEntry| List {
            selector: Selector::new(entry),
            wants: entry
                .images
                .iter()
                .map(|name| {
                    let image = images.intern(name, registries);
                    let default = if images.get(image).floating {
                        ImagePullPolicy::Always
                    } else {
                        settings.image_pull_policy
                    };
                    Want {
                        image,
                        reference: Arc::from(name.as_str()),
                        policy: entry.image_pull_policy.unwrap_or(default),
                        priority: entry.priority.unwrap_or(0),
                        deadline: entry.pull_deadline.map(|deadline| deadline.0),
                    }
                })
                .collect(),
        };
        Self {
            lists: entries.iter().map(list).collect(),
            ..Self::default()
        }
    }

    /// All images, whether they match a node or not.
    pub fn all(&self) -> impl Iterator<Item = &Want> {
        self.lists.iter().flat_map(|list| &list.wants)
    }

    /// The same, with the index of the list.
    pub fn by_list(&self) -> impl Iterator<Item = (usize, &Want)> {
        let lists = self.lists.iter().enumerate();
        lists.flat_map(|(at, list)| list.wants.iter().map(move |want| (at, want)))
    }

    /// What a node is to have.
    pub fn meet(&mut self, name: &NodeName, facts: &Facts, images: &Images) -> PatternIdx {
        let matching: Vec<u32> = (0_u32..)
            .zip(&self.lists)
            .filter(|(_, list)| list.selector.matches(name, facts))
            .map(|(at, _)| at)
            .collect();
        if let Some(known) = self.met.get(&matching) {
            return *known;
        }
        let lists = matching.iter().map(|at| &self.lists[*at as usize]);
        let pattern = Pattern::of(lists, images);
        // Nothing is wanted where all matching lists are empty.
        let idx = if pattern.wants.is_empty() {
            0
        } else {
            self.patterns.push(pattern);
            u32::try_from(self.patterns.len() - 1).unwrap_or(0)
        };
        self.met.insert(matching, idx);
        idx
    }

    /// One of the patterns.
    pub fn pattern(&self, idx: PatternIdx) -> &Pattern {
        &self.patterns[idx as usize]
    }
}

impl Pattern {
    /// One image in several lists is one want: the most urgent, the longest, and Always if any says so.
    fn of<'a>(lists: impl Iterator<Item = &'a List>, images: &Images) -> Self {
        let mut wants: BTreeMap<ImageId, Want> = BTreeMap::new();
        for want in lists.flat_map(|list| &list.wants) {
            let known = wants.entry(want.image).or_insert_with(|| want.clone());
            known.priority = known.priority.max(want.priority);
            known.deadline = known.deadline.max(want.deadline);
            if want.policy == ImagePullPolicy::Always {
                known.policy = want.policy;
            }
        }
        let wants: Vec<Want> = wants.into_values().collect();
        let invalid = wants
            .iter()
            .filter(|want| images.get(want.image).invalid.is_some());
        let registry = |want: &Want| images.get(want.image).registry;
        let first = wants.first().map(registry);
        Self {
            registry: first.filter(|first| wants.iter().all(|want| registry(want) == *first)),
            images: wants.iter().map(|want| want.image.index()).collect(),
            invalid: u32::try_from(invalid.count()).unwrap_or(u32::MAX),
            always: wants
                .iter()
                .any(|want| want.policy == ImagePullPolicy::Always),
            priority: wants.iter().map(|want| want.priority).max().unwrap_or(0),
            wants,
        }
    }

    /// What is wanted of an image.
    pub fn want(&self, image: ImageId) -> Option<&Want> {
        let at = self.wants.binary_search_by_key(&image, |want| want.image);
        at.ok().map(|at| &self.wants[at])
    }
}
