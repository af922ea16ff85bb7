//! Rows of the views.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubefledged_api_types::{
    ImagePullPolicy, Timestamp, WorkloadKind,
    conditions::Condition,
    status::{ImageCounts, NodeCounts},
};

use super::pairs::PairRow;
pub use crate::model::registries::Budget;
use crate::vocabulary::{
    BatchId, CacheKey, Ineligible, MovedBytes, NodeName, PullState, Puller, WorkloadImage,
    WorkloadKey,
};

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Namespace and name.
    pub key: CacheKey,
    /// `status.nodes`
    pub nodes: NodeCounts,
    /// `status.images`
    pub images: ImageCounts,
    /// `status.status`
    pub status: String,
    /// `status.reason`
    pub reason: String,
    /// `status.startTime`
    pub started: Option<Timestamp>,
    /// `status.completionTime`
    pub completed: Option<Timestamp>,
    /// The operation in progress.
    pub operation: Option<Progress>,
    /// `status.lastRefreshTime`
    pub refreshed: Option<Timestamp>,
    /// Conditions that are True in the status that was written last.
    pub conditions: TrueConditions,
    /// How many lists of the spec no node has ever matched.
    pub lists_without_nodes: usize,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its nodes.
    pub nodes: usize,
    /// Those of them that are not done.
    pub open: usize,
}

/// Which conditions are True.
#[expect(clippy::struct_excessive_bools, reason = "one for each condition")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrueConditions {
    /// Ready is True.
    pub ready: bool,
    /// Progressing is True.
    pub progressing: bool,
    /// Degraded is True.
    pub degraded: bool,
    /// Reconciling is True.
    pub reconciling: bool,
    /// Stalled is True.
    pub stalled: bool,
}

/// Everything about one cache.
#[derive(Clone, Debug)]
pub struct CacheDetail {
    /// Its row in the list.
    pub row: CacheRow,
    /// The conditions as they would be written now.
    pub conditions: Vec<Condition>,
    /// Images of the spec.
    pub desired: Vec<DesiredRow>,
    /// Names whose removal is pending.
    pub pending: Vec<PendingRow>,
    /// Time until the automatic refresh; `None`: none is scheduled.
    pub next_refresh: Option<Duration>,
    /// The cache is purged: it desires nothing.
    pub purged: bool,
    /// Nodes that were not checked yet.
    pub unchecked: i64,
    /// Pull secrets that do not exist or cannot be used, with the cause.
    pub bad_secrets: Vec<(String, String)>,
    /// Generation of the spec that is in use.
    pub generation: i64,
}

/// One image of one list.
#[derive(Clone, Debug)]
pub struct DesiredRow {
    /// The name, as the user wrote it.
    pub reference: Arc<str>,
    /// Index of the list.
    pub list: usize,
    /// Host of its registry.
    pub registry: Arc<str>,
    /// Its pull policy, after the default.
    pub policy: ImagePullPolicy,
    /// Why the name cannot be parsed; `None`: it can.
    pub invalid: Option<String>,
}

/// A workload that names an image.
#[derive(Clone, Debug)]
pub struct NamingRow {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its namespace and name.
    pub workload: WorkloadKey,
    /// The image, and its container.
    pub image: WorkloadImage,
    /// Index of the list whose source selects it.
    pub list: usize,
}

/// Workloads that name images.
#[derive(Clone, Debug)]
pub struct NamingRows {
    /// At most [`MOST_ROWS`](super::MOST_ROWS).
    pub rows: Vec<NamingRow>,
    /// There are more.
    pub truncated: bool,
}

/// One name whose removal is pending.
#[derive(Clone, Debug)]
pub struct PendingRow {
    /// The name, as the user wrote it.
    pub reference: Arc<str>,
    /// Nodes that confirmed the removal.
    pub removed: usize,
    /// Nodes that keep the image on purpose.
    pub kept: usize,
    /// Nodes where the removal failed.
    pub failed: usize,
    /// Why one of them keeps it, or why the removal failed there.
    pub reason: Option<String>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeDetail {
    /// Whether it is eligible, and why not.
    pub eligibility: Result<(), Ineligible>,
    /// The puller that is ready there.
    pub puller: Option<Puller>,
    /// Calls that failed in a row.
    pub failed_calls: u32,
    /// Time until it is called again; `None`: it may be called now.
    pub next_call: Option<Duration>,
    /// How long no puller has answered; `None`: one does.
    pub silent: Option<Duration>,
    /// Time of the oldest observation of a desired image.
    pub checked: Option<Timestamp>,
    /// Size of all desired images that are present in bytes, each image once.
    pub bytes: u64,
    /// Every cache.
    pub caches: Vec<NodeCacheRow>,
    /// Batches in flight.
    pub batches: Vec<BatchRow>,
}

/// One cache as one node has it.
#[derive(Clone, Debug)]
pub struct NodeCacheRow {
    /// Namespace and name.
    pub key: CacheKey,
    /// The node's state, as the cache counts it.
    pub state: PullState,
    /// Images that the cache desires there.
    pub desired: usize,
    /// Those of them that are present.
    pub present: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Size of those that are present in bytes, as the runtimes that reported them last count it; two names of one
    /// image count once.
    pub bytes: u64,
    /// The cache is purged.
    pub purged: bool,
    /// The image that best explains why the node is not ready.
    pub worst: Option<PairRow>,
}

/// What a batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BatchKind {
    /// Pulls images.
    Pull,
    /// Removes names and pins.
    Remove,
    /// Checks which images are present.
    Check,
}

/// One batch in flight.
#[derive(Clone, Debug)]
pub struct BatchRow {
    /// Its number.
    pub id: BatchId,
    /// Which node.
    pub node: NodeName,
    /// The caches for which it pulls; empty for a check or a removal, which serve every cache.
    pub caches: BTreeSet<CacheKey>,
    /// What it does.
    pub kind: BatchKind,
    /// How many images it has.
    pub images: usize,
    /// How many of them have no outcome.
    pub open: usize,
    /// Time since it began.
    pub age: Duration,
    /// Time until it counts as lost.
    pub left: Duration,
}

/// Sums over everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Nodes by why they are not eligible; `None`: they are.
    pub nodes: BTreeMap<Option<Ineligible>, usize>,
    /// Nodes without a puller that answers, although one could run there.
    pub silent: usize,
    /// Nodes that the node gate holds.
    pub held: usize,
    /// Batches in flight, by what they do.
    pub batches: BTreeMap<BatchKind, usize>,
    /// Desired images that vanished from nodes, since the process began.
    pub lost: u64,
    /// Layers that nodes take from each other.
    pub peers: PeerSums,
}

/// Sums over layers that nodes take from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSums {
    /// Nodes that wait until another node has an image.
    pub waiting: usize,
    /// Nodes that fetch an image from the registry while others wait for it.
    pub seeding: usize,
    /// Nodes that take an image from others.
    pub taking: usize,
    /// Nodes that hand on images now.
    pub serving: usize,
    /// Bytes of layers that pulls moved since the process began, by source.
    pub moved: MovedBytes,
}

/// One registry host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRow {
    /// Its host name.
    pub host: Arc<str>,
    /// Its budget.
    pub budget: Budget,
    /// Nodes that wait for it.
    pub waiting: usize,
    /// Time since it last asked for fewer requests; `None`: it never did.
    pub limited: Option<Duration>,
}
