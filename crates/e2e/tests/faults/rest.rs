//! What our processes hold at rest: memory, files, tasks and connections.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::Context as _;

use crate::{trial::Trial, view::Process};

/// Until idle connections are closed: to pullers after some seconds, to the API server after 90 s.
const AT_REST: Duration = Duration::from_secs(150);

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holds {
    pub rss_kib: u64,
    files: u64,
    tasks: u64,
    /// Connections between controller and pullers, in any state but listening and the last wait of
    /// the one that closed first.
    connections: u64,
}

impl Trial {
    pub fn holds(&self, process: &Process) -> anyhow::Result<Holds> {
        let pid = &process.pid;
        let port = match process.component.as_str() {
            "controller" => "$3",
            _ => "$2",
        };
        // 1D13 is 7443; state 06 is TIME_WAIT, 0A is LISTEN.
        let script = format!(
            "grep VmRSS /proc/{pid}/status; ls /proc/{pid}/fd | wc -l; \
             cat /proc/{pid}/net/tcp /proc/{pid}/net/tcp6 | awk '{port} ~ /:1D13$/ && $4 != \"06\" && $4 != \"0A\"' | wc -l"
        );
        let said = self
            .view
            .cluster
            .run(&["node", &process.node, "sh", "-c", &script], "")?;
        let numbers: Vec<u64> = said
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [rss_kib, files, connections] = numbers[..] else {
            anyhow::bail!("{process:?} is not to be seen: {said}");
        };
        Ok(Holds {
            rss_kib,
            files,
            tasks: self.tasks(process)?,
            connections,
        })
    }

    pub fn tasks(&self, process: &Process) -> anyhow::Result<u64> {
        let port = match process.component.as_str() {
            "controller" => 8080,
            "webhook-server" => 8081,
            _ => 8082,
        };
        let path = format!(
            "/api/v1/namespaces/kube-fledged/pods/{}:{port}/proxy/metrics",
            process.pod
        );
        let metrics = self.view.cluster.kubectl(&format!("get --raw {path}"))?;
        let tasks = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kubefledged_process_tasks "));
        Ok(tasks.context("no kubefledged_process_tasks")?.parse()?)
    }

    /// What all our processes hold, by pod.
    pub fn all_hold(&self) -> anyhow::Result<BTreeMap<Process, Holds>> {
        let components = ["controller", "puller", "webhook-server"];
        let processes = components
            .iter()
            .flat_map(|component| self.view.processes(component));
        processes
            .map(|process| Ok((process.clone(), self.holds(&process)?)))
            .collect()
    }

    /// Waits until nothing is held that was not held at rest.
    pub fn assert_nothing_leaks(&self) -> String {
        let mut last = String::new();
        let mut told = String::new();
        let all = self.view.cluster.until(AT_REST, "nothing is held", || {
            let holds = match self.all_hold() {
                Ok(holds) => holds,
                Err(error) => {
                    last = format!("{error:#}");
                    return Ok(None);
                }
            };
            last = too_much(&holds);
            told = summary(&holds);
            Ok(last.is_empty().then_some(()))
        });
        if let Err(error) = all {
            panic!("{error:#}\n{last}");
        }
        told
    }
}

/// Bounds at rest. Debug builds are larger, what a process once used stays with its allocator for a
/// while, and a puller remembers for ten minutes what became of its pulls.
fn too_much(holds: &BTreeMap<Process, Holds>) -> String {
    let mut amiss = String::new();
    for (process, held) in holds {
        let (rss, files, tasks) = match process.component.as_str() {
            "controller" => (160, 40, 60),
            "puller" => (96, 40, 40),
            _ => (64, 40, 40),
        };
        let Holds {
            rss_kib,
            files: open,
            tasks: alive,
            connections,
        } = *held;
        if rss_kib > rss * 1024 || open > files || alive > tasks || connections > 0 {
            let _ = writeln!(amiss, "{} holds {held:?}", process.pod);
        }
    }
    amiss
}

pub fn summary(holds: &BTreeMap<Process, Holds>) -> String {
    let mut most: BTreeMap<&str, Holds> = BTreeMap::new();
    for (process, held) in holds {
        let known = most.entry(&process.component).or_default();
        known.rss_kib = known.rss_kib.max(held.rss_kib);
        known.files = known.files.max(held.files);
        known.tasks = known.tasks.max(held.tasks);
    }
    let one = |(component, held): (&&str, &Holds)| {
        format!(
            "{component} {} MiB {} files {} tasks",
            held.rss_kib / 1024,
            held.files,
            held.tasks
        )
    };
    most.iter().map(one).collect::<Vec<_>>().join(", ")
}
