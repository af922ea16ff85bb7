//! What tools and people read of an `ImageCache` in a real cluster: kstatus (`hack/tool kstatus`), Helm 4, `kubectl`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    fs,
    time::{Duration, Instant},
};

use kubefledged_e2e::{Cluster, demo, document::block, install::shell_blocks};
use serde_json::{Value, json};

/// Status and cause, as kstatus computes them.
fn kstatus(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.shell("kubectl get imagecache web -n shop -o yaml | hack/tool kstatus")
}

fn becomes(cluster: &Cluster, limit: u64, status: &str) -> String {
    let limit = Duration::from_secs(limit);
    let said = cluster.until(limit, &format!("kstatus is {status}"), || {
        let said = kstatus(cluster)?;
        Ok(said.starts_with(status).then_some(said))
    });
    said.unwrap()
}

fn wrong(name: &str) -> String {
    demo(name).replace(":1.0", ":none")
}

fn list(image: &str) -> Value {
    json!({"cacheSpec": [{"images": [image]}]})
}

/// Scales the controller, and waits until its pods are there or gone.
fn scale(cluster: &Cluster, replicas: u32) {
    let wait = match replicas {
        0 => {
            "kubectl wait --for=delete pod -n kube-fledged -l app.kubernetes.io/component=controller --timeout=60s"
        }
        _ => {
            "kubectl rollout status -n kube-fledged deployment/kubefledged-controller --timeout=60s"
        }
    };
    let script = format!(
        "kubectl scale -n kube-fledged deployment/kubefledged-controller --replicas={replicas}; {wait}"
    );
    cluster.shell(&script).unwrap();
}

#[test]
fn an_object_that_no_controller_has_seen_is_never_current() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    kstatus(&cluster).unwrap_err();
    scale(&cluster, 0);
    cluster.create("shop", "web", &list(&demo("web"))).unwrap();
    let mut said = Vec::new();
    for _ in 0..10 {
        said.push(kstatus(&cluster).unwrap());
        std::thread::sleep(Duration::from_millis(300));
    }
    scale(&cluster, 2);
    for said in said {
        assert!(said.starts_with("InProgress: "), "{said}");
    }
    becomes(&cluster, 60, "Current");
    assert_eq!(cluster.demo_images("1").unwrap(), ["web:1.0"]);

    // Edited while nobody leads: the new leader's first word is not the old conditions.
    scale(&cluster, 0);
    cluster.edit("shop", "web", &list(&wrong("web"))).unwrap();
    let said = kstatus(&cluster).unwrap();
    scale(&cluster, 2);
    assert!(said.starts_with("InProgress: "), "{said}");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let said = kstatus(&cluster).unwrap();
        assert!(!said.starts_with("Current"), "{said}");
        if said.starts_with("Failed") {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it does not fail");
}

#[test]
fn a_wrong_tag_fails_within_30_seconds_and_names_image_reason_and_nodes() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    cluster.create("shop", "web", &list(&wrong("web"))).unwrap();
    let said = becomes(&cluster, 30, "Failed");
    let cause = format!("2 of 2 nodes lack {}: ImageNotFound (n1, n2)", wrong("web"));
    assert_eq!(said.trim(), format!("Failed: {cause}"));
    let told = cluster.until(Duration::from_secs(10), "the Event names the cause", || {
        let events = cluster.events("shop", "web")?;
        Ok(events
            .iter()
            .any(|event| event.contains(&cause))
            .then_some(()))
    });
    told.unwrap();
    let described = cluster
        .shell("kubectl describe imagecache web -n shop")
        .unwrap();
    let lines = described.lines().count();
    assert!(lines <= 90, "{lines} lines:\n{described}");

    cluster.edit("shop", "web", &list(&demo("web"))).unwrap();
    becomes(&cluster, 30, "Current");
}

#[test]
fn a_label_with_a_typo_fails_and_is_told_once() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let spec = |label: &str| json!({"cacheSpec": [{"images": [demo("web")], "nodeSelector": {label: "linux"}}]});
    cluster
        .create("shop", "web", &spec("kubernetes.io/so"))
        .unwrap();
    let said = becomes(&cluster, 30, "Failed");
    assert!(
        said.contains("spec.cacheSpec[0] (kubernetes.io/so=linux)"),
        "{said}"
    );
    let wait = "wait --for=condition=Ready -n shop ic/web --timeout=2s";
    cluster.kubectl(wait).unwrap_err();
    let told = cluster.until(Duration::from_secs(10), "an Event", || {
        let events = cluster.events("shop", "web")?;
        let told = events
            .iter()
            .filter(|event| event.starts_with("no Linux node"));
        Ok((told.count() == 1).then_some(()))
    });
    told.unwrap();
    let selector = json!({"cacheSpec": [{"images": [demo("web")], "nodeSelector": {"kubernetes.io/os": "linux"}}]});
    cluster.edit("shop", "web", &selector).unwrap();
    becomes(&cluster, 30, "Current");
}

#[test]
fn what_somebody_suspended_or_purged_is_current_and_not_ready() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let mut spec = list(&demo("web"));
    spec["suspend"] = json!(true);
    cluster.create("shop", "web", &spec).unwrap();
    becomes(&cluster, 30, "Current");
    let wait = "wait --for=condition=Ready -n shop ic/web --timeout=";
    cluster.kubectl(&format!("{wait}2s")).unwrap_err();
    cluster
        .edit("shop", "web", &json!({"suspend": false}))
        .unwrap();
    cluster.kubectl(&format!("{wait}30s")).unwrap();
    cluster
        .shell("kubectl annotate imagecache web -n shop kubefledged.io/purge-imagecache=t1")
        .unwrap();
    cluster.ended("shop", "web", "ImageCachePurge").unwrap();
    becomes(&cluster, 10, "Current");
    cluster.kubectl(&format!("{wait}2s")).unwrap_err();
}

#[test]
fn a_spec_that_asks_for_nothing_is_refused_with_what_to_write() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let mut paused = list(&demo("web"));
    paused["maxConcurrentNodes"] = json!(0);
    for (spec, hint) in [
        (paused, "suspend: true"),
        (json!({"cacheSpec": []}), "at least one list"),
    ] {
        let error = cluster
            .create("shop", "web", &spec)
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{error}");
    }
}

/// A chart with one `ImageCache` of this image.
fn chart(image: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("kubefledged-e2e-chart-{}", std::process::id()));
    fs::create_dir_all(folder.join("templates")).unwrap();
    fs::write(
        folder.join("Chart.yaml"),
        "apiVersion: v2\nname: shop\nversion: 1.0.0\n",
    )
    .unwrap();
    let object = json!({
        "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
        "metadata": {"name": "web"}, "spec": list(image),
    });
    fs::write(folder.join("templates/web.yaml"), object.to_string()).unwrap();
    folder
}

#[test]
fn helm_4_waits_for_the_images_and_fails_on_a_wrong_tag() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let _ = cluster.shell("hack/tool helm4 uninstall shop -n shop --wait");
    let folder = chart(&demo("web"));
    let install = |verb: &str| {
        let chart = folder.display();
        cluster.shell(&format!(
            "hack/tool helm4 {verb} shop {chart} -n shop --wait --timeout 60s"
        ))
    };
    install("install").unwrap();
    for node in ["1", "2"] {
        assert_eq!(
            cluster.demo_images(node).unwrap(),
            ["web:1.0"],
            "when helm returns"
        );
    }
    chart(&wrong("web"));
    let error = install("upgrade").unwrap_err().to_string();
    assert!(error.contains("web"), "{error}");
    cluster
        .shell("hack/tool helm4 uninstall shop -n shop --wait")
        .unwrap();
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_guides_command_puts_the_health_check_into_argo_cds_configuration() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let blocks = shell_blocks("docs/gitops.md").unwrap();
    let command = blocks.iter().find(|block| block.contains("argocd-cm"));
    let script = format!(
        "kubectl create namespace argocd; kubectl create configmap argocd-cm -n argocd --from-literal=url=https://argocd.example
         {}
         kubectl get configmap argocd-cm -n argocd -o json; kubectl delete namespace argocd --wait=false >/dev/null",
        command.unwrap()
    );
    let said = cluster.shell(&script).unwrap();
    let (_, json) = said.split_once('{').unwrap();
    let map: Value = serde_json::from_str(&format!("{{{json}")).unwrap();
    assert_eq!(map["data"]["url"], "https://argocd.example");
    assert_eq!(
        map["data"]["resource.customizations.health.kubefledged.io_ImageCache"],
        include_str!("../../../docs/argocd/health.lua")
    );
}

/// Flux's own definition, from the module of its release.
const FLUX: &str = "github.com/fluxcd/kustomize-controller@v1.9.0";
const FLUX_CRD: &str = "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml";

/// The folder of a Go module. It is fetched in the machine's own network: the cluster's leads nowhere.
fn module(name: &str) -> String {
    let mut go = std::process::Command::new("go");
    let go = go.args(["mod", "download", "-json", name]);
    let said = go.current_dir(std::env::temp_dir()).output().unwrap();
    let module: Value = serde_json::from_slice(&said.stdout).unwrap();
    module["Dir"].as_str().expect(name).to_owned()
}

#[test]
fn an_api_server_with_fluxs_definition_takes_the_objects_of_the_guide() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let module = module(FLUX);
    let crd = format!(
        "kubectl create namespace flux-system --dry-run=client -o yaml | kubectl apply -f - && kubectl apply --server-side -f \"{module}/{FLUX_CRD}\"
         kubectl wait --for=condition=Established crd/kustomizations.kustomize.toolkit.fluxcd.io --timeout=30s"
    );
    cluster.shell(&crd).unwrap();
    for language in ["yaml", "yaml\n# One object"] {
        let objects = block("docs/gitops.md", language).unwrap();
        let strict = ["kubectl", "create", "--dry-run=server", "--validate=strict"];
        let said = cluster.run(&[&strict[..], &["-f", "-"]].concat(), &objects);
        assert!(said.unwrap().contains("kustomization"), "{language}");
        // It is the definition that accepts: it refuses a field that Flux does not have.
        let typo = objects.replace("  prune: true", "  prume: true");
        let said = cluster.run(&[&strict[..], &["-f", "-"]].concat(), &typo);
        assert!(said.unwrap_err().to_string().contains("prume"));
    }
    let remove = "kubectl delete crd kustomizations.kustomize.toolkit.fluxcd.io; kubectl delete namespace flux-system --wait=false";
    cluster.shell(remove).unwrap();
}

/// Two tools that apply one object: the second one is told which field the first one owns.
#[test]
fn two_owners_of_one_list_are_told_of_each_other() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let apply = |owner: &str, spec: &Value| {
        let object = json!({
            "apiVersion": "kubefledged.io/v1alpha2", "kind": "ImageCache",
            "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
        });
        cluster.run(
            &[
                "kubectl",
                "apply",
                "--server-side",
                "--field-manager",
                owner,
                "-f",
                "-",
            ],
            &object.to_string(),
        )
    };
    apply("flux", &list(&demo("web"))).unwrap();
    apply(
        "team",
        &json!({"cacheSpec": [{"images": [demo("web")]}], "minReadyNodes": 1}),
    )
    .unwrap();
    let error = apply("team", &list(&wrong("web"))).unwrap_err().to_string();
    assert!(
        error.contains("conflict with \"flux\": .spec.cacheSpec"),
        "{error}"
    );
    becomes(&cluster, 60, "Current");
    apply("flux", &list(&demo("web"))).unwrap();
    assert!(
        kstatus(&cluster).unwrap().starts_with("Current"),
        "our status is nobody's conflict"
    );
}
