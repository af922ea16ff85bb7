//! What a test sees of the cluster: its nodes, and our processes on them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use kubefledged_e2e::Cluster;
use serde_json::Value;

/// From the end of the last fault. The longest waits: the kubelet's for a container that was killed
/// again and again, and ours for an image that failed again and again.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A process of ours, as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub component: String,
    pub pod: String,
    pub node: String,
    pub pid: String,
}

/// The cluster, from the time when a test began.
#[derive(Clone)]
pub struct View {
    pub cluster: Cluster,
    pub started: Instant,
}

impl View {
    pub fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.started.elapsed().as_secs_f32());
    }

    /// As a user would who is told that the API server is away.
    pub fn insist<T>(&self, what: &str, mut act: impl FnMut() -> anyhow::Result<T>) -> T {
        let mut last = None;
        let done = self.cluster.until(PATIENCE, what, || match act() {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                last = Some(format!("{error:#}"));
                Ok(None)
            }
        });
        done.unwrap_or_else(|error| panic!("{error:#}: {last:?}"))
    }

    pub fn kubectl(&self, args: &str) -> String {
        self.insist(args, || self.cluster.kubectl(args))
    }

    pub fn run(&self, args: &[&str]) {
        self.say(&format!("  {}", args.join(" ")));
        if let Err(error) = self.cluster.run(args, "") {
            panic!("{error:#}");
        }
    }

    pub fn label_backend(&self) {
        self.kubectl("label node n2 tier=backend --overwrite");
    }

    /// Our processes of a component. Told from others of the same name by their pod's cgroup.
    pub fn processes(&self, component: &str) -> Vec<Process> {
        self.insist("our processes are found", || {
            let pods = self.cluster.kubectl(&format!(
                "get pods -n kube-fledged -l app.kubernetes.io/component={component} -o json"
            ))?;
            let pods: Value = serde_json::from_str(&pods)?;
            let mut found = Vec::new();
            for pod in pods["items"].as_array().context("no list of pods")? {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let node = text(&pod["spec"]["nodeName"])
                    .trim_start_matches('n')
                    .to_owned();
                let uid = text(&pod["metadata"]["uid"]);
                let script = format!(
                    "for dir in $(grep -ls pod{uid} /proc/[0-9]*/cgroup); do dir=${{dir%/cgroup}}; \
                     if grep -q ^kubefledged- $dir/comm; then echo ${{dir#/proc/}}; fi; done"
                );
                // The node may be away.
                let found_there = self.cluster.run(&["node", &node, "sh", "-c", &script], "");
                found.extend(found_there.unwrap_or_default().lines().map(|pid| Process {
                    component: component.to_owned(),
                    pod: text(&pod["metadata"]["name"]),
                    node: node.clone(),
                    pid: pid.to_owned(),
                }));
            }
            found.sort();
            Ok(found)
        })
    }
}
