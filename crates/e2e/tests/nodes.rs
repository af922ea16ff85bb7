//! Which nodes get images: as they join, as their labels change, and as many as an object allows and
//! asks for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    thread,
    time::{Duration, Instant},
};

use kubefledged_e2e::{Cluster, demo, faulty};
use serde_json::{Value, json};

fn cluster(namespace: &str) -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(namespace).unwrap();
    cluster
}

const ALL: (&str, &str, &str) = ("Ready", "True", "AllImagesPresent");
/// The node pool is empty, and had nodes once.
const NONE: (&str, &str, &str) = ("Ready", "True", "NoEligibleNodes");
/// No node has ever matched.
const NEVER: (&str, &str, &str) = ("Ready", "False", "NoNodeMatches");

#[test]
fn a_node_that_joins_gets_its_first_image_within_a_second_of_its_pullers_readiness() {
    let cluster = cluster("join");
    let spec = json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}]});
    cluster.create("join", "j", &spec).unwrap();
    cluster.ended("join", "j", "ImageCacheCreate").unwrap();
    let log = cluster.access_log().unwrap();
    let ready = cluster.puller_ready("3");
    let first_pull = || {
        let mut requests = log.requests()?.into_iter();
        let first = requests.find(|r| r.client == "10.77.0.3" && r.path.contains("/demo/"));
        anyhow::Ok(first.map(|_| Instant::now()))
    };
    let joined = thread::scope(|scope| {
        let up = scope.spawn(|| cluster.run(&["up", "3"], ""));
        let ready = ready.recv_timeout(Duration::from_secs(90));
        let start = Instant::now();
        let pulled = loop {
            match first_pull() {
                Ok(None) if start.elapsed() < Duration::from_secs(10) => {
                    thread::sleep(Duration::from_millis(10));
                }
                found => break found,
            }
        };
        up.join().unwrap()?;
        anyhow::Ok(pulled?.unwrap().saturating_duration_since(ready?))
    });
    let what = "the status counts node 3";
    let status = cluster.until(Duration::from_secs(20), what, || {
        let status = cluster.object("join", "j")?["status"].clone();
        Ok((status["ready"] == "3/3").then_some(status))
    });
    let held = cluster.demo_images("3");
    cluster.run(&["remove-node", "3"], "").unwrap();
    let joined = joined.unwrap();
    println!("first pull {joined:?} after the puller was ready");
    assert!(joined < Duration::from_secs(1), "{joined:?}");
    assert_eq!(held.unwrap(), ["api:1.0", "web:1.0"]);
    // A node that joins makes no new operation, and one that leaves is not awaited.
    assert_eq!(status.unwrap()["reason"], "ImageCacheCreate");
    let what = "the status counts two nodes";
    let counted = cluster.until(Duration::from_secs(20), what, || {
        let status = cluster.object("join", "j")?["status"].clone();
        Ok((status["ready"] == "2/2").then_some(()))
    });
    counted.unwrap();
}

#[test]
fn a_label_that_comes_brings_images_and_one_that_goes_takes_none() {
    let cluster = cluster("labels");
    let selects = json!({"e2e.test/pool": "warm"});
    let spec = json!({"cacheSpec": [{"images": [demo("web")], "nodeSelector": selects}]});
    cluster.create("labels", "l", &spec).unwrap();
    let status = cluster.ended("labels", "l", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "NoImagesPulledOrDeleted", "{status}");
    cluster.condition("labels", "l", NEVER).unwrap();

    let warm = cluster.labelled("2", "e2e.test/pool=warm").unwrap();
    let status = cluster.condition("labels", "l", ALL).unwrap();
    assert_eq!(status["ready"], "1/1");
    assert_eq!(cluster.demo_images("2").unwrap(), ["web:1.0"]);
    assert!(cluster.demo_images("1").unwrap().is_empty());
    drop(warm);
    cluster.condition("labels", "l", NONE).unwrap();
    // Its images are the kubelet's from now on.
    assert_eq!(cluster.demo_images("2").unwrap(), ["web:1.0"]);
}

#[test]
fn an_excluded_or_cordoned_node_is_neither_served_nor_awaited_until_it_is_eligible_again() {
    let cluster = cluster("excluded");
    let excluded = cluster
        .labelled("1", "kubefledged.io/exclude=true")
        .unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.create("excluded", "e", &spec).unwrap();
    let status = cluster.ended("excluded", "e", "ImageCacheCreate").unwrap();
    assert_eq!(
        (&status["status"], &status["ready"]),
        (&json!("Succeeded"), &json!("1/1"))
    );
    assert!(cluster.demo_images("1").unwrap().is_empty());
    drop(excluded);
    let served = |ready: &str| {
        let what = format!("{ready} nodes are ready");
        let status = cluster.until(Duration::from_secs(20), &what, || {
            let status = cluster.object("excluded", "e")?["status"].clone();
            Ok((status["ready"] == ready).then_some(status))
        });
        status.unwrap()
    };
    served("2/2");
    assert_eq!(cluster.demo_images("1").unwrap(), ["web:1.0"]);

    cluster.kubectl("cordon n2").unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}]});
    let edited = cluster
        .edit("excluded", "e", &spec)
        .and_then(|_| cluster.ended("excluded", "e", "ImageCacheUpdate"));
    let held = cluster.demo_images("2");
    cluster.kubectl("uncordon n2").unwrap();
    let status = edited.unwrap();
    assert_eq!(
        (&status["status"], &status["ready"]),
        (&json!("Succeeded"), &json!("1/1"))
    );
    assert_eq!(held.unwrap(), ["web:1.0"]);
    served("2/2");
    assert_eq!(cluster.demo_images("2").unwrap(), ["api:1.0", "web:1.0"]);
}

#[test]
fn a_node_affinity_chooses_nodes_as_a_volumes_does() {
    let cluster = cluster("affinity");
    let cores = cluster.labelled("2", "e2e.test/cores=8").unwrap();
    let named = |name: &str, terms: Value| {
        let affinity = json!({"required": {"nodeSelectorTerms": terms}});
        let list = json!({"images": [demo(name)], "nodeAffinity": affinity});
        cluster
            .create("affinity", name, &json!({ "cacheSpec": [list] }))
            .unwrap();
    };
    let labels = |operator: &str, values: &[&str]| {
        json!({"matchExpressions": [
            {"key": "e2e.test/cores", "operator": operator, "values": values}
        ]})
    };
    let name = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
    named("web", json!([name("n1")]));
    named("api", json!([labels("Gt", &["4"])]));
    named(
        "worker",
        json!([labels("DoesNotExist", &[]), labels("In", &["8"])]),
    );
    named("cache", json!([labels("Lt", &["8"])]));
    for (name, expected) in [
        ("web", ALL),
        ("api", ALL),
        ("worker", ALL),
        ("cache", NEVER),
    ] {
        cluster.condition("affinity", name, expected).unwrap();
    }
    assert_eq!(cluster.demo_images("1").unwrap(), ["web:1.0", "worker:1.0"]);
    assert_eq!(cluster.demo_images("2").unwrap(), ["api:1.0", "worker:1.0"]);
    drop(cores);
}

/// The image that is nowhere is wanted on n1 only.
fn half_broken(min_ready_nodes: &Value) -> Value {
    let missing = "registry.test:5000/demo/web:9.9";
    let here = json!({"kubernetes.io/hostname": "n1"});
    json!({
        "cacheSpec": [{"images": [demo("web")]}, {"images": [missing], "nodeSelector": here}],
        "minReadyNodes": min_ready_nodes,
    })
}

#[test]
fn ready_is_when_as_many_nodes_hold_everything_as_were_asked_for_and_kubectl_waits_for_it() {
    let cluster = cluster("enough");
    let spec = half_broken(&json!("50%"));
    cluster.create("enough", "e", &spec).unwrap();
    let wait = "wait --for=condition=Ready -n enough ic/e";
    cluster.kubectl(&format!("{wait} --timeout=30s")).unwrap();
    let status = cluster
        .condition("enough", "e", ("Ready", "True", "EnoughNodesReady"))
        .unwrap();
    assert_eq!(status["ready"], "1/2");
    assert_eq!(cluster.demo_images("2").unwrap(), ["web:1.0"]);
    let failed = ("Degraded", "True", "PullFailed");
    cluster.condition("enough", "e", failed).unwrap();

    let all = json!({"minReadyNodes": "51%"});
    cluster.edit("enough", "e", &all).unwrap();
    let missing = ("Ready", "False", "ImagesMissing");
    cluster.condition("enough", "e", missing).unwrap();
    assert!(cluster.kubectl(&format!("{wait} --timeout=1s")).is_err());
    // What is edited is no operation: the last one stays what it was.
    let status = cluster.object("enough", "e").unwrap()["status"].clone();
    assert_eq!(status["reason"], "ImageCacheCreate");

    let lists = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.edit("enough", "e", &lists).unwrap();
    cluster.kubectl(&format!("{wait} --timeout=30s")).unwrap();
}

#[test]
fn a_cache_pulls_on_no_more_nodes_at_a_time_than_it_may() {
    let cluster = cluster("one-by-one");
    cluster
        .run(&["fault", "slow=300", "only=blobs"], "")
        .unwrap();
    let spec = json!({"cacheSpec": [{"images": [faulty("web")]}], "maxConcurrentNodes": 1});
    cluster.create("one-by-one", "o", &spec).unwrap();
    let (mut most, mut seen) = (0, 0);
    let status = cluster.until(Duration::from_secs(60), "it is over", || {
        let status = cluster.object("one-by-one", "o")?["status"].clone();
        let pulling = status["nodes"]["pulling"].as_u64().unwrap_or(0);
        most = most.max(pulling);
        seen += pulling;
        let over = status["status"].is_string() && status["status"] != "Processing";
        Ok(over.then_some(status))
    });
    cluster.run(&["fault", "off"], "").unwrap();
    let status = status.unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert!(seen > 2, "it was seen pulling");
    assert_eq!(most, 1);
}

#[test]
fn a_suspended_cache_starts_nothing_until_it_is_resumed_and_its_requests_wait() {
    let cluster = cluster("suspended");
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}], "suspend": true});
    cluster.create("suspended", "s", &spec).unwrap();
    let suspended = ("Progressing", "False", "Suspended");
    cluster.condition("suspended", "s", suspended).unwrap();
    let status = cluster.object("suspended", "s").unwrap()["status"].clone();
    let conditions = status["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .all(|condition| condition["type"] != "Ready")
    );
    // Another one that came later is served meanwhile.
    let other = json!({"cacheSpec": [{"images": [demo("api")]}]});
    cluster.create("suspended", "other", &other).unwrap();
    cluster
        .ended("suspended", "other", "ImageCacheCreate")
        .unwrap();
    for node in cluster.nodes().unwrap() {
        assert_eq!(cluster.demo_images(&node).unwrap(), ["api:1.0"]);
    }
    let resume = json!({"suspend": false});
    cluster.edit("suspended", "s", &resume).unwrap();
    cluster.condition("suspended", "s", ALL).unwrap();

    cluster
        .edit("suspended", "s", &json!({"suspend": true}))
        .unwrap();
    cluster.condition("suspended", "s", suspended).unwrap();
    cluster
        .kubectl("annotate ic s -n suspended kubefledged.io/purge-imagecache=")
        .unwrap();
    let purge = "annotate ic other -n suspended kubefledged.io/purge-imagecache=";
    cluster.kubectl(purge).unwrap();
    cluster
        .ended("suspended", "other", "ImageCachePurge")
        .unwrap();
    for node in cluster.nodes().unwrap() {
        assert_eq!(cluster.demo_images(&node).unwrap(), ["web:1.0"]);
    }
    cluster.edit("suspended", "s", &resume).unwrap();
    let status = cluster.ended("suspended", "s", "ImageCachePurge").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
}
