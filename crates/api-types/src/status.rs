//! The status of an `ImageCache`, which only the controller writes. Optional fields that have no
//! value are omitted, never null.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Timestamp, conditions::Condition};

/// Maximum number of entries in `failures`, in a cluster of any size.
pub const MAX_FAILURES: usize = 100;
/// Maximum length of a message in `failures`, in bytes.
pub const MAX_FAILURE_MESSAGE: usize = 256;

/// `observedGeneration` of an object that no controller has seen: the `CustomResourceDefinition`'s default. Tools that
/// compare it with `metadata.generation` then do not take a new object for one that is done.
pub const UNSEEN: i64 = -1;

/// Reads `observedGeneration`. [`UNSEEN`] is none.
fn seen_generation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let written = Option::<i64>::deserialize(deserializer)?;
    Ok(written.filter(|generation| *generation != UNSEEN))
}

/// Observed state of the cache. The fields status, reason, message, failures, startTime and
/// completionTime describe the last operation, with the strings of kube-fledged. The other fields
/// describe the current state.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(
    transform = crate::explain::descriptions,
    extend("default" = {"observedGeneration": UNSEEN})
)]
pub struct ImageCacheStatus {
    /// State of the last operation: Processing, Succeeded, Failed, NoImagesPulledOrDeleted or Aborted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Kind of the last operation: ImageCacheCreate, ImageCacheUpdate, ImageCacheRefresh, ImageCachePurge,
    /// ImageCacheDelete, or CacheSpecValidationFailed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// State of the last operation in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Failures by image name. At most 100 entries are listed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, Vec<Failure>>,
    /// Number of all failures, including those that `failures` does not list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_count: Option<i64>,
    /// True if `failures` does not list all failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures_truncated: Option<bool>,
    /// Time at which the last operation began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Time at which the last operation ended. Not set while it is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    /// Generation of the spec from which this status was computed. -1 as long as no controller has seen the object.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "seen_generation"
    )]
    #[schemars(extend("default" = UNSEEN))]
    pub observed_generation: Option<i64>,
    /// Conditions of the types Ready, Progressing and Degraded, and Reconciling or Stalled while that is True. A cache
    /// that is purged, or suspended before it was ready, has no condition Ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Number of eligible nodes in each state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Number of pairs of node and image in each state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageCounts>,
    /// Number of nodes that hold every image, a slash, and the number of eligible nodes: "47/48".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ready: String,
    /// Number of nodes that wait for images of this cache: they carry the taint of the node gate, or their condition
    /// kubefledged.io/ImagesCached is not True because of it. Set only with spec.nodeGate Required, while the controller
    /// gates nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_nodes: Option<i64>,
    /// Time of the last refresh, including automatic ones that found nothing to pull and so started
    /// no operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refresh_time: Option<Timestamp>,
    /// Time of the oldest check of a node among those that `nodes` and `images` are based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_check_time: Option<Timestamp>,
    /// Value of the refresh annotation that was handled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_refresh: Option<String>,
    /// Value of the purge annotation that was handled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_purge: Option<String>,
    /// Value of the refresh annotation that the operation in progress answers. A value that was written after the
    /// operation began is not answered by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handling_refresh: Option<String>,
    /// The last purge. Set as long as the cache stays purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purge: Option<PurgeStatus>,
    /// Indexes of the lists in `spec.cacheSpec` that no node has matched since they were written. A pool that had nodes
    /// once and is scaled to zero is not among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lists_without_nodes: Vec<u32>,
    /// The workloads that name images, one entry for each source in the order of the spec. Only with imagesFrom.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceStatus>,
    /// Image names that this object may have put on nodes. The controller adds a name before its
    /// first pull, and drops it when every reachable node has confirmed its removal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied_images: Vec<AppliedImage>,
}

/// Failure to pull one image to one node, or to remove it from there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub struct Failure {
    /// The node, by the value of its label kubernetes.io/hostname.
    pub node: String,
    /// Cause in one word: the kubelet's reason if it has one for this cause.
    pub reason: String,
    /// Error of the container runtime or the controller, at most 256 bytes.
    pub message: String,
}

/// Number of eligible nodes in each state. The other five numbers add up to `desired`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct NodeCounts {
    /// Eligible nodes that at least one list matches.
    pub desired: i64,
    /// Nodes that hold every image.
    pub ready: i64,
    /// Nodes that are pulling.
    pub pulling: i64,
    /// Nodes on which an image failed.
    pub failed: i64,
    /// Nodes that lack an image and wait for their turn to pull, or whose puller does not answer yet.
    pub pending: i64,
    /// Nodes whose puller has not answered for longer than the controller's --puller-grace.
    pub unreachable: i64,
}

/// Number of pairs of node and image in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct ImageCounts {
    /// Pairs of eligible node and desired image.
    pub desired: i64,
    /// Desired pairs whose image was present at the node's last check.
    pub ready: i64,
    /// Bytes that these images take on their nodes, as their container runtimes count them. An image with several
    /// names counts once on each node; layers that images share count for each image.
    pub bytes: i64,
    /// The same for people, such as "12.4 GB".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub size: String,
    /// Pairs whose image was to be removed and was kept, by cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptCounts>,
}

/// Number of pairs of node and image name that were to be removed and were kept, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeptCounts {
    /// Kept because a container uses the image, or because it is the runtime's sandbox image.
    pub in_use: i64,
    /// Kept because somebody else pinned the image.
    pub pinned: i64,
    /// Kept because the image has another name that this cache may not remove.
    pub shared: i64,
}

/// The last purge of the cache.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PurgeStatus {
    /// Hash of the cacheSpec that was purged. A changed cacheSpec ends the purged state.
    pub cache_spec_hash: String,
    /// Value of the purge annotation. Not set if it was empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Time at which the purge began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Time at which the purge ended. Not set while it is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
}

/// What one source of images was last read as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct SourceStatus {
    /// Index of the list in `spec.cacheSpec`.
    pub list: u32,
    /// Index of the source in `imagesFrom` of that list.
    pub source: u32,
    /// Number of workloads that the source selects. It is written with other changes, at the latest after a check
    /// interval.
    pub workloads: i64,
    /// Number of images that they name.
    pub images: i64,
    /// Time since which all kinds of the source are read. Not set while one of them is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why a kind of the source cannot be read. Not set: all are read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// An image name that this object may have put on nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub struct AppliedImage {
    /// Image name as the spec wrote it.
    pub name: String,
    /// Time since which the spec no longer desires the image. Not set while it is desired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Time since which no workload names the image, while it stays because of keepPrevious or retainFor. Not set:
    /// it is named, or to be removed.
    #[serde(
        rename = "retainedSince",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub retained_since: Option<Timestamp>,
}
