//! What must hold at every step, judged only by what an engine or a queue was told: nobody can be
//! blamed for what nobody told it.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheStatus, NodeSelectorOperator, NodeShare,
    conditions::{self, Ready},
    names::EXCLUDE_LABEL,
};
use kubefledged_contract::LONG_PULL;
use kubefledged_engine::{
    Batch, BatchEnd, BatchId, CacheKey, CacheObject, Event as EngineEvent, ImageResult, NodeFacts,
    NodeName, Pin, Work,
};
use kubefledged_proto::puller::PullImagesRequest;
use kubefledged_queue::{Answer, Call, Event as QueueEvent, Policy, Runtime as Kind, StreamId};

use crate::{
    node::Removal,
    registry::{PAUSE, PRIVATE, host, normalized},
    world::World,
};

/// Most bytes of a status, not counting `appliedImages`.
const MOST_STATUS: usize = 256 << 10;
/// Most images of a batch.
const MOST_IMAGES: usize = 512;
/// Most pull batches of a node, not counting those that have said nothing for so long.
const MOST_PULLS: usize = 4;
const LONG: u64 = LONG_PULL.as_secs() * 1_000;
/// Pulls at a time in a puller; one more may run beside a long one, or for a cache and a registry of which
/// none runs.
const PARALLEL: usize = 2;

/// What an engine was told, and what it has asked for.
#[derive(Debug, Default)]
pub struct View {
    /// `ImageCaches`.
    pub caches: BTreeMap<CacheKey, CacheObject>,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// Batches that have not ended.
    pub live: BTreeMap<BatchId, Asked>,
    /// Whether a node held a name when that was last told.
    present: BTreeMap<(NodeName, String), bool>,
}

/// A batch that has not ended.
#[derive(Debug)]
pub struct Asked {
    node: NodeName,
    verb: Verb,
    /// For which cache.
    cache: Option<CacheKey>,
    /// Of its images; a pull that only pins counts for none.
    host: String,
    /// When it was last heard of.
    heard: u64,
    /// Normalized; nothing once its outcome is known.
    names: Vec<Option<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Pull,
    Remove,
    Check,
}

impl View {
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
        let present = match result {
            ImageResult::Present | ImageResult::Pulled => true,
            ImageResult::Absent | ImageResult::Removed | ImageResult::Pulling => false,
            _ => return,
        };
        self.present.insert((asked.node.clone(), known), present);
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

/// May a node get images?
pub fn eligible(facts: &NodeFacts) -> bool {
    facts.ready
        && !facts.unschedulable
        && facts.labels.get(EXCLUDE_LABEL).is_none_or(|v| v == "false")
}

impl World {
    // === the engine

    /// Notes what an engine is told.
    pub fn heard(&mut self, who: usize, event: &EngineEvent) {
        let now = self.now;
        let view = &mut self.controllers[who].view;
        match event {
            EngineEvent::CacheApplied(object) => {
                view.caches.insert(object.key.clone(), (**object).clone());
            }
            EngineEvent::CacheDeleted(key) => drop(view.caches.remove(key)),
            EngineEvent::NodeApplied(node, facts) => {
                view.nodes.insert(node.clone(), facts.clone());
            }
            EngineEvent::NodeDeleted(node) => {
                view.nodes.remove(node);
                view.live.retain(|_, asked| asked.node != *node);
                view.present.retain(|(known, _), _| known != node);
            }
            EngineEvent::Leadership(Some(_)) => {
                view.live.clear();
                view.present.clear();
            }
            EngineEvent::Outcomes(batch, outcomes) => {
                for outcome in outcomes {
                    view.outcome(*batch, outcome.index, &outcome.result, now);
                }
            }
            EngineEvent::BatchEnded(batch, end) => {
                let ended = view.live.remove(batch);
                let open = |asked: &Asked| asked.names.iter().flatten().count();
                if let Some(asked) = ended.filter(|asked| open(asked) > 0)
                    && *end == BatchEnd::Done
                    && asked.verb != Verb::Check
                {
                    let told = format!("{asked:?} was done without an outcome for each");
                    self.broken("every image has an outcome", told);
                }
            }
            _ => {}
        }
    }

    /// A batch goes out.
    pub fn check_batch(&mut self, who: usize, batch: &Batch) {
        let (verb, names): (Verb, Vec<String>) = match &batch.work {
            Work::Pull { images, .. } => (
                Verb::Pull,
                images.iter().map(|i| normalized(&i.reference)).collect(),
            ),
            Work::Remove { references, .. } => (
                Verb::Remove,
                references.iter().map(|name| normalized(name)).collect(),
            ),
            Work::Check { references, .. } => (
                Verb::Check,
                references.iter().map(|name| normalized(name)).collect(),
            ),
        };
        let mut told: Vec<(&'static str, String)> = Vec::new();
        let view = &self.controllers[who].view;
        let other = if verb == Verb::Pull {
            Verb::Remove
        } else {
            Verb::Pull
        };
        let clash = view.open(&batch.node, other);
        if verb != Verb::Check
            && let Some(name) = names.iter().find(|name| clash.contains(name))
        {
            told.push(("no pull and removal of one image", name.clone()));
        }
        let most = if verb == Verb::Pull { MOST_PULLS } else { 1 };
        let idle = match &batch.work {
            Work::Remove { unpin, .. } => names.is_empty() && unpin.is_empty(),
            Work::Pull { .. } => names.is_empty(),
            // Also for what it says of the node.
            Work::Check { .. } => false,
        };
        if view.count(&batch.node, verb, self.now) >= most || names.len() > MOST_IMAGES || idle {
            told.push((
                "batches of a node",
                format!("{verb:?} {names:?} at {}", batch.node),
            ));
        }
        match verb {
            Verb::Remove => told.extend(self.wrong_removals(who, batch, &names)),
            Verb::Pull => {
                told.extend(self.unrecorded(batch.cache.as_ref(), &names));
                told.extend(self.over_limit(who, batch, &names));
            }
            Verb::Check => {}
        }
        for (rule, detail) in told {
            self.broken(rule, detail);
        }
        let asked = Asked {
            node: batch.node.clone(),
            verb,
            cache: batch.cache.clone(),
            host: self.controllers[who].view.charged(batch, &names),
            heard: self.now,
            names: names.into_iter().map(Some).collect(),
        };
        self.controllers[who].view.live.insert(batch.id, asked);
    }

    fn wrong_removals(
        &self,
        who: usize,
        batch: &Batch,
        names: &[String],
    ) -> Option<(&'static str, String)> {
        let view = &self.controllers[who].view;
        let facts = view.nodes.get(&batch.node)?;
        let wrong = names.iter().find_map(|name| {
            let mut caches = view.caches.values();
            let cache = caches.find(|object| surely_wants(object, facts, name))?;
            Some(format!(
                "{name} at {}, which {} wants",
                batch.node, cache.key
            ))
        })?;
        Some(("no removal of what is wanted", wrong))
    }

    /// Nodes that pull for a cache at a time, and pulls of a registry.
    fn over_limit(
        &self,
        who: usize,
        batch: &Batch,
        names: &[String],
    ) -> Option<(&'static str, String)> {
        let view = &self.controllers[who].view;
        let pulls = || view.live.values().filter(|asked| asked.verb == Verb::Pull);
        let object = batch.cache.as_ref().and_then(|key| view.caches.get(key))?;
        if let Some(NodeShare::Count(most)) = object.spec.max_concurrent_nodes {
            let mine = pulls().filter(|asked| asked.cache == batch.cache);
            let nodes: BTreeSet<&NodeName> = mine.map(|asked| &asked.node).collect();
            if !nodes.contains(&batch.node) && nodes.len() >= most.max(1) as usize {
                let told = format!("{} beside {nodes:?} for {}", batch.node, object.key);
                return Some(("nodes that pull at a time", told));
            }
        }
        let host = view.charged(batch, names);
        let cost = |names: usize| names.min(PARALLEL);
        let same = pulls().filter(|asked| asked.host == host);
        let running: usize = same
            .map(|asked| cost(asked.names.iter().flatten().count()))
            .sum();
        let most = self.script.registry_pulls as usize;
        (!host.is_empty() && running + cost(names.len()) > most.max(1)).then(|| {
            let told = format!("{running} and {} more of {host}", cost(names.len()));
            ("pulls of a registry", told)
        })
    }

    /// What may come to lie on nodes is written down before.
    fn unrecorded(
        &self,
        key: Option<&CacheKey>,
        names: &[String],
    ) -> Option<(&'static str, String)> {
        let key = key?;
        let object = self.api.cache(&key.to_string())?;
        let known: BTreeSet<String> = object
            .ever_applied
            .iter()
            .map(|name| normalized(name))
            .collect();
        let missing = names.iter().find(|name| !known.contains(*name))?;
        Some((
            "written down before it is pulled",
            format!("{missing} of {key}"),
        ))
    }

    /// A status goes out.
    pub fn check_status(&mut self, who: usize, key: &CacheKey, status: &ImageCacheStatus) {
        let mut without = status.clone();
        without.applied_images.clear();
        let json = serde_json::to_string(&without).unwrap_or_default();
        let failures: usize = status.failures.values().map(Vec::len).sum();
        if json.len() > MOST_STATUS || failures > 100 || json.contains("null") {
            self.broken(
                "status bounded",
                format!("{} bytes, {failures} failures", json.len()),
            );
        }
        if let Some(counts) = status.nodes {
            let parts = counts.ready + counts.pulling + counts.failed + counts.pending;
            let parts = parts + counts.unreachable;
            let least = counts.ready.min(counts.pulling).min(counts.failed);
            if parts != counts.desired || least.min(counts.pending).min(counts.unreachable) < 0 {
                self.broken("counts add up", format!("{key} {counts:?}"));
            }
        }
        let lie = self.false_ready(who, key, status);
        if let Some(lie) = lie {
            self.broken("Ready is true only of what was seen", lie);
        }
    }

    fn false_ready(&self, who: usize, key: &CacheKey, status: &ImageCacheStatus) -> Option<String> {
        let view = &self.controllers[who].view;
        let object = view.caches.get(key)?;
        let ready = condition(status, conditions::READY)?;
        // What was written before stands until the first round of a new leader is complete.
        let stands = condition(&object.status, conditions::READY).is_some_and(|known| {
            known == ready && object.status.last_check_time == status.last_check_time
        });
        if ready.0 != "True" || ready.1 != Ready::AllImagesPresent.as_str() || stands {
            return None;
        }
        for (node, facts) in view.nodes.iter().filter(|(_, facts)| eligible(facts)) {
            for name in wanted(object, facts) {
                let at = (node.clone(), name);
                if view.present.get(&at) != Some(&true) {
                    return Some(format!("{key}: {} was not seen at {node}", at.1));
                }
            }
        }
        None
    }

    /// Only what matches goes along, and only what is used.
    pub fn check_credentials(&mut self, request: &PullImagesRequest) {
        let mut used = BTreeSet::new();
        let mut strangers = Vec::new();
        for image in &request.images {
            used.extend(image.credentials.iter().map(|index| *index as usize));
            if host(&image.reference) != PRIVATE && !image.credentials.is_empty() {
                strangers.push(image.reference.clone());
            }
        }
        let unused = (0..request.credentials.len()).any(|index| !used.contains(&index));
        let ours = |c: &kubefledged_proto::puller::Credential| c.username.ends_with(PRIVATE);
        if unused || !strangers.is_empty() || !request.credentials.iter().all(ours) {
            self.broken("only matching credentials", format!("{strangers:?}"));
        }
    }

    // === the queue

    /// Notes what a puller is asked for.
    pub fn requested(&mut self, node: usize, event: &QueueEvent) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let seen = &mut process.seen;
        if let QueueEvent::Pull(stream, authority, _)
        | QueueEvent::Remove {
            stream, authority, ..
        }
        | QueueEvent::Cancel(stream, authority, _) = event
            && authority.term < seen.term
        {
            seen.replaced.insert(*stream);
        }
        match event {
            QueueEvent::Pull(_, authority, images) if authority.term >= seen.term => {
                seen.term = authority.term;
                for image in images {
                    let newest = seen.pulls.entry(normalized(&image.reference)).or_default();
                    *newest = (*newest).max((authority.term, authority.seq));
                    debug_assert!(matches!(
                        image.policy,
                        Policy::Always | Policy::IfNotPresent
                    ));
                }
            }
            QueueEvent::Remove {
                stream,
                authority,
                references,
                desired: wanted,
                releasable,
                ..
            } if authority.term >= seen.term => {
                seen.term = authority.term;
                let names = references.iter().chain(releasable);
                let removal = Removal {
                    order: (authority.term, authority.seq),
                    free: names.map(|name| normalized(name)).collect(),
                    wanted: wanted.iter().map(|name| normalized(name)).collect(),
                };
                seen.removals.insert(*stream, removal);
            }
            QueueEvent::Cancel(_, authority, _) => seen.term = seen.term.max(authority.term),
            _ => {}
        }
    }

    /// A puller replies. A leader that was replaced is refused, and nothing else.
    pub fn check_reply(&mut self, node: usize, stream: StreamId, refused: bool) {
        let process = self.nodes[node].process.as_ref();
        let replaced = process.is_some_and(|known| known.seen.replaced.contains(&stream));
        if replaced != refused {
            let told = format!("n{node}: stream {}, refused: {refused}", stream.0);
            self.broken("one leader's work", told);
        }
    }

    /// Notes what a puller saw.
    pub fn looked(&mut self, node: usize, answer: &Answer) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        match answer {
            Answer::Inspected(Ok(Some(image))) => {
                let id = image.id.trim_start_matches("sha256:").to_owned();
                process.seen.images.insert(id, image.clone());
            }
            Answer::Containers(Ok(containers)) => {
                let said = containers.iter().flat_map(|c| &c.image);
                let bare = said.map(|said| said.rsplit(':').next().unwrap_or(said).to_owned());
                process.seen.used = bare.collect();
            }
            _ => {}
        }
    }

    /// A puller calls its runtime.
    pub fn check_call(&mut self, node: usize, call: &Call) {
        let told = match call {
            Call::Pull(name, _) => self.wrong_pull(node, &normalized(name)),
            Call::Remove(target) => self.wrong_removal(node, target),
            _ => None,
        };
        if let Some((rule, detail)) = told {
            self.broken(rule, format!("n{node}: {detail}"));
        }
    }

    fn wrong_pull(&self, node: usize, name: &str) -> Option<(&'static str, String)> {
        let process = self.nodes[node].process.as_ref()?;
        let mut running = 0;
        for known in process.calls.values() {
            match &known.call {
                Call::Pull(other, _) => {
                    running += 1;
                    if normalized(other) == name {
                        return Some(("one pull of a name at a time", name.to_owned()));
                    }
                }
                Call::Remove(target) if self.last_names(node, target).contains(name) => {
                    return Some(("no pull during a removal", name.to_owned()));
                }
                _ => {}
            }
        }
        (running > PARALLEL).then(|| ("parallel pulls", format!("{} at once", running + 1)))
    }

    fn wrong_removal(&self, node: usize, target: &str) -> Option<(&'static str, String)> {
        let process = self.nodes[node].process.as_ref()?;
        let seen = &process.seen;
        let bare = target.trim_start_matches("sha256:");
        let by_id = seen.images.contains_key(bare);
        let id = if by_id {
            bare.to_owned()
        } else {
            let name = normalized(target);
            let mut images = seen.images.iter();
            images
                .find(|(_, image)| image.tags.iter().any(|tag| normalized(tag) == name))
                .map_or_else(String::new, |(id, _)| id.clone())
        };
        let takes_all = by_id || self.nodes[node].runtime.kind != Kind::Crio;
        if takes_all && seen.used.contains(&id) {
            return Some(("no removal of what a container uses", target.to_owned()));
        }
        if takes_all && seen.images.get(&id).is_some_and(|image| image.pinned) {
            return Some(("no removal of what is pinned", target.to_owned()));
        }
        let taken = self.last_names(node, target);
        if taken.contains(PAUSE) {
            return Some(("no removal of the sandbox image", target.to_owned()));
        }
        let may = seen.removals.values().any(|removal| {
            taken.iter().all(|name| {
                let newest = seen.pulls.get(name).copied().unwrap_or_default();
                removal.free.contains(name)
                    && !removal.wanted.contains(name)
                    && newest < removal.order
            })
        });
        if !may {
            let removals = &seen.removals;
            let told = format!("{target} takes {taken:?}, asked for {removals:?}");
            return Some(("no removal of what nobody gave up", told));
        }
        let pulled = process.calls.values().find(
            |known| matches!(&known.call, Call::Pull(name, _) if taken.contains(&normalized(name))),
        );
        pulled.map(|known| ("no removal during a pull", format!("{:?}", known.call)))
    }

    /// Names that a removal of this target takes away, as far as the puller could see.
    fn last_names(&self, node: usize, target: &str) -> BTreeSet<String> {
        let bare = target.trim_start_matches("sha256:");
        let process = self.nodes[node].process.as_ref();
        let image = process.and_then(|process| process.seen.images.get(bare));
        match image {
            Some(image) => image.tags.iter().map(|tag| normalized(tag)).collect(),
            None => [normalized(target)].into(),
        }
    }
}

/// Status and reason of a condition.
pub fn condition<'a>(status: &'a ImageCacheStatus, type_: &str) -> Option<(&'a str, &'a str)> {
    let found = status.conditions.iter().find(|c| c.type_ == type_)?;
    Some((&found.status, &found.reason))
}
