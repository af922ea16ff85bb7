//! Conditions tell of the present; `status.status` tells of the last operation.

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

/// Reasons of Ready. Add, never rename.
pub mod ready {
    /// Every eligible node holds every image.
    pub const ALL_IMAGES_PRESENT: &str = "AllImagesPresent";
    /// No node is eligible: a pool scaled to zero must not block a roll-out.
    pub const NO_ELIGIBLE_NODES: &str = "NoEligibleNodes";
    /// Some node misses some image.
    pub const IMAGES_MISSING: &str = "ImagesMissing";
    /// Purged; it wants nothing.
    pub const PURGED: &str = "Purged";
    /// Nothing was looked at yet.
    pub const NOT_YET_CHECKED: &str = "NotYetChecked";
    /// A new leader has not finished its first round.
    pub const UNKNOWN: &str = "Unknown";
}

/// Reasons of Progressing. Add, never rename.
pub mod progressing {
    /// Images are being pulled.
    pub const PULLING: &str = "Pulling";
    /// Images that nobody wants are being removed.
    pub const REMOVING: &str = "Removing";
    /// A refresh runs.
    pub const REFRESHING: &str = "Refreshing";
    /// A purge runs.
    pub const PURGING: &str = "Purging";
    /// Nodes whose puller does not answer yet.
    pub const WAITING_FOR_NODES: &str = "WaitingForNodes";
    /// Nothing to do.
    pub const IDLE: &str = "Idle";
}

/// Reasons of Degraded. Add, never rename.
pub mod degraded {
    /// Some pull failed.
    pub const PULL_FAILED: &str = "PullFailed";
    /// Some removal failed.
    pub const REMOVAL_FAILED: &str = "RemovalFailed";
    /// Removals still owed by nodes that did not answer for a day were given up.
    pub const REMOVAL_ABANDONED: &str = "RemovalAbandoned";
    /// Some node's puller does not answer.
    pub const PULLER_UNAVAILABLE: &str = "PullerUnavailable";
    /// Some image could not be refreshed; the old one is there.
    pub const REFRESH_FAILED: &str = "RefreshFailed";
    /// Nothing is wrong.
    pub const NONE: &str = "None";
}
