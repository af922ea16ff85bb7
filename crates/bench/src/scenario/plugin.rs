//! The kubectl plugin over a large fleet: how long its commands take, and what they cost it and the controller.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::Context as _;
use tokio::{process::Command, time::Instant};

use crate::{controller, report::Row, world::World};

/// Flags that let the plugin call the controller.
pub const FLAGS: [&str; 1] = [ADDRESS];
const ADDRESS: &str = "--debug-address=127.0.0.1:17070";
/// Between two looks at the plugin's memory.
const LOOK: Duration = Duration::from_millis(2);
/// How often each of two commands runs that are compared.
const ROUNDS: usize = 15;
/// What `matrix` may take.
const MOST_TIME: Duration = Duration::from_secs(2);
/// What the plugin may take, in MiB.
const MOST_MEMORY: f64 = 60.0;
/// What the controller may take more because of it, in MiB.
const MOST_MORE: f64 = 5.0;
/// How much longer than kubectl the plugin may take for a list.
const MOST_RATIO: f64 = 1.3;

/// What one run of a program cost.
struct Cost {
    time: Duration,
    /// Largest resident memory, MiB.
    memory: f64,
    bytes: usize,
}

impl World {
    pub(super) async fn plugin(&mut self, count: usize) -> anyhow::Result<Vec<Row>> {
        let (name, images) = self.next_cache(count);
        self.wave(&name, images).await?;
        self.quiet().await;
        let plugin = self.beside_controller("kubectl-fledged");
        let all = ["matrix", &name, "-o", "json", ADDRESS];
        let summary = ["matrix", &name, ADDRESS];
        let mut rows = Vec::new();
        for (what, args) in [("matrix", &summary[..]), ("matrix -o json", &all)] {
            let before = self.controller()?.usage()?.rss;
            self.controller()?.reset_peak()?;
            let work = async {
                let cost = run(&plugin, args).await?;
                anyhow::ensure!(cost.time <= MOST_TIME, "{what} takes {:.2?}", cost.time);
                anyhow::ensure!(
                    cost.memory <= MOST_MEMORY,
                    "it takes {:.0} MiB",
                    cost.memory
                );
                let Cost {
                    time,
                    memory,
                    bytes,
                } = cost;
                Ok(format!(
                    "{time:.2?}, the plugin takes {memory:.0} MiB, and prints {bytes} bytes"
                ))
            };
            let mut row = self.measure(what, count, Box::pin(work)).await?;
            let more = row.peak_rss - before;
            row.note = format!("{}; the controller takes {more:.1} MiB more", row.note);
            anyhow::ensure!(more <= MOST_MORE, "the controller takes {more:.1} MiB more");
            rows.push(row);
        }
        let work = compare(&plugin);
        rows.push(
            self.measure("list, beside kubectl get", 1, Box::pin(work))
                .await?,
        );
        self.delete(&name).await?;
        Ok(rows)
    }
}

/// Medians of `list` and of `kubectl get imagecaches`, in turns.
async fn compare(plugin: &PathBuf) -> anyhow::Result<String> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(run(plugin, &["list"]).await?.time);
        theirs.push(run(&"kubectl".into(), &["get", "imagecaches"]).await?.time);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    anyhow::ensure!(
        ratio <= MOST_RATIO,
        "list takes {ratio:.2} x of kubectl get"
    );
    Ok(format!(
        "{ours:.0?} and {theirs:.0?}: {ratio:.2} x (medians of {ROUNDS})"
    ))
}

async fn run(program: &PathBuf, args: &[&str]) -> anyhow::Result<Cost> {
    let start = Instant::now();
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = child.id().context("it ended at once")?;
    let mut memory = 0.0_f64;
    let looking = async {
        loop {
            // It may just have ended.
            if let Ok(usage) = controller::usage(pid) {
                memory = memory.max(usage.peak_rss);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let output = tokio::select! {
        output = child.wait_with_output() => output?,
        () = looking => unreachable!("it looks until the program ends"),
    };
    anyhow::ensure!(
        output.status.success(),
        "{args:?} ended with {}",
        output.status
    );
    Ok(Cost {
        time: start.elapsed(),
        memory,
        bytes: output.stdout.len(),
    })
}
