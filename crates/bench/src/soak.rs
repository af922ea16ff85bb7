//! Churn for a long time: does memory grow, do sockets stay open, how much is written?

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::Context as _;
use kube::api::{Patch, PatchParams};
use kubefledged_api_types::names;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    model::{Model, mix},
    report,
    scenario::annotate,
    world::World,
};

/// One change after another, at this pace.
const STEP: Duration = Duration::from_secs(2);
const SAMPLE: Duration = Duration::from_secs(30);
/// Caches that come, change and go.
const CACHES: usize = 10;
/// Nodes in one slice of endpoints: those that leave and come back in one step are of one slice.
const SLICE: usize = 100;
/// The first part is warming up: it does not count in the slope.
const WARM_UP: f64 = 0.25;

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    minutes: f64,
    rss: f64,
    files: usize,
    connections: u64,
    writes: u64,
    cpu: f64,
    calls: u64,
}

/// Churns for so long, and looks every half minute.
pub async fn soak(world: &mut World, nodes: usize, time: Duration) -> anyhow::Result<Vec<Sample>> {
    world.fleet.set_model(Model {
        least: Duration::from_millis(20),
        failing_percent: 2,
        ..Model::default()
    });
    world.resize(nodes).await?;
    world.restart().await?;
    let start = Instant::now();
    let mut samples = vec![sample(world, start).await?];
    let mut exists = [false; CACHES];
    for step in 0.. {
        if start.elapsed() >= time {
            break;
        }
        churn(world, step, &mut exists)
            .await
            .with_context(|| format!("step {step}"))?;
        if start.elapsed() >= SAMPLE * u32::try_from(samples.len())? {
            samples.push(sample(world, start).await?);
            if let Some(leader) = &mut world.leader {
                leader.check()?;
            }
        }
        tokio::time::sleep_until(start + STEP * (u32::try_from(step)? + 1)).await;
    }
    Ok(samples)
}

async fn sample(world: &World, start: Instant) -> anyhow::Result<Sample> {
    let used = world.controller()?.usage()?;
    Ok(Sample {
        minutes: start.elapsed().as_secs_f64() / 60.0,
        rss: used.rss,
        files: used.files,
        connections: world.connections(),
        writes: world.cluster.writes().await?,
        cpu: used.cpu,
        calls: world.calls(),
    })
}

/// One change; which one follows from its number.
async fn churn(world: &World, step: u64, exists: &mut [bool]) -> anyhow::Result<()> {
    let draw = |salt: u64, below: u64| mix(step, salt) % below;
    let at = usize::try_from(draw(1, CACHES as u64))?;
    let (name, caches) = (format!("soak-{at}"), world.cluster.caches());
    let count = 5 + usize::try_from(draw(2, 16))?;
    let slices = u64::try_from(world.nodes.div_ceil(SLICE))?;
    let slice = usize::try_from(draw(3, slices))? * SLICE;
    let end = (slice + SLICE).min(world.nodes);
    match draw(4, 10) {
        0..=3 if exists[at] => {
            let images = World::image_names(at, count);
            let patch = Patch::Merge(json!({"spec": {"cacheSpec": [{"images": images}]}}));
            caches.patch(&name, &PatchParams::default(), &patch).await?;
        }
        4 if exists[at] => {
            world.delete(&name).await?;
            exists[at] = false;
        }
        5 if exists[at] => annotate(&caches, &name, names::REFRESH_ANNOTATION).await?,
        6 if exists[at] => annotate(&caches, &name, names::PURGE_ANNOTATION).await?,
        7 => {
            // Ten nodes leave, or come back empty.
            for node in (slice..end).step_by(10) {
                if world.fleet.is_gone(node) {
                    world.fleet.set_gone(node, false);
                    world.cluster.add_nodes(node..node + 1).await?;
                } else {
                    world.fleet.set_gone(node, true);
                    world.cluster.remove_node(node).await?;
                }
            }
            world.cluster.add_pullers(slice..end, &world.fleet).await?;
        }
        8 => {
            (slice..end)
                .step_by(5)
                .for_each(|node| world.fleet.restart(node));
            world.cluster.add_pullers(slice..end, &world.fleet).await?;
        }
        9 => {
            let there = (slice..end).filter(|node| !world.fleet.is_gone(*node));
            for node in there {
                let round = usize::try_from(step)?;
                world.cluster.rewrite_images(node..node + 1, round).await?;
            }
        }
        _ if !exists[at] => {
            let images = World::image_names(at, count);
            world.cluster.create_cache(&name, images).await?;
            exists[at] = true;
        }
        _ => {}
    }
    Ok(())
}

/// The table, a sentence on the slope and a plot.
pub fn publish(samples: &[Sample], file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = format!("`make soak`. {}.\n\n", report::machine());
    text.push_str(
        "| minute | controller RSS MiB | its open files | connections | API writes a minute | calls a minute | CPU % |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let shown = samples.len().div_ceil(12).max(1);
    for pair in samples.iter().step_by(shown).collect::<Vec<_>>().windows(2) {
        let [a, b] = pair else { continue };
        let minutes = b.minutes - a.minutes;
        #[allow(clippy::cast_precision_loss)]
        let (writes, calls) = ((b.writes - a.writes) as f64, (b.calls - a.calls) as f64);
        let _ = writeln!(
            text,
            "| {:.0} | {:.1} | {} | {} | {:.0} | {:.0} | {:.1} |",
            b.minutes,
            b.rss,
            b.files,
            b.connections,
            writes / minutes,
            calls / minutes,
            (b.cpu - a.cpu) / minutes / 60.0 * 100.0,
        );
    }
    let total = samples.last().map_or(0.0, |last| last.minutes);
    let settled: Vec<(f64, f64)> = samples
        .iter()
        .filter(|sample| sample.minutes >= total * WARM_UP)
        .map(|sample| (sample.minutes / 60.0, sample.rss))
        .collect();
    let _ = writeln!(
        text,
        "\n{total:.0} minutes; RSS slope after the first quarter: {:+.2} MiB an hour.",
        report::slope(&settled)
    );
    let Some(file) = file else {
        return Ok(text);
    };
    let line = samples
        .iter()
        .map(|sample| (sample.minutes, sample.rss))
        .collect();
    let plot = file.with_extension("").join("soak.svg");
    let lines = [("RSS MiB".to_owned(), line)];
    report::plot(&plot, "soak", "minutes", "controller RSS, MiB", &lines)?;
    report::insert(
        file,
        "soak",
        &format!("{text}\n![soak](performance/soak.svg)"),
    )?;
    Ok(text)
}
