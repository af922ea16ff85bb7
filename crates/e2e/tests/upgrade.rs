//! Upgrading from a chart that lacks blocks of values which this one has. `make test-install` runs these
//! on a cluster of their own: they begin and end with nothing installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_e2e::{Cluster, install::Variant};

/// A chart from before there were network policies and flow schemas.
fn older() -> Variant {
    let older = Variant::new("before-blocks", |_| {}).unwrap();
    let older = older
        .without("networkPolicy", "networkpolicy.yaml")
        .unwrap();
    older.without("flowControl", "flowschema.yaml").unwrap()
}

/// Installs the older chart with a setting, upgrades to this one, and looks at both.
fn upgraded(how: &str) {
    let cluster = Cluster::default();
    cluster.bare().unwrap();
    let older = older();
    let policies = "kubectl get networkpolicies -n kube-fledged -o name";
    let interval = "kubectl get deployment kubefledged-controller -n kube-fledged -o jsonpath='{.spec.template.spec.containers[0].args}' | grep -c check-interval=7m";
    cluster
        .shell(&format!(
            "kubectl apply -f deploy/kubefledged-namespace.yaml
             helm install kubefledged {} -n kube-fledged --set controller.checkInterval=7m --wait --timeout 120s",
            older.chart()
        ))
        .unwrap();
    assert_eq!(cluster.shell(policies).unwrap(), "");

    let upgrade = format!(
        "helm upgrade kubefledged charts/kubefledged -n kube-fledged {how} --wait --timeout 120s"
    );
    cluster.shell(&upgrade).unwrap();
    let made = cluster.shell(policies).unwrap();
    assert!(made.contains("kubefledged-puller"), "{made}");
    assert_eq!(cluster.shell(interval).unwrap().trim(), "1");
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn an_upgrade_that_resets_and_then_reuses_values_gets_blocks_that_are_new() {
    upgraded("--reset-then-reuse-values");
}

#[test]
#[ignore = "make test-install"]
fn an_upgrade_that_reuses_values_gets_blocks_that_are_new() {
    upgraded("--reuse-values");
}
