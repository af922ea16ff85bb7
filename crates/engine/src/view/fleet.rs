//! Rows of all nodes: their sums, which of them pull, and what a spec would mean for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::ImageCacheSpec;

use super::page::{MOST_ROWS, Page, page, until};
use crate::{
    commit::Engine,
    ids::NodeIdx,
    model::{
        in_flight::{PulledImage, Task},
        selector::Selector,
    },
    vocabulary::{CacheKey, Ineligible, NodeName, Now, PullState, Puller},
};

/// The label from which the kubelet's architecture is known.
const ARCHITECTURE: &str = "kubernetes.io/arch";

/// One node, with the sums over all caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Whether it is eligible, and why not.
    pub eligibility: Result<(), Ineligible>,
    /// A puller is ready there.
    pub puller: bool,
    /// Calls that failed in a row.
    pub failed_calls: u32,
    /// How long no puller has answered; `None`: one does.
    pub silent: Option<Duration>,
    /// Its worst state in any cache.
    pub state: PullState,
    /// Images that caches desire there.
    pub desired: usize,
    /// Those of them that are present.
    pub present: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Size of all desired images that are present in bytes, each image once.
    pub bytes: u64,
}

/// A node on which images are being pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullingRow {
    /// Its name.
    pub node: NodeName,
    /// Its puller.
    pub puller: Puller,
    /// Names of the images without an outcome, as users wrote them.
    pub images: BTreeSet<Arc<str>>,
}

/// What a spec means for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecRow {
    /// Its name.
    pub node: NodeName,
    /// Whether it is eligible, and why not.
    pub eligibility: Result<(), Ineligible>,
    /// Its puller, if one is ready.
    pub puller: Option<Puller>,
    /// Its processor, as its label says; `None`: it has none.
    pub architecture: Option<Arc<str>>,
    /// Names of the images of all lists that select it, as the spec writes them.
    pub images: BTreeSet<Arc<str>>,
}

impl Engine {
    /// Nodes after this one.
    pub fn view_nodes(
        &self,
        now: Now,
        after: Option<&NodeName>,
        limit: usize,
    ) -> Page<NodeRow, NodeName> {
        let nodes = self.nodes_after(None, after);
        let rows = nodes.map(|(name, idx)| (name.clone(), self.node_row(now, name, idx)));
        // A node costs a look into every cache.
        page(rows, limit.min(self.nodes_of_a_page()))
    }

    fn nodes_of_a_page(&self) -> usize {
        (10 * MOST_ROWS / (self.model.caches.by_key().len() + 1)).clamp(10, MOST_ROWS)
    }

    fn node_row(&self, now: Now, name: &NodeName, idx: NodeIdx) -> NodeRow {
        let node = &self.model.nodes[idx];
        let mut row = NodeRow {
            node: name.clone(),
            eligibility: node.eligibility(),
            puller: node.puller.is_some(),
            failed_calls: node.contact.failures,
            silent: node.contact.silent_since.map(|at| until(now.tick, at)),
            state: PullState::NotDesired,
            desired: 0,
            present: 0,
            failed: 0,
            bytes: node.observed.size(node.desired.iter()),
        };
        for cache in self.model.caches.values() {
            let (status, set) = (cache.row(idx), cache.set(idx));
            row.state = worse(row.state, status.state);
            row.desired += set.desired.len();
            row.present += node.observed.count_present(&set.images);
            row.failed += status.failing as usize;
        }
        row
    }

    /// Nodes on which images are being pulled for this cache; `None`: for any.
    pub fn view_pulling(&self, cache: Option<&CacheKey>) -> Vec<PullingRow> {
        let only = cache.map(|key| self.model.caches.find(key));
        let mut rows: BTreeMap<NodeIdx, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (_, flight) in self.model.in_flight.after(None) {
            let Task::Pull(pull) = &flight.task else {
                continue;
            };
            let of_it = |image: &&PulledImage| only.is_none_or(|only| only == Some(image.cache));
            for image in pull.images.iter().filter(of_it).filter(|image| image.open) {
                let names = rows.entry(flight.node).or_default();
                names.insert(image.reference.clone());
            }
        }
        let row = |(idx, images): (NodeIdx, _)| {
            let node = &self.model.nodes[idx];
            Some(PullingRow {
                node: node.name.clone()?,
                puller: node.puller.clone()?,
                images,
            })
        };
        rows.into_iter().filter_map(row).collect()
    }

    /// Nodes after this one that a list of a spec selects. The spec need not belong to a cache.
    pub fn view_spec(
        &self,
        spec: &ImageCacheSpec,
        after: Option<&NodeName>,
    ) -> Page<SpecRow, NodeName> {
        let lists = spec.cache_spec.iter();
        let lists: Vec<_> = lists
            .map(|entry| {
                let images = entry.images.iter().map(|image| Arc::from(image.as_str()));
                (Selector::new(entry), images.collect::<Vec<Arc<str>>>())
            })
            .collect();
        let rows = self.nodes_after(None, after).filter_map(|(name, idx)| {
            let node = &self.model.nodes[idx];
            let facts = node.facts.as_ref()?;
            let selecting = lists.iter().filter(|(list, _)| list.matches(name, facts));
            let images: BTreeSet<_> = selecting.flat_map(|(_, images)| images.clone()).collect();
            let row = SpecRow {
                node: name.clone(),
                eligibility: node.eligibility(),
                puller: node.puller.clone(),
                architecture: facts.label(ARCHITECTURE).map(Arc::from),
                images,
            };
            (!row.images.is_empty()).then(|| (name.clone(), row))
        });
        page(rows, MOST_ROWS)
    }
}

/// The worse of two states.
fn worse(one: PullState, other: PullState) -> PullState {
    let rank = |state| match state {
        PullState::NotDesired => 0,
        PullState::Ready => 1,
        PullState::Pending => 2,
        PullState::Pulling => 3,
        PullState::Failed => 4,
        PullState::Unreachable => 5,
    };
    if rank(other) > rank(one) { other } else { one }
}
