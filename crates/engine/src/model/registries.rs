//! How many pulls may run from one registry host at a time. The budget halves when the registry asks two nodes
//! for fewer requests (one, if no other pulls from it), and grows by one in every ten seconds without such an
//! answer. One node alone may lie, or has a limit of its own: only its pull waits. A pull without an outcome
//! for long leaves the budget, so that a new node does not wait for the large images of other nodes; the
//! ceiling still counts it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    ids::{IdSet, Index, NodeIdx, RegistryId},
    vocabulary::Tick,
};

/// Budget of a registry that was never asked before.
const START: u32 = 64;
/// The budget is halved at most once in this time.
const HALVE_PAUSE: Duration = Duration::from_secs(5);
/// The budget grows by one in this time.
const GROW_PAUSE: Duration = Duration::from_secs(10);

/// The answers of two nodes belong together if they come within this time.
const TOGETHER: Duration = Duration::from_secs(60);
/// Docker Hub's name in image names, and the domain of its hosts.
const DOCKER_HUB: (&str, &str) = ("docker.io", ".docker.io");

/// One registry host.
#[derive(Debug)]
pub struct Registry {
    /// Its name, as in image names.
    pub host: Arc<str>,
    limit: u32,
    /// Pulls that the budget counts.
    used: u32,
    /// Pulls that have left the budget and still run.
    long: u32,
    /// When the budget grew last; `None`: it was never used.
    grown: Option<Tick>,
    /// When the registry asked for fewer requests last; `None`: never.
    halved: Option<Tick>,
    /// The last two nodes that pulled from it.
    pulling: [Option<NodeIdx>; 2],
    /// The last node that was asked for fewer requests, and when.
    limited: Option<(NodeIdx, Tick)>,
    /// Nodes that wait, the most urgent first.
    waiting: BTreeSet<(Reverse<i32>, NodeIdx)>,
}

/// How a registry's budget stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pulls that may run.
    pub limit: u32,
    /// Pulls that run and count.
    pub used: u32,
    /// Pulls that run and have left the budget.
    pub long: u32,
}

impl Registry {
    fn new(host: Arc<str>) -> Self {
        Self {
            host,
            limit: START,
            used: 0,
            long: 0,
            grown: None,
            halved: None,
            pulling: [None, None],
            limited: None,
            waiting: BTreeSet::new(),
        }
    }

    /// How many more pulls may start, with the budget as it was used last.
    pub fn room(&self, ceiling: u32) -> u32 {
        self.room_in(self.limit, ceiling, 0)
    }

    /// How many more pulls may start now, beside so many that are planned.
    pub fn room_now(&self, ceiling: u32, now: Tick, planned: u32) -> u32 {
        self.room_in(self.growth(ceiling, now).0, ceiling, planned)
    }

    fn room_in(&self, limit: u32, ceiling: u32, planned: u32) -> u32 {
        let used = self.used + planned;
        let in_budget = limit.saturating_sub(used);
        in_budget.min(ceiling.max(1).saturating_sub(used + self.long))
    }

    /// Notes that a node pulls from it.
    pub fn pulls(&mut self, node: NodeIdx) {
        let [last, before] = &mut self.pulling;
        if *last != Some(node) {
            *before = last.replace(node);
        }
    }

    /// Is this answer the registry's own? An image may have layers of other hosts, and their answers concern
    /// nobody else's images.
    pub fn says(&self, message: &str) -> bool {
        let hosts = message.split("://").skip(1);
        let mut hosts = hosts.map(|rest| {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-.:[]".contains(c)));
            rest[..end.unwrap_or(rest.len())].trim_end_matches(':')
        });
        let (hub, domain) = DOCKER_HUB;
        hosts.all(|host| host == &*self.host || &*self.host == hub && host.ends_with(domain))
    }

    /// Counts pulls that start.
    pub fn take(&mut self, pulls: u32) {
        self.used += pulls;
    }

    /// Counts pulls that ended. `long`: they had left the budget.
    pub fn give_back(&mut self, pulls: u32, long: bool) {
        let from = if long { &mut self.long } else { &mut self.used };
        *from = from.saturating_sub(pulls);
    }

    /// Lets pulls that go on leave the budget.
    pub fn leave(&mut self, pulls: u32) {
        self.used = self.used.saturating_sub(pulls);
        self.long += pulls;
    }

    /// Notes that the registry asked a node for fewer requests.
    pub fn rate_limited(&mut self, node: NodeIdx, now: Tick) {
        let [last, before] = self.pulling;
        let alone = before.is_none() && last.is_none_or(|last| last == node);
        let together = |(other, at): (NodeIdx, Tick)| other != node && at.after(TOGETHER) > now;
        let agreed = alone || self.limited.is_some_and(together);
        self.limited = Some((node, now));
        if !agreed || self.halved.is_some_and(|at| at.after(HALVE_PAUSE) > now) {
            return;
        }
        self.limit = (self.limit / 2).max(1);
        self.halved = Some(now);
        self.grown = Some(now);
    }

    /// Notes that a node waits.
    pub fn wait(&mut self, priority: i32, node: NodeIdx) {
        self.waiting.insert((Reverse(priority), node));
    }

    /// Takes the most urgent of the waiting nodes.
    pub fn next_waiting(&mut self) -> Option<NodeIdx> {
        self.waiting.pop_first().map(|(_, node)| node)
    }

    /// When the budget grows next, if a node waits for that.
    pub fn grows_at(&self, ceiling: u32) -> Option<Tick> {
        let waits = !self.waiting.is_empty() && self.limit < ceiling;
        waits.then(|| self.grown.unwrap_or_default().after(GROW_PAUSE))
    }

    /// Lets the budget grow for the time that has passed.
    pub fn grow(&mut self, ceiling: u32, now: Tick) {
        let (limit, grown) = self.growth(ceiling, now);
        (self.limit, self.grown) = (limit, Some(grown));
    }

    /// The budget now, and when it grew last.
    fn growth(&self, ceiling: u32, now: Tick) -> (u32, Tick) {
        let (mut limit, mut grown) = (self.limit, self.grown.unwrap_or(now));
        while limit < ceiling && grown.after(GROW_PAUSE) <= now {
            limit += 1;
            grown = grown.after(GROW_PAUSE);
        }
        if limit >= ceiling {
            grown = now;
        }
        (limit, grown)
    }

    /// The budget as it was used last.
    pub fn budget(&self) -> Budget {
        Budget {
            limit: self.limit,
            used: self.used,
            long: self.long,
        }
    }

    /// How many nodes wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the registry asked for fewer requests last; `None`: never.
    pub fn limited_at(&self) -> Option<Tick> {
        self.halved
    }
}

/// All registries in use. A number is used again after nothing uses its registry any more.
#[derive(Debug, Default)]
pub struct Registries {
    ids: BTreeMap<Arc<str>, RegistryId>,
    all: Vec<Registry>,
    free: Vec<RegistryId>,
}

impl Registries {
    /// The number of a host; a new host gets one.
    pub fn intern(&mut self, host: &str) -> RegistryId {
        if let Some(id) = self.ids.get(host) {
            return *id;
        }
        let host: Arc<str> = host.into();
        let registry = Registry::new(host.clone());
        let id = if let Some(id) = self.free.pop() {
            self.all[id.index()] = registry;
            id
        } else {
            self.all.push(registry);
            RegistryId::from_index(self.all.len() - 1)
        };
        self.ids.insert(host, id);
        id
    }

    /// How many registries have a number.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Frees the numbers of registries that are not `used`, and returns them. A registry that asked for fewer
    /// requests is kept until its budget has grown again, so that nobody resets it by an edit.
    pub fn sweep(&mut self, used: &IdSet<RegistryId>, now: Tick) -> Vec<RegistryId> {
        let unused =
            |id: &RegistryId| !used.contains(*id) && self.get(*id).growth(START, now).0 >= START;
        let gone: Vec<RegistryId> = self.ids.values().copied().filter(unused).collect();
        self.ids.retain(|_, id| !gone.contains(id));
        self.free.extend(&gone);
        gone
    }

    /// A registry.
    pub fn get(&self, id: RegistryId) -> &Registry {
        &self.all[id.index()]
    }

    /// A registry, to be changed.
    pub fn get_mut(&mut self, id: RegistryId) -> &mut Registry {
        &mut self.all[id.index()]
    }

    /// All registries, sorted by host.
    pub fn iter(&self) -> impl Iterator<Item = &Registry> {
        self.ids.values().map(|id| self.get(*id))
    }

    /// Begins a term: nothing runs and no node waits. Budgets that registries have halved stay so.
    pub fn begin_term(&mut self, ceiling: u32, now: Tick) {
        for registry in &mut self.all {
            registry.grow(ceiling, now);
            (registry.used, registry.long) = (0, 0);
            (registry.pulling, registry.limited) = ([None, None], None);
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

    /// Room now; the budget grows, as it does before pulls start.
    fn room(registry: &mut Registry, ceiling: u32, now: Tick) -> u32 {
        let room = registry.room_now(ceiling, now, 0);
        registry.grow(ceiling, now);
        assert_eq!(registry.room(ceiling), room);
        room
    }

    /// Two nodes are asked for fewer requests.
    fn limited(registry: &mut Registry, now: Tick) {
        for node in [1, 2].map(NodeIdx::from_index) {
            registry.pulls(node);
            registry.rate_limited(node, now);
        }
    }

    #[test]
    fn the_word_of_one_node_among_others_halves_no_budget() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        room(registry, 512, Tick(100 * S));
        let [rogue, other] = [1, 2].map(NodeIdx::from_index);
        registry.pulls(rogue);
        registry.rate_limited(rogue, Tick(100 * S));
        assert_eq!(room(registry, 512, Tick(101 * S)), 32, "no other pulls");
        registry.pulls(other);
        registry.pulls(rogue);
        for second in 0..100 {
            registry.rate_limited(rogue, Tick((106 + second) * S));
        }
        assert_eq!(room(registry, 512, Tick(106 * S)), 32);
        registry.rate_limited(other, Tick(206 * S));
        assert!(room(registry, 512, Tick(206 * S)) <= 21);
    }

    #[test]
    fn an_answer_of_another_host_is_not_the_registrys() {
        let mut registries = Registries::default();
        let mut says = |host: &str, message: &str| {
            let id = registries.intern(host);
            registries.get(id).says(message)
        };
        let own =
            "unexpected status code https://r.test:5000/v2/a/manifests/1: 429 Too Many Requests";
        let layer =
            "failed open: unexpected status code http://layers.test/x: 429 Too Many Requests";
        assert!(says("r.test:5000", own) && !says("r.test:5000", layer));
        assert!(says("r.test:5000", "toomanyrequests: slow down"));
        assert!(says(
            "docker.io",
            &own.replace("r.test:5000", "registry-1.docker.io")
        ));
        assert!(!says("docker.io", layer) && !says("docker.io", own));
        assert!(says("[::1]:5000", &own.replace("r.test", "[::1]")));
    }

    #[test]
    fn a_registry_begins_with_64_and_halves_at_most_once_in_five_seconds() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        assert_eq!(room(registry, 512, Tick(100 * S)), 64);
        limited(registry, Tick(101 * S));
        limited(registry, Tick(105 * S));
        assert_eq!(room(registry, 512, Tick(105 * S)), 32);
        limited(registry, Tick(106 * S));
        assert_eq!(room(registry, 512, Tick(106 * S)), 16);
    }

    #[test]
    fn the_budget_grows_by_one_in_ten_quiet_seconds_up_to_the_ceiling() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        room(registry, 512, Tick(100 * S));
        for second in 0..20 {
            limited(registry, Tick((100 + 5 * second) * S));
        }
        assert_eq!(room(registry, 512, Tick(195 * S)), 1);
        assert_eq!(room(registry, 512, Tick(204 * S)), 1);
        assert_eq!(room(registry, 512, Tick(205 * S)), 2);
        assert_eq!(room(registry, 4, Tick(9999 * S)), 4);
    }

    #[test]
    fn a_ceiling_below_64_holds_from_the_first_pull() {
        let mut registries = Registries::default();
        assert_eq!(room(registry(&mut registries), 8, Tick(100 * S)), 8);
    }

    #[test]
    fn long_pulls_leave_the_budget_but_count_against_the_ceiling() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        registry.take(64);
        assert_eq!(room(registry, 100, Tick(100 * S)), 0);
        registry.leave(64);
        assert_eq!(room(registry, 100, Tick(100 * S)), 36);
        registry.give_back(64, true);
        assert_eq!(room(registry, 100, Tick(100 * S)), 64);
    }

    #[test]
    fn the_most_urgent_node_is_served_first() {
        let mut registries = Registries::default();
        let registry = registry(&mut registries);
        assert_eq!(room(registry, 512, Tick(100 * S)), 64);
        assert_eq!(registry.grows_at(512), None, "nobody waits");
        let [one, two] = [1, 2].map(NodeIdx::from_index);
        registry.wait(0, one);
        registry.wait(7, two);
        assert_eq!(registry.grows_at(512), Some(Tick(110 * S)));
        assert_eq!(registry.next_waiting(), Some(two));
        assert_eq!(registry.next_waiting(), Some(one));
        assert_eq!(registry.next_waiting(), None);
    }
}
