//! Events of nodes: Node objects and pullers come, change and go.

use super::{Engine, timers::Timer};
use crate::{
    ids::{CacheIdx, Index, NodeIdx},
    model::{
        facts::Facts,
        gate::{Gate, GateFacts},
        node::Instance,
        node_status::NodeStatus,
        selector::PullerSelector,
    },
    vocabulary::{NodeFacts, NodeName, Now, Placement, Puller},
};

impl Engine {
    pub(crate) fn node_applied(&mut self, now: Now, name: NodeName, facts: NodeFacts) {
        let idx = self.model.claim_node(name);
        let gate = self.gate_facts(idx, &facts, now);
        let node = &mut self.model.nodes[idx];
        let mut facts = Facts::new(facts, node.facts.as_ref(), &mut self.model.texts);
        facts.gate = gate;
        if let Some(name) = &node.name {
            PullerSelector::place(self.model.placement.as_ref(), name, &mut facts);
        }
        facts.continue_from(node.facts.as_ref(), now.tick);
        if node.eligibility().is_err() && facts.eligible.is_ok() && facts.placement.is_selected() {
            // The grace time of its puller begins now.
            node.contact.silent_since = None;
        }
        if let Some(name) = &node.name {
            for (_, cache) in self.model.caches.iter_mut() {
                let set = cache.desired.select(name, &facts, &self.model.names.images);
                let row = &mut cache.nodes.rows[idx.index()];
                if row.set != set {
                    row.select(set);
                }
            }
        }
        node.facts = Some(facts);
        self.touch_node(idx);
    }

    /// What a Node says of its gate. If the Node or its taint is new, only observations from now on can release it.
    fn gate_facts(&mut self, idx: NodeIdx, facts: &NodeFacts, now: Now) -> GateFacts {
        let settings = &self.model.settings.gate;
        if !settings.is_on() {
            return GateFacts::default();
        }
        let before = self.model.nodes[idx].facts.as_ref();
        let before = before.map(|before| &before.gate);
        let key = settings.taint.as_deref();
        let gate = GateFacts::new(facts, before, key, &mut self.model.texts, now);
        let same = before.is_some_and(|before| before.uid == gate.uid);
        let tainted = before.is_some_and(|before| !before.taints.is_empty());
        let node = &mut self.model.nodes[idx];
        if same {
            node.gate.writer.seen(&gate);
        }
        if same && (tainted || gate.taints.is_empty()) {
            return gate;
        }
        let stamp = self
            .model
            .clock
            .next(now.wall, self.model.settings.check_interval);
        if !same {
            self.forget_gate(idx);
        }
        let node = &mut self.model.nodes[idx];
        node.gate.since = Some(stamp);
        node.gate.writer.reported = false;
        node.checks.since = Some(stamp);
        gate
    }

    /// Forgets the gate of a Node that is gone.
    fn forget_gate(&mut self, idx: NodeIdx) {
        self.agenda.timers.set(Timer::Gate(idx), None);
        self.agenda.nodes.extend(self.model.gate_writes.forget(idx));
        self.model.nodes[idx].gate = Gate::default();
    }

    /// Other nodes get pullers from now on.
    pub(crate) fn pullers_placed(&mut self, placement: Option<&Placement>) {
        self.model.placement = placement.map(PullerSelector::new);
        for node in self.model.nodes.iter_mut() {
            let Some((facts, name)) = node.facts.as_mut().zip(node.name.as_ref()) else {
                continue;
            };
            let before = facts.placement;
            PullerSelector::place(self.model.placement.as_ref(), name, facts);
            node.epoch += u32::from(facts.placement != before);
            if facts.placement.is_selected() && !before.is_selected() {
                // The grace time of its puller begins now.
                node.contact.silent_since = None;
            }
        }
        self.touch_all_nodes();
    }

    pub(crate) fn node_deleted(&mut self, name: &NodeName) {
        let Some(idx) = self.model.nodes.find(name) else {
            return;
        };
        self.model.nodes[idx].facts = None;
        self.forget_gate(idx);
        for id in std::mem::take(&mut self.model.nodes[idx].in_flight) {
            self.end_flight(id);
        }
        let caches: Vec<CacheIdx> = self.model.caches.iter().map(|(at, _)| at).collect();
        for at in caches {
            if let Some(cache) = self.model.caches.get_mut(at) {
                if let Some(operation) = &mut cache.operation {
                    operation.leave(idx);
                }
                cache.set_row(idx, NodeStatus::default());
                cache.pulling.waiting.remove(&idx);
                for pending in cache.applied.pending.values_mut() {
                    pending.forget(idx);
                }
            }
            self.agenda.caches.insert(at);
        }
        self.touch_node(idx);
        self.release_if_unknown(idx);
    }

    pub(crate) fn puller_changed(&mut self, now: Now, name: NodeName, puller: Option<Puller>) {
        let idx = self.model.claim_node(name);
        let node = &self.model.nodes[idx];
        let instance = |puller: &Option<Puller>| puller.as_ref().map(|p| p.instance.clone());
        if puller.is_some() && instance(&puller) != instance(&node.puller) {
            // Once the first sync is over, the first puller of a node means a new node.
            let new = self.model.leadership.begun && node.instance.since.is_none();
            let stamp = self.model.next_stamp(now);
            let node = &mut self.model.nodes[idx];
            node.instance = Instance {
                since: Some(stamp),
                joined: new.then_some(stamp),
            };
            // Another puller may know another runtime.
            (node.runtime.can_pin, node.runtime.can_share) = (None, None);
            node.call_answered();
        }
        self.model.nodes[idx].puller = puller;
        self.touch_node(idx);
        self.release_if_unknown(idx);
    }

    /// Frees the slot of a node that has neither a Node object nor a puller.
    fn release_if_unknown(&mut self, idx: NodeIdx) {
        let node = &self.model.nodes[idx];
        if node.facts.is_some() || node.puller.is_some() {
            return;
        }
        self.agenda.timers.set(Timer::Node(idx), None);
        self.forget_peer(idx);
        self.model.probes.retain(|_, probe| probe.node != idx);
        self.model.nodes.release(idx);
    }
}
