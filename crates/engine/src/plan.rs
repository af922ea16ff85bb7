//! What one node is asked to do. One plan is: end what nobody wants, remove, look, pull, and then
//! note how the node stands with every cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fixedbitset::FixedBitSet;

use crate::{
    CancelPulls, Command, Engine, Now, Skip, Tick, Work,
    alarms::Alarm,
    backoff,
    batches::{LiveWork, bare},
    cache::{Cache, CacheIdx},
    images::ImageId,
    node::{NodeIdx, Stamp},
    removal::{Debt, Owed},
};

/// Most images in one batch.
pub(crate) const MOST_IMAGES: usize = 512;

/// Most bytes of names beside those of a removal, twice. A puller takes messages of 8 MiB.
const MOST_NAME_BYTES: usize = 3 << 20;

/// What is wanted on one node, and what is under way there.
#[derive(Debug, Default)]
pub struct Scene {
    /// Images that some cache wants.
    pub wanted: FixedBitSet,
    /// Of these to be pinned.
    pub pin_wanted: FixedBitSet,
    /// Images that are being pulled.
    pub pulling: FixedBitSet,
    /// Images that are being removed.
    pub removing: FixedBitSet,
    /// A removal runs.
    pub removal: bool,
    /// A check runs.
    pub check: bool,
    /// Pull batches that are not long.
    pub short_pulls: usize,
    /// Caches that assess the node anew.
    pub stale: Vec<CacheIdx>,
    /// Caches whose pulls wait for a registry.
    pub throttled: BTreeSet<CacheIdx>,
    wake: Option<Tick>,
}

/// Why a name that nobody wants stays on a node for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// Nobody can be asked there.
    Uncallable(Skip),
    /// `spec.suspend`, or a spec that cannot be used.
    Suspended,
    /// The status does not name it yet, or the finalizer is not there yet.
    NotRecorded,
    /// Some cache wants it there: it is not to go.
    Wanted,
    /// A pull of it has not ended.
    Pulling,
    /// It is being removed.
    Removing,
    /// It is gone.
    Gone,
    /// It is kept on purpose, and looked at again then.
    Kept(String, Tick),
    /// It could not be removed, and is tried again then.
    Failed(String, Tick),
}

impl Scene {
    /// Plan again then.
    pub fn wake_at(&mut self, at: Tick) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

impl Engine {
    pub(crate) fn plan_node(&mut self, idx: NodeIdx, now: Now) {
        if self.nodes[idx].name.is_none() {
            return;
        }
        self.watch_silence(idx, now.tick);
        self.leave_operations(idx);
        let mut scene = self.scene(idx);
        if self.nodes[idx].wanted != scene.wanted {
            let node = &mut self.nodes[idx];
            node.epoch += 1;
            node.want(&scene.wanted);
        }
        self.reclaim(idx, &scene);
        self.time_to_look(idx, now, &mut scene);
        self.find_stale(idx, now.tick, &mut scene);
        let node = &self.nodes[idx];
        if node.callable() && node.not_before > now.tick {
            scene.wake_at(node.not_before);
        } else if node.callable() {
            self.cancel_unwanted(idx, &scene);
            self.plan_removal(idx, now, &mut scene);
            self.plan_check(idx, now, &mut scene);
            self.plan_pulls(idx, now, &mut scene);
        }
        for at in std::mem::take(&mut scene.stale) {
            let cell = self.assess(at, idx, now.tick, &mut scene);
            if let Some(cache) = self.caches.get_mut(&at) {
                cache.set_cell(idx, cell);
            }
            self.dirty_caches.insert(at);
        }
        self.node_turned(idx, now);
        let wake = scene.wake.filter(|at| *at > now.tick);
        self.alarms.set(Alarm::Node(idx), wake);
    }

    /// Since when nobody answers on a node where somebody could.
    fn watch_silence(&mut self, idx: NodeIdx, now: Tick) {
        let node = &mut self.nodes[idx];
        if !node.runs_puller() {
            node.silent_since = None;
        } else if node.puller.is_none() {
            node.silent_since.get_or_insert(now);
        } else if node.call_failures == 0 {
            node.silent_since = None;
        }
    }

    /// A node that is not eligible any more, or that no list matches any more, gets nothing.
    fn leave_operations(&mut self, idx: NodeIdx) {
        let eligible = self.nodes[idx].eligibility().is_ok();
        for cache in self.caches.values_mut() {
            let wanting = eligible && !cache.pattern(idx).wants.is_empty();
            let done = cache.cells[idx].done;
            if let Some(operation) = cache.operation.as_mut().filter(|op| op.pulls.contains(idx))
                && !wanting
            {
                operation.pulls.remove(idx);
                let left = !operation.has(idx) && !done;
                operation.open = operation.open.saturating_sub(usize::from(left));
            }
        }
    }

    /// What another cache wants here is not removed now: that it could not be, or was kept, says
    /// nothing any more.
    fn reclaim(&mut self, idx: NodeIdx, scene: &Scene) {
        for (at, cache) in &mut self.caches {
            for (_, owed) in cache
                .owed
                .iter_mut()
                .filter(|(image, _)| scene.wanted.contains(image.index()))
            {
                if owed.reclaimed(idx) {
                    self.dirty_caches.insert(*at);
                }
            }
        }
    }

    pub(crate) fn scene(&self, idx: NodeIdx) -> Scene {
        let mut scene = Scene::default();
        for cache in self.caches.values() {
            let images = &cache.pattern(idx).images;
            union(&mut scene.wanted, images);
            if cache.pinned {
                union(&mut scene.pin_wanted, images);
            }
        }
        for live in self.nodes[idx]
            .live
            .iter()
            .filter_map(|id| self.live.get(id))
        {
            match &live.work {
                LiveWork::Pull(pull) => {
                    scene.short_pulls += usize::from(!pull.long);
                    let open = pull.images.iter().filter(|image| image.open);
                    insert(&mut scene.pulling, open.map(|image| image.id));
                }
                LiveWork::Remove { images, .. } => {
                    scene.removal = true;
                    insert(&mut scene.removing, images.iter().copied());
                }
                LiveWork::Check { .. } => scene.check = true,
            }
        }
        scene
    }

    /// Once per check interval everything is looked at again.
    fn time_to_look(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene) {
        if scene.wanted.is_clear() {
            self.nodes[idx].check_at = Tick(0);
            return;
        }
        let interval = self.settings.check_interval;
        let node = &self.nodes[idx];
        let spread = node.spread(self.settings.seed, b"check");
        if node.check_at == Tick(0) {
            // Spread over half an interval: after a leader's start all nodes begin together.
            let part = u32::try_from(50 + spread % 51).unwrap_or(100);
            self.nodes[idx].check_at = now.tick.after(interval * part / 100);
        } else if node.check_at <= now.tick {
            let stamp = self.next_stamp(now);
            let node = &mut self.nodes[idx];
            node.check_at = now.tick.after(backoff::jittered(interval, 10, spread));
            node.look_again = stamp;
            node.epoch += 1;
            node.forget_losses(now.tick);
            self.forget_failures(idx);
        }
        scene.wake_at(self.nodes[idx].check_at);
    }

    /// Failures that no cache has any more: it wants the image no longer, or has other secrets now.
    fn forget_failures(&mut self, idx: NodeIdx) {
        let mut attempts = std::mem::take(&mut self.nodes[idx].attempts);
        attempts.retain(|(image, scope), attempt| {
            let mut caches = self.caches.values().filter(|cache| cache.scope == *scope);
            caches.any(|cache| {
                let want = cache.pattern(idx).want(*image);
                want.is_some_and(|want| !self.fresh(idx, want, attempt.stamp))
            })
        });
        self.nodes[idx].attempts = attempts;
    }

    /// Caches that have changed since they last assessed the node, or for which the node has, or
    /// for which time has come.
    fn find_stale(&self, idx: NodeIdx, now: Tick, scene: &mut Scene) {
        let epoch = self.nodes[idx].epoch;
        for (at, cache) in &self.caches {
            let cell = &cache.cells[idx];
            let due = cell.wake != Tick(0) && cell.wake <= now;
            if cell.epochs != (epoch, cache.epoch) || due {
                scene.stale.push(*at);
            } else if cell.wake != Tick(0) {
                scene.wake_at(cell.wake);
            }
        }
    }

    /// A pull that no cache wants on this node any more ends.
    fn cancel_unwanted(&mut self, idx: NodeIdx, scene: &Scene) {
        let node = &self.nodes[idx];
        let (Some(name), Some(puller)) = (&node.name, &node.puller) else {
            return;
        };
        for batch in &node.live {
            let Some(LiveWork::Pull(pull)) = self.live.get_mut(batch).map(|live| &mut live.work)
            else {
                continue;
            };
            let mut references = Vec::new();
            for image in &mut pull.images {
                if image.open && !image.cancelled && !scene.wanted.contains(image.id.index()) {
                    image.cancelled = true;
                    references.push(image.reference.clone());
                }
            }
            if references.is_empty() {
                continue;
            }
            self.seq += 1;
            self.outbox.push(Command::CancelPulls(CancelPulls {
                term: self.term.unwrap_or_default(),
                seq: self.seq,
                node: name.clone(),
                puller: puller.clone(),
                batch: *batch,
                references,
            }));
        }
    }

    /// One removal at a time: names that no cache wants here any more, and pins.
    fn plan_removal(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene) {
        if scene.removal {
            return;
        }
        let mut due: BTreeMap<ImageId, Arc<str>> = BTreeMap::new();
        for cache in self
            .caches
            .values()
            .filter(|cache| !cache.owed.is_empty() && cache.may_remove())
        {
            for (image, owed) in &cache.owed {
                if due.len() < MOST_IMAGES
                    && removal(cache, idx, *image, owed, scene, now.tick).is_ok()
                {
                    due.insert(*image, owed.reference.clone());
                }
            }
        }
        let upkeep = &self.nodes[idx].upkeep;
        if !upkeep.pins.is_empty() && upkeep.pin_not_before > now.tick {
            scene.wake_at(upkeep.pin_not_before);
        }
        let unpin = self.unwanted_pins(idx, now.tick, scene);
        if due.is_empty() && unpin.is_empty() {
            return;
        }
        let (wanted, complete) = some_of(self.wanted_there(idx, scene));
        if !complete {
            // They are looked at now; most are not there then.
            return;
        }
        let (releasable, _) = some_of(self.releasable(idx, scene));
        let (images, references): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        insert(&mut scene.removing, images.iter().copied());
        scene.removal = true;
        let work = Work::Remove {
            references,
            wanted,
            releasable,
            unpin: unpin.clone(),
        };
        self.start(idx, work, LiveWork::Remove { images, unpin }, now);
    }

    /// Names that some cache wants, as far as an image on the node can have them: one that at the
    /// last look was not there is a name of nothing, and of those there may be any number.
    fn wanted_there<'a>(
        &'a self,
        idx: NodeIdx,
        scene: &'a Scene,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let looks = &self.nodes[idx].looks;
        let there = move |image: ImageId| {
            let looked =
                looks.get(image).looked > 0 || self.names.images.get(image).invalid.is_some();
            !looked || looks.holds(image) || scene.pulling.contains(image.index())
        };
        self.caches
            .values()
            .flat_map(move |cache| &cache.pattern(idx).wants)
            .filter(move |want| there(want.image))
            .map(|want| &want.reference)
    }

    /// Names of ours that may still be there and that nobody wants here. Without some of them an
    /// image with several names stays until they have gone.
    fn releasable<'a>(
        &'a self,
        idx: NodeIdx,
        scene: &'a Scene,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        self.caches
            .values()
            .flat_map(|cache| &cache.owed)
            .filter(move |(image, owed)| {
                !scene.wanted.contains(image.index()) && !owed.done.contains(idx)
            })
            .map(|(_, owed)| &owed.reference)
    }

    /// Pins of ours on images that nobody wants pinned, as far as that can be known: ids say
    /// nothing of names, so every image that is to be pinned must have been seen, and none be under way.
    pub(crate) fn unwanted_pins(&self, idx: NodeIdx, now: Tick, scene: &Scene) -> Vec<Arc<str>> {
        let node = &self.nodes[idx];
        if node.upkeep.pins.is_empty() || node.upkeep.pin_not_before > now {
            return Vec::new();
        }
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for image in scene.pin_wanted.ones().map(ImageId::from_index) {
            if self.names.images.get(image).invalid.is_some() {
                continue;
            }
            if scene.pulling.contains(image.index()) {
                return Vec::new();
            }
            match node.upkeep.ids.get(&image) {
                Some(id) => {
                    wanted.insert(id);
                }
                None if node.looks.get(image).looked == 0 || node.looks.holds(image) => {
                    return Vec::new();
                }
                None => {}
            }
        }
        let pins = node.upkeep.pins.iter();
        pins.filter(|id| !wanted.contains(bare(id)))
            .cloned()
            .collect()
    }

    /// Does some cache want this image pinned here?
    pub(crate) fn pin_wanted(&self, idx: NodeIdx, image: ImageId) -> bool {
        let mut pinned = self.caches.values().filter(|cache| cache.pinned);
        pinned.any(|cache| cache.pattern(idx).images.contains(image.index()))
    }

    /// Nothing is pulled before a look: what is there already costs no registry anything, and a
    /// node that does not answer takes no budget.
    fn plan_check(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene) {
        if scene.check {
            return;
        }
        let node = &self.nodes[idx];
        let eligible = node.eligibility().is_ok();
        let mut due: BTreeMap<ImageId, Arc<str>> = BTreeMap::new();
        let mut report_since: Stamp = node.instance_stamp;
        for (at, cache) in &self.caches {
            report_since = report_since.max(cache.unpin.map_or(0, |unpin| unpin.since));
            if !scene.stale.contains(at) || !(eligible || cache.pinned) {
                continue;
            }
            let since = self.look_since(*at, idx);
            let wants = &cache.pattern(idx).wants;
            if node.looks.oldest(wants.iter().map(|want| &want.image)) >= since {
                continue;
            }
            for want in wants {
                let at = want.image.index();
                let busy = scene.pulling.contains(at) || scene.removing.contains(at);
                if !busy
                    && node.looks.get(want.image).looked < since
                    && due.len() < MOST_IMAGES
                    && self.names.images.get(want.image).invalid.is_none()
                {
                    due.insert(want.image, want.reference.clone());
                }
            }
        }
        let report_at = node.upkeep.report_not_before;
        let wants_report = node.upkeep.reported < report_since;
        if due.is_empty() && (!wants_report || report_at > now.tick) {
            if wants_report {
                scene.wake_at(report_at);
            }
            return;
        }
        let (images, references): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        scene.check = true;
        self.start(
            idx,
            Work::Check { references },
            LiveWork::Check { images },
            now,
        );
    }

    /// Looks of a cache at a node that are older are looked again.
    pub(crate) fn look_since(&self, at: CacheIdx, idx: NodeIdx) -> Stamp {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        let refresh = cache.refreshing.unwrap_or(0);
        let node_since = node.instance_stamp.max(node.look_again);
        node_since.max(cache.pulls_since(idx)).max(refresh).max(1)
    }
}

/// Names, each once, as far as a message has room for them; and whether it has for all.
fn some_of<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> (Vec<Arc<str>>, bool) {
    let names: BTreeSet<&Arc<str>> = names.collect();
    let mut left = MOST_NAME_BYTES;
    let room = |name: &&Arc<str>| {
        let room = name.len() <= left;
        left = left.saturating_sub(name.len());
        room
    };
    let some: Vec<Arc<str>> = names.iter().copied().take_while(room).cloned().collect();
    let complete = some.len() == names.len();
    (some, complete)
}

/// Is a name that a cache owes to be removed from a node now?
pub(crate) fn removal(
    cache: &Cache,
    idx: NodeIdx,
    image: ImageId,
    owed: &Owed,
    scene: &Scene,
    now: Tick,
) -> Result<(), Stays> {
    if !cache.may_remove() {
        return Err(if cache.held() {
            Stays::Suspended
        } else {
            Stays::NotRecorded
        });
    }
    if scene.wanted.contains(image.index()) {
        return Err(Stays::Wanted);
    }
    if scene.pulling.contains(image.index()) {
        return Err(Stays::Pulling);
    }
    let stamp = cache.operation.as_ref().map_or(0, |op| op.stamp);
    match owed.debt(idx, stamp, now) {
        Debt::Due if scene.removing.contains(image.index()) => Err(Stays::Removing),
        Debt::Due => Ok(()),
        Debt::Gone => Err(Stays::Gone),
        Debt::Kept(again) => {
            let why = owed.kept.get(&idx).map(|(why, _)| why.clone());
            Err(Stays::Kept(why.unwrap_or_default(), again))
        }
        Debt::Failed(again) => {
            let why = owed.failed.get(&idx).map(|failed| failed.reason.clone());
            Err(Stays::Failed(why.unwrap_or_default(), again))
        }
    }
}

/// More images in a set.
pub(crate) fn insert(set: &mut FixedBitSet, images: impl Iterator<Item = ImageId>) {
    for image in images {
        set.grow_and_insert(image.index());
    }
}

/// All of another set, too.
pub(crate) fn union(all: &mut FixedBitSet, more: &FixedBitSet) {
    all.grow(more.len());
    all.union_with(more);
}
