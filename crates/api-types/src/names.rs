//! Every string that other programs or scripts compare. Spelling mistakes in them come from
//! kube-fledged and stay, because scripts compare the strings.

/// The API group of `ImageCache`.
pub const GROUP: &str = "kubefledged.io";
/// Requests a refresh. If the value is empty, the controller removes the annotation when the refresh
/// is done. Any other value is a token: the controller handles each value once and leaves it there.
pub const REFRESH_ANNOTATION: &str = "kubefledged.io/refresh-imagecache";
/// Requests a purge. Its values mean the same as those of [`REFRESH_ANNOTATION`].
pub const PURGE_ANNOTATION: &str = "kubefledged.io/purge-imagecache";
/// Finalizer that keeps a deleted object until its images, or our pins on them, are removed from the
/// nodes.
pub const FINALIZER: &str = "kubefledged.io/purge";
/// A node with this label gets no images, unless the label's value is `false`.
pub const EXCLUDE_LABEL: &str = "kubefledged.io/exclude";
/// Label whose value `status.failures` shows as `node`, as in kube-fledged.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Type of the condition of a Node that says whether the images of gating `ImageCaches` are there. Its reasons are in
/// [`crate::node_gate`].
pub const IMAGES_CACHED_CONDITION: &str = "kubefledged.io/ImagesCached";
/// Key of the taint that a new node loses when it has the images, unless the controller's `--node-gate-taint-key` names
/// another one.
pub const IMAGES_NOT_CACHED_TAINT: &str = "kubefledged.io/images-not-cached";

/// Annotation of the Lease: what the next leader is told of the budgets of registries.
pub const REGISTRY_BUDGETS_ANNOTATION: &str = "kubefledged.io/registry-budgets";

/// Values of `status.status`.
pub mod status {
    /// An operation is running.
    pub const PROCESSING: &str = "Processing";
    /// The last operation ended, and every image is as desired.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The last operation ended, and at least one image failed on at least one node.
    pub const FAILED: &str = "Failed";
    /// The last operation was superseded, or its object deleted, before it ended.
    pub const ABORTED: &str = "Aborted";
    /// Written by kube-fledged only.
    pub const UNKNOWN: &str = "Unknown";
    /// The last operation ended without work, because no list matched a node.
    pub const NOTHING_DONE: &str = "NoImagesPulledOrDeleted";
}

/// Values of `status.reason`.
pub mod reason {
    /// The object was created.
    pub const CREATE: &str = "ImageCacheCreate";
    /// The desired images or their nodes changed.
    pub const UPDATE: &str = "ImageCacheUpdate";
    /// A requested or automatic refresh.
    pub const REFRESH: &str = "ImageCacheRefresh";
    /// A purge.
    pub const PURGE: &str = "ImageCachePurge";
    /// The object is being deleted.
    pub const DELETE: &str = "ImageCacheDelete";
    /// The stored spec cannot be used at all.
    pub const INVALID: &str = "CacheSpecValidationFailed";
}

/// Values of `status.message`.
pub mod message {
    /// A create is running.
    pub const CREATING: &str =
        "Images are being pulled on to the nodes. Please view the status after some time";
    /// An update is running.
    pub const UPDATING: &str =
        "Image cache is being updated. Please view the status after some time";
    /// A refresh is running.
    pub const REFRESHING: &str =
        "Image cache is being refreshed. Please view the status after some time";
    /// A purge is running.
    pub const PURGING: &str = "Image cache is being purged. Please view the status after some time";
    /// Every image was pulled.
    pub const PULLED: &str = "All requested images pulled succesfully to respective nodes";
    /// Every image was removed.
    pub const DELETED: &str = "All cached images succesfully deleted from respective nodes";
    /// At least one image could not be pulled.
    pub const PULL_FAILED: &str =
        "Image pull failed for some images. Please see \"failures\" section";
    /// At least one image could not be removed.
    pub const DELETE_FAILED: &str =
        "Image deletion failed for some images. Please see \"failures\" section";
    /// An operation was ended before it was done.
    pub const ABORTED: &str =
        "Image cache processing aborted. Image cache will get refreshed during next refresh cycle";
    /// No list matched a node.
    pub const NOTHING_DONE: &str =
        "No images were pulled or deleted because nodeSelector specified did not match any nodes";
}

/// Reasons why an image is not on a node, or was not removed from it. They are the kubelet's reasons
/// if it has one for the cause.
pub mod failure {
    /// A pull failed for a cause that has no reason of its own.
    pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
    /// The image name is invalid.
    pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
    /// The container runtime could not say whether it holds the image.
    pub const IMAGE_INSPECT_ERROR: &str = "ImageInspectError";
    /// The registry does not answer.
    pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
    /// The image's signature does not match the node's policy, or a verifier of the node refused the image.
    pub const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";
    /// The registry does not have the image.
    pub const IMAGE_NOT_FOUND: &str = "ImageNotFound";
    /// The registry has the image, but lacks a layer or the configuration of it. Somebody deleted it, or a push is in
    /// progress.
    pub const BLOB_NOT_FOUND: &str = "BlobNotFound";
    /// The node's runtime lacks something in its own store. The next pull may repair it.
    pub const IMAGE_STORE_BROKEN: &str = "ImageStoreBroken";
    /// The node's runtime needs a registry in the name: CRI-O without a registry to search in.
    pub const SHORT_NAME_REFUSED: &str = "ShortNameRefused";
    /// The image has a manifest that the node's runtime cannot read, such as one of schema 1.
    pub const UNSUPPORTED_MANIFEST: &str = "UnsupportedManifest";
    /// The registry refused the credentials, or the pull had none.
    pub const UNAUTHORIZED: &str = "Unauthorized";
    /// The registry limits requests (429).
    pub const RATE_LIMITED: &str = "RateLimited";
    /// The node's image file system is too full.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// A pull received no data for too long.
    pub const NO_PROGRESS: &str = "NoProgress";
    /// The API server did not answer for the pull secrets, or they hold more logins for the image than are sent.
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
    /// A newer request for the same image name replaced this one.
    pub const SUPERSEDED: &str = "Superseded";
    /// No cache desires the image any more.
    pub const CANCELLED: &str = "Cancelled";
    /// The container runtime could not remove the image.
    pub const REMOVE_FAILED: &str = "ErrImageRemove";
    /// The image was kept, because a container uses it or because it is the sandbox image.
    pub const IN_USE: &str = "InUse";
    /// The image was kept, because somebody else pinned it.
    pub const PINNED: &str = "Pinned";
    /// The image was kept, because we did not pull it and `removalPolicy` is OnlyPulled.
    pub const NOT_PULLED: &str = "NotPulled";
    /// The image was kept, because it has another name that we may not remove.
    pub const SHARED_IMAGE: &str = "SharedImage";
    /// It is another artifact too, for the runtime: one id stands for several.
    pub const SHARED_ARTIFACT: &str = "SharedArtifact";
}

/// Answers of the admission webhook, in the words of kube-fledged.
pub mod refusal {
    /// An image list is empty.
    pub const NO_IMAGES: &str = "No images specified within image list";
    /// Prefix of the message; the image name follows.
    pub const DUPLICATE_IMAGE: &str = "Duplicate image names within image list";
}
