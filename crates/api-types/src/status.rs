//! What the controller writes. Optional fields are omitted, never null.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, conditions::Condition};

/// Most entries in `failures`, whatever the cluster's size.
pub const MAX_FAILURES: usize = 100;
/// Longest message in `failures`, in bytes.
pub const MAX_FAILURE_MESSAGE: usize = 256;

/// The status of an `ImageCache`. `status`, `reason`, `message`, `failures`, `startTime` and
/// `completionTime` are kube-fledged's and tell of the last operation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageCacheStatus {
    /// State of the last operation: Processing, Succeeded, Failed, NoImagesPulledOrDeleted or Aborted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// The last operation: ImageCacheCreate, ImageCacheUpdate, ImageCacheRefresh, ImageCachePurge,
    /// ImageCacheDelete, or CacheSpecValidationFailed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The last operation in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Failures by image, at most 100 in all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, Vec<Failure>>,
    /// How many failures there are, also those left out of `failures`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_count: Option<i64>,
    /// Whether some were left out of `failures`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures_truncated: Option<bool>,
    /// When the last operation began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When the last operation ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    /// The generation of the spec that all of this was computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing and Degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Eligible nodes by state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Pairs of eligible node and image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageCounts>,
    /// Nodes that hold every image / eligible nodes, as text: "47/48".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ready: String,
    /// When the images were refreshed last, also without an operation of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refresh_time: Option<Timestamp>,
    /// The oldest look at a node that `nodes` and `images` rest on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_check_time: Option<Timestamp>,
    /// The refresh token handled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_refresh: Option<String>,
    /// The purge token handled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_purge: Option<String>,
    /// The last purge, as long as the cache stays purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purge: Option<PurgeStatus>,
    /// Names that may lie on nodes because of this object. A name is written here before its first
    /// pull, and leaves when every reachable node has confirmed its removal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied_images: Vec<AppliedImage>,
}

/// One image that could not be pulled to, or removed from, one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub struct Failure {
    /// Value of the node's label kubernetes.io/hostname.
    pub node: String,
    /// One word, the kubelet's where it has one.
    pub reason: String,
    /// What the runtime or the controller said, at most 256 bytes.
    pub message: String,
}

/// Eligible nodes; the last five parts add up to `desired`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct NodeCounts {
    /// Eligible nodes that some list matches.
    pub desired: i64,
    /// Hold every image.
    pub ready: i64,
    /// Are pulling.
    pub pulling: i64,
    /// Have a failed image.
    pub failed: i64,
    /// Wait.
    pub pending: i64,
    /// Have no puller that answers, beyond the grace time.
    pub unreachable: i64,
}

/// Pairs of eligible node and image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct ImageCounts {
    /// Wanted pairs.
    pub desired: i64,
    /// Pairs present at the last look.
    pub ready: i64,
    /// What was not removed on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptCounts>,
}

/// Images that were asked to be removed and stay on purpose, in pairs of node and name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeptCounts {
    /// A container uses it, or it is protected.
    pub in_use: i64,
    /// Somebody else pinned it.
    pub pinned: i64,
    /// It has another name that is not ours to remove.
    pub shared: i64,
}

/// A purge that has begun or is done.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PurgeStatus {
    /// Hash of the cacheSpec that was purged: another one wants images again.
    pub cache_spec_hash: String,
    /// The annotation's value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
}

/// A name that may lie on nodes because of this object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub struct AppliedImage {
    /// As the spec wrote it.
    pub name: String,
    /// Since when the spec wants it no more; not set while it is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}
