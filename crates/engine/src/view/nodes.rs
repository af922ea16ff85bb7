//! Nodes.

use super::{
    batches,
    page::{beyond, until},
    rows::{NodeCacheRow, NodeDetail, Sums},
};
use crate::{
    commit::Engine,
    ids::{CacheIdx, Index, NodeIdx},
    model::{
        in_flight::Task,
        node_status::{Flags, NodeStatus},
        peers::Origin,
    },
    plan::context::{NodeContext, NodeView},
    vocabulary::{CacheKey, NodeName, Now, PullState},
};

impl Engine {
    /// Is there a Node of this name, or a puller on it?
    pub fn knows(&self, name: &NodeName) -> bool {
        self.model.nodes.find(name).is_some()
    }

    /// State of a node in a cache, as the cache counts it.
    pub fn state(&self, key: &CacheKey, node: &NodeName) -> Option<PullState> {
        let cache = self.model.caches.find(key)?;
        let idx = self.model.nodes.find(node)?;
        let rows = &self.model.caches.get(cache)?.nodes.rows;
        Some(rows.get(idx.index())?.state)
    }

    /// Bytes that one node takes on average beside its name and facts: the observations of its images, and its status
    /// in every cache.
    pub fn bytes_per_node(&self) -> usize {
        let nodes = self.model.nodes.iter();
        let observed: usize = nodes
            .map(|(_, node)| size_of_val(node) + node.observed.bytes() + node.desired.bytes())
            .sum();
        let caches = self.model.caches.values();
        let rows: usize = caches
            .map(|cache| cache.nodes.rows.capacity() * size_of::<NodeStatus>())
            .sum();
        (observed + rows)
            .checked_div(self.model.nodes.by_name().len())
            .unwrap_or(0)
    }

    /// Nodes after this one, or one alone.
    pub(super) fn nodes_after<'a>(
        &'a self,
        only: Option<&NodeName>,
        after: Option<&NodeName>,
    ) -> impl Iterator<Item = (&'a NodeName, NodeIdx)> {
        let by_name = self.model.nodes.by_name();
        let all = by_name.range::<NodeName, _>(beyond(after));
        let all = only.is_none().then_some(all).into_iter().flatten();
        let one = only.filter(|only| after.is_none_or(|after| *only > after));
        let one = one.and_then(|only| by_name.get_key_value(only));
        all.chain(one).map(|(name, idx)| (name, *idx))
    }

    /// Everything about one node.
    pub fn view_node(&self, now: Now, name: &NodeName) -> Option<NodeDetail> {
        let idx = self.model.nodes.find(name)?;
        let node = &self.model.nodes[idx];
        let rows = self.model.caches.values().map(|cache| cache.row(idx));
        let checked = rows
            .filter(|row| row.desired > 0)
            .filter_map(|row| row.checked);
        let contact = &node.contact;
        let not_before = contact.not_before.filter(|at| *at > now.tick);
        let context = NodeContext::of(&self.model, idx);
        let caches = self.model.caches.by_key().iter();
        let batches = node.in_flight.iter();
        Some(NodeDetail {
            eligibility: node.eligibility(),
            puller: node.puller.clone(),
            failed_calls: contact.failures,
            next_call: not_before.map(|at| until(at, now.tick)),
            silent: contact.silent_since.map(|since| until(now.tick, since)),
            checked: checked.min().and_then(|stamp| self.model.clock.at(stamp)),
            bytes: node.observed.size(node.desired.iter()),
            caches: caches
                .filter_map(|(key, at)| self.node_cache_row(key, *at, idx, &context, now))
                .collect(),
            batches: batches
                .filter_map(|id| self.batch_row(*id, self.model.in_flight.get(*id)?, now.tick))
                .collect(),
        })
    }

    fn node_cache_row(
        &self,
        key: &CacheKey,
        at: CacheIdx,
        idx: NodeIdx,
        context: &NodeContext,
        now: Now,
    ) -> Option<NodeCacheRow> {
        let cache = self.model.caches.get(at)?;
        let view = NodeView::new(&self.model, idx, now.tick);
        let set = cache.set(idx);
        let row = cache.row(idx);
        let pairs = self.pair_rows(at, &view, context, now);
        Some(NodeCacheRow {
            key: key.clone(),
            state: row.state,
            desired: set.desired.len(),
            present: view.node.observed.count_present(&set.images),
            failed: row.failing as usize,
            bytes: view
                .node
                .observed
                .size(set.desired.iter().map(|desired| desired.image)),
            purged: cache.history.purged,
            worst: pairs
                .filter(|pair| pair.state != PullState::Ready || pair.failure.is_some())
                .min_by_key(|pair| pair.failure.is_none()),
        })
    }

    /// Sums over everything.
    pub fn view_sums(&self) -> Sums {
        let mut sums = Sums {
            lost: self.model.lost,
            ..Sums::default()
        };
        sums.nodes.insert(None, 0);
        let nodes = self.model.nodes.iter();
        for (idx, node) in nodes.filter(|(_, node)| node.facts.is_some()) {
            let mut rows = self.model.caches.values().map(|cache| cache.row(idx));
            sums.held += usize::from(rows.any(|row| row.flags.has(Flags::HOLDS)));
            *sums.nodes.entry(node.eligibility().err()).or_default() += 1;
            sums.silent += usize::from(node.contact.silent_since.is_some());
        }
        sums.peers.moved = self.model.peers.moved;
        for (_, node) in self.model.nodes.iter() {
            sums.peers.waiting += usize::from(!node.peers.waits.is_empty());
            sums.peers.serving += usize::from(!node.peers.uploads.is_empty());
        }
        for (_, flight) in self.model.in_flight.after(None) {
            if let Task::Pull(pull) = &flight.task {
                sums.peers.seeding += usize::from(pull.origin == Origin::Seed);
                sums.peers.taking += usize::from(pull.origin == Origin::Peers);
            }
            *sums.batches.entry(batches::kind(flight)).or_default() += 1;
        }
        sums
    }
}
