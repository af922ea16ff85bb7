//! Scenarios in which something goes wrong: a leader is killed, nodes are dead or slow, images cannot be
//! pulled, a registry asks to wait.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::Context as _;
use kubefledged_api_types::{ImageCache, names};
use tokio::time::Instant;

use crate::{
    controller::SAMPLE,
    model::{Model, Refused},
    report::Row,
    world::{World, told},
};

impl World {
    pub(super) async fn killed(&mut self, count: usize) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(50),
            ..Model::default()
        });
        let standby = self.start_controller()?;
        let leader = self.leader.replace(standby).context("no leader")?;
        let (name, images) = self.next_cache(count);
        let half = (self.nodes * count / 2) as u64;
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
            .measure("leader killed at half of the wave", count, Box::pin(work))
            .await?;
        self.delete(&name).await?;
        Ok(row)
    }

    pub(super) async fn sick(&mut self, count: usize) -> anyhow::Result<Row> {
        let model = Model {
            least: Duration::from_millis(20),
            dead_percent: 10,
            slow_percent: 5,
            ..Model::default()
        };
        let alive = (0..self.nodes).filter(|node| !model.is_dead(*node)).count();
        self.fleet.set_model(model);
        self.cluster.add_pullers(0..self.nodes, &self.fleet).await?;
        let (name, images) = self.next_cache(count);
        let work = async {
            self.cluster.create_cache(&name, images).await?;
            self.wait_ready(&name, alive).await?;
            Ok(format!("until all {alive} living nodes are warm"))
        };
        let mut row = self
            .measure("a tenth dead, a twentieth slow", count, Box::pin(work))
            .await?;
        row.note = format!("{}; {}", row.note, self.describe(&name).await?);
        self.delete(&name).await?;
        self.fleet.set_model(Model::default());
        self.cluster.add_pullers(0..self.nodes, &self.fleet).await?;
        Ok(row)
    }

    /// Healthy first; then one image that does not exist; then none that can be pulled.
    pub(super) async fn wrong(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        let images = |cache: &str, part: &str| -> Vec<String> {
            let last = format!("registry.example/{cache}/{part}:1.0");
            let names = (1..count).map(|image| format!("registry.example/{cache}/app{image}:1.0"));
            names.chain([last]).collect()
        };
        let missing = Refused {
            part: "/missing",
            reason: "ImageNotFound",
            message: "rpc error: code = NotFound desc = failed to pull and unpack image \"{}\": failed to resolve reference \"{}\": {}: not found",
        };
        let down = Refused {
            part: "",
            reason: "RegistryUnavailable",
            message: "rpc error: code = Unknown desc = failed to pull and unpack image \"{}\": failed to resolve reference \"{}\": failed to do request: dial tcp 192.0.2.1:443: i/o timeout",
        };
        let cases = [
            ("healthy", "app", None, names::status::SUCCEEDED),
            (
                "one image does not exist",
                "missing",
                Some(missing),
                names::status::FAILED,
            ),
            (
                "the registry is down",
                "app",
                Some(down),
                names::status::FAILED,
            ),
        ];
        let mut rows = Vec::new();
        for (what, part, refused, end) in cases {
            self.fleet.set_model(Model {
                refused,
                ..Model::default()
            });
            let (name, _) = self.next_cache(count);
            let work = async {
                let images = images(&name, part);
                self.cluster.create_cache(&name, images).await?;
                let ended = |cache: &ImageCache| told(cache, end);
                self.cluster.wait(&name, self.limit, ended).await?;
                Ok(String::new())
            };
            let mut row = self.measure(what, count, Box::pin(work)).await?;
            self.quiet().await;
            row.note = self.describe(&name).await?;
            rows.push(row);
            self.delete(&name).await?;
        }
        self.fleet.set_model(Model::default());
        Ok(rows)
    }

    pub(super) async fn limited(&mut self, count: usize) -> anyhow::Result<Row> {
        self.fleet.set_model(Model {
            least: Duration::from_millis(20),
            registry_limit: Some(40),
            ..Model::default()
        });
        let (name, images) = self.next_cache(count);
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
            .measure("registry answers 429 above 40 pulls", count, Box::pin(work))
            .await?;
        self.delete(&name).await?;
        Ok(row)
    }
}
