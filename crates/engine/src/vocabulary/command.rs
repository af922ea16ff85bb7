use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use kubefledged_api_types::{GateReason, ImageCacheStatus, ImagePullPolicy, Timestamp};

use super::{
    name::{BatchId, CacheKey, NodeName},
    object::{PlacedTaint, Puller},
    workload::{WatchId, Watched},
};

/// Something to do. Most commands are answered by an [event](crate::Event).
#[derive(Clone, Debug)]
pub enum Command {
    /// Call a node. Answered by `Event::Outcomes` and one `Event::BatchEnded`.
    StartBatch(Box<Batch>),
    /// Cancel pulls of a batch. Not answered: the batch's outcomes tell the result.
    CancelPulls(CancelPulls),
    /// The node gets a call as soon as a registry has room: until then its connection is not closed for the sake of others.
    /// Not answered.
    KeepConnection {
        /// Which node.
        node: NodeName,
        /// The node's puller.
        puller: Puller,
    },
    /// Replace the status. Answered by `Event::StatusWritten`.
    WriteStatus {
        /// Which object.
        key: CacheKey,
        /// The version that the object must still have.
        resource_version: String,
        /// The whole status.
        status: Box<ImageCacheStatus>,
    },
    /// Remove an annotation if it still has this value. Answered by `Event::AnnotationCleared`.
    ClearAnnotation {
        /// Which object.
        key: CacheKey,
        /// Name of the annotation.
        annotation: &'static str,
        /// Its expected value.
        value: String,
    },
    /// Set or remove our finalizer. Answered by `Event::FinalizerWritten`.
    SetFinalizer {
        /// Which object.
        key: CacheKey,
        /// Its UID: another object of the same name is left alone.
        uid: String,
        /// True sets it, false removes it.
        present: bool,
    },
    /// Emit a Kubernetes Event on an object. Not answered.
    EmitEvent {
        /// On which object.
        key: CacheKey,
        /// Its UID.
        uid: String,
        /// Normal or Warning.
        severity: Severity,
        /// In `CamelCase`.
        reason: String,
        /// In `CamelCase`. Begin and end of an operation differ in it; otherwise the API would merge them into
        /// one series.
        action: String,
        /// One sentence.
        message: String,
    },
    /// Remove taints from a Node, if they still stand there. Answered by `Event::NodeWritten`.
    RemoveTaints {
        /// Which node.
        node: NodeName,
        /// Its UID: another Node of the same name is left alone.
        uid: Arc<str>,
        /// Which taints, in the order of their indexes.
        taints: Vec<PlacedTaint>,
    },
    /// Set the condition `kubefledged.io/ImagesCached` of a Node. Answered by `Event::NodeWritten`.
    WriteNodeCondition {
        /// Which node.
        node: NodeName,
        /// Its UID: another Node of the same name is left alone.
        uid: Arc<str>,
        /// The condition.
        condition: ConditionWrite,
    },
    /// Watch these workloads and Namespaces, and nothing else. A watch that is in the list already goes on. Not answered:
    /// each watch sends events with its number.
    Watch(Vec<(WatchId, Watched)>),
    /// A node has become warm or stuck. Not answered.
    NodeTransition {
        /// Which node.
        node: NodeName,
        /// Its new state.
        transition: NodeTransition,
        /// Whether to emit a Kubernetes Event too. False where many nodes change at once.
        emit: bool,
    },
}

/// One call to one node.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Answers name it.
    pub id: BatchId,
    /// The leader's term.
    pub term: u64,
    /// Rises with every call of the term.
    pub seq: u64,
    /// Which node.
    pub node: NodeName,
    /// The node's puller.
    pub puller: Puller,
    /// Caches whose running operation waits for this node and for images of this call.
    pub operations: Vec<CacheKey>,
    /// What to do.
    pub work: Work,
}

/// Names or ids. The calls to many nodes have them in common.
pub type NameList = Arc<[Arc<str>]>;

/// What a batch does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Pull images, all from one registry.
    Pull {
        /// At most 512.
        images: Vec<PullItem>,
        /// The pull secrets to use.
        credentials: CredentialScope,
    },
    /// Remove names.
    Remove {
        /// At most 512 names.
        references: NameList,
        /// Names that some cache desires on this node now.
        desired: NameList,
        /// Names of ours that no cache desires any more.
        releasable: NameList,
        /// Those of `references` that are removed only where we pulled them.
        only_pulled: NameList,
        /// Ids of images from which our pin is removed. The images stay.
        unpin: NameList,
    },
    /// Ask the runtime which images are present.
    Check {
        /// At most 512 names.
        references: NameList,
    },
}

impl Work {
    /// The caches for which it pulls. A check or a removal serves every cache.
    pub fn caches(&self) -> BTreeSet<&CacheKey> {
        match self {
            Self::Pull { images, .. } => images.iter().map(|image| &image.cache).collect(),
            Self::Remove { .. } | Self::Check { .. } => BTreeSet::new(),
        }
    }

    /// Images that it is about.
    pub fn images(&self) -> usize {
        match self {
            Self::Pull { images, .. } => images.len(),
            Self::Remove {
                references, unpin, ..
            } => references.len() + unpin.len(),
            Self::Check { references } => references.len(),
        }
    }
}

/// One image to pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullItem {
    /// For which cache.
    pub cache: CacheKey,
    /// The name as the user wrote it.
    pub reference: Arc<str>,
    /// Whether a present image is good enough.
    pub policy: ImagePullPolicy,
    /// Two pulls of a name with the same token are one. Empty: a present image is as good as a fresh one.
    pub freshness: Arc<str>,
    /// Higher first.
    pub priority: i32,
    /// Longest time for one attempt, from its first runtime call.
    pub deadline: Option<Duration>,
    /// The deadline where `deadline` is `None` and the puller cannot see the progress of the pull.
    pub fallback_deadline: Duration,
    /// What to do about protection from garbage collection.
    pub retention: Pin,
    /// Remember that we pulled it: some cache removes only such images.
    pub mark: bool,
    /// Other nodes from which its layers are taken; `None`: everything comes from the registry.
    pub peers: Option<PeerPull>,
    /// Keep its layers for so long after the pull, so that other nodes can take them; `None`: as the runtime does.
    pub hold_layers: Option<Duration>,
}

/// Nodes from which the layers of an image are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPull {
    /// Digest of the manifest or the index, as runtimes report it: `sha256:...`
    pub digest: Arc<str>,
    /// Nodes that have the image or receive it, the best first. Layer k is asked of node k modulo their number first.
    pub nodes: Vec<PeerNode>,
}

/// A node that hands on layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Its name.
    pub name: NodeName,
    /// Where its puller listens.
    pub address: SocketAddr,
}

/// What a pull does about protection from garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pin {
    /// Leave it as it is.
    #[default]
    Leave,
    /// Pin the image.
    On,
}

/// Which secrets may hold credentials for an image's registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CredentialScope {
    /// Namespace of the secrets.
    pub namespace: Arc<str>,
    /// Names of the secrets, in the order of the spec.
    pub secrets: Arc<[String]>,
    /// A `ServiceAccount` of the namespace; its pull secrets come after `secrets`.
    pub service_account: Option<Arc<str>>,
    /// These are the secrets of pods. The controller's --service-account-name holds only for those of an
    /// `ImageCache`.
    pub of_pods: bool,
}

/// Ends the interest of a batch in some of its pulls.
#[derive(Clone, Debug)]
pub struct CancelPulls {
    /// The leader's term.
    pub term: u64,
    /// Rises with every call of the term.
    pub seq: u64,
    /// Which node.
    pub node: NodeName,
    /// The node's puller.
    pub puller: Puller,
    /// Which batch.
    pub batch: BatchId,
    /// Which images.
    pub references: Vec<Arc<str>>,
}

/// Type of a Kubernetes Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing has to be done.
    Normal,
    /// Somebody should act.
    Warning,
}

/// The condition of a Node that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionWrite {
    /// Its reason, which decides about its status.
    pub reason: GateReason,
    /// One sentence.
    pub message: String,
    /// When this was decided.
    pub at: Timestamp,
    /// Its status changes. False: the time of the last transition stays.
    pub transition: bool,
}

/// An image that is missing on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingImage {
    /// A cache that desires it.
    pub cache: CacheKey,
    /// Its name.
    pub image: Arc<str>,
    /// Reason of its failure and the message; `None`: no pull has failed.
    pub failure: Option<(Arc<str>, Arc<str>)>,
}

impl MissingImage {
    /// A sentence without a full stop. `more`: how many others are missing.
    pub fn sentence(&self, more: usize) -> String {
        let Self {
            cache,
            image,
            failure,
        } = self;
        let why = failure.as_ref();
        let why = why.map_or_else(String::new, |(reason, message)| {
            format!(": {reason}: {message}")
        });
        let others = match more {
            0 => String::new(),
            more => format!(" ({more} more are missing)"),
        };
        format!("ImageCache {cache}: {image} is missing{why}{others}")
    }
}

/// A change in how a node stands with all caches together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeTransition {
    /// The node holds every image that is desired there.
    Warm {
        /// Time since it became eligible; `None`: pulls had failed before.
        after: Option<Duration>,
    },
    /// Images that are desired there could not be pulled.
    Stuck {
        /// The cache that desires the first of them.
        cache: CacheKey,
        /// The first of them.
        image: Arc<str>,
        /// Reason of its failure.
        reason: Arc<str>,
        /// Message of its failure.
        message: Arc<str>,
        /// How many more failed.
        more: usize,
    },
    /// The node gate lets pods come although images are missing.
    Released {
        /// Why: `ReleasedAfterFailure` or `ReleasedByTimeout`.
        reason: GateReason,
        /// The first image that is missing; `None`: the node was not checked yet.
        first: Option<MissingImage>,
        /// How many more are missing.
        more: usize,
    },
}
