//! What is written down anywhere tells no secret: logs of all our processes at the highest level, of
//! those before them, Events, and the objects themselves. By its name the last of the end-to-end
//! tests, so that the logs of all the others are among what it reads.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kubefledged_e2e::{
    Cluster,
    fleet::{OURS, entry},
};
use serde_json::json;

const PRIVATE: &str = "private.test:5001/demo/secret:1.0";
const COMPONENTS: [(&str, usize); 3] = [("controller", 2), ("webhook-server", 2), ("puller", 2)];

/// The release as it was, whatever the test does.
struct Verbose<'a>(&'a Cluster);

impl<'a> Verbose<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        log_at(cluster, "trace").unwrap();
        Self(cluster)
    }
}

impl Drop for Verbose<'_> {
    fn drop(&mut self) {
        let restored = log_at(self.0, "info");
        if !std::thread::panicking() {
            restored.unwrap();
        }
    }
}

fn log_at(cluster: &Cluster, level: &str) -> anyhow::Result<()> {
    let chart = kubefledged_chart::file("charts/kubefledged");
    let chart = chart.to_string_lossy();
    let mut args = vec!["helm", "upgrade", "kubefledged", &chart, "-n", OURS];
    args.extend(["--reuse-values", "--wait", "--timeout=120s"]);
    let values = ["controller", "webhook", "puller"].map(|part| format!("{part}.logLevel={level}"));
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    cluster.run(&args, "").map(drop)
}

/// All that could be read by somebody who may not read Secrets.
fn written(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (component, count) in COMPONENTS {
        for pod in cluster.ready(component, count).unwrap() {
            text += &cluster.pod_logs(&pod.name).unwrap();
        }
    }
    // Logs of processes that were replaced stay on the nodes for a while.
    for node in cluster.nodes().unwrap() {
        let logs = format!("cat /var/log/pods/{OURS}_*/*/*.log");
        text += &cluster
            .run(&["node", &node, "sh", "-c", &logs], "")
            .unwrap();
    }
    let objects = "get events,imagecaches,pods,configmaps,leases -A -o yaml";
    text + &cluster.kubectl(objects).unwrap()
}

/// A secret text, and what it looks like in a Secret and in a header.
fn forms(secret: &str) -> Vec<String> {
    let login = format!("demo:{secret}");
    let plain = [secret.to_owned(), login];
    let encoded = plain.clone().map(|text| BASE64_STANDARD.encode(text));
    plain.into_iter().chain(encoded).collect()
}

fn create_secret(cluster: &Cluster, name: &str, password: &str) {
    let create = format!(
        "create secret docker-registry {name} -n written --docker-server=private.test:5001 --docker-username=demo --docker-password={password}"
    );
    cluster.kubectl(&create).unwrap();
}

#[test]
fn no_password_and_no_key_is_in_any_log_or_object_at_any_level() {
    let cluster = Cluster::default();
    let password = cluster.run(&["registry-password"], "").unwrap();
    let wrong = "a-password-that-opens-nothing";
    let mut secrets: Vec<String> = [password.trim(), wrong]
        .into_iter()
        .flat_map(forms)
        .collect();
    for name in [
        "ca",
        "puller-tls",
        "controller-tls",
        "webhook-server-tls",
        "debug-tls",
    ] {
        let secret = cluster.secret(&format!("kubefledged-{name}")).unwrap();
        let key = entry(&secret, "tls.key").unwrap();
        // A line in the middle, since a log may break lines its own way.
        secrets.push(key.lines().nth(1).unwrap().to_owned());
    }
    let assert_untold = |text: &str, when: &str| {
        for secret in &secrets {
            if let Some(at) = text.find(secret.as_str()) {
                let before = text[..at].lines().last().unwrap_or_default();
                unreachable!("{when}: a secret is told after {before:?}");
            }
        }
    };
    assert_untold(&written(&cluster), "in the logs of all tests");

    let verbose = Verbose::new(&cluster);
    cluster.clean("written").unwrap();
    cluster.kubectl("delete secrets --all -n written").unwrap();
    create_secret(&cluster, "right", password.trim());
    create_secret(&cluster, "wrong", wrong);
    for (name, status) in [("wrong", "Failed"), ("right", "Succeeded")] {
        let secret = json!([{"name": name}]);
        let spec = json!({"cacheSpec": [{"images": [PRIVATE]}], "imagePullSecrets": secret});
        cluster.create("written", name, &spec).unwrap();
        let ended = cluster.ended("written", name, "ImageCacheCreate").unwrap();
        assert_eq!(ended["status"], status, "{ended}");
        cluster
            .kubectl(&format!("delete ic {name} -n written"))
            .unwrap();
    }
    // A certificate is made anew, too.
    let delete = format!("delete secret kubefledged-debug-tls -n {OURS}");
    cluster.kubectl(&delete).unwrap();
    // What dies tells no more than what lives.
    assert_eq!(cluster.signal_puller("1", "KILL").unwrap(), 1);
    let text = written(&cluster);
    assert!(
        text.contains("\"level\":\"TRACE\""),
        "it was logged at the highest level"
    );
    assert_untold(&text, "at the highest level");
    drop(verbose);
}
