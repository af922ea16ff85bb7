//! Manifests that people give: an `ImageCache`, or workloads whose images are meant. Pure but for reading the file.

use std::{io::Read as _, path::Path};

use k8s_openapi::api::core::v1::PodSpec;
use kubefledged_api_types::{CacheSpecEntry, ImageCacheSpec, PullSecretReference};
use serde_json::Value;

use crate::exit::Failure;

/// What a file means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Name of its `ImageCache`, or of its first workload.
    pub name: Option<String>,
    /// Namespace that it says.
    pub namespace: Option<String>,
    /// Which images on which nodes.
    pub spec: ImageCacheSpec,
}

/// Reads a file; `-` is the standard input.
pub fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    read.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(text)
}

/// Understands YAML or JSON documents.
pub fn parse(text: &str) -> Result<Wanted, Failure> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| Failure::Usage(format!("the file is no YAML: {error}")))?;
    let mut objects = Vec::new();
    for document in documents {
        flatten(document, &mut objects);
    }
    let caches: Vec<&Value> = objects
        .iter()
        .filter(|o| o["kind"] == "ImageCache")
        .collect();
    match &caches[..] {
        [] => of_workloads(&objects),
        [cache] => of_cache(cache),
        _ => Err(Failure::Usage(
            "the file has several ImageCaches: give one of them".to_owned(),
        )),
    }
}

/// The objects of a List too.
fn flatten(document: Value, objects: &mut Vec<Value>) {
    match document["items"].as_array() {
        Some(items) => items.iter().for_each(|item| flatten(item.clone(), objects)),
        None if document.is_null() => {}
        None => objects.push(document),
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(ToOwned::to_owned)
}

fn of_cache(cache: &Value) -> Result<Wanted, Failure> {
    let spec = serde_json::from_value(cache["spec"].clone());
    let spec = spec.map_err(|error| Failure::Usage(format!("the ImageCache's spec: {error}")))?;
    Ok(Wanted {
        name: text(&cache["metadata"]["name"]),
        namespace: text(&cache["metadata"]["namespace"]),
        spec,
    })
}

/// Workloads, each with the nodes of its nodeSelector.
fn of_workloads(objects: &[Value]) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::default();
    for object in objects {
        let Some(pod) = pod_spec(object) else {
            continue;
        };
        let pod: PodSpec = serde_json::from_value(pod.clone()).map_err(|error| {
            Failure::Usage(format!("{} cannot be read: {error}", object["kind"]))
        })?;
        wanted.add(&pod);
        let metadata = &object["metadata"];
        wanted.name = wanted.name.take().or_else(|| text(&metadata["name"]));
        wanted.namespace = wanted
            .namespace
            .take()
            .or_else(|| text(&metadata["namespace"]));
    }
    if wanted.spec.cache_spec.is_empty() {
        return Err(Failure::Usage(
            "the file has no ImageCache and no workload with images".to_owned(),
        ));
    }
    Ok(wanted)
}

/// Where the kinds of Kubernetes have their pods' spec.
fn pod_spec(object: &Value) -> Option<&Value> {
    let path = match object["kind"].as_str()? {
        "Pod" => "/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => "/spec/template/spec",
        _ => return None,
    };
    object.pointer(path)
}

impl Wanted {
    /// Adds the images, the pull secrets and the `ServiceAccount` of a pod.
    pub fn add(&mut self, pod: &PodSpec) {
        let selector = pod.node_selector.clone().unwrap_or_default();
        let lists = &mut self.spec.cache_spec;
        let known = lists.iter().position(|list| list.node_selector == selector);
        let at = known.unwrap_or_else(|| {
            lists.push(CacheSpecEntry {
                node_selector: selector,
                ..CacheSpecEntry::default()
            });
            lists.len() - 1
        });
        let list = &mut lists[at];
        let init = pod.init_containers.iter().flatten();
        for image in init
            .chain(&pod.containers)
            .filter_map(|container| container.image.clone())
        {
            if !list.images.contains(&image) {
                list.images.push(image);
            }
        }
        for secret in pod.image_pull_secrets.iter().flatten() {
            self.add_secret(&secret.name);
        }
        let account = pod
            .service_account_name
            .clone()
            .filter(|name| name != "default");
        self.spec.service_account_name = self.spec.service_account_name.take().or(account);
    }

    /// Adds a pull secret, once.
    pub fn add_secret(&mut self, name: &str) {
        let secrets = &mut self.spec.image_pull_secrets;
        if !secrets.iter().any(|secret| secret.name == name) {
            secrets.push(PullSecretReference {
                name: name.to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOADS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: prod}
spec:
  template:
    spec:
      nodeSelector: {tier: web}
      imagePullSecrets: [{name: key}]
      initContainers: [{name: i, image: r/init:1}]
      containers: [{name: a, image: r/web:1}, {name: b, image: r/init:1}]
---
apiVersion: v1
kind: List
items:
  - {kind: CronJob, metadata: {name: c}, spec: {schedule: '', jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: r/job:1}]}}}}}}
  - {kind: Service, metadata: {name: s}, spec: {}}
";

    #[test]
    fn the_images_of_workloads_are_taken_with_their_node_selectors_and_secrets() {
        let wanted = parse(WORKLOADS).expect("workloads");
        assert_eq!(wanted.name.as_deref(), Some("shop"));
        assert_eq!(wanted.namespace.as_deref(), Some("prod"));
        let lists = &wanted.spec.cache_spec;
        assert_eq!(lists[0].images, ["r/init:1", "r/web:1"]);
        assert_eq!(lists[0].node_selector["tier"], "web");
        assert_eq!(lists[1].images, ["r/job:1"]);
        assert_eq!(wanted.spec.image_pull_secrets[0].name, "key");
    }

    #[test]
    fn an_image_cache_is_taken_as_it_is() {
        let text = r#"{"kind": "ImageCache", "metadata": {"name": "web"}, "spec": {"cacheSpec": [{"images": ["a:1"]}]}}"#;
        let wanted = parse(text).expect("an ImageCache");
        assert_eq!(wanted.spec.cache_spec[0].images, ["a:1"]);
    }

    #[test]
    fn a_file_without_images_is_an_error_of_usage() {
        for text in [
            "",
            "kind: Service",
            "kind: ImageCache\nspec: {cacheSpec: 3}",
            "{",
        ] {
            assert!(matches!(parse(text), Err(Failure::Usage(_))), "{text}");
        }
    }
}
