//! What kubelets ask of pods that use a cached image (KEP-2535).

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{Finding, NAMED, ok, warning};
use crate::{
    commands::doctor::Kubelets,
    output::quantities::{counted, some},
};

/// Warns if kubelets verify images that they did not pull, and names the pods that this makes fail.
pub(super) fn kubelets(kubelets: &Kubelets) -> Finding {
    let verifying: Vec<&str> = kubelets.verifying().collect();
    if verifying.is_empty() {
        let text = format!(
            "of {}, none asks for a pull secret when an image is cached",
            counted(kubelets.policies.len(), "kubelet")
        );
        return ok("Kubelets", text);
    }
    let mut text = format!(
        "{} of {} ask for a pull secret and for the registry also when an image is cached: {}",
        verifying.len(),
        counted(kubelets.policies.len(), "kubelet"),
        some(verifying.iter().copied(), NAMED)
    );
    let failing = kubelets.pods.iter().filter(|pod| never_pulls(pod));
    let failing = failing.map(|pod| {
        let namespace = pod.namespace().unwrap_or_default();
        format!("{namespace}/{}", pod.name_any())
    });
    let failing: Vec<String> = failing.collect();
    if !failing.is_empty() {
        let named = some(failing.iter().map(String::as_str), NAMED);
        text = format!(
            "{text}. Pods with imagePullPolicy Never fail there, unless the kubelet has verified their secret before: {named}"
        );
    }
    warning(
        "Kubelets",
        text,
        "kubectl get --raw /api/v1/nodes/NODE/proxy/configz # docs/security.md, private images",
    )
}

fn never_pulls(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    all.into_iter()
        .any(|container| container.image_pull_policy.as_deref() == Some("Never"))
}
