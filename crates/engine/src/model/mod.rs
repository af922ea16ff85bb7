//! What is known: objects, nodes, observations, calls in flight. Plain data that keeps itself consistent; no
//! decision is made here.

pub mod applied;
pub mod auto_refresh;
pub mod backoff;
pub mod cache;
pub mod clock;
pub mod deletion;
pub mod desired;
pub mod facts;
pub mod gate;
pub mod image_set;
pub mod images;
pub mod in_flight;
pub mod last_operation;
pub mod lists;
pub mod losses;
pub mod names;
pub mod node;
pub mod node_status;
pub mod observations;
pub mod operation;
pub mod peers;
pub mod pending;
pub mod registries;
pub mod retention;
pub mod scopes;
pub mod selector;
pub mod source;
pub mod sources;
pub mod sweep;
pub mod texts;
pub mod workloads;
pub mod writer;

use std::{collections::BTreeMap, ops, sync::Arc};

use crate::{
    ids::{CacheIdx, ImageId, Index, NodeIdx, ScopeId, SetIdx, Stamp},
    vocabulary::{CacheKey, CacheObject, NodeName, Now, Settings, Source, Tick},
};

use cache::Cache;
use clock::Clock;
use gate::GateWrites;
use in_flight::InFlight;
use lists::Lists;
use names::Names;
use node::Node;
use node_status::NodeStatus;
use peers::Peers;
use sources::Sources;
use texts::Texts;
use workloads::Workloads;

/// A freshness probe: one node asks a registry whether an image is still the same, and the other nodes that
/// hold the image wait for the answer.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Which node asks.
    pub node: NodeIdx,
    /// Stamp of the batch to which the registry gave no answer; `None`: none failed yet.
    pub failed: Option<Stamp>,
}

/// Whether this process leads, and whether it has heard everything that it needs to decide.
#[derive(Debug, Default)]
pub struct Leadership {
    /// The term in which it leads; `None`: it stands by.
    pub term: Option<u64>,
    /// The term has begun: caches and nodes were taken up.
    pub begun: bool,
    synced: Synced,
}

/// Sources that have delivered everything that existed when they began.
#[derive(Debug, Default)]
struct Synced {
    caches: bool,
    nodes: bool,
    pullers: bool,
}

impl Leadership {
    /// Notes that a source has delivered everything that existed when it began.
    pub fn synced(&mut self, source: Source) {
        match source {
            Source::Caches => self.synced.caches = true,
            Source::Nodes => self.synced.nodes = true,
            Source::Pullers => self.synced.pullers = true,
            Source::Placement | Source::Watch(_) => {}
        }
    }

    /// May decisions be made?
    pub fn leads(&self) -> bool {
        let Synced {
            caches,
            nodes,
            pullers,
        } = self.synced;
        self.term.is_some() && caches && nodes && pullers
    }

    /// The term; 0 without one.
    pub fn term(&self) -> u64 {
        self.term.unwrap_or_default()
    }
}

/// All caches.
#[derive(Debug, Default)]
pub struct Caches {
    all: BTreeMap<CacheIdx, Cache>,
    by_key: BTreeMap<CacheKey, CacheIdx>,
    used: usize,
}

impl Caches {
    /// Number of the cache of this name.
    pub fn find(&self, key: &CacheKey) -> Option<CacheIdx> {
        self.by_key.get(key).copied()
    }

    /// A new number for the object of this name.
    pub fn number(&mut self, key: CacheKey) -> CacheIdx {
        self.used += 1;
        let idx = CacheIdx::from_index(self.used);
        self.by_key.insert(key, idx);
        idx
    }

    /// A cache, if it still exists.
    pub fn get(&self, idx: CacheIdx) -> Option<&Cache> {
        self.all.get(&idx)
    }

    /// A cache, if it still exists, to be changed.
    pub fn get_mut(&mut self, idx: CacheIdx) -> Option<&mut Cache> {
        self.all.get_mut(&idx)
    }

    /// Sets the cache of a number, and returns the one before.
    pub fn set(&mut self, idx: CacheIdx, cache: Cache) -> Option<Cache> {
        self.all.insert(idx, cache)
    }

    /// Takes out the cache of a name that is deleted.
    pub fn remove(&mut self, key: &CacheKey) -> Option<(CacheIdx, Option<Cache>)> {
        let idx = self.by_key.remove(key)?;
        Some((idx, self.all.remove(&idx)))
    }

    /// Takes out all caches, to take them up anew.
    pub fn take(&mut self) -> impl Iterator<Item = Cache> + use<> {
        self.by_key.clear();
        std::mem::take(&mut self.all).into_values()
    }

    /// All caches, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (CacheIdx, &Cache)> {
        self.all.iter().map(|(idx, cache)| (*idx, cache))
    }

    /// All caches, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (CacheIdx, &mut Cache)> {
        self.all.iter_mut().map(|(idx, cache)| (*idx, cache))
    }

    /// All caches without their numbers.
    pub fn values(&self) -> impl Iterator<Item = &Cache> {
        self.all.values()
    }

    /// Numbers by name.
    pub fn by_key(&self) -> &BTreeMap<CacheKey, CacheIdx> {
        &self.by_key
    }
}

impl ops::Index<CacheIdx> for Caches {
    type Output = Cache;

    fn index(&self, idx: CacheIdx) -> &Cache {
        &self.all[&idx]
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Nodes {
    slots: Vec<Node>,
    by_name: BTreeMap<NodeName, NodeIdx>,
    free: Vec<NodeIdx>,
}

impl Nodes {
    /// Slot of the node of this name.
    pub fn find(&self, name: &NodeName) -> Option<NodeIdx> {
        self.by_name.get(name).copied()
    }

    /// Slot for a new node, and whether there is one slot more now.
    fn claim(&mut self, name: NodeName) -> (NodeIdx, bool) {
        let free = self.free.pop();
        let idx = free.unwrap_or_else(|| {
            self.slots.push(Node::default());
            NodeIdx::from_index(self.slots.len() - 1)
        });
        self[idx].name = Some(name.clone());
        self.by_name.insert(name, idx);
        (idx, free.is_none())
    }

    /// Frees the slot of a node that is gone.
    pub fn release(&mut self, idx: NodeIdx) {
        if let Some(name) = self[idx].name.take() {
            self.by_name.remove(&name);
        }
        self[idx].forget();
        self.free.push(idx);
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// All slots, free ones included.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIdx, &Node)> {
        let slots = self.slots.iter().enumerate();
        slots.map(|(idx, node)| (NodeIdx::from_index(idx), node))
    }

    /// All slots, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.slots.iter_mut()
    }

    /// Slots by name.
    pub fn by_name(&self) -> &BTreeMap<NodeName, NodeIdx> {
        &self.by_name
    }
}

impl ops::Index<NodeIdx> for Nodes {
    type Output = Node;

    fn index(&self, idx: NodeIdx) -> &Node {
        &self.slots[idx.index()]
    }
}

impl ops::IndexMut<NodeIdx> for Nodes {
    fn index_mut(&mut self, idx: NodeIdx) -> &mut Node {
        &mut self.slots[idx.index()]
    }
}

/// What the engine knows.
#[derive(Debug, Default)]
pub struct Model {
    /// The controller's flags.
    pub settings: Settings,
    /// Numbers of images, registries and credential scopes.
    pub names: Names,
    /// Texts that many rows share.
    pub texts: Texts,
    /// Lists of names that many calls share.
    pub lists: Lists<Arc<str>>,
    /// The same of images.
    pub image_lists: Lists<ImageId>,
    /// Stamps and their times.
    pub clock: Clock,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// All caches.
    pub caches: Caches,
    /// All nodes.
    pub nodes: Nodes,
    /// Which nodes get a puller; `None`: not known.
    pub placement: Option<selector::PullerSelector>,
    /// Batches in flight.
    pub in_flight: InFlight,
    /// Freshness probes, by image and credentials.
    pub probes: BTreeMap<(ImageId, ScopeId), Probe>,
    /// Layers that nodes take from each other.
    pub peers: Peers,
    /// Objects with which their namespace would name too many images. They wait for room.
    pub refused: BTreeMap<CacheKey, CacheObject>,
    /// Writes to Node objects.
    pub gate_writes: GateWrites,
    /// Workloads that name images.
    pub workloads: Workloads,
    /// Images that vanished from nodes since the process began.
    pub lost: u64,
}

impl Model {
    /// Later than every batch and operation so far.
    pub fn next_stamp(&mut self, now: Now) -> Stamp {
        self.clock.next(now.wall, self.settings.check_interval)
    }

    /// Slot of a node, a new one for a new name.
    pub fn claim_node(&mut self, name: NodeName) -> NodeIdx {
        if let Some(idx) = self.nodes.find(&name) {
            return idx;
        }
        let (idx, grown) = self.nodes.claim(name);
        if grown {
            for (_, cache) in self.caches.iter_mut() {
                cache.nodes.rows.push(NodeStatus::default());
            }
        }
        idx
    }

    /// Reads the sources of a cache's spec, which may be another one now, and all workloads that they select.
    pub fn read_sources(&mut self, idx: CacheIdx) {
        let Some(cache) = self.caches.all.get_mut(&idx) else {
            return;
        };
        let before = cache.sources.take();
        self.workloads.stale |= before.is_some();
        let object = &cache.object;
        let access = &self.settings.workloads;
        cache.sources = Sources::new(before, &object.key, &object.spec, access);
        let Some(sources) = &mut cache.sources else {
            self.workloads.followers.remove(&idx);
            return;
        };
        sources.fill(&self.workloads);
        self.workloads.followers.insert(idx);
        self.workloads.stale = true;
    }

    /// Matches every node with the lists of a cache.
    pub fn match_nodes(&mut self, idx: CacheIdx) {
        let Some(cache) = self.caches.all.get_mut(&idx) else {
            return;
        };
        for (row, node) in cache.nodes.rows.iter_mut().zip(&self.nodes.slots) {
            row.select(match (&node.name, &node.facts) {
                (Some(name), Some(facts)) => cache.desired.select(name, facts, &self.names.images),
                _ => SetIdx::default(),
            });
        }
    }

    /// Until when a node that is unfit for a moment stays in operations; `None`: it is eligible, or barred for good.
    pub fn unfit_until(&self, node: &Node) -> Option<Tick> {
        let since = node.facts.as_ref()?.unfit_since?;
        Some(since.after(self.settings.puller_grace))
    }

    /// Is an image known to be so small that nobody waits for a node that fetches it?
    pub fn is_small(&self, image: ImageId) -> bool {
        let size = self.peers.size(image);
        size > 0 && size < self.settings.peers.min_image_size
    }

    /// Digest of the image that a node has under a name; `None`: it has none, or that is not known.
    pub fn digest(&self, node: NodeIdx, image: ImageId) -> Option<Arc<str>> {
        let digest = self.nodes[node].observed.get(image).digest?;
        self.names.images.get(image).text(digest).cloned()
    }

    /// Has some node asked the registry for all, and got no answer since this stamp?
    pub fn probe_failed(&self, image: ImageId, credentials: ScopeId, since: Stamp) -> bool {
        let probe = self.probes.get(&(image, credentials));
        probe.and_then(|probe| probe.failed) >= Some(since)
    }
}
