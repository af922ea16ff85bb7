//! What the puller shares with its node: the kubelet's credential providers, and its own death. One
//! test at a time: they share the nodes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, time::Duration};

use kubefledged_e2e::{Cluster, demo, faulty};
use serde_json::json;

const PRIVATE: &str = "private.test:5001/demo/secret:1.0";

/// Where the plugin of these tests lies on the nodes.
const PLUGINS: &str = "/var/lib/kubelet/e2e-credential-providers";

/// A plugin as a cloud's: a program that the puller's image does not hold. Its interpreter has to lie
/// beside it, since there is none in an image without files.
fn plugin(password: &str) -> String {
    format!(
        "set -eu; mkdir -p {PLUGINS}; cd {PLUGINS}; cp \"$(command -v busybox)\" busybox
cat >demo-provider <<'PLUGIN'
#!{PLUGINS}/busybox sh
{PLUGINS}/busybox cat >/tmp/question
echo '{{\"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"kind\": \"CredentialProviderResponse\",
  \"cacheKeyType\": \"Registry\", \"cacheDuration\": \"0s\",
  \"auth\": {{\"private.test:5001\": {{\"username\": \"demo\", \"password\": \"{password}\"}}}}}}'
PLUGIN
chmod 755 demo-provider
mkdir -p config; echo 'this is none' >config/90-broken.json
cat >config/10-demo.yaml <<'CONFIG'
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: demo-provider
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    matchImages: ['private.test:5001']
    defaultCacheDuration: 0s
CONFIG
"
    )
}

/// The release as it was before, whatever the test does.
struct Restored<'a>(&'a Cluster);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let restored = upgrade(self.0, &["config=", "binDir="]);
        if !std::thread::panicking() {
            restored.unwrap();
        }
    }
}

/// Our release with other values of `puller.credentialProviders`.
fn upgrade(cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kubefledged");
    let values: Vec<String> = values
        .iter()
        .map(|value| format!("puller.credentialProviders.{value}"))
        .collect();
    let mut args = vec![
        "helm",
        "upgrade",
        "kubefledged",
        chart,
        "-n",
        "kube-fledged",
    ];
    args.extend(["--reuse-values", "--wait", "--timeout=120s"]);
    args.extend(values.iter().flat_map(|value| ["--set", value.as_str()]));
    cluster.run(&args, "")?;
    Ok(())
}

fn held(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let images = cluster.images(node).unwrap().into_iter();
    images.filter(|image| image.contains("/demo/")).collect()
}

/// The configuration is a directory, and one of its files is none: that costs itself only.
#[test]
fn a_private_image_without_a_secret_is_pulled_with_the_nodes_own_credential_provider() {
    let cluster = Cluster::default();
    cluster.clean("e2e-provider").unwrap();
    let spec = json!({"cacheSpec": [{"images": [PRIVATE]}]});
    cluster.create("e2e-provider", "before", &spec).unwrap();
    let status = cluster
        .ended("e2e-provider", "before", "ImageCacheCreate")
        .unwrap();
    assert_eq!(
        status["failures"][PRIVATE][0]["reason"], "Unauthorized",
        "{status}"
    );
    cluster.kubectl("delete ic before -n e2e-provider").unwrap();

    let password = cluster.run(&["registry-password"], "").unwrap();
    for node in cluster.nodes().unwrap() {
        let script = plugin(password.trim());
        cluster
            .run(&["node", &node, "sh", "-c", &script], "")
            .unwrap();
    }
    let (config, directory) = (
        format!("config={PLUGINS}/config"),
        format!("binDir={PLUGINS}"),
    );
    let restored = Restored(&cluster);
    upgrade(&cluster, &[&config, &directory]).unwrap();

    cluster.create("e2e-provider", "after", &spec).unwrap();
    let status = cluster
        .ended("e2e-provider", "after", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    for node in cluster.nodes().unwrap() {
        assert_eq!(held(&cluster, &node), BTreeSet::from([PRIVATE.to_owned()]));
    }
    for (pod, log) in cluster.logs().unwrap() {
        assert!(!log.contains(password.trim()), "{pod} tells the password");
    }
    drop(restored);
}

/// 1.3 MB at 100 KiB per second: the pullers are killed in the middle.
#[test]
fn pullers_that_are_killed_in_the_middle_of_a_pull_take_it_up_again() {
    let cluster = Cluster::default();
    cluster.clean("e2e-kill").unwrap();
    let image = faulty("worker");
    cluster
        .run(&["fault", "slow=100", "only=blobs"], "")
        .unwrap();
    let spec = json!({"cacheSpec": [{"images": [image]}]});
    cluster.create("e2e-kill", "kill", &spec).unwrap();
    let nodes = cluster.nodes().unwrap();
    let pulling = "all nodes pull";
    cluster
        .until(Duration::from_secs(20), pulling, || {
            let object = cluster.object("e2e-kill", "kill")?;
            Ok((object["status"]["nodes"]["pulling"] == nodes.len()).then_some(()))
        })
        .unwrap();
    for node in &nodes {
        let killed = cluster.signal_puller(node, "KILL").unwrap();
        assert_eq!(killed, 1, "n{node} has one puller");
    }
    cluster.run(&["fault", "off"], "").unwrap();
    let wait = "wait --for=condition=Ready -n e2e-kill ic/kill --timeout=120s";
    cluster.kubectl(wait).unwrap();
    for node in &nodes {
        assert_eq!(held(&cluster, node), BTreeSet::from([faulty("worker")]));
    }
}

/// One image is there before, as one that was loaded for an air-gapped Job; the other one we pull.
#[test]
fn only_what_we_pulled_is_removed_with_the_policy_only_pulled() {
    let cluster = Cluster::default();
    cluster.clean("e2e-pulled").unwrap();
    let (loaded, pulled) = (demo("api"), demo("cache"));
    let nodes = cluster.nodes().unwrap();
    for node in &nodes {
        let load = ["node", node.as_str(), "crictl", "pull", loaded.as_str()];
        cluster.run(&load, "").unwrap();
    }
    let spec = json!({
        "cacheSpec": [{"images": [loaded, pulled]}],
        "removalPolicy": "OnlyPulled",
    });
    cluster.create("e2e-pulled", "careful", &spec).unwrap();
    let status = cluster
        .ended("e2e-pulled", "careful", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");

    cluster
        .kubectl("annotate ic careful -n e2e-pulled kubefledged.io/purge-imagecache=")
        .unwrap();
    let status = cluster
        .ended("e2e-pulled", "careful", "ImageCachePurge")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert!(status["appliedImages"].is_null(), "{status}");
    for node in &nodes {
        assert_eq!(held(&cluster, node), BTreeSet::from([loaded.clone()]));
    }
}
