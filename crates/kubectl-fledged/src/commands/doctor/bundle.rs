//! A file for a bug report. It has no Secret, no token and no content of one: what it may hold is listed here.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
};
use serde_json::{Value, json};

use super::{Facts, OURS, findings::Findings};
use crate::{access::Access, exit::Failure};

/// Lines of each log, and most pods whose logs are taken.
const LINES: i64 = 300;
const PODS: usize = 10;

/// The bundle as YAML.
pub async fn write(access: &Access, facts: &Facts, findings: &Findings) -> Result<String, Failure> {
    let version = access.client.apiserver_version().await;
    let version = version.map_or_else(|error| error.to_string(), |version| version.git_version);
    let bundle = json!({
        "plugin": env!("CARGO_PKG_VERSION"),
        "kubernetes": version,
        "findings": findings,
        "workloads": workloads(facts),
        "imageCaches": facts.caches.iter().flatten().map(cache).collect::<Vec<_>>(),
        "nodes": facts.nodes.iter().flatten().map(|node| json!({
            "node": node.node, "eligible": node.eligible, "reason": node.reason, "puller": node.puller,
            "desired": node.desired_images, "ready": node.ready_images, "failed": node.failed_images,
        })).collect::<Vec<_>>(),
        "registries": facts.registries.iter().flatten().map(|registry| json!({
            "host": registry.host, "budget": registry.budget, "inFlight": registry.in_flight,
            "waitingNodes": registry.waiting_nodes,
        })).collect::<Vec<_>>(),
        "logs": logs(access, &facts.installation.namespace).await,
    });
    serde_saphyr::to_string(&bundle).map_err(|error| Failure::Failed(error.to_string()))
}

/// Images and flags of our workloads. Their environment is left out.
fn workloads(facts: &Facts) -> Vec<Value> {
    let deployments = facts.deployments.iter().flatten();
    let deployments = deployments
        .filter_map(|one| Some((one.name_any(), one.spec.as_ref()?.template.spec.clone()?)));
    let sets = facts.daemon_sets.iter().flatten();
    let sets =
        sets.filter_map(|one| Some((one.name_any(), one.spec.as_ref()?.template.spec.clone()?)));
    let workload = |(name, pod): (String, k8s_openapi::api::core::v1::PodSpec)| {
        let containers = pod.containers.into_iter();
        let containers = containers.map(|one| json!({"image": one.image, "args": one.args}));
        json!({"name": name, "containers": containers.collect::<Vec<_>>()})
    };
    deployments.chain(sets).map(workload).collect()
}

/// Spec and status; annotations may hold anything and are left out.
fn cache(cache: &crate::access::StoredCache) -> Value {
    json!({"namespace": cache.namespace(), "name": cache.name(), "generation": cache.metadata.generation,
           "spec": cache.spec, "status": cache.status})
}

/// The last lines of our pods. They log no credential.
async fn logs(access: &Access, namespace: &str) -> Vec<Value> {
    let pods: Api<Pod> = Api::namespaced(access.client.clone(), namespace);
    let Ok(list) = pods
        .list_metadata(&ListParams::default().labels(OURS))
        .await
    else {
        return Vec::new();
    };
    let tail = LogParams {
        tail_lines: Some(LINES),
        ..LogParams::default()
    };
    let mut logs = Vec::new();
    for pod in list.items.iter().take(PODS) {
        let text = pods.logs(&pod.name_any(), &tail).await;
        let text = text.unwrap_or_else(|error| error.to_string());
        logs.push(json!({"pod": pod.name_any(), "lines": text.lines().collect::<Vec<_>>()}));
    }
    logs
}
