//! Conditions describe the current state of a cache; `status.status` describes its last operation.
//! The reasons are closed enums. Scripts compare them: add new ones, never rename one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// True if enough eligible nodes held every image at their last check.
pub const READY: &str = "Ready";
/// True while images are being pulled or removed, or while nodes are waited for.
pub const PROGRESSING: &str = "Progressing";
/// True while there is a problem that does not go away within a moment.
pub const DEGRADED: &str = "Degraded";
/// True while the controller works towards the spec, or waits for something that can come by itself. Set only while
/// it is True. kstatus (Flux, Helm 4, kpt) then reports `InProgress`.
pub const RECONCILING: &str = "Reconciling";
/// True while the cache cannot become ready unless somebody acts. Set only while it is True. kstatus then reports
/// `Failed`.
pub const STALLED: &str = "Stalled";

/// One condition of the cache, in the standard form of Kubernetes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition: Ready, Progressing, Degraded, Reconciling or Stalled.
    #[serde(rename = "type")]
    pub type_: String,
    /// Status of the condition: True, False or Unknown.
    pub status: String,
    /// Cause of the status in one word, for programs.
    pub reason: String,
    /// Explanation of the status in a sentence, for people.
    pub message: String,
    /// Time at which `status` changed last.
    pub last_transition_time: Timestamp,
    /// Generation of the spec from which this condition was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Reasons of the condition `Ready`. A cache that is purged, or suspended before it was ready, has no such condition:
/// it is neither ready nor on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ready {
    /// Every eligible node holds every image.
    AllImagesPresent,
    /// Some eligible nodes lack an image, but `spec.minReadyNodes` is reached.
    EnoughNodesReady,
    /// No node is there to be eligible. Ready is True, because a node pool scaled to zero must not block a
    /// rollout.
    NoEligibleNodes,
    /// Too many eligible nodes lack an image.
    ImagesMissing,
    /// Nodes match, but none of them is eligible: they are not ready, cordoned or about to go, or get no puller.
    NodesNotEligible,
    /// No node has ever matched any list of the spec.
    NoNodeMatches,
    /// Fewer nodes are eligible than `spec.requireNodes` says.
    TooFewNodes,
    /// The stored spec cannot be used.
    CacheSpecValidationFailed,
    /// The workloads that name images were never read.
    SourceUnavailable,
    /// No eligible node has been checked yet.
    NotYetChecked,
    /// A new leader has not checked all nodes yet, and the object has no earlier Ready condition.
    Unknown,
}

/// Reasons of the condition `Progressing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progressing {
    /// Images are being pulled.
    Pulling,
    /// Images that no cache desires any more are being removed.
    Removing,
    /// A refresh is running.
    Refreshing,
    /// A purge is running, or the object is being deleted.
    Purging,
    /// The controller waits for nodes whose puller does not answer yet.
    WaitingForNodes,
    /// Pulls wait because a registry limits requests.
    Throttled,
    /// `spec.suspend` is true.
    Suspended,
    /// The cache is purged and desires no images.
    Purged,
    /// There is nothing to do.
    Idle,
}

/// Reasons of the condition `Degraded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Degraded {
    /// The object is larger than the API server stores: the names that its status must record have no room.
    StatusTooLarge,
    /// At least one pull failed.
    PullFailed,
    /// At least one removal failed.
    RemovalFailed,
    /// Pending removals were given up, because their nodes did not answer for 24 hours.
    RemovalAbandoned,
    /// At least one node's puller does not answer.
    PullerUnavailable,
    /// Images that were on a node have disappeared from it.
    LostToGarbageCollection,
    /// At least one node's container runtime cannot pin images.
    RetentionUnsupported,
    /// Pull secrets cannot be read.
    CredentialsUnavailable,
    /// At least one node's image file system is too full.
    DiskPressure,
    /// An image could not be refreshed. The node still holds the older version.
    RefreshFailed,
    /// No node has ever matched some list of the spec.
    NoNodeMatches,
    /// Workloads that name images cannot be read: their kind does not exist, or reading it is not allowed.
    SourceUnavailable,
    /// Workloads name more images than an object may have.
    TooManyImages,
    /// At least one node holds an OCI artifact of which its container runtime mounts an empty volume.
    ArtifactNotMountable,
    /// There is no problem.
    None,
}

/// Reasons of the condition `Stalled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stalled {
    /// The stored spec cannot be used.
    CacheSpecValidationFailed,
    /// The object is larger than the API server stores.
    StatusTooLarge,
    /// No node has ever matched any list of the spec.
    NoNodeMatches,
    /// Too many nodes lack an image whose pull will not succeed by waiting, such as one that the registry does not
    /// have.
    PullFailed,
}

impl Stalled {
    /// All reasons.
    pub const ALL: [Self; 4] = [
        Self::CacheSpecValidationFailed,
        Self::StatusTooLarge,
        Self::NoNodeMatches,
        Self::PullFailed,
    ];

    /// Returns the value of the condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CacheSpecValidationFailed => "CacheSpecValidationFailed",
            Self::StatusTooLarge => "StatusTooLarge",
            Self::NoNodeMatches => "NoNodeMatches",
            Self::PullFailed => "PullFailed",
        }
    }
}

impl Ready {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::AllImagesPresent,
        Self::EnoughNodesReady,
        Self::NoEligibleNodes,
        Self::ImagesMissing,
        Self::NodesNotEligible,
        Self::NoNodeMatches,
        Self::TooFewNodes,
        Self::CacheSpecValidationFailed,
        Self::SourceUnavailable,
        Self::NotYetChecked,
        Self::Unknown,
    ];

    /// Returns the status of the condition that has this reason.
    pub fn status(self) -> &'static str {
        match self {
            Self::AllImagesPresent | Self::EnoughNodesReady | Self::NoEligibleNodes => "True",
            Self::ImagesMissing
            | Self::NodesNotEligible
            | Self::NoNodeMatches
            | Self::TooFewNodes
            | Self::CacheSpecValidationFailed
            | Self::SourceUnavailable => "False",
            Self::NotYetChecked | Self::Unknown => "Unknown",
        }
    }

    /// Returns the value of the condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllImagesPresent => "AllImagesPresent",
            Self::EnoughNodesReady => "EnoughNodesReady",
            Self::NoEligibleNodes => "NoEligibleNodes",
            Self::ImagesMissing => "ImagesMissing",
            Self::NodesNotEligible => "NodesNotEligible",
            Self::NoNodeMatches => "NoNodeMatches",
            Self::TooFewNodes => "TooFewNodes",
            Self::CacheSpecValidationFailed => "CacheSpecValidationFailed",
            Self::SourceUnavailable => "SourceUnavailable",
            Self::NotYetChecked => "NotYetChecked",
            Self::Unknown => "Unknown",
        }
    }
}

impl Progressing {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Pulling,
        Self::Removing,
        Self::Refreshing,
        Self::Purging,
        Self::WaitingForNodes,
        Self::Throttled,
        Self::Suspended,
        Self::Purged,
        Self::Idle,
    ];

    /// Returns the status of the condition that has this reason.
    pub fn status(self) -> &'static str {
        match self {
            Self::Suspended | Self::Purged | Self::Idle => "False",
            _ => "True",
        }
    }

    /// Returns the value of the condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "Pulling",
            Self::Removing => "Removing",
            Self::Refreshing => "Refreshing",
            Self::Purging => "Purging",
            Self::WaitingForNodes => "WaitingForNodes",
            Self::Throttled => "Throttled",
            Self::Suspended => "Suspended",
            Self::Purged => "Purged",
            Self::Idle => "Idle",
        }
    }
}

impl Degraded {
    /// All reasons.
    pub const ALL: [Self; 15] = [
        Self::StatusTooLarge,
        Self::PullFailed,
        Self::RemovalFailed,
        Self::RemovalAbandoned,
        Self::PullerUnavailable,
        Self::LostToGarbageCollection,
        Self::RetentionUnsupported,
        Self::CredentialsUnavailable,
        Self::DiskPressure,
        Self::RefreshFailed,
        Self::NoNodeMatches,
        Self::SourceUnavailable,
        Self::TooManyImages,
        Self::ArtifactNotMountable,
        Self::None,
    ];

    /// Returns the status of the condition that has this reason. While a new leader has not checked
    /// all nodes yet, the status with the reason `None` is Unknown instead.
    pub fn status(self) -> &'static str {
        match self {
            Self::None => "False",
            _ => "True",
        }
    }

    /// Returns the value of the condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StatusTooLarge => "StatusTooLarge",
            Self::PullFailed => "PullFailed",
            Self::RemovalFailed => "RemovalFailed",
            Self::RemovalAbandoned => "RemovalAbandoned",
            Self::PullerUnavailable => "PullerUnavailable",
            Self::LostToGarbageCollection => "LostToGarbageCollection",
            Self::RetentionUnsupported => "RetentionUnsupported",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
            Self::DiskPressure => "DiskPressure",
            Self::RefreshFailed => "RefreshFailed",
            Self::NoNodeMatches => "NoNodeMatches",
            Self::SourceUnavailable => "SourceUnavailable",
            Self::TooManyImages => "TooManyImages",
            Self::ArtifactNotMountable => "ArtifactNotMountable",
            Self::None => "None",
        }
    }
}
