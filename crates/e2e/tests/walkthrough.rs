//! What a user of kube-fledged does, in their order, on a cluster of two nodes of which the second
//! has the label tier=backend. One test at a time: they share the nodes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{sync::MutexGuard, time::Duration};

use kubefledged_e2e::{Cluster, demo};
use serde_json::json;

const PULLED: &str = "All requested images pulled succesfully to respective nodes";

/// A cluster without objects and images of ours; held for one test.
fn cluster(namespace: &str) -> (Cluster, MutexGuard<'static, ()>) {
    let (cluster, guard) = Cluster::exclusive(namespace).unwrap();
    cluster
        .kubectl("label node n2 tier=backend --overwrite")
        .unwrap();
    (cluster, guard)
}

#[test]
fn create_edit_refresh_purge_and_delete_do_what_they_say() {
    let (cluster, _nodes) = cluster("walk");
    a_create_pulls_to_the_selected_nodes(&cluster);
    an_edit_pulls_what_is_new_and_removes_what_is_gone(&cluster);
    a_refresh_ends_and_its_annotation_goes(&cluster);
    a_purge_removes_everything(&cluster);
    a_refresh_pulls_again_and_a_delete_leaves_the_images(&cluster);
}

const ANNOTATE: &str = "annotate imagecaches imagecache1 -n walk";

fn a_create_pulls_to_the_selected_nodes(cluster: &Cluster) {
    let spec = json!({
        "cacheSpec": [
            {"images": [demo("web"), demo("api")]},
            {"images": [demo("worker"), demo("cache")], "nodeSelector": {"tier": "backend"}},
        ],
        "imagePullSecrets": [{"name": "myregistrykey"}],
    });
    cluster.create("walk", "imagecache1", &spec).unwrap();
    let status = cluster
        .ended("walk", "imagecache1", "ImageCacheCreate")
        .unwrap();
    assert_eq!(
        (&status["status"], &status["message"]),
        (&json!("Succeeded"), &json!(PULLED))
    );
    assert_eq!(status["ready"], "2/2");
    assert!(status["startTime"].is_string() && status["completionTime"].is_string());
    assert_eq!(cluster.demo_images("1").unwrap(), ["api:1.0", "web:1.0"]);
    assert_eq!(
        cluster.demo_images("2").unwrap(),
        ["api:1.0", "cache:1.0", "web:1.0", "worker:1.0"]
    );
    cluster
        .kubectl("wait --for=condition=Ready -n walk ic/imagecache1 --timeout=5s")
        .unwrap();
}

fn an_edit_pulls_what_is_new_and_removes_what_is_gone(cluster: &Cluster) {
    let lists = json!({"cacheSpec": [
        {"images": [demo("web"), demo("extra")]},
        {"images": [demo("worker")], "nodeSelector": {"tier": "backend"}},
    ]});
    cluster.edit("walk", "imagecache1", &lists).unwrap();
    let status = cluster
        .ended("walk", "imagecache1", "ImageCacheUpdate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded");
    assert_eq!(cluster.demo_images("1").unwrap(), ["extra:1.0", "web:1.0"]);
    assert_eq!(
        cluster.demo_images("2").unwrap(),
        ["extra:1.0", "web:1.0", "worker:1.0"]
    );
}

fn a_refresh_ends_and_its_annotation_goes(cluster: &Cluster) {
    cluster
        .kubectl(&format!("{ANNOTATE} kubefledged.io/refresh-imagecache="))
        .unwrap();
    let status = cluster
        .ended("walk", "imagecache1", "ImageCacheRefresh")
        .unwrap();
    assert_eq!(status["status"], "Succeeded");
    let annotations = &cluster.object("walk", "imagecache1").unwrap()["metadata"]["annotations"];
    assert!(annotations["kubefledged.io/refresh-imagecache"].is_null());
}

fn a_purge_removes_everything(cluster: &Cluster) {
    cluster
        .kubectl(&format!("{ANNOTATE} kubefledged.io/purge-imagecache="))
        .unwrap();
    let status = cluster
        .ended("walk", "imagecache1", "ImageCachePurge")
        .unwrap();
    assert_eq!(
        status["message"],
        "All cached images succesfully deleted from respective nodes"
    );
    for node in ["1", "2"] {
        assert!(cluster.demo_images(node).unwrap().is_empty(), "node {node}");
    }
}

fn a_refresh_pulls_again_and_a_delete_leaves_the_images(cluster: &Cluster) {
    cluster
        .kubectl(&format!("{ANNOTATE} kubefledged.io/refresh-imagecache="))
        .unwrap();
    cluster
        .ended("walk", "imagecache1", "ImageCacheRefresh")
        .unwrap();
    assert_eq!(cluster.demo_images("1").unwrap(), ["extra:1.0", "web:1.0"]);
    cluster
        .kubectl("delete imagecaches imagecache1 -n walk")
        .unwrap();
    assert_eq!(cluster.demo_images("1").unwrap(), ["extra:1.0", "web:1.0"]);
    assert!(
        !cluster
            .kubectl("get jobs -A --no-headers")
            .unwrap()
            .contains("imagecache")
    );
}

#[test]
fn one_start_and_one_end_are_told_as_events() {
    let (cluster, _nodes) = cluster("events");
    cluster
        .create(
            "events",
            "e",
            &json!({"cacheSpec": [{"images": [demo("web")]}]}),
        )
        .unwrap();
    cluster.ended("events", "e", "ImageCacheCreate").unwrap();
    let mut notes = cluster
        .until(Duration::from_secs(10), "both events are there", || {
            let notes = cluster.events("events", "e")?;
            Ok((notes.len() >= 2).then_some(notes))
        })
        .unwrap();
    notes.sort();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains(PULLED), "{notes:?}");
    assert!(
        notes[1].contains("Images are being pulled on to the nodes"),
        "{notes:?}"
    );
}

#[test]
fn what_cannot_be_pulled_is_named_and_does_not_hold_up_the_rest() {
    let (cluster, _nodes) = cluster("failing");
    let (unknown, down) = ("registry.test:5000/demo/web:9.9", "down.test:5002/a:1");
    let private = "private.test:5001/demo/secret:1.0";
    let spec = json!({"cacheSpec": [{"images": [unknown, down, private, demo("cache")]}]});
    cluster.create("failing", "bad", &spec).unwrap();
    let status = cluster.ended("failing", "bad", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Failed");
    for (image, reason) in [
        (unknown, "ImageNotFound"),
        (down, "RegistryUnavailable"),
        (private, "Unauthorized"),
    ] {
        let failures = status["failures"][image].as_array().unwrap();
        assert_eq!(failures.len(), 2, "{image}");
        assert_eq!(failures[0]["reason"], reason, "{image}");
    }
    assert_eq!(cluster.demo_images("1").unwrap(), ["cache:1.0"]);
}

#[test]
fn a_private_image_is_pulled_with_its_secret_and_the_password_is_in_no_log() {
    let (cluster, _nodes) = cluster("private");
    let password = cluster.run(&["registry-password"], "").unwrap();
    let password = password.trim();
    let _ = cluster.kubectl("delete secret reg -n private");
    cluster
        .kubectl(&format!(
            "create secret docker-registry reg -n private --docker-server=private.test:5001 --docker-username=demo --docker-password={password}"
        ))
        .unwrap();
    let image = "private.test:5001/demo/secret:1.0";
    let spec = json!({"cacheSpec": [{"images": [image]}], "imagePullSecrets": [{"name": "reg"}]});
    cluster.create("private", "p", &spec).unwrap();
    let status = cluster.ended("private", "p", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded");
    for node in ["1", "2"] {
        assert!(cluster.images(node).unwrap().contains(image), "node {node}");
    }
    let logs = cluster.logs().unwrap();
    assert!(logs.len() >= 5, "controller, two webhooks, two pullers");
    for (pod, log) in logs {
        assert!(!log.is_empty() && !log.contains(password), "{pod}");
    }
}

#[test]
fn wrong_objects_are_refused_with_a_sentence_that_names_the_field() {
    let (cluster, _nodes) = cluster("refused");
    let refused = |spec: serde_json::Value| {
        let error = cluster
            .feed("create --dry-run=server", "refused", "x", &spec)
            .unwrap_err();
        error.to_string()
    };
    for (images, part) in [
        (
            json!([]),
            "spec.cacheSpec[0].images: No images specified within image list",
        ),
        (
            json!(["a:1", "a:1"]),
            "Duplicate image names within image list: a:1",
        ),
        (
            json!(["UPPER/case:x"]),
            "spec.cacheSpec[0].images[0]: invalid image reference",
        ),
    ] {
        let said = refused(json!({"cacheSpec": [{"images": images}]}));
        assert!(said.contains(part), "{said}");
    }
    let said = refused(json!({"cacheSpec": [{"imags": []}]}));
    assert!(said.contains("spec.cacheSpec[0].imags"), "{said}");
    let good = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster
        .feed("create --dry-run=server", "refused", "x", &good)
        .unwrap();
}

#[test]
fn an_image_that_a_container_uses_survives_a_purge() {
    let (cluster, _nodes) = cluster("used");
    let _ = cluster.kubectl("delete pod user -n used --now");
    cluster
        .create(
            "used",
            "u",
            &json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}]}),
        )
        .unwrap();
    cluster.ended("used", "u", "ImageCacheCreate").unwrap();
    cluster.use_image("used", &demo("web")).unwrap();
    cluster
        .kubectl("annotate ic u -n used kubefledged.io/purge-imagecache=")
        .unwrap();
    let status = cluster.ended("used", "u", "ImageCachePurge").unwrap();
    let held = (
        cluster.demo_images("1").unwrap(),
        cluster.demo_images("2").unwrap(),
    );
    cluster.kubectl("delete pod user -n used --now").unwrap();
    assert_eq!(status["status"], "Succeeded");
    assert_eq!(status["images"]["kept"]["inUse"], 1);
    assert_eq!(held, (vec!["web:1.0".to_owned()], Vec::new()));
}
