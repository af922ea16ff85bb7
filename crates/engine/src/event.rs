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
    /// Our finalizer (`names::FINALIZER`) stands on it.
    pub finalizer: bool,
}

/// An `ImageCache` whose spec cannot be used at all.
#[derive(Clone, Debug)]
pub struct InvalidCache {
    /// Namespace and name.
    pub key: CacheKey,
    /// Another object of the same name has another one.
    pub uid: String,
    /// What a status write is decided from.
    pub resource_version: String,
    /// Rises with every change of the spec.
    pub generation: i64,
    /// What was written last, as far as it can be read.
    pub status: ImageCacheStatus,
    /// Our finalizer stands on it.
    pub finalizer: bool,
    /// Deleted, and held by somebody's finalizer.
    pub deleting: bool,
    /// Why it cannot be used.
    pub message: String,
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
    /// A stored `ImageCache` cannot be used at all.
    CacheInvalid(Box<InvalidCache>),
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
    /// What a check said beyond its images; told before the batch ends.
    Checked(BatchId, CheckReport),
    /// Nothing more comes from this batch.
    BatchEnded(BatchId, BatchEnd),
    /// The secrets of a cache were read. Pulls go on without those that are no use.
    SecretsRead(CacheKey, UselessSecrets),
    /// Answer to [`Command::WriteStatus`]: the new resource version.
    StatusWritten(CacheKey, Result<String, WriteError>),
    /// Answer to [`Command::ClearAnnotation`]: the new resource version, or nothing where the
    /// annotation had another value or was gone.
    AnnotationCleared(CacheKey, Result<Option<String>, WriteError>),
    /// Answer to [`Command::SetFinalizer`]: the new resource version, or nothing where the object
    /// was as wished already.
    FinalizerWritten(CacheKey, Result<Option<String>, WriteError>),
}

/// Secrets of a cache that hold no credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UselessSecrets {
    /// They do not exist.
    pub missing: Vec<String>,
    /// They cannot be used, and why.
    pub unusable: Vec<(String, String)>,
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
    /// Of the image in the batch. In a removal the ids of `unpin` follow the names.
    pub index: usize,
    /// What became of it.
    pub result: ImageResult,
    /// The image as the runtime has it, where it is there and was looked at.
    pub seen: Option<Seen>,
    /// What became of the wish to pin it.
    pub pin: PinResult,
    /// What the registry asked to wait.
    pub retry_after: Option<Duration>,
}

impl ImageOutcome {
    /// An outcome without details.
    pub fn new(index: usize, result: ImageResult) -> Self {
        Self {
            index,
            result,
            seen: None,
            pin: PinResult::NotAsked,
            retry_after: None,
        }
    }
}

/// An image as a runtime has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its id; differs between runtimes.
    pub image_id: String,
    /// Its names with digests: equal ones are the same image in the registry.
    pub repo_digests: Vec<String>,
    /// Protected from garbage collection, by us or by somebody else.
    pub pinned: bool,
    /// In bytes, as this runtime counts it; 0: not known.
    pub size: u64,
}

/// What became of the wish to pin an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PinResult {
    /// There was none, or the image is not there.
    #[default]
    NotAsked,
    /// It is protected, by us or by somebody else.
    Pinned,
    /// This runtime does not let us.
    Unsupported,
    /// The disk is above the watermark: nothing new is pinned.
    DiskPressure,
    /// What the runtime said.
    Failed(String),
}

/// What a check says of the node, beyond its images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Ids that carry our pin.
    pub pinned_by_us: Vec<Arc<str>>,
    /// The runtime did not say which do.
    pub pins_unknown: bool,
    /// Whether images can be pinned; `None`: not known yet.
    pub can_pin: Option<bool>,
    /// The highest term the puller has seen; 0 after its start.
    pub highest_term: u64,
    /// The file system of the images, where the puller can see it.
    pub disk: Option<Disk>,
    /// How many pulls it runs at a time; 0: it does not say.
    pub parallel_pulls: u32,
}

/// The file system that holds a node's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All of it, in bytes.
    pub capacity: u64,
    /// Free, in bytes.
    pub available: u64,
    /// Above this share in use nothing is pulled or pinned.
    pub watermark_percent: u8,
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
    /// A `ServiceAccount` of the namespace whose secrets follow.
    pub service_account: Option<Arc<str>>,
}

/// One call to one node.
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
    /// For which cache; a check and a removal are for all that want something of the node.
    pub cache: Option<CacheKey>,
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
        /// Ids from which our pin is taken; nothing is removed.
        unpin: Vec<Arc<str>>,
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
    /// Two pulls with the same token are one. Empty: the present image is as good as a fresh one.
    pub freshness: Arc<str>,
    /// Higher first.
    pub priority: i32,
    /// For one attempt, from its first runtime call; binds everywhere.
    pub deadline: Option<Duration>,
    /// The same, where `deadline` is not set and the progress of the pull cannot be seen.
    pub fallback_deadline: Duration,
    /// What to do about protection from garbage collection.
    pub retention: Pin,
}

/// What a pull does about protection from garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pin {
    /// Nothing.
    #[default]
    Leave,
    /// Take our pin off.
    Off,
    /// Pin it.
    On,
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

/// What has become of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeTurn {
    /// It holds all that is wanted there.
    Warm {
        /// Since it could get images; `None`: it had failed before.
        after: Option<Duration>,
    },
    /// Images that are wanted there could not be pulled.
    Stuck {
        /// That wants the first of them.
        cache: CacheKey,
        /// The first.
        image: Arc<str>,
        /// Its failure's word.
        reason: Arc<str>,
        /// Its failure's sentence.
        message: Arc<str>,
        /// How many more.
        more: usize,
    },
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
    /// Put our finalizer on an object, or take it off. Answered by [`Event::FinalizerWritten`].
    SetFinalizer {
        /// Whose.
        key: CacheKey,
        /// An object of the same name with another UID is left alone.
        uid: String,
        /// Put it on.
        present: bool,
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
    /// A node has become warm, or cannot. Not answered.
    NodeTurned {
        /// Which.
        node: NodeName,
        /// What has become of it.
        turn: NodeTurn,
        /// As a Kubernetes Event too: not where too many turn at once.
        tell: bool,
    },
    /// A puller has seen this term: lead in a later one.
    RaiseTerm {
        /// The puller's.
        seen_term: u64,
    },
}
