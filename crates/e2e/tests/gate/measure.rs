//! What the gate adds to the time that the pulls take.

use std::time::{Duration, Instant};

use kubefledged_e2e::Cluster;

use crate::setup::{Gated, JOINER, KEY};

const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(120);

fn images() -> Vec<String> {
    (1..=24)
        .map(|app| format!("registry.test:5000/bench/app{app}:1.0"))
        .collect()
}

/// `crictl pull` of all images on the node, two at a time as the puller does it. They are removed before.
fn crictl(cluster: &Cluster) -> Duration {
    let names = images().join(" ");
    let remove = format!("crictl rmi {names} >/dev/null 2>&1 || true");
    cluster
        .run(&["node", JOINER, "sh", "-c", &remove], "")
        .unwrap();
    let pull = format!("echo {names} | xargs -n 1 -P 2 crictl pull >/dev/null");
    let began = Instant::now();
    cluster
        .run(&["node", JOINER, "sh", "-c", &pull], "")
        .unwrap();
    began.elapsed()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

#[test]
#[ignore = "it measures: make bench-real-gate"]
fn the_gate_adds_at_most_one_and_a_half_seconds_to_the_pulls_of_a_new_node() {
    for (what, values) in [
        ("taint", ["taint.enabled=true", "condition.enabled=false"]),
        (
            "condition",
            ["taint.enabled=false", "condition.enabled=true"],
        ),
    ] {
        let gated = Gated::on("gate", &values);
        gated.cluster.run(&["images", "bench"], "").unwrap();
        gated.require(&images(), None);
        let (mut overheads, mut starts) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let puller = gated.cluster.puller_ready(JOINER);
            let mut joining = gated.join(KEY);
            let ready = joining.watch.ready();
            let released = if what == "taint" {
                joining.watch.released(LIMIT)
            } else {
                joining.watch.cached(LIMIT)
            };
            joining.up();
            let held = released.duration_since(ready);
            // The puller would pull again what crictl removes.
            let suspend = serde_json::json!({"suspend": true});
            gated.cluster.edit("gate", "gate", &suspend).unwrap();
            let pure = crictl(&gated.cluster);
            let puller = puller.recv().unwrap().saturating_duration_since(ready);
            println!(
                "{what}, round {round}: from Ready to released {held:.2?}, of which until the puller was ready {puller:.2?}; \
                 crictl {pure:.2?}"
            );
            overheads.push(held.saturating_sub(pure));
            starts.push(puller);
            gated.leave();
            gated
                .cluster
                .edit("gate", "gate", &serde_json::json!({"suspend": false}))
                .unwrap();
        }
        let overhead = median(overheads);
        let start = median(starts);
        println!(
            "{what}: overhead {overhead:.2?}, and {start:.2?} until the kubelet had started the puller (medians of {ROUNDS})"
        );
        assert!(
            overhead <= Duration::from_millis(1500),
            "{what}: {overhead:?}"
        );
    }
}
