//! Nodes, `EndpointSlices` and `ImageCaches` in a real API server.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Secret},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use kubefledged_api_types::{CacheSpecEntry, ImageCache, ImageCacheSpec};
use kubefledged_process::tls::{Identity, Served, keys};
use serde_json::{Value, json};

use crate::fleet::{self, Fleet};

/// Where the controller looks for its pullers.
pub const NAMESPACE: &str = "kube-fledged";
const SLICE: usize = 100;
const PORT: u16 = 7443;
/// Requests to the API server at a time.
const PARALLEL: usize = 16;
/// Verbs of writes.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
const OURS: &str = "kubefledged.io/bench=fleet";

/// The API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Connects as KUBECONFIG says.
    pub async fn connect() -> anyhow::Result<Self> {
        let client = Client::try_default()
            .await
            .context("no API server: run this by hack/bench")?;
        Ok(Self { client })
    }

    /// The client, for objects that only one scenario has.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The controller's namespace.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        namespaces
            .patch(
                NAMESPACE,
                &PatchParams::apply("kubefledged-bench"),
                &Patch::Apply(object),
            )
            .await
            .context("cannot make the namespace")?;
        Ok(())
    }

    /// Registers nodes, without their pullers.
    pub async fn add_nodes(&self, nodes: std::ops::Range<usize>) -> anyhow::Result<()> {
        self.add_tainted_nodes(nodes, None).await
    }

    /// The same, with a taint of this key if one is given.
    pub async fn add_tainted_nodes(
        &self,
        nodes: std::ops::Range<usize>,
        taint: Option<&str>,
    ) -> anyhow::Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        stream::iter(nodes)
            .map(|node| {
                let api = api.clone();
                async move {
                    let object: Node = serde_json::from_value(node_object(node, taint))?;
                    match api.create(&PostParams::default(), &object).await {
                        Ok(_) => Ok(()),
                        Err(kube::Error::Api(error)) if error.is_already_exists() => Ok(()),
                        Err(error) => {
                            Err(anyhow::Error::from(error).context("cannot create a Node"))
                        }
                    }
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Publishes the pullers of nodes, a hundred to a slice; those of dead nodes where nobody answers.
    pub async fn add_pullers(
        &self,
        nodes: std::ops::Range<usize>,
        fleet: &Fleet,
    ) -> anyhow::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let nodes: Vec<usize> = nodes.collect();
        let slices: Vec<Vec<usize>> = nodes.chunks(SLICE).map(<[usize]>::to_vec).collect();
        stream::iter(slices)
            .map(|nodes| {
                let api = api.clone();
                async move {
                    let object = slice_object(&nodes, fleet);
                    let name = object["metadata"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    let params = PatchParams::apply("kubefledged-bench").force();
                    api.patch(&name, &params, &Patch::Apply(object))
                        .await
                        .context("cannot write an EndpointSlice")?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Removes what was made here: nodes, slices, caches.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let caches: Api<ImageCache> = Api::default_namespaced(self.client.clone());
        caches
            .delete_collection(&DeleteParams::background(), &ListParams::default())
            .await?;
        let ours = ListParams::default().labels(OURS);
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        slices
            .delete_collection(&DeleteParams::background(), &ours)
            .await?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes
            .delete_collection(&DeleteParams::background(), &ours)
            .await?;
        Ok(())
    }

    /// Deletes the Node of a node.
    pub async fn remove_node(&self, node: usize) -> anyhow::Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        api.delete(&fleet::name(node), &DeleteParams::default())
            .await
            .context("cannot delete a Node")?;
        Ok(())
    }

    /// Rewrites `status.images` of nodes once, as kubelets do after pulls.
    pub async fn rewrite_images(
        &self,
        nodes: std::ops::Range<usize>,
        round: usize,
    ) -> anyhow::Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        let images: Vec<Value> = (0..50)
            .map(|image| json!({"names": [format!("registry.example/app{image}:{round}")], "sizeBytes": 4_000_000 + image}))
            .collect();
        let patch = Patch::Merge(json!({"status": {"images": images}}));
        stream::iter(nodes)
            .map(|node| {
                let (api, patch) = (api.clone(), patch.clone());
                async move {
                    api.patch_status(&fleet::name(node), &PatchParams::default(), &patch)
                        .await?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// `ImageCaches` of the default namespace.
    pub fn caches(&self) -> Api<ImageCache> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates an `ImageCache` of one list for all nodes.
    pub async fn create_cache(&self, name: &str, images: Vec<String>) -> anyhow::Result<()> {
        self.create(name, spec(images)).await
    }

    /// Creates an `ImageCache`.
    pub async fn create(&self, name: &str, spec: ImageCacheSpec) -> anyhow::Result<()> {
        let object = ImageCache::new(name, spec);
        self.caches()
            .create(&PostParams::default(), &object)
            .await
            .context("cannot create an ImageCache")?;
        Ok(())
    }

    /// Nodes.
    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Waits until a cache is as asked for.
    pub async fn wait(
        &self,
        name: &str,
        limit: Duration,
        is: impl Fn(&ImageCache) -> bool + Send,
    ) -> anyhow::Result<ImageCache> {
        let condition = |object: Option<&ImageCache>| object.is_some_and(&is);
        let waited =
            tokio::time::timeout(limit, await_condition(self.caches(), name, condition)).await;
        if let Ok(object) = waited {
            return object?.context("the ImageCache is gone");
        }
        let now = self.caches().get_opt(name).await?;
        let told = now.and_then(|cache| cache.status).map(|status| {
            (
                status.status,
                status.reason,
                status.ready,
                status.conditions,
            )
        });
        anyhow::bail!("ImageCache {name} is not as awaited after {limit:?}: {told:?}")
    }

    /// The pullers' certificate, as the leader publishes it; `None` until it does.
    pub async fn puller_identity(&self) -> anyhow::Result<Option<Served>> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let Some(secret) = secrets.get_opt("kubefledged-puller-tls").await? else {
            return Ok(None);
        };
        let data = secret.data.unwrap_or_default();
        let value = |key: &str| data.get(key).map_or(&[][..], |value| &value.0);
        let identity =
            Identity::from_pem(value(keys::CERTIFICATE), value(keys::KEY), value(keys::CA))?;
        Ok(Some(identity.mutual_server()?))
    }

    /// Deletes the Leases, in which a leader tells the next what it knows of registries.
    pub async fn forget_leaders(&self) -> anyhow::Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        Ok(())
    }

    /// Writes of the controller so far, by the API server's own count.
    pub async fn writes(&self) -> anyhow::Result<u64> {
        let text = self.metrics().await?;
        let lines = text.lines();
        Ok(lines
            .filter_map(|line| counted(line, &WRITES, &["imagecaches", "events"]))
            .sum())
    }

    /// Patches of Nodes so far: of the controller alone, where no scenario rewrites Nodes.
    pub async fn node_patches(&self) -> anyhow::Result<u64> {
        let text = self.metrics().await?;
        let lines = text.lines();
        Ok(lines
            .filter_map(|line| counted(line, &["PATCH"], &["nodes"]))
            .sum())
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        let request = http_get("/metrics")?;
        Ok(self.client.request_text(request).await?)
    }
}

fn http_get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// An `ImageCache` of one list for all nodes.
pub fn spec(images: Vec<String>) -> ImageCacheSpec {
    ImageCacheSpec {
        cache_spec: vec![CacheSpecEntry {
            images,
            ..CacheSpecEntry::default()
        }],
        ..ImageCacheSpec::default()
    }
}

/// `apiserver_request_total{...} 12` of one of these verbs and resources.
fn counted(line: &str, verbs: &[&str], resources: &[&str]) -> Option<u64> {
    let rest = line.strip_prefix("apiserver_request_total{")?;
    let (labels, value) = rest.rsplit_once("} ")?;
    let has = |name: &str, values: &[&str]| {
        values
            .iter()
            .any(|value| labels.contains(&format!("{name}=\"{value}\"")))
    };
    (has("verb", verbs) && has("resource", resources))
        .then(|| value.trim().parse().ok())
        .flatten()
}

fn node_object(node: usize, taint: Option<&str>) -> Value {
    let name = fleet::name(node);
    let taints: Vec<Value> = taint
        .into_iter()
        .map(|key| json!({"key": key, "effect": "NoSchedule"}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubefledged.io/bench": "fleet",
            "pool": format!("p{}", node % 20),
        }},
        "spec": {"taints": taints},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": fleet::address(node).to_string()}],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "simulated://1", "kubeletVersion": "v1.34.4",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

fn slice_object(nodes: &[usize], fleet: &Fleet) -> Value {
    let model = fleet.model();
    let endpoints: Vec<Value> = nodes
        .iter()
        .filter(|node| !fleet.is_gone(**node))
        .map(|node| json!({
            "addresses": [if model.is_dead(*node) { fleet::silent_address(*node) } else { fleet::address(*node) }.to_string()],
            "conditions": {"ready": true},
            "nodeName": fleet::name(*node),
            "targetRef": {"kind": "Pod", "name": format!("puller-{node}"), "namespace": NAMESPACE, "uid": fleet.instance(*node)},
        }))
        .collect();
    let first = nodes.first().copied().unwrap_or_default();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("kubefledged-puller-{first}"), "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": "kubefledged-puller", "kubefledged.io/bench": "fleet",
        }},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_of_what_the_controller_writes_are_counted() {
        let line = |verb: &str, resource: &str| {
            format!(
                "apiserver_request_total{{code=\"200\",resource=\"{resource}\",verb=\"{verb}\"}} 7"
            )
        };
        let ours = |line: &str| counted(line, &WRITES, &["imagecaches", "events"]);
        assert_eq!(ours(&line("PATCH", "imagecaches")), Some(7));
        assert_eq!(ours(&line("GET", "imagecaches")), None);
        assert_eq!(ours(&line("POST", "nodes")), None);
        assert_eq!(
            counted(&line("PATCH", "nodes"), &["PATCH"], &["nodes"]),
            Some(7)
        );
    }

    #[test]
    fn objects_are_what_the_api_has() {
        serde_json::from_value::<Node>(node_object(3, Some("a"))).unwrap();
        let slice: EndpointSlice =
            serde_json::from_value(slice_object(&[3, 4], &Fleet::new(5))).unwrap();
        assert_eq!(slice.endpoints.len(), 2);
    }
}
