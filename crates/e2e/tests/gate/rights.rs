//! What the controller may do to Nodes while the gate is on.

use kubefledged_e2e::{Cluster, fleet::OURS};
use serde_json::{Value, json};

use crate::setup::{CONDITION, Gated, KEY};

/// Patches node n1 as the controller, without effect. The error that came; `None`: it is allowed.
fn patch(cluster: &Cluster, kind: &str, subresource: &str, patch: &Value) -> Option<String> {
    let (account, text) = (
        format!("system:serviceaccount:{OURS}:kubefledged-controller"),
        patch.to_string(),
    );
    let mut args = vec![
        "kubectl",
        "patch",
        "node",
        "n1",
        "--dry-run=server",
        "--type",
        kind,
        "-p",
        &text,
        "--as",
        &account,
    ];
    if !subresource.is_empty() {
        args.extend(["--subresource", subresource]);
    }
    cluster.run(&args, "").err().map(|error| error.to_string())
}

/// `kubectl patch` reads the Node first, which the controller may not. It may until this is dropped.
struct Reading<'a>(&'a Cluster);

impl<'a> Reading<'a> {
    fn begin(cluster: &'a Cluster) -> Self {
        let reading = Self(cluster);
        let role = "create clusterrole e2e-reads-nodes --verb=get --resource=nodes,nodes/status";
        cluster.kubectl(role).unwrap();
        let bind = format!(
            "create clusterrolebinding e2e-reads-nodes --clusterrole=e2e-reads-nodes \
             --serviceaccount={OURS}:kubefledged-controller"
        );
        cluster.kubectl(&bind).unwrap();
        reading
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let delete = "delete clusterrole,clusterrolebinding e2e-reads-nodes";
        let _ = self.0.kubectl(delete);
    }
}

fn condition(name: &str) -> Value {
    json!({"status": {"conditions": [{"type": name, "status": "True", "reason": "Test"}]}})
}

/// Kind of the patch, subresource, patch, and what the refusal says.
fn forbidden() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let spec = "changes nothing of the spec";
    let metadata = "changes no metadata";
    let status = "changes nothing of the status";
    let taints = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    vec![
        (
            "json",
            "",
            json!([{"op": "remove", "path": "/spec/taints"}]),
            spec,
        ),
        ("merge", "", json!({"spec": {"unschedulable": true}}), spec),
        ("strategic", "", taints, spec),
        (
            "merge",
            "",
            json!({"metadata": {"labels": {"a": "b"}}}),
            metadata,
        ),
        (
            "merge",
            "status",
            json!({"metadata": {"annotations": {"a": "b"}}}),
            metadata,
        ),
        (
            "merge",
            "status",
            json!({"status": {"capacity": {"cpu": "1000"}}}),
            status,
        ),
        ("strategic", "status", condition("Ready"), status),
        (
            "strategic",
            "status",
            condition("example.com/Other"),
            status,
        ),
    ]
}

#[test]
fn the_controller_may_change_nothing_of_a_node_but_its_taint_and_its_condition() {
    let gated = Gated::both("gate");
    let cluster = &gated.cluster;
    for taint in [
        "e2e.test/other=:PreferNoSchedule",
        &format!("{KEY}=:PreferNoSchedule"),
    ] {
        cluster
            .kubectl(&format!("taint node n1 --overwrite {taint}"))
            .unwrap();
    }
    // Nothing gates here: the controller removes its taint, and the policy lets it.
    let limit = std::time::Duration::from_secs(20);
    let gone = cluster.until(limit, "the taint is gone", || {
        let taints = gated.node("1")["spec"]["taints"].to_string();
        Ok((!taints.contains(KEY)).then_some(taints))
    });
    let _reading = Reading::begin(cluster);
    let refusals = forbidden()
        .into_iter()
        .map(|(kind, subresource, change, words)| {
            (patch(cluster, kind, subresource, &change), words)
        });
    let refusals: Vec<_> = refusals.collect();
    let allowed = patch(cluster, "strategic", "status", &condition(CONDITION));
    let said = gated.node("1")["status"]["conditions"].to_string();
    cluster.kubectl("taint node n1 e2e.test/other-").unwrap();
    assert!(gone.unwrap().contains("e2e.test/other"));
    assert!(said.contains("NothingToCache"), "{said}");
    assert_eq!(allowed, None);
    for (error, words) in refusals {
        let fits = error.as_ref().is_some_and(|error| error.contains(words));
        assert!(fits, "{words}: {error:?}");
    }
}

#[test]
fn each_half_of_the_gate_has_one_right_and_without_the_gate_there_is_none() {
    let rights = |cluster: &Cluster| {
        let account = format!("system:serviceaccount:{OURS}:kubefledged-controller");
        ["", "--subresource=status"].map(|subresource| {
            let ask = format!("auth can-i patch nodes {subresource} --as={account}");
            cluster.kubectl(&ask).is_ok()
        })
    };
    let gated = Gated::on("gate", &["taint.enabled=true", "condition.enabled=false"]);
    let cluster = gated.cluster.clone();
    assert_eq!(rights(&cluster), [true, false]);
    drop(gated);
    assert_eq!(rights(&cluster), [false, false]);
}
