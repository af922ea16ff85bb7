//! What the values about workloads change, and that nothing changes without them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::render;
use serde_json::{Value, json};

fn one<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    manifests.iter().find(found).unwrap()
}

fn rules(manifests: &[Value]) -> Vec<Value> {
    let role = one(manifests, "ClusterRole", "kubefledged-controller");
    role["rules"].as_array().unwrap().clone()
}

/// Arguments about workloads.
fn flags(manifests: &[Value], deployment: &str) -> Vec<String> {
    let deployment = one(manifests, "Deployment", deployment);
    let args = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    let args = args.as_array().unwrap().iter();
    let args = args.map(|arg| arg.as_str().unwrap().to_owned());
    args.filter(|arg| arg.starts_with("--workload")).collect()
}

#[test]
fn the_rights_to_read_workloads_and_no_others_come_with_the_value() {
    let extra = json!({"apiGroups": ["argoproj.io"], "resources": ["rollouts"], "verbs": ["list", "watch"]});
    let off = render(&json!({"workloads": {"extraRules": [extra]}})).unwrap();
    let on = render(&json!({"workloads": {"enabled": true, "extraRules": [extra]}})).unwrap();
    let before = rules(&off);
    assert!(!before.contains(&extra));
    let more: Vec<Value> = rules(&on)
        .into_iter()
        .filter(|rule| !before.contains(rule))
        .collect();
    assert_eq!(more.len(), 4);
    assert!(more.contains(&extra));
    for rule in more {
        assert_eq!(rule["verbs"], json!(["list", "watch"]), "{rule}");
    }
}

#[test]
fn controller_and_webhook_hear_the_same() {
    let names = ["kubefledged-controller", "kubefledged-webhook-server"];
    let off = render(&json!({"workloads": {"clusterScopeNamespaces": ["a"]}})).unwrap();
    let on = render(&json!({"workloads": {"enabled": true, "clusterScopeNamespaces": ["a", "b"]}}))
        .unwrap();
    for name in names {
        assert!(flags(&off, name).is_empty());
        let expected = ["--workloads", "--workload-cluster-scope-namespaces=a,b"];
        assert_eq!(flags(&on, name), expected);
    }
}
