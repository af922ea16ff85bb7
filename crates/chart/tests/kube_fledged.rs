//! Values of kube-fledged's chart.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::{at, get, notes, render, render_text, yaml};
use serde_json::{Value, json};

fn table() -> Vec<Value> {
    let table = yaml("charts/kubefledged/files/kube-fledged-values.yaml").unwrap();
    table["values"].as_array().unwrap().clone()
}

/// A value that somebody might have set.
fn set(entry: &Value) -> Value {
    let old = entry["old"].as_str().unwrap();
    match old.rsplit('.').next().unwrap() {
        "controllerReplicaCount" | "webhookServerReplicaCount" => json!(3),
        "enable" | "create" => json!(false),
        "hostNetwork" => json!(true),
        "pullPolicy" => json!("Never"),
        "controllerImagePullPolicy" => json!("Always"),
        "controllerImageCacheRefreshFrequency" | "controllerImagePullDeadlineDuration" => {
            json!("1h")
        }
        "controllerCRISocketPath" => json!("/var/run/crio/crio.sock"),
        "controllerLogLevel" | "webhookServerLogLevel" => json!("WARNING"),
        "podSecurityContext" => json!({"fsGroup": 7}),
        "securityContext" => json!({"runAsUser": 7}),
        "resources" => json!({"limits": {"memory": "77Mi"}}),
        "nodeSelector" => json!({"disk": "ssd"}),
        "tolerations" => json!([{"key": "x"}]),
        "affinity" => json!({"nodeAffinity": {}}),
        _ => json!("something"),
    }
}

#[test]
fn an_old_value_does_what_the_new_one_does_and_is_named_in_the_notes() {
    for entry in table().iter().filter(|entry| entry["new"].is_array()) {
        let old = entry["old"].as_str().unwrap();
        let value = set(entry);
        let rendered = render_text(&at(old, &value), &[]).unwrap();
        let mut new = json!({});
        for path in entry["new"].as_array().unwrap() {
            let path = path.as_str().unwrap();
            let translated = if entry["level"] == true {
                json!("warn")
            } else {
                value.clone()
            };
            new = kubefledged_chart::merged(&new, &at(path, &translated));
            if entry["image"] == true {
                let registry = path.replace("repository", "registry");
                new = kubefledged_chart::merged(&new, &at(&registry, &json!("")));
            }
        }
        assert_eq!(rendered, render_text(&new, &[]).unwrap(), "{old}");
        assert_ne!(rendered, render_text(&json!({}), &[]).unwrap(), "{old}");
        let said = notes(&at(old, &value)).unwrap();
        let new = entry["new"][0].as_str().unwrap();
        assert!(
            said.contains(&format!("{old} is called {new} now")),
            "{said}"
        );
    }
}

#[test]
fn an_old_value_without_object_is_accepted_and_named() {
    for entry in table().iter().filter(|entry| entry["why"].is_string()) {
        let old = entry["old"].as_str().unwrap();
        let values = at(old, &set(entry));
        let plain = render_text(&json!({}), &[]).unwrap();
        assert_eq!(render_text(&values, &[]).unwrap(), plain, "{old}");
        let said = notes(&values).unwrap();
        assert!(
            said.contains(&format!("NOTE: {old} has no effect: ")),
            "{old}: {said}"
        );
    }
}

#[test]
fn what_the_old_and_the_new_name_say_differently_is_refused() {
    for (values, part) in [
        (
            json!({"args": {"controllerImageCacheRefreshFrequency": "1h"}, "controller": {"imageCacheRefreshFrequency": "2h"}}),
            "controller.imageCacheRefreshFrequency, which it is called now, is \"2h\": remove args.controllerImageCacheRefreshFrequency",
        ),
        (
            json!({"resources": {"limits": {"memory": "1Gi"}}, "webhook": {"resources": {"limits": {"memory": "2Gi"}}}}),
            "remove resources",
        ),
        (
            json!({"webhookServer": {"enable": true}, "webhook": {"enabled": false}}),
            "remove webhookServer.enable",
        ),
    ] {
        let said = render_text(&values, &[]).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    let both =
        json!({"args": {"controllerLogLevel": "ERROR"}, "controller": {"logLevel": "error"}});
    render_text(&both, &[]).unwrap();
}

#[test]
fn a_whole_file_of_kube_fledged_s_defaults_says_little_and_runs_none_of_its_images() {
    let values = yaml("crates/chart/testdata/kube-fledged-values.yaml").unwrap();
    let rendered = render(&values).unwrap();
    for one in &rendered {
        let containers = &one["spec"]["template"]["spec"]["containers"];
        for container in containers.as_array().into_iter().flatten() {
            let image = container["image"].as_str().unwrap();
            assert!(image.starts_with("ghcr.io/kubefledged/"), "{image}");
            let always = container["name"] != "puller";
            assert_eq!(container["imagePullPolicy"] == "Always", always, "{image}");
        }
    }
    let said = notes(&values).unwrap();
    let notes: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("NOTE: "))
        .collect();
    assert_eq!(
        notes.len(),
        7,
        "Pod Security, one replica of each, a deadline that binds, three images: {said}"
    );
    assert_eq!(
        said.matches("kube-fledged's own image does not run here")
            .count(),
        3,
        "{said}"
    );
}

#[test]
fn every_default_of_kube_fledged_is_in_the_table() {
    let values = yaml("crates/chart/testdata/kube-fledged-values.yaml").unwrap();
    let same_name = [
        "controller.",
        "imagePullSecrets",
        "nameOverride",
        "fullnameOverride",
    ];
    let table = table();
    for path in kubefledged_chart::leaves(&values).keys() {
        let known = table.iter().any(|entry| entry["old"] == *path);
        let same = same_name.iter().any(|name| path.starts_with(name));
        assert!(known || same, "{path}");
        let ours = yaml("charts/kubefledged/values.yaml").unwrap();
        assert!(!same || !get(&ours, path).is_null(), "{path}");
    }
}
