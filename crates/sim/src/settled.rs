//! What must hold when the bad day is over and everything has had time to heal.

use std::collections::{BTreeMap, BTreeSet};

use kubefledged_api_types::{
    ImageCacheStatus,
    conditions::{self, Progressing, Ready},
    names::{IMAGES_NOT_CACHED_TAINT, status},
};
use kubefledged_engine::{CacheObject, Event as EngineEvent, NodeFacts, WatchId};

use crate::{
    api::{self, Api, Object, Resource, Wish},
    registry::{PAUSE, normalized, repository},
    rules::{Asked, condition, eligible, excluded, following, wanted},
    runtime::Flavor,
    script::SourceKey,
    world::World,
};

/// After so long nothing of a request is left in a puller.
const FORGOTTEN: u64 = 2 * 3_600_000;
/// What was kept is tried again now and then, and the status shows that for a second.
const REMOVAL_SHOWS: u64 = 2_000;
/// A call that only looks, or finds that nothing is newer, is over after this time.
const BRIEF: u64 = 10_000;

impl World {
    /// Checks everything.
    pub fn check_end(&mut self) {
        let mut told: Vec<(&'static str, String)> = Vec::new();
        for (key, object) in self.api.caches() {
            told.extend(self.cache_settled(key, object));
        }
        told.extend(self.nodes_settled());
        told.extend(self.gates_settled());
        told.extend(self.nothing_in_flight());
        for (rule, detail) in told {
            self.broken(rule, detail);
        }
    }

    /// Nodes that are in the cluster, with what is known of them.
    fn members(&self) -> impl Iterator<Item = (usize, &NodeFacts)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(index, node)| Some((index, node.facts.as_ref()?)))
    }

    fn cache_settled(&self, key: &str, object: &Object) -> Vec<(&'static str, String)> {
        let known = &object.status;
        let purged = known.purge.is_some();
        let told_of = format!("{key} {}", serde_json::to_string(known).unwrap_or_default());
        let mut told = requests_settled(object, &told_of);
        if object.deleting {
            told.push(("deletions end", told_of));
            return told;
        }
        let expected = match object.last_wish {
            Wish::Purge => Some(true),
            Wish::Refresh(true) => Some(false),
            _ => None,
        };
        if expected.is_some_and(|expected| expected != purged) {
            told.push(("the last wish holds", told_of.clone()));
        }
        if purged {
            // False or Unknown would make kstatus wait for it, and True would be a lie.
            let says = condition(known, conditions::PROGRESSING);
            let removing = says == Some(("True", Progressing::Removing.as_str()))
                && self
                    .controllers
                    .iter()
                    .any(|controller| controller.view.removal_at + REMOVAL_SHOWS > self.now);
            let purged = removing || says == Some(("False", Progressing::Purged.as_str()));
            if condition(known, conditions::READY).is_some() || !purged || reconciles(known) {
                told.push(("a purged cache says so", told_of));
            }
            return told;
        }
        told.extend(self.desired_settled(key, object, &told_of));
        told
    }

    /// What an object desires is there, and its status says so.
    fn desired_settled(
        &self,
        key: &str,
        object: &Object,
        told_of: &str,
    ) -> Vec<(&'static str, String)> {
        let mut told = Vec::new();
        let known = &object.status;
        let seen = seen(&self.api, key, object);
        let mut nodes = 0;
        let mut missing = None;
        for (index, facts) in self.members().filter(|(_, facts)| eligible(facts)) {
            let wants = wanted(&seen, facts);
            nodes += i64::from(!wants.is_empty());
            let runtime = &self.nodes[index].runtime;
            let lacks = wants.into_iter().find(|name| !runtime.holds(name));
            missing = missing.or(lacks.map(|name| format!("n{index} lacks {name}: {told_of}")));
        }
        if let Some(missing) = missing {
            told.push(("every image is where it is wanted", missing));
        }
        // Which nodes matched a list before, nobody here remembers.
        let reasons: &[Ready] = match nodes {
            0 if self.any_matches(&seen) => &[Ready::NodesNotEligible],
            0 => &[Ready::NoEligibleNodes, Ready::NoNodeMatches],
            _ => &[Ready::AllImagesPresent],
        };
        let says = |reason: &Ready| {
            let ready = condition(known, conditions::READY);
            ready == Some((reason.status(), reason.as_str()))
        };
        let counts = known.nodes.unwrap_or_default();
        if !reasons.iter().any(says) || (counts.desired, counts.ready) != (nodes, nodes) {
            told.push(("Ready in the end", format!("{nodes} nodes: {told_of}")));
        }
        // What failed may have failed on nodes that left.
        let well = [status::SUCCEEDED, status::NOTHING_DONE].contains(&known.status.as_str())
            || nodes == 0;
        if !well || !known.failures.is_empty() {
            told.push(("no failure is left", told_of.to_owned()));
        }
        if nodes > 0 && (reconciles(known) || condition(known, conditions::STALLED).is_some()) {
            told.push(("tools see that it is done", told_of.to_owned()));
        }
        told
    }

    /// Does a node match that is not eligible, but can become so?
    fn any_matches(&self, seen: &CacheObject) -> bool {
        self.members()
            .any(|(_, facts)| !excluded(facts) && !wanted(seen, facts).is_empty())
    }

    /// No node is held, and each says what holds.
    fn gates_settled(&self) -> Vec<(&'static str, String)> {
        let members = self.members().filter(|_| self.script.gated);
        let held = members.filter(|(_, facts)| {
            let condition = facts.images_cached.as_ref();
            let open = condition.is_some_and(|condition| condition.status == "True");
            !open
                || facts
                    .taints
                    .iter()
                    .any(|taint| taint.key == IMAGES_NOT_CACHED_TAINT)
        });
        let told = |(index, facts): (usize, &NodeFacts)| format!("n{index}: {facts:?}");
        held.map(|node| ("no node is held in the end", told(node)))
            .collect()
    }

    /// What nobody wants any more is gone from every node, unless something keeps it.
    fn nodes_settled(&self) -> Vec<(&'static str, String)> {
        let mut told = Vec::new();
        let caches: Vec<(&String, &Object, CacheObject)> = self
            .api
            .caches()
            .map(|(key, object)| (key, object, seen(&self.api, key, object)))
            .collect();
        for (index, facts) in self.members() {
            let node = &self.nodes[index];
            if node.left || node.process.is_none() {
                continue;
            }
            let active = caches
                .iter()
                .filter(|(_, object, _)| object.status.purge.is_none());
            let wanted_here: BTreeSet<String> = active
                .clone()
                .flat_map(|(.., seen)| wanted(seen, facts))
                .collect();
            // A node that merely stops matching keeps its images to the kubelet.
            let previous = active.clone().flat_map(|(_, object, _)| previous(object));
            let listed: BTreeSet<String> = active
                .clone()
                .flat_map(|(.., seen)| &seen.spec.cache_spec)
                .flat_map(|list| list.images.iter().map(|name| normalized(name)))
                .chain(previous)
                .collect();
            told.extend(active.filter_map(|(key, object, seen)| stays_too_long(key, object, seen)));
            told.extend(self.unowned_pins(index, facts, &caches));
            let unrecorded = |name: &str| {
                let mut caches = caches.iter();
                caches.any(|(.., seen)| keeps_unrecorded(seen, name))
            };
            for (key, object, _) in &caches {
                for name in object.ever_applied.iter().map(|name| normalized(name)) {
                    let stays = wanted_here.contains(&name)
                        || listed.contains(&name)
                        || unrecorded(&name)
                        || self.kept(index, &name, &listed);
                    if node.runtime.holds(&name) && !stays {
                        let status = serde_json::to_string(&object.status).unwrap_or_default();
                        let detail = format!("n{index} holds {name} of {key}: {status}");
                        told.push(("removals are done", detail));
                    }
                }
            }
        }
        told
    }

    /// A pin of ours without an object that wants it here; and an image without the pin it is to
    /// have, where the runtime can.
    fn unowned_pins(
        &self,
        node: usize,
        facts: &NodeFacts,
        caches: &[(&String, &Object, CacheObject)],
    ) -> Vec<(&'static str, String)> {
        let mut told = Vec::new();
        let pinned: BTreeSet<String> = caches
            .iter()
            .filter(|(_, object, seen)| seen.spec.pinned() && object.status.purge.is_none())
            .flat_map(|(.., seen)| wanted(seen, facts))
            .collect();
        let runtime = &self.nodes[node].runtime;
        // Elsewhere our label says nothing, and nobody looks for it. An excluded node is left alone.
        let pins = runtime.flavor == Flavor::Containerd2 && !excluded(facts);
        let labelled = runtime.images.iter().filter(|(_, held)| held.labelled);
        for (id, held) in labelled.filter(|_| pins) {
            if held.tags.is_disjoint(&pinned) {
                let detail = format!("n{node}: {id} {:?}", held.tags);
                told.push(("no pin without an owner", detail));
            }
        }
        for name in pinned.iter().filter(|_| pins && eligible(facts)) {
            let held = runtime.resolve(name).and_then(|id| runtime.images.get(&id));
            if held.is_some_and(|held| !runtime.pinned(held, self.now)) {
                told.push(("what is to be pinned is", format!("n{node}: {name}")));
            }
        }
        told
    }

    /// Does something keep this name on this node? `listed`: names that some cache wants somewhere.
    fn kept(&self, node: usize, name: &str, listed: &BTreeSet<String>) -> bool {
        let runtime = &self.nodes[node].runtime;
        let Some(id) = runtime.resolve(name) else {
            return false;
        };
        let held = &runtime.images[&id];
        let mut others = held.tags.iter().filter(|tag| *tag != name);
        let foreign = |tag: &String| listed.contains(tag) || runtime.foreign.contains(tag);
        // What a tag that moved leaves behind looks like a pull by digest.
        let tags = || held.tags.iter().map(String::as_str).chain([name]);
        let mut digests = held.digests.iter().map(|digest| repository(digest));
        let by_digest = digests.any(|known| tags().all(|tag| repository(tag) != known));
        name == PAUSE
            || (held.pinned && !held.labelled)
            || runtime.used(&id)
            || runtime.mounted(&id)
            || runtime.foreign.contains(name)
            || self.left.contains(name)
            || by_digest
            // Names of caches that are gone are nobody's to remove, whoever else had them before.
            || others.any(|tag| foreign(tag) || self.left.contains(tag) || !self.owned(tag))
    }

    fn owned(&self, name: &str) -> bool {
        let mut caches = self.api.caches();
        caches.any(|(_, object)| {
            object
                .ever_applied
                .iter()
                .any(|known| normalized(known) == name)
        })
    }

    fn nothing_in_flight(&mut self) -> Vec<(&'static str, String)> {
        let mut told = Vec::new();
        let now = self.now;
        for who in 0..self.controllers.len() {
            let live = self.controllers[who].view.live.values();
            // A look, or a pull that asks for a newer image, may just be under way.
            let old: Vec<&Asked> = live.filter(|asked| asked.silent_for(now) > BRIEF).collect();
            if !old.is_empty() {
                told.push(("nothing in flight", format!("c{who}: {old:?}")));
            }
        }
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else {
                continue;
            };
            let depth = process.queue.depth();
            let later = process.tick(now + FORGOTTEN);
            process.queue.poll(later, &mut Vec::new());
            let left = process.queue.remembers();
            // A refresh may just be under way.
            if process.calls.is_empty() && (depth, left) != ((0, 0), 0) {
                told.push((
                    "nothing is kept",
                    format!("{}: {depth:?}, {left}", node.name),
                ));
            }
        }
        let endpoints = self
            .api
            .now
            .keys()
            .filter(|(source, _)| *source == SourceKey::Pullers);
        debug_assert!(endpoints.count() <= self.nodes.len());
        told
    }
}

/// Names that stay because workloads named them.
fn previous(object: &Object) -> impl Iterator<Item = String> {
    let applied = object.status.applied_images.iter();
    let stays = applied.filter(|image| image.since.is_none() && image.retained_since.is_some());
    stays.map(|image| normalized(&image.name))
}

/// May a cache keep a name that its status does not list? A suspended one records nothing.
fn keeps_unrecorded(seen: &CacheObject, name: &str) -> bool {
    let lists = seen.spec.cache_spec.iter();
    let mut lists = lists.filter(|list| !list.images_from.is_empty() && list.keep_previous() > 0);
    let version = |known: &String| repository(&normalized(known)) == repository(name);
    seen.spec.suspend && lists.any(|list| list.images.iter().any(version))
}

/// In the end every `retainFor` is over: what stays is a version of an image that is named, and there are no more of
/// them than some list says.
fn stays_too_long(
    key: &str,
    object: &Object,
    seen: &CacheObject,
) -> Option<(&'static str, String)> {
    let lists = seen.spec.cache_spec.iter();
    let named: BTreeSet<String> = lists
        .clone()
        .flat_map(|list| {
            list.images
                .iter()
                .map(|name| repository(&normalized(name)).to_owned())
        })
        .collect();
    let most = lists
        .map(|list| list.keep_previous.unwrap_or(0) as usize)
        .max();
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for name in previous(object) {
        *versions.entry(repository(&name).to_owned()).or_default() += 1;
    }
    let wrong = versions
        .iter()
        .find(|(image, count)| !named.contains(*image) || Some(**count) > most);
    wrong.map(|(image, count)| {
        let told = format!("{key} keeps {count} versions of {image}");
        ("only previous versions stay", told)
    })
}

/// Do tools wait for it?
fn reconciles(status: &ImageCacheStatus) -> bool {
    condition(status, conditions::RECONCILING).is_some()
}

/// What was asked of an object is done: its operation, its edits, its annotations.
fn requests_settled(object: &Object, told_of: &str) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    let known = &object.status;
    if known.status.is_empty() || known.status == status::PROCESSING {
        told.push(("operations end", told_of.to_owned()));
    }
    if known.observed_generation != Some(object.generation) {
        told.push(("edits are taken up", told_of.to_owned()));
    }
    let open = |value: &Option<String>, handled: &Option<String>| {
        value
            .as_ref()
            .is_some_and(|v| v.is_empty() || handled.as_ref() != Some(v))
    };
    if open(&object.refresh, &known.last_handled_refresh)
        || open(&object.purge, &known.last_handled_purge)
    {
        told.push(("annotations are handled", told_of.to_owned()));
    }
    told
}

/// As the controller's inputs tell it.
fn seen(api: &Api, key: &str, object: &Object) -> CacheObject {
    let resource = Resource::Cache(Box::new(object.clone()));
    let workloads: Vec<_> = api.workloads().collect();
    let workloads = workloads.iter().map(|(key, workload)| (key, *workload));
    match api::applied(key, &resource, WatchId(0)) {
        EngineEvent::CacheApplied(object) => following(&object, &workloads),
        _ => unreachable!("a cache is told as a cache"),
    }
}
