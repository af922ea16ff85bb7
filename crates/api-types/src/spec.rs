//! The spec of an `ImageCache`: what people write.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{GoDuration, ImageCacheStatus, ImageSource, NodeAffinity, NodeShare, duration};

/// Desired images, the nodes they are for, and how they are kept there.
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
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.ready","description":"Nodes that hold every image, of all eligible nodes"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.nodes.failed","description":"Nodes on which an image failed"}"#,
    printcolumn = r#"{"name":"Unreachable","type":"integer","jsonPath":".status.nodes.unreachable","description":"Nodes whose puller does not answer"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason","description":"Kind of the last operation"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Images","type":"integer","jsonPath":".status.images.ready","priority":1,"description":"Pairs of node and image that are present"}"#,
    printcolumn = r#"{"name":"Size","type":"string","jsonPath":".status.images.size","priority":1,"description":"What the images take on their nodes"}"#,
    printcolumn = r#"{"name":"Last-Refresh","type":"date","jsonPath":".status.lastRefreshTime","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = crate::explain::descriptions)]
pub struct ImageCacheSpec {
    /// Lists of images. Each list says for which nodes its images are.
    #[schemars(length(max = 256))]
    pub cache_spec: Vec<CacheSpecEntry>,
    /// Secrets of this namespace with credentials for registries, of type
    /// kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. If a Secret is missing or invalid,
    /// the controller records a Warning Event and pulls without it. Not set: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub image_pull_secrets: Vec<PullSecretReference>,
    /// How often images are refreshed automatically. Not set: as the controller's
    /// --image-cache-refresh-frequency says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<RefreshSpec>,
    /// Maximum number of eligible nodes on which this cache pulls at the same time: an integer, or a
    /// percentage of the eligible nodes, rounded up, and at least 1. Not set: all eligible nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_nodes: Option<NodeShare>,
    /// Number of eligible nodes that must hold every image before the condition Ready is True: an
    /// integer, or a percentage of the eligible nodes, rounded up. The condition Degraded reports the
    /// nodes that fail. Not set: 100%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_nodes: Option<NodeShare>,
    /// Minimum number of nodes that must hold every image before the condition Ready is True, even if fewer
    /// are eligible: unlike minReadyNodes it is not limited to the nodes that there are. With 0, Ready is
    /// also True before a node has matched for the first time. Not set: one node must have matched once;
    /// a pool that is scaled to zero after that is Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub require_nodes: Option<u32>,
    /// ServiceAccount of this namespace. Its imagePullSecrets are used too, after those of
    /// `imagePullSecrets`. Not set: the controller's --service-account-name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// What happens to the images when this object is deleted: Retain or Purge. With Retain they
    /// stay on the nodes. With Purge the controller removes them first, and the object disappears
    /// when every node that answers has removed them, at the latest after the controller's
    /// --purge-deadline. Not set: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Which images are removed from a node when they are no longer desired there, and by a purge: All or
    /// OnlyPulled. With All every image of this cache is removed unless something needs it, also one that
    /// was on the node before, for example for an air-gapped Job. With OnlyPulled an image is removed only
    /// where kubefledged pulled it while the policy was OnlyPulled; any other image stays. Not set: All.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal_policy: Option<RemovalPolicy>,
    /// Whether images are protected from the kubelet's garbage collection: Default or Pinned. With
    /// Default they are not. With Pinned they are, if the container runtime lets clients pin images
    /// (containerd 2.x); on other runtimes the condition Degraded reports RetentionUnsupported.
    /// Not set: Default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Whether a node that joins is held until it has the images of this cache: Required or Ignored. With
    /// Required, the condition kubefledged.io/ImagesCached of a new node is not True, and the controller
    /// leaves its taint on the node, until the images are there, cannot be pulled, or the time is up. It has
    /// an effect only if the controller's --node-gate-condition or --node-gate-taint-key is set. A suspended
    /// cache holds no node. Not set: Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_gate: Option<NodeGate>,
    /// With nodeGate Required: maximum time for which this cache holds a node, as a Go duration from 1s to
    /// 24h. It counts from the creation of the Node. Not set: the controller's --node-gate-timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": duration::format_rule(), "message": duration::FORMAT_MESSAGE},
        {
            // The first rule refuses a text that is not a duration.
            "rule": format!("!({}) || (duration(self) >= duration('1s') && duration(self) <= duration('24h'))", duration::format_rule()),
            "message": "write 1s to 24h; to hold no node, write nodeGate: Ignored",
        },
    ]))]
    pub node_gate_timeout: Option<GoDuration>,
    /// If true, the controller starts no pull, removal or requested operation for this cache.
    /// Running pulls finish and nodes are still checked. Other caches do not remove images that this
    /// cache desires. Not set: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// One list of images and the nodes it is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpecEntry {
    /// Image references, written as in a pod's spec. Not set: only those of imagesFrom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), inner(length(max = 1024)))]
    pub images: Vec<String>,
    /// Where more image references come from: the workloads of the cluster. Not set: only `images` counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub images_from: Vec<ImageSource>,
    /// With imagesFrom: number of previous versions of an image, from 0 to 10, that stay on the nodes while a
    /// workload names a newer version of it. Versions of an image have the same name without tag and digest. They
    /// are not pulled to nodes that lack them. Not set: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub keep_previous: Option<u32>,
    /// With imagesFrom: how long an image stays on the nodes after the last workload stopped naming it, as a Go
    /// duration of at most 720h. Not set: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_for: Option<GoDuration>,
    /// Labels that a node must have. Not set: every node matches.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Node affinity that a node must match in addition to nodeSelector, with the same fields as that
    /// of a PersistentVolume. Not set: every node matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// When images of this list are pulled: IfNotPresent or Always. With IfNotPresent they are pulled
    /// only to nodes that lack them. With Always every create, update and refresh asks the registry
    /// for a newer image. A value set here also holds for images with the tag latest. Not set: the
    /// controller's --image-pull-policy; images without a tag or with the tag latest are then always
    /// pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Time limit for one attempt to pull one image to one node, as a Go duration such as 5m. The
    /// time starts when the attempt calls the container runtime, not when it is queued. If several
    /// caches share a pull, the longest limit applies. Not set: the controller's
    /// --image-pull-deadline-duration if the runtime does not report the progress of pulls;
    /// otherwise a pull continues as long as data arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_deadline: Option<GoDuration>,
    /// Order of pulls when a node has several to do, from -1000 to 1000. Higher values come first.
    /// Not set: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
}

/// When an image is pulled to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Only if the node does not hold it.
    IfNotPresent,
    /// At every create, update and refresh, if the registry has a newer one.
    Always,
}

/// Which images may be removed from nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RemovalPolicy {
    /// Every image of the cache.
    #[default]
    All,
    /// Only images that kubefledged pulled to the node.
    OnlyPulled,
}

/// What happens to the images when the object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The images stay on the nodes.
    #[default]
    Retain,
    /// The images are removed before the object disappears.
    Purge,
}

/// Whether images are protected from the kubelet's garbage collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Retention {
    /// They are not protected.
    #[default]
    Default,
    /// They are pinned, if the container runtime supports it.
    Pinned,
}

/// Whether nodes that join wait for the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NodeGate {
    /// They are held until the images are there.
    Required,
    /// They do not wait.
    #[default]
    Ignored,
}

/// Reference to a Secret in the namespace of the object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct PullSecretReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    pub name: String,
}

/// Settings of the automatic refresh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    // The rule of the field itself refuses a text that is not a duration.
    "rule": "!has(self.interval) || !self.interval.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') || duration(self.interval) == duration('0s') || duration(self.interval) >= duration('1m')",
    "fieldPath": ".interval",
    "message": "write at least 1m, or 0s to switch refreshes off",
}]))]
pub struct RefreshSpec {
    /// Time between automatic refreshes, as a Go duration of at least 1m. 0s switches automatic
    /// refreshes off; nodes are still checked, and new nodes still get the images. Not set: the
    /// controller's --image-cache-refresh-frequency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
}

impl ImageCacheSpec {
    /// Returns what happens to the images when the object is deleted.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.deletion_policy.unwrap_or_default()
    }

    /// Returns whether only images that we pulled may be removed.
    pub fn removes_only_pulled(&self) -> bool {
        self.removal_policy == Some(RemovalPolicy::OnlyPulled)
    }

    /// Returns whether the images are to be protected from garbage collection.
    pub fn pinned(&self) -> bool {
        self.retention == Some(Retention::Pinned)
    }

    /// Returns whether nodes that join wait for the images.
    pub fn gates_nodes(&self) -> bool {
        self.node_gate == Some(NodeGate::Required)
    }

    /// Returns whether the object needs our finalizer, so that it does not disappear before its images
    /// or pins are removed.
    pub fn needs_finalizer(&self) -> bool {
        self.pinned() || self.deletion_policy() == DeletionPolicy::Purge
    }
}
