use std::sync::Arc;

use super::reason::KeptReason;

/// Outcome of one image of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOutcome {
    /// Index of the image in the batch. In a removal the ids of `unpin` follow the names.
    pub index: usize,
    /// The outcome.
    pub result: ImageResult,
    /// The image as the runtime has it, where it is present and was observed.
    pub observed: Option<ObservedImage>,
    /// Outcome of pinning.
    pub pin: PinResult,
    /// Bytes of layers that the pull moved, by source.
    pub moved: MovedBytes,
}

impl ImageOutcome {
    /// An outcome without details.
    pub fn new(index: usize, result: ImageResult) -> Self {
        Self {
            index,
            result,
            observed: None,
            pin: PinResult::NotAsked,
            moved: MovedBytes::default(),
        }
    }
}

/// Bytes of layers that a pull moved, by source. All are 0 if the runtime cannot share layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovedBytes {
    /// From other nodes.
    pub peers: u64,
    /// From the registry.
    pub registry: u64,
    /// From other nodes, and of no use: they came twice, or had another digest.
    pub wasted: u64,
}

impl MovedBytes {
    /// Adds those of another pull.
    pub fn add(&mut self, other: Self) {
        let Self {
            peers,
            registry,
            wasted,
        } = other;
        self.peers = self.peers.saturating_add(peers);
        self.registry = self.registry.saturating_add(registry);
        self.wasted = self.wasted.saturating_add(wasted);
    }
}

/// How far the pull of one image of a batch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Index of the image in the batch.
    pub index: usize,
    /// Bytes of its compressed layers in all; 0: not known yet.
    pub total_bytes: u64,
    /// Those that have arrived.
    pub done_bytes: u64,
    /// Those that came from other nodes.
    pub peer_bytes: u64,
    /// Digest of the manifest or the index that is being pulled; `None`: not known yet.
    pub digest: Option<Arc<str>>,
}

/// An image as a runtime has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedImage {
    /// Its id; runtimes differ in it.
    pub image_id: String,
    /// Its names with digests. Two nodes with an equal one hold the same image of the registry.
    pub repo_digests: Vec<String>,
    /// Whether it is protected from garbage collection, by us or by somebody else.
    pub pinned: bool,
    /// In bytes, as this runtime counts it; 0: not known.
    pub size: u64,
    /// Whether a volume of it would be empty: an artifact on containerd.
    pub unmountable: bool,
}

/// Outcome of pinning an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PinResult {
    /// Pinning was not asked for, or the image is absent.
    #[default]
    NotAsked,
    /// The image is pinned, by us or by somebody else.
    Pinned,
    /// This runtime does not let a client pin images.
    Unsupported,
    /// The disk is above the watermark: nothing new is pinned.
    DiskPressure,
    /// The runtime's error.
    Failed(String),
}

/// What a check reports of the node, beyond its images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Ids of images that carry our pin.
    pub pinned_by_us: Vec<Arc<str>>,
    /// The runtime did not report which images carry our pin.
    pub pins_unknown: bool,
    /// Whether images can be pinned; `None`: not known yet.
    pub can_pin: Option<bool>,
    /// Whether layers can be taken from other nodes and handed on to them; `None`: not known yet.
    pub can_share: Option<bool>,
    /// The highest term that the puller has seen; 0 after its start.
    pub highest_term: u64,
    /// The file system of the images, where the puller can see it.
    pub disk: Option<Disk>,
    /// How many pulls the puller runs at a time; 0: it does not say.
    pub parallel_pulls: u32,
}

/// The file system that holds a node's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub capacity: u64,
    /// Free bytes.
    pub available: u64,
    /// Nothing is pulled or pinned while more than this share is in use.
    pub watermark_percent: u8,
}

impl Disk {
    /// How much of it is in use, in per cent, rounded down; `None`: its size is not known.
    pub fn used_percent(&self) -> Option<u8> {
        let used = u128::from(self.capacity.saturating_sub(self.available)) * 100;
        u8::try_from(used.checked_div(u128::from(self.capacity))?).ok()
    }

    /// Is it filled up to its watermark?
    pub fn is_full(&self) -> bool {
        self.used_percent() >= Some(self.watermark_percent)
    }
}

/// Outcome of one image on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageResult {
    /// It was present already (pull, check).
    Present,
    /// It was pulled.
    Pulled,
    /// It is absent (check, removal).
    Absent,
    /// A pull of it waits or runs (check).
    Pulling,
    /// It was removed.
    Removed,
    /// It was kept on purpose (removal).
    Kept(KeptReason),
    /// The call failed for this image.
    Failed {
        /// One of `names::failure`.
        reason: String,
        /// The runtime's error.
        message: String,
    },
    /// No `ImageCache` desired it any more.
    Cancelled,
    /// A newer intent for the same name came.
    Superseded,
}
