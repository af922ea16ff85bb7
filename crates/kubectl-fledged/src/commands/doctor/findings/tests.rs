use kubefledged_proto::debug::Registry;
use serde_json::json;

use super::*;
use k8s_openapi::api::core::v1::Pod;

use crate::{access::Installation, commands::doctor::Kubelets};

fn well() -> Facts {
    let labels = json!({"app.kubernetes.io/version": VERSION});
    let deployment = json!({
        "metadata": {"name": "kubefledged-controller", "labels": labels},
        "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": {"readyReplicas": 2},
    });
    let set = json!({
        "metadata": {"name": "kubefledged-puller", "labels": labels}, "spec": {"selector": {}, "template": {}},
        "status": {"currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2},
    });
    let version = json!({"name": "v1alpha2", "served": true, "storage": true});
    let names = json!({"kind": "ImageCache", "plural": "imagecaches"});
    let definition = json!({
        "metadata": {}, "spec": {"group": "kubefledged.io", "names": names, "scope": "Namespaced", "versions": [version]},
    });
    let node = NodeSummary {
        node: "n1".to_owned(),
        eligible: true,
        puller: true,
        ..NodeSummary::default()
    };
    Facts {
        installation: Installation {
            namespace: "kube-fledged".to_owned(),
            leader: Some("kubefledged-controller-1".to_owned()),
        },
        definition: Ok(serde_json::from_value(definition).expect("a definition")),
        deployments: Ok(vec![
            serde_json::from_value(deployment).expect("a deployment"),
        ]),
        daemon_sets: Ok(vec![serde_json::from_value(set).expect("a daemon set")]),
        certificates: Err(Failure::NoAccess("not checked: forbidden".to_owned())),
        caches: Ok(Vec::new()),
        nodes: Ok(vec![node]),
        registries: Ok(Vec::new()),
        kubelets: Err(Failure::NoAccess("not checked: forbidden".to_owned())),
    }
}

fn of<'a>(findings: &'a Findings, subject: &str) -> &'a Finding {
    let found = findings.0.iter().find(|finding| finding.subject == subject);
    found.expect("a finding")
}

#[test]
fn a_healthy_installation_is_well_also_if_something_may_not_be_read() {
    let findings = all(&well(), Timestamp(0));
    assert!(findings.is_well(), "{findings}");
    assert_eq!(of(&findings, "Certificates").level, Level::Unchecked);
    assert_eq!(of(&findings, "Versions").level, Level::Ok);
}

#[test]
fn a_missing_puller_is_a_failure_with_the_command_that_explains_it() {
    let mut facts = well();
    facts.nodes = Ok(vec![NodeSummary {
        node: "n2".to_owned(),
        eligible: true,
        puller_silent: Some(prost_types::Duration::default()),
        ..NodeSummary::default()
    }]);
    let findings = all(&facts, Timestamp(0));
    assert!(!findings.is_well());
    assert_eq!(
        of(&findings, "Nodes").command.as_deref(),
        Some("kubectl fledged why n2")
    );
}

#[test]
fn a_throttled_registry_is_a_warning() {
    let mut facts = well();
    facts.registries = Ok(vec![Registry {
        host: "hub".to_owned(),
        budget: 32,
        waiting_nodes: 7,
        last_rate_limited: Some(prost_types::Duration::default()),
        ..Registry::default()
    }]);
    let findings = all(&facts, Timestamp(0));
    let text = &of(&findings, "Registries").text;
    assert_eq!(
        text,
        "hub answered 429 0s ago (32 pulls may run, 7 nodes wait)"
    );
    assert!(findings.is_well());
}

#[test]
fn an_image_cache_that_matches_nothing_is_named() {
    let mut facts = well();
    let cache = json!({"metadata": {"name": "web", "namespace": "shop"},
                       "status": {"observedGeneration": 1, "listsWithoutNodes": [0]}});
    facts.caches = Ok(vec![serde_json::from_value(cache).expect("a cache")]);
    let findings = all(&facts, Timestamp(0));
    assert_eq!(
        of(&findings, "ImageCaches").text,
        "shop/web match no node with some list"
    );
}

fn pod(name: &str, node: &str, policy: &str) -> Pod {
    let container = json!({"name": "one", "image": "shop/web:1", "imagePullPolicy": policy});
    let pod = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"nodeName": node, "containers": [container]}});
    serde_json::from_value(pod).expect("a pod")
}

#[test]
fn kubelets_that_verify_are_named_with_the_pods_that_never_pull() {
    let policy = |node: &str, policy: Option<&str>| (node.to_owned(), policy.map(str::to_owned));
    let mut facts = well();
    facts.kubelets = Ok(Kubelets {
        policies: vec![
            policy("n1", Some("AlwaysVerify")),
            policy("n2", Some("NeverVerifyPreloadedImages")),
            policy("n3", None),
        ],
        pods: vec![pod("a", "n1", "Never"), pod("b", "n1", "IfNotPresent")],
    });
    let findings = all(&facts, Timestamp(0));
    let text = "1 of 3 kubelets ask for a pull secret and for the registry also when an image is cached: n1. \
        Pods with imagePullPolicy Never fail there, unless the kubelet has verified their secret before: shop/a";
    assert_eq!(of(&findings, "Kubelets").text, text);
    assert!(findings.is_well());
    facts.kubelets = Ok(Kubelets {
        policies: vec![policy("n2", Some("NeverVerifyPreloadedImages"))],
        pods: Vec::new(),
    });
    assert_eq!(
        of(&all(&facts, Timestamp(0)), "Kubelets").text,
        "of 1 kubelet, none asks for a pull secret when an image is cached"
    );
}
