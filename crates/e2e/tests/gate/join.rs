//! A node joins with the taint, or under a rule that watches the condition.

use std::time::{Duration, Instant};

use kubefledged_e2e::{demo, faulty};

use crate::setup::{CONDITION, Gated, JOINER, KEY};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "a node joins: make test-gate"]
fn a_pod_waits_for_the_node_until_its_runtime_lists_every_gating_image() {
    let gated = Gated::both("gate");
    let cluster = &gated.cluster;
    // Not its blobs: they are those of the quick image too, and containerd lets one pull of a blob wait for another.
    cluster
        .run(&["fault", "delay=10", "only=manifests"], "")
        .unwrap();
    let before = gated.told(JOINER);
    gated.require(&[demo("web"), faulty("api")], None);
    gated.pod(&demo("web"));
    let mut joining = gated.join(KEY);
    joining.watch.ready();
    joining.up();
    let pulled = cluster.until(LIMIT, "the quick image is there", || {
        Ok(cluster
            .demo_images(JOINER)?
            .contains(&"web:1.0".to_owned())
            .then_some(()))
    });
    pulled.unwrap();
    joining
        .watch
        .until(LIMIT, "the condition says that it pulls", |seen| {
            seen.condition == "False Pulling"
        })
        .unwrap();
    let held = cluster.until(Duration::from_secs(20), "the node counts as held", || {
        let status = cluster.object("gate", "gate")?["status"].clone();
        Ok((status["heldNodes"] == 1).then_some(()))
    });
    held.unwrap();
    assert_eq!(gated.phase(), "Pending");
    assert!(
        !cluster
            .demo_images(JOINER)
            .unwrap()
            .contains(&"api:1.0".to_owned())
    );
    cluster.run(&["fault", "off"], "").unwrap();
    joining.watch.released(LIMIT);
    assert_eq!(cluster.demo_images(JOINER).unwrap(), ["api:1.0", "web:1.0"]);
    joining.watch.cached(LIMIT);
    gated.pod_runs();
    let conditions = gated.node(JOINER)["status"]["conditions"].clone();
    let types = conditions
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["type"].as_str().unwrap());
    let types: Vec<&str> = types.collect();
    for known in ["Ready", "MemoryPressure", CONDITION] {
        assert!(types.contains(&known), "{types:?}");
    }
    assert_eq!(gated.told(JOINER), before);
}

#[test]
#[ignore = "a node joins: make test-gate"]
fn an_image_that_does_not_exist_releases_the_node_at_once_and_the_event_names_it() {
    let gated = Gated::both("gate");
    let missing = "registry.test:5000/demo/web:9.9";
    gated.require(&[demo("web"), missing.to_owned()], None);
    let mut joining = gated.join(KEY);
    let ready = joining.watch.ready();
    let released = joining.watch.released(LIMIT);
    joining.up();
    println!("released {:?} after Ready", released.duration_since(ready));
    assert!(released.duration_since(ready) < Duration::from_secs(30));
    assert_eq!(gated.cluster.demo_images(JOINER).unwrap(), ["web:1.0"]);
    joining
        .watch
        .until(LIMIT, "the condition says why", |seen| {
            seen.condition == "True ReleasedAfterFailure"
        })
        .unwrap();
    let told = gated
        .cluster
        .until(Duration::from_secs(20), "an Event says why", || {
            Ok(Some(gated.told(JOINER)).filter(|told| !told.is_empty()))
        });
    let told = told.unwrap();
    let names = |text: &str| {
        text.contains(missing) && text.contains("ImageNotFound") && text.contains("gate/gate")
    };
    assert!(told.len() == 1 && names(&told[0]), "{told:?}");
}

#[test]
#[ignore = "a node joins: make test-gate"]
fn with_the_condition_alone_a_controller_of_taints_releases_the_node_when_the_images_are_there() {
    let gated = Gated::on("gate", &["condition.enabled=true", "taint.enabled=false"]);
    let key = "readiness.k8s.io/images-not-cached";
    gated
        .cluster
        .run(&["fault", "delay=5", "only=manifests"], "")
        .unwrap();
    gated.require(&[demo("web"), faulty("api")], None);
    gated.pod(&demo("web"));
    let mut joining = gated.join(key);
    joining.up();
    joining
        .watch
        .until(LIMIT, "the condition is False", |seen| {
            seen.condition == "False Pulling"
        })
        .unwrap();
    assert_eq!(gated.phase(), "Pending");
    gated.cluster.run(&["fault", "off"], "").unwrap();
    joining.watch.cached(LIMIT);
    assert_eq!(
        gated.cluster.demo_images(JOINER).unwrap(),
        ["api:1.0", "web:1.0"]
    );
    // Ours removes no taint. What the Node Readiness Controller does with its rule is done by hand.
    assert!(joining.watch.seen.last().unwrap().tainted);
    assert_eq!(gated.phase(), "Pending");
    let began = Instant::now();
    gated
        .cluster
        .kubectl(&format!("taint node n{JOINER} {key}-"))
        .unwrap();
    gated.pod_runs();
    println!(
        "the pod ran {:?} after the rule's taint was gone",
        began.elapsed()
    );
}
