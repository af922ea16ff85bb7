//! Writes caBundle into the webhook's configuration.

use k8s_openapi::{ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// Field manager that owns only caBundle, so that it has no conflict with whoever applies the rest.
const FIELD_MANAGER: &str = "kubefledged-ca";

/// Writes caBundle by server-side apply, if the configuration exists and has another one. Returns whether
/// it wrote.
pub async fn publish(client: &Client, name: &str, bundle: &str) -> Result<bool, kube::Error> {
    if name.is_empty() {
        return Ok(false);
    }
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    // Applying to a configuration that does not exist would create one with nothing but caBundle.
    let Some(found) = api.get_opt(name).await? else {
        return Ok(false);
    };
    let webhooks = found.webhooks.unwrap_or_default();
    let right = |ca: &Option<ByteString>| ca.as_ref().is_some_and(|ca| ca.0 == bundle.as_bytes());
    if webhooks
        .iter()
        .all(|webhook| right(&webhook.client_config.ca_bundle))
    {
        return Ok(false);
    }
    let ca_bundle = ByteString(bundle.as_bytes().to_vec());
    let webhooks: Vec<_> = webhooks
        .iter()
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": ca_bundle}}))
        .collect();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": webhooks,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(&patch)).await?;
    tracing::info!(configuration = name, "caBundle written");
    Ok(true)
}
