//! What the values of the node gate change, and that nothing changes without them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::{matrix, render};
use serde_json::{Value, json};

const KEY: &str = "kubefledged.io/images-not-cached";

fn gate(condition: bool, taint: bool) -> Value {
    json!({"nodeGate": {"condition": {"enabled": condition}, "taint": {"enabled": taint}}})
}

fn one<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
    manifests.iter().find(found).unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Rights on Nodes, as `resource: verbs`.
fn node_rights(manifests: &[Value]) -> Vec<String> {
    let role = one(manifests, "ClusterRole", "kubefledged-controller");
    let nodes =
        |rule: &&Value| list(&rule["resources"]).any(|r| r.as_str().unwrap().starts_with("nodes"));
    let rules = list(&role["rules"]).filter(nodes);
    rules
        .map(|rule| format!("{}: {}", rule["resources"], rule["verbs"]))
        .collect()
}

#[test]
fn each_half_brings_one_right_and_without_them_the_role_is_as_it_was() {
    let read = r#"["nodes"]: ["list","watch"]"#;
    let taint = r#"["nodes"]: ["patch"]"#;
    let condition = r#"["nodes/status"]: ["patch"]"#;
    for (on, rights) in [
        (gate(false, false), vec![read]),
        (gate(false, true), vec![read, taint]),
        (gate(true, false), vec![read, condition]),
        (gate(true, true), vec![read, taint, condition]),
    ] {
        assert_eq!(node_rights(&render(&on).unwrap()), rights);
    }
    let (off, on) = (
        render(&json!({})).unwrap(),
        render(&gate(true, true)).unwrap(),
    );
    let rules = |manifests: &[Value]| {
        list(&one(manifests, "ClusterRole", "kubefledged-controller")["rules"])
            .cloned()
            .collect::<Vec<_>>()
    };
    let more = rules(&on)
        .into_iter()
        .filter(|rule| !rules(&off).contains(rule))
        .count();
    assert_eq!((more, rules(&on).len()), (2, rules(&off).len() + 2));
}

#[test]
fn every_pod_of_ours_tolerates_the_taint_whatever_else_it_tolerates() {
    for (case, values) in matrix() {
        let values = kubefledged_chart::merged(&values, &gate(false, true));
        for manifest in render(&values).unwrap() {
            let spec = match &manifest["spec"]["template"]["spec"] {
                Value::Null => &manifest["spec"],
                spec => spec,
            };
            if spec["containers"].is_null() {
                continue;
            }
            let ours = json!({"key": KEY, "operator": "Exists"});
            let found = list(&spec["tolerations"]).any(|one| *one == ours);
            assert!(found, "{case}: {}", manifest["metadata"]["name"]);
        }
    }
}

#[test]
fn the_policy_names_the_controller_and_only_what_is_switched_on() {
    for (condition, taint) in [(true, false), (false, true), (true, true)] {
        let manifests = render(&gate(condition, taint)).unwrap();
        let policy = one(
            &manifests,
            "ValidatingAdmissionPolicy",
            "kubefledged-controller-nodes",
        );
        let text = policy.to_string();
        let account = "system:serviceaccount:kube-fledged:kubefledged-controller";
        assert!(text.contains(account), "{text}");
        assert_eq!(text.contains(KEY), taint);
        assert_eq!(text.contains("kubefledged.io/ImagesCached"), condition);
        one(
            &manifests,
            "ValidatingAdmissionPolicyBinding",
            "kubefledged-controller-nodes",
        );
    }
    let none = |values: &Value| {
        let manifests = render(values).unwrap();
        manifests
            .iter()
            .all(|one| one["kind"] != "ValidatingAdmissionPolicy")
    };
    assert!(none(&json!({})));
    let mut without = gate(true, true);
    without["nodeGate"]["admissionPolicy"] = json!({"enabled": false});
    assert!(none(&without));
}

#[test]
fn a_key_that_is_no_key_of_a_taint_is_refused_by_the_schema() {
    for key in ["", "a b", "a/b/c", "-a"] {
        let mut values = gate(false, true);
        values["nodeGate"]["taint"]["key"] = json!(key);
        assert!(render(&values).is_err(), "{key}");
    }
}
