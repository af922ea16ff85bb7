//! `helm upgrade --reuse-values` renders a chart with the values of the version before, which lack
//! those that are new. A value that is null does not exist either.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::{at, get, merged, render_text, yaml};
use serde_json::{Value, json};

/// Whose absence has a meaning: null removes the default.
const REMOVABLE: [&str; 7] = [
    "resources",
    "podSecurityContext",
    "securityContext",
    "nodeSelector",
    "updateStrategy",
    "labels",
    "priorityClassName",
];

/// Paths of all blocks and values, those inside of [`REMOVABLE`] left out.
fn paths(values: &Value) -> Vec<String> {
    fn walk(path: &str, values: &Value, found: &mut Vec<String>) {
        for (name, inner) in values.as_object().into_iter().flatten() {
            let path = format!("{path}{name}");
            if !REMOVABLE.contains(&name.as_str()) {
                walk(&format!("{path}."), inner, found);
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk("", values, &mut found);
    found
}

fn rendered(values: &Value) -> String {
    render_text(values, &[]).unwrap()
}

#[test]
fn a_block_or_value_that_does_not_exist_has_its_default() {
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    let whole = rendered(&json!({}));
    let paths = paths(&values);
    assert!(paths.len() > 100, "{paths:?}");
    for path in [
        "networkPolicy",
        "puller.credentialProviders",
        "puller.noProgressLimit",
    ] {
        assert!(paths.iter().any(|known| known == path), "{path}");
    }
    // All of one depth at a time: whole blocks, then what is inside of them. A list that does not exist is empty.
    let lists = |path: &String| get(&values, path).is_array();
    for depth in 0..=2 {
        let missing = paths
            .iter()
            .filter(|path| path.matches('.').count() == depth && !lists(path));
        let values = missing.fold(json!({}), |all, path| merged(&all, &at(path, &Value::Null)));
        assert_eq!(rendered(&values), whole, "depth {depth}");
    }
}

#[test]
fn null_removes_what_kubernetes_or_nobody_needs() {
    for (path, trace) in [
        ("puller.priorityClassName", "system-node-critical"),
        ("puller.nodeSelector", "nodeSelector"),
        ("puller.resources.limits", "limits:"),
        ("puller.tolerations", "tolerations:"),
    ] {
        let pullers = |values: &Value| {
            let shown = "templates/puller/daemonset.yaml";
            render_text(values, &["--show-only", shown]).unwrap()
        };
        assert!(pullers(&json!({})).contains(trace), "{path}");
        let text = pullers(&at(path, &Value::Null));
        assert!(!text.contains(trace), "{path}: {text}");
    }
}
