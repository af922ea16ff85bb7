//! OCI artifacts: files that a registry keeps beside images. containerd takes all of a node for one image, and containerd 1.6
//! does not take them at all.

use std::time::Duration;

use kubefledged_e2e::demo;
use serde_json::json;

use crate::setup::{Setup, reasons, set};

const LABEL: &str = "kubefledged.test/artifacts";

/// containerd 1.x pulls no artifacts.
fn takes_artifacts(runtime: &str) -> bool {
    !runtime.starts_with("containerd://1.")
}

/// Nodes that take artifacts have a label.
fn label(s: &Setup) -> Vec<(String, String)> {
    let able = s
        .nodes
        .iter()
        .filter(|(_, runtime)| takes_artifacts(runtime));
    let able: Vec<(String, String)> = able.cloned().collect();
    for (node, _) in &able {
        let label = format!("label node n{node} {LABEL}=yes --overwrite");
        s.cluster.kubectl(&label).unwrap();
    }
    able
}

fn cache(s: &Setup, name: &str, artifact: &str) {
    let list = json!({"images": [artifact], "nodeSelector": {LABEL: "yes"}});
    s.feed(name, &json!({"cacheSpec": [list], "requireNodes": 0}));
}

#[test]
fn one_of_two_artifacts_is_purged_and_the_other_stays() {
    let s = Setup::new("rt-artifacts");
    let (model, prompt) = (demo("model"), demo("prompt"));
    let able = label(&s);
    for (name, artifact) in [("model", &model), ("prompt", &prompt)] {
        cache(&s, name, artifact);
        let status = s.ended(name, "ImageCacheCreate");
        assert_eq!(status["status"], "Succeeded", "{name}: {status}");
    }
    for (node, runtime) in &able {
        assert_eq!(
            s.demo_images(node),
            set(&[&model, &prompt]),
            "n{node}, {runtime}"
        );
    }
    let containerd = able
        .iter()
        .filter(|(_, runtime)| runtime.starts_with("containerd"));
    let containerd = containerd.count();
    if containerd > 0 {
        let message = s.degraded("model", "ArtifactNotMountable", Duration::from_secs(30));
        assert!(
            message.starts_with(&format!("{containerd} nodes ")),
            "{message}"
        );
    }
    let status = s.purged("model");
    assert_eq!(status["status"], "Succeeded", "{status}");
    for (node, runtime) in &able {
        assert_eq!(s.demo_images(node), set(&[&prompt]), "n{node}, {runtime}");
    }
    let status = s.purged("prompt");
    assert_eq!(status["status"], "Succeeded", "{status}");
    for (node, runtime) in &able {
        assert_eq!(s.demo_images(node), set(&[]), "n{node}, {runtime}");
    }
}

/// containerd 1.6 refuses the pull and keeps the name, so that its own look finds the artifact.
#[test]
fn an_artifact_that_a_runtime_refuses_never_counts_as_present() {
    let s = Setup::new("rt-refused");
    let model = demo("model");
    let mut refusing = s.nodes.iter();
    let Some((node, _)) = refusing.find(|(_, runtime)| !takes_artifacts(runtime)) else {
        return;
    };
    let here = json!({"kubernetes.io/hostname": format!("n{node}")});
    let list = json!({"images": [model], "nodeSelector": here});
    s.feed("refused", &json!({"cacheSpec": [list]}));
    let status = s.ended("refused", "ImageCacheCreate");
    assert_eq!(status["status"], "Failed", "{status}");
    let expected = [(format!("n{node}"), "UnsupportedManifest".to_owned())];
    assert_eq!(reasons(&status, &model), expected);
    let status = s.annotated("refused", "refresh-imagecache", "ImageCacheRefresh");
    assert_eq!(status["status"], "Failed", "{status}");
    assert_eq!(status["images"]["ready"], 0, "{status}");
}
