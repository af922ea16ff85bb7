//! What docs/gitops.md says of a deletion without Helm's hooks. `make test-install` runs these on a
//! cluster of their own: they begin and end with nothing installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use kubefledged_e2e::{Cluster, demo, install::shell_blocks};

/// Longer than a leader takes to look at all nodes once.
const TAKEN_BACK: Duration = Duration::from_secs(60);

fn bare() -> Cluster {
    let cluster = Cluster::default();
    cluster.bare().unwrap();
    cluster
}

/// The object is being deleted and stays, and so do its pins.
fn assert_stuck(cluster: &Cluster) {
    cluster
        .shell("kubectl delete ic pinned -n team-a --wait=false; sleep 5")
        .unwrap();
    assert_eq!(cluster.finalizers().unwrap(), r#"["kubefledged.io/purge"]"#);
    let pins = cluster.pins(&demo("web")).unwrap();
    assert!(pins.iter().all(|(_, pinned)| *pinned), "{pins:?}");
}

fn assert_no_pins(cluster: &Cluster) {
    let none = cluster.until(TAKEN_BACK, "no pins", || {
        let pins = cluster.pins(&demo("web"))?;
        Ok(pins.iter().all(|(_, pinned)| !pinned).then_some(()))
    });
    none.unwrap();
}

#[test]
#[ignore = "make test-install"]
fn after_its_namespace_was_deleted_the_next_installation_takes_pins_and_finalizers_back() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.pinned_cache().unwrap();
    cluster
        .shell("kubectl delete namespace kube-fledged --timeout=120s")
        .unwrap();
    assert_stuck(&cluster);

    cluster.install_chart("").unwrap();
    cluster
        .shell("kubectl wait --for=delete ic/pinned -n team-a --timeout=60s")
        .unwrap();
    assert_no_pins(&cluster);
    cluster.bare().unwrap();
}

/// As Argo CD does it: what the chart renders is applied without a release, and deleted without hooks.
#[test]
#[ignore = "make test-install"]
fn after_a_deletion_without_hooks_one_command_of_the_guide_leaves_no_rest() {
    let cluster = bare();
    cluster
        .shell(
            "kubectl apply -f deploy/kubefledged-namespace.yaml
             helm template kubefledged charts/kubefledged -n kube-fledged --no-hooks --kube-version 1.30.0 >/tmp/kubefledged-rendered.yaml
             kubectl apply --server-side -f /tmp/kubefledged-rendered.yaml
             kubectl rollout status -n kube-fledged deployment/kubefledged-controller --timeout=60s
             kubectl rollout status -n kube-fledged deployment/kubefledged-webhook-server --timeout=60s
             kubectl rollout status -n kube-fledged daemonset/kubefledged-puller --timeout=60s
             kubectl wait --for=jsonpath='{.webhooks[0].clientConfig.caBundle}' --timeout=60s \\
               validatingwebhookconfiguration/kubefledged-webhook-server",
        )
        .unwrap();
    cluster.pinned_cache().unwrap();
    cluster
        .shell(
            "kubectl get -f /tmp/kubefledged-rendered.yaml -o name | grep -v customresourcedefinition |
               xargs kubectl delete -n kube-fledged --wait --timeout=60s
             rm /tmp/kubefledged-rendered.yaml",
        )
        .unwrap();
    assert_stuck(&cluster);

    let blocks = shell_blocks("docs/gitops.md").unwrap();
    let command = blocks
        .iter()
        .find(|block| block.contains("--take-ownership"));
    cluster.shell(command.unwrap()).unwrap();
    cluster
        .until_left(&[
            "customresourcedefinition.apiextensions.k8s.io/imagecaches.kubefledged.io",
            "namespace/kube-fledged",
        ])
        .unwrap();
    assert_no_pins(&cluster);
    cluster.bare().unwrap();
}
