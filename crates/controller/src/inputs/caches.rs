//! Watches `ImageCaches`. Each is parsed on its own, so that an invalid one does not stop the watch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use kubefledged_api_types::{
    ImageCache, ImageCacheStatus,
    names::{FINALIZER, PURGE_ANNOTATION, REFRESH_ANNOTATION},
    one_line,
};
use kubefledged_engine::{CacheKey, CacheObject, Event, InvalidCache};
use serde::Deserialize;
use serde_json::Value;

use super::Input;

/// Maximum length of a parser's error, which may quote a whole field.
const LONGEST_MESSAGE: usize = 1024;

/// An `ImageCache` whose spec and status are not parsed yet.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = ImageCache)]
pub struct StoredCache {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

/// Converts `ImageCaches` to events.
#[derive(Debug, Default)]
pub struct Caches;

impl Input for Caches {
    type Object = StoredCache;
    type Key = CacheKey;

    fn key(&self, object: &Self::Object) -> Option<CacheKey> {
        Some(CacheKey {
            namespace: object.namespace()?.into(),
            name: object.metadata.name.as_deref()?.into(),
        })
    }

    fn applied(&mut self, object: Self::Object, events: &mut Vec<Event>) {
        let Some(key) = self.key(&object) else { return };
        let version = object.metadata.resource_version.as_deref();
        tracing::debug!(imagecache = %key, version, "watch event");
        events.push(convert(key, object));
    }

    fn deleted(&mut self, key: &CacheKey, events: &mut Vec<Event>) {
        events.push(Event::CacheDeleted(key.clone()));
    }
}

fn convert(key: CacheKey, stored: StoredCache) -> Event {
    let StoredCache {
        mut metadata,
        spec,
        status,
    } = stored;
    let status = read_status(&key, status);
    let annotations = metadata.annotations.as_ref();
    let asks = annotations.is_some_and(|all| all.contains_key(PURGE_ANNOTATION));
    let purge_came_later = asks && purge_came_later(&metadata);
    let uid = metadata.uid.unwrap_or_default();
    let resource_version = metadata.resource_version.unwrap_or_default();
    let generation = metadata.generation.unwrap_or_default();
    let deleting = metadata.deletion_timestamp.is_some();
    let finalizer = metadata
        .finalizers
        .iter()
        .flatten()
        .any(|name| name == FINALIZER);
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    let refresh = annotations.remove(REFRESH_ANNOTATION);
    let purge = annotations.remove(PURGE_ANNOTATION);
    match serde_json::from_value(spec) {
        Ok(spec) => Event::CacheApplied(Box::new(CacheObject {
            key,
            uid,
            resource_version,
            generation,
            spec,
            status,
            refresh,
            purge,
            purge_came_later,
            deleting,
            finalizer,
        })),
        Err(error) => {
            tracing::warn!(imagecache = %key, %error, "cannot use the spec of this ImageCache");
            Event::CacheInvalid(Box::new(InvalidCache {
                key,
                uid,
                resource_version,
                generation,
                status,
                refresh,
                purge,
                purge_came_later,
                finalizer,
                deleting,
                message: one_line(&format!("spec: {error}"), LONGEST_MESSAGE),
            }))
        }
    }
}

/// Did somebody who does not write the spec write the purge annotation, and not before the object was created? A
/// restored object may bring older entries of `managedFields` with it.
fn purge_came_later(metadata: &ObjectMeta) -> bool {
    let annotated = format!("f:{PURGE_ANNOTATION}");
    let mut entries = metadata.managed_fields.iter().flatten();
    entries.any(|entry| {
        let fields = entry
            .fields_v1
            .as_ref()
            .map_or(&Value::Null, |fields| &fields.0);
        let writes = !fields["f:metadata"]["f:annotations"][&annotated].is_null();
        let restored = entry.time < metadata.creation_timestamp;
        writes && fields["f:spec"].is_null() && !restored
    })
}

/// Parses a status. An invalid status counts as empty.
fn read_status(key: &CacheKey, status: Value) -> ImageCacheStatus {
    if status.is_null() {
        return ImageCacheStatus::default();
    }
    serde_json::from_value(status).unwrap_or_else(|error| {
        tracing::warn!(imagecache = %key, %error, "cannot read the status of this ImageCache");
        ImageCacheStatus::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(spec: &Value, status: &Value) -> StoredCache {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "7", "generation": 3,
                "annotations": {"kubefledged.io/refresh-imagecache": ""},
                "finalizers": ["other", "kubefledged.io/purge"],
            },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn converted(object: StoredCache) -> Event {
        let mut events = Vec::new();
        Caches.applied(object, &mut events);
        assert_eq!(events.len(), 1);
        events.remove(0)
    }

    #[test]
    fn an_object_is_sent_with_its_annotations_and_our_finalizer() {
        let spec = serde_json::json!({"cacheSpec": [{"images": ["a:1"]}]});
        let Event::CacheApplied(cache) = converted(stored(&spec, &Value::Null)) else {
            panic!("it is valid");
        };
        assert_eq!(
            (cache.generation, cache.finalizer, cache.deleting),
            (3, true, false)
        );
        assert_eq!((cache.refresh.as_deref(), cache.purge), (Some(""), None));
    }

    /// The annotation's manager owns these fields too, and wrote last at `time`.
    fn came_later(others: &Value, time: &str) -> bool {
        let mut fields = others.clone();
        fields["f:metadata"] =
            serde_json::json!({"f:annotations": {"f:kubefledged.io/purge-imagecache": {}}});
        let metadata = serde_json::json!({
            "creationTimestamp": "2026-11-30T12:00:00Z",
            "managedFields": [
                {"time": "2026-11-30T12:00:00Z", "fieldsV1": {"f:spec": {}}},
                {"time": time, "fieldsV1": fields},
            ],
        });
        purge_came_later(&serde_json::from_value(metadata).unwrap())
    }

    #[test]
    fn a_purge_came_later_if_somebody_annotated_who_does_not_write_the_spec() {
        let annotate = serde_json::json!({});
        assert!(came_later(&annotate, "2026-11-30T12:00:09Z"));
        assert!(
            came_later(&annotate, "2026-11-30T12:00:00Z"),
            "in the second of the create"
        );
        assert!(
            !came_later(&annotate, "2026-11-29T12:00:00Z"),
            "restored from a backup"
        );
        let apply = serde_json::json!({"f:spec": {"f:cacheSpec": {}}});
        assert!(!came_later(&apply, "2026-11-30T12:00:09Z"));
    }

    #[test]
    fn an_invalid_spec_is_reported_with_its_reason_and_applied_names_are_kept() {
        let spec = serde_json::json!({"cacheSpec": "nonsense"});
        let status = serde_json::json!({"appliedImages": [{"name": "a:1"}]});
        let Event::CacheInvalid(invalid) = converted(stored(&spec, &status)) else {
            panic!("it is not valid");
        };
        assert!(
            invalid.message.contains("invalid type"),
            "{}",
            invalid.message
        );
        assert_eq!(invalid.status.applied_images[0].name, "a:1");
    }

    #[test]
    fn a_status_that_cannot_be_read_hinders_nothing() {
        let spec = serde_json::json!({"cacheSpec": []});
        let status = serde_json::json!({"failures": 7});
        assert!(matches!(
            converted(stored(&spec, &status)),
            Event::CacheApplied(_)
        ));
    }
}
