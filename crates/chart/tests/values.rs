//! values.yaml and values.schema.json. A value that is added is tested here without another line,
//! unless its neighbours or its schema ask for one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;

use kubefledged_chart::{at, get, leaves, merged, notes, notes_with, render_text, yaml};
use serde_json::{Value, json};

/// Values that do nothing while another one is not set: how their names begin, and what they need.
fn needed(path: &str) -> Value {
    let on = json!(true);
    let all = [
        ("rbac.secretNames", "rbac.secretAccess", json!("namespaces")),
        (
            "certificates.cert",
            "certificates.mode",
            json!("certManager"),
        ),
        (
            "puller.credentialProviders.",
            "puller.credentialProviders.preset",
            json!("aks"),
        ),
        ("metrics.pod", "metrics.podMonitor.enabled", on.clone()),
        ("metrics.serv", "metrics.serviceMonitor.enabled", on.clone()),
        ("metrics.prom", "metrics.prometheusRule.enabled", on.clone()),
        ("metrics.dash", "metrics.dashboard.enabled", on.clone()),
        ("networkPolicy.", "networkPolicy.enabled", on.clone()),
        ("flowControl.", "flowControl.enabled", on.clone()),
        ("workloads.", "workloads.enabled", on.clone()),
        ("nodeGate.", "nodeGate.taint.enabled", on),
    ];
    let found = all
        .into_iter()
        .find(|(prefix, need, _)| path.starts_with(prefix) && path != *need);
    found.map_or(json!({}), |(_, need, value)| at(need, &value))
}

/// Another value of the same kind, which the schema takes.
fn other(path: &str, now: &Value) -> Value {
    let field = path.rsplit('.').next().unwrap();
    match (field, now) {
        ("pullPolicy" | "imagePullPolicy", _) => json!("Always"),
        ("failurePolicy", _) => json!("Ignore"),
        ("mountPropagation", _) => json!("None"),
        ("secretAccess", _) => json!("namespaces"),
        ("mode", _) => json!("certManager"),
        ("timeout", _) => json!("7m"),
        ("issuerRef", _) => json!({"name": "other"}),
        ("maxRegistryPullsByHost", _) => json!({"docker.io": 10}),
        ("logFormat", _) => json!("text"),
        (
            "imagePullDeadlineDuration"
            | "imageCacheRefreshFrequency"
            | "checkInterval"
            | "pullerGrace"
            | "purgeDeadline"
            | "noProgressLimit"
            | "wait"
            | "duration",
            _,
        ) => {
            json!("7m")
        }
        ("otlpEndpoint", _) => json!("http://other:4317"),
        ("digest", _) => json!(format!("sha256:{}", "1".repeat(64))),
        ("criSocketPath", _) => json!("/run/other.sock"),
        ("preset", _) => json!("eks"),
        ("imageFsPath" | "stateDirectory" | "config" | "binDir" | "caBundle", _) => {
            json!("/other/path")
        }
        ("files", _) => json!(["/other/file"]),
        ("listenPort", _) => json!(10999),
        ("interval" | "scrapeTimeout", _) => json!("7s"),
        ("imagePullSecrets", _) => json!([{"name": "other"}]),
        ("secretNamespaces" | "protectedImages" | "extraArgs" | "clusterScopeNamespaces", _) => {
            json!(["other"])
        }
        ("minImageSize", _) => json!("7M"),
        ("extraObjects", _) => json!(["kind: Other"]),
        (_, Value::Bool(now)) => json!(!now),
        (_, Value::Number(now)) => json!(now.as_i64().unwrap() + 1),
        (_, Value::String(now)) => json!(format!("{now}x")),
        (_, Value::Array(list)) if list.iter().any(Value::is_string) => json!(["other"]),
        (_, Value::Array(_)) => json!([{"name": "other"}]),
        (_, Value::Object(_)) => json!({"other": "x"}),
        (_, Value::Null) => json!("other"),
    }
}

#[test]
fn every_value_changes_what_is_rendered() {
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    let mut idle = Vec::new();
    for (path, now) in leaves(&values) {
        // It asks the cluster: see the end-to-end tests.
        if path == "preflight.enabled" {
            continue;
        }
        let before = needed(&path);
        let after = merged(&before, &at(&path, &other(&path, &now)));
        let text = |values| render_text(values, &[]).unwrap();
        if text(&before) == text(&after) {
            idle.push(path);
        }
    }
    assert!(idle.is_empty(), "without effect: {idle:?}");
}

/// A schema's properties, through one `$ref`.
fn properties<'a>(
    schema: &'a Value,
    root: &'a Value,
) -> Option<&'a serde_json::Map<String, Value>> {
    let schema = match schema["$ref"].as_str() {
        Some(name) => &root["definitions"][name.trim_start_matches("#/definitions/")],
        None => schema,
    };
    schema["properties"].as_object()
}

#[test]
fn the_schema_and_the_values_have_the_same_names() {
    fn same(path: &str, schema: &Value, values: &Value, root: &Value) {
        let Some(properties) = properties(schema, root) else {
            return;
        };
        let values = values.as_object().unwrap();
        // An empty map is the user's to fill.
        if values.is_empty() {
            return;
        }
        let ours = properties.iter().filter(|(_, schema)| {
            !schema["description"]
                .as_str()
                .unwrap_or_default()
                .starts_with("kube-fledged's")
        });
        let mut names: Vec<_> = ours.map(|(name, _)| name).collect();
        names.sort();
        let mut wanted: Vec<_> = values.keys().collect();
        wanted.sort();
        assert_eq!(names, wanted, "below {path:?}");
        for (name, inner) in values {
            same(&format!("{path}.{name}"), &properties[name], inner, root);
        }
    }
    let schema = yaml("charts/kubefledged/values.schema.json").unwrap();
    same(
        "",
        &schema,
        &yaml("charts/kubefledged/values.yaml").unwrap(),
        &schema,
    );
}

#[test]
fn a_value_is_explained_by_the_lines_above_it() {
    let text = std::fs::read_to_string(kubefledged_chart::file("charts/kubefledged/values.yaml"));
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    // Names from the root to the current line, with their depths; whether one of them is explained.
    let mut path: Vec<(usize, &str, bool)> = Vec::new();
    let mut comment = false;
    for line in text.unwrap().lines() {
        let content = line.trim_start();
        if content.starts_with('#') {
            comment |= content.starts_with("# -- ");
            continue;
        }
        let key = content.split_once(':').map(|(key, _)| key);
        if let Some(key) = key.filter(|_| !content.starts_with('-')) {
            let depth = line.len() - content.len();
            path.retain(|(other, _, _)| *other < depth);
            let explained = comment || path.last().is_some_and(|(_, _, above)| *above);
            path.push((depth, key, explained));
            let full: Vec<_> = path.iter().map(|(_, key, _)| *key).collect();
            let full = full.join(".");
            // A group of explained values needs no words of its own.
            assert!(explained || get(&values, &full).is_object(), "{full}");
        }
        comment = false;
    }
}

/// Every object that a schema describes, by its path.
fn closed(path: &str, schema: &Value, open: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties")
                && map.get("additionalProperties") != Some(&json!(false))
            {
                open.push(path.to_owned());
            }
            for (key, inner) in map {
                closed(&format!("{path}/{key}"), inner, open);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| closed(path, inner, open)),
        _ => {}
    }
}

#[test]
fn no_map_takes_a_name_that_it_does_not_know() {
    let schema = yaml("charts/kubefledged/values.schema.json").unwrap();
    let mut open = Vec::new();
    closed("", &schema, &mut open);
    // A parent chart may share values there.
    assert_eq!(open, ["/properties/global"]);
}

/// A value of another type than the one that stands there.
fn misfit(now: &Value) -> Value {
    match now {
        Value::Bool(_) => json!("yes"),
        Value::String(_) | Value::Array(_) => json!({"a": "b"}),
        Value::Number(_) | Value::Object(_) | Value::Null => json!([7]),
    }
}

/// Shapes of the Kubernetes API, which judges what is inside itself.
const SHAPES: [&str; 4] = [
    ".resources",
    ".podSecurityContext",
    ".securityContext",
    ".updateStrategy",
];

#[test]
fn every_value_of_a_wrong_type_is_refused_with_its_name() {
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    let whole = |path: String| {
        let rest = SHAPES.iter().find_map(|shape| path.split_once(shape));
        let inside = rest.map_or(0, |(_, rest)| rest.len());
        path[..path.len() - inside].to_owned()
    };
    let paths: BTreeSet<String> = leaves(&values).into_keys().map(whole).collect();
    assert!(paths.contains("puller.resources"));
    let wrong = paths.iter().fold(json!({}), |all, path| {
        merged(&all, &at(path, &misfit(get(&values, path))))
    });
    let said = render_text(&wrong, &[]).unwrap_err().to_string();
    let let_in: Vec<_> = paths
        .iter()
        .filter(|path| !said.contains(&format!("'/{}'", path.replace('.', "/"))))
        .collect();
    assert!(let_in.is_empty(), "{let_in:?}: {said}");
}

#[test]
fn a_wrong_value_is_refused_with_its_name() {
    for (values, part) in [
        (json!({"controler": {}}), "'controler' not allowed"),
        (
            json!({"controller": {"replica": 2}}),
            "'replica' not allowed",
        ),
        (
            json!({"puller": {"image": {"name": "x"}}}),
            "'name' not allowed",
        ),
        (
            json!({"webhook": {"failurePolicy": "fail"}}),
            "/webhook/failurePolicy",
        ),
        (
            json!({"controller": {"checkInterval": "5"}}),
            "/controller/checkInterval",
        ),
        (
            json!({"controller": {"maxRegistryPullsByHost": {"docker.io": 0}}}),
            "/controller/maxRegistryPullsByHost/docker.io",
        ),
        (
            json!({"controller": {"maxRegistryPullsByHost": {"docker.io,ghcr.io": 5}}}),
            "/controller/maxRegistryPullsByHost",
        ),
        (
            json!({"puller": {"maxParallelPulls": 0}}),
            "/puller/maxParallelPulls",
        ),
        (
            json!({"puller": {"image": {"digest": "latest"}}}),
            "/puller/image/digest",
        ),
        (
            json!({"puller": {"runtimeDirectory": "run"}}),
            "/puller/runtimeDirectory",
        ),
        (json!({"commonLabels": {"a": 1}}), "/commonLabels/a"),
        (
            json!({"rbac": {"secretNamespaces": ["A"]}}),
            "/rbac/secretNamespaces/0",
        ),
        (
            json!({"metrics": {"podMonitor": {"enabled": "yes"}}}),
            "/metrics/podMonitor/enabled",
        ),
        (
            json!({"args": {"controllerImagePullPolicies": "Always"}}),
            "'controllerImagePullPolicies' not allowed",
        ),
    ] {
        let said = render_text(&values, &[]).unwrap_err().to_string();
        assert!(said.contains(part), "{values}: {said}");
    }
}

#[test]
fn values_that_contradict_each_other_are_refused_with_the_remedy() {
    for (values, part) in [
        (
            json!({"puller": {"criSocketPath": "/opt/runtime.sock"}}),
            "set puller.runtimeDirectory to the socket's directory",
        ),
        (
            json!({"metrics": {"podMonitor": {"enabled": true}, "serviceMonitor": {"enabled": true}}}),
            "choose one",
        ),
    ] {
        let said = render_text(&values, &[]).unwrap_err().to_string();
        assert!(said.contains(part), "{values}: {said}");
    }
}

#[test]
fn an_older_kubernetes_is_refused() {
    let said = render_text(&json!({}), &["--kube-version", "1.29.3"])
        .unwrap_err()
        .to_string();
    assert!(said.contains(">=1.30.0-0"), "{said}");
}

#[test]
fn the_notes_say_what_a_platform_needs_and_nothing_of_the_others() {
    let plain = notes(&json!({})).unwrap();
    assert!(plain.contains("pod-security.kubernetes.io/enforce=privileged"));
    assert!(plain.contains("seLinuxOptions.type: spc_t"));
    for (platform, served) in [
        ("Autopilot", "networking.gke.io/v1"),
        ("Fargate", "vpcresources.k8s.aws/v1beta1"),
        ("nonroot-v2", "security.openshift.io/v1"),
    ] {
        assert!(!plain.contains(platform), "{plain}");
        let said = notes_with(&json!({}), &["--api-versions", served]).unwrap();
        assert!(said.contains(platform), "{said}");
    }
}
