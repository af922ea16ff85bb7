//! Images from workloads, on three nodes with the chart's `workloads.enabled` and the extra rules of docs/workloads.md:
//! `make test-workloads`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::{Duration, Instant};

use kubefledged_e2e::{Cluster, demo, document::block};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Definitions of Argo Rollouts, Knative Services, `KServe`'s `InferenceServices` and Ray clusters, as far as they are read.
const SHAPES: &str = "crates/e2e/testdata/workload-shapes.yaml";
const DEFAULT: &str = "{\"workloads\": {}}";

fn cluster(namespace: &str) -> Cluster {
    let cluster = Cluster::default();
    cluster.clean(namespace).unwrap();
    let delete = format!("delete deployments,secrets,events --all -n {namespace}");
    cluster.kubectl(&delete).unwrap();
    cluster
}

/// An `ImageCache` whose only list takes its images from there.
fn follow(cluster: &Cluster, namespace: &str, sources: &[&str]) {
    let sources: Vec<Value> = sources
        .iter()
        .map(|source| serde_json::from_str(source).unwrap())
        .collect();
    let spec = json!({"cacheSpec": [{"imagesFrom": sources}]});
    cluster.create(namespace, "follows", &spec).unwrap();
}

fn create(cluster: &Cluster, object: &Value) {
    cluster
        .run(&["kubectl", "create", "-f", "-"], &object.to_string())
        .unwrap();
}

/// A Deployment, and more of its pod's spec.
fn deploy(cluster: &Cluster, namespace: &str, replicas: usize, image: &str, more: &Value) {
    let mut pod = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "web", "image": image, "imagePullPolicy": "IfNotPresent"}],
    });
    let fields = more.as_object().unwrap().clone();
    pod.as_object_mut().unwrap().extend(fields);
    create(
        cluster,
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
            "spec": {
                "replicas": replicas, "minReadySeconds": 3,
                "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
            },
        }),
    );
}

/// The same content under another tag of `demo/web`.
fn push(cluster: &Cluster, tag: &str, from: &str) -> String {
    let copy = "skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false";
    let registry = "docker://10.77.0.1:5000/demo";
    cluster
        .shell(&format!(
            "{copy} {registry}/{from}:1.0 {registry}/web:{tag}"
        ))
        .unwrap();
    format!("registry.test:5000/demo/web:{tag}")
}

/// Do all nodes hold it, as their runtimes say?
fn everywhere(cluster: &Cluster, image: &str) -> anyhow::Result<bool> {
    for node in cluster.nodes()? {
        if !cluster.images(&node)?.contains(image) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn wait_everywhere(cluster: &Cluster, image: &str) {
    let what = format!("all nodes hold {image}");
    cluster
        .until(LIMIT, &what, || {
            Ok(everywhere(cluster, image)?.then_some(()))
        })
        .unwrap();
}

/// Pods with an image that are on a node, by name.
fn scheduled(cluster: &Cluster, namespace: &str, image: &str) -> anyhow::Result<Vec<String>> {
    let json = cluster.kubectl(&format!("get pods -n {namespace} -o json"))?;
    let list: Value = serde_json::from_str(&json)?;
    let pods = list["items"].as_array().into_iter().flatten();
    let there = pods.filter(|pod| {
        pod["spec"]["containers"][0]["image"] == image && pod["spec"]["nodeName"].is_string()
    });
    Ok(there
        .map(|pod| {
            pod["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect())
}

fn rolled_out(cluster: &Cluster, namespace: &str) {
    cluster
        .kubectl(&format!(
            "rollout status deployment/web -n {namespace} --timeout=120s"
        ))
        .unwrap();
}

#[test]
#[ignore = "three nodes and the chart's workloads.enabled: make test-workloads"]
fn a_new_image_is_on_all_nodes_before_the_second_new_pod_and_a_rollback_pulls_nothing() {
    let cluster = cluster("rollout");
    let (old, new) = (demo("web"), push(&cluster, "2.0", "api"));
    deploy(&cluster, "rollout", 3, &old, &json!({}));
    follow(&cluster, "rollout", &[DEFAULT]);
    rolled_out(&cluster, "rollout");
    let status = cluster
        .ended("rollout", "follows", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    wait_everywhere(&cluster, &old);
    let before = Instant::now();
    cluster
        .kubectl(&format!("set image deployment/web web={new} -n rollout"))
        .unwrap();
    let mut pods = Vec::new();
    cluster
        .until(LIMIT, "all nodes hold the new image", || {
            let there = everywhere(&cluster, &new)?;
            // Asked afterwards: whoever is scheduled by now counts.
            pods = scheduled(&cluster, "rollout", &new)?;
            Ok(there.then_some(()))
        })
        .unwrap();
    println!(
        "on all nodes {:?} after kubectl set image, with {} new pods",
        before.elapsed(),
        pods.len()
    );
    assert!(pods.len() <= 1, "{pods:?}");
    rolled_out(&cluster, "rollout");
    let status = cluster.object("rollout", "follows").unwrap()["status"].clone();
    assert_eq!(
        status["reason"], "ImageCacheCreate",
        "workloads begin no operation: {status}"
    );
    let log = cluster.access_log().unwrap();
    cluster
        .kubectl("rollout undo deployment/web -n rollout")
        .unwrap();
    rolled_out(&cluster, "rollout");
    assert_eq!(log.pulls("web").unwrap(), 0);
    assert!(everywhere(&cluster, &old).unwrap());
    let told = cluster.events("rollout", "follows").unwrap();
    assert!(
        told.iter()
            .any(|text| text.contains(&format!("1 new image ({new})"))),
        "{told:?}"
    );
}

#[test]
#[ignore = "three nodes and the chart's workloads.enabled: make test-workloads"]
fn a_private_image_comes_with_the_secret_of_its_own_workload() {
    let cluster = cluster("private");
    let password = cluster.run(&["registry-password"], "").unwrap();
    cluster.kubectl(&format!(
        "create secret docker-registry opens -n private --docker-server=private.test:5001 --docker-username=demo --docker-password={}",
        password.trim()
    )).unwrap();
    let image = "private.test:5001/demo/secret:1.0";
    let secrets = json!({"imagePullSecrets": [{"name": "opens"}]});
    deploy(&cluster, "private", 0, image, &secrets);
    follow(&cluster, "private", &[DEFAULT]);
    let status = cluster
        .ended("private", "follows", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert!(everywhere(&cluster, image).unwrap());
    assert_eq!(status["sources"][0]["workloads"], 1, "{status}");
}

fn custom(api: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": "one", "namespace": "kinds"}, "spec": spec})
}

/// Waits until a condition says that the kinds do not exist, and what to do.
fn the_kinds_are_missing(cluster: &Cluster) {
    let unavailable = cluster
        .until(LIMIT, "Degraded says that the kinds do not exist", || {
            let status = cluster.object("kinds", "kinds")?["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions
                .into_iter()
                .find(|one| one["reason"] == "SourceUnavailable" && one["type"] == "Degraded"))
        })
        .unwrap();
    assert!(
        unavailable["message"]
            .as_str()
            .unwrap()
            .contains("CustomResourceDefinition"),
        "{unavailable}"
    );
}

/// Creates an object of each kind, with a different image in each template.
fn objects_of_other_projects(cluster: &Cluster) {
    let container = |image: &str| json!({"containers": [{"name": "c", "image": image}]});
    let template = |name: &str| json!({"spec": container(&demo(name))});
    create(
        cluster,
        &custom(
            "argoproj.io/v1alpha1",
            "Rollout",
            &json!({"template": template("web")}),
        ),
    );
    create(
        cluster,
        &custom(
            "serving.knative.dev/v1",
            "Service",
            &json!({"template": template("api")}),
        ),
    );
    create(
        cluster,
        &custom(
            "serving.kserve.io/v1beta1",
            "InferenceService",
            &json!({
                "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "image": demo("worker")}},
            }),
        ),
    );
    create(
        cluster,
        &custom(
            "ray.io/v1",
            "RayCluster",
            &json!({
                "headGroupSpec": {"template": template("cache")},
                "workerGroupSpecs": [{"groupName": "w", "template": template("extra")}],
            }),
        ),
    );
}

#[test]
#[ignore = "three nodes and the chart's workloads.enabled: make test-workloads"]
fn workloads_of_other_projects_are_followed_as_soon_as_their_kind_exists() {
    let cluster = cluster("kinds");
    let shapes = cluster.shapes(SHAPES);
    let recipe = block("docs/workloads.md", "yaml recipe=kinds").unwrap();
    let recipe = recipe.replace("namespace: shop", "namespace: kinds");
    cluster
        .run(&["kubectl", "create", "-f", "-"], &recipe)
        .unwrap();
    the_kinds_are_missing(&cluster);
    shapes.apply().unwrap();
    objects_of_other_projects(&cluster);
    for name in ["web", "api", "worker", "cache", "extra"] {
        wait_everywhere(&cluster, &demo(name));
    }
    let healthy = cluster.until(LIMIT, "Degraded is False", || {
        let status = cluster.object("kinds", "kinds")?["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let degraded = conditions
            .iter()
            .any(|one| one["type"] == "Degraded" && one["status"] == "False");
        Ok(degraded.then_some(status))
    });
    healthy.unwrap();
    drop(shapes);
}

#[test]
#[ignore = "three nodes and the chart's workloads.enabled: make test-workloads"]
fn the_workloads_of_other_namespaces_are_refused_to_all_but_chosen_namespaces() {
    let cluster = cluster("tenant");
    let all = json!({"cacheSpec": [{"imagesFrom": [{"workloads": {"namespaceSelector": {}}}]}]});
    let refused = cluster
        .create("tenant", "all", &all)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains(
            "an ImageCache of namespace tenant may read the workloads of that namespace alone"
        ),
        "{refused}"
    );
    assert!(
        refused.contains("workloads.clusterScopeNamespaces"),
        "{refused}"
    );
    deploy(&cluster, "tenant", 0, &demo("web"), &json!({}));
    let labelled = json!({"cacheSpec": [{"imagesFrom": [{"workloads": {
        "kinds": ["Deployment"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tenant"}},
    }}]}]});
    cluster.create("kube-fledged", "all", &labelled).unwrap();
    let status = cluster
        .ended("kube-fledged", "all", "ImageCacheCreate")
        .unwrap();
    assert_eq!(status["status"], "Succeeded", "{status}");
    wait_everywhere(&cluster, &demo("web"));
    assert_eq!(status["sources"][0]["images"], 1, "{status}");
}

#[test]
#[ignore = "three nodes and the chart's workloads.enabled: make test-workloads"]
fn the_api_server_takes_the_recipes() {
    let cluster = cluster("shop");
    for name in ["namespace", "teams", "argocd", "kinds"] {
        let recipe = block("docs/workloads.md", &format!("yaml recipe={name}")).unwrap();
        cluster.takes(&recipe).unwrap();
    }
    let cases = [
        (
            json!({"images": ["a:1"], "keepPrevious": 1}),
            "keepPrevious",
        ),
        (
            json!({"imagesFrom": [{"workloads": {"kinds": ["Rollout"]}}]}),
            "argoproj.io/Rollout",
        ),
        (json!({"imagesFrom": [{}]}), "workloads: {}"),
        (
            json!({"imagesFrom": [{"workloads": {}}], "keepPrevious": 11}),
            "keepPrevious",
        ),
    ];
    for (list, said) in cases {
        let spec = json!({"cacheSpec": [list]});
        let refused = cluster
            .create("shop", "wrong", &spec)
            .unwrap_err()
            .to_string();
        assert!(refused.contains(said), "{refused}");
    }
}
