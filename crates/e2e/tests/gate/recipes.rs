//! The recipes of docs/node-gate.md, as far as this cluster can apply them: Nodes are real, and autoscalers are only the
//! shape of their objects.

use kubefledged_chart::{file, parse};
use kubefledged_e2e::{Cluster, document::block};
use serde_json::Value;

use crate::setup::KEY;

/// Objects of other projects, as far as the recipes use their fields: `NodeReadinessRule` and `NodePool`.
const SHAPES: &str = "crates/e2e/testdata/gate-shapes.yaml";

fn recipe(name: &str) -> String {
    block("docs/node-gate.md", &format!("yaml recipe={name}")).unwrap()
}

#[test]
fn the_api_server_takes_the_objects_of_the_recipes_and_their_keys_are_ours() {
    let cluster = Cluster::default();
    let shapes = cluster.shapes(SHAPES);
    shapes.apply().unwrap();
    for name in ["node-readiness-controller", "karpenter"] {
        cluster.takes(&recipe(name)).unwrap();
    }
    // The rule that keys begin with readiness.k8s.io/ is the other project's.
    let wrong = recipe("node-readiness-controller").replace("readiness.k8s.io/", "kubefledged.io/");
    let args = ["kubectl", "create", "--dry-run=server", "-f", "-"];
    let refused = cluster.run(&args, &wrong).unwrap_err().to_string();
    assert!(refused.contains("readiness.k8s.io/"), "{refused}");
    let rule: Value = parse(&recipe("node-readiness-controller"))
        .unwrap()
        .remove(0);
    assert_eq!(
        rule["spec"]["conditions"][0]["type"],
        crate::setup::CONDITION
    );
    let pool: Value = parse(&recipe("karpenter")).unwrap().remove(0);
    assert_eq!(
        pool["spec"]["template"]["spec"]["startupTaints"][0]["key"],
        KEY
    );
}

#[test]
fn the_kubelet_s_recipe_is_what_the_nodes_of_these_tests_register_with() {
    let config: Value = parse(&recipe("kubelet")).unwrap().remove(0);
    let taint = &config["registerWithTaints"][0];
    assert_eq!(
        (&taint["key"], &taint["effect"]),
        (&KEY.into(), &"NoSchedule".into())
    );
    let script = std::fs::read_to_string(file("hack/lib/node.sh")).unwrap();
    assert!(script.contains("registerWithTaints: [{key:"));
}
