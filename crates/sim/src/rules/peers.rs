//! What must hold of layers that nodes take from each other.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_engine::{
    Batch, BatchId, Engine, NodeName, Now, PullBlock, PullItem, Transfer, Work,
    view::{PlanQuery, PlanStep},
};

use super::{Asked, Verb, View, eligible};
use crate::{
    registry::normalized,
    world::{Event, World},
};

/// Most streams of layers of one image that a node hands on at a time.
const MOST_UPLOADS: usize = 2;
/// Most images that it takes or hands on at a time, where few nodes may take images at a time.
const MOST_TOGETHER: usize = 4;
/// A seed whose bytes moved within this time is not replaced, in ms; the engine waits for ten seconds.
const MOVES: u64 = 9_000;
/// So many more bytes are progress.
const PROGRESS: u64 = 64 << 10;
/// Between two looks, in ms.
const LOOK: u64 = 15_000;
/// No image waits for other nodes for longer, in ms.
const LONGEST: u64 = 5 * 60_000;

/// What a view knows of layers from other nodes.
#[derive(Debug, Default)]
pub struct PeerView {
    /// When a node was last harder to reach than usual, or another one.
    troubled: BTreeMap<NodeName, u64>,
    /// Since when an image waits on a node.
    waits: BTreeMap<(NodeName, String), u64>,
}

/// How an image of a batch is shared.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// From whom it is taken, once for each stripe.
    from: Vec<NodeName>,
    /// It is fetched for others, and this is when its bytes last moved.
    seed: Option<u64>,
    done: u64,
}

impl Shared {
    /// Of an item that goes out now.
    pub fn new(item: &PullItem, now: u64) -> Self {
        let nodes = item.peers.iter().flat_map(|peers| &peers.nodes);
        let mut from: Vec<NodeName> = nodes.map(|peer| peer.name.clone()).collect();
        if let [only] = &from[..] {
            from.push(only.clone());
        }
        let seeds = item.hold_layers.is_some() && from.is_empty();
        Self {
            from,
            seed: seeds.then_some(now),
            done: 0,
        }
    }
}

impl View {
    /// Images of pull batches without an outcome, and how they are shared.
    fn shared(&self) -> impl Iterator<Item = (&Asked, &String, &Shared)> {
        let pulls = self.live.values().filter(|asked| asked.verb == Verb::Pull);
        pulls.flat_map(|asked| {
            let images = asked.names.iter().zip(&asked.shared);
            images.filter_map(move |(name, shared)| Some((asked, name.as_ref()?, shared)))
        })
    }

    /// A node is not what it was: its seeds may be replaced.
    pub fn troubles(&mut self, node: &NodeName, now: u64) {
        self.peers.troubled.insert(node.clone(), now);
    }

    /// A node is gone: nobody takes anything from it, and another one may get its name.
    pub fn hands_on_no_more(&mut self, node: &NodeName) {
        let shared = self.live.values_mut().flat_map(|asked| &mut asked.shared);
        shared.for_each(|shared| shared.from.retain(|from| from != node));
    }

    /// Bytes of a batch moved.
    pub fn moved(&mut self, batch: BatchId, transfers: &[Transfer], now: u64) {
        let Some(asked) = self.live.get_mut(&batch) else {
            return;
        };
        for transfer in transfers {
            if let Some(shared) = asked.shared.get_mut(transfer.index)
                && transfer.done_bytes >= shared.done + PROGRESS
            {
                shared.done = transfer.done_bytes;
                shared.seed = shared.seed.map(|_| now);
            }
        }
    }

    fn same_zone(&self, one: &NodeName, other: &NodeName) -> bool {
        let zone = |node| {
            let facts = self.nodes.get(node);
            facts.map(|facts| facts.labels.get("topology.kubernetes.io/zone"))
        };
        zone(one) == zone(other)
    }
}

impl World {
    /// A pull batch goes out.
    pub fn check_peers(&mut self, who: usize, batch: &Batch) {
        let Work::Pull { images, .. } = &batch.work else {
            return;
        };
        let view = &self.controllers[who].view;
        let most_images = if self.script.peers.few_at_once {
            MOST_TOGETHER
        } else {
            1
        };
        let mut uploads: BTreeMap<&NodeName, BTreeMap<String, usize>> = BTreeMap::new();
        for (_, name, shared) in view.shared() {
            for from in &shared.from {
                let of_image = uploads.entry(from).or_default();
                *of_image.entry(name.clone()).or_default() += 1;
            }
        }
        let news: Vec<Shared> = images
            .iter()
            .map(|item| Shared::new(item, self.now))
            .collect();
        let mut told = Vec::new();
        for (item, shared) in images.iter().zip(&news) {
            let name = normalized(&item.reference);
            for from in &shared.from {
                let of_image = uploads.entry(from).or_default();
                let known = of_image.entry(name.clone()).or_default();
                *known += 1;
                if *known > MOST_UPLOADS || of_image.len() > most_images {
                    told.push(("uploads of a node", format!("{of_image:?} of {from}")));
                }
                if *from == batch.node {
                    told.push(("a node takes nothing from itself", format!("{from} {name}")));
                }
            }
            if shared.seed.is_some()
                && let Some(other) = view.seeds(&name, &batch.node, self.now)
            {
                let detail = format!("{name} on {} beside {other}", batch.node);
                told.push(("one seed for each zone", detail));
            }
        }
        for (rule, detail) in told {
            self.broken(rule, detail);
        }
    }

    /// Looks for images that wait without an end, now and then.
    pub fn check_waits(&mut self) {
        for who in 0..self.controllers.len() {
            let now = self.controllers[who].now(self.now);
            let leads = self.controllers[who].leads();
            let engine = self.controllers[who].engine.as_ref().filter(|_| leads);
            let rows = engine.map_or_else(BTreeSet::new, |engine| waiting(engine, now));
            let (at, view) = (self.now, &mut self.controllers[who].view);
            view.peers.waits.retain(|row, _| rows.contains(row));
            let mut longest = None;
            for row in rows {
                let since = *view.peers.waits.entry(row.clone()).or_insert(at);
                if at > since + LONGEST {
                    longest = Some(format!("c{who}: {row:?} since {since}"));
                }
            }
            if let Some(longest) = longest {
                self.broken("every wait for other nodes ends", longest);
            }
        }
        self.after(LOOK, Event::Waits);
    }
}

impl View {
    /// Another node of the zone that fetches an image for the others, and makes progress.
    fn seeds(&self, name: &str, node: &NodeName, now: u64) -> Option<&NodeName> {
        let mut seeds = self.shared().filter(|(asked, known, shared)| {
            let moves = shared.seed.is_some_and(|at| at + MOVES > now);
            let since = shared.seed.unwrap_or(0);
            let well = self
                .peers
                .troubled
                .get(&asked.node)
                .is_none_or(|at| at + LONGEST < since);
            let fit = self.nodes.get(&asked.node).is_some_and(eligible);
            *known == name && moves && well && fit && self.same_zone(&asked.node, node)
        });
        seeds.next().map(|(asked, ..)| &asked.node)
    }
}

/// Pairs of node and image that wait for other nodes, and for nothing else in any cache.
fn waiting(engine: &Engine, now: Now) -> BTreeSet<(NodeName, String)> {
    let page = engine.explain(now, &PlanQuery::default(), None);
    let (mut waits, mut others) = (BTreeSet::new(), BTreeSet::new());
    for row in page.rows {
        let pair = (row.node, normalized(&row.reference));
        if let PlanStep::Pull(Err(PullBlock::AwaitsSource(_))) = row.step {
            waits.insert(pair);
        } else {
            others.insert(pair);
        }
    }
    waits.difference(&others).cloned().collect()
}
