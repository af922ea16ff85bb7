//! `generate`: an `ImageCache` with the images that run in a namespace.

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Api, api::ListParams};
use kubefledged_image::ImageRef;
use serde_json::{Value, json};

use crate::{
    access::Access,
    args::Generate,
    exit::{Exit, Failure},
    manifests::Wanted,
    output::{Format, Out, note},
};

/// Writes the `ImageCache` to the standard output, and the lock file if one is wanted.
pub async fn run(access: &Access, out: Out, args: &Generate) -> Result<Exit, Failure> {
    let pods: Api<Pod> = Api::namespaced(access.client.clone(), &access.namespace);
    let pods = pods.list(&ListParams::default()).await;
    let pods = pods
        .map_err(|error| Failure::of_kube("cannot list pods", &error))?
        .items;
    let digests = digests(&pods);
    if let Some(path) = &args.lock {
        let written = std::fs::write(path, lock(&digests));
        written.map_err(|error| {
            Failure::Failed(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    let pinned = args.digests || args.lock.is_some();
    let mut wanted = wanted(&pods, pinned.then_some(&digests));
    if wanted
        .spec
        .cache_spec
        .iter()
        .all(|list| list.images.is_empty())
    {
        return Err(Failure::Failed(format!(
            "no pod runs in the namespace {}",
            access.namespace
        )));
    }
    for list in &mut wanted.spec.cache_spec {
        list.images.sort();
    }
    let name = args.name.as_ref().unwrap_or(&access.namespace);
    let object = object(&access.namespace, name, &wanted);
    if pinned {
        note("Images that run without a digest of their registry are written by their tag.");
    }
    // For people it is YAML too: it is fed to kubectl.
    let format = if out.format == Format::Table {
        Format::Yaml
    } else {
        out.format
    };
    Out { format }.one(&object, &format!("imagecache.kubefledged.io/{name}"), "")?;
    Ok(Exit::Good)
}

fn object(namespace: &str, name: &str, wanted: &Wanted) -> Value {
    json!({
        "apiVersion": "kubefledged.io/v1alpha2",
        "kind": "ImageCache",
        "metadata": {"name": name, "namespace": namespace},
        "spec": wanted.spec,
    })
}

/// Images of the pods that have not ended, with their node selectors.
fn wanted(pods: &[Pod], digests: Option<&BTreeMap<String, String>>) -> Wanted {
    let mut wanted = Wanted::default();
    for pod in pods {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let Some(spec) = pod
            .spec
            .as_ref()
            .filter(|_| !matches!(phase, Some("Succeeded" | "Failed")))
        else {
            continue;
        };
        let mut spec = spec.clone();
        if let Some(digests) = digests {
            let init = spec.init_containers.iter_mut().flatten();
            for container in init.chain(&mut spec.containers) {
                let known = container
                    .image
                    .as_ref()
                    .and_then(|image| digests.get(image));
                container.image = known.cloned().or(container.image.take());
            }
        }
        wanted.add(&spec);
    }
    wanted
}

/// What runs of each image: the name with the digest of the registry. An image with several keeps the first.
fn digests(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for pod in pods {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
            continue;
        };
        let statuses = status.container_statuses.iter().flatten();
        let statuses: Vec<_> = statuses
            .chain(status.init_container_statuses.iter().flatten())
            .collect();
        let init = spec.init_containers.iter().flatten();
        for container in init.chain(&spec.containers) {
            let running = statuses.iter().find(|status| status.name == container.name);
            if let (Some(image), Some(running)) = (&container.image, running)
                && let Some(pinned) = pinned(image, running)
            {
                digests.entry(image.clone()).or_insert(pinned);
            }
        }
    }
    digests
}

/// The image's own repository with the digest that runs. Runtimes that give only the image's id tell no digest.
fn pinned(image: &str, running: &ContainerStatus) -> Option<String> {
    let (_, digest) = running.image_id.rsplit_once('@')?;
    if image.contains('@') {
        return Some(image.to_owned());
    }
    let known = ImageRef::parse(image).ok()?;
    let repository = format!("{}/{}", known.registry(), known.repository());
    Some(format!("{repository}@{digest}"))
}

/// One line for each image: as it is written, and what runs.
fn lock(digests: &BTreeMap<String, String>) -> String {
    digests
        .iter()
        .fold(String::new(), |mut text, (image, pinned)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{image} {pinned}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str) -> Pod {
        let container = |name: &str, image: &str| json!({"name": name, "image": image});
        let status = json!({"name": "a", "image": "web", "imageID": "docker.io/library/web@sha256:0a", "ready": true, "restartCount": 0});
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [container("a", "web:1"), container("b", "r.test:5000/side:2")]},
            "status": {"phase": phase, "containerStatuses": [status]},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn images_of_running_pods_are_taken_and_those_that_ended_are_not() {
        let wanted = wanted(&[pod("Running"), pod("Succeeded")], None);
        assert_eq!(
            wanted.spec.cache_spec[0].images,
            ["web:1", "r.test:5000/side:2"]
        );
        assert!(
            super::wanted(&[pod("Failed")], None)
                .spec
                .cache_spec
                .is_empty()
        );
    }

    #[test]
    fn with_digests_what_runs_is_written_and_locked() {
        let digests = digests(&[pod("Running")]);
        let wanted = wanted(&[pod("Running")], Some(&digests));
        let expected = ["docker.io/library/web@sha256:0a", "r.test:5000/side:2"];
        assert_eq!(wanted.spec.cache_spec[0].images, expected);
        assert_eq!(lock(&digests), "web:1 docker.io/library/web@sha256:0a\n");
    }
}
