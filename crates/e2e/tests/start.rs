//! What a controller looks at before it begins.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use kubefledged_e2e::{Cluster, fleet::OURS};
use serde_json::Value;

const DEFINITION: &str = "crd imagecaches.kubefledged.io";

/// The definition as it was, whatever the test does.
struct Restored<'a>(&'a Cluster, String);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let args = ["kubectl", "replace", "-f", "-"];
        let restored = self.0.run(&args, &self.1);
        if !std::thread::panicking() {
            restored.unwrap();
        }
    }
}

/// As kube-fledged's, which has no status subresource: every status that is written would be lost.
#[test]
fn a_stale_definition_keeps_a_new_controller_from_working_and_is_named_with_what_to_apply() {
    let cluster = Cluster::default();
    let leader = cluster.leader().unwrap();
    let json = cluster
        .kubectl(&format!("get {DEFINITION} -o json"))
        .unwrap();
    let mut stale: Value = serde_json::from_str(&json).unwrap();
    let metadata = stale["metadata"].as_object_mut().unwrap();
    for field in ["resourceVersion", "generation"] {
        metadata.remove(field);
    }
    let restored = Restored(&cluster, stale.to_string());
    let version = stale["spec"]["versions"][0].as_object_mut().unwrap();
    version.remove("subresources");
    let args = ["kubectl", "replace", "-f", "-"];
    cluster.run(&args, &stale.to_string()).unwrap();

    let pods = cluster.pods("controller").unwrap();
    let standby = pods.iter().find(|pod| pod.name != leader.pod).unwrap();
    cluster
        .kubectl(&format!(
            "delete pod -n {OURS} {} --wait=false",
            standby.name
        ))
        .unwrap();
    let what = "the new controller says what is wrong";
    let said = cluster.until(Duration::from_secs(60), what, || {
        let mut pods = cluster.pods("controller")?;
        pods.retain(|pod| ![&leader.pod, &standby.name].contains(&&pod.name));
        let found = pods.into_iter().find_map(|pod| {
            let log = cluster.kubectl(&format!("logs -n {OURS} {}", pod.name));
            Some((pod, finding(&log.ok()?)?))
        });
        Ok(found)
    });
    let (pod, finding) = said.unwrap();
    for part in [
        "imagecaches.kubefledged.io has no status subresource",
        "kubefledged-controller crd | kubectl apply",
    ] {
        assert!(finding.contains(part), "{finding}");
    }
    assert_eq!((pod.ready, pod.restarts), (false, 0));

    // It goes on by itself when the definition is right again.
    drop(restored);
    cluster.leader().unwrap();
}

/// What keeps the controller from being ready, as it logs it.
fn finding(log: &str) -> Option<String> {
    let lines = log.lines();
    let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut findings = lines.filter(|line| line["name"] == "checks");
    findings.find_map(|line| {
        let why = line["why"].as_str()?;
        why.contains("CustomResourceDefinition")
            .then(|| why.to_owned())
    })
}
