//! What somebody writes who means no good, or whose script went wrong: the largest object there can be and
//! one byte more, lists of ten thousand images, and every text that a user controls made of what a
//! shell, a terminal or a parser could stumble over.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use kubefledged_e2e::{Cluster, demo};
use serde_json::{Value, json};

const NAMESPACE: &str = "hostile";
/// What is refused beyond it: names of one object, in bytes.
const MOST_NAME_BYTES: usize = 400_000;

const NASTY: [&str; 10] = [
    "$(touch /tmp/pwned)",
    "`reboot`; rm -rf /",
    "a\nb: c\r\n---",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{202e}txt.exe \u{feff}\u{200b}",
    "../../../etc/shadow",
    "%s%n%x {{.Values}} ${jndi:x}",
    "'; DROP TABLE images; --",
    "\u{e4}\u{6f22}\u{5b57}\u{1f600} \u{0}",
    "{\"auths\":{}}",
];

fn cluster() -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(NAMESPACE).unwrap();
    cluster
}

/// What was said to it.
fn refused(cluster: &Cluster, name: &str, spec: &Value) -> String {
    match cluster.create(NAMESPACE, name, spec) {
        Ok(_) => unreachable!("{:.300} was accepted", spec.to_string()),
        Err(error) => error.to_string(),
    }
}

/// Names of a registry that nobody listens at, of so many bytes in all, in lists of at most 4,096.
fn names(count: usize, bytes: usize) -> Vec<Vec<String>> {
    let each = bytes / count;
    let name = |i: usize| {
        let more = if i == 0 { bytes % count } else { 0 };
        let head = format!("down.test:5002/x{i}/");
        let fill = "a".repeat(each + more - head.len() - 2);
        format!("{head}{fill}:1")
    };
    let all: Vec<String> = (0..count).map(name).collect();
    all.chunks(4096).map(<[String]>::to_vec).collect()
}

fn lists(names: &[Vec<String>], selector: &Value) -> Value {
    let list = |images: &Vec<String>| json!({"images": images, "nodeSelector": selector});
    json!({"cacheSpec": names.iter().map(list).collect::<Vec<_>>()})
}

/// The controller works and the webhook answers.
fn assert_alive(cluster: &Cluster) {
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.create(NAMESPACE, "alive", &spec).unwrap();
    let status = cluster
        .ended(NAMESPACE, "alive", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    cluster
        .kubectl(&format!("delete ic alive -n {NAMESPACE}"))
        .unwrap();
    for (pod, log) in cluster.logs().unwrap() {
        assert!(!log.contains("panicked"), "{pod}: {log}");
    }
}

/// Each is refused in a sentence, or taken as the text that it is.
#[test]
fn no_text_that_a_user_controls_is_taken_for_anything_else() {
    let cluster = cluster();
    for (i, nasty) in NASTY.iter().enumerate() {
        // Kubernetes itself refuses NUL and what is no label; whoever refuses, nothing breaks.
        let said = refused(
            &cluster,
            "image",
            &json!({"cacheSpec": [{"images": [nasty]}]}),
        );
        assert!(said.contains("spec.cacheSpec[0].images[0]"), "{said:?}");
        assert!(!said.contains('\u{1b}') && said.len() < 2000, "{said:?}");
        let said = refused(
            &cluster,
            "duration",
            &json!({"cacheSpec": [{"images": ["a:1"], "pullDeadline": nasty}]}),
        );
        assert!(said.contains("pullDeadline"), "{said:?}");
        let spec = json!({
            "cacheSpec": [{
                "images": [demo("web")],
                "nodeSelector": {*nasty: nasty},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": nasty, "operator": "NotIn", "values": [nasty]}]}
                ]}},
            }],
            "imagePullSecrets": [{"name": nasty}],
            "serviceAccountName": nasty,
        });
        cluster
            .create(NAMESPACE, &format!("text-{i}"), &spec)
            .unwrap();
        let metadata = json!({"annotations": {"kubefledged.io/refresh-imagecache": nasty}});
        let patch = json!({ "metadata": metadata }).to_string();
        cluster
            .run(
                &[
                    "kubectl",
                    "patch",
                    "ic",
                    &format!("text-{i}"),
                    "-n",
                    NAMESPACE,
                    "--type=merge",
                    "-p",
                    &patch,
                ],
                "",
            )
            .unwrap();
        let handled = cluster.until(Duration::from_secs(60), "the token is handled", || {
            let status = cluster.object(NAMESPACE, &format!("text-{i}"))?["status"].clone();
            Ok((status["lastHandledRefresh"] == *nasty).then_some(()))
        });
        handled.unwrap();
    }
    // A duration that no clock can add.
    let long =
        json!({"cacheSpec": [{"images": ["a:1"], "pullDeadline": "20000000000000000000000ms"}]});
    let said = refused(&cluster, "long", &long);
    assert!(said.contains("is not a duration"), "{said}");
    assert_alive(&cluster);
    cluster.clean(NAMESPACE).unwrap();
}

/// Where the webhook is told to look away, the controller must cope alone.
#[test]
fn an_object_that_nobody_judged_stops_nobody() {
    let cluster = cluster();
    let namespace = "hostile-unjudged";
    let _ = cluster.kubectl(&format!("create namespace {namespace}"));
    cluster
        .kubectl(&format!(
            "label namespace {namespace} --overwrite kubefledged.io/disable-validation=true"
        ))
        .unwrap();
    let images = json!(NASTY);
    let specs = [
        json!({"cacheSpec": [{"images": images}, {"images": []}]}),
        json!({"cacheSpec": [{"images": ["a:1"], "pullDeadline": "20000000000000000000000ms"}]}),
    ];
    for (i, spec) in specs.iter().enumerate() {
        cluster
            .feed("apply", namespace, &format!("unjudged-{i}"), spec)
            .unwrap();
    }
    let reason = cluster
        .ended(namespace, "unjudged-1", "CacheSpecValidationFailed")
        .unwrap();
    assert!(
        reason["message"]
            .as_str()
            .unwrap()
            .contains("is not a duration"),
        "{reason}"
    );
    let status = cluster
        .ended(namespace, "unjudged-0", "ImageCacheCreate")
        .unwrap();
    let failures = status["failures"].as_object().unwrap();
    assert_eq!(failures.len(), NASTY.len(), "{status}");
    assert!(
        failures
            .values()
            .all(|nodes| nodes[0]["reason"] == "InvalidImageName"),
        "{status}"
    );
    assert_alive(&cluster);
    cluster
        .kubectl(&format!("delete ic --all -n {namespace}"))
        .unwrap();
    cluster
        .kubectl(&format!("delete namespace {namespace} --wait=false"))
        .unwrap();
}

#[test]
#[ignore = "long: make test-faults"]
fn the_largest_object_works_and_one_byte_more_is_refused_with_what_to_do() {
    let cluster = cluster();
    let here = json!({"kubernetes.io/hostname": "n1"});
    let full = names(4000, MOST_NAME_BYTES);
    let mut more = full.clone();
    more[0][0].push('2');
    let said = refused(&cluster, "large", &lists(&more, &here));
    assert!(
        said.contains("more than 400000 bytes in all: split them into several ImageCaches"),
        "{said}"
    );

    cluster
        .create(NAMESPACE, "large", &lists(&full, &here))
        .unwrap();
    let status = cluster.until(
        Duration::from_secs(120),
        "the largest object has a status",
        || {
            let status = cluster.object(NAMESPACE, "large")?["status"].clone();
            Ok((status["status"] == "Failed").then_some(status))
        },
    );
    let status = status.unwrap();
    assert_eq!(status["appliedImages"].as_array().map(Vec::len), Some(4000));
    assert_eq!(
        (&status["failureCount"], &status["failuresTruncated"]),
        (&json!(4000), &json!(true))
    );
    let label = format!("label ic large -n {NAMESPACE} edited=true");
    cluster.kubectl(&label).unwrap();

    // All of them are owed at once, beside as many others that are wanted; and others still go.
    let small =
        json!({"cacheSpec": [{"images": [demo("web"), demo("api")], "nodeSelector": here}]});
    cluster.create(NAMESPACE, "small", &small).unwrap();
    cluster
        .ended(NAMESPACE, "small", "ImageCacheCreate")
        .unwrap();
    let edited = json!({"cacheSpec": [{"images": [demo("web")], "nodeSelector": here}]});
    cluster.edit(NAMESPACE, "small", &edited).unwrap();
    cluster
        .ended(NAMESPACE, "small", "ImageCacheUpdate")
        .unwrap();
    assert_eq!(cluster.demo_images("1").unwrap(), ["web:1.0"]);
    assert_alive(&cluster);
    cluster.clean(NAMESPACE).unwrap();
}

#[test]
#[ignore = "long: make test-faults"]
fn ten_thousand_images_in_one_list_are_refused_and_in_three_lists_work() {
    let cluster = cluster();
    let here = json!({"kubernetes.io/hostname": "n1"});
    let three = names(10_000, MOST_NAME_BYTES);
    let one = vec![three.concat()];
    let said = refused(&cluster, "many", &lists(&one, &here));
    assert!(
        said.contains("must have at most 4096 items"),
        "{said:.2000}"
    );
    cluster
        .create(NAMESPACE, "many", &lists(&three, &here))
        .unwrap();
    let status = cluster.until(
        Duration::from_secs(240),
        "ten thousand pulls have an outcome",
        || {
            let status = cluster.object(NAMESPACE, "many")?["status"].clone();
            Ok((status["status"] == "Failed").then_some(status))
        },
    );
    let status = status.unwrap();
    assert_eq!(status["failureCount"], 10_000);
    assert!(status["failures"].to_string().len() < 256 << 10);
    cluster
        .edit(
            NAMESPACE,
            "many",
            &json!({"cacheSpec": [{"images": [demo("web")], "nodeSelector": here}]}),
        )
        .unwrap();
    let applied = cluster.until(
        Duration::from_secs(120),
        "what is not wanted is forgotten",
        || {
            let status = cluster.object(NAMESPACE, "many")?["status"].clone();
            let applied = status["appliedImages"].as_array().map(Vec::len);
            Ok((applied == Some(1) && status["status"] == "Succeeded").then_some(()))
        },
    );
    applied.unwrap();
    assert_alive(&cluster);
    cluster.clean(NAMESPACE).unwrap();
}
