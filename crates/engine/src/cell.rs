//! How one node stands with one cache, and the sums over all nodes.

use kubefledged_api_types::status::{ImageCounts, NodeCounts};

use crate::{Tick, node::Stamp, wants::PatternIdx};

/// Which of the five parts a node is in, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CellState {
    /// Not eligible, or no list matches.
    #[default]
    Out,
    /// No puller answers, beyond the grace time.
    Unreachable,
    /// Misses an image that failed.
    Failed,
    /// Is pulling.
    Pulling,
    /// Misses an image, or was not looked at yet.
    Pending,
    /// Held everything when last looked at.
    Ready,
}

/// What conditions tell of a node beyond its state. A bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Its pulls wait for a registry.
    pub const THROTTLED: Self = Self(1);
    /// It loses images again and again.
    pub const LOSING: Self = Self(2);
    /// Its runtime cannot pin what is to be pinned.
    pub const UNPINNABLE: Self = Self(4);
    /// Its image file system is too full.
    pub const DISK: Self = Self(8);
    /// It has not answered whether pins of ours are gone.
    pub const PINS_OPEN: Self = Self(16);
    /// The automatic refresh is not done with it.
    pub const REFRESH_OPEN: Self = Self(32);
    /// Names that are to be removed are neither gone nor kept.
    pub const OWES: Self = Self(64);
    /// Nobody has looked yet.
    pub const UNSEEN: Self = Self(128);

    /// Does it hold?
    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// Adds a flag if it holds.
    pub fn set(&mut self, flag: Self, holds: bool) {
        if holds {
            self.0 |= flag.0;
        }
    }
}

/// One node of one cache, as last assessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Which of the five parts, or none.
    pub state: CellState,
    /// What conditions tell beyond that.
    pub flags: Flags,
    /// Nothing is left of the operation here.
    pub done: bool,
    /// What it is to have.
    pub pattern: PatternIdx,
    /// Wanted images.
    pub want: u32,
    /// Of these present.
    pub have: u32,
    /// Of these failed.
    pub failing: u32,
    /// Oldest look at a wanted image.
    pub looked: Stamp,
    /// Epochs of node and cache that it was assessed in.
    pub epochs: (u32, u32),
    /// It is assessed anew then, though nothing happens; 0: never.
    pub wake: Tick,
}

/// Sums over the cells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// As they stand in the status.
    pub nodes: NodeCounts,
    /// As they stand in the status.
    pub images: ImageCounts,
    /// Failed pairs.
    pub failing: i64,
    flags: [i64; 8],
}

impl Counts {
    /// How many nodes have a flag.
    pub fn flagged(&self, flag: Flags) -> i64 {
        self.flags[flag.0.trailing_zeros() as usize % 8]
    }

    /// A cell is another now.
    pub fn replace(&mut self, old: &Cell, new: &Cell) {
        self.add(old, -1);
        self.add(new, 1);
    }

    fn add(&mut self, cell: &Cell, sign: i64) {
        for (bit, count) in self.flags.iter_mut().enumerate() {
            *count += sign * i64::from(cell.flags.0 >> bit & 1);
        }
        let nodes = &mut self.nodes;
        let part = match cell.state {
            CellState::Out => return,
            CellState::Unreachable => &mut nodes.unreachable,
            CellState::Failed => &mut nodes.failed,
            CellState::Pulling => &mut nodes.pulling,
            CellState::Pending => &mut nodes.pending,
            CellState::Ready => &mut nodes.ready,
        };
        *part += sign;
        nodes.desired += sign;
        self.images.desired += sign * i64::from(cell.want);
        self.images.ready += sign * i64::from(cell.have);
        self.failing += sign * i64::from(cell.failing);
    }
}
