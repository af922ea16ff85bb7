//! How many pulls may run from one registry host at a time. The controller's flags say with how many a registry
//! begins and how many it never exceeds; the ceiling may differ by host. [`growth`] says how the budget grows, and that it halves
//! when the registry asks two nodes for fewer requests (one, if no other pulls from it). One node alone may lie, or has a limit
//! of its own: only its pull waits. A pull without an outcome for long leaves the budget, so that a new node does not wait for the
//! large images of other nodes; the ceiling still counts it.

mod growth;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    ids::{IdSet, Index, NodeIdx, RegistryId},
    vocabulary::{KnownBudget, Settings, Tick},
};

pub use growth::Began;
use growth::Growth;

/// The answers of two nodes belong together if they come within this time.
const TOGETHER: Duration = Duration::from_secs(60);
/// Docker Hub's name in image names, and the domain of its hosts.
const DOCKER_HUB: (&str, &str) = ("docker.io", ".docker.io");

/// One registry host.
#[derive(Debug)]
pub struct Registry {
    /// Its name, as in image names.
    pub host: Arc<str>,
    /// Its budget before the first answer.
    start: u32,
    /// How many pulls may run.
    growth: Growth,
    /// Pulls that the budget counts.
    used: u32,
    /// Pulls that have left the budget and still run.
    long: u32,
    /// The last two nodes that pulled from it.
    pulling: [Option<NodeIdx>; 2],
    /// The last node that was asked for fewer requests, and when.
    limited: Option<(NodeIdx, Tick)>,
    /// When two nodes were; `None`: never.
    limited_at: Option<Tick>,
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
    fn new(host: Arc<str>, start: u32, ceiling: u32) -> Self {
        Self {
            host,
            start,
            growth: Growth::new(start, ceiling),
            used: 0,
            long: 0,
            pulling: [None, None],
            limited: None,
            limited_at: None,
            waiting: BTreeSet::new(),
        }
    }

    /// How many more pulls may start, with the budget as it was used last.
    pub fn room(&self) -> u32 {
        self.room_in(self.growth.limit(), 0)
    }

    /// How many more pulls may start now, beside so many that are planned. A node that `wants` several gets all of them or
    /// none, while others pull: a call with one image costs as much as one with hundreds, and its place would be left for
    /// another such call.
    pub fn room_now(&self, now: Tick, planned: u32, wants: u32) -> u32 {
        let limit = self.growth.limit_at(now);
        let room = self.room_in(limit, planned);
        let others_pull = self.used + planned > 0;
        if others_pull && room < wants.min(limit) {
            0
        } else {
            room
        }
    }

    fn room_in(&self, limit: u32, planned: u32) -> u32 {
        let used = self.used + planned;
        let in_budget = limit.saturating_sub(used);
        in_budget.min(self.growth.ceiling().saturating_sub(used + self.long))
    }

    /// How many more pulls may be counted that run already, beside so many that are planned: their answers cannot wait for the
    /// budget.
    pub fn room_for_running(&self, planned: u32) -> u32 {
        let counted = self.used + planned + self.long;
        self.growth.ceiling().saturating_sub(counted)
    }

    /// Is it known that it bears so many pulls more at a time, beside so many that are planned?
    pub fn is_proven(&self, planned: u32, more: u32) -> bool {
        self.growth.is_proven(self.used + planned + more)
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
    pub fn take(&mut self, pulls: u32, now: Tick) -> Began {
        self.used += pulls;
        let tries = pulls > 0 && !self.growth.is_proven(self.used);
        Began {
            at: now,
            unproven: tries.then_some(self.used),
        }
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

    /// Notes that the registry answered a pull, which brought so many bytes.
    pub fn answered(&mut self, bytes: u64, began: Began, now: Tick) {
        let waits = !self.waiting.is_empty();
        self.growth.answered(now, bytes, began, waits);
    }

    /// Notes that the registry asked a node for fewer requests.
    pub fn rate_limited(&mut self, node: NodeIdx, began: Began, now: Tick) {
        let together = |(other, at): (NodeIdx, Tick)| other != node && at.after(TOGETHER) > now;
        let agreed = self.is_alone(node) || self.limited.is_some_and(together);
        self.limited = Some((node, now));
        if agreed {
            self.growth.refused(now, self.used, began);
            self.limited_at = Some(now);
        }
    }

    /// Notes that a node's pull failed because of the registry.
    pub fn failed(&mut self, node: NodeIdx, now: Tick) {
        let alone = self.is_alone(node);
        self.growth.failed(now, node, alone, self.used);
    }

    /// Does no other node pull from it?
    fn is_alone(&self, node: NodeIdx) -> bool {
        let [last, before] = self.pulling;
        before.is_none() && last.is_none_or(|last| last == node)
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
    pub fn grows_at(&self) -> Option<Tick> {
        self.growth.grows_at().filter(|_| !self.waiting.is_empty())
    }

    /// Lets the budget grow for the time that has passed.
    pub fn grow(&mut self, now: Tick) {
        self.growth.grow(now);
    }

    /// The budget as it was used last.
    pub fn budget(&self) -> Budget {
        Budget {
            limit: self.growth.limit(),
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
        self.limited_at
    }

    /// What a new leader is told of it.
    fn known(&self) -> Option<(Arc<str>, KnownBudget)> {
        Some((self.host.clone(), self.growth.known(self.start)?))
    }
}

/// With how many pulls registries begin, and their ceilings.
#[derive(Debug)]
struct Limits {
    start: u32,
    most: u32,
    by_host: BTreeMap<String, u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Settings::default())
    }
}

impl Limits {
    fn of(settings: &Settings) -> Self {
        Self {
            start: settings.initial_registry_pulls,
            most: settings.max_registry_pulls,
            by_host: settings.max_registry_pulls_by_host.clone(),
        }
    }

    fn registry(&self, host: Arc<str>) -> Registry {
        let ceiling = self.by_host.get(&*host).copied().unwrap_or(self.most);
        let ceiling = ceiling.max(1);
        Registry::new(host, self.start.clamp(1, ceiling), ceiling)
    }
}

/// All registries in use. A number is used again after nothing uses its registry any more.
#[derive(Debug, Default)]
pub struct Registries {
    limits: Limits,
    /// What the leader before knew of registries.
    known: Vec<(Arc<str>, KnownBudget)>,
    ids: BTreeMap<Arc<str>, RegistryId>,
    all: Vec<Registry>,
    free: Vec<RegistryId>,
}

impl Registries {
    /// None yet; those to come have the limits of these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            limits: Limits::of(settings),
            ..Self::default()
        }
    }

    /// Takes over what the leader before knew.
    pub fn restore(&mut self, known: Vec<(Arc<str>, KnownBudget)>) {
        for (host, budget) in &known {
            if let Some(id) = self.ids.get(host).copied() {
                self.get_mut(id).growth.restore(*budget);
            }
        }
        self.known = known;
    }

    /// What a new leader is told: of these many registries at most, sorted by host. Those with the largest budgets come first, so that
    /// hosts that answer nobody displace none that serves the fleet.
    pub fn known(&self, most: usize) -> Vec<(Arc<str>, KnownBudget)> {
        let mut known: Vec<_> = self.iter().filter_map(Registry::known).collect();
        known.sort_by_key(|(_, budget)| Reverse(budget.limit));
        known.truncate(most);
        known.sort_by(|(one, _), (other, _)| one.cmp(other));
        known
    }

    /// The number of a host; a new host gets one.
    pub fn intern(&mut self, host: &str) -> RegistryId {
        if let Some(id) = self.ids.get(host) {
            return *id;
        }
        let host: Arc<str> = host.into();
        let mut registry = self.limits.registry(host.clone());
        if let Some(known) = self.known.iter().find(|(known, _)| *known == host) {
            registry.growth.restore(known.1);
        }
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
        let recovered = |registry: &Registry| registry.growth.limit_at(now) >= registry.start;
        let unused = |id: &RegistryId| !used.contains(*id) && recovered(self.get(*id));
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
    pub fn begin_term(&mut self, now: Tick) {
        for registry in &mut self.all {
            registry.grow(now);
            (registry.used, registry.long) = (0, 0);
            (registry.pulling, registry.limited) = ([None, None], None);
            registry.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests;
