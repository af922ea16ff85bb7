//! What people write.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{GoDuration, ImageCacheStatus, NodeAffinity, NodeShare};

/// Keeps container images on nodes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "kubefledged.io",
    version = "v1alpha2",
    kind = "ImageCache",
    plural = "imagecaches",
    singular = "imagecache",
    shortname = "ic",
    category = "kubefledged",
    namespaced,
    status = "ImageCacheStatus",
    doc = "An ImageCache keeps container images on nodes, before a pod needs them.",
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.status","description":"State of the last operation"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.ready","description":"Nodes that hold every image / eligible nodes"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.nodes.failed","description":"Nodes with failures"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason","description":"The last operation"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Images","type":"integer","jsonPath":".status.images.ready","priority":1,"description":"Node and image pairs present"}"#,
    printcolumn = r#"{"name":"Last-Refresh","type":"date","jsonPath":".status.lastRefreshTime","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheSpec {
    /// Lists of images, each with the nodes it is for.
    #[schemars(length(max = 256))]
    pub cache_spec: Vec<CacheSpecEntry>,
    /// Secrets in this namespace with credentials for the registries, of type
    /// kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. A missing one hinders nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub image_pull_secrets: Vec<PullSecretReference>,
    /// How the images are kept fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<RefreshSpec>,
    /// On how many of its eligible nodes this cache may be pulling at a time: an integer, or a
    /// percentage that is rounded up. At least 1. Not set: on all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_nodes: Option<NodeShare>,
    /// How many of the eligible nodes must hold every image for the condition Ready to be True: an
    /// integer, or a percentage that is rounded up. Not set: 100%. What the others lack shows in
    /// the condition Degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_nodes: Option<NodeShare>,
    /// A ServiceAccount of this namespace whose imagePullSecrets are used too, after those of
    /// `imagePullSecrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Retain or Purge. Retain: the images stay on the nodes when the object is deleted. Purge:
    /// they are removed first; the object goes when every node that answers is done, at the latest
    /// after the controller's --purge-deadline. Not set: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Default or Pinned. Pinned: the images are protected from the kubelet's garbage collection
    /// where the container runtime lets a client do it (containerd 2.x); elsewhere the condition
    /// Degraded says that it cannot. Not set: Default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// True: nothing new is started, running pulls finish, and what was asked for waits. Looks at
    /// the nodes go on. A suspended cache still wants its images when others drop them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// Images for the nodes that a selector matches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpecEntry {
    /// Image references, as a pod would name them.
    #[schemars(length(max = 4096), inner(length(max = 1024)))]
    pub images: Vec<String>,
    /// Labels a node must have. Empty: every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Terms that a node must fulfil as well, in the shape of a PersistentVolume's node affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// IfNotPresent or Always; it also decides for :latest. Not set: the controller's --image-pull-policy, under which an image
    /// with no tag or with :latest is always pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Longest time for one attempt at one image on one node, as a Go duration (5m). Counted from
    /// its first runtime call, not from queueing; of caches that share a pull the longest holds.
    /// Not set: the controller's --image-pull-deadline-duration where the progress of a pull cannot
    /// be seen, and else only its no-progress limit: a large image that moves is not killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_deadline: Option<GoDuration>,
    /// From -1000 to 1000, higher first when a node has several things to do. Not set: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Only where it is missing.
    IfNotPresent,
    /// On create, update and refresh the registry is asked for a newer one.
    Always,
}

/// What becomes of the images when the object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay on the nodes.
    #[default]
    Retain,
    /// They are removed first.
    Purge,
}

/// Protection from the kubelet's garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Retention {
    /// None.
    #[default]
    Default,
    /// Where the runtime can.
    Pinned,
}

/// Names a Secret in the namespace of the object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct PullSecretReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    pub name: String,
}

/// How the images are kept fresh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    // What is no duration at all is the field's own rule.
    "rule": "!has(self.interval) || !self.interval.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') || duration(self.interval) == duration('0s') || duration(self.interval) >= duration('1m')",
    "fieldPath": ".interval",
    "message": "write at least 1m, or 0s to switch refreshes off",
}]))]
pub struct RefreshSpec {
    /// Time between automatic refreshes as a Go duration, at least 1m; 0s switches them off, while
    /// looks at the nodes and new nodes go on. Not set: the controller's
    /// --image-cache-refresh-frequency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
}

impl ImageCacheSpec {
    /// What becomes of the images when the object is deleted.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.deletion_policy.unwrap_or_default()
    }

    /// Are the images to be protected from garbage collection?
    pub fn pinned(&self) -> bool {
        self.retention == Some(Retention::Pinned)
    }

    /// Must the object not go before we say so?
    pub fn needs_finalizer(&self) -> bool {
        self.pinned() || self.deletion_policy() == DeletionPolicy::Purge
    }

    /// What "changed" means for an operation: another answer to what is wanted where. Names of
    /// images, selectors and pull policies count; intervals, priorities and secrets do not.
    pub fn wants_the_same_as(&self, other: &Self) -> bool {
        let key = |spec: &Self| -> Vec<_> {
            spec.cache_spec
                .iter()
                .map(|entry| {
                    (
                        entry.images.clone(),
                        entry.node_selector.clone(),
                        entry.node_affinity.clone(),
                        entry.image_pull_policy,
                    )
                })
                .collect()
        };
        key(self) == key(other)
    }
}
