//! `ImageCaches` as they are stored. One that cannot be parsed must not hide the others.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use kubefledged_api_types::{
    ImageCache, ImageCacheSpec, ImageCacheStatus, Timestamp, conditions::Condition,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An `ImageCache` whose spec is not parsed yet.
#[derive(Clone, Debug, Deserialize, Serialize, Resource)]
#[resource(inherit = ImageCache)]
pub struct StoredCache {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its spec, as somebody wrote it.
    #[serde(default)]
    pub spec: Value,
    /// Its status; empty as long as no controller has seen it.
    #[serde(default)]
    pub status: ImageCacheStatus,
}

impl StoredCache {
    /// Its namespace, or an empty text.
    pub fn namespace(&self) -> String {
        ResourceExt::namespace(self).unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.name_any()
    }

    /// Its spec, or why it cannot be used.
    pub fn parsed(&self) -> Result<ImageCacheSpec, String> {
        serde_json::from_value(self.spec.clone()).map_err(|error| error.to_string())
    }

    /// When it was created; `None`: it was not read from an API server.
    pub fn created(&self) -> Option<Timestamp> {
        let created = self.metadata.creation_timestamp.as_ref()?;
        Some(Timestamp(created.0.as_second()))
    }

    /// One of its conditions.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|condition| condition.type_ == type_)
    }

    /// Does a condition have the status True?
    pub fn is(&self, type_: &str) -> bool {
        let condition = self.condition(type_);
        condition.is_some_and(|condition| condition.status == "True")
    }

    /// Has a controller seen the newest spec?
    pub fn is_observed(&self) -> bool {
        self.status.observed_generation.is_some()
            && self.status.observed_generation == self.metadata.generation
    }
}
