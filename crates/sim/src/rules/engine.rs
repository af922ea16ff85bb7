//! What must hold of each batch and status of an engine.

use std::collections::BTreeSet;

use kubefledged_api_types::{
    ImageCacheStatus, NodeShare,
    conditions::{self, Degraded, Ready},
};
use kubefledged_engine::{Batch, CacheKey, CacheObject, Work};
use kubefledged_proto::puller::PullImagesRequest;

use super::{Asked, PARALLEL, Shared, Verb, condition, eligible, surely_wants, wanted};
use crate::{
    registry::{PRIVATE, host, normalized},
    runtime::Flavor,
    world::World,
};

/// Most bytes of a status, not counting `appliedImages`.
const MOST_STATUS: usize = 256 << 10;
/// Most images of a batch.
const MOST_IMAGES: usize = 512;
/// Most pull batches of a node, not counting those that have said nothing for so long.
const MOST_PULLS: usize = 4;

/// What a batch asks of which names.
fn asked_of(batch: &Batch) -> (Verb, Vec<String>) {
    match &batch.work {
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
    }
}

impl World {
    /// A batch goes out.
    pub fn check_batch(&mut self, who: usize, batch: &Batch) {
        let (verb, names) = asked_of(batch);
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
                told.extend(self.unrecorded(who, batch));
                told.extend(self.too_many_nodes(who, batch));
                told.extend(self.over_budget(who, batch, &names));
            }
            Verb::Check => {}
        }
        for (rule, detail) in told {
            self.broken(rule, detail);
        }
        self.check_peers(who, batch);
        let asked = Asked {
            node: batch.node.clone(),
            verb,
            uids: self.controllers[who].view.uids(batch),
            host: self.controllers[who].view.charged(batch, &names),
            heard: self.now,
            names: names.into_iter().map(Some).collect(),
            shared: match &batch.work {
                Work::Pull { images, .. } => images
                    .iter()
                    .map(|item| Shared::new(item, self.now))
                    .collect(),
                _ => Vec::new(),
            },
        };
        self.controllers[who].view.asked(batch.id, asked, self.now);
    }

    fn wrong_removals(
        &self,
        who: usize,
        batch: &Batch,
        names: &[String],
    ) -> Option<(&'static str, String)> {
        let view = &self.controllers[who].view;
        let facts = view.nodes.get(&batch.node)?;
        let wall = self.wall().0 + self.controllers[who].skew;
        let stays = names
            .iter()
            .find_map(|name| Some((name, view.retained(name, self.now, wall)?)));
        if let Some((name, key)) = stays {
            let told = format!("{name} at {}, which stays for {key}", batch.node);
            return Some(("no removal of what was named not long ago", told));
        }
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

    /// Nodes that pull for a cache at a time. Pulls that run already go on, whether they are attached to or not.
    fn too_many_nodes(&self, who: usize, batch: &Batch) -> Option<(&'static str, String)> {
        let view = &self.controllers[who].view;
        let caches = batch.work.caches().into_iter();
        let too_many = |object: &&CacheObject| {
            let Some(NodeShare::Count(most)) = object.spec.max_concurrent_nodes else {
                return false;
            };
            let nodes = view.pulling_for(&object.uid);
            !nodes.contains(&batch.node)
                && nodes.len() >= most.max(1) as usize
                && view.begins(batch, &object.key)
        };
        let object = caches
            .filter_map(|key| view.caches.get(key))
            .find(too_many)?;
        let nodes = view.pulling_for(&object.uid);
        let told = format!("{} beside {nodes:?} for {}", batch.node, object.key);
        Some(("nodes that pull at a time", told))
    }

    /// Pulls of a registry at a time.
    fn over_budget(
        &self,
        who: usize,
        batch: &Batch,
        names: &[String],
    ) -> Option<(&'static str, String)> {
        let view = &self.controllers[who].view;
        let host = view.charged(batch, names);
        let cost = |names: usize| names.min(PARALLEL);
        let pulls = view.live.values().filter(|asked| asked.verb == Verb::Pull);
        let same = pulls.filter(|asked| asked.host == host);
        let running: usize = same
            .map(|asked| cost(asked.names.iter().flatten().count()))
            .sum();
        let most = self.script.registry_pulls as usize;
        (!host.is_empty() && running + cost(names.len()) > most.max(1)).then(|| {
            let told = format!("{running} and {} more of {host}", cost(names.len()));
            ("pulls of a registry", told)
        })
    }

    /// What may come to lie on nodes is written down before. A controller whose watch is broken pulls for an object that
    /// is gone, whose names nobody can look up any more.
    fn unrecorded(&self, who: usize, batch: &Batch) -> Option<(&'static str, String)> {
        let caches = batch.work.caches().into_iter();
        let mut told = caches.filter_map(|key| self.unrecorded_of(who, key, batch));
        told.next()
    }

    fn unrecorded_of(
        &self,
        who: usize,
        key: &CacheKey,
        batch: &Batch,
    ) -> Option<(&'static str, String)> {
        let Work::Pull { images, .. } = &batch.work else {
            return None;
        };
        let names = images.iter().filter(|image| image.cache == *key);
        let mut names = names.map(|image| normalized(&image.reference));
        let object = self.api.cache(&key.to_string())?;
        let seen = self.controllers[who].view.caches.get(key)?;
        if seen.uid != object.uid.to_string() {
            return None;
        }
        let known: BTreeSet<String> = object
            .ever_applied
            .iter()
            .map(|name| normalized(name))
            .collect();
        let missing = names.find(|name| !known.contains(name))?;
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
        self.check_reach(who, key, status);
        let unpinnable = condition(status, conditions::DEGRADED)
            .is_some_and(|(_, reason)| reason == Degraded::RetentionUnsupported.as_str());
        let mut nodes = self.nodes.iter();
        if unpinnable && nodes.all(|node| node.runtime.flavor == Flavor::Containerd2) {
            self.broken("what can pin is not said to be unable", key.to_string());
        }
        let lie = self.false_ready(who, key, status);
        if let Some(lie) = lie {
            self.broken("Ready is true only of what was seen", lie);
        }
        let writing = &mut self.controllers[who].view.writing;
        writing.insert(key.clone(), status.clone());
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
}
