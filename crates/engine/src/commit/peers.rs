//! Layers from other nodes: who has what is kept up to date, places are taken and given back, and those who wait get
//! their turn.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Engine, timers::Timer};
use crate::{
    ids::{IdSet, ImageId, NodeIdx},
    model::{
        in_flight::{Flight, Pull, Task},
        peers::{Origin, Parents, Seed, Supply, SwarmKey},
    },
    plan::{
        node_plan::{PlannedPull, Wanted},
        supply::{self, Arrangement, Together},
    },
    vocabulary::{BatchId, FailureClass, ImageResult, Now, Tick, Transfer},
};

impl Engine {
    /// Arranges every swarm in which something has changed, the most urgent first.
    pub(crate) fn serve_swarms(&mut self, now: Tick) {
        let due = std::mem::take(&mut self.agenda.swarms);
        let peers = &self.model.peers;
        let urgency = |key: &SwarmKey| peers.swarm(*key).map(|swarm| swarm.priority);
        let mut due: Vec<SwarmKey> = due.into_iter().collect();
        due.sort_by_key(|key| Reverse(urgency(key)));
        let mut together = Together::default();
        for key in due {
            self.drop_stalled(key, now);
            let arrangement = supply::arrange(&self.model, key, &together, now);
            together.join(&self.model, key.0, &arrangement.offers);
            self.carry_out(key, arrangement, now);
        }
    }

    /// Seeds without progress are no seeds any more; their pulls go on.
    fn drop_stalled(&mut self, key: SwarmKey, now: Tick) {
        let Some(swarm) = self.model.peers.swarm_mut(key) else {
            return;
        };
        let stalled = swarm.seeds.iter();
        let stalled = stalled.filter(|(_, seed)| supply::is_stalled(seed, now));
        let stalled: Vec<NodeIdx> = stalled.map(|(node, _)| *node).collect();
        for node in &stalled {
            swarm.seeds.remove(node);
        }
        for node in stalled {
            self.withdraw_seed(key, node);
        }
    }

    /// A seed that stood still moves again: whoever was to replace it, and has not begun, takes the image from it.
    fn end_replacement(&mut self, key: SwarmKey, back: NodeIdx) {
        let swarm = self.model.peers.swarm(key);
        let seeds = swarm.into_iter().flat_map(|swarm| swarm.seeds.keys());
        let others: Vec<NodeIdx> = seeds.copied().filter(|node| *node != back).collect();
        for node in others {
            if self.withdraw_seed(key, node)
                && let Some(swarm) = self.model.peers.swarm_mut(key)
            {
                swarm.seeds.remove(&node);
            }
        }
    }

    /// The node is no longer to fetch the image for others. True if it was, and has not begun.
    fn withdraw_seed(&mut self, (image, _): SwarmKey, node: NodeIdx) -> bool {
        let offers = &mut self.model.nodes[node].peers.offers;
        let offered = offers.get(&image) == Some(&Supply::Seed);
        if offered {
            offers.remove(&image);
            self.touch_node(node);
            self.note_roles(node);
        }
        offered
    }

    fn carry_out(&mut self, key: SwarmKey, arrangement: Arrangement, now: Tick) {
        let timer = Timer::Peers(key);
        self.agenda.timers.set(timer, arrangement.again);
        let Some(swarm) = self.model.peers.swarm_mut(key) else {
            return;
        };
        swarm.deadline = arrangement.deadline.unwrap_or(now);
        if arrangement.queued {
            swarm.queue(now);
        }
        if arrangement.busy {
            swarm.stirs(now);
        }
        if let Some(node) = arrangement.seed {
            swarm.seeds.insert(node, Seed::new(now));
        }
        let (image, _) = key;
        for (node, supply) in arrangement.offers {
            if let Supply::Peers(parents) = &supply {
                if let Some(swarm) = self.model.peers.swarm_mut(key) {
                    swarm.stirs(now);
                    swarm.taking += 1;
                    if arrangement.seed != Some(node) {
                        swarm.seeds.remove(&node);
                    }
                }
                self.take_uploads(node, image, parents);
            }
            self.model.nodes[node].peers.offers.insert(image, supply);
            self.note_roles(node);
            self.touch_node(node);
        }
    }

    fn take_uploads(&mut self, node: NodeIdx, image: ImageId, parents: &Parents) {
        let takes = &mut self.model.nodes[node].peers.takes;
        *takes += 1;
        self.model.peers.taking += usize::from(*takes == 1);
        for (stripe, parent) in parents.nodes.into_iter().enumerate() {
            let uploads = &mut self.model.nodes[parent].peers.uploads;
            uploads.insert((node, image, stripe));
            self.note_roles(parent);
        }
    }

    fn give_back_uploads(&mut self, node: NodeIdx, image: ImageId, parents: &Parents) {
        let takes = &mut self.model.nodes[node].peers.takes;
        *takes = takes.saturating_sub(1);
        let peers = &mut self.model.peers;
        peers.taking = peers.taking.saturating_sub(usize::from(*takes == 0));
        for (stripe, parent) in parents.nodes.into_iter().enumerate() {
            let uploads = &mut self.model.nodes[parent].peers.uploads;
            uploads.remove(&(node, image, stripe));
            self.note_roles(parent);
        }
    }

    /// Notes what a node is free for: to serve others, to take from others, to fetch for others.
    pub(super) fn note_roles(&mut self, idx: NodeIdx) {
        let node = &self.model.nodes[idx];
        let Some(at) = node.peers.cell else {
            return;
        };
        let flights = node.in_flight.iter();
        let flights = flights.filter_map(|id| self.model.in_flight.get(*id));
        let pulls = flights.filter_map(|flight| match &flight.task {
            Task::Pull(pull) if pull.open() > 0 => Some(pull),
            _ => None,
        });
        let (mut open, mut long) = (0, false);
        let (mut seeds, mut takes) = (false, false);
        for pull in pulls {
            open += pull.open();
            long |= pull.long;
            seeds |= !pull.long && pull.origin == Origin::Seed;
            takes |= !pull.long && pull.origin == Origin::Peers;
        }
        for supply in node.peers.offers.values() {
            seeds |= *supply == Supply::Seed;
            takes |= matches!(supply, Supply::Peers(_));
        }
        // A pull that waits in its puller makes no progress. Beside long pulls a puller runs one more.
        let slots = node.parallel_pulls() as usize + usize::from(long);
        let runs = open < slots;
        let idle = node.peers.uploads.is_empty();
        let cell = self.model.peers.cell_mut(at);
        let mut freed = [false; 3];
        for (at, (set, free)) in [
            (&mut cell.idle, idle),
            (&mut cell.takers, idle && !takes && runs),
            (&mut cell.seeders, !seeds && runs),
        ]
        .into_iter()
        .enumerate()
        {
            freed[at] = set.set(idx, free) && free;
        }
        let [serves, takes, seeds] = freed;
        let node = &self.model.nodes[idx].peers;
        if serves {
            self.agenda
                .swarms
                .extend(node.holds.iter().map(|image| (image, at)));
        }
        if takes || seeds {
            self.agenda
                .swarms
                .extend(node.waits.iter().map(|image| (image, at)));
        }
    }

    /// Notes for which images a node waits after its plan, and takes back what was offered in vain.
    pub(super) fn wait_for_sources(&mut self, idx: NodeIdx, wanted: &[Wanted], now: Tick) {
        let node = &self.model.nodes[idx].peers;
        let Some(cell) = node.cell else {
            return;
        };
        if wanted.is_empty() && node.waits.is_empty() && node.offers.is_empty() {
            return;
        }
        let waits: IdSet<ImageId> = wanted.iter().map(|wanted| wanted.image).collect();
        for wanted in wanted {
            let key = (wanted.image, cell);
            let swarm = self.model.peers.join(key);
            swarm.wait(idx, now);
            swarm.asks |= wanted.asks;
            swarm.priority = swarm.priority.max(wanted.priority);
            self.agenda.swarms.insert(key);
        }
        let old = std::mem::take(&mut self.model.nodes[idx].peers.waits);
        for image in old.without(&waits) {
            self.leave_swarm(idx, (image, cell));
        }
        self.revoke(idx, |image, supply| {
            waits.contains(image) && !matches!(supply, Supply::Peers(_))
        });
        self.model.nodes[idx].peers.waits = waits;
        self.note_roles(idx);
    }

    pub(super) fn leave_swarm(&mut self, idx: NodeIdx, key: SwarmKey) {
        if let Some(swarm) = self.model.peers.swarm_mut(key) {
            swarm.leave(idx);
            self.agenda.swarms.insert(key);
        }
        self.model.peers.tidy(key);
    }

    /// Takes back offers that are not to be kept.
    pub(super) fn revoke(&mut self, idx: NodeIdx, keep: impl Fn(ImageId, &Supply) -> bool) {
        let offers = &mut self.model.nodes[idx].peers.offers;
        let all = std::mem::take(offers).into_iter();
        let (kept, dropped): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(image, supply)| keep(*image, supply));
        *offers = kept;
        for (image, supply) in dropped {
            self.supply_ended(idx, image, &supply);
        }
    }

    /// A batch uses what was offered for its images.
    pub(super) fn use_offers(&mut self, idx: NodeIdx, planned: &PlannedPull, now: Tick) {
        let peers = &mut self.model.nodes[idx].peers;
        let Some(cell) = peers.cell.filter(|_| !peers.offers.is_empty()) else {
            return;
        };
        for image in &planned.pull.images {
            peers.offers.remove(&image.id);
            // A seed may have waited for the registry's budget.
            if let Some(swarm) = self.model.peers.swarm_mut((image.id, cell))
                && let Some(seed) = swarm.seeds.get_mut(&idx)
            {
                *seed = Seed::new(now);
            }
        }
    }

    /// A pull that came from other nodes, or for them, is over, or was not begun.
    fn supply_ended(&mut self, idx: NodeIdx, image: ImageId, supply: &Supply) {
        if *supply == Supply::Registry {
            return;
        }
        if let Supply::Peers(parents) = supply {
            self.give_back_uploads(idx, image, parents);
        }
        if let Some(cell) = self.model.nodes[idx].peers.cell {
            let key = (image, cell);
            if let Some(swarm) = self.model.peers.swarm_mut(key) {
                swarm.seeds.remove(&idx);
                if matches!(supply, Supply::Peers(_)) {
                    swarm.taking = swarm.taking.saturating_sub(1);
                }
            }
            self.agenda.swarms.insert(key);
        }
    }

    /// One image of a pull has an outcome.
    pub(super) fn supply_answered(
        &mut self,
        idx: NodeIdx,
        image: ImageId,
        supply: &Supply,
        result: &ImageResult,
        now: Tick,
    ) {
        if let Some(cell) = self.model.nodes[idx].peers.cell {
            self.model.peers.cell_mut(cell).alive = now;
        }
        if *supply == Supply::Registry {
            return;
        }
        self.supply_ended(idx, image, supply);
        let Some(cell) = self.model.nodes[idx].peers.cell else {
            return;
        };
        let Some(swarm) = self.model.peers.swarm_mut((image, cell)) else {
            return;
        };
        if let ImageResult::Failed { reason, .. } = result
            && !FailureClass::of(reason).is_node_local()
        {
            swarm.failures += 1;
        }
    }

    /// A pull batch is over: what had no outcome hands its places back.
    pub(super) fn supplies_ended(&mut self, idx: NodeIdx, pull: &Pull) {
        if pull.origin != Origin::Registry {
            let open = pull.images.iter().filter(|image| image.open);
            for image in open {
                self.supply_ended(idx, image.id, &image.supply);
            }
        }
    }

    /// A puller tells how far pulls of a batch are.
    pub(crate) fn transfers(&mut self, now: Now, id: BatchId, transfers: &[Transfer]) {
        let Some(Flight { node, task, .. }) = self.model.in_flight.get_mut(id) else {
            return;
        };
        let (Task::Pull(pull), Some(cell)) = (task, self.model.nodes[*node].peers.cell) else {
            return;
        };
        let (node, peers) = (*node, &mut self.model.peers);
        let mut back = Vec::new();
        for transfer in transfers {
            let Some(pulled) = pull.images.get_mut(transfer.index) else {
                continue;
            };
            let (image, moves) = (pulled.id, pulled.moves(transfer.done_bytes));
            if peers.measure(image, transfer.total_bytes) {
                let swarms = peers.swarms_of(image).map(|(cell, _)| (image, cell));
                self.agenda.swarms.extend(swarms);
            }
            if moves {
                peers.cell_mut(cell).alive = now.tick;
            }
            let Some(swarm) = peers.swarm_mut((image, cell)) else {
                continue;
            };
            if moves && pull.origin != Origin::Registry {
                swarm.stirs(now.tick);
            }
            if moves && pull.origin == Origin::Seed {
                // Also one that stood still, and was replaced.
                swarm.seeds.entry(node).or_insert_with(|| {
                    back.push((image, cell));
                    Seed::new(now.tick)
                });
            }
            if let Some(seed) = swarm.seeds.get_mut(&node) {
                if moves {
                    seed.progress = now.tick;
                }
                seed.done = transfer.done_bytes;
            }
        }
        for key in back {
            self.end_replacement(key, node);
        }
    }
}
