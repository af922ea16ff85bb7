//! What can be seen inside, between events: plain rows, a page at a time. Pages are no consistent
//! snapshot. Why an image is pulled or not is the answer of the very functions that planning asks.

use std::sync::Arc;

use crate::{
    CacheKey, Engine, Ineligible, NodeName, Now, Tick,
    cell::CellState,
    pulls::{Skip, Why},
};

/// Most rows of a page.
pub const MOST_ROWS: usize = 1000;

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Which.
    pub key: CacheKey,
    /// `status.status`
    pub status: String,
    /// `status.reason`
    pub reason: String,
    /// Nodes the operation under way waits for.
    pub open_nodes: Option<usize>,
    /// Eligible nodes, and those that hold everything.
    pub nodes: (i64, i64),
    /// Nodes that pull for it.
    pub pulling: usize,
    /// Names that are still to be removed somewhere.
    pub owed: usize,
    /// It wants nothing.
    pub purged: bool,
    /// Nothing new is started.
    pub held: bool,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Which.
    pub name: NodeName,
    /// Why it gets no images.
    pub eligibility: Result<(), Ineligible>,
    /// The puller that answers there.
    pub puller: Option<Arc<str>>,
    /// Calls that failed in a row, and when it is called again.
    pub back_off: Option<(u32, Tick)>,
    /// Calls under way.
    pub calls: usize,
    /// Images that caches want there, and that failed.
    pub images: (usize, usize),
}

/// One registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRow {
    /// Its host.
    pub host: Arc<str>,
    /// Pulls that may run, run, and run long.
    pub budget: (u32, u32, u32),
    /// Nodes that wait for it.
    pub waiting: usize,
}

/// One image of one cache on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// As written.
    pub reference: Arc<str>,
    /// It was there when last looked at.
    pub present: bool,
    /// Why it would be pulled now, or why not.
    pub plan: Result<Why, Skip>,
    /// The last failure: word and sentence.
    pub failure: Option<(Arc<str>, Arc<str>)>,
}

impl Engine {
    /// Caches after this one.
    pub fn view_caches(&self, after: Option<&CacheKey>, limit: usize) -> Vec<CacheRow> {
        let from = self
            .cache_index
            .iter()
            .filter(|(key, _)| after.is_none_or(|after| *key > after));
        from.filter_map(|(_, at)| self.caches.get(at))
            .take(limit.min(MOST_ROWS))
            .map(|cache| CacheRow {
                key: cache.object.key.clone(),
                status: cache.told.status.clone(),
                reason: cache.told.reason.clone(),
                open_nodes: cache.operation.as_ref().map(|op| op.open),
                nodes: (cache.counts.nodes.desired, cache.counts.nodes.ready),
                pulling: cache.pulling.len(),
                owed: cache.owed.len(),
                purged: cache.purged,
                held: cache.held(),
            })
            .collect()
    }

    /// Nodes after this one.
    pub fn view_nodes(&self, after: Option<&NodeName>, limit: usize) -> Vec<NodeRow> {
        let from = self
            .node_index
            .iter()
            .filter(|(name, _)| after.is_none_or(|after| *name > after));
        from.take(limit.min(MOST_ROWS))
            .map(|(name, idx)| {
                let node = &self.nodes[*idx];
                NodeRow {
                    name: name.clone(),
                    eligibility: node.eligibility(),
                    puller: node.puller.as_ref().map(|puller| puller.instance.clone()),
                    back_off: (node.call_failures > 0)
                        .then_some((node.call_failures, node.not_before)),
                    calls: node.live.len(),
                    images: (node.wanted.count_ones(..), node.attempts.len()),
                }
            })
            .collect()
    }

    /// All registries that images were named of.
    pub fn view_registries(&self) -> Vec<RegistryRow> {
        self.names.registries.rows()
    }

    /// What would be done now about each image that a cache wants on a node, and why not.
    /// Nothing where one of them is not known.
    pub fn explain(&self, now: Now, key: &CacheKey, node: &NodeName) -> Option<Vec<PlanRow>> {
        let at = *self.cache_index.get(key)?;
        let idx = *self.node_index.get(node)?;
        let (cache, node) = (self.caches.get(&at)?, &self.nodes[idx]);
        let scene = self.scene(idx);
        let rows = cache.pattern(idx).wants.iter().map(|want| {
            let plan = self
                .verdict(at, idx, want, &scene, now.tick)
                .and_then(|why| {
                    let registry = self.names.images.get(want.image).registry;
                    let free = self
                        .names
                        .registries
                        .get(registry)
                        .room(self.settings.max_registry_pulls);
                    self.limit(at, idx, &scene, free).map_or(Ok(why), Err)
                });
            let attempt = node.attempts.get(&(want.image, cache.scope));
            PlanRow {
                reference: want.reference.clone(),
                present: node.looks.holds(want.image),
                plan,
                failure: attempt.map(|a| (a.reason.clone(), a.message.clone())),
            }
        });
        Some(rows.collect())
    }

    /// How a node stands with a cache, as the counts have it.
    pub fn state(&self, key: &CacheKey, node: &NodeName) -> Option<CellState> {
        let at = self.cache_index.get(key)?;
        let idx = *self.node_index.get(node)?;
        Some(self.caches.get(at)?.cells.get(idx)?.state)
    }

    /// Bytes that one node takes on average beyond its name and facts: what was seen of its images,
    /// and how it stands with every cache.
    pub fn bytes_per_node(&self) -> usize {
        let seen: usize = self
            .nodes
            .iter()
            .map(|node| size_of_val(node) + node.looks.bytes() + node.wanted.len().div_ceil(8))
            .sum();
        let cells: usize = self
            .caches
            .values()
            .map(|c| c.cells.capacity() * size_of::<crate::cell::Cell>())
            .sum();
        (seen + cells)
            .checked_div(self.node_index.len())
            .unwrap_or(0)
    }
}
