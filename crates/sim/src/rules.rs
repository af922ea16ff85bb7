//! What must hold at every step, judged only by what an engine or a queue was told: nobody can be
//! blamed for what nobody told it.

mod engine;
mod fair;
mod gate;
mod node;
mod peers;
mod queue;
mod workloads;

pub use fair::Waiting;
use gate::{FirstSight, is_hopeless};
use peers::{PeerView, Shared};
use workloads::Workloads;
pub use workloads::following;

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheStatus, NodeSelectorOperator, names::EXCLUDE_LABEL,
};
use kubefledged_contract::LONG_PULL;
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CacheKey, CacheObject, Event as EngineEvent, ImageResult, NodeFacts,
    NodeName, Pin, PullItem, Work,
};

use crate::{
    registry::{host, normalized},
    world::World,
};

const LONG: u64 = LONG_PULL.as_secs() * 1_000;
/// Pulls at a time in a puller; one more may run beside a long one, or for a cache and a registry of which
/// none runs.
const PARALLEL: usize = 2;

/// What an engine was told, and what it has asked for.
#[derive(Debug, Default)]
pub struct View {
    /// `ImageCaches`, with the images that workloads name in their lists.
    pub caches: BTreeMap<CacheKey, CacheObject>,
    /// Workloads, and `ImageCaches` that follow them.
    workloads: Workloads,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// Batches that have not ended.
    pub live: BTreeMap<BatchId, Asked>,
    /// Statuses that are being written.
    pub writing: BTreeMap<CacheKey, ImageCacheStatus>,
    /// When the last removal was asked for.
    pub removal_at: u64,
    /// Whether a node held a name when that was last told.
    present: BTreeMap<(NodeName, String), bool>,
    /// Names that a node's puller pulled already when it was last checked, for another leader or a call that was lost.
    running: BTreeSet<(NodeName, String)>,
    /// Names whose pulls failed so that waiting does not help.
    hopeless: BTreeSet<(NodeName, String)>,
    /// Layers from other nodes.
    peers: PeerView,
    /// When each Node was told first.
    first: BTreeMap<NodeName, FirstSight>,
}

/// A batch that has not ended.
#[derive(Debug)]
pub struct Asked {
    node: NodeName,
    verb: Verb,
    /// UID of the cache for which each image of a pull is. An object of the same name may have followed it.
    uids: Vec<Option<String>>,
    /// Of its images; a pull that only pins counts for none.
    host: String,
    /// When it was last heard of.
    heard: u64,
    /// Normalized; nothing once its outcome is known.
    names: Vec<Option<String>>,
    /// Of each image of a pull.
    shared: Vec<Shared>,
}

impl Asked {
    /// Since when nothing was heard of it, in ms.
    pub fn silent_for(&self, now: u64) -> u64 {
        now - self.heard
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Pull,
    Remove,
    Check,
}

impl View {
    /// UIDs of the objects for which the images of a pull are.
    fn uids(&self, batch: &Batch) -> Vec<Option<String>> {
        let Work::Pull { images, .. } = &batch.work else {
            return Vec::new();
        };
        let object = |image: &PullItem| self.caches.get(&image.cache);
        let uids = images.iter().map(object);
        uids.map(|object| object.map(|object| object.uid.clone()))
            .collect()
    }

    /// Nodes with pulls for an object that have no outcome.
    fn pulling_for(&self, uid: &str) -> BTreeSet<&NodeName> {
        let of_it = |asked: &&Asked| {
            let mut images = asked.names.iter().zip(&asked.uids);
            images.any(|(open, of)| open.is_some() && of.as_deref() == Some(uid))
        };
        let pulling = self.live.values().filter(of_it);
        pulling.map(|asked| &asked.node).collect()
    }

    /// Does a pull for a cache begin that the node's puller does not run already?
    fn begins(&self, batch: &Batch, cache: &CacheKey) -> bool {
        let Work::Pull { images, .. } = &batch.work else {
            return false;
        };
        let runs = |image: &PullItem| {
            let name = normalized(&image.reference);
            self.running.contains(&(batch.node.clone(), name))
        };
        let mut images = images.iter();
        images.any(|image| image.cache == *cache && !runs(image))
    }

    /// Names of one kind of batch on a node that have no outcome yet.
    fn open(&self, node: &NodeName, verb: Verb) -> BTreeSet<&String> {
        let live = self.live.values();
        live.filter(|asked| asked.node == *node && asked.verb == verb)
            .flat_map(|asked| asked.names.iter().flatten())
            .collect()
    }

    /// The registry whose budget a pull takes from: none where all is there and only to be pinned.
    fn charged(&self, batch: &Batch, names: &[String]) -> String {
        let Work::Pull { images, .. } = &batch.work else {
            return String::new();
        };
        let there = |name: &String| {
            let at = (batch.node.clone(), name.clone());
            self.present.get(&at) == Some(&true)
        };
        if images.iter().all(|image| image.peers.is_some()) {
            return String::new();
        }
        let pins = images.iter().all(|image| image.retention == Pin::On);
        match names.first() {
            Some(name) if !(pins && names.iter().all(there)) => host(name),
            _ => String::new(),
        }
    }

    fn count(&self, node: &NodeName, verb: Verb, now: u64) -> usize {
        let live = self.live.values();
        let long = |asked: &Asked| asked.verb == Verb::Pull && asked.heard + LONG <= now;
        live.filter(|asked| asked.node == *node && asked.verb == verb && !long(asked))
            .count()
    }

    fn asked(&mut self, batch: BatchId, asked: Asked, now: u64) {
        if asked.verb == Verb::Remove {
            self.removal_at = now;
        }
        self.live.insert(batch, asked);
    }

    fn outcome(&mut self, batch: BatchId, index: usize, result: &ImageResult, now: u64) {
        let Some(asked) = self.live.get_mut(&batch) else {
            return;
        };
        asked.heard = now;
        let Some(name) = asked.names.get_mut(index) else {
            return;
        };
        // Looks and removals may be told twice; a pull has one outcome.
        let Some(known) = name.clone() else { return };
        if asked.verb != Verb::Check {
            *name = None;
        }
        let at = (asked.node.clone(), known);
        match result {
            ImageResult::Failed { reason, .. } if is_hopeless(reason) => {
                self.hopeless.insert(at.clone());
            }
            ImageResult::Present | ImageResult::Pulled => {
                self.hopeless.remove(&at);
            }
            _ => {}
        }
        if *result == ImageResult::Pulling {
            self.running.insert(at.clone());
        } else {
            self.running.remove(&at);
        }
        let present = match result {
            ImageResult::Present | ImageResult::Pulled => true,
            ImageResult::Absent | ImageResult::Removed | ImageResult::Pulling => false,
            _ => return,
        };
        self.present.insert(at, present);
    }
}

/// Is it beyond doubt that this cache wants this name on this node?
fn surely_wants(object: &CacheObject, facts: &NodeFacts, name: &str) -> bool {
    let status = &object.status;
    let asks_purge = object
        .purge
        .as_ref()
        .is_some_and(|value| value.is_empty() || status.last_handled_purge.as_ref() != Some(value));
    !object.deleting
        && !asks_purge
        && status.purge.is_none()
        && wanted(object, facts).contains(name)
}

/// Names, normalized, that the spec of a cache lists for a node.
pub fn wanted(object: &CacheObject, facts: &NodeFacts) -> BTreeSet<String> {
    let lists = object.spec.cache_spec.iter();
    lists
        .filter(|list| {
            let mut labels = list.node_selector.iter();
            let selected = labels.all(|(key, value)| facts.labels.get(key) == Some(value));
            selected && !barred(list, facts)
        })
        .flat_map(|list| list.images.iter().map(|name| normalized(name)))
        .collect()
}

/// The only affinity that users of this world write: not in a zone.
fn barred(list: &CacheSpecEntry, facts: &NodeFacts) -> bool {
    let required = list.node_affinity.iter().flat_map(|known| &known.required);
    let terms = required.flat_map(|selector| &selector.node_selector_terms);
    let mut wishes = terms.flat_map(|term| &term.match_expressions);
    wishes.any(|wish| {
        debug_assert_eq!(wish.operator, NodeSelectorOperator::NotIn);
        let value = facts.labels.get(&wish.key);
        value.is_some_and(|value| wish.values.contains(value))
    })
}

/// Is a node left alone?
pub fn excluded(facts: &NodeFacts) -> bool {
    let label = facts.labels.get(EXCLUDE_LABEL);
    label.is_some_and(|value| value != "false")
}

/// May a node get images?
pub fn eligible(facts: &NodeFacts) -> bool {
    facts.ready && !facts.unschedulable && !excluded(facts)
}

impl World {
    /// Notes what an engine is told.
    pub fn heard(&mut self, who: usize, event: &EngineEvent) {
        let now = self.now;
        let wall = self.wall().0 + self.controllers[who].skew;
        let view = &mut self.controllers[who].view;
        match event {
            EngineEvent::CacheApplied(object) => view.sees_cache(object),
            EngineEvent::CacheDeleted(key) => view.misses_cache(key),
            // It knows what it has written, also while its watch is broken.
            EngineEvent::StatusWritten(key, Ok(_)) => {
                if let Some(status) = view.writing.remove(key) {
                    view.wrote(key, &status);
                }
            }
            EngineEvent::NodeApplied(node, facts) => {
                view.sees(node, facts, now, wall);
                view.troubles(node, now);
                view.nodes.insert(node.clone(), facts.clone());
            }
            EngineEvent::NodeDeleted(node) => {
                view.nodes.remove(node);
                view.live.retain(|_, asked| asked.node != *node);
                view.hands_on_no_more(node);
                view.present.retain(|(known, _), _| known != node);
                view.running.retain(|(known, _)| known != node);
                view.hopeless.retain(|(known, _)| known != node);
            }
            EngineEvent::Leadership(Some(_)) => {
                view.live.clear();
                view.present.clear();
                view.running.clear();
                view.hopeless.clear();
            }
            EngineEvent::PullerChanged(node, _) => view.troubles(node, now),
            EngineEvent::Transfers(batch, transfers) => view.moved(*batch, transfers, now),
            EngineEvent::Outcomes(batch, outcomes) => {
                for outcome in outcomes {
                    view.outcome(*batch, outcome.index, &outcome.result, now);
                }
            }
            EngineEvent::BatchEnded(batch, end) => {
                let ended = view.live.remove(batch);
                if let Some(asked) = ended.as_ref().filter(|_| *end != BatchEnd::Done) {
                    view.troubles(&asked.node, now);
                }
                let open = |asked: &Asked| asked.names.iter().flatten().count();
                if let Some(asked) = ended.filter(|asked| open(asked) > 0)
                    && *end == BatchEnd::Done
                    && asked.verb != Verb::Check
                {
                    let told = format!("{asked:?} was done without an outcome for each");
                    self.broken("every image has an outcome", told);
                }
            }
            other => view.sees_workloads(other, now, wall),
        }
    }
}

/// Status and reason of a condition.
pub fn condition<'a>(status: &'a ImageCacheStatus, type_: &str) -> Option<(&'a str, &'a str)> {
    let found = status.conditions.iter().find(|c| c.type_ == type_)?;
    Some((&found.status, &found.reason))
}
