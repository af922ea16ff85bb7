//! One `ImageCache`: what it wants, what it was last told, how far its operation is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fixedbitset::FixedBitSet;
use kubefledged_api_types::{
    ImageCacheSpec, ImageCacheStatus, ImagePullPolicy, PurgeStatus, Timestamp, names::reason,
    status::ImageCounts, status::NodeCounts,
};

use crate::{
    CacheObject, CredentialScope, NodeFacts, Settings, Tick, backoff,
    images::{ImageId, Images},
    node::{NodeIdx, Stamp},
    removal::Owed,
};

/// Never used again.
pub type CacheIdx = u32;

/// What the last operation was, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object is new.
    Create,
    /// What is wanted where has changed.
    Update,
    /// Asked for, or the interval is over and something must be pulled.
    Refresh,
    /// Asked for.
    Purge,
}

impl Kind {
    /// As it stands in the status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Create => reason::CREATE,
            Self::Update => reason::UPDATE,
            Self::Refresh => reason::REFRESH,
            Self::Purge => reason::PURGE,
        }
    }

    /// From the status.
    pub fn from_reason(text: &str) -> Option<Self> {
        [Self::Create, Self::Update, Self::Refresh, Self::Purge]
            .into_iter()
            .find(|kind| kind.reason() == text)
    }
}

/// An operation under way.
#[derive(Debug)]
pub struct Operation {
    /// Which.
    pub kind: Kind,
    /// Outcomes of batches with this stamp or a later one count.
    pub stamp: Stamp,
    /// As in the status; part of the freshness token, so that a new leader forms the same one.
    pub started: Timestamp,
    /// Those it began with and that have not left.
    pub nodes: FixedBitSet,
    /// How many of them are not done.
    pub open: usize,
    /// Annotations and their values that are handled when it ends.
    pub handles: Vec<(&'static str, String)>,
    /// An annotation is being cleared; asked for again after this.
    pub clearing: Option<Tick>,
}

/// How one node stands with one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CellState {
    /// Not eligible, or no list matches.
    #[default]
    Out,
    /// No puller answers, beyond the grace time.
    Unreachable,
    /// Misses an image that failed.
    Failed,
    /// Is pulling.
    Pulling,
    /// Misses an image, or was not looked at yet.
    Pending,
    /// Held everything when last looked at.
    Ready,
}

/// One node of one cache, as last assessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Which of the five parts, or none.
    pub state: CellState,
    /// Wanted images.
    pub want: u32,
    /// Of these present.
    pub have: u32,
    /// Of these failed.
    pub failing: u32,
    /// Oldest look at a wanted image.
    pub looked: Stamp,
    /// When all of them were looked at last.
    pub looked_at: Option<Timestamp>,
    /// When they are to be looked at next.
    pub check_at: Tick,
    /// Nothing is left of the operation here.
    pub done: bool,
}

/// One list of the spec.
#[derive(Debug)]
pub struct List {
    selector: BTreeMap<String, String>,
    /// Image, spelling, policy.
    pub images: Vec<(ImageId, Arc<str>, ImagePullPolicy)>,
    /// Higher first.
    pub priority: i32,
    /// For one attempt.
    pub deadline: Duration,
}

impl List {
    /// Is it for such a node?
    pub fn matches(&self, facts: &NodeFacts) -> bool {
        self.selector
            .iter()
            .all(|(key, value)| facts.labels.get(key) == Some(value))
    }
}

/// One image that a cache wants on a node.
#[derive(Clone, Debug)]
pub struct Want {
    /// Which.
    pub image: ImageId,
    /// As written.
    pub reference: Arc<str>,
    /// Whether a present one will do.
    pub policy: ImagePullPolicy,
    /// Higher first.
    pub priority: i32,
    /// For one attempt.
    pub deadline: Duration,
}

/// Sums over the cells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// As they stand in the status.
    pub nodes: NodeCounts,
    /// As they stand in the status.
    pub images: ImageCounts,
    /// Failed pairs.
    pub failing: i64,
    /// Cells in the count that were never looked at.
    pub unseen: i64,
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

/// One cache.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
pub struct Cache {
    /// As last seen, with what was written since.
    pub object: CacheObject,
    /// The spec compiled.
    pub lists: Vec<List>,
    /// The spec that is worked on; differs from the object's while a purge runs.
    pub spec: ImageCacheSpec,
    /// Images of the spec.
    pub ids: BTreeSet<ImageId>,
    /// Whose credentials.
    pub scope: CredentialScope,
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
    /// The first round of a new leader is not complete: what was written stays.
    pub first_round: bool,
    /// Stamp of the quiet refresh under way.
    pub refreshing: Option<Stamp>,
    /// When the next automatic refresh is due.
    pub refresh_at: Option<Tick>,
    /// Secrets that do not exist.
    pub missing_secrets: Vec<String>,
    /// The status as last known lists every name of `applied`.
    pub names_recorded: bool,
    /// State and begin of the operation that the last Kubernetes Event told of.
    pub announced: (String, Option<Timestamp>),
    /// Under way.
    pub write: Option<Write>,
    /// No earlier write.
    pub write_after: Tick,
    /// A write was refused because the object is another: wait for the watch.
    pub stale: bool,
}

impl Cache {
    /// A cache at first sight. Nothing is decided yet.
    pub fn adopt(
        object: CacheObject,
        images: &mut Images,
        settings: &Settings,
        nodes: usize,
    ) -> Self {
        let known = &object.status;
        let told = Told {
            status: known.status.clone(),
            reason: known.reason.clone(),
            message: known.message.clone(),
            started: known.start_time,
            completed: known.completion_time,
        };
        let mut cache = Self {
            spec: ImageCacheSpec::default(),
            lists: Vec::new(),
            ids: BTreeSet::new(),
            scope: CredentialScope {
                namespace: object.key.namespace.clone(),
                secrets: Arc::new([]),
                service_account: None,
            },
            told,
            operation: None,
            purged: false,
            purge: known.purge.clone(),
            handled_refresh: known.last_handled_refresh.clone(),
            handled_purge: known.last_handled_purge.clone(),
            refreshed: known.last_refresh_time,
            applied: BTreeMap::new(),
            owed: BTreeMap::new(),
            abandoned: false,
            cells: vec![Cell::default(); nodes],
            counts: Counts::default(),
            first_round: !object.status.status.is_empty(),
            refreshing: None,
            refresh_at: None,
            missing_secrets: Vec::new(),
            names_recorded: false,
            announced: (object.status.status.clone(), object.status.start_time),
            write: None,
            write_after: Tick(0),
            stale: false,
            object,
        };
        let spec = cache.object.spec.clone();
        cache.compile(spec, images, settings);
        cache.adopt_applied(images);
        cache.compare_names();
        cache
    }

    /// Names written before a restart. An object of kube-fledged has none: its spec counts.
    fn adopt_applied(&mut self, images: &mut Images) {
        let known = self.object.status.applied_images.clone();
        for name in known {
            let image = images.intern(&name.name);
            let reference: Arc<str> = name.name.into();
            self.applied.insert(image, reference.clone());
            if !self.ids.contains(&image) || name.since.is_some() {
                let since = name.since.unwrap_or_default();
                self.owed.insert(image, Owed::new(reference, since));
            }
        }
        if self.object.status.applied_images.is_empty() && !self.object.status.status.is_empty() {
            self.apply_wanted();
        }
    }

    /// Takes up a spec.
    pub fn compile(&mut self, spec: ImageCacheSpec, images: &mut Images, settings: &Settings) {
        self.lists = spec
            .cache_spec
            .iter()
            .map(|entry| List {
                selector: entry.node_selector.clone(),
                images: entry
                    .images
                    .iter()
                    .map(|name| {
                        let id = images.intern(name);
                        let floating = images.get(id).floating;
                        let policy = entry.image_pull_policy.unwrap_or(if floating {
                            ImagePullPolicy::Always
                        } else {
                            settings.image_pull_policy
                        });
                        (id, Arc::from(name.as_str()), policy)
                    })
                    .collect(),
                priority: entry.priority.unwrap_or(0),
                deadline: entry.pull_deadline.map_or(settings.pull_deadline, |d| d.0),
            })
            .collect();
        self.ids = self
            .lists
            .iter()
            .flat_map(|list| list.images.iter().map(|(id, ..)| *id))
            .collect();
        self.scope = CredentialScope {
            namespace: self.object.key.namespace.clone(),
            secrets: spec
                .image_pull_secrets
                .iter()
                .map(|secret| secret.name.clone())
                .collect(),
            service_account: spec.service_account_name.as_deref().map(Arc::from),
        };
        self.spec = spec;
    }

    /// What the cache wants on a node, whether it may have it now or not.
    pub fn wants(&self, facts: &NodeFacts) -> Vec<Want> {
        if self.purged || self.object.deleting || self.runs(Kind::Purge) {
            return Vec::new();
        }
        let mut wants: Vec<Want> = Vec::new();
        let mut seen = BTreeMap::new();
        for list in self.lists.iter().filter(|list| list.matches(facts)) {
            for (image, reference, policy) in &list.images {
                if let Some(at) = seen.get(image) {
                    let want: &mut Want = &mut wants[*at];
                    want.priority = want.priority.max(list.priority);
                    want.deadline = want.deadline.max(list.deadline);
                    if *policy == ImagePullPolicy::Always {
                        want.policy = *policy;
                    }
                    continue;
                }
                seen.insert(*image, wants.len());
                wants.push(Want {
                    image: *image,
                    reference: reference.clone(),
                    policy: *policy,
                    priority: list.priority,
                    deadline: list.deadline,
                });
            }
        }
        wants
    }

    /// Does this operation run?
    pub fn runs(&self, kind: Kind) -> bool {
        self.operation.as_ref().is_some_and(|op| op.kind == kind)
    }

    /// Every wanted name may lie on nodes from now on, and none of them is owed.
    pub fn apply_wanted(&mut self) {
        for list in &self.lists {
            for (image, reference, _) in &list.images {
                self.applied.insert(*image, reference.clone());
                self.owed.remove(image);
            }
        }
    }

    /// Names that may lie on nodes and that `keep` does not want are owed from now on.
    pub fn owe(&mut self, keep: &BTreeSet<ImageId>, now: Timestamp) {
        for (image, reference) in &self.applied {
            if !keep.contains(image) {
                self.owed
                    .entry(*image)
                    .or_insert_with(|| Owed::new(reference.clone(), now));
            }
        }
    }

    /// Call it when `applied` or the known status has changed.
    pub fn compare_names(&mut self) {
        let known: BTreeSet<&str> = self
            .object
            .status
            .applied_images
            .iter()
            .map(|applied| applied.name.as_str())
            .collect();
        self.names_recorded = self.applied.values().all(|name| known.contains(&**name));
    }

    /// Has the API server what work on nodes must not begin without: the operation, and every name
    /// that may come to lie on a node?
    pub fn recorded(&self) -> bool {
        let known = &self.object.status;
        let operation_known = self.operation.as_ref().is_none_or(|operation| {
            known.reason == operation.kind.reason() && known.start_time == Some(operation.started)
        });
        operation_known && self.names_recorded
    }

    /// Replaces a cell and keeps the sums true.
    pub fn set_cell(&mut self, node: NodeIdx, cell: Cell) {
        if self.cells.len() <= node {
            self.cells.resize(node + 1, Cell::default());
        }
        let old = std::mem::replace(&mut self.cells[node], cell);
        if old == cell {
            return;
        }
        self.counts.add(&old, -1);
        self.counts.add(&cell, 1);
        if let Some(operation) = &mut self.operation
            && operation.nodes.contains(node)
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
        let interval = self
            .spec
            .refresh
            .as_ref()
            .and_then(|refresh| refresh.interval)
            .map_or(settings.refresh_interval, |interval| interval.0);
        (!interval.is_zero()).then_some(interval)
    }

    /// Plans the next automatic refresh from now.
    pub fn schedule_refresh(&mut self, now: Tick, settings: &Settings, elapsed: Duration) {
        let key = &self.object.key;
        let spread = backoff::hash(
            settings.seed,
            &[key.namespace.as_bytes(), key.name.as_bytes()],
        );
        self.refresh_at = self.refresh_interval(settings).map(|interval| {
            now.after(backoff::jittered(interval, 10, spread).saturating_sub(elapsed))
        });
    }
}

impl Counts {
    fn add(&mut self, cell: &Cell, sign: i64) {
        let nodes = &mut self.nodes;
        let part = match cell.state {
            CellState::Out => return,
            CellState::Unreachable => &mut nodes.unreachable,
            CellState::Failed => &mut nodes.failed,
            CellState::Pulling => &mut nodes.pulling,
            CellState::Pending => &mut nodes.pending,
            CellState::Ready => &mut nodes.ready,
        };
        *part += sign;
        nodes.desired += sign;
        self.images.desired += sign * i64::from(cell.want);
        self.images.ready += sign * i64::from(cell.have);
        self.failing += sign * i64::from(cell.failing);
        if cell.looked == 0 && cell.state != CellState::Unreachable {
            self.unseen += sign;
        }
    }
}
