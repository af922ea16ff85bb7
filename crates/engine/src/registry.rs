//! How many pulls may run from one registry host at a time. The budget halves when the registry
//! asks for less and grows by one every ten seconds in which it does not. Pulls that have been
//! silent for long leave the budget, so that a new node does not wait behind other nodes' big
//! images; the ceiling still counts them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{Tick, node::NodeIdx, view::RegistryRow};

/// A registry host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryId(pub u32);

/// What every registry begins with.
const START: u32 = 64;
const HALVE_PAUSE: Duration = Duration::from_secs(5);
const GROW_PAUSE: Duration = Duration::from_secs(10);

/// One registry host.
#[derive(Debug)]
pub struct Registry {
    /// As in image names.
    pub host: Arc<str>,
    limit: u32,
    /// Pulls in the budget, and those that have left it and still run.
    used: u32,
    long: u32,
    grown: Tick,
    halved: Option<Tick>,
    /// Nodes that wait, the most urgent first.
    waiting: BTreeSet<(Reverse<i32>, NodeIdx)>,
}

impl Registry {
    /// How many more pulls may start now.
    pub fn free(&mut self, ceiling: u32, now: Tick) -> u32 {
        self.grow(ceiling, now);
        self.room(ceiling)
    }

    /// The same, without looking at the clock.
    pub fn room(&self, ceiling: u32) -> u32 {
        let in_budget = self.limit.saturating_sub(self.used);
        in_budget.min(ceiling.max(1).saturating_sub(self.used + self.long))
    }

    /// So many pulls start.
    pub fn take(&mut self, pulls: u32) {
        self.used += pulls;
    }

    /// So many ended, of those that had left the budget or of those in it.
    pub fn give_back(&mut self, pulls: u32, long: bool) {
        let from = if long { &mut self.long } else { &mut self.used };
        *from = from.saturating_sub(pulls);
    }

    /// So many leave the budget and go on.
    pub fn leave(&mut self, pulls: u32) {
        self.used = self.used.saturating_sub(pulls);
        self.long += pulls;
    }

    /// It has asked for less.
    pub fn rate_limited(&mut self, now: Tick) {
        if self.halved.is_some_and(|at| at.after(HALVE_PAUSE) > now) {
            return;
        }
        self.limit = (self.limit / 2).max(1);
        self.halved = Some(now);
        self.grown = now;
    }

    /// A node waits for it.
    pub fn wait(&mut self, priority: i32, node: NodeIdx) {
        self.waiting.insert((Reverse(priority), node));
    }

    /// The most urgent of those that wait.
    pub fn next_waiting(&mut self) -> Option<NodeIdx> {
        self.waiting.pop_first().map(|(_, node)| node)
    }

    /// When it has grown next, if somebody waits for that.
    pub fn alarm(&self, ceiling: u32) -> Option<Tick> {
        (!self.waiting.is_empty() && self.limit < ceiling).then(|| self.grown.after(GROW_PAUSE))
    }

    fn grow(&mut self, ceiling: u32, now: Tick) {
        if self.grown == Tick(0) {
            self.grown = now;
        }
        while self.limit < ceiling && self.grown.after(GROW_PAUSE) <= now {
            self.limit += 1;
            self.grown = self.grown.after(GROW_PAUSE);
        }
        if self.limit >= ceiling {
            self.grown = now;
        }
    }
}

/// All registries ever named: hosts are few.
#[derive(Debug, Default)]
pub struct Registries {
    ids: BTreeMap<Arc<str>, RegistryId>,
    all: Vec<Registry>,
}

impl Registries {
    /// The number of a host.
    pub fn intern(&mut self, host: &str) -> RegistryId {
        if let Some(id) = self.ids.get(host) {
            return *id;
        }
        let id = RegistryId(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        let host: Arc<str> = host.into();
        self.ids.insert(host.clone(), id);
        self.all.push(Registry {
            host,
            limit: START,
            used: 0,
            long: 0,
            grown: Tick(0),
            halved: None,
            waiting: BTreeSet::new(),
        });
        id
    }

    /// One of them.
    pub fn get(&self, id: RegistryId) -> &Registry {
        &self.all[id.0 as usize]
    }

    /// One of them.
    pub fn get_mut(&mut self, id: RegistryId) -> &mut Registry {
        &mut self.all[id.0 as usize]
    }

    /// For people.
    pub fn rows(&self, now: Tick) -> impl Iterator<Item = RegistryRow> {
        self.ids.values().map(move |id| {
            let registry = self.get(*id);
            let since = |at: Tick| Duration::from_millis(now.0.saturating_sub(at.0));
            RegistryRow {
                host: registry.host.clone(),
                budget: (registry.limit, registry.used, registry.long),
                waiting: registry.waiting.len(),
                limited: registry.halved.map(since),
            }
        })
    }

    /// Nothing runs and nobody waits: another leader begins. What the registries asked for stays.
    pub fn begin_term(&mut self, ceiling: u32, now: Tick) {
        for registry in &mut self.all {
            registry.grow(ceiling, now);
            (registry.used, registry.long) = (0, 0);
            registry.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000;

    fn registry(registries: &mut Registries) -> &mut Registry {
        let id = registries.intern("r.test");
        registries.get_mut(id)
    }

    #[test]
    fn a_registry_begins_with_64_and_halves_at_most_once_in_five_seconds() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        assert_eq!(registry.free(512, Tick(100 * S)), 64);
        registry.rate_limited(Tick(101 * S));
        registry.rate_limited(Tick(105 * S));
        assert_eq!(registry.free(512, Tick(105 * S)), 32);
        registry.rate_limited(Tick(106 * S));
        assert_eq!(registry.free(512, Tick(106 * S)), 16);
    }

    #[test]
    fn it_grows_by_one_in_ten_quiet_seconds_up_to_the_ceiling_and_never_below_one() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        registry.free(512, Tick(100 * S));
        for second in 0..20 {
            registry.rate_limited(Tick((100 + 5 * second) * S));
        }
        assert_eq!(registry.free(512, Tick(195 * S)), 1);
        assert_eq!(registry.free(512, Tick(204 * S)), 1);
        assert_eq!(registry.free(512, Tick(205 * S)), 2);
        assert_eq!(registry.free(4, Tick(9999 * S)), 4);
    }

    #[test]
    fn a_ceiling_below_64_holds_from_the_beginning() {
        let mut registries = Registries::default();
        assert_eq!(registry(&mut registries).free(8, Tick(100 * S)), 8);
    }

    #[test]
    fn silent_pulls_make_room_for_others_but_count_against_the_ceiling() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        registry.take(64);
        assert_eq!(registry.free(100, Tick(100 * S)), 0);
        registry.leave(64);
        assert_eq!(registry.free(100, Tick(100 * S)), 36);
        registry.give_back(64, true);
        assert_eq!(registry.free(100, Tick(100 * S)), 64);
    }

    #[test]
    fn the_most_urgent_node_is_served_first() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        assert_eq!(registry.free(512, Tick(100 * S)), 64);
        assert_eq!(registry.alarm(512), None, "nobody waits");
        registry.wait(0, 1);
        registry.wait(7, 2);
        assert_eq!(registry.alarm(512), Some(Tick(110 * S)));
        assert_eq!(registry.next_waiting(), Some(2));
        assert_eq!(registry.next_waiting(), Some(1));
        assert_eq!(registry.next_waiting(), None);
    }
}
