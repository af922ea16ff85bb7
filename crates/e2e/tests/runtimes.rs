//! What must be the same on every container runtime, and where they differ. `make test-runtimes`
//! runs it on a cluster with one node of each, `make e2e` on what there is. One test at a time: they
//! share the nodes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says where"
)]

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubefledged_e2e::{Cluster, demo, faulty};
use serde_json::{Value, json};

static NODES: Mutex<()> = Mutex::new(());

const PRIVATE: &str = "private.test:5001/demo/secret:1.0";

/// A cluster without objects and images of ours, its nodes and their runtimes; held for one test.
struct Setup {
    cluster: Cluster,
    namespace: &'static str,
    nodes: Vec<(String, String)>,
    _guard: MutexGuard<'static, ()>,
}

impl Setup {
    fn new(namespace: &'static str) -> Self {
        let guard = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster::default();
        cluster.clean(namespace).unwrap();
        let nodes = cluster.nodes().unwrap().into_iter();
        let nodes = nodes.map(|node| (node.clone(), cluster.runtime(&node).unwrap()));
        Self {
            nodes: nodes.collect(),
            cluster,
            namespace,
            _guard: guard,
        }
    }

    fn create(&self, name: &str, images: &[&str]) {
        self.feed(name, &json!({"cacheSpec": [{"images": images}]}));
    }

    fn feed(&self, name: &str, spec: &Value) {
        self.cluster.create(self.namespace, name, spec).unwrap();
    }

    fn ended(&self, name: &str, operation: &str) -> Value {
        self.cluster.ended(self.namespace, name, operation).unwrap()
    }

    /// Creates an `ImageCache` and waits for the end of its first operation.
    fn created(&self, name: &str, images: &[&str]) -> Value {
        self.create(name, images);
        self.ended(name, "ImageCacheCreate")
    }

    fn annotated(&self, name: &str, annotation: &str, operation: &str) -> Value {
        let namespace = self.namespace;
        let annotate = format!("annotate ic {name} -n {namespace} kubefledged.io/{annotation}=");
        self.cluster.kubectl(&annotate).unwrap();
        self.ended(name, operation)
    }

    fn purged(&self, name: &str) -> Value {
        self.annotated(name, "purge-imagecache", "ImageCachePurge")
    }

    /// Creates an `ImageCache` of one image for one node, and waits until it is there.
    fn kept(&self, name: &str, node: &str, image: &str, retention: &str) {
        let here = json!({"kubernetes.io/hostname": format!("n{node}")});
        let list = json!({"images": [image], "nodeSelector": here});
        self.feed(name, &json!({"cacheSpec": [list], "retention": retention}));
        let status = self.ended(name, "ImageCacheCreate");
        assert_eq!(status["status"], "Succeeded", "{name}: {status}");
    }

    /// Waits until the condition Degraded gives this reason; its message.
    fn degraded(&self, name: &str, reason: &str, limit: Duration) -> String {
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
    fn pinned(&self, node: &str) -> BTreeSet<String> {
        let images = self.cluster.pinned(node).unwrap().into_iter();
        images.filter(|image| image.contains("/demo/")).collect()
    }

    /// Every node holds exactly these of our test images.
    fn assert_held(&self, expected: &[&str]) {
        for (node, runtime) in &self.nodes {
            assert_eq!(self.demo_images(node), set(expected), "n{node}, {runtime}");
        }
    }

    /// Without another word of ours.
    fn until_held(&self, image: &str) {
        self.cluster
            .until(Duration::from_secs(120), "all nodes hold the image", || {
                let mut nodes = self.nodes.iter();
                let all = nodes.all(|(node, _)| self.demo_images(node) == set(&[image]));
                Ok(all.then_some(()))
            })
            .unwrap();
    }

    /// A runtime that was restarted takes a moment.
    fn until_answers(&self) {
        for (node, runtime) in &self.nodes {
            let what = format!("{runtime} answers on n{node}");
            self.cluster
                .until(Duration::from_secs(30), &what, || {
                    Ok(self.cluster.images(node).ok().map(drop))
                })
                .unwrap();
        }
    }

    fn demo_images(&self, node: &str) -> BTreeSet<String> {
        let images = self.cluster.images(node).unwrap().into_iter();
        images.filter(|image| image.contains("/demo/")).collect()
    }

    /// A pod of this image on every node, running.
    fn start_pods(&self, image: &str) {
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

    fn delete_pods(&self) {
        let delete = format!("delete pods --all --now -n {}", self.namespace);
        self.cluster.kubectl(&delete).unwrap();
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Reasons of an image's failures, by node.
fn reasons(status: &Value, image: &str) -> Vec<(String, String)> {
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
            let df = ["node", node, "df", "--output=pcent", "/var/lib/containerd"];
            let said = s.cluster.run(&df, "")?;
            let used = said.split_whitespace().last().unwrap_or_default();
            Ok((used.trim_end_matches('%').parse::<u8>()? <= 80).then_some(()))
        });
        s.cluster.run(&["fill", node, "0"], "").unwrap();
        free.unwrap();
        let expected = vec![(format!("n{node}"), "DiskPressure".to_owned())];
        assert_eq!(reasons(&status, BIG), expected, "{runtime}: {status}");
        let images = s.cluster.images(node).unwrap();
        assert!(!images.contains(BIG), "n{node}, {runtime}: {images:?}");
    }
}

/// A puller that started while a pod lived must not keep the pod's namespaces and shared memory.
#[test]
fn nothing_of_a_dead_pod_stays_mounted_through_the_puller() {
    let s = Setup::new("rt-mounts");
    s.start_pods(&demo("web"));
    let restart = "rollout restart daemonset/kubefledged-puller -n kube-fledged";
    s.cluster.kubectl(restart).unwrap();
    let wait = "rollout status daemonset/kubefledged-puller -n kube-fledged --timeout=120s";
    s.cluster.kubectl(wait).unwrap();
    let mut alive = Vec::new();
    for (node, runtime) in &s.nodes {
        let (sandbox, mounts) = (sandbox(&s, node), puller_mounts(&s, node));
        assert!(mounts.contains(&sandbox), "n{node}, {runtime}: {mounts}");
        assert!(
            !namespaces(&mounts).is_empty(),
            "n{node}, {runtime}: {mounts}"
        );
        alive.push((node, runtime, sandbox));
    }
    s.delete_pods();
    for (node, runtime, sandbox) in alive {
        // The sandbox itself stays listed until the kubelet's garbage collection.
        let what = format!("n{node} has nothing of the dead pod mounted");
        s.cluster
            .until(Duration::from_secs(30), &what, || {
                let own = node_mounts(&s, node);
                Ok((!own.contains(&sandbox)).then_some(()))
            })
            .unwrap();
        let mounts = puller_mounts(&s, node);
        assert!(!mounts.contains(&sandbox), "n{node}, {runtime}: {mounts}");
        let (seen, own) = (namespaces(&mounts), namespaces(&node_mounts(&s, node)));
        assert!(seen.is_subset(&own), "n{node}, {runtime}: {seen:?} {own:?}");
    }
}

/// Network namespaces that are mounted, as net:[NUMBER].
fn namespaces(mounts: &str) -> BTreeSet<String> {
    let roots = mounts.lines().filter_map(|line| line.split(' ').nth(3));
    let nets = roots.filter(|root| root.starts_with("net:["));
    nets.map(ToOwned::to_owned).collect()
}

/// The id of our pod's sandbox on a node.
fn sandbox(s: &Setup, node: &str) -> String {
    let json = s
        .cluster
        .run(&["node", node, "crictl", "pods", "-o", "json"], "")
        .unwrap();
    let list: Value = serde_json::from_str(&json).unwrap();
    let pods = list["items"].as_array().unwrap();
    let ours = pods
        .iter()
        .find(|pod| pod["metadata"]["namespace"] == s.namespace);
    ours.unwrap()["id"].as_str().unwrap().to_owned()
}

fn node_mounts(s: &Setup, node: &str) -> String {
    let script = ["node", node, "cat", "/proc/self/mountinfo"];
    s.cluster.run(&script, "").unwrap()
}

fn puller_mounts(s: &Setup, node: &str) -> String {
    let processes = s.cluster.puller_processes(node).unwrap();
    let [process] = processes.as_slice() else {
        panic!("n{node} has these pullers: {processes:?}");
    };
    let mounts = format!("{process}/mountinfo");
    s.cluster.run(&["node", node, "cat", &mounts], "").unwrap()
}

fn can_pin(runtime: &str) -> bool {
    runtime.starts_with("containerd://2")
}

#[test]
fn a_pin_takes_where_the_runtime_can_and_is_refused_in_words_elsewhere() {
    let s = Setup::new("rt-pin");
    let image = demo("web");
    let before: Vec<_> = s
        .nodes
        .iter()
        .map(|(node, _)| runtime_pid(&s, node))
        .collect();
    for (node, runtime) in &s.nodes {
        let name = format!("pinned{node}");
        s.kept(&name, node, &image, "Pinned");
        if can_pin(runtime) {
            assert_eq!(s.pinned(node), set(&[&image]), "n{node}, {runtime}");
        } else {
            s.degraded(&name, "RetentionUnsupported", Duration::from_secs(10));
            assert_eq!(s.pinned(node), set(&[]), "n{node}, {runtime}");
        }
    }
    let delete = "delete ic --all -n rt-pin --timeout=60s";
    s.cluster.kubectl(delete).unwrap();
    s.assert_held(&[&image]);
    for ((node, runtime), before) in s.nodes.iter().zip(before) {
        assert_eq!(s.pinned(node), set(&[]), "n{node}, {runtime}");
        // containerd 2.2 ends at an update of an image without its target.
        assert_eq!(
            runtime_pid(&s, node),
            before,
            "n{node}, {runtime} was restarted"
        );
    }
}

/// The process of a node's runtime.
fn component(s: &Setup, node: &str) -> &'static str {
    let runtime = s.cluster.runtime(node).unwrap();
    if runtime.starts_with("cri-o") {
        "crio"
    } else {
        "containerd"
    }
}

fn runtime_pid(s: &Setup, node: &str) -> String {
    s.cluster
        .run(&["pid", node, component(s, node)], "")
        .unwrap()
}

/// The kubelet looks for old images every five minutes from its start on, and takes all that never
/// ran, however new they are.
#[test]
#[ignore = "takes 17 minutes: make test-runtimes"]
fn the_kubelets_garbage_collection_spares_the_pinned_image_and_is_named_when_it_takes_the_other() {
    let s = Setup::new("rt-gc");
    let (pinned, loose) = (demo("web"), demo("api"));
    let mut nodes = s.nodes.iter();
    let (node, _) = nodes.find(|(_, runtime)| can_pin(runtime)).unwrap();
    let kubelet = [
        "kubelet",
        node,
        "imageMaximumGCAge: 2m",
        "imageMinimumGCAge: 10s",
    ];
    s.cluster.run(&kubelet, "").unwrap();
    s.kept("pinned", node, &pinned, "Pinned");
    s.kept("loose", node, &loose, "Default");
    for loss in 1..=3 {
        let held = |what: &str, minutes: u64, there: bool| {
            let what = format!("loss {loss}: {what}");
            s.cluster
                .until(Duration::from_secs(60 * minutes), &what, || {
                    let images = s.demo_images(node);
                    assert!(
                        images.contains(&pinned),
                        "the pinned image is gone: {images:?}"
                    );
                    Ok((images.contains(&loose) == there).then_some(()))
                })
                .unwrap();
        };
        held("the unpinned image goes", 6, false);
        if loss < 3 {
            held("it comes back by the next check", 6, true);
        }
    }
    let text = s.degraded("loose", "LostToGarbageCollection", Duration::from_secs(360));
    assert!(text.contains("imageMaximumGCAge"), "{text}");
    let status = s.cluster.object(s.namespace, "pinned").unwrap()["status"].clone();
    assert_eq!(status["ready"], "1/1", "{status}");
    s.cluster.run(&["kubelet", node], "").unwrap();
}
