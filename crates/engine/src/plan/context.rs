//! What is desired on one node, and what is in flight there.

use crate::{
    ids::{IdSet, ImageId, NodeIdx},
    model::{Model, in_flight::Task, node::Node, peers::Origin},
    vocabulary::{PullBlock, Tick},
};

/// One node at one moment.
#[derive(Clone, Copy)]
pub struct NodeView<'m> {
    /// What is known.
    pub model: &'m Model,
    /// Which node.
    pub idx: NodeIdx,
    /// The node.
    pub node: &'m Node,
    /// The moment.
    pub now: Tick,
}

impl<'m> NodeView<'m> {
    /// A node now.
    pub fn new(model: &'m Model, idx: NodeIdx, now: Tick) -> Self {
        Self {
            model,
            idx,
            node: &model.nodes[idx],
            now,
        }
    }

    /// Can the node's puller be called now?
    pub fn callable(&self) -> Result<(), PullBlock> {
        if self.node.puller.is_none() {
            return Err(PullBlock::NoPuller);
        }
        match self.node.contact.not_before {
            Some(at) if at > self.now => Err(PullBlock::NodeBackOff(at)),
            _ => Ok(()),
        }
    }

    /// Has the node's puller been silent for longer than the grace time?
    pub fn unreachable(&self) -> bool {
        let grace = self.model.settings.puller_grace;
        self.node.unreachable(self.now, grace)
    }
}

/// Images that are desired on one node, and images that are in flight there.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug, Default)]
pub struct NodeContext {
    /// Images that some cache desires, or that stay because workloads named them not long ago.
    pub desired: IdSet<ImageId>,
    /// Those of them that must be pinned.
    pub pin_desired: IdSet<ImageId>,
    /// Images that are being pulled.
    pub pulling: IdSet<ImageId>,
    /// Those of them whose layers come from other nodes.
    pub from_peers: IdSet<ImageId>,
    /// Images that are being removed.
    pub removing: IdSet<ImageId>,
    /// A removal is in flight.
    pub removal: bool,
    /// A check is in flight.
    pub check: bool,
    /// Pull batches that are not long.
    pub short_pulls: usize,
    /// Some cache removes only what we pulled, so that pulls are remembered.
    pub mark: bool,
    /// Some cache reads workloads for the first time: nothing is removed meanwhile.
    pub reads_workloads: bool,
}

impl NodeContext {
    /// Of a node.
    pub fn of(model: &Model, idx: NodeIdx) -> Self {
        let mut context = Self::default();
        for cache in model.caches.values() {
            let images = &cache.set(idx).images;
            context.desired.union_with(images);
            context
                .desired
                .extend(cache.keeps().map(|(image, _)| image));
            context.mark |= cache.desired.only_pulled;
            context.reads_workloads |= cache.reads_workloads();
            if cache.desired.pinned {
                context.pin_desired.union_with(images);
            }
        }
        let batches = model.nodes[idx].in_flight.iter();
        for flight in batches.filter_map(|id| model.in_flight.get(*id)) {
            match &flight.task {
                Task::Pull(pull) => {
                    context.short_pulls += usize::from(!pull.long);
                    let open = pull.images.iter().filter(|image| image.open);
                    context.pulling.extend(open.map(|image| image.id));
                    if pull.origin == Origin::Peers {
                        let images = pull.images.iter().map(|image| image.id);
                        context.from_peers.extend(images);
                    }
                }
                Task::Remove { images, .. } => {
                    context.removal = true;
                    context.removing.extend(images.iter().copied());
                }
                Task::Check { .. } => context.check = true,
            }
        }
        context
    }
}
