//! Installing, upgrading and removing, as the documents say it. `make test-install` runs these on a
//! cluster of their own: they begin and end with nothing installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use kubefledged_chart::{matrix, render};
use kubefledged_e2e::{
    Cluster, demo,
    install::{Variant, shell_blocks},
};
use serde_json::{Value, json};

const OWN: &str = "installs and removes the chart: make test-install";

fn bare() -> Cluster {
    let cluster = Cluster::default();
    cluster.bare().expect(OWN);
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

/// What `.github/workflows/kind.yml` runs on clusters that are not ours.
#[test]
#[ignore = "make test-install"]
fn the_walkthrough_for_other_clusters_succeeds_on_this_one() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    let said = cluster
        .shell(
            "kubectl create -f deploy/kubefledged-imagecache.yaml
             kubectl wait --for=condition=Ready ic/imagecache1 -n kube-fledged --timeout=120s
             kubectl get ic -n kube-fledged
             hack/walkthrough",
        )
        .unwrap();
    println!("{said}");
    cluster.bare().unwrap();
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

/// What an uninstall leaves of us, with the object of [`Cluster::pinned_cache`].
const KEPT: [&str; 3] = [
    "customresourcedefinition.apiextensions.k8s.io/imagecaches.kubefledged.io",
    "imagecache.kubefledged.io/pinned",
    "namespace/kube-fledged",
];

#[test]
#[ignore = "make test-install"]
fn an_uninstall_leaves_the_definition_and_the_objects_and_nothing_else() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.pinned_cache().unwrap();
    let tested = cluster
        .shell("helm test kubefledged -n kube-fledged")
        .unwrap();
    assert!(tested.contains("Succeeded"), "{tested}");
    cluster
        .shell("helm uninstall kubefledged -n kube-fledged --wait --timeout 120s")
        .unwrap();

    cluster.until_left(&KEPT).unwrap();
    assert_eq!(cluster.finalizers().unwrap(), "");
    let pinned = cluster.pins(&demo("web")).unwrap();
    assert!(pinned.iter().all(|(_, pinned)| !pinned), "{pinned:?}");
    // Nobody is left to hold it.
    cluster
        .shell("kubectl delete ic pinned -n team-a --timeout=10s")
        .unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn an_uninstall_whose_job_cannot_run_deletes_nothing_and_the_guide_helps() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.pinned_cache().unwrap();
    // The Job's image is the controller's, and no node can pull this one.
    cluster
        .shell("helm upgrade kubefledged charts/kubefledged -n kube-fledged --reset-then-reuse-values --set controller.image.tag=none")
        .unwrap();
    let failed = cluster
        .shell("helm uninstall kubefledged -n kube-fledged --timeout 15s")
        .unwrap_err()
        .to_string();
    assert!(failed.contains("timed out"), "{failed}");
    cluster
        .shell(
            "kubectl get daemonset kubefledged-puller -n kube-fledged
                kubectl get validatingwebhookconfiguration kubefledged-webhook-server",
        )
        .unwrap();

    let blocks = shell_blocks("docs/install.md").unwrap();
    let by_hand = blocks.iter().find(|block| block.contains("--no-hooks"));
    cluster.shell(by_hand.unwrap()).unwrap();
    cluster.until_left(&KEPT).unwrap();
    assert_eq!(cluster.finalizers().unwrap(), "");
    cluster
        .shell("kubectl delete ic pinned -n team-a --timeout=10s")
        .unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn without_helm_what_was_applied_goes_without_a_rest() {
    let cluster = bare();
    cluster.shell("make deploy-using-yaml").unwrap();
    cluster.pinned_cache().unwrap();
    // As often as one likes.
    cluster.shell("make update").unwrap();
    cluster.shell("make remove-kubefledged").unwrap();
    cluster.until_left(&[]).unwrap();
    let pinned = cluster.pins(&demo("web")).unwrap();
    assert!(pinned.iter().all(|(_, pinned)| !pinned), "{pinned:?}");
    let held = cluster.images("2").unwrap();
    assert!(held.contains(&demo("web")), "images stay: {held:?}");
    cluster.shell("make remove-kubefledged").unwrap();
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn an_upgrade_brings_another_definition_a_rollback_the_first_and_objects_stay() {
    let cluster = bare();
    cluster.install_chart("").unwrap();
    cluster.clean("team-a").unwrap();
    let spec = json!({"cacheSpec": [{"images": [demo("web")]}]});
    cluster.create("team-a", "kept", &spec).unwrap();
    cluster.ended("team-a", "kept", "ImageCacheCreate").unwrap();
    let arguments = || {
        cluster
            .shell("kubectl get deployment kubefledged-controller -n kube-fledged -o jsonpath='{.spec.template.spec.containers[0].args}'")
            .unwrap()
    };
    let before = (cluster.object("team-a", "kept").unwrap(), arguments());

    let newer = Variant::new("newer", |schema| {
        schema["spec"]["properties"]["tomorrow"] = json!({"type": "string"});
    })
    .unwrap();
    let upgrade = format!(
        "helm upgrade kubefledged {} -n kube-fledged --reset-then-reuse-values --set controller.checkInterval=7m --wait --timeout 120s",
        newer.chart()
    );
    cluster.shell(&upgrade).unwrap();
    assert!(arguments().contains("--check-interval=7m"));
    cluster
        .edit("team-a", "kept", &json!({"tomorrow": "yes"}))
        .unwrap();
    let stored = cluster.object("team-a", "kept").unwrap();
    assert_eq!(stored["spec"]["tomorrow"], "yes");
    // An edit that no leader has seen yet counts as one of the images.
    cluster
        .shell("kubectl wait imagecache/kept -n team-a --for=jsonpath='{.status.observedGeneration}'=2 --timeout=20s")
        .unwrap();

    cluster
        .shell("helm rollback kubefledged 1 -n kube-fledged --wait --timeout 120s")
        .unwrap();
    assert_eq!(arguments(), before.1);
    let after = cluster.object("team-a", "kept").unwrap();
    assert_eq!(after["spec"], before.0["spec"]);
    assert_eq!(after["metadata"]["uid"], before.0["metadata"]["uid"]);
    assert_eq!(after["status"]["ready"], "2/2", "{}", after["status"]);
    assert_eq!(after["status"]["reason"], "ImageCacheCreate");
    cluster.bare().unwrap();
}

#[test]
#[ignore = "make test-install"]
fn a_definition_that_is_too_old_keeps_the_controller_unready_until_an_upgrade() {
    let cluster = bare();
    let older = Variant::new("older", |schema| {
        let status = schema["status"]["properties"].as_object_mut().unwrap();
        status.remove("appliedImages");
    })
    .unwrap();
    let install = format!(
        "kubectl apply --server-side -f {}
         kubectl apply -f deploy/kubefledged-namespace.yaml
         helm install kubefledged charts/kubefledged -n kube-fledged --set crds.enabled=false",
        older.definition().display()
    );
    let said = cluster.shell(&install).unwrap();
    assert!(said.contains("crds.enabled is false"), "{said}");
    cluster
        .eventually(
            Duration::from_secs(60),
            "kubectl logs -n kube-fledged -l app.kubernetes.io/component=controller --tail=-1 | grep 'it does not know .status.appliedImages: kubefledged-controller crd | kubectl apply'",
        )
        .unwrap();
    let ready = "kubectl get deployment kubefledged-controller -n kube-fledged -o jsonpath='{.status.readyReplicas}'";
    assert_eq!(cluster.shell(ready).unwrap(), "");
    cluster
        .shell("helm upgrade kubefledged charts/kubefledged -n kube-fledged --reset-values --take-ownership --wait --timeout 120s")
        .unwrap();
    assert_eq!(cluster.shell(ready).unwrap(), "2");
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
    let left = cluster.shell("helm list -A -q").unwrap();
    assert_eq!(left.trim(), "kubefledged", "nothing of the second is kept");
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

/// Seconds from a pod's creation until it was Ready, by name.
fn starts(cluster: &Cluster) -> Vec<(String, i64)> {
    let json = cluster.kubectl("get pods -n kube-fledged -o json").unwrap();
    let pods: Value = serde_json::from_str(&json).unwrap();
    let seconds = |text: &Value| {
        let text = text.as_str().unwrap();
        let said = cluster.shell(&format!("date -d {text} +%s")).unwrap();
        said.trim().parse::<i64>().unwrap()
    };
    let pods = pods["items"].as_array().unwrap().iter();
    pods.map(|pod| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let ready = conditions
            .iter()
            .find(|one| one["type"] == "Ready")
            .unwrap();
        let took =
            seconds(&ready["lastTransitionTime"]) - seconds(&pod["metadata"]["creationTimestamp"]);
        let name = pod["metadata"]["name"].as_str().unwrap();
        (name.to_owned(), took)
    })
    .collect()
}

/// Tests before this one have pulled the images. Pods' times are told in whole seconds.
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
    let pods = starts(&cluster);
    println!("helm install --wait: {helm:.1?}; seconds from creation to Ready: {pods:?}");
    assert!(pods.len() >= 6, "{pods:?}");
    let slowest = pods.iter().map(|(_, took)| *took).max().unwrap();
    let slowest = Duration::from_secs(slowest.try_into().unwrap());
    assert!(
        helm < slowest + Duration::from_secs(6),
        "{helm:?}, {pods:?}"
    );
    assert!(helm < Duration::from_secs(20), "{helm:?}, {pods:?}");
    cluster.bare().unwrap();
}
