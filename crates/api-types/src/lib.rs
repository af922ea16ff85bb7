//! The `ImageCache` resource of `kubefledged.io/v1alpha2`: its types, the strings that other
//! programs compare, and the validation of a spec.
//!
//! Objects written for kube-fledged 0.10 and 0.11 are valid without a change. This crate contains
//! no client.

#![deny(missing_docs)]

pub mod affinity;
pub mod conditions;
pub mod duration;
mod explain;
pub mod line;
pub mod names;
pub mod node_gate;
pub mod share;
pub mod spec;
pub mod status;
pub mod time;
pub mod validation;
pub mod workloads;

pub use affinity::{
    NodeAffinity, NodeSelector, NodeSelectorOperator, NodeSelectorRequirement, NodeSelectorTerm,
};
pub use duration::{DurationError, GoDuration};
pub use line::one_line;
pub use node_gate::GateReason;
pub use share::NodeShare;
pub use spec::{
    CacheSpecEntry, DeletionPolicy, ImageCache, ImageCacheSpec, ImagePullPolicy, NodeGate,
    PullSecretReference, RefreshSpec, RemovalPolicy, Retention,
};
pub use status::{AppliedImage, Failure, ImageCacheStatus, PurgeStatus};
pub use time::{Tick, Timestamp};
pub use workloads::{ImageSource, LabelSelector, WorkloadAccess, WorkloadKind, WorkloadSource};
