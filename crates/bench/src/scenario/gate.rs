//! Nodes that join with the taint of the node gate: how long each is held although it is warm, and what that costs the
//! API server.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

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
        let most = OnceLock::new();
        let work = async {
            let warm = self.warm(joiners.clone(), count);
            let released = self.released(joiners.clone());
            let joined = self.join_tainted(joiners.clone());
            let (warm, released, ()) = tokio::try_join!(warm, released, joined)?;
            let held = held(&warm, &released)?;
            let [median, late, last] = [50, 99, 100].map(|percent| part(&held, percent));
            let most = *most.get_or_init(|| last);
            Ok(format!(
                "held although warm: median {median:.2?}, 99 of 100 {late:.2?}, most {most:.2?}"
            ))
        };
        let what = "500 nodes join with the gate's taint within 10 s";
        let mut row = self.measure(what, count, Box::pin(work)).await?;
        self.quiet().await;
        let patches = self.cluster.node_patches().await? - before;
        row.note = format!("{}; {patches} writes to Nodes", row.note);
        anyhow::ensure!(patches <= MOST_WRITES * JOINERS as u64, "{}", row.note);
        anyhow::ensure!(
            most.get().is_some_and(|most| *most <= MOST_HELD),
            "{}",
            row.note
        );
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
    Ok(held)
}

/// The one below which so many per cent are.
fn part(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_is_released_cold_or_never_is_an_error() {
        let now = Instant::now();
        let at = |ms| Moments::from([(1, now + Duration::from_millis(ms))]);
        assert_eq!(
            held(&at(100), &at(400)).unwrap(),
            [Duration::from_millis(300)]
        );
        let all: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(part(&all, 50), Duration::from_millis(101));
        assert_eq!(part(&all, 100), Duration::from_millis(200));
        assert!(held(&at(1000), &at(100)).is_err());
        assert!(held(&at(0), &Moments::new()).is_err());
    }
}
