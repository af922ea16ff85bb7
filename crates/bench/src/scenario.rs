//! The scenarios. Each begins with a controller that leads and has settled, and ends when the
//! status in the API server says what was asked for.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use futures::future::BoxFuture;
use kube::api::{DeleteParams, Patch, PatchParams};
use kubefledged_api_types::{ImageCache, names};
use kubefledged_process::tls::Served;
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::{
    cluster::Cluster,
    controller::{Controller, Program, SAMPLE, own_usage},
    fleet::Fleet,
    model::Model,
    report::{self, Row},
    serve,
};

const PULLER_PORT: u16 = 7443;
const MIB: u64 = 1 << 20;

/// Runs scenarios against the API server of KUBECONFIG, in a network namespace where 10.100.0.0/16
/// is local. `hack/bench-fleet` makes both.
#[derive(Debug, Parser)]
pub struct Args {
    /// What to run, in this order
    #[arg(required = true)]
    pub scenarios: Vec<Scenario>,
    /// Nodes in the fleet
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub nodes: u32,
    /// Images of the cache
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub images: u32,
    /// The controller's binary
    #[arg(long)]
    pub controller: PathBuf,
    /// More flags for it, each with its value
    #[arg(long = "controller-flag", allow_hyphen_values = true)]
    pub controller_flags: Vec<String>,
    /// Folder for the logs of controllers
    #[arg(long)]
    pub logs: PathBuf,
    /// Markdown file whose tables are replaced
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Longest time for one scenario, in seconds
    #[arg(long, default_value_t = 300)]
    pub limit: u64,
}

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Cold fleet, pulls that take no time; then a check round, one image more, a purge
    Cold,
    /// Cold fleet, 30 MB of an image's own and 70 MB shared, 1 Gbit/s a node, 100 Gbit/s from the registry
    Bandwidth,
    /// 500 nodes join a warm fleet within 10 s
    Join,
    /// The leader is killed when half of the wave is done
    Killed,
    /// A tenth of the nodes never answers, a twentieth is ten times slower
    Sick,
    /// The registry answers 429 above 200 pulls at a time
    Limited,
    /// 20 caches of 20 images over the same nodes
    Caches,
    /// Every node's status.images is rewritten every 10 s while the wave runs
    Rewrites,
    /// Cold fleets of 500, 1,000, 2,000, 5,000 and 15,000 nodes
    Growth,
}

/// Runs what the arguments say and prints the table.
pub async fn run(args: Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.logs)?;
    let most = if args.scenarios.contains(&Scenario::Growth) {
        15_000
    } else {
        args.nodes as usize + 500
    };
    let fleet = Arc::new(Fleet::new(most));
    let cluster = Cluster::connect().await?;
    cluster.prepare().await?;
    cluster.clear().await?;
    let program = Program {
        path: args.controller.clone(),
        logs: args.logs.clone(),
        flags: args.controller_flags.clone(),
    };
    let (identity, served) = watch::channel(None);
    let mut world = World {
        identity,
        cluster,
        fleet,
        program,
        leader: None,
        started: 0,
        nodes: 0,
        caches: 0,
        images: args.images as usize,
        limit: Duration::from_secs(args.limit),
    };
    let serving = serve::serve(world.fleet.clone(), PULLER_PORT, served);
    let measuring = async {
        for scenario in &args.scenarios {
            let rows = world
                .play(*scenario, args.nodes as usize)
                .await
                .with_context(|| format!("scenario {scenario:?}"))?;
            let text = publish(*scenario, &rows, args.report.as_deref())?;
            println!("{text}");
        }
        world.stop().await
    };
    tokio::select! {
        result = measuring => result,
        ended = serving => ended,
    }
}

fn publish(
    scenario: Scenario,
    rows: &[Row],
    file: Option<&std::path::Path>,
) -> anyhow::Result<String> {
    let name = format!("fleet-{scenario:?}").to_lowercase();
    let mut text = report::table(rows);
    let Some(file) = file else {
        return Ok(text);
    };
    let folder = file.with_extension("");
    let plot = folder.join(format!("{name}.svg"));
    if scenario == Scenario::Growth {
        text = format!("{text}\n{}", report::growth(rows));
        #[allow(clippy::cast_precision_loss)]
        let line = |name: &str, value: fn(&Row) -> f64| {
            (
                name.to_owned(),
                rows.iter()
                    .map(|row| (row.nodes as f64, value(row)))
                    .collect(),
            )
        };
        let lines = [
            line("wall s", |row| row.seconds),
            line("controller CPU s", |row| row.controller_cpu),
        ];
        report::plot(&plot, "growth with the fleet", "nodes", "seconds", &lines)?;
    } else {
        let lines: Vec<_> = rows
            .iter()
            .filter(|row| row.curve.len() > 1)
            .map(|row| (row.scenario.clone(), row.curve.clone()))
            .collect();
        report::plot(
            &plot,
            &name,
            "seconds",
            "pairs of node and image present",
            &lines,
        )?;
    }
    let shown = format!(
        "performance/{}",
        plot.file_name().unwrap_or_default().to_string_lossy()
    );
    report::insert(file, &name, &format!("{text}\n![{name}]({shown})"))?;
    Ok(text)
}

struct World {
    cluster: Cluster,
    identity: watch::Sender<Option<Arc<Served>>>,
    fleet: Arc<Fleet>,
    program: Program,
    leader: Option<Controller>,
    /// Controllers started so far; each gets a name and a port of its own.
    started: u16,
    nodes: usize,
    caches: usize,
    images: usize,
    limit: Duration,
}

struct Before {
    at: Instant,
    controller: f64,
    fleet: f64,
    writes: u64,
    calls: u64,
}

impl World {
    async fn play(&mut self, scenario: Scenario, nodes: usize) -> anyhow::Result<Vec<Row>> {
        self.fleet.set_model(Model::default());
        if scenario == Scenario::Growth {
            return self.growth().await;
        }
        self.resize(nodes).await?;
        self.restart().await?;
        match scenario {
            Scenario::Cold => self.cold_and_after().await,
            Scenario::Bandwidth => Ok(vec![self.bandwidth().await?]),
            Scenario::Join => Ok(vec![self.join().await?]),
            Scenario::Killed => Ok(vec![self.killed().await?]),
            Scenario::Sick => Ok(vec![self.sick().await?]),
            Scenario::Limited => Ok(vec![self.limited().await?]),
            Scenario::Caches => Ok(vec![self.many_caches().await?]),
            Scenario::Rewrites => Ok(vec![self.rewrites().await?]),
            Scenario::Growth => Ok(Vec::new()),
        }
    }

    // === set-up

    /// Makes the fleet larger; a smaller one begins with an empty API server.
    async fn resize(&mut self, nodes: usize) -> anyhow::Result<()> {
        if nodes < self.nodes {
            self.stop().await?;
            self.cluster.clear().await?;
            self.nodes = 0;
        }
        self.cluster.add_nodes(self.nodes..nodes).await?;
        // Slices are of a hundred: those that were not full are written anew.
        self.cluster
            .add_pullers(self.nodes / 100 * 100..nodes, &Model::default())
            .await?;
        self.nodes = nodes;
        Ok(())
    }

    fn start_controller(&mut self) -> anyhow::Result<Controller> {
        self.started += 1;
        self.program.start(
            &format!("controller-{}", self.started),
            18_000 + self.started,
        )
    }

    /// A new controller over a fleet that holds nothing, settled.
    async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
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
            .create_cache(&probe, vec!["registry.example/probe:1".to_owned()])
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

    async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(leader) = self.leader.take() {
            leader.terminate().await?;
        }
        Ok(())
    }

    fn calls(&self) -> u64 {
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

    fn controller(&self) -> anyhow::Result<&Controller> {
        self.leader.as_ref().context("no controller runs")
    }

    // === measuring

    async fn before(&self) -> anyhow::Result<Before> {
        self.controller()?.reset_peak()?;
        let counters = &self.fleet.counters;
        counters
            .most_open
            .store(counters.open.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(Before {
            controller: self.controller()?.usage()?.cpu,
            fleet: own_usage()?.cpu,
            writes: self.cluster.writes().await?,
            calls: self.calls(),
            at: Instant::now(),
        })
    }

    /// Does what is to be measured, and looks at the fleet meanwhile.
    async fn measure(
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
            peak_rss: used.peak_rss,
            writes: self.cluster.writes().await? - before.writes,
            calls: self.calls() - before.calls,
            connections: self.fleet.counters.most_open.load(Ordering::Relaxed),
            note,
            curve,
        })
    }

    fn image_names(cache: usize, count: usize) -> Vec<String> {
        (0..count)
            .map(|image| format!("registry.example/bench{cache}/app{image}:1.0"))
            .collect()
    }

    /// Creates a cache of all images and waits until it is `Succeeded`.
    async fn wave(&self, name: &str, images: Vec<String>) -> anyhow::Result<String> {
        self.cluster.create_cache(name, images).await?;
        self.cluster
            .wait(name, self.limit, |cache| {
                told(cache, names::status::SUCCEEDED)
            })
            .await?;
        Ok(String::new())
    }

    async fn wait_ready(&self, name: &str, nodes: usize) -> anyhow::Result<()> {
        let all = move |cache: &ImageCache| {
            let counts = cache.status.as_ref().and_then(|status| status.nodes);
            counts.is_some_and(|counts| usize::try_from(counts.ready) == Ok(nodes))
        };
        self.cluster.wait(name, self.limit, all).await.map(|_| ())
    }

    // === scenarios

    async fn cold_and_after(&mut self) -> anyhow::Result<Vec<Row>> {
        self.caches += 1;
        let (name, count) = (format!("bench-{}", self.caches), self.images);
        let images = Self::image_names(self.caches, count);
        let caches = self.cluster.caches();
        let mut rows = Vec::new();
        rows.push(
            self.measure(
                "cold, pulls take no time",
                count,
                Box::pin(self.wave(&name, images.clone())),
            )
            .await?,
        );
        self.quiet().await;

        let check = async {
            let before = self.status_text(&name).await?;
            annotate(&caches, &name, names::REFRESH_ANNOTATION).await?;
            self.cluster
                .wait(&name, self.limit, |cache| {
                    let refreshed = cache
                        .status
                        .as_ref()
                        .and_then(|status| status.last_refresh_time);
                    refreshed.is_some()
                        && format!("{refreshed:?}") != before
                        && !has_annotation(cache)
                })
                .await?;
            Ok(String::new())
        };
        rows.push(
            self.measure(
                "refresh of the warm fleet (a check round)",
                count,
                Box::pin(check),
            )
            .await?,
        );
        self.quiet().await;

        let add = async {
            let mut more = images.clone();
            more.push(format!("registry.example/{name}/one-more:1.0"));
            let patch = json!({"spec": {"cacheSpec": [{"images": more}]}});
            let patched = caches
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            let generation = patched.metadata.generation;
            self.cluster
                .wait(&name, self.limit, |cache| {
                    cache
                        .status
                        .as_ref()
                        .is_some_and(|status| status.observed_generation == generation)
                        && told(cache, names::status::SUCCEEDED)
                })
                .await?;
            Ok(String::new())
        };
        rows.push(
            self.measure("one image more", count + 1, Box::pin(add))
                .await?,
        );
        self.quiet().await;

        let purge = async {
            annotate(&caches, &name, names::PURGE_ANNOTATION).await?;
            self.cluster
                .wait(&name, self.limit, |cache| {
                    let purge = cache
                        .status
                        .as_ref()
                        .and_then(|status| status.purge.as_ref());
                    purge.is_some_and(|purge| purge.completion_time.is_some())
                })
                .await?;
            anyhow::ensure!(
                self.fleet.pairs() == 0,
                "{} pairs are left after the purge",
                self.fleet.pairs()
            );
            Ok(String::new())
        };
        rows.push(self.measure("purge", count + 1, Box::pin(purge)).await?);
        caches.delete(&name, &DeleteParams::default()).await?;
        Ok(rows)
    }

    async fn bandwidth(&mut self) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            own_bytes: 30 * MIB,
            base_bytes: 70 * MIB,
            node_bandwidth: 1_000_000_000 / 8,
            registry_bandwidth: 100_000_000_000 / 8,
            ..Model::default()
        });
        let (name, images) = self.next_cache();
        let bytes = self.nodes as u64 * (self.images as u64 * 30 + 10 * 70) * MIB;
        let ideal = bytes / (100_000_000_000 / 8);
        let work = async {
            self.wave(&name, images).await?;
            Ok(format!("the registry's line alone takes {ideal} s"))
        };
        let row = self
            .measure("cold, 100 Gbit/s registry", self.images, Box::pin(work))
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        Ok(row)
    }

    async fn join(&mut self) -> anyhow::Result<Row> {
        let (name, images) = self.next_cache();
        self.wave(&name, images).await?;
        self.quiet().await;
        let from = self.nodes;
        self.nodes += 500;
        let work = async {
            let start = Instant::now();
            for step in 0..5 {
                let range = from + step * 100..from + (step + 1) * 100;
                self.cluster.add_nodes(range.clone()).await?;
                self.cluster
                    .add_pullers(range.start / 100 * 100..range.end, &Model::default())
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
            .measure("500 nodes join within 10 s", self.images, Box::pin(work))
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        Ok(row)
    }

    async fn killed(&mut self) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(200),
            ..Model::default()
        });
        let standby = self.start_controller()?;
        let leader = self.leader.replace(standby).context("no leader")?;
        let (name, images) = self.next_cache();
        let half = (self.nodes * self.images / 2) as u64;
        let work = async {
            self.cluster.create_cache(&name, images).await?;
            while self.fleet.pairs() < half {
                tokio::time::sleep(SAMPLE).await;
            }
            leader.kill().await?;
            let killed = Instant::now();
            self.cluster
                .wait(&name, self.limit, |cache| {
                    told(cache, names::status::SUCCEEDED)
                })
                .await?;
            let again = self.fleet.counters.pulled_again.load(Ordering::Relaxed);
            Ok(format!(
                "done {:.1} s after the kill; {again} images pulled twice; figures are the second leader's",
                killed.elapsed().as_secs_f64()
            ))
        };
        let row = self
            .measure(
                "leader killed at half of the wave",
                self.images,
                Box::pin(work),
            )
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        Ok(row)
    }

    async fn sick(&mut self) -> anyhow::Result<Row> {
        let model = Model {
            least: Duration::from_millis(20),
            dead_percent: 10,
            slow_percent: 5,
            ..Model::default()
        };
        let alive = (0..self.nodes).filter(|node| !model.is_dead(*node)).count();
        self.cluster.add_pullers(0..self.nodes, &model).await?;
        self.fleet.set_model(model);
        let (name, images) = self.next_cache();
        let work = async {
            self.cluster.create_cache(&name, images).await?;
            self.wait_ready(&name, alive).await?;
            Ok(format!("until all {alive} living nodes are warm"))
        };
        let row = self
            .measure(
                "a tenth dead, a twentieth slow",
                self.images,
                Box::pin(work),
            )
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        self.cluster
            .add_pullers(0..self.nodes, &Model::default())
            .await?;
        Ok(row)
    }

    async fn limited(&mut self) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(20),
            registry_limit: Some(200),
            ..Model::default()
        });
        let (name, images) = self.next_cache();
        let refused = self.fleet.registry.refused.load(Ordering::Relaxed);
        let work = async {
            self.cluster.create_cache(&name, images).await?;
            self.wait_ready(&name, self.nodes).await?;
            let refused = self.fleet.registry.refused.load(Ordering::Relaxed) - refused;
            let most = self.fleet.registry.most.load(Ordering::Relaxed);
            Ok(format!(
                "{refused} answers of 429; at most {most} pulls at a time"
            ))
        };
        let row = self
            .measure(
                "registry answers 429 above 200 pulls",
                self.images,
                Box::pin(work),
            )
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        Ok(row)
    }

    async fn many_caches(&mut self) -> anyhow::Result<Row> {
        let names: Vec<String> = (0..20)
            .map(|cache| format!("many-{}-{cache}", self.caches))
            .collect();
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
            self.cluster
                .caches()
                .delete(name, &DeleteParams::default())
                .await?;
        }
        Ok(row)
    }

    async fn rewrites(&mut self) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(300),
            ..Model::default()
        });
        let (name, images) = self.next_cache();
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
                self.images,
                Box::pin(work),
            )
            .await?;
        self.cluster
            .caches()
            .delete(&name, &DeleteParams::default())
            .await?;
        Ok(row)
    }

    async fn growth(&mut self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for nodes in [500, 1000, 2000, 5000, 15_000] {
            self.resize(nodes).await?;
            self.restart().await?;
            let (name, images) = self.next_cache();
            let row = self
                .measure(
                    &format!("cold {nodes}"),
                    self.images,
                    Box::pin(self.wave(&name, images)),
                )
                .await?;
            self.cluster
                .caches()
                .delete(&name, &DeleteParams::default())
                .await?;
            rows.push(row);
        }
        Ok(rows)
    }

    fn next_cache(&mut self) -> (String, Vec<String>) {
        self.caches += 1;
        (
            format!("bench-{}", self.caches),
            Self::image_names(self.caches, self.images),
        )
    }

    /// Writes that trail behind an operation belong to it, not to the next.
    async fn quiet(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn status_text(&self, name: &str) -> anyhow::Result<String> {
        let cache = self.cluster.caches().get(name).await?;
        Ok(format!(
            "{:?}",
            cache.status.and_then(|status| status.last_refresh_time)
        ))
    }
}

#[allow(clippy::cast_precision_loss)]
fn pairs(fleet: &Fleet) -> f64 {
    fleet.pairs() as f64
}

fn told(cache: &ImageCache, what: &str) -> bool {
    cache
        .status
        .as_ref()
        .is_some_and(|status| status.status == what)
}

fn has_annotation(cache: &ImageCache) -> bool {
    let annotations = cache.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(names::REFRESH_ANNOTATION))
}

async fn annotate(
    caches: &kube::Api<ImageCache>,
    name: &str,
    annotation: &str,
) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: ""}}}));
    caches.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
