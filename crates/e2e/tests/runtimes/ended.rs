//! Pulls that are ended by the deletion of their `ImageCache`.

use std::time::Duration;

use serde_json::json;

use crate::setup::{Setup, set};

const CACHES: usize = 20;

/// A runtime may be past the point where it can stop a pull, and then makes the image although nobody waits for it.
#[test]
fn caches_that_are_deleted_with_purge_during_their_pulls_leave_nothing() {
    let s = Setup::new("rt-ended");
    let image = |n: usize| format!("registry.test:5000/bench/app{}:1.0", n + 1);
    s.cluster.run(&["images", "bench"], "").unwrap();
    for n in 0..CACHES {
        let spec = json!({"cacheSpec": [{"images": [image(n)]}], "deletionPolicy": "Purge"});
        s.feed(&format!("c{n}"), &spec);
    }
    // Some of them are present by now, and others are being pulled.
    std::thread::sleep(Duration::from_secs(1));
    let delete = "delete ic --all -n rt-ended --timeout=180s";
    s.cluster.kubectl(delete).unwrap();
    // A late end of a pull shows by now.
    std::thread::sleep(Duration::from_secs(5));
    for (node, runtime) in &s.nodes {
        let images = s.cluster.images(node).unwrap().into_iter();
        let left: std::collections::BTreeSet<String> = images
            .filter(|image| image.contains("/bench/app"))
            .collect();
        assert_eq!(left, set(&[]), "n{node}, {runtime}");
    }
    // Events outlive their objects by an hour.
    let events = "get events -n rt-ended -o jsonpath={.items[*].reason}";
    let events = s.cluster.kubectl(events).unwrap();
    for warning in ["RemovalDropped", "ImagesLeft"] {
        assert!(!events.contains(warning), "{events}");
    }
}
