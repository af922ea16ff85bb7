//! The engine itself: what it knows, and the order in which it decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::ImagePullPolicy;

use crate::{
    BatchEnd, BatchId, CacheKey, Command, Event, NodeName, Now, Tick,
    alarms::{Alarm, Alarms},
    batches::Live,
    cache::{Cache, CacheIdx, Names},
    facts::{Clock, Texts},
    images::ImageId,
    node::{Node, NodeIdx, Stamp},
    pulls::Scout,
    scope::ScopeId,
    turns::Budget,
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

/// See the crate's documentation.
#[derive(Debug)]
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) texts: Texts,
    pub(crate) clock: Clock,
    pub(crate) caches: BTreeMap<CacheIdx, Cache>,
    pub(crate) cache_index: BTreeMap<CacheKey, CacheIdx>,
    pub(crate) last_cache: CacheIdx,
    pub(crate) nodes: Vec<Node>,
    pub(crate) node_index: BTreeMap<NodeName, NodeIdx>,
    pub(crate) free_nodes: Vec<NodeIdx>,
    pub(crate) live: BTreeMap<BatchId, Live>,
    /// Who asks a registry whether an image is still the same.
    pub(crate) scouts: BTreeMap<(ImageId, ScopeId), Scout>,
    pub(crate) alarms: Alarms,
    pub(crate) dirty_caches: BTreeSet<CacheIdx>,
    pub(crate) dirty_nodes: FixedBitSet,
    /// Commands that nobody has taken yet.
    pub(crate) outbox: Vec<Command>,
    /// Of the last batch or operation.
    pub(crate) stamp: Stamp,
    pub(crate) seq: u64,
    pub(crate) last_batch: u64,
    pub(crate) term: Option<u64>,
    /// Caches and nodes of this term were taken up.
    pub(crate) begun: bool,
    pub(crate) synced: [bool; 3],
    /// Images that vanished from nodes, ever.
    pub(crate) lost: u64,
    /// How many nodes people are told of.
    pub(crate) node_turns: Budget,
    /// Images are swept when there are so many.
    pub(crate) sweep_at: usize,
}

impl Engine {
    /// An engine that knows nothing yet and leads nobody.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            names: Names::default(),
            texts: Texts::default(),
            clock: Clock::default(),
            caches: BTreeMap::new(),
            cache_index: BTreeMap::new(),
            last_cache: 0,
            nodes: Vec::new(),
            node_index: BTreeMap::new(),
            free_nodes: Vec::new(),
            live: BTreeMap::new(),
            scouts: BTreeMap::new(),
            alarms: Alarms::default(),
            dirty_caches: BTreeSet::new(),
            dirty_nodes: FixedBitSet::new(),
            outbox: Vec::new(),
            stamp: 0,
            seq: 0,
            last_batch: 0,
            term: None,
            begun: false,
            synced: [false; 3],
            lost: 0,
            node_turns: Budget::default(),
            sweep_at: 0,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::CacheApplied(object) => self.cache_applied(now, *object),
            Event::CacheDeleted(key) => self.cache_deleted(&key),
            Event::CacheInvalid(invalid) => self.cache_invalid(now, *invalid),
            Event::NodeApplied(name, facts) => self.node_applied(name, facts),
            Event::NodeDeleted(name) => self.node_deleted(&name),
            Event::PullerChanged(name, puller) => self.puller_changed(now, name, puller),
            Event::Synced(source) => self.synced[source as usize] = true,
            Event::Leadership(term) => (self.term, self.begun) = (term, false),
            Event::Outcomes(batch, outcomes) => self.outcomes(now, batch, outcomes),
            Event::Checked(batch, report) => self.checked(now.tick, batch, report),
            Event::BatchEnded(batch, end) => self.batch_ended(now, batch, end),
            Event::SecretsRead(key, useless) => self.secrets_read(&key, useless),
            Event::StatusWritten(key, result) => self.status_written(now, &key, result),
            Event::AnnotationCleared(key, result) => self.annotation_cleared(now, &key, result),
            Event::FinalizerWritten(key, result) => self.finalizer_written(now, &key, result),
        }
    }

    /// Decides about everything that has changed or is due.
    pub fn poll(&mut self, now: Now, out: &mut Vec<Command>) {
        if !self.leads() {
            return;
        }
        if !self.begun {
            self.begin_term(now);
        }
        self.ring(now);
        // What a cache decides touches its nodes, and what a node shows may end an operation and
        // begin the next: a few turns at most.
        for _ in 0..8 {
            let mut touched = std::mem::take(&mut self.dirty_caches);
            for cache in &touched {
                self.decide(*cache, now);
            }
            let nodes: Vec<NodeIdx> = self.dirty_nodes.ones().collect();
            self.dirty_nodes.clear();
            for node in nodes {
                self.plan_node(node, now);
            }
            touched.append(&mut self.dirty_caches);
            for cache in touched {
                self.advance(cache, now);
            }
            if self.at_rest() {
                break;
            }
        }
        out.append(&mut self.outbox);
    }

    /// When [`Engine::poll`] has something to do although nothing happens.
    pub fn next_wakeup(&self) -> Option<Tick> {
        if !self.leads() {
            return None;
        }
        if self.at_rest() && self.begun {
            self.alarms.next()
        } else {
            Some(Tick(0))
        }
    }

    fn leads(&self) -> bool {
        self.term.is_some() && !self.synced.contains(&false)
    }

    fn at_rest(&self) -> bool {
        self.dirty_caches.is_empty() && self.dirty_nodes.is_clear() && self.outbox.is_empty()
    }

    fn ring(&mut self, now: Now) {
        while let Some(alarm) = self.alarms.due(now.tick) {
            match alarm {
                Alarm::Node(node) => self.touch_node(node),
                Alarm::Cache(cache) => {
                    self.dirty_caches.insert(cache);
                }
                Alarm::Registry(registry) => self.serve_waiting(registry, now.tick),
                Alarm::Long(batch) => self.batch_is_long(batch, now.tick),
                Alarm::Lost(batch) => self.batch_ended(now, batch, BatchEnd::Lost),
            }
        }
    }

    /// Another leader may have acted: objects are read anew, nodes are looked at anew.
    fn begin_term(&mut self, now: Now) {
        self.begun = true;
        self.live.clear();
        self.scouts.clear();
        self.alarms.clear();
        self.outbox.clear();
        let ceiling = self.settings.max_registry_pulls;
        self.names.registries.begin_term(ceiling, now.tick);
        let stamp = self.next_stamp(now);
        for node in &mut self.nodes {
            node.forget();
            node.instance_stamp = stamp;
        }
        self.cache_index.clear();
        self.dirty_caches.clear();
        for cache in std::mem::take(&mut self.caches).into_values() {
            self.take_up(now, cache.object, cache.invalid);
        }
        self.touch_all_nodes();
    }

    /// Later than every batch and operation so far.
    pub(crate) fn next_stamp(&mut self, now: Now) -> Stamp {
        self.stamp += 1;
        self.clock
            .mark(self.stamp, now.wall, self.settings.check_interval);
        self.stamp
    }

    /// Something about a node is another: every cache assesses it anew.
    pub(crate) fn touch_node(&mut self, node: NodeIdx) {
        self.nodes[node].epoch += 1;
        self.dirty_nodes.grow_and_insert(node);
    }

    /// Something about a cache is another: it assesses every node anew.
    pub(crate) fn touch_cache(&mut self, at: CacheIdx) {
        if let Some(cache) = self.caches.get_mut(&at) {
            cache.epoch += 1;
            self.touch_all_nodes();
        }
    }

    pub(crate) fn touch_all_nodes(&mut self) {
        self.dirty_nodes.grow(self.nodes.len());
        self.dirty_nodes.insert_range(..self.nodes.len());
    }

    pub(crate) fn cache_mut(&mut self, key: &CacheKey) -> Option<&mut Cache> {
        let at = *self.cache_index.get(key)?;
        self.dirty_caches.insert(at);
        self.caches.get_mut(&at)
    }
}
