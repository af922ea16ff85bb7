//! The `CustomResourceDefinition`, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use kubefledged_api_types::ImageCache;

/// The definition as it is installed.
pub fn definition() -> CustomResourceDefinition {
    ImageCache::crd()
}

/// The definition as YAML.
pub fn yaml() -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&definition())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_has_the_status_subresource_that_the_controller_writes() {
        let crd = definition();
        let version = &crd.spec.versions[0];
        assert_eq!(version.name, "v1alpha2");
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        assert_eq!(
            crd.spec.names.short_names.as_deref(),
            Some(&["ic".to_owned()][..])
        );
        let columns: Vec<_> = version
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|c| c.name.as_str())
            .collect();
        assert_eq!(
            columns,
            [
                "Status",
                "Ready",
                "Failed",
                "Reason",
                "Age",
                "Message",
                "Images",
                "Last-Refresh"
            ]
        );
    }

    /// Paths of fields that say nothing about themselves.
    fn silent(path: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(str::is_empty) {
                found.push(path.clone());
            }
            silent(&path, field, found);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                silent(path, &schema[inner], found);
            }
        }
    }

    #[test]
    fn kubectl_explain_has_a_sentence_for_every_field() {
        let crd = serde_json::to_value(definition()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        silent("", schema, &mut found);
        assert_eq!(found, Vec::<String>::new());
        assert!(
            schema["properties"]["status"]["properties"]
                .as_object()
                .unwrap()
                .len()
                > 15
        );
    }
}
