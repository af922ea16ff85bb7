//! Status of one node in one cache, and the sums over all nodes.

use kubefledged_api_types::{
    GateReason,
    status::{ImageCounts, NodeCounts},
};

use crate::{
    ids::{SetIdx, Stamp},
    vocabulary::{PullState, Tick},
};

/// What the conditions need to know of a node beyond its state. One bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// Its pulls wait for a registry.
    pub const THROTTLED: Self = Self(1);
    /// It has lost an image that is still absent, or loses images again and again.
    pub const LOSING: Self = Self(2);
    /// Its runtime cannot pin images, and the cache asks for it.
    pub const UNPINNABLE: Self = Self(4);
    /// Its image file system is too full.
    pub const DISK: Self = Self(8);
    /// It has not confirmed that pins of ours are gone.
    pub const PINS_OPEN: Self = Self(16);
    /// The automatic refresh has not finished there.
    pub const REFRESH_OPEN: Self = Self(32);
    /// Removals are pending there that are neither done nor kept.
    pub const REMOVALS_OPEN: Self = Self(64);
    /// It was not checked yet.
    pub const UNCHECKED: Self = Self(128);
    /// It lacks an image whose pull will not succeed by waiting.
    pub const STALLED: Self = Self(256);
    /// It was eligible when the operation began, and is not for a moment.
    pub const UNFIT: Self = Self(512);
    /// It waits for images of the cache before pods may come.
    pub const HOLDS: Self = Self(1024);
    /// It holds artifacts that it can only mount as empty volumes.
    pub const UNMOUNTABLE: Self = Self(2048);

    const COUNT: usize = 12;

    /// Is this flag set?
    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// Sets a flag if `holds`.
    pub fn set(&mut self, flag: Self, holds: bool) {
        if holds {
            self.0 |= flag.0;
        }
    }
}

/// Versions of what a node's status was computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// Of the node.
    pub node: u32,
    /// Of the cache.
    pub cache: u32,
}

/// Status of one node in one cache, as computed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// The part of `status.nodes` that counts it.
    pub state: PullState,
    /// What the conditions need to know.
    pub flags: Flags,
    /// The operation has nothing left to do there.
    pub done: bool,
    /// The images that the cache desires there.
    pub set: SetIdx,
    /// How many images are desired.
    pub desired: u32,
    /// How many of them are present.
    pub present: u32,
    /// How many of them failed.
    pub failing: u32,
    /// Bytes that the desired images take there, as far as their sizes are known.
    pub bytes: u64,
    /// `Observations::revision` for which `bytes` and `checked` were computed; `None`: not for these images.
    pub summed: Option<u32>,
    /// Stamp of the oldest observation of a desired image; `None`: some image was never observed.
    pub checked: Option<Stamp>,
    /// What the cache says of the node's gate; `None`: it is not known yet.
    pub gate: Option<GateReason>,
    /// What it was computed from.
    pub epochs: Epochs,
    /// It must be computed again then, even if nothing happens; `None`: never.
    pub wake: Option<Tick>,
}

impl NodeStatus {
    /// The cache desires other images there.
    pub fn select(&mut self, set: SetIdx) {
        self.set = set;
        self.summed = None;
    }

    /// Compute it again at this time, or earlier if that was asked for before.
    pub fn wake_at(&mut self, at: Tick) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Sums over the statuses of all nodes of a cache.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// `status.nodes`
    pub nodes: NodeCounts,
    /// `status.images`
    pub images: ImageCounts,
    /// Pairs of node and image that failed.
    pub failing: i64,
    flags: [i64; Flags::COUNT],
}

impl Counts {
    /// How many nodes have a flag.
    pub fn flagged(&self, flag: Flags) -> i64 {
        self.flags[flag.0.trailing_zeros() as usize % Flags::COUNT]
    }

    /// Replaces one node's status in the sums.
    pub fn replace(&mut self, old: &NodeStatus, new: &NodeStatus) {
        self.add(old, -1);
        self.add(new, 1);
    }

    fn add(&mut self, status: &NodeStatus, sign: i64) {
        if status.flags != Flags::default() {
            for (bit, count) in self.flags.iter_mut().enumerate() {
                *count += sign * i64::from(status.flags.0 >> bit & 1);
            }
        }
        let nodes = &mut self.nodes;
        let part = match status.state {
            PullState::NotDesired => return,
            PullState::Unreachable => &mut nodes.unreachable,
            PullState::Failed => &mut nodes.failed,
            PullState::Pulling => &mut nodes.pulling,
            PullState::Pending => &mut nodes.pending,
            PullState::Ready => &mut nodes.ready,
        };
        *part += sign;
        nodes.desired += sign;
        self.images.desired += sign * i64::from(status.desired);
        self.images.ready += sign * i64::from(status.present);
        self.images.bytes += sign * i64::try_from(status.bytes).unwrap_or(0);
        self.failing += sign * i64::from(status.failing);
    }
}
