//! The `CustomResourceDefinition`, generated from the API types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;
use kubefledged_api_types::ImageCache;

/// Returns the definition that is installed.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = ImageCache::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            name_known_formats(schema);
        }
    }
    definition
}

/// The API server warns of `uint32`, a format that it does not know. The minimum of 0 stands beside it.
fn name_known_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref() == Some("uint32") {
        schema.format = Some("int64".to_owned());
    }
    let properties = schema.properties.iter_mut();
    properties
        .flat_map(|properties| properties.values_mut())
        .for_each(name_known_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        name_known_formats(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        name_known_formats(values);
    }
    schema
        .any_of
        .iter_mut()
        .flatten()
        .for_each(name_known_formats);
}

/// Returns the definition as YAML.
pub fn yaml() -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&definition())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kubefledged_api_types::{ImageCacheSpec, ImageCacheStatus};
    use schemars::schema_for;
    use serde_json::Value;

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
                "Unreachable",
                "Reason",
                "Age",
                "Message",
                "Images",
                "Size",
                "Last-Refresh"
            ]
        );
    }

    #[test]
    fn the_api_server_knows_every_format() {
        let yaml = yaml().unwrap();
        let formats = yaml
            .lines()
            .filter_map(|line| line.trim().strip_prefix("format: "));
        for format in formats {
            let known = ["int32", "int64", "double", "date-time"];
            assert!(known.contains(&format), "{format}");
        }
    }

    /// Collects all fields of a schema with their paths. `root` resolves the references of a schema
    /// as schemars writes it; the schema of a definition has none.
    fn fields(path: &str, schema: &Value, root: &Value, found: &mut BTreeMap<String, Value>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            found.insert(path.clone(), field.clone());
            fields(&path, field, root, found);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                fields(path, &schema[inner], root, found);
            }
        }
        for alternative in schema["anyOf"].as_array().into_iter().flatten() {
            fields(path, alternative, root, found);
        }
        if let Some(reference) = schema["$ref"].as_str() {
            let target = root.pointer(reference.trim_start_matches('#')).unwrap();
            fields(path, target, root, found);
        }
    }

    fn definition_fields() -> BTreeMap<String, Value> {
        let crd = serde_json::to_value(definition()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = BTreeMap::new();
        fields("", schema, &Value::Null, &mut found);
        found
    }

    /// The doc comments of all fields, as schemars reads them, before kube makes a structural schema.
    fn doc_comments() -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (path, schema) in [
            (".spec", schema_for!(ImageCacheSpec)),
            (".status", schema_for!(ImageCacheStatus)),
        ] {
            let root = schema.to_value();
            fields(path, &root, &root, &mut found);
        }
        let text = |(path, field): (String, Value)| {
            let text = field["description"].as_str().unwrap_or_default();
            (path, text.replace('\n', " "))
        };
        found.into_iter().map(text).collect()
    }

    #[test]
    fn kubectl_explain_prints_the_doc_comment_of_every_field() {
        let comments = doc_comments();
        assert!(comments.len() > 50, "{comments:#?}");
        let mut described = definition_fields();
        described.retain(|path, _| path.matches('.').count() > 1);
        assert_eq!(
            described.keys().collect::<Vec<_>>(),
            comments.keys().collect::<Vec<_>>()
        );
        for (path, comment) in comments {
            assert!(!comment.is_empty(), "{path} has no doc comment");
            assert_eq!(described[&path]["description"], comment, "{path}");
        }
    }

    #[test]
    fn kubectl_explain_names_every_value_of_an_enum_and_every_default() {
        let mut enums = 0;
        for (path, field) in definition_fields() {
            let text = field["description"].as_str().unwrap();
            for value in field["enum"].as_array().into_iter().flatten() {
                enums += 1;
                let value = value.as_str().unwrap();
                assert!(text.contains(value), "{path} does not name {value}: {text}");
            }
            if path.starts_with(".spec.") && field["nullable"] == true {
                let default = text.contains("Not set: ");
                assert!(default, "{path} does not say what holds if it is not set");
            }
        }
        assert!(enums > 10, "{enums}");
    }
}
