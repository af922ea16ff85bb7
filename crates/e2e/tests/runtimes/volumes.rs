//! Images that a pod mounts as a volume. A runtime's list of containers does not show them.

use std::time::Duration;

use kubefledged_e2e::demo;
use serde_json::json;

use crate::setup::{Setup, set};

#[test]
fn an_image_that_a_pod_mounts_as_a_volume_stays_until_the_pod_is_gone() {
    let s = Setup::new("rt-volumes");
    let (web, api) = (demo("web"), demo("api"));
    // containerd 1.6 mounts no images.
    let mounts = |runtime: &str| !runtime.starts_with("containerd://1.");
    let able: Vec<&(String, String)> = s.nodes.iter().filter(|(_, r)| mounts(r)).collect();
    s.created("running", &[&web]);
    s.created("mounted", &[&api]);
    for (node, _) in &able {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("on-n{node}"), "namespace": s.namespace},
            "spec": {"nodeName": format!("n{node}"), "terminationGracePeriodSeconds": 1,
                     "containers": [{"name": "c", "image": web, "imagePullPolicy": "Never",
                                     "volumeMounts": [{"name": "model", "mountPath": "/model"}]}],
                     "volumes": [{"name": "model", "image": {"reference": api, "pullPolicy": "Never"}}]},
        });
        let create = ["kubectl", "create", "-f", "-"];
        s.cluster.run(&create, &pod.to_string()).unwrap();
    }
    let wait = "wait --for=condition=Ready pods --all -n rt-volumes --timeout=60s";
    if !able.is_empty() {
        s.cluster.kubectl(wait).unwrap();
    }
    let status = s.purged("mounted");
    assert_eq!(status["status"], "Succeeded", "{status}");
    let kept = status["images"]["kept"]["inUse"].as_u64().unwrap_or(0);
    assert_eq!(usize::try_from(kept).unwrap(), able.len(), "{status}");
    for (node, runtime) in &s.nodes {
        let held = if mounts(runtime) {
            set(&[&web, &api])
        } else {
            set(&[&web])
        };
        assert_eq!(s.demo_images(node), held, "n{node}, {runtime}");
    }
    s.delete_pods();
    s.cluster
        .until(
            Duration::from_secs(400),
            "all nodes lose the image after their pods",
            || {
                let mut nodes = s.nodes.iter();
                let all = nodes.all(|(node, _)| s.demo_images(node) == set(&[&web]));
                Ok(all.then_some(()))
            },
        )
        .unwrap();
}
