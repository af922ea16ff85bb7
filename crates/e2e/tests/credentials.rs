//! Pull secrets as people really have them: of both types, of a `ServiceAccount`, missing, and broken.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kubefledged_e2e::{Cluster, faulty};
use serde_json::{Value, json};

const PRIVATE: &str = "private.test:5001/demo/secret:1.0";

fn cluster(namespace: &str) -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(namespace).unwrap();
    let delete = format!("delete secrets,serviceaccounts,events --all -n {namespace}");
    cluster.kubectl(&delete).unwrap();
    cluster
}

/// A Secret with one key.
fn secret(cluster: &Cluster, namespace: &str, name: &str, type_: &str, content: &Value) {
    let key = match type_ {
        "kubernetes.io/dockercfg" => ".dockercfg",
        _ => ".dockerconfigjson",
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": type_,
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {key: content.to_string()},
    });
    let args = ["kubectl", "create", "-f", "-"];
    cluster.run(&args, &secret.to_string()).unwrap();
}

fn of(more: Value) -> Value {
    let mut spec = json!({"cacheSpec": [{"images": [PRIVATE]}]});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

#[test]
fn secrets_of_the_old_type_and_of_a_service_account_open_a_private_registry() {
    let cluster = cluster("accounts");
    let password = cluster.run(&["registry-password"], "").unwrap();
    let auth = BASE64_STANDARD.encode(format!("demo:{}", password.trim()));
    // The old type has the registries at the top; people write them as URLs, too.
    let old = json!({"https://private.test:5001": {"auth": auth}});
    secret(&cluster, "accounts", "old", "kubernetes.io/dockercfg", &old);
    let patch = json!({"imagePullSecrets": [{"name": "old"}]}).to_string();
    cluster
        .kubectl("create serviceaccount puller -n accounts")
        .unwrap();
    let args = [
        "kubectl",
        "patch",
        "serviceaccount",
        "puller",
        "-n",
        "accounts",
        "-p",
        &patch,
    ];
    cluster.run(&args, "").unwrap();
    let spec = of(json!({"serviceAccountName": "puller"}));
    cluster.create("accounts", "a", &spec).unwrap();
    let status = cluster.ended("accounts", "a", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
}

/// `base64` without `-w0` breaks its lines at 76 columns.
#[test]
fn a_secret_whose_auth_base64_has_wrapped_opens_a_private_registry() {
    let cluster = cluster("wrapped");
    let password = cluster.run(&["registry-password"], "").unwrap();
    let login = format!("demo:{}", password.trim());
    let wrapped: Vec<String> = BASE64_STANDARD
        .encode(login)
        .as_bytes()
        // The password is short: at 8 columns there are several lines.
        .chunks(8)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    let auth = wrapped.join("\n") + "\n";
    let config = json!({"auths": {"private.test:5001": {"auth": auth, "username": null}}});
    let type_ = "kubernetes.io/dockerconfigjson";
    secret(&cluster, "wrapped", "wrapped", type_, &config);
    let spec = of(json!({"imagePullSecrets": [{"name": "wrapped"}]}));
    cluster.create("wrapped", "w", &spec).unwrap();
    let status = cluster.ended("wrapped", "w", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
}

#[test]
fn the_second_secret_is_tried_where_the_first_is_refused_in_the_words_of_docker_hub() {
    let cluster = cluster("second");
    cluster.run(&["fault", "login=dockerhub"], "").unwrap();
    let type_ = "kubernetes.io/dockerconfigjson";
    for (name, password) in [("wrong", "old"), ("right", "demo")] {
        let entry = json!({"username": "demo", "password": password});
        let config = json!({"auths": {"faulty.test:5003": entry}});
        secret(&cluster, "second", name, type_, &config);
    }
    let image = faulty("web");
    for (name, secrets, outcome) in [
        ("refused", json!([{"name": "wrong"}]), "Failed"),
        (
            "both",
            json!([{"name": "wrong"}, {"name": "right"}]),
            "Succeeded",
        ),
    ] {
        let spec = json!({"cacheSpec": [{"images": [image]}], "imagePullSecrets": secrets});
        cluster.create("second", name, &spec).unwrap();
        let status = cluster.ended("second", name, "ImageCacheCreate").unwrap();
        assert_eq!(status["status"], outcome, "{status}");
        if outcome == "Failed" {
            let reason = &status["failures"][&image][0]["reason"];
            assert_eq!(reason, "Unauthorized", "{status}");
        }
        cluster
            .kubectl(&format!("delete ic {name} -n second"))
            .unwrap();
    }
    cluster.run(&["fault", "off"], "").unwrap();
}

#[test]
fn secrets_that_are_missing_or_broken_are_named_in_an_event_and_in_the_failure() {
    let cluster = cluster("broken");
    // Not base64, and what it would hold must be told to nobody.
    let content = "not*base64*but*confidential";
    let broken = json!({"auths": {"private.test:5001": {"auth": content}}});
    secret(
        &cluster,
        "broken",
        "bad",
        "kubernetes.io/dockerconfigjson",
        &broken,
    );
    let secrets = json!([{"name": "nowhere"}, {"name": "bad"}]);
    let spec = of(json!({ "imagePullSecrets": secrets }));
    cluster.create("broken", "b", &spec).unwrap();
    let status = cluster.ended("broken", "b", "ImageCacheCreate").unwrap();
    let failure = &status["failures"][PRIVATE][0];
    assert_eq!(failure["reason"], "Unauthorized", "{status}");
    let message = failure["message"].as_str().unwrap();
    for part in ["nowhere: not found", "bad: an auth is no base64"] {
        assert!(message.contains(part), "{message}");
    }
    let warned = cluster.until(Duration::from_secs(10), "both are named in Events", || {
        let list = cluster.kubectl("get events -n broken -o json")?;
        let list: Value = serde_json::from_str(&list)?;
        let events = list["items"].as_array().into_iter().flatten();
        let warnings = events.filter(|event| event["type"] == "Warning");
        let notes: String = warnings.map(|event| event["message"].to_string()).collect();
        let both = notes.contains("nowhere: not found") && notes.contains("bad: an auth");
        Ok(both.then_some(()))
    });
    warned.unwrap();
    let told = cluster.kubectl("get events,ic -n broken -o yaml").unwrap();
    assert!(!told.contains(content));
    for (pod, log) in cluster.logs().unwrap() {
        assert!(!log.contains(content), "{pod}");
    }

    // With the right one beside them it is pulled: neither hinders anything.
    let password = cluster.run(&["registry-password"], "").unwrap();
    let right =
        json!({"auths": {"private.test:5001": {"username": "demo", "password": password.trim()}}});
    secret(
        &cluster,
        "broken",
        "right",
        "kubernetes.io/dockerconfigjson",
        &right,
    );
    let secrets = json!([{"name": "nowhere"}, {"name": "bad"}, {"name": "right"}]);
    let edit = json!({ "imagePullSecrets": secrets });
    cluster.edit("broken", "b", &edit).unwrap();
    let wait = "wait --for=condition=Ready -n broken ic/b --timeout=60s";
    cluster.kubectl(wait).unwrap();
}
