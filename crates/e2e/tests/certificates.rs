//! Certificates change under way, and come back when somebody deletes or overwrites them. Nobody
//! notices either.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kubefledged_e2e::{
    Cluster, demo, faulty,
    fleet::{OURS, Pod, entry},
};
use kubefledged_testkit::Ca;
use serde_json::{Value, json};

const CONFIGURATION: &str = "validatingwebhookconfiguration kubefledged-webhook-server";
const LEAVES: [&str; 4] = ["puller", "controller", "webhook-server", "debug"];
const ADMISSIONS: usize = 1000;
/// Objects in one call of kubectl.
const AT_ONCE: usize = 20;
/// Between two calls: they are to be spread over both rotations.
const PACE: Duration = Duration::from_secs(2);

/// The CAs that the API server is told to trust.
fn ca_bundle(cluster: &Cluster) -> anyhow::Result<String> {
    let bundle = cluster.kubectl(&format!(
        "get {CONFIGURATION} -o jsonpath={{.webhooks[0].clientConfig.caBundle}}"
    ))?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(bundle)?)?)
}

fn count(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

fn leaf(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    cluster.secret(&format!("kubefledged-{name}-tls"))
}

/// Nothing of the old CA is trusted or presented any more.
fn is_over(cluster: &Cluster, old: &str) -> anyhow::Result<bool> {
    let bundle = ca_bundle(cluster)?;
    if count(&bundle) != 1 || bundle == old {
        return Ok(false);
    }
    for name in LEAVES {
        if entry(&leaf(cluster, name)?, "ca.crt")? != bundle {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until a rotation has begun and ended. The kubelets are made to look, which else they do
/// once a minute.
fn rotation(cluster: &Cluster, old: &str) -> anyhow::Result<()> {
    let since = Instant::now();
    let mut nudged = 0;
    let mut seen = 0;
    cluster.until(Duration::from_secs(240), "the old CA is gone", || {
        seen = seen.max(count(&ca_bundle(cluster)?));
        if since.elapsed().as_secs() / 5 >= nudged {
            nudged += 1;
            cluster.nudge_kubelets(&nudged.to_string())?;
        }
        Ok(is_over(cluster, old)?.then_some(()))
    })?;
    anyhow::ensure!(seen == 2, "both CAs were trusted at a time, not {seen}");
    println!("rotated in {:?}", since.elapsed());
    Ok(())
}

fn replace(cluster: &Cluster, pod: &Pod) -> anyhow::Result<()> {
    cluster.kubectl(&format!("delete pod -n {OURS} {} --wait=false", pod.name))?;
    cluster.ready("webhook-server", 2).map(drop)
}

/// One by a person who asks for it, one because the CA's Secret is lost.
fn rotate_twice(cluster: &Cluster) -> anyhow::Result<()> {
    let webhooks = cluster.ready("webhook-server", 2)?;
    for (begin, webhook) in [
        "annotate secret kubefledged-ca kubefledged.io/rotate-ca=",
        "delete secret kubefledged-ca",
    ]
    .into_iter()
    .zip(&webhooks)
    {
        let old = ca_bundle(cluster)?;
        cluster.kubectl(&format!("{begin} -n {OURS}"))?;
        let what = "the new CA stands beside the old one";
        cluster.until(Duration::from_secs(20), what, || {
            Ok((count(&ca_bundle(cluster)?) == 2).then_some(()))
        })?;
        replace(cluster, webhook)?;
        rotation(cluster, &old)?;
    }
    let after = cluster.ready("webhook-server", 2)?;
    anyhow::ensure!(
        after.iter().all(|pod| !webhooks.contains(pod)),
        "both webhook pods are new"
    );
    Ok(())
}

/// Objects for the webhook to judge, until it is over and at least as many as there should be.
fn admissions(cluster: &Cluster, over: &AtomicBool) -> anyhow::Result<usize> {
    let mut admitted = 0;
    while admitted < ADMISSIONS || !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let objects: Vec<Value> = (0..AT_ONCE)
            .map(|i| {
                json!({
                    "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
                    "metadata": {"name": format!("admitted-{i}"), "namespace": "rotation"},
                    "spec": {"cacheSpec": [{"images": [demo("web")]}]},
                })
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let args = "kubectl create --dry-run=server --validate=false -f -";
        let args: Vec<&str> = args.split(' ').collect();
        let said = cluster.run(&args, &list.to_string())?;
        let created = said.matches("created (server dry run)").count();
        anyhow::ensure!(created == AT_ONCE, "{said}");
        admitted += created;
        if !over.load(Ordering::Relaxed) {
            thread::sleep(PACE.saturating_sub(begun.elapsed()));
        }
    }
    Ok(admitted)
}

/// Images are pulled and purged again and again until it is over.
fn waves(cluster: &Cluster, over: &AtomicBool) -> anyhow::Result<usize> {
    let images = [demo("api"), demo("worker"), demo("cache")];
    let spec = json!({"cacheSpec": [{"images": images}]});
    let mut waves = 0;
    while !over.load(Ordering::Relaxed) {
        let name = format!("wave-{waves}");
        cluster.create("rotation", &name, &spec)?;
        let status = cluster.ended("rotation", &name, "ImageCacheCreate")?;
        anyhow::ensure!(status["status"] == "Succeeded", "{name}: {status}");
        let purge = format!("annotate ic {name} -n rotation kubefledged.io/purge-imagecache=");
        cluster.kubectl(&purge)?;
        let status = cluster.ended("rotation", &name, "ImageCachePurge")?;
        anyhow::ensure!(status["status"] == "Succeeded", "{name}: {status}");
        cluster.kubectl(&format!("delete ic {name} -n rotation"))?;
        waves += 1;
    }
    Ok(waves)
}

/// Handshakes that failed because one side did not take the other's certificate.
fn refused_handshakes(cluster: &Cluster) -> anyhow::Result<f64> {
    let mut refused = 0.0;
    for (component, port) in [("controller", 8080), ("puller", 8082)] {
        for pod in cluster.pods(component)? {
            let failures = "kubefledged_tls_handshake_failures_total";
            let metric: BTreeMap<String, f64> = cluster.metric(&pod, port, failures)?;
            let refusals = metric
                .iter()
                .filter(|(reason, _)| !reason.contains("closed"));
            refused += refusals.map(|(_, count)| count).sum::<f64>();
        }
    }
    Ok(refused)
}

#[test]
fn a_thousand_admissions_and_waves_of_pulls_do_not_notice_two_rotations() {
    let cluster = Cluster::default();
    cluster.clean("rotation").unwrap();
    // A pull that lasts through a rotation: 200 KB at 2 KiB a second. What it shares with the other
    // images is there already.
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.create("rotation", "base", &spec).unwrap();
    cluster
        .ended("rotation", "base", "ImageCacheCreate")
        .unwrap();
    let slow = ["fault", "slow=2", "only=blobs", "match=demo/extra"];
    cluster.run(&slow, "").unwrap();
    let log = cluster.access_log().unwrap();
    let spec = json!({"cacheSpec": [{"images": [faulty("extra")]}]});
    cluster.create("rotation", "long", &spec).unwrap();
    let ours = || -> Vec<(String, u64)> {
        let controllers = cluster.pods("controller").unwrap().into_iter();
        let pods = controllers.chain(cluster.pods("puller").unwrap());
        pods.map(|pod| (pod.uid, pod.restarts)).collect()
    };
    let before = (ours(), refused_handshakes(&cluster).unwrap());

    let over = AtomicBool::new(false);
    let (rotated, admitted, pulled) = thread::scope(|scope| {
        let admitted = scope.spawn(|| admissions(&cluster, &over));
        let pulled = scope.spawn(|| waves(&cluster, &over));
        let rotated = rotate_twice(&cluster);
        over.store(true, Ordering::Relaxed);
        (rotated, admitted.join().unwrap(), pulled.join().unwrap())
    });
    rotated.unwrap();
    let (admitted, pulled) = (admitted.unwrap(), pulled.unwrap());
    println!("{admitted} admissions, {pulled} waves");
    assert!(admitted >= ADMISSIONS && pulled >= 5);
    let status = cluster.until(Duration::from_secs(120), "the long pull ends", || {
        let status = cluster.object("rotation", "long")?["status"].clone();
        Ok((status["status"] != "Processing").then_some(status))
    });
    cluster.run(&["fault", "off"], "").unwrap();
    let status = status.unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    let nodes = cluster.nodes().unwrap().len();
    assert_eq!(log.pulls("extra").unwrap(), nodes, "no pull was begun anew");
    // Nothing was restarted, and both sides took each other at every moment.
    assert_eq!((ours(), refused_handshakes(&cluster).unwrap()), before);
}

fn admits(cluster: &Cluster) -> anyhow::Result<String> {
    let good = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.feed("create --dry-run=server", "heal", "x", &good)
}

/// Waits until a Secret of a leaf holds a certificate that was not there before.
fn renewed(cluster: &Cluster, name: &str, old: &str) {
    let what = format!("{name} has a new certificate");
    let new = cluster.until(Duration::from_secs(10), &what, || {
        let secret = leaf(cluster, name).ok();
        let certificate = secret.and_then(|secret| entry(&secret, "tls.crt").ok());
        Ok(certificate.filter(|new| new != old && count(new) == 1))
    });
    new.unwrap();
}

#[test]
fn a_ca_bundle_that_somebody_overwrites_is_put_right_within_seconds() {
    let cluster = Cluster::default();
    let _ = cluster.kubectl("create namespace heal");
    let right = ca_bundle(&cluster).unwrap();
    for wrong in [Some(Ca::default().pem()), None] {
        let field = "/webhooks/0/clientConfig/caBundle";
        let patch = match &wrong {
            Some(pem) => {
                json!([{"op": "replace", "path": field, "value": BASE64_STANDARD.encode(pem)}])
            }
            None => json!([{"op": "remove", "path": field}]),
        };
        let patch = patch.to_string();
        let mut args: Vec<&str> = vec!["kubectl", "patch"];
        args.extend(CONFIGURATION.split(' '));
        args.extend(["--type=json", "-p", &patch]);
        cluster.run(&args, "").unwrap();
        cluster
            .until(Duration::from_secs(5), "caBundle is right again", || {
                Ok(ca_bundle(&cluster).ok().filter(|now| *now == right))
            })
            .unwrap();
    }
    cluster
        .until(Duration::from_secs(20), "objects are admitted", || {
            Ok(admits(&cluster).ok())
        })
        .unwrap();
    // Whoever applies the rest of the configuration never meets us.
    let fields = format!("get {CONFIGURATION} --show-managed-fields -o json");
    let object: Value = serde_json::from_str(&cluster.kubectl(&fields).unwrap()).unwrap();
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    let ours = managers.iter().find(|m| m["manager"] == "kubefledged-ca");
    let webhooks = &ours.unwrap()["fieldsV1"]["f:webhooks"];
    let webhooks = webhooks.as_object().unwrap();
    assert!(!webhooks.is_empty());
    for fields in webhooks.values() {
        let expected = json!({".": {}, "f:clientConfig": {"f:caBundle": {}}, "f:name": {}});
        assert_eq!(fields, &expected);
    }
}

#[test]
fn certificates_that_somebody_deletes_or_spoils_come_back_and_pulls_go_on() {
    let cluster = Cluster::default();
    cluster.clean("heal").unwrap();
    for name in LEAVES {
        let old = entry(&leaf(&cluster, name).unwrap(), "tls.crt").unwrap();
        let delete = format!("delete secret kubefledged-{name}-tls -n {OURS}");
        cluster.kubectl(&delete).unwrap();
        renewed(&cluster, name, &old);
    }
    // A certificate whose key is another's.
    let key = entry(&leaf(&cluster, "debug").unwrap(), "tls.key").unwrap();
    for name in ["controller", "webhook-server"] {
        let old = entry(&leaf(&cluster, name).unwrap(), "tls.crt").unwrap();
        let patch = json!({"stringData": {"tls.key": key}}).to_string();
        let secret = format!("kubefledged-{name}-tls");
        let args = [
            "kubectl", "patch", "secret", &secret, "-n", OURS, "-p", &patch,
        ];
        cluster.run(&args, "").unwrap();
        renewed(&cluster, name, &old);
    }
    admits(&cluster).unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.create("heal", "after", &spec).unwrap();
    let status = cluster.ended("heal", "after", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
}

#[test]
fn all_secrets_deleted_at_once_are_made_anew_and_everything_works_again() {
    let cluster = Cluster::default();
    cluster.clean("anew").unwrap();
    let old = ca_bundle(&cluster).unwrap();
    let leaves = LEAVES
        .map(|name| format!("kubefledged-{name}-tls"))
        .join(" ");
    let delete = format!("delete secret -n {OURS} --ignore-not-found kubefledged-ca {leaves}");
    let new = cluster.until(Duration::from_secs(60), "a new CA is published", || {
        let bundle = ca_bundle(&cluster)?;
        if !bundle.contains(&old) && count(&bundle) == 1 {
            return Ok(Some(()));
        }
        // A leader that looks between two deletions goes on trusting the old CA.
        cluster.kubectl(&delete)?;
        thread::sleep(Duration::from_secs(2));
        Ok(None)
    });
    new.unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("api")]}]});
    cluster
        .until(Duration::from_secs(30), "objects are admitted", || {
            Ok(cluster.create("anew", "after", &spec).ok())
        })
        .unwrap();
    cluster.nudge_kubelets("anew").unwrap();
    let wait = "wait --for=condition=Ready -n anew ic/after --timeout=90s";
    cluster.kubectl(wait).unwrap();
}
