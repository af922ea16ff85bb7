//! Writes to `ImageCaches`, and Events on them.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter},
};
use kubefledged_api_types::{ImageCache, ImageCacheStatus};
use kubefledged_engine::{CacheKey, Event, Severity, WriteError};
use serde_json::json;
use tokio::sync::mpsc;

/// Field manager of the controller's writes.
pub const FIELD_MANAGER: &str = "kubefledged-controller";

/// See the module.
pub struct Objects {
    client: Client,
    recorder: Recorder,
}

impl Objects {
    /// `pod_name` stands in Events as who reports.
    pub fn new(client: Client, pod_name: String) -> Self {
        let reporter = Reporter {
            controller: "kubefledged-controller".to_owned(),
            instance: Some(pod_name),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
        }
    }

    fn api(&self, key: &CacheKey) -> Api<ImageCache> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Replaces the whole status, if the object is still the one it was decided from.
    pub fn write_status(
        &self,
        key: CacheKey,
        resource_version: String,
        status: ImageCacheStatus,
        events: mpsc::Sender<Event>,
    ) {
        let api = self.api(&key);
        tokio::spawn(async move {
            let patch = json!([
                {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
                {"op": "add", "path": "/status", "value": status},
            ]);
            let result = match patch_of(patch) {
                Ok(patch) => api
                    .patch_status(&key.name, &params(), &patch)
                    .await
                    .map(|object| object.resource_version().unwrap_or_default())
                    .map_err(|error| write_error(&error)),
                Err(error) => Err(error),
            };
            if let Err(WriteError::Failed(error)) = &result {
                tracing::warn!(imagecache = %key, error, "cannot write the status, trying again");
            }
            let _ = events.send(Event::StatusWritten(key, result)).await;
        });
    }

    /// Removes an annotation if its value is still this one: a newer request is never eaten.
    pub fn clear_annotation(
        &self,
        key: CacheKey,
        annotation: &'static str,
        value: String,
        events: mpsc::Sender<Event>,
    ) {
        let api = self.api(&key);
        tokio::spawn(async move {
            let pointer = format!("/metadata/annotations/{}", annotation.replace('/', "~1"));
            let patch = json!([
                {"op": "test", "path": pointer, "value": value},
                {"op": "remove", "path": pointer},
            ]);
            let result = match patch_of(patch) {
                Ok(patch) => match api.patch(&key.name, &params(), &patch).await {
                    Ok(object) => Ok(Some(object.resource_version().unwrap_or_default())),
                    // The test did not hold: it has another value, or is gone.
                    Err(kube::Error::Api(status)) if status.code == 422 => Ok(None),
                    Err(error) => Err(write_error(&error)),
                },
                Err(error) => Err(error),
            };
            let _ = events.send(Event::AnnotationCleared(key, result)).await;
        });
    }

    /// Tells people. Lost Events are logged and not repeated.
    pub fn emit(&self, key: &CacheKey, uid: String, event: KubeEvent) {
        let reference = ObjectReference {
            api_version: Some(ImageCache::api_version(&()).into_owned()),
            kind: Some(ImageCache::kind(&()).into_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::warn!(reason = event.reason, %error, "cannot publish an Event");
            }
        });
    }
}

/// An Event in the API's words.
pub fn event(severity: Severity, reason: String, action: String, message: String) -> KubeEvent {
    KubeEvent {
        type_: match severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        },
        action,
        reason,
        note: Some(message),
        secondary: None,
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn patch_of(operations: serde_json::Value) -> Result<Patch<ImageCache>, WriteError> {
    serde_json::from_value(operations)
        .map(Patch::Json)
        .map_err(|error| WriteError::Failed(error.to_string()))
}

fn write_error(error: &kube::Error) -> WriteError {
    match error {
        kube::Error::Api(status) if status.code == 409 => WriteError::Conflict,
        kube::Error::Api(status) if status.code == 404 => WriteError::Gone,
        other => WriteError::Failed(other.to_string()),
    }
}
