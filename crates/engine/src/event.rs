//! What goes into the engine and what comes out.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use kubefledged_api_types::{ImageCacheSpec, ImageCacheStatus, ImagePullPolicy};

/// Name of a Kubernetes Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(pub Arc<str>);

/// Namespace and name of an `ImageCache`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// One call to one node; unique within a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An `ImageCache` as the API server has it.
#[derive(Clone, Debug)]
pub struct CacheObject {
    /// Namespace and name.
    pub key: CacheKey,
    /// Another object of the same name has another one.
    pub uid: String,
    /// What a status write is decided from.
    pub resource_version: String,
    /// Rises with every change of the spec.
    pub generation: i64,
    /// What is wanted.
    pub spec: ImageCacheSpec,
    /// What was written last.
    pub status: ImageCacheStatus,
    /// Value of the refresh annotation.
    pub refresh: Option<String>,
    /// Value of the purge annotation.
    pub purge: Option<String>,
    /// Deleted, and held by somebody's finalizer.
    pub deleting: bool,
}

/// The part of a Node that decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Condition Ready is True.
    pub ready: bool,
    /// Cordoned.
    pub unschedulable: bool,
    /// Keys of its taints.
    pub taints: Vec<String>,
}

/// A puller that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Puller {
    /// The pod's UID.
    pub instance: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An `ImageCache` is there, or is another now.
    CacheApplied(Box<CacheObject>),
    /// An `ImageCache` is gone.
    CacheDeleted(CacheKey),
    /// A stored `ImageCache` cannot be read at all.
    CacheInvalid {
        /// Which.
        key: CacheKey,
        /// Why.
        message: String,
    },
    /// A Node is there, or a fact about it changed.
    NodeApplied(NodeName, NodeFacts),
    /// A Node is gone.
    NodeDeleted(NodeName),
    /// The ready puller of a node is this one now, or there is none.
    PullerChanged(NodeName, Option<Puller>),
    /// All that was there at the start has been told.
    Synced(Source),
    /// This process leads in this term, or leads no more.
    Leadership(Option<u64>),
    /// What became of some images of a batch.
    Outcomes(BatchId, Vec<ImageOutcome>),
    /// Nothing more comes from this batch.
    BatchEnded(BatchId, BatchEnd),
    /// These imagePullSecrets do not exist; the pulls went on without them.
    SecretsMissing(CacheKey, Vec<String>),
    /// Answer to [`Command::WriteStatus`]: the new resource version.
    StatusWritten(CacheKey, Result<String, WriteError>),
    /// Answer to [`Command::ClearAnnotation`]: the new resource version, or nothing where the
    /// annotation had another value or was gone.
    AnnotationCleared(CacheKey, Result<Option<String>, WriteError>),
}

/// Where inputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `ImageCaches`.
    Caches,
    /// Nodes.
    Nodes,
    /// Endpoints of the puller.
    Pullers,
}

/// Why a write did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Decided from an old resource version: wait for the watch, decide again.
    Conflict,
    /// The object is gone.
    Gone,
    /// Anything else; tried again.
    Failed(String),
}

/// What became of one image of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOutcome {
    /// Of the image in the batch.
    pub index: usize,
    /// What became of it.
    pub result: ImageResult,
}

/// What became of one image on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageResult {
    /// It was there (pull, check).
    Present,
    /// It was pulled.
    Pulled,
    /// It is not there (check, removal).
    Absent,
    /// A pull waits or runs (check).
    Pulling,
    /// It was removed.
    Removed,
    /// It stays on purpose: one of the words `InUse`, `Pinned`, `SharedImage`.
    Kept(String),
    /// Word and sentence.
    Failed {
        /// One word of `names::failure`.
        reason: String,
        /// What the runtime said.
        message: String,
    },
    /// Nobody wanted it any more.
    Cancelled,
    /// A newer intent for the same name came.
    Superseded,
}

/// Why nothing more comes from a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// It said all it had to say.
    Done,
    /// The stream broke; the work may go on.
    Lost,
    /// The puller has heard of a later leader.
    Refused {
        /// The later term.
        seen_term: u64,
    },
    /// No connection.
    Unreachable,
    /// The API server did not answer for a Secret; no image is to blame.
    CredentialsFailed(String),
}

/// Which secrets may hold credentials for a cache's registries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CredentialScope {
    /// Of the secrets.
    pub namespace: Arc<str>,
    /// Their names, in the order of the spec.
    pub secrets: Arc<[String]>,
}

/// One call to one node. It belongs to one cache.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Answers name it.
    pub id: BatchId,
    /// The leader's.
    pub term: u64,
    /// Rises with every batch of the term.
    pub seq: u64,
    /// Which node.
    pub node: NodeName,
    /// Where its puller listens.
    pub puller: Puller,
    /// For which cache.
    pub cache: CacheKey,
    /// What to do.
    pub work: Work,
}

/// What a batch does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Pull, all from one registry.
    Pull {
        /// At most 512.
        images: Vec<PullItem>,
        /// Whose credentials.
        credentials: CredentialScope,
    },
    /// Remove names.
    Remove {
        /// At most 512.
        references: Vec<Arc<str>>,
        /// What some cache wants on this node now.
        wanted: Vec<Arc<str>>,
        /// What no cache wants any more.
        releasable: Vec<Arc<str>>,
    },
    /// Ask what the runtime holds.
    Check {
        /// At most 512.
        references: Vec<Arc<str>>,
    },
}

/// One image to pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullItem {
    /// As the user wrote it.
    pub reference: Arc<str>,
    /// Whether a present image will do.
    pub policy: ImagePullPolicy,
    /// Two pulls with the same token are one.
    pub freshness: String,
    /// Higher first.
    pub priority: i32,
    /// For one attempt, from its first runtime call.
    pub deadline: Duration,
}

/// End the interest of a batch in some of its pulls.
#[derive(Clone, Debug)]
pub struct CancelPulls {
    /// The leader's.
    pub term: u64,
    /// Rises with every call of the term.
    pub seq: u64,
    /// Which node.
    pub node: NodeName,
    /// Where its puller listens.
    pub puller: Puller,
    /// Whose interest ends.
    pub batch: BatchId,
    /// In which images.
    pub references: Vec<Arc<str>>,
}

/// How loud an Event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Answered by [`Event::Outcomes`] and one [`Event::BatchEnded`].
    StartBatch(Box<Batch>),
    /// Not answered: the batch's outcomes tell.
    CancelPulls(CancelPulls),
    /// Replace the status. Answered by [`Event::StatusWritten`].
    WriteStatus {
        /// Whose.
        key: CacheKey,
        /// Must still be the object's.
        resource_version: String,
        /// All of it.
        status: Box<ImageCacheStatus>,
    },
    /// Remove an annotation if it still has this value. Answered by [`Event::AnnotationCleared`].
    ClearAnnotation {
        /// Whose.
        key: CacheKey,
        /// Its name.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// A Kubernetes Event on the object. Not answered.
    EmitEvent {
        /// On which object.
        key: CacheKey,
        /// Its UID.
        uid: String,
        /// How loud.
        severity: Severity,
        /// One word.
        reason: String,
        /// What was done; begin and end of an operation differ in it, or they would be taken for
        /// one Event that came twice.
        action: String,
        /// A sentence.
        message: String,
    },
    /// A puller has seen this term: lead in a later one.
    RaiseTerm {
        /// The puller's.
        seen_term: u64,
    },
}
