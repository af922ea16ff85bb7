//! A cluster as its users see it, through `kubectl`, and its nodes as their runtimes see them. What
//! a node holds is asked of its container runtime, never of our own status.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::Value;

pub mod browser;
pub mod call;
pub mod document;
pub mod examples;
pub mod fleet;
pub mod install;
pub mod leader;
pub mod plugin;
pub mod registry;
pub mod shapes;

/// Held by the test that uses the nodes.
static NODES: Mutex<()> = Mutex::new(());

/// Between two looks while waiting.
const LOOK: Duration = Duration::from_millis(200);

/// `hack/cluster`, which must be up and have the chart installed; `CLUSTER_NAME` says which.
#[derive(Clone, Debug)]
pub struct Cluster {
    program: PathBuf,
}

impl Default for Cluster {
    fn default() -> Self {
        let program = std::env::var_os("KUBEFLEDGED_CLUSTER").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../hack/cluster")),
            PathBuf::from,
        );
        Self { program }
    }
}

impl Cluster {
    /// Runs a command of hack/cluster; its output, or what it said when it failed.
    pub fn run(&self, args: &[&str], stdin: &str) -> anyhow::Result<String> {
        let mut child = Command::new(&self.program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(stdin.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Path of `hack/cluster`.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// `kubectl ARGS`, split at spaces.
    pub fn kubectl(&self, args: &str) -> anyhow::Result<String> {
        self.run(&split("kubectl", args), "")
    }

    /// Creates an `ImageCache`.
    pub fn create(&self, namespace: &str, name: &str, spec: &Value) -> anyhow::Result<String> {
        self.feed("create", namespace, name, spec)
    }

    /// Creates or replaces an `ImageCache`; `verb` is kubectl's.
    pub fn feed(
        &self,
        verb: &str,
        namespace: &str,
        name: &str,
        spec: &Value,
    ) -> anyhow::Result<String> {
        let object = serde_json::json!({
            "apiVersion": "kubefledged.io/v1alpha2",
            "kind": "ImageCache",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        });
        let args = format!("{verb} -f -");
        self.run(&split("kubectl", &args), &object.to_string())
    }

    /// Edits an `ImageCache`'s spec by a merge patch.
    pub fn edit(&self, namespace: &str, name: &str, spec: &Value) -> anyhow::Result<String> {
        let patch = serde_json::json!({ "spec": spec }).to_string();
        let mut args = split("kubectl", "patch imagecache --type=merge -n");
        args.extend([namespace, name, "-p", &patch]);
        self.run(&args, "")
    }

    /// An `ImageCache` as it is.
    pub fn object(&self, namespace: &str, name: &str) -> anyhow::Result<Value> {
        let json = self.kubectl(&format!("get imagecache {name} -n {namespace} -o json"))?;
        Ok(serde_json::from_str(&json)?)
    }

    /// The cluster without objects and images of ours; held for one test.
    pub fn exclusive(namespace: &str) -> anyhow::Result<(Self, MutexGuard<'static, ()>)> {
        let guard = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Self::default();
        cluster.clean(namespace)?;
        Ok((cluster, guard))
    }

    /// Removes what an earlier test left: all objects, pods in this namespace, demo images on the
    /// nodes, and the faulty registry's fault.
    pub fn clean(&self, namespace: &str) -> anyhow::Result<()> {
        let _ = self.kubectl(&format!("create namespace {namespace}"));
        self.run(&["fault", "off"], "")?;
        self.kubectl("delete imagecaches --all --all-namespaces")?;
        self.kubectl(&format!("delete pods --all --now -n {namespace}"))?;
        // A node that a test before has disturbed, and that is not Ready yet, would get nothing and be awaited by nobody.
        self.kubectl("wait --for=condition=Ready nodes --all --timeout=120s")?;
        for node in self.nodes()? {
            for image in self.listed(&node)? {
                // By id: one removal is enough for all names, on every runtime.
                if names(&image).any(|name| name.contains("/demo/")) {
                    let id = image["id"].as_str().context("an image without id")?;
                    self.remove_image(&node, id)?;
                }
            }
            self.forget_broken_pulls(&node)?;
        }
        Ok(())
    }

    /// containerd 1.6 keeps for a day what a pull had fetched when it was broken off: the next one would
    /// be over at once.
    fn forget_broken_pulls(&self, node: &str) -> anyhow::Result<()> {
        if !self.runtime(node)?.starts_with("containerd") {
            return Ok(());
        }
        let leases = self.run(
            &["node", node, "ctr", "-n", "k8s.io", "leases", "ls", "-q"],
            "",
        )?;
        for lease in leases.split_whitespace() {
            let remove = ["ctr", "-n", "k8s.io", "leases", "rm", "--sync", lease];
            let removed = self.run(&[&["node", node][..], &remove].concat(), "");
            // A lease may end by itself between the two commands: what is kept for other nodes has an end.
            if let Err(error) = removed
                && !error.to_string().contains("not found")
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The containers of a dead pod stay for up to a minute, until the kubelet's look for them; meanwhile
    /// CRI-O does not let their image go.
    fn remove_image(&self, node: &str, id: &str) -> anyhow::Result<()> {
        let what = format!("no container on n{node} uses {id}");
        self.until(Duration::from_secs(90), &what, || {
            match self.run(&["node", node, "crictl", "rmi", id], "") {
                Ok(_) => Ok(Some(())),
                Err(error) if error.to_string().contains("in use by a container") => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Numbers of the nodes.
    pub fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let numbers = self.run(&["nodes"], "")?;
        Ok(numbers.split_whitespace().map(ToOwned::to_owned).collect())
    }

    /// What the runtime of a node holds, by name and tag.
    pub fn images(&self, node: &str) -> anyhow::Result<BTreeSet<String>> {
        let images = self.listed(node)?;
        let tags = images.iter().flat_map(tags);
        Ok(tags.map(ToOwned::to_owned).collect())
    }

    /// Of these the ones that it protects from garbage collection.
    pub fn pinned(&self, node: &str) -> anyhow::Result<BTreeSet<String>> {
        let images = self.listed(node)?.into_iter();
        let pinned: Vec<Value> = images.filter(|image| image["pinned"] == true).collect();
        let tags = pinned.iter().flat_map(tags);
        Ok(tags.map(ToOwned::to_owned).collect())
    }

    /// As the runtime of a node lists them.
    fn listed(&self, node: &str) -> anyhow::Result<Vec<Value>> {
        let json = self.run(&["node", node, "crictl", "images", "-o", "json"], "")?;
        let mut list: Value = serde_json::from_str(&json)?;
        Ok(list["images"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default())
    }

    /// Name and version of a node's runtime, such as `containerd://1.6.20`.
    pub fn runtime(&self, node: &str) -> anyhow::Result<String> {
        self.kubectl(&format!(
            "get node n{node} -o jsonpath={{.status.nodeInfo.containerRuntimeVersion}}"
        ))
    }

    /// Of these the ones of the tests.
    pub fn demo_images(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let images = self.images(node)?.into_iter();
        let demo =
            images.filter_map(|image| image.split_once("/demo/").map(|(_, name)| name.to_owned()));
        Ok(demo.collect())
    }

    /// Logs of all our pods on nodes that are up.
    pub fn logs(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut logs = Vec::new();
        for node in self.nodes()? {
            let pods =
                format!("get pods -n kube-fledged --field-selector spec.nodeName=n{node} -o name");
            for pod in self.kubectl(&pods)?.split_whitespace() {
                let log = self.kubectl(&format!("logs -n kube-fledged {pod}"))?;
                logs.push((pod.to_owned(), log));
            }
        }
        Ok(logs)
    }

    /// Sends a signal to the puller of a node, and returns to how many processes.
    pub fn signal_puller(&self, node: &str, signal: &str) -> anyhow::Result<usize> {
        let mut killed = 0;
        for dir in self.puller_processes(node)? {
            let pid = dir.trim_start_matches("/proc/");
            self.run(&["node", node, "kill", &format!("-{signal}"), pid], "")?;
            killed += 1;
        }
        Ok(killed)
    }

    /// Directories in /proc of a node's puller.
    pub fn puller_processes(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let uid = self.kubectl(&format!(
            "get pods -n kube-fledged -l app.kubernetes.io/component=puller --field-selector spec.nodeName=n{node} -o jsonpath={{.items[0].metadata.uid}}"
        ))?;
        anyhow::ensure!(!uid.is_empty(), "n{node} has no puller");
        self.pod_processes(node, &uid, "kubefledged-pul")
    }

    /// Directories in /proc of a pod's processes whose name begins so, told from other pods' by the
    /// pod's cgroup.
    pub fn pod_processes(&self, node: &str, uid: &str, name: &str) -> anyhow::Result<Vec<String>> {
        let script = format!(
            "for dir in $(grep -ls pod{uid} /proc/[0-9]*/cgroup); do dir=${{dir%/cgroup}}; \
             if grep -q ^{name} $dir/comm; then echo $dir; fi; done"
        );
        let found = self.run(&["node", node, "sh", "-c", &script], "")?;
        Ok(found.lines().map(ToOwned::to_owned).collect())
    }

    /// Messages of the Events on an `ImageCache`.
    pub fn events(&self, namespace: &str, name: &str) -> anyhow::Result<Vec<String>> {
        let uid = self.object(namespace, name)?["metadata"]["uid"].clone();
        let json = self.kubectl(&format!("get events -n {namespace} -o json"))?;
        let list: Value = serde_json::from_str(&json)?;
        let events = list["items"].as_array().into_iter().flatten();
        let ours = events.filter(|event| event["involvedObject"]["uid"] == uid);
        Ok(ours
            .filter_map(|event| Some(event["message"].as_str()?.to_owned()))
            .collect())
    }

    /// A pod named `user` on node `n1` that runs this image, which must be there: returns when it runs.
    pub fn use_image(&self, namespace: &str, image: &str) -> anyhow::Result<String> {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user", "namespace": namespace},
            "spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 1,
                     "containers": [{"name": "c", "image": image, "imagePullPolicy": "Never"}]},
        });
        self.run(&["kubectl", "create", "-f", "-"], &pod.to_string())?;
        self.kubectl(&format!(
            "wait --for=jsonpath={{.status.phase}}=Running pod/user -n {namespace} --timeout=30s"
        ))
    }

    /// Waits until an operation of this kind has ended, and returns the status it ended with.
    pub fn ended(&self, namespace: &str, name: &str, reason: &str) -> anyhow::Result<Value> {
        self.until(
            Duration::from_secs(60),
            &format!("{reason} of {name} ends"),
            || {
                let status = self.object(namespace, name)?["status"].clone();
                let over = status["reason"] == reason && status["status"] != "Processing";
                Ok(over.then_some(status))
            },
        )
    }

    /// Looks again and again until there is something to see.
    pub fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(seen) = look()? {
                return Ok(seen);
            }
            anyhow::ensure!(
                start.elapsed() < limit,
                "waited {limit:?} in vain until {what}"
            );
            std::thread::sleep(LOOK);
        }
    }
}

fn tags(image: &Value) -> impl Iterator<Item = &str> {
    strings(&image["repoTags"])
}

/// CRI-O keeps an image that has lost its last tag: its digest still says whose it was.
fn names(image: &Value) -> impl Iterator<Item = &str> {
    tags(image).chain(strings(&image["repoDigests"]))
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn split<'a>(first: &'a str, rest: &'a str) -> Vec<&'a str> {
    std::iter::once(first)
        .chain(rest.split_whitespace())
        .collect()
}

/// The full name of a demo image.
pub fn demo(name: &str) -> String {
    format!("registry.test:5000/demo/{name}:1.0")
}

/// The same image in the registry that fails as told.
pub fn faulty(name: &str) -> String {
    format!("faulty.test:5003/demo/{name}:1.0")
}
