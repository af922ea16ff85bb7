//! Parses only a part of an object's metadata. The rest, mainly `managedFields`, is skipped during parsing.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lean {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    uid: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads name, namespace, resource version, UID, creation time and labels; for `#[serde(deserialize_with)]`.
pub fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let Lean {
        name,
        namespace,
        resource_version,
        uid,
        creation_timestamp,
        labels,
    } = Lean::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name,
        namespace,
        resource_version,
        uid,
        creation_timestamp,
        labels,
        ..ObjectMeta::default()
    })
}
