//! A manifest as the API's own types read it. They skip what they do not know, so what comes back
//! out of them is compared with what went in.

use anyhow::Context as _;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        apps::v1::{DaemonSet, Deployment},
        batch::v1::Job,
        core::v1::{ConfigMap, Pod, ResourceQuota, Secret, Service, ServiceAccount},
        flowcontrol::v1::FlowSchema,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Kinds of other projects, whose types are not at hand.
const FOREIGN: [&str; 2] = ["monitoring.coreos.com/v1", "cert-manager.io/v1"];

/// Fails if the API would not take every field of this manifest, and says which it would not.
pub fn check(manifest: &Value) -> anyhow::Result<()> {
    let kind = manifest["kind"].as_str().context("no kind")?;
    let version = manifest["apiVersion"].as_str().context("no apiVersion")?;
    if FOREIGN.contains(&version) {
        return Ok(());
    }
    match (version, kind) {
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            same::<ValidatingAdmissionPolicy>(manifest)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            same::<ValidatingAdmissionPolicyBinding>(manifest)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration") => {
            same::<ValidatingWebhookConfiguration>(manifest)
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            same::<CustomResourceDefinition>(manifest)
        }
        ("apps/v1", "DaemonSet") => same::<DaemonSet>(manifest),
        ("apps/v1", "Deployment") => same::<Deployment>(manifest),
        ("batch/v1", "Job") => same::<Job>(manifest),
        ("flowcontrol.apiserver.k8s.io/v1", "FlowSchema") => same::<FlowSchema>(manifest),
        ("networking.k8s.io/v1", "NetworkPolicy") => same::<NetworkPolicy>(manifest),
        ("policy/v1", "PodDisruptionBudget") => same::<PodDisruptionBudget>(manifest),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<ClusterRole>(manifest),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            same::<ClusterRoleBinding>(manifest)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => same::<Role>(manifest),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => same::<RoleBinding>(manifest),
        ("v1", "ConfigMap") => same::<ConfigMap>(manifest),
        ("v1", "Pod") => same::<Pod>(manifest),
        ("v1", "ResourceQuota") => same::<ResourceQuota>(manifest),
        ("v1", "Secret") => same::<Secret>(manifest),
        ("v1", "Service") => same::<Service>(manifest),
        ("v1", "ServiceAccount") => same::<ServiceAccount>(manifest),
        _ => anyhow::bail!("no type for {version} {kind}: add it here"),
    }
}

fn same<T: DeserializeOwned + Serialize>(manifest: &Value) -> anyhow::Result<()> {
    let typed: T = serde_json::from_value(manifest.clone())?;
    let back = serde_json::to_value(typed)?;
    let mut lost = Vec::new();
    differences("", manifest, &back, &mut lost);
    anyhow::ensure!(lost.is_empty(), "not understood: {}", lost.join(", "));
    Ok(())
}

/// What `given` has and `back` has not. Nothing at all, null, and an empty list or map are one.
fn differences(path: &str, given: &Value, back: &Value, lost: &mut Vec<String>) {
    match (given, back) {
        (Value::Null, _) => {}
        (Value::Array(given), Value::Null) if given.is_empty() => {}
        (Value::Object(given), Value::Null) if given.is_empty() => {}
        (Value::Object(given), Value::Object(back)) => {
            for (key, value) in given {
                let back = back.get(key).unwrap_or(&Value::Null);
                differences(&format!("{path}.{key}"), value, back, lost);
            }
        }
        (Value::Array(given), Value::Array(back)) if given.len() == back.len() => {
            for (index, (given, back)) in given.iter().zip(back).enumerate() {
                differences(&format!("{path}[{index}]"), given, back, lost);
            }
        }
        (given, back) if given == back => {}
        (Value::Number(given), Value::Number(back)) if given.as_f64() == back.as_f64() => {}
        _ => lost.push(format!("{path}: {given}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_the_api_does_not_have_is_named() {
        let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
                              "spec": {"ports": [{"port": 1, "tragetPort": 2}]}});
        let said = check(&manifest).unwrap_err().to_string();
        assert_eq!(said, "not understood: .spec.ports[0].tragetPort: 2");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused() {
        let manifest = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {},
                              "spec": {"replicas": "two"}});
        assert!(check(&manifest).is_err());
    }
}
