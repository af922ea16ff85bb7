//! Checks before this controller watches or leads: the installed definition can store what it writes,
//! and no other webhook judges the same objects. Until both hold the controller is not ready, and `/readyz`
//! says which command helps. Only who administers the cluster can make these checks fail.
//!
//! Another controller of the same objects is reported and does not keep this one from working: anybody who may
//! create a Deployment can make one that looks like it.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, apps::v1::Deployment},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use kubefledged_process::Guard;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::crd;

/// Time between two checks while one fails.
const RETRY: Duration = Duration::from_secs(5);
/// Time between two searches for another controller.
const SEARCH: Duration = Duration::from_secs(600);
/// Maximum number of objects in one answer of the API server.
const PAGE: u32 = 100;
/// Maximum number of Deployments that are considered.
const CANDIDATES: usize = 20;
/// Labels of controllers of these objects: ours, those of kube-fledged's manifests, those of its chart.
const CONTROLLERS: [&str; 3] = [
    "app.kubernetes.io/name=kubefledged,app.kubernetes.io/component=controller",
    "app=kubefledged,kubefledged=kubefledged-controller",
    "app.kubernetes.io/name=kube-fledged",
];
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
    /// Repeats the checks until all pass, then cancels `passed`, and searches for other controllers, which `rivals`
    /// counts.
    pub async fn run(self, guard: Guard, passed: CancellationToken, rivals: Gauge) {
        guard.set_pending("checking the cluster");
        loop {
            match timeout(LIMIT, self.finding()).await {
                Ok(Ok(None)) => break,
                Ok(Ok(Some(finding))) => guard.set_pending(finding),
                Ok(Err(error)) => guard.set_pending(format!("cannot ask the API server: {error}")),
                Err(_) => guard.set_pending("the API server does not answer"),
            }
            tokio::time::sleep(RETRY).await;
        }
        guard.set_ready();
        passed.cancel();
        self.search(rivals).await;
    }

    async fn finding(&self) -> Result<Option<String>, kube::Error> {
        let definition = crd::definition();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let installed = definitions.get_opt(&definition.name_any()).await?;
        if let Some(finding) = judge(installed.as_ref(), &definition) {
            return Ok(Some(finding));
        }
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let configurations = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) if is_forbidden(&error) => {
                tracing::warn!(
                    "no right to list webhook configurations: the check for another webhook is skipped"
                );
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        Ok(self.rival_webhook(&configurations))
    }

    /// Searches for other controllers of the same objects now and then, and counts and logs them.
    async fn search(&self, found: Gauge) {
        loop {
            match timeout(LIMIT, self.rivals()).await {
                Ok(Ok(rivals)) => {
                    found.set(i64::try_from(rivals.len()).unwrap_or(i64::MAX));
                    for (namespace, name) in &rivals {
                        tracing::warn!(
                            "Deployment {namespace}/{name} seems to manage ImageCaches too, and two controllers \
                             overwrite each other's work: if it does, uninstall it, or kubectl delete deployment -n \
                             {namespace} {name} (ImageCaches stay)"
                        );
                    }
                }
                Ok(Err(error)) if is_forbidden(&error) => {
                    tracing::warn!(
                        "no right to list Deployments: the search for another controller is skipped"
                    );
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot search for another controller"),
                Err(_) => tracing::warn!("cannot search for another controller: no answer"),
            }
            tokio::time::sleep(SEARCH).await;
        }
    }

    /// Namespaces and names of Deployments that look like another controller and are not scaled to zero.
    async fn rivals(&self) -> Result<BTreeSet<(String, String)>, kube::Error> {
        let mut named = BTreeSet::new();
        for labels in CONTROLLERS {
            named.extend(self.labelled(labels).await?);
        }
        let own = (self.namespace.clone(), self.deployment.clone());
        named.remove(&own);
        let mut running = BTreeSet::new();
        for (namespace, name) in named.into_iter().take(CANDIDATES) {
            let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
            let only = ListParams::default().fields(&format!("metadata.name={name}"));
            let list = api.list(&only).await?.items;
            let mut specs = list.iter().filter_map(|found| found.spec.as_ref());
            if specs.any(|spec| spec.replicas != Some(0)) {
                running.insert((namespace, name));
            }
        }
        Ok(running)
    }

    /// Deployments with these labels, of all namespaces, as far as there is a reason to count them.
    async fn labelled(&self, labels: &str) -> Result<Vec<(String, String)>, kube::Error> {
        let api: Api<Deployment> = Api::all(self.client.clone());
        let mut params = ListParams::default().labels(labels).limit(PAGE);
        let mut found = Vec::new();
        loop {
            let page = api.list_metadata(&params).await?;
            let names = page.items.iter();
            found.extend(names.map(|item| (item.namespace().unwrap_or_default(), item.name_any())));
            match page.metadata.continue_ {
                Some(more) if !more.is_empty() && found.len() < CANDIDATES => {
                    params = params.continue_token(&more);
                }
                _ => return Ok(found),
            }
        }
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

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
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
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn checks(deployments: Vec<Value>) -> Checks {
        let answer = move |request: http::Request<kube::client::Body>| {
            let answer = answer(&deployments, request.uri());
            async move {
                let body = serde_json::to_vec(&answer)?;
                Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(body)))
            }
        };
        Checks {
            client: Client::new(tower::service_fn(answer), "ns"),
            namespace: "ns".to_owned(),
            deployment: "kubefledged-controller".to_owned(),
            webhook_configuration: "ours".to_owned(),
        }
    }

    /// What an API server with these Deployments answers: a list by labels in pages of one, or one of them.
    fn answer(deployments: &[Value], uri: &http::Uri) -> Value {
        let query = uri.query().unwrap_or_default();
        let parameters: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        if let Some(field) = parameters.get("fieldSelector") {
            let named = |one: &&Value| {
                Some(field.as_str())
                    == one["metadata"]["name"]
                        .as_str()
                        .map(|name| format!("metadata.name={name}"))
                        .as_deref()
            };
            let items: Vec<&Value> = deployments.iter().filter(named).collect();
            return json!({"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {}, "items": items});
        }
        let wanted = |one: &&Value| {
            let mut labels = parameters["labelSelector"].split(',');
            labels.all(|label| {
                let (key, value) = label.split_once('=').unwrap();
                one["metadata"]["labels"][key] == value
            })
        };
        let all: Vec<&Value> = deployments.iter().filter(wanted).collect();
        let at: usize = parameters
            .get("continue")
            .map_or(0, |at| at.parse().unwrap());
        let more = (at + 1 < all.len()).then(|| (at + 1).to_string());
        json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"continue": more.unwrap_or_default()},
            "items": all.get(at).map(|one| json!({"metadata": one["metadata"]})).into_iter().collect::<Vec<_>>(),
        })
    }

    fn deployment(namespace: &str, name: &str, replicas: u32, labels: &Value) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"replicas": replicas, "selector": {}, "template": {}},
        })
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
    async fn other_controllers_are_found_in_pages_and_our_own_and_stopped_ones_are_not() {
        let ours = json!({"app.kubernetes.io/name": "kubefledged", "app.kubernetes.io/component": "controller"});
        let webhook = json!({"app.kubernetes.io/name": "kubefledged", "app.kubernetes.io/component": "webhook-server"});
        let upstream = json!({"app": "kubefledged", "kubefledged": "kubefledged-controller"});
        let checks = checks(vec![
            deployment("ns", "kubefledged-controller", 2, &ours),
            deployment("ns", "kubefledged-webhook-server", 1, &webhook),
            deployment("two", "second", 1, &ours),
            deployment("three", "stopped", 0, &ours),
            deployment("four", "kf", 1, &upstream),
            deployment("five", "shop", 1, &json!({"app": "shop"})),
        ]);
        let rivals: Vec<_> = checks.rivals().await.unwrap().into_iter().collect();
        let names: Vec<_> = rivals.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["kf", "second"]);
    }

    #[tokio::test]
    async fn another_webhook_for_the_same_path_is_named_and_policy_engines_are_not() {
        let checks = checks(Vec::new());
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
