//! Which of the controllers leads, and what happens to it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::{Cluster, fleet::OURS};

/// Who holds the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Name of the pod.
    pub pod: String,
    /// The same and a part that every process has its own of.
    pub identity: String,
    /// Rises with every change of leader.
    pub term: u64,
}

impl Cluster {
    /// None: nobody, at this moment.
    pub fn lease(&self) -> anyhow::Result<Option<Leader>> {
        let json = self.kubectl(&format!(
            "get lease kubefledged-controller -n {OURS} --ignore-not-found -o json"
        ))?;
        if json.trim().is_empty() {
            return Ok(None);
        }
        let lease: Value = serde_json::from_str(&json)?;
        let identity = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let pod = identity.rsplit_once('_').map(|(pod, _)| pod.to_owned());
        Ok(pod.map(|pod| Leader {
            pod,
            identity: identity.to_owned(),
            term: lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0),
        }))
    }

    /// The one who leads, with all controllers ready.
    pub fn leader(&self) -> anyhow::Result<Leader> {
        self.ready("controller", 2)?;
        self.until(Duration::from_secs(30), "somebody leads", || self.lease())
    }

    /// Sees to it that the leader is not on the node of this number.
    pub fn lead_away_from(&self, node: &str) -> anyhow::Result<()> {
        let leader = self.leader()?;
        let mut pods = self.pods("controller")?;
        pods.retain(|pod| pod.node == node);
        if !pods.iter().any(|pod| pod.name == leader.pod) {
            return Ok(());
        }
        self.kubectl(&format!("cordon n{node}"))?;
        let moved = pods
            .iter()
            .try_for_each(|pod| {
                let delete = format!("delete pod {} -n {OURS} --wait=true", pod.name);
                self.kubectl(&delete).map(drop)
            })
            .and_then(|()| self.succeeded(&leader))
            .and_then(|_| self.leader());
        self.kubectl(&format!("uncordon n{node}"))?;
        moved.map(drop)
    }

    /// Sends a signal to the process of a controller's pod.
    pub fn signal_controller(&self, pod: &str, signal: &str) -> anyhow::Result<()> {
        let pods = self.pods("controller")?;
        let pod = pods.iter().find(|known| known.name == pod);
        let pod = pod.context("the pod is gone")?;
        let found = self.pod_processes(&pod.node, &pod.uid, "kubefledged-con")?;
        let [process] = &found[..] else {
            anyhow::bail!("{} has not one process but {found:?}", pod.name);
        };
        let pid = process.trim_start_matches("/proc/");
        self.run(&["node", &pod.node, "kill", &format!("-{signal}"), pid], "")?;
        Ok(())
    }

    /// Waits until another process leads, and says how long it took.
    pub fn succeeded(&self, old: &Leader) -> anyhow::Result<(Duration, Leader)> {
        let since = Instant::now();
        let what = format!("somebody takes over from {}", old.identity);
        let new = self.until(Duration::from_secs(40), &what, || {
            let lease = self.lease().ok().flatten();
            Ok(lease.filter(|leader| leader.identity != old.identity))
        })?;
        Ok((since.elapsed(), new))
    }
}
