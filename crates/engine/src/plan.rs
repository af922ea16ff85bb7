//! What one node is asked to do, and how it then stands with every cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::ImagePullPolicy;

use crate::{
    Batch, BatchId, CacheKey, CancelPulls, Command, CredentialScope, Now, PullItem, Tick, Work,
    backoff,
    cache::{CacheIdx, Cell, CellState, Kind, Want},
    engine::{Engine, Live, LiveWork},
    images::ImageId,
    node::{Node, NodeIdx, Stamp},
    removal::Debt,
};

/// Most images in one batch.
const MOST_IMAGES: usize = 512;
/// Most pull batches a node works on at a time; the puller orders what is in them.
const MOST_PULL_BATCHES: usize = 4;
/// A batch that says nothing for so long has lost its effect; a backstop, effects end earlier.
const CHECK_DEADLINE: Duration = Duration::from_secs(60);
const WORK_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// What every cache wants on one node, and what is under way there.
struct Scene {
    wants: Vec<(CacheIdx, Vec<Want>)>,
    wanted: BTreeSet<ImageId>,
    pulling: BTreeMap<ImageId, CacheIdx>,
    removing: BTreeSet<ImageId>,
    checking: bool,
    pull_batches: usize,
    wake: Option<Tick>,
}

impl Scene {
    fn wake_at(&mut self, at: Tick) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

impl Engine {
    /// Plans one node and assesses it anew. Returns when to do so again.
    pub(crate) fn plan_node(
        &mut self,
        idx: NodeIdx,
        now: Now,
        out: &mut Vec<Command>,
    ) -> Option<Tick> {
        self.watch_silence(idx, now.tick);
        let mut scene = self.scene(idx);
        let callable = self.nodes[idx].puller.is_some() && self.nodes[idx].facts.is_some();
        if callable && self.nodes[idx].not_before <= now.tick {
            self.cancel_unwanted(idx, &scene, out);
            self.plan_removal(idx, now, &mut scene, out);
            self.plan_check(idx, now, &mut scene, out);
            self.plan_pulls(idx, now, &mut scene, out);
        } else if callable {
            scene.wake_at(self.nodes[idx].not_before);
        }
        for (cache, wants) in std::mem::take(&mut scene.wants) {
            let cell = self.assess(cache, idx, &wants, now, &mut scene);
            if let Some(cache) = self.caches.get_mut(&cache) {
                cache.set_cell(idx, cell);
            }
            self.dirty_caches.insert(cache);
        }
        scene.wake
    }

    /// The grace time begins when an eligible node is first seen without a puller.
    fn watch_silence(&mut self, idx: NodeIdx, now: Tick) {
        let node = &mut self.nodes[idx];
        if node.eligibility().is_err() {
            node.silent_since = None;
        } else if node.puller.is_none() {
            node.silent_since.get_or_insert(now);
        } else if node.call_failures == 0 {
            node.silent_since = None;
        }
    }

    fn scene(&self, idx: NodeIdx) -> Scene {
        let node = &self.nodes[idx];
        let mut scene = Scene {
            wants: Vec::with_capacity(self.caches.len()),
            wanted: BTreeSet::new(),
            pulling: BTreeMap::new(),
            removing: BTreeSet::new(),
            checking: false,
            pull_batches: 0,
            wake: None,
        };
        for (at, cache) in &self.caches {
            let wants = node
                .facts
                .as_ref()
                .map_or_else(Vec::new, |facts| cache.wants(facts));
            scene.wanted.extend(wants.iter().map(|want| want.image));
            scene.wants.push((*at, wants));
        }
        for id in &node.live {
            let Some(live) = self.live.get(id) else {
                continue;
            };
            match &live.work {
                LiveWork::Pull { images } => {
                    scene.pull_batches += 1;
                    let open = images.iter().filter(|image| image.open);
                    scene
                        .pulling
                        .extend(open.map(|image| (image.id, live.cache)));
                }
                LiveWork::Remove { images } => scene.removing.extend(images.iter().copied()),
                LiveWork::Check { .. } => scene.checking = true,
            }
        }
        scene
    }

    /// A pull that no cache wants on this node any more ends.
    fn cancel_unwanted(&mut self, idx: NodeIdx, scene: &Scene, out: &mut Vec<Command>) {
        let Some(puller) = self.nodes[idx].puller.clone() else {
            return;
        };
        let Some(name) = self.nodes[idx].name.clone() else {
            return;
        };
        let batches: Vec<BatchId> = self.nodes[idx].live.iter().copied().collect();
        for batch in batches {
            let Some(live) = self.live.get_mut(&batch) else {
                continue;
            };
            let LiveWork::Pull { images } = &mut live.work else {
                continue;
            };
            let mut references = Vec::new();
            for image in images.iter_mut() {
                if image.open && !image.cancelled && !scene.wanted.contains(&image.id) {
                    image.cancelled = true;
                    references.push(image.reference.clone());
                }
            }
            if references.is_empty() {
                continue;
            }
            self.seq += 1;
            out.push(Command::CancelPulls(CancelPulls {
                term: self.term.unwrap_or_default(),
                seq: self.seq,
                node: name.clone(),
                puller: puller.clone(),
                batch,
                references,
            }));
        }
    }

    fn plan_removal(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene, out: &mut Vec<Command>) {
        if !scene.removing.is_empty() {
            return;
        }
        for at in self.caches.keys().copied().collect::<Vec<_>>() {
            let cache = &self.caches[&at];
            if !cache.recorded() {
                continue;
            }
            let stamp = cache.operation.as_ref().map_or(0, |op| op.stamp);
            let mut due = Vec::new();
            for (image, owed) in &cache.owed {
                if scene.wanted.contains(image) || scene.pulling.contains_key(image) {
                    continue;
                }
                match owed.debt(idx, stamp, now.tick) {
                    Debt::Due if due.len() < MOST_IMAGES => {
                        due.push((*image, owed.reference.clone()));
                    }
                    Debt::Due => {}
                    Debt::Settled { again } => {
                        if let Some(again) = again {
                            scene.wake_at(again);
                        }
                    }
                }
            }
            if due.is_empty() {
                continue;
            }
            let wanted = scene.wants.iter().flat_map(|(_, wants)| wants);
            let wanted: BTreeSet<Arc<str>> = wanted.map(|want| want.reference.clone()).collect();
            let releasable: BTreeSet<Arc<str>> = self
                .caches
                .values()
                .flat_map(|cache| cache.owed.iter())
                .filter(|(image, _)| !scene.wanted.contains(image))
                .map(|(_, owed)| owed.reference.clone())
                .collect();
            let (images, references): (Vec<_>, Vec<_>) = due.into_iter().unzip();
            scene.removing.extend(images.iter().copied());
            let work = Work::Remove {
                references,
                wanted: wanted.into_iter().collect(),
                releasable: releasable.into_iter().collect(),
                unpin: Vec::new(),
            };
            self.start(
                idx,
                at,
                work,
                LiveWork::Remove { images },
                now.tick.after(WORK_DEADLINE),
                out,
            );
            return;
        }
    }

    fn plan_check(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene, out: &mut Vec<Command>) {
        if scene.checking || self.nodes[idx].eligibility().is_err() {
            return;
        }
        let wants = std::mem::take(&mut scene.wants);
        for (at, wants) in &wants {
            let cache = &self.caches[at];
            let cell = cache.cells.get(idx).copied().unwrap_or_default();
            let direct = cache.operation.is_some() || self.nodes[idx].joined;
            let since = self.nodes[idx]
                .instance_stamp
                .max(cache.refreshing.unwrap_or(1));
            let old = |want: &&Want| {
                let known = &self.images.get(want.image);
                known.invalid.is_none() && self.nodes[idx].look(want.image).looked < since
            };
            let periodic = cell.check_at != Tick(0) && cell.check_at <= now.tick;
            let due: Vec<&Want> = if periodic && cache.operation.is_none() {
                wants
                    .iter()
                    .filter(|want| self.images.get(want.image).invalid.is_none())
                    .collect()
            } else if direct {
                Vec::new()
            } else {
                wants.iter().filter(old).collect()
            };
            let due: Vec<&Want> = due
                .into_iter()
                .filter(|want| !scene.pulling.contains_key(&want.image))
                .filter(|want| !scene.removing.contains(&want.image))
                .take(MOST_IMAGES)
                .collect();
            if due.is_empty() {
                continue;
            }
            let images = due.iter().map(|want| want.image).collect();
            let references = due.iter().map(|want| want.reference.clone()).collect();
            let deadline = now.tick.after(CHECK_DEADLINE);
            let (work, live) = (Work::Check { references }, LiveWork::Check { images });
            self.start(idx, *at, work, live, deadline, out);
            scene.checking = true;
            break;
        }
        scene.wants = wants;
    }

    fn plan_pulls(&mut self, idx: NodeIdx, now: Now, scene: &mut Scene, out: &mut Vec<Command>) {
        if self.nodes[idx].eligibility().is_err() {
            return;
        }
        let mut wants = std::mem::take(&mut scene.wants);
        // Whoever is more urgent fills the node's batches first.
        wants.sort_by_key(|(at, wants)| {
            let urgent = wants
                .iter()
                .map(|want| want.priority)
                .max()
                .unwrap_or(i32::MIN);
            (std::cmp::Reverse(urgent), *at)
        });
        for (at, wants) in &wants {
            if !self.caches[at].recorded() {
                continue;
            }
            let mut groups: BTreeMap<(Arc<str>, bool), Vec<&Want>> = BTreeMap::new();
            for want in wants {
                if scene.pulling.contains_key(&want.image) || scene.removing.contains(&want.image) {
                    continue;
                }
                match self.pull_due(*at, idx, want, now.tick) {
                    Due::Now => {
                        let registry = self.images.get(want.image).registry.clone();
                        let always = want.policy == ImagePullPolicy::Always;
                        groups.entry((registry, always)).or_default().push(want);
                    }
                    Due::At(tick) => scene.wake_at(tick),
                    Due::No => {}
                }
            }
            for chunk in groups.values().flat_map(|group| group.chunks(MOST_IMAGES)) {
                if scene.pull_batches >= MOST_PULL_BATCHES {
                    break;
                }
                scene.pull_batches += 1;
                scene
                    .pulling
                    .extend(chunk.iter().map(|want| (want.image, *at)));
                self.start_pull(idx, *at, chunk, now.tick, out);
            }
        }
        scene.wants = wants;
    }

    /// Is an image to be pulled?
    fn pull_due(&self, at: CacheIdx, idx: NodeIdx, want: &Want, now: Tick) -> Due {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        if self.images.get(want.image).invalid.is_some() {
            return Due::No;
        }
        let stamp = cache
            .operation
            .as_ref()
            .filter(|op| op.kind != Kind::Purge && op.nodes.contains(idx))
            .map(|op| op.stamp);
        if let Some(attempt) = node.attempts.get(&(want.image, cache.scope.clone()))
            && stamp.is_none_or(|stamp| attempt.stamp >= stamp)
        {
            return match attempt.not_before {
                Some(at) if at <= now => Due::Now,
                Some(at) => Due::At(at),
                None => Due::No,
            };
        }
        let look = node.look(want.image);
        let due = match stamp {
            Some(stamp) => !fresh(node, want, stamp),
            None if look.looked == 0 => node.joined,
            None => !node.holds(want.image),
        };
        if due { Due::Now } else { Due::No }
    }

    fn start_pull(
        &mut self,
        idx: NodeIdx,
        at: CacheIdx,
        chunk: &[&Want],
        now: Tick,
        out: &mut Vec<Command>,
    ) {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        let base = match &cache.operation {
            Some(op) if op.nodes.contains(idx) => format!("{}:{}", op.kind.reason(), op.started),
            _ if node.joined && node.look(chunk[0].image).looked == 0 => {
                format!(
                    "join:{}",
                    node.puller.as_ref().map_or("", |puller| &puller.instance)
                )
            }
            _ => format!("heal:{}:{}", self.term.unwrap_or_default(), self.stamp),
        };
        let items = chunk
            .iter()
            .map(|want| {
                let tries = node
                    .attempts
                    .get(&(want.image, cache.scope.clone()))
                    .map_or(0, |attempt| attempt.tries);
                PullItem {
                    reference: want.reference.clone(),
                    policy: want.policy,
                    // A repeat is another pull: the puller remembers how the first one ended.
                    freshness: if tries == 0 {
                        base.clone().into()
                    } else {
                        format!("{base}#{}:{tries}", self.stamp).into()
                    },
                    priority: want.priority,
                    deadline: Some(want.deadline),
                    fallback_deadline: want.deadline,
                    retention: crate::Pin::Leave,
                }
            })
            .collect();
        let images = chunk
            .iter()
            .map(|want| crate::engine::LiveImage {
                id: want.image,
                reference: want.reference.clone(),
                always: want.policy == ImagePullPolicy::Always,
                open: true,
                cancelled: false,
            })
            .collect();
        let credentials: CredentialScope = cache.scope.clone();
        let work = Work::Pull {
            images: items,
            credentials,
        };
        self.start(
            idx,
            at,
            work,
            LiveWork::Pull { images },
            now.after(WORK_DEADLINE),
            out,
        );
    }

    fn start(
        &mut self,
        idx: NodeIdx,
        at: CacheIdx,
        work: Work,
        live: LiveWork,
        deadline: Tick,
        out: &mut Vec<Command>,
    ) {
        let node = &mut self.nodes[idx];
        let (Some(name), Some(puller)) = (node.name.clone(), node.puller.clone()) else {
            return;
        };
        self.stamp += 1;
        self.seq += 1;
        self.last_batch += 1;
        let id = BatchId(self.last_batch);
        node.live.insert(id);
        self.deadlines.insert((deadline, id));
        let cache: CacheKey = self.caches[&at].object.key.clone();
        self.live.insert(
            id,
            Live {
                node: idx,
                cache: at,
                scope: self.caches[&at].scope.clone(),
                stamp: self.stamp,
                work: live,
                deadline,
            },
        );
        out.push(Command::StartBatch(Box::new(Batch {
            id,
            term: self.term.unwrap_or_default(),
            seq: self.seq,
            node: name,
            puller,
            cache: Some(cache),
            work,
        })));
    }

    fn assess(
        &self,
        at: CacheIdx,
        idx: NodeIdx,
        wants: &[Want],
        now: Now,
        scene: &mut Scene,
    ) -> Cell {
        let (cache, node) = (&self.caches[&at], &self.nodes[idx]);
        let before = cache.cells.get(idx).copied().unwrap_or_default();
        let mut cell = Cell {
            done: self.debts_settled(at, idx, now.tick, scene),
            ..Cell::default()
        };
        if wants.is_empty() || node.eligibility().is_err() {
            return cell;
        }
        let grace = self.settings.puller_grace;
        let unreachable = node.unreachable(now.tick, grace);
        if let (Some(since), false) = (node.silent_since, unreachable) {
            scene.wake_at(since.after(grace));
        }
        let stamp = cache.operation.as_ref().map_or(0, |op| op.stamp);
        let (mut looked, mut missing_failed, mut pulling) = (Stamp::MAX, false, false);
        for want in wants {
            cell.want += 1;
            if self.images.get(want.image).invalid.is_some() {
                cell.failing += 1;
                missing_failed = true;
                continue;
            }
            let attempt = node.attempts.get(&(want.image, cache.scope.clone()));
            looked = looked.min(node.look(want.image).looked);
            cell.have += u32::from(node.holds(want.image));
            cell.failing += u32::from(attempt.is_some());
            missing_failed |= attempt.is_some() && !node.holds(want.image);
            pulling |= scene.pulling.contains_key(&want.image);
            let tried = attempt.is_some_and(|attempt| attempt.stamp >= stamp);
            cell.done &= unreachable || tried || fresh(node, want, stamp);
        }
        cell.looked = if looked == Stamp::MAX {
            self.stamp
        } else {
            looked
        };
        cell.state = if unreachable {
            CellState::Unreachable
        } else if missing_failed {
            CellState::Failed
        } else if pulling && cell.have < cell.want {
            CellState::Pulling
        } else if cell.have < cell.want || cell.looked == 0 {
            CellState::Pending
        } else {
            CellState::Ready
        };
        self.schedule_check(&mut cell, &before, node, now, at);
        if cell.check_at > now.tick {
            scene.wake_at(cell.check_at);
        }
        cell
    }

    /// A look that is newer than the last one puts the next check off.
    fn schedule_check(&self, cell: &mut Cell, before: &Cell, node: &Node, now: Now, at: CacheIdx) {
        let newer = cell.looked > before.looked || before.check_at == Tick(0);
        if cell.looked == 0 || cell.state == CellState::Unreachable {
            (cell.check_at, cell.looked_at) = (Tick(0), before.looked_at);
        } else if newer {
            let name = node.name.as_ref().map_or("", |name| &name.0);
            let spread = backoff::hash(self.settings.seed, &[name.as_bytes(), &at.to_le_bytes()]);
            let wait = backoff::jittered(self.settings.check_interval, 10, spread);
            (cell.check_at, cell.looked_at) = (now.tick.after(wait), Some(now.wall));
        } else {
            (cell.check_at, cell.looked_at) = (before.check_at, before.looked_at);
        }
    }

    /// Does this node owe nothing that an operation of the cache waits for?
    fn debts_settled(&self, at: CacheIdx, idx: NodeIdx, now: Tick, scene: &Scene) -> bool {
        let cache = &self.caches[&at];
        let stamp = cache.operation.as_ref().map_or(0, |op| op.stamp);
        self.nodes[idx].puller.is_none()
            || self.nodes[idx].unreachable(now, self.settings.puller_grace)
            || cache.owed.iter().all(|(image, owed)| {
                scene.wanted.contains(image) || owed.debt(idx, stamp, now) != Debt::Due
            })
    }
}

/// Is what the node holds newer than the operation with this stamp?
fn fresh(node: &Node, want: &Want, stamp: Stamp) -> bool {
    let look = node.look(want.image);
    let seen = match want.policy {
        ImagePullPolicy::IfNotPresent => look.looked,
        ImagePullPolicy::Always => look.fetched,
    };
    node.holds(want.image) && seen >= stamp
}

enum Due {
    Now,
    At(Tick),
    No,
}
