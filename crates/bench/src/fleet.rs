//! The nodes of the simulated fleet: what each holds, and what is being pulled.

mod peers;
mod pulls;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use fixedbitset::FixedBitSet;
use kubefledged_proto::puller::{CheckedImage, ImageState, RemoveOutcome, RemoveResult};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use crate::model::{Model, Registry, mix};

/// Node 0's address is the first of this range. A range of its own: `EndpointSlices` refuse loopback.
const FIRST: u32 = u32::from_be_bytes([10, 100, 0, 1]);
/// As `--max-parallel-pulls` of the real puller.
const PARALLEL_PULLS: usize = 2;

/// Where nobody answers, not even that there is nobody: the address of a dead node.
const SILENT: u32 = u32::from_be_bytes([10, 101, 0, 1]);

/// Where the puller of a node is reached.
pub fn address(node: usize) -> IpAddr {
    Ipv4Addr::from_bits(FIRST + u32::try_from(node).unwrap_or(u32::MAX)).into()
}

/// Where the puller of a dead node is not reached.
pub fn silent_address(node: usize) -> IpAddr {
    Ipv4Addr::from_bits(SILENT + u32::try_from(node).unwrap_or(u32::MAX)).into()
}

/// Whose puller is reached at this address.
pub fn node_at(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(address) => Some(address.to_bits().checked_sub(FIRST)? as usize),
        IpAddr::V6(address) => node_at(address.to_ipv4_mapped()?.into()),
    }
}

/// The Node's name.
pub fn name(node: usize) -> String {
    format!("sim-{node}")
}

/// What was asked of the fleet.
#[derive(Debug, Default)]
pub struct Counters {
    /// `PullImages` calls.
    pub pull_calls: AtomicU64,
    /// `CheckImages` calls.
    pub check_calls: AtomicU64,
    /// `RemoveImages` calls.
    pub remove_calls: AtomicU64,
    /// Images that were transferred.
    pub pulled: AtomicU64,
    /// Bytes that nodes took from each other.
    pub peer_bytes: AtomicU64,
    /// Pulls that were to come from other nodes and came from the registry.
    pub fallbacks: AtomicU64,
    /// Images that were transferred though the node held them already.
    pub pulled_again: AtomicU64,
    /// Handshakes done.
    pub handshakes: AtomicU64,
    /// Connections open now, and the most there were.
    pub open: AtomicU64,
    /// See `open`.
    pub most_open: AtomicU64,
}

/// One node.
#[derive(Debug)]
pub struct SimNode {
    state: Mutex<State>,
    slots: Semaphore,
    finished: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: FixedBitSet,
    bases: BTreeSet<usize>,
    pulling: BTreeSet<usize>,
    failed_once: FixedBitSet,
    cancelled: BTreeSet<(u64, u64)>,
    term: u64,
    /// When what its pulls have asked for will have arrived.
    line: Option<Instant>,
    /// When what others have asked it for will have been sent.
    uplink: Option<Instant>,
    /// When images that come from other nodes will have arrived.
    arriving: BTreeMap<usize, [Option<Instant>; 2]>,
    /// Rises with every restart of the puller.
    incarnation: u64,
    gone: bool,
}

/// All nodes and the registry.
#[derive(Debug)]
pub struct Fleet {
    nodes: Vec<SimNode>,
    images: RwLock<BTreeMap<Arc<str>, usize>>,
    model: RwLock<Arc<Model>>,
    /// Of all images.
    pub registry: Registry,
    /// What was asked.
    pub counters: Counters,
}

impl Fleet {
    /// Nodes that hold nothing.
    pub fn new(nodes: usize) -> Self {
        let node = |_| SimNode {
            state: Mutex::default(),
            slots: Semaphore::new(PARALLEL_PULLS),
            finished: Notify::new(),
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            images: RwLock::default(),
            model: RwLock::default(),
            registry: Registry::default(),
            counters: Counters::default(),
        }
    }

    /// How many nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// From now on the world is like this.
    pub fn set_model(&self, model: Model) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(model);
    }

    /// What the world is like.
    pub fn model(&self) -> Arc<Model> {
        self.model
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Images present on a node.
    pub fn held(&self, node: usize) -> usize {
        self.nodes[node].lock().held.count_ones(..)
    }

    /// Node images present over all nodes.
    pub fn pairs(&self) -> u64 {
        let count = |node: &SimNode| node.lock().held.count_ones(..) as u64;
        self.nodes.iter().map(count).sum()
    }

    /// Every node loses every image.
    pub fn wipe(&self) {
        for node in &self.nodes {
            let mut state = node.lock();
            state.held.clear();
            state.bases.clear();
            state.arriving.clear();
        }
        self.registry.bytes.store(0, Ordering::Relaxed);
    }

    fn image(&self, reference: &str) -> usize {
        let known = self
            .images
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(reference)
            .copied();
        known.unwrap_or_else(|| {
            let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
            let next = images.len();
            *images.entry(reference.into()).or_insert(next)
        })
    }

    /// Names of what a node holds.
    pub fn images_of(&self, node: usize) -> Vec<String> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        let held = &self.nodes[node].lock().held;
        images
            .iter()
            .filter(|(_, image)| held.contains(**image))
            .map(|(name, _)| name.to_string())
            .collect()
    }

    /// Takes note of a leader's term; the later term, where there is one.
    pub fn admit(&self, node: usize, term: u64) -> Result<(), u64> {
        let mut state = self.nodes[node].lock();
        if term < state.term {
            return Err(state.term);
        }
        state.term = term;
        Ok(())
    }

    /// The highest term that the node has seen.
    pub fn term(&self, node: usize) -> u64 {
        self.nodes[node].lock().term
    }

    /// What a check sees.
    pub fn look(&self, node: usize, references: &[String]) -> Vec<CheckedImage> {
        let images: Vec<usize> = references.iter().map(|name| self.image(name)).collect();
        let state = self.nodes[node].lock();
        let looked = |(index, (image, reference)): (usize, (usize, &String))| {
            let mut checked = CheckedImage {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                ..CheckedImage::default()
            };
            if state.pulling.contains(&image) {
                checked.state = ImageState::Pulling.into();
            } else if state.held.contains(image) {
                checked.state = ImageState::Present.into();
                checked.image_id = image_id(image);
                checked.repo_digests = repo_digests(reference, image);
            } else {
                checked.state = ImageState::Absent.into();
            }
            checked
        };
        images
            .into_iter()
            .zip(references)
            .enumerate()
            .map(looked)
            .collect()
    }

    /// The puller's process ends, and another begins.
    pub fn restart(&self, node: usize) {
        let mut state = self.nodes[node].lock();
        state.incarnation += 1;
        state.term = 0;
        state.cancelled.clear();
    }

    /// A node goes, or comes back without its disk.
    pub fn set_gone(&self, node: usize, gone: bool) {
        let mut state = self.nodes[node].lock();
        state.gone = gone;
        state.incarnation += 1;
        state.held.clear();
        state.bases.clear();
    }

    /// Is it not there?
    pub fn is_gone(&self, node: usize) -> bool {
        self.nodes[node].lock().gone
    }

    /// UID of the puller's pod.
    pub fn instance(&self, node: usize) -> String {
        format!("uid-{node}-{}", self.nodes[node].lock().incarnation)
    }

    /// Removes images.
    pub fn remove(&self, node: usize, references: &[String]) -> Vec<RemoveOutcome> {
        let images: Vec<usize> = references.iter().map(|name| self.image(name)).collect();
        let mut state = self.nodes[node].lock();
        let remove = |(index, image): (usize, usize)| {
            let was = state.held.contains(image);
            if was {
                state.held.set(image, false);
            }
            RemoveOutcome {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                result: if was {
                    RemoveResult::Removed.into()
                } else {
                    RemoveResult::Absent.into()
                },
                ..RemoveOutcome::default()
            }
        };
        images.into_iter().enumerate().map(remove).collect()
    }

    /// The pulls of a batch that have not begun end.
    pub fn cancel(&self, node: usize, term: u64, batch: u64) {
        self.nodes[node].lock().cancelled.insert((term, batch));
    }
}

/// As long as a real one.
fn image_id(image: usize) -> String {
    format!("sha256:{:064x}", mix(image as u64, 4))
}

fn repo_digests(reference: &str, image: usize) -> Vec<String> {
    let repository = reference
        .rsplit_once(':')
        .map_or(reference, |(name, _)| name);
    vec![format!("{repository}@sha256:{:064x}", mix(image as u64, 5))]
}

impl SimNode {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_proto::puller::PullResult;

    use super::*;

    #[test]
    fn an_address_leads_back_to_its_node() {
        for node in [0, 255, 4_999, 14_999] {
            assert_eq!(node_at(address(node)), Some(node));
        }
        assert_eq!(node_at(IpAddr::from([10, 77, 0, 1])), None);
    }

    #[tokio::test(start_paused = true)]
    async fn two_batches_that_want_one_image_transfer_it_once() {
        let fleet = Fleet::new(1);
        fleet.set_model(Model {
            least: std::time::Duration::from_secs(1),
            ..Model::default()
        });
        let (a, b) = tokio::join!(
            fleet.pull(0, (1, 1), 0, "r/a:1", &[]),
            fleet.pull(0, (1, 2), 0, "r/a:1", &[]),
        );
        assert_eq!(a.result(), PullResult::Pulled);
        assert_eq!(b.result(), PullResult::Present);
        assert_eq!(fleet.counters.pulled.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_is_removed_is_gone_and_what_was_not_there_is_absent() {
        let fleet = Fleet::new(2);
        let names = ["r/a:1".to_owned(), "r/b:1".to_owned()];
        fleet.pull_at_once(0, &names[..1]);
        let results: Vec<_> = fleet
            .remove(0, &names)
            .iter()
            .map(RemoveOutcome::result)
            .collect();
        assert_eq!(results, [RemoveResult::Removed, RemoveResult::Absent]);
        assert_eq!(fleet.pairs(), 0);
    }
}
