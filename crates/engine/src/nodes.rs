//! What happens to nodes.

use crate::{
    Engine, NodeFacts, NodeName, Now, Puller,
    alarms::Alarm,
    cell::Cell,
    facts::Facts,
    node::{Node, NodeIdx},
};

impl Engine {
    fn node_slot(&mut self, name: NodeName) -> NodeIdx {
        if let Some(idx) = self.node_index.get(&name) {
            return *idx;
        }
        let idx = self.free_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            for cache in self.caches.values_mut() {
                cache.cells.push(Cell::default());
            }
            self.nodes.len() - 1
        });
        self.nodes[idx].name = Some(name.clone());
        self.node_index.insert(name, idx);
        idx
    }

    pub(crate) fn node_applied(&mut self, name: NodeName, facts: NodeFacts) {
        let idx = self.node_slot(name);
        let facts = Facts::new(facts, &mut self.texts);
        let node = &mut self.nodes[idx];
        if node.eligibility().is_err() && facts.eligible.is_ok() {
            // The grace time of its puller begins now.
            node.silent_since = None;
        }
        if let Some(name) = &node.name {
            for cache in self.caches.values_mut() {
                cache.cells[idx].pattern = cache.wants.meet(name, &facts, &self.names.images);
            }
        }
        node.facts = Some(facts);
        self.touch_node(idx);
    }

    pub(crate) fn node_deleted(&mut self, name: &NodeName) {
        let Some(idx) = self.node_index.get(name).copied() else {
            return;
        };
        self.nodes[idx].facts = None;
        for id in std::mem::take(&mut self.nodes[idx].live) {
            self.drop_live(id);
        }
        let caches: Vec<_> = self.caches.keys().copied().collect();
        for at in caches {
            self.leave(at, idx);
            if let Some(cache) = self.caches.get_mut(&at) {
                cache.set_cell(idx, Cell::default());
                cache.waiting.remove(&idx);
                for owed in cache.owed.values_mut() {
                    owed.forget(idx);
                }
            }
            self.dirty_caches.insert(at);
        }
        self.touch_node(idx);
        self.free_if_unknown(idx);
    }

    pub(crate) fn puller_changed(&mut self, now: Now, name: NodeName, puller: Option<Puller>) {
        let idx = self.node_slot(name);
        let node = &self.nodes[idx];
        let instance = |puller: &Option<Puller>| puller.as_ref().map(|p| p.instance.clone());
        if puller.is_some() && instance(&puller) != instance(&node.puller) {
            // A puller that was never seen before, once the first sync is over, is a new node.
            let new = self.begun && node.instance_stamp == 0;
            let stamp = self.next_stamp(now);
            let node = &mut self.nodes[idx];
            node.instance_stamp = stamp;
            node.joined = if new { stamp } else { 0 };
            node.call_answered();
        }
        self.nodes[idx].puller = puller;
        self.touch_node(idx);
        self.free_if_unknown(idx);
    }

    /// A node leaves an operation: nobody waits for it any more.
    pub(crate) fn leave(&mut self, at: crate::cache::CacheIdx, idx: NodeIdx) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        let done = cache.cells[idx].done;
        if let Some(operation) = &mut cache.operation
            && operation.has(idx)
        {
            operation.pulls.remove(idx);
            operation.removes.remove(idx);
            operation.open = operation.open.saturating_sub(usize::from(!done));
        }
    }

    /// Neither a Node nor a puller: its slot is free.
    fn free_if_unknown(&mut self, idx: NodeIdx) {
        if self.nodes[idx].facts.is_some() || self.nodes[idx].puller.is_some() {
            return;
        }
        self.alarms.set(Alarm::Node(idx), None);
        if let Some(name) = self.nodes[idx].name.take() {
            self.node_index.remove(&name);
        }
        self.scouts.retain(|_, scout| scout.node != idx);
        let node = &mut self.nodes[idx];
        (node.facts, node.puller) = (None, None);
        node.forget();
        self.free_nodes.push(idx);
    }
}
