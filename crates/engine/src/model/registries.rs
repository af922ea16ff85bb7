//! How many pulls may run from one registry host at a time. The controller's flags say with how many a registry
//! begins and how many it never exceeds; the ceiling may differ by host. The budget halves when the registry asks two nodes
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
    vocabulary::{Settings, Tick},
};

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
    /// Its budget before the first answer.
    start: u32,
    /// Most pulls at a time, those included that have left the budget.
    ceiling: u32,
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
    fn new(host: Arc<str>, start: u32, ceiling: u32) -> Self {
        Self {
            host,
            start,
            ceiling,
            limit: start,
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
    pub fn room(&self) -> u32 {
        self.room_in(self.limit, 0)
    }

    /// How many more pulls may start now, beside so many that are planned.
    pub fn room_now(&self, now: Tick, planned: u32) -> u32 {
        self.room_in(self.growth(now).0, planned)
    }

    fn room_in(&self, limit: u32, planned: u32) -> u32 {
        let used = self.used + planned;
        let in_budget = limit.saturating_sub(used);
        in_budget.min(self.ceiling.saturating_sub(used + self.long))
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
    pub fn grows_at(&self) -> Option<Tick> {
        let waits = !self.waiting.is_empty() && self.limit < self.ceiling;
        waits.then(|| self.grown.unwrap_or_default().after(GROW_PAUSE))
    }

    /// Lets the budget grow for the time that has passed.
    pub fn grow(&mut self, now: Tick) {
        let (limit, grown) = self.growth(now);
        (self.limit, self.grown) = (limit, Some(grown));
    }

    /// The budget now, and when it grew last.
    fn growth(&self, now: Tick) -> (u32, Tick) {
        let ceiling = self.ceiling;
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

    /// The number of a host; a new host gets one.
    pub fn intern(&mut self, host: &str) -> RegistryId {
        if let Some(id) = self.ids.get(host) {
            return *id;
        }
        let host: Arc<str> = host.into();
        let registry = self.limits.registry(host.clone());
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
        let recovered = |registry: &Registry| registry.growth(now).0 >= registry.start;
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
