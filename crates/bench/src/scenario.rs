//! The scenarios. Each begins with a controller that leads and has settled, and ends when the
//! status in the API server says what was asked for.

mod gate;
mod plugin;
mod troubles;
mod workloads;

use std::{sync::atomic::Ordering, time::Duration};

use clap::ValueEnum;
use kube::api::{Patch, PatchParams};
use kubefledged_api_types::{ImageCache, names};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    model::{BASES, Model},
    report::Row,
    world::{World, told},
};

/// Nodes of the fleets that `growth` measures.
pub const GROWTH: [usize; 5] = [500, 1_000, 2_000, 5_000, 15_000];
/// Nodes that join in `join`.
pub const JOINERS: usize = 500;
const MB: u64 = 1_000_000;
const GBIT: u64 = 1_000_000_000 / 8;

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Cold fleet, pulls that take no time; then a check round, one image more, a purge
    Cold,
    /// Cold fleet, 3 MB of an image's own and 7 MB shared by every tenth, 1 Gbit/s a node, 100 Gbit/s from the registry
    Bandwidth,
    /// 500 nodes join a warm fleet within 10 s
    Join,
    /// 500 nodes join within 10 s with the taint of the node gate
    Gate,
    /// The leader is killed when half of the wave is done
    Killed,
    /// A tenth of the nodes never answers, a twentieth is ten times slower
    Sick,
    /// What `kubectl describe` shows: of five images one does not exist; all images of a registry that is down
    Wrong,
    /// The registry answers 429 above 40 pulls at a time
    Limited,
    /// 20 caches of 20 images over the same nodes
    Caches,
    /// Every node's status.images is rewritten every 10 s while the wave runs
    Rewrites,
    /// 10,000 Deployments and 100,000 Pods whose images two caches follow
    Workloads,
    /// The kubectl plugin's matrix of a warm fleet, and its list beside kubectl's
    Plugin,
    /// Cold fleets of 500, 1,000, 2,000, 5,000 and 15,000 nodes
    Growth,
    /// --minutes of churn: caches, nodes, pullers and status.images change all the time
    Soak,
}

impl Scenario {
    /// Images of the cache, where nobody asks for another number. Where pulls take time, a registry's
    /// budget of 64 pulls at a time decides how long a wave is: it is made short enough to be waited for.
    fn images(self) -> usize {
        match self {
            Self::Bandwidth | Self::Gate => 10,
            Self::Wrong => 5,
            Self::Killed | Self::Sick | Self::Limited | Self::Rewrites => 20,
            _ => 100,
        }
    }
}

/// A world in which bytes take time.
fn bytes_model(peers: bool) -> Model {
    Model {
        own_bytes: 3 * MB,
        base_bytes: 7 * MB,
        node_bandwidth: GBIT,
        registry_bandwidth: 100 * GBIT,
        peers,
        ..Model::default()
    }
}

impl World {
    /// Runs one scenario over so many nodes.
    pub async fn play(
        &mut self,
        scenario: Scenario,
        nodes: usize,
        images: Option<usize>,
    ) -> anyhow::Result<Vec<Row>> {
        self.fleet.set_model(Model::default());
        let images = images.unwrap_or_else(|| scenario.images());
        if scenario == Scenario::Growth {
            return self.growth(images).await;
        }
        self.resize(nodes).await?;
        self.set_flags(&gate::FLAGS, scenario == Scenario::Gate);
        self.set_flags(&plugin::FLAGS, scenario == Scenario::Plugin);
        self.set_flags(&workloads::FLAGS, scenario == Scenario::Workloads);
        self.restart().await?;
        match scenario {
            Scenario::Cold => self.cold_and_after(images).await,
            Scenario::Bandwidth => self.bandwidth(images).await,
            Scenario::Join => Ok(vec![self.join(images).await?]),
            Scenario::Gate => Ok(vec![self.gate(images).await?]),
            Scenario::Killed => Ok(vec![self.killed(images).await?]),
            Scenario::Sick => Ok(vec![self.sick(images).await?]),
            Scenario::Wrong => self.wrong(images).await,
            Scenario::Limited => Ok(vec![self.limited(images).await?]),
            Scenario::Caches => Ok(vec![self.many_caches().await?]),
            Scenario::Rewrites => self.rewrites(images).await,
            Scenario::Plugin => self.plugin(images).await,
            Scenario::Workloads => self.workloads().await,
            Scenario::Growth | Scenario::Soak => Ok(Vec::new()),
        }
    }

    // === scenarios

    async fn cold_and_after(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        let (name, images) = self.next_cache(count);
        let wave = Box::pin(self.wave(&name, images.clone()));
        let mut row = self
            .measure("cold, pulls take no time", count, wave)
            .await?;
        self.quiet().await;
        row.note = self.describe(&name).await?;
        let mut rows = vec![row];

        let check = Box::pin(self.refresh(&name));
        let what = "refresh of the warm fleet (a check round)";
        rows.push(self.measure(what, count, check).await?);
        self.quiet().await;

        let add = Box::pin(self.add_one(&name, images));
        rows.push(self.measure("one image more", count + 1, add).await?);
        self.quiet().await;

        let purge = Box::pin(self.purge(&name));
        rows.push(self.measure("purge", count + 1, purge).await?);
        self.delete(&name).await?;
        Ok(rows)
    }

    async fn refresh(&self, name: &str) -> anyhow::Result<String> {
        let before = self.status_text(name).await?;
        annotate(&self.cluster.caches(), name, names::REFRESH_ANNOTATION).await?;
        self.cluster
            .wait(name, self.limit, |cache| {
                let refreshed = cache
                    .status
                    .as_ref()
                    .and_then(|status| status.last_refresh_time);
                refreshed.is_some() && format!("{refreshed:?}") != before && !has_annotation(cache)
            })
            .await?;
        Ok(String::new())
    }

    async fn add_one(&self, name: &str, mut images: Vec<String>) -> anyhow::Result<String> {
        images.push(format!("registry.example/{name}/one-more:1.0"));
        let patch = json!({"spec": {"cacheSpec": [{"images": images}]}});
        let caches = self.cluster.caches();
        let patched = caches
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        let generation = patched.metadata.generation;
        self.cluster
            .wait(name, self.limit, |cache| {
                cache
                    .status
                    .as_ref()
                    .is_some_and(|status| status.observed_generation == generation)
                    && told(cache, names::status::SUCCEEDED)
            })
            .await?;
        Ok(String::new())
    }

    async fn purge(&self, name: &str) -> anyhow::Result<String> {
        annotate(&self.cluster.caches(), name, names::PURGE_ANNOTATION).await?;
        self.cluster
            .wait(name, self.limit, |cache| {
                let purge = cache
                    .status
                    .as_ref()
                    .and_then(|status| status.purge.as_ref());
                purge.is_some_and(|purge| purge.completion_time.is_some())
            })
            .await?;
        let left = self.fleet.pairs();
        anyhow::ensure!(left == 0, "{left} pairs are left after the purge");
        Ok(String::new())
    }

    /// Without layers from other nodes, and with them.
    async fn bandwidth(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        let alone = self.wave_of_bytes(count, false).await?;
        self.fleet.set_model(bytes_model(true));
        // The new controller asks every node whether it shares.
        self.restart().await?;
        let shared = self.wave_of_bytes(count, true).await?;
        Ok(vec![alone, shared])
    }

    async fn wave_of_bytes(&mut self, count: usize, peers: bool) -> anyhow::Result<Row> {
        self.fleet.set_model(bytes_model(peers));
        let (name, images) = self.next_cache(count);
        let bases = count.min(BASES) as u64;
        let image_bytes = (count as u64 * 3 + bases * 7) * MB;
        let ideal = self.nodes as u64 * image_bytes / (100 * GBIT);
        let fleet = self.fleet.clone();
        let work = async {
            self.wave(&name, images).await?;
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            #[allow(clippy::cast_precision_loss)]
            let times = load(&fleet.registry.bytes) as f64 / image_bytes as f64;
            let fallbacks = load(&fleet.counters.fallbacks);
            Ok(if peers {
                format!(
                    "the registry sent {times:.2} x the images, {fallbacks} pulls fell back to it"
                )
            } else {
                format!("the registry sent {times:.0} x the images; its line alone takes {ideal} s")
            })
        };
        let what = if peers {
            "cold, 100 Gbit/s registry, layers from other nodes"
        } else {
            "cold, 100 Gbit/s registry"
        };
        let row = self.measure(what, count, Box::pin(work)).await?;
        self.delete(&name).await?;
        Ok(row)
    }

    async fn join(&mut self, count: usize) -> anyhow::Result<Row> {
        let (name, images) = self.next_cache(count);
        self.wave(&name, images).await?;
        self.quiet().await;
        let from = self.nodes;
        self.nodes += JOINERS;
        let work = async {
            let start = Instant::now();
            for step in 0..5 {
                let range = from + step * 100..from + (step + 1) * 100;
                self.cluster.add_nodes(range.clone()).await?;
                self.cluster
                    .add_pullers(range.start / 100 * 100..range.end, &self.fleet)
                    .await?;
                tokio::time::sleep_until(
                    start + Duration::from_secs(2) * (u32::try_from(step)? + 1),
                )
                .await;
            }
            let joined = Instant::now();
            self.wait_ready(&name, self.nodes).await?;
            Ok(format!(
                "all warm {:.2} s after the last joined",
                joined.elapsed().as_secs_f64()
            ))
        };
        let row = self
            .measure("500 nodes join within 10 s", count, Box::pin(work))
            .await?;
        self.delete(&name).await?;
        Ok(row)
    }

    async fn many_caches(&mut self) -> anyhow::Result<Row> {
        let names: Vec<String> = (0..20).map(|cache| format!("many-{cache}")).collect();
        let work = async {
            let waves = names.iter().enumerate().map(|(at, name)| {
                let images = Self::image_names(1000 + at, 20);
                self.wave(name, images)
            });
            futures::future::try_join_all(waves).await?;
            Ok("20 caches of 20 images".to_owned())
        };
        let row = self
            .measure("20 caches over the same nodes", 400, Box::pin(work))
            .await?;
        for name in &names {
            self.delete(name).await?;
        }
        Ok(row)
    }

    async fn rewrites(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(50),
            ..Model::default()
        });
        let (name, images) = self.next_cache(count);
        let work = async {
            let wave = self.wave(&name, images);
            let rewriting = async {
                for round in 0.. {
                    let started = Instant::now();
                    self.cluster.rewrite_images(0..self.nodes, round).await?;
                    tokio::time::sleep_until(started + Duration::from_secs(10)).await;
                }
                anyhow::Ok(())
            };
            tokio::select! {
                done = wave => done?,
                ended = rewriting => { ended?; String::new() }
            };
            Ok("every node's status.images rewritten every 10 s".to_owned())
        };
        let row = self
            .measure(
                "status.images rewritten during the wave",
                count,
                Box::pin(work),
            )
            .await?;
        let ignored = self.ignored_events(count).await?;
        self.delete(&name).await?;
        Ok(vec![row, ignored])
    }

    /// What it costs that the API server sends whole Nodes in which nothing has changed for us.
    async fn ignored_events(&mut self, count: usize) -> anyhow::Result<Row> {
        const ROUNDS: usize = 2;
        self.quiet().await;
        let work = async {
            for round in 0..ROUNDS {
                let round = 1_000_000 + round;
                self.cluster.rewrite_images(0..self.nodes, round).await?;
            }
            self.quiet().await;
            Ok(String::new())
        };
        let scenario = "the same of the warm fleet, twice";
        let mut row = self.measure(scenario, count, Box::pin(work)).await?;
        #[allow(clippy::cast_precision_loss)]
        let events = (ROUNDS * self.nodes) as f64;
        let micros = row.controller_cpu * 1e6 / events;
        row.note = format!("{micros:.0} µs of the controller's processor for each Node");
        Ok(row)
    }

    async fn growth(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for nodes in GROWTH {
            self.resize(nodes).await?;
            self.restart().await?;
            let (name, images) = self.next_cache(count);
            let row = self
                .measure(
                    &format!("cold {nodes}"),
                    count,
                    Box::pin(self.wave(&name, images)),
                )
                .await?;
            self.delete(&name).await?;
            rows.push(row);
        }
        Ok(rows)
    }

    async fn status_text(&self, name: &str) -> anyhow::Result<String> {
        let cache = self.cluster.caches().get(name).await?;
        Ok(format!(
            "{:?}",
            cache.status.and_then(|status| status.last_refresh_time)
        ))
    }
}

fn has_annotation(cache: &ImageCache) -> bool {
    let annotations = cache.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(names::REFRESH_ANNOTATION))
}

/// Sets an annotation without a value.
pub async fn annotate(
    caches: &kube::Api<ImageCache>,
    name: &str,
    annotation: &str,
) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: ""}}}));
    caches.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
