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
}
