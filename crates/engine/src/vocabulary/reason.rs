use kubefledged_api_types::{Tick, names::failure};

/// State of a node in a cache, or of one image on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullState {
    /// The node is not eligible, or no list of the cache matches it.
    #[default]
    NotDesired,
    /// The node's puller has not answered for longer than the grace time.
    Unreachable,
    /// An image is absent and its pull failed.
    Failed,
    /// An image is being pulled.
    Pulling,
    /// An image is absent, or nobody has checked the node yet.
    Pending,
    /// Every image was present at the last check.
    Ready,
}

/// Why a node gets no images now. Such a node is neither awaited nor a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ineligible {
    /// There is a puller, but no Node of that name yet.
    Unknown,
    /// The label `kubefledged.io/exclude` is set.
    Excluded,
    /// It is a virtual node without a container runtime of its own.
    Virtual,
    /// Its operating system is not Linux.
    OtherSystem,
    /// The pullers' `DaemonSet` does not select it, or does not tolerate its taints.
    NoPullerPlanned,
    /// Its condition Ready is not True.
    NotReady,
    /// It is cordoned.
    Cordoned,
    /// A taint says that it is under disk pressure, shutting down or chosen for removal.
    Tainted,
}

/// Why an image is pulled to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullReason {
    /// It is absent.
    Missing,
    /// The registry has a newer image of that name.
    Newer,
    /// This node asks the registry for a newer image, on behalf of all nodes.
    FreshnessProbe,
    /// The last attempt failed and its back-off is over.
    Retry,
    /// It is present and must be pinned.
    Pin,
}

/// Why an image is not pulled to a node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullBlock {
    /// The node is not eligible.
    Ineligible(Ineligible),
    /// No puller is ready there.
    NoPuller,
    /// The puller did not answer; it is called again then.
    NodeBackOff(Tick),
    /// `spec.suspend` is true, or the spec cannot be parsed.
    Suspended,
    /// The status does not list the name yet, or the finalizer is not set yet.
    NotRecorded,
    /// Its name cannot be parsed.
    InvalidName,
    /// It is present and fresh enough.
    Present,
    /// It is being pulled.
    Pulling,
    /// It is being removed.
    Removing,
    /// The node was not checked since the image became desired.
    NotChecked,
    /// The pull failed; it is tried again then.
    BackOff(Tick),
    /// The pull failed; it is tried again after a refresh or an edit.
    UntilRefresh,
    /// The image was lost repeatedly; it is pulled again then.
    LossBackOff(Tick),
    /// The image was lost while the disk was as full as now, in per cent: it would be lost again.
    LostAtLevel(u8),
    /// Another node asks the registry.
    ProbeInFlight,
    /// Another node asked the registry and got no answer.
    ProbeFailed,
    /// The pull secrets cannot be read; that is tried again then.
    CredentialsUnavailable(Tick),
    /// The automatic refresh becomes an operation first.
    RefreshBegins,
    /// As many other nodes pull as `spec.maxConcurrentNodes` allows.
    NodeLimit,
    /// The node works on as many batches as it may.
    BatchLimit,
    /// The registry's budget is used up.
    RegistryBudget,
    /// Another node of the zone has it or fetches it: the node waits for its turn to take the layers from there. At
    /// this time it pulls from the registry, unless the image makes progress until then.
    AwaitsSource(Tick),
    /// It is being pulled, and its layers come from other nodes.
    FromPeers,
}

/// Why a name that is pending removal stays on a node for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalBlock {
    /// The node's puller cannot be called.
    Uncallable(PullBlock),
    /// `spec.suspend` is true, or the spec cannot be parsed.
    Suspended,
    /// The status does not list the name yet, or the finalizer is not set yet.
    NotRecorded,
    /// Workloads are being listed for the first time, and may name it.
    WorkloadsUnread,
    /// Some cache desires the image there.
    Desired,
    /// A pull of it is in flight.
    Pulling,
    /// Its removal is in flight.
    Removing,
    /// It is gone.
    Gone,
    /// It is kept on purpose; that is checked again then.
    Kept(KeptReason, Tick),
    /// Its removal failed for this reason of `names::failure`; it is tried again then.
    Failed(String, Tick),
}

/// Why a removal leaves an image on a node on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptReason {
    /// A container uses it, or it is protected by configuration.
    InUse,
    /// Somebody else pinned it.
    Pinned,
    /// It has another name that must stay.
    SharedImage,
    /// For the runtime it is one image with another artifact that must stay.
    SharedArtifact,
    /// We did not pull it, and the cache removes only what we pulled.
    NotPulled,
}

impl KeptReason {
    /// From its word in `names::failure`. A word of a newer puller counts as [`Self::SharedImage`].
    pub fn parse(word: &str) -> Self {
        match word {
            failure::IN_USE => Self::InUse,
            failure::PINNED => Self::Pinned,
            failure::NOT_PULLED => Self::NotPulled,
            failure::SHARED_ARTIFACT => Self::SharedArtifact,
            _ => Self::SharedImage,
        }
    }

    /// Its word in `names::failure`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InUse => failure::IN_USE,
            Self::Pinned => failure::PINNED,
            Self::SharedImage => failure::SHARED_IMAGE,
            Self::SharedArtifact => failure::SHARED_ARTIFACT,
            Self::NotPulled => failure::NOT_PULLED,
        }
    }
}

/// What a failure reason means for further attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// Waiting cannot help: the next attempt comes with a refresh or an edit.
    Permanent,
    /// The registry lacks the image. Whoever pushes it later begins no operation, so it is tried again, slowly.
    NotFound,
    /// Waiting cannot help this node, because the image has nothing for its platform.
    WrongPlatform,
    /// The registry asked for fewer requests.
    RateLimited,
    /// The registry refused the credentials.
    Unauthorized,
    /// The node's disk is too full.
    DiskPressure,
    /// The node or its runtime is to blame, not the registry.
    NodeLocal,
    /// Anything else: tried again with back-off.
    Other,
}

impl FailureClass {
    /// Class of a reason of `names::failure`.
    pub fn of(reason: &str) -> Self {
        match reason {
            failure::IMAGE_NOT_FOUND => Self::NotFound,
            failure::INVALID_IMAGE_NAME
            | failure::SHORT_NAME_REFUSED
            | failure::UNSUPPORTED_MANIFEST
            | failure::SIGNATURE_VALIDATION_FAILED => Self::Permanent,
            failure::PLATFORM_MISMATCH => Self::WrongPlatform,
            failure::RATE_LIMITED => Self::RateLimited,
            failure::UNAUTHORIZED => Self::Unauthorized,
            failure::DISK_PRESSURE => Self::DiskPressure,
            failure::RUNTIME_UNAVAILABLE | failure::DEADLINE_EXCEEDED | failure::NO_PROGRESS => {
                Self::NodeLocal
            }
            _ => Self::Other,
        }
    }

    /// Is the failure the node's own trouble, so that another node may fare better?
    pub fn is_node_local(self) -> bool {
        matches!(
            self,
            Self::WrongPlatform | Self::DiskPressure | Self::NodeLocal
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kept_reason_is_read_from_its_own_word() {
        for reason in [
            KeptReason::InUse,
            KeptReason::Pinned,
            KeptReason::SharedImage,
            KeptReason::SharedArtifact,
            KeptReason::NotPulled,
        ] {
            assert_eq!(KeptReason::parse(reason.as_str()), reason);
        }
    }
}
