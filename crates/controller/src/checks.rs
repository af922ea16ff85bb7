//! Checks before this controller watches or leads: the installed definition can store what it writes,
//! and nobody else manages the same objects. Until both hold the controller is not ready, and `/readyz`
//! says which command helps.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, apps::v1::Deployment},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use kubefledged_process::Guard;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::crd;

/// Time between two checks while one fails.
const LOOK: Duration = Duration::from_secs(5);
/// Time limit of one check.
const LIMIT: Duration = Duration::from_secs(20);
/// Path of the admission webhook, of kube-fledged and of kubefledged.
const WEBHOOK_PATH: &str = "/validate-image-cache";
const APPLY: &str =
    "kubefledged-controller crd | kubectl apply --server-side --force-conflicts -f -";

/// The checks, and the names of our own objects.
pub struct Checks {
    /// Client for reading.
    pub client: Client,
    /// Our namespace.
    pub namespace: String,
    /// Our Deployment in the namespace.
    pub deployment: String,
    /// Our `ValidatingWebhookConfiguration`. Empty: none.
    pub webhook_configuration: String,
}

impl Checks {
    /// Repeats the checks until all pass, and then cancels `passed`.
    pub async fn run(self, guard: Guard, passed: CancellationToken) {
        guard.set_pending("checking the cluster");
        loop {
            match timeout(LIMIT, self.look()).await {
                Ok(Ok(None)) => break,
                Ok(Ok(Some(finding))) => guard.set_pending(finding),
                Ok(Err(error)) => guard.set_pending(format!("cannot ask the API server: {error}")),
                Err(_) => guard.set_pending("the API server does not answer"),
            }
            tokio::time::sleep(LOOK).await;
        }
        guard.set_ready();
        passed.cancel();
    }

    async fn look(&self) -> Result<Option<String>, kube::Error> {
        let definition = crd::definition();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let installed = definitions.get_opt(&definition.name_any()).await?;
        if let Some(finding) = judge(installed.as_ref(), &definition) {
            return Ok(Some(finding));
        }
        let deployments = self.list::<Deployment>().await?;
        if let Some(finding) = self.rival(&deployments) {
            return Ok(Some(finding));
        }
        let configurations = self.list::<ValidatingWebhookConfiguration>().await?;
        Ok(self.rival_webhook(&configurations))
    }

    /// Lists all objects of a kind. Without the right to list them the check is skipped.
    async fn list<K>(&self) -> Result<Vec<K>, kube::Error>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(kind = %K::kind(&()), "no right to list this kind: the check for another kube-fledged is skipped");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Looks for another controller of the same objects: that of kube-fledged, or of another release.
    fn rival(&self, deployments: &[Deployment]) -> Option<String> {
        let rival = deployments.iter().find(|deployment| {
            let ours = deployment.namespace().as_deref() == Some(&self.namespace)
                && deployment.name_any() == self.deployment;
            let spec = deployment.spec.as_ref();
            let scaled_down = spec.is_some_and(|spec| spec.replicas == Some(0));
            !ours && !scaled_down && is_controller(deployment)
        })?;
        let (namespace, name) = (rival.namespace().unwrap_or_default(), rival.name_any());
        Some(format!(
            "Deployment {namespace}/{name} manages ImageCaches too, and two controllers would fight: \
             uninstall it, or kubectl delete deployment -n {namespace} {name} (ImageCaches stay)"
        ))
    }

    fn rival_webhook(&self, all: &[ValidatingWebhookConfiguration]) -> Option<String> {
        let rival = all.iter().find(|configuration| {
            let mut webhooks = configuration.webhooks.iter().flatten();
            configuration.name_any() != self.webhook_configuration
                && webhooks.any(|webhook| {
                    let service = webhook.client_config.service.as_ref();
                    service.and_then(|service| service.path.as_deref()) == Some(WEBHOOK_PATH)
                })
        })?;
        let name = rival.name_any();
        Some(format!(
            "ValidatingWebhookConfiguration {name} of another kube-fledged judges ImageCaches too: \
             kubectl delete validatingwebhookconfiguration {name}"
        ))
    }
}

fn is_controller(deployment: &Deployment) -> bool {
    let labels = deployment.labels();
    let label = |key: &str| labels.get(key).map(String::as_str);
    if label("app.kubernetes.io/name") == Some("kubefledged")
        && label("app.kubernetes.io/component") == Some("controller")
    {
        return true;
    }
    let template = deployment
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref());
    let mut containers = template.iter().flat_map(|spec| &spec.containers);
    containers.any(|container| {
        let image = container.image.as_deref().unwrap_or_default();
        let name = image.rsplit('/').next().unwrap_or(image);
        name.split([':', '@']).next() == Some("kubefledged-controller")
    })
}

/// Checks whether the installed definition can store what this controller writes.
fn judge(
    installed: Option<&CustomResourceDefinition>,
    ours: &CustomResourceDefinition,
) -> Option<String> {
    let name = ours.name_any();
    let Some(installed) = installed else {
        return Some(format!(
            "CustomResourceDefinition {name} is not installed: {APPLY}"
        ));
    };
    let version = &ours.spec.versions[0];
    let served = installed
        .spec
        .versions
        .iter()
        .find(|other| other.name == version.name && other.served);
    let Some(served) = served else {
        return Some(format!(
            "CustomResourceDefinition {name} does not serve {}: {APPLY}",
            version.name
        ));
    };
    let subresources = served.subresources.as_ref();
    if subresources.is_none_or(|subresources| subresources.status.is_none()) {
        return Some(format!(
            "CustomResourceDefinition {name} has no status subresource, it is kube-fledged's old one; \
             replace it, ImageCaches stay: {APPLY}"
        ));
    }
    let fields = |version: &Option<_>| {
        let mut fields = BTreeSet::new();
        if let Ok(schema) = serde_json::to_value(version) {
            collect(&schema["openAPIV3Schema"], "", &mut fields);
        }
        fields
    };
    let theirs = fields(&served.schema);
    let missing = fields(&version.schema)
        .into_iter()
        .find(|field| !theirs.contains(field))?;
    Some(format!(
        "CustomResourceDefinition {name} is older than this controller, it does not know {missing}: {APPLY}"
    ))
}

/// Returns the paths of all fields of a schema.
fn collect(schema: &Value, path: &str, fields: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        collect(field, &path, fields);
        fields.insert(path);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            collect(&schema[inner], &format!("{path}[]"), fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(namespace: &str, name: &str, image: &str, labels: &Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {
                "selector": {},
                "template": {"spec": {"containers": [{"name": "c", "image": image}]}},
            },
        }))
        .unwrap()
    }

    fn checks() -> Checks {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>("not asked")
        });
        Checks {
            client: Client::new(service, "ns"),
            namespace: "ns".to_owned(),
            deployment: "kubefledged-controller".to_owned(),
            webhook_configuration: "ours".to_owned(),
        }
    }

    #[test]
    fn our_own_definition_passes_and_a_missing_one_names_the_command() {
        let ours = crd::definition();
        assert_eq!(judge(Some(&ours), &ours), None);
        let finding = judge(None, &ours).unwrap();
        assert!(
            finding.contains("is not installed: kubefledged-controller crd"),
            "{finding}"
        );
    }

    #[test]
    fn a_definition_without_status_subresource_or_with_fewer_fields_is_named() {
        let ours = crd::definition();
        let mut old = ours.clone();
        old.spec.versions[0].subresources = None;
        assert!(
            judge(Some(&old), &ours)
                .unwrap()
                .contains("no status subresource")
        );
        let mut older = serde_json::to_value(&ours).unwrap();
        let schema = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let status = schema["properties"]["status"]["properties"].as_object_mut();
        status.unwrap().remove("appliedImages");
        let older = serde_json::from_value(older).unwrap();
        let finding = judge(Some(&older), &ours).unwrap();
        assert!(
            finding.contains("does not know .status.appliedImages"),
            "{finding}"
        );
        // Newer than us is fine.
        assert_eq!(judge(Some(&ours), &older), None);
        let mut unserved = ours.clone();
        unserved.spec.versions[0].served = false;
        assert!(
            judge(Some(&unserved), &ours)
                .unwrap()
                .contains("does not serve v1alpha2")
        );
    }

    #[tokio::test]
    async fn another_controller_is_named_and_our_own_is_not() {
        let checks = checks();
        let ours = json!({"app.kubernetes.io/name": "kubefledged", "app.kubernetes.io/component": "controller"});
        let own = deployment(
            "ns",
            "kubefledged-controller",
            "r/kubefledged/controller:1",
            &ours,
        );
        let webhook = json!({"app.kubernetes.io/name": "kubefledged", "app.kubernetes.io/component": "webhook-server"});
        let other = deployment("ns", "kubefledged-webhook-server", "r/webhook:1", &webhook);
        assert_eq!(checks.rival(&[own.clone(), other.clone()]), None);
        let release = deployment("two", "kubefledged-controller", "r/x:1", &ours);
        let finding = checks.rival(&[own.clone(), release]).unwrap();
        assert!(
            finding.contains("kubectl delete deployment -n two kubefledged-controller"),
            "{finding}"
        );
        let image = "docker.io/senthilrch/kubefledged-controller:v0.10.0";
        let mut upstream = deployment("ns", "kf", image, &json!({"app": "kubefledged"}));
        assert!(checks.rival(&[upstream.clone()]).unwrap().contains("ns/kf"));
        // Scaled down it does no harm.
        upstream.spec.as_mut().unwrap().replicas = Some(0);
        assert_eq!(checks.rival(&[own, upstream]), None);
    }

    #[tokio::test]
    async fn another_webhook_for_the_same_path_is_named_and_policy_engines_are_not() {
        let checks = checks();
        let configuration = |name: &str, path: &str| -> ValidatingWebhookConfiguration {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "webhooks": [{
                    "name": "w", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                    "clientConfig": {"service": {"name": "s", "namespace": "n", "path": path}},
                }],
            }))
            .unwrap()
        };
        let ours = configuration("ours", WEBHOOK_PATH);
        let policy = configuration("policies", "/validate");
        assert_eq!(checks.rival_webhook(&[ours.clone(), policy]), None);
        let finding = checks.rival_webhook(&[ours, configuration("theirs", WEBHOOK_PATH)]);
        assert!(
            finding
                .unwrap()
                .contains("kubectl delete validatingwebhookconfiguration theirs")
        );
    }
}
