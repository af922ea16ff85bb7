//! How long a pull takes and whether it succeeds, for a fleet that pulls nothing for real.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What the simulated world is like. The default is a world where everything takes no time.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Bytes of the layer that only one image has.
    pub own_bytes: u64,
    /// Bytes of a base layer, shared by every tenth image.
    pub base_bytes: u64,
    /// Bytes per second that one node takes; 0: any amount at once.
    pub node_bandwidth: u64,
    /// Bytes per second that the registry gives, to all nodes together; 0: any amount at once.
    pub registry_bandwidth: u64,
    /// Every pull takes at least so long.
    pub least: Duration,
    /// Per cent of the nodes that answer no connection.
    pub dead_percent: u64,
    /// Per cent of the nodes that pull ten times slower.
    pub slow_percent: u64,
    /// Per cent of the pairs of node and image whose first pull fails.
    pub failing_percent: u64,
    /// Images that can be pulled nowhere.
    pub refused: Option<Refused>,
    /// More pulls than this at a time, and the registry answers 429.
    pub registry_limit: Option<u64>,
    /// Nodes take layers from each other.
    pub peers: bool,
}

/// Images that can be pulled nowhere, and what is said of them.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// Part of their names.
    pub part: &'static str,
    /// The word for it.
    pub reason: &'static str,
    /// As runtimes say it; `{}` stands for the name.
    pub message: &'static str,
}

/// How many base layers the images share.
pub const BASES: usize = 10;

impl Model {
    /// Does this node answer nobody?
    pub fn is_dead(&self, node: usize) -> bool {
        mix(node as u64, 1) % 100 < self.dead_percent
    }

    fn is_slow(&self, node: usize) -> bool {
        mix(node as u64, 2) % 100 < self.slow_percent
    }

    /// Does the first pull of this image fail on this node?
    pub fn fails(&self, node: usize, image: usize) -> bool {
        mix((node as u64) << 20 | image as u64, 3) % 100 < self.failing_percent
    }

    /// Reason and message, where this image can be pulled nowhere.
    pub fn refuses(&self, reference: &str) -> Option<(String, String)> {
        let refused = self.refused?;
        let message = || refused.message.replace("{}", reference);
        reference
            .contains(refused.part)
            .then(|| (refused.reason.to_owned(), message()))
    }

    /// How long so many bytes take on a node's line.
    pub fn transfer(&self, bytes: u64) -> Duration {
        transfer(bytes, self.node_bandwidth)
    }

    /// Do pulls take no time at all?
    pub fn is_instant(&self) -> bool {
        self.node_bandwidth == 0
            && self.registry_bandwidth == 0
            && self.least.is_zero()
            && self.registry_limit.is_none()
    }
}

/// Spreads numbers evenly (the finalizer of splitmix64).
pub fn mix(value: u64, salt: u64) -> u64 {
    let mut z = value
        .wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The one registry of the simulated world.
#[derive(Debug, Default)]
pub struct Registry {
    /// When all that was asked for will have been sent.
    busy_until: Mutex<Option<Instant>>,
    pulling: AtomicU64,
    /// Most pulls at a time.
    pub most: AtomicU64,
    /// Pulls that were answered with 429.
    pub refused: AtomicU64,
    /// Bytes that it has sent or will send.
    pub bytes: AtomicU64,
}

/// Counts a pull at the registry for as long as it lives.
pub struct Slot<'a>(&'a Registry);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.pulling.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    /// Begins a pull, or answers 429.
    pub fn enter(&self, limit: Option<u64>) -> Option<Slot<'_>> {
        let now = self.pulling.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = Slot(self);
        if limit.is_some_and(|limit| now > limit) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.most.fetch_max(now, Ordering::Relaxed);
        Some(slot)
    }

    /// When a node that asks now has all of its bytes: the slower of its own line, which is `line`
    /// until then, and the registry's. Both serve in the order of asking.
    pub fn arrival(
        &self,
        model: &Model,
        node: usize,
        bytes: u64,
        line: &mut Option<Instant>,
    ) -> Instant {
        let now = Instant::now();
        let factor = if model.is_slow(node) { 10 } else { 1 };
        let received = queued(line, factor * model.transfer(bytes));
        let own = received.max(now + factor * model.least);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if model.registry_bandwidth == 0 {
            return own;
        }
        let mut busy = self
            .busy_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sent =
            busy.map_or(now, |until| until.max(now)) + transfer(bytes, model.registry_bandwidth);
        *busy = Some(sent);
        own.max(sent)
    }
}

/// When something that takes so long is through a line that serves in the order of asking.
pub fn queued(line: &mut Option<Instant>, takes: Duration) -> Instant {
    let now = Instant::now();
    let through = line.map_or(now, |until| until.max(now)) + takes;
    *line = Some(through);
    through
}

fn transfer(bytes: u64, bandwidth: u64) -> Duration {
    if bandwidth == 0 {
        return Duration::ZERO;
    }
    Duration::from_micros(bytes.saturating_mul(1_000_000) / bandwidth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_over_its_limit_refuses_and_counts() {
        let registry = Registry::default();
        let first = registry.enter(Some(1));
        assert!(first.is_some());
        assert!(registry.enter(Some(1)).is_none());
        assert_eq!(registry.refused.load(Ordering::Relaxed), 1);
        drop(first);
        assert!(registry.enter(Some(1)).is_some());
    }

    #[test]
    fn the_share_of_dead_nodes_is_about_what_was_asked_for() {
        let model = Model {
            dead_percent: 10,
            ..Model::default()
        };
        let dead = (0..5_000).filter(|node| model.is_dead(*node)).count();
        assert!((400..600).contains(&dead), "{dead}");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_share_the_registrys_line_in_the_order_of_asking() {
        let registry = Registry::default();
        let model = Model {
            registry_bandwidth: 1_000,
            ..Model::default()
        };
        let start = Instant::now();
        let arrival = |node, bytes| registry.arrival(&model, node, bytes, &mut None) - start;
        assert_eq!(arrival(0, 1_000), Duration::from_secs(1));
        assert_eq!(arrival(1, 2_000), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn two_pulls_of_one_node_share_its_line() {
        let registry = Registry::default();
        let model = Model {
            node_bandwidth: 1_000,
            ..Model::default()
        };
        let (start, mut line) = (Instant::now(), None);
        let mut arrival = || registry.arrival(&model, 0, 1_000, &mut line) - start;
        assert_eq!(arrival(), Duration::from_secs(1));
        assert_eq!(arrival(), Duration::from_secs(2));
    }
}
