//! Batches in flight: calls to nodes that have not ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    peers::{Origin, Supply},
    registries::Began,
};
use crate::{
    ids::{CacheIdx, ImageId, NodeIdx, RegistryId, ScopeId, Stamp},
    vocabulary::{BatchId, NameList},
};

/// A check without a sign of life for so long is lost. This is a backstop: calls have shorter time-outs of
/// their own, which begin when their turn for a connection comes. With tens of thousands of nodes that takes minutes.
const CHECK_DEADLINE: Duration = Duration::from_secs(600);
/// The same for pulls and removals.
const WORK_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// A batch in flight.
#[derive(Debug)]
pub struct Flight {
    /// Which node it calls.
    pub node: NodeIdx,
    /// Its outcomes are as new as its beginning.
    pub stamp: Stamp,
    /// What it does.
    pub task: Task,
}

/// What a batch does.
#[derive(Debug)]
pub enum Task {
    /// Pulls images.
    Pull(Pull),
    /// Removes names and pins.
    Remove {
        /// Images whose names are removed.
        images: Arc<[ImageId]>,
        /// Ids from which our pin is removed.
        unpin: NameList,
    },
    /// Checks which images are present.
    Check {
        /// These images.
        images: Arc<[ImageId]>,
    },
}

/// A pull batch.
#[derive(Debug)]
pub struct Pull {
    /// With which credentials.
    pub credentials: ScopeId,
    /// From which registry.
    pub registry: RegistryId,
    /// Which images.
    pub images: Vec<PulledImage>,
    /// How many pulls the puller runs at a time.
    pub parallel: u32,
    /// How many pulls count in the registry's budget.
    pub cost: u32,
    /// How it began, for the registry's budget.
    pub began: Began,
    /// It brought no outcome for long and has left the budget.
    pub long: bool,
    /// Where the layers of its images come from.
    pub origin: Origin,
}

/// One image of a pull batch.
#[derive(Debug)]
pub struct PulledImage {
    /// Which image.
    pub id: ImageId,
    /// For which cache.
    pub cache: CacheIdx,
    /// Its name, as the user wrote it.
    pub reference: Arc<str>,
    /// Where its layers come from, with the nodes.
    pub supply: Supply,
    /// The registry is asked even if the image is present.
    pub asks_registry: bool,
    /// It has no outcome yet.
    pub open: bool,
    /// Its cancellation was asked for.
    pub cancelled: bool,
    /// Bytes of its layers that had come when they last counted as progress.
    pub bytes: u64,
}

/// So many more bytes are progress: a registry that drips makes none.
const PROGRESS: u64 = 64 << 10;

impl PulledImage {
    /// Notes how many bytes have come. True if that is progress.
    pub fn moves(&mut self, done: u64) -> bool {
        let moves = done >= self.bytes.saturating_add(PROGRESS);
        if moves {
            self.bytes = done;
        }
        moves
    }
}

impl Task {
    /// Without a sign of life for so long the batch is lost.
    pub fn deadline(&self) -> Duration {
        match self {
            Self::Check { .. } => CHECK_DEADLINE,
            Self::Pull(_) | Self::Remove { .. } => WORK_DEADLINE,
        }
    }
}

impl Flight {
    /// All images of the batch.
    pub fn images(&self) -> Vec<ImageId> {
        match &self.task {
            Task::Pull(pull) => pull.images.iter().map(|image| image.id).collect(),
            Task::Remove { images, .. } | Task::Check { images } => images.to_vec(),
        }
    }
}

impl Pull {
    /// How much of a registry's budget so many open pulls take.
    pub fn cost_of(open: usize, parallel: u32) -> u32 {
        u32::try_from(open).unwrap_or(u32::MAX).min(parallel)
    }

    /// How much of its registry's budget the pulls take that are open.
    pub fn cost_now(&self) -> u32 {
        match self.origin {
            Origin::Peers => 0,
            Origin::Registry | Origin::Seed => Self::cost_of(self.open(), self.parallel),
        }
    }

    /// For which caches, each once.
    pub fn caches(&self) -> BTreeSet<CacheIdx> {
        self.images.iter().map(|image| image.cache).collect()
    }

    /// How many images have no outcome.
    pub fn open(&self) -> usize {
        self.images.iter().filter(|image| image.open).count()
    }
}

/// All batches in flight, and the numbers of calls.
#[derive(Debug, Default)]
pub struct InFlight {
    all: BTreeMap<BatchId, Flight>,
    last: u64,
    seq: u64,
}

impl InFlight {
    /// A batch that has not ended.
    pub fn get(&self, id: BatchId) -> Option<&Flight> {
        self.all.get(&id)
    }

    /// A batch that has not ended, to be changed.
    pub fn get_mut(&mut self, id: BatchId) -> Option<&mut Flight> {
        self.all.get_mut(&id)
    }

    /// Adds a batch that begins.
    pub fn begin(&mut self, flight: Flight) -> BatchId {
        self.last += 1;
        let id = BatchId(self.last);
        self.all.insert(id, flight);
        id
    }

    /// Takes a batch out, to end it or to put it back.
    pub fn take(&mut self, id: BatchId) -> Option<Flight> {
        self.all.remove(&id)
    }

    /// Puts a batch back.
    pub fn put_back(&mut self, id: BatchId, flight: Flight) {
        self.all.insert(id, flight);
    }

    /// Number of the next call.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Batches after this one, or all.
    pub fn after(&self, after: Option<BatchId>) -> impl Iterator<Item = (BatchId, &Flight)> {
        use std::ops::Bound::{Excluded, Unbounded};

        let from = (after.map_or(Unbounded, Excluded), Unbounded);
        self.all.range(from).map(|(id, flight)| (*id, flight))
    }

    /// Forgets all batches: another term begins. Numbers go on.
    pub fn clear(&mut self) {
        self.all.clear();
    }
}
