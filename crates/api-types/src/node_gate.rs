//! The node gate: reasons of the condition `kubefledged.io/ImagesCached` of a Node, and the limits of its time-out.
//! Scripts compare the reasons: add new ones, never rename one.

use std::{ops::RangeInclusive, time::Duration};

/// Allowed values of `spec.nodeGateTimeout` and `--node-gate-timeout`.
pub const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Why a node is held, or is not held any more. The order is the order of precedence: of several caches, the one with
/// the highest reason decides about the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GateReason {
    /// No gating cache desires an image on the node.
    NothingToCache,
    /// Every image that gating caches desire there is there.
    ImagesCached,
    /// Some image cannot be pulled unless somebody acts, and every other image is there. The node is not held.
    ReleasedAfterFailure,
    /// Images are missing, and the time-out is over. The node is not held.
    ReleasedByTimeout,
    /// Images are missing, and no pull of them has begun.
    ImagesMissing,
    /// Images are missing, and some are being pulled.
    Pulling,
    /// The pull of a missing image failed. It is tried again.
    PullFailed,
    /// Images are missing, and the node's puller does not answer.
    PullerUnavailable,
}

impl GateReason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::NothingToCache,
        Self::ImagesCached,
        Self::ReleasedAfterFailure,
        Self::ReleasedByTimeout,
        Self::ImagesMissing,
        Self::Pulling,
        Self::PullFailed,
        Self::PullerUnavailable,
    ];

    /// Returns the value of the condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NothingToCache => "NothingToCache",
            Self::ImagesCached => "ImagesCached",
            Self::ReleasedAfterFailure => "ReleasedAfterFailure",
            Self::ReleasedByTimeout => "ReleasedByTimeout",
            Self::ImagesMissing => "ImagesMissing",
            Self::Pulling => "Pulling",
            Self::PullFailed => "PullFailed",
            Self::PullerUnavailable => "PullerUnavailable",
        }
    }

    /// Returns the status of the condition that has this reason.
    pub fn status(self) -> &'static str {
        match self {
            Self::NothingToCache
            | Self::ImagesCached
            | Self::ReleasedAfterFailure
            | Self::ReleasedByTimeout => "True",
            Self::ImagesMissing | Self::Pulling | Self::PullFailed => "False",
            Self::PullerUnavailable => "Unknown",
        }
    }

    /// Returns the reason of a condition of a Node. `None`: it is not one of ours, or its status is not that of the
    /// reason.
    pub fn parse(status: &str, reason: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|known| known.as_str() == reason && known.status() == status)
    }

    /// Returns whether the node is held.
    pub fn holds(self) -> bool {
        self.status() != "True"
    }

    /// Returns whether the node was released although images are missing.
    pub fn is_fail_open(self) -> bool {
        matches!(self, Self::ReleasedAfterFailure | Self::ReleasedByTimeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_only_with_its_own_status() {
        for reason in GateReason::ALL {
            let parsed = GateReason::parse(reason.status(), reason.as_str());
            assert_eq!(parsed, Some(reason));
        }
        assert_eq!(GateReason::parse("True", "Pulling"), None);
        assert_eq!(GateReason::parse("True", "KubeletReady"), None);
    }

    #[test]
    fn one_cache_that_holds_a_node_outweighs_all_that_do_not() {
        let released = GateReason::ALL.into_iter().filter(|reason| !reason.holds());
        let holding = GateReason::ALL.into_iter().filter(|reason| reason.holds());
        assert!(released.max() < holding.min());
    }
}
