//! One `ImageCache`: what it wants, what it was last told, how far its operation is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{
    DeletionPolicy, ImageCacheSpec, ImageCacheStatus, PurgeStatus, Timestamp,
    conditions::{self, Degraded},
    names::status,
};

use crate::{
    CacheObject, CredentialScope, Settings, Tick, backoff,
    cell::{Cell, Counts, Flags},
    images::{ImageId, Images},
    node::{NodeIdx, Stamp},
    operation::{Kind, Operation, wants_hash},
    registry::Registries,
    removal::Owed,
    scope::{ScopeId, Scopes},
    wants::{Pattern, Wants},
};

/// Never used again.
pub type CacheIdx = u32;

/// Everything that has a number.
#[derive(Debug, Default)]
pub struct Names {
    /// Images.
    pub images: Images,
    /// Registry hosts.
    pub registries: Registries,
    /// Whose credentials.
    pub scopes: Scopes,
}

/// What the last operation's end says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// `status.status`
    pub status: String,
    /// `status.reason`
    pub reason: String,
    /// `status.message`
    pub message: String,
    /// `status.startTime`
    pub started: Option<Timestamp>,
    /// `status.completionTime`
    pub completed: Option<Timestamp>,
}

/// A status write under way.
#[derive(Debug)]
pub struct Write {
    /// What was sent.
    pub status: ImageCacheStatus,
    /// Over which resource version.
    pub over: String,
}

/// Pins of ours are to go, because nothing holds the object that wanted them.
#[derive(Clone, Copy, Debug)]
pub struct Unpin {
    /// Nodes whose last report is older have not answered.
    pub since: Stamp,
    /// Nobody is waited for any longer.
    pub until: Tick,
}

/// One cache.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
pub struct Cache {
    /// As last seen, with what was written since.
    pub object: CacheObject,
    /// The stored spec cannot be used, and why: the last one that could stays.
    pub invalid: Option<String>,
    /// The spec compiled.
    pub wants: Wants,
    /// Generation of the spec that is compiled.
    pub compiled: Option<i64>,
    /// What is wanted where, as one number, and the same when an operation last began.
    pub wants_hash: u64,
    /// See `wants_hash`; 0: not known.
    pub covered: u64,
    /// Images of the spec.
    pub ids: FixedBitSet,
    /// Whose credentials.
    pub scope: ScopeId,
    /// What the status tells.
    pub told: Told,
    /// Under way.
    pub operation: Option<Operation>,
    /// It wants nothing until a refresh or another cacheSpec.
    pub purged: bool,
    /// `status.purge`
    pub purge: Option<PurgeStatus>,
    /// `status.lastHandledRefresh`
    pub handled_refresh: Option<String>,
    /// `status.lastHandledPurge`
    pub handled_purge: Option<String>,
    /// `status.lastRefreshTime`
    pub refreshed: Option<Timestamp>,
    /// Names that may lie on nodes: spelling by image.
    pub applied: BTreeMap<ImageId, Arc<str>>,
    /// Of these no longer wanted, and not yet gone everywhere.
    pub owed: BTreeMap<ImageId, Owed>,
    /// Owed names were given up.
    pub abandoned: bool,
    /// By node.
    pub cells: Vec<Cell>,
    /// Sums over `cells`.
    pub counts: Counts,
    /// Rises when something about it has changed: it assesses all nodes anew.
    pub epoch: u32,
    /// The first round of a new leader is not complete: what was written stays.
    pub first_round: bool,
    /// Stamp of the quiet refresh under way.
    pub refreshing: Option<Stamp>,
    /// The quiet refresh has found something to pull.
    pub must_pull: bool,
    /// The spec asks for pins.
    pub pinned: bool,
    /// What the deletion under way does about images.
    pub deletion: Option<DeletionPolicy>,
    /// Our finalizer is off, for good.
    pub released: bool,
    /// Something changed since the status was last computed.
    pub unwritten: bool,
    /// When the next automatic refresh is due.
    pub refresh_at: Option<Tick>,
    /// Nodes that pull for it, and how many batches.
    pub pulling: BTreeMap<NodeIdx, u32>,
    /// Nodes that wait for `spec.maxConcurrentNodes`.
    pub waiting: BTreeSet<NodeIdx>,
    /// Pins to be taken off.
    pub unpin: Option<Unpin>,
    /// Our finalizer is being written; asked for again after this.
    pub finalizing: Option<Tick>,
    /// Its write is not answered yet: a status written meanwhile would meet another version.
    pub awaits_finalizer: bool,
    /// Secrets that do not exist or cannot be used: name and why.
    pub bad_secrets: BTreeMap<String, String>,
    /// The status as last known lists every name of `applied`.
    pub names_recorded: bool,
    /// State and begin of the operation that the last Kubernetes Event told of.
    pub announced: (String, Option<Timestamp>),
    /// Name and begin of the operation that was last sent to be written.
    pub sent: (String, Option<Timestamp>),
    /// Under way.
    pub write: Option<Write>,
    /// No earlier write, unless an operation begins or ends.
    pub write_after: Tick,
    /// The last write failed: not even then.
    pub write_failed: bool,
    /// A write was refused because the object is another: wait for the watch.
    pub stale: bool,
}

impl Cache {
    /// A cache at first sight. Nothing is decided yet.
    pub fn adopt(
        object: CacheObject,
        invalid: Option<String>,
        names: &mut Names,
        settings: &Settings,
        nodes: usize,
        now: Timestamp,
    ) -> Self {
        let known = &object.status;
        let told = Told {
            status: known.status.clone(),
            reason: known.reason.clone(),
            message: known.message.clone(),
            started: known.start_time,
            completed: known.completion_time,
        };
        let abandoned = known.conditions.iter().any(|condition| {
            condition.type_ == conditions::DEGRADED
                && condition.reason == Degraded::RemovalAbandoned.as_str()
        });
        let mut cache = Self {
            invalid,
            wants: Wants::default(),
            compiled: None,
            wants_hash: 0,
            covered: 0,
            ids: FixedBitSet::new(),
            scope: ScopeId::default(),
            told,
            operation: None,
            purged: false,
            purge: known.purge.clone(),
            handled_refresh: known.last_handled_refresh.clone(),
            handled_purge: known.last_handled_purge.clone(),
            refreshed: known.last_refresh_time,
            applied: BTreeMap::new(),
            owed: BTreeMap::new(),
            abandoned,
            cells: vec![Cell::default(); nodes],
            counts: Counts::default(),
            epoch: 1,
            first_round: !object.status.status.is_empty(),
            refreshing: None,
            must_pull: false,
            pinned: false,
            deletion: None,
            released: false,
            unwritten: false,
            refresh_at: None,
            pulling: BTreeMap::new(),
            waiting: BTreeSet::new(),
            unpin: None,
            finalizing: None,
            awaits_finalizer: false,
            bad_secrets: BTreeMap::new(),
            names_recorded: false,
            announced: (object.status.status.clone(), object.status.start_time),
            sent: identity(&object.status),
            write: None,
            write_after: Tick(0),
            write_failed: false,
            stale: false,
            object,
        };
        cache.compile(names, settings);
        cache.adopt_applied(names, now);
        let seen = cache.object.status.observed_generation;
        // Edited while nobody looked, or while it was suspended: what changed is not known any more,
        // and counts as changed.
        if seen.is_none_or(|seen| seen == cache.object.generation) && cache.applies_its_spec() {
            cache.covered = cache.wants_hash;
        }
        cache.compare_names();
        cache
    }

    /// Names written before a restart. What was dropped while nobody led is owed from now on. An
    /// object that kube-fledged wrote has none: its spec counts.
    fn adopt_applied(&mut self, names: &mut Names, now: Timestamp) {
        for name in self.object.status.applied_images.clone() {
            let image = names.images.intern(&name.name, &mut names.registries);
            let reference: Arc<str> = name.name.into();
            self.applied.insert(image, reference.clone());
            let dropped = !self.ids.contains(image.index()) && self.invalid.is_none();
            if (dropped && !self.spec().suspend) || name.since.is_some() {
                let since = name.since.unwrap_or(now);
                self.owed.insert(image, Owed::new(reference, since));
            }
        }
        let known = &self.object.status;
        if known.observed_generation.is_none() && !known.status.is_empty() {
            self.apply_wanted();
        }
    }

    /// Names that we answered for until we heard of what another leader did: of those that are not
    /// wanted we may have pulled some meanwhile.
    pub fn owe_anew(&mut self, names: BTreeMap<ImageId, Arc<str>>, now: Timestamp) {
        for (image, name) in names {
            let wanted = !self.purged && self.ids.contains(image.index());
            if !wanted && !self.applied.contains_key(&image) {
                self.applied.insert(image, name.clone());
                self.owed.insert(image, Owed::new(name, now));
            }
        }
        self.compare_names();
    }

    /// Is every name of the spec applied, and every other one owed?
    fn applies_its_spec(&self) -> bool {
        let wanted = self
            .wants
            .all()
            .all(|want| self.applied.contains_key(&want.image));
        let mut applied = self.applied.keys();
        let answered =
            |image: &ImageId| self.ids.contains(image.index()) || self.owed.contains_key(image);
        wanted && applied.all(answered)
    }

    /// Takes up the object's spec. Its nodes are to be matched anew.
    pub fn compile(&mut self, names: &mut Names, settings: &Settings) {
        let spec = &self.object.spec;
        let (images, registries) = (&mut names.images, &mut names.registries);
        self.wants = Wants::new(&spec.cache_spec, images, registries, settings);
        self.ids = self.wants.all().map(|want| want.image.index()).collect();
        self.scope = names.scopes.intern(CredentialScope {
            namespace: self.object.key.namespace.clone(),
            secrets: spec
                .image_pull_secrets
                .iter()
                .map(|secret| secret.name.clone())
                .collect(),
            service_account: spec.service_account_name.as_deref().map(Arc::from),
        });
        self.wants_hash = wants_hash(spec);
        self.pinned = spec.pinned();
        self.compiled = Some(self.object.generation);
        self.bad_secrets.clear();
    }

    /// Does it tell of an operation that is not ours? Our own writes may be seen before their answers,
    /// and also when they were answered with an error.
    pub fn led_by_another(&self, object: &CacheObject) -> bool {
        let told = identity(&object.status);
        told != identity(&self.object.status) && told != self.sent
    }

    /// What is wanted.
    pub fn spec(&self) -> &ImageCacheSpec {
        &self.object.spec
    }

    /// What it wants on a node, whether that may have it now or not.
    pub fn pattern(&self, node: NodeIdx) -> &Pattern {
        let wanting = !self.purged
            && !self.object.deleting
            && self.operation.as_ref().is_none_or(|op| op.kind.pulls());
        let pattern = self
            .cells
            .get(node)
            .filter(|_| wanting)
            .map_or(0, |cell| cell.pattern);
        self.wants.pattern(pattern)
    }

    /// Does this operation run?
    pub fn runs(&self, kind: Kind) -> bool {
        self.operation.as_ref().is_some_and(|op| op.kind == kind)
    }

    /// May nothing new be started?
    pub fn held(&self) -> bool {
        (self.spec().suspend && !self.object.deleting) || self.invalid.is_some()
    }

    /// Stamp of an operation that brings images to this node, or 0.
    pub fn pulls_since(&self, node: NodeIdx) -> Stamp {
        let operation = self.operation.as_ref().filter(|op| op.pulls.contains(node));
        operation.map_or(0, |op| op.stamp)
    }

    /// On how many nodes it may be pulling at a time.
    pub fn node_limit(&self) -> usize {
        let eligible = u64::try_from(self.counts.nodes.desired).unwrap_or(0);
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
        self.pulling.contains_key(&node) || self.pulling.len() < self.node_limit()
    }

    /// Call it when `applied` or the known status has changed.
    pub fn compare_names(&mut self) {
        let known = &self.object.status.applied_images;
        let known: BTreeSet<&str> = known.iter().map(|applied| applied.name.as_str()).collect();
        self.names_recorded = self.applied.values().all(|name| known.contains(&**name));
    }

    /// Has the API server what work on nodes must not begin without: our finalizer where one is
    /// needed, the operation, and every name that may come to lie on a node?
    pub fn recorded(&self) -> bool {
        let known = &self.object.status;
        let operation_known = self.operation.as_ref().is_none_or(|operation| {
            known.reason == operation.kind.reason() && known.start_time == Some(operation.started)
        });
        let held = self.object.finalizer || !self.spec().needs_finalizer();
        operation_known && self.names_recorded && held
    }

    /// May images be removed? A deleted object's names were written before they were pulled, and a
    /// namespace that goes may take no writes any more.
    pub fn may_remove(&self) -> bool {
        !self.held() && (self.object.deleting || self.recorded())
    }

    /// Replaces a cell and keeps the sums true.
    pub fn set_cell(&mut self, node: NodeIdx, cell: Cell) {
        let old = std::mem::replace(&mut self.cells[node], cell);
        self.counts.replace(&old, &cell);
        if let Some(operation) = &mut self.operation
            && operation.has(node)
        {
            match (old.done, cell.done) {
                (false, true) => operation.open = operation.open.saturating_sub(1),
                (true, false) => operation.open += 1,
                _ => {}
            }
        }
    }

    /// Time between automatic refreshes; `None`: never.
    pub fn refresh_interval(&self, settings: &Settings) -> Option<Duration> {
        let written = self
            .spec()
            .refresh
            .as_ref()
            .and_then(|refresh| refresh.interval);
        let interval = written.map_or(settings.refresh_interval, |interval| interval.0);
        (!interval.is_zero()).then_some(interval)
    }

    /// Plans the next automatic refresh, `elapsed` after the last.
    pub fn schedule_refresh(&mut self, now: Tick, settings: &Settings, elapsed: Duration) {
        let key = &self.object.key;
        let parts = [key.namespace.as_bytes(), key.name.as_bytes()];
        let spread = backoff::hash(settings.seed, &parts);
        let interval = self.refresh_interval(settings);
        self.refresh_at = interval.map(|interval| {
            now.after(backoff::jittered(interval, 10, spread).saturating_sub(elapsed))
        });
    }

    /// The operation ends because nobody wants it any more.
    pub fn abort(&mut self, now: Timestamp) {
        if self.operation.take().is_some() {
            status::ABORTED.clone_into(&mut self.told.status);
            kubefledged_api_types::names::message::ABORTED.clone_into(&mut self.told.message);
            self.told.completed = Some(now);
        }
    }

    /// Have all nodes answered that no pin of ours is left, or is nobody waited for any longer?
    pub fn unpinned(&self, now: Tick) -> bool {
        let waits = self.unpin.is_some_and(|unpin| unpin.until > now);
        !waits || self.counts.flagged(Flags::PINS_OPEN) == 0
    }
}

/// Which operation a status tells of.
pub fn identity(status: &ImageCacheStatus) -> (String, Option<Timestamp>) {
    (status.reason.clone(), status.start_time)
}
