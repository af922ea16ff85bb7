use std::sync::Arc;

use super::{
    command::CredentialScope,
    name::{BatchId, CacheKey, NodeName},
    object::{CacheObject, InvalidCache, NodeFacts, Placement, Puller},
    outcome::{CheckReport, ImageOutcome, Transfer},
    workload::{Labels, WatchFailure, WatchId, Workload, WorkloadKey},
};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An `ImageCache` exists or has changed.
    CacheApplied(Box<CacheObject>),
    /// An `ImageCache` is gone.
    CacheDeleted(CacheKey),
    /// A stored `ImageCache` cannot be parsed.
    CacheInvalid(Box<InvalidCache>),
    /// A Node exists, or a fact about it has changed.
    NodeApplied(NodeName, NodeFacts),
    /// A Node is gone.
    NodeDeleted(NodeName),
    /// The ready puller of a node is now this one; `None`: the node has none.
    PullerChanged(NodeName, Option<Puller>),
    /// These nodes get a puller; `None`: that is not known.
    PullersPlaced(Option<Box<Placement>>),
    /// A workload exists or has changed.
    WorkloadApplied(WatchId, WorkloadKey, Box<Workload>),
    /// A workload is gone, or names no images any more.
    WorkloadDeleted(WatchId, WorkloadKey),
    /// A Namespace exists, or its labels have changed.
    NamespaceApplied(WatchId, Arc<str>, Labels),
    /// A Namespace is gone.
    NamespaceDeleted(WatchId, Arc<str>),
    /// A watch of workloads or of Namespaces cannot be read. When it can be read again, it is listed anew.
    WatchFailed(WatchId, WatchFailure),
    /// A source begins to deliver everything anew, because its watch broke. What the list brings replaces what
    /// was known, also where it is older: etcd may have been restored from a backup.
    Listing(Source),
    /// A source has delivered everything that existed when it began.
    Synced(Source),
    /// What the leader before knew of the budgets of registries, by host. It comes before `Leadership`.
    BudgetsKnown(Vec<(Arc<str>, KnownBudget)>),
    /// This process leads in this term; `None`: it stands by.
    Leadership(Option<u64>),
    /// Outcomes of some images of a batch.
    Outcomes(BatchId, Vec<ImageOutcome>),
    /// How far pulls of a batch are.
    Transfers(BatchId, Vec<Transfer>),
    /// What a check reports beyond its images. It comes before the batch ends.
    Checked(BatchId, CheckReport),
    /// The batch is over: nothing more comes from it.
    BatchEnded(BatchId, BatchEnd),
    /// The pull secrets of a scope were read for a pull of these caches. It goes on without those that have a problem.
    SecretsRead(Vec<CacheKey>, CredentialScope, SecretProblems),
    /// Answer to `Command::WriteStatus`: the new resource version.
    StatusWritten(CacheKey, Result<String, WriteError>),
    /// Answer to `Command::ClearAnnotation`: the new resource version; `None`: the annotation had
    /// another value or was gone.
    AnnotationCleared(CacheKey, Result<Option<String>, WriteError>),
    /// Answer to `Command::SetFinalizer`: the new resource version; `None`: nothing had to be
    /// changed.
    FinalizerWritten(CacheKey, Result<Option<String>, WriteError>),
    /// Answer to `Command::RemoveTaints` and `Command::WriteNodeCondition`.
    NodeWritten(NodeName, Result<(), WriteError>),
}

/// What one leader tells the next of a registry's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownBudget {
    /// Pulls at a time that the registry bore.
    pub limit: u32,
    /// More than these it did not; `None`: no limit was met.
    pub knee: Option<u32>,
}

/// Pull secrets of a cache that hold no credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretProblems {
    /// Names of secrets that do not exist.
    pub missing: Vec<String>,
    /// Names of secrets that cannot be used, each with the cause.
    pub unusable: Vec<(String, String)>,
}

/// Where events about the cluster come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The watch of `ImageCaches`.
    Caches,
    /// The watch of Nodes.
    Nodes,
    /// The watch of the puller's `EndpointSlices`.
    Pullers,
    /// The watch of the pullers' `DaemonSet`. Nobody waits for it: without it, every Linux node may get a puller.
    Placement,
    /// A watch of workloads or of Namespaces. Nobody waits for it, except caches whose images they name.
    Watch(WatchId),
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The object has a newer resource version. The watch brings it; then the engine decides again.
    Conflict,
    /// The object is gone.
    Gone,
    /// The object would be larger than the API server stores.
    TooLarge(String),
    /// Any other error. The engine tries again.
    Failed(String),
}

/// Why a batch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// The puller sent all its outcomes.
    Done,
    /// The stream broke; the puller may go on working.
    Lost,
    /// The puller knows a later leader.
    Refused,
    /// There was no connection.
    Unreachable,
    /// The API server did not answer for a Secret. No image is to blame.
    CredentialsFailed(String),
}
