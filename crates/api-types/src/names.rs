//! Every string that other programs or people match on. The spelling mistakes are kube-fledged's
//! own and stay: scripts compare these strings.

/// The API group of `ImageCache`.
pub const GROUP: &str = "kubefledged.io";
/// Asks for a refresh. Empty: removed when done. Anything else is a token, handled once per value.
pub const REFRESH_ANNOTATION: &str = "kubefledged.io/refresh-imagecache";
/// Asks for a purge. Values as for [`REFRESH_ANNOTATION`].
pub const PURGE_ANNOTATION: &str = "kubefledged.io/purge-imagecache";
/// Holds an object until its images, or our pins on them, are gone from the nodes.
pub const FINALIZER: &str = "kubefledged.io/purge";
/// A node with this label (any value but `false`) gets no images.
pub const EXCLUDE_LABEL: &str = "kubefledged.io/exclude";
/// The label whose value stands as `node` in `status.failures`, as in kube-fledged.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Values of `status.status`.
pub mod status {
    /// An operation runs.
    pub const PROCESSING: &str = "Processing";
    /// The last operation ended with every image where it should be.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Some image failed on some node.
    pub const FAILED: &str = "Failed";
    /// A deleted or superseded operation whose end had to be written.
    pub const ABORTED: &str = "Aborted";
    /// kube-fledged wrote it; never written by us.
    pub const UNKNOWN: &str = "Unknown";
    /// No list matched any node.
    pub const NOTHING_DONE: &str = "NoImagesPulledOrDeleted";
}

/// Values of `status.reason`.
pub mod reason {
    /// The object was created.
    pub const CREATE: &str = "ImageCacheCreate";
    /// What is wanted where has changed.
    pub const UPDATE: &str = "ImageCacheUpdate";
    /// A refresh, asked for or automatic.
    pub const REFRESH: &str = "ImageCacheRefresh";
    /// A purge.
    pub const PURGE: &str = "ImageCachePurge";
    /// The object is being deleted.
    pub const DELETE: &str = "ImageCacheDelete";
    /// A stored spec that cannot be used at all.
    pub const INVALID: &str = "CacheSpecValidationFailed";
}

/// Values of `status.message`.
pub mod message {
    /// While a create runs.
    pub const CREATING: &str =
        "Images are being pulled on to the nodes. Please view the status after some time";
    /// While an update runs.
    pub const UPDATING: &str =
        "Image cache is being updated. Please view the status after some time";
    /// While a refresh runs.
    pub const REFRESHING: &str =
        "Image cache is being refreshed. Please view the status after some time";
    /// While a purge runs.
    pub const PURGING: &str = "Image cache is being purged. Please view the status after some time";
    /// Everything is there.
    pub const PULLED: &str = "All requested images pulled succesfully to respective nodes";
    /// Everything is gone.
    pub const DELETED: &str = "All cached images succesfully deleted from respective nodes";
    /// Something could not be pulled.
    pub const PULL_FAILED: &str =
        "Image pull failed for some images. Please see \"failures\" section";
    /// Something could not be removed.
    pub const DELETE_FAILED: &str =
        "Image deletion failed for some images. Please see \"failures\" section";
    /// An operation ended before it was done.
    pub const ABORTED: &str =
        "Image cache processing aborted. Image cache will get refreshed during next refresh cycle";
    /// No node to work on.
    pub const NOTHING_DONE: &str =
        "No images were pulled or deleted because nodeSelector specified did not match any nodes";
}

/// Why an image is not on a node, or was not taken off it: the kubelet's word where it has one.
pub mod failure {
    /// Anything about a pull that has no word of its own.
    pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
    /// The name does not parse.
    pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
    /// The runtime could not say whether it holds the image.
    pub const IMAGE_INSPECT_ERROR: &str = "ImageInspectError";
    /// The registry does not answer.
    pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
    /// The signature is not the one the node demands.
    pub const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";
    /// The registry does not have it.
    pub const IMAGE_NOT_FOUND: &str = "ImageNotFound";
    /// The registry refuses us.
    pub const UNAUTHORIZED: &str = "Unauthorized";
    /// The registry asks us to wait.
    pub const RATE_LIMITED: &str = "RateLimited";
    /// The node's image file system is too full.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// No byte moved for too long.
    pub const NO_PROGRESS: &str = "NoProgress";
    /// The pull secrets could not be read.
    pub const CREDENTIALS_UNAVAILABLE: &str = "CredentialsUnavailable";
    /// The pull deadline passed.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The image has no build for the node's platform.
    pub const PLATFORM_MISMATCH: &str = "PlatformMismatch";
    /// No puller answers on the node.
    pub const PULLER_UNAVAILABLE: &str = "PullerUnavailable";
    /// The node's puller has as many images to do as it keeps in memory.
    pub const PULLER_BUSY: &str = "PullerBusy";
    /// The node's container runtime does not answer.
    pub const RUNTIME_UNAVAILABLE: &str = "RuntimeUnavailable";
    /// A newer intent for the same name came.
    pub const SUPERSEDED: &str = "Superseded";
    /// Nobody wanted it any more.
    pub const CANCELLED: &str = "Cancelled";
    /// The runtime could not remove it.
    pub const REMOVE_FAILED: &str = "ErrImageRemove";
    /// Kept: a container uses it, or it is protected.
    pub const IN_USE: &str = "InUse";
    /// Kept: somebody else pinned it.
    pub const PINNED: &str = "Pinned";
    /// Kept: it has another name that is not ours to remove.
    pub const SHARED_IMAGE: &str = "SharedImage";
}

/// What the admission webhook answers, in kube-fledged's words.
pub mod refusal {
    /// An image list is empty.
    pub const NO_IMAGES: &str = "No images specified within image list";
    /// Prefix; the image follows.
    pub const DUPLICATE_IMAGE: &str = "Duplicate image names within image list";
}
