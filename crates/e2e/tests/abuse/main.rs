//! Attacks by somebody who has little: a pod without any right, the right to write `ImageCache`s in one
//! namespace, one node, one registry. What holds against each is measured and printed as a row of the table in
//! docs/faults.md. `make test-abuse` runs them on a cluster of their own with three nodes; all traffic stays in
//! its networks, and every attack ends by itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod ports;
mod pullers;
mod tenants;

use std::{
    path::PathBuf,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kubefledged_e2e::{Cluster, fleet::Pod};
use serde_json::{Value, json};

const NAMESPACE: &str = "abuse";
/// The node of the attacker. No part that is attacked runs there.
const ATTACKER: &str = "3";
/// Whose puller is attacked.
const VICTIM: &str = "1";

/// The cluster without anything of an earlier test, its leader elsewhere than the attacker.
fn cluster() -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(NAMESPACE).unwrap();
    cluster.lead_away_from(ATTACKER).unwrap();
    cluster
}

/// Prints what was measured: a row of the table in docs/faults.md.
fn row(attack: &str, seen: &str) {
    println!("| {attack} | {seen} |");
}

/// Starts an attack from a node, which goes on for so many seconds; what it saw is JSON.
fn attack(
    node: &str,
    kind: &str,
    address: &str,
    connections: usize,
    seconds: u64,
) -> JoinHandle<Value> {
    attack_with(node, kind, address, connections, seconds, None)
}

/// The same with the file of a CA, for attacks over TLS.
fn attack_with(
    node: &str,
    kind: &str,
    address: &str,
    connections: usize,
    seconds: u64,
    ca: Option<PathBuf>,
) -> JoinHandle<Value> {
    let (connections, seconds) = (connections.to_string(), seconds.to_string());
    let (node, kind, address) = (node.to_owned(), kind.to_owned(), address.to_owned());
    thread::spawn(move || {
        let program = env!("CARGO_BIN_EXE_attack");
        let mut args = vec!["node", &node, program, &kind, &address];
        args.extend([connections.as_str(), &seconds]);
        let ca = ca.map(|ca| ca.to_str().unwrap().to_owned());
        args.extend(ca.as_deref());
        let said = Cluster::default().run(&args, "").unwrap();
        serde_json::from_str(&said).unwrap()
    })
}

/// Memory of a process, in MiB.
struct Memory {
    process: PathBuf,
}

impl Memory {
    /// Of a pod's one process, whose name begins so.
    fn of(cluster: &Cluster, pod: &Pod, name: &str) -> Self {
        let found = cluster.pod_processes(&pod.node, &pod.uid, name).unwrap();
        let [process] = &found[..] else {
            unreachable!("{}: {found:?}", pod.name);
        };
        Self {
            process: process.into(),
        }
    }

    fn field(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(self.process.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: u32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        f64::from(kib) / 1024.0
    }

    fn now(&self) -> f64 {
        self.field("VmRSS:")
    }

    /// The most since [`Memory::forget_peak`].
    fn peak(&self) -> f64 {
        self.field("VmHWM:")
    }

    fn forget_peak(&self) {
        // 5 resets the peak: proc_pid_clear_refs(5).
        std::fs::write(self.process.join("clear_refs"), "5").unwrap();
    }
}

/// An `ImageCache` of these images, on one node or on all.
fn spec(images: &[String], node: Option<&str>) -> Value {
    let mut list = json!({ "images": images });
    if let Some(node) = node {
        list["nodeSelector"] = json!({"kubernetes.io/hostname": format!("n{node}")});
    }
    json!({ "cacheSpec": [list] })
}

/// Seconds from the creation of an `ImageCache` until it has succeeded, at most `limit`.
fn seconds_to_succeed(cluster: &Cluster, name: &str, spec: &Value, limit: Duration) -> f64 {
    let begin = Instant::now();
    cluster.create(NAMESPACE, name, spec).unwrap();
    let what = format!("{name} has succeeded");
    let done = cluster.until(limit, &what, || {
        let status = cluster.object(NAMESPACE, name)?["status"].clone();
        Ok((status["status"] == "Succeeded").then_some(()))
    });
    done.unwrap();
    begin.elapsed().as_secs_f64()
}

fn delete(cluster: &Cluster, name: &str) {
    let delete = format!("delete ic {name} -n {NAMESPACE} --wait=true");
    cluster.kubectl(&delete).unwrap();
}

/// No container of ours was restarted, and all are ready.
fn assert_unhurt(cluster: &Cluster, before: &[Pod]) {
    for component in ["controller", "webhook-server", "puller"] {
        for pod in cluster.pods(component).unwrap() {
            let known = before.iter().find(|known| known.name == pod.name).unwrap();
            assert_eq!(pod.restarts, known.restarts, "{} was restarted", pod.name);
            assert!(pod.ready, "{} is not ready", pod.name);
        }
    }
}

/// All our pods.
fn ours(cluster: &Cluster) -> Vec<Pod> {
    let components = ["controller", "webhook-server", "puller"];
    let pods = components.map(|component| cluster.pods(component).unwrap());
    pods.concat()
}

/// The middle of these, and the largest.
fn middle_and_worst(mut seconds: Vec<f64>) -> (f64, f64) {
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], seconds[seconds.len() - 1])
}
