//! What a node's container runtime is, and what it has.

/// How a runtime removes images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Removes an image with all its names, in use or pinned, silently.
    #[default]
    Containerd,
    /// Removes a name; the data goes with the bare id.
    Crio,
    /// Removes by id.
    Docker,
}

/// Whether something can be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Support {
    /// Not tried yet.
    #[default]
    Unknown,
    /// It can.
    Yes,
    /// It cannot.
    No,
}

/// What decides about a node's runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// How it removes.
    pub runtime: Runtime,
    /// Never removed.
    pub sandbox_image: Option<String>,
    /// Whether images can be pinned; where it is unknown, the first pin tries.
    pub pins: Support,
    /// Whether the bytes of a pull can be seen arriving.
    pub progress: bool,
    /// Whether layers can be taken from other nodes and handed on.
    pub peers: Support,
    /// Whether a name can be removed alone, although other names have the same id.
    pub untags: bool,
}

/// The file system that holds the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// All of it, in bytes.
    pub capacity: u64,
    /// Free for us, in bytes.
    pub available: u64,
    /// All of its inodes; 0: it has no fixed number of them.
    pub inodes: u64,
    /// Inodes free for us.
    pub inodes_free: u64,
}

/// An image as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id; with or without `sha256:`, as the runtime writes it.
    pub id: String,
    /// Its names with tags.
    pub tags: Vec<String>,
    /// Its names with digests.
    pub digests: Vec<String>,
    /// In bytes, as the runtime counts them.
    pub size: u64,
    /// Protected from garbage collection.
    pub pinned: bool,
    /// A volume of it would be empty.
    pub unmountable: bool,
}

/// A container in any state, as far as it keeps an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Whatever the runtime says of its image: id, reference, name.
    pub image: Vec<String>,
}
