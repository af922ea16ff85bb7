use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use kubefledged_api_types::{ImageCacheSpec, ImageCacheStatus, NodeSelector, Timestamp};

use super::name::CacheKey;

/// An `ImageCache` as the API server has it.
#[derive(Clone, Debug)]
pub struct CacheObject {
    /// Namespace and name.
    pub key: CacheKey,
    /// `metadata.uid`: a later object of the same name has another one.
    pub uid: String,
    /// `metadata.resourceVersion`: a status write replaces this version and no other.
    pub resource_version: String,
    /// `metadata.generation`: rises with every change of the spec.
    pub generation: i64,
    /// The desired state.
    pub spec: ImageCacheSpec,
    /// The status that was written last.
    pub status: ImageCacheStatus,
    /// Value of the refresh annotation.
    pub refresh: Option<String>,
    /// Value of the purge annotation.
    pub purge: Option<String>,
    /// The purge annotation was written after the object, and not by whoever writes the spec. A token that came with
    /// the object, as in a rebuilt cluster, asks for nothing.
    pub purge_came_later: bool,
    /// The object is deleted and a finalizer holds it.
    pub deleting: bool,
    /// Our finalizer (`names::FINALIZER`) is on it.
    pub finalizer: bool,
}

impl CacheObject {
    /// This object with the status and the version that were written since.
    pub(crate) fn with_written(self, known: &Self) -> Self {
        Self {
            resource_version: known.resource_version.clone(),
            status: known.status.clone(),
            ..self
        }
    }
}

/// An `ImageCache` whose spec cannot be parsed.
#[derive(Clone, Debug)]
pub struct InvalidCache {
    /// Namespace and name.
    pub key: CacheKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// The status that was written last, as far as it can be parsed.
    pub status: ImageCacheStatus,
    /// Value of the refresh annotation.
    pub refresh: Option<String>,
    /// Value of the purge annotation.
    pub purge: Option<String>,
    /// As in [`CacheObject`].
    pub purge_came_later: bool,
    /// Our finalizer is on it.
    pub finalizer: bool,
    /// The object is deleted and a finalizer holds it.
    pub deleting: bool,
    /// Why the spec cannot be parsed.
    pub message: String,
}

/// The part of a Node that decisions depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable`: the node is cordoned.
    pub unschedulable: bool,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `metadata.uid`: another Node of the same name has another one.
    pub uid: String,
    /// `metadata.creationTimestamp`; `None`: not known.
    pub created: Option<Timestamp>,
    /// The condition `kubefledged.io/ImagesCached`; `None`: the Node has none.
    pub images_cached: Option<NodeCondition>,
}

/// A condition of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCondition {
    /// True, False or Unknown.
    pub status: String,
    /// Its cause in one word.
    pub reason: String,
}

/// A taint and its place on a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTaint {
    /// Its index in `spec.taints`.
    pub index: usize,
    /// Its key.
    pub key: Arc<str>,
    /// Its effect.
    pub effect: Arc<str>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; often empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A toleration of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Key of the taints that it tolerates; empty: of all.
    pub key: String,
    /// `Exists` or `Equal`, which is the default.
    pub operator: String,
    /// With `Equal`: the taint's value.
    pub value: String,
    /// The taint's effect; empty: any.
    pub effect: String,
}

/// Which nodes get a puller, as the pod template of the pullers' `DaemonSet` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// `affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
    pub required: Option<NodeSelector>,
    /// `tolerations`.
    pub tolerations: Vec<Toleration>,
}

/// A puller that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Puller {
    /// UID of its pod.
    pub instance: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
}
