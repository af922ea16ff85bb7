//! From where an image is pulled. Of the nodes of a cell that lack an image, one fetches it from the registry: the seed.
//! The others wait until a node has it, and take the layers from there.
//!
//! [`NodeView::supply`] says what one node does about one image; [`arrange`] decides for all nodes that wait for one
//! image in one cell. Both change nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    context::NodeView,
    trees::{Joined, trees},
};
use crate::{
    ids::{IdSet, ImageId, NodeIdx},
    model::{
        Model,
        desired::DesiredImage,
        peers::{Parents, Seed, Supply, Swarm, SwarmKey},
    },
    vocabulary::{PeerNode, PeerPull, PullBlock, PullReason, Tick},
};

/// So long after its pull an image's layers are kept for others. The runtime holds them by a lease that ends by itself.
pub const HOLD: Duration = Duration::from_secs(10 * 60);
/// Fewer nodes of a cell pull as if they were alone.
pub const FEW: usize = 3;
/// A seed without progress for so long is replaced.
pub const STALLED: Duration = Duration::from_secs(10);
/// A node waits so long for its turn at a node that has a small image.
const SMALL_WAIT: Duration = Duration::from_secs(2);
/// A registry that needs longer for a small image is slow: then waiting is faster than a second download.
const SMALL_TIME: Duration = Duration::from_secs(1);
/// So long nodes gather before they take an image from a node that has it, if more of them are on their way: all of them
/// are served at a time, and who comes later is served after them.
const GATHER: Duration = Duration::from_secs(2);
/// A node waits for no image longer than this, whatever comes.
const LONGEST: Duration = Duration::from_secs(3600);
/// After so many seeds in a row the registry is to blame: every node asks for itself, and reports what it gets.
const FAILURES: u32 = 2;

impl NodeView<'_> {
    /// What was offered to the node for an image.
    pub fn offered(&self, image: ImageId) -> Supply {
        let offers = &self.node.peers.offers;
        offers.get(&image).cloned().unwrap_or_default()
    }

    /// The nodes of a supply, as the puller is told of them; `None`: everything comes from the registry.
    pub fn peers(&self, supply: &Supply) -> Option<PeerPull> {
        let Supply::Peers(Parents { digest, nodes }) = supply else {
            return None;
        };
        let mut nodes = nodes.to_vec();
        nodes.dedup();
        let node = |idx: NodeIdx| {
            let node = &self.model.nodes[idx];
            Some(PeerNode {
                name: node.name.clone()?,
                address: node.puller.as_ref()?.address,
            })
        };
        Some(PeerPull {
            digest: digest.clone(),
            nodes: nodes.into_iter().filter_map(node).collect(),
        })
    }

    /// From where the node pulls an image that must be pulled.
    pub fn supply(&self, desired: &DesiredImage, reason: PullReason) -> Result<Supply, PullBlock> {
        let Some(cell) = self.node.peers.cell else {
            return Ok(Supply::Registry);
        };
        if matches!(reason, PullReason::Pin | PullReason::FreshnessProbe) {
            return Ok(Supply::Registry);
        }
        if let Some(offer) = self.node.peers.offers.get(&desired.image) {
            return Ok(offer.clone());
        }
        let peers = &self.model.peers;
        let swarm = peers.swarm((desired.image, cell));
        // A node with an older image does not lack it: how many there are is seen when they wait.
        let alone = |swarm: &Swarm| are_few(swarm, peers.unsure);
        if reason != PullReason::Newer && swarm.is_none_or(alone) {
            return Ok(Supply::Registry);
        }
        let deadline = swarm.map_or(self.now, |swarm| swarm.deadline);
        Err(PullBlock::AwaitsSource(deadline.max(self.now)))
    }
}

/// Are there so few nodes that nobody waits? Nodes that have not said yet whether they take part may be more.
fn are_few(swarm: &Swarm, unsure: usize) -> bool {
    swarm.peak < FEW && swarm.lacking + unsure < FEW
}

/// Nodes take several small images in one call, because a call costs more than their bytes: so many bytes together.
const BYTES_TOGETHER: u64 = 100_000_000;
/// And so many images: a puller works at few at a time, and those who take the last one from it wait no longer than it
/// needs for the first ones.
const IMAGES_TOGETHER: usize = 4;

/// Nodes that take or hand on images by offers of this moment. While these have few bytes, more images may join.
#[derive(Debug, Default)]
pub struct Together {
    /// How many images each of them takes or hands on, and their bytes.
    nodes: BTreeMap<NodeIdx, (usize, u64)>,
}

impl Together {
    /// Notes who takes an image from whom.
    pub fn join(&mut self, model: &Model, image: ImageId, offers: &[(NodeIdx, Supply)]) {
        for (node, supply) in offers {
            if let Supply::Peers(Parents {
                nodes: [even, odd], ..
            }) = supply
            {
                let bytes = bytes(model, *even, image);
                for at in BTreeSet::from([*node, *even, *odd]) {
                    let (images, sum) = self.nodes.entry(at).or_default();
                    *images += 1;
                    *sum = sum.saturating_add(bytes);
                }
            }
        }
    }

    /// Nodes of them to which an image of so many bytes may be added.
    fn with_room(&self, bytes: u64) -> impl Iterator<Item = NodeIdx> {
        let fits = move |(images, sum): (usize, u64)| {
            images < IMAGES_TOGETHER && sum.saturating_add(bytes) <= BYTES_TOGETHER
        };
        let nodes = self.nodes.iter().filter(move |(_, known)| fits(**known));
        nodes.map(|(node, _)| *node)
    }
}

/// Bytes of an image that a node has: compressed where known, otherwise as the runtime reports them. Unknown ones are many.
fn bytes(model: &Model, node: NodeIdx, image: ImageId) -> u64 {
    let sizes = [
        model.peers.size(image),
        model.nodes[node].observed.size([image].into_iter()),
    ];
    sizes.into_iter().find(|size| *size > 0).unwrap_or(u64::MAX)
}

/// What the nodes that wait for an image do now.
#[derive(Debug, Default)]
pub struct Arrangement {
    /// From where nodes pull it.
    pub offers: Vec<(NodeIdx, Supply)>,
    /// The node that gets the image for the others of the cell, if one is chosen now.
    pub seed: Option<NodeIdx>,
    /// No node is free to fetch it: the images before it come first.
    pub queued: bool,
    /// No node is free to take it: their wait goes on.
    pub busy: bool,
    /// Those that go on waiting pull from the registry then; `None`: nobody waits.
    pub deadline: Option<Tick>,
    /// When to arrange anew although nothing happens.
    pub again: Option<Tick>,
}

/// Decides for all nodes that wait for one image in one cell.
pub fn arrange(model: &Model, key: SwarmKey, together: &Together, now: Tick) -> Arrangement {
    let mut arrangement = Arrangement::default();
    let Some(swarm) = model.peers.swarm(key) else {
        return arrangement;
    };
    let waiting = swarm.waiting.len();
    if waiting == 0 {
        return arrangement;
    }
    if (are_few(swarm, model.peers.unsure) && waiting < FEW) || swarm.failures >= FAILURES {
        arrangement.offers = give_up(model, key, swarm, &[]);
        return arrangement;
    }
    let gathers = gathers(model, key, swarm, waiting).filter(|until| *until > now);
    if gathers.is_none() {
        arrangement.offers = joined(model, key, swarm, together);
    }
    let seeds = || swarm.seeds.values().filter(|seed| !is_stalled(seed, now));
    let has_source = is_trusted(model, key, swarm) && !swarm.holders.is_empty();
    // Of a fleet that a new leader has not heard of yet, some node may have it.
    let unheard = gathers.is_some() && model.peers.unsure > 0;
    if !has_source && !unheard && seeds().next().is_none() {
        let seed = next_seed(model, key, swarm);
        arrangement.seed = seed.as_ref().map(|(node, _)| *node);
        arrangement.queued = seed.is_none();
        arrangement.offers.extend(seed);
    }
    let joins = !arrangement.offers.is_empty();
    let busy = has_source && !joins && is_busy(model, key, swarm);
    // Who waits behind other images waits for them only as long as they come.
    let moves = model
        .peers
        .cell(key.1)
        .alive
        .after(model.settings.peers.wait)
        > now;
    arrangement.queued &= moves;
    arrangement.busy = busy && moves;
    let fresh = arrangement.queued || arrangement.busy || joins && has_source;
    let alive = if fresh { now } else { swarm.alive };
    let since = swarm.since.filter(|_| !arrangement.queued).unwrap_or(now);
    let patience = patience(model, key, swarm, has_source, now);
    let deadline = alive.after(patience).min(since.after(LONGEST));
    if deadline <= now {
        let given_up = give_up(model, key, swarm, &arrangement.offers);
        arrangement.offers.extend(given_up);
        return arrangement;
    }
    arrangement.deadline = Some(deadline);
    let stalls = seeds().map(|seed| seed.progress.after(STALLED)).min();
    let next = [Some(deadline), stalls, gathers].into_iter().flatten();
    arrangement.again = next.filter(|at| *at > now).min();
    arrangement
}

/// Until when those that wait let others join them; `None`: no other is on its way, or it is not worth it.
fn gathers(model: &Model, key: SwarmKey, swarm: &Swarm, waiting: usize) -> Option<Tick> {
    let small = model.is_small(key.0);
    let others = model.peers.unsure > 0 || waiting < swarm.idle();
    let since = swarm.since.filter(|_| others && !small)?;
    Some(since.after(GATHER))
}

/// Are those that wait busy with other images, or as many nodes as may take from others?
fn is_busy(model: &Model, key: SwarmKey, swarm: &Swarm) -> bool {
    let takers = &model.peers.cell(key.1).takers;
    let full = model.peers.taking >= model.settings.peers.at_once;
    full || swarm.waiting.common(takers).next().is_none()
}

/// Has a seed made no progress for too long?
pub fn is_stalled(seed: &Seed, now: Tick) -> bool {
    seed.progress.after(STALLED) <= now
}

/// May what the nodes of the cell have be handed on? Where somebody must ask the registry for the newest image, it must
/// have answered once: after that, only nodes with its image count as holders.
fn is_trusted(model: &Model, (image, _): SwarmKey, swarm: &Swarm) -> bool {
    !swarm.asks || model.names.images.get(image).registry_answer.is_some()
}

/// Nodes that can take the image now from nodes that have it.
fn joined(
    model: &Model,
    key: SwarmKey,
    swarm: &Swarm,
    together: &Together,
) -> Vec<(NodeIdx, Supply)> {
    if !is_trusted(model, key, swarm) {
        return Vec::new();
    }
    let cell = model.peers.cell(key.1);
    // Who has it, and pulls only because the registry must be asked, takes no layers.
    let own = swarm.waiting.common(&swarm.holders);
    let own = own.filter(|node| !model.nodes[*node].peers.offers.contains_key(&key.0));
    let own: Vec<(NodeIdx, Supply)> = own.map(|node| (node, Supply::Registry)).collect();
    let Some(size) = swarm
        .holders
        .iter()
        .next()
        .map(|node| bytes(model, node, key.0))
    else {
        return own;
    };
    // Only where more nodes wait than may take from others at a time: with few, calls cost less than their order.
    let many = swarm.waiting.len() > model.settings.peers.at_once;
    let joins = together.with_room(size).filter(|_| many);
    let joins: IdSet<NodeIdx> = joins.collect();
    let mut free = cell.idle.clone();
    free.union_with(&joins);
    let serves = |node: &NodeIdx| {
        let mut uploads = model.nodes[*node].peers.uploads.iter();
        uploads.any(|(_, image, _)| *image == key.0)
    };
    let roots = swarm.holders.common(&free).filter(|node| !serves(node));
    let roots: Vec<NodeIdx> = roots.take(swarm.waiting.len()).collect();
    let Some(digest) = roots.first().and_then(|root| model.digest(*root, key.0)) else {
        return own;
    };
    let same = |root: &NodeIdx| model.digest(*root, key.0).as_ref() == Some(&digest);
    let mut roots: Vec<NodeIdx> = roots.into_iter().filter(same).collect();
    let places = model
        .settings
        .peers
        .at_once
        .saturating_sub(model.peers.taking);
    let lacks = |node: &NodeIdx| !swarm.holders.contains(*node);
    let takes_others = |node: &NodeIdx| {
        let peers = &model.nodes[*node].peers;
        peers.takes > 0 && !peers.offers.contains_key(&key.0)
    };
    let joining = swarm.waiting.common(&joins).filter(takes_others);
    let takers = swarm.waiting.common(&cell.takers).take(places);
    let takers: BTreeSet<NodeIdx> = joining.chain(takers).filter(lacks).collect();
    let takers: Vec<NodeIdx> = takers.into_iter().collect();
    roots.truncate(takers.len());
    let offer = |(node, nodes): Joined| {
        let digest = digest.clone();
        (node, Supply::Peers(Parents { digest, nodes }))
    };
    own.into_iter()
        .chain(trees(&roots, &takers).into_iter().map(offer))
        .collect()
}

/// The next node that fetches the image for the others: from another zone, if a node there has it and is idle.
fn next_seed(model: &Model, key: SwarmKey, swarm: &Swarm) -> Option<(NodeIdx, Supply)> {
    let (image, own) = key;
    let cell = model.peers.cell(own);
    let abroad = |(other, swarm): (_, &Swarm)| {
        let near = other == own || !model.peers.same_platform(own, other);
        let idle = &model.peers.cell(other).idle;
        let root = swarm.holders.common(idle).next().filter(|_| !near)?;
        Some((root, model.digest(root, image)?))
    };
    if is_trusted(model, key, swarm)
        && let Some(node) = swarm.waiting.common(&cell.takers).next()
        && let Some((root, digest)) = model.peers.swarms_of(image).find_map(abroad)
    {
        let nodes = [root, root];
        return Some((node, Supply::Peers(Parents { digest, nodes })));
    }
    let mut free = swarm.waiting.common(&cell.seeders);
    let node = free.find(|node| !swarm.seeds.contains_key(node))?;
    Some((node, Supply::Seed))
}

/// How long nodes wait without anything happening. For a small image that is not worth it, unless the registry is slow
/// or cannot serve so many nodes at a time.
fn patience(model: &Model, key: SwarmKey, swarm: &Swarm, has_source: bool, now: Tick) -> Duration {
    let settings = &model.settings.peers;
    let registry = model.names.images.get(key.0).registry;
    let room = model.names.registries.get(registry).room() as usize;
    if !model.is_small(key.0) || swarm.waiting.len() > room {
        return settings.wait;
    }
    if has_source {
        return SMALL_WAIT.min(settings.wait);
    }
    let size = model.peers.size(key.0);
    let shows = swarm
        .seeds
        .values()
        .map(|seed| seed.since.after(SMALL_TIME));
    match shows.min() {
        Some(slow) if slow <= now => settings.wait,
        Some(shows) if !swarm.seeds.values().any(|seed| is_fast(seed, size, now)) => {
            Duration::from_millis(shows.0.saturating_sub(swarm.alive.0))
        }
        _ => Duration::ZERO,
    }
}

/// Does the seed fetch an image of so many bytes in [`SMALL_TIME`], at the speed so far?
fn is_fast(seed: &Seed, size: u64, now: Tick) -> bool {
    let spent = now.0.saturating_sub(seed.since.0);
    let needs = size.saturating_mul(spent) / seed.done.max(1);
    seed.done > 0 && u128::from(needs) <= SMALL_TIME.as_millis()
}

/// Those that wait and have no offer pull from the registry.
fn give_up(
    model: &Model,
    (image, _): SwarmKey,
    swarm: &Swarm,
    offers: &[(NodeIdx, Supply)],
) -> Vec<(NodeIdx, Supply)> {
    let offered: BTreeSet<NodeIdx> = offers.iter().map(|(node, _)| *node).collect();
    let open = |node: &NodeIdx| {
        !offered.contains(node) && !model.nodes[*node].peers.offers.contains_key(&image)
    };
    let nodes = swarm.waiting.iter().filter(open);
    nodes.map(|node| (node, Supply::Registry)).collect()
}
