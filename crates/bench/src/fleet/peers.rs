//! Layers that nodes of the fleet take from each other. A node sends in the order of asking; half of an image comes from
//! each of two nodes, and no node has more than who sends to it.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::Fleet;
use crate::model::{Model, queued};

/// A node that finds another without the pull asks it again for so long.
const ASKS_AGAIN: Duration = Duration::from_secs(5);
/// Pause between two of these questions.
const PAUSE: Duration = Duration::from_millis(50);
/// The runtime looks whether a layer has come: after a random part of so long, then of twice as long, up to the last
/// (`content.OpenWriter` of containerd 2.4).
const LOOKS: (Duration, Duration) = (Duration::from_millis(16), Duration::from_millis(2_048));

/// What one pull takes from others.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// Which node takes it.
    pub node: usize,
    /// Which image.
    pub image: usize,
    /// How many bytes.
    pub bytes: u64,
    /// From whom, as the controller said.
    pub peers: &'a [usize],
}

impl Fleet {
    /// When a node has an image that it takes from others; `None`: they do not have it.
    pub async fn taken_from_peers(&self, model: &Model, taken: Taken<'_>) -> Option<Instant> {
        let begun = Instant::now();
        let (even, odd) = (*taken.peers.first()?, *taken.peers.last()?);
        let (even, odd) = tokio::join!(
            self.stripe(model, taken, 0, even),
            self.stripe(model, taken, 1, odd)
        );
        let Some((even, odd)) = even.zip(odd) else {
            self.counters.fallbacks.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let bytes = &self.counters.peer_bytes;
        bytes.fetch_add(taken.bytes, Ordering::Relaxed);
        Some(noticed(begun, even.max(odd)))
    }

    /// When half of an image has come from a node.
    async fn stripe(
        &self,
        model: &Model,
        taken: Taken<'_>,
        stripe: usize,
        peer: usize,
    ) -> Option<Instant> {
        let Taken {
            node, image, bytes, ..
        } = taken;
        let until = Instant::now() + ASKS_AGAIN;
        let there = loop {
            if let Some(there) = self.there(peer, image, stripe) {
                break there;
            }
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        };
        let time = model.transfer(bytes / 2);
        let sent = queued(&mut self.nodes[peer].lock().uplink, time);
        let mut state = self.nodes[node].lock();
        let received = queued(&mut state.line, time);
        let arrival = there.max(sent).max(received);
        state.arriving.entry(image).or_default()[stripe] = Some(arrival);
        Some(arrival)
    }

    /// When a node has half of an image, which others can take from it as it comes; `None`: it neither has nor
    /// receives it.
    fn there(&self, node: usize, image: usize, stripe: usize) -> Option<Instant> {
        let state = self.nodes.get(node)?.lock();
        let held = state.held.contains(image).then(Instant::now);
        held.or_else(|| state.arriving.get(&image)?[stripe])
    }
}

/// When the runtime, which looks since `begun`, sees a layer that comes at `arrival`; with the mean of each pause.
fn noticed(begun: Instant, arrival: Instant) -> Instant {
    let (mut pause, last) = LOOKS;
    let mut at = begun;
    while at < arrival {
        at += pause / 2;
        pause = (2 * pause).min(last);
    }
    at
}

#[cfg(test)]
mod tests {
    use kubefledged_proto::puller::PullResult;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_passes_on_while_it_receives_and_the_registry_sends_once() {
        let fleet = Fleet::new(4);
        fleet.set_model(Model {
            own_bytes: 1_000,
            node_bandwidth: 1_000,
            peers: true,
            ..Model::default()
        });
        fleet.pull(0, (1, 1), 0, "r/a:1", &[]).await;
        let start = Instant::now();
        let (a, b) = tokio::join!(
            fleet.pull(1, (1, 2), 0, "r/a:1", &[0, 2]),
            fleet.pull(2, (1, 3), 0, "r/a:1", &[1, 0]),
        );
        assert_eq!(
            (a.result(), b.result()),
            (PullResult::Pulled, PullResult::Pulled)
        );
        let took = start.elapsed();
        assert!(
            took < Duration::from_millis(2_200),
            "a second on the line, and the look: {took:?}"
        );
        assert_eq!(fleet.counters.peer_bytes.load(Ordering::Relaxed), 2_000);
        assert_eq!(fleet.registry.bytes.load(Ordering::Relaxed), 1_000);
        // Who was named has nothing: the registry sends it.
        fleet.pull(3, (1, 4), 0, "r/b:1", &[1, 2]).await;
        assert_eq!(fleet.counters.fallbacks.load(Ordering::Relaxed), 1);
        assert_eq!(fleet.registry.bytes.load(Ordering::Relaxed), 2_000);
    }
}
