//! Who has and who lacks which image, kept up to date for layers from other nodes.

use super::Engine;
use crate::{
    ids::{CellId, IdSet, ImageId, NodeIdx},
    model::{
        in_flight::{Pull, Task},
        peers::{Origin, SwarmKey},
    },
    vocabulary::Tick,
};

impl Engine {
    /// Is it known whether all nodes take part? Then few nodes need not wait for more.
    fn count_unsure(&mut self, idx: NodeIdx, unsure: bool) {
        let known = &mut self.model.nodes[idx].peers.unsure;
        if *known == unsure {
            return;
        }
        *known = unsure;
        let peers = &mut self.model.peers;
        if unsure {
            peers.unsure += 1;
            return;
        }
        peers.unsure = peers.unsure.saturating_sub(1);
        if peers.unsure == 0 {
            let waits = peers.swarms().filter(|(_, swarm)| swarm.since.is_some());
            self.agenda.swarms.extend(waits.map(|(key, _)| key));
        }
    }

    /// Brings the swarms up to date with what a node has and lacks.
    pub(crate) fn sync_peers(&mut self, idx: NodeIdx, now: Tick) {
        if !self.model.settings.peers.enabled {
            return;
        }
        let node = &self.model.nodes[idx];
        let reachable = node.callable() && node.contact.silent_since.is_none();
        let unsure =
            reachable && node.runtime.can_share.is_none() && node.runtime.reported.is_none();
        let joins = reachable && node.runtime.can_share == Some(true) && node.eligibility().is_ok();
        if node.peers.unsure != unsure {
            self.count_unsure(idx, unsure);
        }
        let cell = if joins { self.cell_of(idx) } else { None };
        let known = self.model.nodes[idx].peers.cell;
        if known != cell {
            self.leave_peers(idx);
            self.model.nodes[idx].peers.cell = cell;
        }
        if let Some(cell) = cell {
            self.compare(idx, cell, now);
            self.note_roles(idx);
        }
    }

    fn cell_of(&mut self, idx: NodeIdx) -> Option<CellId> {
        let facts = self.model.nodes[idx].facts.as_ref()?;
        Some(self.model.peers.cell_of(facts))
    }

    /// Compares what a node has and lacks with what its swarms know.
    fn compare(&mut self, idx: NodeIdx, cell: CellId, now: Tick) {
        let node = &self.model.nodes[idx];
        let present = node.observed.present();
        let lacks: IdSet<ImageId> = node.desired.without(present).collect();
        let mut holds = present.clone();
        for image in self.model.peers.outdated().common(present) {
            let answer = self.model.names.images.get(image).registry_answer;
            let digest = answer.and_then(|answer| answer.digest);
            if digest.is_some() && digest != node.observed.get(image).digest {
                holds.remove(image);
            }
        }
        let old = (node.peers.holds.clone(), node.peers.lacks.clone());
        // Whoever takes an image from another must know its digest.
        let gained: Vec<ImageId> = holds.without(&old.0).collect();
        let (gained, unknown): (Vec<ImageId>, Vec<ImageId>) = gained
            .into_iter()
            .partition(|image| self.model.digest(idx, *image).is_some());
        for image in unknown {
            holds.remove(image);
        }
        for image in gained {
            let swarm = self.model.peers.join((image, cell));
            swarm.holders.insert(idx);
            swarm.leave(idx);
            swarm.stirs(now);
            swarm.failures = 0;
            self.agenda.swarms.insert((image, cell));
        }
        for image in lacks.without(&old.1) {
            let swarm = self.model.peers.join((image, cell));
            swarm.lacking += 1;
            swarm.peak = swarm.peak.max(swarm.lacking);
        }
        for image in old.1.without(&lacks) {
            self.lacks_no_more(idx, (image, cell));
        }
        for image in old.0.without(&holds) {
            self.holds_no_more(idx, (image, cell));
        }
        let peers = &mut self.model.nodes[idx].peers;
        (peers.holds, peers.lacks) = (holds, lacks);
    }

    fn lacks_no_more(&mut self, idx: NodeIdx, key: SwarmKey) {
        if let Some(swarm) = self.model.peers.swarm_mut(key) {
            swarm.gained();
            swarm.leave(idx);
            self.agenda.swarms.insert(key);
        }
        self.model.peers.tidy(key);
    }

    fn holds_no_more(&mut self, idx: NodeIdx, key: SwarmKey) {
        if let Some(swarm) = self.model.peers.swarm_mut(key) {
            swarm.holders.remove(idx);
            self.agenda.swarms.insert(key);
        }
        self.model.peers.tidy(key);
    }

    /// A node takes part no more: its places are free, and others fetch what it was to fetch.
    pub(super) fn leave_peers(&mut self, idx: NodeIdx) {
        self.revoke(idx, |_, _| false);
        let Some(at) = self.model.nodes[idx].peers.cell else {
            return;
        };
        let peers = &mut self.model.nodes[idx].peers;
        let holds = std::mem::take(&mut peers.holds);
        let lacks = std::mem::take(&mut peers.lacks);
        let waits = std::mem::take(&mut peers.waits);
        let flights = self.model.nodes[idx].in_flight.iter();
        let flights = flights.filter_map(|id| self.model.in_flight.get(*id));
        let pulls = flights.filter_map(|flight| match &flight.task {
            Task::Pull(pull) => Some(pull),
            _ => None,
        });
        let taken = |pull: &Pull| pull.origin == Origin::Peers;
        let open = pulls.flat_map(|pull| {
            let open = pull.images.iter().filter(|image| image.open);
            open.map(move |image| (image.id, taken(pull)))
        });
        let pulled: Vec<(ImageId, bool)> = open.collect();
        for (image, taken) in pulled {
            if let Some(swarm) = self.model.peers.swarm_mut((image, at)) {
                swarm.seeds.remove(&idx);
                swarm.taking = swarm.taking.saturating_sub(usize::from(taken));
                self.agenda.swarms.insert((image, at));
            }
        }
        for image in waits.iter() {
            self.leave_swarm(idx, (image, at));
        }
        for image in lacks.iter() {
            self.lacks_no_more(idx, (image, at));
        }
        for image in holds.iter() {
            self.holds_no_more(idx, (image, at));
        }
        let cell = self.model.peers.cell_mut(at);
        for set in [&mut cell.idle, &mut cell.takers, &mut cell.seeders] {
            set.remove(idx);
        }
        self.model.nodes[idx].peers.cell = None;
    }

    /// Forgets a node that is gone.
    pub(super) fn forget_peer(&mut self, idx: NodeIdx) {
        self.count_unsure(idx, false);
        self.leave_peers(idx);
    }
}
