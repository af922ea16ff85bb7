//! Installing, upgrading and removing, as the documents say it. `make test-install` runs these on a
//! cluster of their own: they begin and end with nothing installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use kubefledged_chart::{matrix, render};
use kubefledged_e2e::{Cluster, demo, install::shell_blocks};
use serde_json::json;

const OWN: &str = "installs and removes the chart: make test-install";

fn bare() -> Cluster {
    let cluster = Cluster::default();
    cluster.bare().expect(OWN);
    cluster
        .kubectl("label node n2 tier=backend --overwrite")
        .unwrap();
    cluster
}

#[test]
#[ignore = "make test-install"]
fn every_shell_block_of_the_readme_and_the_installation_guide_runs_as_it_stands() {
    for path in ["README.md", "docs/install.md"] {
        let cluster = bare();
        let blocks = shell_blocks(path).unwrap();
        assert!(blocks.len() >= 3, "{path} has blocks");
        for block in blocks {
            if let Err(error) = cluster.shell(&block) {
                panic!("{path}: {error:#}");
            }
        }
    }
    bare();
}

#[test]
#[ignore = "make test-install"]
fn the_api_server_takes_every_manifest() {
    let cluster = bare();
    cluster
        .shell("kubectl apply --server-side -f charts/kubefledged/files/crd.yaml && kubectl wait --for=condition=Established crd/imagecaches.kubefledged.io")
        .unwrap();
    let namespaces = ["kube-fledged", "elsewhere", "team-a", "team-b"];
    for namespace in namespaces {
        cluster
            .shell(&format!(
                "kubectl create namespace {namespace} --dry-run=client -o yaml | kubectl apply -f -"
            ))
            .unwrap();
    }
    let served: BTreeSet<String> = cluster
        .kubectl("api-versions")
        .unwrap()
        .lines()
        .map(ToOwned::to_owned)
        .collect();
    for (case, values) in matrix() {
        let mut taken = 0;
        for manifest in render(&values).unwrap() {
            // Kinds of operators that this cluster has not: tests of the chart parse those.
            if !served.contains(manifest["apiVersion"].as_str().unwrap()) {
                continue;
            }
            // A Pod is refused whose account does not exist.
            if manifest["kind"] == "Pod" {
                let account = manifest["spec"]["serviceAccountName"].as_str().unwrap();
                let namespace = manifest["metadata"]["namespace"].as_str().unwrap();
                let create = format!("kubectl create serviceaccount {account} -n {namespace}");
                let _ = cluster.shell(&create);
            }
            let args = "kubectl apply --server-side --force-conflicts --dry-run=server --validate=strict -f -";
            let args: Vec<_> = args.split(' ').collect();
            if let Err(error) = cluster.run(&args, &manifest.to_string()) {
                panic!(
                    "{case}: {} {}: {error:#}",
                    manifest["kind"], manifest["metadata"]["name"]
                );
            }
            taken += 1;
        }
        assert!(taken > 3, "{case}: {taken} manifests");
    }
    cluster.shell("kubectl delete namespace elsewhere").unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn an_uninstall_leaves_the_definition_and_the_objects_and_nothing_else() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.shell("kubectl create namespace team-a").unwrap();
    let spec = json!({
        "cacheSpec": [{"images": [demo("web")]}],
        "retention": "Pinned",
        "deletionPolicy": "Purge",
    });
    cluster.create("team-a", "pinned", &spec).unwrap();
    cluster
        .ended("team-a", "pinned", "ImageCacheCreate")
        .unwrap();
    // As the controller puts it there: objects with one could not be deleted once it is gone.
    cluster
        .shell("kubectl patch ic pinned -n team-a --type=merge -p '{\"metadata\":{\"finalizers\":[\"kubefledged.io/purge\"]}}'")
        .unwrap();
    let finalizers = "kubectl get ic pinned -n team-a -o jsonpath='{.metadata.finalizers}'";

    let tested = cluster
        .shell("helm test kubefledged -n kube-fledged")
        .unwrap();
    assert!(tested.contains("Succeeded"), "{tested}");
    cluster
        .shell("helm uninstall kubefledged -n kube-fledged --wait --timeout 120s")
        .unwrap();

    assert_eq!(cluster.shell(finalizers).unwrap(), "");
    let ours = "for kind in $(kubectl api-resources --verbs=list,delete -o name | grep -v -e ^events -e ^componentstatus -e ^pods -e ^replicasets); do
          kubectl get $kind -A -o name --ignore-not-found | grep -i fledged | sed \"s,^,$kind ,\" || true
        done | sort";
    let left = cluster.shell(ours).unwrap();
    let left: Vec<_> = left.lines().collect();
    assert_eq!(
        left,
        [
            "customresourcedefinitions.apiextensions.k8s.io customresourcedefinition.apiextensions.k8s.io/imagecaches.kubefledged.io",
            "imagecaches.kubefledged.io imagecache.kubefledged.io/pinned",
            "namespaces namespace/kube-fledged",
        ]
    );
    // Nobody is left to hold it.
    cluster
        .shell("kubectl delete ic pinned -n team-a --timeout=10s")
        .unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn a_second_installation_is_refused_with_a_sentence() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    let second = "helm install second charts/kubefledged -n second --create-namespace";
    let refused = cluster.shell(second).unwrap_err().to_string();
    let sentence = "kubefledged is already installed in this cluster (release kubefledged in namespace kube-fledged";
    assert!(refused.contains(sentence), "{refused}");
    assert!(
        refused.contains("helm uninstall kubefledged -n kube-fledged"),
        "{refused}"
    );
    // The first one is as it was.
    cluster
        .shell("helm test kubefledged -n kube-fledged")
        .unwrap();
    cluster
        .shell("kubectl delete namespace second --ignore-not-found")
        .unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn an_upgrade_in_the_middle_of_a_wave_loses_no_pull() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.clean("team-a").unwrap();
    cluster.run(&["fault", "delay=2"], "").unwrap();
    let images: Vec<_> = ["web", "api", "worker", "cache"]
        .iter()
        .map(|name| demo(name).replace("registry.test:5000", "faulty.test:5003"))
        .collect();
    let spec = json!({"cacheSpec": [{ "images": images }]});
    cluster.create("team-a", "wave", &spec).unwrap();
    cluster
        .eventually(
            Duration::from_secs(20),
            "kubectl get ic wave -n team-a -o jsonpath='{.status.nodes.pulling}' | grep -v '^0$'",
        )
        .unwrap();
    // Both restart: the controller with another resync, every puller with another level.
    let upgraded =
        cluster.install_chart("--set controller.logLevel=debug --set puller.logLevel=debug");
    cluster.run(&["fault", "off"], "").unwrap();
    upgraded.unwrap();
    let status = cluster.ended("team-a", "wave", "ImageCacheCreate").unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert_eq!(status["ready"], "2/2");
    for node in ["1", "2"] {
        let held = cluster.images(node).unwrap();
        assert!(images.iter().all(|image| held.contains(image)), "{held:?}");
    }
    cluster.shell("kubectl delete ic wave -n team-a").unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn helm_waits_hardly_longer_than_the_pods_need() {
    let cluster = bare();
    cluster
        .shell("kubectl apply -f deploy/kubefledged-namespace.yaml")
        .unwrap();
    let start = Instant::now();
    cluster
        .shell("helm install kubefledged charts/kubefledged -n kube-fledged --wait --timeout 120s")
        .unwrap();
    let helm = start.elapsed();
    let pods = cluster
        .shell("kubectl get pods -n kube-fledged -o jsonpath='{range .items[*]}{.metadata.name} created {.metadata.creationTimestamp} ready {.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}{\"\\n\"}{end}'")
        .unwrap();
    println!("helm install --wait: {helm:?}\n{pods}");
    assert!(pods.lines().count() >= 5, "{pods}");
    cluster.bare().unwrap();
}
