//! The engine itself: what it knows, and the order in which it decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{
    ImagePullPolicy,
    names::{self, failure},
};

use crate::{
    BatchEnd, BatchId, CacheKey, CacheObject, Command, CredentialScope, Event, ImageOutcome,
    ImageResult, NodeFacts, NodeName, Now, Puller, Severity, Tick, WriteError, backoff,
    cache::{Cache, CacheIdx, Kind, Write},
    images::{ImageId, Images},
    node::{Attempt, Node, NodeIdx, Stamp},
    status,
};

/// What the controller's flags say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between automatic refreshes; zero is never.
    pub refresh_interval: Duration,
    /// For one attempt at one image.
    pub pull_deadline: Duration,
    /// Whether `pull_deadline` binds also where the progress of a pull can be seen: somebody has
    /// set it.
    pub pull_deadline_binds: bool,
    /// For images with a tag other than `:latest` in lists that say nothing.
    pub image_pull_policy: ImagePullPolicy,
    /// Time between looks at a node.
    pub check_interval: Duration,
    /// How long a puller may be silent before its node counts as unreachable.
    pub puller_grace: Duration,
    /// How long a deleted object waits for its images to be removed.
    pub purge_deadline: Duration,
    /// Most pulls from one registry that run at a time.
    pub max_registry_pulls: u32,
    /// Spreads what would otherwise happen at once.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            refresh_interval: Duration::from_secs(15 * 60),
            pull_deadline: Duration::from_secs(5 * 60),
            pull_deadline_binds: false,
            image_pull_policy: ImagePullPolicy::IfNotPresent,
            check_interval: Duration::from_secs(5 * 60),
            puller_grace: Duration::from_secs(2 * 60),
            purge_deadline: Duration::from_secs(10 * 60),
            max_registry_pulls: 512,
            seed: 0,
        }
    }
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Live {
    pub node: NodeIdx,
    pub cache: CacheIdx,
    pub scope: CredentialScope,
    pub stamp: Stamp,
    pub work: LiveWork,
    pub deadline: Tick,
}

#[derive(Debug)]
pub(crate) enum LiveWork {
    Pull { images: Vec<LiveImage> },
    Remove { images: Vec<ImageId> },
    Check { images: Vec<ImageId> },
}

#[derive(Debug)]
pub(crate) struct LiveImage {
    pub id: ImageId,
    pub reference: Arc<str>,
    pub always: bool,
    /// Nothing was heard of it yet.
    pub open: bool,
    /// Its end was asked for.
    pub cancelled: bool,
}

/// Progress alone is written at most this often; beginnings and ends at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Before a failed write is tried again.
const WRITE_RETRY: Duration = Duration::from_secs(2);

/// See the crate's documentation.
#[derive(Debug)]
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) images: Images,
    pub(crate) caches: BTreeMap<CacheIdx, Cache>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) live: BTreeMap<BatchId, Live>,
    pub(crate) deadlines: BTreeSet<(Tick, BatchId)>,
    pub(crate) dirty_caches: BTreeSet<CacheIdx>,
    pub(crate) stamp: Stamp,
    pub(crate) seq: u64,
    pub(crate) last_batch: u64,
    pub(crate) term: Option<u64>,
    cache_index: BTreeMap<CacheKey, CacheIdx>,
    node_index: BTreeMap<NodeName, NodeIdx>,
    free_nodes: Vec<NodeIdx>,
    last_cache: CacheIdx,
    dirty_nodes: BTreeSet<NodeIdx>,
    wakes: BTreeSet<(Tick, NodeIdx)>,
    synced: [bool; 3],
    /// Kubernetes Events and other commands that the last events caused.
    events: Vec<Command>,
    /// Caches and nodes of this term were taken up.
    begun: bool,
}

impl Engine {
    /// An engine that knows nothing yet and leads nobody.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            images: Images::default(),
            caches: BTreeMap::new(),
            nodes: Vec::new(),
            live: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            dirty_caches: BTreeSet::new(),
            stamp: 1,
            seq: 0,
            last_batch: 0,
            term: None,
            cache_index: BTreeMap::new(),
            node_index: BTreeMap::new(),
            free_nodes: Vec::new(),
            last_cache: 0,
            dirty_nodes: BTreeSet::new(),
            wakes: BTreeSet::new(),
            synced: [false; 3],
            events: Vec::new(),
            begun: false,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::CacheApplied(object) => self.cache_applied(*object),
            // What an invalid one wanted is not known any more: nothing is pulled, and nothing
            // removed.
            Event::CacheDeleted(key) => self.cache_deleted(&key),
            Event::CacheInvalid(invalid) => self.cache_deleted(&invalid.key),
            Event::NodeApplied(name, facts) => self.node_applied(name, facts),
            Event::NodeDeleted(name) => self.node_deleted(&name),
            Event::PullerChanged(name, puller) => self.puller_changed(name, puller),
            Event::Synced(source) => self.synced[source as usize] = true,
            Event::Leadership(term) => self.leadership(term),
            Event::Outcomes(batch, outcomes) => self.outcomes(now, batch, outcomes),
            Event::BatchEnded(batch, end) => self.batch_ended(now, batch, end),
            Event::Checked(..) | Event::SecretsUnusable(..) | Event::FinalizerWritten(..) => {}
            Event::SecretsMissing(key, names) => self.secrets_missing(&key, names),
            Event::StatusWritten(key, result) => self.status_written(now, &key, result),
            Event::AnnotationCleared(key, result) => self.annotation_cleared(now, &key, result),
        }
    }

    /// Decides about everything that has changed or is due.
    pub fn poll(&mut self, now: Now, out: &mut Vec<Command>) {
        if self.term.is_none() || self.synced.contains(&false) {
            return;
        }
        if !self.begun {
            self.begin_term();
        }
        out.append(&mut self.events);
        self.pass_deadlines(now);
        while let Some((at, node)) = self.wakes.first().copied()
            && at <= now.tick
        {
            self.wakes.remove(&(at, node));
            self.nodes[node].wake = None;
            self.dirty_nodes.insert(node);
        }
        let timed: Vec<CacheIdx> = self.caches.keys().copied().collect();
        for cache in timed {
            if Self::cache_wakeup(&self.caches[&cache]).is_some_and(|at| at <= now.tick) {
                self.dirty_caches.insert(cache);
            }
        }
        // What a cache decides touches its nodes, and what a node shows may end an operation and
        // begin the next: a few turns at most.
        for _ in 0..8 {
            for cache in std::mem::take(&mut self.dirty_caches) {
                self.begin_due(cache, now);
            }
            for node in std::mem::take(&mut self.dirty_nodes) {
                let wake = self.plan_node(node, now, out);
                self.set_wake(node, wake);
            }
            let touched = self.dirty_caches.clone();
            for cache in touched {
                self.advance(cache, now, out);
            }
            if self.dirty_nodes.is_empty() && self.dirty_caches.is_empty() {
                break;
            }
        }
    }

    /// When [`Engine::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        if self.term.is_none() || self.synced.contains(&false) {
            return None;
        }
        if !self.dirty_nodes.is_empty() || !self.dirty_caches.is_empty() {
            return Some(Tick(0));
        }
        let nodes = self.wakes.first().map(|(at, _)| *at);
        let batches = self.deadlines.first().map(|(at, _)| *at);
        let caches = self.caches.values().filter_map(Self::cache_wakeup).min();
        [nodes, batches, caches].into_iter().flatten().min()
    }

    fn cache_wakeup(cache: &Cache) -> Option<Tick> {
        let write = (cache.write.is_none() && !cache.stale && cache.write_after > Tick(0))
            .then_some(cache.write_after);
        let clear = cache.operation.as_ref().and_then(|op| op.clearing);
        let refresh = cache
            .refresh_at
            .filter(|_| cache.operation.is_none() && !cache.purged && !cache.first_round);
        [write, clear, refresh].into_iter().flatten().min()
    }

    fn set_wake(&mut self, node: NodeIdx, wake: Option<Tick>) {
        if let Some(old) = std::mem::replace(&mut self.nodes[node].wake, wake) {
            self.wakes.remove(&(old, node));
        }
        if let Some(at) = wake {
            self.wakes.insert((at, node));
        }
    }

    fn cache_mut(&mut self, key: &CacheKey) -> Option<&mut Cache> {
        let at = *self.cache_index.get(key)?;
        self.dirty_caches.insert(at);
        self.caches.get_mut(&at)
    }

    // === caches

    fn cache_applied(&mut self, object: CacheObject) {
        if let Some(at) = self.cache_index.get(&object.key).copied()
            && let Some(cache) = self.caches.get_mut(&at)
        {
            if cache.object.uid == object.uid {
                if older(&object.resource_version, &cache.object.resource_version) {
                    return;
                }
                cache.object = object;
                cache.stale = false;
                cache.compare_names();
                // The watch may be faster than the answer to our write.
                let event = announce(cache);
                self.events.extend(event);
                self.dirty_caches.insert(at);
                return;
            }
            let key = object.key.clone();
            self.cache_deleted(&key);
        }
        self.last_cache += 1;
        let at = self.last_cache;
        self.cache_index.insert(object.key.clone(), at);
        let mut cache = Cache::adopt(object, &mut self.images, &self.settings, self.nodes.len());
        self.stamp += 1;
        cache.resume(self.stamp);
        self.caches.insert(at, cache);
        if self.begun {
            self.take_up(at);
        }
        self.dirty_caches.insert(at);
    }

    /// A cache that was adopted begins to count.
    fn take_up(&mut self, at: CacheIdx) {
        if self
            .caches
            .get(&at)
            .is_some_and(|cache| cache.operation.is_some())
        {
            self.enlist(at);
        }
        self.touch_all_nodes();
    }

    fn cache_deleted(&mut self, key: &CacheKey) {
        if let Some(at) = self.cache_index.remove(key) {
            self.caches.remove(&at);
            self.dirty_caches.remove(&at);
            // Its pulls are cancelled where nobody else wants them.
            self.touch_all_nodes();
        }
    }

    /// Begins what is due.
    fn begin_due(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        self.dirty_caches.insert(at);
        if cache.stale {
            return;
        }
        if let Some(kind) = cache.due() {
            self.stamp += 1;
            cache.begin(kind, self.stamp, now.wall, &mut self.images, &self.settings);
            self.enlist(at);
            self.touch_all_nodes();
            return;
        }
        if cache.operation.is_none() && cache.spec != cache.object.spec && !cache.purged {
            // Nothing else is wanted elsewhere: priorities, deadlines, secrets, intervals.
            let spec = cache.object.spec.clone();
            cache.compile(spec, &mut self.images, &self.settings);
            cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
            self.touch_all_nodes();
        }
        self.refresh_quietly(at, now);
    }

    /// The interval is over. What resolves to Always asks the registry, the rest is looked at; it
    /// becomes an operation only when something must be pulled.
    fn refresh_quietly(&mut self, at: CacheIdx, now: Now) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if cache.operation.is_some() || cache.purged || cache.first_round {
            return;
        }
        if cache.refresh_at.is_none() && cache.refresh_interval(&self.settings).is_some() {
            let since = cache.refreshed.or(cache.told.completed).unwrap_or(now.wall);
            let elapsed = u64::try_from(now.wall.0 - since.0).unwrap_or(0);
            cache.schedule_refresh(now.tick, &self.settings, Duration::from_secs(elapsed));
        }
        let due = cache.refresh_at.is_some_and(|at| at <= now.tick);
        let missing = cache.counts.nodes.ready < cache.counts.nodes.desired;
        let round_done = cache.refreshing.is_some_and(|stamp| {
            cache
                .cells
                .iter()
                .all(|cell| cell.want == 0 || cell.looked >= stamp)
        });
        let always = cache
            .lists
            .iter()
            .flat_map(|list| &list.images)
            .any(|(_, _, policy)| *policy == ImagePullPolicy::Always);
        if (due && always) || (cache.refreshing.is_some() && missing && round_done) {
            cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
            self.stamp += 1;
            cache.begin(
                Kind::Refresh,
                self.stamp,
                now.wall,
                &mut self.images,
                &self.settings,
            );
            self.enlist(at);
            self.touch_all_nodes();
        } else if due {
            cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
            self.stamp += 1;
            cache.refreshing = Some(self.stamp);
            self.touch_all_nodes();
        } else if round_done {
            cache.refreshing = None;
            cache.refreshed = Some(now.wall);
        }
    }

    /// The nodes of an operation: those eligible and matched at its start; those whose puller
    /// answers where something is to be removed.
    fn enlist(&mut self, at: CacheIdx) {
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        let mut nodes = FixedBitSet::with_capacity(self.nodes.len());
        for (idx, node) in self.nodes.iter().enumerate() {
            let Some(facts) = &node.facts else { continue };
            let pulls = node.eligibility().is_ok() && !cache.wants(facts).is_empty();
            let removes = node.puller.is_some() && !cache.owed.is_empty();
            nodes.set(idx, pulls || removes);
        }
        if cache.cells.len() < self.nodes.len() {
            cache
                .cells
                .resize(self.nodes.len(), crate::cache::Cell::default());
        }
        for cell in &mut cache.cells {
            cell.done = false;
        }
        if let Some(operation) = &mut cache.operation {
            operation.open = nodes.count_ones(..);
            operation.nodes = nodes;
        }
    }

    /// Ends what is complete and writes what has changed.
    fn advance(&mut self, at: CacheIdx, now: Now, out: &mut Vec<Command>) {
        self.dirty_caches.remove(&at);
        let owes = self.caches.get(&at).is_some_and(|c| !c.owed.is_empty());
        // Reads every node: only where something is owed.
        let nodes = owes.then(|| self.owing_nodes());
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if let Some((owing, silent)) = nodes {
            cache.settle(&owing, &silent, now.wall);
        }
        let unseen = cache.counts.unseen > 0;
        cache.first_round &= unseen;
        if cache.complete() {
            if let Some((annotation, value)) = cache.to_clear(now.tick) {
                if let Some(operation) = &mut cache.operation {
                    operation.clearing = Some(now.tick.after(Duration::from_secs(10)));
                }
                let key = cache.object.key.clone();
                out.push(Command::ClearAnnotation {
                    key,
                    annotation,
                    value,
                });
            } else if cache
                .operation
                .as_ref()
                .is_some_and(|op| op.clearing.is_none())
            {
                cache.finish(now.wall);
                cache.schedule_refresh(now.tick, &self.settings, Duration::ZERO);
                // A spec edited meanwhile, or a request made meanwhile, is taken up.
                self.dirty_caches.insert(at);
                self.touch_all_nodes();
            }
        }
        if let Some(cache) = self.caches.get_mut(&at) {
            cache.heal(now.wall);
        }
        self.write_status(at, now, out);
    }

    /// Nodes that could hold images of ours, and those of them that do not answer.
    fn owing_nodes(&self) -> (FixedBitSet, FixedBitSet) {
        let mut owing = FixedBitSet::with_capacity(self.nodes.len());
        let mut silent = FixedBitSet::with_capacity(self.nodes.len());
        for (idx, node) in self.nodes.iter().enumerate() {
            owing.set(idx, node.runs_puller().is_ok());
            silent.set(idx, node.puller.is_none() || node.call_failures > 0);
        }
        (owing, silent)
    }

    fn write_status(&mut self, at: CacheIdx, now: Now, out: &mut Vec<Command>) {
        let check_secs = i64::try_from(self.settings.check_interval.as_secs()).unwrap_or(i64::MAX);
        let Some(cache) = self.caches.get_mut(&at) else {
            return;
        };
        if cache.write.is_some() || cache.stale {
            return;
        }
        let desired = status::project(cache, &self.nodes, &self.images, now.wall);
        let known = &cache.object.status;
        if !status::differs(&desired, known, check_secs) {
            cache.write_after = Tick(0);
            return;
        }
        let turned = (&desired.status, desired.start_time) != (&known.status, known.start_time);
        if cache.write_after > now.tick && !turned {
            return;
        }
        cache.write_after = now.tick.after(WRITE_INTERVAL);
        cache.write = Some(Write {
            status: desired.clone(),
            over: cache.object.resource_version.clone(),
        });
        out.push(Command::WriteStatus {
            key: cache.object.key.clone(),
            resource_version: cache.object.resource_version.clone(),
            status: Box::new(desired),
        });
    }

    fn status_written(&mut self, now: Now, key: &CacheKey, result: Result<String, WriteError>) {
        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        let Some(write) = cache.write.take() else {
            return;
        };
        match result {
            Ok(version) => {
                if !older(&version, &cache.object.resource_version) {
                    cache.object.resource_version = version;
                }
                cache.object.status = write.status;
                cache.compare_names();
                let event = announce(cache);
                self.events.extend(event);
                self.touch_all_nodes();
            }
            Err(WriteError::Conflict) => {
                // The watch may have brought the newer object already.
                cache.stale = cache.object.resource_version == write.over;
                cache.write_after = now.tick.after(WRITE_INTERVAL);
            }
            Err(WriteError::Gone) => {}
            Err(WriteError::Failed(_)) => cache.write_after = now.tick.after(WRITE_RETRY),
        }
    }

    fn annotation_cleared(
        &mut self,
        now: Now,
        key: &CacheKey,
        result: Result<Option<String>, WriteError>,
    ) {
        use kubefledged_api_types::names::PURGE_ANNOTATION;

        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        let Some(operation) = &mut cache.operation else {
            return;
        };
        let failed = matches!(result, Err(WriteError::Failed(_) | WriteError::Conflict));
        if failed {
            operation.clearing = Some(now.tick.after(WRITE_RETRY));
            return;
        }
        operation.clearing = None;
        let Some(position) = operation
            .handles
            .iter()
            .position(|(_, value)| value.is_empty())
        else {
            return;
        };
        let (annotation, _) = operation.handles.remove(position);
        if let Ok(Some(version)) = result {
            let value = if annotation == PURGE_ANNOTATION {
                &mut cache.object.purge
            } else {
                &mut cache.object.refresh
            };
            *value = None;
            if !older(&version, &cache.object.resource_version) {
                cache.object.resource_version = version;
            }
        }
    }

    /// Hinders nothing, as with the kubelet; but somebody should know.
    fn secrets_missing(&mut self, key: &CacheKey, names: Vec<String>) {
        let Some(cache) = self.cache_mut(key) else {
            return;
        };
        if cache.missing_secrets == names {
            return;
        }
        let event = Command::EmitEvent {
            key: key.clone(),
            uid: cache.object.uid.clone(),
            severity: Severity::Warning,
            reason: "ImagePullSecretNotFound".to_owned(),
            action: "Pulling".to_owned(),
            message: format!(
                "imagePullSecrets not found in namespace {}: {}; images are pulled without them",
                key.namespace,
                names.join(", ")
            ),
        };
        cache.missing_secrets = names;
        self.events.push(event);
    }

    // === nodes

    fn node_slot(&mut self, name: NodeName) -> NodeIdx {
        if let Some(idx) = self.node_index.get(&name) {
            return *idx;
        }
        let idx = self.free_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.nodes.len() - 1
        });
        self.nodes[idx].name = Some(name.clone());
        self.node_index.insert(name, idx);
        idx
    }

    fn node_applied(&mut self, name: NodeName, facts: NodeFacts) {
        let idx = self.node_slot(name);
        self.nodes[idx].facts = Some(facts);
        self.dirty_nodes.insert(idx);
    }

    fn node_deleted(&mut self, name: &NodeName) {
        let Some(idx) = self.node_index.get(name).copied() else {
            return;
        };
        self.nodes[idx].facts = None;
        self.leave(idx);
        self.free_if_unknown(idx);
    }

    fn puller_changed(&mut self, name: NodeName, puller: Option<Puller>) {
        let idx = self.node_slot(name);
        let node = &mut self.nodes[idx];
        let instance = |puller: &Option<Puller>| puller.as_ref().map(|p| p.instance.clone());
        if puller.is_some() && instance(&puller) != instance(&node.puller) {
            self.stamp += 1;
            // A puller that was never seen before, once the first sync is over, is a new node.
            node.joined = self.begun && node.instance_stamp == 0;
            node.instance_stamp = self.stamp;
            node.call_answered();
        }
        node.puller = puller;
        self.dirty_nodes.insert(idx);
        self.free_if_unknown(idx);
    }

    /// A node that is gone leaves operations and counts.
    fn leave(&mut self, idx: NodeIdx) {
        for (at, cache) in &mut self.caches {
            let done = crate::cache::Cell {
                done: true,
                ..Default::default()
            };
            cache.set_cell(idx, done);
            for owed in cache.owed.values_mut() {
                owed.forget(idx);
            }
            self.dirty_caches.insert(*at);
        }
        for id in std::mem::take(&mut self.nodes[idx].live) {
            self.drop_live(id);
        }
    }

    fn free_if_unknown(&mut self, idx: NodeIdx) {
        if self.nodes[idx].facts.is_some() || self.nodes[idx].puller.is_some() {
            return;
        }
        self.leave(idx);
        self.set_wake(idx, None);
        self.dirty_nodes.remove(&idx);
        for cache in self.caches.values_mut() {
            cache.set_cell(idx, crate::cache::Cell::default());
            if let Some(operation) = &mut cache.operation
                && operation.nodes.contains(idx)
            {
                operation.nodes.set(idx, false);
                operation.open = operation.open.saturating_sub(1);
            }
        }
        if let Some(name) = self.nodes[idx].name.take() {
            self.node_index.remove(&name);
        }
        self.nodes[idx] = Node::default();
        self.free_nodes.push(idx);
    }

    fn touch_all_nodes(&mut self) {
        let known = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.name.is_some());
        self.dirty_nodes.extend(known.map(|(idx, _)| idx));
    }

    // === leadership

    fn leadership(&mut self, term: Option<u64>) {
        self.term = term;
        self.begun = false;
    }

    /// Another leader may have acted: objects are read anew, nodes are looked at anew.
    fn begin_term(&mut self) {
        self.begun = true;
        self.live.clear();
        self.deadlines.clear();
        self.wakes.clear();
        for node in &mut self.nodes {
            node.forget();
        }
        let objects: Vec<CacheObject> = std::mem::take(&mut self.caches)
            .into_values()
            .map(|cache| cache.object)
            .collect();
        self.cache_index.clear();
        self.dirty_caches.clear();
        for object in objects {
            self.cache_applied(object);
        }
        self.touch_all_nodes();
    }

    // === batches

    fn drop_live(&mut self, id: BatchId) -> Option<Live> {
        let live = self.live.remove(&id)?;
        self.deadlines.remove(&(live.deadline, id));
        self.nodes[live.node].live.remove(&id);
        self.dirty_nodes.insert(live.node);
        self.dirty_caches.insert(live.cache);
        Some(live)
    }

    fn pass_deadlines(&mut self, now: Now) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now.tick
        {
            self.deadlines.remove(&(at, id));
            self.batch_ended(now, id, BatchEnd::Lost);
        }
    }

    fn outcomes(&mut self, now: Now, id: BatchId, outcomes: Vec<ImageOutcome>) {
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let (idx, at, stamp) = (live.node, live.cache, live.stamp);
        let node = &mut self.nodes[idx];
        for ImageOutcome { index, result, .. } in outcomes {
            match &mut live.work {
                LiveWork::Pull { images } => {
                    let Some(image) = images.get_mut(index).filter(|image| image.open) else {
                        continue;
                    };
                    image.open = false;
                    pulled(
                        node,
                        image,
                        &live.scope,
                        stamp,
                        result,
                        now,
                        self.settings.seed,
                    );
                }
                LiveWork::Check { images } => {
                    let Some(image) = images.get(index).copied() else {
                        continue;
                    };
                    // A failed look is a look too, or it would be repeated at once.
                    let present = match result {
                        ImageResult::Present => true,
                        ImageResult::Absent | ImageResult::Pulling => false,
                        _ => node.holds(image),
                    };
                    node.saw(image, present, stamp);
                    if present {
                        node.attempts.retain(|(failed, _), _| *failed != image);
                    }
                }
                LiveWork::Remove { images } => {
                    let Some(image) = images.get(index).copied() else {
                        continue;
                    };
                    if matches!(result, ImageResult::Removed | ImageResult::Absent) {
                        node.saw(image, false, stamp);
                    }
                    let spread = backoff::hash(
                        self.settings.seed,
                        &[&idx.to_le_bytes(), &image.0.to_le_bytes()],
                    );
                    let cache = self.caches.get_mut(&at);
                    if let Some(owed) = cache.and_then(|cache| cache.owed.get_mut(&image)) {
                        owed.answered(
                            idx,
                            result,
                            stamp,
                            now.tick,
                            self.settings.check_interval,
                            spread,
                        );
                    }
                }
            }
        }
        self.dirty_nodes.insert(idx);
        self.dirty_caches.insert(at);
    }

    fn batch_ended(&mut self, now: Now, id: BatchId, end: BatchEnd) {
        let Some(live) = self.drop_live(id) else {
            return;
        };
        let seed = self.settings.seed;
        let node = &mut self.nodes[live.node];
        match end {
            BatchEnd::Done => node.call_answered(),
            BatchEnd::Lost | BatchEnd::Unreachable => node.call_failed(now.tick, seed),
            BatchEnd::Refused { seen_term } => {
                node.not_before = now.tick.after(Duration::from_secs(1));
                self.events.push(Command::RaiseTerm { seen_term });
            }
            BatchEnd::CredentialsFailed(message) => {
                let LiveWork::Pull { images } = live.work else {
                    return;
                };
                for mut image in images {
                    let result = ImageResult::Failed {
                        reason: failure::CREDENTIALS_UNAVAILABLE.to_owned(),
                        message: message.clone(),
                    };
                    pulled(node, &mut image, &live.scope, live.stamp, result, now, seed);
                }
            }
        }
    }
}

/// One image of a pull batch has an outcome.
fn pulled(
    node: &mut Node,
    image: &mut LiveImage,
    scope: &CredentialScope,
    stamp: Stamp,
    result: ImageResult,
    now: Now,
    seed: u64,
) {
    match result {
        ImageResult::Present | ImageResult::Pulled => {
            if image.always || result == ImageResult::Pulled {
                node.fetched(image.id, stamp);
            }
            node.saw(image.id, true, stamp);
            node.attempts.retain(|(failed, _), _| *failed != image.id);
        }
        ImageResult::Failed { reason, message } => {
            let key = (image.id, scope.clone());
            let tries = node.attempts.get(&key).map_or(0, |attempt| attempt.tries) + 1;
            let name = node.name.as_ref().map_or("", |name| &name.0);
            let spread = backoff::hash(seed, &[name.as_bytes(), image.reference.as_bytes()]);
            let wait = backoff::after_failure(&reason, tries, spread);
            let attempt = Attempt {
                stamp,
                tries,
                not_before: wait.map(|wait| now.tick.after(wait)),
                reason,
                message: message.into(),
            };
            node.attempts.insert(key, attempt);
            node.saw(image.id, node.holds(image.id), stamp);
        }
        // Nobody wanted it, or a later removal won: planned again if somebody wants it.
        _ => {}
    }
}

/// Resource versions of one object are comparable numbers in every Kubernetes; where they are not
/// numbers, the later event wins.
fn older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(a), Ok(b)) if a < b)
}

/// The Kubernetes Event that tells of a written change: one at the begin of an operation and one at
/// its end.
fn announce(cache: &mut Cache) -> Option<Command> {
    let after = &cache.object.status;
    let now = (after.status.clone(), after.start_time);
    if now == cache.announced || after.status.is_empty() {
        return None;
    }
    cache.announced = now;
    Some(Command::EmitEvent {
        key: cache.object.key.clone(),
        uid: cache.object.uid.clone(),
        severity: if after.status == names::status::FAILED {
            Severity::Warning
        } else {
            Severity::Normal
        },
        reason: after.reason.clone(),
        action: after.status.clone(),
        message: after.message.clone(),
    })
}
