//! The nodes of a cluster with their runtimes, and what users do there.

use std::{collections::BTreeSet, sync::MutexGuard, time::Duration};

use kubefledged_e2e::Cluster;
use serde_json::{Value, json};

/// A cluster without objects and images of ours, its nodes and their runtimes; held for one test.
pub struct Setup {
    pub cluster: Cluster,
    pub namespace: &'static str,
    pub nodes: Vec<(String, String)>,
    _guard: MutexGuard<'static, ()>,
}

impl Setup {
    pub fn new(namespace: &'static str) -> Self {
        let (cluster, guard) = Cluster::exclusive(namespace).unwrap();
        let nodes = cluster.nodes().unwrap().into_iter();
        let nodes = nodes.map(|node| (node.clone(), cluster.runtime(&node).unwrap()));
        Self {
            nodes: nodes.collect(),
            cluster,
            namespace,
            _guard: guard,
        }
    }

    pub fn create(&self, name: &str, images: &[&str]) {
        self.feed(name, &json!({"cacheSpec": [{"images": images}]}));
    }

    pub fn feed(&self, name: &str, spec: &Value) {
        self.cluster.create(self.namespace, name, spec).unwrap();
    }

    pub fn ended(&self, name: &str, operation: &str) -> Value {
        self.cluster.ended(self.namespace, name, operation).unwrap()
    }

    /// Creates an `ImageCache` and waits for the end of its first operation.
    pub fn created(&self, name: &str, images: &[&str]) -> Value {
        self.create(name, images);
        self.ended(name, "ImageCacheCreate")
    }

    pub fn annotated(&self, name: &str, annotation: &str, operation: &str) -> Value {
        let namespace = self.namespace;
        let annotate = format!("annotate ic {name} -n {namespace} kubefledged.io/{annotation}=");
        self.cluster.kubectl(&annotate).unwrap();
        self.ended(name, operation)
    }

    pub fn purged(&self, name: &str) -> Value {
        self.annotated(name, "purge-imagecache", "ImageCachePurge")
    }

    /// Creates an `ImageCache` of one image for one node, and waits until it is there.
    pub fn kept(&self, name: &str, node: &str, image: &str, retention: &str) {
        let here = json!({"kubernetes.io/hostname": format!("n{node}")});
        let list = json!({"images": [image], "nodeSelector": here});
        self.feed(name, &json!({"cacheSpec": [list], "retention": retention}));
        let status = self.ended(name, "ImageCacheCreate");
        assert_eq!(status["status"], "Succeeded", "{name}: {status}");
    }

    /// Waits until the condition Degraded gives this reason; its message.
    pub fn degraded(&self, name: &str, reason: &str, limit: Duration) -> String {
        let what = format!("{name} is Degraded with {reason}");
        self.cluster
            .until(limit, &what, || {
                let object = self.cluster.object(self.namespace, name)?;
                let conditions = object["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                let degraded =
                    conditions.find(|c| c["type"] == "Degraded" && c["reason"] == reason);
                Ok(degraded.map(|c| c["message"].as_str().unwrap_or_default().to_owned()))
            })
            .unwrap()
    }

    /// Of our test images.
    pub fn pinned(&self, node: &str) -> BTreeSet<String> {
        let images = self.cluster.pinned(node).unwrap().into_iter();
        images.filter(|image| image.contains("/demo/")).collect()
    }

    /// Every node holds exactly these of our test images.
    pub fn assert_held(&self, expected: &[&str]) {
        for (node, runtime) in &self.nodes {
            assert_eq!(self.demo_images(node), set(expected), "n{node}, {runtime}");
        }
    }

    /// Without another word of ours.
    pub fn until_held(&self, image: &str) {
        self.cluster
            .until(Duration::from_secs(120), "all nodes hold the image", || {
                let mut nodes = self.nodes.iter();
                let all = nodes.all(|(node, _)| self.demo_images(node) == set(&[image]));
                Ok(all.then_some(()))
            })
            .unwrap();
    }

    /// A runtime that was restarted takes a moment.
    pub fn until_answers(&self) {
        for (node, runtime) in &self.nodes {
            let what = format!("{runtime} answers on n{node}");
            self.cluster
                .until(Duration::from_secs(30), &what, || {
                    Ok(self.cluster.images(node).ok().map(drop))
                })
                .unwrap();
        }
    }

    pub fn demo_images(&self, node: &str) -> BTreeSet<String> {
        let images = self.cluster.images(node).unwrap().into_iter();
        images.filter(|image| image.contains("/demo/")).collect()
    }

    /// A pod of this image on every node, running.
    pub fn start_pods(&self, image: &str) {
        for (node, _) in &self.nodes {
            let name = format!("on-n{node}");
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"nodeName": format!("n{node}"), "terminationGracePeriodSeconds": 1,
                         "containers": [{"name": "c", "image": image}]},
            });
            let create = ["kubectl", "create", "-f", "-"];
            self.cluster.run(&create, &pod.to_string()).unwrap();
        }
        let namespace = self.namespace;
        let wait = format!("wait --for=condition=Ready pods --all -n {namespace} --timeout=60s");
        self.cluster.kubectl(&wait).unwrap();
    }

    pub fn delete_pods(&self) {
        let delete = format!("delete pods --all --now -n {}", self.namespace);
        self.cluster.kubectl(&delete).unwrap();
    }
}

pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Reasons of an image's failures, by node.
pub fn reasons(status: &Value, image: &str) -> Vec<(String, String)> {
    let failures = status["failures"][image].as_array().into_iter().flatten();
    let mut reasons: Vec<_> = failures
        .map(|failure| {
            assert!(
                failure["message"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{failure}"
            );
            let text = |field: &str| failure[field].as_str().unwrap_or_default().to_owned();
            (text("node"), text("reason"))
        })
        .collect();
    reasons.sort();
    reasons
}
/// The process of a node's runtime.
pub fn component(s: &Setup, node: &str) -> &'static str {
    let runtime = s.cluster.runtime(node).unwrap();
    if runtime.starts_with("cri-o") {
        "crio"
    } else {
        "containerd"
    }
}

pub fn runtime_pid(s: &Setup, node: &str) -> String {
    s.cluster
        .run(&["pid", node, component(s, node)], "")
        .unwrap()
}
