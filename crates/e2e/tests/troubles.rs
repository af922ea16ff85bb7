//! Troubles as users have them, each planted in the cluster; the command of docs/troubleshooting.md
//! must show its cause.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use kubefledged_e2e::{
    Cluster, demo,
    examples::{DEBUG, examples},
    faulty,
};
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../../docs/troubleshooting.md");

fn create(cluster: &Cluster, images: &[String], more: &Value) {
    let mut spec = json!({"cacheSpec": [{"images": images}]});
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    cluster.create("shop", "web", &spec).unwrap();
}

/// Runs the one command below a heading until it shows this.
fn shows(cluster: &Cluster, heading: &str, part: &str) -> String {
    let examples = examples(DOCUMENT);
    let (_, commands) = examples
        .iter()
        .find(|(known, _)| *known == heading)
        .unwrap();
    assert_eq!(commands.len(), 1, "{heading}: one command");
    let debug = self::examples(DEBUG);
    let forward = &debug[0].1[..1];
    cluster
        .until(
            Duration::from_secs(120),
            &format!("{heading}: {part}"),
            || {
                let said = if commands[0].contains("localhost:7070") {
                    cluster.forwarded(forward, &[7070], commands)?
                } else {
                    cluster.run(&["run", "bash", "-c", commands[0]], "")?
                };
                Ok(said.contains(part).then_some(said))
            },
        )
        .unwrap()
}

/// The plugin shows the same in one command, which exits with a code other than 0.
fn explains(cluster: &Cluster, command: &str, part: &str) {
    let args: Vec<&str> = command.split_whitespace().collect();
    cluster.fledged_explains(&args, part).unwrap();
}

/// Undoes what was planted, also where the test fails.
fn planted(work: impl FnOnce(), undo: impl FnOnce()) {
    let result = catch_unwind(AssertUnwindSafe(work));
    undo();
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

#[test]
fn the_tag_is_wrong() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    create(
        &cluster,
        &[demo("web").replace(":1.0", ":none")],
        &json!({}),
    );
    let line = shows(&cluster, "On one screen", "ImageNotFound");
    // The operation, four conditions, one image.
    assert_eq!(line.lines().count(), 6, "{line}");
    let said = shows(&cluster, "The tag is wrong", "ImageNotFound");
    assert!(
        said.contains("demo/web:none") && said.contains("PullFailed"),
        "{said}"
    );
    explains(&cluster, "status web -n shop", "no such image or tag");
    explains(&cluster, "why n1", "no such image or tag");
}

#[test]
fn the_secret_is_wrong() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let _ = cluster.kubectl("delete secret wrong -n shop");
    cluster
        .kubectl("create secret docker-registry wrong -n shop --docker-server=private.test:5001 --docker-username=demo --docker-password=nonsense")
        .unwrap();
    let image = "private.test:5001/demo/secret:1.0".to_owned();
    create(
        &cluster,
        &[image],
        &json!({"imagePullSecrets": [{"name": "wrong"}]}),
    );
    let said = shows(&cluster, "The secret is wrong", "Unauthorized");
    assert!(!said.contains("nonsense"), "{said}");
    explains(&cluster, "status web -n shop", "refuses the credentials");
    explains(&cluster, "why n1", "refuses the credentials");
}

#[test]
fn the_registry_is_down() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    create(
        &cluster,
        &["down.test:5002/demo/web:1.0".to_owned()],
        &json!({}),
    );
    let said = shows(&cluster, "The registry is down", "RegistryUnavailable");
    assert!(said.contains("down.test:5002"), "{said}");
    explains(&cluster, "status web -n shop", "registry does not answer");
    explains(&cluster, "why n1", "registry does not answer");
}

#[test]
fn the_registry_says_429() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    cluster
        .run(&["fault", "status=429", "retry-after=5"], "")
        .unwrap();
    create(&cluster, &[faulty("web")], &json!({}));
    let work = || {
        let said = shows(&cluster, "The registry says 429", "\"lastRateLimited\"");
        let answer: Value = serde_json::from_str(&said).unwrap();
        let registries = answer["registries"].as_array().unwrap();
        let limited = registries
            .iter()
            .find(|one| one["host"] == "faulty.test:5003")
            .unwrap();
        assert!(limited["budget"].as_u64().unwrap() < 64, "{said}");
        explains(&cluster, "why n1", "answered 429");
    };
    planted(work, || drop(cluster.run(&["fault", "off"], "").unwrap()));
}

#[test]
fn the_disk_is_full() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let watermark = |percent: &str| {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kubefledged");
        let set = format!("puller.diskWatermark={percent}");
        let upgrade = [
            "helm",
            "upgrade",
            "kubefledged",
            chart,
            "-n",
            "kube-fledged",
        ];
        let how = [
            "--reuse-values",
            "--wait",
            "--timeout",
            "120s",
            "--set",
            &set,
        ];
        cluster.run(&[&upgrade[..], &how[..]].concat(), "").unwrap();
    };
    // The nodes' disk is this machine's, which holds more than nothing.
    watermark("1");
    let work = || {
        create(&cluster, &[demo("web")], &json!({}));
        let said = shows(&cluster, "The disk is full", "DiskPressure");
        assert!(said.contains("% full"), "{said}");
        explains(&cluster, "why n1", "image file system is too full");
        explains(
            &cluster,
            "status web -n shop",
            "image file system is too full",
        );
        let planned =
            json!({"kind": "ImageCache", "spec": {"cacheSpec": [{"images": [demo("web")]}]}});
        let file = std::env::temp_dir().join("kubefledged-full.json");
        std::fs::write(&file, planned.to_string()).unwrap();
        let plan = [
            "plan",
            "-f",
            file.to_str().unwrap(),
            "--plain-http",
            "registry.test:5000",
        ];
        let said = cluster.fledged_on_node(&plan).unwrap();
        assert!(
            said.code == 3 && said.out.contains("does not fit"),
            "{said:?}"
        );
    };
    planted(work, || watermark("100"));
}

#[test]
fn a_node_is_cordoned() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    create(&cluster, &[demo("web")], &json!({}));
    cluster.kubectl("cordon n2").unwrap();
    let work = || {
        let said = shows(&cluster, "A node is cordoned", "\"Cordoned\"");
        assert!(said.contains("kubectl uncordon"), "{said}");
        explains(&cluster, "why n2", "kubectl uncordon n2");
    };
    planted(work, || drop(cluster.kubectl("uncordon n2").unwrap()));
}

#[test]
fn a_node_is_not_ready() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    // Without its kubelet nothing is forwarded to a pod.
    cluster.lead_away_from("2").unwrap();
    create(&cluster, &[demo("web")], &json!({}));
    let away = cluster.clone();
    let back = std::thread::spawn(move || away.run(&["restart", "2", "kubelet", "90"], ""));
    let work = || {
        shows(&cluster, "A node is not ready", "\"NotReady\"");
        explains(&cluster, "why n2", "condition Ready is not True");
    };
    planted(work, || {
        back.join().unwrap().unwrap();
        let wait = "wait --for=condition=Ready node/n2 --timeout=60s";
        cluster.kubectl(wait).unwrap();
    });
}

#[test]
fn a_node_is_excluded() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    create(&cluster, &[demo("web")], &json!({}));
    cluster
        .kubectl("label node n2 kubefledged.io/exclude=true --overwrite")
        .unwrap();
    let work = || {
        let said = shows(&cluster, "A node is excluded", "\"Excluded\"");
        assert!(said.contains("kubefledged.io/exclude"), "{said}");
        explains(
            &cluster,
            "why n2",
            "kubectl label node n2 kubefledged.io/exclude-",
        );
    };
    planted(work, || {
        cluster
            .kubectl("label node n2 kubefledged.io/exclude-")
            .unwrap();
    });
}

#[test]
fn the_puller_is_missing() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let daemonset = "daemonset/kubefledged-puller -n kube-fledged";
    let patch = |of: &Value| {
        let patch = format!("patch {daemonset} --type=strategic -p {of}");
        cluster.kubectl(&patch).unwrap();
    };
    let image = cluster
        .kubectl(&format!(
            "get {daemonset} -o jsonpath={{.spec.template.spec.containers[0].image}}"
        ))
        .unwrap();
    let with = |image: &str, strategy: &str| {
        let containers = json!([{"name": "puller", "image": image}]);
        let strategy = json!({"type": strategy});
        json!({"spec": {"updateStrategy": strategy, "template": {"spec": {"containers": containers}}}})
    };
    let settled = || {
        let wait = format!("rollout status {daemonset} --timeout=120s");
        cluster.kubectl(&wait).unwrap();
    };
    // The next pod on n2 has an image that does not exist.
    patch(&with("registry.test:5000/none:1.0", "OnDelete"));
    let work = || {
        let pullers = cluster.pods("puller").unwrap();
        let pod = pullers.iter().find(|pod| pod.node == "2").unwrap();
        cluster
            .kubectl(&format!("delete pod {} -n kube-fledged", pod.name))
            .unwrap();
        create(&cluster, &[demo("web")], &json!({}));
        let said = shows(&cluster, "The puller is missing", "\"NoPuller\"");
        let node: Value = serde_json::from_str(&said).unwrap();
        assert!(
            node["puller"].is_null() && node["eligible"] == true,
            "{said}"
        );
        assert!(node["pullerSilent"].is_string(), "{said}");
        explains(&cluster, "why n2", "no puller answers on the node");
    };
    planted(work, || {
        patch(&with(&image, "RollingUpdate"));
        settled();
    });
}

#[test]
fn an_image_is_in_use() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    create(&cluster, &[demo("web"), demo("api")], &json!({}));
    cluster.ended("shop", "web", "ImageCacheCreate").unwrap();
    cluster.use_image("shop", &demo("web")).unwrap();
    cluster
        .kubectl("annotate ic web -n shop kubefledged.io/purge-imagecache=")
        .unwrap();
    let said = shows(&cluster, "An image is in use", "\"InUse\"");
    assert!(
        said.contains("demo/web:1.0") && said.contains("\"n1\""),
        "{said}"
    );
    assert!(!said.contains("demo/api:1.0"), "{said}");
    explains(&cluster, "why n1 demo/web", "a container uses it");
    cluster.kubectl("delete pod user -n shop --now").unwrap();
}
