//! What must be the same on every container runtime, and where they differ. `make test-runtimes`
//! runs it on a cluster with one node of each, `make e2e` on what there is. One test at a time: they
//! share the nodes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says where"
)]

mod artifacts;
mod ended;
mod mounts;
mod pins;
mod second;
mod setup;
mod volumes;

use std::{collections::BTreeSet, time::Duration};

use kubefledged_e2e::{demo, faulty};
use serde_json::json;

use crate::setup::{Setup, component, reasons, set};

const PRIVATE: &str = "private.test:5001/demo/secret:1.0";

#[test]
fn create_edit_refresh_purge_and_delete_do_the_same_everywhere() {
    let s = Setup::new("rt-walk");
    let (web, api, extra) = (demo("web"), demo("api"), demo("extra"));
    let status = s.created("walk", &[&web, &api]);
    assert_eq!(status["status"], "Succeeded", "{status}");
    s.assert_held(&[&web, &api]);

    let lists = json!({"cacheSpec": [{"images": [web, extra]}]});
    s.cluster.edit(s.namespace, "walk", &lists).unwrap();
    let status = s.ended("walk", "ImageCacheUpdate");
    assert_eq!(status["status"], "Succeeded", "{status}");
    s.assert_held(&[&web, &extra]);

    let status = s.annotated("walk", "refresh-imagecache", "ImageCacheRefresh");
    assert_eq!(status["status"], "Succeeded", "{status}");

    let status = s.purged("walk");
    assert_eq!(status["status"], "Succeeded", "{status}");
    s.assert_held(&[]);

    s.annotated("walk", "refresh-imagecache", "ImageCacheRefresh");
    let delete = format!("delete ic walk -n {}", s.namespace);
    s.cluster.kubectl(&delete).unwrap();
    s.assert_held(&[&web, &extra]);
}

#[test]
fn an_image_in_use_is_kept_at_a_purge_and_counted_everywhere() {
    let s = Setup::new("rt-used");
    let (web, api) = (demo("web"), demo("api"));
    s.created("used", &[&web, &api]);
    s.start_pods(&web);
    let status = s.purged("used");
    s.assert_held(&[&web]);
    s.delete_pods();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert_eq!(status["images"]["kept"]["inUse"], s.nodes.len(), "{status}");
}

/// containerd removes all names of an image with one of them, CRI-O only the name.
#[test]
fn a_purge_leaves_the_other_name_of_an_image_to_the_cache_that_wants_it() {
    let s = Setup::new("rt-shared");
    let (one, other) = (demo("web"), faulty("web"));
    s.created("one", &[&one]);
    s.created("other", &[&other]);
    s.assert_held(&[&one, &other]);

    let status = s.purged("one");
    assert_eq!(status["status"], "Succeeded", "{status}");
    for (node, runtime) in &s.nodes {
        let left = if runtime.starts_with("cri-o") {
            set(&[&other])
        } else {
            set(&[&one, &other])
        };
        assert_eq!(s.demo_images(node), left, "n{node}, {runtime}");
    }
    let status = s.purged("other");
    assert_eq!(status["status"], "Succeeded", "{status}");
    s.assert_held(&[]);
}

#[test]
fn a_private_image_needs_its_secret_everywhere() {
    let s = Setup::new("rt-private");
    let password = s.cluster.run(&["registry-password"], "").unwrap();
    for (name, password) in [("right", password.trim()), ("wrong", "wrong")] {
        let namespace = s.namespace;
        let _ = s
            .cluster
            .kubectl(&format!("delete secret {name} -n {namespace}"));
        let create = format!(
            "create secret docker-registry {name} -n {namespace} --docker-server=private.test:5001 --docker-username=demo --docker-password={password}"
        );
        s.cluster.kubectl(&create).unwrap();
    }
    let with = |secret: &str| json!({"cacheSpec": [{"images": [PRIVATE]}], "imagePullSecrets": [{"name": secret}]});
    s.feed("wrong", &with("wrong"));
    let status = s.ended("wrong", "ImageCacheCreate");
    assert_eq!(status["status"], "Failed", "{status}");
    assert_eq!(reasons(&status, PRIVATE), on_all(&s, "Unauthorized"));
    s.assert_held(&[]);

    s.feed("right", &with("right"));
    let status = s.ended("right", "ImageCacheCreate");
    assert_eq!(status["status"], "Succeeded", "{status}");
    s.assert_held(&[PRIVATE]);
}

fn on_all(s: &Setup, reason: &str) -> Vec<(String, String)> {
    let nodes = s.nodes.iter();
    nodes
        .map(|(node, _)| (format!("n{node}"), reason.to_owned()))
        .collect()
}

#[test]
fn what_a_registry_says_has_the_same_name_everywhere() {
    let s = Setup::new("rt-reasons");
    let unknown = "registry.test:5000/demo/web:9.9";
    let status = s.created("unknown", &[unknown]);
    assert_eq!(reasons(&status, unknown), on_all(&s, "ImageNotFound"));
    let image = faulty("web");
    for (name, fault, reason) in [
        ("throttled", "status=429", "RateLimited"),
        ("forbidden", "status=403", "Unauthorized"),
        ("broken", "status=500", "RegistryUnavailable"),
        ("token", "token=deny", "Unauthorized"),
        ("platform", "platform=s390x", "PlatformMismatch"),
    ] {
        s.cluster.run(&["fault", fault], "").unwrap();
        let status = s.created(name, &[&image]);
        assert_eq!(status["status"], "Failed", "{name}: {status}");
        assert_eq!(reasons(&status, &image), on_all(&s, reason), "{name}");
        let delete = format!("delete ic {name} -n {}", s.namespace);
        s.cluster.kubectl(&delete).unwrap();
    }
    s.assert_held(&[]);
}

/// 1.3 MB at 100 KiB per second: the runtime is killed in the middle.
#[test]
fn a_pull_survives_the_restart_of_the_runtime() {
    let s = Setup::new("rt-restart");
    let image = faulty("web");
    s.cluster
        .run(&["fault", "slow=100", "only=blobs"], "")
        .unwrap();
    s.create("restart", &[&image]);
    s.cluster
        .until(Duration::from_secs(20), "all nodes pull", || {
            let status = s.cluster.object(s.namespace, "restart")?["status"].clone();
            Ok((status["nodes"]["pulling"] == s.nodes.len()).then_some(()))
        })
        .unwrap();
    for (node, _) in &s.nodes {
        let component = component(&s, node);
        s.cluster.run(&["restart", node, component], "").unwrap();
    }
    s.until_answers();
    s.cluster.run(&["fault", "off"], "").unwrap();
    s.until_held(&image);
    let wait = "wait --for=condition=Ready -n rt-restart ic/restart --timeout=120s";
    s.cluster.kubectl(wait).unwrap();
}

#[test]
#[ignore = "needs nodes with disks of their own: make test-runtimes"]
fn a_full_disk_is_named_before_anything_is_pulled_and_heals() {
    let s = Setup::new("rt-disk");
    let image = demo("api");
    for (node, _) in &s.nodes {
        s.cluster.run(&["fill", node, "85"], "").unwrap();
    }
    let status = s.created("disk", &[&image]);
    let held: Vec<_> = s
        .nodes
        .iter()
        .map(|(node, _)| s.demo_images(node))
        .collect();
    for (node, _) in &s.nodes {
        s.cluster.run(&["fill", node, "0"], "").unwrap();
    }
    assert_eq!(reasons(&status, &image), on_all(&s, "DiskPressure"));
    assert!(held.iter().all(BTreeSet::is_empty), "{held:?}");
    s.until_held(&image);
}

/// 300 MB that unpack to as much again, where 440 MB are free. (CRI-O unpacks while it fetches, and has
/// room enough.)
#[test]
#[ignore = "needs nodes with disks of their own: make test-runtimes"]
fn a_pull_that_fills_the_disk_is_named_and_leaves_nothing_behind() {
    const BIG: &str = "registry.test:5000/bench/big:1.0";
    let s = Setup::new("rt-full");
    s.cluster.run(&["images", "bench"], "").unwrap();
    let containerds = s.nodes.iter();
    for (node, runtime) in containerds.filter(|(_, runtime)| runtime.starts_with("containerd")) {
        s.cluster.run(&["fill", node, "78"], "").unwrap();
        let name = format!("full{node}");
        let here = json!({"kubernetes.io/hostname": format!("n{node}")});
        let list = json!({"images": [BIG], "nodeSelector": here});
        s.feed(&name, &json!({"cacheSpec": [list]}));
        let status = s.ended(&name, "ImageCacheCreate");
        let delete = format!("delete ic {name} -n {}", s.namespace);
        s.cluster.kubectl(&delete).unwrap();
        let what = format!("n{node}, {runtime}, has its room again");
        let free = s.cluster.until(Duration::from_secs(60), &what, || {
            Ok((used(&s, node)? <= 80).then_some(()))
        });
        s.cluster.run(&["fill", node, "0"], "").unwrap();
        free.unwrap();
        let expected = vec![(format!("n{node}"), "DiskPressure".to_owned())];
        assert_eq!(reasons(&status, BIG), expected, "{runtime}: {status}");
        let images = s.cluster.images(node).unwrap();
        assert!(!images.contains(BIG), "n{node}, {runtime}: {images:?}");
    }
}

/// 300 MB at 20 MiB a second on a disk of 2 GiB that is 72 % full: they do not fit, and containerd shows that.
/// (CRI-O shows no sizes, and fetches into /var/tmp, which is another file system here.)
#[test]
#[ignore = "needs nodes with disks of their own: make test-runtimes"]
fn a_pull_that_does_not_fit_is_stopped_before_it_fills_the_disk() {
    let big = faulty("big").replace("/demo/", "/bench/");
    let s = Setup::new("rt-stop");
    s.cluster.run(&["images", "bench"], "").unwrap();
    let slow = ["fault", "slow=20480", "only=blobs"];
    s.cluster.run(&slow, "").unwrap();
    let containerds = s.nodes.iter();
    for (node, runtime) in containerds.filter(|(_, runtime)| runtime.starts_with("containerd")) {
        s.cluster.run(&["fill", node, "72"], "").unwrap();
        let name = format!("stop{node}");
        let here = json!({"kubernetes.io/hostname": format!("n{node}")});
        let list = json!({"images": [big], "nodeSelector": here});
        s.feed(&name, &json!({"cacheSpec": [list]}));
        let mut most = 0;
        let what = format!("n{node}, {runtime}, stops the pull");
        let ended = s.cluster.until(Duration::from_secs(60), &what, || {
            most = most.max(used(&s, node)?);
            let status = s.cluster.object(s.namespace, &name)?["status"].clone();
            Ok((status["status"] == "Failed").then_some(status))
        });
        s.cluster.run(&["fill", node, "0"], "").unwrap();
        let status = ended.unwrap();
        let expected = vec![(format!("n{node}"), "DiskPressure".to_owned())];
        assert_eq!(reasons(&status, &big), expected, "{runtime}: {status}");
        let text = status["failures"][&big][0]["message"].as_str().unwrap();
        assert!(text.contains("the image does not fit"), "{runtime}: {text}");
        assert!(most < 83, "n{node}, {runtime}: {most} % were used");
        let delete = format!("delete ic {name} -n {} --timeout=60s", s.namespace);
        s.cluster.kubectl(&delete).unwrap();
    }
    s.cluster.run(&["fault", "off"], "").unwrap();
}

/// Percent of the image file system of a node with containerd that is in use.
fn used(s: &Setup, node: &str) -> anyhow::Result<u8> {
    let df = ["node", node, "df", "--output=pcent", "/var/lib/containerd"];
    let said = s.cluster.run(&df, "")?;
    let used = said.split_whitespace().last().unwrap_or_default();
    Ok(used.trim_end_matches('%').parse()?)
}
