//! Nodes that join with the taint of the node gate: how long each is held although it is warm, and what that costs the
//! API server.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use kubefledged_api_types::{NodeGate, names::IMAGES_NOT_CACHED_TAINT};
use tokio::time::Instant;

use super::JOINERS;
use crate::{fleet, report::Row, world::World};

/// Flags that switch both halves of the gate on.
pub const FLAGS: [&str; 3] = [
    "--node-gate-condition",
    "--node-gate-taint-key=kubefledged.io/images-not-cached",
    "--node-gate-timeout=10m",
];
/// Between two looks at what the nodes hold.
const LOOK: Duration = Duration::from_millis(20);
/// A warm node may be held for so long.
const MOST_HELD: Duration = Duration::from_secs(2);
/// Most writes for each node.
const MOST_WRITES: u64 = 3;

/// When each node was warm or released.
type Moments = BTreeMap<usize, Instant>;

impl World {
    pub(super) async fn gate(&mut self, count: usize) -> anyhow::Result<Row> {
        let (name, images) = self.next_cache(count);
        let mut spec = crate::cluster::spec(images);
        spec.node_gate = Some(NodeGate::Required);
        self.cluster.create(&name, spec).await?;
        self.wait_ready(&name, self.nodes).await?;
        self.quiet().await;
        let from = self.nodes;
        self.nodes += JOINERS;
        let joiners = from..self.nodes;
        let before = self.cluster.node_patches().await?;
        let work = async {
            let warm = self.warm(joiners.clone(), count);
            let released = self.released(joiners.clone());
            let joined = self.join_tainted(joiners.clone());
            let (warm, released, ()) = tokio::try_join!(warm, released, joined)?;
            let held = held(&warm, &released)?;
            let last = held.iter().max().copied().unwrap_or_default();
            let median = held.get(held.len() / 2).copied().unwrap_or_default();
            Ok(format!(
                "from warm to released: median {:.0} ms, at most {:.0} ms",
                median.as_secs_f64() * 1e3,
                last.as_secs_f64() * 1e3
            ))
        };
        let what = "500 nodes join with the gate's taint within 10 s";
        let mut row = self.measure(what, count, Box::pin(work)).await?;
        self.quiet().await;
        let patches = self.cluster.node_patches().await? - before;
        row.note = format!("{}; {patches} writes to Nodes", row.note);
        anyhow::ensure!(patches <= MOST_WRITES * JOINERS as u64, "{}", row.note);
        self.delete(&name).await?;
        Ok(row)
    }

    /// Nodes come in five steps of two seconds each, and their pullers with them.
    async fn join_tainted(&self, joiners: std::ops::Range<usize>) -> anyhow::Result<()> {
        let start = Instant::now();
        let step = joiners.len() / 5;
        for part in 0..5 {
            let from = joiners.start + part * step;
            let range = from..from + step;
            let taint = Some(IMAGES_NOT_CACHED_TAINT);
            self.cluster.add_tainted_nodes(range.clone(), taint).await?;
            let slices = range.start / 100 * 100..range.end;
            self.cluster.add_pullers(slices, &self.fleet).await?;
            let next = Duration::from_secs(2) * (u32::try_from(part)? + 1);
            tokio::time::sleep_until(start + next).await;
        }
        Ok(())
    }

    /// When each node held every image: looked at from the side of the nodes.
    async fn warm(&self, nodes: std::ops::Range<usize>, count: usize) -> anyhow::Result<Moments> {
        let mut warm = Moments::new();
        while warm.len() < nodes.len() {
            for node in nodes.clone() {
                if !warm.contains_key(&node) && self.fleet.held(node) >= count {
                    warm.insert(node, Instant::now());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(warm)
    }

    /// When each node lost the taint: as a scheduler sees it.
    async fn released(&self, nodes: std::ops::Range<usize>) -> anyhow::Result<Moments> {
        let numbers: BTreeMap<String, usize> =
            nodes.map(|node| (fleet::name(node), node)).collect();
        let api: Api<Node> = self.cluster.nodes();
        let changes = watcher(api, watcher::Config::default()).applied_objects();
        let mut changes = std::pin::pin!(changes);
        let mut released = Moments::new();
        while released.len() < numbers.len() {
            let node = changes
                .try_next()
                .await?
                .context("the watch of Nodes ended")?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let held = taints
                .iter()
                .any(|taint| taint.key == IMAGES_NOT_CACHED_TAINT);
            let number = node.metadata.name.and_then(|name| numbers.get(&name));
            if let Some(number) = number.filter(|_| !held) {
                released.entry(*number).or_insert_with(Instant::now);
            }
        }
        Ok(released)
    }
}

/// How long each node was held although it was warm, in rising order. A cold node that was released is an error.
fn held(warm: &Moments, released: &Moments) -> anyhow::Result<Vec<Duration>> {
    let mut held = Vec::new();
    for (node, warm) in warm {
        let released = released.get(node).context("a node was not released")?;
        // The nodes are looked at less often than the watch tells.
        anyhow::ensure!(
            *released + 2 * LOOK + Duration::from_millis(100) >= *warm,
            "a cold node was released"
        );
        held.push(released.saturating_duration_since(*warm));
    }
    held.sort();
    let last = held.last().copied().unwrap_or_default();
    anyhow::ensure!(last <= MOST_HELD, "a warm node was held for {last:?}");
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_is_released_cold_or_held_warm_is_an_error() {
        let now = Instant::now();
        let at = |ms| Moments::from([(1, now + Duration::from_millis(ms))]);
        assert_eq!(
            held(&at(100), &at(400)).unwrap(),
            [Duration::from_millis(300)]
        );
        assert!(held(&at(1000), &at(100)).is_err());
        assert!(held(&at(0), &at(2500)).is_err());
        assert!(held(&at(0), &Moments::new()).is_err());
    }
}
