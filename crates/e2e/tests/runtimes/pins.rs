//! What is pinned, and the kubelet's garbage collection.

use std::time::Duration;

use kubefledged_e2e::demo;
use serde_json::json;

use crate::setup::{Setup, runtime_pid, set};

fn can_pin(runtime: &str) -> bool {
    runtime.starts_with("containerd://2")
}

#[test]
fn a_pin_takes_where_the_runtime_can_and_is_refused_in_words_elsewhere() {
    let s = Setup::new("rt-pin");
    let image = demo("web");
    let before: Vec<_> = s
        .nodes
        .iter()
        .map(|(node, _)| runtime_pid(&s, node))
        .collect();
    for (node, runtime) in &s.nodes {
        let name = format!("pinned{node}");
        s.kept(&name, node, &image, "Pinned");
        if can_pin(runtime) {
            assert_eq!(s.pinned(node), set(&[&image]), "n{node}, {runtime}");
        } else {
            s.degraded(&name, "RetentionUnsupported", Duration::from_secs(10));
            assert_eq!(s.pinned(node), set(&[]), "n{node}, {runtime}");
        }
    }
    let delete = "delete ic --all -n rt-pin --timeout=60s";
    s.cluster.kubectl(delete).unwrap();
    s.assert_held(&[&image]);
    for ((node, runtime), before) in s.nodes.iter().zip(before) {
        assert_eq!(s.pinned(node), set(&[]), "n{node}, {runtime}");
        // containerd 2.2 ends at an update of an image without its target.
        assert_eq!(
            runtime_pid(&s, node),
            before,
            "n{node}, {runtime} was restarted"
        );
    }
}
/// The kubelet looks for old images every five minutes from its start on, and takes all that never
/// ran, however new they are.
#[test]
#[ignore = "takes 17 minutes: make test-runtimes"]
fn the_kubelets_garbage_collection_spares_the_pinned_image_and_is_named_when_it_takes_the_other() {
    let s = Setup::new("rt-gc");
    let (pinned, loose) = (demo("web"), demo("api"));
    let mut nodes = s.nodes.iter();
    let (node, _) = nodes.find(|(_, runtime)| can_pin(runtime)).unwrap();
    let kubelet = [
        "kubelet",
        node,
        "imageMaximumGCAge: 2m",
        "imageMinimumGCAge: 10s",
    ];
    s.cluster.run(&kubelet, "").unwrap();
    s.kept("pinned", node, &pinned, "Pinned");
    s.kept("loose", node, &loose, "Default");
    for loss in 1..=3 {
        let held = |what: &str, minutes: u64, there: bool| {
            let what = format!("loss {loss}: {what}");
            s.cluster
                .until(Duration::from_secs(60 * minutes), &what, || {
                    let images = s.demo_images(node);
                    assert!(
                        images.contains(&pinned),
                        "the pinned image is gone: {images:?}"
                    );
                    Ok((images.contains(&loose) == there).then_some(()))
                })
                .unwrap();
        };
        held("the unpinned image goes", 6, false);
        if loss < 3 {
            held("it comes back by the next check", 6, true);
        }
    }
    let text = s.degraded("loose", "LostToGarbageCollection", Duration::from_secs(360));
    assert!(text.contains("imageMaximumGCAge"), "{text}");
    let status = s.cluster.object(s.namespace, "pinned").unwrap()["status"].clone();
    assert_eq!(status["ready"], "1/1", "{status}");
    s.cluster.run(&["kubelet", node], "").unwrap();
}

/// containerd takes in the label of an image with a delay, which grows with the number of images that change.
#[test]
fn all_of_twenty_four_images_are_pinned_where_the_runtime_can() {
    let s = Setup::new("rt-pins");
    s.cluster.run(&["images", "bench"], "").unwrap();
    let apps: Vec<String> = (1..=24)
        .map(|n| format!("registry.test:5000/bench/app{n}:1.0"))
        .collect();
    for (node, runtime) in s.nodes.iter().filter(|(_, runtime)| can_pin(runtime)) {
        let name = format!("apps{node}");
        let here = json!({"kubernetes.io/hostname": format!("n{node}")});
        let list = json!({"images": apps, "nodeSelector": here});
        s.feed(&name, &json!({"cacheSpec": [list], "retention": "Pinned"}));
        let status = s.ended(&name, "ImageCacheCreate");
        assert_eq!(status["status"], "Succeeded", "{status}");
        let pinned = s.cluster.pinned(node).unwrap();
        let pinned = pinned.iter().filter(|image| image.contains("/bench/"));
        assert_eq!(pinned.count(), 24, "n{node}, {runtime}");
    }
    s.cluster.clean("rt-pins").unwrap();
}
