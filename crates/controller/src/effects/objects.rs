//! Writes `ImageCaches` and publishes Events.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter},
};
use kubefledged_api_types::{ImageCache, ImageCacheStatus, names::FINALIZER, one_line};
use kubefledged_engine::{
    CacheKey, Event, GateReason, MissingImage, NodeName, NodeTransition, Severity, WriteError,
};
use serde_json::json;
use tokio::{sync::Semaphore, time::timeout};

/// Field manager of the controller's writes.
pub const FIELD_MANAGER: &str = "kubefledged-controller";
/// Time limit of one request.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of Kubernetes Events in flight. More are dropped, because they only inform people.
const MOST_EVENTS: usize = 64;
/// Back-offs before the second and the third attempt to publish an Event.
const EVENT_RETRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// What the API server says when etcd does not take an object.
const TOO_LARGE: [&str; 2] = [
    "request is too large",
    "trying to send message larger than max",
];
/// Longest note of an Event in bytes: the API server refuses longer ones.
const MAX_NOTE: usize = 1024;

/// Writes `ImageCaches` and publishes Events. Clones share their state.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    recorder: Recorder,
    publishing: Arc<Semaphore>,
}

impl Objects {
    /// `pod_name` is the reporter in Events.
    pub fn new(client: Client, pod_name: String) -> Self {
        let reporter = Reporter {
            controller: "kubefledged-controller".to_owned(),
            instance: Some(pod_name),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            publishing: Arc::new(Semaphore::new(MOST_EVENTS)),
        }
    }

    /// Client of the API server.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    fn api(&self, key: &CacheKey) -> Api<ImageCache> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Replaces the whole status, if the object still has the resource version from which it was decided.
    pub async fn write_status(
        &self,
        key: CacheKey,
        resource_version: String,
        status: ImageCacheStatus,
    ) -> Event {
        let patch = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let result = match patch_of(patch) {
            Ok(patch) => {
                tracing::debug!(imagecache = %key, "status write begins");
                let api = self.api(&key);
                let written = limited(api.patch_status(&key.name, &params(), &patch)).await;
                written
                    .map(|object| object.resource_version().unwrap_or_default())
                    .map_err(WriteError::from)
            }
            Err(error) => Err(error),
        };
        if let Err(WriteError::Failed(error) | WriteError::TooLarge(error)) = &result {
            tracing::warn!(imagecache = %key, error, "cannot write the status, trying again");
        }
        let version = result.as_deref().ok();
        tracing::debug!(imagecache = %key, version, "status write answered");
        Event::StatusWritten(key, result)
    }

    /// Removes an annotation if it still has this value, so that a newer request is not lost.
    pub async fn clear_annotation(
        &self,
        key: CacheKey,
        annotation: &'static str,
        value: String,
    ) -> Event {
        let result = clear(&self.api(&key), &key, annotation, &value).await;
        Event::AnnotationCleared(key, result)
    }

    /// Sets or removes our finalizer of an object. Finalizers of others stay.
    pub async fn set_finalizer(&self, key: CacheKey, uid: String, present: bool) -> Event {
        let result = finalize(&self.api(&key), &key, &uid, present).await;
        if let Err(WriteError::Failed(error)) = &result {
            tracing::warn!(imagecache = %key, error, "cannot write the finalizer, trying again");
        }
        Event::FinalizerWritten(key, result)
    }

    /// Publishes an Event on an `ImageCache`.
    pub async fn emit(&self, key: CacheKey, uid: String, event: KubeEvent) {
        let reference = ObjectReference {
            api_version: Some(ImageCache::api_version(&()).into_owned()),
            kind: Some(ImageCache::kind(&()).into_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        self.publish(&reference, &event).await;
    }

    /// Publishes an Event on a node, unless too many nodes change at once.
    pub async fn node_transition(&self, node: NodeName, transition: NodeTransition, emit: bool) {
        tracing::debug!(%node, ?transition, "node transition");
        if !emit {
            return;
        }
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_string()),
            // Like the kubelet's Events, so that `kubectl describe node` finds it.
            uid: Some(node.to_string()),
            ..ObjectReference::default()
        };
        self.publish(&reference, &node_event(transition)).await;
    }

    /// Logs an Event that cannot be published after three attempts.
    async fn publish(&self, reference: &ObjectReference, event: &KubeEvent) {
        let name = reference.name.as_deref().unwrap_or_default();
        let Ok(_publishing) = self.publishing.try_acquire() else {
            tracing::warn!(
                name,
                reason = event.reason,
                "too many Events in flight, dropping one"
            );
            return;
        };
        let mut retries = EVENT_RETRIES.into_iter();
        loop {
            let error = match timeout(LIMIT, self.recorder.publish(event, reference)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let Some(wait) = retries.next() else {
                tracing::warn!(
                    name,
                    reason = event.reason,
                    error,
                    "cannot publish an Event"
                );
                return;
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// Returns reason and message of an Event on a node.
fn node_event(transition: NodeTransition) -> KubeEvent {
    let (severity, reason, message) = match transition {
        NodeTransition::Warm { after } => {
            let after = after.map_or_else(String::new, |after| {
                format!(", {} s after it could get them", after.as_secs())
            });
            let message = format!("All images that ImageCaches want here are on the node{after}");
            (Severity::Normal, "ImagesCached", message)
        }
        NodeTransition::Stuck {
            cache,
            image,
            reason,
            message,
            more,
        } => {
            let others = match more {
                0 => String::new(),
                more => format!(" ({more} more could not be pulled)"),
            };
            let message = format!(
                "ImageCache {cache}: {image} cannot be pulled: {reason}: {message}{others}"
            );
            (Severity::Warning, "ImagesNotCached", message)
        }
        NodeTransition::Released {
            reason,
            first,
            more,
        } => {
            let message = released(reason, first, more);
            (Severity::Warning, "ReleasedWithoutImages", message)
        }
    };
    event(severity, reason.to_owned(), "Caching".to_owned(), &message)
}

/// Returns what the Event on a node says that the node gate releases although images are missing.
fn released(reason: GateReason, first: Option<MissingImage>, more: usize) -> String {
    let why = match reason {
        GateReason::ReleasedAfterFailure => "what is missing cannot be pulled",
        _ => "the time-out of the node gate is over",
    };
    let missing = match first {
        Some(first) => first.sentence(more),
        None => "The images on the node are not known yet".to_owned(),
    };
    format!("Pods may come: {why}. {missing}")
}

/// Converts an Event to the API's form.
pub fn event(severity: Severity, reason: String, action: String, message: &str) -> KubeEvent {
    KubeEvent {
        type_: match severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        },
        action,
        reason,
        note: Some(one_line(message, MAX_NOTE)),
        secondary: None,
    }
}

/// The part of an object that is read. An object with an unusable spec is finalized too.
async fn finalize(
    api: &Api<ImageCache>,
    key: &CacheKey,
    uid: &str,
    present: bool,
) -> Result<Option<String>, WriteError> {
    let object = limited(api.get_metadata(&key.name)).await?;
    if object.uid().as_deref() != Some(uid) {
        return Err(WriteError::Gone);
    }
    let mut finalizers = object.finalizers().to_vec();
    let known = finalizers.iter().any(|name| name == FINALIZER);
    if known == present {
        return Ok(None);
    }
    if present {
        finalizers.push(FINALIZER.to_owned());
    } else {
        finalizers.retain(|name| name != FINALIZER);
    }
    let patch = patch_of(json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": object.resource_version()},
        {"op": "add", "path": "/metadata/finalizers", "value": finalizers},
    ]))?;
    let written = limited(api.patch_metadata(&key.name, &params(), &patch)).await?;
    Ok(written.resource_version())
}

/// The new resource version; `None`: the annotation has another value or does not exist.
async fn clear(
    api: &Api<ImageCache>,
    key: &CacheKey,
    annotation: &str,
    value: &str,
) -> Result<Option<String>, WriteError> {
    let pointer = format!("/metadata/annotations/{}", annotation.replace('/', "~1"));
    let patch = patch_of(json!([
        {"op": "test", "path": pointer, "value": value},
        {"op": "remove", "path": pointer},
    ]))?;
    let refused = match limited(api.patch(&key.name, &params(), &patch)).await {
        Ok(object) => return Ok(Some(object.resource_version().unwrap_or_default())),
        Err(refused) => refused,
    };
    if refused.code == 422 {
        // Either the test failed, or a webhook refused.
        let object = limited(api.get_metadata_opt(&key.name)).await?;
        let stands = object.is_some_and(|object| {
            let known = object.annotations().get(annotation);
            known.is_some_and(|known| known == value)
        });
        if !stands {
            return Ok(None);
        }
        tracing::warn!(imagecache = %key, annotation, error = refused.message, "cannot remove the annotation, trying again");
    }
    Err(refused.into())
}

pub(super) fn params() -> PatchParams {
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

/// Error of the API server.
pub(super) struct Refused {
    /// HTTP status. 0 if it did not answer.
    pub code: u16,
    /// What it said.
    pub message: String,
}

pub(super) async fn limited<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Refused> {
    match timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Refused {
            code: match &error {
                kube::Error::Api(status) => status.code,
                _ => 0,
            },
            message: error.to_string(),
        }),
        Err(_) => Err(Refused {
            code: 0,
            message: format!("the API server did not answer within {LIMIT:?}"),
        }),
    }
}

impl From<Refused> for WriteError {
    fn from(refused: Refused) -> Self {
        match refused.code {
            409 => Self::Conflict,
            404 => Self::Gone,
            413 => Self::TooLarge(refused.message),
            // etcd refuses a request of more than 1.5 MiB, and gRPC a message of more than 2 MiB, behind a 500.
            500 if TOO_LARGE.iter().any(|text| refused.message.contains(text)) => {
                Self::TooLarge(refused.message)
            }
            _ => Self::Failed(refused.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_etcd_does_not_take_is_too_large() {
        let of = |code, message: &str| {
            let message = message.to_owned();
            WriteError::from(Refused { code, message })
        };
        let large = |error| matches!(error, WriteError::TooLarge(_));
        assert!(large(of(500, "etcdserver: request is too large")));
        assert!(large(of(
            500,
            "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2100000 vs. 2097152)"
        )));
        assert!(large(of(413, "Request entity too large: limit is 3145728")));
        assert!(!large(of(500, "etcdserver: request timed out")));
    }

    #[test]
    fn the_event_of_a_node_that_is_released_names_what_is_missing_and_why() {
        let first = MissingImage {
            cache: CacheKey {
                namespace: "ns".into(),
                name: "a".into(),
            },
            image: "r.test/web:9".into(),
            failure: Some(("ImageNotFound".into(), "not found".into())),
        };
        let told = released(GateReason::ReleasedAfterFailure, Some(first), 2);
        assert_eq!(
            told,
            "Pods may come: what is missing cannot be pulled. ImageCache ns/a: r.test/web:9 is missing: \
             ImageNotFound: not found (2 more are missing)"
        );
        let told = released(GateReason::ReleasedByTimeout, None, 0);
        assert!(
            told.contains("time-out") && told.contains("not known yet"),
            "{told}"
        );
    }

    #[test]
    fn an_event_is_no_longer_than_the_api_server_accepts() {
        let long = "images \u{e4} ".repeat(500);
        let event = event(Severity::Normal, "R".to_owned(), "A".to_owned(), &long);
        let note = event.note.unwrap_or_default();
        assert!(note.len() <= 1024 && note.len() > 1000, "{}", note.len());
    }
}
