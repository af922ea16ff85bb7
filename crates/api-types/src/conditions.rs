//! Conditions tell of the present; `status.status` tells of the last operation. Reasons are closed
//! enums: add, never rename.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// At the last look enough eligible nodes held every image.
pub const READY: &str = "Ready";
/// Something is being done.
pub const PROGRESSING: &str = "Progressing";
/// Something is wrong that does not heal by waiting a moment.
pub const DEGRADED: &str = "Degraded";

/// A standard Kubernetes condition.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Ready, Progressing or Degraded.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When `status` changed last.
    pub last_transition_time: Timestamp,
    /// The generation this was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Reasons of Ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ready {
    /// Every eligible node holds every image.
    AllImagesPresent,
    /// Not all, but as many nodes as `spec.minReadyNodes` asks for.
    EnoughNodesReady,
    /// No node is eligible: a pool scaled to zero must not block a roll-out.
    NoEligibleNodes,
    /// Too many nodes miss an image.
    ImagesMissing,
    /// Purged; it wants nothing.
    Purged,
    /// Nothing was looked at yet.
    NotYetChecked,
    /// A new leader has not finished its first round, and nothing was written before.
    Unknown,
}

/// Reasons of Progressing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progressing {
    /// Images are being pulled.
    Pulling,
    /// Images that nobody wants are being removed.
    Removing,
    /// A refresh runs.
    Refreshing,
    /// A purge runs, or the object is being deleted.
    Purging,
    /// Nodes whose puller does not answer yet.
    WaitingForNodes,
    /// Pulls wait for a registry.
    Throttled,
    /// `spec.suspend` is true.
    Suspended,
    /// Nothing to do.
    Idle,
}

/// Reasons of Degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Degraded {
    /// Some pull failed.
    PullFailed,
    /// Some removal failed.
    RemovalFailed,
    /// Removals still owed by nodes that did not answer for a day were given up.
    RemovalAbandoned,
    /// Some node's puller does not answer.
    PullerUnavailable,
    /// Images vanish again and again soon after their pull.
    LostToGarbageCollection,
    /// Some node's runtime cannot protect images.
    RetentionUnsupported,
    /// The pull secrets cannot be read.
    CredentialsUnavailable,
    /// Some node's image file system is too full.
    DiskPressure,
    /// Some image could not be refreshed; the old one is there.
    RefreshFailed,
    /// Nothing is wrong.
    None,
}

impl Ready {
    /// As it stands in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllImagesPresent => "AllImagesPresent",
            Self::EnoughNodesReady => "EnoughNodesReady",
            Self::NoEligibleNodes => "NoEligibleNodes",
            Self::ImagesMissing => "ImagesMissing",
            Self::Purged => "Purged",
            Self::NotYetChecked => "NotYetChecked",
            Self::Unknown => "Unknown",
        }
    }
}

impl Progressing {
    /// As it stands in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "Pulling",
            Self::Removing => "Removing",
            Self::Refreshing => "Refreshing",
            Self::Purging => "Purging",
            Self::WaitingForNodes => "WaitingForNodes",
            Self::Throttled => "Throttled",
            Self::Suspended => "Suspended",
            Self::Idle => "Idle",
        }
    }
}

impl Degraded {
    /// As it stands in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PullFailed => "PullFailed",
            Self::RemovalFailed => "RemovalFailed",
            Self::RemovalAbandoned => "RemovalAbandoned",
            Self::PullerUnavailable => "PullerUnavailable",
            Self::LostToGarbageCollection => "LostToGarbageCollection",
            Self::RetentionUnsupported => "RetentionUnsupported",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
            Self::DiskPressure => "DiskPressure",
            Self::RefreshFailed => "RefreshFailed",
            Self::None => "None",
        }
    }
}
