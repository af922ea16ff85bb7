//! Edits, requests and deletions at any moment: the last word wins and nothing is eaten.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::{Duration, Instant};

use kubefledged_e2e::{Cluster, demo, faulty, fleet::OURS};
use serde_json::{Value, json};

fn cluster(namespace: &str) -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(namespace).unwrap();
    cluster
}

fn of(images: &[String]) -> Value {
    json!({"cacheSpec": [{"images": images}]})
}

fn created(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Value {
    cluster.create(namespace, name, spec).unwrap();
    let status = cluster.ended(namespace, name, "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    status
}

/// Every node holds exactly these of the test images.
fn assert_held(cluster: &Cluster, names: &[&str]) {
    for node in cluster.nodes().unwrap() {
        assert_eq!(cluster.demo_images(&node).unwrap(), names, "n{node}");
    }
}

#[test]
fn an_edit_aborts_the_pull_of_a_large_image_that_nobody_wants_any_more() {
    let cluster = cluster("edit-abort");
    cluster.run(&["images", "big"], "").unwrap();
    // At this rate it would take a quarter of an hour.
    let slow = ["fault", "slow=300", "only=blobs", "match=bench/big"];
    cluster.run(&slow, "").unwrap();
    let log = cluster.access_log().unwrap();
    let big = "faulty.test:5003/bench/big:1.0".to_owned();
    cluster
        .create("edit-abort", "edit", &of(&[big.clone(), demo("web")]))
        .unwrap();
    let nodes = cluster.nodes().unwrap();
    let what = "all nodes pull the large image, and hold the small one";
    let pulling = cluster.until(Duration::from_secs(30), what, || {
        let status = cluster.object("edit-abort", "edit")?["status"].clone();
        let all = status["nodes"]["pulling"] == nodes.len();
        Ok((all && status["images"]["ready"] == nodes.len()).then_some(()))
    });
    pulling.unwrap();

    let edited = Instant::now();
    let spec = of(&[demo("web"), demo("api")]);
    cluster.edit("edit-abort", "edit", &spec).unwrap();
    let status = cluster.ended("edit-abort", "edit", "ImageCacheUpdate");
    let broken_off = cluster.until(Duration::from_secs(10), "the transfers end", || {
        let mut requests = log.requests()?;
        // Beside the layer there is a configuration of some hundred bytes.
        requests.retain(|r| r.path.contains("/bench/big/blobs/") && r.bytes > 100_000);
        Ok((requests.len() == nodes.len()).then_some(requests))
    });
    cluster.run(&["fault", "off"], "").unwrap();
    println!("aborted and updated in {:?}", edited.elapsed());
    for request in broken_off.unwrap() {
        assert!(request.bytes < 100_000_000, "{request:?}");
    }
    let status = status.unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert_held(&cluster, &["api:1.0", "web:1.0"]);
    for node in &nodes {
        assert!(!cluster.images(node).unwrap().contains(&big));
    }
}

/// A token is `GitOps`' way to ask: it stays in the manifest.
#[test]
fn a_token_is_handled_once_and_left_where_it_is() {
    let cluster = cluster("tokens");
    created(&cluster, "tokens", "t", &of(&[demo("web")]));
    let annotate = |what: &str| {
        let annotate = format!("annotate ic t -n tokens --overwrite kubefledged.io/{what}");
        cluster.kubectl(&annotate).unwrap();
    };
    let annotations = || cluster.object("tokens", "t").unwrap()["metadata"]["annotations"].clone();
    annotate("refresh-imagecache=first");
    let refreshed = cluster.ended("tokens", "t", "ImageCacheRefresh").unwrap();
    assert_eq!(refreshed["lastHandledRefresh"], "first");

    annotate("purge-imagecache=clear");
    let purged = cluster.ended("tokens", "t", "ImageCachePurge").unwrap();
    assert_eq!(purged["status"], "Succeeded", "{purged}");
    assert_eq!(purged["lastHandledPurge"], "clear");
    assert_held(&cluster, &[]);
    let found = annotations();
    assert_eq!(found["kubefledged.io/refresh-imagecache"], "first");
    assert_eq!(found["kubefledged.io/purge-imagecache"], "clear");

    // The same manifest again: nothing. A new token: a refresh, and the purge is over.
    for request in ["refresh-imagecache-", "purge-imagecache-"] {
        annotate(request);
    }
    annotate("refresh-imagecache=first");
    annotate("purge-imagecache=clear");
    annotate("refresh-imagecache=second");
    let status = cluster.ended("tokens", "t", "ImageCacheRefresh").unwrap();
    assert_eq!(status["lastHandledRefresh"], "second");
    assert_eq!(status["lastHandledPurge"], "clear");
    assert_held(&cluster, &["web:1.0"]);
    let uid = cluster.object("tokens", "t").unwrap()["metadata"]["uid"].clone();
    let reasons = |reason: &str| {
        let list = cluster.kubectl("get events -n tokens -o json").unwrap();
        let list: Value = serde_json::from_str(&list).unwrap();
        let events = list["items"].as_array().unwrap().iter();
        // An object of an earlier run had the same name.
        let events = events.filter(|e| e["involvedObject"]["uid"] == uid);
        let ended = events.filter(|e| e["reason"] == reason && e["action"] == "Succeeded");
        // Equal Events are one with a count.
        let counts = ended.map(|e| e["series"]["count"].as_u64().unwrap_or(1));
        counts.sum::<u64>()
    };
    let told = cluster.until(Duration::from_secs(10), "the end is told", || {
        Ok((reasons("ImageCacheRefresh") >= 2).then_some(()))
    });
    told.unwrap();
    assert_eq!(reasons("ImageCacheRefresh"), 2);
    assert_eq!(reasons("ImageCachePurge"), 1);
}

/// Puts the controllers back, whatever the test does.
struct Down<'a>(&'a Cluster);

impl<'a> Down<'a> {
    fn take(cluster: &'a Cluster) -> Self {
        let scale = format!("scale deployment kubefledged-controller -n {OURS} --replicas=0");
        cluster.kubectl(&scale).unwrap();
        let down = Self(cluster);
        let gone = cluster.until(Duration::from_secs(60), "no controller runs", || {
            let pods = "get pods -l app.kubernetes.io/component=controller -o name";
            let pods = cluster.kubectl(&format!("{pods} -n {OURS}"))?;
            Ok(pods.trim().is_empty().then_some(()))
        });
        gone.unwrap();
        down
    }
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let scale = format!("scale deployment kubefledged-controller -n {OURS} --replicas=2");
        let _ = self.0.kubectl(&scale);
    }
}

#[test]
fn what_was_asked_while_no_controller_ran_is_done_when_one_runs_again() {
    let cluster = cluster("down");
    created(&cluster, "down", "purged", &of(&[demo("web")]));
    created(
        &cluster,
        "down",
        "edited",
        &of(&[demo("api"), demo("worker")]),
    );
    let retained = of(&[demo("cache")]);
    let refreshed = created(&cluster, "down", "refreshed", &retained);
    let doomed = json!({"cacheSpec": [{"images": [demo("extra")]}], "deletionPolicy": "Purge"});
    created(&cluster, "down", "doomed", &doomed);

    let down = Down::take(&cluster);
    for command in [
        "annotate ic purged -n down kubefledged.io/purge-imagecache=",
        "annotate ic refreshed -n down kubefledged.io/refresh-imagecache=",
        "delete ic doomed -n down --wait=false",
    ] {
        cluster.kubectl(command).unwrap();
    }
    cluster.edit("down", "edited", &of(&[demo("api")])).unwrap();
    // One that no controller has ever seen.
    let unseen = of(&[demo("web")]);
    cluster.feed("apply", "down", "unseen", &unseen).unwrap();
    cluster
        .kubectl("annotate ic unseen -n down kubefledged.io/purge-imagecache=t1")
        .unwrap();
    drop(down);

    for (name, operation) in [
        ("purged", "ImageCachePurge"),
        ("edited", "ImageCacheUpdate"),
        ("refreshed", "ImageCacheRefresh"),
    ] {
        let status = cluster.ended("down", name, operation).unwrap();
        assert_eq!(status["status"], "Succeeded", "{name}: {status}");
        let object = cluster.object("down", name).unwrap();
        assert!(object["metadata"]["annotations"].is_null(), "{object}");
    }
    let status = cluster.object("down", "refreshed").unwrap()["status"].clone();
    assert_ne!(status["lastRefreshTime"], refreshed["lastRefreshTime"]);
    let status = cluster.ended("down", "unseen", "ImageCachePurge").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert_eq!(status["lastHandledPurge"], "t1", "{status}");
    let wait = "wait --for=delete ic/doomed -n down --timeout=30s";
    cluster.kubectl(wait).unwrap();
    assert_held(&cluster, &["api:1.0", "cache:1.0"]);
    cluster.leader().unwrap();
}

#[test]
fn a_deleted_object_with_policy_purge_goes_when_its_images_have_gone() {
    let cluster = cluster("purge-policy");
    let spec =
        json!({"cacheSpec": [{"images": [demo("web"), demo("api")]}], "deletionPolicy": "Purge"});
    created(&cluster, "purge-policy", "p", &spec);
    created(&cluster, "purge-policy", "other", &of(&[demo("api")]));
    let object = cluster.object("purge-policy", "p").unwrap();
    assert_eq!(
        object["metadata"]["finalizers"],
        json!(["kubefledged.io/purge"])
    );
    cluster
        .kubectl("delete ic p -n purge-policy --timeout=30s")
        .unwrap();
    // What another one wants stays.
    assert_held(&cluster, &["api:1.0"]);

    // Set to Retain while it waits: it goes at once, and its images stay.
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}], "deletionPolicy": "Purge"});
    created(&cluster, "purge-policy", "q", &spec);
    let retain = json!({"deletionPolicy": "Retain"});
    cluster.edit("purge-policy", "q", &retain).unwrap();
    let what = "the finalizer is off";
    let freed = cluster.until(Duration::from_secs(10), what, || {
        let object = cluster.object("purge-policy", "q")?;
        Ok(object["metadata"]["finalizers"].is_null().then_some(()))
    });
    freed.unwrap();
    cluster
        .kubectl("delete ic q -n purge-policy --timeout=10s")
        .unwrap();
    assert_held(&cluster, &["api:1.0", "web:1.0"]);
}

/// Makes a tag name the content of a demo image.
fn tag(cluster: &Cluster, content: &str, name: &str) {
    let registry = "docker://10.77.0.1:5000/demo";
    let (from, to) = (
        format!("{registry}/{content}:1.0"),
        format!("{registry}/{name}:1.0"),
    );
    let mut args = vec!["run", "skopeo", "--insecure-policy", "copy", "--quiet"];
    args.extend([
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &from,
        &to,
    ]);
    cluster.run(&args, "").unwrap();
}

/// The id of an image by its name, on each node.
fn ids(cluster: &Cluster, name: &str) -> Vec<String> {
    let nodes = cluster.nodes().unwrap().into_iter();
    let ids = nodes.map(|node| {
        let args = ["node", &node, "crictl", "inspecti", "-o", "json", name];
        let status: Value = serde_json::from_str(&cluster.run(&args, "").unwrap()).unwrap();
        status["status"]["id"].as_str().unwrap().to_owned()
    });
    ids.collect()
}

#[test]
fn a_tag_that_moves_ends_with_the_new_content_on_all_nodes_and_one_node_asks_first() {
    let cluster = cluster("moved");
    tag(&cluster, "web", "moved");
    let list = json!({"images": [demo("moved")], "imagePullPolicy": "Always"});
    let spec = json!({"cacheSpec": [list], "refresh": {"interval": "0s"}});
    created(&cluster, "moved", "m", &spec);
    let nodes = cluster.nodes().unwrap().len();
    let before = ids(&cluster, &demo("moved"));

    let refresh = |times: usize| {
        let log = cluster.access_log().unwrap();
        let before = cluster.object("moved", "m").unwrap()["status"]["startTime"].clone();
        let token = format!("kubefledged.io/refresh-imagecache=token-{times}");
        cluster
            .kubectl(&format!("annotate ic m -n moved --overwrite {token}"))
            .unwrap();
        let ended = cluster.until(Duration::from_secs(30), "the refresh ends", || {
            let status = cluster.object("moved", "m")?["status"].clone();
            let handled = status["lastHandledRefresh"] == format!("token-{times}");
            Ok((handled && status["status"] != "Processing").then_some(status))
        });
        let status = ended.unwrap();
        assert_eq!(status["status"], "Succeeded", "{status}");
        assert!(times > 1 || status["startTime"] != before);
        let asked = log.requests().unwrap().into_iter();
        let tags = asked.filter(|r| r.path.starts_with("/v2/demo/moved/manifests/1.0"));
        tags.count()
    };
    assert_eq!(refresh(1), 1, "nothing has moved: one node has asked");
    assert_eq!(ids(&cluster, &demo("moved")), before);

    tag(&cluster, "api", "moved");
    assert_eq!(refresh(2), nodes, "it has moved: every node has asked");
    let after = ids(&cluster, &demo("moved"));
    assert!(after.iter().zip(&before).all(|(new, old)| new != old));
    assert!(after.iter().all(|id| *id == after[0]));
}

#[test]
fn two_caches_of_one_image_share_its_pull_and_the_last_one_keeps_it() {
    let cluster = cluster("shared");
    cluster
        .run(&["fault", "slow=200", "only=blobs"], "")
        .unwrap();
    let log = cluster.access_log().unwrap();
    for name in ["one", "two"] {
        cluster
            .create("shared", name, &of(&[faulty("web")]))
            .unwrap();
    }
    for name in ["one", "two"] {
        let status = cluster.ended("shared", name, "ImageCacheCreate").unwrap();
        assert_eq!(status["status"], "Succeeded", "{status}");
    }
    cluster.run(&["fault", "off"], "").unwrap();
    assert_eq!(log.pulls("web").unwrap(), cluster.nodes().unwrap().len());
    for (name, left) in [("one", &["web:1.0"][..]), ("two", &[])] {
        let purge = format!("annotate ic {name} -n shared kubefledged.io/purge-imagecache=");
        cluster.kubectl(&purge).unwrap();
        let status = cluster.ended("shared", name, "ImageCachePurge").unwrap();
        assert_eq!(status["status"], "Succeeded", "{status}");
        assert_held(&cluster, left);
    }
}
