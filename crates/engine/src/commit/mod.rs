//! The engine's state, and everything that changes it because of nodes: their events, their plans, and the
//! outcomes of their batches. Only this module begins and ends batches and spends registries' budgets.

mod batches;
mod nodes;
mod outcomes;
mod peers;
mod plans;
mod swarms;
pub mod timers;
mod upkeep;

use std::collections::BTreeSet;

use crate::{
    ids::{CacheIdx, IdSet, NodeIdx},
    model::{Model, cache::Cache, names::Names, peers::SwarmKey},
    vocabulary::{CacheKey, Command, Now, Settings, Tick},
};

use timers::{Timer, Timers};

/// Nodes whose transitions are emitted as Kubernetes Events at once. A wave that fails everywhere is reported
/// by the `ImageCache`.
const MAX_TRANSITIONS: u32 = 20;
/// One more transition may be emitted after so long.
const TRANSITION_PAUSE_MS: u64 = 3_000;

/// What must be decided again, and what has been decided.
#[derive(Debug, Default)]
pub struct Agenda {
    /// Caches that have changed.
    pub caches: BTreeSet<CacheIdx>,
    /// Nodes that must be planned.
    pub nodes: IdSet<NodeIdx>,
    /// Swarms in which something has changed.
    pub swarms: BTreeSet<SwarmKey>,
    /// What is due although nothing happens.
    pub timers: Timers,
    /// Commands that nobody has taken yet.
    pub outbox: Vec<Command>,
}

impl Agenda {
    /// Is nothing left to decide or to take?
    pub fn is_clear(&self) -> bool {
        let decided = self.caches.is_empty() && self.nodes.is_empty() && self.swarms.is_empty();
        decided && self.outbox.is_empty()
    }
}

/// How many more transitions of nodes are emitted as Events.
#[derive(Debug)]
pub struct TransitionBudget {
    left: u32,
    since: Tick,
}

impl Default for TransitionBudget {
    fn default() -> Self {
        Self {
            left: MAX_TRANSITIONS,
            since: Tick(0),
        }
    }
}

impl TransitionBudget {
    /// Takes one from the budget; false: nothing is left.
    pub fn take(&mut self, now: Tick) -> bool {
        let next = |since: Tick| Tick(since.0 + TRANSITION_PAUSE_MS);
        while self.left < MAX_TRANSITIONS && next(self.since) <= now {
            self.left += 1;
            self.since = next(self.since);
        }
        if self.left == MAX_TRANSITIONS {
            self.since = now;
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

/// The controller's engine. See the crate's documentation.
#[derive(Debug, Default)]
pub struct Engine {
    pub(crate) model: Model,
    pub(crate) agenda: Agenda,
    pub(crate) transitions: TransitionBudget,
    /// The same for nodes that are released without their images.
    pub(crate) releases: TransitionBudget,
}

impl Engine {
    /// An engine that knows nothing yet and stands by.
    pub fn new(settings: Settings) -> Self {
        Self {
            model: Model {
                names: Names::new(&settings),
                settings,
                ..Model::default()
            },
            ..Self::default()
        }
    }

    /// Plans a node, and computes its status in every cache anew.
    pub(crate) fn touch_node(&mut self, node: NodeIdx) {
        self.model.nodes[node].epoch += 1;
        self.agenda.nodes.insert(node);
    }

    /// Computes the status of every node in a cache anew.
    pub(crate) fn touch_cache(&mut self, cache: CacheIdx) {
        if let Some(cache) = self.model.caches.get_mut(cache) {
            cache.nodes.epoch += 1;
            self.touch_all_nodes();
        }
    }

    /// Plans every node.
    pub(crate) fn touch_all_nodes(&mut self) {
        self.agenda.nodes.insert_first(self.model.nodes.slots());
    }

    /// The cache of a name, which is about to change.
    pub(crate) fn change_cache(&mut self, key: &CacheKey) -> Option<&mut Cache> {
        let at = self.model.caches.find(key)?;
        self.agenda.caches.insert(at);
        self.model.caches.get_mut(at)
    }

    /// Begins a term: batches of an earlier term are forgotten, and every node is checked anew.
    pub(crate) fn reset(&mut self, now: Now) {
        self.model.leadership.begun = true;
        self.model.in_flight.clear();
        self.model.probes.clear();
        self.model.gate_writes.clear();
        self.agenda.timers.clear();
        self.agenda.outbox.clear();
        self.agenda.caches.clear();
        self.agenda.swarms.clear();
        self.model.peers.begin_term();
        self.model.names.registries.begin_term(now.tick);
        let stamp = self.model.next_stamp(now);
        for node in self.model.nodes.iter_mut() {
            node.forget();
            node.instance.since = Some(stamp);
        }
    }

    /// Sets when a node is planned again although nothing happens.
    pub(crate) fn wake_node(&mut self, node: NodeIdx, at: Option<Tick>) {
        self.agenda.timers.set(Timer::Node(node), at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_fleet_that_changes_at_once_only_twenty_nodes_emit_events() {
        let mut budget = TransitionBudget::default();
        let granted = (0..5000).filter(|_| budget.take(Tick(1000))).count();
        assert_eq!(granted, 20);
        assert!(!budget.take(Tick(3999)) && budget.take(Tick(4000)));
        assert!(!budget.take(Tick(4001)));
        let granted = (0..5000).filter(|_| budget.take(Tick(1_000_000))).count();
        assert_eq!(granted, 20);
    }
}
