//! Layers from other nodes, as far as the queue knows of them: it passes on where a pull takes them from, and tells how
//! far pulls are.

use std::{sync::Arc, time::Duration};

/// How a pull shares layers with other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Where layers are taken from; `None`: everything comes from the registry.
    pub peers: Option<Arc<Peers>>,
    /// For how long layers are kept for others after the pull; `None`: as the runtime does.
    pub hold: Option<Duration>,
}

impl Sharing {
    /// Another request for the same pull: what it knows of peers is newer, and the longer time counts.
    pub fn share(&mut self, other: &Self) {
        if other.peers.is_some() {
            self.peers.clone_from(&other.peers);
        }
        self.hold = self.hold.max(other.hold);
    }
}

/// Nodes that hand on an image, and the right to take it from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// The nodes, the best first.
    pub nodes: Vec<Peer>,
    /// The claims of the ticket, as the controller serialized them.
    pub claims: Vec<u8>,
    /// The signature over them.
    pub signature: Vec<u8>,
    /// The signer's certificate (DER), followed by intermediate ones.
    pub signer: Arc<[Vec<u8>]>,
}

/// A node that hands on layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: String,
    /// IP address and port of its puller.
    pub address: String,
}

/// Bytes of layers that a pull moved, by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// From other nodes.
    pub peers: u64,
    /// From the registry, as far as that could be seen.
    pub registry: u64,
    /// From other nodes, and of no use: they came twice, or had another digest.
    pub wasted: u64,
}

impl Sources {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            peers: self.peers.saturating_add(other.peers),
            registry: self.registry.saturating_add(other.registry),
            wasted: self.wasted.saturating_add(other.wasted),
        }
    }
}

/// Bytes of the compressed layers of an image that is being pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Arrived.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Some layer is being fetched right now; none is while layers are unpacked.
    pub active: bool,
}

/// What is seen of a running pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The bytes of its layers.
    pub bytes: Bytes,
    /// Bytes that came from other nodes.
    pub peers: u64,
    /// Digest of the manifest or index that is being pulled; `None`: not known yet.
    pub digest: Option<Arc<str>>,
}

impl From<Bytes> for Progress {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }
}

/// How far the pull of one image of a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Index of the image in the request.
    pub index: usize,
    /// What is seen of the pull.
    pub progress: Progress,
}
