//! What a puller keeps mounted of pods.

use std::{collections::BTreeSet, time::Duration};

use kubefledged_e2e::demo;
use serde_json::Value;

use crate::setup::Setup;

/// A puller that started while a pod lived must not keep the pod's namespaces and shared memory.
#[test]
fn nothing_of_a_dead_pod_stays_mounted_through_the_puller() {
    let s = Setup::new("rt-mounts");
    s.start_pods(&demo("web"));
    let restart = "rollout restart daemonset/kubefledged-puller -n kube-fledged";
    s.cluster.kubectl(restart).unwrap();
    let wait = "rollout status daemonset/kubefledged-puller -n kube-fledged --timeout=120s";
    s.cluster.kubectl(wait).unwrap();
    let mut alive = Vec::new();
    for (node, runtime) in &s.nodes {
        let (sandbox, mounts) = (sandbox(&s, node), puller_mounts(&s, node));
        assert!(mounts.contains(&sandbox), "n{node}, {runtime}: {mounts}");
        assert!(
            !namespaces(&mounts).is_empty(),
            "n{node}, {runtime}: {mounts}"
        );
        alive.push((node, runtime, sandbox));
    }
    s.delete_pods();
    for (node, runtime, sandbox) in alive {
        // The sandbox itself stays listed until the kubelet's garbage collection.
        let what = format!("n{node} has nothing of the dead pod mounted");
        s.cluster
            .until(Duration::from_secs(30), &what, || {
                let own = node_mounts(&s, node);
                Ok((!own.contains(&sandbox)).then_some(()))
            })
            .unwrap();
        let mounts = puller_mounts(&s, node);
        assert!(!mounts.contains(&sandbox), "n{node}, {runtime}: {mounts}");
        let (seen, own) = (namespaces(&mounts), namespaces(&node_mounts(&s, node)));
        assert!(seen.is_subset(&own), "n{node}, {runtime}: {seen:?} {own:?}");
    }
}

/// Network namespaces that are mounted, as net:[NUMBER].
fn namespaces(mounts: &str) -> BTreeSet<String> {
    let roots = mounts.lines().filter_map(|line| line.split(' ').nth(3));
    let nets = roots.filter(|root| root.starts_with("net:["));
    nets.map(ToOwned::to_owned).collect()
}

/// The id of our pod's sandbox on a node.
fn sandbox(s: &Setup, node: &str) -> String {
    let json = s
        .cluster
        .run(&["node", node, "crictl", "pods", "-o", "json"], "")
        .unwrap();
    let list: Value = serde_json::from_str(&json).unwrap();
    let pods = list["items"].as_array().unwrap();
    let ours = pods
        .iter()
        .find(|pod| pod["metadata"]["namespace"] == s.namespace);
    ours.unwrap()["id"].as_str().unwrap().to_owned()
}

fn node_mounts(s: &Setup, node: &str) -> String {
    let script = ["node", node, "cat", "/proc/self/mountinfo"];
    s.cluster.run(&script, "").unwrap()
}

fn puller_mounts(s: &Setup, node: &str) -> String {
    let processes = s.cluster.puller_processes(node).unwrap();
    let [process] = processes.as_slice() else {
        panic!("n{node} has these pullers: {processes:?}");
    };
    let mounts = format!("{process}/mountinfo");
    s.cluster.run(&["node", node, "cat", &mounts], "").unwrap()
}
