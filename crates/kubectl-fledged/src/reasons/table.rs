//! The table of reasons.

use super::{Entry, Next};

/// Why a registry does not give an image, or the runtime does not take it.
pub(super) const REGISTRY: &[Entry] = &[
    (
        "ImageNotFound",
        "the registry has no such image or tag: correct the name, or push the image",
        Next::Edit,
    ),
    (
        "BlobNotFound",
        "the registry has the manifest and lacks something that it names: push the image again",
        Next::Refresh,
    ),
    (
        "Unauthorized",
        "the registry refuses the credentials, or there are none: correct the pull secret, and compare its key with the image's host",
        Next::Secrets,
    ),
    (
        "CredentialsUnavailable",
        "the pull secrets cannot be read or sent, so it is not pulled yet",
        Next::Describe,
    ),
    (
        "RateLimited",
        "the registry limits requests (429): a login, a mirror or spec.maxConcurrentNodes avoids it; it is tried again by itself",
        Next::Edit,
    ),
    (
        "RegistryUnavailable",
        "the registry does not answer the node: it is tried again with pauses of up to 5 minutes",
        Next::Refresh,
    ),
    (
        "PlatformMismatch",
        "the image has no build for the node's platform: push one, or select other nodes",
        Next::Edit,
    ),
    (
        "InvalidImageName",
        "the name is no image reference: correct it",
        Next::Edit,
    ),
    (
        "InvalidName",
        "the name is no image reference: correct it",
        Next::Edit,
    ),
    (
        "ShortNameRefused",
        "the node's runtime needs a registry in the name: write it",
        Next::Edit,
    ),
    (
        "UnsupportedManifest",
        "the node's runtime cannot read the manifest: push the image with a tool of today",
        Next::Refresh,
    ),
    (
        "SignatureValidationFailed",
        "the node's signature policy refuses the image: sign it, or change the policy",
        Next::Refresh,
    ),
    (
        "ErrImagePull",
        "the pull failed with a text that has no reason of its own: read it, and please report it",
        Next::Describe,
    ),
    (
        "NoProgress",
        "no byte arrived for too long: look at the network between node and registry",
        Next::Refresh,
    ),
    (
        "DeadlineExceeded",
        "the pull took longer than pullDeadline: raise it, or look at the network",
        Next::Edit,
    ),
    (
        "UntilRefresh",
        "the pull failed for a cause that waiting cannot cure: correct it, then refresh",
        Next::Refresh,
    ),
];

/// What is wrong with a node, its puller or its runtime.
pub(super) const NODE: &[Entry] = &[
    (
        "Cordoned",
        "the node is cordoned, and gets images when it is uncordoned",
        Next::Uncordon,
    ),
    (
        "NotReady",
        "the node's condition Ready is not True: find out why the kubelet is not ready",
        Next::DescribeNode,
    ),
    (
        "Tainted",
        "the node has a taint for disk pressure, shutdown or removal",
        Next::DescribeNode,
    ),
    (
        "Excluded",
        "the node has the label kubefledged.io/exclude",
        Next::Include,
    ),
    (
        "Virtual",
        "the node is virtual and has no container runtime",
        Next::Nothing,
    ),
    ("OtherSystem", "the node does not run Linux", Next::Nothing),
    (
        "NoPullerPlanned",
        "the pullers' DaemonSet does not select the node or does not tolerate its taints: see puller.nodeSelector, puller.affinity and puller.tolerations",
        Next::DescribeNode,
    ),
    (
        "Unknown",
        "a puller runs there, and the API server has no such Node",
        Next::Nodes,
    ),
    (
        "NoPuller",
        "no puller answers on the node: its pod is missing, not ready, or cannot be reached",
        Next::PullerPod,
    ),
    (
        "PullerUnavailable",
        "no puller answers on the node: its pod is missing, not ready, or cannot be reached",
        Next::PullerPod,
    ),
    (
        "NodeBackOff",
        "the last call to the node's puller failed: it is called again by itself",
        Next::PullerPod,
    ),
    (
        "PullerBusy",
        "the node's puller has as many images to do as it keeps in memory: it is tried again by itself",
        Next::PullerPod,
    ),
    (
        "RuntimeUnavailable",
        "the node's container runtime does not answer",
        Next::PullerLog,
    ),
    (
        "ImageInspectError",
        "the node's container runtime does not answer",
        Next::PullerLog,
    ),
    (
        "ImageStoreBroken",
        "the node's runtime lacks something in its own store: remove the image there (crictl rmi), then refresh",
        Next::Refresh,
    ),
    (
        "DiskPressure",
        "the node's image file system is too full: purge images, free the disk, or enlarge it",
        Next::DescribeNode,
    ),
    (
        "LostAtLevel",
        "the kubelet's garbage collection removed it, and would again while the disk is as full: set retention: Pinned or free the disk",
        Next::Edit,
    ),
    (
        "LossBackOff",
        "the kubelet's garbage collection removed it, and would again while the disk is as full: set retention: Pinned or free the disk",
        Next::Edit,
    ),
    (
        "LostToGarbageCollection",
        "the kubelet's garbage collection removed it, and would again while the disk is as full: set retention: Pinned or free the disk",
        Next::Edit,
    ),
];

/// What a pull waits for.
pub(super) const WAITS: &[Entry] = &[
    ("Present", "it is present", Next::Nothing),
    ("Missing", "it is missing and is pulled next", Next::Nothing),
    (
        "Newer",
        "the registry has a newer one, which is pulled next",
        Next::Nothing,
    ),
    (
        "FreshnessProbe",
        "this node asks the registry for a newer one next, for all nodes",
        Next::Nothing,
    ),
    ("Retry", "it failed, and is tried again next", Next::Nothing),
    ("Pin", "it is present and is pinned next", Next::Nothing),
    (
        "NotChecked",
        "the node has not been checked since the operation began",
        Next::Nothing,
    ),
    ("Pulling", "it is being pulled", Next::Watch),
    ("Removing", "it is being removed", Next::Nothing),
    (
        "BackOff",
        "the last attempt failed, and the next one waits",
        Next::Refresh,
    ),
    (
        "NodeLimit",
        "spec.maxConcurrentNodes other nodes are pulling",
        Next::Edit,
    ),
    (
        "BatchLimit",
        "the node has as many calls as it may have, and this pull is next",
        Next::Nothing,
    ),
    (
        "RegistryBudget",
        "as many pulls from the registry are running as it bears",
        Next::Doctor,
    ),
    (
        "AwaitsSource",
        "another node fetches it, and then this node takes it from there",
        Next::Watch,
    ),
    (
        "FromPeers",
        "it is being pulled, and its layers come from other nodes",
        Next::Watch,
    ),
    (
        "ProbeInFlight",
        "another node asks the registry for a newer one, for all",
        Next::Nothing,
    ),
    (
        "ProbeFailed",
        "another node asked the registry for a newer one and got no answer",
        Next::Nothing,
    ),
    (
        "NotRecorded",
        "the status is written first, and then it is pulled",
        Next::Nothing,
    ),
    (
        "WorkloadsUnread",
        "the controller is listing workloads, and one of them may name it",
        Next::Nothing,
    ),
    (
        "RefreshBegins",
        "the status is written first, and then it is pulled",
        Next::Nothing,
    ),
    ("Suspended", "spec.suspend is true", Next::Edit),
    (
        "NotSelected",
        "no list of the ImageCache selects the node: compare its labels",
        Next::NodeLabels,
    ),
    (
        "Purged",
        "the ImageCache is purged: a refresh or a changed cacheSpec ends that",
        Next::Refresh,
    ),
    ("Cancelled", "a newer request took its place", Next::Nothing),
    (
        "Superseded",
        "a newer request took its place",
        Next::Nothing,
    ),
];

/// Why an image is still there that was to be removed.
pub(super) const REMOVAL: &[Entry] = &[
    (
        "NotDesired",
        "no ImageCache desires it any more, and it is removed next",
        Next::Nothing,
    ),
    ("Gone", "it has been removed", Next::Nothing),
    (
        "Desired",
        "this ImageCache dropped it, and another one desires it",
        Next::Nothing,
    ),
    (
        "InUse",
        "a container uses it: it is removed after the container is gone",
        Next::Pods,
    ),
    (
        "Pinned",
        "somebody else pinned it on the node, so it stays",
        Next::Nothing,
    ),
    (
        "SharedArtifact",
        "for the container runtime it is one image with another artifact that must stay",
        Next::Nothing,
    ),
    (
        "SharedImage",
        "it has another name on the node that is not ours to remove, so it stays",
        Next::Nothing,
    ),
    (
        "NotPulled",
        "kubefledged did not pull it, and removalPolicy is OnlyPulled, so it stays",
        Next::Nothing,
    ),
    (
        "ErrImageRemove",
        "the runtime could not remove it: it is tried again by itself",
        Next::PullerLog,
    ),
    (
        "RemovalFailed",
        "the runtime could not remove it: it is tried again by itself",
        Next::PullerLog,
    ),
];

/// Reasons of conditions that concern the whole `ImageCache`.
pub(super) const CACHE: &[Entry] = &[
    (
        "NoNodeMatches",
        "no node has ever matched: correct the labels, or write requireNodes: 0 if the nodes come later",
        Next::Nodes,
    ),
    (
        "NodesNotEligible",
        "nodes match, and none of them gets images",
        Next::Unready,
    ),
    (
        "TooFewNodes",
        "fewer nodes are eligible than requireNodes says",
        Next::Unready,
    ),
    (
        "CacheSpecValidationFailed",
        "the stored spec cannot be used",
        Next::Edit,
    ),
    (
        "SourceUnavailable",
        "workloads that name images cannot be read: see docs/workloads.md",
        Next::Edit,
    ),
    (
        "TooManyImages",
        "workloads name more images than there is room for, and the newest have room: select fewer workloads",
        Next::Edit,
    ),
    (
        "StatusTooLarge",
        "the object is larger than the API server stores: split it",
        Next::Edit,
    ),
    (
        "RetentionUnsupported",
        "the container runtime of some node cannot pin images",
        Next::Edit,
    ),
    (
        "ArtifactNotMountable",
        "containerd mounts OCI artifacts as empty volumes: package them as images, or use nodes with CRI-O",
        Next::Edit,
    ),
    (
        "RefreshFailed",
        "a newer image could not be pulled; nodes hold the older one",
        Next::Refresh,
    ),
    (
        "RemovalAbandoned",
        "nodes did not answer for 24 hours, and their removals were given up",
        Next::Nothing,
    ),
    (
        "WaitingForNodes",
        "the pullers of some nodes do not answer yet",
        Next::Unready,
    ),
    ("Throttled", "a registry limits requests", Next::Doctor),
    ("ImagesMissing", "nodes lack images", Next::Describe),
    ("PullFailed", "nodes lack images", Next::Describe),
    ("NotYetChecked", "nodes lack images", Next::Describe),
];
