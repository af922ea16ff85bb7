//! Our own pods and what they tell; nodes' labels, put back whatever a test does; conditions.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::Cluster;

/// The namespace of the installation.
pub const OURS: &str = "kube-fledged";

/// One of our pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Another pod of the same name has another one.
    pub uid: String,
    /// Number of its node.
    pub node: String,
    /// Its address.
    pub address: String,
    /// Condition Ready.
    pub ready: bool,
    /// Of its container.
    pub restarts: u64,
}

impl Cluster {
    /// Pods of a component (controller, puller, webhook-server) that are not being deleted.
    pub fn pods(&self, component: &str) -> anyhow::Result<Vec<Pod>> {
        let json = self.kubectl(&format!(
            "get pods -n {OURS} -l app.kubernetes.io/component={component} -o json"
        ))?;
        let list: Value = serde_json::from_str(&json)?;
        let pods = list["items"].as_array().into_iter().flatten();
        let pods = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(pods.map(pod).collect())
    }

    /// What a pod of ours serves over HTTP, through the API server.
    pub fn get(&self, pod: &Pod, port: u16, path: &str) -> anyhow::Result<String> {
        let pods = format!("/api/v1/namespaces/{OURS}/pods");
        self.kubectl(&format!(
            "get --raw {pods}/{}:{port}/proxy/{path}",
            pod.name
        ))
    }

    /// The series of a metric of a pod, by their labels as they are written.
    pub fn metric(
        &self,
        pod: &Pod,
        port: u16,
        name: &str,
    ) -> anyhow::Result<BTreeMap<String, f64>> {
        let text = self.get(pod, port, "metrics")?;
        let series = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let labels = labels.trim_start_matches('{').trim_end_matches('}');
            Some((labels.to_owned(), value.parse().ok()?))
        });
        Ok(series.collect())
    }

    /// What the processes of a pod have logged: the one that runs, and the one before it.
    pub fn pod_logs(&self, pod: &str) -> anyhow::Result<String> {
        let current = self.kubectl(&format!("logs -n {OURS} {pod}"))?;
        let previous = self.kubectl(&format!("logs -n {OURS} {pod} --previous"));
        Ok(previous.unwrap_or_default() + &current)
    }

    /// Waits until all pods of a component are ready, as many as there should be.
    pub fn ready(&self, component: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
        let what = format!("{count} {component} pods are ready");
        self.until(Duration::from_secs(90), &what, || {
            // The API server may be away for a moment.
            let pods = self.pods(component).unwrap_or_default();
            let all = pods.len() == count && pods.iter().all(|pod| pod.ready);
            Ok(all.then_some(pods))
        })
    }

    /// When the puller of the node of this number became ready: told by a watch, as soon as it is.
    pub fn puller_ready(&self, node: &str) -> mpsc::Receiver<Instant> {
        let (tell, told) = mpsc::channel();
        let mut watch = Command::new(self.program());
        watch
            .args(["kubectl", "get", "pods", "-w", "-n", OURS])
            .args(["-l", "app.kubernetes.io/component=puller"])
            .args(["--field-selector", &format!("spec.nodeName=n{node}"), "-o"])
            .arg("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}")
            .stdout(Stdio::piped());
        thread::spawn(move || {
            let Ok(mut watch) = watch.spawn() else { return };
            let lines = watch.stdout.take().map(|out| BufReader::new(out).lines());
            for line in lines.into_iter().flatten().map_while(Result::ok) {
                if line.trim() == "True" {
                    let _ = tell.send(Instant::now());
                    break;
                }
            }
            let _ = watch.kill();
            let _ = watch.wait();
        });
        told
    }

    /// The kubelets look after the pullers' volumes now instead of within a minute: a change of a
    /// pod makes them.
    pub fn nudge_kubelets(&self, value: &str) -> anyhow::Result<()> {
        let pods = "pods -l app.kubernetes.io/component=puller";
        self.kubectl(&format!(
            "annotate {pods} -n {OURS} --overwrite e2e.test/look={value}"
        ))
        .map(drop)
    }

    /// A Secret of ours.
    pub fn secret(&self, name: &str) -> anyhow::Result<Value> {
        let json = self.kubectl(&format!("get secret {name} -n {OURS} -o json"))?;
        Ok(serde_json::from_str(&json)?)
    }

    /// Waits until a condition of an `ImageCache` has this status and reason.
    pub fn condition(
        &self,
        namespace: &str,
        name: &str,
        (type_, status, reason): (&str, &str, &str),
    ) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = self.until(Duration::from_secs(30), "", || {
            let object = self.object(namespace, name)?;
            let conditions = object["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            let found = conditions.find(|condition| condition["type"] == type_);
            last = found.cloned().unwrap_or_default();
            let fits = last["status"] == status && last["reason"] == reason;
            Ok(fits.then(|| object["status"].clone()))
        });
        found.with_context(|| format!("{name} is not {type_} {status}/{reason} but {last}"))
    }

    /// Labels a node until the answer is dropped.
    pub fn labelled<'a>(&'a self, node: &str, label: &str) -> anyhow::Result<Labelled<'a>> {
        self.kubectl(&format!("label node n{node} --overwrite {label}"))?;
        let key = label.split('=').next().unwrap_or_default();
        Ok(Labelled {
            cluster: self,
            undo: format!("label node n{node} {key}-"),
        })
    }
}

/// See [`Cluster::labelled`].
#[must_use = "dropping it takes the label off"]
pub struct Labelled<'a> {
    cluster: &'a Cluster,
    undo: String,
}

impl Drop for Labelled<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&self.undo);
    }
}

fn pod(pod: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let node = text(&pod["spec"]["nodeName"]);
    Pod {
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
        node: node.trim_start_matches('n').to_owned(),
        address: text(&pod["status"]["podIP"]),
        ready: conditions.any(|c| c["type"] == "Ready" && c["status"] == "True"),
        restarts: pod["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .unwrap_or(0),
    }
}

/// A value of a Secret.
pub fn entry(secret: &Value, key: &str) -> anyhow::Result<String> {
    let value = secret["data"][key]
        .as_str()
        .with_context(|| format!("no {key}"))?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(value)?)?)
}
