//! Layers that nodes take from each other: for each image and each cell of nodes, who has it, who waits for it, who
//! fetches it from the registry for the others, and who takes it from whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::Tick;

use super::facts::Facts;
use crate::{
    ids::{CellId, IdSet, ImageId, Index, NodeIdx},
    vocabulary::MovedBytes,
};

/// Layers are not taken across zones, because that costs money and the narrowest line.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes of another platform have other layers.
const PLATFORM: [&str; 2] = ["kubernetes.io/os", "kubernetes.io/arch"];

/// One image in one cell.
pub type SwarmKey = (ImageId, CellId);

/// Where the layers of a pull come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Supply {
    /// From the registry.
    #[default]
    Registry,
    /// From the registry, and other nodes wait for it: this node is a seed.
    Seed,
    /// From other nodes.
    Peers(Parents),
}

impl Supply {
    /// Without the nodes.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Registry => Origin::Registry,
            Self::Seed => Origin::Seed,
            Self::Peers(_) => Origin::Peers,
        }
    }
}

/// Where the layers of a pull come from, without the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// See [`Supply::Registry`].
    Registry,
    /// See [`Supply::Seed`].
    Seed,
    /// See [`Supply::Peers`].
    Peers,
}

/// From whom a node takes an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parents {
    /// Digest of the image, as a runtime reported it: `sha256:...`
    pub digest: Arc<str>,
    /// For even layers and for odd ones: the two stripes. May be one node.
    pub nodes: [NodeIdx; 2],
}

/// A node that fetches an image for others.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// When it was chosen.
    pub since: Tick,
    /// When it last made progress.
    pub progress: Tick,
    /// Bytes that it has.
    pub done: u64,
}

impl Seed {
    /// One that is chosen now.
    pub fn new(now: Tick) -> Self {
        Self {
            since: now,
            progress: now,
            done: 0,
        }
    }
}

/// One image in one cell.
#[derive(Debug, Default)]
pub struct Swarm {
    /// Nodes that lack the image.
    pub lacking: usize,
    /// The most that lacked it or waited for it, since nobody did.
    pub peak: usize,
    /// Nodes that have it.
    pub holders: IdSet<NodeIdx>,
    /// Nodes that wait for it.
    pub waiting: IdSet<NodeIdx>,
    /// How many nodes take it from others.
    pub taking: usize,
    /// Nodes that fetch it from the registry for the others.
    pub seeds: BTreeMap<NodeIdx, Seed>,
    /// Some node that waits must ask the registry for the newest image.
    pub asks: bool,
    /// The highest priority with which a node waits.
    pub priority: i32,
    /// Seeds that failed in a row, because of the registry.
    pub failures: u32,
    /// Since when nodes wait; `None`: none does.
    pub since: Option<Tick>,
    /// When the image last came a step further: a seed was chosen, bytes came, a node got it.
    pub alive: Tick,
    /// When those that wait pull from the registry, if nothing changes.
    pub deadline: Tick,
}

impl Swarm {
    /// Notes that the image came a step further.
    pub fn stirs(&mut self, now: Tick) {
        self.alive = self.alive.max(now);
    }

    /// Notes that a node waits.
    pub fn wait(&mut self, node: NodeIdx, now: Tick) {
        if self.waiting.is_empty() {
            self.since = Some(now);
            self.alive = now;
        }
        self.waiting.insert(node);
        self.peak = self.peak.max(self.waiting.len());
    }

    /// How many nodes lack it and neither take nor fetch it.
    pub fn idle(&self) -> usize {
        self.lacking.saturating_sub(self.taking + self.seeds.len())
    }

    /// Notes that nodes wait for their turn to fetch it, behind other images: their wait has not begun.
    pub fn queue(&mut self, now: Tick) {
        (self.since, self.alive) = (Some(now), now);
    }

    /// Notes that a node waits no more.
    pub fn leave(&mut self, node: NodeIdx) {
        self.waiting.remove(node);
        if self.waiting.is_empty() {
            (self.since, self.asks, self.priority) = (None, false, i32::MIN);
            self.rest();
        }
    }

    /// Notes that one node less lacks it.
    pub fn gained(&mut self) {
        self.lacking = self.lacking.saturating_sub(1);
        self.rest();
    }

    /// Forgets the past once nobody lacks it or waits for it.
    fn rest(&mut self) {
        if self.lacking == 0 && self.waiting.is_empty() {
            (self.peak, self.failures) = (0, 0);
        }
    }

    fn is_unused(&self) -> bool {
        let nobody = self.lacking == 0 && self.waiting.is_empty();
        nobody && self.holders.is_empty() && self.seeds.is_empty()
    }
}

/// Nodes of one zone and one platform.
#[derive(Debug, Default)]
pub struct Cell {
    /// Zone, operating system and architecture.
    pub of: [Arc<str>; 3],
    /// Nodes that hand on nothing: each can serve a tree.
    pub idle: IdSet<NodeIdx>,
    /// Those of them that take nothing: each can join a tree.
    pub takers: IdSet<NodeIdx>,
    /// Nodes that fetch nothing for others.
    pub seeders: IdSet<NodeIdx>,
    /// When bytes of an image last came to one of its nodes, or a pull there ended.
    pub alive: Tick,
}

/// What one node takes from others and hands on to them.
#[derive(Debug, Default)]
pub struct NodePeers {
    /// Its cell; `None`: it takes no part.
    pub cell: Option<CellId>,
    /// It may take part: it has not said yet.
    pub unsure: bool,
    /// Images that it can hand on.
    pub holds: IdSet<ImageId>,
    /// Images that it lacks.
    pub lacks: IdSet<ImageId>,
    /// Images for which it waits.
    pub waits: IdSet<ImageId>,
    /// From where it may pull images now.
    pub offers: BTreeMap<ImageId, Supply>,
    /// How many images it takes from others.
    pub takes: usize,
    /// Who takes which image from it, and which stripe.
    pub uploads: BTreeSet<(NodeIdx, ImageId, usize)>,
}

impl NodePeers {
    /// Drops what is known of images whose numbers will mean others.
    pub fn forget_images(&mut self, images: &IdSet<ImageId>) {
        for image in images.iter() {
            self.holds.remove(image);
            self.lacks.remove(image);
            self.waits.remove(image);
            self.offers.remove(&image);
        }
        self.uploads
            .retain(|(_, image, _)| !images.contains(*image));
    }
}

/// All swarms and cells.
#[derive(Debug, Default)]
pub struct Peers {
    swarms: BTreeMap<SwarmKey, Swarm>,
    cells: Vec<Cell>,
    by_place: BTreeMap<[Arc<str>; 3], CellId>,
    /// Nodes that have not said yet whether they take part.
    pub unsure: usize,
    /// Nodes that take an image from others now.
    pub taking: usize,
    /// Bytes of compressed layers of images, as far as known.
    sizes: BTreeMap<ImageId, u64>,
    /// Images of which some node has another content than the registry had last.
    outdated: IdSet<ImageId>,
    /// Bytes that pulls moved since the process began.
    pub moved: MovedBytes,
}

impl Peers {
    /// A swarm, if somebody lacks or has the image.
    pub fn swarm(&self, key: SwarmKey) -> Option<&Swarm> {
        self.swarms.get(&key)
    }

    /// A swarm, to be changed, if somebody lacks or has the image.
    pub fn swarm_mut(&mut self, key: SwarmKey) -> Option<&mut Swarm> {
        self.swarms.get_mut(&key)
    }

    /// A swarm that a node joins.
    pub fn join(&mut self, key: SwarmKey) -> &mut Swarm {
        self.swarms.entry(key).or_default()
    }

    /// All swarms.
    pub fn swarms(&self) -> impl Iterator<Item = (SwarmKey, &Swarm)> {
        self.swarms.iter().map(|(key, swarm)| (*key, swarm))
    }

    /// The swarms of one image, in all cells.
    pub fn swarms_of(&self, image: ImageId) -> impl Iterator<Item = (CellId, &Swarm)> {
        let (first, last) = (CellId::from_index(0), CellId::from_index(self.cells.len()));
        let swarms = self.swarms.range((image, first)..(image, last));
        swarms.map(|((_, cell), swarm)| (*cell, swarm))
    }

    /// Drops a swarm that nobody is part of any more.
    pub fn tidy(&mut self, key: SwarmKey) {
        if self.swarms.get(&key).is_some_and(Swarm::is_unused) {
            self.swarms.remove(&key);
        }
    }

    /// A cell.
    pub fn cell(&self, id: CellId) -> &Cell {
        &self.cells[id.index()]
    }

    /// A cell, to be changed.
    pub fn cell_mut(&mut self, id: CellId) -> &mut Cell {
        &mut self.cells[id.index()]
    }

    /// The cell of a node.
    pub fn cell_of(&mut self, facts: &Facts) -> CellId {
        let [os, arch] = PLATFORM;
        let of = [ZONE, os, arch].map(|key| facts.shared_label(key));
        if let Some(known) = self.by_place.get(&of) {
            return *known;
        }
        let id = CellId::from_index(self.cells.len());
        self.cells.push(Cell {
            of: of.clone(),
            ..Cell::default()
        });
        self.by_place.insert(of, id);
        id
    }

    /// Do two cells have one platform?
    pub fn same_platform(&self, one: CellId, other: CellId) -> bool {
        self.cell(one).of[1..] == self.cell(other).of[1..]
    }

    /// Bytes of the compressed layers of an image; 0: not known.
    pub fn size(&self, image: ImageId) -> u64 {
        self.sizes.get(&image).copied().unwrap_or(0)
    }

    /// Notes the size of an image. True if it was not known.
    pub fn measure(&mut self, image: ImageId, bytes: u64) -> bool {
        bytes > 0 && self.sizes.insert(image, bytes) != Some(bytes)
    }

    /// Notes that nodes may have another content of an image than the registry.
    pub fn outdates(&mut self, image: ImageId) {
        self.outdated.insert(image);
    }

    /// Images of which some node may have another content than the registry.
    pub fn outdated(&self) -> &IdSet<ImageId> {
        &self.outdated
    }

    /// Drops images whose numbers will mean others.
    pub fn forget_images(&mut self, images: &IdSet<ImageId>) {
        self.swarms.retain(|(image, _), _| !images.contains(*image));
        self.sizes.retain(|image, _| !images.contains(*image));
        for image in images.iter() {
            self.outdated.remove(image);
        }
    }

    /// Another term begins: who has what is learned from checks. Sizes stay what they are.
    pub fn begin_term(&mut self) {
        let old = std::mem::take(self);
        *self = Self {
            sizes: old.sizes,
            moved: old.moved,
            ..Self::default()
        };
    }
}
