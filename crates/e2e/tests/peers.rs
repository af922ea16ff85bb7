//! Layers from other nodes, on real runtimes: what the registry sent, and what is left on the nodes. `make test-peers`
//! starts the cluster.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{thread::sleep, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kubefledged_e2e::Cluster;
use serde_json::{Value, json};

const MEDIUM: &str = "registry.test:5000/peers/medium:1.0";
const LARGE: &str = "registry.test:5000/peers/large:1.0";
const SECRET: &str = "private.test:5001/peers/secret:1.0";
/// Compressed bytes of their three layers.
const MEDIUM_BYTES: u64 = 3 * 10 * 1024 * 1024;
const LARGE_BYTES: u64 = 3 * 50 * 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(180);

/// The cluster without images of this test on any node.
fn cluster(namespace: &str) -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(namespace).unwrap();
    for node in cluster.nodes().unwrap() {
        for image in [MEDIUM, LARGE, SECRET] {
            let _ = cluster.run(&["node", &node, "crictl", "rmi", image], "");
        }
    }
    nothing_stays(&cluster);
    cluster
}

fn ctr(cluster: &Cluster, node: &str, args: &[&str]) -> String {
    let command = [&["node", node, "ctr", "-n", "k8s.io"][..], args].concat();
    cluster.run(&command, "").unwrap()
}

/// Neither the lease of a pull nor a layer that is being written is left on any node. What is kept for others has an end.
fn nothing_stays(cluster: &Cluster) {
    let what = "no lease of a pull and no layer that is being written is left";
    let left = || {
        for node in cluster.nodes()? {
            let leases = ctr(cluster, &node, &["leases", "ls"]);
            let mut ours = leases.lines().filter(|line| line.contains("kubefledged-"));
            assert!(
                ours.all(|lease| lease.contains("containerd.io/gc.expire=")),
                "{leases}"
            );
            let writes = ctr(cluster, &node, &["content", "active"]);
            if leases.contains("-pull-") || writes.contains("layer-sha256") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    cluster.until(LIMIT, what, left).unwrap();
}

fn hold_everywhere(cluster: &Cluster, image: &str) {
    for node in cluster.nodes().unwrap() {
        let images = cluster.images(&node).unwrap();
        assert!(images.contains(image), "n{node}: {images:?}");
    }
}

fn ended(cluster: &Cluster, namespace: &str, name: &str) -> Value {
    let what = format!("the pulls of {name} end");
    let over = || {
        let status = cluster.object(namespace, name)?["status"].clone();
        Ok((status["status"] != "Processing" && status["status"].is_string()).then_some(status))
    };
    cluster.until(LIMIT, &what, over).unwrap()
}

/// Bytes of layers that pullers took from other nodes since they started.
fn from_peers(cluster: &Cluster) -> f64 {
    let pullers = cluster.pods("puller").unwrap();
    let bytes = pullers.iter().map(|pod| {
        let name = "kubefledged_image_layers_bytes_total";
        let metric = cluster.metric(pod, 8082, name).unwrap();
        metric.get("source=\"peer\"").copied().unwrap_or_default()
    });
    bytes.sum()
}

#[test]
#[ignore = "make test-peers"]
fn the_registry_sends_each_layer_once_and_nothing_of_the_way_stays() {
    let cluster = cluster("peers");
    let (log, before) = (cluster.access_log().unwrap(), from_peers(&cluster));
    let spec = json!({"cacheSpec": [{"images": [MEDIUM]}]});
    cluster.create("peers", "a", &spec).unwrap();
    let status = ended(&cluster, "peers", "a");
    assert_eq!(status["status"], "Succeeded", "{status}");
    hold_everywhere(&cluster, MEDIUM);
    let sent = log.blob_bytes("peers/medium").unwrap();
    assert!(sent < MEDIUM_BYTES * 105 / 100, "{sent} bytes");
    let others = u32::try_from(cluster.nodes().unwrap().len() - 1).unwrap();
    let took = from_peers(&cluster) - before;
    assert!(
        took >= f64::from(others) * 30e6,
        "{took} bytes from other nodes"
    );
    nothing_stays(&cluster);
    // What came this way runs.
    cluster.use_image("peers", MEDIUM).unwrap();
    cluster.kubectl("delete pod user --now -n peers").unwrap();
}

#[test]
#[ignore = "make test-peers"]
fn everything_arrives_if_a_node_dies_that_hands_on() {
    let cluster = cluster("peers");
    let log = cluster.access_log().unwrap();
    let spec = json!({"cacheSpec": [{"images": [LARGE]}]});
    cluster.create("peers", "a", &spec).unwrap();
    let first = || {
        for node in cluster.nodes()? {
            if cluster.images(&node)?.contains(LARGE) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    };
    let what = "a node has the image";
    let source = cluster.until(LIMIT, what, first).unwrap();
    cluster.signal_puller(&source, "KILL").unwrap();
    let everywhere = || {
        for node in cluster.nodes()? {
            if !cluster.images(&node)?.contains(LARGE) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    cluster
        .until(LIMIT, "all nodes have the image", everywhere)
        .unwrap();
    let sent = log.blob_bytes("peers/large").unwrap();
    println!(
        "a killed source: {sent} bytes from the registry, {:.2} x the image",
        ratio(sent, LARGE_BYTES)
    );
    cluster
        .kubectl("rollout status daemonset/kubefledged-puller -n kube-fledged --timeout=120s")
        .unwrap();
    nothing_stays(&cluster);
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// A pull secret of the private registry.
fn secret(cluster: &Cluster, namespace: &str) {
    let password = cluster.run(&["registry-password"], "").unwrap();
    let auth = BASE64_STANDARD.encode(format!("demo:{}", password.trim()));
    let config = json!({"auths": {"private.test:5001": {"auth": auth}}});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "private", "namespace": namespace},
        "stringData": {".dockerconfigjson": config.to_string()},
    });
    let args = ["kubectl", "apply", "-f", "-"];
    cluster.run(&args, &secret.to_string()).unwrap();
}

#[test]
#[ignore = "make test-peers"]
fn a_private_image_goes_once_and_only_to_nodes_that_may_pull_it() {
    let cluster = cluster("peers");
    let _ = cluster.kubectl("create namespace strangers");
    secret(&cluster, "peers");
    let log = cluster.access_log_of("private").unwrap();
    let nodes = cluster.nodes().unwrap();
    let (last, most) = nodes.split_last().unwrap();
    for node in most {
        let label = format!("label node n{node} peers.test/may=yes --overwrite");
        cluster.kubectl(&label).unwrap();
    }
    let spec = json!({
        "cacheSpec": [{"images": [SECRET], "nodeSelector": {"peers.test/may": "yes"}}],
        "imagePullSecrets": [{"name": "private"}],
    });
    cluster.create("peers", "a", &spec).unwrap();
    let status = ended(&cluster, "peers", "a");
    assert_eq!(status["status"], "Succeeded", "{status}");
    let sent = log.blob_bytes("peers/secret").unwrap();
    assert!(sent < MEDIUM_BYTES * 105 / 100, "{sent} bytes");

    let here = json!({"kubernetes.io/hostname": format!("n{last}")});
    let spec = json!({"cacheSpec": [{"images": [SECRET], "nodeSelector": here}]});
    cluster.create("strangers", "b", &spec).unwrap();
    let status = ended(&cluster, "strangers", "b");
    assert_eq!(status["status"], "Failed", "{status}");
    assert!(!cluster.images(last).unwrap().contains(SECRET));
    cluster.kubectl("delete imagecache b -n strangers").unwrap();
    sleep(Duration::from_secs(2));
    nothing_stays(&cluster);
    // Nothing of it lies there, either.
    let requests = log.requests().unwrap().into_iter();
    let layers = requests.filter(|request| request.bytes > 1 << 20);
    let held = ctr(&cluster, last, &["content", "ls", "-q"]);
    for layer in layers {
        let digest = layer.path.rsplit('/').next().unwrap();
        assert!(!held.contains(digest), "{digest}: {held}");
    }
    cluster
        .kubectl("label nodes --all peers.test/may-")
        .unwrap();
}
