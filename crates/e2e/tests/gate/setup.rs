//! The gate on and off, nodes that join, and what is seen of them.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kubefledged_e2e::{Cluster, fleet::OURS};
use serde_json::{Value, json};

/// The taint of the gate.
pub const KEY: &str = "kubefledged.io/images-not-cached";
/// The condition of the gate.
pub const CONDITION: &str = "kubefledged.io/ImagesCached";
/// Number of the node that joins.
pub const JOINER: &str = "3";

/// An installation whose gate is on until this is dropped.
pub struct Gated {
    pub cluster: Cluster,
    namespace: &'static str,
}

impl Gated {
    /// Switches the gate on. `values`: `NAME=VALUE` below `nodeGate`.
    pub fn on(namespace: &'static str, values: &[&str]) -> Self {
        let cluster = Cluster::default();
        cluster.clean(namespace).unwrap();
        upgrade(&cluster, values).unwrap();
        let gated = Self { cluster, namespace };
        gated.leave();
        gated
    }

    /// Both halves.
    pub fn both(namespace: &'static str) -> Self {
        Self::on(namespace, &["condition.enabled=true", "taint.enabled=true"])
    }

    /// An `ImageCache` whose images nodes wait for.
    pub fn require(&self, images: &[String], timeout: Option<&str>) {
        let mut spec = json!({"cacheSpec": [{"images": images}], "nodeGate": "Required"});
        if let Some(timeout) = timeout {
            spec["nodeGateTimeout"] = json!(timeout);
        }
        self.cluster.create(self.namespace, "gate", &spec).unwrap();
    }

    /// Starts a node that registers with a taint.
    pub fn join(&self, key: &str) -> Joining {
        let watch = Watch::begin(&self.cluster, key);
        let (cluster, taint) = (self.cluster.clone(), format!("{key}:NoSchedule"));
        let up = thread::spawn(move || cluster.run(&["up", JOINER, "--taint", &taint], ""));
        Joining { watch, up }
    }

    /// Ends the node that joined, if it is there. Its pods go too: the API server would show them as ready for a while.
    pub fn leave(&self) {
        if self.cluster.nodes().unwrap().contains(&JOINER.to_owned()) {
            self.cluster.run(&["remove-node", JOINER], "").unwrap();
        }
        let pods = format!("pods -n {OURS} --field-selector spec.nodeName=n{JOINER}");
        let delete = format!("delete {pods} --force --grace-period=0");
        self.cluster.kubectl(&delete).unwrap();
    }

    /// A Node as it is now.
    pub fn node(&self, number: &str) -> Value {
        let json = self.cluster.kubectl(&format!("get node n{number} -o json"));
        serde_json::from_str(&json.unwrap()).unwrap()
    }

    /// A pod that may only run on the node that joins, and that its taint keeps away.
    pub fn pod(&self, image: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "waits", "namespace": self.namespace},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": format!("n{JOINER}")},
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": image, "imagePullPolicy": "Never"}],
            },
        });
        self.cluster
            .run(&["kubectl", "create", "-f", "-"], &pod.to_string())
            .unwrap();
    }

    /// Phase of that pod.
    pub fn phase(&self) -> String {
        let ask = format!(
            "get pod waits -n {} -o jsonpath={{.status.phase}}",
            self.namespace
        );
        self.cluster.kubectl(&ask).unwrap()
    }

    /// Waits until the pod runs. Its image is never pulled by the kubelet.
    pub fn pod_runs(&self) {
        let wait = format!(
            "wait --for=jsonpath={{.status.phase}}=Running pod/waits -n {} --timeout=30s",
            self.namespace
        );
        self.cluster.kubectl(&wait).unwrap();
    }

    /// Messages of the Events that say that a node was released without its images.
    pub fn told(&self, number: &str) -> Vec<String> {
        let selector = format!("involvedObject.name=n{number},reason=ReleasedWithoutImages");
        let json = self
            .cluster
            .kubectl(&format!(
                "get events -A --field-selector {selector} -o json"
            ))
            .unwrap();
        let list: Value = serde_json::from_str(&json).unwrap();
        let events = list["items"].as_array().into_iter().flatten();
        events
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.cluster.run(&["fault", "off"], "");
        let delete = format!(
            "delete imagecaches,pods --all -n {} --wait=false",
            self.namespace
        );
        let _ = self.cluster.kubectl(&delete);
        let _ = self.cluster.run(&["remove-node", JOINER], "");
        let _ = upgrade(
            &self.cluster,
            &["condition.enabled=false", "taint.enabled=false"],
        );
        let _ = self.cluster.kubectl(&format!("taint nodes --all {KEY}-"));
    }
}

/// Changes values of the gate in the installation.
fn upgrade(cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    let values: Vec<String> = values
        .iter()
        .map(|value| format!("--set nodeGate.{value}"))
        .collect();
    let values = values.join(" ");
    cluster.shell(&format!(
        "helm upgrade kubefledged charts/kubefledged -n {OURS} --reuse-values --wait --timeout 120s {values}"
    ))?;
    // The leader of before may still hold the Lease.
    let rollout =
        format!("rollout status deployment/kubefledged-controller -n {OURS} --timeout=60s");
    cluster.kubectl(&rollout)?;
    cluster.leader().map(drop)
}

/// A node that joins.
pub struct Joining {
    pub watch: Watch,
    up: thread::JoinHandle<anyhow::Result<String>>,
}

impl Joining {
    /// Waits until the cluster has it.
    pub fn up(&mut self) {
        let up = std::mem::replace(&mut self.up, thread::spawn(|| Ok(String::new())));
        up.join().unwrap().unwrap();
    }
}

/// What the Node object said, and when.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    /// Its condition Ready is True.
    pub ready: bool,
    /// It has the taint.
    pub tainted: bool,
    /// Status and reason of the gate's condition.
    pub condition: String,
}

/// A watch of the Node that joins.
pub struct Watch {
    kubectl: Child,
    told: Receiver<Seen>,
    pub seen: Vec<Seen>,
}

impl Watch {
    fn begin(cluster: &Cluster, key: &str) -> Self {
        let path = "{.status.conditions[?(@.type==\"Ready\")].status};{.spec.taints[*].key};\
             {.status.conditions[?(@.type==\"kubefledged.io/ImagesCached\")].status} \
             {.status.conditions[?(@.type==\"kubefledged.io/ImagesCached\")].reason}{\"\\n\"}";
        let mut kubectl = Command::new(cluster.program())
            .args(["kubectl", "get", "nodes", "-w", "--field-selector"])
            .arg(format!("metadata.name=n{JOINER}"))
            .args(["-o", &format!("jsonpath={path}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        let (tell, told) = mpsc::channel();
        let key = key.to_owned();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut parts = line.split(';');
                let mut part = || parts.next().unwrap_or_default().trim().to_owned();
                let (ready, taints, condition) = (part() == "True", part(), part());
                let tainted = taints.split_whitespace().any(|taint| taint == key);
                let at = Instant::now();
                if tell
                    .send(Seen {
                        at,
                        ready,
                        tainted,
                        condition,
                    })
                    .is_err()
                {
                    return;
                }
            }
        });
        let seen = Vec::new();
        Self {
            kubectl,
            told,
            seen,
        }
    }

    /// Waits until the Node is as asked for, and says when it was.
    pub fn until(
        &mut self,
        limit: Duration,
        what: &str,
        fits: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<Instant> {
        if let Some(seen) = self.seen.iter().find(|seen| fits(seen)) {
            return Ok(seen.at);
        }
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let seen = self.told.recv_timeout(left).with_context(|| {
                format!(
                    "waited {limit:?} in vain until {what}: {:?}",
                    self.seen.last()
                )
            })?;
            self.seen.push(seen.clone());
            if fits(&seen) {
                return Ok(seen.at);
            }
        }
    }

    /// When the Node was Ready.
    pub fn ready(&mut self) -> Instant {
        self.until(Duration::from_secs(60), "the node is Ready", |seen| {
            seen.ready
        })
        .unwrap()
    }

    /// When it was Ready and had lost the taint.
    pub fn released(&mut self, limit: Duration) -> Instant {
        self.until(limit, "the taint is gone", |seen| {
            seen.ready && !seen.tainted
        })
        .unwrap()
    }

    /// When the condition was True.
    pub fn cached(&mut self, limit: Duration) -> Instant {
        self.until(limit, "the condition is True", |seen| {
            seen.condition.starts_with("True")
        })
        .unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
