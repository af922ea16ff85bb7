//! Moving over from kube-fledged, as docs/migrate.md says it. `make test-install`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use kubefledged_e2e::{Cluster, demo, install::shell_blocks};
use serde_json::{Value, json};

const PULLED: &str = "All requested images pulled succesfully to respective nodes";

/// What kube-fledged 0.10 defines: no status subresource, no columns.
fn definition() -> Value {
    let text = |format: &str| json!({"type": "string", "format": format});
    let status = json!({
        "type": "object",
        "required": ["message", "reason", "startTime", "status"],
        "properties": {
            "completionTime": text("date-time"),
            "startTime": text("date-time"),
            "message": {"type": "string"},
            "reason": {"type": "string"},
            "status": {"type": "string"},
            "failures": {"type": "object", "additionalProperties": {"type": "array", "items": {
                "type": "object",
                "required": ["message", "node", "reason"],
                "properties": {
                    "message": {"type": "string"},
                    "node": {"type": "string"},
                    "reason": {"type": "string"},
                },
            }}},
        },
    });
    let list = json!({"type": "object", "required": ["images"], "properties": {
        "images": {"type": "array", "items": {"type": "string"}},
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
    }});
    let spec = json!({"type": "object", "required": ["cacheSpec"], "properties": {
        "cacheSpec": {"type": "array", "items": list},
        "imagePullSecrets": {"type": "array", "items": {
            "type": "object", "properties": {"name": {"type": "string"}},
        }},
    }});
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": spec, "status": status, "metadata": {"type": "object"}},
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "imagecaches.kubefledged.io"},
        "spec": {
            "group": "kubefledged.io",
            "scope": "Namespaced",
            "names": {"plural": "imagecaches", "singular": "imagecache", "kind": "ImageCache", "shortNames": ["ic"]},
            "versions": [{
                "name": "v1alpha2", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

/// As kube-fledged leaves it when an operation is over.
fn object(namespace: &str, name: &str, lists: &Value, ended: (&str, &str, &str)) -> Value {
    let (status, reason, message) = ended;
    let mut status = json!({
        "status": status, "reason": reason, "message": message,
        "startTime": "2024-05-01T10:00:00Z", "completionTime": "2024-05-01T10:00:40Z",
    });
    if status["status"] == "Failed" {
        status["failures"] = json!({demo("api"): [
            {"node": "n1", "reason": "ErrImagePull", "message": "connection refused"},
        ]});
    }
    json!({
        "apiVersion": "kubefledged.io/v1alpha2",
        "kind": "ImageCache",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"app": "kubefledged", "kubefledged": "imagecache"},
        },
        "spec": {"cacheSpec": lists, "imagePullSecrets": [{"name": "myregistrykey"}]},
        "status": status,
    })
}

fn feed(cluster: &Cluster, object: &Value) {
    let args = ["kubectl", "create", "-f", "-"];
    cluster.run(&args, &object.to_string()).unwrap();
}

/// What must not change.
fn untouched(cluster: &Cluster, namespace: &str, name: &str) -> (Value, Value, Value) {
    let object = cluster.object(namespace, name).unwrap();
    let meta = &object["metadata"];
    (
        object["spec"].clone(),
        meta["uid"].clone(),
        meta["labels"].clone(),
    )
}

#[test]
#[ignore = "make test-install"]
#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
fn the_objects_of_kube_fledged_move_over_untouched_and_their_statuses_continue() {
    let cluster = Cluster::default();
    cluster.bare().unwrap();
    cluster
        .shell("kubectl label node n2 tier=backend --overwrite
                for namespace in kube-fledged team-a team-b; do kubectl create namespace $namespace; done")
        .unwrap();
    feed(&cluster, &definition());
    cluster
        .shell("kubectl wait --for=condition=Established crd/imagecaches.kubefledged.io")
        .unwrap();
    let everywhere = json!([{"images": [demo("web")]}]);
    let backend = json!([
        {"images": [demo("api")]},
        {"images": [demo("worker"), demo("cache")], "nodeSelector": {"tier": "backend"}},
    ]);
    let purged = json!([{"images": [demo("extra")]}]);
    let deleted = "All cached images succesfully deleted from respective nodes";
    let failed = "Image pull failed for some images. Please see \"failures\" section";
    for (namespace, name, lists, ended) in [
        (
            "kube-fledged",
            "imagecache1",
            &everywhere,
            ("Succeeded", "ImageCacheRefresh", PULLED),
        ),
        (
            "team-a",
            "failed",
            &backend,
            ("Failed", "ImageCacheCreate", failed),
        ),
        (
            "team-b",
            "purged",
            &purged,
            ("Succeeded", "ImageCachePurge", deleted),
        ),
    ] {
        feed(&cluster, &object(namespace, name, lists, ended));
    }
    let all = [
        ("kube-fledged", "imagecache1"),
        ("team-a", "failed"),
        ("team-b", "purged"),
    ];
    let before: Vec<_> = all
        .map(|(namespace, name)| untouched(&cluster, namespace, name))
        .into();

    // kube-fledged's rights are still there: Helm names them.
    cluster
        .shell("kubectl create clusterrole kubefledged-controller --verb=create,patch --resource=jobs.batch,imagecaches.kubefledged.io/status
                kubectl create deployment kubefledged-controller -n kube-fledged --image=registry.test:5000/pause:3.10")
        .unwrap();
    let refused = cluster
        .shell("helm install kubefledged charts/kubefledged -n kube-fledged --take-ownership")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("kube-fledged is still installed"),
        "{refused}"
    );
    assert!(
        refused.contains("kubectl delete clusterrole kubefledged-controller"),
        "{refused}"
    );

    let blocks = shell_blocks("docs/migrate.md").unwrap();
    let [_, remove, install] = blocks.as_slice() else {
        panic!("docs/migrate.md: look, remove, install");
    };
    cluster.shell(remove).unwrap();
    cluster.shell(install).unwrap();

    let after: Vec<_> = all
        .map(|(namespace, name)| untouched(&cluster, namespace, name))
        .into();
    assert_eq!(before, after);
    let ready = |namespace: &str, name: &str| {
        cluster
            .eventually(
                Duration::from_secs(90),
                &format!("kubectl get ic {name} -n {namespace} -o jsonpath='{{.status.ready}}' | grep '^2/2$'"),
            )
            .unwrap();
    };
    ready("kube-fledged", "imagecache1");
    ready("team-a", "failed");
    let status = cluster.object("team-a", "failed").unwrap()["status"].clone();
    assert_eq!(status["status"], "Succeeded", "{status}");
    assert!(status["failures"].is_null(), "{status}");
    let status = cluster.object("team-b", "purged").unwrap()["status"].clone();
    assert_eq!(status["reason"], "ImageCachePurge", "{status}");
    assert!(
        !cluster
            .demo_images("1")
            .unwrap()
            .contains(&"extra:1.0".to_owned())
    );

    cluster
        .shell("helm uninstall kubefledged -n kube-fledged --wait --timeout 120s")
        .unwrap();
    let at_last: Vec<_> = all
        .map(|(namespace, name)| untouched(&cluster, namespace, name))
        .into();
    assert_eq!(before, at_last);
    cluster.bare().unwrap();
}

/// kube-fledged's workloads as far as they can be seen: nobody runs its image here.
const RIVALS: &str = r"kubectl create namespace old
kubectl create deployment kubefledged-controller -n old --image=docker.io/senthilrch/kubefledged-controller:v0.10.0
kubectl label deployment kubefledged-controller -n old --overwrite app=kubefledged kubefledged=kubefledged-controller
kubectl apply -f - <<'END'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: old-webhook}
webhooks:
  - name: validate-image-cache.kubefledged.io
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Ignore
    clientConfig: {service: {name: old, namespace: old, path: /validate-image-cache, port: 3443}}
    rules: [{apiGroups: [kubefledged.io], apiVersions: [v1alpha2], operations: [CREATE], resources: [imagecaches]}]
END";

/// Helm sees webhooks and rights, which the controller looks at again; it sees Deployments, too.
#[test]
#[ignore = "make test-install"]
fn what_still_runs_of_kube_fledged_is_named_by_helm_or_by_the_controller_with_what_removes_it() {
    let cluster = Cluster::default();
    cluster.bare().unwrap();
    cluster.shell(RIVALS).unwrap();
    let install = "kubectl apply -f deploy/kubefledged-namespace.yaml
        helm install kubefledged charts/kubefledged -n kube-fledged";
    let refused = cluster.shell(install).unwrap_err().to_string();
    let remedy = "kubectl delete validatingwebhookconfiguration old-webhook";
    assert!(
        refused.contains("kube-fledged is still installed") && refused.contains(remedy),
        "{refused}"
    );

    let unseen = format!("{install} --set preflight.enabled=false");
    cluster.shell(&unseen).unwrap();
    let said = |sentence: &str| {
        cluster
            .eventually(
                Duration::from_secs(60),
                &format!("kubectl logs -n kube-fledged -l app.kubernetes.io/component=controller --tail=-1 | grep '{sentence}'"),
            )
            .unwrap();
    };
    said(remedy);
    let pods = "kubectl get deployment kubefledged-controller -n kube-fledged -o jsonpath='{.status.readyReplicas}'";
    assert_eq!(cluster.shell(pods).unwrap(), "");
    cluster.shell(remedy).unwrap();
    // A Deployment is only warned about.
    cluster
        .shell("kubectl rollout status -n kube-fledged deployment/kubefledged-controller --timeout=60s")
        .unwrap();
    said("kubectl delete deployment -n old kubefledged-controller");
    cluster.bare().unwrap();
}
