//! One `ImageCache`: its desired state, its operation, the status of its nodes, and the writes to its
//! object.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    ImageCacheSpec, PurgeStatus, Timestamp,
    conditions::{self, Degraded},
};

use super::{
    applied::Applied,
    backoff,
    desired::{Desired, ImageSet},
    last_operation::{Identity, LastOperation},
    names::Names,
    node_status::{Counts, Flags, NodeStatus},
    operation::{Kind, Operation},
    sources::Sources,
    writer::{FinalizerWrite, StatusWriter},
};
pub use super::{
    auto_refresh::{AutoRefresh, QuietRefresh},
    deletion::{Deletion, Unpin},
};
use crate::{
    ids::{ImageId, Index, NodeIdx, SetIdx, Stamp},
    vocabulary::{CacheObject, CredentialScope, Settings, Tick},
};

/// What earlier operations did.
#[derive(Debug, Default)]
pub struct History {
    /// [`Desired::hash`] when an operation last began; `None`: not known.
    pub covered: Option<u64>,
    /// The cache is purged: it desires nothing until a refresh or another `spec.cacheSpec`.
    pub purged: bool,
    /// `status.purge`
    pub purge: Option<PurgeStatus>,
    /// `status.lastHandledRefresh`
    pub handled_refresh: Option<String>,
    /// `status.lastHandledPurge`
    pub handled_purge: Option<String>,
}

/// The status of every node, and the sums.
#[derive(Debug)]
pub struct NodeTable {
    /// By node.
    pub rows: Vec<NodeStatus>,
    /// Sums over the rows.
    pub counts: Counts,
    /// Rises with every change of the cache: all rows are computed anew.
    pub epoch: u32,
    /// A new leader has not checked every node yet: what was written stays.
    pub first_round: bool,
}

/// `spec.maxConcurrentNodes`: which nodes pull, and which wait.
#[derive(Debug, Default)]
pub struct PullingNodes {
    /// Nodes that pull, with the number of images without an outcome.
    pub active: BTreeMap<NodeIdx, u32>,
    /// Nodes that wait until fewer nodes pull.
    pub waiting: BTreeSet<NodeIdx>,
}

impl PullingNodes {
    /// A node pulls one image more.
    pub fn begin(&mut self, node: NodeIdx) {
        *self.active.entry(node).or_default() += 1;
    }

    /// A node pulls one image less.
    pub fn end(&mut self, node: NodeIdx) {
        if let Some(images) = self.active.get_mut(&node) {
            *images -= 1;
            if *images == 0 {
                self.active.remove(&node);
            }
        }
    }
}

/// One cache.
#[derive(Debug)]
pub struct Cache {
    /// The object as last observed, with what was written since.
    pub object: CacheObject,
    /// Why the stored spec cannot be parsed; `None`: it can. The last one that could be parsed stays desired.
    pub invalid: Option<String>,
    /// The workloads that name images; `None`: the spec lists all itself.
    pub sources: Option<Sources>,
    /// The desired state.
    pub desired: Desired,
    /// What earlier operations did.
    pub history: History,
    /// What the status says of the last operation.
    pub last: LastOperation,
    /// The operation in progress.
    pub operation: Option<Operation>,
    /// Names that may lie on nodes.
    pub applied: Applied,
    /// The status of its nodes.
    pub nodes: NodeTable,
    /// Automatic refreshes.
    pub refresh: AutoRefresh,
    /// Nodes that pull for it.
    pub pulling: PullingNodes,
    /// Deletion of the object.
    pub deletion: Deletion,
    /// The write of our finalizer.
    pub finalizer: FinalizerWrite,
    /// Pins that must be removed.
    pub unpin: Option<Unpin>,
    /// Writes of the status.
    pub writer: StatusWriter,
    /// Pull secrets that do not exist or cannot be used, with the cause, by scope.
    pub bad_secrets: BTreeMap<CredentialScope, BTreeMap<String, String>>,
}

impl Cache {
    /// A cache that is seen for the first time. Nothing is decided about it yet.
    pub fn adopt(
        object: CacheObject,
        invalid: Option<String>,
        names: &mut Names,
        settings: &Settings,
        nodes: usize,
        now: Timestamp,
    ) -> Self {
        let known = &object.status;
        let abandoned = known.conditions.iter().any(|condition| {
            condition.type_ == conditions::DEGRADED
                && condition.reason == Degraded::RemovalAbandoned.as_str()
        });
        let mut cache = Self {
            invalid,
            sources: None,
            desired: Desired::default(),
            history: History {
                purge: known.purge.clone(),
                handled_refresh: known.last_handled_refresh.clone(),
                handled_purge: known.last_handled_purge.clone(),
                ..History::default()
            },
            last: LastOperation::of(known),
            operation: None,
            applied: Applied {
                abandoned,
                ..Applied::default()
            },
            nodes: NodeTable {
                rows: vec![NodeStatus::default(); nodes],
                counts: Counts::default(),
                epoch: 1,
                first_round: !known.status.is_empty(),
            },
            refresh: AutoRefresh {
                last: known.last_refresh_time,
                ..AutoRefresh::default()
            },
            pulling: PullingNodes::default(),
            deletion: Deletion::None,
            finalizer: FinalizerWrite::Idle,
            unpin: None,
            writer: StatusWriter::new(known),
            bad_secrets: BTreeMap::new(),
            object,
        };
        let key = &cache.object.key;
        let mut sources = Sources::new(None, key, &cache.object.spec, &settings.workloads);
        if let Some(sources) = &mut sources {
            let applied = &cache.object.status.applied_images;
            sources.adopt(applied, &cache.object.spec);
        }
        cache.sources = sources;
        cache.compile(names, settings);
        cache.adopt_applied(names, now);
        let known = &cache.object.status;
        if known.observed_generation == Some(cache.object.generation) {
            cache.desired.adopt_matched(&known.lists_without_nodes);
        }
        let observed = cache.object.status.observed_generation;
        // If it was edited while nobody led or while it was suspended, the earlier spec is not known: then an
        // update must begin.
        let unchanged = observed.is_none_or(|observed| observed == cache.object.generation)
            && !(cache.spec().suspend && observed.is_some());
        if unchanged && cache.applied.covers(&cache.desired) {
            cache.history.covered = Some(cache.desired.hash);
        }
        cache.compare_names();
        cache
    }

    /// Takes over the names that the status listed before a restart. Names that were dropped while nobody led
    /// are pending removal from now on. An object that kube-fledged wrote lists none: its spec counts.
    fn adopt_applied(&mut self, names: &mut Names, now: Timestamp) {
        for name in self.object.status.applied_images.clone() {
            let image = names.images.intern(&name.name, &mut names.registries);
            let reference: Arc<str> = name.name.into();
            self.applied.adopt(image, reference.clone());
            let dropped = !self.desired.holds(image) && self.invalid.is_none();
            if (dropped && !self.spec().suspend) || name.since.is_some() {
                let since = name.since.unwrap_or(now);
                self.applied.remove(image, reference, since);
            }
        }
        let known = &self.object.status;
        if known.observed_generation.is_none() && !known.status.is_empty() {
            self.applied.apply(&self.desired);
        }
    }

    /// Takes over names that we listed until we heard of another leader's operation: we may have pulled some
    /// of those that are not desired.
    pub fn adopt_names(&mut self, names: BTreeMap<ImageId, Arc<str>>, now: Timestamp) {
        for (image, name) in names {
            let desired = !self.history.purged && self.desired.holds(image);
            if desired || self.applied.names.contains_key(&image) {
                continue;
            }
            self.applied.adopt(image, name.clone());
            match &mut self.sources {
                // Workloads may name it.
                Some(sources) if !self.history.purged => {
                    sources.retention.adopt(&name, None);
                    sources.stale = true;
                }
                _ => self.applied.remove(image, name, now),
            }
        }
        self.compare_names();
    }

    /// Compiles the object's spec. Nodes must be matched with it afterwards.
    pub fn compile(&mut self, names: &mut Names, settings: &Settings) {
        self.compile_named(names, settings);
        self.bad_secrets.clear();
    }

    /// Compiles the same spec with other images that workloads name.
    pub fn compile_named(&mut self, names: &mut Names, settings: &Settings) {
        let object = &self.object;
        let following = self.sources.as_ref().map(|sources| &sources.named);
        let (key, generation) = (&object.key, object.generation);
        let desired = Desired::compile(key, generation, &object.spec, following, names, settings);
        let before = std::mem::replace(&mut self.desired, desired);
        self.desired.keep_matched(&before);
    }

    /// Does it follow workloads of a kind that is listed for the first time? Any image may be one that they name.
    pub fn reads_workloads(&self) -> bool {
        self.sources.as_ref().is_some_and(Sources::is_opening)
    }

    /// Images that stay on nodes although nobody desires them, with their names: of what may lie there because of it. What
    /// workloads named while it was suspended never does. Before all workloads are read, that is everything.
    pub fn keeps(&self) -> impl Iterator<Item = (ImageId, &Arc<str>)> {
        let desires = self.desires();
        let unread = self.sources.as_ref().is_some_and(|all| !all.is_known());
        let kept = desires.then(|| self.desired.kept.iter());
        let kept = kept.into_iter().flatten();
        let kept = kept.filter(|(image, _)| self.applied.names.contains_key(image));
        let applied = (desires && unread).then(|| self.applied.names.iter());
        let applied = applied.into_iter().flatten();
        let applied = applied.filter(|(image, _)| !self.applied.pending.contains_key(image));
        let applied = applied.map(|(image, name)| (*image, name));
        kept.map(|(image, (name, _))| (*image, name)).chain(applied)
    }

    /// Does it desire anything at all?
    fn desires(&self) -> bool {
        !self.history.purged
            && !self.object.deleting
            && self.operation.as_ref().is_none_or(|op| op.kind.pulls())
    }

    /// Does a newly observed object tell of an operation that another leader began or ended? The watch may
    /// bring our own writes before they are answered, and also if the answer is an error.
    pub fn led_by_another(&self, object: &CacheObject) -> bool {
        let told = Identity::of(&object.status);
        told != Identity::of(&self.object.status) && told != self.writer.sent
    }

    /// The spec that can be parsed.
    pub fn spec(&self) -> &ImageCacheSpec {
        &self.object.spec
    }

    /// What it desires on a node, whether the node is eligible or not.
    pub fn set(&self, node: NodeIdx) -> &ImageSet {
        let desires = self.desires();
        let row = self.nodes.rows.get(node.index()).filter(|_| desires);
        self.desired
            .set(row.map_or(SetIdx::default(), |row| row.set))
    }

    /// Status of a node.
    pub fn row(&self, node: NodeIdx) -> &NodeStatus {
        &self.nodes.rows[node.index()]
    }

    /// Does this operation run?
    pub fn runs(&self, kind: Kind) -> bool {
        self.operation.as_ref().is_some_and(|op| op.kind == kind)
    }

    /// Must nothing new be started?
    pub fn held(&self) -> bool {
        (self.spec().suspend && !self.object.deleting) || self.invalid.is_some()
    }

    /// Do nodes that join wait for its images? Those of a cache that starts nothing do not come.
    pub fn gates_nodes(&self) -> bool {
        self.spec().gates_nodes() && !self.held()
    }

    /// Stamp of the operation in progress.
    pub fn operation_stamp(&self) -> Option<Stamp> {
        self.operation.as_ref().map(|op| op.stamp)
    }

    /// Stamp of the operation that brings images to this node, if one does.
    pub fn pulls_since(&self, node: NodeIdx) -> Option<Stamp> {
        let operation = self.operation.as_ref().filter(|op| op.pulls.contains(node));
        operation.map(|op| op.stamp)
    }

    /// On how many nodes it may pull at a time.
    pub fn node_limit(&self) -> usize {
        let eligible = u64::try_from(self.nodes.counts.nodes.desired).unwrap_or(0);
        let limit = self
            .spec()
            .max_concurrent_nodes
            .map(|share| share.of(eligible).max(1));
        limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        })
    }

    /// May this node begin to pull for it?
    pub fn node_may_pull(&self, node: NodeIdx) -> bool {
        let active = &self.pulling.active;
        active.len() < self.node_limit() || active.contains_key(&node)
    }

    /// When names that workloads brought may be recorded; `None`: all are, or an operation brought them. Their pulls
    /// wait for it.
    pub fn names_due(&self) -> Option<Tick> {
        let waits = self.sources.is_some() && !self.applied.recorded;
        waits.then(|| self.writer.names_not_before.unwrap_or(Tick(0)))
    }

    /// Compares the listed names with those that the API server has. Call it when either has changed.
    pub fn compare_names(&mut self) {
        self.applied.compare(&self.object.status);
    }

    /// Has the API server everything that must be there before work on nodes begins: our finalizer where one is
    /// needed, the operation, and every name that may come to lie on a node?
    pub fn recorded(&self) -> bool {
        let known = &self.object.status;
        let operation_known = self.operation.as_ref().is_none_or(|operation| {
            known.start_time == Some(operation.started) && known.reason == operation.kind.reason()
        });
        let held = self.object.finalizer || !self.spec().needs_finalizer();
        operation_known && self.applied.recorded && held
    }

    /// May images be removed? A deleted object's names were recorded before they were pulled, and a terminating
    /// namespace may accept no writes. What a cache desires is not known before the workloads are read that it follows.
    pub fn may_remove(&self) -> bool {
        let known = self.sources.as_ref().is_none_or(Sources::is_known) || !self.desires();
        known && !self.held() && (self.object.deleting || self.recorded())
    }

    /// Replaces the status of a node, and keeps the sums and the operation up to date.
    pub fn set_row(&mut self, node: NodeIdx, row: NodeStatus) {
        let old = std::mem::replace(&mut self.nodes.rows[node.index()], row);
        self.nodes.counts.replace(&old, &row);
        if let Some(operation) = &mut self.operation
            && old.done != row.done
        {
            operation.set_done(node, row.done);
        }
    }

    /// Time between automatic refreshes; `None`: never.
    pub fn refresh_interval(&self, settings: &Settings) -> Option<Duration> {
        let set = self
            .spec()
            .refresh
            .as_ref()
            .and_then(|refresh| refresh.interval);
        let interval = set.map_or(settings.refresh_interval, |interval| interval.0);
        (!interval.is_zero()).then_some(interval)
    }

    /// Schedules the next automatic refresh, `elapsed` after the last one.
    pub fn schedule_refresh(&mut self, now: Tick, settings: &Settings, elapsed: Duration) {
        let key = &self.object.key;
        let parts = [key.namespace.as_bytes(), key.name.as_bytes()];
        let spread = backoff::hash(settings.seed, &parts);
        let interval = self.refresh_interval(settings);
        self.refresh.next = interval.map(|interval| {
            now.after(backoff::jittered(interval, 10, spread).saturating_sub(elapsed))
        });
    }

    /// Gives the operation up, because nobody needs it any more.
    pub fn abort(&mut self, now: Timestamp) {
        if self.operation.take().is_some() {
            self.last.abort(now);
        }
    }

    /// Has every node confirmed that our pins are removed, or is none awaited any more?
    pub fn unpinned(&self, now: Tick) -> bool {
        let waits = self.unpin.is_some_and(|unpin| unpin.until > now);
        !waits || self.nodes.counts.flagged(Flags::PINS_OPEN) == 0
    }
}
