//! Whether an image is pulled to a node now, and why not. Planning and `view` ask the same
//! functions.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{ImagePullPolicy, names::failure};

use crate::{
    Engine, Ineligible, Now, Pin, PullItem, Tick, Work,
    alarms::Alarm,
    batches::{LiveImage, LivePull, LiveWork},
    cache::{Cache, CacheIdx},
    images::ImageId,
    node::{Attempt, NodeIdx, Stamp},
    plan::{MOST_IMAGES, Scene, insert, union},
    registry::RegistryId,
    scope::ScopeId,
    wants::Want,
};

/// Most pull batches that a node works on at a time, long ones not counted.
const MOST_PULLS: usize = 4;

/// Who asks a registry whether an image is still the same; the other nodes that hold it wait.
#[derive(Clone, Copy, Debug)]
pub struct Scout {
    /// Which node.
    pub node: NodeIdx,
    /// The registry did not give an answer, to a batch of this stamp.
    pub failed: Option<Stamp>,
}

/// Why an image is pulled to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is not there.
    Missing,
    /// The registry has another one.
    Newer,
    /// The registry is asked for a newer one, by this node for all.
    Ask,
    /// The last attempt failed a while ago.
    Retry,
    /// It is there, and to be protected from garbage collection.
    Pin,
}

/// Why nothing is done about an image on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The node gets no images.
    Ineligible(Ineligible),
    /// No puller answers there.
    NoPuller,
    /// The node does not answer; it is called again then.
    NodeBackOff(Tick),
    /// `spec.suspend`, or a spec that cannot be used.
    Suspended,
    /// The status does not name it yet, or the finalizer is not there yet.
    NotRecorded,
    /// Its name does not parse.
    InvalidName,
    /// It is there, and as new as it must be.
    Present,
    /// It is being pulled.
    Pulling,
    /// It is being removed.
    Removing,
    /// Nobody has looked since it was asked for.
    NotLookedAt,
    /// It failed, and is tried again then.
    BackOff(Tick),
    /// It failed, and is tried again by a refresh or an edit.
    UntilRefresh,
    /// It vanished, again, and is pulled again then.
    LossBackOff(Tick),
    /// Another node asks the registry.
    AnotherAsks,
    /// Another node asked the registry and got no answer.
    AnotherFailed,
    /// The secrets cannot be read; tried again then.
    CredentialsUnavailable(Tick),
    /// The automatic refresh becomes an operation first.
    RefreshBegins,
    /// `spec.maxConcurrentNodes` other nodes pull.
    NodeLimit,
    /// The node works on enough batches.
    BatchLimit,
    /// The registry's budget is used up.
    RegistryBudget,
}

/// What makes pulls of one kind, which go in one batch: the cache, the registry, why, and whether the
/// registry is asked.
type Group = (CacheIdx, RegistryId, Why, bool);

/// What could start on a node, in the order of its caches.
#[derive(Default)]
struct Groups {
    all: Vec<Startable>,
    /// Pulls of the groups before that fit.
    taken: BTreeMap<RegistryId, u32>,
}

/// Wants of one kind, the most urgent first.
struct Startable {
    group: Group,
    wants: Vec<Want>,
    /// The highest priority of any.
    priority: i32,
    /// There is room for it besides those before it.
    fits: bool,
}

impl Groups {
    fn push(&mut self, group: Group, mut wants: Vec<Want>, room: u32, parallel: u32) {
        wants.sort_by_key(|want| Reverse(want.priority));
        let (_, registry, why, _) = group;
        let taken = self.taken.entry(registry).or_default();
        let fits = room > *taken;
        if fits && why != Why::Pin {
            *taken += LivePull::cost_of(wants.len(), parallel);
        }
        self.all.push(Startable {
            group,
            priority: wants.first().map_or(0, |want| want.priority),
            wants,
            fits,
        });
    }

    /// How many can start, all at least so urgent.
    fn places(&self, priority: i32) -> usize {
        let counts = |known: &&Startable| known.fits && known.priority >= priority;
        self.all.iter().filter(counts).count()
    }

    /// Do groups at least so urgent leave nothing of the room that a registry has?
    fn exhaust(&self, registry: RegistryId, priority: i32, room: u32) -> bool {
        let taken = self.taken.get(&registry).copied().unwrap_or_default();
        let before = |known: &Startable| known.group.1 == registry && known.priority >= priority;
        room <= taken && self.all.iter().any(before)
    }

    /// Whoever is more urgent fills the node's batches first.
    fn by_urgency(mut self) -> Vec<Startable> {
        self.all
            .sort_by_key(|known| (Reverse(known.priority), known.group));
        self.all
    }
}

impl Engine {
    /// Is an image to be pulled to a node? What limits say comes after that: [`Engine::limit`].
    pub(crate) fn verdict(
        &self,
        at: CacheIdx,
        idx: NodeIdx,
        want: &Want,
        scene: &Scene,
        now: Tick,
    ) -> Result<Why, Skip> {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        node.eligibility().map_err(Skip::Ineligible)?;
        self.callable(idx, now)?;
        startable(cache)?;
        if self.names.images.get(want.image).invalid.is_some() {
            return Err(Skip::InvalidName);
        }
        if scene.pulling.contains(want.image.index()) {
            return Err(Skip::Pulling);
        }
        if scene.removing.contains(want.image.index()) {
            return Err(Skip::Removing);
        }
        let look = node.looks.get(want.image);
        let demand = self.demand(cache, idx);
        if look.looked < node.instance_stamp.max(cache.pulls_since(idx)).max(1) {
            return Err(Skip::NotLookedAt);
        }
        let failed = self.failure(cache, idx, want).is_some();
        let why = if let Some(attempt) = node.attempts.get(&(want.image, cache.scope))
            && attempt.stamp >= demand
            && (failed || self.pin_due(idx, want, scene, now))
        {
            match attempt.not_before {
                Some(at) if at > now => return Err(Skip::BackOff(at)),
                Some(_) => Why::Retry,
                None => return Err(Skip::UntilRefresh),
            }
        } else if node.looks.holds(want.image) {
            self.freshness(cache, idx, want, scene, now)?
        } else {
            match node.heals_at(want.image, now) {
                Some(at) if cache.pulls_since(idx) == 0 => return Err(Skip::LossBackOff(at)),
                _ => Why::Missing,
            }
        };
        let quiet = cache.refreshing.is_some() && cache.operation.is_none();
        let lost = why == Why::Missing && node.has_lost(want.image);
        if quiet && (why == Why::Newer || lost) {
            return Err(Skip::RefreshBegins);
        }
        match self.names.scopes.trouble(cache.scope) {
            Some(trouble) if trouble.not_before > now && why != Why::Pin => {
                Err(Skip::CredentialsUnavailable(trouble.not_before))
            }
            _ => Ok(why),
        }
    }

    /// Can the node's puller be asked now?
    pub(crate) fn callable(&self, idx: NodeIdx, now: Tick) -> Result<(), Skip> {
        let node = &self.nodes[idx];
        if node.puller.is_none() {
            return Err(Skip::NoPuller);
        }
        if node.not_before > now {
            return Err(Skip::NodeBackOff(node.not_before));
        }
        Ok(())
    }

    /// What a node holds must have been fetched since then, where it is always pulled: on join,
    /// operation and refresh, never on a check or by a new leader.
    fn demand(&self, cache: &Cache, idx: NodeIdx) -> Stamp {
        let refresh = cache.refreshing.unwrap_or(0);
        cache
            .pulls_since(idx)
            .max(refresh)
            .max(self.nodes[idx].joined)
    }

    /// An image that is there: is it new enough?
    fn freshness(
        &self,
        cache: &Cache,
        idx: NodeIdx,
        want: &Want,
        scene: &Scene,
        now: Tick,
    ) -> Result<Why, Skip> {
        let demand = self.demand(cache, idx);
        if self.fresh(idx, want, demand) {
            return self
                .pin_due(idx, want, scene, now)
                .then_some(Why::Pin)
                .ok_or(Skip::Present);
        }
        let news = self.names.images.get(want.image).news;
        if news.is_some_and(|(stamp, _)| stamp >= demand) {
            return Ok(Why::Newer);
        }
        match self.scouts.get(&(want.image, cache.scope)) {
            Some(scout) if scout.node == idx => Ok(Why::Ask),
            Some(Scout { failed: None, .. }) => Err(Skip::AnotherAsks),
            Some(Scout {
                failed: Some(stamp),
                ..
            }) if *stamp >= demand => Err(Skip::AnotherFailed),
            _ => Ok(Why::Ask),
        }
    }

    /// Is what the node holds as new as this?
    pub(crate) fn fresh(&self, idx: NodeIdx, want: &Want, since: Stamp) -> bool {
        let node = &self.nodes[idx];
        let look = node.looks.get(want.image);
        if !node.looks.holds(want.image) {
            return false;
        }
        if want.policy == ImagePullPolicy::IfNotPresent {
            return look.looked > 0;
        }
        let news = self.names.images.get(want.image).news;
        let same = news.is_some_and(|(stamp, digest)| stamp >= since && digest.same(look.digest));
        look.fetched >= since || same
    }

    /// The last attempt, if it failed. What is there and as new as the registry has had it since did
    /// not: another node has asked for all.
    pub(crate) fn failure(&self, cache: &Cache, idx: NodeIdx, want: &Want) -> Option<&Attempt> {
        let attempts = &self.nodes[idx].attempts;
        let attempt = attempts.get(&(want.image, cache.scope))?;
        (!self.fresh(idx, want, attempt.stamp)).then_some(attempt)
    }

    /// Has some node asked for all, without an answer?
    pub(crate) fn asked_in_vain(&self, image: ImageId, scope: ScopeId, since: Stamp) -> bool {
        let scout = self.scouts.get(&(image, scope));
        scout
            .and_then(|scout| scout.failed)
            .is_some_and(|stamp| stamp >= since)
    }

    fn pin_due(&self, idx: NodeIdx, want: &Want, scene: &Scene, now: Tick) -> bool {
        let upkeep = &self.nodes[idx].upkeep;
        scene.pin_wanted.contains(want.image.index())
            && !self.nodes[idx].looks.get(want.image).pinned
            && upkeep.can_pin != Some(false)
            && !upkeep.disk_full
            && upkeep.pin_not_before <= now
    }

    /// What keeps a batch from being started, whatever is in it.
    pub(crate) fn limit(
        &self,
        at: CacheIdx,
        idx: NodeIdx,
        scene: &Scene,
        free: u32,
    ) -> Option<Skip> {
        if !self.caches[&at].node_may_pull(idx) {
            return Some(Skip::NodeLimit);
        }
        if scene.short_pulls >= MOST_PULLS {
            return Some(Skip::BatchLimit);
        }
        (free == 0).then_some(Skip::RegistryBudget)
    }

    /// Is all that a cache wants on the node there or under way, and nothing else to be done about any
    /// of it? What every single verdict would say, without asking for them.
    fn settled(&self, cache: &Cache, idx: NodeIdx, scene: &Scene, there: &FixedBitSet) -> bool {
        let pattern = cache.pattern(idx);
        self.nodes[idx].attempts.is_empty()
            && pattern.images.is_subset(there)
            && scene.pin_wanted.is_disjoint(&pattern.images)
            && (!pattern.always || self.demand(cache, idx) == 0)
    }

    /// The most urgent first: what does not fit now waits until the end of some batch, which plans anew.
    pub(crate) fn plan_pulls(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene) {
        let free = MOST_PULLS.saturating_sub(scene.short_pulls);
        if free == 0 {
            return;
        }
        let mut groups = Groups::default();
        let mut wanted_by = FixedBitSet::new();
        let mut convert = Vec::new();
        let mut waiting: BTreeMap<RegistryId, i32> = BTreeMap::new();
        for (Reverse(priority), at) in self.unsettled(idx, scene) {
            if groups.places(priority) >= free {
                break;
            }
            let cache = &self.caches[&at];
            let pattern = cache.pattern(idx);
            if let Some(registry) = pattern.registry
                && groups.exhaust(registry, priority, self.room(registry))
            {
                waiting.entry(registry).or_insert(priority);
                scene.throttled.insert(at);
                continue;
            }
            let mut kinds: BTreeMap<Group, Vec<Want>> = BTreeMap::new();
            for want in &pattern.wants {
                if wanted_by.contains(want.image.index()) {
                    continue;
                }
                match self.verdict(at, idx, want, scene, now.tick) {
                    Ok(why) => {
                        wanted_by.grow_and_insert(want.image.index());
                        let registry = self.names.images.get(want.image).registry;
                        let group = (at, registry, why, self.asks(cache, idx, want, why));
                        kinds.entry(group).or_default().push(want.clone());
                    }
                    Err(Skip::RefreshBegins) => convert.push(at),
                    Err(_) => {}
                }
            }
            for (group, wants) in kinds {
                let room = self.room_for(idx, &group, scene);
                groups.push(group, wants, room, self.nodes[idx].parallel_pulls());
            }
        }
        for at in convert {
            if let Some(cache) = self.caches.get_mut(&at) {
                cache.must_pull = true;
                self.dirty_caches.insert(at);
            }
        }
        for Startable { group, wants, .. } in groups.by_urgency() {
            self.start_group(idx, group, &wants, now, scene);
        }
        for (registry, priority) in waiting {
            self.wait_for(registry, priority, idx);
        }
    }

    /// Caches that may have something to pull, the most urgent first.
    fn unsettled(&self, idx: NodeIdx, scene: &Scene) -> Vec<(Reverse<i32>, CacheIdx)> {
        let mut there = self.nodes[idx].looks.present().clone();
        union(&mut there, &scene.pulling);
        union(&mut there, &scene.removing);
        let caches = scene.stale.iter().map(|at| (*at, &self.caches[at]));
        let mut open: Vec<_> = caches
            .filter(|(_, cache)| !self.settled(cache, idx, scene, &there))
            .map(|(at, cache)| (Reverse(cache.pattern(idx).priority), at))
            .collect();
        open.sort_unstable();
        open
    }

    fn room(&self, registry: RegistryId) -> u32 {
        let ceiling = self.settings.max_registry_pulls;
        self.names.registries.get(registry).room(ceiling)
    }

    /// Pulls of such a group that its registry has room for, 0 where another limit holds.
    fn room_for(&self, idx: NodeIdx, group: &Group, scene: &Scene) -> u32 {
        let (at, registry, why, _) = *group;
        let room = match why {
            // What is there is not fetched.
            Why::Pin => u32::MAX,
            _ => self.room(registry),
        };
        match self.limit(at, idx, scene, room) {
            None => room,
            Some(_) => 0,
        }
    }

    /// Plans the node anew when the registry has room.
    fn wait_for(&mut self, registry: RegistryId, priority: i32, idx: NodeIdx) {
        let ceiling = self.settings.max_registry_pulls;
        let waiting = self.names.registries.get_mut(registry);
        waiting.wait(priority, idx);
        let alarm = waiting.alarm(ceiling);
        self.alarms.set(Alarm::Registry(registry), alarm);
    }

    /// Does such a pull ask the registry also where the image is there?
    fn asks(&self, cache: &Cache, idx: NodeIdx, want: &Want, why: Why) -> bool {
        let node = &self.nodes[idx];
        let asked = node.looks.holds(want.image) || self.demand(cache, idx) > 0;
        want.policy == ImagePullPolicy::Always && why != Why::Pin && asked
    }

    fn start_group(
        &mut self,
        idx: NodeIdx,
        group: Group,
        wants: &[Want],
        now: Now,
        scene: &mut Scene,
    ) {
        let (at, registry, why, _) = group;
        let ceiling = self.settings.max_registry_pulls;
        let parallel = self.nodes[idx].parallel_pulls();
        let mut rest = wants;
        while let Some(urgent) = rest.first() {
            let free = match why {
                // What is there is not fetched.
                Why::Pin => parallel,
                _ => self
                    .names
                    .registries
                    .get_mut(registry)
                    .free(ceiling, now.tick),
            };
            match self.limit(at, idx, scene, free) {
                Some(Skip::NodeLimit) => {
                    if let Some(cache) = self.caches.get_mut(&at) {
                        cache.waiting.insert(idx);
                    }
                    return;
                }
                Some(Skip::RegistryBudget) => {
                    self.wait_for(registry, urgent.priority, idx);
                    scene.throttled.insert(at);
                    return;
                }
                Some(_) => return,
                None => {}
            }
            let most = if free < parallel {
                free as usize
            } else {
                MOST_IMAGES
            };
            let (chunk, more) = rest.split_at(most.min(rest.len()));
            self.start_pull(idx, group, chunk, now, scene);
            scene.short_pulls += 1;
            insert(&mut scene.pulling, chunk.iter().map(|want| want.image));
            rest = more;
        }
    }

    fn start_pull(&mut self, idx: NodeIdx, group: Group, chunk: &[Want], now: Now, scene: &Scene) {
        let (at, registry, why, always) = group;
        let cache = &self.caches[&at];
        let (scope, credentials) = (cache.scope, self.names.scopes.get(cache.scope).clone());
        let freshness = self.token(cache, idx, why, always);
        let parallel = self.nodes[idx].parallel_pulls();
        let item = |want: &Want| PullItem {
            reference: want.reference.clone(),
            policy: if always {
                ImagePullPolicy::Always
            } else {
                ImagePullPolicy::IfNotPresent
            },
            freshness: freshness.clone(),
            priority: want.priority,
            deadline: self.deadline(idx, want.image),
            fallback_deadline: self.settings.pull_deadline,
            retention: if self.pin_due(idx, want, scene, now.tick) {
                Pin::On
            } else {
                Pin::Leave
            },
        };
        let work = Work::Pull {
            images: chunk.iter().map(item).collect(),
            credentials,
        };
        let image = |want: &Want| LiveImage {
            id: want.image,
            reference: want.reference.clone(),
            always,
            open: true,
            cancelled: false,
        };
        let pull = LivePull {
            cache: at,
            scope,
            registry,
            images: chunk.iter().map(image).collect(),
            parallel,
            cost: if why == Why::Pin {
                0
            } else {
                LivePull::cost_of(chunk.len(), parallel)
            },
            long: false,
        };
        let started = self.start(idx, work, LiveWork::Pull(pull), now).is_some();
        if started && always && matches!(why, Why::Ask | Why::Retry) {
            for want in chunk {
                let scout = self.scouts.get(&(want.image, scope));
                if scout.is_none_or(|scout| scout.failed.is_some()) {
                    self.scouts.insert(
                        (want.image, scope),
                        Scout {
                            node: idx,
                            failed: None,
                        },
                    );
                }
            }
        }
    }

    /// Two pulls with the same token are one, also for a new leader.
    fn token(&self, cache: &Cache, idx: NodeIdx, why: Why, always: bool) -> Arc<str> {
        let node = &self.nodes[idx];
        match &cache.operation {
            Some(op) if op.pulls.contains(idx) && why != Why::Pin => {
                format!("{}:{}", op.kind.reason(), op.started).into()
            }
            // The present image is as good as a fresh one.
            _ if !always => "".into(),
            _ if why == Why::Missing && node.joined > 0 => {
                let instance = node.puller.as_ref().map_or("", |puller| &puller.instance);
                format!("join:{instance}").into()
            }
            _ => format!("ask:{}:{}", self.term.unwrap_or_default(), self.stamp).into(),
        }
    }

    /// Of all caches that want the image here, the longest holds; without one only the limit on
    /// progress does.
    fn deadline(&self, idx: NodeIdx, image: ImageId) -> Option<Duration> {
        let default = self
            .settings
            .pull_deadline_binds
            .then_some(self.settings.pull_deadline);
        let wants = self
            .caches
            .values()
            .filter_map(|cache| cache.pattern(idx).want(image));
        let mut longest = Some(Duration::ZERO);
        for want in wants {
            longest = match (longest, want.deadline.or(default)) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        longest.filter(|longest| !longest.is_zero())
    }

    /// A node asked, or will not: who waited for it looks at what came, or asks itself.
    pub(crate) fn scout_left(&mut self, image: ImageId, scope: ScopeId, node: NodeIdx) {
        let key = (image, scope);
        if self
            .scouts
            .get(&key)
            .is_some_and(|scout| scout.node == node)
        {
            self.scouts.remove(&key);
            self.news(image);
        }
    }

    /// The registry gave no answer: nobody else asks in vain. What is the node's own trouble lets
    /// another node ask.
    pub(crate) fn scout_failed(
        &mut self,
        image: ImageId,
        scope: ScopeId,
        node: NodeIdx,
        stamp: Stamp,
        reason: &str,
    ) {
        let own = [
            failure::DISK_PRESSURE,
            failure::RUNTIME_UNAVAILABLE,
            failure::DEADLINE_EXCEEDED,
            failure::NO_PROGRESS,
            failure::PLATFORM_MISMATCH,
        ];
        if own.contains(&reason) {
            self.scout_left(image, scope, node);
            return;
        }
        if let Some(scout) = self
            .scouts
            .get_mut(&(image, scope))
            .filter(|scout| scout.node == node)
        {
            scout.failed = Some(stamp);
            self.news(image);
        }
    }

    /// Something is known of an image that nodes waited for.
    fn news(&mut self, image: ImageId) {
        let wanting = |cache: &&mut Cache| cache.ids.contains(image.index());
        for cache in self.caches.values_mut().filter(wanting) {
            cache.epoch += 1;
        }
        self.touch_all_nodes();
    }
}

fn startable(cache: &Cache) -> Result<(), Skip> {
    if cache.held() {
        return Err(Skip::Suspended);
    }
    if !cache.recorded() {
        return Err(Skip::NotRecorded);
    }
    Ok(())
}
