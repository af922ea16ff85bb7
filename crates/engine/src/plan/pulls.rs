//! Which images are pulled to a node now, in which batches. The most urgent come first; the rest waits for a batch to end.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use kubefledged_api_types::ImagePullPolicy;

use super::{
    context::{NodeContext, NodeView},
    groups::{GroupKey, Groups, Wish},
    node_plan::{MAX_IMAGES, NodePlan, PlannedPull},
    supply::HOLD,
    verdict::{MAX_SHORT_PULLS, limit, may_start},
};
use crate::{
    ids::{CacheIdx, IdSet, ImageId, RegistryId, Stamp},
    model::{
        cache::Cache,
        desired::DesiredImage,
        image_set::{ImageSet, longest_deadline},
        in_flight::{Pull, PulledImage},
        peers::{Origin, Supply},
        registries::Began,
    },
    vocabulary::{Pin, PullBlock, PullItem, PullReason},
};

/// Plans the pulls of a node. `stale`: caches that compute the node's status anew; the others have nothing to
/// pull there.
pub fn plan(
    view: &NodeView<'_>,
    stale: &[CacheIdx],
    context: &mut NodeContext,
    plan: &mut NodePlan,
) {
    let free = MAX_SHORT_PULLS.saturating_sub(context.short_pulls);
    if free == 0 || view.node.eligibility().is_err() {
        return;
    }
    let mut groups = Groups::default();
    let mut chosen: IdSet<ImageId> = IdSet::default();
    let mut exhausted: BTreeMap<RegistryId, i32> = BTreeMap::new();
    for Candidate { priority, cache } in candidates(view, stale, context) {
        if groups.places(priority) >= free {
            break;
        }
        let set = view.model.caches[cache].set(view.idx);
        // Other nodes may have what the registry has no room for.
        if view.node.peers.cell.is_none()
            && let Some(registry) = set.registry
            && groups.exhaust(registry, priority, room(view, registry))
        {
            exhausted.entry(registry).or_insert(priority);
            plan.throttled.insert(cache);
            continue;
        }
        group_images(view, cache, context, &mut chosen, &mut groups, plan);
    }
    let mut fill = Fill {
        view,
        context,
        plan,
        taken: BTreeMap::new(),
    };
    for (key, wishes) in groups.by_urgency() {
        fill.start(key, &wishes);
    }
    plan.waits.registries.extend(exhausted);
}

/// A cache that may have something to pull. The most urgent comes first.
struct Candidate {
    priority: i32,
    cache: CacheIdx,
}

fn candidates(view: &NodeView<'_>, stale: &[CacheIdx], context: &NodeContext) -> Vec<Candidate> {
    let mut there = view.node.observed.present().clone();
    there.union_with(&context.pulling);
    there.union_with(&context.removing);
    let mut open: Vec<Candidate> = stale
        .iter()
        .map(|at| (*at, &view.model.caches[*at]))
        .filter(|(_, cache)| !settled(view, cache, context, &there))
        .map(|(at, cache)| Candidate {
            priority: cache.set(view.idx).priority,
            cache: at,
        })
        .collect();
    open.sort_unstable_by_key(|candidate| (Reverse(candidate.priority), candidate.cache));
    open
}

/// Is everything that a cache desires unchecked, or there, or in flight, so that every verdict would be to do nothing?
fn settled(
    view: &NodeView<'_>,
    cache: &Cache,
    context: &NodeContext,
    there: &IdSet<ImageId>,
) -> bool {
    let set = cache.set(view.idx);
    if !view.node.observed.any_since(view.checked_since(cache)) {
        return true;
    }
    view.node.attempts.is_empty()
        && set.images.is_subset(there)
        && context.pin_desired.is_disjoint(&set.images)
        && (!set.always || view.demand(cache).is_none())
}

/// Sorts the images of a cache that must be pulled into groups. An image that an earlier cache pulls is left out.
fn group_images<'m>(
    view: &NodeView<'m>,
    at: CacheIdx,
    context: &NodeContext,
    chosen: &mut IdSet<ImageId>,
    groups: &mut Groups<'m>,
    plan: &mut NodePlan,
) {
    let cache = &view.model.caches[at];
    if may_start(cache).is_err() {
        return;
    }
    let set = cache.set(view.idx);
    let mut kinds: BTreeMap<GroupKey, Vec<Wish<'_>>> = BTreeMap::new();
    let mut waits = false;
    for desired in &set.desired {
        if chosen.contains(desired.image) {
            continue;
        }
        match view.image_verdict(cache, desired, context) {
            Ok(_) if !view.node_may_pull(cache, desired.image) => waits = true,
            Ok(reason) => {
                chosen.insert(desired.image);
                let asks_registry = asks_registry(view, cache, desired, reason);
                let Ok(supply) = view.supply(desired, reason) else {
                    plan.waits.sources(desired, asks_registry);
                    continue;
                };
                let key = GroupKey {
                    urgency: set.priority,
                    registry: view.model.names.images.get(desired.image).registry,
                    credentials: desired.credentials,
                    reason,
                    asks_registry,
                    origin: supply.origin(),
                    running: view.node.running.contains(desired.image),
                };
                let wish = Wish { cache: at, desired };
                kinds.entry(key).or_default().push(wish);
            }
            Err(PullBlock::RefreshBegins) => plan.convert.push(at),
            Err(_) => {}
        }
    }
    plan.waits.caches.extend(waits.then_some(at));
    for (key, wishes) in kinds {
        let room = if key.is_free() || key.running {
            u32::MAX
        } else {
            room(view, key.registry)
        };
        groups.add(key, wishes, room, view.node.parallel_pulls());
    }
}

/// Does such a pull ask the registry even if the image is present?
fn asks_registry(
    view: &NodeView<'_>,
    cache: &Cache,
    desired: &DesiredImage,
    reason: PullReason,
) -> bool {
    desired.policy == ImagePullPolicy::Always
        && reason != PullReason::Pin
        && (view.node.observed.holds(desired.image) || view.demand(cache).is_some())
}

fn room(view: &NodeView<'_>, registry: RegistryId) -> u32 {
    view.model.names.registries.get(registry).room()
}

/// Fills the node's free batches.
struct Fill<'a, 'm> {
    view: &'a NodeView<'m>,
    context: &'a mut NodeContext,
    plan: &'a mut NodePlan,
    /// How much of each registry's budget the planned batches take.
    taken: BTreeMap<RegistryId, u32>,
}

impl Fill<'_, '_> {
    /// Plans as many batches of a group as there is room for.
    fn start(&mut self, key: GroupKey, wishes: &[Wish<'_>]) {
        let (registry, origin) = (key.registry, key.origin);
        let parallel = self.view.node.parallel_pulls();
        let mut rest = wishes;
        while let Some(urgent) = rest.first() {
            let room = if key.is_free() {
                parallel
            } else {
                self.room_now(&key, rest.len())
            };
            match limit(self.context, room) {
                Some(PullBlock::RegistryBudget) => {
                    let wait = (registry, urgent.desired.priority);
                    self.plan.waits.registries.push(wait);
                    let caches = rest.iter().map(|wish| wish.cache);
                    self.plan.throttled.extend(caches);
                    self.keep_offers(&key, rest);
                    return;
                }
                Some(_) => return,
                None => {}
            }
            let probes = origin == Origin::Registry
                && !key.is_free()
                && !key.running
                && !self.is_proven(registry, parallel);
            let most = match origin {
                // Each has nodes of its own that wait for it.
                Origin::Seed => 1,
                Origin::Registry if room < parallel => room as usize,
                // A registry that refuses so many pulls at a time refuses these and not hundreds.
                Origin::Registry if probes => parallel as usize,
                Origin::Registry | Origin::Peers => MAX_IMAGES,
            };
            let (chunk, more) = rest.split_at(most.min(rest.len()));
            let pull = self.batch(key, chunk);
            *self.taken.entry(registry).or_default() += pull.pull.cost;
            self.plan.pull.push(pull);
            self.context.short_pulls += 1;
            let pulling = &mut self.context.pulling;
            pulling.extend(chunk.iter().map(|wish| wish.desired.image));
            rest = more;
            if probes {
                self.keep_offers(&key, rest);
                return;
            }
        }
    }

    /// These images wait for the registry. Other nodes may have them before it has room.
    fn keep_offers(&mut self, key: &GroupKey, rest: &[Wish<'_>]) {
        let offers = &self.view.node.peers.offers;
        let rest = rest.iter().map(|wish| wish.desired);
        for desired in rest.filter(|desired| offers.contains_key(&desired.image)) {
            self.plan.waits.sources(desired, key.asks_registry);
        }
    }

    /// Is it known that the registry bears so many more pulls?
    fn is_proven(&self, registry: RegistryId, more: u32) -> bool {
        let taken = self.taken.get(&registry).copied().unwrap_or_default();
        let registries = &self.view.model.names.registries;
        registries.get(registry).is_proven(taken, more)
    }

    fn room_now(&mut self, key: &GroupKey, images: usize) -> u32 {
        let taken = self.taken.get(&key.registry).copied().unwrap_or_default();
        self.plan.asked.insert(key.registry);
        let registry = self.view.model.names.registries.get(key.registry);
        let wants = match key.origin {
            Origin::Registry => key.cost(images, self.view.node.parallel_pulls()),
            Origin::Seed | Origin::Peers => 1,
        };
        if key.running {
            registry.room_for_running(taken)
        } else {
            registry.room_now(self.view.now, taken, wants)
        }
    }

    fn batch(&self, key: GroupKey, chunk: &[Wish<'_>]) -> PlannedPull {
        let view = self.view;
        let parallel = view.node.parallel_pulls();
        let sets = view.model.caches.values().map(|cache| cache.set(view.idx));
        let sets: Vec<&ImageSet> = sets.collect();
        let mut tokens: BTreeMap<CacheIdx, Arc<str>> = BTreeMap::new();
        let mut items = Vec::with_capacity(chunk.len());
        let mut images = Vec::with_capacity(chunk.len());
        for Wish { cache, desired } in chunk {
            let token = || self.token(&view.model.caches[*cache], key);
            let freshness = tokens.entry(*cache).or_insert_with(token).clone();
            let image = self.pulled(key, *cache, desired);
            items.push(PullItem {
                deadline: longest_deadline(&sets, desired.image),
                ..self.item(key, &image, desired, freshness)
            });
            images.push(image);
        }
        let asks = matches!(key.reason, PullReason::FreshnessProbe | PullReason::Retry);
        PlannedPull {
            items,
            pull: Pull {
                credentials: key.credentials,
                registry: key.registry,
                images,
                parallel,
                cost: key.cost(chunk.len(), parallel),
                began: Began::default(),
                long: false,
                origin: key.origin,
            },
            probes: key.asks_registry && asks,
        }
    }

    /// What is remembered of an image.
    fn pulled(&self, key: GroupKey, cache: CacheIdx, desired: &DesiredImage) -> PulledImage {
        PulledImage {
            id: desired.image,
            cache,
            reference: desired.reference.clone(),
            supply: match key.origin {
                Origin::Seed | Origin::Peers => self.view.offered(desired.image),
                Origin::Registry => Supply::Registry,
            },
            asks_registry: key.asks_registry,
            open: true,
            cancelled: false,
            bytes: 0,
        }
    }

    /// What is sent of it, but for its deadline.
    fn item(
        &self,
        key: GroupKey,
        image: &PulledImage,
        desired: &DesiredImage,
        freshness: Arc<str>,
    ) -> PullItem {
        let view = self.view;
        PullItem {
            cache: view.model.caches[image.cache].object.key.clone(),
            reference: desired.reference.clone(),
            policy: if key.asks_registry {
                ImagePullPolicy::Always
            } else {
                ImagePullPolicy::IfNotPresent
            },
            freshness,
            priority: desired.priority,
            deadline: None,
            fallback_deadline: view.model.settings.pull_deadline,
            retention: if view.pin_due(desired.image, self.context) {
                Pin::On
            } else {
                Pin::Leave
            },
            mark: self.context.mark,
            peers: view.peers(&image.supply),
            hold_layers: (key.origin != Origin::Registry).then_some(HOLD),
        }
    }

    /// The freshness token: two pulls of a name with the same token are one, for a new leader too.
    fn token(&self, cache: &Cache, key: GroupKey) -> Arc<str> {
        let view = self.view;
        let instance = &view.node.instance;
        match &cache.operation {
            Some(op) if op.pulls.contains(view.idx) && key.reason != PullReason::Pin => {
                format!("{}:{}", op.kind.reason(), op.started).into()
            }
            // A present image is as good as a fresh one.
            _ if !key.asks_registry => "".into(),
            _ if key.reason == PullReason::Missing && instance.joined.is_some() => {
                let puller = view.node.puller.as_ref();
                let instance = puller.map_or("", |puller| &puller.instance);
                format!("join:{instance}").into()
            }
            _ => {
                let last = view.model.clock.last_after(self.plan.batches());
                let stamp = last.map_or(0, Stamp::get);
                format!("ask:{}:{stamp}", view.model.leadership.term()).into()
            }
        }
    }
}
