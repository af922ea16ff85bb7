//! What scenarios act on: the API server, the fleet, the controller; and how they are measured.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use futures::future::BoxFuture;
use kube::api::DeleteParams;
use kubefledged_api_types::{ImageCache, names};
use kubefledged_process::tls::Served;
use tokio::{process::Command, sync::watch, time::Instant};

use crate::{
    cluster::Cluster,
    controller::{Controller, Program, SAMPLE, own_usage},
    fleet::Fleet,
    report::Row,
};

/// Everything that a scenario acts on.
pub struct World {
    /// The API server.
    pub cluster: Cluster,
    identity: watch::Sender<Option<Arc<Served>>>,
    /// The nodes.
    pub fleet: Arc<Fleet>,
    program: Program,
    /// The controller that is measured.
    pub leader: Option<Controller>,
    /// Controllers started so far; each gets a name and a port of its own.
    started: u16,
    /// Nodes that are registered.
    pub nodes: usize,
    caches: usize,
    /// Longest time for one scenario.
    pub limit: Duration,
}

struct Before {
    at: Instant,
    controller: f64,
    fleet: f64,
    writes: u64,
    lines: u64,
    calls: u64,
    handshakes: u64,
    rss: f64,
}

impl World {
    /// No node, no controller.
    pub fn new(
        cluster: Cluster,
        identity: watch::Sender<Option<Arc<Served>>>,
        fleet: Arc<Fleet>,
        program: Program,
        limit: Duration,
    ) -> Self {
        Self {
            cluster,
            identity,
            fleet,
            program,
            leader: None,
            started: 0,
            nodes: 0,
            caches: 0,
            limit,
        }
    }

    // === set-up

    /// Makes the fleet larger; a smaller one begins with an empty API server.
    pub async fn resize(&mut self, nodes: usize) -> anyhow::Result<()> {
        if nodes < self.nodes {
            self.stop().await?;
            self.cluster.clear().await?;
            self.nodes = 0;
        }
        self.cluster.add_nodes(self.nodes..nodes).await?;
        // Slices are of a hundred: those that were not full are written anew.
        self.cluster
            .add_pullers(self.nodes / 100 * 100..nodes, &self.fleet)
            .await?;
        self.nodes = nodes;
        Ok(())
    }

    /// Whether controllers that start from now on have these flags.
    pub fn set_flags(&mut self, flags: &[&str], on: bool) {
        let known = &mut self.program.flags;
        known.retain(|flag| !flags.contains(&flag.as_str()));
        let flags = flags.iter().filter(|_| on);
        known.extend(flags.map(ToString::to_string));
    }

    /// A program that was built with the controller.
    pub fn beside_controller(&self, name: &str) -> PathBuf {
        self.program.path.with_file_name(name)
    }

    /// One more controller.
    pub fn start_controller(&mut self) -> anyhow::Result<Controller> {
        self.started += 1;
        self.program.start(
            &format!("controller-{}", self.started),
            18_000 + self.started,
        )
    }

    /// A new controller over a fleet that holds nothing, settled. Of registries it knows nothing.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.cluster.forget_leaders().await?;
        self.fleet.wipe();
        let controller = self.start_controller()?;
        self.leader = Some(controller);
        self.present_identity().await?;
        self.settle().await
    }

    /// Waits for the certificate that the leader makes for the pullers, and serves under it.
    async fn present_identity(&self) -> anyhow::Result<()> {
        for _ in 0..600 {
            if let Some(served) = self.cluster.puller_identity().await? {
                self.identity.send_replace(Some(Arc::new(served)));
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("no leader has made the pullers' certificate; see the controller's log")
    }

    /// Waits until somebody leads and no call to a puller has come for a second.
    async fn settle(&mut self) -> anyhow::Result<()> {
        self.caches += 1;
        let probe = format!("probe-{}", self.caches);
        self.cluster
            .create_cache(&probe, vec!["probe.example/probe:1".to_owned()])
            .await?;
        self.cluster
            .wait(&probe, Duration::from_secs(120), |cache| {
                told(cache, names::status::SUCCEEDED)
            })
            .await
            .context("the controller does not lead")?;
        self.cluster
            .caches()
            .delete(&probe, &DeleteParams::default())
            .await?;
        let mut calls = u64::MAX;
        while calls != self.calls() {
            calls = self.calls();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Some(leader) = &mut self.leader {
            leader.check()?;
        }
        self.fleet.wipe();
        Ok(())
    }

    /// Ends the controller.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(leader) = self.leader.take() {
            leader.terminate().await?;
        }
        Ok(())
    }

    /// Calls to pullers so far.
    pub fn calls(&self) -> u64 {
        let counters = &self.fleet.counters;
        [
            &counters.pull_calls,
            &counters.check_calls,
            &counters.remove_calls,
        ]
        .iter()
        .map(|counter| counter.load(Ordering::Relaxed))
        .sum()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> u64 {
        self.fleet.counters.open.load(Ordering::Relaxed)
    }

    /// The controller that is measured.
    pub fn controller(&self) -> anyhow::Result<&Controller> {
        self.leader.as_ref().context("no controller runs")
    }

    // === measuring

    async fn before(&self) -> anyhow::Result<Before> {
        self.controller()?.reset_peak()?;
        let counters = &self.fleet.counters;
        counters
            .most_open
            .store(counters.open.load(Ordering::Relaxed), Ordering::Relaxed);
        let used = self.controller()?.usage()?;
        Ok(Before {
            rss: used.rss,
            handshakes: counters.handshakes.load(Ordering::Relaxed),
            controller: used.cpu,
            fleet: own_usage()?.cpu,
            writes: self.cluster.writes().await?,
            lines: self.controller()?.lines()?,
            calls: self.calls(),
            at: Instant::now(),
        })
    }

    /// Does what is to be measured, and looks at the fleet meanwhile.
    pub async fn measure(
        &self,
        scenario: &str,
        images: usize,
        work: BoxFuture<'_, anyhow::Result<String>>,
    ) -> anyhow::Result<Row> {
        let before = self.before().await?;
        let mut curve = vec![(0.0, pairs(&self.fleet))];
        let mut ticks = tokio::time::interval(SAMPLE);
        let mut work = std::pin::pin!(tokio::time::timeout(self.limit, work));
        let note = loop {
            tokio::select! {
                result = &mut work => break result.context("took longer than --limit")??,
                _ = ticks.tick() => curve.push((before.at.elapsed().as_secs_f64(), pairs(&self.fleet))),
            }
        };
        let seconds = before.at.elapsed().as_secs_f64();
        curve.push((seconds, pairs(&self.fleet)));
        let used = self.controller()?.usage()?;
        Ok(Row {
            scenario: scenario.to_owned(),
            nodes: self.nodes,
            images,
            seconds,
            controller_cpu: used.cpu - before.controller,
            fleet_cpu: own_usage()?.cpu - before.fleet,
            rss_before: before.rss,
            peak_rss: used.peak_rss,
            handshakes: self.fleet.counters.handshakes.load(Ordering::Relaxed) - before.handshakes,
            writes: self.cluster.writes().await? - before.writes,
            lines: self.controller()?.lines()? - before.lines,
            calls: self.calls() - before.calls,
            connections: self.fleet.counters.most_open.load(Ordering::Relaxed),
            note,
            curve,
        })
    }

    /// Names of a cache's images.
    pub fn image_names(cache: usize, count: usize) -> Vec<String> {
        (0..count)
            .map(|image| format!("registry.example/bench{cache}/app{image}:1.0"))
            .collect()
    }

    /// Creates a cache of all images and waits until it is `Succeeded`.
    pub async fn wave(&self, name: &str, images: Vec<String>) -> anyhow::Result<String> {
        self.cluster.create_cache(name, images).await?;
        self.cluster
            .wait(name, self.limit, |cache| {
                told(cache, names::status::SUCCEEDED)
            })
            .await?;
        Ok(String::new())
    }

    /// Waits until so many nodes hold everything.
    pub async fn wait_ready(&self, name: &str, nodes: usize) -> anyhow::Result<()> {
        let all = move |cache: &ImageCache| {
            let counts = cache.status.as_ref().and_then(|status| status.nodes);
            counts.is_some_and(|counts| usize::try_from(counts.ready) == Ok(nodes))
        };
        self.cluster.wait(name, self.limit, all).await.map(|_| ())
    }

    /// Keeps what `kubectl describe` shows of a cache beside the logs; how long it is, as a note.
    pub async fn describe(&self, name: &str) -> anyhow::Result<String> {
        let output = Command::new("kubectl")
            .args(["describe", "imagecache", name])
            .output()
            .await
            .context("cannot run kubectl")?;
        anyhow::ensure!(
            output.status.success(),
            "kubectl describe: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let file = self.program.logs.join(format!("describe-{name}.txt"));
        std::fs::write(&file, &output.stdout)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        Ok(format!("`kubectl describe` has {lines} lines"))
    }

    /// Name and images of the next cache.
    pub fn next_cache(&mut self, images: usize) -> (String, Vec<String>) {
        self.caches += 1;
        (
            format!("bench-{}", self.caches),
            Self::image_names(self.caches, images),
        )
    }

    /// Deletes a cache.
    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.cluster
            .caches()
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Writes that trail behind an operation belong to it, not to the next.
    pub async fn quiet(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[allow(clippy::cast_precision_loss)]
fn pairs(fleet: &Fleet) -> f64 {
    fleet.pairs() as f64
}

/// Does its status say so?
pub fn told(cache: &ImageCache, what: &str) -> bool {
    cache
        .status
        .as_ref()
        .is_some_and(|status| status.status == what)
}
